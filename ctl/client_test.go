package ctl

import (
	"bufio"
	"context"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sockd/sockd/ctl/borrow"
	"github.com/sockd/sockd/ctl/ctltest"
	"github.com/sockd/sockd/families/familytest"
	"github.com/stretchr/testify/require"
)

func TestWhichControlSocket(t *testing.T) {
	const own = "/run/user/1000/sockd/io.sockd"
	tests := []struct {
		name   string
		flag   string
		user   bool
		env    map[string]string
		system bool // the system's socket exists
		want   string
	}{
		{"--socket before everything", "/x", true, map[string]string{"SOCKD_SOCKET": "/y", "XDG_RUNTIME_DIR": "/run/user/1000"}, true, "/x"},
		{"$SOCKD_SOCKET before --user", "", true, map[string]string{"SOCKD_SOCKET": "/y", "XDG_RUNTIME_DIR": "/run/user/1000"}, true, "/y"},
		{"$SOCKD_SOCKET with --user and no runtime directory", "", true, map[string]string{"SOCKD_SOCKET": "/y"}, true, "/y"},
		{"--user before the system's", "", true, map[string]string{"XDG_RUNTIME_DIR": "/run/user/1000"}, true, own},
		{"the system's when it exists", "", false, map[string]string{"XDG_RUNTIME_DIR": "/run/user/1000"}, true, SystemSocket},
		{"the user's own when the system has none", "", false, map[string]string{"XDG_RUNTIME_DIR": "/run/user/1000"}, false, own},
		{"the system's when there is no other", "", false, nil, false, SystemSocket},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e := &Env{Socket: tt.flag, User: tt.user, Getenv: func(name string) string { return tt.env[name] }}
			got, err := socketPath(e, func(path string) bool { return path == SystemSocket && tt.system })
			require.NoError(t, err)
			require.Equal(t, tt.want, got)
		})
	}
	t.Run("--user without a runtime directory", func(t *testing.T) {
		e := &Env{User: true, Getenv: func(string) string { return "" }}
		_, err := e.SocketPath()
		require.Equal(t, ExitUsage, ExitCode(err))
	})
}

func TestNobodyListens(t *testing.T) {
	dir := t.TempDir()
	stale := filepath.Join(dir, "stale")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale, Net: "unix"})
	require.NoError(t, err)
	l.SetUnlinkOnClose(false)
	require.NoError(t, l.Close())
	for name, path := range map[string]string{
		"no file":           filepath.Join(dir, "none"),
		"no directory":      filepath.Join(dir, "none", "none"),
		"a file in its way": filepath.Join(stale, "none"),
		"a stale socket":    stale,
	} {
		t.Run(name, func(t *testing.T) {
			r := newShell(t, path).run("", "accept", "1")
			require.Equal(t, ExitUnreachable, r.exit)
			require.Contains(t, r.stderr, "sockd-ctl: control socket "+path+": ")
			require.Contains(t, r.stderr, "\n  sockd --socket "+path+"\n", "how it is started")
			r = newShell(t, path).run("", "--json", "accept", "1")
			require.Contains(t, r.stderr, `"exit":5`)
		})
	}
}

func TestTheSystemsDaemonIsStartedBySystemd(t *testing.T) {
	require.Equal(t, "systemctl start sockd.socket", startHint(SystemSocket))
}

func TestWhoMayNotConnectIsToldTheGroup(t *testing.T) {
	e := &Env{Getuid: func() int { return 0 }}
	err := e.dialError(SystemSocket, &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.EACCES)})
	require.Equal(t, ExitDenied, ExitCode(err))
	require.Equal(t, "usermod -aG sockd root, then log in again", hintOf(err))
	require.EqualError(t, err, "control socket /run/sockd/io.sockd: permission denied")
}

func TestAUserWhoMayNotConnectIsRefusedByTheKernel(t *testing.T) {
	familytest.Need(t, familytest.Root())
	path, _ := mustServe(t, ctltest.New(t))
	require.NoError(t, os.Chmod(path, 0o660))
	e := newShell(t, path).env
	var err error
	asNobody(func() { _, err = e.Dial(context.Background()) })
	require.ErrorIs(t, err, os.ErrPermission)
	require.Equal(t, ExitDenied, ExitCode(err))
	require.Contains(t, hintOf(err), "usermod -aG sockd ")
}

// asNobody runs f on a thread that has a user's rights to files only.
func asNobody(f func()) {
	const nobody = 65534
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	own, _, _ := syscall.RawSyscall(syscall.SYS_SETFSUID, nobody, 0, 0) // returns the one before, and never fails
	defer syscall.RawSyscall(syscall.SYS_SETFSUID, own, 0, 0)
	f()
}

// A daemon that goes away inside a call is no end of a stream.
func TestADaemonThatDiesInsideACall(t *testing.T) {
	path := filepath.Join(t.TempDir(), "io.sockd")
	l, err := net.Listen("unix", path)
	require.NoError(t, err)
	defer l.Close()
	done := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			err = c.Close()
		}
		done <- err
	}()
	r := newShell(t, path).run("", "accept", "1")
	require.NoError(t, <-done)
	require.Equal(t, ExitUnreachable, r.exit, r.stderr)
	require.Contains(t, r.stderr, "sockd ended the connection")
}

