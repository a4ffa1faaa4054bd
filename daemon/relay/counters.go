package relay

import (
	"sync"
	"sync/atomic"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/model"
)

// cause is why something was lost, as Drops names it.
type cause uint8

// The causes. Data that was received and could not be passed on is lost by one
// of the first group, in messages (bytes for causeUnsent); ICMP errors about
// datagrams that had left count there, too. The second group are events in which
// no received data was lost.
const (
	causeUnsent      cause = iota // bytes of a stream that were in hand when its sink failed
	causeCut                      // a message longer than the largest buffer
	causeTooBig                   // a message longer than the far side takes
	causeFull                     // the far side's queue stayed full
	causeRefused                  // nobody has the far socket
	causeUnreachable              // no route, interface down, forbidden by a filter
	causeInvalid                  // the far side takes no such message: an empty frame, a bad checksum offset
	causeNoAddress                // an answer to a client that has no address
	causePending                  // more messages than may wait while a session is dialled
	causeBusy                     // no room for one more session
	causeEnded                    // messages that were in hand when their session ended
	causeDial                     // what found no backend: connections, and datagrams that waited for one
	causeTorn                     // a frame of a stream that ended inside of it, or was longer than the bound
	causeBranchFull               // of a fanout: a message that one branch had no room for
	causeNoHeader                 // datagrams without the PROXY header that proxy=accept wants
	causeDenied                   // connections and datagrams of those whom --allow does not let in
	causeUnparked                 // connections that were to outlive sockd, and could not be parked

	causeFiles       // descriptors that came with unix messages and were not passed on
	causeBranchCut   // branches of a fanout that loss=disconnect has ended
	causeEvicted     // datagram sessions that made room for another one
	causeDescriptors // times that accept found no descriptor free
	causeUntold      // errors of the network that a datagram's sender was not told
	causeKernel      // messages that the kernel dropped from a full queue
	causeNotDurable  // sessions that go on without being parked, since their relay prefers that
	numCauses
)

var causeNames = [numCauses]string{
	causeUnsent:      "unsent_bytes",
	causeCut:         "cut",
	causeTooBig:      "too_big",
	causeFull:        "full",
	causeRefused:     "refused",
	causeUnreachable: "unreachable",
	causeInvalid:     "invalid",
	causeNoAddress:   "no_address",
	causePending:     "pending",
	causeBusy:        "busy",
	causeEnded:       "ended",
	causeDial:        "dial",
	causeTorn:        "torn",
	causeBranchFull:  "branch_full",
	causeBranchCut:   "branch_cut",
	causeNoHeader:    "no_header",
	causeDenied:      "denied",
	causeFiles:       "files",
	causeEvicted:     "evicted",
	causeDescriptors: "no_descriptors",
	causeUntold:      "untold",
	causeKernel:      "kernel",
	causeUnparked:    "unparked",
	causeNotDurable:  "not_durable",
}

// flow counts one direction of a session. Bytes and messages are counted as they
// were received, also where they leave in another form (a GSO frame in segments),
// so that at any moment
//
//	in = out + in flight + lost
//
// where what is in flight lies in the pump's one buffer, or waits to be sent; see
// Engine.Audit. Streams count bytes alone.
type flow struct {
	inBytes, outBytes, lostBytes    atomic.Int64
	inMessages, outMessages, lostMs atomic.Int64
	// turn keeps the counts of one message together with what is in hand, for those who
	// audit: a goroutine that pumps messages has it while it counts, never while it
	// moves them. Streams and UDP do without: they count on their shard, and are asked
	// there.
	turn sync.Mutex // guards hand
	// hand is the message that a pump has taken and not disposed of. It is set and
	// cleared, not counted, so that it does not follow from the counters.
	hand amount
	// waits tells that the pump waits for its sink to take more.
	waits atomic.Bool
	// paced tells that the pump waits for the relay's rate.
	paced atomic.Bool
}

