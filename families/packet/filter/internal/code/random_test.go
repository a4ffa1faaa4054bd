package code

import (
	"encoding/binary"
	"math/rand/v2"
)

// source makes graphs and packets that have something to do with each other: few offsets, few
// numbers.
type source struct {
	*rand.Rand
	b       *Builder
	owners  bool // and chains
	metas   []Meta
	offsets []uint32
	values  []*Value
}

func newSource(seed uint64) *source {
	return &source{Rand: rand.New(rand.NewPCG(5, seed)), b: NewBuilder(), metas: []Meta{Length, Interface, Direction, packetType}, offsets: offsets}
}

var numbers = []uint32{0, 1, 2, 3, 4, 5, 6, 7, 8, 15, 16, 31, 32, 33, 0x33, 0x0102, 0x0800, 0x8100, 0x1fff, 0xff00, 0x7fffffff, 0x80000000, 0xfffffffe, 0xffffffff}

var offsets = []uint32{0, 1, 2, 3, 5, 8, 11, 12, 12, 13, 14, 14, 15, 16, 18, 20, 23, 30, 40, 0x7ffffffd, 0x7fffffff, 0x80000000, 0xfffff004, 0xfffff008, 0xffffffff}

func pick[T any](s *source, of []T) T { return of[s.IntN(len(of))] }

func (s *source) value(depth int) *Value {
	if len(s.values) > 0 && s.IntN(3) == 0 {
		return pick(s, s.values)
	}
	v := s.newValue(depth)
	s.values = append(s.values, v)
	return v
}

func (s *source) newValue(depth int) *Value {
	size := 1 << s.IntN(3)
	header := func() *Value {
		return s.b.Compute(ShiftLeft, s.b.Compute(And, s.b.Load(nil, pick(s, s.offsets[:18]), 1), s.b.Const(15)), s.b.Const(2))
	}
	switch n := s.IntN(20); {
	case depth == 0 || n < 8:
		return s.b.Load(nil, s.offsets[s.IntN(len(s.offsets)-s.IntN(8))], size)
	case n < 10:
		return s.b.Load(header(), pick(s, s.offsets), size)
	case n < 11:
		return header()
	case n < 13:
		return s.b.Load(s.value(depth-1), pick(s, s.offsets), size)
	case n < 14:
		return s.b.Meta(pick(s, s.metas))
	}
	op := Add + Op(s.IntN(int(ShiftRight-Add)+1))
	if s.IntN(3) == 0 {
		return s.b.Compute(op, s.value(depth-1), s.value(depth-1))
	}
	return s.b.Compute(op, s.value(depth-1), s.b.Const(pick(s, numbers)))
}

// graph has up to n tests.
func (s *source) graph(n int) *Node {
	nodes := []*Node{s.b.Reject(), s.b.Accept()}
	latest := func() *Node { return nodes[max(0, len(nodes)-1-s.IntN(4))] }
	for range 1 + s.IntN(n) {
		yes, no := pick(s, nodes), latest()
		if s.IntN(2) == 0 {
			yes, no = no, yes
		}
		nodes = append(nodes, s.test(yes, no))
	}
	return nodes[len(nodes)-1]
}

func (s *source) test(yes, no *Node) *Node {
	if s.owners && s.IntN(6) == 0 {
		return s.b.Owner(OwnerField(s.IntN(4)), uint32(s.IntN(3)), pick(s, []string{"a", "b"}), yes, no)
	}
	if s.owners && s.IntN(8) == 0 {
		return s.b.Chain(Chain{Start: uint32(s.IntN(15)), IP6: s.IntN(2) == 0, Protocol: pick(s, numbers[:12])}, yes, no)
	}
	x, y := s.value(2), s.b.Const(pick(s, numbers))
	if s.IntN(6) == 0 {
		y = s.value(2)
	}
	return s.b.Test(Compare(s.IntN(4)), x, y, yes, no)
}

// packet is up to 64 bytes, some of which are what graphs ask for.
func (s *source) packet() []byte {
	out := make([]byte, s.IntN(65))
	for i := range out {
		out[i] = pick(s, []byte{0, 1, 2, 3, 4, 5, 6, 8, 0x33, 0x81, 0xff, byte(s.Uint32())})
	}
	return out
}

