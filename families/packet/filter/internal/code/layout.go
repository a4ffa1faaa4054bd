package code

import "golang.org/x/net/bpf"

// label is a place in an assembly that jumps lead to.
type label int

// step is an instruction of classic BPF that says where it leads to by labels.
type step struct {
	op      uint16
	k       uint32
	yes, no label // of a conditional jump; yes alone, of opJump

	// A conditional jump that leads too far leads to an opJump behind it.
	farYes, farNo bool
}

// assembly is a program of classic BPF that grows at its end.
type assembly struct {
	steps  []step
	places []int // of each label, an index of steps
}

func (a *assembly) put(s step) { a.steps = append(a.steps, s) }

func (a *assembly) do(op uint16, k uint32) { a.put(step{op: op, k: k}) }

func (a *assembly) jump(to label) { a.put(step{op: opJump, yes: to}) }

// newLabel is one that place puts somewhere later.
func (a *assembly) newLabel() label {
	a.places = append(a.places, -1)
	return label(len(a.places) - 1)
}

func (a *assembly) newLabels(n int) []label {
	out := make([]label, n)
	for i := range out {
		out[i] = a.newLabel()
	}
	return out
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

func (s *step) conditional() bool { return insn{op: s.op}.conditional() }

// far is how far a conditional jump reaches; opJump reaches anywhere.
const far = 0xff

// encode is the program in its bits.
func (a *assembly) encode() []bpf.RawInstruction {
	starts := a.layOut()
	out := make([]bpf.RawInstruction, 0, starts[len(a.steps)])
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
			again = a.reach(i, starts) || again
		}
	}
	return starts
}

// reach tells whether a step gets longer for where it leads to.
func (a *assembly) reach(i int, starts []int) bool {
	s := &a.steps[i]
	if !s.conditional() {
		return false
	}
	tooFar := func(l label) bool { return starts[a.places[l]]-starts[i]-1 > far }
	before := s.size()
	s.farYes, s.farNo = s.farYes || tooFar(s.yes), s.farNo || tooFar(s.no)
	return s.size() != before
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
