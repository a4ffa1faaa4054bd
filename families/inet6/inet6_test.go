package inet6_test

import (
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/familytest"
	"github.com/sockd/sockd/families/inet"
	"github.com/sockd/sockd/families/inet6"
	"github.com/stretchr/testify/require"
)

// A protocol number for experiments (RFC 3692), so that nobody else speaks it.
const experiment = 253

func TestFamilyKeepsTheLaws(t *testing.T) {
	ns := familytest.NewNS(t)
	ends := []string{"fd00::2", "fd00::3"}
	for _, a := range ends {
		out, err := ns.Command("ip", "addr", "add", a+"/128", "dev", "lo", "nodad").CombinedOutput()
		require.NoError(t, err, string(out))
	}
	f := ns.Family(inet6.Family)
	stream := families.Spec{Type: families.Stream}
	at := func(typ families.Type, text string) func(testing.TB) families.Addr {
		return func(tb testing.TB) families.Addr { return familytest.MustAddr(tb, f, typ, text) }
	}
	var turn atomic.Int64
	familytest.Run(t, f, familytest.Config{
		Addrs: map[families.Type][]string{
			families.Stream: {"[::1]:80", "[::]:0", "[fe80::1%lo]:80", "[fe80::1%7]:80", "[fe80::1%no-such-iface]:1", "[::ffff:10.0.0.1]:80"},
			families.Dgram:  {"[2001:db8::1]:53", "[ff02::1%lo]:5353"},
			families.Raw:    {"::1", "fe80::1%lo", "::"},
		},
		Bad: map[families.Type][]string{
			families.Stream: {"", "80", "::1", "[::1]", "[::1]:", "[::1]:x", "[::1]:65536", "::1:80", "127.0.0.1:80", "[127.0.0.1]:80", "[::1]x:80", "host:80",
				"[fe80::1%]:80", "[fe80::1%a/b]:80", "[fe80::1%sixteen-letters-]:80", "[fe80::1%a b]:80"},
			families.Dgram: {"", "[::1]", "127.0.0.1:53"},
			families.Raw:   {"", "[::1]", "[::1]:80", "10.0.0.1", "host"},
		},
		Cases: []familytest.Case{
			{
				Spec: stream, Addr: at(families.Stream, "[::1]:0"),
				Deaf: func(tb testing.TB) families.Addr {
					return familytest.Deaf(tb, f, stream, at(families.Stream, "[::1]:0")(tb))
				},
				Listener: true, HalfCloser: true, Resetter: true, Optioner: true,
			},
			{
				Spec: families.Spec{Type: families.Dgram}, Addr: at(families.Dgram, "[::1]:0"),
				Max:     func(testing.TB, families.Socket) int { return 65527 },
				Dropper: true, Optioner: true,
			},
			{
				Spec:    families.Spec{Type: families.Raw, Protocol: experiment},
				Addr:    func(tb testing.TB) families.Addr { return at(families.Raw, ends[turn.Add(1)%2])(tb) },
				Max:     func(testing.TB, families.Socket) int { return 65535 },
				Dropper: true, Optioner: true,
			},
		},
	})
}

func FuzzAddr(f *testing.F) {
	familytest.FuzzAddr(f, inet6.Family, "[::1]:80", ":80", "80", "", "::1", "[fe80::1%eth0]:80", "[::1%]:80", "[::1%a%b]:80", "[::ffff:1.2.3.4%x]:1", "127.0.0.1:80", "[]:80", "[::1]]:80")
}

func TestAllAddressesMayBeLeftOut(t *testing.T) {
	require.Equal(t, "[::]:80", familytest.MustAddr(t, inet6.Family, families.Stream, ":80").String())
}

// network is the options that a network word brings.
func network(t *testing.T, word string) families.Spec {
	for _, n := range inet6.Family.Networks() {
		if n.Name == word {
			return families.Spec{Type: n.Type, Options: n.Options}
		}
	}
	t.Fatalf("no network %s", word)
	return families.Spec{}
}

