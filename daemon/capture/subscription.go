package capture

import (
	"sync"
	"time"

	"github.com/sockd/sockd/families/model"
	"github.com/sockd/sockd/families/packet/filter"
	"github.com/sockd/sockd/families/packet/pcapng"
	"github.com/sockd/sockd/families/packet/ring"
)

const maxSnaplen = pcapng.MaxSnaplen

// keepBytes is how large a buffer may be that is kept for the next packets.
const keepBytes = 1 << 20

// What ends a capture must wait for: the kernel hands a block over when its retire
// time has passed and its timer, of a few milliseconds, fires.
const (
	settleFirst = 5 * ring.DefaultRetire
	settleStep  = 2 * time.Millisecond
	settleMost  = time.Second // a ring that never runs empty is not waited for any longer
)

// What a Subscription is to the daemon.
var _ model.Capturing = (*Subscription)(nil)

// Subscription is one capture. Its methods may be called from any goroutine.
type Subscription struct {
	tap     *tap
	spec    model.CaptureSpec
	program *filter.Program
	snaplen int

	wake   chan struct{} // of capacity 1: something was queued, or full was set
	closed chan struct{} // closed by Close

	mu     sync.Mutex // guards everything below
	state  state
	start  int64  // when it began, nanoseconds since 1970
	until  int64  // packets after it are not wanted; 0: not yet ended
	blocks int    // blocks seen while waiting for the first packet after start; see late
	base   uint64 // the ring's drops at the beginning
	told   uint64 // drops that an epb_dropcount has told of
	kernel uint64 // the ring's drops since the beginning, as known last
	queue  []byte // packets as pcapng
	spare  []byte // a buffer to swap with queue
	frames int64  // in queue
	taken  int64  // frames that were ever queued
	full   bool   // spec.Count of them
	counts counts
}

type counts struct {
	received, delivered int64
	daemon, subscriber  int64 // drops
}

// state is where a subscription stands in its life.
type state uint8

const (
	waiting state = iota // nobody runs it
	running
	left // it is off its tap
)

func newSubscription(t *tap, spec model.CaptureSpec, program *filter.Program) *Subscription {
	s := &Subscription{tap: t, spec: spec, program: program, snaplen: spec.Snaplen, wake: make(chan struct{}, 1), closed: make(chan struct{})}
	if s.snaplen == 0 {
		s.snaplen = maxSnaplen
	}
	return s
}

// begin is called when packets start to come: drops is what the ring dropped before.
func (s *Subscription) begin(drops uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.base, s.start = drops, time.Now().UnixNano()
}

// take queues what it wants of a block, before which the ring has dropped drops.
func (s *Subscription) take(b *ring.Block, drops uint64) {
	if s.takeAll(b, drops) {
		s.notify()
	}
}

func (s *Subscription) notify() {
	select {
	case s.wake <- struct{}{}:
	default: // somebody has, and Run has not looked yet
	}
}

// takeAll tells whether anything was queued.
func (s *Subscription) takeAll(b *ring.Block, drops uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state == left || s.full {
		return false
	}
	if drops > s.base {
		s.kernel = max(s.kernel, drops-s.base)
	}
	s.blocks++
	before := len(s.queue)
	for it := b.Frames(); it.Next() && !s.full; {
		f := &it.Frame
		if !s.wants(f) || !s.program.Match(f.Data, f.Len) {
			continue
		}
		s.counts.received++
		s.enqueue(f, len(s.queue)-before)
	}
	s.tap.hub.queued.Add(int64(len(s.queue) - before))
	if cap(s.queue) > keepBytes {
		s.tap.hub.burst.Store(true)
	}
	return len(s.queue) > before || s.full
}

// wants judges all but the filter.
func (s *Subscription) wants(f *ring.Frame) bool {
	out := f.Type == ring.Outgoing
	switch {
	case out && f.Loopback:
		return false // it is seen coming in as well, as in libpcap
	case out && s.spec.Direction == "in", !out && s.spec.Direction == "out":
		return false
	case s.spec.NoPromisc && f.Type == ring.OtherHost:
		return false
	}
	return !s.late(f.Time)
}

