package code

import (
	"slices"

	"golang.org/x/net/bpf"
)

// Scope tells which frames a socket sees that a kernel's program is for.
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

// Kernel is a program for the kernel's socket filter that takes every frame that
// Run of any of the programs takes, and as few others as it can. nil stands for
// all frames. Without programs it takes none.
//
// The kernel sees the frame without a VLAN tag that the card or the driver took
// out; Run sees it in its place. So each program is there twice, and for
// frames with such a tag it looks for the tag where the kernel has it.
//
// What the kernel cannot know, it takes: where a program asks for an owner, walks through
// a chain of protocols, or reads a tag as no kernel has it. It takes all that has such a tag
// when two programs are together too long, and all frames when one is: each packet of the
// interface runs through it.
func Kernel(programs []*Program, s Scope) []bpf.RawInstruction {
	if len(programs) == 0 {
		return []bpf.RawInstruction{{Op: opReturn, K: 0}}
	}
	if code, ok := distinct(programs); ok {
		for _, tagged := range []bool{true, false} {
			if out := s.assemble(code, tagged); out != nil {
				return out
			}
		}
	}
	if s.Interfaces == nil {
		return nil
	}
	return s.assemble(nil, false)
}

// distinct is the code of programs that differ, false when one takes everything.
func distinct(programs []*Program) (code [][]insn, ok bool) {
	var kept []*Program
	for _, p := range programs {
		accepts, known := p.Constant()
		if accepts && known {
			return nil, false
		}
		same := func(q *Program) bool { return slices.Equal(p.code, q.code) && slices.Equal(p.owners, q.owners) }
		if !slices.ContainsFunc(kept, same) {
			kept, code = append(kept, p), append(code, p.code)
		}
	}
	return code, true
}

const (
	hardwareEther    = 1   // ARPHRD_ETHER
	hardwareLoopback = 772 // ARPHRD_LOOPBACK
)

// maxKernel bounds a program for the kernel. Each packet of the interface pays for it, and
// the kernel charges what it translates it to, a few times the size, to the
// socket's net.core.optmem_max, which is 20 KiB before Linux 6.7.
const maxKernel = 512

// assemble puts the tests of a scope before the programs: no programs take all
// that is in it. It is nil when that is too long. With tagged the programs judge frames whose
// tag is in the metadata, else these are all taken.
//
//	interface wanted? ──no──> reject
//	no Ethernet header? ──yes──> take
//	tag in metadata? ──yes──> the programs for it, or take
//	program 1 ──no──> program 2 ──no──> ... ──no──> reject
func (s Scope) assemble(programs [][]insn, tagged bool) []bpf.RawInstruction {
	a := &union{}
	if s.Interfaces != nil {
		a.interfaces(s)
	}
	if len(programs) == 0 {
		a.do(opReturn, accept)
		return a.bounded()
	}
	if s.Mixed {
		a.ethernet()
	}
	tag := a.newLabel()
	a.do(opLoadWord, extVLANTagPresent)
	a.demand(opJumpEqual, 0, tag)
	a.programs(programs, asItIs)
	a.place(tag)
	if tagged {
		a.programs(programs, withoutTag)
	} else {
		a.do(opReturn, accept)
	}
	return a.bounded()
}

// union is an assembly of programs.
type union struct{ assembly }

// bounded is the program, nil when it is too long.
func (u *union) bounded() []bpf.RawInstruction {
	if len(u.steps) > maxKernel {
		return nil
	}
	if out := u.encode(); len(out) <= maxKernel {
		return out
	}
	return nil
}

// interfaces rejects what comes from interfaces that are not wanted.
func (u *union) interfaces(s Scope) {
	wanted := u.newLabel()
	u.do(opLoadWord, extInterface)
	u.test(opJumpGreater, uint32(s.Known), wanted)
	for _, i := range s.Interfaces {
		if i <= s.Known {
			u.test(opJumpEqual, uint32(i), wanted)
		}
	}
	u.do(opReturn, 0)
	u.place(wanted)
}