func (s *source) metadata() *Metadata {
	switch s.IntN(3) {
	case 0:
		return nil
	case 1:
		return &Metadata{Interface: uint32(s.IntN(4)), Direction: uint32(s.IntN(3))}
	}
	o := &Owner{UID: uint32(s.IntN(3)), PID: uint32(s.IntN(3)), KnownUID: s.IntN(2) == 0, KnownPID: s.IntN(2) == 0}
	o.Comm, o.Unit = pick(s, []string{"", "a", "b"}), pick(s, []string{"", "a", "b"})
	return &Metadata{Interface: uint32(s.IntN(4)), Direction: uint32(s.IntN(3)), Owner: o}
}

// judge says what a graph means, without instructions.
type judge struct {
	data   []byte
	length uint32
	m      Metadata
}

func newJudge(data []byte, length uint32, m *Metadata) judge {
	if m == nil {
		m = &Metadata{}
	}
	return judge{data, length, *m}
}

func (j judge) takes(n *Node) bool {
	for n.kind != ends {
		yes, ok := j.answer(n)
		if !ok {
			return false
		}
		n = choose(yes, n.yes, n.no)
	}
	return n.n == 1
}

func (j judge) answer(n *Node) (yes, ok bool) {
	switch n.kind {
	case asksOwner:
		return j.owner(n), true
	case walksChain:
		return j.chain(n.chain)
	}
	x, okX := j.value(n.x)
	y, okY := j.value(n.y)
	return n.op.holds(x, y), okX && okY
}

func (j judge) owner(n *Node) bool {
	o := j.m.Owner
	return o != nil && map[OwnerField]bool{
		UID: o.KnownUID && o.UID == n.n, PID: o.KnownPID && o.PID == n.n,
		Comm: n.text != "" && o.Comm == n.text, Unit: n.text != "" && o.Unit == n.text,
	}[n.owner]
}

// chain is the walk in a few words of Go; what comes by the same header twice never ends, and
// rejects.
func (j judge) chain(c Chain) (yes, ok bool) {
	at := func(n uint32) uint32 { v, in := j.load(uint64(c.Start)+uint64(n), 1); ok = ok && in; return v }
	ok = true
	next, x := uint32(0), uint32(40)
	if c.IP6 {
		next = at(6)
	} else {
		next, x = at(9), 4*(at(0)&15)
	}
	for seen := map[[2]uint32]bool{}; ; {
		extension := c.IP6 && (next == 0 || next == 43 || next == 44 || next == 60)
		if !ok || next == c.Protocol || next == 59 || !extension && next != 51 {
			return next == c.Protocol, ok
		}
		if seen[[2]uint32{next, x}] {
			return false, false
		}
		seen[[2]uint32{next, x}] = true
		if extension {
			next, x = at(x), x+8*(at(x+1)+1)
		} else {
			next, x = at(x), 4*(at(x+1)+2)
		}
	}
}

func (j judge) load(at uint64, size int) (uint32, bool) {
	if at+uint64(size) > uint64(len(j.data)) {
		return 0, false
	}
	wide := make([]byte, 4)
	copy(wide[4-size:], j.data[at:])
	return binary.BigEndian.Uint32(wide), true
}

func (j judge) value(v *Value) (uint32, bool) {
	switch v.op {
	case opConst:
		return v.k, true
	case opLoad:
		at := uint64(v.k)
		if v.x != nil {
			x, ok := j.value(v.x)
			if at += uint64(x); !ok {
				return 0, false
			}
		}
		return j.load(at, v.size)
	case opMeta:
		return map[Meta]uint32{Length: j.length, Interface: j.m.Interface, Direction: j.m.Direction, packetType: []uint32{5, 0, 4}[j.m.Direction]}[Meta(v.k)], true
	}
	x, okX := j.value(v.x)
	y, okY := j.value(v.y)
	z, ok := v.op.apply(x, y)
	return z, okX && okY && ok
}
