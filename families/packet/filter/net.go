package filter

import (
	"fmt"

	"github.com/sockd/sockd/families/packet/filter/syntax"
)

// address4 lowers a word with an IPv4 address, or with a net of them. Of "host 10.1" the
// parts that are missing can be any.
func (l *lowerer) address4(e *syntax.Match, v syntax.IPv4, at place) cond {
	mask := prefixMask(8 * v.Parts)
	switch {
	case v.Mask != nil:
		mask = number(v.Mask.Addr[:])
	case v.Bits >= 0:
		mask = prefixMask(v.Bits)
	}
	return l.host4(e, number(v.Addr[:]), mask, at)
}

// address6 lowers a word with an IPv6 address or net.
func (l *lowerer) address6(e *syntax.Match, v syntax.IPv6, at place) cond {
	bits := v.Bits
	if bits < 0 {
		bits = 128
	}
	return l.host6(e, v.Addr, bits, at)
}

// netNumber lowers "net 10": a number whose leading zero bytes are moved to its end.
func (l *lowerer) netNumber(e *syntax.Match, addr uint32, at place) cond {
	mask := ^uint32(0)
	for addr != 0 && addr>>24 == 0 {
		addr, mask = addr<<8, mask<<8
	}
	return l.host4(e, addr, mask, at)
}

// netName lowers "net loopback".
func (l *lowerer) netName(e *syntax.Match, name string, at place) cond {
	addr, ok := l.Names.Net(name)
	if !ok || addr == 0 {
		l.fail(e.ValueAt.Column(), fmt.Sprintf("unknown net %q", name), "a name of /etc/networks or a net such as 10.0.0.0/8")
	}
	return l.netNumber(e, addr, at)
}
