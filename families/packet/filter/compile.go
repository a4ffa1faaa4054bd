package filter

import (
	"errors"
	"sort"
	"strings"

	"github.com/sockd/sockd/families/packet/filter/internal/code"
	"github.com/sockd/sockd/families/packet/filter/syntax"
)

// Compile reads a filter for frames of a link type. An empty text takes every frame. Errors are
// *Error, with the column.
func Compile(text string, link LinkType) (*Program, error) {
	return Options{}.Compile(text, link)
}

// Compile reads a filter for frames of a link type, as the options say. Errors are *Error,
// with the column; also of a filter that no packet can pass, as "ip and arp".
func (o Options) Compile(text string, link LinkType) (*Program, error) {
	tree, err := syntax.Parse(text, syntax.Options{Fragments: o.Fragments, Owners: o.Owners})
	if err != nil {
		return nil, err
	}
	o.Names = o.Names.orDefault()
	c := &compiler{Options: o, text: text, link: link, tree: tree}
	program, err := c.program(tree)
	if err != nil {
		return nil, err
	}
	if accepts, known := program.Constant(); known && !accepts && !o.Plain {
		return nil, c.contradiction()
	}
	return &Program{text: strings.TrimSpace(text), link: link, tree: tree, code: program}, nil
}

// compiler is one call of Compile.
type compiler struct {
	Options
	text string
	link LinkType
	tree syntax.Expr
}

// program compiles a part of the tree, as if it were all; nil takes all.
func (c *compiler) program(part syntax.Expr) (p *code.Program, err error) {
	defer func() {
		if r := recover(); r != nil {
			b, ok := r.(bailout)
			if !ok {
				panic(r)
			}
			p, err = nil, b.err
		}
	}()
	l := &lowerer{b: code.NewBuilder(), link: c.link, text: c.text, Options: c.Options}
	p, err = l.b.Assemble(l.graph(c.tree, part), c.Plain)
	switch {
	case errors.Is(err, code.ErrTooLong):
		l.fail(1, "compiles to more instructions than a packet should have to run through", "net CIDR and portrange A-B, which say much in little")
	case err != nil:
		l.fail(1, err.Error(), "")
	}
	return p, nil
}

// graph lowers a part of a tree to the test that all begins with.
func (l *lowerer) graph(tree, part syntax.Expr) *code.Node {
	accept := func(place) *code.Node { return l.b.Accept() }
	at := l.start()
	if part == nil {
		return accept(at)
	}
	l.checkFragments(tree, true)
	if l.Textual {
		l.textual = map[syntax.Expr]place{}
		l.places(tree, at)
	}
	return l.expr(part, at, accept, l.b.Reject())
}

// places finds the place of each primitive as the text has them, for Options.Textual: where
// the header that was named last leads to, whether it is or-ed, or below a "not". ok is
// false behind a word that leads to several places, as geneve does. libpcap computes there
// what holds when the program runs; we leave it to the scope of "and".
func (l *lowerer) places(e syntax.Expr, at place) (then place, ok bool) {
	switch e := e.(type) {
	case *syntax.Binary:
		if at, ok = l.places(e.X, at); !ok {
			return at, false
		}
		return l.places(e.Y, at)
	case *syntax.Not:
		return l.places(e.X, at)
	}
	l.textual[e] = at
	ways := l.word(e, at)
	return ways[0].then, len(ways) == 1
}

// contradiction is the error of a tree that no packet can pass, at the word that makes
// it so.
func (c *compiler) contradiction() *Error {
	e := &Error{Text: c.text, Column: c.culprit(c.tree), Why: "this rejects all packets"}
	if e.Column != c.tree.Column() {
		e.Why = "this contradicts what is before it: the filter rejects all packets"
	}
	return e
}

// culprit is the column of what makes a tree reject all.
func (c *compiler) culprit(e syntax.Expr) int {
	b, ok := e.(*syntax.Binary)
	switch {
	case !ok:
		return e.Column()
	case b.Op == syntax.Or:
		return c.culprit(b.X) // both sides reject all: the first shows why
	}
	var whole []*syntax.Binary // the last first: "a and b and c", "a and b"
	for ok && b.Op == syntax.And {
		whole = append(whole, b)
		e = b.X
		b, ok = e.(*syntax.Binary)
	}
	// What a part leaves nothing of, those behind it do not bring back.
	n := sort.Search(len(whole), func(i int) bool { return !c.rejectsAll(whole[i]) })
	switch {
	case n == len(whole) && c.rejectsAll(e):
		return c.culprit(e)
	case n == 0:
		return e.Column()
	}
	return c.within(whole[n-1].Y)
}

// within is the column of a part that leaves nothing of those before it, or of what in it would
// leave nothing alone.
func (c *compiler) within(part syntax.Expr) int {
	if c.rejectsAll(part) {
		return c.culprit(part)
	}
	return part.Column()
}

// rejectsAll tells whether a part of the tree would alone.
func (c *compiler) rejectsAll(part syntax.Expr) bool {
	p, err := c.program(part)
	if err != nil {
		return false
	}
	accepts, known := p.Constant()
	return known && !accepts
}
