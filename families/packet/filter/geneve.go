package filter

import (
	"github.com/sockd/sockd/families/packet/filter/internal/code"
	"github.com/sockd/sockd/families/packet/filter/syntax"
)

// geneve lowers "geneve" and "geneve VNI", a tunnel in UDP (RFC 8926):
//
//	| version, 2 bits, length of the options, 6 | flags | type, 2 bytes | VNI, 3 | 0 | options | ...
//
// What it holds is an Ethernet frame, or another protocol by its EtherType. These are
// different places, and so are those behind IPv4 and IPv6: four ways.
func (l *lowerer) geneve(e *syntax.Encap, at place) []way {
	return append(l.geneveOver(e, at, false), l.geneveOver(e, at, true)...)
}

func (l *lowerer) geneveOver(e *syntax.Encap, at place, v6 bool) []way {
	udp, header := l.udpTo(at, v6, portGeneve)
	version0 := l.masked(l.load(header, 0, 1), 0xc0, 0)
	tunnel := all(udp, version0, l.identified(e, "Geneve VNI", header.plus(4), 4, 8, 0xffffff))

	inner := l.behindOptions(header)
	bridged := l.compare(code.Equal, l.load(header, 2, 2), etherBridged)
	bare := place{framing: geneveFraming, head: inner, kind: header.plus(2), body: inner}
	return []way{
		{all(tunnel, bridged), ethernetAt(inner)},
		{all(tunnel, not(bridged)), bare},
	}
}

// behindOptions is where a Geneve header ends. Its options are counted in words of 4 bytes.
func (l *lowerer) behindOptions(header offset) offset {
	words := l.b.Compute(code.And, l.load(header, 0, 1), l.b.Const(0x3f))
	options := l.b.Compute(code.ShiftLeft, words, l.b.Const(2))
	return l.behind(header.plus(8), options)
}
