package owner

import (
	"encoding/binary"
	"net/netip"

	"github.com/sockd/sockd/families/packet/filter"
)

// Flow is the names of the two ends of a TCP connection, or of UDP datagrams.
type Flow struct {
	Protocol  uint8 // IPPROTO_TCP or IPPROTO_UDP
	Own, Peer netip.AddrPort
}

func (f Flow) reversed() Flow { return Flow{f.Protocol, f.Peer, f.Own} }

const (
	protoTCP = 6
	protoUDP = 17
	tcpSYN   = 2
)

// flowOf reads the flow of a frame from its sender to its receiver, and the flags of TCP.
// What is no whole header of either, or a later fragment, has none.
func flowOf(frame []byte, link filter.LinkType) (f Flow, flags uint8, ok bool) {
	packet, ok := network(frame, link)
	if !ok || len(packet) < 1 {
		return f, 0, false
	}
	var src, dst netip.Addr
	var rest []byte
	switch packet[0] >> 4 {
	case 4:
		src, dst, f.Protocol, rest, ok = readIPv4(packet)
	case 6:
		src, dst, f.Protocol, rest, ok = readIPv6(packet)
	default:
		return f, 0, false
	}
	switch {
	case !ok || len(rest) < 4:
		return f, 0, false
	case f.Protocol == protoTCP && len(rest) >= 14:
		flags = rest[13]
	case f.Protocol != protoUDP:
		return f, 0, false
	}
	f.Own = netip.AddrPortFrom(src, binary.BigEndian.Uint16(rest))
	f.Peer = netip.AddrPortFrom(dst, binary.BigEndian.Uint16(rest[2:]))
	return f, flags, true
}

// network is what follows the link layer's header and VLAN tags, if it is IP.
func network(frame []byte, link filter.LinkType) ([]byte, bool) {
	switch link {
	case filter.Raw, filter.IPv4, filter.IPv6:
		return frame, true
	case filter.Ethernet:
	default:
		return nil, false
	}
	for at := 12; at+2 <= len(frame); at += 4 {
		switch binary.BigEndian.Uint16(frame[at:]) {
		case 0x0800, 0x86dd:
			return frame[at+2:], true
		case 0x8100, 0x88a8, 0x9100:
		default:
			return nil, false
		}
	}
	return nil, false
}

// readIPv4 reads RFC 791's header. Of fragments only the first has ports.
func readIPv4(b []byte) (src, dst netip.Addr, protocol uint8, rest []byte, ok bool) {
	if len(b) < 20 {
		return
	}
	size := int(b[0]&15) * 4
	if size < 20 || len(b) < size || binary.BigEndian.Uint16(b[6:])&0x1fff != 0 {
		return
	}
	return netip.AddrFrom4([4]byte(b[12:])), netip.AddrFrom4([4]byte(b[16:])), b[9], b[size:], true
}

// The headers of IPv6 that are walked through (RFC 8200), with the fragment header.
const (
	hopByHop     = 0
	routing      = 43
	fragment     = 44
	destinations = 60
)

// readIPv6 reads RFC 8200's header and the extension headers behind it.
func readIPv6(b []byte) (src, dst netip.Addr, protocol uint8, rest []byte, ok bool) {
	if len(b) < 40 {
		return
	}
	src, dst = netip.AddrFrom16([16]byte(b[8:])).Unmap(), netip.AddrFrom16([16]byte(b[24:])).Unmap()
	protocol, rest = b[6], b[40:]
	for {
		size := 8
		switch protocol {
		case hopByHop, routing, destinations:
			if len(rest) < 8 {
				return
			}
			size = 8 * (1 + int(rest[1]))
		case fragment:
			if len(rest) < 8 || binary.BigEndian.Uint16(rest[2:])&0xfff8 != 0 {
				return
			}
		default:
			return src, dst, protocol, rest, true
		}
		if len(rest) < size {
			return
		}
		protocol, rest = rest[0], rest[size:]
	}
}
