package main

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
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
func (t *tcpTracker) relative(src, dst netip.AddrPort, tcp *layers.TCP) (seq, ack, peer uint32) {
	seq, ack = tcp.Seq, tcp.Ack
	if !tcp.ACK {
		return seq, ack, 0
	}
	f, reverse := flow{src, dst}, false
	if src.Compare(dst) > 0 {
		f, reverse = flow{dst, src}, true
	}
	b, known := t.flows[f]
	switch {
	case known && !tcp.SYN && reverse:
		return seq - b.b, ack - b.a, b.a
	case known && !tcp.SYN:
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

const tcpHeader = 20

func (p *printer) tcpSegment(s segment) {
	src, dst := s.ends()
	if len(s.data) < 4 {
		p.printf("%s > %s:  [|tcp]", src, dst)
		return
	}
	sport, dport := binary.BigEndian.Uint16(s.data), binary.BigEndian.Uint16(s.data[2:])
	p.line.WriteString(s.ports(sport, dport))
	if len(s.data) < tcpHeader {
		p.line.WriteString(" [|tcp]")
		return
	}
	var tcp layers.TCP
	// Options that do not decode leave the header before them.
	optErr := tcp.DecodeFromBytes(s.data, gopacket.NilDecodeFeedback)
	header := int(tcp.DataOffset) * 4
	if header < tcpHeader || header > s.length {
		p.printf("tcp %d [bad hdr length %d, %s]", s.length, header, badHeader(header, s.length))
		return
	}
	length := s.length - header
	if p.opts.Quiet {
		p.printf("tcp %d", length)
		return
	}
	peer := p.tcpFields(s, &tcp, length)
	p.tcpOptions(&tcp, s.data, header, peer, optErr)
	p.printf(", length %d", length)
	if length > 0 && len(s.data) > header {
		p.tcpPayload(sport, dport, s.data[header:])
	}
}

func badHeader(header, length int) string {
	if header < tcpHeader {
		return fmt.Sprintf("too short, < %d", tcpHeader)
	}
	return fmt.Sprintf("too long, > %d", length)
}

// tcpFields writes the fixed header, and gives where the peer's numbers began.
func (p *printer) tcpFields(s segment, tcp *layers.TCP, length int) (peer uint32) {
	seq, ack, peer := p.tcp.relative(endpoint(s.src, tcp.SrcPort), endpoint(s.dst, tcp.DstPort), tcp)
	p.printf("Flags [%s]", tcpFlags(tcp))
	if p.checks(s) {
		has, sum := tcp.Checksum, s.sum(layers.IPProtocolTCP)
		if sum == 0 {
			p.printf(", cksum 0x%04x (correct)", has)
		} else {
			p.printf(", cksum 0x%04x (incorrect -> 0x%04x)", has, should(has, sum))
		}
	}
	if p.opts.Verbose > 1 || length > 0 || tcp.SYN || tcp.FIN || tcp.RST {
		p.printf(", seq %d", seq)
		if length > 0 {
			p.printf(":%d", seq+uint32(length))
		}
	}
	if tcp.ACK {
		p.printf(", ack %d", ack)
	}
	p.printf(", win %d", tcp.Window)
	if tcp.URG {
		p.printf(", urg %d", tcp.Urgent)
	}
	return peer
}

func endpoint[P ~uint16](ip []byte, port P) netip.AddrPort {
	a, _ := netip.AddrFromSlice(ip)
	return netip.AddrPortFrom(a, uint16(port))
}

// tcpFlags are the letters in the order in which tcpdump has them.
func tcpFlags(t *layers.TCP) string {
	var b strings.Builder
	for _, f := range []struct {
		set    bool
		letter byte
	}{{t.FIN, 'F'}, {t.SYN, 'S'}, {t.RST, 'R'}, {t.PSH, 'P'}, {t.ACK, '.'}, {t.URG, 'U'}, {t.ECE, 'E'}, {t.CWR, 'W'}, {t.NS, 'e'}} {
		if f.set {
			b.WriteByte(f.letter)
		}
	}
	if b.Len() == 0 {
		return "none"
	}
	return b.String()
}

func (p *printer) tcpOptions(t *layers.TCP, data []byte, header int, peer uint32, err error) {
	switch {
	case header == tcpHeader:
		return
	case len(data) < header:
		p.line.WriteString(", options [|tcp]")
		return
	case err != nil:
		p.line.WriteString(", options [bad opt]")
		return
	}
	words := make([]string, 0, len(t.Options))
	for _, o := range t.Options {
		words = append(words, tcpOption(o, peer))
	}
	p.printf(", options [%s]", strings.Join(words, ","))
}

func tcpOption(o layers.TCPOption, peer uint32) string {
	d := o.OptionData
	switch {
	case o.OptionType == layers.TCPOptionKindEndList:
		return "eol"
	case o.OptionType == layers.TCPOptionKindNop:
		return "nop"
	case o.OptionType == layers.TCPOptionKindMSS && len(d) == 2:
		return fmt.Sprintf("mss %d", binary.BigEndian.Uint16(d))
	case o.OptionType == layers.TCPOptionKindWindowScale && len(d) == 1:
		return fmt.Sprintf("wscale %d", d[0])
	case o.OptionType == layers.TCPOptionKindSACKPermitted:
		return "sackOK"
	case o.OptionType == layers.TCPOptionKindSACK:
		return sackOption(d, peer)
	case o.OptionType == layers.TCPOptionKindTimestamps && len(d) == 8:
		return fmt.Sprintf("TS val %d ecr %d", binary.BigEndian.Uint32(d), binary.BigEndian.Uint32(d[4:]))
	}
	return fmt.Sprintf("unknown-%d 0x%x", o.OptionType, d)
}

// sackOption writes the blocks, which count the peer's bytes.
func sackOption(d []byte, peer uint32) string {
	var b strings.Builder
	fmt.Fprintf(&b, "sack %d ", len(d)/8)
	for ; len(d) >= 8; d = d[8:] {
		fmt.Fprintf(&b, "{%d:%d}", binary.BigEndian.Uint32(d)-peer, binary.BigEndian.Uint32(d[4:])-peer)
	}
	return b.String()
}

// tcpPayload writes what is known of a few ports' payload.
func (p *printer) tcpPayload(sport, dport uint16, data []byte) {
	port := func(n uint16) bool { return sport == n || dport == n }
	switch {
	case port(80) || port(8080):
		p.http(data)
	}
}

// httpWords are what the first line of a request begins with; that of an answer
// begins with HTTP/.
var httpWords = []string{"GET", "PUT", "HEAD", "POST", "TRACE", "PATCH", "DELETE", "CONNECT", "OPTIONS", "PROPFIND", "PROPPATCH", "MKCOL", "COPY", "MOVE", "LOCK", "UNLOCK", "REPORT", "SEARCH", "NOTIFY", "SUBSCRIBE", "UNSUBSCRIBE"}

// maxLine is the longest part of a foreign line that is shown.
const maxLine = 512

// http writes the first line of a request or answer, and with -v all of its head.
func (p *printer) http(data []byte) {
	p.line.WriteString(": HTTP")
	first, rest, _ := strings.Cut(string(data[:min(len(data), maxDump)]), "\n")
	first = strings.TrimSuffix(first, "\r")
	word, _, _ := strings.Cut(first, " ")
	if !slices.Contains(httpWords, word) && !strings.HasPrefix(first, "HTTP/") {
		return
	}
	if p.opts.Verbose == 0 {
		p.printf(": %s", visible(first))
		return
	}
	p.printf(", length: %d\n\t%s", len(data), visible(first))
	for rest != "" {
		var line string
		line, rest, _ = strings.Cut(rest, "\n")
		line = strings.TrimSuffix(line, "\r")
		p.printf("\n\t%s", visible(line))
		if line == "" {
			return
		}
	}
}

// maxDump bounds the payload that is looked at for text.
const maxDump = 8192

// visible is foreign text without what could steer a terminal.
func visible(s string) string {
	var b strings.Builder
	for _, c := range []byte(s[:min(len(s), maxLine)]) {
		switch {
		case c == '\t' || c >= 0x20 && c < 0x7f:
			b.WriteByte(c)
		case c >= 0x80:
			fmt.Fprintf(&b, "M-%c", printable(c&0x7f))
		default:
			fmt.Fprintf(&b, "^%c", c^0x40)
		}
	}
	return b.String()
}

const udpHeader = 8

func (p *printer) udpDatagram(s segment) {
	src, dst := s.ends()
	if len(s.data) < udpHeader {
		p.printf("%s > %s: [|udp]", src, dst)
		return
	}
	sport, dport := binary.BigEndian.Uint16(s.data), binary.BigEndian.Uint16(s.data[2:])
	length := int(binary.BigEndian.Uint16(s.data[4:]))
	p.line.WriteString(s.ports(sport, dport))
	switch {
	case length == 0:
		length = s.length // a jumbogram, or a segment that the network card will cut up
	case length < udpHeader:
		p.printf("truncated-udplength %d", length)
		return
	}
	if p.opts.Quiet {
		p.printf("UDP, length %d", length-udpHeader)
		return
	}
	// Over IPv6 the checksum is not optional, and tcpdump shows it sooner.
	if (p.opts.Verbose > 1 || len(s.src) == net.IPv6len) && p.checks(s) && length == s.length {
		p.udpSum(s)
	}
	payload := s.data[udpHeader:min(len(s.data), max(length, udpHeader))]
	if (sport == 53 || dport == 53 || sport == 5353 || dport == 5353) && len(payload) > 0 && !s.fragmented {
		if p.dns(payload, length-udpHeader, sport == 5353 || dport == 5353) {
			return
		}
	}
	if length > s.length && !s.fragmented {
		p.printf("UDP, bad length %d > %d", length-udpHeader, s.length-udpHeader)
		return
	}
	p.printf("UDP, length %d", length-udpHeader)
}

func (p *printer) udpSum(s segment) {
	has := binary.BigEndian.Uint16(s.data[6:])
	if has == 0 && len(s.src) == net.IPv4len { // over IPv6 it must be there (RFC 8200 8.1)
		p.line.WriteString("[no cksum] ")
		return
	}
	if sum := s.sum(layers.IPProtocolUDP); sum != 0 {
		p.printf("[bad udp cksum 0x%04x -> 0x%04x!] ", has, should(has, sum))
		return
	}
	p.line.WriteString("[udp sum ok] ")
}
