package code

import "encoding/binary"

// Metadata is what is known of a packet besides its data.
type Metadata struct {
	Interface uint32 // the index, 0: not known
	Direction uint32 // one of DirectionUnknown, DirectionIn and DirectionOut
	Owner     *Owner // nil: not known
}

// Owner is the local process that a packet belongs to.
type Owner struct {
	UID, PID uint32
	Comm     string // as in /proc/PID/comm, "" not known
	Unit     string // of systemd, "" not known
	KnownUID bool
	KnownPID bool
}

// Run tells whether the program takes a packet of which length bytes were on the wire. m nil
// stands for nothing known. It keeps neither.
func (p *Program) Run(data []byte, length uint32, m *Metadata) bool {
	if p.simple {
		return p.run(data, nil)
	}
	r := machine{length: length, m: m}
	return p.run(data, &r)
}

// run is Run. r is nil for a simple program.
func (p *Program) run(data []byte, r *machine) bool {
	var a, x uint32
	i := &p.moves[0]
	for {
		at := uint64(i.at)
		switch i.do {
		case byteToAX:
			at += uint64(x)
			fallthrough
		case byteToA:
			if at >= uint64(len(data)) {
				return false
			}
			a = uint32(data[at])
		case halfToAX:
			at += uint64(x)
			fallthrough
		case halfToA:
			if at+2 > uint64(len(data)) {
				return false
			}
			a = uint32(binary.BigEndian.Uint16(data[at:]))
		case wordToAX:
			at += uint64(x)
			fallthrough
		case wordToA:
			if at+4 > uint64(len(data)) {
				return false
			}
			a = binary.BigEndian.Uint32(data[at:])
		case headerToX:
			if at >= uint64(len(data)) {
				return false
			}
			x = 4 * uint32(data[at]&0xf)
		case end:
			return i.yes != 0
		case other:
			next := uint16(0)
			if a, x, next = r.do(p, i, a, x); r.rejects {
				return false
			}
			i = &p.moves[next]
			continue
		}
		if a&i.mask-i.low <= i.width {
			i = &p.moves[i.yes]
		} else {
			i = &p.moves[i.no]
		}
	}
}

// machine is what a program computes with, but for A and X.
type machine struct {
	mem     [memory]uint32
	length  uint32
	m       *Metadata
	rejects bool // a division by zero, or a loop without an end

	// For again: the loop, the registers as they once were, and how many steps back there were.
	loop                     uint16
	wasA, wasX, steps, until uint32
}

// do executes what run does not itself. It gives A and X, and the move to go on with.
func (r *machine) do(p *Program, i *move, a, x uint32) (newA, newX uint32, next uint16) {
	switch i.op {
	case opImm:
		a = i.k
	case opImmX:
		x = i.k
	case opLoadMem:
		a = r.mem[i.k]
	case opLoadXMem:
		x = r.mem[i.k]
	case opStore:
		r.mem[i.k] = a
	case opTax:
		x = a
	case opTxa:
		a = x
	case opLoadLen:
		a = r.length
	case opInterface, opPacketType, opDirection:
		a = r.m.get(i.op)
	case opJump:
		r.rejects = r.again(i.yes, a, x)
	case opOwner:
		return a, x, i.next(r.m != nil && p.owners[i.k].holds(r.m.Owner))
	case opJumpEqual + byX, opJumpGreater + byX, opJumpAtLeast + byX, opJumpAnyBitSet + byX:
		return a, x, i.next(i.compare.holds(a, x))
	default:
		y := i.k
		if i.op&byX != 0 {
			y = x
		}
		ok := false
		a, ok = i.compute.apply(a, y)
		r.rejects = !ok
	}
	return a, x, i.yes
}

func (i *move) next(yes bool) uint16 {
	if yes {
		return i.yes
	}
	return i.no
}

// again tells, of a step back, whether the registers are what they were at one before: then the
// loop has no end. It compares to the registers of the last step whose number is a power of two
// (Brent's way): a loop is found within three times the steps that differ, and these are
// bounded by the data's length, for X must lead into it.
//
// A filter can have several loops, one behind the other. Each has a state of its own.
func (r *machine) again(loop uint16, a, x uint32) bool {
	if loop != r.loop {
		r.loop, r.steps, r.until = loop, 0, 0
	}
	if r.steps > 0 && a == r.wasA && x == r.wasX {
		return true
	}
	if r.steps++; r.steps >= r.until {
		r.wasA, r.wasX, r.until = a, x, 2*r.steps
	}
	return false
}

// get is what an instruction loads of the metadata.
func (m *Metadata) get(op uint16) uint32 {
	switch {
	case m == nil:
		m = &Metadata{}
	case op == opInterface:
		return m.Interface
	}
	if op == opPacketType {
		return [...]uint32{DirectionUnknown: packetUnknown, DirectionIn: 0, DirectionOut: packetOutgoing, 3: packetUnknown}[m.Direction&3]
	}
	return m.Direction
}

// holds answers a test. What is not known of the owner is not equal to anything.
func (t *ownerTest) holds(o *Owner) bool {
	if o == nil {
		return false
	}
	switch t.field {
	case UID:
		return o.KnownUID && o.UID == t.n
	case PID:
		return o.KnownPID && o.PID == t.n
	case Comm:
		return o.Comm != "" && o.Comm == t.text
	}
	return o.Unit != "" && o.Unit == t.text
}
