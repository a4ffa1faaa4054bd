package main

import (
	"fmt"
	"net"

	"github.com/sockd/sockd/families/packet/pcapng"
)

// Link types beside those that sockd captures, which files of others have.
const (
	linkSLL  pcapng.LinkType = 113 // the older cooked header
	linkIPv4 pcapng.LinkType = 228
	linkIPv6 pcapng.LinkType = 229
)

// link writes the link-level header, if it is wanted, and what is in the packet.
func (p *printer) link(kind pcapng.LinkType, data []byte, full int) {
	switch kind {
	case pcapng.Ethernet:
		p.ethernet(data, full)
	case pcapng.LinuxSLL2:
		p.sll2(data, full)
	case linkSLL:
		p.sll(data, full)
	case pcapng.Raw, linkIPv4, linkIPv6:
		p.raw(data, full)
	default:
		p.printf("link-type %d, length %d", kind, full)
	}
}

// raw writes a packet that is IP from its first byte.
func (p *printer) raw(data []byte, full int) {
	p.proto = "raw"
	if p.opts.Ethernet {
		p.say("ip: ")
	}
	p.proto = "ipn"
	switch version := u8(data, 0) >> 4; version {
	case 4:
		p.ipv4(data, full)
	case 6:
		p.ipv6(data, full)
	default:
		p.printf("unknown ip %d", version)
	}
}

const (
	ethernetHeader = 14
	tagSize        = 4
	// maxLength is the largest number that is an IEEE 802.3 length and not an ethertype.
	maxLength = 1500
)

// The ethertypes that are decoded.
const (
	typeIPv4 = 0x0800
	typeARP  = 0x0806
	typeRARP = 0x8035
	typeIPv6 = 0x86dd
	typeIPX  = 0x8137
	typeVLAN = 0x8100
	typeTEB  = 0x6558 // an Ethernet frame within
)

// etherTypes are the names that tcpdump has for ethertypes.
var etherTypes = names{
	0x0200: "PUP", 0x0500: "Sprite", 0x0600: "NS", 0x0707: "GeoNet (old)", typeIPv4: "IPv4", typeARP: "ARP", 0x1000: "Trail", 0x1111: "CALM FAST",
	0x6001: "MOP DL", 0x6002: "MOP RC", 0x6003: "DN", 0x6004: "LAT", 0x6007: "SCA", typeTEB: "TEB", typeRARP: "Reverse ARP", 0x8038: "Lanbridge",
	0x803c: "DEC DNS", 0x803e: "DEC DTS", 0x805b: "VEXP", 0x805c: "VPROD", 0x809b: "Appletalk", 0x80f3: "Appletalk ARP", typeVLAN: "802.1Q",
	typeIPX: "IPX", typeIPv6: "IPv6", 0x8808: "MPCP", 0x8809: "Slow Protocols", 0x880b: "PPP", 0x8847: "MPLS unicast", 0x8848: "MPLS multicast",
	0x8863: "PPPoE D", 0x8864: "PPPoE S", 0x886f: "MS NLB heartbeat", 0x8870: "Jumbo", 0x888e: "EAPOL", 0x8899: "Realtek protocols", 0x88a2: "AoE",
	0x88a8: "802.1Q-QinQ", 0x88ca: "TIPC", 0x88cc: "LLDP", 0x88e5: "802.1AE MACsec", 0x88f7: "PTP", 0x8902: "CFM", 0x893a: "IEEE1905.1",
	0x8947: "GeoNet", 0x894f: "NSH", 0x9000: "Loopback", 0x9100: "802.1Q-9100", 0x9200: "802.1Q-9200", 0xabcd: "CFM (old)",
	0xd28b: "Arista Vendor Specific Protocol", 0xfefe: "OSI", 0x00fe: "GRE-OSI",
}

// isTag tells whether an ethertype is that of a VLAN tag.
func isTag(kind uint16) bool {
	return kind == typeVLAN || kind == 0x88a8 || kind == 0x9100 || kind == 0x9200
}

