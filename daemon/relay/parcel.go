package relay

import (
	"sync"
	"sync/atomic"
)

// parcel is one message that several branches of a fanout send: it is copied once,
// and the last of its holders gives it back.
type parcel struct {
	// room has the message behind an empty virtio_net_hdr, which goes along to
	// packet sockets; see wire.
	room frame
	refs atomic.Int32
	pool *sync.Pool // nil: too large to keep
}

// parcelSizes are the rooms that are kept for reuse: a small message, a page of
// jumbo frames, and the largest UDP datagram. With few sizes, and a queue bounded
// by its messages' rooms, no queue holds more memory than it counts.
var parcelSizes = [...]int{2 << 10, 16 << 10, 64 << 10}

var parcels [len(parcelSizes)]sync.Pool // of *parcel, by parcelSizes

// newParcel copies a message for a number of holders, of whom each calls release
// once.
func newParcel(message []byte, holders int) *parcel {
	n := vnetLen + len(message)
	p := roomFor(n)
	p.room = p.room[:n]
	copy(p.room[vnetLen:], message)
	p.refs.Store(int32(holders))
	return p
}

func roomFor(n int) *parcel {
	for i, size := range parcelSizes {
		if n > size {
			continue
		}
		if p, ok := parcels[i].Get().(*parcel); ok {
			return p
		}
		return &parcel{room: make(frame, size), pool: &parcels[i]}
	}
	return &parcel{room: make(frame, n)}
}

// release gives up one hold.
func (p *parcel) release() {
	if p.refs.Add(-1) == 0 && p.pool != nil {
		p.pool.Put(p)
	}
}

func (p *parcel) size() int { return len(p.room.payload()) }

// parcelQueue is a queue of parcels that counts what memory they hold.
type parcelQueue struct {
	ring    []*parcel
	head, n int
	held    int // bytes of room
}

// at is the i-th parcel, from the oldest.
func (q *parcelQueue) at(i int) **parcel { return &q.ring[(q.head+i)%len(q.ring)] }

func (q *parcelQueue) push(p *parcel) {
	if q.n == len(q.ring) {
		q.grow()
	}
	q.n++
	*q.at(q.n - 1) = p
	q.held += cap(p.room)
}

func (q *parcelQueue) grow() {
	ring := make([]*parcel, max(4, 2*len(q.ring)))
	for i := range q.n {
		ring[i] = *q.at(i)
	}
	q.ring, q.head = ring, 0
}

// take takes out the i-th parcel, 0 or 1: the oldest, or the oldest but one.
func (q *parcelQueue) take(i int) *parcel {
	p := *q.at(i)
	if i == 1 {
		*q.at(1) = *q.at(0)
	}
	*q.at(0) = nil
	q.head, q.n = (q.head+1)%len(q.ring), q.n-1
	q.held -= cap(p.room)
	return p
}

// amount counts messages and their bytes.
type amount struct{ messages, bytes int64 }

func (a *amount) add(n int) {
	a.messages++
	a.bytes += int64(n)
}

func (a amount) plus(b amount) amount {
	return amount{a.messages + b.messages, a.bytes + b.bytes}
}

// amount is what waits in the queue.
func (q *parcelQueue) amount() (a amount) {
	for i := range q.n {
		a.add((*q.at(i)).size())
	}
	return a
}
