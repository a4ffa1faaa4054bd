package daemon

import (
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/familytest"
	"github.com/sockd/sockd/families/model"
)

// The sockets of another namespace are somebody else's: what is wrong with them is said
// at the call, also when a capture of others there has a ring and asks for none. They stay
// their owner's.
func TestSocketsOfTheWrongKindAreRefused(t *testing.T) {
	ns, other := familytest.NewNS(t), familytest.NewNS(t)
	const sockDiag = 4 // NETLINK_SOCK_DIAG
	packet, route := in(ns, syscall.AF_PACKET, syscall.SOCK_RAW, 0), in(ns, syscall.AF_NETLINK, syscall.SOCK_RAW, syscall.NETLINK_ROUTE)
	udp := in(ns, syscall.AF_INET, syscall.SOCK_DGRAM, 0)
	for _, tt := range []struct {
		name          string
		packet, route opener
		says          string
		want          error
	}{
		{"a UDP socket for packets", udp, route, "packet_socket: a socket of domain 2", syscall.EINVAL},
		{"a netlink socket for packets", route, route, "packet_socket: a socket of domain 16", syscall.EINVAL},
		{"a cooked packet socket", in(ns, syscall.AF_PACKET, syscall.SOCK_DGRAM, 0), route, "packet_socket: a socket of domain 17 and type 2", syscall.EINVAL},
		{"a file for packets", file, route, "packet_socket: descriptor", syscall.ENOTSOCK},
		{"a bound packet socket", boundIn(ns), route, "packet_socket: it is bound already", syscall.EBUSY},
		{"a packet socket of a protocol", in(ns, syscall.AF_PACKET, syscall.SOCK_RAW, 0x0300), route, "packet_socket: it is bound already", syscall.EBUSY},
		{"a UDP socket for news", packet, udp, "route_socket: a socket of domain 2", syscall.EINVAL},
		{"a packet socket for news", packet, packet, "route_socket: a socket of domain 17", syscall.EINVAL},
		{"another netlink protocol", packet, in(ns, syscall.AF_NETLINK, syscall.SOCK_RAW, sockDiag), "route_socket: a socket of domain 16 and protocol 4", syscall.EINVAL},
		{"a file for news", packet, file, "route_socket: descriptor", syscall.ENOTSOCK},
		{"sockets of two namespaces", packet, in(other, syscall.AF_NETLINK, syscall.SOCK_RAW, syscall.NETLINK_ROUTE), "packet_socket and route_socket are of two", syscall.EINVAL},
	} {
		for name, others := range map[string]bool{"the first there": false, "beside another": true} {
			t.Run(tt.name+", "+name, func(t *testing.T) {
				d := newDaemon(t)
				if others {
					beside(t, d, packet, route)
				}
				for how, start := range starts(d) {
					n := &model.Namespace{Name: "theirs", PacketFD: tt.packet(t), RouteFD: tt.route(t)}
					_, err := start(t, model.CaptureSpec{Source: "any", Elsewhere: n})
					require.ErrorIs(t, err, tt.want, how)
					require.ErrorContains(t, err, "capture in network namespace theirs: "+tt.says, how)
					require.NoError(t, syscall.Close(n.PacketFD), "%s: it is still open", how)
					require.NoError(t, syscall.Close(n.RouteFD), "%s: it is still open", how)
				}
			})
		}
	}
}

// A capture that is refused for something else leaves them to their owner, too: once
// they were closed twice, and the second time they were somebody else's.
func TestSocketsOfARefusedCaptureStayTheirOwners(t *testing.T) {
	ns := familytest.NewNS(t)
	d := newDaemon(t)
	for name, spec := range map[string]model.CaptureSpec{
		"source": {Source: "v["}, "filter": {Source: "any", Filter: "nonsense"}, "format": {Source: "any", Format: "text"}, "rings": {Source: "any", Rings: 2},
	} {
		for how, start := range starts(d) {
			spec.Elsewhere = &model.Namespace{
				PacketFD: in(ns, syscall.AF_PACKET, syscall.SOCK_RAW, 0)(t), RouteFD: in(ns, syscall.AF_NETLINK, syscall.SOCK_RAW, syscall.NETLINK_ROUTE)(t),
			}
			_, err := start(t, spec)
			require.ErrorIs(t, err, families.ErrSyntax, "%s, %s", name, how)
			require.NoError(t, syscall.Close(spec.Elsewhere.PacketFD), "%s, %s", name, how)
			require.NoError(t, syscall.Close(spec.Elsewhere.RouteFD), "%s, %s", name, how)
		}
	}
}

type starter func(*testing.T, model.CaptureSpec) (flowCloser, error)

type flowCloser interface{ Close() error }

// starts are the ways to start a capture.
func starts(d *Daemon) map[string]starter {
	return map[string]starter{
		"Capture": func(t *testing.T, s model.CaptureSpec) (flowCloser, error) { return d.Capture(testContext(t), me, s) },
		"CaptureShare": func(t *testing.T, s model.CaptureSpec) (flowCloser, error) {
			return d.CaptureShare(testContext(t), me, s)
		},
	}
}

// beside runs a capture of somebody else's until the test ends.
func beside(t *testing.T, d *Daemon, packet, route opener) {
	t.Helper()
	p, err := d.Capture(testContext(t), me, model.CaptureSpec{Source: "any", Elsewhere: &model.Namespace{PacketFD: packet(t), RouteFD: route(t)}})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, p.Close()) })
}

// opener opens a descriptor, which is the caller's.
type opener func(t *testing.T) int

// in opens a socket in a namespace.
func in(ns *familytest.NS, domain, kind, protocol int) opener {
	return func(t *testing.T) int {
		t.Helper()
		var fd int
		var err error
		ns.Do(func() { fd, err = syscall.Socket(domain, kind|syscall.SOCK_CLOEXEC, protocol) })
		require.NoError(t, err)
		return fd
	}
}

// boundIn opens a packet socket that is bound to the loopback.
func boundIn(ns *familytest.NS) opener {
	return func(t *testing.T) int {
		t.Helper()
		fd := in(ns, syscall.AF_PACKET, syscall.SOCK_RAW, 0)(t)
		var lo *net.Interface
		var err error
		ns.Do(func() { lo, err = net.InterfaceByName("lo") })
		require.NoError(t, err)
		require.NoError(t, syscall.Bind(fd, &syscall.SockaddrLinklayer{Ifindex: lo.Index}))
		return fd
	}
}

func file(t *testing.T) int {
	t.Helper()
	fd, err := syscall.Open(filepath.Join(t.TempDir(), "file"), os.O_RDWR|os.O_CREATE|syscall.O_CLOEXEC, 0o600)
	require.NoError(t, err)
	return fd
}
