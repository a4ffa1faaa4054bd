package filter

import (
	"github.com/sockd/sockd/families/packet/filter/internal/code"
	"github.com/sockd/sockd/families/packet/filter/syntax"
)

// lowerer turns a tree into a graph. It goes from the ends to the beginning, so what comes
// behind a part is built first, by a way out that it is given: the headers that a
// part takes off (vlan, mpls, ...) are known there, and nowhere else.
type lowerer struct {
	b    *code.Builder
	link LinkType
	text string
	Options
	// textual has the place of each part of a tree where Options.Textual is set.
	textual map[syntax.Expr]place
	// column is that of the word being lowered, words how many have been.
	column, words int
}

// maxWords bounds how often words are lowered: one with several ways is followed by all
// that is and-ed to it once for each of them.
const maxWords = 1 << 15

// cond is a test, or several, without the places it leads to.
type cond func(yes, no *code.Node) *code.Node

// way is one of the ways that an expression can be true, and where the headers stand then.
type way struct {
	when cond
	then place
}

// offset is a place in the frame: k bytes behind what base computes, or behind the
// beginning when base is nil.
type offset struct {
	base *code.Value
	k    uint32
}

// place tells where the headers stand that words look at. Places are compared with ==.
type place struct {
	framing framing
	head    offset // the link layer's header, which ether[0] is of
	kind    offset // the field that tells the protocol
	body    offset // behind the link layer's header: what follows a type field, or an LLC header
	labels  int    // MPLS labels so far; body is behind them, and begins with the only sign of its protocol
	tags    int    // VLAN tags so far
}

// framing is how the link layer tells the protocol that it holds.
type framing uint8

const (
	etherFraming framing = iota
	sllFraming           // LINUX_SLL, a protocol of 2 bytes
	sll2Framing          // LINUX_SLL2
	rawFraming           // the IP version alone
	ip4Framing
	ip6Framing
	nullFraming
	loopFraming
	pppFraming    // behind PPPoE
	geneveFraming // an EtherType without Ethernet
)

func all(cs ...cond) cond {
	return func(yes, no *code.Node) *code.Node {
		for i := len(cs) - 1; i >= 0; i-- {
			yes = cs[i](yes, no)
		}
		return yes
	}
}

func oneOf(cs ...cond) cond {
	return func(yes, no *code.Node) *code.Node {
		for i := len(cs) - 1; i >= 0; i-- {
			no = cs[i](yes, no)
		}
		return no
	}
}

func never(yes, no *code.Node) *code.Node  { return no }
func always(yes, no *code.Node) *code.Node { return yes }

func not(c cond) cond {
	return func(yes, no *code.Node) *code.Node { return c(no, yes) }
}

// compare is x op k.
func (l *lowerer) compare(op code.Compare, x *code.Value, k uint32) cond {
	return func(yes, no *code.Node) *code.Node { return l.b.Test(op, x, l.b.Const(k), yes, no) }
}

// load reads size bytes at an offset and more behind it.
func (l *lowerer) load(at offset, more uint32, size int) *code.Value {
	return l.b.Load(at.base, at.k+more, size)
}

// expr lowers e at a place. then builds what follows where e is true; it is called once for each
// place that e can lead to. no is where e is false.
func (l *lowerer) expr(e syntax.Expr, at place, then func(place) *code.Node, no *code.Node) *code.Node {
	switch e := e.(type) {
	case *syntax.Binary:
		then := once(then)
		if e.Op == syntax.Or {
			return l.expr(e.X, at, then, l.expr(e.Y, at, then, no))
		}
		return l.expr(e.X, at, func(inner place) *code.Node { return l.expr(e.Y, inner, then, no) }, no)
	case *syntax.Not:
		return l.expr(e.X, at, func(place) *code.Node { return no }, then(at))
	}
	if p, ok := l.textual[e]; ok {
		at = p
	}
	ways := l.word(e, at)
	for i := len(ways) - 1; i >= 0; i-- {
		no = ways[i].when(then(ways[i].then), no)
	}
	return no
}

// once remembers what a function gave for a place.
func once(f func(place) *code.Node) func(place) *code.Node {
	known := map[place]*code.Node{}
	return func(p place) *code.Node {
		n, ok := known[p]
		if !ok {
			n = f(p)
			known[p] = n
		}
		return n
	}
}

// word lowers a primitive: what it tests, and where it leads.
func (l *lowerer) word(e syntax.Expr, at place) []way {
	l.column = e.Column()
	if l.words++; l.words > maxWords {
		l.fail(l.column, "too many words up to here, or ways that they can be true", "")
	}
	switch e := e.(type) {
	case *syntax.Encap:
		return l.encap(e, at)
	}
	return []way{{l.plain(e, at), at}}
}

// bailout carries an error out of the recursion to Compile, which recovers it.
type bailout struct{ err *Error }

// fail ends the compilation with an error at a column.
func (l *lowerer) fail(column int, why, expected string) {
	panic(bailout{&Error{Text: l.text, Column: column, Why: why, Expected: expected}})
}
