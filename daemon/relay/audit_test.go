package relay

import (
	"bytes"
	"context"
	"crypto/rand"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/all"
	"github.com/sockd/sockd/families/familytest"
	"github.com/sockd/sockd/families/inet"
	"github.com/sockd/sockd/families/local"
	"github.com/sockd/sockd/families/model"
	"github.com/stretchr/testify/require"
)

// mustHold audits every relay: each line holds, and says so for a reason.
func (w *world) mustHold() []model.Audit {
	w.tb.Helper()
	lines := w.eng.Audit(0)
	for _, l := range lines {
		require.True(w.tb, l.Holds, "%+v", l)
		require.Equal(w.tb, l.InBytes, l.OutBytes+l.InFlightBytes+l.LostBytes, "%+v", l)
		require.Equal(w.tb, l.InMessages, l.OutMessages+l.InFlightMessages+l.LostMessages, "%+v", l)
	}
	return lines
}

// audited sums the lines of one direction, of running sessions or of those that have
// ended.
func (w *world) audited(id model.ID, direction string, running bool) (sum model.Audit) {
	w.tb.Helper()
	for _, l := range w.mustHold() {
		if l.Relay != id || l.Direction != direction || l.Branch != "" || running != (l.Session != 0) {
			continue
		}
		sum.InBytes, sum.OutBytes = sum.InBytes+l.InBytes, sum.OutBytes+l.OutBytes
		sum.InFlightBytes, sum.LostBytes = sum.InFlightBytes+l.InFlightBytes, sum.LostBytes+l.LostBytes
		sum.InMessages, sum.OutMessages = sum.InMessages+l.InMessages, sum.OutMessages+l.OutMessages
		sum.InFlightMessages, sum.LostMessages = sum.InFlightMessages+l.InFlightMessages, sum.LostMessages+l.LostMessages
	}
	return sum
}

func TestAnAuditOfAStreamThatIsIdleAndThenOver(t *testing.T) {
	w := newWorld(t)
	l := serve(t, "tcp", "127.0.0.1:0", echo)
	r := w.mustAdd(spec(t, "tcp:127.0.0.1:0", "tcp:"+l.Addr().String()))
	c := mustDial(t, r)
	_, err := c.Write([]byte("twelve bytes"))
	require.NoError(t, err)
	_, err = io.ReadFull(c, make([]byte, 12))
	require.NoError(t, err)
	want := model.Audit{InBytes: 12, OutBytes: 12}
	require.Equal(t, want, w.audited(r.ID, directionRx, true))
	require.Equal(t, want, w.audited(r.ID, directionTx, true))
	require.Zero(t, w.audited(r.ID, directionRx, false))
	require.NoError(t, c.Close())
	w.mustIdle(r.ID)
	require.Equal(t, want, w.audited(r.ID, directionRx, false))
	require.Equal(t, want, w.audited(r.ID, directionTx, false))
	require.Len(t, w.eng.Audit(r.ID), 2)
	require.Empty(t, w.eng.Audit(r.ID+100))
}

// What is in flight at a backend that does not read is lost when its session is closed.
func TestAnAuditOfAStreamThatIsStuckAndThenAborted(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} { // through memory, and through a pipe
		t.Run("to "+network, func(t *testing.T) {
			w := newWorld(t)
			at := map[string]string{"tcp": "127.0.0.1:0", "unix": w.path("to")}[network]
			l := serve(t, network, at, func(c net.Conn) { <-t.Context().Done() })
			r := w.mustAdd(spec(t, "tcp:127.0.0.1:0", network+":"+l.Addr().String()))
			c := mustDial(t, r)
			require.NoError(t, c.SetWriteDeadline(time.Now().Add(300*time.Millisecond)))
			_, err := io.Copy(struct{ io.Writer }{c}, rand.Reader)
			require.ErrorIs(t, err, os.ErrDeadlineExceeded)
			stuck := w.audited(r.ID, directionRx, true)
			require.Positive(t, stuck.InFlightBytes)
			require.Zero(t, stuck.LostBytes)
			require.NoError(t, w.eng.CloseSession(w.eng.Sessions()[0].ID))
			drops := w.mustIdle(r.ID).Drops
			over := w.audited(r.ID, directionRx, false)
			require.Equal(t, model.Audit{InBytes: stuck.InBytes, OutBytes: stuck.OutBytes, LostBytes: stuck.InFlightBytes}, over)
			require.Equal(t, drops["unsent_bytes"], over.LostBytes)
		})
	}
}

