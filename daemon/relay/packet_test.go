package relay

import (
	"context"
	"encoding/binary"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/all"
	"github.com/sockd/sockd/families/familytest"
	"github.com/sockd/sockd/families/ksock"
	"github.com/sockd/sockd/families/model"
	"github.com/sockd/sockd/families/packet"
	"github.com/stretchr/testify/require"
)

// street is two hosts with nothing between them but the relay's two interfaces.
//
//	host a: eth 10.9.0.1 ──── ra   (relay)   rb ──── eth 10.9.0.2 :host b
type street struct {
	*world
	a, b, relay *familytest.NS
}

func newStreet(t *testing.T) *street {
	t.Helper()
	s := &street{a: familytest.NewNS(t), b: familytest.NewNS(t), relay: familytest.NewNS(t)}
	familytest.Veth(t, s.a, "eth", "10.9.0.1/24", s.relay, "ra", "")
	familytest.Veth(t, s.b, "eth", "10.9.0.2/24", s.relay, "rb", "")
	for host, cidr := range map[*familytest.NS]string{s.a: "fd09::1/64", s.b: "fd09::2/64"} {
		out, err := host.Command("ip", "addr", "add", cidr, "dev", "eth", "nodad").CombinedOutput()
		require.NoError(t, err, string(out))
	}
	set := all.Set()
	for i, f := range set {
		if f == packet.Family {
			set[i] = s.relay.Family(f)
		}
	}
	s.world = newWorldOf(t, set)
	return s
}

// mustCarryTCP moves bytes between the hosts, both ways at once.
func (s *street) mustCarryTCP(t *testing.T, address string, n int64) {
	t.Helper()
	var l net.Listener
	var err error
	s.b.Do(func() { l, err = net.Listen("tcp", address) })
	require.NoError(t, err)
	served := make(chan struct{})
	go func() {
		defer close(served)
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		echo(c)
	}()
	var c net.Conn
	s.a.Do(func() { c, err = net.DialTimeout("tcp", l.Addr().String(), 20*time.Second) })
	require.NoError(t, err)
	require.NoError(t, c.SetDeadline(time.Now().Add(30*time.Second)))
	mustEcho(t, c, n)
	require.NoError(t, c.Close())
	require.NoError(t, l.Close())
	<-served
}

// The hosts have the offloads that interfaces come with: frames of 64 KiB with
// checksums that nobody has computed.
func TestTCPBetweenHostsBehindAPacketRelay(t *testing.T) {
	s := newStreet(t)
	r := s.mustAdd(spec(t, "packet:ra", "packet:rb"))
	require.Equal(t, "listening", r.State)
	s.mustCarryTCP(t, "10.9.0.2:0", 16<<20)
	s.mustCarryTCP(t, "[fd09::2]:0", 4<<20)
	got := s.mustRelay(r.ID)
	require.Greater(t, got.RxBytes, int64(20<<20))
	require.Greater(t, got.TxBytes, int64(20<<20))
}

// As messages, frames are as they would be on a wire: the receiving host checks
// each checksum, and takes no frame above its MTU.
func TestTCPBetweenHostsWhoseFramesPassAsMessages(t *testing.T) {
	for _, middle := range []string{"unixpacket", "unixgram", "udp"} {
		t.Run(middle, func(t *testing.T) {
			s := newStreet(t)
			address := s.path("wire")
			if middle == "udp" {
				address = "127.0.0.1:0"
			}
			second := s.mustAdd(spec(t, middle+":"+address, "packet:rb"))
			first := s.mustAdd(spec(t, "packet:ra", second.Local[0]))
			s.mustCarryTCP(t, "10.9.0.2:0", 2<<20)
			s.mustCarryTCP(t, "[fd09::2]:0", 1<<20)
			for _, id := range []model.ID{first.ID, second.ID} {
				require.Zero(t, s.mustRelay(id).Drops["invalid"])
				require.Zero(t, s.mustRelay(id).Drops["too_big"])
			}
		})
	}
}

