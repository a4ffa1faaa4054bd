package relay

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/all"
	"github.com/sockd/sockd/families/familytest"
	"github.com/sockd/sockd/families/model"
	"github.com/sockd/sockd/families/packet"
	"github.com/stretchr/testify/require"
)

// TestEveryPairWorksOrSaysWhyNot is the matrix of all pairs of networks, and of
// open sockets of each kind: a pair carries messages both ways, or is refused
// with exactly one line.
func TestEveryPairWorksOrSaysWhyNot(t *testing.T) {
	n := newWires(t)
	for _, from := range ends {
		for _, to := range ends {
			t.Run(from.word+" to "+to.word, func(t *testing.T) {
				w := newWorldOf(t, n.set())
				m := &meeting{world: w, wires: n}
				f := m.endpointOf(from, sideFrom)
				b := m.endpointOf(to, sideTo)
				why := reason(from, to)
				if why != "" {
					m.requireRefused(f, b, why)
					return
				}
				m.requireTalk(from, to, f, b)
			})
		}
	}
}

// party is what stands at one side of a relay.
type party struct {
	word  string // a network, or what kind of id:
	class string
}

var ends = []party{
	{"tcp", "stream"}, {"tcp4", "stream"}, {"tcp6", "stream"}, {"unix", "stream"},
	{"udp", "messages"}, {"udp4", "messages"}, {"udp6", "messages"}, {"unixgram", "messages"}, {"unixpacket", "messages"},
	{"packet", "frames"},
	{"ip4", "raw"}, {"ip6", "raw"},
	{"id of a stream", "stream"}, {"id of a seqpacket", "messages"}, {"id of a dgram", "messages"}, {"id of a packet", "frames"},
	{"id that listens", "listening"}, {"id that is bound", "bound"}, {"id of a raw", "raw"},
}

// id numbers of the sockets in a meeting's table.
const (
	fromID = 7
	toID   = 8
)

// reason is the line that refuses a pair, or "" for one that works.
func reason(from, to party) string {
	f, t := from.said(fromID), to.said(toID)
	for _, e := range []struct {
		party
		said string
	}{{from, f}, {to, t}} {
		if from.isID() && to.class == "raw" && !to.isID() {
			e.party, e.said = to, t // what can be told before a socket is taken is told
		}
		if e.class == "raw" {
			return e.said + ": a raw IP socket has no sessions and sees every packet of its protocol; relay whole frames with packet:IFNAME"
		}
	}
	switch to.class {
	case "listening":
		return t + " is a stream socket that is listening; a TO that is open already is a connected socket"
	case "bound":
		return t + " is a dgram socket that is bound; a TO that is open already is a connected socket"
	}
	if from.streams() == to.streams() {
		return ""
	}
	stream, messages := f, t
	if to.streams() {
		stream, messages = t, f
	}
	return fmt.Sprintf("%s to %s: %s is a stream without the message borders that %s has; "+
		"give it some with framing=u16be, a length in front of each message", f, t, stream, messages)
}

func (e party) streams() bool { return e.class == "stream" || e.class == "listening" }

func (e party) isID() bool { return strings.HasPrefix(e.word, "id ") }

func (e party) said(id int) string {
	if e.isID() {
		return fmt.Sprintf("id:%d", id)
	}
	return e.word
}

// wires are the interfaces of the packet ends: the relay's, in a namespace of its
// own, and what is plugged into them.
//
//	rafar ──── ra  (relay)  rb ──── rbfar
type wires struct{ ns *familytest.NS }

func newWires(tb testing.TB) *wires {
	n := &wires{familytest.NewNS(tb)}
	familytest.Veth(tb, n.ns, "ra", "", n.ns, "rafar", "")
	familytest.Veth(tb, n.ns, "rb", "", n.ns, "rbfar", "")
	return n
}

// set is all families, with packet sockets in the wires' namespace.
func (n *wires) set() families.Set {
	set := all.Set()
	for i, f := range set {
		if f == packet.Family {
			set[i] = n.ns.Family(f)
		}
	}
	return set
}

// meeting is one pair's relay with both parties.
type meeting struct {
	*world
	wires *wires
	// near talks to FROM and far to TO, once they are there; far may have to be
	// accepted first.
	near, far families.Socket
	listener  families.Socket
	frames    bool // what is heard may be the interface's own chatter
	farPeer   families.Name
	relay     model.Relay
}

// endpointOf makes one side's address, with the socket behind it: a backend for
// TO, an open socket for id:.
func (m *meeting) endpointOf(e party, s whichSide) families.Endpoint {
	switch {
	case e.isID():
		return m.openID(e, s)
	case e.class == "raw":
		return mustEndpoint(m.tb, e.word+":icmp:"+map[string]string{"ip4": "127.0.0.1", "ip6": "::1"}[e.word])
	case e.word == "packet":
		iface := m.plug(s)
		return mustEndpoint(m.tb, "packet:"+iface)
	}
	ep := mustEndpoint(m.tb, e.word+":"+m.anyAddress(e.word, s))
	if s == sideTo {
		return m.backend(ep)
	}
	return ep
}