// ethernet takes what has no Ethernet header.
func (u *union) ethernet() {
	goOn := u.newLabel()
	u.do(opLoadWord, extHardware)
	u.test(opJumpEqual, hardwareEther, goOn)
	u.test(opJumpEqual, hardwareLoopback, goOn)
	u.do(opReturn, accept)
	u.place(goOn)
}

// programs appends them, each as the kernel has the frame.
func (u *union) programs(programs [][]insn, view func(insn) insn) {
	for i, code := range programs {
		u.program(code, view, i == len(programs)-1)
	}
}

// program appends one that goes on behind itself where it would reject, unless it
// is the last.
//
// A load beyond the frame's end rejects. In the kernel that ends everything, so
// that the programs behind would not be asked: before the loads of all but the last,
// the length is.
func (u *union) program(code []insn, view func(insn) insn, last bool) {
	code = translate(code, view, last)
	p := part{union: u, code: code, at: u.newLabels(len(code)), next: u.newLabel(), take: u.newLabel(), last: last, spare: spareMemory(code)}
	known := knownLengths(code)
	for i, c := range code {
		u.place(p.at[i])
		if known[i] == unreached {
			continue
		}
		if !last && !p.guard(i, known[i]) {
			c = insn{op: opTake}
		}
		p.insn(i, c)
	}
	if p.takes {
		u.place(p.take)
		u.do(opReturn, accept)
	}
	u.place(p.next)
	if p.rejects {
		u.do(opReturn, 0)
	}
}

// part is a program within a union.
type part struct {
	*union
	code       []insn
	at         []label // of each of code
	next, take label   // where a packet goes that the program rejects, and takes
	last       bool
	spare      uint32 // a word of the scratch memory that code does not use, or memory

	takes, rejects bool // whether there is a way to take, and of the last one to next
}

// insn appends an instruction that is translated.
//
// To take or to reject in the middle is a jump, not a return: the kernel's checker of the
// scratch memory (check_load_and_stores) takes the instruction behind a return for
// one that follows it.
func (p *part) insn(i int, c insn) {
	switch {
	case c.conditional():
		p.put(step{op: c.op, k: c.k, yes: p.at[i+1+int(c.jt)], no: p.at[i+1+int(c.jf)]})
	case c.op == opTake:
		p.jump(p.take)
		p.takes = true
	case c.op == opFail || c.op == opReturn && c.k == 0 && !p.last:
		p.jump(p.next)
		p.rejects = p.last
	case c.op == opLoadLenTagged:
		p.do(opLoadLen, 0)
		p.do(opAdd, tagSize)
	default:
		p.do(c.op, c.k)
	}
}

// What translate makes of instructions.
const (
	opTake          = 0x200 // end here, and take
	opFail          = 0x201 // end here, and reject
	opLoadLenTagged = 0x202 // A = the length, and the tag's
)

// tagSize is how much longer a frame is with a VLAN tag.
const tagSize = 4

// translate is a program in the kernel's words, instruction for instruction. view tells how
// the kernel has what an instruction loads.
func translate(code []insn, view func(insn) insn, last bool) []insn {
	out := make([]insn, len(code))
	for i, c := range code {
		switch c.op {
		case opOwner, opDirection, opJump, opShiftLeft + byX, opShiftRight + byX:
			// The kernel shifts by the 5 lowest bits of X, and never jumps back.
			c = insn{op: opTake}
		case opDiv + byX, opMod + byX:
			if !last { // division by 0 rejects, whatever follows
				c = insn{op: opTake}
			}
		case opPacketType:
			c = insn{op: opLoadHalf, k: extType}
		case opInterface:
			c = insn{op: opLoadWord, k: extInterface}
		default:
			c = view(c)
		}
		out[i] = c
	}
	return out
}

