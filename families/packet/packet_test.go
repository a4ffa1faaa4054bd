package packet_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/familytest"
	"github.com/sockd/sockd/families/packet"
	"github.com/stretchr/testify/require"
)

var good = []string{`eth\,0`, `a\\b/ip`, `\xff\xfe`, "eth0", "any", "eth0/ip", "eth0/ip6", "eth0/arp", "any/all", "eth0/ipx", "eth0/vlan", "eth0/loop", "eth0/0x88b5", "eth0/802.3", "eth0/ip/02:00:00:00:00:01", "eth0.100@x/0x0005/01:02", "#7/ip", "a23456789012345"}

var bad = []string{"", `eth\0`, `eth0\x2fip`, "/ip", "eth0/", "eth0/nonsense", "eth0/0", "eth0/0x10000", "eth0/ip/", "eth0/ip/0:1", "eth0/ip/02:00:00:00:00:01/x", "eth 0", "eth0:1", "a234567890123456", ".", "..", "#0", "#x", "#07",
	"eth0/ip/" + strings.TrimSuffix(strings.Repeat("01:", 21), ":")}

func TestFamilyKeepsTheLaws(t *testing.T) {
	ns := familytest.NewNS(t)
	f := ns.Family(packet.Family)
	// On a loopback cooked packets need no hardware address. Each socket has an
	// EtherType of its own, from those that nobody uses.
	var turn atomic.Int64
	addr := func(tb testing.TB) families.Addr {
		return familytest.MustAddr(tb, f, families.Dgram, fmt.Sprintf("lo/0x%04x", 0x9100+turn.Add(1)))
	}
	largest := func(testing.TB, families.Socket) int { return 65536 } // the loopback's MTU
	familytest.Run(t, f, familytest.Config{
		Addrs: map[families.Type][]string{families.Raw: good, families.Dgram: good},
		Bad:   map[families.Type][]string{families.Raw: bad, families.Dgram: bad},
		Cases: []familytest.Case{
			{Spec: families.Spec{Type: families.Dgram}, Addr: addr, Max: largest, Min: 1, Dropper: true, Optioner: true, PeerUnknown: true},
		},
	})
	familytest.Run(t, framed{f.(adopter)}, familytest.Config{
		Cases: []familytest.Case{
			{Spec: families.Spec{Type: families.Raw}, Addr: addr, Max: largest, Header: header, Dropper: true, Optioner: true},
		},
	})
}

// header is the length of an Ethernet header.
const header = 14

type adopter interface {
	families.Family
	families.Adopter
}

// framed is the family with raw sockets that put an Ethernet header before what is
// sent, so that its messages can be of any length.
type framed struct{ adopter }

func (f framed) Open(ctx context.Context, spec families.Spec) (families.Socket, error) {
	s, err := f.adopter.Open(ctx, spec)
	if err != nil {
		return nil, err
	}
	return &framedSocket{Socket: s}, nil
}

type framedSocket struct {
	families.Socket
	etherType uint16
}

func (s *framedSocket) Unwrap() families.Socket { return s.Socket }

func (s *framedSocket) Connect(ctx context.Context, a families.Addr) error {
	s.etherType = a.(packet.Addr).EtherType
	return s.Socket.Connect(ctx, a)
}

func (s *framedSocket) Send(m *families.Msg) (int, error) {
	out := *m
	out.Data = append(binary.BigEndian.AppendUint16(make([]byte, header-2), s.etherType), m.Data...)
	n, err := s.Socket.Send(&out)
	return max(n-header, 0), err
}

func FuzzAddr(f *testing.F) { familytest.FuzzAddr(f, packet.Family, append(good, bad...)...) }

