package filter

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/sockd/sockd/families/packet/pcapng"
)

// Protocol numbers. EtherTypes are above 1500, LLC service access points below.
const (
	etherIP   = 0x0800
	etherARP  = 0x0806
	etherRARP = 0x8035
	etherIP6  = 0x86dd
	etherIPX  = 0x8137
	maxLength = 1500 // the largest value of a type field that is a length

	sapISO     = 0xfe
	sapIP      = 0x06
	sapNetBEUI = 0xf0
	sapIPX     = 0xe0
	sapSTP     = 0x42

	protoICMP, protoIGMP, protoTCP, protoUDP = 1, 2, 6, 17
	protoESP, protoAH, protoICMP6, protoPIM  = 50, 51, 58, 103
	protoVRRP, protoSCTP, protoFragment      = 112, 132, 44
)

// Names of protocols, as `ether proto` and `ip proto` take them.
var (
	etherNames = map[string]uint32{"ip": etherIP, "ip6": etherIP6, "arp": etherARP, "rarp": etherRARP, "ipx": sapIPX, "stp": sapSTP, "iso": sapISO, "netbeui": sapNetBEUI, "loopback": 0x9000, "vlan": 0x8100}
	ipNames    = map[string]uint32{"icmp": protoICMP, "igmp": protoIGMP, "tcp": protoTCP, "udp": protoUDP, "esp": protoESP, "ah": protoAH, "icmp6": protoICMP6, "ipv6-icmp": protoICMP6, "pim": protoPIM, "vrrp": protoVRRP, "sctp": protoSCTP, "gre": 47, "ospf": 89}
)

// typeAt is where the type field stands, payload where what follows it does.
func (p *parser) typeAt() uint32 {
	if p.link == pcapng.LinuxSLL2 {
		return 0
	}
	return 12 + p.shift
}

func (p *parser) payload(offset uint32) uint32 {
	switch p.link {
	case pcapng.Raw:
		return offset
	case pcapng.LinuxSLL2:
		return pcapng.SLL2HeaderLen + offset
	}
	return 14 + p.shift + offset
}

// etherType compares the type field, or what stands for it.
func (p *parser) etherType(k uint32) node {
	if p.link == pcapng.Raw {
		return ipVersion(k)
	}
	return compare{load: opLoadHalf, at: p.typeAt(), op: opJumpEqual, k: k}
}

// ipVersion compares the first four bits of an IP header with the version that an
// EtherType stands for. Frames of other types have no header of their own to be told by, so that
// there are none where only IP is carried.
func ipVersion(etherType uint32) node {
	versions := map[uint32]uint32{etherIP: 0x40, etherIP6: 0x60}
	if v, ok := versions[etherType]; ok {
		return compare{load: opLoadByte, at: 0, mask: 0xf0, op: opJumpEqual, k: v}
	}
	return invert{always{}}
}

func (p *parser) payloadByte(offset, k uint32) node {
	return compare{load: opLoadByte, at: p.payload(offset), op: opJumpEqual, k: k}
}

func (p *parser) payloadHalf(offset, k uint32) node {
	return compare{load: opLoadHalf, at: p.payload(offset), op: opJumpEqual, k: k}
}

// linkProtocol is `ether proto N`: an EtherType, or an LLC service access point in
// a frame whose type field is a length.
func (p *parser) linkProtocol(n uint32) node {
	if n > maxLength || p.link != pcapng.Ethernet {
		return p.etherType(n)
	}
	isLength := invert{compare{load: opLoadHalf, at: p.typeAt(), op: opJumpGreater, k: maxLength}}
	switch n {
	case sapISO, sapIP, sapNetBEUI: // both access points
		return both{isLength, p.payloadHalf(0, n<<8|n)}
	case sapIPX:
		// All four framings of IPX: Ethernet II; and by length SNAP, 802.2, bare 802.3.
		// Last words come first, as in macIs.
		snap := both{p.payloadWord(4, etherIPX), p.payloadWord(0, 0xaaaa0300)}
		return either{p.etherType(etherIPX), both{isLength, either{snap, either{p.payloadByte(0, sapIPX), p.payloadHalf(0, 0xffff)}}}}
	}
	return both{isLength, p.payloadByte(0, n)}
}

func (p *parser) payloadWord(offset, k uint32) node {
	return compare{load: opLoadWord, at: p.payload(offset), op: opJumpEqual, k: k}
}

