package main

import (
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

// A segment is what an IP packet carries, with what its checksum needs to know.
type segment struct {
	src, dst   []byte // 4 or 16 bytes
	data       []byte // what was captured
	length     int    // on the wire
	fragmented bool
	// named: the addresses were said, before extension headers. Ports stand alone then.
	named bool
}

func (s segment) ends() (src, dst string) { return addr(s.src), addr(s.dst) }

// ports are the two ends of a conversation, with their addresses if they were not
// said before.
func (s segment) ports(sport, dport uint16) string {
	if s.named {
		return fmt.Sprintf("%d > %d: ", sport, dport)
	}
	src, dst := s.ends()
	return fmt.Sprintf("%s.%d > %s.%d: ", src, sport, dst, dport)
}

// captured tells whether the whole segment is there, so that its checksum can be checked.
func (s segment) captured() bool { return len(s.data) >= s.length && !s.fragmented }

// sum is the Internet checksum over the pseudo header and the segment; 0 is right.
func (s segment) sum(proto layers.IPProtocol) uint16 {
	pseudo := uint32(proto) + uint32(s.length)>>16 + uint32(s.length)&0xffff
	return fold(addWords(s.src) + addWords(s.dst) + pseudo + addWords(s.data[:s.length]))
}

// addWords adds up 16-bit words in network byte order; an odd last byte is a
// word's first.
func addWords(b []byte) (total uint32) {
	for ; len(b) >= 2; b = b[2:] {
		total += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		total += uint32(b[0]) << 8
	}
	return total
}

// fold makes a checksum of a sum (RFC 1071).
func fold(total uint32) uint16 {
	for total > 0xffff {
		total = total>>16 + total&0xffff
	}
	return ^uint16(total)
}

// should is the checksum that would be right, where has stands and sum is what
// the segment adds up to.
func should(has, sum uint16) uint16 { return fold(uint32(^has) + uint32(^sum)) }

func (p *printer) ipv4(data []byte, full int) {
	var ip layers.IPv4
	if err := ip.DecodeFromBytes(data, gopacket.NilDecodeFeedback); err != nil {
		p.line.WriteString("[|ip]")
		return
	}
	header := int(ip.IHL) * 4
	length := int(binary.BigEndian.Uint16(data[2:]))
	if length == 0 {
		length = full // a segment that the network card will cut up
	}
	if full < length {
		p.printf("truncated-ip - %d bytes missing! ", length-full)
	}
	s := segment{src: ip.SrcIP.To4(), dst: ip.DstIP.To4(), data: ip.Payload, length: length - header}
	s.fragmented = ip.Flags&layers.IPv4MoreFragments != 0 || ip.FragOffset != 0
	if p.opts.Verbose > 0 {
		p.ipv4Header(&ip, data[:header], length)
	}
	if ip.FragOffset != 0 {
		src, dst := s.ends()
		p.printf("%s > %s: ip-proto-%d", src, dst, ip.Protocol)
		return
	}
	p.transport(ip.Protocol, s)
}

// ipv4Header writes -v's parenthesis.
func (p *printer) ipv4Header(ip *layers.IPv4, header []byte, length int) {
	p.printf("(tos 0x%x%s", ip.TOS, [...]string{"", ",ECT(1)", ",ECT(0)", ",CE"}[ip.TOS&3])
	if ip.TTL >= 1 {
		p.printf(", ttl %d", ip.TTL)
	}
	p.printf(", id %d, offset %d, flags [%s], proto %s (%d), length %d", ip.Id, int(ip.FragOffset)*8, ipv4Flags(ip.Flags), protocolName(ip.Protocol), ip.Protocol, length)
	if len(header) > 20 {
		p.printf(", options (%s)", ipv4Options(ip.Options))
	}
	if sum := fold(addWords(header)); sum != 0 {
		p.printf(", bad cksum %x (->%x)!", ip.Checksum, should(ip.Checksum, sum))
	}
	p.line.WriteString(")\n    ")
}

func ipv4Flags(f layers.IPv4Flag) string {
	var words []string
	if f&layers.IPv4MoreFragments != 0 {
		words = append(words, "+")
	}
	if f&layers.IPv4DontFragment != 0 {
		words = append(words, "DF")
	}
	if f&layers.IPv4EvilBit != 0 {
		words = append(words, "rsvd")
	}
	if len(words) == 0 {
		return "none"
	}
	return strings.Join(words, ", ")
}

var ipv4OptionNames = map[uint8]string{0: "EOL", 1: "NOP", 7: "RR", 68: "timestamp", 131: "LSRR", 137: "SSRR", 148: "RA"}

func ipv4Options(opts []layers.IPv4Option) string {
	names := make([]string, len(opts))
	for i, o := range opts {
		names[i] = ipv4OptionNames[o.OptionType]
		if names[i] == "" {
			names[i] = "unknown"
		}
	}
	return strings.Join(names, ",")
}

var protocolNames = map[layers.IPProtocol]string{
	layers.IPProtocolICMPv4:       "ICMP",
	layers.IPProtocolIGMP:         "IGMP",
	layers.IPProtocolIPv4:         "IPIP",
	layers.IPProtocolTCP:          "TCP",
	layers.IPProtocolUDP:          "UDP",
	layers.IPProtocolIPv6:         "IPv6",
	layers.IPProtocolIPv6HopByHop: "Options",
	layers.IPProtocolIPv6Routing:  "Routing",
	layers.IPProtocolIPv6Fragment: "Fragment",
	layers.IPProtocolGRE:          "GRE",
	layers.IPProtocolESP:          "ESP",
	layers.IPProtocolAH:           "AH",
	layers.IPProtocolICMPv6:       "ICMPv6",
	layers.IPProtocolOSPF:         "OSPF",
	layers.IPProtocolVRRP:         "VRRP",
	layers.IPProtocolSCTP:         "SCTP",
}

func protocolName(proto layers.IPProtocol) string {
	if name, ok := protocolNames[proto]; ok {
		return name
	}
	return "unknown"
}

// transport writes what an IP packet carries, its addresses first.
func (p *printer) transport(proto layers.IPProtocol, s segment) {
	switch proto {
	case layers.IPProtocolTCP:
		p.tcpSegment(s)
		return
	case layers.IPProtocolUDP:
		p.udpDatagram(s)
		return
	}
	if !s.named {
		src, dst := s.ends()
		p.printf("%s > %s: ", src, dst)
	}
	switch proto {
	case layers.IPProtocolGRE:
		p.gre(s)
	case layers.IPProtocolICMPv4:
		p.icmp(s)
	case layers.IPProtocolICMPv6:
		p.icmp6(s)
	case layers.IPProtocolIPv4:
		p.network(uint16(layers.EthernetTypeIPv4), s.data, s.length, !p.opts.Ethernet, nil, nil)
	case layers.IPProtocolIPv6:
		p.network(uint16(layers.EthernetTypeIPv6), s.data, s.length, !p.opts.Ethernet, nil, nil)
	default:
		p.printf(" ip-proto-%d %d", proto, s.length)
	}
}

const ipv6Header = 40

func (p *printer) ipv6(data []byte, full int) {
	if len(data) < ipv6Header {
		p.line.WriteString("[|ip6]")
		return
	}
	// An extension header may be cut off: the fixed header decodes by itself.
	var ip layers.IPv6
	_ = ip.DecodeFromBytes(data, gopacket.NilDecodeFeedback) // the fixed part is there
	length := int(binary.BigEndian.Uint16(data[4:]))
	if full < length+ipv6Header {
		p.printf("truncated-ip6 - %d bytes missing!", length+ipv6Header-full)
	}
	next := layers.IPProtocol(data[6])
	if p.opts.Verbose > 0 {
		p.ipv6Header(data, next, length)
	}
	body := data[ipv6Header:]
	if len(body) > length && length > 0 {
		body = body[:length]
	}
	p.ipv6Next(next, segment{src: data[8:24], dst: data[24:40], data: body, length: length})
}

func (p *printer) ipv6Header(data []byte, next layers.IPProtocol, length int) {
	p.line.WriteByte('(')
	if class := data[0]<<4 | data[1]>>4; class != 0 {
		p.printf("class 0x%02x, ", class)
	}
	if label := binary.BigEndian.Uint32(data) & 0xfffff; label != 0 {
		p.printf("flowlabel 0x%05x, ", label)
	}
	p.printf("hlim %d, next-header %s (%d) payload length: %d) ", data[7], protocolName(next), next, length)
}

// maxExtensions bounds the extension headers that are looked through. RFC 8200
// has six kinds, each of which should occur once.
const maxExtensions = 8

// ipv6Next walks through the extension headers, and writes what follows.
func (p *printer) ipv6Next(next layers.IPProtocol, s segment) {
	for range maxExtensions {
		size, ok := extensionSize(next, s.data)
		if !ok {
			break
		}
		if !s.named {
			src, dst := s.ends()
			p.printf("%s > %s: ", src, dst)
			s.named = true
		}
		if len(s.data) < size {
			p.line.WriteString("[|ip6ext]")
			return
		}
		header := s.data[:size]
		if next == layers.IPProtocolIPv6Fragment {
			p.fragment6(header, s.length-size)
			if binary.BigEndian.Uint16(header[2:])&^7 != 0 {
				return // the rest of the headers is in the first fragment
			}
			p.line.WriteByte(' ')
			s.fragmented = true
		} else {
			p.line.WriteString(extensionWords[next])
			if next != layers.IPProtocolIPv6Routing && p.opts.Verbose > 0 {
				p.options6(header[2:])
			}
		}
		next, s.data, s.length = layers.IPProtocol(header[0]), s.data[size:], s.length-size
	}
	p.transport(next, s)
}

// extensionSize is the length of an extension header, if next is one.
func extensionSize(next layers.IPProtocol, data []byte) (int, bool) {
	switch next {
	case layers.IPProtocolIPv6HopByHop, layers.IPProtocolIPv6Routing, layers.IPProtocolIPv6Destination:
		if len(data) < 2 {
			return 8, true
		}
		return int(data[1])*8 + 8, true
	case layers.IPProtocolIPv6Fragment:
		return 8, true
	}
	return 0, false
}

var extensionWords = map[layers.IPProtocol]string{
	layers.IPProtocolIPv6HopByHop:    "HBH ",
	layers.IPProtocolIPv6Destination: "DSTOPT ",
	layers.IPProtocolIPv6Routing:     "srcrt ",
}

// options6 writes the options of a hop-by-hop or destination header (RFC 8200 4.2).
func (p *printer) options6(o []byte) {
	for len(o) > 0 {
		if o[0] == 0 {
			p.line.WriteString("(pad1)")
			o = o[1:]
			continue
		}
		if len(o) < 2 || len(o) < 2+int(o[1]) {
			p.line.WriteString("[trunc] ")
			return
		}
		switch body := o[2 : 2+int(o[1])]; {
		case o[0] == 1:
			p.line.WriteString("(padn)")
		case o[0] == 5 && len(body) == 2:
			p.printf("(rtalert: 0x%04x) ", binary.BigEndian.Uint16(body))
		default:
			p.printf("(opt_type 0x%02x: len=%d)", o[0], len(body))
		}
		o = o[2+int(o[1]):]
	}
	p.line.WriteByte(' ')
}

// fragment6 writes which part of a packet an IPv6 fragment of so many bytes is, and
// with -v of which packet.
func (p *printer) fragment6(header []byte, length int) {
	p.line.WriteString("frag (")
	if p.opts.Verbose > 0 {
		p.printf("0x%08x:", binary.BigEndian.Uint32(header[4:]))
	}
	p.printf("%d|%d)", binary.BigEndian.Uint16(header[2:])&^7, length)
}