// A daemon that only ended the connection was said to be away (exit 5), with the
// hint to start it.
func TestADaemonThatEndsAConnectionIsStillThere(t *testing.T) {
	path := filepath.Join(t.TempDir(), "io.sockd")
	l, err := net.Listen("unix", path)
	require.NoError(t, err)
	done := make(chan error, 1)
	go func() {
		defer l.Close()
		first, err := l.Accept()
		if err == nil {
			err = first.Close()
		}
		var second net.Conn
		if err == nil {
			second, err = l.Accept()
		}
		if err == nil {
			defer second.Close()
			_, err = bufio.NewReader(second).ReadString(0)
		}
		if err == nil {
			_, err = second.Write([]byte("{\"parameters\":{}}\x00"))
		}
		done <- err
	}()
	r := newShell(t, path).run("", "accept", "1")
	require.NoError(t, <-done)
	require.Equal(t, ExitFailed, r.exit, r.stderr)
	require.Equal(t, "sockd-ctl: io.sockd.Manager.Accept: sockd ended the connection before it answered\n", r.stderr)
}

// A line feed in the path was printed as it is in the hint, and as "; " above it.
func TestAPathThatDoesNotPrintIsEscaped(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a\nb\x1b'c")
	r := newShell(t, path).run("", "ls")
	require.Equal(t, ExitUnreachable, r.exit)
	require.Contains(t, r.stderr, `/a\x0ab\x1b'c: no such file`)
	require.Contains(t, r.stderr, "\n  sockd --socket $'"+filepath.Dir(path)+`/a\x0ab\x1b\'c'`)
	require.Equal(t, 2, strings.Count(r.stderr, "\n"), r.stderr)
}

// attach, and all that wait in the daemon without being told how long, ignored it.
func TestTimeoutBoundsAttach(t *testing.T) {
	sh, _ := mustShell(t)
	sh.must("open", "inet", "stream")
	stdin, end, err := os.Pipe() // nobody types
	require.NoError(t, err)
	defer stdin.Close()
	defer end.Close()
	e := sh.env
	timeout := 20 * time.Millisecond
	e.Stdin, e.Stdout, e.Stderr, e.Timeout = stdin, io.Discard, io.Discard, &timeout
	err = runVerb(t.Context(), t, &e, []string{"attach", "1"})
	require.Equal(t, ExitTimedOut, ExitCode(err), "%v", err)
}

func TestTimeoutBoundsTheReadingOfStdin(t *testing.T) {
	sh, _ := mustShell(t)
	sh.must("open", "inet", "stream")
	stdin, end, err := os.Pipe() // nobody types
	require.NoError(t, err)
	defer stdin.Close()
	defer end.Close()
	e := sh.env
	timeout := 20 * time.Millisecond
	e.Stdin, e.Stdout, e.Stderr, e.Timeout = stdin, io.Discard, io.Discard, &timeout
	err = runVerb(t.Context(), t, &e, []string{"send", "1"})
	require.Equal(t, ExitTimedOut, ExitCode(err), "%v", err)
}

// --timeout is the daemon's to keep, but a daemon that hangs must not hang its
// callers.
func TestADaemonThatDoesNotAnswerIsLeft(t *testing.T) {
	path := filepath.Join(t.TempDir(), "io.sockd")
	l, err := net.Listen("unix", path) // nobody accepts
	require.NoError(t, err)
	defer l.Close()
	e := newShell(t, path).env
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	err = e.call(ctx, "io.sockd.Manager.Accept", waitIn{ID: 1}, nil)
	require.Equal(t, ExitTimedOut, ExitCode(err))
}

func TestABusyControlSocketIsAskedAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "io.sockd")
	l, err := borrow.ListenAt("unix", path, 1, borrow.Access{})
	require.NoError(t, err)
	defer closeFile(l)
	e := newShell(t, path).env
	dial := func(ctx context.Context) error {
		c, err := e.Dial(ctx)
		if err == nil {
			t.Cleanup(func() { _ = c.Close() })
		}
		return err
	}
	for {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
		err := dial(ctx)
		cancel()
		if err != nil {
			require.Equal(t, ExitTimedOut, ExitCode(err), "%v", err)
			break
		}
	}
	done := make(chan error, 1)
	go func() { done <- dial(context.Background()) }()
	fd, _, err := syscall.Accept(l)
	require.NoError(t, err)
	defer closeFile(fd)
	require.NoError(t, <-done)
}

func TestASignalEndsACall(t *testing.T) {
	sh, b := mustShell(t)
	sh.must("open", "inet", "stream")
	ctx, cancel := context.WithCancelCause(context.Background())
	done := make(chan result, 1)
	go func() { done <- sh.runContext(ctx, "", "recv", "1") }()
	eventually(t, "recv waits", func() bool { return b.Waiting(1) == 1 })
	cancel(&SignalError{syscall.SIGINT})
	r := <-done
	require.Equal(t, 130, r.exit)
	require.Empty(t, r.stderr)
	eventually(t, "the daemon's call ends", func() bool { return b.Waiting(1) == 0 })
}
