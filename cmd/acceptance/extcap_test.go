package acceptance

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/sockd/sockd/families/familytest"
)

// nobody is a user without any rights.
const nobody = 65534

// startAs is start by another user, whose daemon may open packet sockets and nothing
// else. Its directory is the user's; in its folder extcap is the link that Wireshark
// finds.
func startAs(t *testing.T, ns *familytest.NS, uid int) *sockd {
	t.Helper()
	familytest.Need(t, familytest.Root())
	programs, err := programs()
	require.NoError(t, err)
	dir, err := os.MkdirTemp("", "sockd-user")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	for _, sub := range []string{"bin", "extcap", "home", "config", "state"} {
		require.NoError(t, os.Mkdir(filepath.Join(dir, sub), 0o755))
	}
	for _, name := range []string{"sockd", "sockd-ctl"} { // the folder that they were built in is root's
		must(t, exec.Command("cp", filepath.Join(programs, name), filepath.Join(dir, "bin", name)))
	}
	require.NoError(t, os.Symlink(filepath.Join(dir, "bin", "sockd-ctl"), filepath.Join(dir, "extcap", "sockd-extcap")))
	must(t, exec.Command("chown", "-R", fmt.Sprintf("%d:%d", uid, uid), dir))
	require.NoError(t, os.Chmod(dir, 0o755))

	s := &sockd{t: t, ns: ns, bin: filepath.Join(dir, "bin"), dir: dir, socket: filepath.Join(dir, "control"), log: &lockedBuffer{}}
	s.cmd = s.command("setpriv", append(asUser(uid), "--inh-caps=+net_raw", "--ambient-caps=+net_raw",
		filepath.Join(s.bin, "sockd"), "--socket", s.socket, "--config", filepath.Join(dir, "config"), "--state", filepath.Join(dir, "state"))...)
	s.cmd.Stderr = s.log
	require.NoError(t, s.cmd.Start())
	t.Cleanup(s.stop)
	s.eventually("the control socket accepts", func() bool {
		c, err := net.Dial("unix", s.socket)
		return err == nil && c.Close() == nil
	})
	return s
}

// asUser are setpriv's flags for a user who is in no group.
func asUser(uid int) []string {
	return []string{fmt.Sprintf("--reuid=%d", uid), fmt.Sprintf("--regid=%d", uid), "--clear-groups"}
}

// user is a command of the daemon's user, without rights, who has Wireshark look for
// extcap programs in the daemon's folder.
func (s *sockd) user(uid int, line ...string) *exec.Cmd {
	c := s.command("setpriv", append(asUser(uid), line...)...)
	c.Env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + filepath.Join(s.dir, "home"), "LC_ALL=C.UTF-8",
		"WIRESHARK_EXTCAP_DIR=" + filepath.Join(s.dir, "extcap"), "SOCKD_SOCKET=" + s.socket,
	}
	return c
}

// datagrams sends to two ports of the address until the test ends.
func datagrams(t *testing.T, from *familytest.NS, to string, ports ...int) {
	t.Helper()
	var conns []net.Conn
	from.Do(func() {
		for _, port := range ports {
			c, err := net.Dial("udp", net.JoinHostPort(to, strconv.Itoa(port)))
			require.NoError(t, err)
			conns = append(conns, c)
		}
	})
	end, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for tick := time.NewTicker(5 * time.Millisecond); ; {
			select {
			case <-end:
				tick.Stop()
				return
			case <-tick.C:
			}
			for _, c := range conns {
				_, _ = c.Write([]byte("hello")) // nobody listens there, which comes back as an error
			}
		}
	}()
	t.Cleanup(func() {
		close(end)
		<-done
		for _, c := range conns {
			require.NoError(t, c.Close())
		}
	})
}