func (p *parser) ip4Protocol(n uint32) node {
	return both{p.etherType(etherIP), p.payloadByte(9, n)}
}

// ip6Protocol looks at the next header, or behind a fragment header that is it.
func (p *parser) ip6Protocol(n uint32) node {
	behind := both{p.payloadByte(6, protoFragment), p.payloadByte(40, n)}
	return both{p.etherType(etherIP6), either{p.payloadByte(6, n), behind}}
}

func (p *parser) ipProtocol(n uint32) node { return either{p.ip4Protocol(n), p.ip6Protocol(n)} }

// protocolAlone is a protocol's word that stands for itself.
func (p *parser) protocolAlone(t token) (node, error) {
	switch t.text {
	case "ip", "ip6", "arp", "rarp", "ipx", "stp":
		return p.linkProtocol(etherNames[t.text]), nil
	case "icmp", "igmp", "vrrp":
		return p.ip4Protocol(ipNames[t.text]), nil
	case "icmp6":
		return p.ip6Protocol(protoICMP6), nil
	case "ether":
		return nil, p.fail(p.peek(), "ether wants host, proto, broadcast or multicast", "ether host 02:00:00:00:00:01")
	}
	return p.ipProtocol(ipNames[t.text]), nil
}

// protocol is [ether|ip|ip6] proto VALUE.
func (p *parser) protocol(q qualifier, t token) (node, error) {
	names, bits := ipNames, 8
	if q.proto == "ether" {
		names, bits = etherNames, 16
	}
	n, known := names[t.text]
	if !known {
		var err error
		if n, err = number(t.text, bits); err != nil {
			return nil, p.fail(t, fmt.Sprintf("%q is no protocol", t.text), valueHints["proto"])
		}
	}
	switch q.proto {
	case "ether":
		return p.linkProtocol(n), nil
	case "ip":
		return p.ip4Protocol(n), nil
	case "ip6":
		return p.ip6Protocol(n), nil
	}
	return p.ipProtocol(n), nil
}

// sides joins the tests of source and destination as the direction says.
func sides(dir string, test func(src bool) node) node {
	switch dir {
	case "src":
		return test(true)
	case "dst":
		return test(false)
	case "and":
		return both{test(true), test(false)}
	}
	return either{test(true), test(false)}
}

func (p *parser) host(q qualifier, t token) (node, error) {
	if mac, err := net.ParseMAC(t.text); err == nil && len(mac) == 6 && (q.proto == "ether" || q.proto == "") {
		if q.proto == "" {
			return nil, p.fail(t, "a hardware address needs ether", "ether host "+t.text)
		}
		return p.etherHost(q, t, mac)
	}
	if q.proto == "ether" {
		return nil, p.fail(t, fmt.Sprintf("%q is no hardware address", t.text), "ether host 02:00:00:00:00:01")
	}
	a, err := netip.ParseAddr(t.text)
	if err != nil || a.Zone() != "" {
		return nil, p.fail(t, fmt.Sprintf("%q is no IP address, and names are not looked up", t.text), valueHints["host"])
	}
	return p.prefix(q, t, a, a.BitLen())
}

func (p *parser) etherHost(q qualifier, t token, mac net.HardwareAddr) (node, error) {
	if err := p.needEther(t); err != nil {
		return nil, err
	}
	return sides(q.dir, func(src bool) node {
		at := uint32(0)
		if src {
			at = 6
		}
		return macIs(at, mac)
	}), nil
}

// macIs compares 6 bytes, the last four first, as libpcap does: what is loaded
// first decides where a frame that is too short is rejected.
func macIs(at uint32, mac net.HardwareAddr) node {
	low := uint32(mac[2])<<24 | uint32(mac[3])<<16 | uint32(mac[4])<<8 | uint32(mac[5])
	high := uint32(mac[0])<<8 | uint32(mac[1])
	return both{
		compare{load: opLoadWord, at: at + 2, op: opJumpEqual, k: low},
		compare{load: opLoadHalf, at: at, op: opJumpEqual, k: high},
	}
}

func (p *parser) needEther(t token) error {
	if p.link == pcapng.Ethernet {
		return nil
	}
	return p.fail(t, fmt.Sprintf("hardware addresses need Ethernet frames, these are %v", p.link), "capture one Ethernet interface")
}

