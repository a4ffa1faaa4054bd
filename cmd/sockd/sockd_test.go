package main

import (
	"bytes"
	"context"
	"io"
	"io/fs"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/sockd/sockd/ctl"
	"github.com/sockd/sockd/families/familytest"
	"github.com/sockd/sockd/families/model"
	"github.com/sockd/sockd/systemd"
)

const patience = 20 * time.Second

// A sockd is run() with an outside world of its own.
type sockd struct {
	t       *testing.T
	env     env
	vars    map[string]string
	stdout  bytes.Buffer
	stderr  string // path
	signals chan os.Signal
	code    chan int
}

func newSockd(t *testing.T, args ...string) *sockd {
	t.Helper()
	s := &sockd{t: t, vars: map[string]string{}, signals: make(chan os.Signal, 8), code: make(chan int, 1), stderr: filepath.Join(t.TempDir(), "stderr")}
	f, err := os.Create(s.stderr)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, f.Close()) })
	s.env = env{
		args: args, stdout: &s.stdout, stderr: f, signals: s.signals,
		getenv: func(name string) string { return s.vars[name] }, getuid: os.Geteuid,
		files: func() ([]systemd.File, error) { return nil, nil },
	}
	return s
}

func (s *sockd) said() string {
	b, err := os.ReadFile(s.stderr)
	require.NoError(s.t, err)
	return string(b)
}

// run runs it to its end.
func (s *sockd) run() int {
	s.t.Helper()
	s.begin(context.Background())
	return s.ended()
}

func (s *sockd) begin(ctx context.Context) { go func() { s.code <- run(ctx, s.env) }() }

func (s *sockd) ended() int {
	s.t.Helper()
	select {
	case code := <-s.code:
		return code
	case <-time.After(patience):
		s.t.Fatalf("sockd did not end\n%s", s.said())
	}
	return -1
}

// start runs it until the test ends, and waits until it answers at path.
func (s *sockd) start(path string) {
	s.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	s.t.Cleanup(cancel) // for a test that fails before it stops
	s.begin(ctx)
	familytest.Eventually(s.t, "sockd answers", func() bool {
		select {
		case code := <-s.code:
			s.t.Fatalf("sockd ended with %d\n%s", code, s.said())
		default:
		}
		return call(path, "org.varlink.service.GetInfo", nil, nil) == nil
	})
}

func (s *sockd) stop() {
	s.t.Helper()
	s.signals <- syscall.SIGTERM
	require.Zero(s.t, s.ended(), "%s", s.said())
}

func call(path, method string, in, out any) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, err := (&ctl.Env{Socket: path, Getenv: os.Getenv, Getuid: os.Getuid}).Dial(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	return c.Call(ctx, method, in, out)
}

func status(t *testing.T, path string) model.Status {
	t.Helper()
	var out struct {
		Status model.Status `json:"status"`
	}
	require.NoError(t, call(path, "io.sockd.Manager.Status", nil, &out))
	return out.Status
}

// daemonAt is a sockd with directories of its own, that is not started yet.
func daemonAt(t *testing.T, args ...string) (s *sockd, path, config string) {
	t.Helper()
	dir := t.TempDir()
	path, config = filepath.Join(dir, "control"), filepath.Join(dir, "config")
	require.NoError(t, os.Mkdir(config, 0o755))
	return newSockd(t, append([]string{"--socket", path, "--config", config, "--state", filepath.Join(dir, "state")}, args...)...), path, config
}

func TestFlags(t *testing.T) {
	for _, tt := range []struct {
		name           string
		args           []string
		code           int
		stdout, stderr string
	}{
		{"the version", []string{"--version"}, 0, "sockd ", ""},
		{"help", []string{"--help"}, 0, "usage: sockd [flags]", ""},
		{"an unknown flag", []string{"--nonsense"}, 2, "", "nonsense"},
		{"an argument", []string{"start"}, 2, "", `unexpected argument "start"`},
		{"a log level that is none", []string{"--log-level", "loud"}, 2, "", `log level "loud": want debug, info, warning or error`},
		{"no such directory", []string{"--config", "/nonexistent"}, 2, "", "/nonexistent: no such file or directory"},
		{"a directory that is a file", []string{"--config", os.DevNull}, 2, "", "/dev/null is not a directory"},
		{"a control socket where no directory is", []string{"--socket", "/nonexistent/x"}, 8, "", "control socket /nonexistent/x: no such file or directory"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newSockd(t, tt.args...)
			require.Equal(t, tt.code, s.run(), "%s", s.said())
			require.True(t, strings.HasPrefix(s.stdout.String(), tt.stdout), s.stdout.String())
			require.Contains(t, s.said(), tt.stderr)
		})
	}
}

