package relay

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/familytest"
	"github.com/sockd/sockd/families/inet"
	"github.com/sockd/sockd/families/model"
	"github.com/stretchr/testify/require"
)

// parties opens the sockets at both ends of a relay from one network to another.
func parties(t *testing.T, from, to string) *meeting {
	t.Helper()
	m := &meeting{world: newWorld(t)}
	ep := m.backend(mustEndpoint(t, to+":"+m.anyAddress(to, sideTo)))
	network, options, _ := strings.Cut(from, ",")
	from = network + ":" + m.anyAddress(network, sideFrom)
	if options != "" {
		from += "," + options
	}
	s := spec(t, from, ep.String())
	m.relay = m.mustAdd(s)
	m.near = m.client(m.relay.Local[0])
	return m
}

func TestDatagramsKeepTheirBordersAtEverySize(t *testing.T) {
	for _, pair := range [][2]string{{"udp", "unixgram"}, {"unixgram", "udp"}, {"udp", "udp6"}, {"unixpacket", "unixgram"}, {"unixgram", "unixpacket"}, {"udp", "unixpacket"}} {
		t.Run(pair[0]+" to "+pair[1], func(t *testing.T) {
			m := parties(t, pair[0], pair[1])
			sizes := []int{0, 1, 1472, 9000, 65507}
			if pair[0] != "udp" && pair[1] != "udp" {
				sizes = append(sizes, 200000)
			}
			for _, n := range sizes {
				msg := bytes.Repeat([]byte{byte(n)}, n)
				m.say(m.near, families.Name{}, msg)
				m.meetFar()
				m.hear(m.far, msg)
				m.say(m.far, m.farPeer, msg)
				m.hear(m.near, msg)
			}
			m.requireBalanced()
			require.Empty(t, m.mustRelay(m.relay.ID).Drops)
		})
	}
}

// What one side cannot carry is dropped and counted, and the next message comes.
func TestAMessageThatIsTooLargeIsCounted(t *testing.T) {
	t.Run("for the far side", func(t *testing.T) {
		m := parties(t, "unixgram", "udp")
		m.say(m.near, families.Name{}, make([]byte, 100000))
		m.say(m.near, families.Name{}, []byte("next"))
		m.hear(m.far, []byte("next"))
		require.EqualValues(t, 1, m.mustRelay(m.relay.ID).Drops["too_big"])
		m.requireLedger(100000)
	})
	t.Run("for the buffer", func(t *testing.T) {
		m := parties(t, "unixgram", "unixgram")
		o, err := families.As[families.Optioner](m.near)
		require.NoError(t, err)
		require.NoError(t, o.SetOption("so_sndbufforce", "2M"))
		m.say(m.near, families.Name{}, make([]byte, messageRoom+1))
		m.say(m.near, families.Name{}, []byte("next"))
		m.hear(m.far, []byte("next"))
		require.EqualValues(t, 1, m.mustRelay(m.relay.ID).Drops["cut"])
	})
}

// requireLedger: in = out + lost for every session.
func (m *meeting) requireLedger(lost int64) {
	m.tb.Helper()
	r, err := m.eng.relay(m.relay.ID)
	require.NoError(m.tb, err)
	var sum int64
	for _, s := range r.list() {
		for _, f := range []*flow{&s.common().rx, &s.common().tx} {
			familytest.Eventually(m.tb, "the books do not balance", func() bool { return f.inFlight() == 0 })
			require.Equal(m.tb, f.inMessages.Load(), f.outMessages.Load()+f.lostMs.Load())
			sum += f.lostBytes.Load()
		}
	}
	require.Equal(m.tb, lost, sum)
}

func TestEachClientOfADatagramFromHasItsOwnSession(t *testing.T) {
	for _, from := range []string{"udp", "unixgram"} {
		t.Run(from, func(t *testing.T) {
			m := parties(t, from, "unixgram")
			second := m.client(m.relay.Local[0])
			peers := map[families.Name]string{}
			for i, c := range []families.Socket{m.near, second, m.near, second} {
				text := fmt.Sprint("client ", i%2)
				m.say(c, families.Name{}, []byte(text))
				m.hear(m.far, []byte(text))
				if before, ok := peers[m.farPeer]; ok {
					require.Equal(t, before, text)
				}
				peers[m.farPeer] = text
				m.say(m.far, m.farPeer, []byte("re: "+text))
				m.hear(c, []byte("re: "+text))
			}
			require.Len(t, peers, 2)
			require.Len(t, m.eng.Sessions(), 2)
		})
	}
}

