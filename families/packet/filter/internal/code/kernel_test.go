package code

import (
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// pair is two sockets of which the second has a filter: the kernel judges datagrams, whose
// first byte is a packet's first.
type pair struct {
	testing.TB
	from, to int
}

func newPair(tb testing.TB) pair {
	tb.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	require.NoError(tb, err)
	tb.Cleanup(func() {
		for _, fd := range fds {
			_ = unix.Close(fd)
		}
	})
	return pair{tb, fds[0], fds[1]}
}

func attach(fd int, raw []bpf.RawInstruction) error {
	code := make([]unix.SockFilter, len(raw))
	for i, f := range raw {
		code[i] = unix.SockFilter{Code: f.Op, Jt: f.Jt, Jf: f.Jf, K: f.K}
	}
	return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(code)), Filter: &code[0]})
}

// takes tells what the filter says. A datagram is there when the call that sends it is back.
func (p pair) takes(data []byte) bool {
	p.Helper()
	require.NoError(p, unix.Send(p.from, data, 0))
	n, _, err := unix.Recvfrom(p.to, make([]byte, len(data)+1), 0)
	if err == unix.EAGAIN { //nolint:errorlint // an errno as it comes
		return false
	}
	require.NoError(p, err)
	require.Equal(p, len(data), n)
	return true
}

// Datagrams have no interface, and are to this host.
var datagram = &Metadata{Direction: DirectionIn}

func anyTakes(programs []*Program, data []byte, length int, m *Metadata) bool {
	return slices.ContainsFunc(programs, func(p *Program) bool { return p.Run(data, uint32(length), m) })
}

// mayDiffer tells whether the kernel's program may take more than the programs: what it cannot know, and,
// without a guard, an offset that overflows.
func mayDiffer(programs []*Program, view func(insn) insn) bool {
	return slices.ContainsFunc(programs, func(p *Program) bool {
		return slices.ContainsFunc(translate(p.code, view, true), func(c insn) bool {
			return c.op == opTake || c.op == opTax || c.op == opImmX || c.op == opDiv+byX || c.op == opMod+byX
		})
	})
}

func (s *source) programs(tb testing.TB, most, tests int) (out []*Program) {
	tb.Helper()
	for range 1 + s.IntN(most) {
		s.values = nil
		out = append(out, mustAssemble(tb, s.b, s.graph(tests), s.IntN(4) == 0))
	}
	return out
}

func TestTheKernelTakesEveryProgramAndWhatItTakes(t *testing.T) {
	p := newPair(t)
	taken, exact, whole := 0, 0, 0
	for seed := range uint64(3000) {
		s := newSource(seed)
		s.owners, s.metas = seed%3 == 0, []Meta{Length, Direction}
		programs := s.programs(t, 4, 1+int(seed%20))
		raw := Kernel(programs, Scope{})
		if raw == nil {
			whole++
			continue
		}
		require.NoError(t, attach(p.to, raw), "seed %d", seed)
		differs := mayDiffer(programs, asItIs)
		for range 12 {
			data := append(s.packet(), 1)
			want, got := anyTakes(programs, data, len(data), datagram), p.takes(data)
			if want && !got || want != got && !differs {
				t.Fatalf("seed %d: want %t, the kernel %t: % x\n%s", seed, want, got, data, listing(programs))
			}
			if want {
				taken++
			}
			if !differs {
				exact++
			}
		}
	}
	t.Logf("%d taken, %d compared exactly, %d programs for all frames", taken, exact, whole)
	require.Greater(t, taken, 2000)
	require.Greater(t, exact, 2000)
}

func listing(programs []*Program) string {
	var out strings.Builder
	for _, p := range programs {
		_ = p.List(&out, Text)
	}
	return out.String()
}

// frameMeta is what a kernel knows of a frame apart from its data.
type frameMeta struct{ iface, hardware, kind, tagged, tci, tpid uint32 }

// machineOf is a program for the machine of x/net/bpf, which does not know metadata: its
// loads become constants.
func machineOf(tb testing.TB, raw []bpf.RawInstruction, m frameMeta) *bpf.VM {
	tb.Helper()
	values := map[uint32]uint32{extInterface: m.iface, extHardware: m.hardware, extType: m.kind, extVLANTagPresent: m.tagged, extVLANTag: m.tci, extVLANTPID: m.tpid}
	var code []bpf.Instruction
	for _, r := range raw {
		if v, ok := values[r.K]; ok && (r.Op == opLoadWord || r.Op == opLoadHalf) {
			r = bpf.RawInstruction{Op: opImm, K: v}
		}
		code = append(code, r.Disassemble())
	}
	vm, err := bpf.NewVM(code)
	require.NoError(tb, err)
	return vm
}

