package relay

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"syscall"

	"github.com/sockd/sockd/families"
)

// branchState is where a branch of a fan stands.
//
//	dialling ──► up ──breaks──► dialling    after it has worked: its queue waits
//	    │        ▲ └──breaks──► away        at once
//	    │ fails  │
//	    └──► away ──► dialled again and again; what is offered meanwhile is lost
//	up or dialling ──full, with loss=disconnect──► gone
type branchState string

const (
	branchDialling branchState = "" // the first, before its dial has ended
	branchUp       branchState = "up"
	branchAway     branchState = "away"
	branchGone     branchState = "gone"
)

// takes tells whether messages wait for a branch in this state.
func (s branchState) takes() bool { return s == branchDialling || s == branchUp }

// branch is one TO of a fan. Its goroutine dials and sends, and owns another one,
// which receives.
type branch struct {
	fan   *fanSocket
	to    *backend
	loss  string
	limit int // messages that wait

	more sync.Cond // on fan.mu: something waits, or the leg is over

	// Guarded by fan.mu.
	state  branchState
	leg    *leg // nil while there is none
	queue  parcelQueue
	inHand bool // the oldest in the queue is being sent
	said   bool // the end was passed on, after CloseWrite
	ended  bool // the leg has no more answers
	broken bool // the leg is over
	worked bool // the leg has moved a message

	offered, sent, dropped amount
	kernel                 uint64 // kernelDrops of the legs before
}

// waitingLocked is how many messages wait behind the one in hand.
func (b *branch) waitingLocked() int {
	if b.inHand {
		return b.queue.n - 1
	}
	return b.queue.n
}

func (b *branch) fullLocked() bool {
	n := b.waitingLocked()
	return n >= b.limit || n > 0 && b.queue.held >= branchBytes
}

// offerLocked puts a message into the queue, of which the branch holds one share
// if it takes messages at all. A leg that it gives is to be ended by the caller:
// loss=disconnect.
func (b *branch) offerLocked(p *parcel) (cut *leg) {
	b.offered.add(p.size())
	if !b.state.takes() {
		b.countDropLocked(p, b.whyLocked())
		return nil
	}
	if b.fullLocked() && b.loss == lossDisconnect {
		b.state = branchGone
		b.fan.lost.add(causeBranchCut, 1)
		b.dropWaitingLocked(causeBranchFull)
		b.countDropLocked(p, causeBranchFull)
		p.release()
		b.fan.wakeLocked()
		return b.leg
	}
	for b.fullLocked() {
		b.dropOldestLocked(causeBranchFull)
	}
	b.queue.push(p)
	b.more.Signal()
	return nil
}

// whyLocked is why a branch that takes no messages loses them.
func (b *branch) whyLocked() cause {
	if b.state == branchGone {
		return causeBranchFull
	}
	return causeDial
}

func (b *branch) countDropLocked(p *parcel, why cause) {
	b.dropped.add(p.size())
	b.fan.lost.add(why, 1)
}

// dropOldestLocked drops the message that has waited longest.
func (b *branch) dropOldestLocked(why cause) {
	i := 0
	if b.inHand {
		i = 1
	}
	p := b.queue.take(i)
	b.countDropLocked(p, why)
	p.release()
}

// dropWaitingLocked drops all that is not in hand.
func (b *branch) dropWaitingLocked(why cause) {
	for b.waitingLocked() > 0 {
		b.dropOldestLocked(why)
	}
	b.fan.writable.ring()
}

// run dials the branch again and again, and serves it, until the fan is closed or
// the branch is gone. It tells first how its first dial went.
func (b *branch) run(first chan<- error) {
	defer b.fan.work.Done()
	defer b.retire()
	for pause := soonestBranch; ; {
		l, err := b.dial()
		if first != nil {
			first <- err // has room for every branch
			first = nil
		}
		if err == nil && b.serve(l) {
			pause = soonestBranch // it has worked: whoever it was may be back already
			continue
		}
		if b.away(); b.isOver() || !rest(b.fan.ctx, pause) {
			return
		}
		pause = min(2*pause, latestBranch)
	}
}

