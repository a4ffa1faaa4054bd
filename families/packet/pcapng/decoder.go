package pcapng

import "fmt"

// Decoder reads blocks of a stream that are in memory one by one, such as those that
// the Append functions wrote. It must be used by one goroutine at a time.
type Decoder struct{ r Reader }

// Interfaces are those of the current section so far, as Packet.Interface counts.
func (d *Decoder) Interfaces() []Interface { return d.r.ifs }

// Decode reads one whole block into b. Packet.Data is part of block. A packet costs no
// allocation. The error wraps ErrFormat.
func (d *Decoder) Decode(block []byte, b *Block) error {
	*b = Block{}
	if len(block) < 12 {
		return fmt.Errorf("block of %d bytes: %w", len(block), ErrFormat)
	}
	body := block[8 : len(block)-4]
	if le.Uint32(block) == SectionBlock {
		if len(body) < 4 {
			return short("section", body)
		}
		if d.r.order = orderOf(body); d.r.order == nil {
			return fmt.Errorf("byte-order magic %x: %w", body[:4], ErrFormat)
		}
	}
	if d.r.order == nil {
		return fmt.Errorf("begins with % x: %w", block[:8], ErrFormat)
	}
	total, again := d.r.order.Uint32(block[4:]), d.r.order.Uint32(block[len(block)-4:])
	if int64(total) != int64(len(block)) || again != total || total%4 != 0 {
		return fmt.Errorf("block of %d bytes has lengths %d and %d: %w", len(block), total, again, ErrFormat)
	}
	b.Type = d.r.order.Uint32(block)
	return d.r.decode(b, body)
}
