package filter

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"slices"

	"github.com/sockd/sockd/families/packet/pcapng"
)

var be = binary.BigEndian

func cat(parts ...[]byte) []byte { return slices.Concat(parts...) }

var (
	macA  = []byte{2, 0, 0, 0, 0, 1}
	macB  = []byte{2, 0, 0, 0, 0, 2}
	macFF = []byte{255, 255, 255, 255, 255, 255}
	macMC = []byte{1, 0, 94, 0, 0, 251}
)

func half(n int) []byte { return be.AppendUint16(nil, uint16(n)) }

func ether(dst, src []byte, kind int, payload []byte) []byte {
	return cat(dst, src, half(kind), payload)
}

// tag puts a VLAN tag into an Ethernet frame.
func tag(frame []byte, tpid, tci int) []byte {
	return cat(frame[:12], half(tpid), half(tci), frame[12:])
}

func ip4(src, dst string, proto, fragment, optionWords int, payload []byte) []byte {
	h := make([]byte, 20+4*optionWords)
	h[0] = byte(0x45 + optionWords)
	be.PutUint16(h[2:], uint16(len(h)+len(payload)))
	be.PutUint16(h[6:], uint16(fragment))
	h[8], h[9] = 64, byte(proto)
	copy(h[12:], netip.MustParseAddr(src).AsSlice())
	copy(h[16:], netip.MustParseAddr(dst).AsSlice())
	return cat(h, payload)
}

func ip6(src, dst string, next int, payload []byte) []byte {
	h := make([]byte, 40)
	h[0] = 0x60
	be.PutUint16(h[4:], uint16(len(payload)))
	h[6], h[7] = byte(next), 64
	copy(h[8:], netip.MustParseAddr(src).AsSlice())
	copy(h[24:], netip.MustParseAddr(dst).AsSlice())
	return cat(h, payload)
}

// ports is the beginning of TCP, UDP and SCTP, and enough behind it.
func ports(src, dst int) []byte { return cat(half(src), half(dst), make([]byte, 20)) }

func arp(src, dst string) []byte {
	return cat([]byte{0, 1, 8, 0, 6, 4, 0, 1}, macA, netip.MustParseAddr(src).AsSlice(), make([]byte, 6), netip.MustParseAddr(dst).AsSlice())
}

// packets are payloads with their EtherTypes, or the lengths of 802.3.
func packets() (out []struct {
	kind    int
	payload []byte
}) {
	add := func(kind int, payload []byte) {
		out = append(out, struct {
			kind    int
			payload []byte
		}{kind, payload})
	}
	for _, proto := range []int{1, 2, 6, 17, 50, 51, 58, 103, 112, 132} {
		for _, p := range [][2]int{{80, 5000}, {5000, 80}, {53, 53}, {443, 8443}, {1, 65535}} {
			for _, options := range []int{0, 3, 10} {
				add(etherIP, ip4("10.0.0.1", "10.0.0.2", proto, 0, options, ports(p[0], p[1])))
			}
			add(etherIP, ip4("10.0.0.2", "192.168.7.9", proto, 0x4000, 0, ports(p[0], p[1])))
			add(etherIP, ip4("192.168.7.9", "10.1.0.1", proto, 0x2000, 0, ports(p[0], p[1])))   // first fragment
			add(etherIP, ip4("192.168.7.9", "10.1.0.1", proto, 0x2000|9, 0, ports(p[0], p[1]))) // a later one
			add(etherIP6, ip6("2001:db8::1", "2001:db8:5::2", proto, ports(p[0], p[1])))
			add(etherIP6, ip6("fe80::1", "ff02::fb", 44, cat([]byte{byte(proto), 0, 0, 1, 0, 0, 0, 0}, ports(p[0], p[1]))))
		}
	}
	add(etherIP, ip4("10.0.0.9", "224.0.0.251", 17, 0, 0, ports(5353, 5353)))
	add(etherIP, ip4("10.0.0.9", "255.255.255.255", 17, 0, 0, ports(68, 67)))
	add(etherARP, arp("10.0.0.1", "10.0.0.2"))
	add(etherARP, arp("192.168.7.9", "10.1.0.1"))
	add(etherRARP, arp("10.0.0.2", "10.0.0.1"))
	ipx := make([]byte, 40)
	add(etherIPX, ipx)
	add(len(ipx)+2, cat([]byte{0xff, 0xff}, ipx))
	add(len(ipx)+3, cat([]byte{0xe0, 0xe0, 3}, ipx))
	add(len(ipx)+8, cat([]byte{0xaa, 0xaa, 3, 0, 0, 0, 0x81, 0x37}, ipx))
	add(38, cat([]byte{0x42, 0x42, 3}, make([]byte, 35)))
	add(38, cat([]byte{0xfe, 0xfe, 3}, make([]byte, 35)))
	add(38, cat([]byte{0xf0, 0xf0, 3}, make([]byte, 35)))
	add(38, cat([]byte{0x06, 0x06, 3}, make([]byte, 35)))
	add(1501, make([]byte, 46))
	add(etherIP, ip4("10.0.0.2", "10.0.0.2", 6, 0, 0, ports(0, 80)))
	add(etherIP6, ip6("fe80::2", "fe80::1", 17, ports(53, 53)))
	add(0x88b5, make([]byte, 46))
	add(0x9000, make([]byte, 46))
	return out
}

// corpus is frames of all that the language tells apart, tagged and cut ones among
// them, and noise. The first so many are whole and well-formed.
func corpus(link pcapng.LinkType) (out [][]byte, whole int) {
	for i, p := range packets() {
		if link == pcapng.Raw {
			if p.kind == etherIP || p.kind == etherIP6 {
				out = append(out, p.payload)
			}
			continue
		}
		if link == pcapng.LinuxSLL2 {
			head := make([]byte, pcapng.SLL2HeaderLen)
			be.PutUint16(head, uint16(p.kind))
			if p.kind <= maxLength {
				be.PutUint16(head, 4) // ETH_P_802_2
			}
			out = append(out, cat(head, p.payload))
			continue
		}
		dst := [][]byte{macB, macFF, macMC}[i%3]
		f := ether(dst, macA, p.kind, p.payload)
		tagged := tag(f, 0x8100, 100|i<<13)
		out = append(out, f, tagged, tag(f, 0x88a8, 5), tag(tagged, 0x9100, 7))
	}
	if link == pcapng.Ethernet {
		f := ether(macB, macB, etherIP, ip4("10.0.0.2", "10.0.0.2", 17, 0, 0, ports(53, 53)))
		out = append(out, f, tag(f, 0x8100, 0))
	}
	whole = len(out)
	r := rand.New(rand.NewPCG(1, 2))
	for _, f := range slices.Clone(out) {
		out = append(out, f[:r.IntN(len(f)+1)])
		noisy := slices.Clone(f)
		for range 1 + r.IntN(3) {
			noisy[r.IntN(len(noisy))] = byte(r.Uint32())
		}
		out = append(out, noisy)
	}
	return append(out, nil, []byte{0}, make([]byte, 13), make([]byte, 14), make([]byte, 2000)), whole
}