func TestFramesAsMessagesHaveTheirChecksums(t *testing.T) {
	s := newStreet(t)
	m := &meeting{world: s.world, frames: true}
	to := m.backend(mustEndpoint(t, "unixgram:"+s.path("b")))
	m.relay = s.mustAdd(spec(t, "packet:ra", to.String()))
	out, err := s.a.Command("ip", "neigh", "add", "10.9.0.2", "lladdr", "02:00:00:00:00:09", "dev", "eth").CombinedOutput()
	require.NoError(t, err, string(out))
	var c net.Conn
	s.a.Do(func() { c, err = net.Dial("udp", "10.9.0.2:9999") })
	require.NoError(t, err)
	defer c.Close()
	for _, text := range []string{"a", "even", "odd"} {
		_, err = c.Write([]byte(text))
		require.NoError(t, err)
		f := m.mustUDPFrame(t)
		requireChecksums(t, f, 14, 34, false, 17)
		require.NotZero(t, binary.BigEndian.Uint16(f[40:]), "the checksum is there")
		require.Equal(t, text, string(f[42:]))
	}
}

// mustUDPFrame is the next frame at the backend that is UDP over IPv4.
func (m *meeting) mustUDPFrame(t *testing.T) []byte {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	for {
		msg := families.Msg{Data: make([]byte, 65536)}
		require.NoError(t, families.RecvWait(ctx, m.far, &msg))
		if f := msg.Data; len(f) > 42 && f[12] == 8 && f[13] == 0 && f[23] == 17 {
			return f
		}
	}
}

func (s *street) mustIP(t *testing.T, words ...string) {
	t.Helper()
	out, err := s.relay.Command("ip", words...).CombinedOutput()
	require.NoError(t, err, string(out))
}

// A packet relay used to vanish with its interface, with no line in the log: it waits
// and goes on when there is an interface of that name again.
func TestAPacketRelayWaitsForAnInterfaceThatWasDeleted(t *testing.T) {
	for _, tt := range []struct {
		iface, address string
		of             func(*street) *familytest.NS
	}{
		{"ra", "10.9.0.1/24", func(s *street) *familytest.NS { return s.a }},
		{"rb", "10.9.0.2/24", func(s *street) *familytest.NS { return s.b }},
	} {
		t.Run(tt.iface, func(t *testing.T) {
			s := newStreet(t)
			wire := spec(t, "packet:ra", "packet:rb")
			wire.Name = "wire"
			r := s.mustAdd(wire)
			s.mustCarryTCP(t, "10.9.0.2:0", 1000)
			s.mustIP(t, "link", "del", tt.iface)
			familytest.Eventually(t, "it does not wait", func() bool { return s.mustRelay(r.ID).State == "waiting" })
			require.Contains(t, s.mustRelay(r.ID).Cause, "no such device")
			s.host.mustEvent(t, "session", "closed", 0)
			id, found := s.eng.Lookup("wire")
			require.True(t, found)
			require.Equal(t, r.ID, id)

			familytest.Veth(t, tt.of(s), "eth", tt.address, s.relay, tt.iface, "")
			familytest.Eventually(t, "it does not come back", func() bool { return s.mustRelay(r.ID).State == "listening" })
			for _, ns := range []*familytest.NS{s.a, s.b} { // the new host's hardware address is another one
				out, err := ns.Command("ip", "neigh", "flush", "dev", "eth").CombinedOutput()
				require.NoError(t, err, string(out))
			}
			s.mustCarryTCP(t, "10.9.0.2:0", 1000)
			// It is looked at now and then, and may have been seen before it was up.
			familytest.Eventually(t, "the cause stays", func() bool { return s.mustRelay(r.ID).Cause == "" })
			require.GreaterOrEqual(t, s.mustRelay(r.ID).Total, int64(2))
			require.NoError(t, s.eng.Remove(r.ID, 0))
			s.host.mustEvent(t, "relay", "removed", r.ID)
		})
	}
}

// Nothing was to be seen of an interface that is down.
func TestAnInterfaceThatIsDownIsTheCause(t *testing.T) {
	for _, iface := range []string{"ra", "rb"} {
		t.Run(iface, func(t *testing.T) {
			s := newStreet(t)
			r := s.mustAdd(spec(t, "packet:ra", "packet:rb"))
			s.mustIP(t, "link", "set", iface, "down")
			familytest.Eventually(t, "nobody says so", func() bool { return s.mustRelay(r.ID).Cause == "interface "+iface+" is down" })
			require.Equal(t, "listening", s.mustRelay(r.ID).State)
			s.mustIP(t, "link", "set", iface, "up")
			familytest.Eventually(t, "it is up", func() bool { return s.mustRelay(r.ID).Cause == "" })
			s.mustCarryTCP(t, "10.9.0.2:0", 1000)
			require.EqualValues(t, 1, s.mustRelay(r.ID).Total, "down is not gone")

			// Deleted while it is down: the kernel tells of that no more.
			s.mustIP(t, "link", "set", iface, "down")
			familytest.Eventually(t, "nobody says so", func() bool { return s.mustRelay(r.ID).Cause != "" })
			s.mustIP(t, "link", "del", iface)
			familytest.Eventually(t, "it does not wait", func() bool { return s.mustRelay(r.ID).State == "waiting" })
		})
	}
}

