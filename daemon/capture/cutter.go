package capture

import (
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/sockd/sockd/families/model"
	"github.com/sockd/sockd/families/packet/files"
	"github.com/sockd/sockd/families/packet/pcapng"
	"github.com/sockd/sockd/families/packet/ring"
)

// sink is a file that is written (*files.File).
type sink interface {
	Write(b []byte) (n int, err error)
	WriteDirect(a, b []byte) (n int, err error)
	Reserve(at, n int64) error
	Truncate(size int64) error
	Size() int64
	Close() error
}

// cutter writes the blocks of a capture into files, each of which has all that a reader
// needs:
//
//	queue:  description 0 │ packet │ packet │ description 1 │ packet │ statistics ...
//	file 1: section │ description │ packet │ packet │ statistics
//	file 2: section │ description │ packet │ statistics
//
// One of several files has the interfaces whose packets are in it, numbered anew. Its end is decided
// before each packet, so that it never is longer than it may be, statistics included. It
// must be used by one goroutine at a time.
type cutter struct {
	size    int64
	clock   files.Clock
	most    int64 // files; 0: no end
	classic bool  // pcap instead of pcapng
	snaplen uint32
	section []byte
	next    func() (sink, error)
	done    func(model.FileReport)
	stats   func(iface uint32, first bool) pcapng.Stats // of one interface; the first of a file has the losses of all
	now     func() time.Time

	ifaces []*cutIface
	file   *cutFile // nil: the next packet begins one
	made   int64    // files that are complete or begun
	over   bool     // there is no further one
	finis  int64    // packets from then on are no part of a capture that has all its files
	chunk  []byte   // what write was given
	run    []byte   // what is to be written next, as it is in the file: a part of chunk, or buf
	from   int      // where run begins in chunk
	until  int      // where it ends; -1: it is no part of it
	count  int64    // packets in run
	buf    []byte
	kept   int64  // packets that were written, since the caller looked last
	beyond int64  // packets from after the capture's end, as long
	lost   int64  // packets that were to be in files, as long; the next packet tells of them
	untold uint64 // lost before the next packet, beside what it tells itself
	page   []byte // for Rewrite
	copied []byte // of a ring's block
}

// cutIface is one interface of the capture.
type cutIface struct {
	description pcapng.Encoded
	delivered   int64 // packets in files
	lost        int64 // packets that were to be in files
	beyond      int64 // packets from after the capture's end, since the caller looked last
}

// maxStats is how long the statistics of an interface can become.
var maxStats = int64(len(pcapng.AppendStats(nil, pcapng.Stats{Comment: lossComment(1<<63, -1<<63, -1<<63)})))

// write takes a whole number of blocks, which it may change.
func (c *cutter) write(chunk []byte) {
	c.chunk = chunk
	for at := 0; ; {
		b, _, ok := pcapng.NextEncoded(chunk[at:])
		if !ok {
			break
		}
		switch b.Type() {
		case pcapng.InterfaceBlock:
			c.describe(b)
		case pcapng.PacketBlock:
			c.packet(b, at)
		}
		at += len(b) // the statistics at the end are made anew for each file
	}
	c.flush()
}

// writeAll is write of what somebody has summed up.
func (c *cutter) writeAll(chunk []byte, of *extent) {
	if !c.straight(chunk, of) {
		c.write(chunk)
	}
}

// straight writes a chunk as it lies, by one look at what it is, if the file has room
// for all of it and nothing in it changes. It is false when it must be looked at packet by
// packet, which took as long as to write it.
func (c *cutter) straight(chunk []byte, of *extent) bool {
	f, id := c.file, of.iface
	switch {
	case of.packets == 0 || of.mixed || c.classic || c.untold > 0 || f == nil:
		return false
	case !f.knows(id) || f.number(id) != id || of.last >= f.ends || !c.fits(id, int64(len(chunk))):
		return false
	}
	f.note(of.first)
	f.note(of.last)
	c.ifaces[id].delivered += of.packets
	c.run, c.count = chunk, of.packets
	c.flush()
	return true
}