func (b *branch) dial() (*leg, error) {
	b.fan.plan.hold()
	defer b.fan.plan.release()
	return b.fan.d.dialBackend(b.fan.ctx, b.fan.plan, b.to)
}

// serve runs the branch on a leg until it is over, and tells whether it is worth
// another one at once.
func (b *branch) serve(l *leg) (again bool) {
	if !b.enter(l) {
		l.abort()
		return false
	}
	received := make(chan struct{})
	go func() {
		defer close(received)
		b.receive(l)
	}()
	b.send(l)
	l.abort()
	<-received
	return b.leave(l)
}

// enter makes a leg the branch's; false is that it came too late.
func (b *branch) enter(l *leg) bool {
	b.fan.mu.Lock()
	defer b.fan.mu.Unlock()
	if b.fan.closed || b.fan.over || b.state == branchGone {
		return false
	}
	b.leg, b.state = l, branchUp
	b.broken, b.worked, b.ended, b.said = false, false, false, false
	b.fan.writable.ring()
	return true
}

// leave takes the leg's last counts.
func (b *branch) leave(l *leg) (again bool) {
	drops := kernelDrops(l.sock)
	b.fan.lost.addInside(l)
	b.fan.mu.Lock()
	defer b.fan.mu.Unlock()
	b.kernel += drops
	b.leg, b.inHand = nil, false
	if b.fan.closed || b.fan.over || b.state == branchGone || !b.worked {
		return false
	}
	b.state = branchDialling
	return true
}

// away notes that the branch cannot be had. Nobody knows for how long, so what
// waits is lost.
func (b *branch) away() {
	b.fan.mu.Lock()
	defer b.fan.mu.Unlock()
	why := causeDial
	if b.fan.closed {
		why = causeEnded
	}
	if b.state.takes() && !b.fan.closed {
		b.state = branchAway
	}
	b.dropWaitingLocked(why)
	b.fan.writable.ring()
}

// retire is the end of a branch for good.
func (b *branch) retire() {
	b.fan.mu.Lock()
	defer b.fan.mu.Unlock()
	b.inHand = false
	b.dropWaitingLocked(causeEnded)
	b.state = branchGone
	b.fan.readable.ring()
}

func (b *branch) isOver() bool {
	b.fan.mu.Lock()
	defer b.fan.mu.Unlock()
	return b.fan.closed || b.fan.over || b.state == branchGone
}

// send sends what waits until the leg is over.
func (b *branch) send(l *leg) {
	var m families.Msg
	for {
		p, end := b.next()
		switch {
		case end:
			l.closeWrite()
			continue
		case p == nil:
			return
		}
		m.Data = p.room.payload()
		if l.vnet {
			m.Data = p.room
		}
		if !b.settle(p, b.sendOne(l, &m)) {
			return
		}
	}
}

// next waits for the next message to send, which stays in the queue while it is in
// hand. end is that the leg is to be ended, once; neither is that it is over.
func (b *branch) next() (p *parcel, end bool) {
	f := b.fan
	f.mu.Lock()
	defer f.mu.Unlock()
	for {
		switch {
		case f.closed || b.broken || b.state == branchGone:
			return nil, false
		case b.queue.n > 0:
			b.inHand = true
			return *b.queue.at(0), false
		case f.finished && !b.said:
			b.said = true
			return nil, true
		}
		b.more.Wait()
	}
}

// sendOne sends one message, as long as that takes: its own branch is all that it
// holds up.
func (b *branch) sendOne(l *leg, m *families.Msg) outcome {
	retried := false
	for {
		_, err := l.sock.Send(m)
		switch {
		case err == nil:
			return outcome{fate: sent}
		case isAgain(err):
			if err := l.sock.Wait(context.Background(), families.Writable); err != nil {
				return outcome{fate: broken, err: err}
			}
		case errors.Is(err, syscall.ECONNREFUSED) && !l.local && !retried:
			retried = true // it was about an earlier datagram: this one was not tried
			b.fan.lost.add(causeRefused, 1)
		default:
			return l.failedSend(err)
		}
	}
}

