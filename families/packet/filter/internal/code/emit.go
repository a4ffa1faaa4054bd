package code

import (
	"slices"
)

// memory is how many words of scratch memory there are: BPF_MEMWORDS.
const memory = 16

// state is which values are in the registers and in the scratch memory: nil where it is not
// known.
type state struct {
	a, x *Value
	m    [memory]*Value
}

// meet is what both states agree in.
func (s *state) meet(t *state) {
	if s.a != t.a {
		s.a = nil
	}
	if s.x != t.x {
		s.x = nil
	}
	for i := range s.m {
		if s.m[i] != t.m[i] {
			s.m[i] = nil
		}
	}
}

// emitter writes the blocks of nodes, each before those that it leads to. At the start of a block
// it knows what every way there leaves in the registers, for they have all been written.
type emitter struct {
	Program // code is that of all blocks so far
	state
	depth int // how many words of the scratch memory are in use
	err   error
	order order[*Node]
	entry []entry // of each node, by its place
}

// entry is what is known at the start of a block.
type entry struct {
	state
	reached bool // by a block that is written
}

func (b *Builder) emit(root *Node) (*Program, error) {
	e := &emitter{order: inOrder(root, b.nodes.n)}
	nodes := e.order.all
	e.entry = make([]entry, len(nodes))
	e.code = make([]insn, 0, 2*len(nodes))
	until := make([]int, len(nodes)) // where the code of each ends
	for i, n := range nodes {
		e.state = e.entry[i].state
		e.node(n)
		if e.err != nil {
			return nil, e.err
		}
		until[i] = len(e.code)
	}
	first, blocks := e.merged(until)
	return &Program{code: layOut(first, blocks), owners: e.owners}, nil
}

// block is a node's instructions, the last of which ends the program or leads to yes or no.
type block struct {
	code    []insn
	yes, no *block
	start   int
	id      uint32 // no other block has it; from 1
}

// number is the block's, 0 that of none.
func (b *block) number() uint32 {
	if b == nil {
		return 0
	}
	return b.id
}

func (b *block) leads() (yes, no *block) { return b.yes, b.no }

func (b *block) hash() uint32 {
	h := hashed(b.yes.number(), b.no.number())
	for _, i := range b.code {
		h = hashed(hashed(h, uint32(i.op)), i.k)
	}
	return h
}

func (b *block) same(c *block) bool {
	return b.yes == c.yes && b.no == c.no && slices.Equal(b.code, c.code)
}

// merged leads the blocks to each other; it is the first, and how many there are. Blocks of the same
// instructions that lead to the same places become one, though what they compare may not be
// the same: it is in A.
func (e *emitter) merged(until []int) (first *block, n int) {
	var blocks interned[block, *block]
	of := make([]*block, len(until))
	for i := len(until) - 1; i >= 0; i-- {
		b, n := block{id: uint32(blocks.n + 1)}, e.order.all[i]
		if n.kind != ends {
			b.yes, b.no = of[e.order.place(n.yes)], of[e.order.place(n.no)]
		}
		start := 0
		if i > 0 {
			start = until[i-1]
		}
		if b.code = e.code[start:until[i]]; b.yes == b.no && len(b.code) == 1 && b.code[0].conditional() {
			of[i] = b.yes // it does nothing
			continue
		}
		of[i] = blocks.get(b)
	}
	return of[0], blocks.n
}

// layOut puts the blocks that first leads to one behind the other.
func layOut(first *block, blocks int) []insn {
	all := inOrder(first, blocks).all
	length := 0
	for _, b := range all {
		b.start = length
		length += len(b.code)
	}
	code := make([]insn, 0, length)
	for _, b := range all {
		code = append(code, b.code...)
		if at := len(code) - 1; b.yes != nil {
			code[at].jt, code[at].jf = uint16(b.yes.start-at-1), uint16(b.no.start-at-1)
		}
	}
	return code
}

// put writes an instruction.
func (e *emitter) put(op uint16, k uint32) {
	if len(e.code) >= maxCode {
		e.err = ErrTooLong
		return
	}
	e.code = append(e.code, insn{op: op, k: k})
}

func (e *emitter) node(n *Node) {
	switch n.kind {
	case ends:
		e.put(opReturn, n.n*accept)
		return
	case compares:
		e.compare(n)
	case asksOwner:
		e.owners = append(e.owners, ownerTest{n.owner, n.n, n.text})
		e.put(opOwner, uint32(len(e.owners)-1))
	case walksChain:
		e.chain(n.chain)
	}
	e.leadTo(n.yes)
	e.leadTo(n.no)
}

// leadTo tells n what a way to it leaves in the registers.
func (e *emitter) leadTo(n *Node) {
	to := &e.entry[e.order.place(n)]
	if to.reached {
		to.meet(&e.state)
		return
	}
	*to = entry{e.state, true}
}

