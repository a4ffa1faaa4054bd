package relay

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/familytest"
	"github.com/sockd/sockd/families/inet"
	"github.com/sockd/sockd/families/model"
	"github.com/stretchr/testify/require"
)

// fan is a relay of --balance fanout with the parties at its ends.
type fan struct {
	*meeting
	far []families.Socket // what each TO leads to: bound, or listening and then accepted
	to  []string
}

// newFan is a relay from a network to several others, each with its options:
// "unixgram,loss=block".
func newFanRelay(t *testing.T, w *world, from string, to ...string) *fan {
	t.Helper()
	f := &fan{meeting: &meeting{world: w}}
	for i, word := range to {
		f.addBackend(i, word)
	}
	network, option := word(from)
	s := spec(t, network+":"+f.anyAddress(network, sideFrom)+option, f.to...)
	s.Balance = balanceFanout
	f.relay = f.mustAdd(s)
	return f
}

func (f *fan) addBackend(i int, text string) {
	f.tb.Helper()
	network, option := word(text)
	at := f.path(fmt.Sprint("to", i))
	if !isUnix(network) {
		at = f.anyAddress(network, sideTo)
	}
	m := &meeting{world: f.world}
	ep := m.backend(mustEndpoint(f.tb, network+":"+at))
	sock := m.far
	if sock == nil {
		sock = m.listener
	}
	f.far = append(f.far, sock)
	f.to = append(f.to, ep.String()+option)
}

// accept takes the connections of the branches that have some.
func (f *fan) accept() {
	f.tb.Helper()
	for i, s := range f.far {
		if _, err := families.As[families.Listener](s); err != nil {
			continue
		}
		c, err := families.AcceptWait(within(f.tb), s)
		require.NoError(f.tb, err)
		f.tb.Cleanup(func() { _ = c.Close() })
		f.far[i] = c
	}
}

// fan is the session's fan, once it is there.
func (f *fan) fan() *fanSocket {
	f.tb.Helper()
	var found *fanSocket
	familytest.Eventually(f.tb, "there is no fan", func() bool {
		r, err := f.eng.relay(f.relay.ID)
		require.NoError(f.tb, err)
		for _, c := range r.list() {
			if s, ok := c.(*session); ok && s.dialled() != nil {
				found = s.dialled().sock.(*fanSocket)
			}
		}
		return found != nil
	})
	return found
}

// requireBooks: every branch's books balance, and the answers' do.
func requireBooks(tb testing.TB, f *fanSocket) []branchBooks {
	tb.Helper()
	all, answers := f.audit()
	for _, b := range all {
		require.Equal(tb, b.Offered, b.Sent.plus(b.Queued).plus(b.Dropped), "of %s", b.To)
	}
	require.Equal(tb, answers.Received, answers.Taken.plus(answers.Waiting).plus(answers.Dropped))
	return all
}

func TestAFanoutGivesEveryTOEveryMessageAndBringsTheirAnswers(t *testing.T) {
	for _, c := range []struct {
		from string
		to   []string
	}{
		{"udp", []string{"udp", "unixgram", "unixpacket"}},
		{"unixgram", []string{"unixgram", "unixgram"}},
		{"unixpacket", []string{"udp", "unixpacket,loss=block", "unixgram,queue=1"}},
		{"udp", []string{"tcp,framing=u16be"}},
	} {
		t.Run(fmt.Sprint(c.from, " to ", c.to), func(t *testing.T) {
			f := newFanRelay(t, newWorld(t), c.from, c.to...)
			f.near = f.client(f.relay.Local[0])
			for i, n := range []int{1, 0, 1472, 9000, 65507} {
				msg := line(n, byte(i))
				f.say(f.near, families.Name{}, msg)
				if i == 0 {
					f.accept()
				}
				for j, far := range f.far {
					peer := f.hearFramed(far, c.to[j], msg)
					f.sayFramed(far, c.to[j], peer, msg)
					f.hear(f.near, msg)
				}
			}
			f.requireBalanced()
			familytest.Eventually(t, "messages are missing in the books", func() bool {
				return !slices.ContainsFunc(requireBooks(t, f.fan()), func(b branchBooks) bool { return b.Sent.messages != 5 })
			})
			require.Empty(t, f.mustRelay(f.relay.ID).Drops)
		})
	}
}

