package daemon

import (
	"cmp"
	"slices"

	"github.com/sockd/sockd/families"
)

// A piece is one message, or one read of a stream, with its place in what the
// kernel gave.
type piece struct {
	number uint64 // of the attempt that took it, from 1
	offset int    // where in that attempt's data it begins; above 0 in streams only
	data   []byte
	full   int // the message's length on the wire
	peer   families.Name
}

// The bounds of a pushback. It holds what callers who left had taken, at most one
// piece each, so it is bounded by how many callers there can be; the numbers are
// well above that for pieces of ordinary size (200 callers, 64 KiB) and keep
// callers who come and go from filling memory.
const (
	maxBackBytes  = 16 << 20
	maxBackPieces = 4096
)

// pushback keeps pieces that came back, in the kernel's order.
type pushback struct {
	pieces []piece
	bytes  int
}

// put inserts p at its place; false when there is no room.
func (b *pushback) put(p piece) bool {
	if len(b.pieces) >= maxBackPieces || b.bytes+len(p.data) > maxBackBytes {
		return false
	}
	at, _ := slices.BinarySearchFunc(b.pieces, p, func(a, b piece) int {
		return cmp.Or(cmp.Compare(a.number, b.number), cmp.Compare(a.offset, b.offset))
	})
	b.bytes += len(p.data)
	if at < len(b.pieces) && p.joins(b.pieces[at]) {
		next := &b.pieces[at]
		next.data, next.offset, next.full = slices.Concat(p.data, next.data), p.offset, p.full+next.full
		return true
	}
	b.pieces = slices.Insert(b.pieces, at, p)
	return true
}

// joins tells whether next was cut off p.
func (p piece) joins(next piece) bool {
	return p.number == next.number && p.offset+len(p.data) == next.offset && next.offset > 0
}

// take removes the first piece, or of a stream's the part that fits room.
func (b *pushback) take(room int, messages bool) (piece, bool) {
	if len(b.pieces) == 0 {
		return piece{}, false
	}
	p := b.pieces[0]
	if !messages && len(p.data) > room {
		rest := &b.pieces[0]
		rest.data, rest.offset, rest.full = p.data[room:], p.offset+room, p.full-room
		p.data, p.full = p.data[:room], room
		b.bytes -= room
		return p, true
	}
	b.bytes -= len(p.data)
	b.pieces = slices.Delete(b.pieces, 0, 1)
	if len(b.pieces) == 0 {
		b.pieces = nil
	}
	return p, true
}
