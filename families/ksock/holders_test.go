package ksock_test

import (
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"

	"github.com/sockd/sockd/families/inet"
	"github.com/sockd/sockd/families/ksock"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func holdersOf(tb testing.TB, protocol uint8, own, peer string) []ksock.Holder {
	tb.Helper()
	d, err := ksock.DialDiag()
	require.NoError(tb, err)
	defer d.Close()
	h, err := d.Holders(protocol, netip.MustParseAddrPort(own), netip.MustParseAddrPort(peer))
	require.NoError(tb, err)
	return h
}

// inode is that of a socket that the test itself holds.
func inode(tb testing.TB, c syscall.Conn) uint32 {
	tb.Helper()
	rc, err := c.SyscallConn()
	require.NoError(tb, err)
	var st unix.Stat_t
	require.NoError(tb, rc.Control(func(fd uintptr) { err = unix.Fstat(int(fd), &st) }))
	require.NoError(tb, err)
	return uint32(st.Ino)
}

func TestTheHolderOfAnEndOfAConnection(t *testing.T) {
	l := listen(t, inet.Family, quiet)
	client, accepted := call(t, somebody, inet.Family, l, addrPort(l.Info().Local))
	name := client.Info().Local.String()
	h := holdersOf(t, unix.IPPROTO_TCP, name, l.Info().Local.String())
	require.Len(t, h, 1)
	require.EqualValues(t, somebody, h[0].UID)
	h = holdersOf(t, unix.IPPROTO_TCP, l.Info().Local.String(), name)
	require.Len(t, h, 1)
	require.EqualValues(t, os.Geteuid(), h[0].UID, "the end that was accepted is the listener's user's")

	require.NoError(t, client.Close())
	require.NoError(t, accepted.Close())
	require.Empty(t, holdersOf(t, unix.IPPROTO_TCP, name, l.Info().Local.String()), "one that is closed, and the listener, are nobody's")
}

func TestTheHoldersOfAnAddressOfUDP(t *testing.T) {
	for name, network := range map[string]struct{ network, at, asked string }{
		"IPv4":                 {"udp4", "127.54.32.1:0", "127.54.32.1"},
		"IPv4, any address":    {"udp4", "0.0.0.0:0", "127.0.0.1"},
		"IPv6":                 {"udp6", "[::1]:0", "::1"},
		"IPv6 that takes both": {"udp", "[::]:0", "127.0.0.1"},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := net.ListenPacket(network.network, network.at)
			require.NoError(t, err)
			defer c.Close()
			own := netip.AddrPortFrom(netip.MustParseAddr(network.asked), c.LocalAddr().(*net.UDPAddr).AddrPort().Port())
			peer := netip.AddrPortFrom(own.Addr(), 9)
			h := holdersOf(t, unix.IPPROTO_UDP, own.String(), peer.String())
			require.Len(t, h, 1)
			require.Equal(t, inode(t, c.(*net.UDPConn)), h[0].Inode)
			require.EqualValues(t, os.Geteuid(), h[0].UID)
		})
	}
}

func TestAConnectedUDPSocketIsTheOnlyHolder(t *testing.T) {
	reuse := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		if cerr := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) }); cerr != nil {
			return cerr
		}
		return err
	}}
	first, err := reuse.ListenPacket(t.Context(), "udp4", "127.54.32.1:0")
	require.NoError(t, err)
	defer first.Close()
	second, err := reuse.ListenPacket(t.Context(), "udp4", first.LocalAddr().String())
	require.NoError(t, err)
	defer second.Close()
	require.Len(t, holdersOf(t, unix.IPPROTO_UDP, first.LocalAddr().String(), "127.0.0.1:9"), 2, "either can be meant")

	dialer := net.Dialer{LocalAddr: first.LocalAddr(), Control: reuse.Control}
	third, err := dialer.DialContext(t.Context(), "udp4", "127.0.0.1:9")
	require.NoError(t, err)
	defer third.Close()
	h := holdersOf(t, unix.IPPROTO_UDP, first.LocalAddr().String(), "127.0.0.1:9")
	require.Len(t, h, 1)
	require.Equal(t, inode(t, third.(*net.UDPConn)), h[0].Inode)
}