// hearFramed receives a message at a branch's end, and tells who sent it.
func (f *fan) hearFramed(s families.Socket, to string, want []byte) families.Name {
	f.tb.Helper()
	if strings.HasPrefix(to, "tcp") {
		f.hear(s, framingU16BEFrame(want))
		return families.Name{}
	}
	m := families.Msg{Data: make([]byte, messageRoom)}
	require.NoError(f.tb, families.RecvWait(within(f.tb), s, &m))
	require.Equal(f.tb, string(want), string(m.Data))
	if s.Info().Peer != nil {
		return families.Name{}
	}
	return m.Peer
}

func (f *fan) sayFramed(s families.Socket, to string, peer families.Name, msg []byte) {
	f.tb.Helper()
	if strings.HasPrefix(to, "tcp") {
		msg = framingU16BEFrame(msg)
	}
	f.say(s, peer, msg)
}

func framingU16BEFrame(msg []byte) []byte { return framing(framingU16BE).append(nil, msg) }

func TestAFanoutOfAFramedStream(t *testing.T) {
	f := newFanRelay(t, newWorld(t), "tcp,framing=lf", "unixgram", "unixpacket")
	c := mustDial(t, f.relay)
	_, err := c.Write([]byte("one\ntwo\n"))
	require.NoError(t, err)
	f.accept()
	for _, far := range f.far {
		require.Equal(t, "one", string(mustRecv(t, far)))
		require.Equal(t, "two", string(mustRecv(t, far)))
	}
	f.say(f.far[1], families.Name{}, []byte("answer"))
	b := make([]byte, len("answer\n"))
	_, err = io.ReadFull(c, b)
	require.NoError(t, err)
	require.Equal(t, "answer\n", string(b))
}

func TestAFanoutOfAnInterface(t *testing.T) {
	n := newWires(t)
	f := &fan{meeting: &meeting{world: newWorldOf(t, n.set()), wires: n, frames: true}}
	iface := f.plug(sideFrom)
	f.addBackend(0, "unixgram")
	f.addBackend(1, "unixgram")
	s := spec(t, "packet:"+iface, f.to...)
	s.Balance = balanceFanout
	f.relay = f.mustAdd(s)
	f.say(f.near, families.Name{}, ether("look"))
	for _, far := range f.far {
		f.meeting.far, f.farPeer = far, families.Name{}
		f.hear(far, ether("look"))
		f.say(far, f.farPeer, ether("seen"))
		f.hear(f.near, ether("seen"))
	}
	requireBooks(t, f.fan())
}

func TestEachClientHasAFanOfItsOwn(t *testing.T) {
	f := newFanRelay(t, newWorld(t), "udp", "unixgram", "unixgram")
	for i := range 3 {
		c := f.client(f.relay.Local[0])
		msg := []byte{byte(i)}
		f.say(c, families.Name{}, msg)
		for _, far := range f.far {
			f.say(far, f.hearFramed(far, "unixgram", msg), msg)
			f.hear(c, msg)
		}
	}
	require.Len(t, f.eng.Sessions(), 3)
}

// counting receives at a branch's end until it is told to stop, and counts.
type counting struct {
	n    atomic.Int64
	stop func()
}

func count(tb testing.TB, s families.Socket) *counting {
	tb.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	c, done := &counting{}, make(chan struct{})
	go func() {
		defer close(done)
		m := families.Msg{Data: make([]byte, messageRoom)}
		for families.RecvWait(ctx, s, &m) == nil {
			c.n.Add(1)
		}
	}()
	c.stop = sync.OnceFunc(func() {
		cancel()
		<-done
	})
	tb.Cleanup(c.stop)
	return c
}

// eight is eight branches of which one is never read.
func eight(t *testing.T, network, healthy, stalled string) (f *fan, counts []*counting) {
	t.Helper()
	to := []string{network + stalled}
	for range 7 {
		to = append(to, network+healthy)
	}
	f = newFanRelay(t, newWorld(t), "unixpacket", to...)
	f.near = f.client(f.relay.Local[0])
	f.accept()
	for _, far := range f.far[1:] {
		counts = append(counts, count(t, far))
	}
	return f, counts
}

