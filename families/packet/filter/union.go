package filter

import (
	"slices"

	"github.com/sockd/sockd/families/packet/pcapng"
	"golang.org/x/net/bpf"
)

// Scope tells which frames a socket sees that a Union is for.
type Scope struct {
	// Interfaces are the indexes of those whose frames are wanted, nil: all.
	Interfaces []int
	// Known is the greatest index of an interface of which it is known whether it
	// is wanted. Frames of interfaces above it are taken: a new interface gets a
	// higher index than all before it, and its first packets come before anybody could
	// decide. (One that moves here from another namespace keeps its index when that
	// is free here, and may be lower.)
	Known int
	// Mixed is for a socket that is bound to no interface, whose frames have any
	// hardware type. The programs are of Ethernet and judge only what has an
	// Ethernet header; other frames are all taken.
	Mixed bool
}

// Union is a program for the kernel's socket filter that takes every frame that
// Match of any of the programs takes, and as few others as it can. nil stands for
// all frames. Without programs it takes none.
//
// The kernel sees the frame without a VLAN tag that the card or the driver took
// out, so that "not ip" would reject there what Match takes: frames with such a
// tag are all taken. So are all frames where a program is of a link type whose
// header the kernel does not have, as in cooked mode, and where the programs are
// longer than every frame should have to run through.
func Union(programs []*Program, scope Scope) []bpf.RawInstruction {
	if len(programs) == 0 {
		return []bpf.RawInstruction{{Op: opReturn, K: 0}}
	}
	if code, ok := judges(programs, scope); ok {
		if out := assemble(code, scope); out != nil {
			return out
		}
	}
	if scope.Interfaces == nil {
		return nil
	}
	return assemble(nil, scope)
}

// judges is the code of programs that differ, or false when they take all, or
// together all that the kernel can tell apart.
func judges(programs []*Program, scope Scope) (code [][]insn, ok bool) {
	link := programs[0].link
	for _, p := range programs {
		kernel := p.link == pcapng.Ethernet || p.link == pcapng.Raw && !scope.Mixed
		if p.text == "" || p.link != link || !kernel {
			return nil, false
		}
		if !slices.ContainsFunc(code, func(c []insn) bool { return slices.Equal(c, p.code) }) {
			code = append(code, p.code)
		}
	}
	return code, true
}

// The instructions of a union that no filter has.
const (
	opJump         = 0x05 // pc += k
	opSubtract     = 0x14 // A -= k
	opJumpAtLeastX = 0x3d // like opJumpAtLeast, with X for k
)

// What a load of 4 bytes from such an offset gives: SKF_AD_OFF and the SKF_AD_ numbers
// of linux/filter.h.
const (
	extInterface      = 0xfffff000 + 8  // the index
	extHardware       = 0xfffff000 + 28 // ARPHRD_ of linux/if_arp.h
	extVLANTagPresent = 0xfffff000 + 48 // whether a tag is in the metadata
)

const (
	hardwareEther    = 1   // ARPHRD_ETHER
	hardwareLoopback = 772 // ARPHRD_LOOPBACK
)

// maxUnion bounds a program for the kernel. Each packet of the interface pays for it, and
// the kernel charges what it translates it to, a few times the size, to the
// socket's net.core.optmem_max, which is 20 KiB before Linux 6.7.
const maxUnion = 512

// label is a place in an assembly that jumps lead to.
type label int

// step is an instruction that says where it leads to by labels.
type step struct {
	op      uint16
	k       uint32
	yes, no label // of a conditional jump; yes alone, of opJump

	// A conditional jump that leads too far leads to an opJump behind it.
	farYes, farNo bool
}

func (s *step) conditional() bool {
	switch s.op {
	case opJumpEqual, opJumpGreater, opJumpAtLeast, opJumpAnyBitSet, opJumpAtLeastX:
		return true
	}
	return false
}

