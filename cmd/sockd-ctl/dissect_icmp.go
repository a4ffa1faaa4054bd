package main

import (
	"encoding/binary"
	"fmt"
	"net"
	"strings"

	"github.com/gopacket/gopacket/layers"
)

const icmpHeader = 8

func (p *printer) icmp(s segment) {
	d := s.data
	p.line.WriteString("ICMP ")
	if len(d) < icmpHeader {
		p.line.WriteString("[|icmp]")
		return
	}
	id, seq := binary.BigEndian.Uint16(d[4:]), binary.BigEndian.Uint16(d[6:])
	switch d[0] {
	case layers.ICMPv4TypeEchoRequest:
		p.printf("echo request, id %d, seq %d", id, seq)
	case layers.ICMPv4TypeEchoReply:
		p.printf("echo reply, id %d, seq %d", id, seq)
	case layers.ICMPv4TypeDestinationUnreachable:
		p.line.WriteString(unreachable(d))
	case layers.ICMPv4TypeTimeExceeded:
		p.line.WriteString(timeExceeded(d[1]))
	case layers.ICMPv4TypeRedirect:
		p.line.WriteString(redirect(d))
	case layers.ICMPv4TypeSourceQuench:
		p.line.WriteString("source quench")
	case layers.ICMPv4TypeRouterSolicitation:
		p.line.WriteString("router solicitation")
	case layers.ICMPv4TypeParameterProblem:
		p.printf("parameter problem - octet %d", d[4])
	case layers.ICMPv4TypeTimestampRequest:
		p.printf("time stamp query id %d seq %d", id, seq)
	case layers.ICMPv4TypeTimestampReply:
		p.printf("time stamp reply id %d seq %d", id, seq)
	default:
		p.printf("type-#%d", d[0])
	}
	p.printf(", length %d", s.length)
	if p.checks(s) {
		p.icmpVerbose(d[:s.length])
	}
}

// icmpVerbose checks the checksum, and shows the packet that an error is about.
func (p *printer) icmpVerbose(d []byte) {
	if sum := fold(addWords(d)); sum != 0 {
		has := binary.BigEndian.Uint16(d[2:])
		p.printf(" (wrong icmp cksum %x (->%x)!)", has, should(has, sum))
	}
	switch d[0] {
	case layers.ICMPv4TypeDestinationUnreachable, layers.ICMPv4TypeTimeExceeded, layers.ICMPv4TypeRedirect:
		if inner := d[icmpHeader:]; len(inner) >= 20 {
			p.line.WriteString("\n\tIP ")
			// The error quotes the packet's beginning: its own length is not missing.
			p.ipv4(inner, int(binary.BigEndian.Uint16(inner[2:])))
		}
	}
}

// quoted is the packet that an ICMP error is about: whom it was for, its
// protocol and the port it was for.
type quoted struct {
	dst   string
	proto byte
	port  uint16
	ports bool
}

func quote(inner []byte) quoted {
	var q quoted
	if len(inner) < 20 {
		return q
	}
	q.dst, q.proto = addr(inner[16:20]), inner[9]
	if header := int(inner[0]&0xf) * 4; len(inner) >= header+4 {
		q.port, q.ports = binary.BigEndian.Uint16(inner[header+2:]), true
	}
	return q
}