// late tells whether a packet is from before the beginning or after the end. What
// was in the ring when the subscription began is at most a ring's length of blocks: a
// clock that was set back must not hide more than that.
func (s *Subscription) late(t int64) bool {
	if s.until != 0 && t > s.until {
		return true
	}
	if s.blocks > s.tap.hub.limits.blocks {
		return false
	}
	if t < s.start {
		return true
	}
	s.blocks = s.tap.hub.limits.blocks + 1
	return false
}

// enqueue appends a frame to the queue, or counts its loss. added is what the
// block has added so far, which the hub has not counted yet.
func (s *Subscription) enqueue(f *ring.Frame, added int) {
	lost := s.kernel + uint64(s.counts.daemon+s.counts.subscriber)
	p := pcapng.Packet{
		Time: f.Time, Data: f.Data[:min(len(f.Data), s.snaplen)], Len: f.Len,
		Direction: direction(f.Type), Reception: receptions[f.Type&7], Dropped: lost - s.told,
	}
	size := pcapng.PacketLen(len(p.Data), p.Dropped != 0)
	switch {
	case len(s.queue)+size > s.tap.hub.limits.queue:
		s.counts.subscriber++
		return
	case s.tap.hub.queued.Load()+int64(added+size) > int64(s.tap.hub.limits.queues):
		s.counts.daemon++
		return
	}
	s.queue = pcapng.AppendPacket(s.queue, &p)
	s.told = lost
	s.frames++
	s.taken++
	s.full = s.taken == s.spec.Count // never when there is no Count
}

// direction and receptions say what epb_flags does of sll_pkttype.
func direction(t ring.PacketType) pcapng.Direction {
	if t == ring.Outgoing {
		return pcapng.Outbound
	}
	return pcapng.Inbound
}

var receptions = [8]pcapng.Reception{
	ring.Host: pcapng.Unicast, ring.Broadcast: pcapng.Broadcast, ring.Multicast: pcapng.Multicast, ring.OtherHost: pcapng.Promiscuous,
}

// View is the capture as it stands; the daemon adds ID and Owner.
func (s *Subscription) View() model.Capture {
	s.mu.Lock()
	over := s.state == left
	s.mu.Unlock()
	if !over {
		s.countKernel()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return model.Capture{
		Source:            s.spec.Source,
		Filter:            s.program.String(),
		Received:          s.counts.received,
		Delivered:         s.counts.delivered,
		DroppedKernel:     int64(s.kernel),
		DroppedDaemon:     s.counts.daemon,
		DroppedSubscriber: s.counts.subscriber,
	}
}

// countKernel asks the kernel for its drops, without a lock held.
func (s *Subscription) countKernel() {
	drops := s.tap.ring.Stats().Drops
	s.mu.Lock()
	defer s.mu.Unlock()
	if drops > s.base && s.state != left {
		s.kernel = max(s.kernel, drops-s.base)
	}
}

// Close ends the capture: Run, if somebody runs it, completes the file and
// returns net.ErrClosed, and its caller waits for that. Twice is nil.
func (s *Subscription) Close() error {
	s.mu.Lock()
	idle := s.state == waiting
	if idle {
		s.state = running // so that neither Run nor another Close does the same
	}
	select {
	case <-s.closed:
	default:
		close(s.closed)
	}
	s.mu.Unlock()
	if idle {
		s.finish()
		s.discard()
		s.tap.hub.giveBack()
	}
	return nil
}

// discard counts what is queued as lost to a writer that failed or never was.
func (s *Subscription) discard() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts.subscriber += s.frames
	s.tap.hub.queued.Add(-int64(len(s.queue)))
	s.frames = 0
	s.releaseLocked()
}

// releaseLocked forgets the buffers, for good.
func (s *Subscription) releaseLocked() { s.queue, s.spare = nil, nil }

// release forgets the buffers of a capture that has been written to its end.
func (s *Subscription) release() {
	s.mu.Lock()
	s.releaseLocked()
	s.mu.Unlock()
	s.tap.hub.giveBack()
}

// finish takes the subscription off its tap: its counts are final then. What is
// still queued can be flushed.
func (s *Subscription) finish() {
	s.tap.remove(s)
	s.countKernel()
	s.mu.Lock()
	s.state = left
	s.mu.Unlock()
	s.tap.hub.leave(s.tap)
}
