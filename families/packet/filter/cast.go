package filter

import (
	"github.com/sockd/sockd/families/packet/filter/internal/code"
	"github.com/sockd/sockd/families/packet/filter/syntax"
)

// castTest lowers "broadcast" and "multicast".
func (l *lowerer) castTest(e *syntax.Cast, at place) cond {
	if e.Multicast {
		return l.multicast(e, at)
	}
	return l.broadcast(e, at)
}

func (l *lowerer) broadcast(e *syntax.Cast, at place) cond {
	switch e.Proto {
	case syntax.Any, syntax.Link:
		return l.castAddress(e, at, l.bytes(at.head, []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}))
	case syntax.IP:
		return l.ipBroadcast(e, at)
	}
	l.fail(e.Column(), "there are no broadcasts of such a protocol", "broadcast or ether broadcast or ip broadcast")
	return nil
}

func (l *lowerer) multicast(e *syntax.Cast, at place) cond {
	switch e.Proto {
	case syntax.Any, syntax.Link:
		return l.castAddress(e, at, l.compare(code.Set, l.load(at.head, 0, 1), 1))
	case syntax.IP:
		return all(l.protocol(at, etherIP), l.compare(code.GreaterEqual, l.load(at.body, 16, 1), 224))
	case syntax.IP6:
		return all(l.protocol(at, etherIP6), l.compare(code.Equal, l.load(at.body, 24, 1), 255))
	}
	l.fail(e.Column(), "there are no multicasts of such a protocol", "multicast or ether multicast or ip multicast or ip6 multicast")
	return nil
}

// castAddress is a test of an Ethernet address, where there is one.
func (l *lowerer) castAddress(e *syntax.Cast, at place, test cond) cond {
	switch {
	case at.framing == geneveFraming:
		return never // Geneve without Ethernet in it
	case at.ethernet():
		return test
	}
	l.fail(e.Column(), "there are no Ethernet addresses in "+at.linkName(), "ip or ip6 before it")
	return nil
}

// ipBroadcast tests that the host's part of the destination is all ones, or all zeros, which
// 4.2BSD took for that.
func (l *lowerer) ipBroadcast(e *syntax.Cast, at place) cond {
	if l.Netmask == 0 {
		l.fail(e.Column(), "the netmask is not known, so there is no \"ip broadcast\"", "")
	}
	hosts := ^l.Netmask
	destination := l.load(at.body, ip4Addresses.dst, 4)
	return all(l.protocol(at, etherIP), oneOf(l.masked(destination, hosts, 0), l.masked(destination, hosts, hosts)))
}
