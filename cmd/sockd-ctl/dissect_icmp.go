package main

import (
	"fmt"
	"strings"
)

// The kinds of ICMP (RFC 792, RFC 950, RFC 1256).
const (
	icmpEchoReply    = 0
	icmpUnreachable  = 3
	icmpQuench       = 4
	icmpRedirect     = 5
	icmpEcho         = 8
	icmpRouterAdvert = 9
	icmpTimeExceeded = 11
	icmpParameter    = 12
	icmpStamp        = 13
	icmpStampReply   = 14
	icmpMaskReply    = 18

	icmpHeader = 8
)

var icmpKinds = names{icmpQuench: "source quench", 10: "router solicitation", 15: "information request", 16: "information reply", 17: "address mask request"}

// isICMPError tells whether a kind quotes the packet that it is about.
func isICMPError(kind int) bool {
	switch kind {
	case icmpUnreachable, icmpQuench, icmpRedirect, icmpTimeExceeded, icmpParameter:
		return true
	}
	return false
}

func (p *printer) icmp(s *segment) {
	p.proto = "icmp"
	d := s.data
	kind, code := int(u8(d, 0)), int(u8(d, 1))
	if !has(d, icmpLeast(kind, code, d)) {
		p.truncated()
		return
	}
	words := icmpWords(kind, code, d)
	p.printf("ICMP %s, length %d", words, s.length)
	if !p.verbose(1) {
		return
	}
	if s.captured(s.length) {
		if sum := fold(addWords(d[:s.length])); sum != 0 {
			p.printf(" (wrong icmp cksum %x (->%x)!)", u16(d, 2), should(u16(d, 2), sum))
		}
	}
	if !isICMPError(kind) {
		return
	}
	p.say("\n\t")
	inner := skip(d, icmpHeader)
	length := int(u16(inner, 2)) // the error quotes the packet's beginning: its own length is not missing
	p.ipv4(first(inner, length), length)
	p.proto = "icmp"
	if kind == icmpUnreachable || kind == icmpTimeExceeded || kind == icmpParameter {
		p.multipart(d, s.length)
	}
}

// icmpLeast is how much of a message must be there: what is cut before that ends the
// line, but its header is still known.
func icmpLeast(kind, code int, d []byte) int {
	switch {
	case kind == icmpUnreachable && code == 3:
		return icmpHeader + 10
	case kind == icmpTimeExceeded:
		return icmpHeader + ipv4Header
	case kind == icmpStampReply:
		return 20
	case kind == icmpRouterAdvert && (!has(d, icmpHeader) || d[5] != 2):
		return icmpHeader
	case kind == icmpRouterAdvert:
		return icmpHeader + 8*int(d[4])
	}
	return 0
}

// icmpWords say what a message is.
func icmpWords(kind, code int, d []byte) string {
	switch kind {
	case icmpEcho:
		return fmt.Sprintf("echo request, id %d, seq %d", u16(d, 4), u16(d, 6))
	case icmpEchoReply:
		return fmt.Sprintf("echo reply, id %d, seq %d", u16(d, 4), u16(d, 6))
	case icmpUnreachable:
		return unreachable(code, d)
	case icmpRedirect:
		return redirect(code, d)
	case icmpRouterAdvert:
		return routerAdvertisement(d)
	case icmpTimeExceeded:
		return names{0: "time exceeded in-transit", 1: "ip reassembly time exceeded"}.or(code, "time exceeded-#%d")
	case icmpParameter:
		if code != 0 {
			return fmt.Sprintf("parameter problem - code %d", code)
		}
		return fmt.Sprintf("parameter problem - octet %d", u8(d, 4))
	case icmpMaskReply:
		return fmt.Sprintf("address mask is 0x%08x", u32(d, 8))
	case icmpStamp:
		return fmt.Sprintf("time stamp query id %d seq %d", u16(d, 4), u16(d, 6))
	case icmpStampReply:
		return fmt.Sprintf("time stamp reply id %d seq %d: org %s, recv %s, xmit %s", u16(d, 4), u16(d, 6), sinceMidnight(u32(d, 8)), sinceMidnight(u32(d, 12)), sinceMidnight(u32(d, 16)))
	}
	return icmpKinds.or(kind, "type-#%d")
}