func TestUnboundClientsShareOneOneWaySession(t *testing.T) {
	m := parties(t, "unixgram", "unixgram")
	ep := mustEndpoint(t, m.relay.Local[0])
	for range 2 {
		c, target := m.target(ep)
		require.NoError(t, c.Connect(context.Background(), target.Addr))
		m.say(c, families.Name{}, []byte("hello"))
		m.hear(m.far, []byte("hello"))
	}
	require.Len(t, m.eng.Sessions(), 1)
	m.say(m.far, m.farPeer, []byte("whom?"))
	familytest.Eventually(t, "the answer was not counted", func() bool { return m.mustRelay(m.relay.ID).Drops["no_address"] == 1 })
	m.requireLedger(5)
}

// An answer goes to the socket that asked, not to what is at its path now.
func TestAnAnswerGoesToTheInodeThatAsked(t *testing.T) {
	m := parties(t, "unixgram", "unixgram")
	mine := m.boundClient("mine")
	m.say(mine, families.Name{}, []byte("hello"))
	m.hear(m.far, []byte("hello"))
	require.NoError(t, renameFile(m.path("mine"), m.path("moved")))
	trap := m.boundClient("mine")
	m.say(m.far, m.farPeer, []byte("answer"))
	m.hear(mine, []byte("answer"))
	require.ErrorIs(t, trap.Recv(&families.Msg{Data: make([]byte, 10)}), families.ErrAgain)
}

// boundClient is a unixgram client with a path.
func (m *meeting) boundClient(name string) families.Socket {
	m.tb.Helper()
	ep := mustEndpoint(m.tb, m.relay.Local[0])
	c, target := m.target(ep)
	require.NoError(m.tb, c.Bind(m.addr(target.Family, families.Dgram, m.path(name))))
	require.NoError(m.tb, c.Connect(context.Background(), target.Addr))
	return c
}

func TestTheLeastRecentClientMakesRoom(t *testing.T) {
	m := &meeting{world: newWorld(t)}
	ep := m.backend(mustEndpoint(t, "udp:127.0.0.1:0"))
	s := spec(t, "udp:127.0.0.1:0", ep.String())
	s.MaxConns = 2
	m.relay = m.mustAdd(s)
	var clients []families.Socket
	for i := range 3 {
		m.mustSettle()
		clients = append(clients, m.client(m.relay.Local[0]))
		m.say(clients[i], families.Name{}, []byte{byte(i)})
		m.hear(m.far, []byte{byte(i)})
		if i == 1 { // the first is used again, so the second is the oldest
			m.say(clients[0], families.Name{}, []byte("again"))
			m.hear(m.far, []byte("again"))
		}
	}
	e := m.host.mustEvent(t, "session", "closed", 0)
	require.Contains(t, string(e.Object), clients[1].Info().Local.String())
	require.Contains(t, e.Cause, "made room")
	familytest.Eventually(t, "there are too many sessions", func() bool { return len(m.eng.Sessions()) == 2 })
	require.Equal(t, model.Drops{"evicted": 1}, m.mustRelay(m.relay.ID).Drops)
}

// mustSettle waits until every session has sent what waited for its dial: before,
// it makes no room, whoever used it last.
func (m *meeting) mustSettle() {
	m.tb.Helper()
	r, err := m.eng.relay(m.relay.ID)
	require.NoError(m.tb, err)
	p, ok := r.front.(*peers)
	if !ok {
		return // it dials before it sends
	}
	familytest.Eventually(m.tb, "a session has not dialled", func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, c := range p.byName {
			if !c.isReady() {
				return false
			}
		}
		return true
	})
}

// Sessions that were evicted before their dial had ended lost their datagram, which was
// counted twice (dial and ended) though the backend was healthy.
func TestMakingRoomLosesNoDatagram(t *testing.T) {
	m := &meeting{world: newWorld(t)}
	ep := m.backend(mustEndpoint(t, "udp:127.0.0.1:0"))
	s := spec(t, "udp:127.0.0.1:0", ep.String())
	s.MaxConns = 2
	m.relay = m.mustAdd(s)
	const n = 60
	for range n {
		m.say(m.client(m.relay.Local[0]), families.Name{}, []byte("12345"))
	}
	familytest.Eventually(t, "messages are missing in the books", func() bool {
		r := m.mustRelay(m.relay.ID)
		return r.RxBytes/5+r.Drops["busy"] == n // busy: a dial took longer than is waited for
	})
	drops := m.mustRelay(m.relay.ID).Drops
	require.Zero(t, drops["dial"]+drops["ended"]+drops["pending"])
	require.EqualValues(t, m.mustRelay(m.relay.ID).Total-2, drops["evicted"])
	require.Positive(t, drops["evicted"])
}

