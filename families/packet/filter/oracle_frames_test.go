package filter_test

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// This file builds the frames of the oracle: every protocol that the grammar names,
// in random combinations, with values of the pools that expressions are made of.

// EtherTypes and IP protocols that the builder goes on from.
const (
	kindIPv4, kindARP, kindRARP, kindIPv6 = 0x0800, 0x0806, 0x8035, 0x86dd
	kindMPLS, kindMPLSM                   = 0x8847, 0x8848
	kindPPPoED, kindPPPoES                = 0x8863, 0x8864
	kindTEB, kindIPX, kindDECnet          = 0x6558, 0x8137, 0x6003
	kindATalk, kindAARP                   = 0x809b, 0x80f3
	kind8021Q, kind8021AD, kindQinQ       = 0x8100, 0x88a8, 0x9100

	// kindLLC stands for no EtherType: an LLC header follows.
	kindLLC = -1
	// kindIPXRaw is IPX in an 802.3 frame without an LLC header.
	kindIPXRaw = -2
)

var wire = binary.BigEndian

func u16(n int) []byte { return wire.AppendUint16(nil, uint16(n)) }

func u32(n uint32) []byte { return wire.AppendUint32(nil, n) }

func joined(parts ...[]byte) []byte { return slices.Concat(parts...) }

// builder makes frames. Equal seeds make equal ones.
type builder struct{ r *rand.Rand }

func newBuilder(seed uint64) *builder { return &builder{rand.New(rand.NewPCG(seed, 11))} }

func (b *builder) of(pool []int) int { return pick(b.r, pool) }

func (b *builder) chance(percent int) bool { return b.r.IntN(100) < percent }

// noise is n bytes of anything.
func (b *builder) noise(n int) []byte {
	out := make([]byte, n)
	for i := range out {
		out[i] = byte(b.r.Uint32())
	}
	return out
}

func (b *builder) mac() []byte {
	var m []byte
	for _, part := range strings.Split(pick(b.r, poolMAC), ":") {
		n, _ := strconv.ParseUint(part, 16, 8) // the pool's own are right
		m = append(m, byte(n))
	}
	return m
}

func (b *builder) addr4() []byte { return netip.MustParseAddr(pick(b.r, poolIPv4)).AsSlice() }
func (b *builder) addr6() []byte { return netip.MustParseAddr(pick(b.r, poolIPv6)).AsSlice() }

// part is what a link layer holds: its EtherType, or kindLLC, and its bytes.
type part struct {
	kind int
	data []byte
	name string
}

// network makes what a link layer may hold. depth bounds what holds others.
func (b *builder) network(depth int) part {
	makers := []func(int) part{
		b.ip4, b.ip4, b.ip4, b.ip4, b.ip6, b.ip6, b.ip6, b.arp, b.llc, b.llc, b.other, b.pppoe, b.mpls, b.mpls, b.vlan, b.vlan, b.vlan,
	}
	if depth <= 0 {
		makers = makers[:11]
	}
	return pick(b.r, makers)(depth - 1)
}

func (b *builder) ip4(depth int) part {
	proto, payload, name := b.transport(false, depth)
	return part{kindIPv4, b.header4(proto, payload), "ip " + name}
}

// header4 puts an IPv4 header before a payload: with options and fragments, now and
// then.
func (b *builder) header4(proto int, payload []byte) []byte {
	words, fragment := 0, 0
	if b.chance(25) {
		words = b.r.IntN(11)
	}
	if b.chance(25) {
		fragment = pick(b.r, []int{0x4000, 0x2000, 0x2001, 5, 0x1fff, 0x8000})
	}
	head := make([]byte, 20, 60)
	head[0] = byte(0x45 + words)
	wire.PutUint16(head[2:], uint16(20+4*words+len(payload)))
	wire.PutUint16(head[6:], uint16(fragment))
	head[8], head[9] = byte(pick(b.r, []int{1, 4, 64, 255})), byte(proto)
	return joined(head[:12], b.addr4(), b.addr4(), b.noise(4*words), payload)
}

func (b *builder) ip6(depth int) part {
	next, payload, name := b.transport(true, depth)
	for b.chance(25) {
		next, payload = b.extension(next, payload)
		name = "extension " + name
	}
	head := joined([]byte{0x60, 0, 0, 0}, u16(len(payload)), []byte{byte(next), 64}, b.addr6(), b.addr6())
	return part{kindIPv6, joined(head, payload), "ip6 " + name}
}