// sinceMidnight is a time of day in milliseconds.
func sinceMidnight(ms uint32) string {
	return fmt.Sprintf("%02d:%02d:%02d.%03d", ms/3600000, ms/60000%60, ms/1000%60, ms%1000)
}

// unreachableWords are the codes that say no more than whom they are about.
var unreachableWords = map[int]string{
	0:  "net %s unreachable",
	1:  "host %s unreachable",
	5:  "%s unreachable - source route failed",
	6:  "net %s unreachable - unknown",
	7:  "host %s unreachable - unknown",
	8:  "%s unreachable - source host isolated",
	9:  "net %s unreachable - admin prohibited",
	10: "host %s unreachable - admin prohibited",
	11: "net %s unreachable - tos prohibited",
	12: "host %s unreachable - tos prohibited",
	13: "host %s unreachable - admin prohibited filter",
	14: "host %s unreachable - host precedence violation",
	15: "host %s unreachable - precedence cutoff",
}

func unreachable(code int, d []byte) string {
	inner := skip(d, icmpHeader)
	if code == 3 {
		return portUnreachable(inner)
	}
	dst := ip4(inner, 16)
	if words, ok := unreachableWords[code]; ok {
		return fmt.Sprintf(words, dst)
	}
	switch code {
	case 2:
		return fmt.Sprintf("%s protocol %d unreachable", dst, u8(inner, 9))
	case 4:
		if mtu := u16(d, 6); mtu != 0 {
			return fmt.Sprintf("%s unreachable - need to frag (mtu %d)", dst, mtu)
		}
		return fmt.Sprintf("%s unreachable - need to frag", dst)
	}
	return fmt.Sprintf("%s unreachable - #%d", dst, code)
}

func portUnreachable(inner []byte) string {
	proto := int(u8(inner, 9))
	dst, port := ip4(inner, 16), u16(inner, int(inner[0]&0xf)*4+2)
	switch proto {
	case protoTCP:
		return fmt.Sprintf("%s tcp port %d unreachable", dst, port)
	case protoUDP:
		return fmt.Sprintf("%s udp port %d unreachable", dst, port)
	}
	return fmt.Sprintf("%s protocol %d port %d unreachable", dst, proto, port)
}

func redirect(code int, d []byte) string {
	to, via := ip4(d, icmpHeader+16), ip4(d, 4)
	switch code {
	case 0:
		return fmt.Sprintf("redirect %s to net %s", to, via)
	case 1:
		return fmt.Sprintf("redirect %s to host %s", to, via)
	case 2:
		return fmt.Sprintf("redirect-tos %s to net %s", to, via)
	case 3:
		return fmt.Sprintf("redirect-tos %s to host %s", to, via)
	}
	return fmt.Sprintf("redirect-#%d %s to %s", code, to, via)
}

// routerAdvertisement is RFC 1256's message: a lifetime, and routers with their
// preference.
func routerAdvertisement(d []byte) string {
	var b strings.Builder
	b.WriteString("router advertisement lifetime ")
	switch s := u16(d, 6); {
	case s < 60:
		fmt.Fprintf(&b, "%d", s)
	case s < 3600:
		fmt.Fprintf(&b, "%d:%02d", s/60, s%60)
	default:
		fmt.Fprintf(&b, "%d:%02d:%02d", s/3600, s%3600/60, s%60)
	}
	count, size := int(u8(d, 4)), u8(d, 5)
	fmt.Fprintf(&b, " %d:", count)
	if size != 2 {
		fmt.Fprintf(&b, " [size %d]", size)
		return b.String()
	}
	for i := range count {
		fmt.Fprintf(&b, " {%s %d}", ip4(d, 8+8*i), u32(d, 12+8*i))
	}
	return b.String()
}

