package filter

import (
	"fmt"
	"strconv"

	"github.com/sockd/sockd/families/packet/pcapng"
)

// maxDepth bounds parentheses and "not"s within each other, so that no text can
// exhaust the stack of the daemon.
const maxDepth = 200

// maxText bounds a filter, and with it what parsing one can cost.
const maxText = 8192

// qualifier is what stands before a value: which protocol, which side, what kind
// of value. Empty parts were not written.
type qualifier struct {
	proto string // "ether", "ip", "tcp" ...
	dir   string // "src", "dst", "or", "and"
	kind  string // "host", "net", "port", "portrange", "proto"
}

type parser struct {
	text   string
	tokens []token // the last one is empty
	pos    int
	depth  int
	shift  uint32 // how far "vlan"s to the left have moved type and payload
	link   pcapng.LinkType

	last  qualifier // of the value before, for "port 80 or 443"
	reuse bool      // last may be taken again
}

func parse(text string, link pcapng.LinkType) (node, error) {
	p := &parser{text: text, tokens: split(text), link: link}
	if len(text) > maxText {
		return nil, p.fail(token{column: maxText + 1}, fmt.Sprintf("longer than %d bytes", maxText), "")
	}
	n, err := p.expression()
	if err != nil {
		return nil, err
	}
	if t := p.peek(); t.text != "" {
		return nil, p.unexpected(t)
	}
	return n, nil
}

func (p *parser) peek() token { return p.tokens[p.pos] }

// take steps over the next token; the last one stays.
func (p *parser) take() token {
	t := p.tokens[p.pos]
	if t.text != "" {
		p.pos++
	}
	return t
}

// accept steps over the next token if it is one of the words.
func (p *parser) accept(words ...string) (token, bool) {
	if t := p.peek(); t.text != "" && t.is(words...) {
		return p.take(), true
	}
	return token{}, false
}

// expression is terms joined by and, or: from left to right, none binding closer.
func (p *parser) expression() (node, error) { return p.joined(p.term) }

// joined is parts joined by and, or.
func (p *parser) joined(part func() (node, error)) (node, error) {
	n, err := part()
	if err != nil {
		return nil, err
	}
	for {
		_, isAnd := p.accept("and", "&&")
		if !isAnd {
			if _, isOr := p.accept("or", "||"); !isOr {
				return n, nil
			}
		}
		m, err := part()
		if err != nil {
			return nil, err
		}
		if isAnd {
			n = both{n, m}
		} else {
			n = either{n, m}
		}
	}
}

func (p *parser) term() (node, error) {
	return p.nested(p.term, p.expression, p.word)
}

// nested is "not" and what negated reads, parentheses around what inner reads, or
// what plain reads.
func (p *parser) nested(negated, inner, plain func() (node, error)) (node, error) {
	t := p.peek()
	if !t.is("not", "!", "(") {
		return plain()
	}
	p.take()
	if p.depth++; p.depth > maxDepth {
		return nil, p.fail(t, fmt.Sprintf("more than %d levels deep", maxDepth), "")
	}
	defer func() { p.depth-- }()
	if t.text != "(" {
		n, err := negated()
		if err != nil {
			return nil, err
		}
		return invert{n}, nil
	}
	n, err := inner()
	if err != nil {
		return nil, err
	}
	if _, ok := p.accept(")"); !ok {
		return nil, p.fail(p.peek(), "want a closing parenthesis", "")
	}
	return n, nil
}

var (
	protoWords = []string{"ether", "ip", "ip6", "arp", "rarp", "ipx", "stp", "tcp", "udp", "sctp", "icmp", "icmp6", "igmp", "ah", "esp", "pim", "vrrp"}
	kindWords  = []string{"host", "net", "port", "portrange", "proto"}
	dirWords   = []string{"src", "dst"}
	otherWords = []string{"vlan", "less", "greater", "broadcast", "multicast"}
	joinWords  = []string{"and", "or", "&&", "||", ")"}
)

// word is everything that is no combination.
func (p *parser) word() (node, error) {
	t := p.peek()
	switch {
	case t.text == "":
		return nil, p.unexpected(t)
	case t.is(otherWords...):
		p.reuse = false
		return p.other(qualifier{}, p.take())
	case t.is(protoWords...), t.is(dirWords...), t.is(kindWords...):
		return p.qualified()
	case t.is(joinWords...):
		return nil, p.unexpected(t)
	case p.reuse:
		return p.value()
	}
	return nil, p.fail(t, fmt.Sprintf("%q is no word of a filter", t.text), "ip, tcp, udp, host A, net CIDR, port N, ether host MAC, vlan, and, or, not; see pcap-filter(7)")
}

// qualified is [proto] [dir] [kind] VALUE, or a protocol alone.
func (p *parser) qualified() (node, error) {
	var q qualifier
	p.reuse = false
	proto, hasProto := p.accept(protoWords...)
	q.proto = proto.text
	if t, ok := p.accept("broadcast", "multicast"); ok {
		return p.other(q, t)
	}
	if err := p.direction(&q); err != nil {
		return nil, err
	}
	kind, hasKind := p.accept(kindWords...)
	q.kind = kind.text
	if hasProto && q.dir == "" && !hasKind && !p.atValue() {
		return p.protocolAlone(proto)
	}
	if q.kind == "" {
		q.kind = "host"
	}
	if err := p.check(q, proto, kind); err != nil {
		return nil, err
	}
	p.last = q
	n, err := p.values()
	p.reuse = true
	return n, err
}

