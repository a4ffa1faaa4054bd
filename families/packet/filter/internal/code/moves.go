package code

import "math"

// move is one or two instructions as Run takes them. Most that programs do is to load and
// compare: that at once takes half the time of one after the other.
//
// Each comparison is one of a range, so that there is nothing to choose between them:
//
//	A == k    A - k <= 0
//	A >= k    A - k <= max - k
//	A > k     A - (k+1) <= max - (k+1)
//	A & k     (A & k) - 1 <= max - 1
type move struct {
	at               uint32 // what is loaded first
	mask, low, width uint32 // then it goes on at yes, if (A & mask) - low <= width
	yes, no          uint16
	do               uint8

	// Of other: the instruction, and what it compares or computes with k.
	compare Compare
	compute Op
	op      uint16
	k       uint32
}

// What a move does first. The loads are of the data at the offset at, some at X and that.
const (
	nothing uint8 = iota
	byteToA
	halfToA
	wordToA
	headerToX
	byteToAX
	halfToAX
	wordToAX
	end   // the program ends here, and takes the packet when yes is 1
	other // whatever else there is: machine.do
)

var loads = map[uint16]uint8{
	opLoadByte: byteToA, opLoadHalf: halfToA, opLoadWord: wordToA, opLoadXHeader: headerToX,
	opLoadByteX: byteToAX, opLoadHalfX: halfToAX, opLoadWordX: wordToAX,
}

var (
	comparesBy = invert[Compare](jumpOf[:])
	computesBy = invert[Op](aluOf[:])
)

// invert tells what stands for an instruction.
func invert[T ~uint8](ops []uint16) map[uint16]T {
	out := make(map[uint16]T, 2*len(ops))
	for what, op := range ops {
		if op != 0 {
			out[op], out[op+byX] = T(what), T(what)
		}
	}
	return out
}

// prepare makes the moves of the code. There is one for each instruction, so that
// places stay the same: the second of two that are one move has a move that nothing leads to, unless
// a jump does.
func (p *Program) prepare() {
	p.moves, p.simple = make([]move, len(p.code)), true
	for i := range p.code {
		p.moves[i] = p.move(i)
		p.simple = p.simple && p.moves[i].do != other
	}
}

func (p *Program) move(i int) move {
	c := p.code[i]
	load, ok := loads[c.op]
	if !ok {
		return c.move(i)
	}
	m := move{yes: uint16(i + 1)}
	if next := p.code[i+1].move(i + 1); next.do == nothing {
		m = next
	}
	m.do, m.at = load, c.k
	return m
}

// move is that of one instruction, not a load, at a place.
func (c insn) move(i int) move {
	m := move{yes: uint16(i + 1), no: uint16(i + 1), do: other, op: c.op, k: c.k, compare: comparesBy[c.op], compute: computesBy[c.op]}
	if c.conditional() {
		m.yes, m.no = uint16(i+1+int(c.jt)), uint16(i+1+int(c.jf))
	}
	switch c.op {
	case opJump:
		m.yes = uint16(i + 1 + int(int32(c.k)))
	case opReturn:
		m.do, m.yes = end, uint16(min(c.k, 1))
	case opJumpEqual:
		m.inRange(math.MaxUint32, c.k, c.k)
	case opJumpAnyBitSet:
		m.inRange(c.k, 1, math.MaxUint32)
	case opJumpAtLeast:
		m.inRange(math.MaxUint32, c.k, math.MaxUint32)
	case opJumpGreater:
		if c.k == math.MaxUint32 { // nothing is greater
			m.do, m.yes = nothing, m.no
			break
		}
		m.inRange(math.MaxUint32, c.k+1, math.MaxUint32)
	}
	return m
}

// inRange lets a move ask whether A & mask is from low to high.
func (m *move) inRange(mask, low, high uint32) {
	m.do, m.mask, m.low, m.width = nothing, mask, low, high-low
}
