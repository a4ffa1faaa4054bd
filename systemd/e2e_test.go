package systemd

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/sockd/sockd/systemd/systemdtest"
)

// programs builds sockd and sockd-ctl once for all tests of this package, into a
// folder that TestMain removes.
var programs = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "sockd-bin-")
	if err != nil {
		return "", err
	}
	programsDir = dir
	if out, err := exec.Command("make", "-C", "..", "build", "BIN="+dir).CombinedOutput(); err != nil {
		return "", fmt.Errorf("make build: %w\n%s", err, out)
	}
	return dir, nil
})

var programsDir string

// mustInstall installs into a fresh tree as a packager does.
func mustInstall(t *testing.T, prefix string) (tree string) {
	t.Helper()
	tree = t.TempDir()
	mustMake(t, "install", prefix, tree)
	return tree
}

// mustMake runs a target of the Makefile with the programs already built.
func mustMake(t *testing.T, target, prefix, tree string) {
	t.Helper()
	bin, err := programs()
	require.NoError(t, err)
	out, err := exec.Command("make", "-C", "..", "--old-file=build", target, "BIN="+bin, "PREFIX="+prefix, "DESTDIR="+tree).CombinedOutput()
	require.NoError(t, err, "%s", out)
}

// filesOf lists a tree's files, from its root.
func filesOf(t *testing.T, tree string) []string {
	t.Helper()
	var files []string
	require.NoError(t, filepath.WalkDir(tree, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			files = append(files, strings.TrimPrefix(path, tree))
		}
		return err
	}))
	return files
}

func TestInstallPutsEachFileWhereItIsRead(t *testing.T) {
	for _, tt := range []struct{ prefix, units, sysusers, tmpfiles string }{
		{"/usr/local", "/usr/local/lib/systemd/system", "/usr/local/lib/sysusers.d", "/usr/local/lib/tmpfiles.d"},
		{"/usr", "/usr/lib/systemd/system", "/usr/lib/sysusers.d", "/usr/lib/tmpfiles.d"},
		{"/opt/sockd", "/etc/systemd/system", "/etc/sysusers.d", "/etc/tmpfiles.d"},
	} {
		t.Run(tt.prefix, func(t *testing.T) {
			tree := mustInstall(t, tt.prefix)
			files := filesOf(t, tree)
			require.Subset(t, files, []string{
				tt.prefix + "/bin/sockd", tt.prefix + "/bin/sockd-ctl",
				tt.units + "/sockd.service", tt.units + "/sockd.socket",
				tt.sysusers + "/sockd.conf", tt.tmpfiles + "/sockd.conf",
				tt.prefix + "/share/bash-completion/completions/sockd-ctl", tt.prefix + "/share/zsh/site-functions/_sockd-ctl",
				tt.prefix + "/share/fish/vendor_completions.d/sockd-ctl.fish",
			})
			zsh, err := os.ReadFile(tree + tt.prefix + "/share/zsh/site-functions/_sockd-ctl")
			require.NoError(t, err)
			require.True(t, strings.HasPrefix(string(zsh), "#compdef sockd-ctl\n"))
			service, err := os.ReadFile(tree + tt.units + "/sockd.service")
			require.NoError(t, err)
			require.Contains(t, string(service), "\nExecStart="+tt.prefix+"/bin/sockd\n")
			require.NotContains(t, string(service), "@PREFIX@")

			mustMake(t, "uninstall", tt.prefix, tree)
			require.Empty(t, filesOf(t, tree), "uninstall takes away all that install put there")
		})
	}
}

// TestTheServiceIsHardened holds the bar that the unit's comments speak of.
func TestTheServiceIsHardened(t *testing.T) {
	unit := mustInstall(t, "/usr/local") + "/usr/local/lib/systemd/system/sockd.service"
	out, err := exec.Command("systemd-analyze", "security", "--offline=true", "--threshold=18", "--no-pager", unit).CombinedOutput()
	require.NoError(t, err, "%s", out)
}