// extension puts an IPv6 extension header, or AH, before a payload.
func (b *builder) extension(next int, payload []byte) (int, []byte) {
	switch kind := pick(b.r, []int{0, 43, 44, 60, 51, 135}); kind {
	case 44:
		return 44, joined([]byte{byte(next), 0}, u16(pick(b.r, []int{0, 1, 8, 0x100})), b.noise(4), payload)
	case 51:
		return 51, joined([]byte{byte(next), 4, 0, 0}, b.noise(20), payload)
	default:
		n := b.r.IntN(3)
		return kind, joined([]byte{byte(next), byte(n)}, b.noise(6+8*n), payload)
	}
}

// transport makes what IP holds, and its protocol.
func (b *builder) transport(six bool, depth int) (proto int, payload []byte, name string) {
	switch b.r.IntN(14) {
	case 0, 1, 2:
		return 6, b.tcp(), "tcp"
	case 3, 4:
		return 17, b.udp(b.noise(b.r.IntN(30))), "udp"
	case 5:
		return 132, joined(u16(b.of(poolPort)), u16(b.of(poolPort)), b.noise(12)), "sctp"
	case 6:
		return b.icmp(six)
	case 7:
		next, inner, name := b.transport(six, depth)
		return 51, joined([]byte{byte(next), 4, 0, 0}, b.noise(20), inner), "ah " + name
	case 8, 9:
		return b.tunnel(depth)
	case 10:
		return b.inner(depth)
	}
	return b.of(poolIPProto), joined(u16(b.of(poolPort)), u16(b.of(poolPort)), b.noise(20)), "other"
}

func (b *builder) tcp() []byte {
	flags := pick(b.r, []byte{2, 0x12, 0x10, 0x18, 1, 0x11, 4, 0xff})
	words := pick(b.r, []int{5, 5, 8, 10})
	head := joined(u16(b.of(poolPort)), u16(b.of(poolPort)), b.noise(8), []byte{byte(words << 4), flags}, b.noise(6+4*(words-5)))
	return joined(head, pick(b.r, [][]byte{nil, []byte("GET / HTTP/1.1\r\n"), b.noise(9)}))
}

func (b *builder) udp(payload []byte) []byte {
	return joined(u16(b.of(poolPort)), u16(b.of(poolPort)), u16(8+len(payload)), u16(0), payload)
}

func (b *builder) icmp(six bool) (int, []byte, string) {
	if six {
		return 58, joined([]byte{pick(b.r, []byte{1, 128, 129, 133, 134, 135, 136, 143}), 0}, b.noise(18)), "icmp6"
	}
	return 1, joined([]byte{pick(b.r, []byte{0, 3, 5, 8, 11, 13}), pick(b.r, []byte{0, 1, 3})}, b.noise(26)), "icmp"
}

// tunnel is UDP that holds frames: Geneve, with options, or VXLAN.
func (b *builder) tunnel(depth int) (int, []byte, string) {
	vni := u32(uint32(b.of(poolVNI)) << 8)
	if depth < 0 || b.chance(25) {
		inner := b.frame(depth - 1).data
		return 17, joined(u16(40000), u16(4789), u16(16+len(inner)), u16(0), []byte{8, 0, 0, 0}, vni, inner), "vxlan"
	}
	inner := part{kind: kindTEB, data: b.frame(depth - 1).data, name: "ether"}
	switch {
	case b.chance(15):
		inner = b.vlan(depth - 1)
	case b.chance(40):
		inner = b.network(depth - 1)
	}
	words := b.r.IntN(4)
	first := byte(words)
	if b.chance(10) {
		first |= byte(b.r.IntN(4)) << 6 // a version that is not 0
	}
	head := joined([]byte{first, 0}, u16(max(inner.kind, 0)), vni, b.noise(4*words))
	return 17, joined(u16(b.of(poolPort)), u16(6081), u16(8+len(head)+len(inner.data)), u16(0), head, inner.data), "geneve " + inner.name
}

// inner is IP in IP, or GRE.
func (b *builder) inner(depth int) (int, []byte, string) {
	if depth < 0 {
		return 4, b.header4(17, b.udp(nil)), "ip udp"
	}
	p := pick(b.r, []func(int) part{b.ip4, b.ip6})(depth - 1)
	switch {
	case b.chance(30):
		return 47, joined([]byte{0, 0}, u16(p.kind), p.data), "gre " + p.name
	case p.kind == kindIPv4:
		return 4, p.data, p.name
	}
	return 41, p.data, p.name
}

func (b *builder) arp(int) part {
	kind, name := kindARP, "arp"
	if b.chance(30) {
		kind, name = kindRARP, "rarp"
	}
	head := []byte{0, 1, 8, 0, 6, 4, 0, byte(1 + b.r.IntN(2))}
	return part{kind, joined(head, b.mac(), b.addr4(), b.mac(), b.addr4()), name}
}

