package code

// The protocols that a chain is walked through by (IANA's protocol numbers).
const (
	protoHopByHop    = 0
	protoRouting     = 43
	protoFragment    = 44
	protoAH          = 51
	protoNone        = 59
	protoDestination = 60
)

// chainMemory is the scratch word of a chain. No value is in use there: a
// chain stands between nodes.
const chainMemory = 0

// chain writes the walk through the headers, with A the protocol of the next one, and X where it
// stands behind Start:
//
//	again: A is looked for, or none? ──yes──> end
//	       an extension?  ──yes──> A = its protocol, X += its length, again
//	       AH?            ──yes──> A = its protocol, X = its length, again
//	end:   is A looked for?
//
// That X is not added to for AH is libpcap's; so it is in its verdicts. X can come back
// to where it was, and libpcap's program has no end then: see machine.back.
//
// The additions of 0 do nothing. They are libpcap's, and keep the listing to its.
func (e *emitter) chain(c Chain) {
	if c.IP6 {
		e.put(opLoadByte, c.Start+6)
		e.put(opImmX, 40)
	} else {
		e.put(opLoadByte, c.Start+9)
		e.put(opLoadXHeader, c.Start)
	}
	w := walk{e: e, again: len(e.code)}
	w.exit(c.Protocol)
	w.exit(protoNone)
	if c.IP6 {
		w.extensions(c.Start)
	} else {
		e.put(opAdd, 0)
	}
	w.authentication(c.Start)
	if e.err != nil {
		return
	}
	for _, at := range w.toEnd {
		*at.field(e.code) = uint16(len(e.code) - at.insn - 1)
	}
	e.put(opAdd, 0)
	e.put(opJumpEqual, c.Protocol)
	e.state.a, e.state.x, e.state.m[chainMemory] = nil, nil, nil
}

// walk writes the loop of a chain.
type walk struct {
	e     *emitter
	again int
	toEnd []branch
}

// branch is one of the two ways of a jump.
type branch struct {
	insn int
	yes  bool
}

func (b branch) field(code []insn) *uint16 {
	if b.yes {
		return &code[b.insn].jt
	}
	return &code[b.insn].jf
}

// exit ends the walk when A is a protocol.
func (w *walk) exit(protocol uint32) {
	w.toEnd = append(w.toEnd, branch{len(w.e.code), true})
	w.e.put(opJumpEqual, protocol)
}

// extensions goes over an IPv6 extension header: its length stands in 8 bytes, without the first.
func (w *walk) extensions(start uint32) {
	for i, protocol := range []uint32{protoHopByHop, protoDestination, protoRouting, protoFragment} {
		at := len(w.e.code)
		w.e.put(opJumpEqual, protocol)
		if w.e.err != nil {
			return
		}
		w.e.code[at].jt = uint16(3 - i)
		if i == 3 {
			w.e.code[at].jf = 9
		}
	}
	w.keepProtocol(start)
	w.e.put(opLoadByteX, start+1)
	w.e.put(opAdd, 1)
	w.e.put(opMul, 8)
	w.e.put(opAdd+byX, 0)
	w.goOn()
}

// authentication goes over AH: its length stands in 4 bytes, without the first two.
func (w *walk) authentication(start uint32) {
	w.toEnd = append(w.toEnd, branch{len(w.e.code), false})
	w.e.put(opJumpEqual, protoAH)
	w.e.put(opTxa, 0)
	w.keepProtocol(start)
	w.e.put(opTxa, 0)
	w.e.put(opAdd, 1)
	w.e.put(opTax, 0)
	w.e.put(opLoadByteX, start)
	w.e.put(opAdd, 2)
	w.e.put(opMul, 4)
	w.goOn()
}

func (w *walk) keepProtocol(start uint32) {
	w.e.put(opLoadByteX, start)
	w.e.put(opStore, chainMemory)
}

// goOn takes A for X, and goes back.
func (w *walk) goOn() {
	w.e.put(opTax, 0)
	w.e.put(opLoadMem, chainMemory)
	w.e.put(opJump, uint32(w.again-len(w.e.code)-1))
}
