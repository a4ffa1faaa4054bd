package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/sockd/sockd/daemon/park"
	"github.com/sockd/sockd/families/familytest"
	"github.com/sockd/sockd/families/model"
	"github.com/sockd/sockd/systemd"
)

// parkingEnv makes a supervisor's child one that parks pipes, in place of sockd.
// mainEnv makes the test binary sockd without a supervisor.
const (
	parkingEnv = "SOCKD_TEST_PARKING"
	mainEnv    = "SOCKD_TEST_MAIN"
)

// TestMain lets a supervisor start this binary, which it takes for sockd.
func TestMain(m *testing.M) {
	child := os.Getenv(supervisorVar) != ""
	switch {
	case child && os.Getenv(parkingEnv) == "dies":
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	case child && os.Getenv(parkingEnv) != "":
		if err := parking(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(9)
		}
	case child || os.Getenv(mainEnv) != "":
		main()
	}
	os.Exit(m.Run())
}

// parking parks a pipe at each start, and tells everybody who connects to the
// control socket its pid and what came back. It ends by signal alone.
func parking() error {
	files, err := handedFiles()
	if err != nil {
		return err
	}
	control, rest, err := systemd.TakeControl(files)
	if err != nil {
		return err
	}
	var lots []park.File
	for _, f := range rest {
		lots = append(lots, park.File{Name: f.Name, FD: f.FD})
	}
	notify, err := systemd.NewNotifier()
	if err != nil {
		return err
	}
	var events []string
	p, back, err := park.Open(context.Background(), notify, lots, func(e park.Event) { events = append(events, e.Err.Error()) })
	if err != nil {
		return err
	}
	said := fmt.Sprintf("%d %d files, %d back: %s%s", os.Getpid(), len(files), len(back), pipesOf(back), strings.Join(events, ","))
	if err := parkPipe(p, uint64(len(back)+1)); err != nil {
		return err
	}
	if err := notify.Ready(""); err != nil {
		return err
	}
	return tellEverybody(control, said)
}

func parkPipe(p *park.Parking, id uint64) error {
	var fds [2]int
	if err := syscall.Pipe2(fds[:], syscall.O_CLOEXEC|syscall.O_NONBLOCK); err != nil {
		return err
	}
	if _, err := syscall.Write(fds[1], fmt.Appendf(nil, "pipe%d", id)); err != nil {
		return err
	}
	return p.Park(park.Record{Kind: 1, ID: id}, fds[:]...)
}

// pipesOf reads the pipes, and puts back what it read.
func pipesOf(back []park.Parked) (said string) {
	for _, b := range back {
		text := make([]byte, 16)
		n, err := syscall.Read(b.FDs[0], text)
		if err == nil {
			_, err = syscall.Write(b.FDs[1], text[:n])
		}
		if err != nil {
			return err.Error()
		}
		said += string(text[:n]) + " "
	}
	return said
}

func tellEverybody(control int, said string) error {
	l, err := handedControl(control)
	if err != nil {
		return err
	}
	terms := make(chan os.Signal, 1)
	signal.Notify(terms, syscall.SIGTERM)
	go func() { <-terms; os.Exit(3) }()
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		_, _ = io.WriteString(c, said+"\n") // a test that hung up asks again
		_ = c.Close()
	}
}

// ask asks a parking child. A child that is killed with our connection in hand
// answers nothing; who waits in the queue gets the next one's answer.
func ask(t *testing.T, path string) (pid int, said string) {
	t.Helper()
	familytest.Eventually(t, "the child answers", func() bool {
		c, err := net.Dial("unix", path)
		require.NoError(t, err, "the control socket never refuses")
		defer c.Close()
		line, err := bufio.NewReader(c).ReadString('\n')
		if err != nil {
			return false
		}
		first, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		pid, err = strconv.Atoi(first)
		require.NoError(t, err)
		said = rest
		return true
	})
	return pid, said
}