// direction reads src, dst, "src or dst", "src and dst", either way round.
func (p *parser) direction(q *qualifier) error {
	first, ok := p.accept(dirWords...)
	if !ok {
		return nil
	}
	q.dir = first.text
	// "src or dst" is one qualifier, "src 10.0.0.1 or ..." is not: look two ahead.
	if join := p.peek(); join.is("or", "and", "||", "&&") && p.tokens[p.pos+1].is(dirWords...) {
		p.take()
		if second := p.take(); second.text == first.text {
			return p.fail(second, fmt.Sprintf("%q stands there twice", second.text), "")
		}
		q.dir = "or"
		if join.is("and", "&&") {
			q.dir = "and"
		}
	}
	return nil
}

// atValue tells whether a value, not a keyword, comes next.
func (p *parser) atValue() bool {
	t := p.peek()
	return t.text != "" && !t.is(joinWords...) && !t.is("not", "!") && (t.escaped || !t.is("(") && !isKeyword(t))
}

func isKeyword(t token) bool {
	return t.is(protoWords...) || t.is(kindWords...) || t.is(dirWords...) || t.is(otherWords...)
}

// values is one value, or several in parentheses: host (a or b).
func (p *parser) values() (node, error) {
	return p.nested(p.values, func() (node, error) { return p.joined(p.values) }, p.value)
}

// value reads one value and builds what p.last says of it.
func (p *parser) value() (node, error) {
	t := p.take()
	if t.text == "" || t.is(joinWords...) || isKeyword(t) && p.last.kind != "proto" {
		return nil, p.fail(t, fmt.Sprintf("%s wants a value", p.last.kind), valueHints[p.last.kind])
	}
	switch p.last.kind {
	case "host":
		return p.host(p.last, t)
	case "net":
		return p.network(p.last, t)
	case "port":
		return p.port(p.last, t)
	case "portrange":
		return p.portRange(p.last, t)
	}
	return p.protocol(p.last, t)
}

var valueHints = map[string]string{
	"host": "host 10.0.0.1", "net": "net 10.0.0.0/8", "port": "port 80", "portrange": "portrange 8000-8080", "proto": `ip proto 6, ether proto 0x88b5`,
}

// check refuses qualifiers that do not go together.
func (p *parser) check(q qualifier, proto, kind token) error {
	allowed := map[string][]string{
		"host":      {"", "ether", "ip", "ip6", "arp", "rarp"},
		"net":       {"", "ip", "ip6", "arp", "rarp"},
		"port":      {"", "tcp", "udp", "sctp"},
		"portrange": {"", "tcp", "udp", "sctp"},
		"proto":     {"", "ether", "ip", "ip6"},
	}[q.kind]
	for _, a := range allowed {
		if a == q.proto {
			if q.kind == "proto" && q.dir != "" {
				return p.fail(kind, "proto has no direction", "")
			}
			return nil
		}
	}
	if kind.text == "" {
		return p.unexpected(p.peek())
	}
	return p.fail(proto, fmt.Sprintf("%s does not go with %s", q.proto, q.kind), valueHints[q.kind])
}

// other is a word without a kind: vlan, less, greater, broadcast, multicast.
func (p *parser) other(q qualifier, t token) (node, error) {
	switch t.text {
	case "less", "greater":
		return p.length(t)
	case "vlan":
		return p.vlan(t)
	}
	return p.cast(q, t)
}

func (p *parser) length(t token) (node, error) {
	v := p.take()
	n, err := number(v.text, 32)
	if err != nil {
		return nil, p.fail(v, fmt.Sprintf("%s wants a length in bytes", t.text), t.text+" 128")
	}
	if t.text == "less" {
		return invert{compare{load: opLoadLen, op: opJumpGreater, k: n}}, nil
	}
	return compare{load: opLoadLen, op: opJumpAtLeast, k: n}, nil
}

func (p *parser) vlan(t token) (node, error) {
	if p.link != pcapng.Ethernet {
		return nil, p.fail(t, fmt.Sprintf("vlan needs Ethernet frames, these are %v", p.link), "capture one Ethernet interface")
	}
	var tagged node = either{either{p.etherType(0x8100), p.etherType(0x88a8)}, p.etherType(0x9100)}
	if p.atValue() {
		v := p.take()
		id, err := number(v.text, 16)
		if err != nil || id > 4095 {
			return nil, p.fail(v, "a VLAN is a number from 0 to 4095", "vlan 100")
		}
		tagged = both{tagged, compare{load: opLoadHalf, at: p.payload(0), mask: 0xfff, op: opJumpEqual, k: id}}
	}
	p.shift += 4
	return tagged, nil
}

func (p *parser) unexpected(t token) error {
	if t.text == "" {
		return p.fail(t, "ends too early", "")
	}
	return p.fail(t, fmt.Sprintf("%q cannot stand here", t.text), "")
}

// number reads a decimal, 0x or 0 (octal) number of at most so many bits.
func number(s string, bits int) (uint32, error) {
	n, err := strconv.ParseUint(s, 0, bits)
	return uint32(n), err
}
