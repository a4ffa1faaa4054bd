package syntax

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// isValue tells whether a token is a value and nothing else. Numbers may be both.
func isValue(c class) bool { return c >= nameTok && c <= arcTok && c != numberTok }

// match reads a value that is no number, and puts the words before it.
func (p *parser) match(q qualifiers) Expr {
	t := p.tok
	p.known(t.column, q, t.text)
	if q.own {
		return p.ownerName(q)
	}
	p.mayHave(q, t)
	var v Value
	switch p.advance(); t.class {
	case nameTok:
		v = Name(t.text)
	case ip4Tok:
		v = p.ip4(q, t)
	case ip6Tok:
		v = p.ip6(q, t)
	case macTok:
		v = mac(t.text)
	case arcTok:
		v = ARCnet(t.n)
	}
	return p.matchOf(t.column, q, v)
}

func (p *parser) matchOf(column int, q qualifiers, v Value) Expr {
	p.known(column, q, v.String())
	if n, ok := v.(Number); ok {
		switch {
		case q.kind == Gateway:
			p.fail(column, fmt.Sprintf("want %s, not %v", q.want(), n), q.want())
		case (q.kind == Port || q.kind == PortRange) && n > 65535:
			p.fail(column, fmt.Sprintf("%v is no port: 65535 is the last", n), "a number from 0 to 65535")
		}
	}
	return &Match{At(column), q.proto, q.dir, q.kind, v, At(column)}
}

// known fails when a value has no words that say what it is, neither before it nor
// before the value in front of it.
func (p *parser) known(column int, q qualifiers, value string) {
	if !q.known {
		p.fail(column, fmt.Sprintf("%q wants a word before it, such as host, net or port", value), "host, net or port")
	}
}

// mayHave fails when a value is not of the kind that the words before it ask for.
func (p *parser) mayHave(q qualifiers, t token) {
	fits := true
	switch t.class {
	case ip4Tok, ip6Tok:
		fits = q.kind == AnyKind || q.kind == Host || q.kind == Net
	case macTok:
		fits = q.proto == Link && (q.kind == AnyKind || q.kind == Host)
		if !fits && q.proto == Any && q.kind <= Host {
			p.fail(t.column, fmt.Sprintf("a hardware address wants the word ether before it, not only %s", wordOr(kindNames[q.kind], "host")), "ether host "+t.text)
		}
	}
	if !fits {
		p.unexpected(q.want())
	}
}

func wordOr(word, other string) string {
	if word == "" {
		return other
	}
	return word
}

// ip4 reads an address, and the mask that may stand behind it.
func (p *parser) ip4(q qualifiers, t token) Value {
	if q.proto == DECnet && p.tok.class != maskTok && !p.slash() {
		return p.decnet(t)
	}
	a := p.parts(t)
	if p.slash() {
		a.Bits = p.bits(32)
	} else if _, ok := p.take(maskTok); ok {
		m := p.parts(p.need(ip4Tok, "a mask such as 255.255.255.0"))
		a.Mask = &m
	}
	if (a.Bits >= 0 || a.Mask != nil) && q.kind != Net {
		p.fail(t.column, "only a net has a mask", "net "+a.String())
	}
	if a.address()&^a.mask() != 0 {
		p.fail(t.column, fmt.Sprintf("%v has bits set that are not of its network", a), "")
	}
	return a
}

func (p *parser) slash() bool { return p.tok.class == opTok && p.tok.val == uint8(Div) }

// bits reads the length of a prefix behind a slash.
func (p *parser) bits(limit uint32) int {
	p.advance()
	t := p.need(numberTok, "a prefix length")
	if t.n > limit {
		p.fail(t.column, fmt.Sprintf("a prefix has at most %d bits", limit), "")
	}
	return int(t.n)
}

// parts are the two to four decimal parts of an address.
func (p *parser) parts(t token) IPv4 {
	a := IPv4{Bits: -1}
	for part := range strings.SplitSeq(t.text, ".") {
		n, err := strconv.ParseUint(part, 10, 8)
		if err != nil {
			p.fail(t.column, fmt.Sprintf("%s is no IPv4 address: want parts from 0 to 255", t.text), "")
		}
		a.Addr[a.Parts] = byte(n)
		a.Parts++
	}
	return a
}

func (a IPv4) address() uint32 { return binary.BigEndian.Uint32(a.Addr[:]) }

// mask is the mask that the address says it has, all bits when it says nothing.
func (a IPv4) mask() uint32 {
	switch {
	case a.Mask != nil:
		return a.Mask.address()
	case a.Bits >= 0:
		return ^uint32(0) << (32 - a.Bits)
	}
	return ^uint32(0)
}

// decnet is an address of DECnet: 6 bits of area, 10 bits of node. It is a number.
func (p *parser) decnet(t token) Value {
	left, right, _ := strings.Cut(t.text, ".")
	area, err1 := strconv.ParseUint(left, 10, 6)
	node, err2 := strconv.ParseUint(right, 10, 10)
	if err1 != nil || err2 != nil {
		p.fail(t.column, fmt.Sprintf("%s is no DECnet address: want AREA.NODE, 63.1023 at most", t.text), "")
	}
	return Number(area<<10 | node)
}

func (p *parser) ip6(q qualifiers, t token) Value {
	a := IPv6{Addr: t.addr, Bits: -1}
	if !p.slash() {
		return a
	}
	a.Bits = p.bits(128)
	if a.Bits != 128 && q.kind != Net {
		p.fail(t.column, "only a net has a prefix length", "net "+a.String())
	}
	if netip.PrefixFrom(a.Addr, a.Bits).Masked().Addr() != a.Addr {
		p.fail(t.column, fmt.Sprintf("%v has bits set that are not of its network", a), "")
	}
	return a
}

// mac reads a hardware address that the scanner knows to be one.
func mac(text string) MAC {
	var m MAC
	at := 0
	for i := range m {
		if !isHex(text[at]) {
			at++
		}
		n := run(text[at:], 2, isHex)
		for ; n > 0; n-- {
			m[i] = m[i]<<4 | hexValue(text[at])
			at++
		}
	}
	return m
}
