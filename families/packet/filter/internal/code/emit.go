package code

import (
	"encoding/binary"
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
	Program // code is the present block's
	state
	depth  int // how many words of the scratch memory are in use
	length int // of all blocks
	err    error
	entry  map[*Node]*state
}

// block is a node's instructions, the last of which ends the program or leads to yes or no.
type block struct {
	code    []insn
	yes, no *block
	start   int
}

func emit(root *Node) (*Program, error) {
	order := inOrder(root, (*Node).leads)
	e := &emitter{entry: make(map[*Node]*state, len(order))}
	e.entry[root] = &state{}
	blocks := make([]*block, len(order))
	for i, n := range order {
		e.code, e.state = nil, *e.entry[n]
		e.node(n)
		if e.err != nil {
			return nil, e.err
		}
		blocks[i] = &block{code: e.code}
	}
	return &Program{code: layOut(merged(order, blocks)), owners: e.owners}, nil
}

// inOrder is what first leads to, each before those that it leads to, and where there
// is a choice yes right behind its test. That is libpcap's order.
func inOrder[N comparable](first N, leads func(N) (yes, no N)) []N {
	var none N
	var order []N
	seen := map[N]bool{none: true}
	var visit func(N)
	visit = func(n N) {
		if seen[n] {
			return
		}
		seen[n] = true
		yes, no := leads(n)
		visit(no)
		visit(yes)
		order = append(order, n)
	}
	visit(first)
	slices.Reverse(order)
	return order
}

func (n *Node) leads() (yes, no *Node) { return n.yes, n.no }

// merged leads the blocks to each other, and is the first. Blocks of the same instructions that
// lead to the same places become one, though what they compare may not be the same: it
// is in A.
func merged(order []*Node, blocks []*block) *block {
	type leads struct {
		code    string
		yes, no *block
	}
	seen := map[leads]*block{}
	of := make(map[*Node]*block, len(order))
	for i := len(order) - 1; i >= 0; i-- {
		b, n := blocks[i], order[i]
		b.yes, b.no = of[n.yes], of[n.no]
		if b.yes == b.no && len(b.code) == 1 && b.code[0].conditional() {
			of[n] = b.yes // it does nothing
			continue
		}
		key := leads{bytes(b.code), b.yes, b.no}
		if seen[key] == nil {
			seen[key] = b
		}
		of[n] = seen[key]
	}
	return of[order[0]]
}

// bytes is a key for maps.
func bytes(code []insn) string {
	out := make([]byte, 0, 10*len(code))
	for _, i := range code {
		out = binary.NativeEndian.AppendUint16(out, i.op)
		out = binary.NativeEndian.AppendUint16(out, i.jt)
		out = binary.NativeEndian.AppendUint16(out, i.jf)
		out = binary.NativeEndian.AppendUint32(out, i.k)
	}
	return string(out)
}

func (b *block) leads() (yes, no *block) { return b.yes, b.no }

// layOut puts the blocks one behind the other.
func layOut(first *block) []insn {
	order := inOrder(first, (*block).leads)
	var code []insn
	for _, b := range order {
		b.start = len(code)
		code = append(code, b.code...)
	}
	for _, b := range order {
		if at := b.start + len(b.code) - 1; b.yes != nil {
			code[at].jt, code[at].jf = uint16(b.yes.start-at-1), uint16(b.no.start-at-1)
		}
	}
	return code
}

// put writes an instruction.
func (e *emitter) put(op uint16, k uint32) {
	if e.length >= maxCode {
		e.err = ErrTooLong
		return
	}
	e.length++
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
	if known, ok := e.entry[n]; ok {
		known.meet(&e.state)
		return
	}
	s := e.state
	e.entry[n] = &s
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
	op := map[int]uint16{1: opLoadByte, 2: opLoadHalf, 4: opLoadWord}[v.size]
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
