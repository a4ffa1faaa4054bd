package ksock_test

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/ksock"
	"github.com/stretchr/testify/require"
)

// mustMeet connects to a listener and calls f with the descriptor of the accepted side.
func mustMeet(tb testing.TB, network, address string, f func(ksock.FD)) (client net.Conn) {
	tb.Helper()
	l, err := net.Listen(network, address)
	require.NoError(tb, err)
	defer l.Close()
	client, err = net.Dial(network, l.Addr().String())
	require.NoError(tb, err)
	tb.Cleanup(func() { _ = client.Close() })
	server, err := l.Accept()
	require.NoError(tb, err)
	defer server.Close()
	raw, err := server.(syscall.Conn).SyscallConn()
	require.NoError(tb, err)
	require.NoError(tb, raw.Control(func(fd uintptr) { f(ksock.FD(fd)) }))
	return client
}

func TestTheAddressInAName(t *testing.T) {
	for _, at := range [][2]string{{"tcp4", "127.0.0.1:0"}, {"tcp6", "[::1]:0"}, {"tcp", "[::ffff:127.0.0.1]:0"}} {
		var got netip.AddrPort
		client := mustMeet(t, at[0], at[1], func(fd ksock.FD) {
			name, err := fd.Peer()
			require.NoError(t, err)
			got = ksock.AddrPortOf(&name)
		})
		require.Equal(t, client.LocalAddr().(*net.TCPAddr).AddrPort().Port(), got.Port())
		require.Equal(t, client.LocalAddr().(*net.TCPAddr).AddrPort().Addr().Unmap(), got.Addr())
	}
	mustMeet(t, "unix", filepath.Join(t.TempDir(), "s"), func(fd ksock.FD) {
		name, err := fd.Local()
		require.NoError(t, err)
		require.Zero(t, ksock.AddrPortOf(&name), "a path is no address")
	})
	require.Zero(t, ksock.AddrPortOf(new(families.Name)))
}

func TestABareDescriptorKnowsItsPeer(t *testing.T) {
	mustMeet(t, "unix", filepath.Join(t.TempDir(), "s"), func(fd ksock.FD) {
		c, err := fd.PeerCred()
		require.NoError(t, err)
		require.Equal(t, families.Creds{PID: int32(os.Getpid()), UID: uint32(os.Getuid()), GID: uint32(os.Getgid())}, c)
		groups, err := fd.PeerGroups()
		require.NoError(t, err)
		mine, err := syscall.Getgroups()
		require.NoError(t, err)
		require.Len(t, groups, len(mine))
	})
	mustMeet(t, "tcp", "127.0.0.1:0", func(fd ksock.FD) {
		name, err := fd.Peer()
		require.NoError(t, err)
		uid, err := fd.PeerOwner(ksock.AddrPortOf(&name))
		require.NoError(t, err)
		require.Equal(t, uint32(os.Getuid()), uid)
		_, err = fd.PeerOwner(netip.MustParseAddrPort("127.0.0.1:1"))
		require.ErrorIs(t, err, families.ErrNotFound)
	})
	_, err := ksock.NoDescriptor.PeerOwner(netip.MustParseAddrPort("127.0.0.1:1"))
	require.Error(t, err)
	_, err = ksock.NoDescriptor.PeerCred()
	require.ErrorIs(t, err, syscall.EBADF)
}
