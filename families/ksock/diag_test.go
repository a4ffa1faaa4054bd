package ksock_test

import (
	"context"
	"io"
	"net/netip"
	"syscall"
	"testing"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/familytest"
	"github.com/sockd/sockd/families/inet"
	"github.com/sockd/sockd/families/inet6"
	"github.com/sockd/sockd/families/ksock"
	"github.com/sockd/sockd/families/local"
	"github.com/stretchr/testify/require"
)

// Users that the tests become. They need no entry in the user database.
const (
	somebody  = 54321
	rightless = 54322
)

// asUser makes sockets and asks questions as another user, without root's rights.
func asUser(tb testing.TB, uid uint32, f func() error) {
	tb.Helper()
	familytest.Need(tb, familytest.Root())
	require.NoError(tb, ksock.AsUser(uid, uid, nil, f))
}

func listen(tb testing.TB, f families.Family, at string) families.Socket {
	tb.Helper()
	l := open(tb, f, families.Stream)
	require.NoError(tb, l.Bind(familytest.MustAddr(tb, f, families.Stream, at)))
	require.NoError(tb, as[families.Listener](tb, l).Listen(0))
	return l
}

// call is a connection that user uid made from a socket of f to at, where l listens:
// its own end and the one that was accepted.
func call(tb testing.TB, uid uint32, f families.Family, l families.Socket, at netip.AddrPort) (client, accepted families.Socket) {
	tb.Helper()
	return callFrom(tb, uid, f, "", l, at)
}

// quiet is an address where no other program of this host is, so that a port there
// is free again when its socket is gone.
const quiet = "127.54.32.1:0"

// callFrom is call with the client bound, unless from is "".
func callFrom(tb testing.TB, uid uint32, f families.Family, from string, l families.Socket, at netip.AddrPort) (client, accepted families.Socket) {
	tb.Helper()
	asUser(tb, uid, func() (err error) {
		if client, err = f.Open(tb.Context(), families.Spec{Type: families.Stream}); err != nil {
			return err
		}
		if from != "" {
			if err := client.Bind(familytest.MustAddr(tb, f, families.Stream, from)); err != nil {
				return err
			}
		}
		return client.Connect(tb.Context(), familytest.MustAddr(tb, f, families.Stream, at.String()))
	})
	tb.Cleanup(func() { require.NoError(tb, client.Close()) })
	accepted, err := families.AcceptWait(context.Background(), l)
	require.NoError(tb, err)
	tb.Cleanup(func() { require.NoError(tb, accepted.Close()) })
	return client, accepted
}

func addrPort(a families.Addr) netip.AddrPort {
	s := a.Scope()
	return netip.AddrPortFrom(s.Prefix.Addr(), s.Port)
}

func mapped(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom16(a.Addr().As16()), a.Port())
}

func TestTheOwnerOfAPeerIsWhoConnected(t *testing.T) {
	for _, row := range []struct {
		name     string
		listener families.Family
		at       string
		client   families.Family
		to       string
	}{
		{"IPv4", inet.Family, "127.0.0.1:0", inet.Family, "127.0.0.1"},
		{"IPv6", inet6.Family, "[::1]:0", inet6.Family, "::1"},
		{"IPv4 to an IPv6 listener", inet6.Family, "[::]:0", inet.Family, "127.0.0.1"},
		{"IPv4 from an IPv6 socket", inet.Family, "127.0.0.1:0", inet6.Family, "::ffff:127.0.0.1"},
		{"IPv4 between IPv6 sockets", inet6.Family, "[::]:0", inet6.Family, "::ffff:127.0.0.1"},
	} {
		t.Run(row.name, func(t *testing.T) {
			familytest.NoLeaks(t)
			l := listen(t, row.listener, row.at)
			at := netip.AddrPortFrom(netip.MustParseAddr(row.to), l.Info().Local.Scope().Port)
			for _, uid := range []uint32{0, somebody, rightless} {
				_, accepted := call(t, uid, row.client, l, at)
				requireOwner(t, uid, accepted)
			}
		})
	}
}

