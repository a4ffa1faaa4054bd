package capture

import (
	"sync"
	"sync/atomic"

	"github.com/sockd/sockd/families/packet/pcapng"
)

// keepBytes is how large a buffer may be that is kept for the next packets.
const keepBytes = 2 << 20

// A queue keeps packets as pcapng blocks until a writer takes them, all at once.
type queue struct {
	limit  int           // bytes that may wait
	shared *atomic.Int64 // bytes that wait in all queues
	most   int64         // of them
	burst  *atomic.Bool  // set when a queue became large
	wake   chan struct{} // of capacity 1: something is there

	mu     *sync.Mutex // the subscription's; guards what follows
	buf    []byte
	spare  []byte // to swap with buf
	frames int64  // in buf
	told   int    // bytes of buf that shared knows of
	aside  int    // bytes that wait elsewhere for the same writer
	gather int    // how much the writer wants at once; 0: whatever there is
	called bool   // the writer knows that something is there
	hurry  bool   // it shall not wait for more
}

func newQueue(h *Hub, limit int64, mu *sync.Mutex) *queue {
	q := &queue{limit: h.limits.queue, shared: &h.queued, most: int64(h.limits.queues), burst: &h.burst, wake: make(chan struct{}, 1), mu: mu}
	if limit > 0 {
		q.limit = int(min(limit, q.most))
	}
	return q
}

func (q *queue) describe(i *pcapng.Interface) { q.buf = pcapng.AppendInterface(q.buf, *i) }

func (q *queue) stats(s *pcapng.Stats) { q.buf = pcapng.AppendStats(q.buf, *s) }

func (q *queue) add(p *pcapng.Packet) verdict {
	size := pcapng.PacketLen(len(p.Data), p.Dropped != 0)
	switch {
	case len(q.buf)+size > q.limit:
		return noRoom
	case q.shared.Load()+int64(len(q.buf)-q.told+size) > q.most:
		return noMemory
	}
	q.buf = pcapng.AppendPacket(q.buf, p)
	q.frames++
	return kept
}

// flush wakes the writer, who then waits for more if it gathers: a wake-up costs as
// much as a hundred packets.
func (q *queue) flush() {
	q.tell()
	if cap(q.buf) > keepBytes {
		q.burst.Store(true)
	}
	if q.called && !q.worth() {
		return
	}
	q.called = true
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
func (q *queue) take() (chunk []byte, frames int64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.takeLocked()
}

func (q *queue) takeLocked() (chunk []byte, frames int64) {
	q.tell()
	chunk, frames = q.buf, q.frames
	q.buf, q.spare, q.frames, q.told = q.spare[:0], nil, 0, 0
	q.aside, q.called, q.hurry = 0, false, false
	return chunk, frames
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
	frames = q.frames
	q.buf, q.spare, q.frames, q.told = nil, nil, 0, 0
	return frames
}
