package filter

import (
	"encoding/binary"
	"fmt"

	"github.com/sockd/sockd/families/packet/filter/internal/code"
)

// The protocols that headers name: an EtherType, or, up to maxLength, the SAP of an
// LLC header (IEEE 802.2). Link layers with numbers of their own are asked for the same.
const (
	sapSTP     = 0x42
	sapIP      = 0x06
	sapSNAP    = 0xaa
	sapIPX     = 0xe0
	sapNetBEUI = 0xf0
	sapISO     = 0xfe

	maxLength = 1500 // what is greater in Ethernet's length field is an EtherType

	etherNS     = 0x0600
	etherIP     = 0x0800
	etherARP    = 0x0806
	etherMOPDL  = 0x6001
	etherMOPRC  = 0x6002
	etherDECnet = 0x6003
	etherLAT    = 0x6004
	etherSCA    = 0x6007
	etherRARP   = 0x8035
	etherATalk  = 0x809b
	etherAARP   = 0x80f3
	etherIPX    = 0x8137
	etherIP6    = 0x86dd
)

// The protocols of Linux cooked headers that are no EtherTypes (linux/if_ether.h).
const (
	sllNovell = 1 // ETH_P_802_3: IPX in an Ethernet frame without LLC
	sllLLC    = 4 // ETH_P_802_2
)

// The address families of BSD loopback headers. IPv6 has another number on each
// system; a file does not say which one wrote it.
const familyIP = 2

var familiesIP6 = []uint32{10, 24, 28, 30} // Linux; NetBSD, OpenBSD and Npcap; FreeBSD; Darwin

// starts is where the headers stand in a frame, by its link type.
var starts = map[LinkType]place{
	Ethernet:  {framing: etherFraming, kind: offset{k: 12}, body: offset{k: 14}},
	LinuxSLL:  {framing: sllFraming, kind: offset{k: 14}, body: offset{k: 16}},
	LinuxSLL2: {framing: sll2Framing, body: offset{k: 20}},
	Raw:       {framing: rawFraming},
	IPv4:      {framing: ip4Framing},
	IPv6:      {framing: ip6Framing},
	Null:      {framing: nullFraming, body: offset{k: 4}},
	Loop:      {framing: loopFraming, body: offset{k: 4}},
}

// start is where the headers of a frame stand.
func (l *lowerer) start() place {
	at, ok := starts[l.link]
	if !ok {
		l.fail(1, fmt.Sprintf("no filters for link type %d", l.link), "")
	}
	return at
}

// ethernet tells whether there is an Ethernet header at head; also behind MPLS labels, which
// leave it where it was.
func (p place) ethernet() bool { return p.framing == etherFraming }

// llc is behind the link layer's header, where an LLC header would be.
func (p place) llc() offset {
	return p.body.plus(-(4 * uint32(p.labels)))
}

// osi is where the header of an OSI protocol stands, behind an LLC header of 3 bytes.
// libpcap takes only Ethernet for a link layer that has one.
func (p place) osi() offset {
	if p.framing == etherFraming || p.framing == geneveFraming {
		return p.body.plus(3)
	}
	return p.body
}

// protocol tests what the link layer's header says it holds: an EtherType, or, up to
// maxLength, an LLC SAP.
func (l *lowerer) protocol(at place, number uint32) cond {
	if at.labels > 0 {
		return l.mplsProtocol(at, number)
	}
	switch at.framing {
	case etherFraming, geneveFraming:
		return l.etherProtocol(at, number)
	case sllFraming:
		return l.sllProtocol(at, number)
	case rawFraming, ip4Framing, ip6Framing:
		return l.rawProtocol(at, number)
	case nullFraming, loopFraming:
		return l.loopProtocol(at, number)
	case pppFraming:
		return l.isKind(at, pppNumber(number))
	}
	return l.isKind(at, number) // SLL2 has EtherTypes alone
}

func (l *lowerer) isKind(at place, number uint32) cond {
	return l.compare(code.Equal, l.load(at.kind, 0, 2), number)
}

// etherProtocol is protocol for Ethernet, whose type field is a length when LLC follows.
func (l *lowerer) etherProtocol(at place, number uint32) cond {
	length := not(l.compare(code.Greater, l.load(at.kind, 0, 2), maxLength))
	switch number {
	case sapISO, sapIP, sapNetBEUI:
		return all(length, l.bothSAPs(at, number))
	case sapIPX:
		// Novell's own framing has no LLC: IPX begins with its checksum, never computed.
		novell := l.compare(code.Equal, l.load(at.llc(), 0, 2), 0xffff)
		return oneOf(l.isKind(at, etherIPX), all(length, oneOf(l.snap(at, 0, etherIPX), l.sap(at, number), novell)))
	case etherATalk, etherAARP:
		return oneOf(l.isKind(at, number), all(length, l.appleSNAP(at, number)))
	}
	if number <= maxLength {
		return all(length, l.compare(code.Equal, l.load(at.kind, 2, 1), number))
	}
	return l.isKind(at, number)
}