// network is net A.B.C.D/LEN, net A.B (the missing parts are the host's), net
// A mask M, and net of IPv6 with LEN.
func (p *parser) network(q qualifier, t token) (node, error) {
	text, hint := t.text, valueHints["net"]
	length := -1
	if a, l, ok := strings.Cut(text, "/"); ok {
		n, err := strconv.ParseUint(l, 10, 8)
		if err != nil {
			return nil, p.fail(t, fmt.Sprintf("%q is no prefix length", l), hint)
		}
		text, length = a, int(n)
	} else if _, ok := p.accept("mask"); ok {
		var err error
		if length, err = p.mask(p.take()); err != nil {
			return nil, err
		}
	}
	a, bits, ok := networkAddr(text)
	if !ok {
		return nil, p.fail(t, fmt.Sprintf("%q is no network", t.text), hint)
	}
	if length < 0 {
		length = bits
	}
	if length > a.BitLen() {
		return nil, p.fail(t, fmt.Sprintf("a prefix of %d bits is too long", length), hint)
	}
	if pre, _ := a.Prefix(length); pre.Addr() != a {
		return nil, p.fail(t, fmt.Sprintf("%s has bits beyond its %d", a, length), fmt.Sprintf("net %v", pre))
	}
	return p.prefix(q, t, a, length)
}

// mask reads an IPv4 mask as a prefix length.
func (p *parser) mask(t token) (int, error) {
	if a, err := netip.ParseAddr(t.text); err == nil && a.Is4() {
		b := a.As4()
		if ones, size := net.IPMask(b[:]).Size(); size != 0 {
			return ones, nil
		}
	}
	return 0, p.fail(t, fmt.Sprintf("%q is no mask of leading ones", t.text), "net 10.0.0.0 mask 255.0.0.0")
}

// networkAddr reads an address whose last parts may be missing: 10.1 is 10.1.0.0,
// of 16 bits.
func networkAddr(s string) (a netip.Addr, bits int, ok bool) {
	parts := strings.Count(s, ".") + 1
	if a, err := netip.ParseAddr(s); err == nil {
		return a, a.BitLen(), a.Zone() == ""
	}
	if parts > 3 || strings.Contains(s, ":") {
		return netip.Addr{}, 0, false
	}
	a, err := netip.ParseAddr(s + strings.Repeat(".0", 4-parts))
	return a, 8 * parts, err == nil
}

// prefix compares addresses in all the protocols that have such: IPv4 ones stand
// in ARP and RARP, too.
func (p *parser) prefix(q qualifier, t token, a netip.Addr, bits int) (node, error) {
	a = a.Unmap()
	if a.Is6() {
		if q.proto != "" && q.proto != "ip6" {
			return nil, p.fail(t, fmt.Sprintf("%s has no IPv6 addresses", q.proto), "ip6 host "+a.String())
		}
		return p.prefixIn(q.dir, etherIP6, 8, 24, a, bits), nil
	}
	ip := p.prefixIn(q.dir, etherIP, 12, 16, a, bits)
	arp := p.prefixIn(q.dir, etherARP, 14, 24, a, bits)
	rarp := p.prefixIn(q.dir, etherRARP, 14, 24, a, bits)
	switch q.proto {
	case "ip":
		return ip, nil
	case "arp":
		return arp, nil
	case "rarp":
		return rarp, nil
	case "ip6":
		return nil, p.fail(t, "ip6 has no IPv4 addresses", "ip host "+a.String())
	}
	return either{either{ip, arp}, rarp}, nil
}

// prefixIn compares the addresses at two offsets of one protocol.
func (p *parser) prefixIn(dir string, etherType, src, dst uint32, a netip.Addr, bits int) node {
	return both{p.etherType(etherType), sides(dir, func(isSrc bool) node {
		at := dst
		if isSrc {
			at = src
		}
		return p.bitsAt(at, a.AsSlice(), bits)
	})}
}

// bitsAt compares leading bits, word by word; words that are masked out are not
// even loaded.
func (p *parser) bitsAt(offset uint32, addr []byte, bits int) node {
	var n node = always{}
	for i := (bits - 1) / 32; i >= 0 && bits > 0; i-- {
		w := uint32(addr[4*i])<<24 | uint32(addr[4*i+1])<<16 | uint32(addr[4*i+2])<<8 | uint32(addr[4*i+3])
		mask := uint32(0)
		if ones := bits - 32*i; ones < 32 {
			mask = ^uint32(0) << (32 - ones)
		}
		n = both{compare{load: opLoadWord, at: p.payload(offset + uint32(4*i)), mask: mask, op: opJumpEqual, k: w}, n}
	}
	return n
}

