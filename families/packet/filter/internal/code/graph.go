package code

// Value is an unsigned number of 32 bits that a program computes of a packet. Values
// are immutable; equal values of one Builder are the same pointer.
type Value struct {
	op   Op
	x, y *Value // of an operation; of a load x is what is added to k, or nil
	k    uint32 // of a constant, the offset of a load
	size int    // of a load: 1, 2 or 4 bytes
	id   uint32 // no other value of the Builder has it; from 1
}

// number is the value's, 0 that of none.
func (v *Value) number() uint32 {
	if v == nil {
		return 0
	}
	return v.id
}

func (v *Value) hash() uint32 {
	h := hashed(uint32(v.op)|uint32(v.size)<<8, v.k)
	return hashed(hashed(h, v.x.number()), v.y.number())
}

func (v *Value) same(u *Value) bool {
	return v.op == u.op && v.k == u.k && v.size == u.size && v.x == u.x && v.y == u.y
}

// Op is how a value is computed.
type Op uint8

// The operations. Add to ShiftRight take two values and wrap around as uint32 does.
// Div and Mod by zero reject the packet, and shifts by more than 31 give 0.
const (
	opConst Op = iota
	opLoad
	opMeta
	Add
	Sub
	Mul
	Div
	Mod
	And
	Or
	Xor
	ShiftLeft
	ShiftRight
)

// Meta is something about a packet that does not stand in it.
type Meta uint8

// What is known of every packet. Program is in Meta a value as any other; what is not known of
// a packet is 0.
const (
	// Length is how many bytes were on the wire.
	Length Meta = iota
	// Interface is the index of the interface.
	Interface
	// Direction is one of DirectionUnknown, DirectionIn and DirectionOut.
	Direction
)

// What Direction can be.
const (
	DirectionUnknown = iota
	DirectionIn
	DirectionOut
)

// Compare is how a test compares two values.
type Compare uint8

// The comparisons of classic BPF. Set is true when x & y is not 0.
const (
	Equal Compare = iota
	Greater
	GreaterEqual
	Set
)

// OwnerField is what a test of an owner asks.
type OwnerField uint8

// The fields. A packet without a known owner fails each test.
const (
	UID OwnerField = iota
	PID
	Comm
	Unit
)

// Chain describes the headers that a test for a protocol walks through ("protochain"): those
// of IPv6 extensions, and AH.
type Chain struct {
	// Start is the offset of the IP header.
	Start uint32
	// IP6 is whether that is of IPv6; else of IPv4, where only AH is walked through.
	IP6 bool
	// Protocol is looked for.
	Protocol uint32
}

// Node is a place in the graph: a test that leads to one of two others, or an end.
// Nodes are immutable; equal nodes of one Builder are the same pointer.
type Node struct {
	kind      nodeKind
	op        Compare
	n         uint32 // of an end: 1 takes the packet; what a UID or PID is compared to
	x, y      *Value
	yes, no   *Node
	id        uint32 // no other node of the Builder has it; from 1
	*question        // of asksOwner and walksChain
}

// question is what few nodes ask.
type question struct {
	owner OwnerField
	text  string
	chain Chain
}

// number is the node's, 0 that of none.
func (n *Node) number() uint32 {
	if n == nil {
		return 0
	}
	return n.id
}

func (n *Node) hash() uint32 {
	h := hashed(uint32(n.kind)|uint32(n.op)<<8, n.n)
	h = hashed(hashed(h, n.x.number()), n.y.number())
	h = hashed(hashed(h, n.yes.number()), n.no.number())
	if n.question != nil {
		h = hashed(hashed(h, n.chain.Start), n.chain.Protocol)
	}
	return h
}

func (n *Node) same(m *Node) bool {
	return n.yes == m.yes && n.no == m.no && n.asksAs(m)
}

// asksAs tells whether m's answer is n's.
func (n *Node) asksAs(m *Node) bool {
	return n.x == m.x && n.y == m.y && n.op == m.op && n.kind == m.kind && n.n == m.n &&
		(n.question == m.question || n.question != nil && m.question != nil && *n.question == *m.question)
}

func (n *Node) leads() (yes, no *Node) { return n.yes, n.no }

func (n *Node) rejects() bool { return n.kind == ends && n.n == 0 }

type nodeKind uint8

const (
	ends nodeKind = iota
	compares
	asksOwner
	walksChain
)