// assembly is a program that grows at its end. All its jumps lead forward.
type assembly struct {
	steps  []step
	places []int // of each label, an index of steps
}

// assemble puts the tests of a scope before the programs: no programs take all
// that is in it. It is nil when that is too long.
//
//	interface wanted? ──no──> reject
//	tag in metadata, or no Ethernet header? ──yes──> take
//	program 1 ──no──> program 2 ──no──> ... ──no──> reject
func assemble(programs [][]insn, scope Scope) []bpf.RawInstruction {
	a := &assembly{}
	if scope.Interfaces != nil {
		a.interfaces(scope)
	}
	if len(programs) == 0 {
		a.put(step{op: opReturn, k: accept})
		return a.encode()
	}
	a.takeUnless(extVLANTagPresent, 0)
	if scope.Mixed {
		a.takeUnless(extHardware, hardwareEther, hardwareLoopback)
	}
	for i, code := range programs {
		a.program(code, i == len(programs)-1)
	}
	return a.encode()
}

func (a *assembly) put(s step) { a.steps = append(a.steps, s) }

// newLabel is one that place puts somewhere later.
func (a *assembly) newLabel() label {
	a.places = append(a.places, -1)
	return label(len(a.places) - 1)
}

// place lets a label stand for the next instruction.
func (a *assembly) place(l label) { a.places[l] = len(a.steps) }

// test goes on at yes or behind itself.
func (a *assembly) test(op uint16, k uint32, yes label) {
	no := a.newLabel()
	a.put(step{op: op, k: k, yes: yes, no: no})
	a.place(no)
}

// demand goes on behind itself or at no.
func (a *assembly) demand(op uint16, k uint32, no label) {
	yes := a.newLabel()
	a.put(step{op: op, k: k, yes: yes, no: no})
	a.place(yes)
}

// interfaces rejects what comes from interfaces that are not wanted.
func (a *assembly) interfaces(scope Scope) {
	wanted := a.newLabel()
	a.put(step{op: opLoadWord, k: extInterface})
	a.test(opJumpGreater, uint32(scope.Known), wanted)
	for _, i := range scope.Interfaces {
		if i <= scope.Known {
			a.test(opJumpEqual, uint32(i), wanted)
		}
	}
	a.put(step{op: opReturn, k: 0})
	a.place(wanted)
}

// takeUnless takes a frame unless what a load gives is one of some values.
func (a *assembly) takeUnless(load uint32, values ...uint32) {
	goOn := a.newLabel()
	a.put(step{op: opLoadWord, k: load})
	for _, v := range values {
		a.test(opJumpEqual, v, goOn)
	}
	a.put(step{op: opReturn, k: accept})
	a.place(goOn)
}

// program appends one that goes on behind itself where it would reject, unless it
// is the last.
//
// A load beyond the frame's end rejects. In the kernel that ends everything, so
// that the programs behind would not be asked: before the loads of all but the last,
// the length is.
func (a *assembly) program(code []insn, last bool) {
	known := knownLengths(code)
	at := make([]label, len(code))
	for i := range code {
		at[i] = a.newLabel()
	}
	next := a.newLabel()
	for i, c := range code {
		a.place(at[i])
		if !last {
			a.guard(c, known[i], next)
		}
		s := step{op: c.op, k: c.k}
		if s.conditional() {
			s.yes, s.no = at[i+1+int(c.jt)], at[i+1+int(c.jf)]
		} else if c.op == opReturn && c.k == 0 && !last {
			s = step{op: opJump, yes: next}
		}
		a.put(s)
	}
	a.place(next)
}

// guard leads frames that end before what c loads to next. known is how long the
// frame is at least. It changes A, which every load gives a new value, that of X
// too: what follows it is a load by X.
func (a *assembly) guard(c insn, known uint64, next label) {
	need := loadEnd(c)
	if need > known {
		a.put(step{op: opLoadLen})
		a.demand(opJumpAtLeast, uint32(need), next)
	}
	if c.op == opLoadHalfX {
		// X + need <= length, without a sum that could overflow, nor a difference.
		a.put(step{op: opLoadLen})
		a.put(step{op: opSubtract, k: uint32(need)})
		a.demand(opJumpAtLeastX, 0, next)
	}
}