// mustKill kills a supervisor's child.
func mustKill(t *testing.T, pid int) {
	t.Helper()
	require.Greater(t, pid, 1)
	require.NotEqual(t, os.Getpid(), pid)
	require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
}

// answers waits until another than the process with this pid answers.
func answers(t *testing.T, path string, not int) int {
	t.Helper()
	pid := 0
	familytest.Eventually(t, "the next sockd answers", func() bool {
		var out struct {
			Status model.Status `json:"status"`
		}
		err := call(path, "io.sockd.Manager.Status", nil, &out)
		pid = int(out.Status.PID)
		return err == nil && pid != not
	})
	return pid
}

// TestASupervisorStartsItAgain kills sockd twenty times while somebody calls it
// without pause.
func TestASupervisorStartsItAgain(t *testing.T) {
	familytest.NoLeaks(t)
	s, path, _ := daemonAt(t, "--supervise")
	s.start(path)

	calls := callWithoutPause(t, path)
	pid := answers(t, path, 0)
	require.NotEqual(t, os.Getpid(), pid, "it is a process of its own")
	for range 20 {
		mustKill(t, pid)
		pid = answers(t, path, pid)
	}
	t.Logf("%d calls answered, no connection refused", calls())
	require.Equal(t, 20, strings.Count(s.said(), "sockd died and is started again"), s.said())
	s.stop()
	require.NoFileExists(t, path)
	requireGone(t, pid)
}

// TestDurableSessionsGoOnUnderASupervisor kills sockd under a session, and then tells it
// to end.
func TestDurableSessionsGoOnUnderASupervisor(t *testing.T) {
	familytest.NoLeaks(t)
	to, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	s, path, config := daemonAt(t, "--supervise")
	require.NoError(t, os.Mkdir(filepath.Join(config, "relays.d"), 0o755))
	from := filepath.Join(t.TempDir(), "from")
	require.NoError(t, os.WriteFile(filepath.Join(config, "relays.d/web.conf"),
		fmt.Appendf(nil, "[Relay]\nFrom=unix:%s\nTo=tcp:%s\nDurable=yes\n", from, to.Addr()), 0o644))
	s.start(path)
	pid := answers(t, path, 0)
	client, err := net.Dial("unix", from)
	require.NoError(t, err)
	server, err := to.Accept()
	require.NoError(t, err)
	for word := range 5 {
		mustPass(t, client, server, fmt.Sprint("up", word))
		mustKill(t, pid)
		mustPass(t, server, client, fmt.Sprint("down", word))
		pid = answers(t, path, pid)
	}
	require.EqualValues(t, 1, status(t, path).Sessions)
	s.stop()
	_, err = server.Read(make([]byte, 1))
	require.Error(t, err, "a supervisor that ends ends the sessions")
	require.NoError(t, errors.Join(client.Close(), server.Close(), to.Close()))
}

// mustPass has a word go from one side to the other.
func mustPass(t *testing.T, from, to net.Conn, word string) {
	t.Helper()
	_, err := io.WriteString(from, word)
	require.NoError(t, err)
	require.NoError(t, to.SetReadDeadline(time.Now().Add(patience)))
	got := make([]byte, len(word))
	_, err = io.ReadFull(to, got)
	require.NoError(t, err)
	require.Equal(t, word, string(got))
}

// callWithoutPause calls until it is stopped, or cannot connect, which fails the test.
// A call that is cut off with the one who had it in hand is made again. Stopping
// returns how many were answered.
func callWithoutPause(t *testing.T, path string) (stop func() int) {
	ctx, cancel := context.WithCancel(t.Context())
	done, answered := make(chan struct{}), 0
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			c, err := net.Dial("unix", path)
			if err != nil {
				t.Error(err)
				return
			}
			_, _ = io.WriteString(c, `{"method":"org.varlink.service.GetInfo"}`+"\x00") // or it is cut off
			if reply, err := bufio.NewReader(c).ReadString(0); err == nil && strings.Contains(reply, "sockd") {
				answered++
			}
			_ = c.Close()
		}
	}()
	stop = func() int { cancel(); <-done; return answered }
	t.Cleanup(func() { stop() })
	return stop
}