// requireOwner asks in every way: as root and as a user without rights, of the
// addresses as they are and of mapped ones.
func requireOwner(t *testing.T, want uint32, accepted families.Socket) {
	t.Helper()
	i := accepted.Info()
	local, peer := addrPort(i.Local), addrPort(i.Peer)
	for _, asker := range []uint32{0, rightless} {
		asUser(t, asker, func() error {
			got, err := ksock.PeerOwner(accepted)
			require.NoError(t, err)
			require.Equal(t, want, got)
			for _, a := range [][2]netip.AddrPort{{local, peer}, {mapped(local), mapped(peer)}, {mapped(local), peer}} {
				got, err := ksock.OwnerOf(a[0], a[1])
				require.NoError(t, err)
				require.Equal(t, want, got)
			}
			return nil
		})
	}
}

func TestAPeerThatHalfClosedIsStillHeld(t *testing.T) {
	familytest.NoLeaks(t)
	l := listen(t, inet.Family, "127.0.0.1:0")
	client, accepted := call(t, somebody, inet.Family, l, addrPort(l.Info().Local))
	require.NoError(t, as[families.HalfCloser](t, client).CloseWrite())
	hearEnd(t, accepted)
	uid, err := ksock.PeerOwner(accepted)
	require.NoError(t, err)
	require.EqualValues(t, somebody, uid)
}

func hearEnd(t *testing.T, s families.Socket) {
	t.Helper()
	require.ErrorIs(t, families.RecvWait(t.Context(), s, &families.Msg{Data: make([]byte, 10)}), io.EOF)
}

// The kernel says that a socket which no process holds is user 0's.
func TestAPeerThatIsGoneIsNobodys(t *testing.T) {
	for name, leave := range map[string]func(*testing.T, families.Socket){
		"closed":                       func(t *testing.T, s families.Socket) { require.NoError(t, s.Close()) },
		"closed with data in flight":   func(t *testing.T, s families.Socket) { fill(t, s); require.NoError(t, s.Close()) },
		"reset":                        func(t *testing.T, s families.Socket) { require.NoError(t, as[families.Resetter](t, s).Reset()) },
		"closed, and root listens now": leaveToListener,
	} {
		t.Run(name, func(t *testing.T) {
			familytest.NoLeaks(t)
			l := listen(t, inet.Family, "127.0.0.1:0")
			client, accepted := callFrom(t, somebody, inet.Family, quiet, l, addrPort(l.Info().Local))
			i := accepted.Info()
			local, peer := addrPort(i.Local), addrPort(i.Peer)
			leave(t, client)
			uid, err := ksock.OwnerOf(local, peer)
			require.ErrorIs(t, err, families.ErrNotFound)
			require.Zero(t, uid)
			_, err = ksock.PeerOwner(accepted)
			require.ErrorIs(t, err, families.ErrNotFound)
		})
	}
}

func leaveToListener(t *testing.T, s families.Socket) {
	t.Helper()
	at := s.Info().Local.String()
	require.NoError(t, as[families.Resetter](t, s).Reset())
	listen(t, inet.Family, at)
}

// After a reset the bytes before it can still be read, and the port is free for
// another user, whose they are not.
func TestAConnectionThatIsOverHasNoPeer(t *testing.T) {
	familytest.NoLeaks(t)
	l := listen(t, inet.Family, "127.0.0.1:0")
	client, accepted := callFrom(t, somebody, inet.Family, quiet, l, addrPort(l.Info().Local))
	local, peer := l.Info().Local, client.Info().Local
	require.NoError(t, as[families.Resetter](t, client).Reset())

	next := open(t, inet.Family, families.Stream)
	require.NoError(t, next.Bind(peer))
	require.NoError(t, next.Connect(t.Context(), local))
	uid, err := ksock.OwnerOf(addrPort(local), addrPort(peer))
	require.NoError(t, err)
	require.Zero(t, uid, "the addresses are root's now")
	_, err = ksock.PeerOwner(accepted)
	require.ErrorIs(t, err, families.ErrNotFound)
}

func TestAnAttemptToConnectIsNoPeer(t *testing.T) {
	familytest.NoLeaks(t)
	l := open(t, inet.Family, families.Stream)
	require.NoError(t, l.Bind(familytest.MustAddr(t, inet.Family, families.Stream, "127.0.0.1:0")))
	require.NoError(t, as[families.Listener](t, l).Listen(1))
	local := addrPort(l.Info().Local)
	peer := mustStall(t, local)
	_, err := ksock.OwnerOf(local, peer)
	require.ErrorIs(t, err, families.ErrNotFound)
	require.ErrorContains(t, err, "not connected")
}

