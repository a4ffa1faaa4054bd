package relay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/sockd/sockd/families"
)

// Bounds of a fan. What it holds is at most, for each branch, what waits
// (branchBytes and one message more), one message in hand and one answer in hand,
// and for all of them together answerBytes and one answer a branch more.
const (
	// branchBytes bounds the memory of what waits for one branch, whatever queue=
	// says: 256 messages of 4 KiB. Without it, a queue of the largest messages would
	// hold 64 MiB.
	branchBytes = 1 << 20
	// answerQueue and answerBytes bound what waits for the client, of all branches
	// together. Beyond them, branches are not read, so that their senders wait.
	answerQueue = 64
	answerBytes = 1 << 20

	// A branch that cannot be dialled is tried again, soon at first, and then as
	// often as costs nothing.
	soonestBranch = 100 * time.Millisecond
	latestBranch  = 5 * time.Second
)

// fanSocket is the TO of a session of --balance fanout: a socket of messages whose
// other end is every TO. What is sent goes to each of them, and what each of them
// answers is received.
//
//	            ┌─► queue ──sender──► TO 1 ──reader──┐
//	Send ───────┼─► queue ──sender──► TO 2 ──reader──┼──► answers ──► Recv
//	 copied once└─► queue ──sender──► TO 3 ──reader──┘
//
// Each branch has goroutines of its own, which the fan owns and Close waits for, so
// that a TO that takes nothing holds up nobody else, but where its loss= is block.
//
// # What is counted
//
// For the session, a message is out when every branch that is there has it in its
// queue; one that finds no branch at all is lost, as "dial". From there on each
// branch keeps its own books, by which at any moment
//
//	offered = sent + queued + dropped
//
// where offered is every message that the session counts as out since it began,
// also while the branch was away, and queued includes the one in hand. Each
// message that one branch drops is one drop of the relay, by its cause: branch_full
// for want of room, dial while the branch is away, ended when the session is over,
// and what the socket says. Answers are the session's when it receives them; before
// that,
//
//	received = taken + waiting + dropped
type fanSocket struct {
	d      *dialer
	plan   *plan
	ctx    context.Context // ends with the fan
	cancel context.CancelFunc
	work   sync.WaitGroup // of the branches' goroutines
	lost   losses
	// ending: each branch can tell that it has ended (seqpacket, framed streams), so
	// the fan can.
	ending bool

	mu       sync.Mutex // guards what follows, and the branches
	branches []*branch
	answers  parcelQueue
	answer   struct{ received, taken, dropped amount }
	finished bool // CloseWrite was called
	over     bool // Recv has said io.EOF: nobody is dialled again
	closed   bool
	readable bell // an answer has come, or the last branch has ended
	writable bell // a queue has become shorter, or a branch is another one
	room     sync.Cond
}

var (
	_ families.Socket     = (*fanSocket)(nil)
	_ families.HalfCloser = (*fanSocket)(nil)
	_ families.Resetter   = (*fanSocket)(nil)
	_ families.Dropper    = (*fanSocket)(nil)
)

// bell wakes everybody who waits; they look for themselves. It is guarded by its
// owner's lock.
type bell struct{ heard chan struct{} }

// listen gives what closes when the bell rings next.
func (b *bell) listen() <-chan struct{} {
	if b.heard == nil {
		b.heard = make(chan struct{})
	}
	return b.heard
}

func (b *bell) ring() {
	if b.heard != nil {
		close(b.heard)
		b.heard = nil
	}
}

// errNoBranch: every branch is away, so the message has nobody to go to.
var errNoBranch = errors.New("no branch of the fanout can be dialled")

// dialFan dials every TO. The fan is there as soon as one of them is; when none
// can be dialled, the error is the last one's.
func (d *dialer) dialFan(ctx context.Context, p *plan) (*leg, error) {
	f := newFan(d, p)
	if err := f.start(ctx); err != nil {
		_ = f.Close() // it never was there
		return nil, err
	}
	l := &leg{sock: f, kind: kindDgram, local: true, text: p.backends[0].text}
	if f.ending {
		l.kind = kindSeqpacket
	}
	if more := len(p.backends) - 1; more > 0 {
		l.text += fmt.Sprintf(" and %d more", more)
	}
	return l, nil
}

