package systemdtest

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

//go:embed boot.sh
var bootScript string

const (
	// patience bounds every wait for an event. It is what a loaded machine
	// with few processors may need, not what a boot takes (0.2 s).
	patience = time.Minute
	// unitPath is where a machine finds units: what systemctl enable writes,
	// what the test and boot.sh write, what make install writes.
	unitPath = "/etc/systemd/system:/run/systemd/system:/usr/local/lib/systemd/system"
)

// A Machine is a running systemd and what it started. It ends with its test.
type Machine struct {
	tb     testing.TB
	proc   *exec.Cmd
	cgroup string
	output string        // file with what boot.sh and process 1 write
	ended  chan struct{} // closed when process 1 was waited for
}

// Boot starts a machine and waits until systemd is up. Its root is this
// machine's with tree laid over it, a folder as `make install DESTDIR=` fills
// one; units go below usr/local/lib/systemd/system or etc/systemd/system. The
// only unit that runs is the journal. The network is a fresh namespace with
// the loopback interface up.
//
// Boot fails the test where a machine cannot be had. Clean-up kills all of the
// machine's processes, removes its cgroups, and on a failed test prints its
// journal first.
func Boot(tb testing.TB, tree string) *Machine {
	tb.Helper()
	if os.Geteuid() != 0 {
		tb.Fatal("boot systemd: only root may, and this machine is meant to run tests as root")
	}
	m := &Machine{
		tb:     tb,
		cgroup: mustMakeCgroup(tb),
		output: filepath.Join(tb.TempDir(), "output"),
		ended:  make(chan struct{}),
	}
	tb.Cleanup(m.remove)
	m.start(tree)
	tb.Cleanup(m.kill)
	m.waitBooted()
	tb.Cleanup(m.journalOfFailure)
	return m
}

// start starts boot.sh as process 1 of new namespaces, inside the machine's
// cgroup from its first instruction on. The cgroup namespace comes second: it
// takes the cgroup that its maker is in for its root.
func (m *Machine) start(tree string) {
	m.tb.Helper()
	cgroup, err := unix.Open(m.cgroup, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		m.tb.Fatalf("boot systemd: open %s: %v", m.cgroup, err)
	}
	defer unix.Close(cgroup)
	output, err := os.Create(m.output)
	if err != nil {
		m.tb.Fatalf("boot systemd: %v", err)
	}
	defer output.Close() // process 1 has its own by then

	m.proc = exec.Command("unshare", "--cgroup", "sh", "-c", bootScript, "boot.sh", m.tb.TempDir(), tree, unitPath)
	m.proc.Stdout, m.proc.Stderr = output, output
	m.proc.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
		UseCgroupFD: true,
		CgroupFD:    cgroup,
		Setsid:      true,
		Pdeathsig:   syscall.SIGKILL, // a test that panics or times out runs no clean-up
	}
	started := make(chan error)
	go m.parent(started)
	if err := <-started; err != nil {
		m.tb.Fatalf("boot systemd: %v", err)
	}
}

// parent starts process 1 and buries it; kill waits for its end. It keeps its
// thread to itself all the while, because Pdeathsig is sent when the thread
// ends that started the process, not when the program does (prctl(2)).
func (m *Machine) parent(started chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer close(m.ended)
	err := m.proc.Start()
	started <- err
	if err == nil {
		_ = m.proc.Wait() // by a kill, or its last words are in output
	}
}

// waitBooted waits until process 1 answers that it is running.
func (m *Machine) waitBooted() {
	m.tb.Helper()
	var last string
	m.Until("systemd is up", func() bool {
		select {
		case <-m.ended:
			m.tb.Fatalf("boot systemd: process 1 ended\n%s", m.outputText())
		default:
		}
		out, _ := m.Command(context.Background(), "systemctl", "is-system-running").CombinedOutput() // "starting" is exit 1
		last = strings.TrimSpace(string(out))
		return last == "running"
	}, func() string { return last }, m.outputText)
}

// outputText returns what boot.sh and process 1 have written so far.
func (m *Machine) outputText() string {
	out, err := os.ReadFile(m.output)
	if err != nil {
		return err.Error()
	}
	return string(out)
}

// Pid returns process 1's number outside the machine.
func (m *Machine) Pid() int { return m.proc.Process.Pid }

// Cgroup returns the folder of the machine's cgroup, on this machine.
func (m *Machine) Cgroup() string { return m.cgroup }

// Path returns where a path of the machine is seen from outside.
func (m *Machine) Path(path string) string {
	return filepath.Join("/proc", strconv.Itoa(m.Pid()), "root", path)
}

// WriteFile writes a file of the machine, and the folders above it.
func (m *Machine) WriteFile(path, content string) {
	m.tb.Helper()
	if err := os.MkdirAll(m.Path(filepath.Dir(path)), 0o755); err != nil {
		m.tb.Fatalf("write %s: %v", path, err)
	}
	if err := os.WriteFile(m.Path(path), []byte(content), 0o644); err != nil {
		m.tb.Fatalf("write %s: %v", path, err)
	}
}

