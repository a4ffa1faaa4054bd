package filter

import (
	"fmt"

	"github.com/sockd/sockd/families/packet/filter/syntax"
)

// plain lowers a primitive that looks behind no header: it is true in one way, and
// leads nowhere else.
func (l *lowerer) plain(e syntax.Expr, at place) cond {
	switch e := e.(type) {
	case *syntax.Match:
		return l.match(e, at)
	case *syntax.Protocol:
		return l.protocolWord(e, at)
	case *syntax.Relation:
		return l.relation(e, at)
	case *syntax.Cast:
		return l.castTest(e, at)
	case *syntax.LLC:
		return l.llcTest(e, at)
	}
	return l.besides(e, at)
}

// besides lowers a primitive about what does not stand in a header.
func (l *lowerer) besides(e syntax.Expr, at place) cond {
	switch e := e.(type) {
	case *syntax.Length:
		return l.lengthTest(e)
	case *syntax.Byte:
		return l.byteTest(e, at)
	case *syntax.Direction:
		return l.direction(e)
	case *syntax.Interface:
		return l.ifindex(e)
	case *syntax.Owner:
		return l.owner(e)
	case *syntax.Fragments:
		return always // Program.Fragments follows them
	}
	panic(fmt.Sprintf("filter: no such expression: %T", e)) // syntax has a new one
}

// match lowers a word with a value, as what the value is. That the value is of the kind that was asked
// for, and in its bounds, is the parser's work.
func (l *lowerer) match(e *syntax.Match, at place) cond {
	switch v := e.Value.(type) {
	case syntax.Name:
		return l.name(e, string(v), at)
	case syntax.Number:
		return l.numberWord(e, uint32(v), at)
	case syntax.IPv4:
		return l.address4(e, v, at)
	case syntax.IPv6:
		return l.address6(e, v, at)
	case syntax.MAC:
		return l.etherHost(e, v, at)
	}
	l.fail(e.ValueAt.Column(), "ARCnet addresses are of no link type here", "")
	return nil
}

// name lowers a word with a value that is to be looked up.
func (l *lowerer) name(e *syntax.Match, name string, at place) cond {
	switch e.Kind {
	case syntax.Net:
		return l.netName(e, name, at)
	case syntax.Port:
		return l.portName(e, name, at)
	case syntax.PortRange:
		return l.portRange(e, name, at)
	case syntax.ProtoNumber:
		return l.protoNumber(e, l.protoName(e, name), at)
	case syntax.ProtoChain:
		return l.chain(e.Proto, l.protoName(e, name), e.Column(), at)
	case syntax.Gateway:
		l.fail(e.Column(), "gateway is not supported, as in libpcap with IPv6", fmt.Sprintf("ether host %s and not host %s", name, name))
	}
	return l.hostName(e, name, at)
}

// numberWord lowers a word with a number.
func (l *lowerer) numberWord(e *syntax.Match, n uint32, at place) cond {
	switch e.Kind {
	case syntax.Port, syntax.PortRange:
		return l.port(e, ports{first: n, last: n}, at)
	case syntax.ProtoNumber:
		return l.protoNumber(e, n, at)
	case syntax.ProtoChain:
		return l.chain(e.Proto, n, e.Column(), at)
	}
	if e.Kind == syntax.Net && e.Proto != syntax.DECnet {
		return l.netNumber(e, n, at)
	}
	return l.host4(e, n, ^uint32(0), at)
}