// requireGone waits until no process has a pid. Zombies of a killed parent are
// buried by whoever takes them over.
func requireGone(t *testing.T, pid int) {
	t.Helper()
	familytest.Eventually(t, fmt.Sprintf("process %d is gone", pid), func() bool {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		return err != nil || strings.Contains(string(b), ") Z ")
	})
}

// TestASupervisorHoldsWhatIsParked goes the whole way: the parking lot, the
// notifier, the supervisor, and back by LISTEN_FDS.
func TestASupervisorHoldsWhatIsParked(t *testing.T) {
	familytest.NoLeaks(t)
	t.Setenv(parkingEnv, "1")
	s, path, _ := daemonAt(t, "--supervise")
	s.begin(t.Context())
	familytest.Eventually(t, "the control socket is there", func() bool { return dialOnce(path) == nil })
	pid, said := ask(t, path)
	require.Equal(t, "1 files, 0 back:", said)
	want := ""
	for i := 1; i <= 5; i++ {
		mustKill(t, pid)
		next := pid
		familytest.Eventually(t, "the next child answers", func() bool { next, said = ask(t, path); return next != pid })
		pid = next
		want += fmt.Sprintf("pipe%d ", i)
		require.Equal(t, fmt.Sprintf("9 files, %d back: %s", i, strings.TrimSpace(want)), said)
	}
	s.signals <- syscall.SIGTERM
	require.Equal(t, 3, s.ended(), "its exit code is the child's: %s", s.said())
	requireGone(t, pid)
}