// asItIs is for frames whose every byte the kernel has where Run has it.
//
// An offset beyond any frame's end is negative to the kernel, and means something else.
func asItIs(c insn) insn {
	if n, _ := c.loadSize(); n != 0 && c.k > maxOffset {
		return insn{op: opFail}
	}
	return c
}

// maxOffset is more than any frame is long.
const maxOffset = 1<<31 - 1

// Where a tag stands in a frame.
const (
	tagStart = 12
	tagEnd   = tagStart + tagSize
)

// withoutTag is for frames whose outer tag the kernel has in the metadata:
//
//	Run:    addresses | type of the tag, tag | type ...
//	kernel: addresses                        | type ...
func withoutTag(c insn) insn {
	n, indexed := c.loadSize()
	c = asItIs(c)
	switch {
	case c.op == opLoadLen:
		return insn{op: opLoadLenTagged}
	case n == 0 || c.op == opFail || !indexed && c.k+n <= tagStart:
		return c
	case c.k >= tagEnd: // X adds to it
		c.k -= tagSize
		return c
	case c.op == opLoadHalf && c.k == tagStart:
		return insn{op: opLoadWord, k: extVLANTPID}
	case c.op == opLoadHalf && c.k == tagStart+2:
		return insn{op: opLoadWord, k: extVLANTag}
	}
	return insn{op: opTake}
}

// spareMemory is the first word of the scratch memory that no instruction uses, or memory.
func spareMemory(code []insn) uint32 {
	spare := uint32(0)
	for _, c := range code {
		if c.op == opStore {
			spare = max(spare, c.k+1)
		}
	}
	return spare
}

// guard leads frames that end before what instruction i loads to next. known is how long
// the frame is at least. It is false where A must be kept and there is no memory for it.
func (p *part) guard(i int, known uint64) bool {
	need, indexed := loadEnd(p.code[i])
	if need <= known && !indexed {
		return true
	}
	if p.writesA(i) || p.writesA(i+1) {
		p.demandLength(need, known, indexed)
		return true
	}
	if p.spare == memory {
		return false
	}
	p.do(opStore, p.spare)
	p.demandLength(need, known, indexed)
	p.do(opLoadMem, p.spare)
	return true
}

// demandLength changes A.
func (p *part) demandLength(need, known uint64, indexed bool) {
	if need > known {
		p.do(opLoadLen, 0)
		p.demand(opJumpAtLeast, uint32(need), p.next)
	}
	if indexed {
		// X + need <= length, without a sum that could overflow, nor a difference.
		p.do(opLoadLen, 0)
		p.do(opSub, uint32(need))
		p.demand(opJumpAtLeast+byX, 0, p.next)
	}
}

// writesA tells whether instruction i has no use for what is in A.
func (p *part) writesA(i int) bool {
	c := p.code[i]
	n, _ := c.loadSize()
	return n != 0 && c.op != opLoadXHeader || c.op == opLoadMem || c.op == opImm || c.op == opTxa
}

// loadEnd is how long a frame must be for c, if X is 0; 0 for what loads nothing of it.
func loadEnd(c insn) (end uint64, indexed bool) {
	n, indexed := c.loadSize()
	if n == 0 || c.k >= special {
		return 0, false
	}
	return uint64(c.k) + uint64(n), indexed
}

// unreached is the known length where nothing leads to.
const unreached = ^uint64(0)

// knownLengths tells how long a frame is at least that reaches an instruction: what has
// been loaded on every way there is within it.
func knownLengths(code []insn) []uint64 {
	known := make([]uint64, len(code))
	for i := range known[1:] {
		known[1+i] = unreached
	}
	for i, c := range code {
		if known[i] == unreached {
			continue
		}
		end, _ := loadEnd(c)
		after := max(known[i], end)
		switch {
		case c.conditional():
			for _, to := range []int{i + 1 + int(c.jt), i + 1 + int(c.jf)} {
				known[to] = min(known[to], after)
			}
		case c.op != opReturn && c.op != opTake && c.op != opFail:
			known[i+1] = min(known[i+1], after)
		}
	}
	return known
}
