package relay

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/sockd/sockd/families/model"
)

// conversation is a session as its relay sees it, however its bytes move.
type conversation interface {
	// common is what all have.
	common() *record
	// end ends it soon, with resets; err says why, if nothing else did before. It
	// may be called from any goroutine, and more than once.
	end(err error)
	// parties are both ends as lists show them; backend is "" while it is dialled.
	parties() (peer, backend string)
	// path is how bytes move: splice copy batch direct.
	path() string
	// kernelDrops is what the kernel dropped from TO's queue.
	kernelDrops() uint64
	// loop is the event loop that alone touches it, or nil for one of goroutines.
	loop() *shard
	// measure is the books of both directions with what is in flight as it is found,
	// at one moment. It is called on loop, where there is one.
	measure() (rx, tx books)
}

// record is what every conversation has.
//
//	connecting ──dialled──► open ──one end──► half-closed-* ──the other──► gone
//	     └──────────── an error, a bound or a caller ends it ────────────► gone
type record struct {
	r     *relay
	id    model.ID
	since time.Time
	plan  *plan // how it was dialled; its bounds hold for its whole life

	rx, tx flow // from FROM towards TO, and back
	lost   losses
	active atomic.Int64 // when bytes last moved, nanoseconds since epoch
	vacant atomic.Bool  // it has given back the relay's room for it

	mu       sync.Mutex // guards what follows
	open     bool       // TO is there
	fromDone bool       // FROM has ended
	toDone   bool       // TO has ended
	ended    bool       // end was called: the sockets are closed
	cause    error      // why it ends, when not in order
}

// epoch is where times are counted from: only differences matter.
var epoch = time.Now()

// init makes a record of a new conversation, by a plan that the caller holds for it.
func (c *record) init(r *relay, p *plan) {
	c.r, c.id, c.since, c.plan = r, r.eng.opts.Host.NewID(), time.Now(), p
	c.lost.told = &r.telling
	c.touch()
}

func (c *record) common() *record { return c }

// touch notes that bytes moved.
func (c *record) touch() { c.active.Store(int64(time.Since(epoch))) }

// quiet is how long nothing has moved.
func (c *record) quiet() time.Duration { return time.Since(epoch) - time.Duration(c.active.Load()) }

// because notes why the conversation ends. The first reason is the one that counts.
func (c *record) because(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cause == nil {
		c.cause = err
	}
}

func (c *record) reason() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cause
}

func (c *record) isEnded() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ended
}

// directionDone notes that a direction has ended in order, and tells whether both
// have.
func (c *record) directionDone(f *flow) (both bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f == &c.rx {
		c.fromDone = true
	} else {
		c.toDone = true
	}
	return c.fromDone && c.toDone
}

// lose counts the message that a pump has in hand, which is not passed on.
func (c *record) lose(f *flow, n int, why cause) {
	f.drop(n)
	c.lost.add(why, 1)
}

// view is a conversation as lists show it.
func view(v conversation) model.Session {
	c := v.common()
	peer, backend := v.parties()
	return model.Session{
		ID: c.id, Relay: c.r.id, Peer: peer, Backend: backend, State: c.state(c.r.isDraining()), Since: c.since,
		RxBytes: c.rx.outBytes.Load(), TxBytes: c.tx.outBytes.Load(),
		Path: v.path(), LimitedBy: c.limitedBy(),
	}
}

func (c *record) state(draining bool) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case !c.open:
		return "connecting"
	case c.fromDone:
		return "half-closed-from"
	case c.toDone:
		return "half-closed-to"
	case draining:
		return "draining"
	}
	return "open"
}

// limitedBy names what a pump waits for now.
func (c *record) limitedBy() string {
	switch {
	case c.rx.waits.Load():
		return "to"
	case c.tx.waits.Load():
		return "from"
	case c.rx.paced.Load(), c.tx.paced.Load(), c.r.held.Load():
		return "rate"
	}
	return ""
}