// A branch that takes nothing loses what it has no room for, and the others get
// everything: those that may not lose anything set the pace.
func TestOneStalledBranchOfEightCostsTheOthersNothing(t *testing.T) {
	for _, network := range []string{"unixgram", "unixpacket"} {
		t.Run(network, func(t *testing.T) {
			const n = 5000
			f, counts := eight(t, network, ",loss=block", "")
			for i := range n {
				f.say(f.near, families.Name{}, line(100, byte(i)))
				if i%500 == 0 {
					requireBooks(t, f.fan())
				}
			}
			for _, c := range counts {
				familytest.Eventually(t, "a healthy branch misses messages", func() bool { return c.n.Load() == n })
			}
			familytest.Eventually(t, "messages are missing in the books", func() bool {
				return requireBooks(t, f.fan())[0].Offered.messages == n
			})
			stalled := requireBooks(t, f.fan())[0]
			require.Positive(t, stalled.Dropped.messages)
			require.LessOrEqual(t, stalled.Queued.messages, int64(defaultQueue+1))
			require.Equal(t, model.Drops{"branch_full": stalled.Dropped.messages}, f.mustRelay(f.relay.ID).Drops)
			f.requireLedger(0)
		})
	}
}

// The same where all may lose: in bursts that their queues hold, the others lose
// none, whatever the stalled one does.
func TestABurstThatFitsTheQueuesReachesAllButTheStalled(t *testing.T) {
	const burst, bursts = 200, 20
	f, counts := eight(t, "unixgram", "", "")
	for i := range bursts {
		for range burst {
			f.say(f.near, families.Name{}, []byte("12345"))
		}
		for _, c := range counts {
			familytest.Eventually(t, "a healthy branch misses messages", func() bool { return c.n.Load() == int64((i+1)*burst) })
		}
	}
	books := requireBooks(t, f.fan())
	require.Positive(t, books[0].Dropped.messages)
	for _, b := range books[1:] {
		require.Zero(t, b.Dropped)
	}
}

func TestABlockingBranchHoldsUpTheFanAndLosesNothing(t *testing.T) {
	f := newFanRelay(t, newWorld(t), "unixpacket", "unixpacket,loss=block,queue=3", "unixgram")
	f.near = f.client(f.relay.Local[0])
	f.accept()
	quick := count(t, f.far[1])
	const n = 1000
	sent := make(chan error, 1)
	go func() {
		for range n {
			if _, err := families.SendAll(context.Background(), f.near, &families.Msg{Data: line(1000, 1)}); err != nil {
				sent <- err
				return
			}
		}
		sent <- nil
	}()
	familytest.Eventually(t, "the client is not held up", func() bool {
		ss := f.eng.Sessions()
		return len(ss) == 1 && ss[0].LimitedBy == "to"
	})
	require.Less(t, quick.n.Load(), int64(n))
	for range n {
		mustRecv(t, f.far[0])
	}
	require.NoError(t, <-sent)
	familytest.Eventually(t, "the other branch misses messages", func() bool { return quick.n.Load() == n })
	require.Empty(t, f.mustRelay(f.relay.ID).Drops)
	requireBooks(t, f.fan())
}

func TestABranchThatDisconnectsIsClosedAndCounted(t *testing.T) {
	f := newFanRelay(t, newWorld(t), "unixpacket", "unixpacket,loss=disconnect,queue=5", "unixgram,loss=block")
	f.near = f.client(f.relay.Local[0])
	f.accept()
	healthy := count(t, f.far[1])
	n := int64(0)
	familytest.Eventually(t, "the branch is not closed", func() bool {
		f.say(f.near, families.Name{}, line(1000, 1))
		n++
		return f.mustRelay(f.relay.ID).Drops["branch_cut"] == 1
	})
	f.say(f.near, families.Name{}, []byte("after"))
	n++
	familytest.Eventually(t, "the other branch misses messages", func() bool { return healthy.n.Load() == n })
	var gone branchBooks
	familytest.Eventually(t, "the books are not closed", func() bool {
		gone = requireBooks(t, f.fan())[0]
		return gone.Queued.messages == 0
	})
	require.Equal(t, branchGone, gone.State)
	for range gone.Sent.messages {
		mustRecv(t, f.far[0])
	}
	f.hearEnd(f.far[0])
}

