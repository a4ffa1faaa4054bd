package pcapng

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
)

// maxBlock bounds a block that is read: a packet of MaxSnaplen and its options
// fit many times over, and a length that lies costs 16 MiB at most.
const maxBlock = 16 << 20

// ErrFormat is wrapped by every error that a malformed file causes.
var ErrFormat = errors.New("not valid pcapng")

// Block is one block of a file. Type says which of the fields holds it; those of
// other types are to be passed over.
type Block struct {
	Type      uint32
	Section   Section
	Interface Interface
	Packet    Packet
	Stats     Stats
}

// Reader walks over the blocks of a file or stream, of either byte order. It must
// be used by one goroutine at a time.
type Reader struct {
	r     *bufio.Reader
	order binary.ByteOrder // nil before the first section
	ifs   []Interface      // of the current section
	buf   []byte           // the current block's body
}

// NewReader reads from r, with a buffer of its own.
func NewReader(r io.Reader) *Reader { return &Reader{r: bufio.NewReaderSize(r, 64<<10)} }

// Interfaces are those of the current section so far, as Packet.Interface counts.
func (r *Reader) Interfaces() []Interface { return r.ifs }

// Next reads the next block into b. Packet.Data is valid until the next call.
// The end of the file is io.EOF, an end within a block io.ErrUnexpectedEOF, and
// what is not pcapng wraps ErrFormat.
func (r *Reader) Next(b *Block) error {
	*b = Block{}
	kind, body, err := r.block()
	if err != nil {
		return err
	}
	b.Type = kind
	return r.decode(b, body)
}

// decode reads a body of the type that b has.
func (r *Reader) decode(b *Block, body []byte) error {
	switch b.Type {
	case SectionBlock:
		return r.section(b, body)
	case InterfaceBlock:
		return r.iface(b, body)
	case PacketBlock:
		return r.packet(b, body)
	case StatisticsBlock:
		return r.stats(b, body)
	}
	return nil
}

// block reads one block's type and body, without the lengths around it.
func (r *Reader) block() (kind uint32, body []byte, err error) {
	var head [12]byte
	if _, err := io.ReadFull(r.r, head[:8]); err != nil {
		return 0, nil, err
	}
	rest := head[8:8]
	if le.Uint32(head[:]) == SectionBlock { // the same in both orders
		if _, err := io.ReadFull(r.r, head[8:12]); err != nil {
			return 0, nil, unexpected(err)
		}
		if r.order = orderOf(head[8:12]); r.order == nil {
			return 0, nil, fmt.Errorf("byte-order magic %x: %w", head[8:12], ErrFormat)
		}
		rest = head[8:12]
	}
	if r.order == nil {
		return 0, nil, fmt.Errorf("begins with % x: %w", head[:8], ErrFormat)
	}
	kind = r.order.Uint32(head[:])
	total := r.order.Uint32(head[4:])
	if total < 12+uint32(len(rest)) || total%4 != 0 || total > maxBlock {
		return 0, nil, fmt.Errorf("block %#x of %d bytes: %w", kind, total, ErrFormat)
	}
	if err := r.fill(rest, int(total)-8); err != nil {
		return 0, nil, err
	}
	if again := r.order.Uint32(r.buf[total-12:]); again != total {
		return 0, nil, fmt.Errorf("block %#x of %d bytes ends with length %d: %w", kind, total, again, ErrFormat)
	}
	return kind, r.buf[:total-12], nil
}

// fill reads until buf holds n bytes, of which rest was read already.
func (r *Reader) fill(rest []byte, n int) error {
	if cap(r.buf) < n {
		r.buf = make([]byte, n)
	}
	r.buf = r.buf[:n]
	copy(r.buf, rest)
	_, err := io.ReadFull(r.r, r.buf[len(rest):])
	return unexpected(err)
}

func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

func orderOf(magic []byte) binary.ByteOrder {
	switch {
	case binary.LittleEndian.Uint32(magic) == byteOrder:
		return binary.LittleEndian
	case binary.BigEndian.Uint32(magic) == byteOrder:
		return binary.BigEndian
	}
	return nil
}

func (r *Reader) section(b *Block, body []byte) error {
	if len(body) < 16 {
		return short("section", body)
	}
	r.ifs = nil
	return r.options(body[16:], func(code uint16, v []byte) {
		switch code {
		case optComment:
			b.Section.Comment = string(v)
		case shbOS:
			b.Section.OS = string(v)
		case shbUserAppl:
			b.Section.UserAppl = string(v)
		}
	})
}

