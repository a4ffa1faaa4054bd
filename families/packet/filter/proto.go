package filter

import (
	"fmt"

	"github.com/sockd/sockd/families/packet/filter/internal/code"
	"github.com/sockd/sockd/families/packet/filter/syntax"
)

// carrier is the header that has the number of a protocol.
type carrier uint8

const (
	byLink carrier = iota // EtherTypes and SAPs
	byAnyIP
	byIP4
	byIP6
	byISO  // network layer protocol identifiers
	byISIS // types of PDU
)

// The protocols in the headers of OSI (ISO/IEC TR 9577), and of IS-IS (ISO/IEC 10589).
const (
	isoCLNP = 0x81
	isoESIS = 0x82
	isoISIS = 0x83

	isisL1Hello = 15
	isisL2Hello = 16
	isisHello   = 17 // of a point to point link, of which level can not be seen here
	isisL1LSP   = 18
	isisL2LSP   = 20
	isisL1CSNP  = 24
	isisL2CSNP  = 25
	isisL1PSNP  = 26
	isisL2PSNP  = 27
)

// The protocols that IP carries.
const (
	ipICMP     = 1
	ipIGMP     = 2
	ipTCP      = 6
	ipIGRP     = 9
	ipUDP      = 17
	ipFragment = 44 // IPv6's header of fragments
	ipESP      = 50
	ipAH       = 51
	ipICMP6    = 58
	ipPIM      = 103
	ipVRRP     = 112
	ipCARP     = 112 // which took VRRP's
	ipSCTP     = 132
)

// protocolWords is what the name of a protocol tests when it stands alone: that a header
// has one of some numbers. They are tried in this order.
var protocolWords = map[syntax.Proto]struct {
	carrier carrier
	numbers []uint32
}{
	syntax.IP:      {byLink, []uint32{etherIP}},
	syntax.IP6:     {byLink, []uint32{etherIP6}},
	syntax.ARP:     {byLink, []uint32{etherARP}},
	syntax.RARP:    {byLink, []uint32{etherRARP}},
	syntax.ATalk:   {byLink, []uint32{etherATalk}},
	syntax.AARP:    {byLink, []uint32{etherAARP}},
	syntax.DECnet:  {byLink, []uint32{etherDECnet}},
	syntax.LAT:     {byLink, []uint32{etherLAT}},
	syntax.SCA:     {byLink, []uint32{etherSCA}},
	syntax.MOPDL:   {byLink, []uint32{etherMOPDL}},
	syntax.MOPRC:   {byLink, []uint32{etherMOPRC}},
	syntax.ISO:     {byLink, []uint32{sapISO}},
	syntax.STP:     {byLink, []uint32{sapSTP}},
	syntax.IPX:     {byLink, []uint32{sapIPX}},
	syntax.NetBEUI: {byLink, []uint32{sapNetBEUI}},

	syntax.TCP:   {byAnyIP, []uint32{ipTCP}},
	syntax.UDP:   {byAnyIP, []uint32{ipUDP}},
	syntax.SCTP:  {byAnyIP, []uint32{ipSCTP}},
	syntax.PIM:   {byAnyIP, []uint32{ipPIM}},
	syntax.AH:    {byAnyIP, []uint32{ipAH}},
	syntax.ESP:   {byAnyIP, []uint32{ipESP}},
	syntax.ICMP:  {byIP4, []uint32{ipICMP}},
	syntax.IGMP:  {byIP4, []uint32{ipIGMP}},
	syntax.IGRP:  {byIP4, []uint32{ipIGRP}},
	syntax.VRRP:  {byIP4, []uint32{ipVRRP}},
	syntax.CARP:  {byIP4, []uint32{ipCARP}},
	syntax.ICMP6: {byIP6, []uint32{ipICMP6}},

	syntax.CLNP: {byISO, []uint32{isoCLNP}},
	syntax.ESIS: {byISO, []uint32{isoESIS}},
	syntax.ISIS: {byISO, []uint32{isoISIS}},

	syntax.ISISL1:   {byISIS, []uint32{isisL1PSNP, isisL1CSNP, isisL1LSP, isisL1Hello, isisHello}},
	syntax.ISISL2:   {byISIS, []uint32{isisL2PSNP, isisL2CSNP, isisL2LSP, isisL2Hello, isisHello}},
	syntax.ISISIIH:  {byISIS, []uint32{isisHello, isisL1Hello, isisL2Hello}},
	syntax.ISISLSP:  {byISIS, []uint32{isisL1LSP, isisL2LSP}},
	syntax.ISISSNP:  {byISIS, []uint32{isisL2PSNP, isisL1PSNP, isisL1CSNP, isisL2CSNP}},
	syntax.ISISCSNP: {byISIS, []uint32{isisL1CSNP, isisL2CSNP}},
	syntax.ISISPSNP: {byISIS, []uint32{isisL1PSNP, isisL2PSNP}},
}

