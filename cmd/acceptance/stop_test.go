package acceptance

import (
	"bytes"
	"errors"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/sockd/sockd/ctl/tap"
	"github.com/sockd/sockd/families/familytest"
)

// stopsWithin is how long a daemon may take to end: what its callers get to read their
// last answers, and a second of a busy machine.
const stopsWithin = 3 * time.Second

// terminate ends the daemon by SIGTERM, and tells how long that took.
func (s *sockd) terminate() time.Duration {
	s.t.Helper()
	begun := time.Now()
	require.NoError(s.t, s.cmd.Process.Signal(syscall.SIGTERM))
	s.ended = true
	done := make(chan error, 1)
	go func() { done <- s.cmd.Wait() }()
	select {
	case err := <-done:
		require.NoError(s.t, err, s.log)
	case <-time.After(patience):
		require.NoError(s.t, s.cmd.Process.Signal(syscall.SIGQUIT))
		<-done
		s.t.Fatalf("sockd did not end within %v of SIGTERM\n%s", patience, s.log)
	}
	return time.Since(begun)
}

// Callers who stand still, of every kind, do not hold the daemon's end: once it took five
// seconds, and two more for the next file of a capture.
func TestCallersWhoStandStillDoNotHoldTheEnd(t *testing.T) {
	for name, stall := range map[string]func(*sockd, *familytest.NS){
		"nobody": func(*sockd, *familytest.NS) {},
		"a capture to a pipe": func(s *sockd, b *familytest.NS) {
			s.stalled("capture", "va", "-w", "-", "--queue", "256k")
			flood(s, b)
		},
		"a capture to files": func(s *sockd, b *familytest.NS) {
			s.stalled("capture", "va", "-w", filepath.Join(s.dir, "cap.pcapng"), "-C", "4k", "--queue", "64k")
			flood(s, b)
		},
		"a tap": func(s *sockd, b *familytest.NS) {
			p, err := tap.Open(s.t.Context(), tap.Options{Socket: s.socket, Source: "va", Bytes: 1 << 20})
			require.NoError(s.t, err)
			s.t.Cleanup(func() { _ = p.Close() }) // the daemon is gone by then
			flood(s, b)
		},
		"a dump": func(s *sockd, b *familytest.NS) {
			s.run("recorder", "add", "black", "va", "--bytes", "16M")
			numbered(s.t, b, "vb", 0, 100_000)
			before := s.callers()
			c := s.ctl("recorder", "dump", "black", "-w", "-")
			out, err := c.StdoutPipe() // nobody reads on
			require.NoError(s.t, err)
			s.background(c)
			_, err = out.Read(make([]byte, 1))
			require.NoError(s.t, err)
			require.Greater(s.t, s.callers(), before)
		},
		"a watcher": func(s *sockd, b *familytest.NS) {
			s.stalled("watch")
		},
		"half a message": func(s *sockd, _ *familytest.NS) { s.says(`{"method":"io.sockd.Manager.List","param`) },
		"nothing at all": func(s *sockd, _ *familytest.NS) { s.says("") },
		"unread answers": func(s *sockd, _ *familytest.NS) { s.asks(`{"method":"org.varlink.service.GetInfo"}` + "\x00") },
		"a slow injector": func(s *sockd, _ *familytest.NS) {
			s.stalled("inject", "va", strings.Repeat("0", 60), "--loop", "0", "--pps", "10")
		},
		"a session": func(s *sockd, _ *familytest.NS) { s.stalledSession() },
		"several at once": func(s *sockd, b *familytest.NS) {
			s.stalled("capture", "va", "-w", "-", "--queue", "256k")
			s.stalled("capture", "va", "-w", filepath.Join(s.dir, "cap.pcapng"), "-C", "4k", "--queue", "64k")
			flood(s, b)
			s.says(`{"method":"io.sockd.Manager.List","param`)
			s.asks(`{"method":"org.varlink.service.GetInfo"}` + "\x00")
			s.stalledSession()
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a, b := hosts(t)
			s := start(t, a)
			stall(s, b)
			took := s.terminate()
			t.Log(took)
			require.Less(t, took, stopsWithin, s.log)
		})
	}
}

// background runs a caller until the test ends.
func (s *sockd) background(c *exec.Cmd) {
	s.t.Helper()
	require.NoError(s.t, c.Start())
	s.t.Cleanup(func() {
		_ = c.Process.Kill() // it may be gone already
		_ = c.Wait()         // killed: the error says so
	})
}

// stalled runs a caller, and stops it once the daemon has heard of it.
func (s *sockd) stalled(args ...string) {
	s.t.Helper()
	before := s.callers()
	c := s.ctl(args...)
	s.background(c)
	s.eventually("the caller is there", func() bool { return s.callers() > before })
	if args[0] == "capture" {
		running(s)
	}
	(&process{c}).halt(s)
}

// callers counts the connections to the control socket.
func (s *sockd) callers() int {
	s.t.Helper()
	out := s.run("status", "--json")
	_, rest, ok := strings.Cut(out, `"callers":`)
	require.True(s.t, ok, out)
	n := 0
	for _, r := range rest {
		if r < '0' || r > '9' {
			break
		}
		n = 10*n + int(r-'0')
	}
	return n
}

// flood sends until the captures have lost something.
func flood(s *sockd, b *familytest.NS) {
	s.t.Helper()
	s.eventually("the caller loses packets", func() bool {
		numbered(s.t, b, "vb", 0, 5000)
		out := s.run("ls", "captures", "--json")
		return strings.Contains(out, `"dropped_subscriber":`) && !strings.Contains(out, `"dropped_subscriber":0`)
	})
}

// dial is a connection to the control socket, open until the test ends.
func (s *sockd) dial() net.Conn {
	s.t.Helper()
	c, err := net.Dial("unix", s.socket)
	require.NoError(s.t, err)
	s.t.Cleanup(func() { _ = c.Close() }) // the daemon is gone by then
	return c
}

// says is a caller who says something and then nothing.
func (s *sockd) says(text string) {
	s.t.Helper()
	_, err := s.dial().Write([]byte(text))
	require.NoError(s.t, err)
}

// asks is a caller who asks until the daemon cannot answer, and reads nothing.
func (s *sockd) asks(text string) {
	s.t.Helper()
	c := s.dial()
	require.NoError(s.t, c.SetWriteDeadline(time.Now().Add(time.Second)))
	_, err := c.Write(bytes.Repeat([]byte(text), 100_000))
	require.Error(s.t, err, "the daemon does not read on")
	var timeout net.Error
	require.True(s.t, errors.As(err, &timeout) && timeout.Timeout(), "%v", err)
}

// stalledSession is a relay's session whose backend does not read.
func (s *sockd) stalledSession() {
	s.t.Helper()
	near, _ := s.through(s.t, s.caller(), "unix")
	require.NoError(s.t, near.SetWriteDeadline(time.Now().Add(time.Second)))
	_, err := near.Write(make([]byte, 64<<20))
	require.Error(s.t, err)
}
