package acceptance

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/sockd/sockd/families/familytest"
)

// patience bounds a wait for something that is about to happen.
const patience = 30 * time.Second

// programs are the two binaries, built once for all tests of a run.
var programs = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "sockd-acceptance")
	if err != nil {
		return "", err
	}
	build := exec.Command("go", "build", "-o", dir+"/", "../sockd", "../sockd-ctl")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, out)
	}
	return dir, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if dir, err := programs(); err == nil {
		_ = os.RemoveAll(dir) // a left-over folder in the temporary directory harms nobody
	}
	os.Exit(code)
}

// A sockd is a daemon on a private control socket, in a namespace or in the
// test's own (ns nil).
type sockd struct {
	t      *testing.T
	ns     *familytest.NS
	bin    string
	dir    string
	socket string
	cmd    *exec.Cmd
	log    *lockedBuffer
	ended  bool // by goroutines
}

// start runs sockd and waits until its control socket accepts.
func start(t *testing.T, ns *familytest.NS) *sockd {
	t.Helper()
	return startBy(t, ns)
}

// startBy is start by a command that becomes sockd: the rest of its arguments.
func startBy(t *testing.T, ns *familytest.NS, by ...string) *sockd {
	t.Helper()
	familytest.Need(t, familytest.Root())
	bin, err := programs()
	require.NoError(t, err)
	dir := t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(dir, "config"), 0o755))
	s := &sockd{t: t, ns: ns, bin: bin, dir: dir, socket: filepath.Join(dir, "control"), log: &lockedBuffer{}}
	line := append(by, filepath.Join(bin, "sockd"), "--socket", s.socket, "--config", filepath.Join(dir, "config"), "--state", filepath.Join(dir, "state"))
	s.cmd = s.command(line[0], line[1:]...)
	s.cmd.Stderr = s.log
	require.NoError(t, s.cmd.Start())
	t.Cleanup(s.stop)
	s.eventually("the control socket accepts", func() bool {
		c, err := net.Dial("unix", s.socket)
		if err != nil {
			return false
		}
		return c.Close() == nil
	})
	return s
}

func (s *sockd) stop() {
	if s.ended {
		return
	}
	_ = s.cmd.Process.Signal(os.Interrupt) // it may be gone already
	done := make(chan error, 1)
	go func() { done <- s.cmd.Wait() }()
	select {
	case err := <-done:
		if err != nil {
			s.t.Errorf("sockd ended badly: %v\n%s", err, s.log)
		}
	case <-time.After(patience):
		_ = s.cmd.Process.Kill()
		s.t.Errorf("sockd did not end within %v of SIGINT\n%s", patience, s.log)
	}
}

// goroutines ends the daemon by SIGQUIT and counts those in its last words.
func (s *sockd) goroutines() (n int) {
	s.t.Helper()
	require.NoError(s.t, s.cmd.Process.Signal(syscall.SIGQUIT))
	s.ended = true
	var exit *exec.ExitError
	require.ErrorAs(s.t, s.cmd.Wait(), &exit) // 2, as Go's runtime ends
	for line := range strings.Lines(s.log.String()) {
		if strings.HasPrefix(line, "goroutine ") {
			n++
		}
	}
	require.Positive(s.t, n, "SIGQUIT prints every goroutine")
	return n
}

// command is a command in the daemon's namespace.
func (s *sockd) command(name string, args ...string) *exec.Cmd {
	if s.ns == nil {
		return exec.Command(name, args...)
	}
	return s.ns.Command(name, args...)
}

// ctl is a sockd-ctl command that talks to s.
func (s *sockd) ctl(args ...string) *exec.Cmd {
	return s.command(filepath.Join(s.bin, "sockd-ctl"), append([]string{"--socket", s.socket}, args...)...)
}

// run runs sockd-ctl, which must succeed, and returns its stdout.
func (s *sockd) run(args ...string) string {
	s.t.Helper()
	out, stderr, code := s.try(args...)
	if code != 0 {
		s.t.Fatalf("sockd-ctl %s: exit %d\n%s\ndaemon: %s", strings.Join(args, " "), code, stderr, s.log)
	}
	return strings.TrimSuffix(out, "\n")
}

// try runs sockd-ctl and returns all that it said.
func (s *sockd) try(args ...string) (stdout, stderr string, code int) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	defer cancel()
	c := s.ctl(args...)
	var out, errs bytes.Buffer
	c.Stdout, c.Stderr = &out, &errs
	require.NoError(s.t, c.Start())
	done := make(chan error, 1)
	go func() { done <- c.Wait() }()
	var err error
	select {
	case err = <-done:
	case <-ctx.Done():
		_ = c.Process.Kill()
		s.t.Fatalf("sockd-ctl %s did not end\n%s", strings.Join(args, " "), errs.String())
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		s.t.Fatal(err)
	}
	return out.String(), errs.String(), c.ProcessState.ExitCode()
}

func (s *sockd) eventually(what string, done func() bool) {
	s.t.Helper()
	eventually(s.t, func() string { return what + "\n" + s.log.String() }, done)
}

func eventually(t *testing.T, what func() string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("after %v: %s", patience, what())
		}
	}
}

// descriptors counts the daemon's open descriptors.
func (s *sockd) descriptors() int {
	s.t.Helper()
	// Under ip netns exec the process is the daemon itself: it execs.
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", s.cmd.Process.Pid))
	require.NoError(s.t, err)
	return len(entries)
}

// resident is the daemon's resident memory in bytes.
func (s *sockd) resident() int64 {
	s.t.Helper()
	return s.status("VmRSS: %d kB") << 10
}

// threads is how many threads the daemon has.
func (s *sockd) threads() int {
	s.t.Helper()
	return int(s.status("Threads: %d"))
}

// status is the number in a line of /proc/PID/status, given as for Sscanf.
func (s *sockd) status(format string) (n int64) {
	s.t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid))
	require.NoError(s.t, err)
	for _, line := range strings.Split(string(b), "\n") {
		if _, err := fmt.Sscanf(line, format, &n); err == nil {
			return n
		}
	}
	s.t.Fatalf("no line %q in /proc/PID/status", format)
	return 0
}

// background runs a peer until the test ends.
func background(t *testing.T, c *exec.Cmd) *lockedBuffer {
	t.Helper()
	out := &lockedBuffer{}
	c.Stdout, c.Stderr = out, out
	require.NoError(t, c.Start())
	t.Cleanup(func() {
		_ = c.Process.Kill() // it may be gone already
		_ = c.Wait()         // killed: the error says so
	})
	return out
}

// must runs a command that has to succeed.
func must(t *testing.T, c *exec.Cmd) string {
	t.Helper()
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(c.Args, " "), err, out)
	}
	return string(out)
}

// lockedBuffer collects what a process says while a test reads it.
type lockedBuffer struct {
	mu  sync.Mutex // guards buf
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

var _ io.Writer = (*lockedBuffer)(nil)