func TestCheckConfig(t *testing.T) {
	s, path, config := daemonAt(t, "--check-config")
	require.NoError(t, os.Mkdir(filepath.Join(config, "relays.d"), 0o755))
	file := filepath.Join(config, "relays.d/web.conf")
	require.NoError(t, os.WriteFile(file, []byte("[Relay]\nFrom=tcp:127.0.0.1:0\nTo=tcp:127.0.0.1:80\n"), 0o644))
	require.Zero(t, s.run())
	require.Empty(t, s.said())
	require.NoFileExists(t, path, "it only checks")

	s = newSockd(t, s.env.args...)
	require.NoError(t, os.WriteFile(file, []byte("[Relay]\nFrom=tcp:80\nTo=tcp:127.0.0.1:80\n"), 0o644))
	require.Equal(t, 2, s.run())
	require.Contains(t, s.said(), "sockd: "+file+":2: ")
}

// The name of a file could write anything to the terminal.
func TestCheckConfigShowsEachProblemOnALine(t *testing.T) {
	s, _, config := daemonAt(t, "--check-config")
	require.NoError(t, os.Mkdir(filepath.Join(config, "relays.d"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(config, "relays.d/a\n\x1b[2Jb.conf"), []byte("[Relay]\nFrom=tcp::80\nTo=tcp:a:1\n"), 0o644))
	require.Equal(t, 2, s.run())
	require.Contains(t, s.said(), `/relays.d/a\x0a\x1b[2Jb.conf: name `)
	require.Equal(t, 1, strings.Count(s.said(), "\n"), s.said())
}

func TestItServesUntilItIsTold(t *testing.T) {
	familytest.NoLeaks(t)
	s, path, config := daemonAt(t)
	s.start(path)
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, fs.ModeSocket, info.Mode().Type())
	want := os.FileMode(0o600)
	if _, err := user.LookupGroup("sockd"); err == nil && os.Geteuid() == 0 {
		want = 0o660
	}
	require.Equal(t, want, info.Mode().Perm())

	st := status(t, path)
	require.Equal(t, path, st.Control)
	require.Equal(t, config, st.Config)
	familytest.Eventually(t, "callers that hung up are not counted", func() bool { return status(t, path).Callers == 1 })
	var opened struct {
		ID int `json:"id"`
	}
	require.NoError(t, call(path, "io.sockd.Manager.Open", map[string]string{"family": "inet", "type": "stream"}, &opened))
	require.Equal(t, 1, opened.ID)
	s.stop()
	require.NoFileExists(t, path)
}

func TestItEndsWithItsContext(t *testing.T) {
	familytest.NoLeaks(t)
	s, path, _ := daemonAt(t)
	ctx, cancel := context.WithCancel(context.Background())
	s.begin(ctx)
	familytest.Eventually(t, "sockd answers", func() bool { return call(path, "org.varlink.service.GetInfo", nil, nil) == nil })
	cancel()
	require.Zero(t, s.ended(), "%s", s.said())
}

// Callers that wait are let go, and a caller that says nothing does not hold the end up.
func TestCallersDoNotHoldTheEndUp(t *testing.T) {
	familytest.NoLeaks(t)
	s, path, _ := daemonAt(t)
	s.start(path)
	idle, err := net.Dial("unix", path)
	require.NoError(t, err)
	defer idle.Close()
	var opened struct {
		ID int `json:"id"`
	}
	require.NoError(t, call(path, "io.sockd.Manager.Open", map[string]string{"family": "inet", "type": "dgram"}, &opened))
	require.NoError(t, call(path, "io.sockd.Manager.Bind", map[string]any{"id": opened.ID, "address": "127.0.0.1:0"}, nil))
	waits := make(chan error, 1)
	go func() { waits <- call(path, "io.sockd.Manager.Recv", map[string]int{"id": opened.ID}, nil) }()
	familytest.Eventually(t, "recv is under way", func() bool { return status(t, path).Callers == 3 })
	s.stop()
	select {
	case err := <-waits:
		require.Error(t, err)
	case <-time.After(patience):
		t.Fatal("recv did not end")
	}
}