// llc makes an IEEE 802.2 header, and what the grammar knows behind one.
func (b *builder) llc(depth int) part {
	switch b.r.IntN(9) {
	case 0:
		return part{kindLLC, joined([]byte{0x42, 0x42, 3}, b.noise(35)), "stp"}
	case 1, 2:
		return part{kindLLC, joined([]byte{0xfe, 0xfe, 3}, b.osi()), "iso"}
	case 3:
		return part{kindLLC, joined([]byte{0xf0, 0xf0, pick(b.r, []byte{3, 0x13, 0x7f})}, b.noise(30)), "netbeui"}
	case 4:
		return part{kindLLC, joined([]byte{0xe0, 0xe0, 3}, b.ipx()), "ipx llc"}
	case 5:
		return part{kindIPXRaw, joined([]byte{0xff, 0xff}, b.ipx()), "ipx raw"}
	case 6, 7:
		return b.snap(depth)
	}
	// Any format of the control field: I, S and U.
	control := pick(b.r, []byte{0, 1, 5, 9, 3, 0x13, 0x63, 0x73, 0x43, 0x0f, 0x6f, 0x7f, 0xe3, 0xaf, 0xbf, 0x87})
	return part{kindLLC, joined([]byte{byte(b.of(poolSAP)), byte(b.of(poolSAP)), control, control}, b.noise(30)), "llc"}
}

func (b *builder) ipx() []byte { return joined([]byte{0xff, 0xff, 0, 30, 0, 4}, b.noise(24)) }

func (b *builder) osi() []byte {
	return joined([]byte{byte(b.of(poolOSI)), 27, 1, 0, byte(b.of(poolISIS)), 1, 0, 0}, b.noise(24))
}

// snap is an LLC header with an EtherType, or with a protocol of Apple's.
func (b *builder) snap(depth int) part {
	p, oui := b.other(depth), []byte{0, 0, 0}
	switch b.r.IntN(3) {
	case 0:
		p, oui = part{kindATalk, b.noise(20), "atalk"}, []byte{8, 0, 7}
	case 1:
		p = b.ip4(0)
	}
	return part{kindLLC, joined([]byte{0xaa, 0xaa, 3}, oui, u16(p.kind), p.data), "snap " + p.name}
}

// other is a protocol that is known by its EtherType.
func (b *builder) other(int) part {
	switch b.r.IntN(6) {
	case 0:
		return part{kindDECnet, b.decnet(), "decnet"}
	case 1:
		return part{kindIPX, b.ipx(), "ipx"}
	case 2:
		return part{pick(b.r, []int{kindATalk, kindAARP}), b.noise(28), "atalk"}
	}
	kind := b.of(poolEtherType)
	return part{kind, joined(u16(b.of(poolVLAN)), u16(b.of(poolEtherType)), b.noise(40)), fmt.Sprintf("type %#x", kind)}
}

// decnet is a DECnet routing header, short or long, padded or not.
func (b *builder) decnet() []byte {
	addr := func() []byte {
		var area, node int
		fmt.Sscanf(pick(b.r, poolDECnet), "%d.%d", &area, &node)
		return binary.LittleEndian.AppendUint16(nil, uint16(area<<10|node))
	}
	var pad []byte
	if b.chance(50) {
		pad = []byte{0x81}
	}
	if b.chance(50) {
		return joined(b.noise(2), pad, []byte{2}, addr(), addr(), b.noise(30))
	}
	return joined(b.noise(2), pad, []byte{6, 0, 0, 0xaa, 0, 4, 0}, addr(), []byte{0, 0, 0xaa, 0, 4, 0}, addr(), b.noise(20))
}

func (b *builder) vlan(depth int) part {
	p := b.network(depth)
	tci := u16(b.of(poolVLAN) | b.r.IntN(8)<<13)
	return part{pick(b.r, []int{kind8021Q, kind8021Q, kind8021AD, kindQinQ}), joined(tci, b.typed(p)), "vlan " + p.name}
}

// typed is a part behind its EtherType, or behind its length.
func (b *builder) typed(p part) []byte {
	if p.kind < 0 {
		return joined(u16(min(len(p.data), 1500)), p.data)
	}
	return joined(u16(p.kind), p.data)
}

