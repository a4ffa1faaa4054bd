package capture

import (
	"context"
	"errors"
	"io"
	"math"

	"github.com/sockd/sockd/families/packet/pcapng"
)

// refill dumps what it reads from files: it fills segments with their packets, and
// writes each as soon as the next one is full, since the order of packets is a few
// milliseconds off in a file, too. So it needs the memory of two, however large files
// are.
type refill struct {
	dump  *dump
	known map[pcapng.Interface]uint32
	ids   []uint32 // of the section's interfaces → those of the dump
	open  *segment

	options []byte // of the packet in hand
}

// refillBytes is how large these segments are: what a link of 10 Gb/s brings in three
// milliseconds, which is how far rings are apart.
const refillBytes = 4 << 20

func newRefill(ctx context.Context, w io.Writer, c choice) *refill {
	s := &snapshot{ifaces: map[uint32]pcapng.Interface{}, giveBack: func(list []*segment) {
		for _, s := range list {
			s.free()
		}
	}}
	d := newDump(ctx, w, s, c)
	d.begin()
	return &refill{dump: d, known: map[pcapng.Interface]uint32{}}
}

// close gives all memory back.
func (r *refill) close() {
	r.dump.snapshot.close()
	if r.open != nil {
		r.open.free()
		r.open = nil
	}
}

// file takes in the packets of one file. One that ends within a block is
// io.ErrUnexpectedEOF, after all packets before that.
func (r *refill) file(f io.Reader) error {
	r.ids = r.ids[:0]
	reader := pcapng.NewReader(f)
	var b pcapng.Block
	for {
		err := reader.Next(&b)
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
		switch b.Type {
		case pcapng.SectionBlock:
			r.ids = r.ids[:0]
		case pcapng.InterfaceBlock:
			r.ids = append(r.ids, r.iface(b.Interface))
		case pcapng.PacketBlock:
			if err := r.packet(&b.Packet); err != nil {
				return err
			}
		}
	}
}

// iface is the number of an interface, which may have been in a file before.
func (r *refill) iface(i pcapng.Interface) uint32 {
	n, known := r.known[i]
	if !known {
		n = uint32(len(r.known))
		r.known[i], r.dump.snapshot.ifaces[n] = n, i
	}
	return n
}

// packet takes one in, if it is of the time that is wanted.
func (r *refill) packet(p *pcapng.Packet) error {
	s := r.dump.snapshot
	if s.oldest == 0 || p.Time < s.oldest {
		s.oldest = p.Time
	}
	if p.Time < r.dump.choice.from || p.Time > r.dump.choice.to {
		return nil
	}
	p.Interface = r.ids[p.Interface] // the reader has checked it
	r.options = p.AppendOptions(r.options[:0])
	p.Options = r.options
	size := p.Size()
	if r.open != nil && !r.open.room(size) {
		if err := r.seal(); err != nil {
			return err
		}
	}
	if r.open == nil {
		var err error
		if r.open, err = newSegment(max(refillBytes, pages(size))); err != nil {
			return err
		}
	}
	r.open.add(p)
	return nil
}

// seal makes the open segment a part of the snapshot, and writes the one before.
func (r *refill) seal() error {
	s := r.dump.snapshot
	s.parts = append(s.parts, part{r.open, r.open.open})
	r.open = nil
	return r.emit(len(s.parts)-2, s.parts[len(s.parts)-1].first)
}

// emit writes what there is of a part and those before, up to a time.
func (r *refill) emit(part int, until int64) error {
	if part < 0 {
		return nil
	}
	r.dump.choose(part)
	return r.dump.emit(until, part)
}

// finish writes the rest.
func (r *refill) finish() (dumpReport, error) {
	if r.open != nil {
		if err := r.seal(); err != nil {
			return dumpReport{}, err
		}
	}
	if err := r.emit(len(r.dump.snapshot.parts)-1, math.MaxInt64); err != nil {
		return dumpReport{}, err
	}
	return r.dump.finish()
}
