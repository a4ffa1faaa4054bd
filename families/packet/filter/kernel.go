package filter

import (
	"github.com/sockd/sockd/families/packet/filter/internal/code"
	"golang.org/x/net/bpf"
)

// Scope tells which frames a socket sees that a Union is for.
type Scope = code.Scope

// Kernel is Union of this program alone, for a socket that is bound to one interface.
func (p *Program) Kernel() []bpf.RawInstruction { return Union([]*Program{p}, Scope{}) }

// Union is a program for the kernel's socket filter that takes every frame that Match of any of the
// programs takes, and as few others as it can. nil stands for all frames. Without programs
// it takes none.
//
// Frames of a link type whose header the kernel does not have are all taken, as in cooked mode;
// so is what the kernel cannot know, as an owner. Beside what a program with "fragments" takes,
// so are all fragments that a Follower has to see.
func Union(programs []*Program, scope Scope) []bpf.RawInstruction {
	var codes []*code.Program
	for _, p := range programs {
		if p == nil || p.link != programs[0].link || !kernelHas(p.link, scope) {
			return code.Kernel([]*code.Program{everything}, scope)
		}
		codes = append(codes, p.code)
		if p.Fragments() {
			codes = append(codes, orEverything(fragmentProgram(p.link)))
		}
	}
	return code.Kernel(codes, scope)
}

// orEverything is a program, or the one that takes all where it could not be made.
func orEverything(p *code.Program, err error) *code.Program {
	if err != nil {
		return everything
	}
	return p
}

// kernelHas tells whether the kernel's frames begin with the header of a link type. Those of
// a socket that is bound to no interface begin with Ethernet's, or are all taken.
func kernelHas(link LinkType, scope Scope) bool {
	return link == Ethernet || link == Raw && !scope.Mixed
}