// mustStall connects until the queue is full, and tells who waits then.
func mustStall(t *testing.T, to netip.AddrPort) netip.AddrPort {
	t.Helper()
	for range 20 {
		fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_NONBLOCK|syscall.SOCK_CLOEXEC, 0)
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, syscall.Close(fd)) })
		err = syscall.Connect(fd, &syscall.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())})
		require.ErrorIs(t, err, syscall.EINPROGRESS)
		if _, err := syscall.Getpeername(fd); err == nil {
			continue
		}
		sa, err := syscall.Getsockname(fd)
		require.NoError(t, err)
		in := sa.(*syscall.SockaddrInet4)
		return netip.AddrPortFrom(netip.AddrFrom4(in.Addr), uint16(in.Port))
	}
	t.Fatal("the queue takes everybody")
	return netip.AddrPort{}
}

// The same addresses exist in every network namespace.
func TestAConnectionOfAnotherNamespaceIsNotLookedUpHere(t *testing.T) {
	familytest.NoLeaks(t)
	ns := familytest.NewNS(t)
	there := ns.Family(inet.Family)
	l := listen(t, there, "127.0.0.1:0")
	client := open(t, there, families.Stream)
	require.NoError(t, client.Connect(t.Context(), l.Info().Local))
	accepted, err := families.AcceptWait(t.Context(), l)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, accepted.Close()) })

	_, err = ksock.PeerOwner(accepted)
	require.ErrorIs(t, err, families.ErrNotFound)
	require.ErrorContains(t, err, "another network namespace")
	ns.Do(func() {
		uid, err := ksock.PeerOwner(accepted)
		require.NoError(t, err)
		require.Zero(t, uid)
	})
}

func TestOnlyConnectionsHaveAPeer(t *testing.T) {
	familytest.NoLeaks(t)
	pair, _ := socketpair(t, syscall.SOCK_STREAM)
	for name, s := range map[string]families.Socket{
		"a listener":        listen(t, inet.Family, "127.0.0.1:0"),
		"a new socket":      open(t, inet.Family, families.Stream),
		"a datagram socket": open(t, inet.Family, families.Dgram),
		"a unix socket":     pair,
		"no kernel socket":  toy(t),
	} {
		_, err := ksock.PeerOwner(s)
		require.ErrorIs(t, err, families.ErrNotFound, name)
	}
	_, err := ksock.OwnerOf(netip.AddrPort{}, netip.AddrPort{})
	require.ErrorIs(t, err, families.ErrNotFound)
}

// The kernel answers for any socket, and says user -1 where it knows none.
func TestOnlyUnixPeersHaveCredentials(t *testing.T) {
	familytest.NoLeaks(t)
	a, _ := tcpPair(t)
	c, err := ksock.PeerCred(a)
	require.ErrorIs(t, err, syscall.ENODATA)
	require.Zero(t, c)
}

func TestPeerGroupsAreThoseOfWhoConnected(t *testing.T) {
	familytest.NoLeaks(t)
	familytest.Need(t, familytest.Root())
	many := make([]uint32, 100)
	for i := range many {
		many[i] = uint32(7000 + i)
	}
	for name, groups := range map[string][]uint32{"none": {}, "two": {7001, 7002}, "many": many} {
		t.Run(name, func(t *testing.T) {
			var fds [2]int
			require.NoError(t, ksock.AsUser(somebody, somebody, groups, func() (err error) {
				fds, err = syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
				return err
			}))
			t.Cleanup(func() { require.NoError(t, syscall.Close(fds[1])) })
			s, err := local.Family.(families.Adopter).Adopt(fds[0])
			require.NoError(t, err)
			t.Cleanup(func() { require.NoError(t, s.Close()) })
			got, err := ksock.PeerGroups(s)
			require.NoError(t, err)
			require.ElementsMatch(t, groups, got)
		})
	}
	_, err := ksock.PeerGroups(toy(t))
	require.ErrorIs(t, err, families.ErrNotSupported)
	a, _ := tcpPair(t)
	_, err = ksock.PeerGroups(a)
	require.Error(t, err, "TCP has no credentials")
}

func BenchmarkOwnerOf(b *testing.B) {
	a, c := tcpPair(b)
	local, peer := addrPort(c.Info().Local), addrPort(a.Info().Local)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ksock.OwnerOf(local, peer); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkPeerOwner(b *testing.B) {
	_, c := tcpPair(b)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ksock.PeerOwner(c); err != nil {
			b.Fatal(err)
		}
	}
}
