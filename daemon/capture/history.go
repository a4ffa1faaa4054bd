package capture

import (
	"context"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/packet/filter"
	"github.com/sockd/sockd/families/packet/pcapng"
)

// history is a store that keeps the last packets in memory, for a recorder.
//
//	          add                                    evict
//	ring ──────────────> [open segment] ← … [sealed] ───────> reused, or given back
//	                           └───────────────┴─ snapshot: references, no copy
//
// The writer fills the open segment without a lock and publishes what it has done when
// a block of the ring is over. Who has which segment is under mu, which the writer
// wants once a block and once a segment. A packet is always taken in: the oldest
// segment makes room.
type history struct {
	trigger *trigger // may be nil

	open *segment // the last one of segments, or nil; the writer's

	mu       sync.Mutex // guards what follows, and refs and done of segments
	bounds   bounds
	segments []*segment // in the order of their packets
	spare    *segment   // evicted by its age, and the next one to be filled; may be nil
	turns    uint64     // segments begun
	swept    uint64     // turns when sweep was called last
	bytes    int64      // of segments and spare
	pinned   int64      // of segments that only snapshots have any more
	early    int64      // packets that made room for others though they were not too old
	closed   bool

	// The writer alone changes the map, under mu, and so reads it without.
	ifaces    map[uint32]*historyFace
	described uint32 // how many ever were
}

// bounds of a history.
type bounds struct {
	last  time.Duration // packets this much older than the newest may go; 0: none is too old
	bytes int64         // of memory; see look for what comes on top
}

// historyFace is an interface of a history. All but desc is the writer's.
type historyFace struct {
	desc    pcapng.Interface
	trigger *filter.Program // for its link type; nil: it takes no packet of it
	ended   bool            // nothing comes from it any more
	used    uint64          // the number of the last segment with a packet of its
}

// segmentBytes is how large a segment is: small enough that eviction, which takes a
// whole one, leaves nearly all of a history in place, and large enough that what is
// paid once a segment is nothing a packet.
const segmentBytes = 256 << 10

// A small history has segments of this size, so that it never loses more than a
// sixteenth at once.
const leastSegment = minHistory / 16

// minHistory is the smallest history: some of the longest packets.
const minHistory = 1 << 20

// pageBytes is what mappings come in on every machine that matters; where pages are
// larger the kernel rounds up.
const pageBytes = 4096

var _ store = (*history)(nil)

func newHistory(b bounds, t *trigger) *history {
	return &history{bounds: b, trigger: t, ifaces: map[uint32]*historyFace{}}
}

// describe takes in an interface.
func (h *history) describe(i *pcapng.Interface) {
	face := &historyFace{desc: *i, trigger: h.trigger.program(i.Link)}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ifaces[h.described] = face
	h.described++
	h.pruneLocked()
}

// stats notes that an interface has ended: its description goes with its last packet.
func (h *history) stats(s *pcapng.Stats) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if i := h.ifaces[s.Interface]; i != nil {
		i.ended = true
	}
	h.pruneLocked()
}

// pruneLocked forgets interfaces that have ended and that no packet is of: on a host
// whose containers come and go their numbers grow for ever. It is the writer's.
func (h *history) pruneLocked() {
	oldest := h.turns + 1
	if len(h.segments) > 0 {
		oldest = h.segments[0].seq
	}
	for number, i := range h.ifaces {
		if i.ended && i.used < oldest {
			delete(h.ifaces, number)
		}
	}
}

// add takes a packet in. There is room unless the system has no memory at all.
func (h *history) add(p *pcapng.Packet) verdict {
	s := h.room(p.Size())
	if s == nil {
		return noMemory
	}
	s.add(p)
	face := h.ifaces[p.Interface]
	face.used = s.seq
	if h.trigger != nil {
		h.trigger.look(p, face.trigger)
	}
	return kept
}