func vmTakes(tb testing.TB, raw []bpf.RawInstruction, m frameMeta, frame []byte) bool {
	tb.Helper()
	n, err := machineOf(tb, raw, m).Run(frame)
	require.NoError(tb, err)
	return n != 0
}

// untagged is a frame as the kernel has it, its tag taken out.
func untagged(frame []byte) ([]byte, frameMeta) {
	m := frameMeta{iface: 2, hardware: hardwareEther, tagged: 1}
	m.tpid, m.tci = uint32(frame[12])<<8|uint32(frame[13]), uint32(frame[14])<<8|uint32(frame[15])
	return slices.Concat(frame[:12], frame[16:]), m
}

// Programs judge the frame with its tag in place, the kernel without it: also of what is cut off
// for the program, and not for the kernel, it takes no less.
func TestATagInMetadataIsJudgedAsInItsPlace(t *testing.T) {
	exact, taken := 0, 0
	for seed := range uint64(4000) {
		s := newSource(seed)
		s.metas = []Meta{Length, Direction, Interface}
		programs := s.programs(t, 3, 1+int(seed%12))
		raw := Kernel(programs, Scope{Mixed: seed%2 == 0})
		if raw == nil {
			continue
		}
		differs := mayDiffer(programs, withoutTag)
		for range 10 {
			frame := append(append(s.packet(), s.packet()...), make([]byte, 18)...)
			frame[12], frame[13] = pick(s, []byte{0x81, 0x88}), 0
			short, m := untagged(frame)
			meta := &Metadata{Interface: 2, Direction: DirectionIn}
			got := vmTakes(t, raw, m, short)
			want := anyTakes(programs, frame, len(frame), meta)
			if cut := frame[:s.IntN(len(frame))]; !got && anyTakes(programs, cut, len(frame), meta) || want && !got || want != got && !differs {
				t.Fatalf("seed %d: want %t, got %t: % x\n%s", seed, want, got, frame, listing(programs))
			}
			if want {
				taken++
			}
			if !differs {
				exact++
			}
		}
	}
	t.Logf("%d taken, %d compared exactly", taken, exact)
	require.Greater(t, taken, 2000)
	require.Greater(t, exact, 2000)
}

// etherType takes frames of one.
func etherType(tb testing.TB, n uint32) *Program {
	tb.Helper()
	b := NewBuilder()
	return mustAssemble(tb, b, b.Test(Equal, b.Load(nil, 12, 2), b.Const(n), b.Accept(), b.Reject()), false)
}

func everything(tb testing.TB) *Program {
	tb.Helper()
	b := NewBuilder()
	return mustAssemble(tb, b, b.Accept(), false)
}

// long takes what has one of n numbers somewhere. Each test is of a value of its own: of 3 instructions.
func long(tb testing.TB, n uint32) *Program {
	tb.Helper()
	b := NewBuilder()
	root := b.Reject()
	for i := range n {
		root = b.Test(Equal, b.Compute(Mod, b.Load(nil, 20, 4), b.Const(2000+i)), b.Const(1999), b.Accept(), root)
	}
	return mustAssemble(tb, b, root, false)
}

func TestKernelKeepsToItsScope(t *testing.T) {
	ip, arp, all := etherType(t, 0x800), etherType(t, 0x806), everything(t)
	frame := tcpFrame()
	two := Scope{Interfaces: []int{2, 3}, Known: 9}
	for _, tt := range []struct {
		name    string
		program *Program
		scope   Scope
		m       frameMeta
		want    bool
	}{
		{"a frame that no program takes", arp, Scope{}, frameMeta{iface: 3, hardware: 1}, false},
		{"a frame that one takes", ip, Scope{}, frameMeta{iface: 3, hardware: 1}, true},
		{"a tag in metadata, behind which is what a program takes", ip, Scope{}, frameMeta{iface: 3, tagged: 1, tpid: 0x8100}, false},
		{"a tag in metadata of the type that a program takes", arp, Scope{}, frameMeta{iface: 3, tagged: 1, tpid: 0x806}, true},
		{"another hardware type on a socket of one interface", arp, Scope{}, frameMeta{iface: 3, hardware: 65534}, false},
		{"another hardware type on a socket of all", arp, Scope{Mixed: true}, frameMeta{iface: 3, hardware: 65534}, true},
		{"Ethernet on a socket of all", arp, Scope{Mixed: true}, frameMeta{iface: 3, hardware: 1}, false},
		{"loopback on a socket of all", arp, Scope{Mixed: true}, frameMeta{iface: 3, hardware: 772}, false},
		{"loopback on a socket of all that matches", ip, Scope{Mixed: true}, frameMeta{iface: 3, hardware: 772}, true},
		{"a wanted interface", ip, two, frameMeta{iface: 3}, true},
		{"a wanted interface, no match", arp, two, frameMeta{iface: 3}, false},
		{"another interface", ip, two, frameMeta{iface: 4}, false},
		{"another interface, tagged", arp, two, frameMeta{iface: 4, tagged: 1, tpid: 0x806}, false},
		{"another interface, no Ethernet", ip, Scope{Interfaces: []int{2, 3}, Known: 9, Mixed: true}, frameMeta{iface: 4, hardware: 65534}, false},
		{"the last known", ip, two, frameMeta{iface: 9}, false},
		{"a new interface", ip, two, frameMeta{iface: 10}, true},
		{"a new interface, no match", arp, two, frameMeta{iface: 10}, false},
		{"no interface yet", ip, Scope{Interfaces: []int{}, Known: 9}, frameMeta{iface: 3}, false},
		{"all of a wanted interface", all, Scope{Interfaces: []int{3}, Known: 9}, frameMeta{iface: 3}, true},
		{"all, but of another interface", all, Scope{Interfaces: []int{3}, Known: 9}, frameMeta{iface: 4}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			require.Equal(t, tt.want, vmTakes(t, Kernel([]*Program{tt.program}, tt.scope), tt.m, frame))
		})
	}
}