// A dial that does not end keeps its message, holds the other clients up once and
// briefly, and who finds no room is counted so.
func TestADialThatDoesNotEndIsNotEvicted(t *testing.T) {
	f := &slowDial{Family: inet.Family, begun: make(chan struct{}, 10), free: make(chan struct{})}
	m := &meeting{world: newWorldOf(t, families.Set{f})}
	ep := m.backend(mustEndpoint(t, "udp:127.0.0.1:0"))
	s := spec(t, "udp:127.0.0.1:0", ep.String())
	s.MaxConns = 1
	m.relay = m.mustAdd(s)
	first, second := m.client(m.relay.Local[0]), m.client(m.relay.Local[0])
	f.held.Store(true)
	m.say(first, families.Name{}, []byte("first"))
	<-f.begun
	m.say(second, families.Name{}, []byte("lost"))
	familytest.Eventually(t, "it is not counted", func() bool { return m.mustRelay(m.relay.ID).Drops["busy"] == 1 })
	f.held.Store(false)
	close(f.free)
	m.hear(m.far, []byte("first"))
	// The first makes room once it has sent what waited; until then, the second's
	// messages find none.
	familytest.Eventually(t, "the first is not evicted", func() bool {
		m.say(second, families.Name{}, []byte("again"))
		return m.mustRelay(m.relay.ID).Drops["evicted"] == 1
	})
	m.hear(m.far, []byte("again"))
	familytest.Eventually(t, "the first has not ended", func() bool { return len(m.eng.Sessions()) == 1 })
	require.GreaterOrEqual(t, m.mustRelay(m.relay.ID).Drops["busy"], int64(1))
}

// slowDial is a family whose sockets connect when they are let.
type slowDial struct {
	families.Family
	held  atomic.Bool
	begun chan struct{}
	free  chan struct{}
}

type slowSocket struct {
	families.Socket
	f *slowDial
}

func (f *slowDial) Open(ctx context.Context, s families.Spec) (families.Socket, error) {
	sock, err := f.Family.Open(ctx, s)
	if err != nil {
		return nil, err
	}
	return slowSocket{sock, f}, nil
}

func (s slowSocket) Unwrap() families.Socket { return s.Socket }

