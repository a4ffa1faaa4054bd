package pcapng

// Encoded is one block of a file as this package writes it: little-endian, and of a packet
// with the options in the order of AppendPacket. Its methods are for who hands blocks on
// without taking them apart.
type Encoded []byte

// NextEncoded is the block that b begins with, and what comes after it. It is false when b
// does not hold a whole block.
func NextEncoded(b []byte) (block Encoded, rest []byte, ok bool) {
	if len(b) < 12 {
		return nil, b, false
	}
	n := le.Uint32(b[4:])
	if n < 12 || uint64(n) > uint64(len(b)) {
		return nil, b, false
	}
	return Encoded(b[:n:n]), b[n:], true
}

// Type is the block's type.
func (e Encoded) Type() uint32 { return le.Uint32(e) }

// Link is the link type of an interface's description.
func (e Encoded) Link() LinkType { return LinkType(le.Uint16(e[8:])) }

// Interface is the number of a packet's interface.
func (e Encoded) Interface() uint32 { return le.Uint32(e[8:]) }

// SetInterface makes a packet one of another interface.
func (e Encoded) SetInterface(n uint32) { le.PutUint32(e[8:], n) }

// Time is a packet's, in nanoseconds since 1970.
func (e Encoded) Time() int64 {
	return int64(uint64(le.Uint32(e[12:]))<<32 | uint64(le.Uint32(e[16:])))
}

// Kept is how many bytes of a packet are there.
func (e Encoded) Kept() int { return int(le.Uint32(e[20:])) }

// Packet is a packet with no option but its direction. Data is e's memory.
func (e Encoded) Packet() Packet {
	return Packet{
		Interface: e.Interface(), Time: e.Time(), Data: e[packetHead : packetHead+e.Kept()], Len: int(le.Uint32(e[24:])),
		Direction: Direction(e[packetHead+pad4(e.Kept())+4] & 3),
	}
}

// Dropped is a packet's epb_dropcount.
func (e Encoded) Dropped() uint64 {
	if at := e.dropcount(); at > 0 {
		return le.Uint64(e[at:])
	}
	return 0
}

// dropcount is where the value of epb_dropcount is; 0: nowhere. It comes after the
// flags.
func (e Encoded) dropcount() int {
	at := packetHead + pad4(e.Kept()) + packetFlags
	if at+packetDrop+packetFinish > len(e) || le.Uint16(e[at:]) != epbDropcount {
		return 0
	}
	return at + 4
}

// AppendDropped appends a packet to b, before which n more were lost than it says.
func (e Encoded) AppendDropped(b []byte, n uint64) []byte {
	start := len(b)
	if e.dropcount() > 0 {
		b = append(b, e...)
	} else {
		at := packetHead + pad4(e.Kept()) + packetFlags
		b = append(b, e[:at]...)
		b = le.AppendUint64(optionHead(b, epbDropcount, 8), 0)
		b = append(b, e[at:]...)
		total := uint32(len(b) - start)
		le.PutUint32(b[start+4:], total)
		le.PutUint32(b[len(b)-4:], total)
	}
	longer := Encoded(b[start:])
	at := longer.dropcount()
	le.PutUint64(longer[at:], le.Uint64(longer[at:])+n)
	return b
}
