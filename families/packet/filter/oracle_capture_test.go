package filter_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/familytest"
	"github.com/sockd/sockd/families/packet"
	"github.com/stretchr/testify/require"
)

// captured is a network of two namespaces, and tcpdumps that write down what goes through it.
type captured struct {
	*testing.T
	a, b *familytest.NS
	dir  string
}

// recording is a tcpdump that writes a file.
type recording struct {
	link, file string
	cmd        *exec.Cmd
	said       io.ReadCloser
}

// record starts a tcpdump in b, and waits until it listens. Its buffer has slots of the
// length that frames are cut to, so that is no longer than it must.
func (c *captured) record(link, iface string) *recording {
	c.Helper()
	r := &recording{link: link, file: filepath.Join(c.dir, link+".pcap")}
	r.cmd = c.b.Command("tcpdump", "-i", iface, "-y", link, "-U", "--immediate-mode", "-s", "2000", "-B", "16384", "-w", r.file)
	var err error
	r.said, err = r.cmd.StderrPipe()
	require.NoError(c, err)
	require.NoError(c, r.cmd.Start())
	listens := make(chan bool, 1)
	lines := bufio.NewScanner(r.said)
	go func() { // ends with tcpdump, which stop waits for
		for lines.Scan() {
			if strings.Contains(lines.Text(), "listening on") {
				listens <- true
			}
		}
		close(listens)
	}()
	require.True(c, <-listens, "tcpdump does not listen on %s", iface)
	return r
}

// stop ends it when it has seen the last frame, and reads what it wrote.
func (c *captured) stop(r *recording) []oracleFrame {
	c.Helper()
	familytest.Eventually(c, "the last frame is not in "+r.file, func() bool {
		written, err := os.ReadFile(r.file)
		return err == nil && bytes.Contains(written, lastFrame[14:])
	})
	require.NoError(c, r.cmd.Process.Signal(os.Interrupt))
	require.NoError(c, r.cmd.Wait())
	f, err := os.Open(r.file)
	require.NoError(c, err)
	defer f.Close()
	frames, err := readPcap(bufio.NewReader(f), r.link)
	require.NoError(c, err)
	return frames
}

// readPcap reads the file format that tcpdump writes on this machine.
func readPcap(r io.Reader, link string) (frames []oracleFrame, err error) {
	var head [24]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	if binary.NativeEndian.Uint32(head[:]) != 0xa1b2c3d4 {
		return nil, fmt.Errorf("pcap: the file begins with %x", head[:4])
	}
	if got, want := binary.NativeEndian.Uint32(head[20:]), uint32(oracleLinks[link]); got != want {
		return nil, fmt.Errorf("pcap: link type %d, want %d", got, want)
	}
	for {
		var record [16]byte
		switch _, err := io.ReadFull(r, record[:]); err {
		case nil:
		case io.EOF:
			return frames, nil
		default:
			return nil, err
		}
		data := make([]byte, binary.NativeEndian.Uint32(record[8:]))
		if _, err := io.ReadFull(r, data); err != nil {
			return nil, err
		}
		frames = append(frames, oracleFrame{data: data, length: int(binary.NativeEndian.Uint32(record[12:])), iface: 2, name: "captured"})
	}
}

// captureRealTraffic lets real tools talk through a veth, and is what tcpdump saw of it on
// each link type that it can capture.
func captureRealTraffic(t *testing.T) map[string][]oracleFrame {
	t.Helper()
	c := &captured{T: t, a: familytest.NewNS(t), b: familytest.NewNS(t), dir: t.TempDir()}
	familytest.Veth(t, c.a, "v0", "10.0.0.1/24", c.b, "v1", "10.0.0.2/24")
	c.address(c.a, "v0", "2001:db8::1/32")
	c.address(c.b, "v1", "2001:db8:5::2/32")
	out, err := exec.Command("ip", "-n", c.a.Name(), "route", "add", "default", "dev", "v0").CombinedOutput() // of groups, too
	require.NoError(t, err, string(out))
	recordings := []*recording{c.record("EN10MB", "v1"), c.record("LINUX_SLL2", "any"), c.record("LINUX_SLL", "any")}
	c.talk()
	frames := map[string][]oracleFrame{}
	for _, r := range recordings {
		frames[r.link] = c.stop(r)
	}
	for _, f := range frames["LINUX_SLL2"] { // what is behind the cooked header is a raw packet
		raw := oracleFrame{data: f.data[20:], length: f.length - 20, iface: 2, name: "captured"}
		frames["RAW"] = append(frames["RAW"], raw)
	}
	return frames
}

