package syntax

import (
	"fmt"
	"strings"
)

// The bounds of a text. 64 KiB are a filter of some five thousand addresses; 200
// levels of brackets nobody can read, and any stack can hold.
const (
	maxText  = 64 << 10
	maxDepth = 200
	// maxGrowth is above how many times longer a filter becomes when its implied words
	// are written out: "||1" may be "or netbeui src and dst portrange 1".
	maxGrowth = 16
)

// Parse reads a filter. A blank text gives nil, which takes every packet. The text,
// and what the tree prints as, has at most 64 KiB, and 200 levels of brackets. Errors
// are *Error.
func Parse(text string, o Options) (tree Expr, err error) {
	p := &parser{scanner: scanner{text: text, o: o}}
	defer func() {
		switch r := recover().(type) {
		case nil:
		case bailout:
			tree, err = nil, r.err
		default:
			panic(r)
		}
	}()
	if len(text) > maxText {
		p.fail(maxText+1, fmt.Sprintf("the filter is longer than %d bytes", maxText), "")
	}
	if p.advance(); p.tok.class == endTok {
		return nil, nil
	}
	return p.all(), nil
}

// parser goes through the tokens once, with one to look ahead.
type parser struct {
	scanner
	tok   token
	depth int
}

// bailout carries an error out of the recursion to Parse, which recovers it.
type bailout struct{ err *Error }

func (p *parser) fail(column int, why, expected string) {
	panic(bailout{&Error{Text: p.text, Column: column, Why: why, Expected: expected}})
}

func (p *parser) advance() token {
	t := p.tok
	p.tok = p.next()
	return t
}

// take is the token when it is of a class.
func (p *parser) take(c class) (token, bool) {
	if p.tok.class != c {
		return token{}, false
	}
	return p.advance(), true
}

// need is the token of a class that must be there. want says in words what that is.
func (p *parser) need(c class, want string) token {
	t, ok := p.take(c)
	if !ok {
		p.unexpected(want)
	}
	return t
}

