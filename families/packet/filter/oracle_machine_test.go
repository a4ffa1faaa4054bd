package filter_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// This file is a machine for classic BPF that shares nothing with the compiler
// under test: it runs what tcpdump prints. It knows what libpcap's own machine
// knows, jumps backward among it, which protochain makes.

// oracleFrame is a packet that programs are judged by.
type oracleFrame struct {
	data   []byte
	length int  // on the wire
	out    bool // it leaves
	iface  uint32
	name   string // what it is of
}

// bpfStep is one instruction, as tcpdump -ddd prints it.
type bpfStep struct {
	op     uint32
	jt, jf uint32
	k      uint32
}

type bpfProgram []bpfStep

// The parts of an opcode, and what libpcap has of the kernel's ancillary loads.
const (
	bpfClass, bpfSize, bpfMode = 0x07, 0x18, 0xe0

	bpfLD, bpfLDX, bpfST, bpfSTX, bpfALU, bpfJMP, bpfRET, bpfMISC = 0, 1, 2, 3, 4, 5, 6, 7

	bpfIMM, bpfABS, bpfIND, bpfMEM, bpfLEN, bpfMSH = 0x00, 0x20, 0x40, 0x60, 0x80, 0xa0

	adPktType = 0xfffff004
	adIfIndex = 0xfffff008

	packetOutgoing = 4

	// maxSteps is beyond what a chain of headers of our frames takes: a header has at
	// least 8 bytes, and takes 20 steps.
	maxSteps = 1 << 14
)

// errForever is of programs of protochain: libpcap's forgets behind AH where it was, and
// can come back to a header it was at.
var errForever = errors.New("runs forever")

// bpfState is a machine in the middle of a program.
type bpfState struct {
	a, x uint32
	m    [16]uint32
	f    *oracleFrame
}

// match runs a program on a frame. A program that does not end is errForever.
func (p bpfProgram) match(f *oracleFrame) (bool, error) {
	s := bpfState{f: f}
	pc := uint32(0)
	for range maxSteps {
		if pc >= uint32(len(p)) {
			return false, fmt.Errorf("ran to instruction %d of %d", pc, len(p))
		}
		in := p[pc]
		pc++
		switch in.op & bpfClass {
		case bpfRET:
			return s.ret(in) != 0, nil
		case bpfJMP:
			pc += s.jump(in)
		default:
			if !s.step(in) {
				return false, nil
			}
		}
	}
	return false, errForever
}

func (s *bpfState) ret(in bpfStep) uint32 {
	if in.op&0x18 == 0x10 {
		return s.a
	}
	return in.k
}

// jump is how far to go from the next instruction, backward by wrapping around.
func (s *bpfState) jump(in bpfStep) uint32 {
	against := in.k
	if in.op&0x08 != 0 {
		against = s.x
	}
	var yes bool
	switch in.op & 0xf0 {
	case 0x00:
		return in.k
	case 0x10:
		yes = s.a == against
	case 0x20:
		yes = s.a > against
	case 0x30:
		yes = s.a >= against
	case 0x40:
		yes = s.a&against != 0
	default:
		panic(fmt.Sprintf("jump %#x", in.op))
	}
	if yes {
		return in.jt
	}
	return in.jf
}

// step runs an instruction that goes on with the next. False: the packet is refused.
func (s *bpfState) step(in bpfStep) (ok bool) {
	switch in.op & bpfClass {
	case bpfLD:
		s.a, ok = s.load(in)
		return ok
	case bpfLDX:
		s.x, ok = s.load(in)
		return ok
	case bpfST:
		s.m[in.k] = s.a
	case bpfSTX:
		s.m[in.k] = s.x
	case bpfALU:
		return s.compute(in)
	case bpfMISC:
		if in.op&0x80 != 0 {
			s.a = s.x
		} else {
			s.x = s.a
		}
	}
	return true
}

func (s *bpfState) load(in bpfStep) (uint32, bool) {
	switch in.op & bpfMode {
	case bpfIMM:
		return in.k, true
	case bpfLEN:
		return uint32(s.f.length), true
	case bpfMEM:
		return s.m[in.k], true
	case bpfABS:
		return s.bytes(uint64(in.k), in.op&bpfSize)
	case bpfIND:
		return s.bytes(uint64(in.k)+uint64(s.x), in.op&bpfSize) // which does not wrap around, as bpf_filter.c says
	case bpfMSH:
		v, ok := s.bytes(uint64(in.k), 0x10)
		return v & 0xf * 4, ok
	}
	panic(fmt.Sprintf("load %#x", in.op))
}

func (s *bpfState) bytes(at uint64, size uint32) (uint32, bool) {
	switch at {
	case adPktType:
		if s.f.out {
			return packetOutgoing, true
		}
		return 0, true
	case adIfIndex:
		return s.f.iface, true
	}
	d := s.f.data
	switch {
	case size == 0x00 && at+4 <= uint64(len(d)):
		return binary.BigEndian.Uint32(d[at:]), true
	case size == 0x08 && at+2 <= uint64(len(d)):
		return uint32(binary.BigEndian.Uint16(d[at:])), true
	case size == 0x10 && at+1 <= uint64(len(d)):
		return uint32(d[at]), true
	}
	return 0, false
}