// mustBootSockd boots a machine with sockd installed and does what README.md
// tells an administrator to do: make the user, enable the socket.
func mustBootSockd(t *testing.T) *systemdtest.Machine {
	t.Helper()
	m := systemdtest.Boot(t, mustInstall(t, "/usr/local"))
	m.Run("systemd-sysusers")
	m.Run("systemd-tmpfiles", "--create", "/usr/local/lib/tmpfiles.d/sockd.conf")
	m.Run("systemctl", "enable", "--now", "sockd.socket")
	return m
}

// TestInstallOnARunningMachine runs make inside the machine, on a copy of the
// sources that it needs, where it also makes the user and reloads systemd.
func TestInstallOnARunningMachine(t *testing.T) {
	bin, err := programs()
	require.NoError(t, err)
	tree := t.TempDir()
	makefile, err := os.ReadFile("../Makefile")
	require.NoError(t, err)
	require.NoError(t, os.CopyFS(tree+"/src/systemd", os.DirFS(".")))
	require.NoError(t, os.CopyFS(tree+"/src/bin", os.DirFS(bin)))
	require.NoError(t, os.WriteFile(tree+"/src/Makefile", makefile, 0o644))

	m := systemdtest.Boot(t, tree)
	out := m.Run("make", "-C", "/src", "--old-file=build", "install")
	require.Contains(t, out, "systemctl enable --now sockd.socket")
	require.Equal(t, "755 root:root", m.Run("stat", "-c", "%a %U:%G", "/run/sockd"))
	m.Run("systemctl", "enable", "--now", "sockd.service")
	require.Equal(t, "active", active(m))
	require.Equal(t, "enabled", m.Run("systemctl", "is-enabled", "sockd.socket"), "Also= takes the socket along")
	m.Run("sockd-ctl", "ls")

	m.Run("make", "-C", "/src", "--old-file=build", "uninstall")
	require.Equal(t, "inactive", active(m))
	for _, gone := range []string{"/usr/local/bin/sockd", "/usr/local/bin/sockd-ctl", "/run/sockd/io.sockd",
		"/etc/systemd/system/sockets.target.wants/sockd.socket", "/usr/local/lib/systemd/system/sockd.service"} {
		require.NoFileExists(t, m.Path(gone))
	}
	require.Contains(t, m.Run("id", "sockd"), "sockd", "the user stays, files may be its own")
}

// active returns the state of sockd.service.
func active(m *systemdtest.Machine) string { return m.Property("sockd.service", "ActiveState") }

// A status is what the tests need of `sockd-ctl status --json`.
type status struct {
	PID     int
	Systemd bool
	Relays  int
	Control string
}

func mustStatus(t *testing.T, m *systemdtest.Machine) status {
	t.Helper()
	var s status
	out := m.Run("sockd-ctl", "status", "--json")
	require.NoError(t, json.Unmarshal([]byte(out), &s), "%s", out)
	return s
}

func TestTheUnitsAreWellFormed(t *testing.T) {
	m := mustBootSockd(t)
	const units = "/usr/local/lib/systemd/system/"
	out := m.Run("systemd-analyze", "verify", "--man=no", units+"sockd.socket", units+"sockd.service")
	require.Empty(t, out, "not even a warning")
}

func TestTheFirstCallStartsTheService(t *testing.T) {
	m := mustBootSockd(t)
	require.Equal(t, "active", m.Property("sockd.socket", "ActiveState"))
	require.Equal(t, "inactive", active(m), "the socket alone is active")
	require.Equal(t, "660 root:sockd", m.Run("stat", "-c", "%a %U:%G", "/run/sockd/io.sockd"))

	m.Run("sockd-ctl", "ls")

	require.Equal(t, "active", active(m))
	s := mustStatus(t, m)
	require.True(t, s.Systemd)
	require.Equal(t, m.MainPID("sockd.service"), s.PID)
	require.Equal(t, "660 root:sockd", m.Run("stat", "-c", "%a %U:%G", "/run/sockd/io.sockd"),
		"starting the service leaves the socket as it was")
	require.Equal(t, "755 root:root", m.Run("stat", "-c", "%a %U:%G", "/run/sockd"),
		"what configuration is read from is not the daemon's to write")
	require.NotEmpty(t, m.Property("sockd.service", "StatusText"))
	require.Equal(t, "30s", m.Property("sockd.service", "WatchdogUSec"))
}

