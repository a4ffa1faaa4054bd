package prove

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/sockd/sockd/systemd/systemdtest"
)

// patience bounds a wait for something that is about to happen.
const patience = time.Minute

// builds makes two builds of sockd, which differ in their version, into a folder each.
var builds = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "sockd-prove-")
	if err != nil {
		return "", err
	}
	buildsDir = dir
	for _, version := range []string{"one", "two"} {
		if out, err := exec.Command("make", "-C", "../..", "build", "VERSION="+version, "BIN="+filepath.Join(dir, version)).CombinedOutput(); err != nil {
			return "", fmt.Errorf("make build: %w\n%s", err, out)
		}
	}
	return dir, nil
})

var buildsDir string

func TestMain(m *testing.M) {
	if name := os.Getenv(loadEnv); name != "" {
		os.Exit(load(name))
	}
	flag.Parse()
	restore, err := setMax(*wmem)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	restore()
	if buildsDir != "" {
		_ = os.RemoveAll(buildsDir) // a temporary folder
	}
	report.print(os.Stdout)
	os.Exit(code)
}

const wmemMax = "/proc/sys/net/core/wmem_max"

// setMax sets net.core.wmem_max, which every namespace shares, and returns what sets
// it back.
func setMax(n int) (restore func(), err error) {
	before, err := os.ReadFile(wmemMax)
	if err != nil {
		return nil, err
	}
	if n == 0 {
		report.add("net.core.wmem_max", "%s", strings.TrimSpace(string(before)))
		return func() {}, nil
	}
	report.add("net.core.wmem_max", "%d", n)
	write := func(b []byte) error { return os.WriteFile(wmemMax, b, 0) }
	return func() {
		if err := write(before); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}, write([]byte(strconv.Itoa(n)))
}

// A machine runs sockd by the shipped unit, as its user.
type machine struct {
	*systemdtest.Machine
	tb testing.TB
}

// loadPath is where the machine has the test binary.
const loadPath = "/usr/local/bin/sockd-prove-load"

// boot installs build one as a packager does, boots, and does what README.md tells an
// administrator to do.
func boot(tb testing.TB) machine {
	tb.Helper()
	dir, err := builds()
	require.NoError(tb, err)
	tree := tb.TempDir()
	out, err := exec.Command("make", "-C", "../..", "--old-file=build", "install", "BIN="+dir+"/one", "PREFIX=/usr/local", "DESTDIR="+tree).CombinedOutput()
	require.NoError(tb, err, "%s", out)
	self, err := os.Executable()
	require.NoError(tb, err)
	copyFile(tb, self, tree+loadPath)
	copyFile(tb, dir+"/two/sockd", tree+"/usr/local/share/sockd.two")
	copyFile(tb, dir+"/one/sockd", tree+"/usr/local/share/sockd.one")
	m := machine{systemdtest.Boot(tb, tree), tb}
	m.Run("systemd-sysusers")
	m.Run("systemd-tmpfiles", "--create", "/usr/local/lib/tmpfiles.d/sockd.conf")
	return m
}

func copyFile(tb testing.TB, from, to string) {
	tb.Helper()
	src, err := os.Open(from)
	require.NoError(tb, err)
	defer src.Close() // read-only
	require.NoError(tb, os.MkdirAll(filepath.Dir(to), 0o755))
	dst, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o755)
	require.NoError(tb, err)
	_, err = io.Copy(dst, src)
	require.NoError(tb, errors.Join(err, dst.Close()))
}

// ends are the three kinds of address; both are given the number of their way.
var ends3 = []struct {
	name           string
	from, to       string // as package net has them
	relay, backend string // as sockd has them
}{
	{"tcp4", "tcp:127.0.0.1:%d", "tcp:127.0.0.1:%d", "tcp:127.0.0.1:%d", "tcp:127.0.0.1:%d"},
	{"tcp6", "tcp:[::1]:%d", "tcp:[::1]:%d", "tcp:[::1]:%d", "tcp:[::1]:%d"},
	{"unix", "unix:/run/sockd/unix/%d", "unix:/run/prove/%d", "unix:/run/sockd/unix/%d,mode=0666", "unix:/run/prove/%d"},
}

const (
	firstFrom = 21001
	firstTo   = 22001
)