func (f *flow) received(n int) {
	f.inBytes.Add(int64(n))
	f.inMessages.Add(1)
}

func (f *flow) sent(n int) {
	f.outBytes.Add(int64(n))
	f.outMessages.Add(1)
}

func (f *flow) lost(n int) {
	f.lostBytes.Add(int64(n))
	f.lostMs.Add(1)
}

// take counts a message that a pump has received, and has in hand now.
func (f *flow) take(n int) {
	f.turn.Lock()
	defer f.turn.Unlock()
	f.received(n)
	f.hand = amount{1, int64(n)}
}

// hold puts a message in a pump's hand that was counted as received when it began to
// wait.
func (f *flow) hold(n int) {
	f.turn.Lock()
	defer f.turn.Unlock()
	f.hand = amount{1, int64(n)}
}

// pass counts the message in hand as sent.
func (f *flow) pass(n int) {
	f.turn.Lock()
	defer f.turn.Unlock()
	f.sent(n)
	f.hand = amount{}
}

// drop counts the message in hand as lost.
func (f *flow) drop(n int) {
	f.turn.Lock()
	defer f.turn.Unlock()
	f.lost(n)
	f.hand = amount{}
}

// turnAway counts messages that were received and belong to no session.
func (f *flow) turnAway(messages, bytes int) {
	f.turn.Lock()
	defer f.turn.Unlock()
	f.receivedMany(messages, bytes)
	f.lostBytes.Add(int64(bytes))
	f.lostMs.Add(int64(messages))
}

// takeBack undoes the receipt and the loss of a message that goes elsewhere.
func (f *flow) takeBack(n int) {
	f.turn.Lock()
	defer f.turn.Unlock()
	f.inBytes.Add(-int64(n))
	f.inMessages.Add(-1)
	f.lostBytes.Add(-int64(n))
	f.lostMs.Add(-1)
}

// inFlight is what was received and is neither sent nor lost yet.
func (f *flow) inFlight() int64 {
	out, lost := f.outBytes.Load(), f.lostBytes.Load()
	return f.inBytes.Load() - out - lost
}

// losses counts by cause.
type losses struct {
	n [numCauses]atomic.Int64
	// told, where it is set, makes events of what is counted.
	told *telling
	// kept, where it is set, is where a relay's own losses outlive this process.
	kept *ledger
}

func (l *losses) add(c cause, n int64) {
	if n == 0 {
		return
	}
	l.n[c].Add(n)
	if l.kept != nil {
		l.kept.addLost(c, n)
	}
	if l.told != nil && n > 0 {
		l.told.tell(c)
	}
}

// tally is a sum of counters, of sessions that have ended or of a whole relay.
type tally struct {
	rx, tx books
	lost   [numCauses]int64
}

// take adds a session's counters, and what the kernel dropped from its TO's queue.
func (t *tally) take(c conversation) {
	s := c.common()
	t.rx.add(s.rx.counted())
	t.tx.add(s.tx.counted())
	t.takeLosses(&s.lost)
	if s, ok := c.(*session); ok {
		t.takeInside(s.from)
		t.takeInside(s.dialled())
	}
	t.lost[causeKernel] += int64(c.kernelDrops())
}

// kernelDrops is what the kernel dropped from a socket's full queue, also when
// the socket is closed by now.
func kernelDrops(s families.Socket) uint64 {
	d, err := families.As[families.Dropper](s)
	if err != nil {
		return 0
	}
	return d.Drops()
}

func (t *tally) add(u *tally) {
	t.rx.add(u.rx)
	t.tx.add(u.tx)
	for c := range u.lost {
		t.lost[c] += u.lost[c]
	}
}

func (t *tally) takeLosses(l *losses) {
	for c := range l.n {
		t.lost[c] += l.n[c].Load()
	}
}

// drops are the losses by name, without those that did not happen.
func (t *tally) drops() model.Drops {
	d := model.Drops{}
	for c, n := range t.lost {
		d.Add(causeNames[c], n)
	}
	return d
}
