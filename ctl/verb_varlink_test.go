package ctl

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// The daemon ends the connection of who sends no call, and sockd-ctl took that for
// a daemon that was not there (exit 5).
func TestWhatIsNoCallIsRefusedWithoutTheDaemon(t *testing.T) {
	sh := newShell(t, "nowhere")
	for _, method := range []string{"", "foo", "foo.bar", "foo.Bar", "io.sockd.manager", "io.sockd.Manager.List\n", "io.sockd.Manager.L\nist", "\xff.a.B"} {
		r := sh.run("", "varlink call", "--", method)
		require.Equal(t, ExitUsage, r.exit, "%q: %s", method, r.stderr)
		require.Contains(t, r.stderr, "is no method: want INTERFACE.Method", method)
	}
	for _, parameters := range []string{"", "7", "[]", "null", "{", `{"a":"` + "\xff" + `"}`, "{}{}"} {
		r := sh.run("", "varlink call", "io.sockd.Manager.Status", parameters)
		require.Equal(t, ExitUsage, r.exit, "%q: %s", parameters, r.stderr)
		require.Contains(t, r.stderr, "want one JSON object", parameters)
	}
}

// --timeout was not looked at.
func TestTimeoutBoundsVarlinkCall(t *testing.T) {
	sh, _ := mustShell(t)
	sh.must("open", "inet", "stream")
	for _, line := range [][]string{
		{"varlink call", "io.sockd.Manager.Recv", `{"id":1}`},
		{"varlink call", "--more", "io.sockd.Manager.Watch"},
	} {
		start := time.Now()
		r := sh.run("", append([]string{"--timeout", "20ms"}, line...)...)
		require.Equal(t, ExitTimedOut, r.exit, "%v: %s", line, r.stderr)
		require.Contains(t, r.stderr, "timed out")
		require.Less(t, time.Since(start), grace, "no grace: the daemon was not told")
	}
	require.NotEmpty(t, sh.must("--timeout", "0", "varlink call", "io.sockd.Manager.Status"), "an answer that is there at once is no wait")
}