// describe takes an interface in. The only file has it whether or not a packet of it
// comes.
func (c *cutter) describe(b pcapng.Encoded) {
	c.ifaces = append(c.ifaces, &cutIface{description: append(pcapng.Encoded(nil), b...)})
	if c.only() && !c.classic && c.file != nil {
		c.declare(uint32(len(c.ifaces) - 1))
	}
}

// only tells whether there is one file.
func (c *cutter) only() bool { return c.size == 0 && c.clock.Every == 0 }

// packet takes one packet, which begins at a place in its chunk.
func (c *cutter) packet(b pcapng.Encoded, at int) {
	id := b.Interface()
	if c.until != at || c.untold > 0 {
		c.flush() // what it loses this packet must tell
	}
	if !c.place(b.Time(), id, c.cost(b)) {
		c.leave(b, id)
		return
	}
	c.file.note(b.Time())
	c.ifaces[id].delivered++
	b.SetInterface(c.file.number(id))
	switch {
	case c.classic:
		p := b.Packet()
		c.buf = pcapng.AppendPcapPacket(c.buf, &p)
		c.run, c.until = c.buf, -1
	case c.untold > 0:
		c.buf = b.AppendDropped(c.buf[:0], c.untold)
		c.run, c.until, c.untold = c.buf, -1, 0
	default:
		if c.until != at {
			c.from = at
		}
		c.until = at + len(b)
		c.run = c.chunk[c.from:c.until]
	}
	c.count++
}

// cost is how long a packet will be in the file, but for what it tells of others.
func (c *cutter) cost(b pcapng.Encoded) int64 {
	if c.classic {
		return int64(pcapng.PcapPacketLen(b.Kept()))
	}
	return int64(len(b))
}

// droppedCost is how much longer a packet is that tells of what was lost before it.
var droppedCost = int64(pcapng.PacketLen(0, true) - pcapng.PacketLen(0, false))

// place sees to it that there is a file for a packet of a time, an interface and a
// length, which knows the interface. It is false when there is none.
func (c *cutter) place(t int64, id uint32, cost int64) bool {
	if f := c.file; f != nil && !f.knows(id) {
		c.flush() // before declare does: what it loses makes the packet longer
	}
	if f := c.file; f != nil && (t >= f.ends || !c.fits(id, cost) && f.packets+c.count > 0) {
		reason := "size"
		if t >= f.ends {
			reason = "time"
		}
		c.finish(reason)
	}
	if c.file == nil && !c.open(t) {
		return false
	}
	if !c.fits(id, cost) {
		c.file.tell(c, fmt.Errorf("a packet of %d bytes does not fit a file of %d", cost, c.size))
		return false
	}
	return c.declare(id)
}

// fits tells whether a packet has room in the file, with all that must follow.
func (c *cutter) fits(id uint32, cost int64) bool {
	if c.size == 0 {
		return true
	}
	f := c.file
	if c.untold > 0 && !c.classic {
		cost += droppedCost
	}
	if !c.classic && !f.knows(id) {
		cost += int64(len(c.ifaces[id].description)) + maxStats
	}
	return f.sink.Size()+int64(len(f.head)+len(c.run))+cost+f.tail <= c.size
}

// open begins the next file, as one that a packet of time t is for.
func (c *cutter) open(t int64) bool {
	if c.over || c.most > 0 && c.made == c.most {
		c.over = true
		return false
	}
	s, err := c.next()
	if err != nil {
		c.over = true
		return false
	}
	c.made++
	f := &cutFile{sink: s, begun: t, head: append([]byte(nil), c.section...)}
	if c.classic {
		f.head = nil
	}
	begin, end := c.clock.Interval(t)
	if f.ends = end; c.clock.Every > 0 {
		f.begun = begin
	}
	c.file = f
	return true
}