// etherType writes an ethertype as -e has it.
func (p *printer) etherType(kind uint16) {
	if p.opts.Quiet {
		p.say(etherTypes.or(int(kind), "Unknown Ethertype (0x%04x)"))
		return
	}
	p.printf("ethertype %s (0x%04x)", etherTypes.or(int(kind), "Unknown"), kind)
}

// ends are the hardware addresses of a frame; nil behind a cooked header.
type ends struct{ src, dst []byte }

func (e *ends) String() string {
	return fmt.Sprintf("%s > %s", net.HardwareAddr(e.src), net.HardwareAddr(e.dst))
}

func (p *printer) ethernet(data []byte, full int) {
	p.proto = "ether"
	if !has(data, ethernetHeader) {
		p.truncated()
		p.header += len(data)
		return
	}
	e := &ends{src: data[6:12], dst: data[:6]}
	if p.opts.Ethernet {
		p.printf("%s, ", e)
	}
	kind := u16(data, 12)
	body, said, ok := p.tags(&kind, data[ethernetHeader:], full)
	p.header += len(data) - len(body)
	if !ok {
		return
	}
	length := full - (len(data) - len(body))
	if kind <= maxLength {
		p.ieee8023(int(kind), body, length, said, e)
		return
	}
	p.ethernetII(kind, body, length, full, said, e)
}

// innerEthernet writes a frame within a packet: its header is not the link level's.
func (p *printer) innerEthernet(data []byte, full int) {
	header := p.header
	p.ethernet(data, full)
	p.header = header
}

// tags writes the VLAN tags and gives what is behind them, whose ethertype is left in
// kind. said tells whether -e has had the frame's length.
func (p *printer) tags(kind *uint16, body []byte, full int) (rest []byte, said, ok bool) {
	for isTag(*kind) {
		if !has(body, tagSize) {
			p.proto = "vlan"
			p.truncated()
			return nil, said, false
		}
		if p.opts.Ethernet {
			p.etherType(*kind)
			if said {
				p.say(", ")
			} else {
				p.printf(", length %d: ", full)
			}
			said = true
			p.tag(u16(body, 0))
		}
		*kind = u16(body, 2)
		body = body[tagSize:]
	}
	return body, said, true
}

func (p *printer) tag(tci uint16) {
	p.printf("vlan %d, p %d", tci&0xfff, tci>>13)
	if tci&0x1000 != 0 {
		p.say(", DEI")
	}
	p.say(", ")
}

// ethernetII writes a frame whose type is an ethertype.
func (p *printer) ethernetII(kind uint16, body []byte, length, full int, said bool, e *ends) {
	if p.opts.Ethernet {
		p.etherType(kind)
		if said {
			p.say(", ")
		} else {
			p.printf(", length %d: ", full)
		}
	}
	if p.payload(kind, body, length) {
		return
	}
	if !p.opts.Ethernet {
		p.printf("%s, ", e)
		p.etherType(kind)
		p.printf(", length %d: ", full)
	}
	p.unknown(body)
}

// ieee8023 writes a frame whose type is its length, as far as that is true.
func (p *printer) ieee8023(kind int, body []byte, length int, said bool, e *ends) {
	length = min(length, kind)
	body = first(body, length)
	if p.opts.Ethernet {
		p.say("802.3")
		if !said {
			p.printf(", length %d: ", length)
		}
	}
	header, known := p.llc(body, length, e)
	p.header += header
	if !known {
		p.unknown(body)
	}
}

// payload writes what follows an ethertype; false, and nothing is written, when nobody
// can read it.
func (p *printer) payload(kind uint16, data []byte, length int) bool {
	switch kind {
	case typeIPv4:
		p.ipv4(data, length)
	case typeIPv6:
		p.ipv6(data, length)
	case typeARP, typeRARP:
		p.arp(data, length)
	case typeIPX:
		p.say("(NOV-ETHII) ")
		p.ipx(data)
	default:
		return false
	}
	return true
}