// TestTheServiceHasWhatItNeeds opens what the two capabilities are for, from
// inside the hardened unit.
func TestTheServiceHasWhatItNeeds(t *testing.T) {
	m := mustBootSockd(t)
	for _, open := range [][]string{
		{"inet", "stream"}, {"inet", "dgram"}, {"inet", "raw", "icmp"},
		{"inet6", "stream"}, {"inet6", "dgram"}, {"inet6", "raw", "icmp6"},
		{"local", "stream"}, {"local", "dgram"}, {"local", "seqpacket"},
		{"packet", "raw"}, {"packet", "dgram"},
	} {
		require.Regexp(t, `^[1-9][0-9]*$`, m.Run("sockd-ctl", append([]string{"open"}, open...)...), "%v", open)
	}
	id := m.Run("sockd-ctl", "open", "inet", "stream")
	require.Contains(t, m.Run("sockd-ctl", "bind", id, "127.0.0.1:80"), "127.0.0.1:80", "a port below 1024")
	require.NotEqual(t, "root", m.Run("ps", "-o", "user=", "-p", fmt.Sprint(m.MainPID("sockd.service"))))
}

// TestACaptureRunsInsideTheUnit needs what no other verb does: a ring that is
// mapped, an interface made promiscuous.
func TestACaptureRunsInsideTheUnit(t *testing.T) {
	m := mustBootSockd(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	capture := m.Command(ctx, "sockd-ctl", "capture", "lo", "udp", "port", "4711", "-c", "3", "-n")
	var lines, words strings.Builder
	capture.Stdout, capture.Stderr = &lines, &words
	require.NoError(t, capture.Start())
	ended := make(chan error, 1)
	go func() { ended <- capture.Wait() }()

	var err error
	m.Until("three packets were captured", func() bool {
		m.Run("bash", "-c", "echo sockd >/dev/udp/127.0.0.1/4711 || true") // refused by the port: lo carried it all the same
		select {
		case err = <-ended:
			return true
		default:
			return false
		}
	})
	require.NoError(t, err, words.String())
	require.Equal(t, 3, strings.Count(lines.String(), "127.0.0.1.4711"), lines.String())
}

// TestACaptureKnowsTheUnitOfAPacket has the hardened service, which may not look into the processes
// of others, find whose socket it is by the socket's cgroup.
func TestACaptureKnowsTheUnitOfAPacket(t *testing.T) {
	m := mustBootSockd(t)
	for _, unit := range []string{"talker", "other"} {
		m.WriteFile("/etc/systemd/system/"+unit+".service", "[Service]\nExecStart=/bin/bash -c 'exec 3<>/dev/udp/127.0.0.1/4711; while :; do echo "+unit+" >&3; sleep 0.02; done 2>/dev/null'\n")
	}
	m.Run("systemctl", "daemon-reload")
	m.Run("systemctl", "start", "talker.service", "other.service")
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	lines, err := m.Command(ctx, "sockd-ctl", "capture", "lo", "-c", "5", "--jsonl", "unit", "talker.service", "and", "udp", "port", "4711").Output()
	require.NoError(t, err)
	words := 0
	for line := range strings.Lines(string(lines)) {
		var packet struct {
			Comment string
			PID     int
			Data    []byte
		}
		require.NoError(t, json.Unmarshal([]byte(line), &packet), line)
		require.Equal(t, "uid 0 unit talker.service", packet.Comment)
		require.Zero(t, packet.PID, "ProtectProc=invisible: it is not known, and not guessed")
		require.Contains(t, string(packet.Data), "talker")
		words++
	}
	require.Equal(t, 5, words)
	pid := fmt.Sprint(m.MainPID("talker.service"))
	none, err := m.Command(ctx, "sockd-ctl", "capture", "lo", "--duration", "500ms", "pid", pid, "and", "udp", "port", "4711").Output()
	require.NoError(t, err)
	require.Empty(t, none)
}

func TestOnlyRootMayCallUntilGrantsExist(t *testing.T) {
	m := mustBootSockd(t)
	out, err := m.Try("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "sockd-ctl", "ls")
	require.Equal(t, 4, exitCode(err), out)
	require.Contains(t, out, "usermod -aG sockd")
	require.Equal(t, "inactive", active(m), "who may not connect starts nothing")

	gid := m.Run("getent", "group", "sockd")
	gid = strings.Split(gid, ":")[2]
	out, err = m.Try("setpriv", "--reuid=65534", "--regid=65534", "--groups="+gid, "sockd-ctl", "ls")
	require.Equal(t, 4, exitCode(err), "the group may connect, and is refused each call: %s", out)
	require.Equal(t, "active", active(m))
}

func exitCode(err error) int {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	return 0
}

// TestReloadKeepsSessions holds a session open through a relay of relays.d
// while reloads add a relay beside it and take it away.
func TestReloadKeepsSessions(t *testing.T) {
	m := mustBootSockd(t)
	startEcho(t, m.Path("/run/echo"))
	relay := func(name string) string {
		return fmt.Sprintf("[Relay]\nFrom=unix:/run/sockd/unix/%s,mode=0666\nTo=unix:/run/echo\n", name)
	}
	m.WriteFile("/etc/sockd/relays.d/first.conf", relay("first"))
	require.Equal(t, 1, mustStatus(t, m).Relays)
	pid := m.MainPID("sockd.service")

	session := mustDial(t, m.Path("/run/sockd/unix/first"))
	session.mustEcho("before")

	m.WriteFile("/etc/sockd/relays.d/second.conf", relay("second"))
	m.Run("systemctl", "reload", "sockd.service")
	m.Until("the second relay is there", func() bool { return mustStatus(t, m).Relays == 2 })
	second := mustDial(t, m.Path("/run/sockd/unix/second"))
	second.mustEcho("through the new one")
	session.mustEcho("after a relay was added")

	require.NoError(t, os.Remove(m.Path("/etc/sockd/relays.d/second.conf")))
	m.Run("systemctl", "reload", "sockd.service")
	m.Until("the second relay takes nobody any more", func() bool {
		c, err := net.Dial("unix", m.Path("/run/sockd/unix/second"))
		if err == nil {
			_ = c.Close() // came too early
		}
		return err != nil
	})
	session.mustEcho("after a relay was removed")
	second.mustEcho("a removed relay drains")
	require.NoError(t, second.Close())
	m.Until("the second relay is gone", func() bool { return mustStatus(t, m).Relays == 1 })

	require.Equal(t, "active", active(m))
	require.Equal(t, pid, m.MainPID("sockd.service"), "a reload is no restart")
	require.Contains(t, m.Journal("cat", "SOCKD_RELAY=second"), "relay removed", "one relay's records are found by its name")
}

// TestABadRelayDoesNotStopTheService writes a relay that does not parse.
func TestABadRelayDoesNotStopTheService(t *testing.T) {
	m := mustBootSockd(t)
	m.Run("sockd-ctl", "ls")
	pid := m.MainPID("sockd.service")
	m.WriteFile("/etc/sockd/relays.d/bad.conf", "[Relay]\nFrom=nonsense\nTo=unix:/run/echo\n")
	m.Run("systemctl", "reload", "sockd.service")
	m.Until("the journal names the file", func() bool {
		return strings.Contains(m.Journal("cat", "_SYSTEMD_UNIT=sockd.service"), "bad.conf")
	})
	m.Run("sockd-ctl", "ls")
	require.Equal(t, pid, m.MainPID("sockd.service"))
}

func TestRestartIsInvisibleToTheNextCall(t *testing.T) {
	m := mustBootSockd(t)
	m.Run("sockd-ctl", "ls")
	before := m.MainPID("sockd.service")
	m.Run("systemctl", "restart", "sockd.service")
	require.Equal(t, "active", active(m))
	require.NotEqual(t, before, mustStatus(t, m).PID)
}

func TestKillBringsItBack(t *testing.T) {
	m := mustBootSockd(t)
	before := mustStatus(t, m).PID
	m.Signal(before, "KILL")
	after := mustStatus(t, m).PID // waits in the socket until the service is back
	require.NotEqual(t, before, after)
	require.Equal(t, "1", m.Property("sockd.service", "NRestarts"))
	m.Until("systemd has heard that it is ready", func() bool { return active(m) == "active" }) // it serves before it says so
}

// TestTheWatchdogKillsWhatDoesNotAnswer stops the daemon as a dead lock would.
func TestTheWatchdogKillsWhatDoesNotAnswer(t *testing.T) {
	m := mustBootSockd(t)
	m.WriteFile("/etc/systemd/system/sockd.service.d/watchdog.conf", "[Service]\nWatchdogSec=2s\n")
	m.Run("systemctl", "daemon-reload")
	before := mustStatus(t, m).PID
	require.Equal(t, "2s", m.Property("sockd.service", "WatchdogUSec"))
	fed := func() string { return m.Property("sockd.service", "WatchdogTimestampMonotonic") }
	first := fed()
	m.Until("the watchdog is fed again", func() bool { return fed() != first })

	m.Signal(before, "STOP")
	m.Until("systemd saw the watchdog run out and started anew", func() bool {
		pid := m.MainPID("sockd.service")
		return pid != 0 && pid != before && active(m) == "active"
	})
	require.NotEqual(t, before, mustStatus(t, m).PID)
	require.Contains(t, m.Journal("cat", "_PID=1"), "Watchdog timeout")
	require.Equal(t, "1", m.Property("sockd.service", "NRestarts"))
}

func TestStopLeavesTheSocketAndStoppingTheSocketRemovesIt(t *testing.T) {
	m := mustBootSockd(t)
	before := mustStatus(t, m).PID
	m.Run("systemctl", "stop", "sockd.service")
	require.Equal(t, "inactive", active(m))
	require.Equal(t, "success", m.Property("sockd.service", "Result"), "SIGTERM is a clean end")
	require.NotEqual(t, before, mustStatus(t, m).PID, "the next call starts it again")

	m.Run("systemctl", "stop", "sockd.socket", "sockd.service")
	require.Equal(t, "inactive", active(m))
	require.NoFileExists(t, m.Path("/run/sockd/io.sockd"))
	out, err := m.Try("sockd-ctl", "ls")
	require.Equal(t, 5, exitCode(err), out)
}

// TestTheJournalHasFields looks a record up by what only the native protocol
// carries.
func TestTheJournalHasFields(t *testing.T) {
	m := mustBootSockd(t)
	m.Run("sockd-ctl", "ls")
	var entries []map[string]any
	lines := bufio.NewScanner(strings.NewReader(
		m.Journal("json", "SYSLOG_IDENTIFIER=sockd", "_TRANSPORT=journal", "_SYSTEMD_UNIT=sockd.service")))
	for lines.Scan() {
		var e map[string]any
		require.NoError(t, json.Unmarshal(lines.Bytes(), &e))
		entries = append(entries, e)
	}
	require.NotEmpty(t, entries)
	for _, e := range entries {
		require.NotEmpty(t, e["MESSAGE"])
		require.NotEmpty(t, e["SOCKD_TIME"])
		require.Contains(t, e["CODE_FILE"], "sockd")
		require.Regexp(t, `^[3-7]$`, e["PRIORITY"])
	}
}

// startEcho answers on a unix stream socket with what comes in, until the test
// ends. Anybody may connect.
func startEcho(t *testing.T, path string) {
	t.Helper()
	l, err := net.Listen("unix", path)
	require.NoError(t, err)
	require.NoError(t, os.Chmod(path, 0o666))
	var conns sync.WaitGroup
	t.Cleanup(func() { _ = l.Close(); conns.Wait() })
	conns.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			conns.Go(func() {
				defer c.Close()
				_, _ = bufio.NewReader(c).WriteTo(c) // until either side ends
			})
		}
	})
}

// A session is a client's connection through a relay.
type session struct {
	t *testing.T
	net.Conn
}

func mustDial(t *testing.T, path string) session {
	t.Helper()
	c, err := net.Dial("unix", path)
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Close() })
	return session{t, c}
}

// mustEcho sends a word and gets it back.
func (s session) mustEcho(word string) {
	s.t.Helper()
	require.NoError(s.t, s.SetDeadline(time.Now().Add(patience)))
	_, err := s.Write([]byte(word))
	require.NoError(s.t, err)
	back := make([]byte, len(word))
	_, err = io.ReadFull(s, back)
	require.NoError(s.t, err)
	require.Equal(s.t, word, string(back))
}