// A TO that is not there costs the others nothing; when it comes, it gets what is
// sent from then on.
func TestABranchThatIsAwayIsDialledAgain(t *testing.T) {
	f := newFanRelay(t, newWorld(t), "unixpacket", "unixgram", "unixgram")
	require.NoError(t, f.far[0].Close())
	f.near = f.client(f.relay.Local[0])
	there := count(t, f.far[1])
	familytest.Eventually(t, "the branch is not away", func() bool { return requireBooks(t, f.fan())[0].State == branchAway })
	f.say(f.near, families.Name{}, []byte("lost"))
	familytest.Eventually(t, "it is not counted", func() bool { return f.mustRelay(f.relay.ID).Drops["dial"] == 1 })
	m := &meeting{world: f.world}
	m.backend(mustEndpoint(t, "unixgram:"+f.path("to0")))
	familytest.Eventually(t, "the branch is not dialled again", func() bool { return requireBooks(t, f.fan())[0].State == branchUp })
	f.say(f.near, families.Name{}, []byte("found"))
	f.hear(m.far, []byte("found"))
	familytest.Eventually(t, "the other branch misses messages", func() bool { return there.n.Load() == 2 })
	require.Equal(t, model.Drops{"dial": 1}, f.mustRelay(f.relay.ID).Drops)
}

// A branch that has worked and broke is back at once, with what waited.
func TestARestartedBranchGetsWhatWaited(t *testing.T) {
	f := newFanRelay(t, newWorld(t), "unixpacket", "unixgram", "unixgram")
	f.near = f.client(f.relay.Local[0])
	f.say(f.near, families.Name{}, []byte("one"))
	for _, far := range f.far {
		require.Equal(t, "one", string(mustRecv(t, far)))
	}
	familytest.Eventually(t, "it is not counted as sent", func() bool { return requireBooks(t, f.fan())[0].Sent.messages == 1 })
	require.NoError(t, f.far[0].Close())
	m := &meeting{world: f.world}
	m.backend(mustEndpoint(t, "unixgram:"+f.path("to0")))
	f.say(f.near, families.Name{}, []byte("two"))
	f.hear(m.far, []byte("two"))
	require.Equal(t, "two", string(mustRecv(t, f.far[1])))
	require.Empty(t, f.mustRelay(f.relay.ID).Drops)
}

func TestAFanoutWithNobodyIsRefused(t *testing.T) {
	f := newFanRelay(t, newWorld(t), "unixpacket", "unixgram", "unixpacket")
	for _, far := range f.far {
		require.NoError(t, far.Close())
	}
	near := f.client(f.relay.Local[0])
	f.hearEnd(near)
	require.EqualValues(t, 1, f.mustIdle(f.relay.ID).Drops["dial"])
	require.Contains(t, f.host.mustEvent(t, "session", "closed", 0).Cause, "dial ")
}

// The client's end reaches every branch behind the messages, and the last of
// their ends reaches the client.
func TestEndsPassThroughAFanout(t *testing.T) {
	f := newFanRelay(t, newWorld(t), "unixpacket", "unixpacket", "unixpacket,queue=1,loss=block")
	f.near = f.client(f.relay.Local[0])
	f.accept()
	const n = 50
	for range n {
		f.say(f.near, families.Name{}, []byte("12345"))
	}
	h, err := families.As[families.HalfCloser](f.near)
	require.NoError(t, err)
	require.NoError(t, h.CloseWrite())
	for i, far := range f.far {
		for range n {
			require.Equal(t, "12345", string(mustRecv(t, far)))
		}
		f.hearEnd(far)
		f.say(far, families.Name{}, []byte{byte(i)})
		require.NoError(t, far.Close())
		f.hear(f.near, []byte{byte(i)})
	}
	f.hearEnd(f.near)
	require.Empty(t, f.mustIdle(f.relay.ID).Drops)
	require.Empty(t, f.host.mustEvent(t, "session", "closed", 0).Cause)
}

