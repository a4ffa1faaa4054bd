package filter

import (
	"github.com/sockd/sockd/families/packet/filter/syntax"
)

// vlan lowers "vlan" and "vlan ID". A tag stands before the type that it moved away:
//
//	... | 8100 | priority and ID | type | ...
//
// So behind the first tag the next word vlan looks for a second one. That the place of
// the type is counted from the tag matters in Geneve without Ethernet, where the type before
// it stands somewhere else.
func (l *lowerer) vlan(e *syntax.Encap, at place) []way {
	if at.labels > 0 {
		l.fail(e.Column(), "no VLAN tag can be behind MPLS labels", "")
	}
	if at.framing != etherFraming && at.framing != geneveFraming {
		l.fail(e.Column(), "no VLAN tags in "+at.linkName(), "")
	}
	tag := oneOf(l.protocol(at, etherVLAN), l.protocol(at, etherService), l.protocol(at, etherQinQ))
	inner := at
	inner.kind, inner.body = at.body.plus(2), at.body.plus(4)
	inner.tags++
	return []way{{all(tag, l.identified(e, "VLAN", at.body, 2, 0, 0xfff)), inner}}
}
