package code

import (
	"errors"
	"net"
	"testing"

	"github.com/sockd/sockd/families/familytest"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// openPacket is a packet socket on an interface of a namespace.
func openPacket(t *testing.T, ns *familytest.NS, name string) (fd int, to *unix.SockaddrLinklayer) {
	t.Helper()
	to = &unix.SockaddrLinklayer{Protocol: 0x0300} // ETH_P_ALL in network byte order
	var err, ifErr error
	ns.Do(func() {
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		var i *net.Interface
		if i, ifErr = net.InterfaceByName(name); ifErr == nil {
			to.Ifindex = i.Index
		}
	})
	require.NoError(t, errors.Join(err, ifErr))
	t.Cleanup(func() { _ = unix.Close(fd) })
	require.NoError(t, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 20}))
	return fd, to
}

// taggedFrame is tcpFrame behind a tag, or two.
func taggedFrame(mark byte, tags ...[4]byte) []byte {
	inner := tcpFrame()
	f := append([]byte{2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, mark}, inner[:0]...)
	for _, tag := range tags {
		f = append(f, tag[:]...)
	}
	return append(f, inner[12:]...)
}

// The kernel moves a tag to the metadata on the way to the socket.
func TestTheKernelFindsATagInItsMetadata(t *testing.T) {
	a, b := familytest.NewNS(t), familytest.NewNS(t)
	familytest.Veth(t, a, "v0", "", b, "v1", "")
	frames := [][]byte{
		taggedFrame(1), taggedFrame(2, [4]byte{0x81, 0, 0, 100}), taggedFrame(3, [4]byte{0x81, 0, 0, 101}),
		taggedFrame(4, [4]byte{0x81, 0, 0xe0, 100}), taggedFrame(5, [4]byte{0x88, 0xa8, 0, 100}),
		taggedFrame(6, [4]byte{0x81, 0, 0, 7}, [4]byte{0x81, 0, 0, 100}), taggedFrame(7, [4]byte{0x88, 0xa8, 0, 100}, [4]byte{0x81, 0, 0, 9}),
	}
	last := append([]byte{2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 99, 0x88, 0xb5}, make([]byte, 46)...)
	out, to := openPacket(t, a, "v0")
	for _, filter := range []string{"vlan", "vlan 100", "vlan 100 and tcp port 80", "tcp port 80", "less 100"} {
		t.Run(filter, func(t *testing.T) {
			built := NewBuilder()
			p := mustAssemble(t, built, graphOf(t, built, classicOf(t, mustFind(t, filter).text["plain"])), false)
			in, at := openPacket(t, b, "v1")
			require.NoError(t, attach(in, Kernel([]*Program{p, etherType(t, 0x88b5)}, Scope{Mixed: true})))
			require.NoError(t, unix.Bind(in, at))
			var want []byte
			for _, f := range frames {
				require.NoError(t, unix.Sendto(out, f, 0, to))
				if p.Run(f, uint32(len(f)), nil) {
					want = append(want, f[11])
				}
			}
			require.NoError(t, unix.Sendto(out, last, 0, to))
			require.Equal(t, want, marksUntil(t, in, 99))
		})
	}
}

// marksUntil are the marks of the frames that come in before one with the last; others (the
// kernel's own) have none.
func marksUntil(t *testing.T, fd int, last byte) (marks []byte) {
	t.Helper()
	buf := make([]byte, 2000)
	for {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		require.NoError(t, err)
		switch {
		case n < 14 || string(buf[:11]) != "\x02\x00\x00\x00\x00\x02\x02\x00\x00\x00\x00":
		case buf[11] == last:
			return marks
		default:
			marks = append(marks, buf[11])
		}
	}
}