// settle notes what became of the message in hand. One that broke its leg was not
// taken, and waits for the next leg; false is that this one is over.
func (b *branch) settle(p *parcel, o outcome) bool {
	b.fan.mu.Lock()
	defer b.fan.mu.Unlock()
	b.inHand = false
	switch o.fate {
	case broken:
		return false
	case sent:
		b.sent.add(p.size())
		b.worked = true
	default:
		b.countDropLocked(p, o.cause)
	}
	b.queue.take(0).release()
	b.fan.writable.ring()
	return true
}

// receive takes the branch's answers until it has no more.
func (b *branch) receive(l *leg) {
	err := b.receiveAll(l)
	b.fan.mu.Lock()
	b.ended = true
	b.broken = err != io.EOF
	b.more.Broadcast()
	b.fan.readable.ring()
	b.fan.mu.Unlock()
	if err != io.EOF {
		l.abort()
	}
}

func (b *branch) receiveAll(l *leg) error {
	for {
		if err := b.fan.awaitRoom(); err != nil {
			return err
		}
		buf := messageBuffers.Get().(*buffer)
		err := b.drain(l, buf)
		messageBuffers.Put(buf)
		switch err {
		case nil: // the client has enough to read
		case families.ErrAgain:
			if err := l.sock.Wait(context.Background(), families.Readable); err != nil {
				return err
			}
		default:
			return err
		}
	}
}

// awaitRoom waits until the client has taken enough of the answers.
func (f *fanSocket) awaitRoom() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for !f.closed && f.crowdedLocked() {
		f.room.Wait()
	}
	if f.closed {
		return net.ErrClosed
	}
	return nil
}

func (f *fanSocket) crowdedLocked() bool {
	return f.answers.n >= answerQueue || f.answers.held >= answerBytes
}

// drain receives what is there now (ErrAgain), as long as there is room for it.
func (b *branch) drain(l *leg, buf *buffer) error {
	for {
		fr, _, err := l.receive(buf)
		b.fan.lost.add(causeFiles, discardFiles(&buf.in))
		switch {
		case err == nil:
			if crowded := b.answer(l, fr, buf); crowded {
				return nil
			}
		case isAgain(err):
			return families.ErrAgain
		case errors.Is(err, io.EOF):
			return io.EOF
		case !b.passes(l, err):
			return err
		}
	}
}

// passes counts an error of receiving, and tells whether the leg may be received
// from after it.
func (b *branch) passes(l *leg, err error) bool {
	_, torn := err.(*tornError)
	switch {
	case torn:
		b.fan.lost.add(causeTorn, 1)
		return false
	case errors.Is(err, families.ErrCut):
		b.fan.lost.add(causeCut, 1)
		return true
	case l.passes(err):
		b.fan.lost.add(noted(err), 1)
		return true
	}
	return false
}

// answer puts an answer where the client receives it. One of a packet socket is
// given as it would be on a wire.
func (b *branch) answer(l *leg, fr frame, buf *buffer) (crowded bool) {
	if !l.vnet {
		return b.fan.put(b, fr.payload())
	}
	buf.cutter.reset(fr)
	for {
		seg, err := buf.cutter.next()
		switch {
		case err == io.EOF:
			return crowded
		case err != nil:
			b.fan.lost.add(causeInvalid, 1)
			return crowded
		}
		crowded = b.fan.put(b, seg)
	}
}

func (f *fanSocket) put(from *branch, answer []byte) (crowded bool) {
	p := newParcel(answer, 1)
	f.mu.Lock()
	defer f.mu.Unlock()
	from.worked = true
	f.answers.push(p)
	f.answer.received.add(p.size())
	f.readable.ring()
	return f.crowdedLocked()
}
