package filter

import (
	"fmt"

	"github.com/sockd/sockd/families/packet/filter/internal/code"
	"github.com/sockd/sockd/families/packet/filter/syntax"
)

// The EtherTypes of the headers that hold others.
const (
	etherVLAN    = 0x8100 // IEEE 802.1Q
	etherService = 0x88a8 // IEEE 802.1ad
	etherQinQ    = 0x9100 // what was in use before that
	etherMPLS    = 0x8847
	etherPPPoED  = 0x8863
	etherPPPoES  = 0x8864
	etherBridged = 0x6558 // Ethernet, in Geneve
	pppMPLS      = 0x0281 // RFC 3032, of PPP's numbers
)

// The UDP ports of tunnels (IANA).
const (
	portVXLAN  = 4789
	portGeneve = 6081
)

// encap lowers a header that holds others: the ways that it can be there, and where
// what it holds stands then.
func (l *lowerer) encap(e *syntax.Encap, at place) []way {
	switch e.Kind {
	case syntax.VLAN:
		return l.vlan(e, at)
	case syntax.MPLS:
		return l.mpls(e, at)
	case syntax.PPPoED:
		return []way{{l.protocol(at, etherPPPoED), at}}
	case syntax.PPPoES:
		return l.pppoes(e, at)
	case syntax.Geneve:
		return l.geneve(e, at)
	}
	return l.vxlan(e, at)
}

// identified tests the number of a header when one was asked for: size bytes at an offset, the
// number in their bits from shift on, max the greatest it can be.
func (l *lowerer) identified(e *syntax.Encap, what string, at offset, size int, shift, max uint32) cond {
	if !e.HasID {
		return always
	}
	if e.ID > max {
		l.fail(e.ValueAt.Column(), fmt.Sprintf("%s %d is greater than the maximum, %d", what, e.ID, max), fmt.Sprintf("a number up to %d", max))
	}
	return l.masked(l.load(at, 0, size), max<<shift, e.ID<<shift)
}

// ethernetAt is the place of an Ethernet frame that begins at an offset.
func ethernetAt(head offset) place {
	return place{framing: etherFraming, head: head, kind: head.plus(12), body: head.plus(14)}
}

// plus is the place n bytes further.
func (o offset) plus(n uint32) offset { return offset{o.base, o.k + n} }

// behind is the place that a computed number of bytes further is.
func (l *lowerer) behind(o offset, n *code.Value) offset {
	if o.base != nil {
		n = l.b.Compute(code.Add, o.base, n)
	}
	return offset{n, o.k}
}

// linkName is the link layer of a place, for errors.
func (p place) linkName() string { return linkNames[p.framing] }

var linkNames = map[framing]string{
	etherFraming:  "Ethernet",
	sllFraming:    "Linux cooked headers",
	sll2Framing:   "Linux cooked headers",
	rawFraming:    "raw IP",
	ip4Framing:    "raw IPv4",
	ip6Framing:    "raw IPv6",
	nullFraming:   "BSD loopback headers",
	loopFraming:   "BSD loopback headers",
	pppFraming:    "PPP",
	geneveFraming: "Geneve",
}

// udpTo tests for UDP to a port over one version of IP, in the first fragment where
// there are several. payload is where its data stand.
func (l *lowerer) udpTo(at place, v6 bool, port uint32) (test cond, payload offset) {
	is := func(where, what uint32) cond { return l.compare(code.Equal, l.load(at.body, where, 1), what) }
	header := at.body.plus(40)
	ip := all(l.protocol(at, etherIP6), is(6, ipUDP))
	if !v6 {
		header = offset{l.header4(at), at.body.k}
		ip = all(l.protocol(at, etherIP), is(9, ipUDP), l.notFragment(at))
	}
	return all(ip, l.compare(code.Equal, l.load(header, 2, 2), port)), header.plus(8)
}