func TestAControlSocketThatIsThere(t *testing.T) {
	t.Run("alive is an error", func(t *testing.T) {
		s, path, _ := daemonAt(t)
		s.start(path)
		second := newSockd(t, s.env.args...)
		require.Equal(t, 7, second.run())
		require.Contains(t, second.said(), path+": another sockd serves it: address already in use")
		require.NoError(t, call(path, "org.varlink.service.GetInfo", nil, nil), "the first one is not disturbed")
		s.stop()
	})
	t.Run("stale is replaced", func(t *testing.T) {
		s, path, _ := daemonAt(t)
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		require.NoError(t, err)
		l.SetUnlinkOnClose(false)
		require.NoError(t, l.Close())
		s.start(path)
		s.stop()
	})
	// One that was bound a moment ago, and not listened on yet, was taken for a stale one.
	t.Run("bound is alive", func(t *testing.T) {
		s, path, _ := daemonAt(t)
		fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
		require.NoError(t, err)
		defer syscall.Close(fd)
		require.NoError(t, syscall.Bind(fd, &syscall.SockaddrUnix{Name: path}))
		require.Equal(t, 7, s.run())
		require.NoError(t, syscall.Listen(fd, 1))
		require.NoError(t, dialOnce(path), "it is reached")
	})
	// It was "invalid argument", exit 8.
	t.Run("a path that is too long is a usage error", func(t *testing.T) {
		path := "/tmp/" + strings.Repeat("x", 103)
		s := newSockd(t, "--socket", path, "--config", t.TempDir(), "--state", t.TempDir())
		require.Equal(t, 2, s.run())
		require.Contains(t, s.said(), "control socket "+path+": a path has at most 107 bytes, this one has 108")
	})
	t.Run("something else is left alone", func(t *testing.T) {
		s, path, _ := daemonAt(t)
		require.NoError(t, os.WriteFile(path, []byte("precious"), 0o644))
		require.Equal(t, 7, s.run())
		b, err := os.ReadFile(path)
		require.NoError(t, err)
		require.Equal(t, "precious", string(b))
	})
}

func dialOnce(path string) error {
	c, err := net.Dial("unix", path)
	if err != nil {
		return err
	}
	return c.Close()
}

func TestTheDefaultSocketOfAUser(t *testing.T) {
	dir := t.TempDir()
	s, _, config := daemonAt(t)
	s.env.args = []string{"--config", config}
	s.env.getuid = func() int { return 1000 }
	require.Equal(t, 2, s.run())
	require.Contains(t, s.said(), "$XDG_RUNTIME_DIR is not set: say --socket PATH")

	s.vars["XDG_RUNTIME_DIR"] = dir
	path := filepath.Join(dir, "sockd", "io.sockd")
	s.start(path)
	info, err := os.Stat(filepath.Dir(path))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o700), info.Mode().Perm())
	s.stop()
}

// handed makes descriptors as systemd.Files returns them.
func handed(t *testing.T, l interface {
	File() (*os.File, error)
}, name string) systemd.File {
	t.Helper()
	f, err := l.File()
	require.NoError(t, err)
	defer f.Close()
	conn, err := f.SyscallConn()
	require.NoError(t, err)
	file := systemd.File{Name: name}
	require.NoError(t, conn.Control(func(p uintptr) {
		n, _, errno := syscall.Syscall(syscall.SYS_FCNTL, p, syscall.F_DUPFD_CLOEXEC, 0)
		require.Zero(t, errno)
		require.NoError(t, syscall.SetNonblock(int(n), true))
		file.FD = int(n)
	}))
	return file
}

