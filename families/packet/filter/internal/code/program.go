package code

import "errors"

// maxCode bounds a program: a packet is not worth more steps. Jumps of insn reach as far.
const maxCode = 1 << 14

// ErrTooLong is of a graph whose program is longer than a packet should have to run through.
var ErrTooLong = errors.New("filter: the program is too long")

// ErrTooDeep is of arithmetic that is nested deeper than the scratch memory is large.
var ErrTooDeep = errors.New("filter: the arithmetic is nested too deeply")

// Program judges packets. It is immutable; its methods may be called from any goroutine.
type Program struct {
	code   []insn
	owners []ownerTest
	moves  []move // code, as Run takes it
	simple bool   // no move is another one
}

// ownerTest is what an opOwner asks.
type ownerTest struct {
	field OwnerField
	n     uint32
	text  string
}

// Assemble writes the program that begins at root, a node of b. With plain it does without the
// optimiser. The error is ErrTooLong or ErrTooDeep.
func (b *Builder) Assemble(root *Node, plain bool) (*Program, error) {
	if b.full {
		return nil, ErrTooLong
	}
	if !plain {
		if root = b.optimise(root); b.full {
			return nil, ErrTooLong
		}
	}
	p, err := b.emit(root)
	if err != nil {
		return nil, err
	}
	p.prepare()
	return p, nil
}

// Len is how many instructions the program has.
func (p *Program) Len() int { return len(p.code) }

// Constant tells what the program says of each packet, whatever is in it, if that is known.
func (p *Program) Constant() (accepts, known bool) {
	return p.code[0].k != 0, p.code[0].op == opReturn
}
