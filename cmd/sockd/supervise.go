package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/sockd/sockd/systemd"
)

// sockd --supervise plays systemd's part where there is none: it is a small
// parent that holds the control socket and the descriptors that its child
// stores, and starts the child again when it dies. The child is sockd itself, with
// the same arguments, and meets what it would meet under systemd: $NOTIFY_SOCKET,
// $LISTEN_FDS, $LISTEN_FDNAMES. It does not tell one from the other.
//
//	sockd --supervise ──── holds ──── control socket, stored descriptors
//	   │      ▲
//	 starts   │ READY, FDSTORE, FDSTOREREMOVE, BARRIER, STOPPING
//	   ▼      │
//	sockd --supervise, with $SOCKD_SUPERVISOR its parent's pid
//
// The child never outlives the parent: it is killed by the kernel when the parent
// ends, however that comes (PR_SET_PDEATHSIG). The parent waits for the child
// before it ends by itself. A binary with file capabilities loses that signal when
// it is executed (prctl(2)): give the capabilities to the parent instead.

const (
	// supervisorVar names the supervisor to its child, by its pid.
	supervisorVar = "SOCKD_SUPERVISOR"
	// firstPause and lastPause bound the time between a child's end and the next
	// start. It doubles while children end before they are ready.
	firstPause = 100 * time.Millisecond
	lastPause  = 5 * time.Second
	// killAfter is what a child has to end after SIGTERM, as TimeoutStopSec= of the unit.
	killAfter = 20 * time.Second
)

// A supervisor is the parent.
type supervisor struct {
	env     env
	log     *slog.Logger
	path    string   // of the program
	argv    []string // of the child
	control *control
	notify  *notifySocket
	stderr  int // a duplicate, for the child
}

// isChild reports whether this process was started by a supervisor, and an error
// where that one is gone: then nobody holds what the child would store.
func isChild(e env) (bool, error) {
	parent := e.getenv(supervisorVar)
	if parent == "" {
		return false, nil
	}
	if parent != strconv.Itoa(os.Getppid()) {
		return false, fmt.Errorf("supervisor %s is gone", parent)
	}
	return true, nil
}

// handedFiles are systemd's or the supervisor's. The latter cannot know the pid of
// a child before it runs, so the child writes it where sd_listen_fds(3) looks.
func handedFiles() ([]systemd.File, error) {
	if os.Getenv(supervisorVar) == strconv.Itoa(os.Getppid()) {
		if err := os.Setenv("LISTEN_PID", strconv.Itoa(os.Getpid())); err != nil {
			return nil, err
		}
		_ = os.Unsetenv(supervisorVar) // fails for other names only
	}
	return systemd.Files()
}

// supervise runs children until one ends for good, and returns its exit code.
func supervise(ctx context.Context, e env, s settings) int {
	v, err := newSupervisor(e, s)
	if err != nil {
		return complain(e, err)
	}
	code, err := v.run(ctx)
	if err = errors.Join(err, v.close()); err != nil {
		return complain(e, err)
	}
	return code
}

func newSupervisor(e env, s settings) (v *supervisor, err error) {
	level := new(slog.LevelVar)
	if s.level != nil {
		level.Set(*s.level)
	}
	v = &supervisor{env: e, log: slog.New(systemd.Handler(e.stderr, level)), stderr: -1}
	defer func() {
		if err != nil {
			err = errors.Join(err, v.close())
		}
	}()
	if v.path, err = os.Executable(); err != nil { // by its path: an upgrade puts another there
		return v, err
	}
	v.argv = append([]string{"sockd"}, e.args...)
	files, err := e.files()
	if err != nil {
		return v, err
	}
	var rest []systemd.File
	if v.control, rest, err = openControl(e, s, files); err != nil {
		return v, err
	}
	if v.notify, err = newNotifySocket(v.log, rest); err != nil {
		return v, errors.Join(err, closeFiles(rest))
	}
	listener, err := duplicateOf(v.control.UnixListener)
	if err != nil {
		return v, err
	}
	v.notify.keep(systemd.ControlName, listener)
	v.stderr, err = duplicateOf(e.stderr)
	return v, err
}

// duplicateOf returns a duplicate, which stays as it is: File() and Fd() would
// make the shared description blocking.
func duplicateOf(c syscall.Conn) (int, error) {
	conn, err := c.SyscallConn()
	if err != nil {
		return -1, err
	}
	dup, errno := -1, syscall.Errno(0)
	err = conn.Control(func(fd uintptr) {
		var n uintptr
		if n, _, errno = syscall.Syscall(syscall.SYS_FCNTL, fd, syscall.F_DUPFD_CLOEXEC, 3); errno == 0 {
			dup = int(n)
		}
	})
	if errno != 0 {
		err = os.NewSyscallError("fcntl", errno)
	}
	return dup, err
}