func (m *meeting) anyAddress(word string, s whichSide) string {
	switch word {
	case "tcp", "tcp4", "udp", "udp4":
		return "127.0.0.1:0"
	case "tcp6", "udp6":
		return "[::1]:0"
	}
	return m.path(map[whichSide]string{sideFrom: "from", sideTo: "to"}[s])
}

// plug puts a party on the far end of one of the wires.
func (m *meeting) plug(s whichSide) string {
	iface := map[whichSide]string{sideFrom: "ra", sideTo: "rb"}[s]
	f := m.wires.ns.Family(packet.Family)
	sock := m.open(f, families.Spec{Type: families.Raw, Options: []families.Option{{Name: "packet_ignore_outgoing"}}})
	require.NoError(m.tb, sock.Bind(m.addr(f, families.Raw, iface+"far/0x88b5")))
	if s == sideFrom {
		m.near = sock
	} else {
		m.far = sock
	}
	return iface
}

func (m *meeting) open(f families.Family, spec families.Spec) families.Socket {
	m.tb.Helper()
	s, err := f.Open(context.Background(), spec)
	require.NoError(m.tb, err)
	m.tb.Cleanup(func() { _ = s.Close() })
	return s
}

func (m *meeting) addr(f families.Family, t families.Type, text string) families.Addr {
	m.tb.Helper()
	a, err := f.ParseAddr(t, text)
	require.NoError(m.tb, err)
	return a
}

// target resolves an endpoint and opens its socket.
func (m *meeting) target(ep families.Endpoint) (families.Socket, families.Target) {
	m.tb.Helper()
	targets, err := m.eng.opts.Families.Resolve(context.Background(), ep)
	require.NoError(m.tb, err)
	return m.open(targets[0].Family, targets[0].Spec), targets[0]
}

// backend binds what a TO is dialled at, and gives its address.
func (m *meeting) backend(ep families.Endpoint) families.Endpoint {
	m.tb.Helper()
	s, t := m.target(ep)
	require.NoError(m.tb, s.Bind(t.Addr))
	if l, err := families.As[families.Listener](s); err == nil {
		require.NoError(m.tb, l.Listen(0))
		m.listener = s
	} else {
		m.far = s
	}
	ep.Address = s.Info().Local.String()
	return ep
}

// connected is a socket that is connected to another one.
func (m *meeting) connected(ep families.Endpoint) (a, b families.Socket) {
	m.tb.Helper()
	ctx := context.Background()
	server, t := m.target(ep)
	require.NoError(m.tb, server.Bind(t.Addr))
	client, _ := m.target(ep)
	if l, err := families.As[families.Listener](server); err == nil {
		require.NoError(m.tb, l.Listen(0))
		require.NoError(m.tb, client.Connect(ctx, server.Info().Local))
		b, err := families.AcceptWait(ctx, server)
		require.NoError(m.tb, err)
		m.tb.Cleanup(func() { _ = b.Close() })
		return client, b
	}
	require.NoError(m.tb, client.Bind(t.Addr))
	require.NoError(m.tb, client.Connect(ctx, server.Info().Local))
	require.NoError(m.tb, server.Connect(ctx, client.Info().Local))
	return client, server
}

// openID puts a socket into the daemon's table.
func (m *meeting) openID(e party, s whichSide) families.Endpoint {
	m.tb.Helper()
	var mine, theirs families.Socket
	name := map[whichSide]string{sideFrom: "idfrom", sideTo: "idto"}[s]
	switch e.word {
	case "id of a stream":
		mine, theirs = m.connected(mustEndpoint(m.tb, "tcp:127.0.0.1:0"))
	case "id of a seqpacket":
		mine, theirs = m.connected(mustEndpoint(m.tb, "unixpacket:"+m.path(name)))
	case "id of a dgram":
		mine, theirs = m.connected(mustEndpoint(m.tb, "udp:127.0.0.1:0"))
	case "id of a packet":
		iface := m.plug(s)
		f := m.wires.ns.Family(packet.Family)
		mine = m.open(f, families.Spec{Type: families.Raw, Options: []families.Option{{Name: "packet_ignore_outgoing"}, {Name: "promisc"}}})
		require.NoError(m.tb, mine.Bind(m.addr(f, families.Raw, iface)))
		theirs = map[whichSide]families.Socket{sideFrom: m.near, sideTo: m.far}[s]
	case "id that listens":
		var t families.Target
		mine, t = m.target(mustEndpoint(m.tb, "tcp:127.0.0.1:0"))
		require.NoError(m.tb, mine.Bind(t.Addr))
		l, err := families.As[families.Listener](mine)
		require.NoError(m.tb, err)
		require.NoError(m.tb, l.Listen(0))
	case "id that is bound":
		var t families.Target
		mine, t = m.target(mustEndpoint(m.tb, "unixgram:"+m.path(name)))
		require.NoError(m.tb, mine.Bind(t.Addr))
	case "id of a raw":
		mine, _ = m.target(mustEndpoint(m.tb, "ip4:icmp:127.0.0.1"))
	}
	id := map[whichSide]model.ID{sideFrom: fromID, sideTo: toID}[s]
	m.host.open[id] = mine
	if s == sideFrom {
		m.near = theirs
	} else {
		m.far = theirs
	}
	return mustEndpoint(m.tb, fmt.Sprintf("id:%d", id))
}

