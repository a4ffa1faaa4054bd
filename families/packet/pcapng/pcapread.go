package pcapng

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// BlockReader walks over the blocks of a file of either format.
type BlockReader interface {
	// Next reads the next block into b. Packet.Data is valid until the next call.
	// The end of the file is io.EOF, an end within a block io.ErrUnexpectedEOF, and
	// what is of neither format wraps ErrFormat.
	Next(b *Block) error
	// Interfaces are those so far, as Packet.Interface counts.
	Interfaces() []Interface
}

var (
	_ BlockReader = (*Reader)(nil)
	_ BlockReader = (*PcapReader)(nil)
)

// Open reads as much of r as tells its format, and gives a reader of it: of pcapng, or
// of the classic pcap. An empty r is io.EOF. What is of neither format is found by
// the first Next.
func Open(r io.Reader) (BlockReader, error) {
	buffered := bufio.NewReaderSize(r, readBuffer)
	magic, err := buffered.Peek(4)
	switch {
	case len(magic) == 0 && err != nil:
		return nil, err
	case err != nil && !errors.Is(err, io.EOF):
		return nil, err
	case len(magic) == 4 && pcapFormatOf(magic).order != nil:
		return &PcapReader{r: buffered}, nil
	}
	return &Reader{r: buffered}, nil // it says what is wrong with a magic that is none
}

// readBuffer is how much is read at once. A bufio.Reader of that size is used as it is.
const readBuffer = 64 << 10

// pcapMagicMicro is the magic of files with microseconds, pcapMagic that of those with
// nanoseconds.
const pcapMagicMicro = 0xa1b2c3d4

// pcapFormat is what the magic of a file tells.
type pcapFormat struct {
	order      binary.ByteOrder // nil: it is no magic
	resolution uint8            // digits behind the second
}

func pcapFormatOf(magic []byte) pcapFormat {
	for _, order := range []binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
		switch order.Uint32(magic) {
		case pcapMagicMicro:
			return pcapFormat{order, 6}
		case pcapMagic:
			return pcapFormat{order, 9}
		}
	}
	return pcapFormat{}
}

// PcapReader walks over a classic pcap file of either byte order, with microseconds or
// nanoseconds. It gives the same values as Reader: a description of the one interface
// that such a file has, without a name, then packets, whose directions are unknown. It
// must be used by one goroutine at a time.
type PcapReader struct {
	r      *bufio.Reader
	format pcapFormat
	ifs    []Interface
	buf    []byte // the current packet
}

// NewPcapReader reads from r, with a buffer of its own.
func NewPcapReader(r io.Reader) *PcapReader {
	return &PcapReader{r: bufio.NewReaderSize(r, readBuffer)}
}

// Interfaces is the one interface, once its description was read.
func (r *PcapReader) Interfaces() []Interface { return r.ifs }

// Next is BlockReader's.
func (r *PcapReader) Next(b *Block) error {
	*b = Block{}
	if r.ifs == nil {
		return r.header(b)
	}
	return r.packet(b)
}

// maxPcapSnaplen is what a file that does not tell its snapshot length has.
const maxPcapSnaplen = MaxSnaplen

// header reads what the file begins with.
func (r *PcapReader) header(b *Block) error {
	var head [pcapHeaderLen]byte
	if _, err := io.ReadFull(r.r, head[:]); err != nil {
		return err
	}
	if r.format = pcapFormatOf(head[:]); r.format.order == nil {
		return fmt.Errorf("begins with % x: %w", head[:4], ErrFormat)
	}
	if major := r.format.order.Uint16(head[4:]); major != 2 {
		return fmt.Errorf("version %d.%d of pcap: %w", major, r.format.order.Uint16(head[6:]), ErrFormat)
	}
	i := Interface{
		Snaplen: r.format.order.Uint32(head[16:]), Resolution: r.format.resolution,
		Link: LinkType(r.format.order.Uint32(head[20:])), // the upper half tells of check sums
	}
	if i.Snaplen > maxPcapSnaplen {
		i.Snaplen = 0
	}
	r.ifs = []Interface{i}
	b.Type, b.Interface = InterfaceBlock, i
	return nil
}

// packet reads a packet. Of one that is longer than the file says the rest is passed
// over, as by libpcap.
func (r *PcapReader) packet(b *Block) error {
	var head [pcapRecordHead]byte
	if _, err := io.ReadFull(r.r, head[:]); err != nil {
		return err
	}
	order := r.format.order
	kept, wire := order.Uint32(head[8:]), order.Uint32(head[12:])
	if kept > maxPcapSnaplen {
		return fmt.Errorf("packet of %d bytes: %w", kept, ErrFormat)
	}
	if r.buf == nil || cap(r.buf) < int(kept) {
		r.buf = make([]byte, max(kept, 2048))
	}
	data := r.buf[:kept]
	if _, err := io.ReadFull(r.r, data); err != nil {
		return unexpected(err)
	}
	if limit := r.ifs[0].Snaplen; limit != 0 && kept > limit {
		data = data[:limit]
	}
	b.Type = PacketBlock
	b.Packet = Packet{Time: r.time(head[:]), Data: data, Len: int(wire)}
	return nil
}

// time is seconds since 1970 and a fraction in the file's units.
func (r *PcapReader) time(head []byte) int64 {
	seconds, fraction := int64(r.format.order.Uint32(head)), int64(r.format.order.Uint32(head[4:]))
	if r.format.resolution == 6 {
		fraction *= 1000
	}
	return seconds*1e9 + fraction
}