func TestTsharkCapturesAsAnOrdinaryUser(t *testing.T) {
	a, b := hosts(t)
	s := startAs(t, a, nobody)

	list := must(t, s.user(nobody, "tshark", "-D"))
	for _, name := range []string{"sockd-any (sockd: any)", "sockd-lo (sockd: lo)", "sockd-va (sockd: va)"} {
		require.Contains(t, list, name)
	}
	require.Contains(t, must(t, s.user(nobody, "tshark", "-i", "sockd-va", "-L")), "EN10MB")

	datagrams(t, b, "10.9.0.1", 7777, 7778)
	for _, iface := range []string{"sockd-va", "sockd-any"} {
		c := s.user(nobody, "timeout", "60", "tshark", "-n", "-i", iface, "-c", "3", "-f", "udp port 7777", "-T", "fields", "-e", "ip.src", "-e", "udp.dstport")
		out, err := c.Output()
		require.NoError(t, err, "%s", out)
		require.Equal(t, strings.Repeat("10.9.0.2\t7777\n", 3), string(out), iface)
	}
	s.eventually("what Wireshark has left is left", func() bool { return s.run("ls", "captures", "--json") == "[]" })
}

func TestManyReadersAreOneSocket(t *testing.T) {
	a, b := hosts(t)
	s := startAs(t, a, nobody)
	datagrams(t, b, "10.9.0.1", 7777)
	file := filepath.Join(s.dir, "home", "file.pcapng")
	readers := []*exec.Cmd{
		s.user(nobody, "tshark", "-n", "-i", "sockd-va"), s.user(nobody, "tshark", "-n", "-i", "sockd-va"),
		s.user(nobody, filepath.Join(s.bin, "sockd-ctl"), "capture", "va", "-w", file),
	}
	for _, c := range readers {
		background(t, c)
	}
	require.Equal(t, "black", s.run("recorder", "add", "black", "va", "--last", "1m"))
	s.eventually("all three capture", func() bool { return strings.Count(s.run("ls", "captures", "--json"), `"source":"va"`) == 3 })
	sockets := must(t, a.Command("cat", "/proc/net/packet"))
	require.Equal(t, 1, strings.Count(strings.TrimSpace(sockets), "\n"), sockets)
}

// What Wireshark asks, without Wireshark.
func TestExtcapAnswers(t *testing.T) {
	a, _ := hosts(t)
	s := startAs(t, a, nobody)
	program := filepath.Join(s.dir, "extcap", "sockd-extcap")
	ask := func(args ...string) string {
		return must(t, s.user(nobody, append([]string{program}, args...)...))
	}
	interfaces := ask("--extcap-interfaces", "--extcap-version=4.0")
	require.Regexp(t, `^extcap \{version=`, interfaces)
	require.Contains(t, interfaces, "\ninterface {value=sockd-va}{display=sockd: va}\n")
	require.Equal(t, "dlt {number=1}{name=EN10MB}{display=Ethernet}\n", ask("--extcap-interface", "sockd-va", "--extcap-dlts"))
	require.Contains(t, ask("--extcap-interface", "sockd-va", "--extcap-config"), "{call=--snaplen}")
	require.Empty(t, ask("--extcap-interface", "sockd-va", "--extcap-capture-filter", "udp port 53"))
	require.Contains(t, ask("--extcap-interface", "sockd-va", "--extcap-capture-filter", "port nonsense and"), "column")

	c := s.user(nobody, program, "--extcap-interfaces")
	c.Env = append(c.Env, "SOCKD_SOCKET=/nowhere/socket")
	out, err := c.Output()
	require.NoError(t, err, "Wireshark shows an error at each start")
	require.NotContains(t, string(out), "interface")

	c = s.user(nobody, program, "--extcap-interface", "sockd-nowhere", "--capture", "--fifo", "/dev/null")
	said, err := c.CombinedOutput()
	require.Error(t, err)
	require.Contains(t, string(said), "nowhere", "it says why")
}

// A file of several interfaces is read by libpcap when they are of one kind.
func TestACaptureOfAnyCanBePipedIntoTcpdump(t *testing.T) {
	a, b := hosts(t)
	s := start(t, a)
	datagrams(t, b, "10.9.0.1", 7777)
	must(t, a.Command("ip", "addr", "add", "10.9.9.9/32", "dev", "lo"))
	datagrams(t, a, "10.9.9.9", 7777)
	c := s.command("sh", "-c", filepath.Join(s.bin, "sockd-ctl")+" --socket "+s.socket+" capture any -c 50 -w - udp port 7777 | timeout 60 tcpdump -n -r -")
	out := must(t, c)
	require.Contains(t, out, "> 10.9.0.1.7777: UDP, length 5")
	require.Contains(t, out, "> 10.9.9.9.7777: UDP, length 5")
}