func TestAnAuditOfMessagesOfEveryKind(t *testing.T) {
	for _, pair := range [][2]string{{"udp", "udp"}, {"udp", "unixgram"}, {"unixgram", "udp"}, {"unixgram", "unixgram"}, {"unixpacket", "unixpacket"}, {"unixpacket", "udp"}} {
		t.Run(pair[0]+" to "+pair[1], func(t *testing.T) {
			m := parties(t, pair[0], pair[1])
			for i := range 20 {
				msg := bytes.Repeat([]byte{1}, 100*i)
				m.say(m.near, families.Name{}, msg)
				m.meetFar()
				m.hear(m.far, msg)
				m.say(m.far, m.farPeer, msg[:i])
				m.hear(m.near, msg[:i])
				m.mustHold()
			}
			// The far side may have a message before its sender's turn to count it.
			want := [2]model.Audit{{InBytes: 19000, OutBytes: 19000, InMessages: 20, OutMessages: 20}, {InBytes: 190, OutBytes: 190, InMessages: 20, OutMessages: 20}}
			familytest.Eventually(t, "the audit is not what the parties counted", func() bool {
				return w2(m.audited(m.relay.ID, directionRx, true), m.audited(m.relay.ID, directionTx, true)) == want
			})
			require.NoError(t, m.eng.CloseSession(m.eng.Sessions()[0].ID))
			m.mustIdle(m.relay.ID)
			require.Equal(t, want, w2(m.audited(m.relay.ID, directionRx, false), m.audited(m.relay.ID, directionTx, false)))
		})
	}
}

func w2(rx, tx model.Audit) [2]model.Audit { return [2]model.Audit{rx, tx} }

// A framed stream's messages are counted as their sender meant them, and a frame of
// which only a part has come is none yet.
func TestAnAuditOfFramedStreams(t *testing.T) {
	m := &meeting{world: newWorld(t)}
	ep := m.backend(mustEndpoint(t, "unixgram:"+m.path("to")))
	m.relay = m.mustAdd(spec(t, "tcp:127.0.0.1:0,framing=u16be", ep.String()))
	c := mustDial(t, m.relay)
	_, err := c.Write([]byte("\x00\x03abc\x00\x00\x00\x05de"))
	require.NoError(t, err)
	m.hear(m.far, []byte("abc"))
	m.hear(m.far, nil)
	want := model.Audit{InBytes: 3, OutBytes: 3, InMessages: 2, OutMessages: 2}
	familytest.Eventually(t, "the audit is not what was said", func() bool { return m.audited(m.relay.ID, directionRx, true) == want })
	require.NoError(t, c.Close())
	m.mustIdle(m.relay.ID)
	want = model.Audit{InBytes: 5, OutBytes: 3, LostBytes: 2, InMessages: 3, OutMessages: 2, LostMessages: 1}
	require.Equal(t, want, m.audited(m.relay.ID, directionRx, false))
}

// A pump that waits for its sink has one message in hand.
func TestAnAuditOfMessagesToASinkThatIsFull(t *testing.T) {
	m := parties(t, "unixpacket", "unixpacket")
	m.meetFar()
	const size = 1000
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			if _, err := families.SendAll(ctx, m.near, &families.Msg{Data: make([]byte, size)}); err != nil {
				return
			}
		}
	}()
	familytest.Eventually(t, "the sink is not full", func() bool {
		now := m.audited(m.relay.ID, directionRx, true)
		return m.eng.Sessions()[0].LimitedBy == "to" && now.InFlightMessages == 1 && now.InFlightBytes == size
	})
	require.NoError(t, m.eng.CloseSession(m.eng.Sessions()[0].ID))
	cancel()
	<-done
	m.mustIdle(m.relay.ID)
	over := m.audited(m.relay.ID, directionRx, false)
	require.EqualValues(t, 1, over.LostMessages)
	require.Equal(t, m.mustRelay(m.relay.ID).Drops["ended"], over.LostMessages)
}