func TestASupervisorPassesSignalsOn(t *testing.T) {
	familytest.NoLeaks(t)
	s, path, config := daemonAt(t, "--supervise")
	s.start(path)
	pid := answers(t, path, 0)
	require.NoError(t, os.Mkdir(filepath.Join(config, "relays.d"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(config, "relays.d/web.conf"), []byte("[Relay]\nFrom=tcp:127.0.0.1:0\nTo=tcp:127.0.0.1:1\n"), 0o644))
	s.signals <- syscall.SIGHUP
	familytest.Eventually(t, "the child has read its configuration", func() bool { return status(t, path).Relays == 1 })
	require.Equal(t, pid, answers(t, path, 0))
	require.True(t, status(t, path).Systemd, "or who plays its part")
	s.signals <- syscall.SIGINT
	require.Zero(t, s.ended(), "%s", s.said())
	requireGone(t, pid)
}

func TestASupervisorEndsWithItsContext(t *testing.T) {
	familytest.NoLeaks(t)
	s, path, _ := daemonAt(t, "--supervise")
	ctx, cancel := context.WithCancel(context.Background())
	s.begin(ctx)
	pid := answers(t, path, 0)
	cancel()
	require.Zero(t, s.ended(), "%s", s.said())
	requireGone(t, pid)
}

func TestASupervisorEndsWithAChildThatEnds(t *testing.T) {
	familytest.NoLeaks(t)
	s, path, _ := daemonAt(t, "--supervise")
	s.start(path)
	require.NoError(t, syscall.Kill(answers(t, path, 0), syscall.SIGTERM), "the child alone is told")
	require.Zero(t, s.ended(), "%s", s.said())
	require.NoFileExists(t, path)
}

// A child that cannot start at all would say so for ever.
func TestASupervisorEndsWithAChildThatGivesUp(t *testing.T) {
	familytest.NoLeaks(t)
	t.Setenv(parkingEnv, "1")
	t.Setenv("LISTEN_FDS", "") // ours, and not the child's
	s, _, _ := daemonAt(t, "--supervise")
	s.env.files = func() ([]systemd.File, error) { // a lot that is none, four times: nothing can be parked
		var files []systemd.File
		for i := range 4 {
			var p [2]int
			if err := syscall.Pipe2(p[:], syscall.O_CLOEXEC); err != nil {
				return nil, err
			}
			files = append(files, systemd.File{Name: fmt.Sprint("lot", i), FD: p[0]})
			_ = syscall.Close(p[1])
		}
		return files, nil
	}
	require.Equal(t, 9, s.run(), "%s", s.said())
	require.Contains(t, s.said(), "none of those that came back is one of ours")
	require.NotContains(t, s.said(), "started again")
}

// A child that is killed before it is ready is started less and less often.
func TestASupervisorTakesItsTime(t *testing.T) {
	familytest.NoLeaks(t)
	t.Setenv(parkingEnv, "dies")
	s, path, _ := daemonAt(t, "--supervise")
	s.begin(t.Context())
	familytest.Eventually(t, "it waits for longer and longer", func() bool { return strings.Contains(s.said(), "pause=400ms") })
	for _, pause := range []string{"pause=100ms", "pause=200ms", "pause=400ms"} {
		require.Equal(t, 1, strings.Count(s.said(), pause), s.said())
	}
	require.NoError(t, dialOnce(path), "and meanwhile the control socket takes callers")
	s.signals <- syscall.SIGHUP
	s.signals <- syscall.SIGTERM
	require.Equal(t, signalled+int(syscall.SIGKILL), s.ended(), "while it waits it ends at once")
}

// TestOnlyTheChildIsHeard writes to the notify socket from this process.
func TestOnlyTheChildIsHeard(t *testing.T) {
	familytest.NoLeaks(t)
	t.Setenv(parkingEnv, "1")
	s, path, _ := daemonAt(t, "--supervise")
	s.begin(t.Context())
	familytest.Eventually(t, "the control socket is there", func() bool { return dialOnce(path) == nil })
	pid, _ := ask(t, path)
	environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	require.NoError(t, err)
	_, after, found := strings.Cut(string(environ), "NOTIFY_SOCKET=")
	require.True(t, found)
	socket, _, _ := strings.Cut(after, "\x00")
	info, err := os.Stat(filepath.Dir(socket))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o700), info.Mode().Perm())

	t.Setenv("NOTIFY_SOCKET", socket)
	stranger, err := systemd.NewNotifier()
	require.NoError(t, err)
	var p [2]int
	require.NoError(t, syscall.Pipe2(p[:], syscall.O_CLOEXEC))
	for i := range 100 {
		require.NoError(t, errors.Join(stranger.Store(fmt.Sprint("evil", i), p[0]), stranger.Remove("lot0"), stranger.Stopping()))
	}
	garbage, err := net.Dial("unixgram", socket)
	require.NoError(t, err)
	for _, m := range []string{"", "\x00", "FDSTORE=1", "=\n=\n\n", strings.Repeat("x", 100_000), "MAINPID=1\nSTOPPING=1"} {
		familytest.Eventually(t, "there is room for garbage", func() bool {
			_, err := io.WriteString(garbage, m)
			return err == nil // a full queue is EAGAIN
		})
	}
	require.NoError(t, garbage.Close())
	require.NoError(t, stranger.Barrier(t.Context()), "even a stranger's descriptors are let go")
	require.NoError(t, errors.Join(syscall.Close(p[0]), syscall.Close(p[1])))

	mustKill(t, pid)
	next, said := pid, ""
	familytest.Eventually(t, "the next child answers", func() bool { next, said = ask(t, path); return next != pid })
	require.Equal(t, "9 files, 1 back: pipe1", said)
	require.Contains(t, s.said(), "somebody else writes to sockd's supervisor")
	s.signals <- syscall.SIGTERM
	require.Equal(t, 3, s.ended())
}

