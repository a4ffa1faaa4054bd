package main

import "fmt"

// The kinds of ICMPv6 (RFC 4443, RFC 2710, RFC 3810, RFC 4861, RFC 6275).
const (
	icmp6Unreachable  = 1
	icmp6TooBig       = 2
	icmp6TimeExceeded = 3
	icmp6Parameter    = 4
	icmp6Echo         = 128
	icmp6EchoReply    = 129
	icmp6Query        = 130
	icmp6Report       = 131
	icmp6Done         = 132
	icmp6Solicit      = 133 // a router
	icmp6Router       = 134
	icmp6Neighbour    = 135 // who has it
	icmp6Advert       = 136 // of a neighbour
	icmp6Redirect     = 137
	icmp6Report2      = 143
	icmp6HomeQuery    = 144
	icmp6HomeReply    = 145
	icmp6PrefixQuery  = 146
	icmp6Prefix       = 147
)

var icmp6Kinds = names{
	icmp6Unreachable: "destination unreachable", icmp6TooBig: "packet too big", icmp6TimeExceeded: "time exceeded in-transit", icmp6Parameter: "parameter problem",
	icmp6Echo: "echo request", icmp6EchoReply: "echo reply", icmp6Query: "multicast listener query", icmp6Report: "multicast listener report",
	icmp6Done: "multicast listener done", icmp6Solicit: "router solicitation", icmp6Router: "router advertisement", icmp6Neighbour: "neighbor solicitation",
	icmp6Advert: "neighbor advertisement", icmp6Redirect: "redirect", 138: "router renumbering", 139: "who-are-you request", 140: "who-are-you reply",
	141: "inverse neighbor solicitation", 142: "inverse neighbor advertisement", icmp6Report2: "multicast listener report v2", icmp6HomeQuery: "ha discovery request",
	icmp6HomeReply: "ha discovery reply", icmp6PrefixQuery: "mobile router solicitation", icmp6Prefix: "mobile router advertisement", 155: "RPL",
	200: "mtrace response", 201: "mtrace message",
}

// lengthFirst are the kinds whose length stands before their fields with -v.
var lengthFirst = map[int]bool{
	icmp6Solicit: true, icmp6Router: true, icmp6Advert: true, icmp6Neighbour: true, icmp6Redirect: true, icmp6HomeReply: true, icmp6Prefix: true,
}

func (p *printer) icmp6(s *segment) {
	p.proto = "icmp6"
	if s.length == 0 {
		p.say("ICMP6, length 0")
		p.invalid()
		return
	}
	d := s.data
	if p.verbose(1) && s.captured(s.length) {
		p.icmp6Sum(s)
	}
	kind := int(u8(d, 0))
	p.printf("ICMP6, %s", icmp6Kinds.or(kind, "unknown icmp6 type (%d)"))
	if p.verbose(1) && lengthFirst[kind] {
		p.printf(", length %d", s.length)
	}
	if _, known := icmp6Kinds[kind]; !known {
		p.printf(", length %d", s.length)
		if !p.verbose(2) {
			p.hexLines("\n\t", first(d, s.length), false)
		}
		return
	}
	if p.icmp6Fields(kind, int(u8(d, 1)), s) && !p.verbose(1) {
		p.printf(", length %d", s.length)
	}
}

func (p *printer) icmp6Sum(s *segment) {
	if sum := s.sum(protoICMPv6, s.length); sum != 0 {
		p.printf("[bad icmp6 cksum 0x%04x -> 0x%04x!] ", u16(s.data, 2), should(u16(s.data, 2), sum))
		return
	}
	p.say("[icmp6 sum ok] ")
}

