package pcapng

import (
	"encoding/binary"
	"slices"
)

// The option codes that are written and read.
const (
	optEnd     = 0
	optComment = 1

	shbOS       = 3
	shbUserAppl = 4

	ifName    = 2
	ifTsresol = 9
	ifFilter  = 11

	epbFlags     = 2
	epbDropcount = 4
	epbProcess   = 8 // epb_processid_threadid of draft-ietf-opsawg-pcapng

	isbStart     = 2
	isbEnd       = 3
	isbIfrecv    = 4
	isbIfdrop    = 5
	isbAccepted  = 6
	isbOsdrop    = 7
	isbUsrdeliv  = 8
	nanoseconds  = 9
	byteOrder    = 0x1a2b3c4d
	maxOption    = 0xffff
	packetHead   = 28 // type, length, interface, time high, time low, kept, wire
	packetFlags  = 8
	packetDrop   = 12
	packetFinish = 8 // end of options, and the length again
)

var le = binary.LittleEndian

// AppendSection appends a Section Header Block in little-endian order; its
// length is left open, as that of a stream.
func AppendSection(b []byte, s Section) []byte {
	b, start := begin(b, SectionBlock)
	b = le.AppendUint32(b, byteOrder)
	b = le.AppendUint16(b, 1) // version 1.0
	b = le.AppendUint16(b, 0)
	b = le.AppendUint64(b, ^uint64(0))
	b = textOption(b, optComment, s.Comment)
	b = textOption(b, shbOS, s.OS)
	b = textOption(b, shbUserAppl, s.UserAppl)
	return finish(b, start)
}

// AppendInterface appends an Interface Description Block. Times that follow are
// in nanoseconds.
func AppendInterface(b []byte, i Interface) []byte {
	b, start := begin(b, InterfaceBlock)
	b = le.AppendUint16(b, uint16(i.Link))
	b = le.AppendUint16(b, 0)
	b = le.AppendUint32(b, i.Snaplen)
	b = textOption(b, ifName, i.Name)
	b = optionHead(b, ifTsresol, 1)
	b = append(b, nanoseconds, 0, 0, 0)
	if i.Filter != "" {
		b = textOption(b, ifFilter, "\x00"+i.Filter) // 0: a filter in words
	}
	return finish(b, start)
}

// Size is how many bytes AppendPacket appends.
func (p *Packet) Size() int { return PacketLen(len(p.Data), p.Dropped != 0) + len(p.Options) }

// PacketLen is Size for kept bytes of data, without Options.
func PacketLen(kept int, dropped bool) int {
	n := packetHead + pad4(kept) + packetFlags + packetFinish
	if dropped {
		n += packetDrop
	}
	return n
}

// AppendPacket appends an Enhanced Packet Block. It does not allocate when b has
// room for Size.
func AppendPacket(b []byte, p *Packet) []byte {
	at, total := len(b), p.Size()
	b = slices.Grow(b, total)[:at+total]
	copy(b[at+packetHead:], p.Data)
	FramePacket(b[at:], p)
	return b
}

// AppendOptions appends what Packet.Options is to be for p's PID and Comment. The thread
// is the process itself: nobody can tell which of its threads it was.
func (p *Packet) AppendOptions(b []byte) []byte {
	if p.PID != 0 {
		b = optionHead(b, epbProcess, 8)
		b = le.AppendUint32(b, p.PID)
		b = le.AppendUint32(b, p.PID)
	}
	return textOption(b, optComment, p.Comment)
}

// AppendStats appends an Interface Statistics Block.
func AppendStats(b []byte, s Stats) []byte {
	b, start := begin(b, StatisticsBlock)
	b = le.AppendUint32(b, s.Interface)
	b = appendTime(b, s.Time)
	b = textOption(b, optComment, s.Comment)
	b = appendTime(optionHead(b, isbStart, 8), s.Start)
	b = appendTime(optionHead(b, isbEnd, 8), s.End)
	for _, o := range []struct {
		code  uint16
		count uint64
	}{
		{isbIfrecv, s.Received}, {isbIfdrop, s.IfDrop}, {isbAccepted, s.Accepted}, {isbOsdrop, s.OSDrop}, {isbUsrdeliv, s.Delivered},
	} {
		b = le.AppendUint64(optionHead(b, o.code, 8), o.count)
	}
	return finish(b, start)
}

// begin opens a block whose length finish fills in.
func begin(b []byte, kind uint32) (_ []byte, start int) {
	start = len(b)
	b = le.AppendUint32(b, kind)
	return le.AppendUint32(b, 0), start
}

func finish(b []byte, start int) []byte {
	b = optionHead(b, optEnd, 0)
	total := uint32(len(b) - start + 4)
	le.PutUint32(b[start+4:], total)
	return le.AppendUint32(b, total)
}

// appendTime writes a time as the format has it: two halves, the high one first.
func appendTime(b []byte, t int64) []byte {
	b = le.AppendUint32(b, uint32(uint64(t)>>32))
	return le.AppendUint32(b, uint32(uint64(t)))
}

func optionHead(b []byte, code, length uint16) []byte {
	b = le.AppendUint16(b, code)
	return le.AppendUint16(b, length)
}

// textOption leaves an empty text out, and cuts one that an option cannot hold.
func textOption(b []byte, code uint16, text string) []byte {
	if text == "" {
		return b
	}
	text = text[:min(len(text), maxOption)]
	b = optionHead(b, code, uint16(len(text)))
	b = append(b, text...)
	return pad(b, len(text))
}

func pad(b []byte, n int) []byte {
	return append(b, "\x00\x00\x00"[:pad4(n)-n]...)
}

func pad4(n int) int { return (n + 3) &^ 3 }