func (s *bpfState) compute(in bpfStep) bool {
	y := in.k
	if in.op&0x08 != 0 {
		y = s.x
	}
	switch in.op & 0xf0 {
	case 0x00:
		s.a += y
	case 0x10:
		s.a -= y
	case 0x20:
		s.a *= y
	case 0x30, 0x90:
		return s.divide(in, y)
	case 0x40:
		s.a |= y
	case 0x50:
		s.a &= y
	case 0x60:
		s.a = shifted(s.a, y, func(a, n uint32) uint32 { return a << n })
	case 0x70:
		s.a = shifted(s.a, y, func(a, n uint32) uint32 { return a >> n })
	case 0x80:
		s.a = -s.a
	case 0xa0:
		s.a ^= y
	}
	return true
}

func (s *bpfState) divide(in bpfStep, y uint32) bool {
	if y == 0 {
		return false
	}
	if in.op&0xf0 == 0x30 {
		s.a /= y
	} else {
		s.a %= y
	}
	return true
}

// shifted is 0 for a shift of 32 bits and more, as libpcap says since 1.8.
func shifted(a, n uint32, shift func(a, n uint32) uint32) uint32 {
	if n > 31 {
		return 0
	}
	return shift(a, n)
}

// parseBPF reads what tcpdump -ddd prints.
func parseBPF(text string) (p bpfProgram, err error) {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	if n, err := strconv.Atoi(lines[0]); err != nil || n != len(lines)-1 {
		return nil, fmt.Errorf("no program: %q", text)
	}
	for _, line := range lines[1:] {
		var in bpfStep
		if _, err := fmt.Sscanf(line, "%d %d %d %d", &in.op, &in.jt, &in.jf, &in.k); err != nil {
			return nil, fmt.Errorf("instruction %q: %w", line, err)
		}
		p = append(p, in)
	}
	return p, nil
}

// tcpdumpCompile asks libpcap for the program of an expression. refused is why there is none.
func tcpdumpCompile(link, text string, plain bool) (p bpfProgram, refused string, err error) {
	args := []string{"-y", link, "-ddd"}
	if plain {
		args = append(args, "-O")
	}
	var out, why strings.Builder
	cmd := exec.Command("tcpdump", append(args, "--", text)...)
	cmd.Stdout, cmd.Stderr = &out, &why
	err = cmd.Run()
	switch _, failed := err.(*exec.ExitError); {
	case failed && cmd.ProcessState.ExitCode() == 1:
		return nil, strings.TrimSpace(why.String()), nil
	case err != nil:
		return nil, "", fmt.Errorf("tcpdump %q: %w, %s", text, err, why.String())
	}
	p, err = parseBPF(out.String())
	return p, "", err
}

func TestTheOraclesMachineKnowsClassicBPF(t *testing.T) {
	for name, tc := range map[string]struct {
		program string
		want    bool
	}{
		"a byte":                  {"48 0 0 1|21 0 1 2|6 0 0 1|6 0 0 0", true},
		"another byte":            {"48 0 0 1|21 0 1 3|6 0 0 1|6 0 0 0", false},
		"beyond the end":          {"40 0 0 3|6 0 0 1", false},
		"the wire's length":       {"128 0 0 0|21 0 1 100|6 0 0 1|6 0 0 0", true},
		"four times a half byte":  {"177 0 0 2|135 0 0 0|21 0 1 12|6 0 0 1|6 0 0 0", true},
		"a jump backward":         {"0 0 0 0|4 0 0 1|53 1 0 3|5 0 0 4294967293|21 0 1 3|6 0 0 1|6 0 0 0", true},
		"division by nothing":     {"0 0 0 1|1 0 0 0|60 0 0 0|6 0 0 1", false},
		"a shift out of the word": {"0 0 0 1|100 0 0 32|21 0 1 0|6 0 0 1|6 0 0 0", true},
		"memory":                  {"0 0 0 7|2 0 0 3|0 0 0 1|97 0 0 3|12 0 0 0|21 0 1 8|6 0 0 1|6 0 0 0", true},
		"outgoing":                {"40 0 0 4294963204|21 0 1 4|6 0 0 1|6 0 0 0", true},
	} {
		t.Run(name, func(t *testing.T) {
			steps := strings.Split(tc.program, "|")
			p, err := parseBPF(fmt.Sprintf("%d\n%s\n", len(steps), strings.Join(steps, "\n")))
			require.NoError(t, err)
			got, err := p.match(&oracleFrame{data: []byte{1, 2, 3, 4}, length: 100, out: true})
			require.NoError(t, err)
			require.Equal(t, tc.want, got)
		})
	}
}

func TestTheOraclesMachineTellsLoops(t *testing.T) {
	_, err := bpfProgram{{op: bpfJMP, k: 0xffffffff}}.match(&oracleFrame{})
	require.ErrorIs(t, err, errForever)
}