// icmp6Fields writes what a message says; false when its length is not to follow.
func (p *printer) icmp6Fields(kind, code int, s *segment) bool {
	d := s.data
	switch kind {
	case icmp6Unreachable:
		return p.unreachable6(code, s)
	case icmp6TooBig:
		p.printf(", mtu %d", u32(d, 4))
	case icmp6TimeExceeded:
		p.timeExceeded6(code, d)
	case icmp6Parameter:
		return p.parameter6(code, d)
	case icmp6Echo, icmp6EchoReply:
		p.printf(", id %d, seq %d", u16(d, 4), u16(d, 6))
	case icmp6Query, icmp6Report, icmp6Done, icmp6Report2:
		p.listener(kind, d, s.length)
	case icmp6Solicit, icmp6Router, icmp6Neighbour, icmp6Advert, icmp6Redirect:
		return p.discovery(kind, d, s.length)
	case icmp6HomeQuery, icmp6HomeReply, icmp6PrefixQuery, icmp6Prefix:
		return p.mobile6(kind, d, s.length)
	}
	return true
}

// end says that a message is cut where a field was wanted. Its length is not said then.
func (p *printer) end() bool {
	p.truncated()
	return false
}

func (p *printer) unreachable6(code int, s *segment) bool {
	inner := skip(s.data, icmpHeader)
	p.printf(", %s", names{0: "unreachable route", 1: " unreachable prohibited", 2: "beyond scope", 3: "unreachable address", 4: "unreachable port"}.or(code, "unknown unreach code (%d)"))
	switch code {
	case 0, 1, 3:
		p.printf(" %s", ip6(inner, 24))
	case 2:
		p.printf(" %s, source address %s", ip6(inner, 24), ip6(inner, 8))
	case 4:
		port, proto, ok := upper6(inner)
		if !ok {
			return p.end()
		}
		p.printf(", %s %s port %d", ip6(inner, 24), names{protoTCP: "tcp", protoUDP: "udp"}[proto], port)
	default:
		if !p.verbose(2) {
			p.hexLines("\n\t", first(s.data, s.length), false)
			return false
		}
	}
	return true
}

// upper6 finds the port that a quoted packet was for, behind its extension headers.
func upper6(inner []byte) (port uint16, proto int, ok bool) {
	if !has(inner, ipv6Header) {
		return 0, 0, false
	}
	next, d := int(inner[6]), inner[ipv6Header:]
	for {
		size := 0
		switch next {
		case protoTCP, protoUDP:
			if !has(d, 4) {
				return 0, 0, false
			}
			return u16(d, 2), next, true
		case protoHopByHop, protoDestOpts, protoRouting:
			if !has(d, 2) {
				return 0, 0, false
			}
			size = int(d[1])*8 + 8
		case protoFragment:
			if !has(d, 4) || u16(d, 2)&^7 != 0 {
				return 0, 0, false
			}
			size = fragment6Header
		case protoAH:
			if !has(d, 2) {
				return 0, 0, false
			}
			size = (int(d[1]) + 2) * 4
		default:
			return 0, 0, false
		}
		next, d = int(d[0]), skip(d, size)
	}
}

func (p *printer) timeExceeded6(code int, d []byte) {
	switch code {
	case 0:
		p.printf(" for %s", ip6(d, icmpHeader+24))
	case 1:
		p.say(" (reassembly)")
	default:
		p.printf(", unknown code (%d)", code)
	}
}

func (p *printer) parameter6(code int, d []byte) bool {
	if !has(d, icmpHeader+ipv6Header) {
		return p.end()
	}
	if what, ok := (names{0: "erroneous", 1: "next header", 2: "option", 3: "incomplete header chain"})[code]; ok {
		p.printf(", %s - octet %d", what, u32(d, 4))
	} else {
		p.printf(", code-#%d", code)
	}
	return true
}

const (
	listenerSize  = 24 // of RFC 2710's messages
	listener2Size = 28 // of RFC 3810's query, at least
)

// listener writes a message of multicast listener discovery.
func (p *printer) listener(kind int, d []byte, length int) {
	switch {
	case kind == icmp6Report2:
		p.groups(groupList{data: d, length: length, least: 8, word: "v2", size: 16})
	case kind != icmp6Query || length == listenerSize:
		if has(d, listenerSize) {
			p.printf("max resp delay: %d addr: %s", u16(d, 4), ip6(d, 8))
		}
	case length >= listener2Size:
		p.say(" v2")
		p.listenerQuery(d, length)
	default:
		p.printf(" unknown-version (len %d) ", length)
	}
}

