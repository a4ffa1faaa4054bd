package filter

import (
	"github.com/sockd/sockd/families/packet/filter/internal/code"
	"github.com/sockd/sockd/families/packet/filter/syntax"
)

// mpls lowers "mpls" and "mpls LABEL". Labels stand one behind the other, 4 bytes each; a
// bit of the third tells the last one:
//
//	| label, 20 bits | class, 3 | last, 1 | time to live, 8 |
//
// The framing stays that of the link layer, which "ether host" looks at; protocols are told by
// place.labels.
func (l *lowerer) mpls(e *syntax.Encap, at place) []way {
	label := l.identified(e, "MPLS label", at.body, 4, 12, 0xfffff)
	inner := at
	inner.body = at.body.plus(4)
	inner.labels++
	return []way{{all(l.labelled(e, at), label), inner}}
}

// labelled tests that a label follows: the link layer says so, or the label before it.
func (l *lowerer) labelled(e *syntax.Encap, at place) cond {
	if at.labels > 0 {
		flags := l.load(at.body, ^uint32(1), 1) // 2 bytes before the end of the label
		return not(l.compare(code.Set, flags, 1))
	}
	switch at.framing {
	case etherFraming, geneveFraming:
		return l.protocol(at, etherMPLS)
	case pppFraming:
		return l.protocol(at, pppMPLS)
	}
	l.fail(e.Column(), "no MPLS labels in "+at.linkName(), "")
	return nil
}
