package code

// maxGraph bounds a graph under construction, its nodes and its values each: about four
// times what the longest program could be made of.
const maxGraph = 1 << 16

// Builder makes graphs. What is equal is made once: so values and nodes are compared
// by their pointers. It is not for several goroutines.
type Builder struct {
	values interned[Value, *Value]
	nodes  interned[Node, *Node]
	full   bool // something was not made, for maxGraph: Assemble fails
}

// NewBuilder is one without a value or a node.
func NewBuilder() *Builder { return &Builder{} }

func (b *Builder) value(v Value) *Value {
	if b.values.n >= maxGraph {
		b.full = true
		return &Value{}
	}
	v.id = uint32(b.values.n + 1)
	return b.values.get(v)
}

func (b *Builder) node(n Node) *Node {
	if b.nodes.n >= maxGraph {
		b.full = true
		return &Node{}
	}
	n.id = uint32(b.nodes.n + 1)
	return b.nodes.get(n)
}

// Const is always k.
func (b *Builder) Const(k uint32) *Value { return b.value(Value{op: opConst, k: k}) }

// Load is the big-endian number of size bytes, 1, 2 or 4, at x+k, or at k when x is nil.
// The sum does not wrap around: what is not wholly within the data rejects the packet.
func (b *Builder) Load(x *Value, k uint32, size int) *Value {
	if x != nil && x.op == opConst && x.k <= ^k {
		return b.Load(nil, x.k+k, size)
	}
	return b.value(Value{op: opLoad, x: x, k: k, size: size})
}

// Meta is what is known of the packet besides its data.
func (b *Builder) Meta(m Meta) *Value { return b.value(Value{op: opMeta, k: uint32(m)}) }

// Compute is x op y. It is known at once when x and y are, but for a division by
// zero, which is left to reject packets.
func (b *Builder) Compute(op Op, x, y *Value) *Value {
	if x.op == opConst && y.op == opConst {
		if k, ok := op.apply(x.k, y.k); ok {
			return b.Const(k)
		}
	}
	if y.op == opConst && y.k > 31 && (op == ShiftLeft || op == ShiftRight) {
		op, y = And, b.Const(0) // the kernel refuses such a shift
	}
	return b.value(Value{op: op, x: x, y: y})
}

// apply is x op y, false for a division by zero.
func (op Op) apply(x, y uint32) (k uint32, ok bool) {
	switch op {
	case Add:
		return x + y, true
	case Sub:
		return x - y, true
	case Mul:
		return x * y, true
	case And:
		return x & y, true
	case Or:
		return x | y, true
	case Xor:
		return x ^ y, true
	case ShiftLeft:
		return x << y, true
	case ShiftRight:
		return x >> y, true
	}
	if y == 0 {
		return 0, false
	}
	if op == Div {
		return x / y, true
	}
	return x % y, true
}

// Accept is the end that takes the packet.
func (b *Builder) Accept() *Node { return b.node(Node{kind: ends, n: 1}) }

// Reject is the end that does not.
func (b *Builder) Reject() *Node { return b.node(Node{kind: ends}) }

// Test leads to yes when x op y, else to no. It rejects the packet when a load of x or y does,
// also when yes and no are the same.
func (b *Builder) Test(op Compare, x, y *Value, yes, no *Node) *Node {
	if x.op == opConst && y.op != opConst {
		op, x, y, yes, no = op.swapped(x, y, yes, no)
	}
	if y.op == opConst {
		if x.op == opConst {
			return choose(op.holds(x.k, y.k), yes, no)
		}
		if x.op == opMeta && Meta(x.k) == Direction {
			return b.direction(op, y.k, yes, no)
		}
	}
	return b.node(Node{kind: compares, op: op, x: x, y: y, yes: yes, no: no})
}

func choose(first bool, yes, no *Node) *Node {
	if first {
		return yes
	}
	return no
}

// holds tells whether x op y.
func (op Compare) holds(x, y uint32) bool {
	switch op {
	case Equal:
		return x == y
	case Greater:
		return x > y
	case GreaterEqual:
		return x >= y
	}
	return x&y != 0
}

// swapped is the same test with x and y exchanged: x > y is not y >= x.
func (op Compare) swapped(x, y *Value, yes, no *Node) (Compare, *Value, *Value, *Node, *Node) {
	switch op {
	case Greater:
		return GreaterEqual, y, x, no, yes
	case GreaterEqual:
		return Greater, y, x, no, yes
	}
	return op, y, x, yes, no
}

// packetType is the Meta that Direction is tested by: the PACKET_ number of
// linux/if_packet.h, as the kernel has it. What came in has one of 0 to 3.
const (
	packetType Meta = 0x80

	packetOutgoing = 4 // PACKET_OUTGOING
	packetUnknown  = 5 // for what has neither direction; the kernel has none of it
)

// direction tests Direction by packetType, each of the three it can be.
func (b *Builder) direction(op Compare, k uint32, yes, no *Node) *Node {
	unknown := choose(op.holds(DirectionUnknown, k), yes, no)
	in := choose(op.holds(DirectionIn, k), yes, no)
	out := choose(op.holds(DirectionOut, k), yes, no)
	kind := b.Meta(packetType)
	test := func(op Compare, k uint32, yes, no *Node) *Node {
		if yes == no {
			return yes
		}
		return b.Test(op, kind, b.Const(k), yes, no)
	}
	if unknown == in {
		return test(Equal, packetOutgoing, out, in)
	}
	return test(GreaterEqual, packetOutgoing, test(Equal, packetOutgoing, out, unknown), in)
}

// Owner leads to yes when the field of the packet's owner is n, of Comm and Unit when it
// is text; else to no.
func (b *Builder) Owner(f OwnerField, n uint32, text string, yes, no *Node) *Node {
	if yes == no {
		return yes
	}
	if f == UID || f == PID {
		text = ""
	} else {
		n = 0
	}
	return b.node(Node{kind: asksOwner, n: n, question: &question{owner: f, text: text}, yes: yes, no: no})
}

// Chain leads to yes when the chain has its protocol, else to no.
func (b *Builder) Chain(c Chain, yes, no *Node) *Node {
	return b.node(Node{kind: walksChain, question: &question{chain: c}, yes: yes, no: no})
}

// Constant is what v always is, and whether it is always the same.
func (v *Value) Constant() (k uint32, ok bool) { return v.k, v.op == opConst }
