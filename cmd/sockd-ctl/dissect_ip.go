package main

// The protocols within IP that are decoded.
const (
	protoHopByHop = 0
	protoICMP     = 1
	protoIGMP     = 2
	protoIPv4     = 4
	protoTCP      = 6
	protoDCCP     = 33
	protoUDP      = 17
	protoIPv6     = 41
	protoRouting  = 43
	protoFragment = 44
	protoGRE      = 47
	protoESP      = 50
	protoAH       = 51
	protoICMPv6   = 58
	protoNone     = 59
	protoDestOpts = 60
	protoMobility = 135
	protoSCTP     = 132
	protoEthernet = 143
)

// protocolNames are the names that tcpdump has for them, and for others.
var protocolNames = names{
	protoHopByHop: "Options", protoICMP: "ICMP", protoIGMP: "IGMP", protoIPv4: "IPIP", protoTCP: "TCP", 8: "EGP", 9: "IGRP", protoUDP: "UDP",
	protoDCCP: "DCCP", protoIPv6: "IPv6", protoRouting: "Routing", protoFragment: "Fragment", 46: "RSVP", protoGRE: "GRE", protoESP: "ESP", protoAH: "AH",
	55: "Mobile IP", protoICMPv6: "ICMPv6", 62: "Mobile IP (old)", 88: "EIGRP", 89: "OSPF", 103: "PIM", 108: "Compressed IP", 112: "VRRP", 113: "PGM",
	protoSCTP: "SCTP", protoMobility: "Mobility", protoEthernet: "Ethernet",
}

// A segment is what an IP packet carries, with what its checksum needs to know.
type segment struct {
	src, dst   []byte // 4 or 16 bytes
	final      []byte // where a source route leads, which is what checksums cover; else dst
	data       []byte // what was captured
	length     int    // on the wire
	outer      int    // the protocol that the IP header itself names
	fragmented bool
}

func (s *segment) version() int {
	if len(s.src) == 4 {
		return 4
	}
	return 6
}

// captured tells whether the first n bytes are there and whole, so that a checksum
// over them can be checked.
func (s *segment) captured(n int) bool { return has(s.data, n) && !s.fragmented }

// sum is the Internet checksum over the pseudo header and the first n bytes; 0 is right.
func (s *segment) sum(proto, n int) uint16 {
	pseudo := uint32(proto) + uint32(n)>>16 + uint32(n)&0xffff
	return fold(addWords(s.src) + addWords(s.final) + pseudo + addWords(s.data[:n]))
}

// between writes the addresses.
func (p *printer) between(s *segment) { p.printf("%s > %s: ", addr(s.src), addr(s.dst)) }

// betweenPorts writes both ends of a conversation: the ports alone when the addresses
// were said before, as those of an IP packet with another header in between.
func (p *printer) betweenPorts(s *segment, proto int, sport, dport uint16) {
	if s.outer != proto {
		p.printf("%d > %d: ", sport, dport)
		return
	}
	p.printf("%s.%d > %s.%d: ", addr(s.src), sport, addr(s.dst), dport)
}

// hasPorts tells whether a protocol writes the addresses itself, with its ports.
func hasPorts(proto int) bool { return proto == protoTCP || proto == protoUDP }

const ipv4Header = 20

// The bits beside the fragment offset.
const (
	ipv4Reserved = 0x8000
	ipv4Dont     = 0x4000
	ipv4More     = 0x2000
	ipv4Offset   = 0x1fff
)

var ipv4Flags = []bitName{{ipv4More, "+"}, {ipv4Dont, "DF"}, {ipv4Reserved, "rsvd"}}

func (p *printer) ipv4(data []byte, full int) {
	p.proto = "ip"
	if version := u8(data, 0) >> 4; version != 4 {
		p.otherVersion(version)
		return
	}
	if !p.opts.Ethernet {
		p.say("IP ")
	}
	if !has(data, ipv4Header) {
		p.truncated()
		return
	}
	if full < ipv4Header {
		p.printf("truncated-ip %d", full)
		return
	}
	header, length := int(data[0]&0xf)*4, int(u16(data, 2))
	if header < ipv4Header {
		p.printf("bad-hlen %d", header)
		return
	}
	if full < length {
		p.printf("truncated-ip - %d bytes missing! ", length-full)
	}
	if length < header {
		if length != 0 {
			p.printf("bad-len %d", length)
			return
		}
		length = full // a segment that the network card will cut up
	}
	p.ipv4Packet(first(data, length), header, length)
}

func (p *printer) otherVersion(version byte) {
	if version == 6 {
		p.say("IP6, wrong link-layer encapsulation")
	} else {
		p.printf("IP%d", version)
	}
	p.invalid()
}

