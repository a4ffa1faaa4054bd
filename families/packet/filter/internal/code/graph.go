package code

// Value is an unsigned number of 32 bits that a program computes of a packet. Values
// are immutable; equal values of one Builder are the same pointer.
type Value struct {
	op   Op
	x, y *Value // of an operation; of a load x is what is added to k, or nil
	k    uint32 // of a constant, the offset of a load
	size int    // of a load: 1, 2 or 4 bytes
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
	kind    nodeKind
	op      Compare
	x, y    *Value
	owner   OwnerField
	n       uint32
	text    string
	chain   Chain
	yes, no *Node
}

type nodeKind uint8

const (
	ends nodeKind = iota
	compares
	asksOwner
	walksChain
)
