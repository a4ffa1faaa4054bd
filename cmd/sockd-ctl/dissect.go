package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/sockd/sockd/ctl"
)

// The link types that are decoded, by their LINKTYPE_ numbers.
const (
	linkEthernet = 1
	linkSLL2     = 276
)

// printer writes frames as tcpdump -n does: one line each, and with -v, -x, -X
// and -A more below it. It is not safe for use by several goroutines.
type printer struct {
	w    io.Writer
	opts ctl.PacketOptions

	first, last time.Time // of the frames so far, for -ttt and -ttttt
	tcp         tcpTracker
	line        bytes.Buffer // the frame's text, reused
	cut         bool         // the frame in hand ends before its headers do
}

// newPacketPrinter is ctl.Env.Packets.
func newPacketPrinter(w io.Writer, o ctl.PacketOptions) ctl.PacketPrinter {
	return &printer{w: w, opts: o}
}

// Print writes one frame. What does not decode is shown as far as it does.
func (p *printer) Print(at time.Time, outgoing bool, data []byte, fullLen int) error {
	p.line.Reset()
	p.cut = false
	p.time(at)
	p.link(data, max(fullLen, len(data)), outgoing)
	p.dump(data)
	p.line.WriteByte('\n')
	_, err := p.w.Write(p.line.Bytes())
	return err
}

func (p *printer) printf(format string, args ...any) { fmt.Fprintf(&p.line, format, args...) }

// checks tells whether the checksum of s is to be shown: with -v, where all of
// it is there.
func (p *printer) checks(s segment) bool { return p.opts.Verbose > 0 && s.captured() }

// time writes the time as the number of -t says.
func (p *printer) time(at time.Time) {
	switch p.opts.Times {
	case 0:
		p.line.WriteString(at.Format("15:04:05.000000 "))
	case 1:
	case 2:
		p.printf("%d.%06d ", at.Unix(), at.Nanosecond()/1000)
	case 3:
		p.delta(at, p.last)
	case 4:
		p.line.WriteString(at.Format("2006-01-02 15:04:05.000000 "))
	default:
		p.delta(at, p.first)
	}
	if p.first.IsZero() {
		p.first = at
	}
	p.last = at
}

func (p *printer) delta(at, since time.Time) {
	d := time.Duration(0)
	if !since.IsZero() {
		d = at.Sub(since).Truncate(time.Microsecond)
	}
	sign := " "
	if d < 0 {
		sign, d = "-", -d
	}
	p.printf("%s%02d:%02d:%02d.%06d ", sign, d/time.Hour, d/time.Minute%60, d/time.Second%60, d%time.Second/time.Microsecond)
}

// link writes the link-level header, if it is wanted, and what is in the frame.
func (p *printer) link(data []byte, full int, outgoing bool) {
	switch p.opts.LinkType {
	case linkEthernet:
		p.ethernet(data, full)
	case linkSLL2:
		p.sll2(data, full)
	default:
		way := ""
		if outgoing {
			way = "Out "
		}
		p.printf("%slink-type %d, length %d", way, p.opts.LinkType, full)
	}
}

const ethernetHeader = 14

func (p *printer) ethernet(data []byte, full int) {
	var eth layers.Ethernet
	if err := eth.DecodeFromBytes(data, gopacket.NilDecodeFeedback); err != nil {
		p.line.WriteString("[|ether]")
		return
	}
	kind := binary.BigEndian.Uint16(data[12:])
	if p.opts.Ethernet {
		p.printf("%s > %s, ", eth.SrcMAC, eth.DstMAC)
		if kind >= minEtherType { // the frame's length follows otherwise
			p.etherType(kind)
			p.printf("length %d: ", full)
		}
	}
	p.etherPayload(kind, data[ethernetHeader:], full-ethernetHeader, eth.SrcMAC, eth.DstMAC)
}

// etherType writes an ethertype, unless it is a length.
func (p *printer) etherType(kind uint16) {
	switch {
	case kind < minEtherType:
	case p.opts.Quiet:
		p.printf("%s, ", etherTypeShort(kind))
	default:
		p.printf("ethertype %s, ", etherTypeName(kind))
	}
}