func (p *printer) listenerQuery(d []byte, length int) {
	delay := floating(int(u16(d, 4)), 16)
	if p.verbose(1) {
		p.printf(" [max resp delay=%d]", delay)
	}
	p.printf(" [gaddr %s", ip6(d, 8))
	if p.verbose(1) {
		flags := u8(d, 24)
		p.sayIf(flags&8 != 0, " sflag")
		if flags&7 != 0 {
			p.printf(" robustness=%d", flags&7)
		}
		p.printf(" qqi=%d", floating(int(u8(d, 25)), 8))
	}
	p.sources(d, listener2Size, length, int(u16(d, 26)), 16)
	p.say("]")
}

// Where the options of a message of neighbour discovery begin.
var discoveryOptions = map[int]int{icmp6Solicit: 8, icmp6Router: 16, icmp6Neighbour: 24, icmp6Advert: 24, icmp6Redirect: 40}

var (
	routerFlags   = []bitName{{0x80, "managed"}, {0x40, "other stateful"}, {0x20, "home agent"}, {0x02, "ipv6 only"}}
	advertFlags   = []bitName{{0x80, "router"}, {0x40, "solicited"}, {0x20, "override"}}
	prefixFlags   = []bitName{{0x80, "onlink"}, {0x40, "auto"}, {0x20, "router"}}
	routerOfLevel = [...]string{"medium", "high", "rsv", "low"}
)

// preference is a router's, of bits 3 and 4 (RFC 4191).
func preference(flags byte) string { return routerOfLevel[flags>>3&3] }

// discovery writes a message of neighbour discovery (RFC 4861).
func (p *printer) discovery(kind int, d []byte, length int) bool {
	switch kind {
	case icmp6Router:
		if p.verbose(1) {
			p.printf("\n\thop limit %d, Flags [%s], pref %s, router lifetime %ds, reachable time %dms, retrans timer %dms",
				u8(d, 4), bitNames(routerFlags, uint32(u8(d, 5)), ", "), preference(u8(d, 5)), u16(d, 6), u32(d, 8), u32(d, 12))
		}
	case icmp6Neighbour:
		p.printf(", who has %s", ip6(d, 8))
	case icmp6Advert:
		p.printf(", tgt is %s", ip6(d, 8))
		if p.verbose(1) {
			p.printf(", Flags [%s]", bitNames(advertFlags, uint32(u8(d, 4)), ", "))
		}
	case icmp6Redirect:
		p.printf(", %s", ip6(d, 24))
		p.printf(" to %s", ip6(d, 8))
	}
	at := discoveryOptions[kind]
	if p.verbose(1) && !p.neighbourOptions(skip(d, at), length-at) {
		return p.end()
	}
	return true
}

// The options of neighbour discovery (RFC 4861, RFC 4191, RFC 6275, RFC 8106).
const (
	ndSource    = 1
	ndTarget    = 2
	ndPrefix    = 3
	ndRedirect  = 4
	ndMTU       = 5
	ndInterval  = 7
	ndHomeAgent = 8
	ndRoute     = 24
	ndRDNSS     = 25
	ndDNSSL     = 31
)

var neighbourOptionNames = names{
	ndSource: "source link-address", ndTarget: "destination link-address", ndPrefix: "prefix info", ndRedirect: "redirected header", ndMTU: "mtu",
	ndInterval: "advertisement interval", ndHomeAgent: "homeagent information", ndRoute: "route info", ndRDNSS: "rdnss", ndDNSSL: "dnssl",
}

