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
	head := le.AppendUint32(b[:0], PacketBlock)
	head = le.AppendUint32(head, uint32(len(b)))
	head = le.AppendUint32(head, p.Interface)
	head = appendTime(head, p.Time)
	head = le.AppendUint32(head, uint32(len(p.Data)))
	le.AppendUint32(head, uint32(p.Len))

	end := packetHead + len(p.Data)
	at := pad(b[:end], len(p.Data))
	at = optionHead(at, epbFlags, 4)
	at = le.AppendUint32(at, uint32(p.Direction)|uint32(p.Reception)<<2)
	if p.Dropped != 0 {
		at = optionHead(at, epbDropcount, 8)
		at = le.AppendUint64(at, p.Dropped)
	}
	fill(b, len(at))
}

// fill completes a block whose options end at a place in b.
func fill(b []byte, at int) {
	end := b[:at]
	if room := len(b) - packetFinish - at; room > 0 {
		end = optionHead(end, optPadding, uint16(room-4))
		clear(b[len(end) : len(b)-packetFinish]) // what was there is nobody's business
		end = b[:len(b)-packetFinish]
	}
	end = optionHead(end, optEnd, 0)
	le.AppendUint32(end, uint32(len(b)))
}