// veth is two interfaces, v0 in a and v1 in b, with known hardware addresses.
func veth(t *testing.T) (a, b *familytest.NS) {
	t.Helper()
	a, b = familytest.NewNS(t), familytest.NewNS(t)
	familytest.Veth(t, a, "v0", "", b, "v1", "")
	require.NoError(t, a.Command("ip", "link", "set", "v0", "address", "02:00:00:00:00:01").Run())
	require.NoError(t, b.Command("ip", "link", "set", "v1", "address", "02:00:00:00:00:02").Run())
	return a, b
}

func mustBind(t *testing.T, ns *familytest.NS, addr string, spec families.Spec) families.Socket {
	t.Helper()
	f := ns.Family(packet.Family)
	s := familytest.MustOpen(t, f, spec)
	require.NoError(t, s.Bind(familytest.MustAddr(t, f, spec.Type, addr)))
	return s
}

func send(t *testing.T, s families.Socket, data string, to families.Addr) {
	t.Helper()
	m := families.Msg{Data: []byte(data)}
	if to != nil {
		m.Peer = to.Sockaddr()
	}
	_, err := families.SendAll(t.Context(), s, &m)
	require.NoError(t, err)
}

func recv(t *testing.T, s families.Socket) families.Msg {
	t.Helper()
	m := families.Msg{Data: make([]byte, 2000)}
	require.NoError(t, families.RecvWait(t.Context(), s, &m))
	return m
}

var (
	raw    = families.Spec{Type: families.Raw}
	cooked = families.Spec{Type: families.Dgram}
)

const toOther = "\x02\x00\x00\x00\x00\x09\x02\x00\x00\x00\x00\x01\x88\xb5hello, this frame is for somebody else, not for you"

const toB = "\x02\x00\x00\x00\x00\x02\x02\x00\x00\x00\x00\x01\x88\xb5hello, this frame is for you and for nobody else at all"

func TestTwoEndsOfAVethTalk(t *testing.T) {
	a, b := veth(t)
	t.Run("raw, with the sender by name, type and hardware address", func(t *testing.T) {
		x, y := mustBind(t, a, "v0/0x88b5", raw), mustBind(t, b, "v1/0x88b5", raw)
		send(t, x, toB, nil)
		m := recv(t, y)
		require.Equal(t, toB, string(m.Data))
		require.Equal(t, "v1/0x88b5/02:00:00:00:00:01", y.NameAddr(m.Peer).String())
		require.Zero(t, m.Flags)
		require.Equal(t, "v1/0x88b5", y.Info().Local.String())
		require.Equal(t, "0x88b5", y.Info().Proto)
	})
	t.Run("cooked, answering whoever sent", func(t *testing.T) {
		x, y := mustBind(t, a, "v0/0x88b5", cooked), mustBind(t, b, "v1/0x88b5", cooked)
		f := a.Family(packet.Family)
		require.NoError(t, x.Connect(t.Context(), familytest.MustAddr(t, f, families.Dgram, "v0/0x88b5/02:00:00:00:00:02")))
		require.Equal(t, families.Connected, x.Info().State)
		require.Equal(t, "v0/0x88b5/02:00:00:00:00:02", x.Info().Peer.String())
		send(t, x, strings.Repeat("q", 60), nil)
		m := recv(t, y)
		require.Equal(t, strings.Repeat("q", 60), string(m.Data))
		_, err := families.SendAll(t.Context(), y, &families.Msg{Data: []byte(strings.Repeat("a", 60)), Peer: m.Peer})
		require.NoError(t, err)
		require.Equal(t, strings.Repeat("a", 60), string(recv(t, x).Data))
	})
	t.Run("by any", func(t *testing.T) {
		x, y := mustBind(t, a, "v0/0x88b5", raw), mustBind(t, b, "any/0x88b5", raw)
		send(t, x, toB, nil)
		require.Equal(t, "v1/0x88b5/02:00:00:00:00:01", y.NameAddr(recv(t, y).Peer).String())
		require.Equal(t, "any/0x88b5", y.Info().Local.String())
	})
}