func (r *Reader) iface(b *Block, body []byte) error {
	if len(body) < 8 {
		return short("interface", body)
	}
	i := Interface{Link: LinkType(r.order.Uint16(body)), Snaplen: r.order.Uint32(body[4:]), Resolution: 6}
	err := r.options(body[8:], func(code uint16, v []byte) {
		switch {
		case code == ifName:
			i.Name = string(v)
		case code == ifTsresol && len(v) == 1:
			i.Resolution = v[0]
		case code == ifFilter && len(v) > 0 && v[0] == 0:
			i.Filter = string(v[1:])
		}
	})
	if err != nil {
		return err
	}
	r.ifs = append(r.ifs, i)
	b.Interface = i
	return nil
}

func (r *Reader) packet(b *Block, body []byte) error {
	if len(body) < 20 {
		return short("packet", body)
	}
	p := &b.Packet
	p.Interface = r.order.Uint32(body)
	kept := int(r.order.Uint32(body[12:]))
	p.Len = int(r.order.Uint32(body[16:]))
	if kept > len(body)-20 {
		return short("packet", body)
	}
	if int(p.Interface) >= len(r.ifs) {
		return fmt.Errorf("packet of interface %d of %d: %w", p.Interface, len(r.ifs), ErrFormat)
	}
	p.Time = r.time(p.Interface, body[4:])
	p.Data = body[20 : 20+kept : 20+kept]
	return r.options(body[min(len(body), 20+pad4(kept)):], func(code uint16, v []byte) {
		switch {
		case code == epbFlags && len(v) == 4:
			flags := r.order.Uint32(v)
			p.Direction, p.Reception = Direction(flags&3), Reception(flags>>2&7)
		case code == epbDropcount && len(v) == 8:
			p.Dropped = r.order.Uint64(v)
		case code == epbProcess && len(v) == 8:
			p.PID = r.order.Uint32(v)
		case code == optComment:
			p.Comment = string(v)
		}
	})
}

func (r *Reader) stats(b *Block, body []byte) error {
	if len(body) < 12 {
		return short("statistics", body)
	}
	s := &b.Stats
	s.Interface = r.order.Uint32(body)
	if int(s.Interface) >= len(r.ifs) {
		return fmt.Errorf("statistics of interface %d of %d: %w", s.Interface, len(r.ifs), ErrFormat)
	}
	s.Time = r.time(s.Interface, body[4:])
	counts := map[uint16]*uint64{isbIfrecv: &s.Received, isbIfdrop: &s.IfDrop, isbAccepted: &s.Accepted, isbOsdrop: &s.OSDrop, isbUsrdeliv: &s.Delivered}
	return r.options(body[12:], func(code uint16, v []byte) {
		switch {
		case code == optComment:
			s.Comment = string(v)
		case len(v) != 8:
		case code == isbStart:
			s.Start = r.time(s.Interface, v)
		case code == isbEnd:
			s.End = r.time(s.Interface, v)
		case counts[code] != nil:
			*counts[code] = r.order.Uint64(v)
		}
	})
}

// time reads the two halves of a time, in the interface's units, as nanoseconds.
func (r *Reader) time(iface uint32, b []byte) int64 {
	t := uint64(r.order.Uint32(b))<<32 | uint64(r.order.Uint32(b[4:]))
	return toNanoseconds(t, r.ifs[iface].Resolution)
}

// toNanoseconds converts t units of 10^-res seconds, or of 2^-res when the
// highest bit of res is set. A time that is out of range is the largest one.
func toNanoseconds(t uint64, res uint8) int64 {
	per := uint64(1) // units a second
	if n := res & 0x7f; res&0x80 != 0 {
		if n > 63 {
			return 0
		}
		per <<= n
	} else {
		if n > 19 {
			return 0
		}
		for range n {
			per *= 10
		}
	}
	hi, lo := bits.Mul64(t, 1e9)
	if hi >= per {
		return 1<<63 - 1
	}
	ns, _ := bits.Div64(hi, lo, per)
	return int64(min(ns, 1<<63-1))
}

// options calls f for each option of b until its end mark or b's end.
func (r *Reader) options(b []byte, f func(code uint16, value []byte)) error {
	for len(b) >= 4 {
		code, n := r.order.Uint16(b), int(r.order.Uint16(b[2:]))
		if code == optEnd {
			return nil
		}
		if n > len(b)-4 {
			return fmt.Errorf("option %d of %d bytes: %w", code, n, ErrFormat)
		}
		f(code, b[4:4+n])
		b = b[min(len(b), 4+pad4(n)):]
	}
	return nil
}

func short(what string, body []byte) error {
	return fmt.Errorf("%s block of %d bytes: %w", what, len(body)+12, ErrFormat)
}
