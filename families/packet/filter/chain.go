package filter

import (
	"github.com/sockd/sockd/families/packet/filter/internal/code"
	"github.com/sockd/sockd/families/packet/filter/syntax"
)

// chain lowers "protochain": a protocol behind the headers of IPv6 extensions and of
// AH, however many there are. column is where an error is.
func (l *lowerer) chain(of syntax.Proto, number uint32, column int, at place) cond {
	if of != syntax.Any && of != syntax.IP && of != syntax.IP6 {
		l.fail(column, "protochain: such a protocol has no chain of headers", "ip protochain or ip6 protochain or protochain")
	}
	if at.body.base != nil {
		l.fail(column, "protochain cannot follow a header whose length varies", "")
	}
	ip4 := l.chainOf(etherIP, code.Chain{Start: at.body.k, Protocol: number}, at)
	ip6 := l.chainOf(etherIP6, code.Chain{Start: at.body.k, Protocol: number, IP6: true}, at)
	switch of {
	case syntax.IP:
		return ip4
	case syntax.IP6:
		return ip6
	}
	return oneOf(ip4, ip6)
}

func (l *lowerer) chainOf(protocol uint32, c code.Chain, at place) cond {
	walk := func(yes, no *code.Node) *code.Node { return l.b.Chain(c, yes, no) }
	return all(l.protocol(at, protocol), walk)
}
