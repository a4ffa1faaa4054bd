package owner_test

import (
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sockd/sockd/families/familytest"
	"github.com/sockd/sockd/families/packet/filter"
	"github.com/sockd/sockd/families/packet/owner"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	tcp = 6
	udp = 17
)

// packet is a raw IPv4 or IPv6 packet of a flow, with the flags of TCP.
func packet(protocol uint8, from, to netip.AddrPort, flags uint8) []byte {
	var b []byte
	if from.Addr().Is4() {
		b = append([]byte{0x45, 0, 0, 40, 0, 0, 0, 0, 64, protocol, 0, 0}, from.Addr().AsSlice()...)
	} else {
		b = append([]byte{0x60, 0, 0, 0, 0, 20, protocol, 64}, from.Addr().AsSlice()...)
	}
	b = append(b, to.Addr().AsSlice()...)
	b = binary.BigEndian.AppendUint16(b, from.Port())
	b = binary.BigEndian.AppendUint16(b, to.Port())
	return append(b, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, flags, 0, 0, 0, 0, 0, 0)
}

func newFinder(tb testing.TB, o owner.Options) *owner.Finder {
	tb.Helper()
	f, err := owner.New(o)
	require.NoError(tb, err)
	tb.Cleanup(func() { require.NoError(tb, f.Close()) })
	return f.Patient()
}

// connection is one on loopback: the dialler's end and the accepted one.
func connection(tb testing.TB, at string) (client, server *net.TCPConn) {
	tb.Helper()
	l, err := net.Listen("tcp", at)
	require.NoError(tb, err)
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	require.NoError(tb, err)
	s, err := l.Accept()
	require.NoError(tb, err)
	tb.Cleanup(func() { c.Close(); s.Close() })
	return c.(*net.TCPConn), s.(*net.TCPConn)
}