// neighbourOptions writes the options of a message, of which left bytes were on the
// wire; false when they do not add up.
func (p *printer) neighbourOptions(d []byte, left int) bool {
	for all := d; len(d) > 0; {
		if !has(d, 2) {
			return false
		}
		if left <= 0 {
			return true
		}
		kind, size := int(d[0]), int(d[1])*8
		if size == 0 || size > len(d) {
			return false
		}
		p.printf("\n\t  %s option (%d), length %d (%d): ", neighbourOptionNames.or(kind, "unknown"), kind, size, d[1])
		if _, known := neighbourOptionNames[kind]; !known && !p.verbose(2) {
			p.hexLines("\n\t  ", d[2:size], false)
			return true
		}
		if !p.neighbourOption(kind, d[:size], all) {
			return false
		}
		if p.verbose(2) {
			p.hexLines("\n\t    ", d[2:size], false)
		}
		d, left = d[size:], left-size
	}
	return true
}

// neighbourOption writes one option, which is whole. Of a redirected header tcpdump
// shows as many bytes, but of all options from the first.
func (p *printer) neighbourOption(kind int, o, all []byte) bool {
	switch kind {
	case ndSource, ndTarget:
		p.say(hardware(o[2:]))
	case ndPrefix:
		p.prefixOption(o)
	case ndRedirect:
		p.hexLines("\n\t    ", first(all, len(o)), false)
	case ndMTU:
		p.printf(" %d", u32(o, 4))
		p.sayIf(len(o) != 8, "bad option length")
	case ndInterval:
		p.printf(" %dms", u32(o, 4))
	case ndHomeAgent:
		p.printf(" preference %d, lifetime %d", u16(o, 4), u16(o, 6))
	case ndRoute:
		return p.routeOption(o)
	case ndRDNSS:
		p.printf(" lifetime %ds,", u32(o, 4))
		for at := 8; at+16 <= len(o); at += 16 {
			p.printf(" addr: %s", ip6(o, at))
		}
	case ndDNSSL:
		return p.searchOption(o)
	}
	return true
}

func (p *printer) prefixOption(o []byte) {
	bad := ""
	if len(o) != 32 {
		bad = "badlen"
	}
	p.printf("%s/%d%s, Flags [%s], valid time %s, pref. time %s", ip6(o, 16), o[2], bad, bitNames(prefixFlags, uint32(o[3]), ", "), validTime(u32(o, 4)), validTime(u32(o, 8)))
}

func validTime(seconds uint32) string {
	if seconds == 1<<32-1 {
		return "infinity"
	}
	return fmt.Sprintf("%ds", seconds)
}

// routeOption writes a route (RFC 4191), whose prefix takes no, half or all of an
// address' place.
func (p *printer) routeOption(o []byte) bool {
	if len(o) > 24 {
		return false
	}
	prefix := make([]byte, 16)
	copy(prefix, o[8:])
	p.printf(" %s/%d, pref=%s, lifetime=%s", addr(prefix), o[2], preference(o[3]), validTime(u32(o, 4)))
	return true
}

// searchOption writes a list of domains (RFC 8106).
func (p *printer) searchOption(o []byte) bool {
	p.printf(" lifetime %ds, domain(s):", u32(o, 4))
	for at := 8; at < len(o) && o[at] != 0; {
		p.line.WriteByte(' ')
		next, ok := p.dnsName(o, at)
		if !ok {
			return false
		}
		at = next
	}
	return true
}

// mobile6 writes the messages of Mobile IPv6 (RFC 6275).
func (p *printer) mobile6(kind int, d []byte, length int) bool {
	switch kind {
	case icmp6HomeQuery, icmp6PrefixQuery:
		p.printf(", id 0x%04x", u16(d, 4))
	case icmp6HomeReply:
		if p.verbose(1) {
			p.printf(", id 0x%04x", u16(d, 4))
			for at := icmpHeader; at < length; at += 16 {
				p.printf(", %s", ip6(d, at))
			}
		}
	case icmp6Prefix:
		if !p.verbose(1) {
			return true
		}
		flags := u16(d, 6)
		p.printf(", id 0x%04x", u16(d, 4))
		p.sayIf(flags&0xc000 != 0, " ")
		p.sayIf(flags&0x8000 != 0, "M")
		p.sayIf(flags&0x4000 != 0, "O")
		if !p.neighbourOptions(skip(d, icmpHeader), length-icmpHeader) {
			return p.end()
		}
	}
	return true
}