// An interface as TO of a relay with many sessions: they end, and the relay says why
// there are none.
func TestARelayToAnInterfaceThatWasDeletedSaysSo(t *testing.T) {
	s := newStreet(t)
	m := &meeting{world: s.world}
	m.relay = s.mustAdd(spec(t, "unixgram:"+s.path("front"), "packet:rb"))
	m.near = m.boundClient("near")
	frame := append([]byte("\x02\x00\x00\x00\x00\x01\x02\x00\x00\x00\x00\x02\x88\xb5"), make([]byte, 46)...)
	m.say(m.near, families.Name{}, frame)
	familytest.Eventually(t, "there is no session", func() bool { return s.mustRelay(m.relay.ID).RxBytes > 0 })
	s.mustIP(t, "link", "del", "rb")
	m.say(m.near, families.Name{}, frame)
	familytest.Eventually(t, "it does not say so", func() bool { return strings.Contains(s.mustRelay(m.relay.ID).Cause, "no such device") })
	require.Equal(t, "listening", s.mustRelay(m.relay.ID).State)
}

func TestAPacketRelayWaitsForItsBackend(t *testing.T) {
	s := newStreet(t)
	r := s.mustAdd(spec(t, "packet:ra", "unixpacket:"+s.path("later")))
	familytest.Eventually(t, "it does not wait", func() bool { return s.mustRelay(r.ID).State == "waiting" })
	require.Contains(t, s.mustRelay(r.ID).Cause, "no such file")
	m := &meeting{world: s.world}
	m.backend(mustEndpoint(t, "unixpacket:"+s.path("later")))
	m.meetFar()
	familytest.Eventually(t, "it does not run", func() bool { return s.mustRelay(r.ID).State == "listening" })
	_, err := s.eng.Add(t.Context(), spec(t, "packet:ra", "packet:nonesuch"))
	require.ErrorContains(t, err, "no such device")
}

// The kernel takes VLAN tags out of frames before a packet socket sees them.
func TestVLANTagsStay(t *testing.T) {
	for _, to := range []string{"packet", "unixgram"} {
		t.Run(to, func(t *testing.T) {
			n := newWires(t)
			m := &meeting{world: newWorldOf(t, n.set()), wires: n, frames: true}
			m.endpointOf(party{word: "packet"}, sideFrom)
			b := m.endpointOf(party{word: to}, sideTo)
			m.relay = m.mustAdd(model.RelaySpec{From: mustEndpoint(t, "packet:ra"), To: []families.Endpoint{b}, FromFD: model.NoFD})
			tagged := []byte("\x02\x00\x00\x00\x00\x01\x02\x00\x00\x00\x00\x02\x81\x00\x60\x05\x88\xb5payload")
			reader := m.far
			if to == "packet" {
				// The far party would lose the tag as well: it looks with a reader of its own.
				all := m.open(n.ns.Family(packet.Family), families.Spec{Type: families.Raw, Options: []families.Option{{Name: "packet_ignore_outgoing"}}})
				require.NoError(t, all.Bind(m.addr(packet.Family, families.Raw, "rbfar")))
				frames, err := ksock.NewFrameReader(all)
				require.NoError(t, err)
				m.say(m.near, families.Name{}, tagged)
				require.Equal(t, ksock.Frame{Len: len(tagged) - 4, TPID: 0x8100, TCI: 0x6005, Tagged: true}, mustTagged(t, all, frames))
				return
			}
			m.say(m.near, families.Name{}, tagged)
			ctx, cancel := context.WithTimeout(t.Context(), deadline)
			defer cancel()
			for {
				msg := families.Msg{Data: make([]byte, 2000)}
				require.NoError(t, families.RecvWait(ctx, reader, &msg))
				if msg.Data[12] == 0x81 {
					require.Equal(t, string(tagged), string(msg.Data))
					break
				}
			}
		})
	}
}

func mustTagged(t *testing.T, s families.Socket, r *ksock.FrameReader) ksock.Frame {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	for {
		f, err := r.Recv(make([]byte, 2000))
		if err == nil && f.Tagged {
			return f
		}
		if err != nil {
			require.ErrorIs(t, err, families.ErrAgain)
			require.NoError(t, s.Wait(ctx, families.Readable))
		}
	}
}