// etherPayload writes what follows an ethertype, through VLAN tags.
func (p *printer) etherPayload(kind uint16, data []byte, full int, src, dst net.HardwareAddr) {
	for range maxTags {
		if kind != uint16(layers.EthernetTypeDot1Q) && kind != uint16(layers.EthernetTypeQinQ) || len(data) < 4 {
			break
		}
		tag := binary.BigEndian.Uint16(data)
		kind = binary.BigEndian.Uint16(data[2:])
		data, full = data[4:], full-4
		p.vlan(tag, kind, src == nil)
	}
	if kind < minEtherType {
		p.llc(kind, data, src, dst)
		return
	}
	p.network(kind, data, full, !p.opts.Ethernet, src, dst)
}

const (
	// minEtherType is the first number that is an ethertype and not a length (IEEE 802.3).
	minEtherType = 0x600
	// maxTags bounds the VLAN tags that are looked through; two are usual.
	maxTags = 8
)

// vlan writes a tag and the ethertype after it. Behind a cooked header tcpdump
// says that in its own way, and without -e, too.
func (p *printer) vlan(tag, kind uint16, cooked bool) {
	if p.opts.Ethernet {
		p.printf("vlan %d, p %d", tag&0xfff, tag>>13)
		if tag&0x1000 != 0 {
			p.line.WriteString(", DEI")
		}
		p.line.WriteString(", ")
	}
	switch {
	case cooked && !p.opts.Quiet:
		p.printf("ethertype %s, ", etherTypeWord(kind))
	case !cooked && p.opts.Ethernet:
		p.etherType(kind)
	}
}

// network writes a packet by its ethertype. named is whether its protocol is
// said: -e has said it already.
func (p *printer) network(kind uint16, data []byte, full int, named bool, src, dst net.HardwareAddr) {
	say := func(word string) {
		if named {
			p.line.WriteString(word)
		}
	}
	switch layers.EthernetType(kind) {
	case layers.EthernetTypeIPv4:
		say("IP ")
		p.ipv4(data, full)
	case layers.EthernetTypeIPv6:
		say("IP6 ")
		p.ipv6(data, full)
	case layers.EthernetTypeARP:
		if !wholeARP(data) {
			p.line.WriteString(" [|arp]")
			p.cut = true
			return
		}
		say("ARP, ")
		p.arp(data, full)
	default:
		if src != nil && named {
			p.printf("%s > %s, ", src, dst)
			p.etherType(kind)
			p.printf("length %d: ", full+ethernetHeader)
		}
		p.unknown(data)
	}
}

// unknown writes what nobody can read, unless the bytes are shown in hexadecimal
// anyway or short lines are wanted.
func (p *printer) unknown(data []byte) {
	if !p.opts.Quiet && !p.opts.Hex && !p.opts.HexASCII {
		p.line.WriteString(hexLines(data, true))
	}
}

// packetTypes are the words for sll_pkttype.
var packetTypes = [...]string{"In", "B", "M", "P", "Out"}

func packetType(n byte) string {
	if int(n) < len(packetTypes) {
		return packetTypes[n]
	}
	return "?"
}

const sll2Header = 20

func (p *printer) sll2(data []byte, full int) {
	if len(data) < sll2Header {
		p.line.WriteString("[|sll2]")
		return
	}
	kind, index := binary.BigEndian.Uint16(data), binary.BigEndian.Uint32(data[4:])
	p.printf("%-5s %-3s ", interfaceName(index), packetType(data[10]))
	if p.opts.Ethernet {
		p.printf("ifindex %d ", index)
		p.hardwareAddress(data[11], data[12:20])
		if !p.opts.Quiet {
			p.printf("ethertype %s, length %d: ", etherTypeName(kind), full)
		}
	}
	p.etherPayload(kind, data[sll2Header:], full-sll2Header, nil, nil)
}

// interfaceName is the name of an interface of this host.
func interfaceName(index uint32) string {
	i, err := net.InterfaceByIndex(int(index))
	if err != nil {
		return fmt.Sprintf("if%d", index)
	}
	return i.Name
}

func (p *printer) hardwareAddress(length byte, addr []byte) {
	if n := int(length); n > 0 && n <= len(addr) {
		p.printf("%s ", net.HardwareAddr(addr[:n]))
	}
}

var etherTypes = map[layers.EthernetType]string{
	layers.EthernetTypeIPv4:  "IPv4",
	layers.EthernetTypeIPv6:  "IPv6",
	layers.EthernetTypeARP:   "ARP",
	layers.EthernetTypeDot1Q: "802.1Q",
	layers.EthernetTypeQinQ:  "802.1Q-QinQ",
	0x8035:                   "Reverse ARP",
	0x8847:                   "MPLS unicast",
	0x8863:                   "PPPoE D",
	0x8864:                   "PPPoE S",
	0x888e:                   "EAPOL",
	0x88cc:                   "LLDP",
	0x9000:                   "Loopback",
}