// unexpected fails: the token is not what must be there.
func (p *parser) unexpected(want string) {
	t := p.tok
	switch t.class {
	case badTok:
		p.fail(t.column, t.text, t.hint)
	case endTok:
		p.fail(t.column, "the filter ends, and wants "+want, want)
	case foreignTok, foreignRNRTok:
		p.fail(t.column, fmt.Sprintf("%q is a word for link types that sockd cannot capture", t.text), `\`+t.text+" where it is a name")
	case quotedTok:
		p.fail(t.column, "only names behind comm and unit stand in quotes", "")
	}
	p.fail(t.column, fmt.Sprintf("want %s, not %q", want, t.text), want)
}

// enter counts the levels of what is inside something else; leave ends one.
func (p *parser) enter() {
	if p.depth++; p.depth > maxDepth {
		p.fail(p.tok.column, fmt.Sprintf("the filter is more than %d levels deep", maxDepth), "")
	}
}

func (p *parser) leave() { p.depth-- }

// qualifiers are the words in front of a value. A value without any takes those of
// what stands before it, if that had some.
type qualifiers struct {
	known bool
	proto Proto
	dir   Dir
	kind  Kind
	own   bool // one of sockd's own words: field, and nothing of the above
	field OwnerField
}

// form is what a phrase can still become.
type form uint8

const (
	termForm   form = iota // it says all: only this may have any term behind "and"
	valueForm              // values that took the words before them
	numberForm             // a number: a value, or arithmetic
	arithForm              // arithmetic: it wants a comparison
)

// phrase is a part of a filter: an opening parenthesis does not tell what it opens, so a
// part says what it was.
type phrase struct {
	form   form
	column int
	tree   Expr   // of terms and values
	num    Arith  // of numbers, a *Constant, and arithmetic
	text   string // of numbers, as it was written
	list   bool   // values in parentheses
	q      qualifiers
}

// allowed says what a phrase may be: terms, values, or both.
type allowed uint8

const (
	terms allowed = 1 << iota
	values
)

// all reads the whole text.
func (p *parser) all() Expr {
	tree := p.settle(p.sequence(terms, qualifiers{}), terms).tree
	if p.tok.class == closeTok {
		p.fail(p.tok.column, "there is no parenthesis that this one closes", "")
	}
	if p.tok.class != endTok {
		p.unexpected(`"and" or "or"`)
	}
	if len(p.text) > maxText/maxGrowth && len(tree.String()) > maxText {
		p.fail(1, fmt.Sprintf("the filter, its implied words written out, is longer than %d bytes", maxText), "")
	}
	return tree
}

// sequence reads phrases with "and" and "or" between them. Behind a value there are only
// values, behind a term there is both. In libpcap's grammar a list in parentheses cannot be
// the first of its like.
func (p *parser) sequence(may allowed, q qualifiers) phrase {
	left := p.phrase(may, q)
	if left.list {
		p.fail(left.column, "values in parentheses cannot be the first of others in parentheses", "another value before it, or no parenthesis")
	}
	for p.tok.class == andTok || p.tok.class == orTok {
		left = p.settle(left, may)
		op := And
		if p.advance().class == orTok {
			op = Or
		}
		if may = values; left.form == termForm {
			may |= terms
		}
		right := p.settle(p.phrase(may, left.q), may)
		left.tree = &Binary{At(left.column), op, left.tree, right.tree}
		left.q = right.q
	}
	return left
}

// phrase reads one of a sequence. q are the words that a value takes.
func (p *parser) phrase(may allowed, q qualifiers) phrase {
	column := p.tok.column
	switch {
	case p.tok.class == notTok:
		return p.not(may, q)
	case p.tok.class == openTok:
		return p.relation(p.parenthesis(may, q), may)
	case p.tok.class == numberTok:
		t := p.advance()
		if may == values {
			p.isWhole(t, q)
		}
		return p.relation(phrase{form: numberForm, column: column, num: &Constant{ArithAt(column), t.n}, text: t.text, q: q}, may)
	case may&values != 0 && q.takes(p.tok.class):
		return phrase{form: valueForm, column: column, tree: p.match(q), q: q}
	case may&terms != 0:
		return p.term()
	}
	p.noValue(q)
	return phrase{}
}

// noValue fails: there is no value behind its words, but maybe a name that is a keyword.
func (p *parser) noValue(q qualifiers) {
	if t := p.tok; t.class >= andTok && t.class != foreignTok && isAlnum(t.text[0]) && !q.isPID() {
		p.fail(t.column, fmt.Sprintf("want %s, not the keyword %q", q.want(), t.text), q.want()+` or \`+t.text)
	}
	p.unexpected(q.want())
}

func (p *parser) not(may allowed, q qualifiers) phrase {
	column := p.advance().column
	p.enter()
	defer p.leave()
	x := p.settle(p.phrase(may, q), may)
	x.column, x.tree, x.list = column, &Not{At(column), x.tree}, false
	return x
}

// parenthesis reads what is in parentheses. For what stands behind it, it is as if the
// words in it had not been there.
func (p *parser) parenthesis(may allowed, q qualifiers) phrase {
	column := p.advance().column
	p.enter()
	defer p.leave()
	x := p.sequence(may, q)
	p.close(column)
	p.notBracketed(x, column)
	x.column, x.q, x.list = column, q, x.form == valueForm
	return x
}

func (p *parser) close(open int) {
	if p.tok.class == endTok {
		p.fail(p.tok.column, fmt.Sprintf("the parenthesis of column %d is not closed", open), ")")
	}
	p.need(closeTok, `"and", "or" or ")"`)
}

// relation goes on with a phrase that may be the beginning of arithmetic.
func (p *parser) relation(x phrase, may allowed) phrase {
	if x.num == nil || may&terms == 0 {
		return x
	}
	if p.tok.class == opTok {
		x.num, x.form = p.operations(x.num, 0), arithForm
	}
	if p.tok.class != relTok {
		return x
	}
	op := RelOp(p.advance().val)
	tree := &Relation{At(x.column), op, x.num, p.arithmetic()}
	return phrase{form: termForm, column: x.column, tree: tree}
}

// settle says that nothing more comes which could make a number or arithmetic something else.
func (p *parser) settle(x phrase, may allowed) phrase {
	switch {
	case x.form == arithForm:
		p.unexpected(`a comparison: =, !=, >, <, >= or <=`)
	case x.form != numberForm:
		return x
	case may&values == 0:
		p.settleBare(x)
	}
	if x.q.kind == Net && p.slash() {
		p.fail(p.tok.column, "a prefix length stands behind an address of two parts at least, such as 10.0.0.0/8", "")
	}
	return phrase{form: valueForm, column: x.column, tree: p.numberOf(x), q: x.q}
}

// numberOf is what a number is behind its words.
func (p *parser) numberOf(x phrase) Expr {
	n, column := x.num.(*Constant).N, x.num.Column()
	switch {
	case !x.q.own:
		return p.matchOf(column, x.q, Number(n))
	case x.q.hasText():
		return ownerOf(column, x.q, 0, x.text)
	}
	return ownerOf(column, x.q, n, "")
}

// settleBare fails: a number has nothing before it that says what it is.
func (p *parser) settleBare(x phrase) {
	if p.tok.class == badTok {
		p.unexpected("")
	}
	p.fail(x.column, fmt.Sprintf("the number %v wants a word before it, such as port, or a comparison behind it", x.num), fmt.Sprintf("port %v", x.num))
}

// term reads a term that does not begin with a parenthesis, a number or "not".
func (p *parser) term() phrase {
	t := p.tok
	switch t.class {
	case protoTok:
		p.advance()
		return p.qualified(t.column, Proto(t.val))
	case dirTok, kindTok, aloneKindTok, castTok:
		return p.qualified(t.column, Any)
	case ownerTok:
		return p.owner()
	case opTok, lenTok:
		x := phrase{form: arithForm, column: t.column, num: p.operand()}
		return p.relation(x, terms)
	}
	if tree := p.special(); tree != nil {
		return phrase{form: termForm, column: t.column, tree: tree}
	}
	if isValue(t.class) {
		p.bareName(t)
	}
	p.unexpected("a word of a filter, such as host, port or tcp")
	return phrase{}
}

// bareName fails: a value has no words before it that say what it is.
func (p *parser) bareName(t token) {
	small := strings.ToLower(t.text)
	if _, ok := keywords[small]; ok && t.class == nameTok && p.text[t.column-1] != '\\' {
		p.fail(t.column, fmt.Sprintf("the words of a filter have small letters: want %s, not %s", small, t.text), small)
	}
	p.known(t.column, qualifiers{}, t.text)
}

// qualified reads what stands behind a protocol, or may stand there without one.
func (p *parser) qualified(column int, proto Proto) phrase {
	q := qualifiers{known: true, proto: proto}
	switch p.tok.class {
	case openIndexTok:
		x := phrase{form: arithForm, column: column, num: p.load(column, proto)}
		return p.relation(x, terms)
	case castTok:
		tree := &Cast{At(column), proto, p.advance().val == 1}
		return phrase{form: termForm, column: column, tree: tree}
	case aloneKindTok:
		q.kind = Kind(p.advance().val)
	case dirTok, kindTok:
		q.dir = p.dir()
		if t, ok := p.take(kindTok); ok {
			q.kind = Kind(t.val)
		}
	case foreignTok:
		p.unexpected("")
	default:
		return phrase{form: termForm, column: column, tree: &Protocol{At(column), proto}}
	}
	x := p.settle(p.phrase(values, q), values)
	if m, ok := x.tree.(*Match); ok {
		m.At = At(column)
	}
	return phrase{form: termForm, column: column, tree: x.tree, q: q}
}

// dir reads src, dst, and both with "or" or "and" between them.
func (p *parser) dir() Dir {
	t, ok := p.take(dirTok)
	if !ok {
		return AnyDir
	}
	both := SrcOrDst
	switch p.tok.class {
	case andTok:
		both = SrcAndDst
	case orTok:
	default:
		return Dir(t.val)
	}
	p.advance()
	other := Src + Dst - Dir(t.val)
	if p.tok.class != dirTok || Dir(p.tok.val) != other {
		p.unexpected(`"` + dirNames[other] + `"`)
	}
	p.advance()
	return both
}

// want is what the words in front of a value ask for.
func (q qualifiers) want() string {
	if q.own {
		return ownerWants[q.field]
	}
	switch q.kind {
	case Net:
		return "a network's address or name"
	case Port:
		return "a port or a service name"
	case PortRange:
		return "a range of ports such as 6000-6008"
	case ProtoNumber, ProtoChain:
		return "a protocol's number or name"
	case Gateway:
		return "a host name"
	}
	if q.proto == Link {
		return "a hardware address or a host name"
	}
	return "an address or a host name"
}

// special reads a term that is none of a value; nil: there is none.
func (p *parser) special() Expr {
	t := p.tok
	at := At(t.column)
	switch t.class {
	case lengthTok:
		p.advance()
		return &Length{at, t.val == 1, p.number("a length in bytes")}
	case byteTok:
		return p.byte()
	case directionTok:
		p.advance()
		return &Direction{at, t.val == 1}
	case ifindexTok:
		p.advance()
		return &Interface{at, p.number("the number of an interface")}
	case encapTok:
		return p.encap()
	case llcTok:
		return p.llc()
	case fragmentsTok:
		p.advance()
		return &Fragments{at}
	}
	return nil
}

func (p *parser) number(want string) uint32 { return p.need(numberTok, want).n }

// byte reads "byte OFFSET OP N".
func (p *parser) byte() Expr {
	at := At(p.advance().column)
	offset := p.number("an offset in the frame")
	op, ok := byteOps[[2]uint8{uint8(p.tok.class), p.tok.val}]
	if !ok {
		p.unexpected("=, <, >, & or |")
	}
	p.advance()
	return &Byte{at, offset, op, p.number("the number of a byte")}
}

// byteOps are the operations by class and value of their tokens.
var byteOps = map[[2]uint8]ByteOp{
	{uint8(relTok), uint8(Equal)}: ByteEqual, {uint8(relTok), uint8(Less)}: ByteLess, {uint8(relTok), uint8(Greater)}: ByteGreater,
	{uint8(opTok), uint8(BitAnd)}: ByteAnd, {uint8(opTok), uint8(BitOr)}: ByteOr,
}

// encap reads a header that may have a number; this may be in parentheses.
func (p *parser) encap() Expr {
	t := p.advance()
	e := &Encap{At: At(t.column), Kind: EncapKind(t.val)}
	if e.Kind != PPPoED && (p.tok.class == numberTok || p.tok.class == openTok) {
		id := p.bracketed(t.text + "'s number")
		e.HasID, e.ID, e.ValueAt = true, id.n, At(id.column)
	}
	return e
}

// bracketed reads a number that may be in parentheses.
func (p *parser) bracketed(want string) token {
	open, ok := p.take(openTok)
	if !ok {
		return p.need(numberTok, want)
	}
	p.enter()
	defer p.leave()
	n := p.bracketed(want)
	p.close(open.column)
	return n
}

// llc reads "llc" and "llc TYPE". A type is no matter of case.
func (p *parser) llc() Expr {
	e := &LLC{At: At(p.advance().column)}
	switch p.tok.class {
	case foreignRNRTok:
		p.advance()
		e.Type = "rnr"
	case nameTok:
		e.Type = strings.ToLower(p.tok.text)
		if !llcTypes[e.Type] {
			p.unexpected("a type of LLC frame: i, s, u, rr, rnr, rej, ui, ua, disc, dm, sabme, test, xid or frmr")
		}
		p.advance()
	}
	return e
}