// sllProtocol is protocol for LINUX_SLL.
func (l *lowerer) sllProtocol(at place, number uint32) cond {
	llc := l.isKind(at, sllLLC)
	switch number {
	case sapISO, sapIP, sapNetBEUI:
		return all(llc, l.bothSAPs(at, number))
	case sapIPX:
		return oneOf(l.isKind(at, etherIPX), l.isKind(at, sllNovell), all(llc, oneOf(l.sap(at, number), l.snap(at, 0, etherIPX))))
	case etherATalk, etherAARP:
		return oneOf(l.isKind(at, number), all(llc, l.appleSNAP(at, number)))
	}
	if number <= maxLength {
		return all(llc, l.sap(at, number))
	}
	return l.isKind(at, number)
}

// sap tests to whom an LLC header is addressed.
func (l *lowerer) sap(at place, number uint32) cond {
	return l.compare(code.Equal, l.load(at.llc(), 0, 1), number)
}

// bothSAPs tests both addresses of an LLC header.
func (l *lowerer) bothSAPs(at place, number uint32) cond {
	return l.compare(code.Equal, l.load(at.llc(), 0, 2), number<<8|number)
}

// snap tests for an LLC header with the SNAP extension, and what that says is behind it.
func (l *lowerer) snap(at place, organisation, number uint32) cond {
	header := []byte{sapSNAP, sapSNAP, 3, byte(organisation >> 16), byte(organisation >> 8), byte(organisation), byte(number >> 8), byte(number)}
	return l.bytes(at.llc(), header)
}

// appleSNAP tests for AppleTalk behind LLC. Only AppleTalk itself has Apple's number.
func (l *lowerer) appleSNAP(at place, number uint32) cond {
	if number == etherATalk {
		return l.snap(at, 0x080007, number)
	}
	return l.snap(at, 0, number)
}

// rawProtocol is protocol where nothing but IP can be.
func (l *lowerer) rawProtocol(at place, number uint32) cond {
	version, only := uint32(0x40), ip4Framing
	switch number {
	case etherIP:
	case etherIP6:
		version, only = 0x60, ip6Framing
	default:
		return never
	}
	switch at.framing {
	case rawFraming:
		return l.masked(l.load(at.head, 0, 1), 0xf0, version)
	case only:
		return always
	}
	return never
}

// loopProtocol is protocol for the headers of BSD loopbacks, which have no number but those of IP.
func (l *lowerer) loopProtocol(at place, number uint32) cond {
	var families []uint32
	switch number {
	case etherIP:
		families = []uint32{familyIP}
	case etherIP6:
		families = familiesIP6
	}
	found := cond(never)
	for _, f := range families {
		if at.framing == nullFraming {
			f = binary.BigEndian.Uint32(binary.NativeEndian.AppendUint32(nil, f))
		}
		found = oneOf(found, l.compare(code.Equal, l.load(at.head, 0, 4), f))
	}
	return found
}

// mplsProtocol is protocol behind the last MPLS label, where only the first half byte
// tells what follows.
func (l *lowerer) mplsProtocol(at place, number uint32) cond {
	version := uint32(0x40)
	switch number {
	case etherIP:
	case etherIP6:
		version = 0x60
	default:
		l.fail(l.column, "MPLS labels do not tell such a protocol", "ip or ip6 behind mpls")
	}
	back := ^uint32(1) // 2 bytes before the end of the label
	last := l.masked(l.load(at.body, back, 1), 1, 1)
	return all(last, l.masked(l.load(at.body, 0, 1), 0xf0, version))
}

// pppNumber is PPP's number of a protocol, or the number itself when that has none.
func pppNumber(number uint32) uint32 {
	if n, ok := pppNumbers[number]; ok {
		return n
	}
	return number
}

var pppNumbers = map[uint32]uint32{
	etherIP:     0x21,
	sapISO:      0x23,
	etherNS:     0x25,
	etherDECnet: 0x27,
	etherATalk:  0x29,
	sapIPX:      0x2b,
	sapSTP:      0x31,
	etherIP6:    0x57,
}

// masked is x & mask == k. Where the mask is 0 x is not even loaded: so does libpcap's
// optimised program, and a net /32 of IPv6 would have three words more to test.
func (l *lowerer) masked(x *code.Value, mask, k uint32) cond {
	switch {
	case mask == 0 && k == 0:
		return always
	case mask != 0xffffffff:
		x = l.b.Compute(code.And, x, l.b.Const(mask))
	}
	return l.compare(code.Equal, x, k)
}

// bytes tests what stands at an offset: words from the end, then what is left in
// front of them, which is libpcap's order.
func (l *lowerer) bytes(at offset, want []byte) cond {
	found := cond(always)
	for size := 4; size > 0; size /= 2 {
		for len(want) >= size {
			rest := len(want) - size
			found = all(found, l.compare(code.Equal, l.load(at, uint32(rest), size), number(want[rest:])))
			want = want[:rest]
		}
	}
	return found
}

// number is what bytes are in network byte order.
func number(bytes []byte) (n uint32) {
	for _, b := range bytes {
		n = n<<8 | uint32(b)
	}
	return n
}
