package acceptance

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/sockd/sockd/families/familytest"
)

// Two hosts on a veth; the daemon and tcpdump watch on the first one's side.
func hosts(t *testing.T) (a, b *familytest.NS) {
	a, b = familytest.NewNS(t), familytest.NewNS(t)
	familytest.Veth(t, a, "va", "10.9.0.1/24", b, "vb", "10.9.0.2/24")
	return a, b
}

func TestACaptureIsWhatTcpdumpBesideItSees(t *testing.T) {
	a, b := hosts(t)
	s := start(t, a)
	ours, theirs := filepath.Join(s.dir, "ours.pcapng"), filepath.Join(s.dir, "theirs.pcap")

	tcpdump := a.Command("tcpdump", "-i", "va", "-U", "-n", "-w", theirs, "icmp or tcp port 8080")
	said := background(t, tcpdump)
	eventually(t, said.String, func() bool { return strings.Contains(said.String(), "listening on") })
	capture := s.ctl("capture", "va", "icmp", "or", "tcp", "port", "8080", "-w", ours)
	summary := &lockedBuffer{}
	capture.Stderr = summary
	require.NoError(t, capture.Start())
	s.eventually("the capture is listed", func() bool { return strings.Contains(s.run("ls", "captures", "--json"), `"va"`) })

	must(t, b.Command("ping", "-q", "-c", "5", "-i", "0.02", "10.9.0.1"))
	serve(t, a, b)

	s.eventually("the capture has seen the last packet", func() bool { return frames(t, theirs) > 12 && delivered(s) == frames(t, theirs) })
	require.NoError(t, capture.Process.Signal(os.Interrupt))
	require.NoError(t, capture.Wait(), "Ctrl-C is the normal end: %s", summary)
	require.Contains(t, summary.String(), "0 packets dropped by kernel")

	for _, reader := range [][]string{{"tcpdump", "-n", "-r"}, {"tshark", "-n", "-r"}, {"capinfos"}} {
		out := must(t, exec.Command(reader[0], append(reader[1:], ours)...))
		require.NotContains(t, strings.ToLower(out), "malformed", "%s reads the file", reader[0])
		require.NotContains(t, out, "cut short")
	}
	require.Equal(t, packets(t, theirs), packets(t, ours), "the packet set equals tcpdump's")
}

// serve moves some TCP between the hosts on port 8080.
func serve(t *testing.T, a, b *familytest.NS) {
	t.Helper()
	var l net.Listener
	var err error
	a.Do(func() { l, err = net.Listen("tcp", "10.9.0.1:8080") })
	require.NoError(t, err)
	defer l.Close()
	done := make(chan error, 1)
	go func() { done <- answerLate(l, 0) }()
	out := must(t, b.Command("sh", "-c", `printf hello | socat -t 10 - TCP:10.9.0.1:8080`))
	require.Equal(t, "hello answered", out)
	require.NoError(t, <-done)
}

// packets are the frames of a file as tcpdump prints them, without their times.
func packets(t *testing.T, file string) []string {
	t.Helper()
	out, err := exec.Command("tcpdump", "-n", "-t", "-e", "-xx", "-r", file).Output()
	require.NoError(t, err)
	return strings.Split(strings.TrimSpace(string(out)), "\n")
}

// frames counts the frames of a file that tcpdump is still writing.
func frames(t *testing.T, file string) int {
	t.Helper()
	out, _ := exec.Command("tcpdump", "-n", "-t", "-q", "-r", file).Output() // a cut last record is an error, and the rest is printed
	return strings.Count(string(out), "\n")
}

func delivered(s *sockd) int {
	var n int
	for _, word := range strings.FieldsFunc(s.run("ls", "captures", "--json"), func(r rune) bool { return r == ',' || r == '{' || r == '}' }) {
		if _, err := fmt.Sscanf(word, `"delivered":%d`, &n); err == nil {
			return n
		}
	}
	return -1
}

func TestThreeCapturesAtOnceAreOneSocket(t *testing.T) {
	a, b := hosts(t)
	s := start(t, a)
	sockets := func() int {
		out, err := a.Command("cat", "/proc/net/packet").Output()
		require.NoError(t, err)
		return strings.Count(strings.TrimSpace(string(out)), "\n")
	}
	require.Zero(t, sockets())
	var captures []*exec.Cmd
	for i := range 3 {
		c := s.ctl("capture", "va", "icmp", "-c", "4", "-n")
		out := &lockedBuffer{}
		c.Stdout = out
		require.NoError(t, c.Start())
		captures = append(captures, c)
		s.eventually("the capture is listed", func() bool { return strings.Count(s.run("ls", "captures", "--json"), `"source"`) == i+1 })
		t.Cleanup(func() { require.Equal(t, 4, strings.Count(out.String(), "ICMP echo"), out.String()) })
	}
	require.Equal(t, 1, sockets(), "three captures share one AF_PACKET socket")
	must(t, b.Command("ping", "-q", "-c", "2", "-i", "0.02", "10.9.0.1"))
	for _, c := range captures {
		require.NoError(t, c.Wait())
	}
	s.eventually("the ring is closed after the last", func() bool { return sockets() == 0 })
}

// Ctrl-C of a capture to stdout leaves a file that tcpdump reads.
func TestACaptureCanBePipedIntoTcpdump(t *testing.T) {
	a, b := hosts(t)
	s := start(t, a)
	c := s.command("sh", "-c", filepath.Join(s.bin, "sockd-ctl")+" --socket "+s.socket+" capture va -c 2 icmp -w - | tcpdump -n -r -")
	out := background(t, c)
	s.eventually("the capture is listed", func() bool { return strings.Contains(s.run("ls", "captures", "--json"), `"va"`) })
	must(t, b.Command("ping", "-q", "-c", "1", "10.9.0.1"))
	eventually(t, out.String, func() bool { return strings.Count(out.String(), "ICMP echo") == 2 })
}
