package filter

import (
	"fmt"
	"net/netip"

	"github.com/sockd/sockd/families/packet/filter/internal/code"
	"github.com/sockd/sockd/families/packet/filter/syntax"
)

// addressed is what a protocol's header says about its two ends: where it has their
// addresses, behind the link layer's header.
type addressed struct {
	protocol uint32
	src, dst uint32
}

// The headers with an IPv4 address: of the sender's end, and of the other one, whom ARP asks for.
var (
	ip4Addresses  = addressed{etherIP, 12, 16}
	arpAddresses  = addressed{etherARP, 14, 24}
	rarpAddresses = addressed{etherRARP, 14, 24}
)

const ip6Source, ip6Destination = 8, 24

// ends tests one end of a packet, or both, or either.
func ends(dir syntax.Dir, src, dst cond) cond {
	switch dir {
	case syntax.Src:
		return src
	case syntax.Dst:
		return dst
	case syntax.SrcAndDst:
		return all(src, dst)
	}
	return oneOf(src, dst)
}

// host4 tests for an IPv4 address, or with a mask of ones and zeros for a net, in
// the headers that the protocol before it has. Without one that is IP, ARP and RARP.
func (l *lowerer) host4(e *syntax.Match, addr, mask uint32, at place) cond {
	switch e.Proto {
	case syntax.Any:
		ip := l.addressed4(e, addr, mask, at, ip4Addresses)
		if at.labels > 0 { // MPLS tells IP alone
			return ip
		}
		return oneOf(ip, l.addressed4(e, addr, mask, at, arpAddresses), l.addressed4(e, addr, mask, at, rarpAddresses))
	case syntax.IP:
		return l.addressed4(e, addr, mask, at, ip4Addresses)
	case syntax.ARP:
		return l.addressed4(e, addr, mask, at, arpAddresses)
	case syntax.RARP:
		return l.addressed4(e, addr, mask, at, rarpAddresses)
	case syntax.DECnet:
		return l.decnet(e, uint16(addr), at)
	}
	l.fail(e.Column(), "there is no IPv4 address in the header of such a protocol", "ip or arp or rarp before it")
	return nil
}

func (l *lowerer) addressed4(e *syntax.Match, addr, mask uint32, at place, a addressed) cond {
	end := func(where uint32) cond {
		return all(l.protocol(at, a.protocol), l.masked(l.load(at.body, where, 4), mask, addr))
	}
	return ends(e.Dir, end(a.src), end(a.dst))
}

// host6 tests for an IPv6 address, or of a net its first bits.
func (l *lowerer) host6(e *syntax.Match, addr netip.Addr, bits int, at place) cond {
	if e.Proto != syntax.Any && e.Proto != syntax.IP6 {
		l.fail(e.Column(), "there is no IPv6 address in the header of such a protocol", "ip6 before it")
	}
	a := addr.As16()
	end := func(where uint32) cond {
		found := l.protocol(at, etherIP6)
		for i := range 4 {
			mask := prefixMask(bits - 32*i)
			found = all(found, l.masked(l.load(at.body, where+4*uint32(i), 4), mask, number(a[4*i:4*i+4])))
		}
		return found
	}
	return ends(e.Dir, end(ip6Source), end(ip6Destination))
}

// prefixMask is a word that begins with some ones; all of them from 32 on.
func prefixMask(ones int) uint32 {
	return ^uint32(0) << uint(32-min(max(ones, 0), 32))
}

// etherHost tests the addresses of an Ethernet header.
func (l *lowerer) etherHost(e *syntax.Match, mac [6]byte, at place) cond {
	switch {
	case at.framing == geneveFraming:
		return never // what has no Ethernet header has no such address
	case !at.ethernet():
		l.fail(e.Column(), "there are no Ethernet addresses in such a frame", "")
	}
	return ends(e.Dir, l.bytes(at.head.plus(6), mac[:]), l.bytes(at.head, mac[:]))
}

// hostName tests for any of the addresses that a name stands for.
func (l *lowerer) hostName(e *syntax.Match, name string, at place) cond {
	switch e.Proto {
	case syntax.Link:
		mac, ok := l.Names.Ether(name)
		if !ok {
			l.fail(e.ValueAt.Column(), fmt.Sprintf("unknown ether host %q", name), "a name of /etc/ethers or a hardware address")
		}
		return l.etherHost(e, mac, at)
	case syntax.DECnet:
		l.fail(e.ValueAt.Column(), fmt.Sprintf("DECnet's name %q cannot be looked up", name), "an address such as 1.5")
	}
	addrs, err := l.Names.Host(name)
	if err != nil {
		l.fail(e.ValueAt.Column(), fmt.Sprintf("host %q: %v", name, err), "a name that can be looked up or an address")
	}
	return l.anyHost(e, name, addrs, at)
}

// anyHost tests for any of some addresses, those that the protocol before the name can have.
func (l *lowerer) anyHost(e *syntax.Match, name string, addrs []netip.Addr, at place) cond {
	found := cond(nil)
	for _, a := range addrs {
		a = a.Unmap()
		if !addressOf(e.Proto, a) {
			continue
		}
		if next := l.host(e, a, at); found != nil {
			found = oneOf(found, next)
		} else {
			found = next
		}
	}
	if found == nil {
		l.fail(e.ValueAt.Column(), fmt.Sprintf("host %q has no address of that protocol", name), "")
	}
	return found
}

// addressOf tells whether a protocol can have such an address. Others than those are
// left to be refused.
func addressOf(p syntax.Proto, a netip.Addr) bool {
	switch p {
	case syntax.IP, syntax.ARP, syntax.RARP:
		return a.Is4()
	case syntax.IP6:
		return a.Is6()
	}
	return true
}

func (l *lowerer) host(e *syntax.Match, a netip.Addr, at place) cond {
	if a.Is4() {
		b := a.As4()
		return l.host4(e, number(b[:]), ^uint32(0), at)
	}
	return l.host6(e, a, 128, at)
}

// decnetForm is one of the headers of DECnet Phase IV's data packets, behind their length of
// 2 bytes: perhaps a byte that pads, and flags, which are looked at in one load.
type decnetForm struct {
	size        int
	mask, flags uint32
	src, dst    uint32
}

var decnetForms = []decnetForm{
	{size: 1, mask: 0x07, flags: 0x02, src: 2 + 3, dst: 2 + 1},
	{size: 2, mask: 0xff07, flags: 0x8102, src: 3 + 3, dst: 3 + 1},
	{size: 1, mask: 0x07, flags: 0x06, src: 2 + 15, dst: 2 + 7},
	{size: 2, mask: 0xff07, flags: 0x8106, src: 3 + 15, dst: 3 + 7},
}

// decnet tests for a DECnet address, whose first byte comes last. As for libpcap, only data packets
// have addresses.
func (l *lowerer) decnet(e *syntax.Match, addr uint16, at place) cond {
	swapped := uint32(addr>>8 | addr<<8)
	end := func(where func(decnetForm) uint32) cond {
		found := cond(never)
		for _, f := range decnetForms {
			form := l.masked(l.load(at.body, 2, f.size), f.mask, f.flags)
			found = oneOf(found, all(form, l.compare(code.Equal, l.load(at.body, where(f), 2), swapped)))
		}
		return all(l.protocol(at, etherDECnet), found)
	}
	return ends(e.Dir, end(func(f decnetForm) uint32 { return f.src }), end(func(f decnetForm) uint32 { return f.dst }))
}