// loadEnd is how long a frame must be for c, if X is 0; 0 for what loads nothing of it.
func loadEnd(c insn) uint64 {
	switch c.op {
	case opLoadWord:
		return uint64(c.k) + 4
	case opLoadHalf, opLoadHalfX:
		return uint64(c.k) + 2
	case opLoadByte, opLoadXHeader:
		return uint64(c.k) + 1
	}
	return 0
}

// knownLengths tells how long a frame is at least that reaches an instruction: what has
// been loaded on every way there is within it.
func knownLengths(code []insn) []uint64 {
	const unreached = ^uint64(0)
	known := make([]uint64, len(code))
	for i := range known[1:] {
		known[1+i] = unreached
	}
	for i, c := range code {
		after := max(known[i], loadEnd(c))
		s := step{op: c.op}
		switch {
		case s.conditional():
			for _, to := range []int{i + 1 + int(c.jt), i + 1 + int(c.jf)} {
				known[to] = min(known[to], after)
			}
		case c.op != opReturn:
			known[i+1] = min(known[i+1], after)
		}
	}
	return known
}

// far is how far a conditional jump reaches; opJump reaches anywhere.
const far = 0xff

// encode is the program as the kernel wants it, nil when it is too long.
func (a *assembly) encode() []bpf.RawInstruction {
	if len(a.steps) > maxUnion {
		return nil
	}
	starts := a.layOut()
	size := starts[len(a.steps)]
	if size > maxUnion {
		return nil
	}
	out := make([]bpf.RawInstruction, 0, size)
	for _, s := range a.steps {
		switch {
		case s.op == opJump:
			out = appendFar(out, starts[a.places[s.yes]])
		case s.conditional():
			out = s.appendJump(out, starts[a.places[s.yes]], starts[a.places[s.no]])
		default:
			out = append(out, bpf.RawInstruction{Op: s.op, K: s.k})
		}
	}
	return out
}

// appendJump appends a conditional jump, and behind it those that lead far.
func (s *step) appendJump(out []bpf.RawInstruction, yes, no int) []bpf.RawInstruction {
	at := len(out)
	out = append(out, bpf.RawInstruction{Op: s.op, K: s.k, Jt: uint8(yes - at - 1), Jf: uint8(no - at - 1)})
	if s.farYes {
		out[at].Jt = uint8(len(out) - at - 1)
		out = appendFar(out, yes)
	}
	if s.farNo {
		out[at].Jf = uint8(len(out) - at - 1)
		out = appendFar(out, no)
	}
	return out
}

func appendFar(out []bpf.RawInstruction, to int) []bpf.RawInstruction {
	return append(out, bpf.RawInstruction{Op: opJump, K: uint32(to - len(out) - 1)})
}

// layOut finds where each step starts, the end last. The opJump behind one jump moves
// what follows, which can make another lead too far: until none does.
func (a *assembly) layOut() []int {
	starts := make([]int, len(a.steps)+1)
	for again := true; again; {
		for i := range a.steps {
			starts[i+1] = starts[i] + a.steps[i].size()
		}
		again = false
		for i := range a.steps {
			s := &a.steps[i]
			if !s.conditional() {
				continue
			}
			tooFar := func(l label) bool { return starts[a.places[l]]-starts[i]-1 > far }
			before := s.size()
			s.farYes, s.farNo = s.farYes || tooFar(s.yes), s.farNo || tooFar(s.no)
			again = again || s.size() != before
		}
	}
	return starts
}

func (s *step) size() int {
	n := 1
	if s.farYes {
		n++
	}
	if s.farNo {
		n++
	}
	return n
}
