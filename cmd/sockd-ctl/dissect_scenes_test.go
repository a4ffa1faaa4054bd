package main

import (
	"encoding/binary"
	"slices"
	"strings"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

// fragment6 is a part of a UDP datagram of 1000 to 2000.
func fragment6(offset, length uint16, more bool) []byte {
	header := []byte{byte(layers.IPProtocolUDP), 0, 0, 0, 0, 0, 0x12, 0x67}
	field := offset
	if more {
		field |= 1
	}
	binary.BigEndian.PutUint16(header[2:], field)
	body := []byte(strings.Repeat("f", int(length)))
	if offset == 0 {
		copy(body, []byte{1000 >> 8, 1000 & 0xff, 2000 >> 8, 2000 & 0xff, 0x0b, 0xb8, 0x12, 0x34})
	}
	ip := ip6Layer(layers.IPProtocolIPv6Fragment)
	return build(eth6(), ip, gopacket.Payload(slices.Concat(header, body)))
}

// extended6 is a packet behind a destination options header.
func extended6(next layers.IPProtocol, body []byte) []byte {
	return build(eth6(), ip6Layer(layers.IPProtocolIPv6Destination), gopacket.Payload(append([]byte{byte(next), 0, 1, 4, 0, 0, 0, 0}, body...)))
}

// llcFrame is an IEEE 802.3 frame: its type is its length.
func llcFrame(dsap, ssap, control byte, body ...byte) []byte {
	payload := append([]byte{dsap, ssap, control}, body...)
	f := slices.Concat(macB, macA, binary.BigEndian.AppendUint16(nil, uint16(len(payload))), payload)
	return append(f, make([]byte, max(0, 60-len(f)))...)
}

// greFrame is a GRE header (RFC 2784) before an IP packet.
func greFrame(flags uint16, header, body []byte) []byte {
	gre := binary.BigEndian.AppendUint16(nil, flags)
	gre = binary.BigEndian.AppendUint16(gre, uint16(layers.EthernetTypeIPv4))
	return build(eth4(false), ip4Layer(layers.IPProtocolGRE, false), gopacket.Payload(slices.Concat(gre, header, body)))
}

// newScenes are those that once differed from tcpdump.
func newScenes() []scene {
	nd := func(options ...byte) []byte { return append(slices.Clone([]byte(ip6B)), options...) }
	linkAddress := func(kind byte) []byte { return []byte{kind, 1, 2, 0, 0, 0, 0, 1} }
	inner := build(ip4Layer(layers.IPProtocolUDP, true), &layers.UDP{SrcPort: 3, DstPort: 4}, data("inner"))
	return []scene{
		{"IPv6 fragments", [][]byte{fragment6(0, 1448, true), fragment6(1448, 1448, true), fragment6(2896, 104, false)}},
		{"IPv6 extension headers", [][]byte{
			extended6(layers.IPProtocolTCP, []byte{0, 1, 0, 2, 0, 0, 0, 3, 0, 0, 0, 0, 0x50, 2, 0, 9, 0, 0, 0, 0}),
			extended6(layers.IPProtocolUDP, []byte{0, 1, 0, 2, 0, 9, 0, 0, 'x'}),
			extended6(253, []byte("experiment")),
			build(eth6(), ip6Layer(layers.IPProtocolIPv6HopByHop), gopacket.Payload([]byte{253, 0, 5, 2, 0, 0, 1, 0, 'x'})),
		}},
		{"neighbour discovery", [][]byte{
			neighbour(135, append(make([]byte, 4), nd(linkAddress(1)...)...)),
			neighbour(136, append([]byte{0x60, 0, 0, 0}, nd(linkAddress(2)...)...)),
			neighbour(136, append([]byte{0xe0, 0, 0, 0}, nd(linkAddress(2)...)...)),
			neighbour(135, append(make([]byte, 4), nd()...)),
			neighbour(135, append(make([]byte, 4), nd(14, 1, 1, 2, 3, 4, 5, 6)...)),
			neighbour(133, make([]byte, 4)),
			neighbour(133, append(make([]byte, 4), linkAddress(1)...)),
		}},
		{"IEEE 802.3", [][]byte{
			llcFrame(0x42, 0x42, 0x03, make([]byte, 13)...),
			llcFrame(0x42, 0x42, 0x03, append([]byte{0, 0, 0, 0, 0x81, 0x80, 0, 2, 0, 0, 0, 0, 7, 0, 0, 0, 19, 0x80, 1, 2, 0, 0, 0, 0, 8, 0x80, 2, 1, 0, 20, 0, 2, 0, 15, 0}, make([]byte, 5)...)...),
			llcFrame(0x42, 0x42, 0x03, 0, 0, 0, 0x80),
			llcFrame(0x06, 0x06, 0x03, build(ip4Layer(layers.IPProtocolUDP, false), &layers.UDP{SrcPort: 5, DstPort: 6}, data("llc"))...),
			llcFrame(0xf1, 0x11, 0x01, 0x04, 1, 2),
			llcFrame(0xf0, 0xf0, 0x03, 1, 2, 3, 4),
			llcFrame(0x06, 0x07, 0x03, 1, 2, 3, 4),
			llcFrame(0x10, 0x10, 0x03, 1, 2, 3, 4, 5, 6),
			llcFrame(0xe0, 0x10, 0x7f, 1, 2, 3, 4, 5, 6),
			llcFrame(0x12, 0x34, 0x02, 0x05, 3, 4, 5, 6),
		}},
		{"an unknown ethertype", [][]byte{
			build(ether(macA, macB, 0x88b5), data("nobody knows what this is")),
		}},
		{"ARP that was cut", [][]byte{
			arpFrame(1, macB)[:14+8], arpFrame(1, macB)[:14+20], arpFrame(1, macB)[:14+4],
			build(ether(macA, broadcast, layers.EthernetTypeARP), gopacket.Payload([]byte{0, 1, 8, 0, 0, 0, 0, 1})),
			build(ether(macA, broadcast, layers.EthernetTypeARP), gopacket.Payload([]byte{0, 1, 8, 0, 6, 0, 0, 1, 2, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0})),
			build(ether(macA, broadcast, layers.EthernetTypeARP), gopacket.Payload([]byte{0, 1, 8, 0, 0, 4, 0, 1, 10, 0, 0, 1, 10, 0, 0, 2})),
			build(ether(macA, broadcast, layers.EthernetTypeARP), gopacket.Payload([]byte{0, 1, 8, 0, 0, 4, 0, 2, 10, 0, 0, 1, 10, 0, 0, 2})),
			build(ether(macA, broadcast, layers.EthernetTypeARP), gopacket.Payload([]byte{0, 6, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 1, 10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 10, 0, 0, 2})),
			build(ether(macA, broadcast, layers.EthernetTypeARP), gopacket.Payload([]byte{0, 1, 8, 6, 6, 4, 0, 1, 2, 0, 0, 0, 0, 1, 10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 10, 0, 0, 2})),
		}},
		{"GRE", [][]byte{
			greFrame(0, nil, inner), greFrame(0x2000, []byte{0, 0, 0, 9}, inner), greFrame(0x1000, []byte{0, 0, 0, 5}, inner),
			build(eth4(false), ip4Layer(layers.IPProtocolGRE, false), gopacket.Payload([]byte{0, 0})),
			build(eth4(false), ip4Layer(layers.IPProtocolGRE, false), gopacket.Payload([]byte{0x20, 0, 8, 0})),
			build(eth4(false), ip4Layer(layers.IPProtocolGRE, false), gopacket.Payload([]byte{0, 0, 0x88, 0xb5, 1, 2, 3})),
			build(eth4(false), ip4Layer(layers.IPProtocolGRE, false), gopacket.Payload([]byte{0, 7, 8, 0, 1, 2, 3})),
		}},
	}
}