// What waits for a dial is in flight, and out when the dial has ended.
func TestAnAuditOfMessagesThatWaitForADial(t *testing.T) {
	for _, from := range []string{"udp", "unixgram"} {
		t.Run("from "+from, func(t *testing.T) {
			f := &slowDial{Family: inet.Family, begun: make(chan struct{}, 10), free: make(chan struct{})}
			m := &meeting{world: newWorldOf(t, families.Set{f, local.Family})}
			ep := m.backend(mustEndpoint(t, "udp:127.0.0.1:0"))
			m.relay = m.mustAdd(spec(t, from+":"+m.anyAddress(from, sideFrom), ep.String()))
			m.near = m.client(m.relay.Local[0])
			f.held.Store(true)
			const n = 300 // more than may wait
			for range n {
				m.say(m.near, families.Name{}, []byte("12345"))
			}
			want := model.Audit{
				InBytes: 5 * n, InFlightBytes: 5 * pendingMessages, LostBytes: 5 * (n - pendingMessages),
				InMessages: n, InFlightMessages: pendingMessages, LostMessages: n - pendingMessages,
			}
			familytest.Eventually(t, "not all wait", func() bool { return m.audited(m.relay.ID, directionRx, true) == want })
			close(f.free)
			want.OutBytes, want.InFlightBytes = want.InFlightBytes, 0
			want.OutMessages, want.InFlightMessages = want.InFlightMessages, 0
			familytest.Eventually(t, "not all went", func() bool { return m.audited(m.relay.ID, directionRx, true) == want })
		})
	}
}

// A fanout's branches keep books of their own, and so do its answers.
func TestAnAuditOfAFanoutWithAStalledBranch(t *testing.T) {
	const n = 1000
	f, counts := eight(t, "unixgram", ",loss=block", "")
	for i := range n {
		f.say(f.near, families.Name{}, []byte("12345"))
		if i%100 == 0 {
			f.mustHold()
		}
	}
	for _, c := range counts {
		familytest.Eventually(t, "a branch misses messages", func() bool { return c.n.Load() == n })
	}
	branches := func() (out []model.Audit) {
		for _, l := range f.mustHold() {
			if l.Branch != "" {
				out = append(out, l)
			}
		}
		return out
	}
	familytest.Eventually(t, "the healthy branches' books are not what was heard", func() bool {
		for _, l := range branches()[1:8] {
			if l.OutMessages != n || l.OutBytes != 5*n {
				return false
			}
		}
		return true
	})
	lines := branches()
	require.Len(t, lines, 9)
	require.EqualValues(t, n, lines[0].InMessages)
	require.Positive(t, lines[0].InFlightMessages)
	require.Positive(t, lines[0].LostMessages)
	require.Equal(t, model.Drops{"branch_full": lines[0].LostMessages}, f.mustRelay(f.relay.ID).Drops)
	require.Equal(t, answersBranch, lines[8].Branch)
	require.Equal(t, directionTx, lines[8].Direction)
}

func TestAnAuditOfAPacketRelay(t *testing.T) {
	s := newStreet(t)
	second := s.mustAdd(spec(t, "unixgram:"+s.path("wire"), "packet:rb"))
	s.mustAdd(spec(t, "packet:ra", second.Local[0]))
	audits := auditing(t, s.world)
	s.mustCarryTCP(t, "10.9.0.2:0", 4<<20)
	audits.stop()
	require.Greater(t, s.audited(second.ID, directionRx, true).InBytes, int64(4<<20))
}

// What belongs to no session is received, and lost at once.
func TestAnAuditOfMessagesThatBelongToNoSession(t *testing.T) {
	for _, from := range []string{"udp", "unixgram"} {
		t.Run("from "+from, func(t *testing.T) {
			m := parties(t, from, "udp")
			allow := []model.Allow{{Kind: model.AllowUser, ID: 4242}}
			if from == "udp" {
				allow = []model.Allow{{Kind: model.AllowPrefix, Prefix: netip.MustParsePrefix("192.0.2.0/24")}}
			}
			_, err := m.eng.Set(context.Background(), m.relay.ID, model.RelayChange{Allow: &allow})
			require.NoError(t, err)
			m.say(m.near, families.Name{}, []byte("12345"))
			familytest.Eventually(t, "it is not denied", func() bool { return m.mustRelay(m.relay.ID).Drops["denied"] == 1 })
			require.Equal(t, model.Audit{InBytes: 5, LostBytes: 5, InMessages: 1, LostMessages: 1}, m.audited(m.relay.ID, directionRx, false))
		})
	}
}