func etherTypeWord(kind uint16) string {
	if name, ok := etherTypes[layers.EthernetType(kind)]; ok {
		return name
	}
	return "Unknown"
}

// etherTypeShort is what -q says.
func etherTypeShort(kind uint16) string {
	if name, ok := etherTypes[layers.EthernetType(kind)]; ok {
		return name
	}
	return fmt.Sprintf("Unknown Ethertype (0x%04x)", kind)
}

func etherTypeName(kind uint16) string { return fmt.Sprintf("%s (0x%04x)", etherTypeWord(kind), kind) }

const arpHeader = 8

// wholeARP tells whether an ARP packet has all the addresses that it tells of.
func wholeARP(data []byte) bool {
	return len(data) >= arpHeader && len(data) >= arpHeader+2*(int(data[4])+int(data[5]))
}

var hardwareNames = map[layers.LinkType]string{layers.LinkTypeEthernet: "Ethernet", 6: "TokenRing", 7: "ArcNet", 15: "FrameRelay", 24: "IEEE1394"}

// arp writes an ARP packet that is whole. Addresses are of IPv4, or it says why not.
func (p *printer) arp(data []byte, full int) {
	var a layers.ARP
	if err := a.DecodeFromBytes(data, gopacket.NilDecodeFeedback); err != nil {
		p.line.WriteString(" [|arp]")
		return
	}
	ours := a.Protocol == layers.EthernetTypeIPv4 && a.ProtAddressSize == 4 && a.HwAddressSize != 0
	if p.opts.Verbose > 0 || !ours {
		p.arpSizes(&a)
	}
	if p.opts.Verbose > 0 {
		p.line.WriteString(", ")
	}
	if p.opts.Verbose > 0 || ours {
		p.arpOperation(&a)
	}
	p.printf(", length %d", full)
}

// arpSizes writes what the addresses are of.
func (p *printer) arpSizes(a *layers.ARP) {
	hardware, ok := hardwareNames[a.AddrType]
	if !ok {
		hardware = fmt.Sprintf("Unknown Hardware (%d)", uint16(a.AddrType))
	}
	protocol, ok := etherTypes[a.Protocol]
	if !ok {
		protocol = fmt.Sprintf("Unknown Protocol (0x%04x)", uint16(a.Protocol))
	}
	p.printf("%s (len %d), %s (len %d)", hardware, a.HwAddressSize, protocol, a.ProtAddressSize)
}

func (p *printer) arpOperation(a *layers.ARP) {
	src, dst := arpAddress(a, a.SourceProtAddress), arpAddress(a, a.DstProtAddress)
	switch a.Operation {
	case layers.ARPRequest:
		p.printf("Request who-has %s", dst)
		if !blank(a.DstHwAddress) {
			p.printf(" (%s)", hardwareAddress(a.DstHwAddress))
		}
		p.printf(" tell %s", src)
	case layers.ARPReply:
		p.printf("Reply %s is-at %s", src, hardwareAddress(a.SourceHwAddress))
	default:
		p.printf("Unknown (%d)", a.Operation)
	}
}

func arpAddress(a *layers.ARP, b []byte) string {
	switch {
	case a.Protocol != layers.EthernetTypeIPv4:
		return "<wrong proto type>"
	case a.ProtAddressSize != 4:
		return "<wrong len>"
	}
	return addr(b)
}

func hardwareAddress(b []byte) string {
	if len(b) == 0 {
		return "<empty>"
	}
	return net.HardwareAddr(b).String()
}

// blank tells whether a hardware address says nobody: all zeros or all ones.
func blank(mac []byte) bool {
	return bytes.Count(mac, []byte{0}) == len(mac) || bytes.Count(mac, []byte{0xff}) == len(mac)
}

// addr prints an IP address of 4 or 16 bytes.
func addr(b []byte) string {
	a, ok := netip.AddrFromSlice(b)
	if !ok {
		return "?"
	}
	if a.Is4In6() { // ::ffff:1.2.3.4, as inet_ntop(3) writes it
		return "::ffff:" + a.Unmap().String()
	}
	return a.String()
}