// However large its messages, what waits for a branch is bounded, and what was
// copied once is held once.
func TestWhatWaitsForABranchIsBounded(t *testing.T) {
	f := newFanRelay(t, newWorld(t), "unixpacket", "unixgram,queue=10000", "unixgram,queue=10000")
	f.near = f.client(f.relay.Local[0])
	const size = 60_000
	familytest.Eventually(t, "the bound is not met", func() bool {
		f.say(f.near, families.Name{}, make([]byte, size))
		return f.mustRelay(f.relay.ID).Drops["branch_full"] > 10
	})
	for _, b := range requireBooks(t, f.fan()) {
		require.LessOrEqual(t, b.Queued.bytes, int64(branchBytes+2*size))
	}
}

// The books are right while everything moves, and after a caller has ended the
// session with messages in every queue.
func TestTheBooksOfAFanoutBalanceAtAnyMoment(t *testing.T) {
	f, counts := eight(t, "unixgram", "", "")
	fan := f.fan()
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
				books, _ := fan.audit()
				for _, b := range books {
					if b.Offered != b.Sent.plus(b.Queued).plus(b.Dropped) {
						t.Errorf("%s: %+v", b.To, b)
						return
					}
				}
			}
		}
	}()
	const n = 3000
	for range n {
		f.say(f.near, families.Name{}, []byte("12345"))
	}
	require.NoError(t, f.eng.CloseSession(f.eng.Sessions()[0].ID))
	close(stop)
	<-done
	r := f.mustIdle(f.relay.ID)
	var sent, dropped int64
	for _, b := range requireBooks(t, fan) {
		require.Zero(t, b.Queued)
		require.Equal(t, branchGone, b.State)
		sent, dropped = sent+b.Sent.messages, dropped+b.Dropped.messages
	}
	var heard int64
	for i, c := range counts {
		want := requireBooks(t, fan)[i+1].Sent.messages
		familytest.Eventually(t, "what was sent has not arrived", func() bool { return c.n.Load() == want })
		heard += c.n.Load()
	}
	require.Equal(t, sent, heard+requireBooks(t, fan)[0].Sent.messages)
	inHand := r.Drops["branch_full"] + r.Drops["ended"] - dropped
	require.Contains(t, []int64{0, 1}, inHand) // the session's own, which no branch was offered
}

// A dial that never ends holds up neither the other branches nor the end.
func TestADialThatHangsHoldsUpNoOtherBranch(t *testing.T) {
	w := newWorld(t)
	full := familytest.Deaf(t, inet.Family, families.Spec{Type: families.Stream}, familytest.MustAddr(t, inet.Family, families.Stream, "127.0.0.1:0"))
	f := &fan{meeting: &meeting{world: w}}
	f.addBackend(0, "unixgram")
	s := spec(t, "unixpacket:"+w.path("from"), "tcp:"+full.String()+",framing=lf", f.to[0])
	s.Balance, s.ConnectTimeout = balanceFanout, time.Hour
	f.relay = f.mustAdd(s)
	f.near = f.client(f.relay.Local[0])
	f.say(f.near, families.Name{}, []byte("hello"))
	require.Equal(t, "hello", string(mustRecv(t, f.far[0])))
	books := requireBooks(t, f.fan())
	require.Equal(t, branchDialling, books[0].State)
	require.EqualValues(t, 1, books[0].Queued.messages)
	require.NoError(t, f.eng.CloseSession(f.eng.Sessions()[0].ID))
	require.EqualValues(t, 1, f.mustIdle(f.relay.ID).Drops["ended"])
}

func TestAFanoutTellsNobodyOfTheClient(t *testing.T) {
	w := newWorld(t)
	s := spec(t, "udp:127.0.0.1:0", "tcp:127.0.0.1:1,framing=lf,proxy=v2", "udp:127.0.0.1:1")
	s.Balance = balanceFanout
	require.ErrorContains(t, w.eng.Check(s), "is not told of the client")
}
