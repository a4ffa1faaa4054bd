package filter

import (
	"github.com/sockd/sockd/families/packet/filter/internal/code"
	"github.com/sockd/sockd/families/packet/filter/syntax"
)

// Fragments tells whether the filter has the word "fragments": it means the rest of the
// datagrams, too, whose first fragment it takes. The program judges each packet by itself
// nevertheless; see Follower.
func (p *Program) Fragments() bool {
	return p != nil && followed(p.tree)
}

// followed tells whether "fragments" is one of the parts that "and" combines to the whole.
func followed(e syntax.Expr) bool {
	switch e := e.(type) {
	case *syntax.Fragments:
		return true
	case *syntax.Binary:
		return e.Op == syntax.And && (followed(e.X) || followed(e.Y))
	}
	return false
}

// checkFragments fails for a "fragments" that is not and-ed to all the rest: of half a
// filter nobody could tell which datagrams it takes.
func (l *lowerer) checkFragments(e syntax.Expr, whole bool) {
	switch e := e.(type) {
	case *syntax.Binary:
		whole = whole && e.Op == syntax.And
		l.checkFragments(e.X, whole)
		l.checkFragments(e.Y, whole)
	case *syntax.Not:
		l.checkFragments(e.X, false)
	case *syntax.Fragments:
		if !whole {
			l.fail(e.Column(), "fragments is a word about the whole filter, and cannot stand below or, or not", "(EXPRESSION) and fragments")
		}
	}
}

// mostTags is how many VLAN tags fragments are looked for behind.
const mostTags = 2

// fragmentProgram takes each fragment. The kernel is to let these pass beside what a program with
// Fragments takes, so that a Follower sees them: the first of a datagram, too, by
// which it learns of the others that they are not wanted.
//
// Where IPv6 has other extension headers first, it does not look behind them.
func fragmentProgram(link LinkType) (*code.Program, error) {
	l := &lowerer{b: code.NewBuilder(), link: link}
	return l.b.Assemble(l.orFragment(l.start(), mostTags, l.b.Reject()), false)
}

// orFragment takes fragments, behind so many VLAN tags and less; all else goes on at no.
func (l *lowerer) orFragment(at place, tags int, no *code.Node) *code.Node {
	if at.framing == etherFraming && tags > 0 {
		for _, w := range l.vlan(&syntax.Encap{Kind: syntax.VLAN}, at) {
			no = w.when(l.orFragment(w.then, tags-1, no), no)
		}
	}
	next := func(number uint32) cond { return l.compare(code.Equal, l.load(at.body, 6, 1), number) }
	part := all(l.protocol(at, etherIP), l.compare(code.Set, l.load(at.body, 6, 2), moreFragments|0x1fff))
	extended := oneOf(next(ipFragment), next(ipHopByHop), next(ipRouting), next(ipDestination))
	return oneOf(part, all(l.protocol(at, etherIP6), extended))(l.b.Accept(), no)
}

// moreFragments is a bit of IPv4's flags and fragment offset (RFC 791).
const moreFragments = 0x2000

// The IPv6 extension headers that can stand before that of a fragment (RFC 8200 §4.5).
const (
	ipHopByHop    = 0
	ipRouting     = 43
	ipDestination = 60
)