// room is the open segment, which has room for size bytes; nil when there is no memory.
func (h *history) room(size int) *segment {
	if h.open != nil && h.open.room(size) {
		return h.open
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.turnLocked(size)
	return h.open
}

// flush shows readers what was added.
func (h *history) flush() {
	h.mu.Lock()
	h.publishLocked()
	h.mu.Unlock()
	if h.trigger != nil {
		h.trigger.flush()
	}
}

func (h *history) publishLocked() {
	if h.open != nil {
		h.open.done = h.open.open
	}
}

// turnLocked seals the open segment and opens another one, for a packet of size
// bytes. There is none when the system has no memory.
func (h *history) turnLocked(size int) {
	h.publishLocked()
	if h.open != nil {
		h.expireLocked(h.open.done.last)
	}
	h.open = nil
	s := h.takeLocked(max(h.segmentSize(), pages(size)))
	if s == nil {
		return
	}
	h.turns++
	s.reset(h.turns)
	h.segments = append(h.segments, s)
	h.open = s
	h.pruneLocked()
}

// segmentSize is how large new segments are.
func (h *history) segmentSize() int {
	return int(min(segmentBytes, max(leastSegment, h.bounds.bytes/16))) &^ (pageBytes - 1)
}

func pages(n int) int { return (n + pageBytes - 1) &^ (pageBytes - 1) }

// takeLocked finds memory of size bytes for a segment: that of the oldest one, when
// the history is full. It is counted in bytes.
func (h *history) takeLocked(size int) *segment {
	if s := h.spare; s != nil {
		h.spare = nil
		if s.size() == size {
			return s
		}
		h.giveBackLocked(s)
	}
	for len(h.segments) > 0 && h.bytes+int64(size) > h.bounds.bytes {
		if s := h.recycleLocked(size); s != nil {
			return s
		}
	}
	s, err := newSegment(size)
	if err != nil && len(h.segments) > 0 {
		return h.recycleLocked(size) // better the oldest packets less than this one
	}
	if err != nil {
		return nil
	}
	h.bytes += int64(size)
	return s
}

// recycleLocked takes the oldest segment out, for another use when it has that size
// and nobody reads it; else it is nil.
func (h *history) recycleLocked(size int) *segment {
	s := h.segments[0]
	if h.bounds.last > 0 && s.done.last > h.newestLocked()-int64(h.bounds.last) {
		h.early += s.done.packets
	}
	if s = h.evictLocked(); s != nil && s.size() != size {
		h.giveBackLocked(s)
		return nil
	}
	return s
}

// evictLocked takes the oldest segment out. It is nil when a snapshot has it, who gives
// it back; else it is counted in bytes still.
func (h *history) evictLocked() *segment {
	s := h.segments[0]
	copy(h.segments, h.segments[1:]) // in place: append would else move on and allocate
	h.segments[len(h.segments)-1] = nil
	h.segments = h.segments[:len(h.segments)-1]
	if s.refs--; s.refs == 0 {
		return s
	}
	h.bytes -= int64(s.size())
	h.pinned += int64(s.size())
	return nil
}

func (h *history) giveBackLocked(s *segment) {
	h.bytes -= int64(s.size())
	s.free()
}

// newestLocked is the time of the newest packet. The last segment alone may be empty.
func (h *history) newestLocked() int64 {
	for i := len(h.segments) - 1; i >= 0; i-- {
		if h.segments[i].done.packets > 0 {
			return h.segments[i].done.last
		}
	}
	return 0
}

// expireLocked takes out the segments whose packets are all too old at the time now,
// but for the open one. One is kept for the next to be filled.
func (h *history) expireLocked(now int64) {
	if h.bounds.last <= 0 {
		return
	}
	for len(h.segments) > 0 && h.segments[0] != h.open && h.segments[0].done.last < now-int64(h.bounds.last) {
		s := h.evictLocked()
		switch {
		case s == nil:
		case h.spare == nil:
			h.spare = s
		default:
			h.giveBackLocked(s)
		}
	}
}

// sweep gives back what is too old at the time now. It is called from time to time:
// where nothing comes, nothing makes old packets go.
func (h *history) sweep(now int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return
	}
	h.expireLocked(now)
	if h.spare != nil && h.turns == h.swept { // nobody fills segments just now
		h.giveBackLocked(h.spare)
		h.spare = nil
	}
	h.swept = h.turns
}