func newFan(d *dialer, p *plan) *fanSocket {
	f := &fanSocket{d: d, plan: p, ending: true}
	f.room.L = &f.mu
	f.ctx, f.cancel = context.WithCancel(context.Background())
	for _, to := range p.backends {
		b := &branch{fan: f, to: to, loss: to.own.loss, limit: to.own.queue}
		if b.limit == 0 {
			b.limit = defaultQueue
		}
		b.more.L = &f.mu
		f.branches = append(f.branches, b)
		if to.kind.endless() {
			f.ending = false
		}
	}
	return f
}

// start dials all branches and waits for the first that stands.
func (f *fanSocket) start(ctx context.Context) error {
	first := make(chan error, len(f.branches))
	for _, b := range f.branches {
		f.work.Add(1)
		go b.run(first)
	}
	var err error
	for range f.branches {
		select {
		case err = <-first:
			if err == nil {
				return nil
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return err
}

// Bind and Connect are done by the branches.
func (f *fanSocket) Bind(families.Addr) error { return families.ErrNotSupported }

// Connect is not to be had: see Bind.
func (f *fanSocket) Connect(context.Context, families.Addr) error { return families.ErrNotSupported }

// NameAddr has no names to read: the client has one peer, the fan.
func (f *fanSocket) NameAddr(families.Name) families.Addr { return nil }

// Info says no more than that the fan is there.
func (f *fanSocket) Info() families.Info {
	i := families.Info{Family: balanceFanout, Type: families.Dgram, State: families.Connected}
	if f.ending {
		i.Type = families.Seqpacket
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		i.State = families.Closed
	}
	return i
}

// Send gives one message to every branch. It says ErrAgain while a branch whose
// loss is block has no room.
func (f *fanSocket) Send(m *families.Msg) (int, error) {
	f.mu.Lock()
	live, err := f.liveLocked()
	if err != nil {
		f.mu.Unlock()
		return 0, err
	}
	var cut []*leg
	p := newParcel(m.Data, live)
	for _, b := range f.branches {
		if l := b.offerLocked(p); l != nil {
			cut = append(cut, l)
		}
	}
	f.mu.Unlock()
	for _, l := range cut {
		l.abort()
	}
	return len(m.Data), nil
}

// liveLocked is how many branches would take a message now, or why none is taken.
func (f *fanSocket) liveLocked() (n int, err error) {
	gone := 0
	for _, b := range f.branches {
		switch {
		case b.state == branchGone:
			gone++
		case b.state.takes():
			n++
		}
	}
	switch {
	case f.closed:
		return 0, net.ErrClosed
	case f.finished:
		return 0, syscall.EPIPE
	case gone == len(f.branches):
		return 0, fmt.Errorf("every branch of the fanout has been closed: %w", syscall.EPIPE)
	case n == 0:
		return 0, errNoBranch
	case !f.hasRoomLocked():
		return 0, families.ErrAgain
	}
	return n, nil
}

func (f *fanSocket) hasRoomLocked() bool {
	for _, b := range f.branches {
		if b.loss == lossBlock && b.state.takes() && b.fullLocked() {
			return false
		}
	}
	return true
}

// Recv gives one answer of any branch.
func (f *fanSocket) Recv(m *families.Msg) error {
	room, peek := m.Data[:cap(m.Data)], m.Flags&families.FlagPeek != 0
	*m = families.Msg{Data: room[:0]}
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.closed:
		return net.ErrClosed
	case f.answers.n == 0 && f.endedLocked():
		f.over = true
		return io.EOF
	case f.answers.n == 0:
		return families.ErrAgain
	}
	p := *f.answers.at(0)
	m.Full, m.Data = p.size(), room[:copy(room, p.room.payload())]
	if !peek {
		f.answers.take(0).release()
		f.answer.taken.add(m.Full)
		f.room.Broadcast()
	}
	if m.Full > len(m.Data) {
		return families.ErrCut
	}
	return nil
}

// endedLocked tells whether no branch will answer any more.
func (f *fanSocket) endedLocked() bool {
	for _, b := range f.branches {
		if !b.ended && b.state != branchGone {
			return false
		}
	}
	return f.ending
}

// Wait waits for an answer, or for room in all branches that are waited for.
func (f *fanSocket) Wait(ctx context.Context, r families.Ready) error {
	for {
		f.mu.Lock()
		in, out, err := f.readyLocked(r)
		f.mu.Unlock()
		if err != families.ErrAgain {
			return err
		}
		select {
		case <-in:
		case <-out:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// readyLocked is nil, net.ErrClosed, or ErrAgain with what closes when that may be
// over.
func (f *fanSocket) readyLocked(r families.Ready) (in, out <-chan struct{}, err error) {
	reads, writes := r&families.Readable != 0, r&families.Writable != 0
	switch {
	case f.closed:
		return nil, nil, net.ErrClosed
	case reads && (f.answers.n > 0 || f.endedLocked()), writes && f.hasRoomLocked():
		return nil, nil, nil
	}
	if reads {
		in = f.readable.listen()
	}
	if writes {
		out = f.writable.listen()
	}
	return in, out, families.ErrAgain
}

// CloseRead has nothing to do: answers are received until the branches end.
func (f *fanSocket) CloseRead() error { return nil }

// CloseWrite ends every branch behind what waits for it. It waits until that has
// been sent, lingerTime at most; what a branch has not taken by then is lost, and
// counted as ended.
func (f *fanSocket) CloseWrite() error {
	f.mu.Lock()
	f.finished = true
	f.wakeLocked()
	f.mu.Unlock()
	ctx, cancel := context.WithTimeout(f.ctx, lingerTime)
	defer cancel()
	if f.drain(ctx) == nil {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, b := range f.branches {
		b.dropWaitingLocked(causeEnded)
	}
	return nil
}

// CloseBoth is CloseWrite.
func (f *fanSocket) CloseBoth() error { return f.CloseWrite() }

// drain waits until nothing is queued.
func (f *fanSocket) drain(ctx context.Context) error {
	for {
		f.mu.Lock()
		queued, moved := 0, f.writable.listen()
		for _, b := range f.branches {
			queued += b.queue.n
		}
		f.mu.Unlock()
		if queued == 0 {
			return nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Close closes every branch in order, and waits for their goroutines. What still
// waits is lost and counted as ended.
func (f *fanSocket) Close() error { return f.end((*leg).close) }

// Reset is Close with a reset where a branch has one.
func (f *fanSocket) Reset() error { return f.end((*leg).abort) }

func (f *fanSocket) end(how func(*leg)) error {
	f.mu.Lock()
	f.closed = true
	legs := f.legsLocked()
	f.wakeLocked()
	f.mu.Unlock()
	f.cancel()
	for _, l := range legs {
		how(l)
	}
	f.work.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	for f.answers.n > 0 {
		p := f.answers.take(0)
		f.answer.dropped.add(p.size())
		f.lost.add(causeEnded, 1)
		p.release()
	}
	return nil
}

func (f *fanSocket) legsLocked() (legs []*leg) {
	for _, b := range f.branches {
		if b.leg != nil {
			legs = append(legs, b.leg)
		}
	}
	return legs
}

// wakeLocked wakes whoever waits for anything of the fan.
func (f *fanSocket) wakeLocked() {
	f.readable.ring()
	f.writable.ring()
	f.room.Broadcast()
	for _, b := range f.branches {
		b.more.Broadcast()
	}
}

// Drops is what the kernel dropped from the branches' queues.
func (f *fanSocket) Drops() uint64 {
	f.mu.Lock()
	var n uint64
	for _, b := range f.branches {
		n += b.kernel
	}
	legs := f.legsLocked()
	f.mu.Unlock()
	for _, l := range legs {
		n += kernelDrops(l.sock)
	}
	return n
}

// queued is what no branch has brought away yet, in bytes.
func (f *fanSocket) queued() (int, error) {
	f.mu.Lock()
	n := 0
	for _, b := range f.branches {
		n += int(b.queue.amount().bytes)
	}
	legs := f.legsLocked()
	f.mu.Unlock()
	for _, l := range legs {
		if q, err := outq(l.sock); err == nil { // a branch that cannot say has nothing to wait for
			n += q
		}
	}
	return n, nil
}

func (f *fanSocket) losses() *losses { return &f.lost }

// branchBooks are what one branch has counted: Offered is the sum of the others.
type branchBooks struct {
	To                             string
	State                          branchState
	Offered, Sent, Queued, Dropped amount
}

// answerBooks are what has come back: Received is the sum of the others.
type answerBooks struct{ Received, Taken, Waiting, Dropped amount }

// audit is every branch's books, and the answers', at one moment.
func (f *fanSocket) audit() ([]branchBooks, answerBooks) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var all []branchBooks
	for _, b := range f.branches {
		all = append(all, branchBooks{
			To: b.to.text, State: b.state,
			Offered: b.offered, Sent: b.sent, Queued: b.queue.amount(), Dropped: b.dropped,
		})
	}
	return all, answerBooks{f.answer.received, f.answer.taken, f.answers.amount(), f.answer.dropped}
}
