package inet_test

import (
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/familytest"
	"github.com/sockd/sockd/families/inet"
	"github.com/stretchr/testify/require"
)

// A protocol number for experiments (RFC 3692), so that nobody else speaks it.
const experiment = 253

var addrs = map[families.Type][]string{
	families.Stream: {"127.0.0.1:80", "0.0.0.0:0", "255.255.255.255:65535"},
	families.Dgram:  {"10.0.0.1:53", "224.0.0.1:5353"},
	families.Raw:    {"10.0.0.1", "0.0.0.0"},
}

func TestFamilyKeepsTheLaws(t *testing.T) {
	ns := familytest.NewNS(t)
	f := ns.Family(inet.Family)
	stream := families.Spec{Type: families.Stream}
	at := func(typ families.Type, text string) func(testing.TB) families.Addr {
		return func(tb testing.TB) families.Addr { return familytest.MustAddr(tb, f, typ, text) }
	}
	// The two ends of a raw pair: raw sockets with one address would hear each other's.
	var turn atomic.Int64
	ends := []string{"127.0.0.2", "127.0.0.3"}
	familytest.Run(t, f, familytest.Config{
		Addrs: addrs,
		Bad: map[families.Type][]string{
			families.Stream: {"", "80", "10.0.0.1", "10.0.0.1:", "10.0.0.1:x", "10.0.0.1:65536", "10.0.0.1:-1", "10.0.0.256:80", "[::1]:80", "::1", "host:80", "10.0.0.1:http"},
			families.Dgram:  {"", "10.0.0.1", "[::1]:53"},
			families.Raw:    {"", "10.0.0.1:80", "::1", "host"},
		},
		Cases: []familytest.Case{
			{
				Spec: stream, Addr: at(families.Stream, "127.0.0.1:0"),
				Deaf: func(tb testing.TB) families.Addr {
					return familytest.Deaf(tb, f, stream, at(families.Stream, "127.0.0.1:0")(tb))
				},
				Listener: true, HalfCloser: true, Resetter: true, Optioner: true,
			},
			{
				Spec: families.Spec{Type: families.Dgram}, Addr: at(families.Dgram, "127.0.0.1:0"),
				Max:     func(testing.TB, families.Socket) int { return 65507 },
				Dropper: true, Optioner: true,
			},
			{
				Spec:   families.Spec{Type: families.Raw, Protocol: experiment},
				Addr:   func(tb testing.TB) families.Addr { return at(families.Raw, ends[turn.Add(1)%2])(tb) },
				Max:    func(testing.TB, families.Socket) int { return 65515 },
				Header: 20, Dropper: true, Optioner: true,
			},
		},
	})
}

func FuzzAddr(f *testing.F) {
	familytest.FuzzAddr(f, inet.Family, "127.0.0.1:80", ":80", "80", "", ":", "1.2.3.4", "[::1]:80", "0:0", "01.2.3.4:5", "1.2.3.4:005")
}

func TestAllAddressesMayBeLeftOut(t *testing.T) {
	require.Equal(t, "0.0.0.0:80", familytest.MustAddr(t, inet.Family, families.Stream, ":80").String())
}

func TestAPortAloneGetsAHint(t *testing.T) {
	_, err := inet.Family.ParseAddr(families.Stream, "80")
	var s *families.SyntaxError
	require.ErrorAs(t, err, &s)
	require.Equal(t, ":80 (all addresses) or 127.0.0.1:80", s.Hint)
}

func TestProtocolsHaveNamesAndNumbers(t *testing.T) {
	for word, want := range map[string]int{"": 0, "icmp": 1, "TCP": 6, "udp": 17, "gre": 47, "icmp6": 58, "ipv6-icmp": 58, "132": 132, "0x2f": 47} {
		got, err := inet.Family.ParseProtocol(families.Raw, word)
		require.NoError(t, err, word)
		require.Equal(t, want, got, word)
	}
	for _, word := range []string{"nonsense", "-1", "70000", "1.5"} {
		_, err := inet.Family.ParseProtocol(families.Raw, word)
		require.ErrorIs(t, err, families.ErrSyntax, word)
	}
}

