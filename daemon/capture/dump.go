package capture

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"math"
	"slices"

	"github.com/sockd/sockd/families/packet/filter"
	"github.com/sockd/sockd/families/packet/pcapng"
)

// A dump writes what a snapshot has as a file of its own: the packets of a span of
// time that a filter takes, in the order of their times, and of the interfaces those
// that occur.
//
// Packets of several rings lie in a history in the order in which their blocks
// were handed over, a few milliseconds off. So each segment's packets are sorted
// together with what is left of those before, and written as far as no later segment has
// an older one.
type dump struct {
	ctx      context.Context
	w        io.Writer
	snapshot *snapshot
	choice   choice

	out     []byte // what waits to be written
	sorted  []chosen
	numbers map[uint32]uint32                   // of interfaces: a history's → the file's
	filters map[uint32]*filter.Follower[chosen] // of interfaces; nil: the filter is not for their link type
	gaps    map[uint32]uint64                   // lost packets that no packet has told of, by interface
	sums    map[uint32]*dumpSum                 // of interfaces that are in the file
	report  dumpReport
}

// choice is what a dump is to have.
type choice struct {
	from, to int64  // times of packets, both included
	bound    int64  // those from before it are kept no longer, whether or not they are there
	filter   string // "": all
	recorded string // the filter that the recorder has
	begun    int64  // when the recorder began
	comment  string // for the statistics of the first interface
	source   string // names the interface of a file that has none
}

// chosen is a packet that is to be written.
type chosen struct {
	time    int64
	dropped uint64 // lost before it, on its interface, since the last one that was chosen, beside what it tells itself
	part    int32
	offset  int32
	block   pcapng.Encoded // the packet itself, of one that was held; nil: where part and offset say
}

// dumpSum is what is written of an interface.
type dumpSum struct{ packets, dropped uint64 }

// dumpReport is what was written.
type dumpReport struct {
	packets, bytes int64
	dropped        int64
	first, last    int64 // times
	oldest         int64 // the oldest packet that there was to choose from
}

// dumpBuffer is how much is written at once.
const dumpBuffer = 256 << 10

// mostUnsorted bounds the packets that wait to be sorted. Some thousands is what rings
// make; more come from a clock that was set back, and then files have steps too.
const mostUnsorted = 1 << 16

func newDump(ctx context.Context, w io.Writer, s *snapshot, c choice) *dump {
	return &dump{
		ctx: ctx, w: w, snapshot: s, choice: c,
		out:     make([]byte, 0, dumpBuffer+pcapng.PacketLen(maxSnaplen, true)),
		numbers: map[uint32]uint32{}, filters: map[uint32]*filter.Follower[chosen]{}, gaps: map[uint32]uint64{}, sums: map[uint32]*dumpSum{},
	}
}

// write writes the file, until ctx ends or w fails. The snapshot is given back as it
// is written.
func (d *dump) write() (dumpReport, error) {
	d.begin()
	later := d.snapshot.oldestAfter()
	for i := range d.snapshot.parts {
		d.choose(i)
		if err := d.emit(later[i], i); err != nil {
			return dumpReport{}, err
		}
	}
	return d.finish()
}

func (d *dump) begin() {
	d.out = pcapng.AppendSection(d.out, pcapng.Section{Comment: d.choice.describe(), OS: "Linux", UserAppl: "sockd"})
}

func (c *choice) describe() string {
	if c.filter == "" {
		return ""
	}
	return "dumped with the filter " + c.filter
}

// oldestAfter is for each part the oldest time of all the parts behind it.
func (s *snapshot) oldestAfter() []int64 {
	out := make([]int64, len(s.parts))
	oldest := int64(math.MaxInt64)
	for i := len(s.parts) - 1; i >= 0; i-- {
		out[i] = oldest
		oldest = min(oldest, s.parts[i].first)
	}
	return out
}

// choose takes the packets of one part that are wanted.
func (d *dump) choose(part int) {
	data := d.snapshot.parts[part].data()
	rest := data
	for {
		e, after, ok := pcapng.NextEncoded(rest)
		if !ok {
			break
		}
		if t := e.Time(); t >= d.choice.from && t <= d.choice.to {
			d.consider(e, t, chosen{part: int32(part), offset: int32(len(data) - len(rest))})
		}
		rest = after
	}
	byTime := func(a, b chosen) int { return cmp.Compare(a.time, b.time) }
	if !slices.IsSortedFunc(d.sorted, byTime) {
		slices.SortStableFunc(d.sorted, byTime)
	}
}

// consider takes a packet, or remembers the losses that it tells of for the next one.
func (d *dump) consider(e pcapng.Encoded, at int64, c chosen) {
	number := e.Interface()
	c.time = at
	if !d.wants(number, e, &c) {
		if n := e.Dropped(); n > 0 {
			d.gaps[number] += n
		}
		return
	}
	if n := d.gaps[number]; n > 0 {
		c.dropped = n
		delete(d.gaps, number)
	}
	d.sorted = append(d.sorted, c)
}

