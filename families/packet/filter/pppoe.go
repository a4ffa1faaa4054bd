package filter

import "github.com/sockd/sockd/families/packet/filter/syntax"

// pppoes lowers "pppoes" and "pppoes SESSION", a PPP frame in Ethernet (RFC 2516):
//
//	| version and type | code | session, 2 | length, 2 | PPP's protocol, 2 | ...
func (l *lowerer) pppoes(e *syntax.Encap, at place) []way {
	session := l.identified(e, "PPPoE session", at.body.plus(2), 2, 0, 0xffff)
	ppp := at.body.plus(6)
	inner := place{framing: pppFraming, head: ppp, kind: ppp, body: ppp.plus(2)}
	return []way{{all(l.protocol(at, etherPPPoES), session), inner}}
}
