package code

// move is one or two instructions as Run takes them. Most that programs do is to load and
// compare: that at once takes half the time of one after the other.
type move struct {
	load    uint8  // what is done with the data first: size bytes at the offset at
	size    uint8  // 0: nothing is loaded
	indexed bool   // X is added to at
	then    uint8  // what follows, with k
	yes, no uint16 // where it goes on; at yes, where there is no choice
	at, k   uint32

	// Of other: the instruction, and what it compares or computes.
	op      uint16
	compare Compare
	compute Op
}

// The loads of a move.
const (
	byteToA uint8 = iota
	halfToA
	wordToA
	headerToX
)

// What follows.
const (
	goOn uint8 = iota
	isEqual
	isAnyBitSet
	isGreater
	isAtLeast
	end
	other // whatever else there is: machine.do
)

var loads = map[uint16]uint8{
	opLoadByte: byteToA, opLoadHalf: halfToA, opLoadWord: wordToA, opLoadXHeader: headerToX,
	opLoadByteX: byteToA, opLoadHalfX: halfToA, opLoadWordX: wordToA,
}

var follows = map[uint16]uint8{
	opJumpEqual: isEqual, opJumpAnyBitSet: isAnyBitSet, opJumpGreater: isGreater, opJumpAtLeast: isAtLeast, opReturn: end,
}

var comparesBy = invert(jumpOf)

var computesBy = invert(aluOf)

// invert tells what stands for an instruction.
func invert[T comparable](m map[T]uint16) map[uint16]T {
	out := make(map[uint16]T, 2*len(m))
	for what, op := range m {
		out[op], out[op+byX] = what, what
	}
	return out
}

// prepare makes the moves of the code. There is one for each instruction, so that
// places stay the same: the second of two that are one move has a move that nothing leads to, unless
// a jump does.
func (p *Program) prepare() {
	p.moves = make([]move, len(p.code))
	for i := range p.code {
		p.moves[i] = p.move(i)
	}
}

func (p *Program) move(i int) move {
	m := move{op: opJump}
	c := p.code[i]
	if load, ok := loads[c.op]; ok {
		n, indexed := c.loadSize()
		m.load, m.size, m.indexed, m.at = load, uint8(n), indexed, c.k
		next := p.code[i+1]
		if _, ok := follows[next.op]; !ok {
			m.yes = uint16(i + 1)
			return m
		}
		i, c = i+1, next
	}
	m.yes, m.no, m.k, m.op = uint16(i+1), uint16(i+1), c.k, c.op
	if c.conditional() {
		m.yes, m.no = uint16(i+1+int(c.jt)), uint16(i+1+int(c.jf))
	}
	if c.op == opJump {
		m.yes = uint16(i + 1 + int(int32(c.k)))
	}
	then, ok := follows[c.op]
	if !ok {
		then = other
		m.compare, m.compute = comparesBy[c.op], computesBy[c.op]
	}
	m.then = then
	return m
}
