package capture

import (
	"time"

	"github.com/sockd/sockd/families/packet/filter"
	"github.com/sockd/sockd/families/packet/pcapng"
	"github.com/sockd/sockd/families/packet/ring"
)

// attachment is a subscription's place on one tap.
type attachment struct {
	sub *Subscription
	tap *tap

	// What follows is guarded by sub.mu.
	start  int64   // when it began, nanoseconds since 1970
	blocks int     // blocks seen while waiting for the first packet after start; see late
	base   uint64  // the ring's drops at the beginning
	kernel uint64  // the ring's drops since then, as known last
	seen   *view   // that last is of
	last   *stream // of the packet before
}

// stream is what a subscription has of one interface.
type stream struct {
	iface     *iface
	link      pcapng.LinkType // as it is delivered
	wanted    bool
	described bool
	id        uint32 // in the store, once described
	judge     *judge // that program is of
	program   *filter.Program
	native    pcapng.LinkType // as the ring has it
	start     int64
	filter    string                      // that is in its description
	before    *stream                     // of the same interface, under the filter before this one; may be nil
	follower  *filter.Follower[heldFrame] // nil unless program follows fragments
	left      time.Time                   // when it was seen that the interface is gone
	done      bool                        // the store has its last statistics

	received, lost int64 // packets that passed the filter; of them, those that found no room
}

// begin is called when packets start to come: drops is what the ring dropped before.
func (a *attachment) begin(drops uint64) {
	a.sub.mu.Lock()
	defer a.sub.mu.Unlock()
	a.base, a.start = drops, time.Now().UnixNano()
}

// note learns what the ring has dropped; sub.mu is held.
func (a *attachment) note(drops uint64) {
	if drops > a.base+a.kernel {
		a.sub.kernel += drops - a.base - a.kernel
		a.kernel = drops - a.base
	}
}

// take stores what is wanted of a block, before which the ring has dropped drops.
func (a *attachment) take(b *ring.Block, drops uint64) {
	a.sub.mu.Lock()
	defer a.sub.mu.Unlock()
	if a.enterBlock(drops) {
		a.takeFrames(b)
	}
}

// takeFrames stores frame by frame; sub.mu is held.
func (a *attachment) takeFrames(b *ring.Block) {
	s := a.sub
	before := s.received
	for it := b.Frames(); it.Next() && !s.full; {
		f := &it.Frame
		if st := a.wants(f); st != nil {
			s.keep(st, f)
		}
	}
	if s.received != before { // also when fragments that were held had no need of the last one
		s.store.flush()
	}
}

// enterBlock tells whether anything of a block can be wanted.
func (a *attachment) enterBlock(drops uint64) bool {
	s := a.sub
	if s.state == left || s.full {
		return false
	}
	a.note(drops)
	a.blocks++
	if v := a.tap.space.now.Load(); v != a.seen {
		a.seen, a.last = v, nil // an interface may be another one now
	}
	return true
}

// wants judges a frame, and tells whose it is.
func (a *attachment) wants(f *ring.Frame) *stream {
	s := a.sub
	out := f.Type == ring.Outgoing
	switch {
	case out && f.Loopback:
		return nil // it is seen coming in as well, as in libpcap
	case out && s.spec.Direction == "in", !out && s.spec.Direction == "out":
		return nil
	case s.spec.NoPromisc && f.Type == ring.OtherHost:
		return nil
	case a.late(f.Time):
		return nil
	}
	st := a.streamOf(f)
	if st.before != nil && f.Time <= a.sub.since {
		st = st.before
	}
	if !st.wanted || !s.passes(st, f) {
		return nil
	}
	return st
}

// streamOf finds the stream of a frame, in most cases that of the one before.
func (a *attachment) streamOf(f *ring.Frame) *stream {
	if a.last != nil && a.last.iface.index == f.Ifindex {
		return a.last
	}
	i := a.tap.space.lookup(f.Ifindex)
	st := a.sub.streams[i]
	if st == nil {
		st = a.sub.newStream(i, f.Link)
	}
	a.last = st
	return st
}

// late tells whether a packet is from before the beginning or after the end. What
// was in the ring when the attachment began is at most a ring's length of blocks: a
// clock that was set back must not hide more than that.
func (a *attachment) late(t int64) bool {
	if until := a.sub.until; until != 0 && t > until {
		return true
	}
	most := a.tap.space.hub.limits.blocks
	if a.blocks > most {
		return false
	}
	if t < a.start {
		return true
	}
	a.blocks = most + 1
	return false
}

// takeWhole lets a store that takes whole blocks have this one, if all of it is
// wanted; else it copies. True is that the block is the store's now.
func (a *attachment) takeWhole(b *ring.Block, drops uint64) bool {
	a.sub.mu.Lock()
	defer a.sub.mu.Unlock()
	switch {
	case !a.enterBlock(drops):
		return false
	case a.offer(b):
		return true
	}
	a.takeFrames(b)
	return false
}

// offer offers a block, all of whose frames are wanted as they are, to the store.
func (a *attachment) offer(b *ring.Block) bool {
	s, n := a.sub, b.Len()
	if s.blocks == nil || s.spec.Count > 0 || a.tap.index == 0 || n == 0 || !s.plain() {
		return false
	}
	st := a.unseen()
	if st == nil && !small(b) {
		st = a.wholly(b)
	}
	if st == nil || !s.blocks.takeBlock(b, st.id, s.lost()-s.told) {
		return false
	}
	s.told = s.lost()
	s.received += int64(n)
	s.taken += int64(n)
	st.received += int64(n)
	s.store.flush()
	return true
}

// small tells that a block's frames are: to copy them costs less than what a block that
// is rewritten where it lies is longer.
func small(b *ring.Block) bool { return b.Bytes() < leastWhole*b.Len() }

// leastWhole is the bytes of a frame, on average, from which on it is not.
const leastWhole = 512

// unseen tells whose frames the tap has when every one of them is wanted, whatever it
// is: then nobody needs to look before the writer does, and each is read from memory
// once, by the processor that copies it.
func (a *attachment) unseen() *stream {
	s, st := a.sub, a.last
	switch {
	case st == nil || st.iface.index != a.tap.index || !st.wanted || st.link != st.native:
		return nil
	case s.judge.text != "" || s.since != 0 || s.snaplen < maxSnaplen || s.space.foreign:
		return nil
	case s.spec.NoPromisc || s.spec.Direction == "in" || s.spec.Direction == "out" || a.tap.isLoopback():
		return nil
	case s.until != 0 || a.blocks <= a.tap.space.hub.limits.blocks: // see late
		return nil
	}
	s.describe(st)
	return st
}

// wholly tells whose frames a block has, when all are wanted and none is cut.
func (a *attachment) wholly(b *ring.Block) *stream {
	var st *stream
	for it := b.Frames(); it.Next(); {
		f, first := &it.Frame, st
		if st = a.wants(f); st == nil || first != nil && st != first || len(f.Data) > a.sub.snaplen || st.link != st.native {
			return nil
		}
	}
	if st != nil {
		a.sub.describe(st)
	}
	return st
}
