package relay

import (
	"cmp"
	"maps"
	"slices"

	"github.com/sockd/sockd/families/model"
)

// The law of a relay's books: for each direction of each session, at any moment,
//
//	in = out + in flight + lost
//
// to the byte and, where there are messages, to the message. Three of the four are
// counters. What is in flight is not: it is found where it lies, so that a counter that
// is wrong cannot be right twice.
//
//	streams                 what the sink did not take yet, in memory and in the pipe
//	messages, goroutines    the message in a pump's hand; what waits for a dial
//	UDP                     what waits for a dial or for room; answers gathered in a turn
//	a fanout's branches     what is in their queues; its answers: what waits for the client
//
// A message is in when the relay has received it as one, so what lies in a framed
// stream's buffers is not: a part of a frame is no message yet, and a whole one behind
// another has not been received. It is out when the far socket took it. Where it lies
// then, in the kernel or as the rest of a frame, is the far socket's affair: what that
// loses was out before.

// books are the counts of one direction.
type books struct{ in, out, flight, lost amount }

func (b books) hold() bool { return b.in == b.out.plus(b.flight).plus(b.lost) }

func (b *books) add(c books) {
	b.in, b.out = b.in.plus(c.in), b.out.plus(c.out)
	b.flight, b.lost = b.flight.plus(c.flight), b.lost.plus(c.lost)
}

// counted are the counters.
func (f *flow) counted() books {
	return books{
		in:   amount{f.inMessages.Load(), f.inBytes.Load()},
		out:  amount{f.outMessages.Load(), f.outBytes.Load()},
		lost: amount{f.lostMs.Load(), f.lostBytes.Load()},
	}
}

// audit is the counters with what is in flight: what waits, and what is in hand.
func (f *flow) audit(waits amount) books {
	f.turn.Lock()
	defer f.turn.Unlock()
	b := f.counted()
	b.flight = f.hand.plus(waits)
	return b
}

// Audit checks the books of a relay, or for 0 of all of them: two lines for each
// session, two for each relay's ended sessions together (Session 0; with the messages
// that belonged to none), and for each session of a fanout one for every branch and one
// for their answers. Each line is of one moment, and each of another. Nothing stops
// meanwhile. A relay that is not there has no lines.
func (e *Engine) Audit(id model.ID) []model.Audit {
	out := []model.Audit{}
	for _, r := range e.all() {
		if id == 0 || r.id == id {
			out = append(out, r.audit()...)
		}
	}
	return out
}

// The directions, as Audit names them.
const (
	directionRx = "rx"
	directionTx = "tx"
)

func (r *relay) audit() []model.Audit {
	least := r.passedOn()
	past, running := r.pastAndRunning()
	past.rx.add(r.away.audit(amount{}))
	lines := []model.Audit{r.line(0, directionRx, past.rx), r.line(0, directionTx, past.tx)}
	for _, s := range measureAll(running) {
		lines = append(lines, s.lines(r)...)
	}
	slices.SortStableFunc(lines, func(a, b model.Audit) int { return cmp.Compare(a.Session, b.Session) })
	most := r.passedOn()
	checkSum(lines, 0, least.rx, most.rx)
	checkSum(lines, 1, least.tx, most.tx)
	return lines
}

// checkSum compares the lines with what the relay says of itself: what it has passed on
// lies between what it said before the audit and what it says after. Line i is of the
// sessions that have ended, and tells.
func checkSum(lines []model.Audit, i int, least, most int64) {
	sum := int64(0)
	for _, l := range lines {
		if l.Direction == lines[i].Direction && l.Branch == "" {
			sum += l.OutBytes
		}
	}
	if sum < least || sum > most {
		lines[i].Holds = false
	}
}

// pastAndRunning has each session once: one that ends meanwhile is still running.
func (r *relay) pastAndRunning() (tally, []conversation) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.past, slices.Collect(maps.Values(r.sessions))
}

// passedOn is what a relay says that it has passed on, as model does.
func (r *relay) passedOn() (n struct{ rx, tx int64 }) {
	past, running := r.pastAndRunning()
	n.rx, n.tx = past.rx.out.bytes, past.tx.out.bytes
	for _, c := range running {
		n.rx += c.common().rx.outBytes.Load()
		n.tx += c.common().tx.outBytes.Load()
	}
	return n
}

// measured is one session's books.
type measured struct {
	c      conversation
	rx, tx books
	unsent int64 // what a stream says that it has lost, by cause
}

func measure(c conversation) measured {
	m := measured{c: c, unsent: c.common().lost.n[causeUnsent].Load()}
	m.rx, m.tx = c.measure()
	return m
}

// auditTurn is how many sessions a shard is asked about at once: some ten microseconds.
const auditTurn = 256

// measureAll asks each session's books where it lives.
func measureAll(running []conversation) []measured {
	var out []measured
	homes := map[*shard][]conversation{}
	for _, c := range running {
		homes[c.loop()] = append(homes[c.loop()], c)
	}
	for home, all := range homes {
		for some := range slices.Chunk(all, auditTurn) {
			home.ask(func() {
				for _, c := range some {
					out = append(out, measure(c))
				}
			})
		}
	}
	return out
}

// ask runs f on the shard and waits for it, also when the shard has ended: then nobody
// else touches what was its own. For nil it just runs f.
func (s *shard) ask(f func()) {
	if s == nil {
		f()
		return
	}
	done := make(chan struct{})
	if !s.do(func() { f(); close(done) }) {
		<-s.done
		f()
		return
	}
	<-done
}

// lines are what Audit says of one session.
func (m *measured) lines(r *relay) []model.Audit {
	id := m.c.common().id
	rx, tx := r.line(id, directionRx, m.rx), r.line(id, directionTx, m.tx)
	if _, ok := m.c.(*stream); ok && rx.LostBytes+tx.LostBytes != m.unsent {
		rx.Holds, tx.Holds = false, false
	}
	lines := []model.Audit{rx, tx}
	if s, ok := m.c.(*session); ok {
		lines = append(lines, s.fanLines()...)
	}
	return lines
}

// line is one direction's.
func (r *relay) line(session model.ID, direction string, b books) model.Audit {
	return model.Audit{
		Relay: r.id, Name: r.name, Session: session, Direction: direction,
		InBytes: b.in.bytes, OutBytes: b.out.bytes, InFlightBytes: b.flight.bytes, LostBytes: b.lost.bytes,
		InMessages: b.in.messages, OutMessages: b.out.messages, InFlightMessages: b.flight.messages, LostMessages: b.lost.messages,
		Holds: b.hold(),
	}
}

// answersBranch is what the line of a fanout's answers has for its branch: "*", all.
const answersBranch = "*"

// fanLines are the books of a fanout's branches: what was offered to each is in, and
// what it has sent is out. Answers are in when a branch has received one, and out when
// the session has.
func (s *session) fanLines() (lines []model.Audit) {
	to := s.dialled()
	if to == nil {
		return nil
	}
	f, ok := to.sock.(*fanSocket)
	if !ok {
		return nil
	}
	branches, answers := f.audit()
	for _, b := range branches {
		l := s.r.line(s.id, directionRx, books{in: b.Offered, out: b.Sent, flight: b.Queued, lost: b.Dropped})
		l.Branch = b.To
		lines = append(lines, l)
	}
	l := s.r.line(s.id, directionTx, books{in: answers.Received, out: answers.Taken, flight: answers.Waiting, lost: answers.Dropped})
	l.Branch = answersBranch
	return append(lines, l)
}
