package pcapng

// optPadding is an option for local use, by its highest bit: readers pass it over. It
// takes what is left of a place that is larger than what is put in it.
const optPadding = 0x8000

// MinFiller is the shortest place that PutFiller fills: the block's head, six options
// and its end.
const MinFiller = 20 + 6*12 + packetFinish

// PutFiller fills all of b, of a length that is a multiple of 4 from MinFiller to 64
// KiB, with an Interface Statistics Block: no other block is passed over by so many
// readers, and what stands in it is true. Comment and Accepted are left out.
func PutFiller(b []byte, s *Stats) {
	at := le.AppendUint32(b[:0], StatisticsBlock)
	at = le.AppendUint32(at, uint32(len(b)))
	at = le.AppendUint32(at, s.Interface)
	at = appendTime(at, s.Time)
	at = appendTime(optionHead(at, isbStart, 8), s.Start)
	at = appendTime(optionHead(at, isbEnd, 8), s.End)
	at = le.AppendUint64(optionHead(at, isbIfrecv, 8), s.Received)
	at = le.AppendUint64(optionHead(at, isbIfdrop, 8), s.IfDrop)
	at = le.AppendUint64(optionHead(at, isbOsdrop, 8), s.OSDrop)
	at = le.AppendUint64(optionHead(at, isbUsrdeliv, 8), s.Delivered)
	fill(b, len(at))
}

// PacketHead is the room that FramePacket needs in front of the data.
const PacketHead = packetHead

// PacketTail is the room that FramePacket needs behind the data, which is padded to a
// multiple of 4.
func PacketTail(dropped bool) int { return PacketLen(0, dropped) - packetHead }

// FramePacket makes all of b an Enhanced Packet Block around data that is there
// already, p.Data, PacketHead bytes from its start. len(b) is a multiple of 4.
func FramePacket(b []byte, p *Packet) {
	head := b[:packetHead]
	le.PutUint32(head, PacketBlock)
	le.PutUint32(head[4:], uint32(len(b)))
	le.PutUint32(head[8:], p.Interface)
	le.PutUint32(head[12:], uint32(uint64(p.Time)>>32))
	le.PutUint32(head[16:], uint32(p.Time))
	le.PutUint32(head[20:], uint32(len(p.Data)))
	le.PutUint32(head[24:], uint32(p.Len))

	kept := packetHead + len(p.Data)
	at := packetHead + pad4(len(p.Data))
	clear(b[kept:at])
	le.PutUint64(b[at:], epbFlags|4<<16|uint64(p.Direction)<<32|uint64(p.Reception)<<34)
	at += packetFlags
	if p.Dropped != 0 {
		le.PutUint32(b[at:], epbDropcount|8<<16)
		le.PutUint64(b[at+4:], p.Dropped)
		at += packetDrop
	}
	at += copy(b[at:], p.Options)
	fill(b, at)
}

// fill completes a block whose options end at a place in b.
func fill(b []byte, at int) {
	end := len(b) - packetFinish
	if room := end - at; room > 0 {
		le.PutUint32(b[at:], optPadding|uint32(room-4)<<16)
		clear(b[at+4 : end]) // what was there is nobody's business
	}
	le.PutUint64(b[end:], optEnd|uint64(len(b))<<32)
}