func TestTCPIsForBothAndTCP6IsAlone(t *testing.T) {
	familytest.NoLeaks(t)
	ns := familytest.NewNS(t)
	six, four := ns.Family(inet6.Family), ns.Family(inet.Family)
	for word, both := range map[string]bool{"tcp": true, "tcp6": false} {
		t.Run(word, func(t *testing.T) {
			l := familytest.MustOpen(t, six, network(t, word))
			require.NoError(t, l.Bind(familytest.MustAddr(t, six, families.Stream, "[::]:7000")))
			require.NoError(t, l.(families.Listener).Listen(0))
			c := familytest.MustOpen(t, four, families.Spec{Type: families.Stream})
			err := c.Connect(t.Context(), familytest.MustAddr(t, four, families.Stream, "127.0.0.1:7000"))
			if !both {
				require.ErrorIs(t, err, syscall.ECONNREFUSED)
				return
			}
			require.NoError(t, err)
			p, err := families.AcceptWait(t.Context(), l)
			require.NoError(t, err)
			defer p.Close()
			require.Equal(t, "127.0.0.1/32", p.Info().Peer.Scope().Prefix.String(), "rules mean the IPv4 host")
		})
	}
}

func TestALinkLocalPeerHasItsZone(t *testing.T) {
	familytest.NoLeaks(t)
	a, b := familytest.NewNS(t), familytest.NewNS(t)
	familytest.Veth(t, a, "left", "fe80::a1/64", b, "right", "fe80::b1/64")
	var to, from families.Socket
	b.Do(func() {
		to = familytest.MustOpen(t, inet6.Family, families.Spec{Type: families.Dgram})
		require.NoError(t, to.Bind(familytest.MustAddr(t, inet6.Family, families.Dgram, "[fe80::b1%right]:7000")))
		require.Equal(t, "[fe80::b1%right]:7000", to.Info().Local.String())
	})
	a.Do(func() {
		from = familytest.MustOpen(t, inet6.Family, families.Spec{Type: families.Dgram})
		require.NoError(t, from.Connect(t.Context(), familytest.MustAddr(t, inet6.Family, families.Dgram, "[fe80::b1%left]:7000")))
	})
	_, err := from.Send(&families.Msg{Data: []byte("near")})
	require.NoError(t, err)
	m := families.Msg{Data: make([]byte, 10)}
	require.NoError(t, families.RecvWait(t.Context(), to, &m))
	b.Do(func() { require.Equal(t, "right", to.NameAddr(m.Peer).Scope().Interface) })
}

func TestAZoneThatIsNotThereIsRefused(t *testing.T) {
	s := familytest.MustOpen(t, inet6.Family, families.Spec{Type: families.Dgram})
	require.ErrorIs(t, s.Bind(familytest.MustAddr(t, inet6.Family, families.Dgram, "[fe80::1%no-such-iface]:0")), syscall.ENODEV)
}

// Which names a host has is the machine's affair; literals and services are not.
func TestResolveReadsServices(t *testing.T) {
	r := inet6.Family.(families.Resolver)
	for text, want := range map[string]string{"[::1]:80": "[::1]:80", "[fe80::1%lo]:80": "[fe80::1%lo]:80", "[::1]:http": "[::1]:80", ":http": "[::]:80"} {
		got, err := r.Resolve(t.Context(), families.Stream, text)
		require.NoError(t, err, text)
		require.Equal(t, want, got[0].String())
	}
	got, err := r.Resolve(t.Context(), families.Dgram, "[::1]:domain")
	require.NoError(t, err)
	require.Equal(t, "::1/128", got[0].Scope().Prefix.String())
	for _, text := range []string{"127.0.0.1:80", "127.0.0.1:http", "::1:http", "[::1:http", "[fe80::1%lo]:http", "[::1]:no-such-service"} {
		_, err := r.Resolve(t.Context(), families.Stream, text)
		require.ErrorIs(t, err, families.ErrSyntax, text)
	}
}