func TestNothingIsReceivedBeforeBind(t *testing.T) {
	a, b := veth(t)
	f := b.Family(packet.Family)
	x := mustBind(t, a, "v0/0x88b5", raw)
	y := familytest.MustOpen(t, f, families.Spec{Type: families.Raw, Protocol: 0x88b5})
	send(t, x, toB, nil)
	require.ErrorIs(t, y.Recv(&families.Msg{Data: make([]byte, 100)}), families.ErrAgain)
	require.NoError(t, y.Bind(familytest.MustAddr(t, f, families.Raw, "v1")))
	require.Equal(t, "v1/0x88b5", y.Info().Local.String(), "the protocol it was opened with")
	require.ErrorIs(t, y.Recv(&families.Msg{Data: make([]byte, 100)}), families.ErrAgain)
	send(t, x, toB, nil)
	require.Equal(t, toB, string(recv(t, y).Data))
}

// What an endpoint opens is promiscuous and takes nothing that goes out; what is
// opened by family and type is as the kernel makes it.
func TestPromiscuousAndOutgoing(t *testing.T) {
	_, b := veth(t)
	promiscuity := func() string {
		out, err := b.Command("ip", "-d", "link", "show", "v1").Output()
		require.NoError(t, err)
		_, rest, _ := strings.Cut(string(out), "promiscuity ")
		return strings.Fields(rest)[0]
	}
	for _, tt := range []struct {
		endpoint string // "" is open and bind
		promisc  string
		outgoing bool
		typ      families.Type
	}{
		{"", "0", true, families.Raw},
		{"packet:v1", "1", false, families.Raw},
		{"packet:v1,nopromisc", "0", false, families.Raw},
		{"packet:v1,outgoing", "1", true, families.Raw},
		{"packet:v1,outgoing=no,promisc=off", "0", false, families.Raw},
		{"packet:v1,cooked", "1", false, families.Dgram},
	} {
		t.Run(tt.endpoint, func(t *testing.T) {
			f := b.Family(packet.Family)
			spec, addr := raw, familytest.MustAddr(t, f, families.Raw, "v1")
			if tt.endpoint != "" {
				e, err := families.ParseEndpoint(tt.endpoint)
				require.NoError(t, err)
				targets, err := families.Set{f}.Resolve(t.Context(), e)
				require.NoError(t, err)
				require.Len(t, targets, 1)
				spec, addr = targets[0].Spec, targets[0].Addr
			}
			s := familytest.MustOpen(t, f, spec)
			require.NoError(t, s.Bind(addr))
			require.Equal(t, tt.typ, s.Info().Type)
			require.Equal(t, tt.promisc, promiscuity())

			send(t, mustBind(t, b, "v1/0x88b6", raw), toOther, nil)
			m := families.Msg{Data: make([]byte, 2000)}
			for {
				err := s.Recv(&m)
				if err != nil || m.Flags&families.FlagOutgoing != 0 && strings.Contains(string(m.Data), "hello") {
					require.Equal(t, tt.outgoing, err == nil, "%v", err)
					break
				}
			}
		})
	}
	require.Equal(t, "0", promiscuity(), "all are closed")
}