// wants asks the filter. Fragments that were held for this packet are chosen before it.
func (d *dump) wants(number uint32, e pcapng.Encoded, c *chosen) bool {
	if d.choice.filter == "" {
		return true
	}
	f, known := d.filters[number]
	if !known {
		f = d.filterOf(number)
		d.filters[number] = f
	}
	if f == nil {
		return false
	}
	p := e.Packet()
	switch f.Judge(&filter.Packet{Data: p.Data, Length: p.Len, Direction: filter.Direction(p.Direction)}, c.time) {
	case filter.Take:
		d.sorted = append(d.sorted, f.Released()...)
		return true
	case filter.Hold:
		held := *c // its part may be given back before anybody knows
		if held.block = slices.Clone(e); e.Dropped() > 0 {
			held.block = e.AppendDropped(nil, -e.Dropped()) // the next one tells of it
		}
		f.Keep(held)
	}
	return false
}

// filterOf is the filter as it is for an interface's link type.
func (d *dump) filterOf(number uint32) *filter.Follower[chosen] {
	program, err := keptProgram(d.choice.filter, d.snapshot.ifaces[number].Link)
	if err != nil {
		return nil // what this link type has not matches nothing of it
	}
	return filter.NewFollower[chosen](program, filter.FollowLimits{})
}

// emit writes what is sorted up to the time until, and gives back the parts up to
// last that nothing of is left.
func (d *dump) emit(until int64, last int) error {
	n := 0
	for n < len(d.sorted) && (d.sorted[n].time <= until || len(d.sorted)-n > mostUnsorted) {
		if err := d.packet(d.sorted[n]); err != nil {
			return err
		}
		n++
	}
	d.sorted = d.sorted[:copy(d.sorted, d.sorted[n:])]
	left := last + 1
	for _, c := range d.sorted {
		left = min(left, int(c.part))
	}
	d.snapshot.drop(left)
	return nil
}

// packet writes one packet, and before the first of its interface the description.
func (d *dump) packet(c chosen) error {
	e := c.block
	if e == nil {
		e, _, _ = pcapng.NextEncoded(d.snapshot.parts[c.part].data()[c.offset:])
	}
	number, sum := d.iface(e.Interface())
	sum.packets++
	sum.dropped += c.dropped + e.Dropped()
	start := len(d.out)
	if c.dropped > 0 {
		d.out = e.AppendDropped(d.out, c.dropped)
	} else {
		d.out = append(d.out, e...)
	}
	pcapng.Encoded(d.out[start:]).SetInterface(number)
	if d.report.packets++; d.report.packets == 1 {
		d.report.first = c.time
	}
	d.report.last = c.time
	if len(d.out) >= dumpBuffer {
		return d.flush()
	}
	return nil
}

// iface is the number that an interface has in the file.
func (d *dump) iface(number uint32) (uint32, *dumpSum) {
	if n, ok := d.numbers[number]; ok {
		return n, d.sums[number]
	}
	n := uint32(len(d.numbers))
	d.numbers[number], d.sums[number] = n, &dumpSum{}
	desc := d.snapshot.ifaces[number]
	desc.Filter = joinFilters(desc.Filter, d.choice.filter)
	d.out = pcapng.AppendInterface(d.out, desc)
	return n, d.sums[number]
}

// joinFilters is a filter that takes what both take.
func joinFilters(a, b string) string {
	if a == "" || b == "" {
		return a + b
	}
	return "(" + a + ") and (" + b + ")"
}

// finish writes the statistics of each interface: what the file has of it, and how
// many packets were lost meanwhile.
func (d *dump) finish() (dumpReport, error) {
	d.report.oldest = d.snapshot.oldest
	for _, n := range d.snapshot.numbers() {
		if d.gaps[n] > 0 {
			d.iface(n) // it lost packets that no other one tells of
		}
	}
	if len(d.numbers) == 0 {
		d.empty()
	}
	numbers := make([]uint32, len(d.numbers))
	for old, n := range d.numbers {
		numbers[n] = old
	}
	for n, old := range numbers {
		sum := *d.sums[old]
		sum.dropped += d.gaps[old] // behind the last packet that was chosen
		d.report.dropped += int64(sum.dropped)
		s := pcapng.Stats{
			Interface: uint32(n), Time: d.choice.to, Start: max(d.choice.from, d.choice.begun), End: d.choice.to,
			Received: sum.packets + sum.dropped, IfDrop: sum.dropped, Accepted: sum.packets, Delivered: sum.packets,
		}
		if n == 0 {
			s.Comment = d.choice.comment
		}
		d.out = pcapng.AppendStats(d.out, s)
	}
	if err := d.flush(); err != nil {
		return dumpReport{}, err
	}
	return d.report, nil
}

// empty describes the interfaces of a file without packets: readers want at least one.
func (d *dump) empty() {
	for _, n := range d.snapshot.numbers() {
		d.iface(n)
	}
	if len(d.numbers) == 0 { // it waits for its first interface
		d.snapshot.ifaces[0] = pcapng.Interface{Link: pcapng.Ethernet, Name: d.choice.source, Filter: d.choice.recorded}
		d.iface(0)
	}
}

func (d *dump) flush() error {
	if err := d.ctx.Err(); err != nil {
		return fmt.Errorf("dump: %w", context.Cause(d.ctx))
	}
	n, err := d.w.Write(d.out)
	d.report.bytes += int64(n)
	d.out = d.out[:0]
	return err
}