// requireRefused: the reason is what Check and Add say, and sockets that were
// taken are in the table again.
func (m *meeting) requireRefused(from, to families.Endpoint, why string) {
	m.tb.Helper()
	before := len(m.host.open)
	s := model.RelaySpec{From: from, To: []families.Endpoint{to}, FromFD: model.NoFD}
	_, err := m.eng.Add(context.Background(), s)
	require.EqualError(m.tb, err, why)
	require.ErrorIs(m.tb, err, families.ErrNotSupported)
	require.NotContains(m.tb, why, "\n")
	require.Len(m.tb, m.host.open, before)
	if from.Network != "id" && to.Network != "id" {
		require.EqualError(m.tb, m.eng.Check(s), why)
	}
	require.Empty(m.tb, m.eng.Relays())
}

// requireTalk carries messages both ways through the relay.
func (m *meeting) requireTalk(from, to party, f, b families.Endpoint) {
	m.tb.Helper()
	s := model.RelaySpec{From: f, To: []families.Endpoint{b}, FromFD: model.NoFD}
	require.NoError(m.tb, m.eng.Check(s))
	m.relay = m.mustAdd(s)
	if m.near == nil {
		m.near = m.client(m.relay.Local[0])
	}
	messages := [][]byte{[]byte("a"), {}, bytes.Repeat([]byte("b"), 1400), bytes.Repeat([]byte("c"), 9000), []byte("d")}
	if from.streams() {
		messages = [][]byte{[]byte("a"), bytes.Repeat([]byte("c"), 100000)}
	}
	if from.class == "frames" || to.class == "frames" {
		m.frames = true
		messages = [][]byte{ether("a"), ether(strings.Repeat("b", 1400))}
	}
	for _, msg := range messages {
		m.say(m.near, families.Name{}, msg)
		m.meetFar()
		m.hear(m.far, msg)
		m.say(m.far, m.farPeer, append(bytes.Clone(msg), "!"[:min(len(msg), 1)]...))
		m.hear(m.near, append(bytes.Clone(msg), "!"[:min(len(msg), 1)]...))
	}
	m.requireBalanced()
}

// ether is a frame of an experimental EtherType.
func ether(text string) []byte {
	return append([]byte("\x02\x00\x00\x00\x00\x01\x02\x00\x00\x00\x00\x02\x88\xb5"), text...)
}

// client is a party that talks to where a relay listens.
func (m *meeting) client(local string) families.Socket {
	m.tb.Helper()
	s, t := m.target(mustEndpoint(m.tb, local))
	if t.Network == "unixgram" {
		require.NoError(m.tb, autobind(s, t.Family))
	}
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	require.NoError(m.tb, s.Connect(ctx, t.Addr))
	return s
}

// meetFar accepts the relay's connection, once.
func (m *meeting) meetFar() {
	m.tb.Helper()
	if m.far != nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	c, err := families.AcceptWait(ctx, m.listener)
	require.NoError(m.tb, err)
	m.tb.Cleanup(func() { _ = c.Close() })
	m.far = c
}

func (m *meeting) say(s families.Socket, to families.Name, data []byte) {
	m.tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	_, err := families.SendAll(ctx, s, &families.Msg{Data: data, Peer: to})
	require.NoError(m.tb, err)
}

// hear receives what was said: one message, or that much of a stream.
func (m *meeting) hear(s families.Socket, want []byte) {
	m.tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	var got []byte
	for {
		msg := families.Msg{Data: make([]byte, messageRoom)}
		require.NoError(m.tb, families.RecvWait(ctx, s, &msg))
		got = append(got, msg.Data...)
		if s == m.far && s.Info().Peer == nil {
			m.farPeer = msg.Peer
		}
		if s.Info().Type == families.Raw {
			m.farPeer = families.Name{}
		}
		if m.frames && (len(got) < 14 || !bytes.HasPrefix(got[12:], []byte("\x88\xb5"))) {
			got = nil // the interface's own chatter
			continue
		}
		if len(got) >= len(want) || s.Info().Type != families.Stream {
			break
		}
	}
	require.Equal(m.tb, string(want), string(got))
}

// requireBalanced: all that came in went out.
func (m *meeting) requireBalanced() {
	m.tb.Helper()
	r, err := m.eng.relay(m.relay.ID)
	require.NoError(m.tb, err)
	for _, s := range r.list() {
		for _, f := range []*flow{&s.common().rx, &s.common().tx} {
			familytest.Eventually(m.tb, "something is in flight for good", func() bool { return f.inFlight() == 0 })
			require.Zero(m.tb, f.lostBytes.Load())
			require.Positive(m.tb, f.outBytes.Load())
		}
	}
}