func TestOptions(t *testing.T) {
	a, b := veth(t)
	x, y := mustBind(t, a, "v0/0x88b5", raw), mustBind(t, b, "v1/0x88b5", raw)
	o, err := families.As[families.Optioner](y)
	require.NoError(t, err)

	t.Run("those that are listed can be read", func(t *testing.T) {
		require.Subset(t, o.Options(), []string{"packet_auxdata", "packet_fanout", "packet_ignore_outgoing", "packet_loss", "packet_qdisc_bypass", "packet_statistics", "packet_version", "packet_vnet_hdr", "promisc", "so_rcvbuf"})
		for _, name := range o.Options() {
			if name == "so_error" || name == "so_bindtodevice" {
				continue
			}
			_, err := o.Option(name)
			require.NoError(t, err, name)
		}
	})
	t.Run("statistics add up though reading resets them", func(t *testing.T) {
		for i := range 3 {
			got, err := o.Option("packet_statistics")
			require.NoError(t, err)
			require.Equal(t, fmt.Sprintf("%d,0", i), got)
			send(t, x, toB, nil)
			recv(t, y)
		}
	})
	t.Run("a virtio_net_hdr stands before each frame, both ways", func(t *testing.T) {
		for _, s := range []families.Socket{x, y} {
			so, err := families.As[families.Optioner](s)
			require.NoError(t, err)
			require.NoError(t, so.SetOption("packet_vnet_hdr", "on"))
		}
		send(t, x, strings.Repeat("\x00", 10)+toB, nil)
		m := recv(t, y)
		require.Equal(t, toB, string(m.Data[10:]))
		require.Equal(t, len(toB)+10, m.Full)
	})
	t.Run("what does not parse", func(t *testing.T) {
		for _, name := range []string{"promisc", "nopromisc", "outgoing", "packet_ignore_outgoing", "cooked", "packet_statistics", "no_such_option"} {
			require.ErrorIs(t, o.SetOption(name, "perhaps"), families.ErrSyntax, name)
		}
	})
}

func TestDropsAreCounted(t *testing.T) {
	a, b := veth(t)
	x, y := mustBind(t, a, "v0/0x88b5", raw), mustBind(t, b, "v1/0x88b5", raw)
	const sent = 2000
	for range sent {
		send(t, x, toB, nil)
	}
	d, err := families.As[families.Dropper](y)
	require.NoError(t, err)
	got := 0
	for {
		m := families.Msg{Data: make([]byte, 100)}
		if err := y.Recv(&m); err != nil {
			require.ErrorIs(t, err, families.ErrAgain)
			break
		}
		got++
	}
	require.NotZero(t, d.Drops())
	require.EqualValues(t, sent, uint64(got)+d.Drops())
}

func TestAnInterfaceThatIsGone(t *testing.T) {
	a, b := veth(t)
	y := mustBind(t, b, "v1/0x88b5", raw)
	x := mustBind(t, a, "v0/0x88b5", raw)
	send(t, x, toB, nil)
	m := recv(t, y)
	require.NoError(t, b.Command("ip", "link", "del", "v1").Run())
	gone := y.NameAddr(m.Peer).String()
	require.Regexp(t, `^#\d+/0x88b5/02:00:00:00:00:01$`, gone)
	require.Equal(t, y.NameAddr(m.Peer), familytest.MustAddr(t, packet.Family, families.Raw, gone))
}

func TestErrorsSayWhatWasTried(t *testing.T) {
	ns := familytest.NewNS(t)
	f := ns.Family(packet.Family)
	s := familytest.MustOpen(t, f, raw)
	err := s.Bind(familytest.MustAddr(t, f, families.Raw, "nosuch0/ip"))
	require.ErrorIs(t, err, syscall.ENODEV)
	require.EqualError(t, err, `bind packet "nosuch0/ip": no such device`)
	require.ErrorIs(t, s.Connect(t.Context(), familytest.MustAddr(t, f, families.Raw, "nosuch0")), syscall.ENODEV)
	_, err = s.Send(&families.Msg{Data: []byte(toB), Peer: familytest.MustAddr(t, f, families.Raw, "nosuch0").Sockaddr()})
	// An interface that is not there was ENXIO on "#-1", which nobody had typed.
	require.ErrorIs(t, err, syscall.ENODEV)

	for _, text := range []string{"nonsense", "0", "0x10000", "-1"} {
		_, err = f.ParseProtocol(families.Raw, text)
		require.ErrorIs(t, err, families.ErrSyntax, text)
		// It said "is no EtherType", of nothing.
		require.ErrorContains(t, err, `"`+text+`" is no EtherType`)
	}
	p, err := f.ParseProtocol(families.Raw, "arp")
	require.NoError(t, err)
	require.Equal(t, 0x0806, p)
}