// serveWays starts sockd with a durable relay for each pair of addresses.
func (m machine) serveWays() (ways []way) {
	m.tb.Helper()
	for _, from := range ends3 {
		for _, to := range ends3 {
			n := len(ways)
			name := from.name + "-" + to.name
			ways = append(ways, way{Name: name, From: fmt.Sprintf(from.from, firstFrom+n), To: fmt.Sprintf(to.to, firstTo+n)})
			m.WriteFile("/etc/sockd/relays.d/"+name+".conf", fmt.Sprintf("[Relay]\nFrom=%s\nTo=%s\nDurable=yes\n",
				fmt.Sprintf(from.relay, firstFrom+n), fmt.Sprintf(to.backend, firstTo+n)))
		}
	}
	// A test that fails shows the journal: all of it.
	m.WriteFile("/etc/systemd/system/sockd.service.d/log.conf", "[Service]\nLogRateLimitIntervalSec=0\n")
	m.Run("systemctl", "enable", "--now", "sockd.socket", "sockd.service")
	return ways
}

// processes are the service's, by their numbers here. Between its end and the next
// start there are none.
func (m machine) processes() (pids []int) {
	text, _ := os.ReadFile(filepath.Join(m.Cgroup(), "system.slice/sockd.service/cgroup.procs")) // it may be gone
	for _, f := range strings.Fields(string(text)) {
		if pid, err := strconv.Atoi(f); err == nil && pid > 1 { // 0 is a process of another namespace's
			pids = append(pids, pid)
		}
	}
	return pids
}

// killNext waits for a process other than last, then for the moment, and kills it. It
// returns its number and when.
func (m machine) killNext(last int, moment time.Duration) (pid int, at time.Time) {
	m.tb.Helper()
	m.Until("sockd was started again", func() bool {
		for _, p := range m.processes() {
			if p != last {
				pid = p
			}
		}
		return pid != 0
	})
	time.Sleep(moment)
	at = time.Now()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		m.tb.Fatalf("kill sockd: %v", err)
	}
	return pid, at
}

// relays is how many relays sockd has; below 0 when it does not answer.
func (m machine) status() (s struct {
	Relays, Sessions, PID int
	Version               string
}) {
	m.tb.Helper()
	require.NoError(m.tb, json.Unmarshal([]byte(m.Run("sockd-ctl", "status", "--json")), &s))
	return s
}

// A loading is a load that runs in the machine.
type loading struct {
	tb    testing.TB
	cmd   *exec.Cmd
	in    io.WriteCloser
	lines chan []byte
	words *strings.Builder
	close func() // waits for its end; twice is nothing
}

// startLoad starts a load in the machine. It ends with the test.
func (m machine) startLoad(name string, o order) *loading {
	m.tb.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	l := &loading{tb: m.tb, cmd: m.Command(ctx, loadPath), lines: make(chan []byte, 8), words: &strings.Builder{}}
	l.cmd.Env = append(l.cmd.Env, loadEnv+"="+name, "GORACE=atexit_sleep_ms=0")
	l.cmd.Stderr = l.words
	in, err := l.cmd.StdinPipe()
	require.NoError(m.tb, err)
	out, err := l.cmd.StdoutPipe()
	require.NoError(m.tb, err)
	require.NoError(m.tb, l.cmd.Start())
	l.in = in
	heard := make(chan struct{})
	go func() {
		defer close(heard)
		l.hear(out)
	}()
	l.close = sync.OnceFunc(func() {
		_ = l.in.Close() // it ends by that
		<-heard
		cancel()
		_ = l.cmd.Wait() // its words are in the log
		if m.tb.Failed() {
			m.tb.Logf("load %s says: %s", name, l.words)
		}
	})
	m.tb.Cleanup(l.close)
	l.say(o)
	return l
}

// hear passes lines on; one that nobody waits for is kept.
func (l *loading) hear(out io.Reader) {
	defer close(l.lines)
	r := bufio.NewReaderSize(out, 1<<20)
	for {
		line, err := r.ReadBytes('\n')
		if err != nil {
			return
		}
		l.lines <- line
	}
}

func (l *loading) say(o order) {
	l.tb.Helper()
	line, err := json.Marshal(o)
	require.NoError(l.tb, err)
	_, err = l.in.Write(append(line, '\n'))
	require.NoError(l.tb, err)
}

func (l *loading) tell(word string) {
	l.tb.Helper()
	_, err := io.WriteString(l.in, word+"\n")
	require.NoError(l.tb, err)
}

// await is the next answer.
func (l *loading) await(into any) {
	l.tb.Helper()
	select {
	case line, ok := <-l.lines:
		require.True(l.tb, ok, "the load ended")
		require.NoError(l.tb, json.Unmarshal(line, into))
	case <-time.After(3 * patience):
		l.tb.Fatal("the load does not answer")
	}
}

// answered tells whether an answer is there.
func (l *loading) answered() bool { return len(l.lines) > 0 }