func TestARawSocketNeedsAProtocol(t *testing.T) {
	_, err := inet.Family.Open(t.Context(), families.Spec{Type: families.Raw})
	require.ErrorIs(t, err, families.ErrSyntax)
	require.ErrorContains(t, err, "needs a protocol")
	// The hint was a word, and not the command that would help.
	var s *families.SyntaxError
	require.ErrorAs(t, err, &s)
	require.Equal(t, "sockd-ctl open inet raw icmp", s.Hint)
}

func TestTheKernelsRefusalIsKept(t *testing.T) {
	familytest.NoLeaks(t)
	s := familytest.MustOpen(t, inet.Family, families.Spec{Type: families.Stream})
	require.NoError(t, s.Bind(familytest.MustAddr(t, inet.Family, families.Stream, "127.0.0.1:0")))
	l, err := families.As[families.Listener](s)
	require.NoError(t, err)
	require.NoError(t, l.Listen(0))
	taken := s.Info().Local

	for _, row := range []struct {
		name string
		err  error
		want syscall.Errno
		text string
	}{
		{"an address in use", open(t, families.Stream).Bind(taken), syscall.EADDRINUSE,
			`bind inet "` + taken.String() + `": address already in use`},
		{"an address that is not ours", open(t, families.Stream).Bind(familytest.MustAddr(t, inet.Family, families.Stream, "203.0.113.9:80")), syscall.EADDRNOTAVAIL,
			`bind inet "203.0.113.9:80": cannot assign requested address`},
		{"bound twice", s.Bind(familytest.MustAddr(t, inet.Family, families.Stream, "127.0.0.1:0")), syscall.EINVAL, ""},
		{"connect of a listener", s.Connect(t.Context(), taken), syscall.EISCONN, ""},
		{"a protocol of another type", second(inet.Family.Open(t.Context(), families.Spec{Type: families.Stream, Protocol: syscall.IPPROTO_UDP})), syscall.EPROTONOSUPPORT,
			`open inet "stream": protocol not supported`},
	} {
		t.Run(row.name, func(t *testing.T) {
			require.ErrorIs(t, row.err, row.want)
			if row.text != "" {
				require.EqualError(t, row.err, row.text)
			}
		})
	}
}

func open(tb testing.TB, typ families.Type) families.Socket {
	return familytest.MustOpen(tb, inet.Family, families.Spec{Type: typ})
}

func second(_ families.Socket, err error) error { return err }

func TestAPortThatNobodyHasIsTheReceiversError(t *testing.T) {
	familytest.NoLeaks(t)
	gone := open(t, families.Dgram)
	require.NoError(t, gone.Bind(familytest.MustAddr(t, inet.Family, families.Dgram, "127.0.0.1:0")))
	to := gone.Info().Local
	require.NoError(t, gone.Close())

	s := open(t, families.Dgram)
	require.NoError(t, s.Connect(t.Context(), to))
	_, err := s.Send(&families.Msg{Data: []byte("anybody?")})
	require.NoError(t, err)
	m := families.Msg{Data: make([]byte, 10)}
	require.ErrorIs(t, families.RecvWait(t.Context(), s, &m), syscall.ECONNREFUSED)
	require.ErrorIs(t, s.Recv(&m), families.ErrAgain, "the error is told once")
}

func TestEachDatagramSaysWhoSentIt(t *testing.T) {
	familytest.NoLeaks(t)
	to := open(t, families.Dgram)
	require.NoError(t, to.Bind(familytest.MustAddr(t, inet.Family, families.Dgram, "127.0.0.1:0")))
	for range 3 {
		from := open(t, families.Dgram)
		_, err := from.Send(&families.Msg{Data: []byte("hello"), Peer: to.Info().Local.Sockaddr()})
		require.NoError(t, err)
		m := families.Msg{Data: make([]byte, 10)}
		require.NoError(t, families.RecvWait(t.Context(), to, &m))
		port := from.Info().Local.Scope().Port
		require.Equal(t, port, to.NameAddr(m.Peer).Scope().Port)
		_, err = to.Send(&families.Msg{Data: []byte("you"), Peer: m.Peer})
		require.NoError(t, err)
		require.NoError(t, families.RecvWait(t.Context(), from, &m))
		require.Equal(t, "you", string(m.Data))
	}
}

