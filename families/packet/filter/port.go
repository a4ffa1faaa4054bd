package filter

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/sockd/sockd/families/packet/filter/internal/code"
	"github.com/sockd/sockd/families/packet/filter/syntax"
)

// ports is a range of ports of a transport protocol.
type ports struct {
	first, last uint32
	transport   string // "" is each of them
}

// transports are the protocols with ports, in the order that they are asked for.
var transports = []struct {
	name   string
	word   syntax.Proto
	number uint32
}{
	{"sctp", syntax.SCTP, ipSCTP},
	{"tcp", syntax.TCP, ipTCP},
	{"udp", syntax.UDP, ipUDP},
}

// port lowers a word of kind port or portrange.
func (l *lowerer) port(e *syntax.Match, p ports, at place) cond {
	p.first, p.last = min(p.first, p.last), max(p.first, p.last)
	p.transport = l.transport(e, p)
	return oneOf(l.port6(e, p, at), l.port4(e, p, at))
}

// transport is the protocol that both the word before the port and its name allow.
func (l *lowerer) transport(e *syntax.Match, p ports) string {
	if e.Proto == syntax.Any {
		return p.transport
	}
	for _, t := range transports {
		if t.word != e.Proto {
			continue
		}
		if p.transport != "" && p.transport != t.name {
			l.fail(e.ValueAt.Column(), fmt.Sprintf("port %v is of %s", e.Value, p.transport), p.transport+" before it")
		}
		return t.name
	}
	l.fail(e.Column(), "such a protocol has no ports", "tcp or udp or sctp before it")
	return ""
}

// port4 tests the ports behind an IPv4 header. Only the first of its fragments has them.
func (l *lowerer) port4(e *syntax.Match, p ports, at place) cond {
	header := offset{l.header4(at), at.body.k}
	found := cond(never)
	for _, t := range transports {
		if p.transport == "" || p.transport == t.name {
			is := l.compare(code.Equal, l.load(at.body, 9, 1), t.number)
			found = oneOf(found, all(is, l.notFragment(at), l.bothPorts(e, p, header)))
		}
	}
	return all(l.protocol(at, etherIP), found)
}

// port6 tests the ports behind an IPv6 header. As for libpcap, nothing may be between them.
func (l *lowerer) port6(e *syntax.Match, p ports, at place) cond {
	header := at.body.plus(40)
	found := cond(never)
	for _, t := range transports {
		if p.transport == "" || p.transport == t.name {
			is := l.compare(code.Equal, l.load(at.body, 6, 1), t.number)
			found = oneOf(found, all(is, l.bothPorts(e, p, header)))
		}
	}
	return all(l.protocol(at, etherIP6), found)
}

// bothPorts tests the source port, the destination port, or both, of a transport header.
func (l *lowerer) bothPorts(e *syntax.Match, p ports, header offset) cond {
	return ends(e.Dir, l.inRange(l.load(header, 0, 2), p), l.inRange(l.load(header, 2, 2), p))
}

func (l *lowerer) inRange(port *code.Value, p ports) cond {
	if p.first == p.last {
		return l.compare(code.Equal, port, p.first)
	}
	return all(l.compare(code.GreaterEqual, port, p.first), not(l.compare(code.Greater, port, p.last)))
}

// header4 is the length of the IPv4 header and what comes before it of variable length: what
// follows the header stands at this value + at.body.k.
func (l *lowerer) header4(at place) *code.Value {
	length := l.b.Compute(code.ShiftLeft, l.b.Compute(code.And, l.load(at.body, 0, 1), l.b.Const(0xf)), l.b.Const(2))
	if at.body.base == nil {
		return length
	}
	return l.b.Compute(code.Add, length, at.body.base)
}

// notFragment is true of an IPv4 packet that is whole, or the first of its fragments.
func (l *lowerer) notFragment(at place) cond {
	return not(l.compare(code.Set, l.load(at.body, 6, 2), 0x1fff))
}

// portName lowers a word of a port that has a name.
func (l *lowerer) portName(e *syntax.Match, name string, at place) cond {
	n, transport := l.lookUpPort(e, name)
	return l.port(e, ports{n, n, transport}, at)
}

// portRange lowers "portrange 6000-6008". Each end can be a name.
func (l *lowerer) portRange(e *syntax.Match, text string, at place) cond {
	from, to, ok := strings.Cut(text, "-")
	if !ok {
		l.fail(e.ValueAt.Column(), fmt.Sprintf("%q is no range of ports", text), "FIRST-LAST")
	}
	first, one := l.lookUpPort(e, from)
	last, other := l.lookUpPort(e, to)
	if one != other {
		one = ""
	}
	return l.port(e, ports{first, last, one}, at)
}

// lookUpPort is a port by its number or its name, and the transport protocol that the name is
// of, if it is of one only.
func (l *lowerer) lookUpPort(e *syntax.Match, name string) (port uint32, transport string) {
	number, err := strconv.ParseUint(name, 10, 16)
	switch {
	case err == nil:
		return uint32(number), ""
	case errors.Is(err, strconv.ErrRange):
		l.fail(e.ValueAt.Column(), fmt.Sprintf("%s is no port: 65535 is the last", name), "a number from 0 to 65535")
	}
	n, transport, err := l.Names.Port(name)
	if err != nil {
		l.fail(e.ValueAt.Column(), fmt.Sprintf("port %q: %v", name, err), "0 to 65535 or a name of /etc/services")
	}
	return uint32(n), transport
}