// dump writes the frame's bytes as -x, -X or -A ask: without the link-level
// header, unless it was asked for or is most of what there is.
func (p *printer) dump(data []byte) {
	payload := data
	if _, rest, ok := p.strip(data); ok && !p.opts.HexLink && !p.cut {
		payload = rest
	}
	switch {
	case p.opts.HexASCII:
		p.line.WriteString(hexLines(payload, true))
	case p.opts.Hex:
		p.line.WriteString(hexLines(payload, false))
	case p.opts.ASCII:
		p.line.WriteByte('\n')
		p.ascii(payload)
	}
}

const dumpWidth = 16 // bytes a line

// hexLines are bytes in pairs, 16 a line, with their text beside them if wanted.
func hexLines(data []byte, text bool) string {
	var b strings.Builder
	for at := 0; at < len(data); at += dumpWidth {
		row := data[at:min(at+dumpWidth, len(data))]
		fmt.Fprintf(&b, "\n\t0x%04x: ", at)
		for i, c := range row {
			if i%2 == 0 {
				b.WriteByte(' ')
			}
			fmt.Fprintf(&b, "%02x", c)
		}
		if !text {
			continue
		}
		hexWidth := len(row)*2 + (len(row)+1)/2
		b.WriteString(strings.Repeat(" ", dumpWidth*5/2-hexWidth) + "  ")
		for _, c := range row {
			b.WriteByte(printable(c))
		}
	}
	return b.String()
}

func printable(c byte) byte {
	if c > 0x20 && c < 0x7f {
		return c
	}
	return '.'
}

// ascii writes bytes as text: a carriage return before a newline is left out,
// what does not print is a dot.
func (p *printer) ascii(data []byte) {
	for i, c := range data {
		switch {
		case c == '\r' && i+1 < len(data) && data[i+1] == '\n':
		case c == '\t' || c == '\n' || c == ' ':
			p.line.WriteByte(c)
		default:
			p.line.WriteByte(printable(c))
		}
	}
}

// Addresses are the sender and receiver of a frame.
func (p *printer) Addresses(data []byte) (src, dst string) {
	kind, rest, ok := p.strip(data)
	if !ok {
		return "", ""
	}
	switch layers.EthernetType(kind) {
	case layers.EthernetTypeIPv4:
		var ip layers.IPv4
		if ip.DecodeFromBytes(rest, gopacket.NilDecodeFeedback) != nil {
			return "", ""
		}
		if ip.FragOffset != 0 {
			ip.Payload = nil // the ports are in the first fragment
		}
		return withPorts(ip.SrcIP, ip.DstIP, ip.Protocol, ip.Payload)
	case layers.EthernetTypeIPv6:
		var ip layers.IPv6
		if ip.DecodeFromBytes(rest, gopacket.NilDecodeFeedback) != nil {
			return "", ""
		}
		return withPorts(ip.SrcIP, ip.DstIP, ip.NextHeader, ip.Payload)
	case layers.EthernetTypeARP:
		var a layers.ARP
		if a.DecodeFromBytes(rest, gopacket.NilDecodeFeedback) != nil || a.ProtAddressSize != 4 {
			return "", ""
		}
		return addr(a.SourceProtAddress), addr(a.DstProtAddress)
	}
	return "", ""
}

// withPorts are IP addresses, with the ports of TCP and UDP.
func withPorts(from, to net.IP, proto layers.IPProtocol, body []byte) (src, dst string) {
	src, dst = addr(from), addr(to)
	if (proto != layers.IPProtocolTCP && proto != layers.IPProtocolUDP) || len(body) < 4 {
		return src, dst
	}
	port := func(at int) string { return strconv.Itoa(int(binary.BigEndian.Uint16(body[at:]))) }
	return net.JoinHostPort(src, port(0)), net.JoinHostPort(dst, port(2))
}

// strip takes the link-level header and VLAN tags off a frame.
func (p *printer) strip(data []byte) (kind uint16, rest []byte, ok bool) {
	switch {
	case p.opts.LinkType == linkEthernet && len(data) >= ethernetHeader:
		kind, rest = binary.BigEndian.Uint16(data[12:]), data[ethernetHeader:]
	case p.opts.LinkType == linkSLL2 && len(data) >= sll2Header:
		kind, rest = binary.BigEndian.Uint16(data), data[sll2Header:]
	default:
		return 0, nil, false
	}
	for len(rest) >= 4 && (kind == uint16(layers.EthernetTypeDot1Q) || kind == uint16(layers.EthernetTypeQinQ)) {
		kind, rest = binary.BigEndian.Uint16(rest[2:]), rest[4:]
	}
	if h, ok := readLLC(rest); ok && kind < minEtherType {
		rest = rest[h.size:]
	}
	return kind, rest, true
}