// close lets go of everything. The control socket's file goes with its listener.
func (v *supervisor) close() error {
	var errs []error
	if v.notify != nil {
		errs = append(errs, v.notify.close())
	}
	if v.control != nil {
		errs = append(errs, v.control.Close())
	}
	if v.stderr >= 0 {
		errs = append(errs, os.NewSyscallError("close", syscall.Close(v.stderr)))
	}
	return errors.Join(errs...)
}

// run starts children, each after the one before it was buried, until one ends
// for good.
func (v *supervisor) run(ctx context.Context) (code int, err error) {
	pause, served := firstPause, false
	for {
		c, err := v.start()
		if err != nil {
			return 0, err
		}
		told := v.attend(ctx, c)
		ready, stopping := v.notify.buried()
		served = served || ready
		code = exitCode(c.state)
		// One that gives up before any was ready said why, and would say it again.
		gaveUp := !served && code < signalled
		if code == 0 || told || stopping || gaveUp {
			return code, nil
		}
		if ready {
			pause = firstPause
		}
		v.log.Warn("sockd died and is started again", "pid", c.process.Pid, "how", c.state.String(), "pause", pause, "held", v.notify.count())
		if !v.rest(ctx, pause) {
			return code, nil
		}
		pause = min(2*pause, lastPause)
	}
}

// rest waits before the next start, and reports whether there is one.
func (v *supervisor) rest(ctx context.Context, pause time.Duration) bool {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
			return true
		case <-ctx.Done():
			return false
		case s := <-v.env.signals:
			if s != syscall.SIGHUP { // the next child reads its configuration anyhow
				return false
			}
		}
	}
}

// A child is one run of sockd.
type child struct {
	process *os.Process
	state   *os.ProcessState // when ended is closed
	err     error            // of its start
	started chan struct{}
	ended   chan struct{}
}

// start starts a child with all that is held.
func (v *supervisor) start() (*child, error) {
	c := &child{started: make(chan struct{}), ended: make(chan struct{})}
	go v.parent(c)
	<-c.started
	return c, c.err
}

// parent starts the child and buries it. It keeps its thread all the while: the
// kernel sends the death signal when the thread ends that made the child, and not
// when the process does (prctl(2)).
func (v *supervisor) parent(c *child) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer close(c.ended)
	pid, err := v.notify.launch(v.exec)
	if err == nil {
		c.process, err = os.FindProcess(pid) // there until it is waited for
	}
	if err != nil {
		c.err = fmt.Errorf("start %s: %w", v.path, err)
		close(c.started)
		return
	}
	close(c.started)
	if c.state, err = c.process.Wait(); err != nil {
		v.log.Error("wait for sockd", "pid", pid, "err", err)
	}
}

// exec starts the program with the descriptors from 3 on. It takes raw descriptors:
// os/exec would call Fd() on files.
func (v *supervisor) exec(names []string, fds []uintptr) (int, error) {
	return syscall.ForkExec(v.path, v.argv, &syscall.ProcAttr{
		Env:   v.environment(names),
		Files: append([]uintptr{0, 1, uintptr(v.stderr)}, fds...),
		Sys:   &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL},
	})
}

// environment is this process's, but for what another manager said to it.
func (v *supervisor) environment(names []string) []string {
	out := []string{
		"NOTIFY_SOCKET=" + v.notify.path,
		supervisorVar + "=" + strconv.Itoa(os.Getpid()),
		"LISTEN_FDS=" + strconv.Itoa(len(names)),
		"LISTEN_FDNAMES=" + strings.Join(names, ":"),
	}
	for _, e := range os.Environ() {
		switch name, _, _ := strings.Cut(e, "="); name {
		case "NOTIFY_SOCKET", supervisorVar, "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PID", "LISTEN_PIDFDID",
			"WATCHDOG_USEC", "WATCHDOG_PID", "SYSTEMD_EXEC_PID", "FDSTORE":
		default:
			out = append(out, e)
		}
	}
	return out
}

// attend passes signals on until the child has ended, and reports whether it was
// told to end.
func (v *supervisor) attend(ctx context.Context, c *child) (told bool) {
	done := ctx.Done()
	kill := time.NewTimer(0) // runs once the child was told to end
	kill.Stop()
	defer kill.Stop()
	for {
		var s os.Signal = syscall.SIGTERM
		select {
		case <-c.ended:
			return told
		case <-kill.C:
			s = syscall.SIGKILL
		case <-done:
			done = nil
		case s = <-v.env.signals:
		}
		if s != syscall.SIGHUP && !told {
			told = true
			kill.Reset(killAfter)
		}
		if err := c.process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
			v.log.Error("signal sockd", "signal", s.String(), "err", err)
		}
	}
}

// signalled and more are exit codes of a process that a signal killed.
const signalled = 128

// exitCode is what a shell would say.
func exitCode(s *os.ProcessState) int {
	if s == nil { // it could not be waited for
		return 1
	}
	if w, ok := s.Sys().(syscall.WaitStatus); ok && w.Signaled() {
		return signalled + int(w.Signal())
	}
	return s.ExitCode()
}