// declare has the file know of an interface. In a pcap file that can be of one link
// type alone.
func (c *cutter) declare(id uint32) bool {
	f := c.file
	if f.knows(id) {
		return true
	}
	d := c.ifaces[id].description
	switch {
	case !c.classic:
		c.flush()
		f.head = append(f.head, d...)
		f.tail += maxStats
	case len(f.order) == 0:
		f.head = pcapng.AppendPcapHeader(f.head, d.Link(), c.snaplen)
	case d.Link() != c.ifaces[f.order[0]].description.Link():
		f.tell(c, fmt.Errorf("a packet of link type %s in a pcap file of %s", d.Link(), c.ifaces[f.order[0]].description.Link()))
		return false
	}
	f.learn(id)
	return true
}

// leave counts a packet that is in no file. One from after the end of a capture that has
// all its files is no part of it; any other is lost.
func (c *cutter) leave(b pcapng.Encoded, id uint32) {
	if c.most > 0 && c.made == c.most && c.file == nil && b.Time() >= c.finis {
		c.ifaces[id].beyond++
		c.beyond++
		return
	}
	c.ifaces[id].lost++
	c.miss(b)
	if c.file != nil {
		c.file.lost++
	}
}

// miss has the next packet that is in a file tell of one that is not, and of what was lost
// before that.
func (c *cutter) miss(b pcapng.Encoded) {
	c.lost++
	if !c.classic { // there nobody can tell
		c.untold += 1 + b.Dropped()
	}
}

// flush writes the run.
func (c *cutter) flush() {
	if f := c.file; f != nil && len(c.run) > 0 {
		whole, err := f.append(c)
		wrote := c.count
		if whole < len(c.run) {
			n := c.records(c.run[whole:], c.unwritten)
			wrote -= n
			f.lost += n
		}
		c.kept += wrote
		f.packets += wrote
		if err != nil && !errors.Is(err, errStuck) {
			f.trouble(c, err)
		}
	}
	c.run, c.buf, c.count, c.until = nil, c.buf[:0], 0, -1
}

// unwritten takes back what packet has counted.
func (c *cutter) unwritten(b pcapng.Encoded) {
	c.miss(b)
	if c.classic {
		return // it has no statistics
	}
	i := c.ifaces[c.file.order[b.Interface()]]
	i.delivered--
	i.lost++
}

// records counts the packets of a run, and shows each to f.
func (c *cutter) records(run []byte, f func(pcapng.Encoded)) (n int64) {
	for len(run) > 0 {
		size := c.recordLen(run)
		f(run[:size])
		run = run[size:]
		n++
	}
	return n
}

// recordLen is how long the packet is that a run begins with.
func (c *cutter) recordLen(run []byte) int {
	if c.classic {
		return pcapng.PcapPacketLen(int(pcapKept(run)))
	}
	b, _, _ := pcapng.NextEncoded(run)
	return len(b)
}

// finish completes the file.
func (c *cutter) finish(reason string) {
	c.flush()
	f := c.file
	if len(f.order) == 0 { // no packet: readers want a description all the same
		c.declareAll()
	}
	f.complete(c)
	c.file = nil
	if c.finis = math.MinInt64; reason == "time" {
		c.finis = f.ends
	}
	if err := f.sink.Close(); err != nil && f.last == nil {
		f.last = err
	}
	c.done(f.report(reason))
}

// declareAll has the file know of all interfaces that fit it.
func (c *cutter) declareAll() {
	for id := range c.ifaces {
		if c.fits(uint32(id), 0) {
			c.declare(uint32(id))
		}
	}
}

// begin begins the first file before anything is there to write.
func (c *cutter) begin() {
	if c.open(c.now().UnixNano()) {
		c.file.start(c)
	}
}

// end completes the last file, and makes one where there was none at all: a capture
// that has seen nothing says so.
func (c *cutter) end() {
	if c.file != nil || c.made == 0 && c.open(c.now().UnixNano()) {
		c.finish("end")
	}
}

