package filter

import (
	"io"

	"github.com/sockd/sockd/families/packet/filter/internal/code"
	"github.com/sockd/sockd/families/packet/filter/syntax"
)

// String is the filter's text, without the blanks around it. A nil Program's is empty.
func (p *Program) String() string {
	if p == nil {
		return ""
	}
	return p.text
}

// Tree is what the text says, nil for one that takes every frame.
func (p *Program) Tree() syntax.Expr {
	if p == nil {
		return nil
	}
	return p.tree
}

// Match tells whether the filter takes a frame of which length bytes were on the wire. As in the
// kernel, a filter that looks beyond the end of data rejects the frame, also below a "not".
// Nothing more is known of the frame: no direction, no interface, no owner. A nil Program takes
// every frame.
func (p *Program) Match(data []byte, length int) bool {
	return p == nil || p.code.Run(data, uint32(length), nil)
}

// MatchPacket is Match with all that is known of the packet. It does not keep it.
func (p *Program) MatchPacket(k *Packet) bool {
	if p == nil {
		return true
	}
	m := code.Metadata{Interface: k.Interface, Direction: directions[k.Direction&3], Owner: k.Owner}
	return p.code.Run(k.Data, uint32(k.Length), &m)
}

var directions = [4]uint32{Unknown: code.DirectionUnknown, In: code.DirectionIn, Out: code.DirectionOut}

// Len is how many instructions the program has.
func (p *Program) Len() int { return p.orAll().Len() }

// Style says how List prints.
type Style = code.Style

// The styles.
const (
	ListText    = code.Text    // a line an instruction, for people, as tcpdump -d
	ListC       = code.C       // a fragment of C, as tcpdump -dd
	ListDecimal = code.Decimal // decimal numbers, behind their count, as tcpdump -ddd
)

// List prints the program in tcpdump's form. Where classic BPF has no such instruction it
// says so; see docs/filter.md.
func (p *Program) List(w io.Writer, s Style) error { return p.orAll().List(w, s) }

// orAll is the code, that of a nil Program the one that takes every frame.
func (p *Program) orAll() *code.Program {
	if p == nil {
		return everything
	}
	return p.code
}

var everything = takeAll()

func takeAll() *code.Program {
	b := code.NewBuilder()
	p, err := b.Assemble(b.Accept(), false)
	if err != nil {
		panic(err) // it is one instruction
	}
	return p
}