// TestASupervisorThatIsKilledTakesTheChildAlong has no way to say goodbye.
func TestASupervisorThatIsKilledTakesTheChildAlong(t *testing.T) {
	_, path, config := daemonAt(t)
	c := exec.Command("/proc/self/exe", "--supervise", "--socket", path, "--config", config, "--state", t.TempDir())
	c.Env = append(os.Environ(), mainEnv+"=1", "TMPDIR="+t.TempDir())
	require.NoError(t, c.Start())
	pid := answers(t, path, 0)
	require.NotEqual(t, c.Process.Pid, pid)
	require.NoError(t, c.Process.Kill())
	require.Error(t, c.Wait())
	requireGone(t, pid)
}

// TestAChildWithoutItsSupervisor is one whose parent died before it looked.
func TestAChildWithoutItsSupervisor(t *testing.T) {
	s, path, _ := daemonAt(t, "--supervise")
	s.vars[supervisorVar] = "1"
	require.Equal(t, 1, s.run())
	require.Contains(t, s.said(), "supervisor 1 is gone")
	require.NoFileExists(t, path)
}

// TestASupervisorHoldsNoMoreThanItSays speaks as the child.
func TestASupervisorHoldsNoMoreThanItSays(t *testing.T) {
	familytest.NoLeaks(t)
	s := newSockd(t)
	n, err := newNotifySocket(slog.New(slog.NewTextHandler(s.env.stderr, nil)), nil)
	require.NoError(t, err)
	pid, err := n.launch(func([]string, []uintptr) (int, error) { return os.Getpid(), nil })
	require.NoError(t, err)
	require.Equal(t, os.Getpid(), pid)
	t.Setenv("NOTIFY_SOCKET", n.path)
	notify, err := systemd.NewNotifier()
	require.NoError(t, err)
	var p [2]int
	require.NoError(t, syscall.Pipe2(p[:], syscall.O_CLOEXEC))
	for i := range maxHeld {
		require.NoError(t, notify.Store(fmt.Sprint("pair", i), p[:]...))
	}
	require.NoError(t, notify.Barrier(t.Context()))
	require.Equal(t, maxHeld, n.count())
	require.NoError(t, errors.Join(notify.Remove("pair0"), notify.Remove("nobody"), notify.Store("last", p[0]), notify.Barrier(t.Context())))
	require.Equal(t, maxHeld-1, n.count())
	require.Equal(t, maxHeld/2, strings.Count(s.said(), "are not held"))
	require.NoError(t, errors.Join(notify.Ready(""), notify.Stopping()))
	ready, stopping := n.buried()
	require.True(t, ready, "what it said before it died is heard")
	require.True(t, stopping)
	require.NoError(t, errors.Join(n.close(), syscall.Close(p[0]), syscall.Close(p[1])))
}

// FuzzNotify: whatever the child says, no more is held than may be, the control
// socket is among it, and each name can stand in LISTEN_FDNAMES.
func FuzzNotify(f *testing.F) {
	for _, m := range []string{"FDSTORE=1\nFDPOLL=0\nFDNAME=lot0", "FDSTORE=1", "FDSTOREREMOVE=1\nFDNAME=varlink", "BARRIER=1",
		"READY=1\nSTATUS=x", "FDSTORE=1\nFDNAME=a:b", "FDNAME=\x00\nFDSTORE=1", "\n=\n"} {
		f.Add(m, m)
	}
	f.Fuzz(func(t *testing.T, first, second string) {
		n := &notifySocket{log: slog.New(slog.DiscardHandler)}
		control, err := syscall.Dup(0)
		require.NoError(t, err)
		n.keep(systemd.ControlName, control)
		for _, m := range []string{first, second} {
			fd, err := syscall.Dup(0)
			require.NoError(t, err)
			closeFDs(n.obeyLocked(m, []int{fd}))
		}
		require.Contains(t, n.held, systemd.File{Name: systemd.ControlName, FD: control})
		require.LessOrEqual(t, len(n.held), 3)
		for _, h := range n.held {
			require.NoError(t, systemd.CheckFDName(h.Name))
		}
		require.NoError(t, closeFiles(n.held))
	})
}