func TestSystemdHandsTheControlSocketOver(t *testing.T) {
	familytest.NoLeaks(t)
	s, unused, config := daemonAt(t)
	path := filepath.Join(t.TempDir(), "handed")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	require.NoError(t, err)
	defer l.Close()
	web, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	require.NoError(t, err)
	defer web.Close()
	backend, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer backend.Close()
	require.NoError(t, os.Mkdir(filepath.Join(config, "relays.d"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(config, "relays.d/web.conf"), []byte("[Relay]\nFrom=fd:web\nTo=tcp:"+backend.Addr().String()+"\n"), 0o644))
	files := []systemd.File{handed(t, l, systemd.ControlName), handed(t, web, "web")}
	s.env.files = func() ([]systemd.File, error) { return files, nil }

	s.start(path)
	require.NoFileExists(t, unused)
	require.Empty(t, status(t, path).Problems)
	client, err := net.Dial("tcp", web.Addr().String())
	require.NoError(t, err)
	defer client.Close()
	server, err := backend.Accept()
	require.NoError(t, err)
	_, err = io.WriteString(client, "through fd:web")
	require.NoError(t, err)
	got := make([]byte, len("through fd:web"))
	_, err = io.ReadFull(server, got)
	require.NoError(t, err)
	require.NoError(t, server.Close())
	s.stop()
	require.FileExists(t, path, "it is systemd's")
}

// A manager is a socket for sd_notify(3) messages.
type manager struct {
	t    *testing.T
	said chan string
}

func newManager(t *testing.T) manager {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	require.NoError(t, err)
	m := manager{t, make(chan string, 1024)}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		m.hear(conn)
	}()
	t.Cleanup(func() { require.NoError(t, conn.Close()); <-ended })
	t.Setenv("NOTIFY_SOCKET", path)
	return m
}

// hear takes what comes. To read a message without its descriptors closes them, which is
// what BARRIER=1 waits for; lots are held by nobody.
func (m manager) hear(conn *net.UnixConn) {
	b := make([]byte, 8192)
	for {
		n, err := conn.Read(b)
		if err != nil {
			return
		}
		m.said <- string(b[:n])
	}
}

// next is the next message that holds word; others are passed over.
func (m manager) next(word string) string {
	m.t.Helper()
	deadline := time.After(patience)
	for {
		select {
		case said := <-m.said:
			if strings.Contains(said, word) {
				return said
			}
		case <-deadline:
			require.Fail(m.t, "waiting for "+word)
		}
	}
}

func TestItTellsSystemd(t *testing.T) {
	m := newManager(t)
	t.Setenv("WATCHDOG_USEC", "3000000")
	familytest.NoLeaks(t)
	s, path, config := daemonAt(t)
	s.start(path)
	require.Contains(t, m.next("READY=1"), "STATUS=serving "+path)
	m.next("WATCHDOG=1")

	require.NoError(t, os.Mkdir(filepath.Join(config, "relays.d"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(config, "relays.d/web.conf"), []byte("[Relay]\nFrom=tcp:127.0.0.1:0\nTo=tcp:127.0.0.1:1\n"), 0o644))
	s.signals <- syscall.SIGHUP
	require.Contains(t, m.next("RELOADING=1"), "MONOTONIC_USEC=")
	require.Contains(t, m.next("READY=1"), "1 relays")
	require.Equal(t, int64(1), status(t, path).Relays)
	require.True(t, status(t, path).Systemd)
	m.next("WATCHDOG=1")
	s.stop()
	m.next("STOPPING=1")
}

func TestLogLevelOfTheFileCountsUnlessAFlagSaysOtherwise(t *testing.T) {
	for flag, quiet := range map[string]bool{"": true, "--log-level=info": false} {
		s, path, config := daemonAt(t)
		if flag != "" {
			s.env.args = append(s.env.args, flag)
		}
		require.NoError(t, os.WriteFile(filepath.Join(config, "sockd.conf"), []byte("[Daemon]\nLogLevel=error\n"), 0o644))
		s.start(path)
		s.stop()
		require.Equal(t, quiet, !strings.Contains(s.said(), "sockd serves"), "%q: %s", flag, s.said())
	}
}

// The Go runtime raises the soft limit of descriptors to the hard one before main
// runs (package os), and a daemon that owns sockets relies on it.
func TestTheDescriptorLimitIsRaised(t *testing.T) {
	var l syscall.Rlimit
	require.NoError(t, syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l))
	require.Equal(t, l.Max, l.Cur)
}
