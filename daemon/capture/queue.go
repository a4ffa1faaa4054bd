package capture

import (
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sockd/sockd/families/packet/pcapng"
)

// keepBytes is how large a buffer may be that is kept for the next packets: what a writer gathers,
// a block of the ring on top, and how append grows it.
const keepBytes = 4 << 20

// A queue keeps packets as pcapng blocks until a writer takes them, all at once.
type queue struct {
	limit  int           // bytes that may wait
	shared *atomic.Int64 // bytes that wait in all queues
	most   int64         // of them
	burst  *atomic.Bool  // set when a queue became large
	wake   chan struct{} // of capacity 1: something is there

	mu       *sync.Mutex // the subscription's; guards what follows
	buf      []byte
	spare    []byte        // to swap with buf
	sum      extent        // of buf
	told     int           // bytes of buf that shared knows of
	aside    int           // bytes that wait elsewhere for the same writer
	gather   int           // how much the writer wants at once; 0: whatever there is
	hurry    bool          // it shall not wait for more
	due      *time.Timer   // calls a writer that gathers when that takes too long; nil: there is none
	timed    bool          // due runs
	patience time.Duration // how long it does
}

func newQueue(h *Hub, limit int64, mu *sync.Mutex) *queue {
	q := &queue{limit: h.limits.queue, shared: &h.queued, most: int64(h.limits.queues), burst: &h.burst, wake: make(chan struct{}, 1), mu: mu}
	if limit > 0 {
		q.limit = int(min(limit, q.most))
	}
	return q
}

func (q *queue) describe(i *pcapng.Interface) {
	q.buf = pcapng.AppendInterface(q.buf, *i)
	q.sum.mixed = true
}

func (q *queue) stats(s *pcapng.Stats) {
	q.buf = pcapng.AppendStats(q.buf, *s)
	q.sum.mixed = true
}

func (q *queue) add(p *pcapng.Packet) verdict {
	size := p.Size()
	switch {
	case len(q.buf)+size > q.limit:
		return noRoom
	case q.shared.Load()+int64(len(q.buf)-q.told+size) > q.most:
		return noMemory
	}
	q.buf = pcapng.AppendPacket(q.buf, p)
	q.sum.add(p)
	return kept
}

// gatherUp has the writer woken when there is as much as it wants, or some has waited
// for a while: a wake-up costs as much as a hundred packets.
func (q *queue) gatherUp(size int, most time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.gather, q.patience = size, most
	q.due = time.AfterFunc(math.MaxInt64, func() {
		q.mu.Lock()
		q.hurry = true
		q.mu.Unlock()
		q.call()
	})
}

// flush wakes the writer, or sees to it that it is woken in time.
func (q *queue) flush() {
	q.tell()
	if cap(q.buf) > keepBytes {
		q.burst.Store(true)
	}
	switch {
	case q.worth():
		q.call()
	case !q.timed:
		q.timed = true
		q.due.Reset(q.patience)
	}
}

func (q *queue) call() {
	select {
	case q.wake <- struct{}{}:
	default: // the writer has not looked yet
	}
}

// worth tells whether the writer has nothing to wait for; mu is held.
func (q *queue) worth() bool { return q.hurry || len(q.buf)+q.aside >= q.gather }

// tell adds what buf has grown to the bytes of all queues.
func (q *queue) tell() {
	q.shared.Add(int64(len(q.buf) - q.told))
	q.told = len(q.buf)
}

// empty tells whether nothing waits; mu is held.
func (q *queue) empty() bool { return len(q.buf) == 0 }

// take gives all that waits to the writer, who gives the chunk back with done.
func (q *queue) take() (chunk []byte, sum extent) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.takeLocked()
}

func (q *queue) takeLocked() (chunk []byte, sum extent) {
	q.tell()
	chunk, sum = q.buf, q.sum
	q.buf, q.spare, q.sum, q.told = q.spare[:0], nil, extent{}, 0
	if q.timed {
		q.due.Stop()
	}
	q.aside, q.timed, q.hurry = 0, false, false
	return chunk, sum
}

// done takes a chunk back, for the next packets unless a burst has made it large.
func (q *queue) done(chunk []byte) {
	q.shared.Add(-int64(len(chunk)))
	q.mu.Lock()
	defer q.mu.Unlock()
	if cap(chunk) <= keepBytes {
		q.spare = chunk
	}
}

// discard forgets what waits, and the buffers, for good; mu is held.
func (q *queue) discard() (frames int64) {
	q.shared.Add(-int64(q.told))
	if q.due != nil {
		q.due.Stop()
	}
	frames = q.sum.packets
	q.buf, q.spare, q.sum, q.told = nil, nil, extent{}, 0
	return frames
}

// extent is what a writer of files must know of a run of blocks, so that it does not
// have to look at each.
type extent struct {
	packets     int64
	first, last int64  // the least and the greatest time
	iface       uint32 // of the packets
	mixed       bool   // there are packets of other interfaces, or other blocks
}

func (e *extent) add(p *pcapng.Packet) {
	if e.packets == 0 {
		e.first, e.last, e.iface = p.Time, p.Time, p.Interface
	}
	e.packets++
	e.first, e.last = min(e.first, p.Time), max(e.last, p.Time)
	e.mixed = e.mixed || p.Interface != e.iface
}
