package ctl

import (
	"context"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// watch | head -1 hung until the next event: only a write told that nobody reads.
func TestAWatchEndsWithItsReader(t *testing.T) {
	for _, line := range [][]string{{"watch"}, {"varlink call", "--more", "io.sockd.Manager.Watch"}} {
		sh, _ := mustShell(t)
		sh.env.ReaderGone = func(context.Context) bool { return true }
		r := sh.run("", line...)
		require.Equal(t, 128+int(syscall.SIGPIPE), r.exit, "%v", line)
		require.Empty(t, r.stderr, "as quietly as SIGPIPE ends a program")
	}
}

func TestWhoLooksForTheReaderIsWaitedFor(t *testing.T) {
	ended := false
	e := Env{ReaderGone: func(ctx context.Context) bool {
		<-ctx.Done()
		ended = true
		return false
	}}
	ctx, stop := e.whileRead(t.Context())
	require.NoError(t, ctx.Err())
	stop()
	require.True(t, ended)
	_, stop = (&Env{}).whileRead(t.Context()) // nobody can tell
	stop()
}

// -o was taken and ignored.
func TestWatchPrintsTheFieldsThatAreAskedFor(t *testing.T) {
	sh, _ := mustShell(t)
	sh.must("open", "inet", "stream")
	sh.env.Columns = []string{"event", "kind", "id"}
	r := sh.run("", "--timeout", "100ms", "watch")
	require.Equal(t, ExitTimedOut, r.exit, r.stderr)
	require.True(t, strings.HasPrefix(r.stdout, "EVENT\tKIND\tID\n"), r.stdout)
	require.Equal(t, 1, strings.Count(r.stdout, "EVENT"))
	require.Contains(t, r.stdout, "\nready\t-\t")
	sh.env.Columns = []string{"colour"}
	require.Equal(t, ExitUsage, sh.run("", "watch").exit)
}