// Where the extensions of RFC 4884 begin, behind 128 bytes of the quoted packet.
const (
	multipartAt      = icmpHeader + 128
	multipartHeader  = 4
	multipartObject  = 4
	multipartVersion = 2
)

var multipartClasses = names{1: "MPLS Stack Entry", 2: "Interface Identification"}

// multipart writes the extensions of an error, where there are any: MPLS labels as a
// rule (RFC 4950).
func (p *printer) multipart(d []byte, length int) {
	if length <= multipartAt {
		return
	}
	need(d, multipartAt+multipartHeader+1)
	ext, size := d[multipartAt:], length-multipartAt
	whole := has(ext, size)
	if d[5] == 0 && whole && fold(addWords(ext[:size])) != 0 {
		return // the length is not set, nor is this an extension
	}
	p.printf("\n\tICMP Multi-Part extension v%d", ext[0]>>4)
	if ext[0]>>4 != multipartVersion {
		p.say(" packet not supported")
		return
	}
	if whole {
		verdict := "correct"
		if fold(addWords(ext[:size])) != 0 {
			verdict = "incorrect"
		}
		p.printf(", checksum 0x%04x (%s), length %d", u16(ext, 2), verdict, size)
	}
	p.multipartObjects(ext[multipartHeader:], size-multipartHeader)
}

func (p *printer) multipartObjects(o []byte, left int) {
	for left > multipartObject {
		if !has(o, multipartObject) {
			p.truncated()
			return
		}
		size, class := int(u16(o, 0)), int(o[2])
		p.printf("\n\t  %s Object (%d), Class-Type: %d, length %d", multipartClasses.or(class, "unknown"), class, o[3], size)
		if class == 0 || size < multipartObject {
			return
		}
		if body := o[multipartObject:]; class == 1 && o[3] == 1 {
			p.mplsLabel(u32(body, 0))
		} else {
			p.hexLines("\n\t    ", first(body, size-multipartObject), false)
		}
		if left < size {
			return
		}
		o, left = skip(o, size), left-size
	}
}

func (p *printer) mplsLabel(v uint32) {
	p.printf("\n\t    label %d, tc %d", v>>12, v>>9&7)
	if v&0x100 != 0 {
		p.say(", [S]")
	}
	p.printf(", ttl %d", v&0xff)
}

// The kinds of IGMP (RFC 2236, RFC 3376).
const (
	igmpQuery    = 0x11
	igmpReport1  = 0x12
	igmpReport2  = 0x16
	igmpLeave    = 0x17
	igmpReport3  = 0x22
	igmpQuery3   = 12 // a query of version 3 is as long as that, at least
	igmpTenth    = 100
	igmpLongTime = 600
)

// groupRecords are what a report says of a group, in both versions of IP.
var groupRecords = names{1: "is_in", 2: "is_ex", 3: "to_in", 4: "to_ex", 5: "allow", 6: "block"}

func (p *printer) igmp(s *segment) {
	p.proto = "igmp"
	if p.opts.Quiet {
		p.say("igmp")
		return
	}
	d := s.data
	switch kind := u8(d, 0); kind {
	case igmpQuery:
		p.say("igmp query")
		if s.length >= igmpQuery3 {
			p.igmpQuery3(d, s.length)
		} else {
			p.igmpQuery(d, s.length)
		}
	case igmpReport1:
		p.printf("igmp v1 report %s", ip4(d, 4))
		if s.length != 8 {
			p.printf(" [len %d]", s.length)
		}
	case igmpReport2:
		p.printf("igmp v2 report %s", ip4(d, 4))
	case igmpLeave:
		p.printf("igmp leave %s", ip4(d, 4))
	case igmpReport3:
		p.say("igmp v3 report")
		p.groups(groupList{data: d, length: s.length, least: 16, word: "v3", size: 4})
	default:
		p.printf("igmp-%d", kind)
	}
	if p.verbose(1) && s.length >= 4 && has(d, s.length) && fold(addWords(d[:s.length])) != 0 {
		p.printf(" bad igmp cksum %x!", u16(d, 2))
	}
}