// Command returns a command that runs in the machine as root, when started,
// and is killed when ctx ends.
func (m *Machine) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	enter := []string{"--target", strconv.Itoa(m.Pid()), "--mount", "--pid", "--net", "--ipc", "--uts", "--cgroup", "--root", "--wd=/", "--", name}
	c := exec.CommandContext(ctx, "nsenter", append(enter, args...)...)
	c.Env = []string{"PATH=" + os.Getenv("PATH") + ":/usr/local/bin:/usr/sbin:/sbin", "LC_ALL=C.UTF-8", "SYSTEMD_PAGER=", "SYSTEMD_UNIT_PATH=" + unitPath}
	c.WaitDelay = patience
	return c
}

// Try runs a command in the machine and returns what it wrote on both outputs.
func (m *Machine) Try(name string, args ...string) (string, error) {
	m.tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	out, err := m.Command(ctx, name, args...).CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

// Run is Try of a command that must succeed.
func (m *Machine) Run(name string, args ...string) string {
	m.tb.Helper()
	out, err := m.Try(name, args...)
	if err != nil {
		m.tb.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return out
}

// Property returns one property of a unit, as systemctl show prints it.
func (m *Machine) Property(unit, name string) string {
	m.tb.Helper()
	return m.Run("systemctl", "show", "--value", "--property="+name, unit)
}

// MainPID returns the number that a service's main process has in the machine;
// 0 while it has none.
func (m *Machine) MainPID(unit string) int {
	m.tb.Helper()
	pid, err := strconv.Atoi(m.Property(unit, "MainPID"))
	if err != nil {
		m.tb.Fatalf("main pid of %s: %v", unit, err)
	}
	return pid
}

// Signal sends a signal by name to a process of the machine. An unlucky one may
// have gone; that fails the test.
func (m *Machine) Signal(pid int, name string) {
	m.tb.Helper()
	if pid <= 1 {
		m.tb.Fatalf("signal %s to process %d of the machine: no such service process", name, pid)
	}
	m.Run("kill", "-s", name, strconv.Itoa(pid))
}

// Until asks done again and again until it is true, and fails the test with
// what it waited for, and what detail says, when patience ends.
func (m *Machine) Until(what string, done func() bool, detail ...func() string) {
	m.tb.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); !done(); <-tick.C {
		if time.Now().Before(deadline) {
			continue
		}
		for _, d := range detail {
			what += "\n" + d()
		}
		m.tb.Fatalf("waited %v in vain until %s", patience, what)
	}
}

// Journal returns the machine's journal entries that match, oldest first, as
// journalctl's -o export or any other of its formats shows them.
func (m *Machine) Journal(format string, matches ...string) string {
	m.tb.Helper()
	m.Run("journalctl", "--sync")
	out, _ := m.Try("journalctl", append([]string{"--no-pager", "--quiet", "--output=" + format}, matches...)...) // no match is exit 1
	return out
}

func (m *Machine) journalOfFailure() {
	if m.tb.Failed() {
		m.tb.Logf("the machine's journal:\n%s", m.Journal("short-precise"))
	}
}

// kill ends process 1, and with it the kernel ends every process of the
// machine's pid namespace before the wait returns.
func (m *Machine) kill() {
	if err := m.proc.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		m.tb.Errorf("end machine: %v", err)
	}
	<-m.ended
}

// mustMakeCgroup makes a cgroup for one machine.
func mustMakeCgroup(tb testing.TB) string {
	tb.Helper()
	root, err := cgroupRoot()
	if err != nil {
		tb.Fatalf("boot systemd: %v", err)
	}
	dir, err := os.MkdirTemp(root, "sockd-test-")
	if err != nil {
		tb.Fatalf("boot systemd: %v", err)
	}
	// It is the machine's /sys/fs/cgroup, which everybody may read.
	if err := os.Chmod(dir, 0o755); err != nil {
		tb.Fatalf("boot systemd: %v", err)
	}
	return dir
}

// cgroupRoot finds where this machine has mounted the cgroup2 hierarchy:
// /sys/fs/cgroup, or below it beside the older ones. See proc_pid_mountinfo(5).
func cgroupRoot() (string, error) {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(mounts)) {
		fields := strings.Fields(line)
		if i := slices.Index(fields, "-"); i > 5 && i+1 < len(fields) && fields[i+1] == "cgroup2" {
			return fields[4], nil
		}
	}
	return "", errors.New("no cgroup2 hierarchy is mounted")
}

// remove removes the machine's cgroups, the innermost first, and kills what
// should, against all expectation, still live in them.
func (m *Machine) remove() {
	if err := os.WriteFile(filepath.Join(m.cgroup, "cgroup.kill"), []byte("1"), 0); err != nil {
		m.tb.Errorf("remove machine: %v", err)
	}
	var dirs []string
	err := filepath.WalkDir(m.cgroup, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return err
	})
	if err != nil {
		m.tb.Errorf("remove machine: %v", err)
	}
	for _, dir := range slices.Backward(dirs) {
		// Busy until the kernel has buried the last process.
		m.Until(fmt.Sprintf("cgroup %s is gone", dir), func() bool {
			err := os.Remove(dir)
			return err == nil || errors.Is(err, fs.ErrNotExist)
		})
	}
}