func (e *emitter) compare(n *Node) {
	op := jumpOf[n.op]
	if n.y.op == opConst {
		e.toA(n.x)
		e.put(op, n.y.k)
		return
	}
	e.toBoth(n.x, n.y, n.op == Equal || n.op == Set)
	e.put(op+byX, 0)
}

// toA computes v in A.
func (e *emitter) toA(v *Value) {
	switch {
	case e.err != nil || e.a == v:
		return
	case e.x == v:
		e.put(opTxa, 0)
	case e.inMemory(v) >= 0 && v.op != opConst && v.op != opMeta && !v.plainLoad():
		e.put(opLoadMem, uint32(e.inMemory(v)))
	case v.op == opConst:
		e.put(opImm, v.k)
	case v.op == opMeta:
		e.meta(Meta(v.k))
	case v.op == opLoad:
		e.load(v)
	default:
		e.compute(v)
	}
	e.a = v
}

func (v *Value) plainLoad() bool { return v.op == opLoad && v.x == nil }

func (e *emitter) meta(m Meta) {
	switch m {
	case Length:
		e.put(opLoadLen, 0)
	case Interface:
		e.put(opInterface, 0)
	case packetType:
		e.put(opPacketType, 0)
	default:
		e.put(opDirection, 0)
	}
}

func (e *emitter) load(v *Value) {
	op := loadOf[v.size]
	if v.x != nil {
		e.toX(v.x)
		op += opLoadWordX - opLoadWord
	}
	e.put(op, v.k)
}

func (e *emitter) compute(v *Value) {
	op := aluOf[v.op]
	if v.immediate() {
		e.toA(v.x)
		e.put(op, v.y.k)
		return
	}
	e.toBoth(v.x, v.y, v.op == Add || v.op == Mul || v.op == And || v.op == Or || v.op == Xor)
	e.put(op+byX, 0)
}

// toX computes v in X.
func (e *emitter) toX(v *Value) {
	switch {
	case e.err != nil || e.x == v:
		return
	case e.a == v:
		e.put(opTax, 0)
	case v.op == opConst:
		e.put(opImmX, v.k)
	case e.inMemory(v) >= 0:
		e.put(opLoadXMem, uint32(e.inMemory(v)))
	case v.headerLength():
		e.put(opLoadXHeader, v.x.x.k)
	default:
		e.toA(v)
		e.put(opTax, 0)
	}
	e.x = v
}

// headerLength tells whether v is what opLoadXHeader gives.
func (v *Value) headerLength() bool {
	if v.y == nil || v.y.op != opConst || !(v.op == ShiftLeft && v.y.k == 2 || v.op == Mul && v.y.k == 4) {
		return false
	}
	masked := v.x
	return masked.op == And && masked.y.op == opConst && masked.y.k == 0xf && masked.x.plainLoad() && masked.x.size == 1
}

func (e *emitter) inMemory(v *Value) int {
	for i, m := range e.m {
		if m == v {
			return i
		}
	}
	return -1
}

// toBoth computes x in A and y in X, or the other way round where the operation
// allows it and it is shorter.
func (e *emitter) toBoth(x, y *Value, either bool) {
	if either && e.a != x && !y.headerLength() && (x.headerLength() || x.usesX() && !y.usesX()) {
		x, y = y, x
	}
	switch {
	case e.err != nil:
	case x == y:
		e.toA(x)
		e.toX(x)
	case e.a == x && (e.x == y || e.inMemory(y) >= 0):
		e.toX(y)
	case y.op == opConst || y.headerLength():
		e.toA(x)
		e.toX(y)
	case !x.usesX():
		e.toX(y)
		e.toA(x)
	default:
		e.throughMemory(x, y)
	}
}

// throughMemory computes x in A and y in X where each needs both registers.
func (e *emitter) throughMemory(x, y *Value) {
	e.toA(x)
	if e.depth == memory {
		e.err = ErrTooDeep
	}
	if e.err != nil {
		return
	}
	slot := e.depth
	e.put(opStore, uint32(slot))
	e.m[slot] = x
	e.depth++
	e.toX(y)
	e.depth--
	e.put(opLoadMem, uint32(slot))
	e.a = x
}

// usesX tells whether X is needed to compute v.
func (v *Value) usesX() bool {
	for v.op > opMeta && v.immediate() {
		v = v.x
	}
	return v.op > opMeta || v.op == opLoad && v.x != nil
}

// immediate tells whether y of an operation can stand in its instruction. The kernel
// refuses a division by 0 there.
func (v *Value) immediate() bool {
	return v.y.op == opConst && (v.y.k != 0 || v.op != Div && v.op != Mod)
}