// protocolWord is the name of a protocol alone: "tcp".
func (l *lowerer) protocolWord(e *syntax.Protocol, at place) cond {
	w, ok := protocolWords[e.Proto]
	if !ok {
		l.fail(e.Column(), fmt.Sprintf("%q says nothing about a packet when it stands alone", e), "a protocol such as ip or tcp")
	}
	found := cond(never)
	for _, n := range w.numbers {
		found = oneOf(found, l.carried(at, w.carrier, n))
	}
	return found
}

// carried tests that a header says it carries a protocol.
func (l *lowerer) carried(at place, by carrier, number uint32) cond {
	switch by {
	case byAnyIP:
		return oneOf(l.ipProto(at, false, number), l.ipProto(at, true, number))
	case byIP4:
		return l.ipProto(at, false, number)
	case byIP6:
		return l.ipProto(at, true, number)
	case byISO:
		return all(l.protocol(at, sapISO), l.compare(code.Equal, l.load(at.osi(), 0, 1), number))
	case byISIS:
		return all(l.carried(at, byISO, isoISIS), l.compare(code.Equal, l.load(at.osi(), 4, 1), number))
	}
	return l.protocol(at, number)
}

// ipProto tests what an IPv4 header carries, or one of IPv6: of that its next header, or
// what is behind that when it is the header of a fragment.
func (l *lowerer) ipProto(at place, v6 bool, number uint32) cond {
	is := func(where, what uint32) cond { return l.compare(code.Equal, l.load(at.body, where, 1), what) }
	if !v6 {
		return all(l.protocol(at, etherIP), is(9, number))
	}
	fragment := all(is(6, ipFragment), is(40, number))
	return all(l.protocol(at, etherIP6), oneOf(is(6, number), fragment))
}

// protoNumber is "proto": a number in the header that the word before it names, or in
// any IP header.
func (l *lowerer) protoNumber(e *syntax.Match, number uint32, at place) cond {
	by, ok := carriers[e.Proto]
	if !ok {
		l.fail(e.Column(), "proto: such a protocol has no field that names another", "ether proto or ip proto or ip6 proto or iso proto or isis proto or proto")
	}
	return l.carried(at, by, number)
}

var carriers = map[syntax.Proto]carrier{
	syntax.Any:  byAnyIP,
	syntax.Link: byLink,
	syntax.IP:   byIP4,
	syntax.IP6:  byIP6,
	syntax.ISO:  byISO,
	syntax.ISIS: byISIS,
}

// protoName looks the name of a protocol up, as the word before "proto" or "protochain" numbers it.
func (l *lowerer) protoName(e *syntax.Match, name string) uint32 {
	if n, ok := l.lookUpProto(e.Proto, name); ok {
		return n
	}
	l.fail(e.ValueAt.Column(), fmt.Sprintf("unknown protocol %q", name), "a number or a name of /etc/protocols, or with ether or iso before it one of theirs")
	return 0
}

func (l *lowerer) lookUpProto(p syntax.Proto, name string) (number uint32, ok bool) {
	switch p {
	case syntax.Any, syntax.IP, syntax.IP6:
		n, ok := l.Names.Protocol(name)
		return uint32(n), ok
	case syntax.Link:
		if number, ok = etherTypeNames[name]; !ok {
			number, ok = llcNames[name]
		}
	case syntax.ISO:
		number, ok = isoNames[name]
	}
	return number, ok
}

var isoNames = map[string]uint32{"esis": isoESIS, "isis": isoISIS, "clnp": isoCLNP}