func TestKernelTakesAllWhereItCannotTell(t *testing.T) {
	ip, all, much := etherType(t, 0x800), everything(t), long(t, 200)
	require.Nil(t, Kernel([]*Program{all, ip}, Scope{}))
	require.Nil(t, Kernel([]*Program{ip, much}, Scope{Mixed: true}))
	require.NotNil(t, Kernel([]*Program{ip}, Scope{}))
	one := Scope{Interfaces: []int{3}, Known: 9}
	for _, programs := range [][]*Program{{much}, {all, ip}} {
		require.Len(t, Kernel(programs, one), 5, "the interface alone")
	}
	many := Scope{Known: 1000}
	for i := range 300 {
		many.Interfaces = append(many.Interfaces, i)
	}
	require.False(t, vmTakes(t, Kernel([]*Program{etherType(t, 0x806)}, many), frameMeta{iface: 2}, tcpFrame()), "jumps to the program lead far, and lead there")
	for i := range 300 {
		many.Interfaces = append(many.Interfaces, 300+i)
	}
	require.Nil(t, Kernel([]*Program{ip}, many))
}

func TestTaggedFramesAreAllTakenWhereTwoProgramsAreTooLong(t *testing.T) {
	tagged, plain := frameMeta{tagged: 1, tpid: 0x8100}, frameMeta{}
	twice, once := Kernel([]*Program{long(t, 60)}, Scope{}), Kernel([]*Program{long(t, 130)}, Scope{})
	require.LessOrEqual(t, max(len(twice), len(once)), maxKernel)
	require.False(t, vmTakes(t, twice, tagged, tcpFrame()))
	require.False(t, vmTakes(t, once, plain, tcpFrame()))
	require.True(t, vmTakes(t, once, tagged, tcpFrame()))
}

func TestEqualProgramsCountOnce(t *testing.T) {
	a, b := etherType(t, 0x800), etherType(t, 0x806)
	require.Equal(t, Kernel([]*Program{a, b}, Scope{}), Kernel([]*Program{a, b, etherType(t, 0x800), b}, Scope{}))
	require.Equal(t, []bpf.RawInstruction{{Op: opReturn, K: 0}}, Kernel(nil, Scope{}))
}

// A load beyond a frame's end rejects in the program that it is of, and in no other.
func TestALoadBeyondTheEndHidesNoOtherProgram(t *testing.T) {
	p := newPair(t)
	for _, filter := range []string{"tcp port 80", "ip6 host 2001:db8::1", "ether host 02:00:00:00:00:01", "vlan 100 and tcp port 80", "ip[ip[0]*4:2]*3 + ip[4] > ip[5] - ip[6]"} {
		b := NewBuilder()
		first := mustAssemble(t, b, graphOf(t, b, classicOf(t, mustFind(t, filter).text["plain"])), false)
		short := mustAssemble(t, b, b.Test(Greater, b.Meta(Length), b.Const(50), b.Reject(), b.Accept()), false)
		programs := []*Program{first, short}
		require.NoError(t, attach(p.to, Kernel(programs, Scope{})))
		for n := 1; n <= 60; n++ {
			require.Equal(t, anyTakes(programs, tcpFrame()[:n], n, datagram), p.takes(tcpFrame()[:n]), "%s, %d bytes", filter, n)
		}
	}
}

// The longest program is still attached on a socket of small option memory.
func TestTheKernelTakesTheLongestProgram(t *testing.T) {
	var longest []bpf.RawInstruction
	for n := uint32(1); ; n++ {
		raw := Kernel([]*Program{long(t, n)}, Scope{Interfaces: []int{1}, Known: 2})
		if len(raw) == 5 {
			break
		}
		longest = raw
	}
	require.Greater(t, len(longest), maxKernel*9/10)
	require.NoError(t, attach(newPair(t).to, longest))
}