func TestDatagramsThatDidNotFitAreCounted(t *testing.T) {
	familytest.NoLeaks(t)
	to := familytest.MustOpen(t, inet.Family, families.Spec{Type: families.Dgram, Options: []families.Option{{Name: "so_rcvbuf", Value: "4k"}}})
	require.NoError(t, to.Bind(familytest.MustAddr(t, inet.Family, families.Dgram, "127.0.0.1:0")))
	from := open(t, families.Dgram)
	const sent = 200
	for range sent {
		_, err := from.Send(&families.Msg{Data: make([]byte, 500), Peer: to.Info().Local.Sockaddr()})
		require.NoError(t, err)
	}
	received := 0
	m := families.Msg{Data: make([]byte, 1000)}
	for to.Recv(&m) == nil {
		received++
	}
	d, err := families.As[families.Dropper](to)
	require.NoError(t, err)
	require.Equal(t, uint64(sent-received), d.Drops(), "sent = received + dropped")
	require.NotZero(t, d.Drops())
	require.NoError(t, to.Close())
	require.Equal(t, uint64(sent-received), d.Drops(), "the count outlives the socket")
}

func TestResolveFindsLiteralsHostsAndServices(t *testing.T) {
	r := inet.Family.(families.Resolver)
	for typ, text := range map[families.Type]string{families.Dgram: "localhost:domain", families.Raw: "localhost"} {
		got, err := r.Resolve(t.Context(), typ, text)
		require.NoError(t, err, text)
		require.Equal(t, map[families.Type]string{families.Dgram: "127.0.0.1:53", families.Raw: "127.0.0.1"}[typ], got[0].String())
	}
	for text, want := range map[string]string{"10.0.0.1:80": "10.0.0.1:80", "localhost:80": "127.0.0.1:80", "localhost:http": "127.0.0.1:80", "10.0.0.1:https": "10.0.0.1:443", ":http": "0.0.0.0:80"} {
		got, err := r.Resolve(t.Context(), families.Stream, text)
		require.NoError(t, err, text)
		require.Equal(t, want, got[0].String())
	}
	for _, text := range []string{"80", "[::1]:80", "local host:80", "localhost:no-such-service", "10.0.0.256:80"} {
		_, err := r.Resolve(t.Context(), families.Stream, text)
		require.ErrorIs(t, err, families.ErrSyntax, text)
	}
}

func TestMulticastIsReceivedAfterJoin(t *testing.T) {
	familytest.NoLeaks(t)
	ns := familytest.NewNS(t)
	f := ns.Family(inet.Family)
	out, err := ns.Command("ip", "link", "set", "lo", "multicast", "on").CombinedOutput()
	require.NoError(t, err, string(out))
	out, err = ns.Command("ip", "route", "add", "224.0.0.0/4", "dev", "lo").CombinedOutput()
	require.NoError(t, err, string(out))
	to := familytest.MustOpen(t, f, families.Spec{Type: families.Dgram, Options: []families.Option{{Name: "join", Value: "239.1.2.3%1"}}})
	require.NoError(t, to.Bind(familytest.MustAddr(t, f, families.Dgram, "239.1.2.3:7000")))
	from := familytest.MustOpen(t, f, families.Spec{Type: families.Dgram})
	_, err = from.Send(&families.Msg{Data: []byte("all"), Peer: to.Info().Local.Sockaddr()})
	require.NoError(t, err)
	m := families.Msg{Data: make([]byte, 10)}
	require.NoError(t, families.RecvWait(t.Context(), to, &m))
	require.Equal(t, "all", string(m.Data))
}

func BenchmarkFamily(b *testing.B) {
	at := func(typ families.Type) func(testing.TB) families.Addr {
		return func(tb testing.TB) families.Addr { return familytest.MustAddr(tb, inet.Family, typ, "127.0.0.1:0") }
	}
	familytest.Bench(b, inet.Family, familytest.Config{Cases: []familytest.Case{
		{Spec: families.Spec{Type: families.Stream}, Addr: at(families.Stream), Listener: true},
		{Spec: families.Spec{Type: families.Dgram}, Addr: at(families.Dgram)},
	}})
}

func TestScopeIsHostAndPort(t *testing.T) {
	s := familytest.MustAddr(t, inet.Family, families.Stream, "10.0.0.1:80").Scope()
	require.Equal(t, "10.0.0.1/32", s.Prefix.String())
	require.Equal(t, uint16(80), s.Port)
}