// ipv4Packet writes a packet whose fixed header is there.
func (p *printer) ipv4Packet(data []byte, header, length int) {
	field, proto := u16(data, 6), int(data[9])
	s := &segment{src: data[12:16], dst: data[16:20], length: length - header, outer: proto, fragmented: field&ipv4More != 0}
	if p.verbose(1) && !p.ipv4Header(data, header) {
		p.between(s)
		p.truncated()
		return
	}
	if field&ipv4Offset != 0 {
		p.printf("%s > %s: ip-proto-%d", addr(s.src), addr(s.dst), proto)
		return
	}
	if !hasPorts(proto) {
		p.between(s)
	}
	if !has(data, header) {
		p.printf(" [remaining caplen(%d) < header length(%d)]", len(data), header)
		panic(cutShort{})
	}
	s.data, s.final = data[header:], ipv4Final(data[:header])
	p.transport(proto, s)
}

// ipv4Header writes -v's parenthesis; false when its options are cut.
func (p *printer) ipv4Header(data []byte, header int) (whole bool) {
	tos, field := data[1], u16(data, 6)
	p.printf("(tos 0x%x%s", tos, [...]string{"", ",ECT(1)", ",ECT(0)", ",CE"}[tos&3])
	if ttl := data[8]; ttl >= 1 {
		p.printf(", ttl %d", ttl)
	}
	p.printf(", id %d, offset %d, flags [%s], proto %s (%d)", u16(data, 4), int(field&ipv4Offset)*8, bitNames(ipv4Flags, uint32(field), ", "), protocolNames.or(int(data[9]), "unknown"), data[9])
	p.printf(", length %d", u16(data, 2))
	whole = true
	if header > ipv4Header {
		p.say(", options (")
		if whole = p.ipv4Options(data[ipv4Header:], header-ipv4Header); !whole {
			p.say(" [truncated-option]")
		}
		p.say(")")
	}
	if has(data, header) {
		if sum := fold(addWords(data[:header])); sum != 0 {
			p.printf(", bad cksum %x (->%x)!", u16(data, 10), should(u16(data, 10), sum))
		}
	}
	p.say(")\n    ")
	return whole
}

// The options of IPv4 (RFC 791, RFC 2113).
const (
	ipOptEnd       = 0
	ipOptNop       = 1
	ipOptRecord    = 7
	ipOptTimestamp = 68
	ipOptLoose     = 131
	ipOptStrict    = 137
	ipOptAlert     = 148
)

var ipv4OptionNames = names{ipOptEnd: "EOL", ipOptNop: "NOP", ipOptRecord: "RR", ipOptTimestamp: "timestamp", 82: "traceroute", 130: "security", ipOptLoose: "LSRR", ipOptStrict: "SSRR", ipOptAlert: "RA"}

// ipv4Options writes length bytes of options; false when they are not all there.
func (p *printer) ipv4Options(o []byte, length int) (whole bool) {
	for between := ""; length > 0; between = "," {
		p.say(between)
		kind, size := int(u8(o, 0)), 1
		p.say(ipv4OptionNames.or(kind, "unknown %d"))
		if kind != ipOptEnd && kind != ipOptNop {
			size = int(u8(o, 1))
		}
		if size > length || size < 2 && kind != ipOptEnd && kind != ipOptNop {
			p.printf(" [bad length %d]", size)
			return true
		}
		if !has(o, size) {
			return false
		}
		if kind == ipOptEnd {
			return true
		}
		if !p.ipv4Option(kind, o, size) {
			return false
		}
		o, length = o[size:], length-size
	}
	return true
}

// ipv4Option writes the first option of o, which has size bytes; false when an address
// in it lies beyond the packet.
func (p *printer) ipv4Option(kind int, o []byte, size int) (whole bool) {
	switch kind {
	case ipOptTimestamp:
		return p.ipv4Timestamps(o, size)
	case ipOptRecord, ipOptLoose, ipOptStrict:
		return p.ipv4Route(o, size)
	case ipOptAlert:
		if size < 4 {
			p.printf(" [bad length %d]", size)
		} else if v := u16(o, 2); v != 0 {
			p.printf(" value %d", v)
		}
	}
	return true
}

// ipv4Route writes the addresses of a route; a comma follows those that were visited.
func (p *printer) ipv4Route(o []byte, size int) (whole bool) {
	if size < 3 {
		p.printf(" [bad length %d]", size)
		return true
	}
	if (size+1)&3 != 0 {
		p.printf(" [bad length %d]", size)
	}
	at := int(o[2]) - 1
	if at < 3 || (at+1)&3 != 0 || at > size+1 {
		p.printf(" [bad ptr %d]", o[2])
	}
	for i := 3; i < size; i += 4 {
		if !has(o, i+4) {
			return false
		}
		p.printf(" %s", ip4(o, i))
		p.sayIf(at > i, ",")
	}
	return true
}

var ipv4TimestampKinds = names{0: "TSONLY", 1: "TS+ADDR", 3: "PRESPEC"}