// auditor audits again and again until it is stopped.
type auditor struct {
	n    atomic.Int64
	stop func()
}

func auditing(tb testing.TB, w *world) *auditor {
	a, over, done := &auditor{}, make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-over:
				return
			default:
			}
			for _, l := range w.eng.Audit(0) {
				if !l.Holds {
					tb.Errorf("does not hold: %+v", l)
					return
				}
			}
			a.n.Add(1)
		}
	}()
	a.stop = sync.OnceFunc(func() { close(over); <-done })
	tb.Cleanup(a.stop)
	return a
}

// The law holds at any moment, so also while everything moves.
func TestTheLawHoldsWhileBytesMove(t *testing.T) {
	w := newWorld(t)
	for _, network := range []string{"tcp", "unix"} {
		at := map[string]string{"tcp": "127.0.0.1:0", "unix": w.path("to")}[network]
		l := serve(t, network, at, echo)
		r := w.mustAdd(spec(t, "tcp:127.0.0.1:0", network+":"+l.Addr().String()))
		audits := auditing(t, w)
		total := int64(0)
		for audits.n.Load() < 200 {
			mustEcho(t, mustDial(t, r), 8<<20)
			total += 8 << 20
		}
		audits.stop()
		w.mustIdle(r.ID)
		require.Equal(t, model.Audit{InBytes: total, OutBytes: total}, w.audited(r.ID, directionRx, false))
		require.Equal(t, model.Audit{InBytes: total, OutBytes: total}, w.audited(r.ID, directionTx, false))
	}
}

func TestTheLawHoldsWhileMessagesMove(t *testing.T) {
	for _, pair := range [][2]string{{"udp", "udp"}, {"unixgram", "unixgram"}, {"unixpacket", "unixpacket"}, {"unixgram", "udp"}} {
		t.Run(pair[0]+" to "+pair[1], func(t *testing.T) {
			m := parties(t, pair[0], pair[1])
			m.say(m.near, families.Name{}, []byte("first"))
			m.meetFar()
			m.hear(m.far, []byte("first"))
			heard := count(t, m.far)
			audits := auditing(t, m.world)
			said := int64(1)
			for audits.n.Load() < 200 || said < 2000 {
				m.say(m.near, families.Name{}, []byte("12345"))
				said++
			}
			audits.stop()
			familytest.Eventually(t, "the audit is not what the parties counted", func() bool {
				got := m.audited(m.relay.ID, directionRx, true)
				kernel := m.mustRelay(m.relay.ID).Drops["kernel"] // before sockd could count them
				return got.InMessages+kernel == said && got.OutMessages+got.LostMessages == got.InMessages
			})
			if pair[1] != "udp" { // which drops at its receiver
				familytest.Eventually(t, "the backend's count is another", func() bool {
					return 1+heard.n.Load() == m.audited(m.relay.ID, directionRx, true).OutMessages
				})
			}
		})
	}
}

// An audit that cannot say no says nothing: each counter, broken on purpose, is found.
func TestAnAuditFindsACounterThatIsWrong(t *testing.T) {
	breaks := []struct {
		name    string
		do      func(*flow)
		streams bool // who count bytes alone
	}{
		{"a byte too many came in", func(f *flow) { f.inBytes.Add(1) }, true},
		{"a byte went out uncounted", func(f *flow) { f.outBytes.Add(-1) }, true},
		{"a byte was lost twice", func(f *flow) { f.lostBytes.Add(1) }, true},
		{"a message came in uncounted", func(f *flow) { f.inMessages.Add(-1) }, false},
		{"a message went out twice", func(f *flow) { f.outMessages.Add(1) }, false},
		{"a message was lost uncounted", func(f *flow) { f.received(0) }, false},
	}
	for _, network := range []string{"udp", "unixgram", "unixpacket"} {
		m := parties(t, network, network)
		m.say(m.near, families.Name{}, []byte("12345"))
		m.meetFar()
		m.hear(m.far, []byte("12345"))
		for _, b := range breaks {
			t.Run(network+": "+b.name, func(t *testing.T) { m.mustBeFound(t, b.do) })
		}
	}
	w := newWorld(t)
	l := serve(t, "tcp", "127.0.0.1:0", echo)
	r := w.mustAdd(spec(t, "tcp:127.0.0.1:0", "tcp:"+l.Addr().String()))
	mustDial(t, r)
	m := &meeting{world: w, relay: r}
	for _, b := range breaks {
		if b.streams {
			t.Run("tcp: "+b.name, func(t *testing.T) { m.mustBeFound(t, b.do) })
		}
	}
}

