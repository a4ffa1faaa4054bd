package capture

import (
	"fmt"
	"sync/atomic"
	"syscall"

	"github.com/sockd/sockd/families/packet/pcapng"
)

// A segment is a piece of a history: packets as Enhanced Packet Blocks, one behind the
// other. Its memory is a mapping of its own, outside of Go's heap: a history of a
// hundred megabytes there would let the collector leave as much garbage of everything
// else, and what is given back here is the system's at once.
type segment struct {
	mem  []byte // all of it
	seq  uint64 // numbers a history's segments in the order in which they were begun, from 1
	refs int    // one for the history that has it, one for each snapshot

	// open is what the writer has put in, and done what readers may look at: a copy
	// that is made when a block of the ring is over. So a packet takes no lock, and a
	// reader never sees half of one.
	open, done contents
}

// contents tell what is in a segment.
type contents struct {
	bytes       int
	packets     int64
	first, last int64 // the smallest and largest time, nanoseconds since 1970
}

// mapped counts the bytes of all segments.
var mapped atomic.Int64

// newSegment maps a segment of size bytes, which costs memory as it is filled.
func newSegment(size int) (*segment, error) {
	buf, err := syscall.Mmap(-1, 0, size, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_PRIVATE|syscall.MAP_ANON)
	if err != nil {
		return nil, fmt.Errorf("map %d bytes for packets: %w", size, err)
	}
	mapped.Add(int64(size))
	return &segment{mem: buf}, nil
}

// free gives the memory back to the system. Nobody may use the segment any more.
func (s *segment) free() {
	mapped.Add(-int64(len(s.mem)))
	_ = syscall.Munmap(s.mem) // it fails for what is no mapping alone
	s.mem = nil
}

// reset empties a segment for other packets.
func (s *segment) reset(seq uint64) {
	s.seq, s.refs = seq, 1
	s.open, s.done = contents{}, contents{}
}

// room tells whether n more bytes fit.
func (s *segment) room(n int) bool { return len(s.mem)-s.open.bytes >= n }

// size is what the segment takes of memory.
func (s *segment) size() int { return len(s.mem) }

// add appends a packet, for which there is room.
func (s *segment) add(p *pcapng.Packet) {
	s.open.count(p.Time, len(pcapng.AppendPacket(s.mem[:s.open.bytes], p)))
}

// firstFrom is the smallest time of those that readers may look at and that are not
// before bound; 0: there is none. It walks through the segment in which bound lies alone.
func (s *segment) firstFrom(bound int64) (first int64) {
	switch {
	case s.done.last < bound:
		return 0
	case s.done.first >= bound:
		return s.done.first
	}
	for rest := s.mem[:s.done.bytes]; ; {
		e, after, ok := pcapng.NextEncoded(rest)
		if !ok {
			return first
		}
		if t := e.Time(); t >= bound && (first == 0 || t < first) {
			first = t
		}
		rest = after
	}
}

// count takes in a packet of time t, after which so many bytes are in use.
func (c *contents) count(t int64, bytes int) {
	if c.packets == 0 || t < c.first {
		c.first = t
	}
	if c.packets == 0 || t > c.last {
		c.last = t
	}
	c.bytes = bytes
	c.packets++
}