func addr(a net.Addr) netip.AddrPort {
	ap := netip.MustParseAddrPort(a.String())
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

// holder lets a program hold a connection, and nobody else.
func holder(tb testing.TB, c *net.TCPConn) *exec.Cmd {
	tb.Helper()
	f, err := c.File()
	require.NoError(tb, err)
	cmd := exec.Command("sleep", "60")
	cmd.ExtraFiles = []*os.File{f}
	require.NoError(tb, cmd.Start())
	require.NoError(tb, f.Close())
	require.NoError(tb, c.Close())
	tb.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	name := filepath.Join("/proc", strconv.Itoa(cmd.Process.Pid), "comm")
	familytest.Eventually(tb, "the program runs", func() bool {
		b, _ := os.ReadFile(name)
		return string(b) == "sleep\n"
	})
	return cmd
}

func TestTheOwnerOfEachEndOfAConnection(t *testing.T) {
	for _, at := range []string{"127.0.0.1:0", "[::1]:0"} {
		t.Run(at, func(t *testing.T) {
			client, server := connection(t, at)
			to, from := addr(client.RemoteAddr()), addr(client.LocalAddr())
			cmd := holder(t, client)
			f := newFinder(t, owner.Options{Processes: true})
			now := time.Now().UnixNano()

			sent := f.Find(packet(tcp, from, to, 0x10), filter.Raw, true, false, now)
			require.NotNil(t, sent)
			require.True(t, sent.KnownPID)
			require.EqualValues(t, cmd.Process.Pid, sent.PID)
			require.Equal(t, "sleep", sent.Comm)
			require.True(t, sent.KnownUID)
			require.EqualValues(t, os.Getuid(), sent.UID)

			received := f.Find(packet(tcp, from, to, 0x10), filter.Raw, false, false, now)
			require.NotNil(t, received)
			require.EqualValues(t, os.Getpid(), received.PID)
			require.Equal(t, sent, f.Find(packet(tcp, from, to, 0x10), filter.Raw, false, true, now), "on loopback the sender")

			require.NoError(t, server.Close())
		})
	}
}

func TestWhatCannotBeToldIsUnknown(t *testing.T) {
	client, server := connection(t, "127.0.0.1:0")
	from, to := addr(client.LocalAddr()), addr(client.RemoteAddr())
	f := newFinder(t, owner.Options{Processes: true})
	now := time.Now().UnixNano()
	stranger := netip.MustParseAddrPort("192.0.2.1:9")

	t.Run("a flow that no socket has", func(t *testing.T) {
		require.Nil(t, f.Find(packet(tcp, from, stranger, 0), filter.Raw, true, false, now))
		require.Nil(t, f.Find(packet(udp, stranger, stranger, 0), filter.Raw, false, false, now))
	})
	t.Run("a packet that has no flow", func(t *testing.T) {
		whole := packet(tcp, from, to, 0)
		for n := range 23 {
			require.Nil(t, f.Find(whole[:n], filter.Raw, true, false, now))
		}
		icmp := packet(1, from, to, 0)
		require.Nil(t, f.Find(icmp, filter.Raw, true, false, now))
		fragment := packet(tcp, from, to, 0)
		fragment[7] = 9
		require.Nil(t, f.Find(fragment, filter.Raw, true, false, now))
	})
	t.Run("which of several processes", func(t *testing.T) {
		file, err := client.File()
		require.NoError(t, err)
		cmd := exec.Command("sleep", "60")
		cmd.ExtraFiles = []*os.File{file}
		require.NoError(t, cmd.Start())
		defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
		require.NoError(t, file.Close())
		familytest.Eventually(t, "the program runs", func() bool {
			b, _ := os.ReadFile(filepath.Join("/proc", strconv.Itoa(cmd.Process.Pid), "comm"))
			return string(b) == "sleep\n"
		})
		o := newFinder(t, owner.Options{Processes: true}).Find(packet(tcp, from, to, 0), filter.Raw, true, false, now)
		require.NotNil(t, o)
		require.True(t, o.KnownUID, "both have the same user")
		require.False(t, o.KnownPID)
		require.Empty(t, o.Comm)
	})
	t.Run("a connection that is closed", func(t *testing.T) {
		require.NoError(t, client.Close())
		require.NoError(t, server.Close())
		require.Nil(t, newFinder(t, owner.Options{}).Find(packet(tcp, from, to, 0), filter.Raw, true, false, now))
	})
}

func TestANewConnectionBetweenTheSameNamesIsAskedForAgain(t *testing.T) {
	client, server := connection(t, "127.0.0.1:0")
	from, to := addr(client.LocalAddr()), addr(client.RemoteAddr())
	f := newFinder(t, owner.Options{})
	now := time.Now().UnixNano()
	require.NotNil(t, f.Find(packet(tcp, from, to, 0x10), filter.Raw, true, false, now))
	require.NoError(t, client.Close())
	require.NoError(t, server.Close())
	require.NotNil(t, f.Find(packet(tcp, from, to, 0x11), filter.Raw, true, false, now), "its last packets are its own")
	require.Nil(t, f.Find(packet(tcp, from, to, 0x02), filter.Raw, true, false, now), "a SYN is of another one")
	require.Nil(t, f.Find(packet(tcp, from, to, 0x10), filter.Raw, true, false, now+int64(2*time.Second)))
}

func TestBehindTagsAndExtensionHeaders(t *testing.T) {
	client, _ := connection(t, "[::1]:0")
	raw := packet(tcp, addr(client.LocalAddr()), addr(client.RemoteAddr()), 0x10)
	hop := append(append(append([]byte{}, raw[:40]...), tcp, 0, 0, 0, 0, 0, 0, 0), raw[40:]...)
	hop[6] = 0
	tagged := append([]byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x88, 0xa8, 0, 7, 0x81, 0, 0, 9, 0x86, 0xdd}, hop...)
	o := newFinder(t, owner.Options{}).Find(tagged, filter.Ethernet, true, false, time.Now().UnixNano())
	require.NotNil(t, o)
	require.EqualValues(t, os.Getuid(), o.UID)
	require.False(t, o.KnownPID, "nobody asked for processes")
}