// mustBeFound breaks the counters of a relay's one session, and mends them again.
func (m *meeting) mustBeFound(tb testing.TB, do func(*flow)) {
	tb.Helper()
	r, err := m.eng.relay(m.relay.ID)
	require.NoError(tb, err)
	familytest.Eventually(tb, "there is no session", func() bool { return len(r.list()) == 1 })
	f := &r.list()[0].common().rx
	familytest.Eventually(tb, "the session is not at rest", func() bool { return m.audited(m.relay.ID, directionRx, true).InFlightMessages == 0 })
	before := f.counted()
	do(f)
	broken := m.eng.Audit(m.relay.ID)[2]
	f.inBytes.Store(before.in.bytes)
	f.inMessages.Store(before.in.messages)
	f.outBytes.Store(before.out.bytes)
	f.outMessages.Store(before.out.messages)
	f.lostBytes.Store(before.lost.bytes)
	f.lostMs.Store(before.lost.messages)
	require.Equal(tb, directionRx, broken.Direction)
	require.False(tb, broken.Holds, "nobody noticed")
	m.mustHold()
}

// A message that is nowhere, a past that was changed, losses without their cause, and
// sums that are not those of the sessions.
func TestAnAuditFindsBooksThatAreWrong(t *testing.T) {
	m := parties(t, "unixpacket", "unixpacket")
	m.say(m.near, families.Name{}, []byte("12345"))
	m.meetFar()
	m.hear(m.far, []byte("12345"))
	m.mustHold()
	r, err := m.eng.relay(m.relay.ID)
	require.NoError(t, err)
	s := r.list()[0].(*session)
	s.rx.take(3) // and never heard of again
	s.rx.take(0)
	s.rx.pass(0)
	require.False(t, m.eng.Audit(r.id)[2].Holds)

	var past tally
	r.mu.Lock()
	past, r.past.tx.lost.messages = r.past, 1
	r.mu.Unlock()
	require.False(t, m.eng.Audit(r.id)[1].Holds)
	r.mu.Lock()
	r.past = past
	r.mu.Unlock()

	lines := []model.Audit{{Direction: directionRx, OutBytes: 5, Holds: true}, {Direction: directionTx, Holds: true}, {Session: 7, Direction: directionRx, OutBytes: 6, Holds: true}}
	checkSum(lines, 0, 10, 11)
	require.True(t, lines[0].Holds)
	checkSum(lines, 0, 12, 13)
	require.False(t, lines[0].Holds)

	w := newWorldOf(t, all.Set())
	l := serve(t, "tcp", "127.0.0.1:0", echo)
	stream := w.mustAdd(spec(t, "tcp:127.0.0.1:0", "tcp:"+l.Addr().String()))
	mustDial(t, stream)
	w.mustStream(stream.ID).lost.add(causeUnsent, 1)
	require.False(t, w.eng.Audit(stream.ID)[2].Holds)
}

// What lived on a shard that has ended can be read where one is.
func TestAShardThatHasEndedIsStillAsked(t *testing.T) {
	s, err := newShard(false)
	require.NoError(t, err)
	asked := 0
	s.ask(func() { asked++ })
	s.stop()
	s.ask(func() { asked++ })
	require.Equal(t, 2, asked)
}

// What the audit costs each message.
func BenchmarkCountAMessage(b *testing.B) {
	for _, bc := range []struct {
		name  string
		count func(*flow)
	}{
		{"apart", func(f *flow) { f.received(64); f.sent(64) }},
		{"together with what is in hand", func(f *flow) { f.take(64); f.pass(64) }},
	} {
		b.Run(bc.name, func(b *testing.B) {
			b.ReportAllocs()
			f := new(flow)
			for b.Loop() {
				bc.count(f)
			}
		})
	}
}