func (s slowSocket) Connect(ctx context.Context, a families.Addr) error {
	if s.f.held.Load() {
		s.f.begun <- struct{}{}
		select {
		case <-s.f.free:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return s.Socket.Connect(ctx, a)
}

// A message whose backend was not there was counted as a dial and as a message.
func TestADatagramWithoutABackendIsOneLoss(t *testing.T) {
	m := parties(t, "udp", "unixgram")
	m.say(m.near, families.Name{}, []byte("one"))
	m.hear(m.far, []byte("one"))
	require.NoError(t, m.far.Close())
	m.say(m.near, families.Name{}, []byte("two"))
	familytest.Eventually(t, "it is not counted", func() bool { return m.mustRelay(m.relay.ID).Drops["dial"] == 1 })
	m.mustIdle(m.relay.ID)
	require.Equal(t, model.Drops{"dial": 1}, m.mustRelay(m.relay.ID).Drops)
	m.backend(mustEndpoint(t, "unixgram:"+m.path("to")))
	m.say(m.near, families.Name{}, []byte("three"))
	m.hear(m.far, []byte("three"))
	require.Equal(t, model.Drops{"dial": 1}, m.mustRelay(m.relay.ID).Drops)
}

func TestDatagramSessionsEndWhenIdle(t *testing.T) {
	m := &meeting{world: newWorld(t)}
	ep := m.backend(mustEndpoint(t, "udp:127.0.0.1:0"))
	s := spec(t, "udp:127.0.0.1:0", ep.String())
	s.Idle = 20 * time.Millisecond
	m.relay = m.mustAdd(s)
	m.near = m.client(m.relay.Local[0])
	m.say(m.near, families.Name{}, []byte("x"))
	m.hear(m.far, []byte("x"))
	require.Equal(t, "idle for 20ms", m.host.mustEvent(t, "session", "closed", 0).Cause)
	r := m.mustIdle(m.relay.ID)
	require.EqualValues(t, 1, r.RxBytes) // totals stay
	m.say(m.near, families.Name{}, []byte("y"))
	m.hear(m.far, []byte("y"))
}

// A backend that was restarted has a new socket at its path: the datagram that
// finds the old one gone opens a new session, and is not lost. It was lost when it
// came while the session still sent what had waited for its dial.
func TestARestartedBackendCostsNoDatagram(t *testing.T) {
	m := parties(t, "udp", "unixgram")
	m.say(m.near, families.Name{}, []byte("one"))
	m.hear(m.far, []byte("one"))
	require.NoError(t, m.far.Close())
	m.backend(mustEndpoint(t, "unixgram:"+m.path("to")))
	m.say(m.near, families.Name{}, []byte("two"))
	m.hear(m.far, []byte("two"))
	require.Empty(t, m.mustRelay(m.relay.ID).Drops)
	// A session that was still sending what waited for its dial dials once more;
	// later, the message opens a second session.
	familytest.Eventually(t, "a message is missing in the books", func() bool {
		return m.mustRelay(m.relay.ID).RxBytes == int64(len("one")+len("two"))
	})
	require.Empty(t, m.mustRelay(m.relay.ID).Drops)
	require.Contains(t, []int64{1, 2}, m.mustRelay(m.relay.ID).Total)
}

// A backend that does not read loses datagrams by a count, and holds up nobody.
func TestAStuckBackendIsCounted(t *testing.T) {
	m := parties(t, "udp", "unixgram")
	const n = 100
	for range n {
		m.say(m.near, families.Name{}, []byte("12345"))
	}
	familytest.Eventually(t, "messages are missing in the books", func() bool {
		r := m.mustRelay(m.relay.ID)
		return r.RxBytes+5*(r.Drops["full"]+r.Drops["pending"]) == 5*n
	})
	drops := m.mustRelay(m.relay.ID).Drops
	require.Positive(t, drops["full"])
	m.requireLedger(5 * (drops["full"] + drops["pending"]))
}

func TestSeqpacketEndsBothWays(t *testing.T) {
	m := parties(t, "unixpacket", "unixpacket")
	m.say(m.near, families.Name{}, []byte("question"))
	h, err := families.As[families.HalfCloser](m.near)
	require.NoError(t, err)
	require.NoError(t, h.CloseWrite())
	m.meetFar()
	m.hear(m.far, []byte("question"))
	m.hearEnd(m.far)
	m.say(m.far, families.Name{}, []byte("answer"))
	m.hear(m.near, []byte("answer"))
	require.NoError(t, m.far.Close())
	m.hearEnd(m.near)
	require.Empty(t, m.mustIdle(m.relay.ID).Drops)
	require.Empty(t, m.host.mustEvent(t, "session", "closed", 0).Cause)
}

func TestDescriptorsInMessagesAreCountedAndClosed(t *testing.T) {
	for _, network := range []string{"unix", "unixgram", "unixpacket"} {
		t.Run(network, func(t *testing.T) {
			m := parties(t, network, network) // no descriptor may be left
			file, err := os.Open(os.DevNull)
			require.NoError(t, err)
			defer file.Close()
			_, err = families.SendAll(t.Context(), m.near, &families.Msg{Data: []byte("look"), Files: []int{int(file.Fd())}})
			require.NoError(t, err)
			m.meetFar()
			m.hear(m.far, []byte("look"))
			familytest.Eventually(t, "it is not counted", func() bool { return m.mustRelay(m.relay.ID).Drops["files"] == 1 })
		})
	}
}

// A UDP backend that is not there now may be there later.
func TestARefusingUDPBackendIsCounted(t *testing.T) {
	m := parties(t, "udp", "udp")
	m.say(m.near, families.Name{}, []byte("one"))
	m.hear(m.far, []byte("one"))
	at := m.far.Info().Local.String()
	require.NoError(t, m.far.Close())
	m.say(m.near, families.Name{}, []byte("two"))
	familytest.Eventually(t, "it is not counted", func() bool { return m.mustRelay(m.relay.ID).Drops["refused"] > 0 })
	m.backend(mustEndpoint(t, "udp:"+at))
	// The client is told, as it would be directly: by its next call.
	familytest.Eventually(t, "the client is not told", func() bool {
		_, err := m.near.Send(&families.Msg{Data: []byte("lost")})
		return errors.Is(err, syscall.ECONNREFUSED)
	})
	m.say(m.near, families.Name{}, []byte("three"))
	m.hear(m.far, []byte("three"))
	require.Len(t, m.eng.Sessions(), 1)
	m.requireLedger(0)
}

// What the kernel drops because the relay is slow is in the books, too.
func TestKernelDropsAreCounted(t *testing.T) {
	m := parties(t, "udp,so_rcvbuf=4096", "unixgram")
	rel, err := m.eng.relay(m.relay.ID)
	require.NoError(t, err)
	familytest.Eventually(t, "the kernel drops nothing", func() bool {
		for range 100 {
			m.say(m.near, families.Name{}, make([]byte, 2000))
		}
		return rel.model().Drops["kernel"] > 0
	})
}
