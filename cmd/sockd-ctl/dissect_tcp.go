package main

import (
	"net/netip"
)

// A flow is a TCP conversation; a is the smaller end, so that both directions
// are one flow.
type flow struct{ a, b netip.AddrPort }

// base is where a flow's sequence numbers began: those of a, and those of b.
type base struct{ a, b uint32 }

// maxFlows bounds the conversations that are remembered. Beyond it all are
// forgotten at once: a conversation that goes on is then counted from where it
// stands, as one that began before the capture is.
const maxFlows = 1 << 16

// tcpTracker makes sequence numbers relative to the first that was seen, as
// tcpdump does: a conversation's first segment with an ACK is shown as it is.
type tcpTracker struct{ flows map[flow]base }

// relative gives seq and ack as they are shown, and where the peer's numbers
// began, which those of a SACK count from.
func (t *tcpTracker) relative(src, dst netip.AddrPort, seq, ack uint32, flags byte) (relSeq, relAck, peer uint32) {
	if flags&tcpACK == 0 {
		return seq, ack, 0
	}
	f, reverse := flow{src, dst}, false
	if src.Compare(dst) > 0 {
		f, reverse = flow{dst, src}, true
	}
	b, known := t.flows[f]
	switch {
	case known && flags&tcpSYN == 0 && reverse:
		return seq - b.b, ack - b.a, b.a
	case known && flags&tcpSYN == 0:
		return seq - b.a, ack - b.b, b.b
	}
	if t.flows == nil || len(t.flows) >= maxFlows {
		t.flows = map[flow]base{}
	}
	if reverse {
		t.flows[f] = base{a: ack - 1, b: seq}
	} else {
		t.flows[f] = base{a: seq, b: ack - 1}
	}
	return seq, ack, ack - 1
}

func endpoint(ip []byte, port uint16) netip.AddrPort {
	a, _ := netip.AddrFromSlice(ip) // it has 4 or 16 bytes
	return netip.AddrPortFrom(a, port)
}

const tcpHeader = 20

// The flags of a segment.
const (
	tcpFIN = 1 << iota
	tcpSYN
	tcpRST
	tcpPSH
	tcpACK
	tcpURG
	tcpECE
	tcpCWR
)

// tcpFlags are their letters in the order in which tcpdump has them.
var tcpFlags = []bitName{{tcpFIN, "F"}, {tcpSYN, "S"}, {tcpRST, "R"}, {tcpPSH, "P"}, {tcpACK, "."}, {tcpURG, "U"}, {tcpECE, "E"}, {tcpCWR, "W"}}

func (p *printer) tcpSegment(s *segment) {
	p.proto = "tcp"
	d := s.data
	if !has(d, 4) {
		p.printf("%s > %s:", addr(s.src), addr(s.dst))
		p.truncated()
		return
	}
	p.betweenPorts(s, protoTCP, u16(d, 0), u16(d, 2))
	if !has(d, tcpHeader) {
		p.truncated()
		return
	}
	header := int(d[12]>>4) * 4
	switch {
	case header < tcpHeader:
		// What would be the payload wraps around in tcpdump, too.
		p.printf(" tcp %d [bad hdr length %d - too short, < %d]", uint32(s.length-header), header, tcpHeader)
	case p.opts.Quiet:
		p.printf("tcp %d", uint32(s.length-header))
		p.tooLong(header, s.length)
	default:
		p.tcpFields(s, header)
	}
}

// tooLong says that the header would be longer than the segment.
func (p *printer) tooLong(header, length int) bool {
	if header > length {
		p.printf(" [bad hdr length %d - too long, > %d]", header, length)
	}
	return header > length
}

// tcpFields writes the header and what it carries.
func (p *printer) tcpFields(s *segment, header int) {
	d := s.data
	sport, dport, flags := u16(d, 0), u16(d, 2), d[13]
	seq, ack, peer := p.tcp.relative(endpoint(s.src, sport), endpoint(s.dst, dport), u32(d, 4), u32(d, 8), flags)
	p.printf("Flags [%s]", bitNames(tcpFlags, uint32(flags), ""))
	if p.tooLong(header, s.length) {
		return
	}
	if p.verbose(1) && s.captured(s.length) {
		p.tcpSum(s)
	}
	length := s.length - header
	p.tcpNumbers(d, seq, ack, length)
	if header > tcpHeader && !p.tcpOptions(d[tcpHeader:], header-tcpHeader, optionInHand{flags: flags, peer: peer, whole: has(d, s.length)}) {
		return
	}
	p.printf(", length %d", length)
	if length == 0 {
		return
	}
	if !has(d, header) {
		p.printf(" [remaining caplen(%d) < header length(%d)]", len(d), header)
		panic(cutShort{})
	}
	if flags&tcpRST != 0 && p.verbose(1) {
		p.resetReason(d[header:], length)
		return
	}
	p.tcpPayload(sport, dport, d[header:], length)
}

func (p *printer) tcpSum(s *segment) {
	sum, sent := s.sum(protoTCP, s.length), u16(s.data, 16)
	p.printf(", cksum 0x%04x", sent)
	if sum != 0 {
		p.printf(" (incorrect -> 0x%04x)", should(sent, sum))
	} else {
		p.say(" (correct)")
	}
}

// tcpNumbers writes the sequence numbers and the window.
func (p *printer) tcpNumbers(d []byte, seq, ack uint32, length int) {
	flags := d[13]
	if p.verbose(2) || length > 0 || flags&(tcpSYN|tcpFIN|tcpRST) != 0 {
		p.printf(", seq %d", seq)
		if length > 0 {
			p.printf(":%d", seq+uint32(length))
		}
	}
	if flags&tcpACK != 0 {
		p.printf(", ack %d", ack)
	}
	p.printf(", win %d", u16(d, 14))
	if flags&tcpURG != 0 {
		p.printf(", urg %d", u16(d, 18))
	}
}

// maxReset is how much of a reset's data is shown.
const maxReset = 30

// resetReason writes the text that a reset may carry (RFC 1122 4.2.2.12).
func (p *printer) resetReason(data []byte, length int) {
	if has(data, length) {
		p.say(" [RST")
	} else {
		p.say(" [!RST")
	}
	if length > maxReset {
		length = maxReset
		p.say("+")
	}
	p.line.WriteByte(' ')
	p.text(first(data, length))
	p.say("]")
}

// tcpPayload writes what is known of a few ports' payload.
func (p *printer) tcpPayload(sport, dport uint16, data []byte, length int) {
	port := func(ports ...uint16) bool {
		for _, n := range ports {
			if sport == n || dport == n {
				return true
			}
		}
		return false
	}
	switch {
	case port(25):
		p.lines("smtp", data, length, nil, 0)
	case port(22):
		p.sshVersion(data, length)
	case port(21):
		p.lines("ftp", data, length, nil, 0)
	case port(43):
		p.lines("whois", data, length, nil, 0)
	case port(80, 8080):
		p.lines("http", data, length, httpWords, 1)
	case port(554, 8554):
		p.lines("rtsp", data, length, rtspWords, 1)
	case port(53):
		p.dnsOverTCP(data, length)
	}
}
