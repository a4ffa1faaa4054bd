package ring

import (
	"unsafe"

	"github.com/sockd/sockd/families/packet/pcapng"
)

// A block can become part of a pcapng file where it lies, so that it goes to the disk
// without being copied:
//
//	kernel:  desc │ hdr │ sll │ gap │ frame │ pad │ hdr │ sll │ gap │ frame │ rest of the block
//	pcapng:  filler           │ head│ frame │ options          │ head│ frame │ options │ filler
//	                           └─ Enhanced Packet Block ──────┘
//
// A head is 28 bytes, which the kernel's headers and the reserve leave in front of each
// frame; the headers of the next frame give way to the options of this one. Both
// fillers are Interface Statistics Blocks, and the last one ends on a page.
//
// The kernel's description of the block stays as it is: the kernel looks at it to tell
// whether the block is its own again, however long it takes to be written. So the first page
// is copied, and the first filler is in the copy only.

// Page is the unit of what Rewrite makes: O_DIRECT asks for as much.
const Page = 4096

// RingBlocks is how many blocks the block's ring has.
func (b *Block) RingBlocks() int { return b.ring.count }

// Size is how large the block is, full or not.
func (b *Block) Size() int { return len(b.mem) }

// Span is the least and the greatest time of the block's frames, in nanoseconds since
// 1970; both are 0 when it has none.
func (b *Block) Span() (first, last int64) {
	for it := b.Frames(); it.Next(); {
		t := it.Frame.Time
		if last == 0 {
			first, last = t, t
		}
		first, last = min(first, t), max(last, t)
	}
	return first, last
}

// Rewritable tells whether Rewrite will succeed: whether all frames lie so that 32-bit
// words may begin there, and have the room around them that a packet's block takes. Most
// Ethernet frames do (see reserve); a full block whose last frame ends near its end does not.
func (b *Block) Rewritable() bool {
	w := rewrite{block: b, check: true, packet: pcapng.Packet{Dropped: 1}} // as long as it can become
	return w.run() != nil
}

// Rewrite makes the block a run of pcapng blocks, of a file whose interface number
// iface the frames are. The run is first, which it fills and which has the length of a
// Page, and rest, which lies in the block, at a multiple of Page, and is as long as one.
// dropped is what was lost before the first packet, and s what the fillers say. Nobody
// else may read the block any more, nor may the caller walk its frames. It is false when
// the block is not Rewritable; then it may have been changed in part.
func (b *Block) Rewrite(first []byte, iface uint32, dropped uint64, s *pcapng.Stats) (rest []byte, ok bool) {
	w := rewrite{block: b, packet: pcapng.Packet{Interface: iface, Dropped: dropped}}
	run := w.run()
	if run == nil {
		return nil, false
	}
	pcapng.PutFiller(run[w.tail:], s)
	copy(first, run[:Page])
	pcapng.PutFiller(first[:w.start], s)
	return run[Page:], true
}

// rewrite is one walk over a block.
type rewrite struct {
	block  *Block
	check  bool          // nothing is changed
	packet pcapng.Packet // the one that is framed next
	head   int           // where its block begins
	need   int           // of bytes behind its data
	start  int           // where the first block begins
	tail   int           // where the last one ends
}

// run frames all packets; before them and behind them is room for a filler.
func (w *rewrite) run() []byte {
	it := w.block.Frames()
	if !it.Next() {
		return nil
	}
	w.start = w.headOf(&it.Frame)
	if w.start < pcapng.MinFiller || w.start > Page || !w.take(&it.Frame, w.start) {
		return nil
	}
	count := 1
	for ; it.Next(); count++ { // which has read the next headers before finish writes over them
		f := it.Frame
		head := w.headOf(&f)
		if !w.finish(head) || !w.take(&f, head) {
			return nil
		}
	}
	if count != w.block.Len() {
		return nil
	}
	return w.end()
}

// headOf is where the head of a frame's block comes.
func (w *rewrite) headOf(f *Frame) int {
	at := uintptr(unsafe.Pointer(unsafe.SliceData(f.Data))) - uintptr(unsafe.Pointer(unsafe.SliceData(w.block.mem)))
	return int(at) - pcapng.PacketHead
}

// take makes a frame the one that is framed next.
func (w *rewrite) take(f *Frame, head int) bool {
	if head%4 != 0 || len(f.Data) == 0 {
		return false
	}
	w.need = pcapng.PacketTail(w.packet.Dropped != 0)
	w.packet.Time, w.packet.Data, w.packet.Len = f.Time, f.Data, f.Len
	w.packet.Direction, w.packet.Reception = flags(f.Type)
	w.head = head
	return true
}

// dataEnd is where the options begin.
func (w *rewrite) dataEnd() int {
	return w.head + pcapng.PacketHead + (len(w.packet.Data)+3)&^3
}

// finish frames the packet that was taken, up to end.
func (w *rewrite) finish(end int) bool {
	if end < w.dataEnd()+w.need || end > len(w.block.mem) {
		return false
	}
	if !w.check {
		pcapng.FramePacket(w.block.mem[w.head:end:end], &w.packet)
	}
	w.packet.Dropped = 0
	return true
}

// end frames the last packet, and ends on a page.
func (w *rewrite) end() []byte {
	w.tail = w.dataEnd() + w.need
	whole := (w.tail + pcapng.MinFiller + Page - 1) &^ (Page - 1)
	if whole > len(w.block.mem) || !w.finish(w.tail) {
		return nil
	}
	return w.block.mem[:whole:whole]
}

// flags says what epb_flags does of sll_pkttype.
func flags(t PacketType) (pcapng.Direction, pcapng.Reception) {
	if t == Outgoing {
		return pcapng.Outbound, pcapng.Unspecified
	}
	return pcapng.Inbound, receptions[t&7]
}

var receptions = [8]pcapng.Reception{
	Host: pcapng.Unicast, Broadcast: pcapng.Broadcast, Multicast: pcapng.Multicast, OtherHost: pcapng.Promiscuous,
}