// setBounds changes the bounds: what they still hold stays.
func (h *history) setBounds(b bounds) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.bounds = b
	if h.closed {
		return
	}
	if h.spare != nil {
		h.giveBackLocked(h.spare)
		h.spare = nil
	}
	h.expireLocked(h.newestLocked())
	for h.bytes > b.bytes && h.segments[0] != h.open {
		if s := h.evictLocked(); s != nil {
			h.giveBackLocked(s)
		}
	}
}

// close gives all memory back but for what snapshots hold, who give that. The
// subscription has ended: nothing is added any more. Twice is the same.
func (h *history) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed, h.open = true, nil
	if h.spare != nil {
		h.giveBackLocked(h.spare)
		h.spare = nil
	}
	for len(h.segments) > 0 {
		if s := h.evictLocked(); s != nil {
			h.giveBackLocked(s)
		}
	}
}

// held is what a history has.
type held struct {
	packets, bytes int64
	files          int64
	oldest, newest int64 // times of packets; 0: there is none
	early          int64
	bounds         bounds
}

func (h *history) held() held {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := held{bytes: h.bytes, early: h.early, bounds: h.bounds}
	for _, s := range h.segments {
		if s.done.packets == 0 {
			continue
		}
		if out.packets == 0 || s.done.first < out.oldest {
			out.oldest = s.done.first
		}
		if out.packets == 0 || s.done.last > out.newest {
			out.newest = s.done.last
		}
		out.packets += s.done.packets
	}
	return out
}

// snapshot is what a history had at one moment. It holds on to the segments, so that
// nothing of it is lost while it is read, and the recording goes on into others.
type snapshot struct {
	parts    []part
	ifaces   map[uint32]pcapng.Interface
	oldest   int64 // the time of the oldest packet that there was; 0: none
	giveBack func([]*segment)
	given    int // parts that were given back
}

// part is a segment and how much of it there was.
type part struct {
	segment *segment // nil once it is given back
	contents
}

func (p *part) data() []byte { return p.segment.mem[:p.bytes:p.bytes] }

// look takes what has packets from the time from on. Its owner closes it. What is from
// before bound counts as not there.
//
// While snapshots are read the history takes other memory, to its bound again at
// most: a new one has to wait until little is held by old ones alone. With what
// that little may be, all together is below two and a quarter times the bound.
func (h *history) look(from, bound int64) (*snapshot, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.closed:
		return nil, fmt.Errorf("the recorder has ended: %w", families.ErrNotFound)
	case h.pinned > h.bounds.bytes/4:
		return nil, fmt.Errorf("an earlier dump that is still being written holds %d bytes: %w", h.pinned, families.ErrBusy)
	}
	out := &snapshot{giveBack: h.unref, ifaces: make(map[uint32]pcapng.Interface, len(h.ifaces))}
	for _, s := range h.segments {
		if s.done.packets == 0 {
			continue
		}
		if first := s.firstFrom(bound); first != 0 && (out.oldest == 0 || first < out.oldest) {
			out.oldest = first
		}
		if s.done.last >= from {
			s.refs++
			out.parts = append(out.parts, part{s, s.done})
		}
	}
	for number, i := range h.ifaces {
		out.ifaces[number] = i.desc
	}
	return out, nil
}

// drop gives the parts before n back.
func (s *snapshot) drop(n int) {
	var back []*segment
	for ; s.given < n; s.given++ {
		back = append(back, s.parts[s.given].segment)
		s.parts[s.given].segment = nil
	}
	if len(back) > 0 {
		s.giveBack(back)
	}
}

func (s *snapshot) close() { s.drop(len(s.parts)) }

// unref ends a snapshot's use of segments.
func (h *history) unref(segments []*segment) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, s := range segments {
		if s.refs--; s.refs == 0 {
			h.pinned -= int64(s.size())
			s.free()
		}
	}
}

// dump writes what there is of a choice.
func (h *history) dump(ctx context.Context, w io.Writer, c choice) (dumpReport, error) {
	s, err := h.look(c.from, c.bound)
	if err != nil {
		return dumpReport{}, err
	}
	defer s.close()
	return newDump(ctx, w, s, c).write()
}

// numbers are the numbers of a snapshot's interfaces, in order.
func (s *snapshot) numbers() []uint32 {
	out := make([]uint32, 0, len(s.ifaces))
	for n := range s.ifaces {
		out = append(out, n)
	}
	slices.Sort(out)
	return out
}
