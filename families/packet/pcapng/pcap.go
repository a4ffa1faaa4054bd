package pcapng

// The classic pcap format (draft-ietf-opsawg-pcap): one link type, no interfaces, no
// directions and no counts of what was lost. sockd writes it with nanoseconds, as
// tcpdump --nano does.
const (
	pcapMagic      = 0xa1b23c4d
	pcapHeaderLen  = 24
	pcapRecordHead = 16
)

// AppendPcapHeader appends what a pcap file begins with.
func AppendPcapHeader(b []byte, link LinkType, snaplen uint32) []byte {
	b = le.AppendUint32(b, pcapMagic)
	b = le.AppendUint16(b, 2) // version 2.4
	b = le.AppendUint16(b, 4)
	b = le.AppendUint64(b, 0) // reserved: once a time zone and its accuracy
	b = le.AppendUint32(b, snaplen)
	return le.AppendUint32(b, uint32(link))
}

// PcapPacketLen is how many bytes AppendPcapPacket appends for kept bytes of data.
func PcapPacketLen(kept int) int { return pcapRecordHead + kept }

// AppendPcapPacket appends a packet: of p its Time, Data and Len. Seconds wrap in the
// year 2106.
func AppendPcapPacket(b []byte, p *Packet) []byte {
	b = le.AppendUint32(b, uint32(p.Time/1e9))
	b = le.AppendUint32(b, uint32(p.Time%1e9))
	b = le.AppendUint32(b, uint32(len(p.Data)))
	b = le.AppendUint32(b, uint32(p.Len))
	return append(b, p.Data...)
}