// elapsed completes a file whose interval has passed without another packet.
func (c *cutter) elapsed(t int64) {
	if c.file != nil && t >= c.file.ends {
		c.finish("time")
	}
}

// enough tells that there will be no further file.
func (c *cutter) enough() bool {
	return c.over || c.most > 0 && c.made == c.most && c.file == nil
}

// block writes a block of a ring, of an interface of the capture, before which dropped
// were lost: where it lies, if it fits, else as copies. The block stays the caller's,
// who must not walk its frames any more.
func (c *cutter) block(b *ring.Block, id uint32, dropped uint64) {
	c.flush()
	if small(b) {
		c.copyBlock(b, id, dropped)
		return
	}
	first, last := b.Span()
	if c.whole(b, id, first, last) && c.direct(b, id, dropped, first, last) {
		return
	}
	c.copyBlock(b, id, dropped)
}

// whole tells whether a block fits the file as it is.
func (c *cutter) whole(b *ring.Block, id uint32, first, last int64) bool {
	longest := int64(b.Size()) + 2*ring.Page // with what aligns it
	if c.classic || c.size > 0 && c.size < 2*longest || !c.place(first, id, ring.Page) {
		return false
	}
	f := c.file
	return last < f.ends && !f.stuck && c.fits(id, longest)
}

// direct writes a block where it lies. It is false when it could not be rewritten, which
// changes nothing.
func (c *cutter) direct(b *ring.Block, id uint32, dropped uint64, first, last int64) bool {
	f, n := c.file, int64(b.Len())
	local := f.number(id)
	s := c.stats(id, local == 0)
	s.Interface, s.Time, s.End = local, last, last
	s.Delivered = uint64(c.ifaces[id].delivered)
	s.OSDrop += uint64(c.ifaces[id].lost)
	if !b.Rewritable() || !f.align(c, &s) {
		return false
	}
	rest, ok := b.Rewrite(c.page, local, dropped+c.untold, &s)
	if !ok {
		return false
	}
	c.untold = 0
	c.ifaces[id].delivered += n
	f.note(first)
	f.note(last)
	before := f.sink.Size()
	err := f.sink.Reserve(before+int64(len(c.page)+len(rest)), f.tail)
	if err == nil {
		_, err = f.sink.WriteDirect(c.page, rest)
	}
	if err == nil {
		c.kept += n
		f.packets += n
		return true
	}
	f.cut(before) // and what fits is written by the other way
	c.rescue(append(append(c.copied[:0], c.page...), rest...))
	return true
}

// rescue writes the packets of a block that was rewritten.
func (c *cutter) rescue(run []byte) {
	c.copied = run
	for len(run) > 0 {
		b, rest, ok := pcapng.NextEncoded(run)
		if !ok {
			break
		}
		if run = rest; b.Type() == pcapng.PacketBlock {
			c.buf = append(c.buf, b...)
			c.count++
		}
	}
	c.run = c.buf
	c.flush()
}

// piece is how much copyBlock copies before it writes: what still is in the processor's
// cache then.
const piece = 256 << 10

// copyBlock writes a block as copies of its frames.
func (c *cutter) copyBlock(b *ring.Block, id uint32, dropped uint64) {
	c.copied = c.copied[:0]
	var sum extent
	p := pcapng.Packet{Interface: id, Dropped: dropped}
	for it := b.Frames(); it.Next(); p.Dropped = 0 {
		f := &it.Frame
		p.Time, p.Data, p.Len = f.Time, f.Data, f.Len
		p.Direction, p.Reception = direction(f.Type), receptions[f.Type&7]
		c.copied = pcapng.AppendPacket(c.copied, &p)
		sum.add(&p)
		if len(c.copied) >= piece {
			c.writeAll(c.copied, &sum)
			c.copied, sum = c.copied[:0], extent{}
		}
	}
	c.writeAll(c.copied, &sum)
}

// errStuck is what append says before it is time to try again.
var errStuck = errors.New("the file cannot be written at present")