func inodeOf(tb testing.TB, c *net.TCPConn) uint32 {
	tb.Helper()
	rc, err := c.SyscallConn()
	require.NoError(tb, err)
	var st syscall.Stat_t
	require.NoError(tb, rc.Control(func(fd uintptr) { err = syscall.Fstat(int(fd), &st) }))
	require.NoError(tb, err)
	return uint32(st.Ino)
}

func TestWhatTheDaemonHoldsForOthersIsTheirs(t *testing.T) {
	client, _ := connection(t, "127.0.0.1:0")
	from, to := addr(client.LocalAddr()), addr(client.RemoteAddr())
	inode := inodeOf(t, client)
	f := newFinder(t, owner.Options{Processes: true, Brokered: func(asked uint32) (filter.Owner, bool) {
		return filter.Owner{UID: 4711, KnownUID: true}, asked == inode
	}})
	now := time.Now().UnixNano()
	require.Equal(t, &filter.Owner{UID: 4711, KnownUID: true}, f.Find(packet(tcp, from, to, 0), filter.Raw, true, false, now))
	require.EqualValues(t, os.Getuid(), f.Find(packet(tcp, from, to, 0), filter.Raw, false, false, now).UID)
}

func TestQuestionsTakeATenthOfTheTimeAtMost(t *testing.T) {
	f, err := owner.New(owner.Options{Processes: true})
	require.NoError(t, err)
	defer f.Close()
	before := time.Now()
	for n := range 200_000 {
		from := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, byte(n >> 16), byte(n >> 8), byte(n)}), 9)
		f.Find(packet(tcp, from, from, 2), filter.Raw, true, false, before.UnixNano())
		if f.Skipped() > 0 {
			return
		}
	}
	t.Fatalf("200,000 flows were asked for in %v, and none was left out", time.Since(before))
}

func TestTheUnitOfAProcess(t *testing.T) {
	for text, want := range map[string]string{
		"0::/system.slice/ssh.service\n":                                      "ssh.service",
		"0::/user.slice/user-7.slice/user@7.service/app.slice/web.service\n":  "web.service",
		"0::/user.slice/user-7.slice/session-3.scope\n":                       "session-3.scope",
		"0::/system.slice/web.service/worker\n":                               "web.service",
		"4:cpu:/a.service\n1:name=systemd:/system.slice/cron.service\n0::/\n": "cron.service",
		"0::/\n":                           "",
		"":                                 "",
		"0::" + strings.Repeat("/x", 9000): "",
		"rubbish":                          "",
	} {
		require.Equal(t, want, owner.UnitOfProcess(text), text)
	}
}

func FuzzFlow(f *testing.F) {
	from, to := netip.MustParseAddrPort("10.0.0.1:1"), netip.MustParseAddrPort("10.0.0.2:2")
	f.Add(packet(tcp, from, to, 2), uint16(filter.Raw))
	six := netip.AddrPortFrom(netip.IPv6Loopback(), 5)
	f.Add(packet(udp, six, six, 0), uint16(filter.Raw))
	f.Add(append([]byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 8, 0}, packet(udp, from, to, 0)...), uint16(filter.Ethernet))
	f.Fuzz(func(t *testing.T, b []byte, link uint16) {
		flow, _, ok := owner.FlowOf(b, filter.LinkType(link))
		if !ok {
			return
		}
		require.True(t, flow.Own.IsValid() && flow.Peer.IsValid())
		require.Contains(t, []uint8{tcp, udp}, flow.Protocol)
		short, _, ok := owner.FlowOf(b[:len(b)-1], filter.LinkType(link))
		require.True(t, !ok || short == flow, "a frame that is cut has the same flow or none")
	})
}