// packetTypes are the words for the packet type of a cooked header.
var packetTypes = names{0: "In", 1: "B", 2: "M", 3: "P", 4: "Out"}

const (
	sllHeader  = 16
	sll2Header = pcapng.SLL2HeaderLen
)

// A cooked is what both cooked headers say.
type cooked struct {
	kind    uint16 // the ethertype, or below maxLength one of Linux' own numbers
	way     byte
	index   int // of the interface; 0 where the header does not tell
	address []byte
	size    int
}

// Numbers that stand for a header of IEEE 802 in a cooked one (linux/if_ether.h).
const (
	cooked8023 = 1
	cooked8022 = 4
)

func (p *printer) sll2(data []byte, full int) {
	p.proto = "sll2"
	if !has(data, sll2Header) {
		p.truncated()
		return
	}
	c := cooked{kind: u16(data, 0), index: int(u32(data, 4)), way: data[10], address: data[12:18], size: sll2Header}
	if data[11] != 6 {
		c.address = nil
	}
	if !p.opts.Named {
		p.printf("%-5s %-3s ", interfaceName(c.index), packetTypes.or(int(c.way), "?"))
	}
	p.cooked(c, data[sll2Header:], full-sll2Header)
}

func (p *printer) sll(data []byte, full int) {
	p.proto = "sll"
	if !has(data, sllHeader) {
		p.truncated()
		return
	}
	c := cooked{kind: u16(data, 14), way: data[1], address: data[6:12], size: sllHeader}
	if u16(data, 4) != 6 {
		c.address = nil
	}
	p.cooked(c, data[sllHeader:], full-sllHeader)
}

// interfaceName is the name of an interface of this host.
func interfaceName(index int) string {
	i, err := net.InterfaceByIndex(index)
	if err != nil {
		return "?"
	}
	return i.Name
}

// cooked writes what is behind a cooked header.
func (p *printer) cooked(c cooked, body []byte, length int) {
	p.header += c.size
	if p.opts.Ethernet {
		p.cookedHeader(c, length+c.size)
	}
	kind := c.kind
	for kind == typeVLAN {
		if !has(body, tagSize) {
			p.proto = "vlan"
			p.truncated()
			p.header += len(body)
			return
		}
		if p.opts.Ethernet {
			p.tag(u16(body, 0))
		}
		if kind = u16(body, 2); kind <= maxLength {
			kind = cooked8022
		}
		if !p.opts.Quiet {
			p.printf("ethertype %s, ", etherTypes.or(int(kind), "Unknown"))
		}
		body, length = body[tagSize:], length-tagSize
		p.header += tagSize
	}
	p.cookedPayload(c, kind, body, length)
}

func (p *printer) cookedPayload(c cooked, kind uint16, body []byte, length int) {
	switch {
	case kind == cooked8023:
		p.ipx(body)
	case kind == cooked8022:
		if header, known := p.llc(body, length, nil); known {
			p.header += header
			return
		}
		p.unknown(body)
	case kind <= maxLength:
		p.unknown(body)
	case !p.payload(kind, body, length):
		if !p.opts.Ethernet {
			p.cookedHeader(c, length+c.size)
		}
		p.unknown(body)
	}
}

// cookedHeader writes a cooked header as -e has it.
func (p *printer) cookedHeader(c cooked, full int) {
	if c.size == sll2Header {
		p.printf("ifindex %d ", c.index)
	} else {
		p.printf("%3s ", packetTypes.or(int(c.way), "?"))
	}
	if c.address != nil {
		p.printf("%s ", net.HardwareAddr(c.address))
	}
	if p.opts.Quiet {
		return
	}
	switch {
	case c.kind == cooked8023:
		p.say("802.3")
	case c.kind == cooked8022:
		p.say("802.2")
	case c.kind <= maxLength:
		p.printf("ethertype Unknown (0x%04x)", c.kind)
	default:
		p.printf("ethertype %s (0x%04x)", etherTypes.or(int(c.kind), "Unknown"), c.kind)
	}
	p.printf(", length %d: ", full)
}
