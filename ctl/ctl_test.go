package ctl

import (
	"bytes"
	"context"
	"flag"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sockd/sockd/ctl/ctltest"
	"github.com/sockd/sockd/families/model"
	"github.com/stretchr/testify/require"
)

// patience bounds what a test waits for; anything healthy is far quicker.
const patience = 20 * time.Second

// mustServe serves b on a control socket of its own, whose path it returns.
func mustServe(tb testing.TB, b Backend) (path string, s *Server) {
	tb.Helper()
	path = filepath.Join(tb.TempDir(), "io.sockd")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	require.NoError(tb, err)
	s = NewServer(b, ServerOptions{Version: "test"})
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	tb.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		require.NoError(tb, s.Shutdown(ctx))
		require.NoError(tb, <-served)
	})
	return path, s
}

// shell is a user at a terminal: the environment that its commands run in.
type shell struct {
	tb   testing.TB
	env  Env
	path string
}

// mustShell starts a daemon in memory and a user in front of it.
func mustShell(tb testing.TB) (*shell, *ctltest.Backend) {
	tb.Helper()
	b := ctltest.New(tb)
	path, _ := mustServe(tb, b)
	return newShell(tb, path), b
}

func newShell(tb testing.TB, path string) *shell {
	return &shell{tb: tb, path: path, env: Env{
		Getenv: func(string) string { return "" },
		Getuid: func() int { return 0 },
		Socket: path,
	}}
}

// result is what a command left behind.
type result struct {
	stdout, stderr string
	exit           int
}

// run runs a command line: a verb of one word, its flags, its arguments. Before
// the verb stand --json and --timeout D.
func (sh *shell) run(stdin string, line ...string) result {
	sh.tb.Helper()
	return sh.runContext(context.Background(), stdin, line...)
}

func (sh *shell) runContext(ctx context.Context, stdin string, line ...string) result {
	sh.tb.Helper()
	return sh.runFrom(ctx, strings.NewReader(stdin), line...)
}

// runFrom is runContext with any stdin.
func (sh *shell) runFrom(ctx context.Context, stdin io.Reader, line ...string) result {
	sh.tb.Helper()
	e := sh.env
	var stdout, stderr bytes.Buffer
	e.Stdin, e.Stdout, e.Stderr = stdin, &stdout, &stderr
	err := runVerb(ctx, sh.tb, &e, line)
	PrintError(&stderr, err, e.JSON)
	return result{stdout.String(), stderr.String(), ExitCode(err)}
}

func runVerb(ctx context.Context, tb testing.TB, e *Env, line []string) error {
	tb.Helper()
	for strings.HasPrefix(line[0], "--") {
		switch line[0] {
		case "--json":
			e.JSON = true
		case "--timeout":
			d, err := model.ParseDuration(line[1])
			require.NoError(tb, err)
			e.Timeout, line = &d, line[1:]
		}
		line = line[1:]
	}
	v, ok := verbs[line[0]]
	require.True(tb, ok, "no verb %q", line[0])
	fs := flag.NewFlagSet(v.Name, flag.ContinueOnError)
	run := v.Setup(fs)
	require.NoError(tb, fs.Parse(line[1:]))
	return run(ctx, e, fs.Args())
}

// must runs a command that succeeds, and gives its stdout without the newline.
func (sh *shell) must(line ...string) string {
	sh.tb.Helper()
	r := sh.run("", line...)
	require.Zero(sh.tb, r.exit, "%v: %s", line, r.stderr)
	return strings.TrimSuffix(r.stdout, "\n")
}

// eventually waits until done says so.
func eventually(tb testing.TB, what string, done func() bool) {
	tb.Helper()
	require.Eventually(tb, done, patience, time.Millisecond, what)
}