func (b *builder) mpls(depth int) part {
	p := pick(b.r, []func(int) part{b.ip4, b.ip4, b.ip6, b.other})(depth)
	data, bottom := p.data, byte(1)
	for n := 1 + b.r.IntN(3); n > 0; n-- {
		data = joined(u32(uint32(b.of(poolLabel))<<12|uint32(b.r.IntN(8))<<9|uint32(bottom)<<8|64), data)
		bottom = 0
	}
	return part{pick(b.r, []int{kindMPLS, kindMPLSM}), data, "mpls " + p.name}
}

func (b *builder) pppoe(depth int) part {
	session := u16(b.of(poolVLAN))
	if b.chance(20) {
		return part{kindPPPoED, joined([]byte{0x11, 9}, session, b.noise(30)), "pppoed"}
	}
	ppp, p := 0x0021, b.ip4(depth)
	switch b.r.IntN(5) {
	case 0, 1:
		ppp, p = 0x0057, b.ip6(depth)
	case 2:
		ppp, p = pick(b.r, []int{0xc021, 0x0281, 0x0283, 0x0031, 0x002b, 0x0023, 0x0025, 0x0027, 0x0029}), b.other(depth)
	case 3:
		if depth > 0 {
			ppp, p = 0x0281, b.mpls(depth)
		}
	}
	return part{kindPPPoES, joined([]byte{0x11, 0}, session, u16(2+len(p.data)), u16(ppp), p.data), "pppoes " + p.name}
}

// frame is a part in an Ethernet frame.
func (b *builder) frame(depth int) oracleFrame {
	p := b.network(depth)
	return b.whole(joined(b.mac(), b.mac(), b.typed(p)), p.name)
}

func (b *builder) whole(data []byte, name string) oracleFrame {
	return oracleFrame{data: data, length: len(data), out: b.chance(50), iface: uint32(1 + b.r.IntN(3)), name: name}
}

// on is a part in a frame of any link type.
func (b *builder) on(link string) oracleFrame {
	p := b.network(2)
	switch link {
	case "EN10MB":
		return b.whole(joined(b.mac(), b.mac(), b.typed(p)), p.name)
	case "LINUX_SLL":
		return b.whole(joined(u16(b.r.IntN(5)), u16(b.hardware()), u16(6), b.mac(), u16(0), u16(b.cooked(p)), p.data), p.name)
	case "LINUX_SLL2":
		head := joined(u16(b.cooked(p)), u16(0), u32(uint32(b.of(poolIndex))), u16(b.hardware()), []byte{byte(b.r.IntN(5)), 6}, b.mac(), u16(0))
		return b.whole(joined(head, p.data), p.name)
	case "NULL", "LOOP":
		family := u32(uint32(pick(b.r, []int{2, 10, 24, 28, 30, 7})))
		if b.chance(70) {
			family = u32(uint32(map[bool]int{true: 2, false: 10}[p.kind == kindIPv4]))
		}
		if b.chance(50) {
			slices.Reverse(family)
		}
		return b.whole(joined(family, p.data), p.name)
	}
	if b.chance(80) { // RAW, IPV4, IPV6: mostly IP
		p = pick(b.r, []func(int) part{b.ip4, b.ip6})(2)
	}
	return b.whole(p.data, p.name)
}

// hardware is an ARPHRD value of a cooked header.
func (b *builder) hardware() int { return pick(b.r, []int{1, 1, 772, 778, 824, 803, 801, 280}) }

// cooked is the protocol of a cooked header.
func (b *builder) cooked(p part) int {
	switch p.kind {
	case kindLLC:
		return 4
	case kindIPXRaw:
		return 1
	}
	return p.kind
}

// frames are n frames of a link type: half of them whole, others cut or spoilt, and
// some that are nothing but noise. The length on the wire stays what it was.
func (b *builder) frames(link string, n int) []oracleFrame {
	out := make([]oracleFrame, 0, n)
	for _, size := range []int{0, 1, 13, 14, 15, 16, 20, 34, 60, 2000} {
		out = append(out, b.whole(b.noise(size), "noise"), b.whole(make([]byte, size), "zeros"))
	}
	for len(out) < n {
		f := b.on(link)
		switch b.r.IntN(6) {
		case 0, 1:
			f.data = f.data[:b.r.IntN(len(f.data)+1)]
			f.name = "cut " + f.name
		case 2:
			for range 1 + b.r.IntN(3) {
				f.data[b.r.IntN(min(len(f.data), 80))] = pick(b.r, []byte{0, 1, 255, byte(b.r.Uint32())})
			}
			f.name = "spoilt " + f.name
		}
		if b.chance(5) {
			f.length += b.of(poolLength) // snapped, and longer on the wire
		}
		out = append(out, f)
	}
	return out
}