// unreachableWords are the codes that say no more than whom they are about.
var unreachableWords = map[byte]string{
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

func unreachable(d []byte) string {
	q := quote(d[icmpHeader:])
	if words, ok := unreachableWords[d[1]]; ok {
		return fmt.Sprintf(words, q.dst)
	}
	switch d[1] {
	case 2:
		return fmt.Sprintf("%s protocol %d unreachable", q.dst, q.proto)
	case 3:
		return portUnreachable(q)
	case 4:
		if mtu := binary.BigEndian.Uint16(d[6:]); mtu != 0 {
			return fmt.Sprintf("%s unreachable - need to frag (mtu %d)", q.dst, mtu)
		}
		return fmt.Sprintf("%s unreachable - need to frag", q.dst)
	}
	return fmt.Sprintf("%s unreachable - #%d", q.dst, d[1])
}

func portUnreachable(q quoted) string {
	switch {
	case !q.ports:
		return fmt.Sprintf("%s port unreachable", q.dst)
	case q.proto == byte(layers.IPProtocolTCP):
		return fmt.Sprintf("%s tcp port %d unreachable", q.dst, q.port)
	case q.proto == byte(layers.IPProtocolUDP):
		return fmt.Sprintf("%s udp port %d unreachable", q.dst, q.port)
	}
	return fmt.Sprintf("%s protocol %d port %d unreachable", q.dst, q.proto, q.port)
}

func timeExceeded(code byte) string {
	switch code {
	case 0:
		return "time exceeded in-transit"
	case 1:
		return "ip reassembly time exceeded"
	}
	return fmt.Sprintf("time exceeded-#%d", code)
}

func redirect(d []byte) string {
	to, via := quote(d[icmpHeader:]).dst, addr(d[4:8])
	what := [...]string{"net", "host", "net-tos", "host-tos"}
	if int(d[1]) < len(what) {
		kind := what[d[1]]
		if d[1] >= 2 {
			return fmt.Sprintf("redirect-tos %s to %s %s", to, kind[:len(kind)-4], via)
		}
		return fmt.Sprintf("redirect %s to %s %s", to, kind, via)
	}
	return fmt.Sprintf("redirect-#%d %s to net %s", d[1], to, via)
}

// icmp6Words are the kinds of ICMPv6 that have no more to say.
var icmp6Words = map[byte]string{
	2:   "packet too big",
	130: "multicast listener query",
	131: "multicast listener report",
	132: "multicast listener done",
	133: "router solicitation",
	134: "router advertisement",
	137: "redirect",
}

func (p *printer) icmp6(s segment) {
	d := s.data
	if len(d) >= icmpHeader && p.checks(s) {
		p.cksum6(s)
	}
	p.line.WriteString("ICMP6, ")
	if len(d) < icmpHeader {
		p.line.WriteString("[|icmp6]")
		return
	}
	id, seq := binary.BigEndian.Uint16(d[4:]), binary.BigEndian.Uint16(d[6:])
	if d[0] >= 133 && d[0] <= 137 && p.opts.Verbose > 0 {
		p.neighbour(d[:min(len(d), max(s.length, icmpHeader))], s.length)
		return
	}
	switch kind := d[0]; {
	case kind == 1:
		p.line.WriteString(unreachable6(d))
	case kind == 2:
		p.printf("packet too big, mtu %d", binary.BigEndian.Uint32(d[4:]))
	case kind == 3:
		p.line.WriteString(timeExceeded6(d))
	case kind == 128:
		p.printf("echo request, id %d, seq %d", id, seq)
	case kind == 129:
		p.printf("echo reply, id %d, seq %d", id, seq)
	case kind == 135 && len(d) >= 24:
		p.printf("neighbor solicitation, who has %s", addr(d[8:24]))
	case kind == 136 && len(d) >= 24:
		p.printf("neighbor advertisement, tgt is %s", addr(d[8:24]))
	case kind == 143:
		p.printf("multicast listener report v2, %d group record(s)", seq)
	case icmp6Words[kind] != "":
		p.line.WriteString(icmp6Words[kind])
	default:
		p.printf("unknown icmp6 type (%d)", kind)
	}
	if p.opts.Verbose == 0 {
		p.printf(", length %d", s.length)
	}
}

// neighbour writes neighbour discovery (RFC 4861) as -v asks: with length, flags and
// options. Of a router's advertisement and a redirect it has no more than the length.
func (p *printer) neighbour(d []byte, length int) {
	options := len(d)
	switch kind := d[0]; {
	case kind == 133:
		p.printf("router solicitation, length %d", length)
		options = 8
	case kind == 135 && len(d) >= 24:
		p.printf("neighbor solicitation, length %d, who has %s", length, addr(d[8:24]))
		options = 24
	case kind == 136 && len(d) >= 24:
		p.printf("neighbor advertisement, length %d, tgt is %s, Flags [%s]", length, addr(d[8:24]), advertisementFlags(d[4]))
		options = 24
	case kind == 134 || kind == 137:
		p.printf("%s, length %d", icmp6Words[kind], length)
	default:
		p.line.WriteString("[|icmp6]")
	}
	for d = d[options:]; len(d) >= 8; {
		size := int(d[1]) * 8
		if size == 0 || size > len(d) {
			p.line.WriteString("\n\t  [|icmp6]")
			return
		}
		p.neighbourOption(d[:size])
		d = d[size:]
	}
}

func advertisementFlags(b byte) string {
	var words []string
	for i, word := range []string{"router", "solicited", "override"} {
		if b&(0x80>>i) != 0 {
			words = append(words, word)
		}
	}
	if len(words) == 0 {
		return "none"
	}
	return strings.Join(words, ", ")
}

func (p *printer) neighbourOption(o []byte) {
	name := map[byte]string{1: "source link-address", 2: "destination link-address"}[o[0]]
	known := name != ""
	if !known {
		name = "unknown"
	}
	p.printf("\n\t  %s option (%d), length %d (%d): ", name, o[0], len(o), o[1])
	if known {
		p.line.WriteString(net.HardwareAddr(o[2:]).String())
	}
	switch lines := hexLines(o[2:], false); {
	case p.opts.Verbose > 1:
		p.line.WriteString(strings.ReplaceAll(lines, "\n\t", "\n\t    "))
	case !known:
		p.line.WriteString(strings.ReplaceAll(lines, "\n\t", "\n\t  "))
	}
}

func (p *printer) cksum6(s segment) {
	has, sum := binary.BigEndian.Uint16(s.data[2:]), s.sum(layers.IPProtocolICMPv6)
	if sum == 0 {
		p.line.WriteString("[icmp6 sum ok] ")
		return
	}
	p.printf("[bad icmp6 cksum 0x%04x -> 0x%04x!] ", has, should(has, sum))
}

// quote6 is quote for ICMPv6.
func quote6(inner []byte) quoted {
	var q quoted
	if len(inner) < ipv6Header {
		return q
	}
	q.dst, q.proto = addr(inner[24:40]), inner[6]
	if len(inner) >= ipv6Header+4 {
		q.port, q.ports = binary.BigEndian.Uint16(inner[ipv6Header+2:]), true
	}
	return q
}

func unreachable6(d []byte) string {
	const head = "destination unreachable, "
	q := quote6(d[icmpHeader:])
	switch d[1] {
	case 0:
		return head + "unreachable route " + q.dst
	case 1:
		return head + "unreachable prohibited " + q.dst
	case 2:
		return head + "beyond scope " + q.dst
	case 3:
		return head + "unreachable address " + q.dst
	case 4:
		return head + "unreachable port, " + port6(q)
	}
	return fmt.Sprintf("%sunknown code (%d)", head, d[1])
}

func port6(q quoted) string {
	switch q.proto {
	case byte(layers.IPProtocolTCP):
		return fmt.Sprintf("%s tcp port %d", q.dst, q.port)
	case byte(layers.IPProtocolUDP):
		return fmt.Sprintf("%s udp port %d", q.dst, q.port)
	}
	return fmt.Sprintf("%s protocol %d port %d", q.dst, q.proto, q.port)
}

func timeExceeded6(d []byte) string {
	switch d[1] {
	case 0:
		return "time exceeded in-transit for " + quote6(d[icmpHeader:]).dst
	case 1:
		return "ip6 reassembly time exceeded"
	}
	return fmt.Sprintf("time exceeded, unknown code (%d)", d[1])
}