func (c *captured) address(ns *familytest.NS, iface, cidr string) {
	c.Helper()
	out, err := exec.Command("ip", "-n", ns.Name(), "addr", "add", cidr, "dev", iface, "nodad").CombinedOutput()
	require.NoError(c, err, string(out))
}

// talk makes the traffic: HTTP by curl and by us, over both IPs; echoes, small, and in
// fragments; datagrams to ports that nobody listens on, to groups and to all; frames of
// the builder's, tagged ones among them, by a raw socket.
func (c *captured) talk() {
	c.Helper()
	for _, addr := range []string{"10.0.0.2:80", "[2001:db8:5::2]:8080"} {
		c.http(addr)
	}
	for _, args := range []string{"-c 2 10.0.0.2", "-c 1 -s 4000 10.0.0.2", "-c 2 2001:db8:5::2", "-c 1 -s 4000 2001:db8:5::2"} {
		out, err := c.a.Command("ping", append([]string{"-i", "0.01"}, strings.Fields(args)...)...).CombinedOutput()
		require.NoError(c, err, string(out))
	}
	c.datagrams()
	c.rawFrames(append(newBuilder(oracleSeed+100).frames("EN10MB", scaled(600)), oracleFrame{data: lastFrame}))
}

// lastFrame is sent last: who has seen it has seen all.
var lastFrame = append(make([]byte, 12), "\x88\xb5the last frame of the traffic, which is long enough for any link"...)

// http serves on an address in b, and fetches from a.
func (c *captured) http(addr string) {
	c.Helper()
	var l net.Listener
	c.b.Do(func() {
		var err error
		l, err = net.Listen("tcp", addr)
		require.NoError(c, err)
	})
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write(make([]byte, 5000)) // who stops reading fails below
	})}
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	for range 3 {
		out, err := c.a.Command("curl", "-sS", "--max-time", "20", "-o", "/dev/null", "http://"+addr+"/").CombinedOutput()
		require.NoError(c, err, string(out))
	}
	require.NoError(c, server.Shutdown(context.Background()))
	require.ErrorIs(c, <-done, http.ErrServerClosed)
}

func (c *captured) datagrams() {
	c.Helper()
	c.a.Do(func() {
		for _, to := range []string{
			"10.0.0.2:53", "[2001:db8:5::2]:53", "224.0.0.251:5353", "10.0.0.255:68", "10.0.0.2:40000", "[ff02::fb%v0]:5353", "10.0.0.77:7",
		} {
			conn, err := net.Dial("udp", to)
			require.NoError(c, err, to)
			for _, n := range []int{0, 40, 3000} {
				_, _ = conn.Write(make([]byte, n)) // a port that is closed says so here
			}
			require.NoError(c, conn.Close())
		}
	})
}

// rawFrames sends frames of the builder's: the kernel takes VLAN tags off, and tcpdump
// puts them back.
func (c *captured) rawFrames(frames []oracleFrame) {
	c.Helper()
	ctx, cancel := context.WithTimeout(c.Context(), 20*time.Second)
	defer cancel()
	c.a.Do(func() {
		s, err := packet.Family.Open(ctx, families.Spec{Type: families.Raw})
		require.NoError(c, err)
		defer s.Close()
		a, err := packet.Family.ParseAddr(families.Raw, "v0/0x88b5")
		require.NoError(c, err)
		require.NoError(c, s.Bind(a))
		for _, f := range frames {
			if len(f.data) < 14 || len(f.data) > 1514 {
				continue
			}
			_, err := s.Send(&families.Msg{Data: f.data})
			require.NoError(c, err)
		}
	})
}

func TestOracleOfCapturedTraffic(t *testing.T) {
	frames := captureRealTraffic(t)
	for link, least := range map[string]int{"EN10MB": 300, "LINUX_SLL2": 300, "LINUX_SLL": 300, "RAW": 300} {
		t.Logf("%s: %d frames captured", link, len(frames[link]))
		require.GreaterOrEqual(t, len(frames[link]), scaled(least), link)
	}
	s := newSpeaker(oracleSeed + 1)
	var subjects []subject
	for _, text := range []string{"tcp port 80", "icmp", "icmp6", "arp", "udp port 53", "vlan", "ip[6:2] & 0x1fff != 0", "multicast", "net 10.0.0.0/24", "ip6 net 2001:db8::/32", "tcp[tcpflags] & tcp-syn != 0", "host 10.0.0.2"} {
		for link := range frames {
			subjects = append(subjects, subject{link, text, frames[link]})
		}
	}
	for range scaled(1500) {
		link := s.word("EN10MB", "EN10MB", "LINUX_SLL2", "LINUX_SLL", "RAW")
		subjects = append(subjects, subject{link, s.Text(link), frames[link]})
	}
	report(t, judgeAll(subjects), false)
}
