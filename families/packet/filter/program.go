package filter

import "encoding/binary"

// insn is an instruction of classic BPF (linux/filter.h), with jumps that reach
// further than its 255.
type insn struct {
	op     uint16
	jt, jf uint16
	k      uint32
}

// The instructions that are generated, by their numbers of classic BPF. X is only
// ever loaded with the length of an IPv4 header.
const (
	opLoadWord      = 0x20 // A = 4 bytes at k
	opLoadHalf      = 0x28 // A = 2 bytes at k
	opLoadByte      = 0x30 // A = the byte at k
	opLoadHalfX     = 0x48 // A = 2 bytes at X + k
	opLoadLen       = 0x80 // A = the frame's length
	opLoadXHeader   = 0xb1 // X = 4 * (the byte at k & 15)
	opAnd           = 0x54 // A &= k
	opJumpEqual     = 0x15
	opJumpGreater   = 0x25
	opJumpAtLeast   = 0x35
	opJumpAnyBitSet = 0x45
	opReturn        = 0x06
)

// run executes a generated program. All its jumps lead forward, so it ends.
func run(code []insn, data []byte, length uint32) bool {
	var a, x uint32
	for pc := 0; ; pc++ {
		i := &code[pc]
		taken := false
		switch i.op {
		case opLoadWord:
			if uint64(i.k)+4 > uint64(len(data)) {
				return false
			}
			a = binary.BigEndian.Uint32(data[i.k:])
			continue
		case opLoadHalf, opLoadHalfX:
			at := uint64(i.k)
			if i.op == opLoadHalfX {
				at += uint64(x)
			}
			if at+2 > uint64(len(data)) {
				return false
			}
			a = uint32(binary.BigEndian.Uint16(data[at:]))
			continue
		case opLoadByte, opLoadXHeader:
			if uint64(i.k) >= uint64(len(data)) {
				return false
			}
			if i.op == opLoadByte {
				a = uint32(data[i.k])
			} else {
				x = 4 * uint32(data[i.k]&15)
			}
			continue
		case opLoadLen:
			a = length
			continue
		case opAnd:
			a &= i.k
			continue
		case opJumpEqual:
			taken = a == i.k
		case opJumpGreater:
			taken = a > i.k
		case opJumpAtLeast:
			taken = a >= i.k
		case opJumpAnyBitSet:
			taken = a&i.k != 0
		default: // opReturn
			return i.k != 0
		}
		if taken {
			pc += int(i.jt)
		} else {
			pc += int(i.jf)
		}
	}
}

// node is a part of an expression: a test, or a combination of nodes.
type node interface {
	// emit writes the node's code in front of what is there, leading to the
	// places yes and no, and tells the node's own place.
	emit(g *generator, yes, no int) int
}

// generator writes a program from its end to its beginning: then the places that
// a jump leads to are known when it is written. A place counts instructions from
// the end, and code[i] is place i.
type generator struct{ code []insn }

func generate(n node) []insn {
	g := &generator{}
	no := g.put(insn{op: opReturn, k: 0})
	yes := g.put(insn{op: opReturn, k: accept})
	if first := n.emit(g, yes, no); first != len(g.code)-1 {
		g.jump(opJumpEqual, 0, first, first) // a part that is constant has no code to begin at
	}
	for i, j := 0, len(g.code)-1; i < j; i, j = i+1, j-1 {
		g.code[i], g.code[j] = g.code[j], g.code[i]
	}
	return g.code
}

// put writes an instruction and tells its place.
func (g *generator) put(i insn) int {
	g.code = append(g.code, i)
	return len(g.code) - 1
}

// jump writes a conditional jump.
func (g *generator) jump(op uint16, k uint32, yes, no int) int {
	here := len(g.code)
	return g.put(insn{op: op, k: k, jt: uint16(here - yes - 1), jf: uint16(here - no - 1)})
}

type (
	both   struct{ a, b node } // a and b
	either struct{ a, b node } // a or b
	invert struct{ a node }
	always struct{}
	// compare loads something and compares it.
	compare struct {
		load uint16
		at   uint32
		mask uint32 // 0: none
		op   uint16
		k    uint32
		// ipHeader is where the IPv4 header stands whose length X takes first, for
		// a load of opLoadHalfX.
		ipHeader uint32
	}
)

func (n both) emit(g *generator, yes, no int) int {
	return n.a.emit(g, n.b.emit(g, yes, no), no)
}

func (n either) emit(g *generator, yes, no int) int {
	return n.a.emit(g, yes, n.b.emit(g, yes, no))
}

func (n invert) emit(g *generator, yes, no int) int { return n.a.emit(g, no, yes) }

func (always) emit(_ *generator, yes, _ int) int { return yes }

func (n compare) emit(g *generator, yes, no int) int {
	g.jump(n.op, n.k, yes, no)
	if n.mask != 0 {
		g.put(insn{op: opAnd, k: n.mask})
	}
	here := g.put(insn{op: n.load, k: n.at})
	if n.load == opLoadHalfX {
		here = g.put(insn{op: opLoadXHeader, k: n.ipHeader})
	}
	return here
}