func (p *printer) igmpQuery(d []byte, length int) {
	switch tenths := u8(d, 1); tenths {
	case 0:
		p.say(" v1")
	case igmpTenth:
		p.say(" v2")
	default:
		p.printf(" v2 [max resp time %d]", tenths)
	}
	if u32(d, 4) != 0 {
		p.printf(" [gaddr %s]", ip4(d, 4))
	}
	if length != 8 {
		p.printf(" [len %d]", length)
	}
}

func (p *printer) igmpQuery3(d []byte, length int) {
	p.say(" v3")
	if length&3 != 0 {
		p.printf(" [invalid len %d]", length)
		return
	}
	code := int(u8(d, 1))
	if tenths := floating(code, 8); code != igmpTenth {
		if tenths < igmpLongTime {
			p.printf(" [max resp time %.1fs]", float64(tenths)*0.1)
		} else {
			p.printf(" [max resp time %s]", lifetime(uint32(tenths/10)))
		}
	}
	if u32(d, 4) == 0 {
		return
	}
	p.printf(" [gaddr %s", ip4(d, 4))
	p.sources(d, 12, length, int(u16(d, 10)), 4)
	p.say("]")
}

// floating is a number of so many bits as IGMPv3 and MLDv2 write large ones: with
// the highest bit set, an exponent and a mantissa.
func floating(code, bits int) int {
	mantissa := bits - 4
	if code < 1<<(bits-1) {
		return code
	}
	m, e := code&(1<<mantissa-1), code>>mantissa&7
	return (m | 1<<mantissa) << (e + 3)
}

// sources writes how many sources a query names, and with -vv which.
func (p *printer) sources(d []byte, at, length, count, size int) {
	switch {
	case count == 0:
	case length < at+count*size:
		p.say(" [invalid number of sources]")
	case p.verbose(2):
		p.sourceList(d, at, count, size)
	default:
		p.printf(", %d source(s)", count)
	}
}

func (p *printer) sourceList(d []byte, at, count, size int) {
	p.say(" {")
	for i := range count {
		p.printf(" %s", addr(part(d, at+i*size, size)))
	}
	p.say(" }")
}

// A groupList is a report of IGMPv3 or MLDv2.
type groupList struct {
	data   []byte
	length int
	least  int    // how long it is at least
	word   string // "v3"
	size   int    // of an address
}

// groups writes a report: how many groups, and with -v which.
func (p *printer) groups(g groupList) {
	if g.length < g.least || g.size == 4 && g.length&3 != 0 {
		p.printf(" [invalid len %d]", g.length)
		return
	}
	count := int(u16(g.data, 6))
	p.printf(", %d group record(s)", count)
	if !p.verbose(1) {
		return
	}
	for at := 8; count > 0; count-- {
		size, ok := p.group(g, at)
		if !ok {
			return
		}
		at += size
	}
}

// group writes one record, and gives its size.
func (p *printer) group(g groupList, at int) (size int, ok bool) {
	head := 4 + g.size
	if g.length < at+head {
		p.say(" [invalid number of groups]")
		return 0, false
	}
	p.printf(" [gaddr %s %s", addr(part(g.data, at+4, g.size)), groupRecords.or(int(u8(g.data, at)), " ["+g.word+"-report-#%d]"))
	count := int(u16(g.data, at+2))
	if g.length < at+head+count*g.size {
		p.printf(" [invalid number of sources %d]", count)
		return 0, false
	}
	if p.verbose(2) {
		p.sourceList(g.data, at+head, count, g.size)
	} else {
		p.printf(", %d source(s)", count)
	}
	p.say("]")
	return head + count*g.size, true
}