// port is a port number, or a name of /etc/services.
func (p *parser) port(q qualifier, t token) (node, error) {
	n, protos, err := p.service(q, t, t.text)
	if err != nil {
		return nil, err
	}
	return p.ports(q.dir, protos, n, n), nil
}

func (p *parser) portRange(q qualifier, t token) (node, error) {
	first, last, ok := strings.Cut(t.text, "-")
	if !ok {
		last = first
	}
	a, protos, err := p.service(q, t, first)
	if err != nil {
		return nil, err
	}
	b, _, err := p.service(q, t, last)
	if err != nil {
		return nil, err
	}
	return p.ports(q.dir, protos, min(a, b), max(a, b)), nil
}

// service reads a port, and which of the protocols it is one of.
func (p *parser) service(q qualifier, t token, s string) (port uint32, protos []uint32, err error) {
	protos = []uint32{protoSCTP, protoTCP, protoUDP}
	if q.proto != "" {
		protos = []uint32{ipNames[q.proto]}
	}
	if n, err := number(s, 16); err == nil {
		return n, protos, nil
	}
	// A name may belong to one of the protocols alone ("tftp").
	var named []uint32
	for _, of := range protos {
		network := map[uint32]string{protoTCP: "tcp", protoUDP: "udp"}[of]
		if network == "" || s == "" || s[0] >= '0' && s[0] <= '9' {
			continue
		}
		n, err := net.LookupPort(network, s)
		if err != nil || port != 0 && uint32(n) != port {
			continue
		}
		port, named = uint32(n), append(named, of)
	}
	if len(named) == 0 {
		return 0, nil, p.fail(t, fmt.Sprintf("%q is no port", s), valueHints[q.kind])
	}
	if len(named) == 2 {
		named = protos // known to both: a name like a number
	}
	return port, named, nil
}

// ports is any of the protocols over IPv6 or IPv4 with a port in a range. IPv4
// fragments but the first have no ports.
func (p *parser) ports(dir string, protos []uint32, first, last uint32) node {
	ip6 := both{p.anyByte(6, protos), sides(dir, func(src bool) node {
		return within(compare{load: opLoadHalf, at: p.payload(40 + portOffset(src))}, first, last)
	})}
	firstFragment := invert{compare{load: opLoadHalf, at: p.payload(6), op: opJumpAnyBitSet, k: 0x1fff}}
	ip4 := both{p.anyByte(9, protos), both{firstFragment, sides(dir, func(src bool) node {
		return within(compare{load: opLoadHalfX, at: p.payload(portOffset(src)), ipHeader: p.payload(0)}, first, last)
	})}}
	return either{both{p.etherType(etherIP6), ip6}, both{p.etherType(etherIP), ip4}}
}

func portOffset(src bool) uint32 {
	if src {
		return 0
	}
	return 2
}

// within tests that a loaded value lies between two.
func within(c compare, first, last uint32) node {
	if first == last {
		c.op, c.k = opJumpEqual, first
		return c
	}
	low, high := c, c
	low.op, low.k = opJumpAtLeast, first
	high.op, high.k = opJumpGreater, last
	return both{low, invert{high}}
}

// anyByte tests that a byte of the payload is one of several.
func (p *parser) anyByte(offset uint32, of []uint32) node {
	n := p.payloadByte(offset, of[0])
	for _, k := range of[1:] {
		n = either{n, p.payloadByte(offset, k)}
	}
	return n
}

// cast is [ether] broadcast, [ether|ip|ip6] multicast.
func (p *parser) cast(q qualifier, t token) (node, error) {
	switch {
	case t.text == "multicast" && q.proto == "ip":
		return both{p.etherType(etherIP), compare{load: opLoadByte, at: p.payload(16), op: opJumpAtLeast, k: 224}}, nil
	case t.text == "multicast" && q.proto == "ip6":
		return both{p.etherType(etherIP6), p.payloadByte(24, 255)}, nil
	case q.proto != "" && q.proto != "ether":
		return nil, p.fail(t, fmt.Sprintf("%s does not go with %s", q.proto, t.text), "ether "+t.text)
	}
	if err := p.needEther(t); err != nil {
		return nil, err
	}
	if t.text == "broadcast" {
		return macIs(0, net.HardwareAddr{255, 255, 255, 255, 255, 255}), nil
	}
	return compare{load: opLoadByte, at: 0, op: opJumpAnyBitSet, k: 1}, nil
}