// ipv4Timestamps writes the times that routers left; ^ stands before the next free place.
func (p *printer) ipv4Timestamps(o []byte, size int) (whole bool) {
	if size < 4 {
		p.printf("[bad length %d]", size)
		return true
	}
	p.say(" TS{")
	kind, hop := int(o[3]&0xf), 8
	if kind == 0 {
		hop = 4
	}
	if (size-4)&(hop-1) != 0 {
		p.printf("[bad length %d]", size)
	}
	at, i := int(o[2])-1, 0
	if at < 4 || (at-4)&(hop-1) != 0 || at > size+1 {
		p.printf("[bad ptr %d]", o[2])
	}
	p.say(ipv4TimestampKinds.or(kind, "[bad ts type %d]"))
	if _, known := ipv4TimestampKinds[kind]; known {
		for i = 4; i < size; i += hop {
			if !has(o, i+hop) {
				return false
			}
			p.ipv4Timestamp(o[i:i+hop], at == i)
		}
	}
	p.sayIf(at == i, " ^ ")
	if missed := o[3] >> 4; missed != 0 {
		p.printf(" [%d hops not recorded]} ", missed)
	} else {
		p.say("}")
	}
	return true
}

// ipv4Timestamp writes a time, and behind it whose it is when that was asked for.
func (p *printer) ipv4Timestamp(o []byte, next bool) {
	who := ""
	if len(o) == 8 {
		who = ip4(o, 0)
	}
	p.sayIf(next, " ^")
	p.printf(" %d@%s", u32(o, len(o)-4), who)
}

// ipv4Final is where a packet goes in the end: with a source route that is its last
// address.
func ipv4Final(header []byte) []byte {
	for o := header[ipv4Header:]; len(o) > 0 && o[0] != ipOptEnd; {
		size := 1
		if o[0] != ipOptNop {
			if len(o) < 2 || o[1] < 2 || int(o[1]) > len(o) {
				break
			}
			size = int(o[1])
		}
		if (o[0] == ipOptLoose || o[0] == ipOptStrict) && size >= 7 {
			return o[size-4 : size]
		}
		o = o[size:]
	}
	return header[16:20]
}

// transport writes what an IP packet carries.
func (p *printer) transport(proto int, s *segment) {
	for proto == protoAH {
		p.proto = "ah"
		if len(s.data) == 0 {
			p.truncated()
			return
		}
		proto = p.authentication(s)
	}
	switch proto {
	case protoTCP:
		p.tcpSegment(s)
	case protoUDP:
		p.udpDatagram(s)
	case protoICMP, protoIGMP:
		p.onlyIn(4, proto, s)
	case protoICMPv6, protoEthernet:
		p.onlyIn(6, proto, s)
	case protoIPv4:
		p.ipv4(s.data, s.length)
	case protoIPv6:
		p.ipv6(s.data, s.length)
	case protoGRE:
		p.gre(s)
	case protoESP:
		p.esp(s)
	case protoNone:
		p.say("no next header")
	default:
		p.printf(" ip-proto-%d %d", proto, s.length)
	}
}

// onlyIn writes a protocol that belongs to one version of IP.
func (p *printer) onlyIn(version, proto int, s *segment) {
	if s.version() != version {
		p.printf("[%s requires IPv%d]", protocolNames.or(proto, "unknown"), version)
		p.invalid()
		return
	}
	switch proto {
	case protoICMP:
		p.icmp(s)
	case protoIGMP:
		p.igmp(s)
	case protoICMPv6:
		p.icmp6(s)
	case protoEthernet:
		p.innerEthernet(s.data, s.length)
	}
}

// authentication writes an AH header (RFC 4302), takes it off, and gives the protocol
// behind it.
func (p *printer) authentication(s *segment) (next int) {
	next = int(u8(s.data, 0))
	words := int(u8(s.data, 1))
	size := (words + 2) * 4
	p.say("AH(")
	if p.verbose(1) {
		p.printf("length=%d(%d-bytes),", words, size)
	}
	if reserved := u16(s.data, 2); reserved != 0 {
		p.printf("reserved=0x%x[MustBeZero],", reserved)
	}
	p.printf("spi=0x%08x,", u32(s.data, 4))
	p.printf("seq=0x%x,", u32(s.data, 8))
	p.say("icv=0x")
	for i := 12; i < size; i++ {
		p.printf("%02x", u8(s.data, i))
	}
	p.say("): ")
	s.data, s.length = skip(s.data, size), s.length-size
	return next
}

const espHeader = 8

// esp writes what can be seen of an encrypted packet (RFC 4303).
func (p *printer) esp(s *segment) {
	p.proto = "esp"
	if len(s.data) <= espHeader {
		p.truncated()
		return
	}
	p.printf("ESP(spi=0x%08x,seq=0x%x), length %d", u32(s.data, 0), u32(s.data, 4), s.length)
}
