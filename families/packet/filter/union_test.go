package filter

import (
	"errors"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/sockd/sockd/families/familytest"
	"github.com/sockd/sockd/families/packet/pcapng"
	"github.com/stretchr/testify/require"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// meta is what a kernel knows of a frame apart from its data.
type meta struct{ iface, hardware, tagged uint32 }

// machine is a program for the VM of x/net/bpf, which does not know metadata: its
// loads become constants.
func machine(tb testing.TB, raw []bpf.RawInstruction, m meta) *bpf.VM {
	tb.Helper()
	values := map[uint32]uint32{extInterface: m.iface, extHardware: m.hardware, extVLANTagPresent: m.tagged}
	var code []bpf.Instruction
	for _, r := range raw {
		if v, ok := values[r.K]; ok && r.Op == opLoadWord {
			r = bpf.RawInstruction{Op: 0x00, K: v} // A = k
		}
		code = append(code, r.Disassemble())
	}
	vm, err := bpf.NewVM(code)
	require.NoError(tb, err)
	return vm
}

func mustCompile(tb testing.TB, link pcapng.LinkType, texts ...string) (out []*Program) {
	tb.Helper()
	for _, e := range texts {
		p, err := Compile(e, link)
		require.NoError(tb, err)
		out = append(out, p)
	}
	return out
}

func anyMatches(programs []*Program, frame []byte) bool {
	return slices.ContainsFunc(programs, func(p *Program) bool { return p.Match(frame, len(frame)) })
}

// An expression that compiles for the link type, not the empty one.
func someExpression(r *rand.Rand, link pcapng.LinkType) string {
	for {
		e := expressions[r.IntN(len(expressions))]
		if r.IntN(4) == 0 {
			e = "not (" + e + ")"
		}
		if _, err := Compile(e, link); err == nil && e != "" {
			return e
		}
	}
}

// Guarded as they are, the programs do not hide one another: also of frames that
// end within what a filter looks at, the union takes exactly what one of them takes.
func TestUnionTakesWhatAnyTakesAndNothingElse(t *testing.T) {
	for _, link := range []pcapng.LinkType{pcapng.Ethernet, pcapng.Raw} {
		t.Run(link.String(), func(t *testing.T) {
			frames, _ := corpus(link)
			r := rand.New(rand.NewPCG(3, uint64(link)))
			long := 0
			for range 1500 {
				var texts []string
				for range 2 + r.IntN(4) {
					texts = append(texts, someExpression(r, link))
				}
				programs := mustCompile(t, link, texts...)
				raw := Union(programs, Scope{})
				if raw == nil {
					t.Fatalf("%q: nil", texts)
				}
				if len(raw) > far {
					long++
				}
				vm := machine(t, raw, meta{})
				for range 60 {
					f := frames[r.IntN(len(frames))]
					f = f[:min(len(f), r.IntN(201))]
					n, err := vm.Run(f)
					require.NoError(t, err)
					require.Equal(t, anyMatches(programs, f), n != 0, "%q: % x", texts, f)
				}
			}
			require.NotZero(t, long, "no program was long enough for a jump that leads far")
		})
	}
}

// Where a port stands depends on a length in the frame, which can lead beyond its end.
func TestALoadBeyondTheEndHidesNoOtherFilter(t *testing.T) {
	whole := ether(macB, macA, etherIP, ip4("10.0.0.1", "10.0.0.2", 6, 0, 10, ports(5000, 80)))
	for _, texts := range [][]string{
		{"tcp port 443", "less 2000"}, {"ip6 host 2001:db8::1", "ip"}, {"ether host 02:00:00:00:00:07", "less 10"},
		{"not tcp port 443", "less 2000"}, {"vlan and vlan 5 and ip6 and tcp port 1", "less 9", "ip host 10.0.0.1"},
	} {
		programs := mustCompile(t, pcapng.Ethernet, texts...)
		vm := machine(t, Union(programs, Scope{}), meta{})
		for length := range len(whole) + 1 {
			n, err := vm.Run(whole[:length])
			require.NoError(t, err)
			require.Equal(t, anyMatches(programs, whole[:length]), n != 0, "%q, %d bytes", texts, length)
		}
	}
}

func TestUnionKeepsToItsScope(t *testing.T) {
	ip := ether(macB, macA, etherIP, ip4("10.0.0.1", "10.0.0.2", 6, 0, 0, ports(5000, 80)))
	for _, tt := range []struct {
		name  string
		text  string
		scope Scope
		m     meta
		want  bool
	}{
		{"a frame that no filter takes", "udp", Scope{}, meta{3, 1, 0}, false},
		{"a frame that one takes", "tcp", Scope{}, meta{3, 1, 0}, true},
		{"a tag in metadata", "udp", Scope{}, meta{3, 1, 1}, true},
		{"another hardware type on a socket of one interface", "udp", Scope{}, meta{3, 65534, 0}, false},
		{"another hardware type on a socket of all", "udp", Scope{Mixed: true}, meta{3, 65534, 0}, true},
		{"Ethernet on a socket of all", "udp", Scope{Mixed: true}, meta{3, 1, 0}, false},
		{"loopback on a socket of all", "udp", Scope{Mixed: true}, meta{3, 772, 0}, false},
		{"loopback on a socket of all that matches", "tcp", Scope{Mixed: true}, meta{3, 772, 0}, true},
		{"a wanted interface", "tcp", Scope{Interfaces: []int{2, 3}, Known: 9}, meta{3, 1, 0}, true},
		{"a wanted interface, no match", "udp", Scope{Interfaces: []int{2, 3}, Known: 9}, meta{3, 1, 0}, false},
		{"another interface", "tcp", Scope{Interfaces: []int{2, 3}, Known: 9}, meta{4, 1, 0}, false},
		{"another interface, tagged", "tcp", Scope{Interfaces: []int{2, 3}, Known: 9}, meta{4, 1, 1}, false},
		{"another interface, no Ethernet", "tcp", Scope{Interfaces: []int{2, 3}, Known: 9, Mixed: true}, meta{4, 65534, 0}, false},
		{"the last known", "tcp", Scope{Interfaces: []int{2, 3}, Known: 9}, meta{9, 1, 0}, false},
		{"a new interface", "tcp", Scope{Interfaces: []int{2, 3}, Known: 9}, meta{10, 1, 0}, true},
		{"a new interface, no match", "udp", Scope{Interfaces: []int{2, 3}, Known: 9}, meta{10, 1, 0}, false},
		{"no interface yet", "tcp", Scope{Interfaces: []int{}, Known: 9}, meta{3, 1, 0}, false},
		{"all of a wanted interface", "", Scope{Interfaces: []int{3}, Known: 9}, meta{3, 1, 0}, true},
		{"all, but of another interface", "", Scope{Interfaces: []int{3}, Known: 9}, meta{4, 1, 0}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			raw := Union(mustCompile(t, pcapng.Ethernet, tt.text), tt.scope)
			n, err := machine(t, raw, tt.m).Run(ip)
			require.NoError(t, err)
			require.Equal(t, tt.want, n != 0)
		})
	}
}

func TestUnionTakesAllWhereItCannotTell(t *testing.T) {
	tcp, cooked, raw := mustCompile(t, pcapng.Ethernet, "tcp"), mustCompile(t, pcapng.LinuxSLL2, "tcp"), mustCompile(t, pcapng.Raw, "tcp")
	long := mustCompile(t, pcapng.Ethernet, "port 1"+strings.Repeat(" or 2", 200))
	all := mustCompile(t, pcapng.Ethernet, "")
	require.Nil(t, Union(cooked, Scope{}))
	require.Nil(t, Union(append(all, tcp...), Scope{}))
	require.Nil(t, Union(append(tcp, cooked...), Scope{}))
	require.Nil(t, Union(append(tcp, raw...), Scope{}), "no socket has both kinds of frames")
	require.Nil(t, Union(raw, Scope{Mixed: true}))
	require.NotNil(t, Union(raw, Scope{}))
	require.Nil(t, Union(long, Scope{}))
	require.Nil(t, Union(append(tcp, long...), Scope{Mixed: true}))

	one := Scope{Interfaces: []int{3}, Known: 9}
	for _, programs := range [][]*Program{cooked, long, append(all, tcp...)} {
		out := Union(programs, one)
		require.Len(t, out, 5, "the interface alone")
	}
	many := Scope{Known: 1000}
	for i := range 300 {
		many.Interfaces = append(many.Interfaces, i)
	}
	n, err := machine(t, Union(tcp, many), meta{iface: 2, hardware: 1}).Run(make([]byte, 60))
	require.NoError(t, err)
	require.Zero(t, n, "jumps to the program lead far, and lead there")
	for i := range 300 {
		many.Interfaces = append(many.Interfaces, 300+i)
	}
	require.Nil(t, Union(tcp, many))
}

func TestEqualProgramsCountOnce(t *testing.T) {
	once := Union(mustCompile(t, pcapng.Ethernet, "tcp", "udp"), Scope{})
	require.Equal(t, once, Union(mustCompile(t, pcapng.Ethernet, "tcp", "udp", "tcp", " udp", "(tcp)"), Scope{}))
	require.Equal(t, []bpf.RawInstruction{{Op: opReturn, K: 0}}, Union(nil, Scope{}))
}

// tap is a packet socket with a filter, in a namespace.
type tap struct {
	t  *testing.T
	fd int
}

func openTap(t *testing.T, ns *familytest.NS, iface int, filter []bpf.RawInstruction) tap {
	t.Helper()
	fd, err := -1, error(nil)
	ns.Do(func() { fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0) })
	require.NoError(t, err)
	t.Cleanup(func() { _ = unix.Close(fd) })
	code := make([]unix.SockFilter, len(filter))
	for i, f := range filter {
		code[i] = unix.SockFilter{Code: f.Op, Jt: f.Jt, Jf: f.Jf, K: f.K}
	}
	require.NoError(t, unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(code)), Filter: &code[0]}))
	require.NoError(t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20))
	require.NoError(t, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 20}))
	require.NoError(t, unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: 0x0300, Ifindex: iface})) // ETH_P_ALL in network byte order
	return tap{t, fd}
}

// until counts the frames that come in before one that is last.
func (p tap) until(last []byte) map[string]int {
	p.t.Helper()
	out := map[string]int{}
	buf := make([]byte, 1<<16)
	for {
		n, from, err := unix.Recvfrom(p.fd, buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		require.NoError(p.t, err)
		if ll, ok := from.(*unix.SockaddrLinklayer); !ok || ll.Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		if string(buf[:n]) == string(last) {
			return out
		}
		out[string(buf[:n])]++
	}
}

type sender struct {
	t         *testing.T
	fd, index int
}

func newSender(t *testing.T, ns *familytest.NS, name string) sender {
	t.Helper()
	s := sender{t: t, index: index(t, ns, name)}
	var err error
	ns.Do(func() { s.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0) })
	require.NoError(t, err)
	t.Cleanup(func() { _ = unix.Close(s.fd) })
	return s
}

func (s sender) send(f []byte) {
	s.t.Helper()
	require.NoError(s.t, unix.Sendto(s.fd, f, 0, &unix.SockaddrLinklayer{Ifindex: s.index}))
}

func index(t *testing.T, ns *familytest.NS, name string) (n int) {
	t.Helper()
	ns.Do(func() {
		i, err := net.InterfaceByName(name)
		if err == nil {
			n = i.Index
		}
	})
	require.NotZero(t, n, name)
	return n
}

// last is a frame that "ether proto 0x88b5" takes, to end with.
var last = ether(macB, macA, 0x88b5, append([]byte("the end"), make([]byte, 40)...))

const lastText = "ether proto 0x88b5 and ether src 02:00:00:00:00:01"

// sendable are frames that arrive as they were sent: no shorter than a header, nor
// longer than the link's, and no tag that the kernel moves to the metadata.
func sendable() (out [][]byte) {
	frames, _ := corpus(pcapng.Ethernet)
	for _, f := range frames {
		if len(f) < 14 || len(f) > 1500 || be.Uint16(f[12:]) == 0x8100 || be.Uint16(f[12:]) == 0x88a8 || be.Uint16(f[12:]) == 0x88b5 {
			continue
		}
		out = append(out, f)
	}
	return out
}

func TestTheKernelJudgesAsMatchDoes(t *testing.T) {
	a, b := familytest.NewNS(t), familytest.NewNS(t)
	familytest.Veth(t, a, "v0", "", b, "v1", "")
	s := newSender(t, a, "v0")
	frames := sendable()
	for _, texts := range [][]string{
		{"tcp port 80", "udp port 53"}, {"tcp port 443", "less 40"}, {"arp", "ip6 and port 53", "host 192.168.7.9"},
		{"not ip", "tcp dst portrange 1-100"}, {"ether broadcast", "ip6 host 2001:db8::1", "net 10.1.0.0/16 and udp"}, {"ip6 proto 44", "ip multicast", "greater 120"},
	} {
		programs := mustCompile(t, pcapng.Ethernet, append(texts, lastText)...)
		p := openTap(t, b, index(t, b, "v1"), Union(programs, Scope{}))
		want := map[string]int{}
		for _, f := range frames {
			s.send(f)
			want[string(f)] += 0
			if anyMatches(programs, f) {
				want[string(f)]++
			}
		}
		s.send(last)
		got := p.until(last)
		taken := 0
		for f, n := range want {
			require.Equal(t, n, got[f], "%q: % x", texts, f)
			taken += n
		}
		require.True(t, taken > 0 && taken < len(frames), "%q takes %d of %d", texts, taken, len(frames))
	}
}

func TestTheKernelKeepsToTheInterfaces(t *testing.T) {
	a, b := familytest.NewNS(t), familytest.NewNS(t)
	familytest.Veth(t, a, "v0", "", b, "v1", "")
	familytest.Veth(t, a, "w0", "", b, "w1", "")
	v, w := index(t, b, "v1"), index(t, b, "w1")
	scope := Scope{Interfaces: []int{w}, Known: max(v, w), Mixed: true}
	p := openTap(t, b, 0, Union(mustCompile(t, pcapng.Ethernet, lastText, "udp"), scope))
	familytest.Veth(t, a, "new0", "", b, "new1", "")
	require.Greater(t, index(t, b, "new1"), scope.Known)

	mark := func(n byte) []byte { return ether(macB, macA, 0x88b5, append([]byte{n}, make([]byte, 45)...)) }
	newSender(t, a, "v0").send(mark(1))
	newSender(t, a, "w0").send(mark(2))
	newSender(t, a, "new0").send(mark(3))
	newSender(t, a, "w0").send(tag(mark(4), 0x8100, 9))
	newSender(t, a, "w0").send(last)
	got := p.until(last)
	require.Equal(t, [3]int{0, 1, 1}, [3]int{got[string(mark(1))], got[string(mark(2))], got[string(mark(3))]})
	require.Equal(t, 1, got[string(mark(4))], "the kernel moved its tag to the metadata")
}

// A tun device has no Ethernet header: the first filter would mistake its packets.
func TestTheKernelTakesWhatHasNoEthernetHeader(t *testing.T) {
	ns := familytest.NewNS(t)
	packet := ip4("10.0.0.1", "10.0.0.2", 6, 0, 0, ports(5000, 80))
	other := ip4("10.0.0.1", "10.0.0.2", 17, 0, 0, ports(53, 53))
	tun := openTun(t, ns, "tun0")
	mixed := openTap(t, ns, 0, Union(mustCompile(t, pcapng.Ethernet, "arp"), Scope{Mixed: true}))
	raw := openTap(t, ns, index(t, ns, "tun0"), Union(mustCompile(t, pcapng.Raw, "tcp port 80"), Scope{}))
	for _, p := range [][]byte{other, packet} {
		_, err := unix.Write(tun, p)
		require.NoError(t, err)
	}
	require.Equal(t, 1, mixed.until(packet)[string(other)])
	require.Zero(t, raw.until(packet)[string(other)])
}

// openTun makes a tun device that is up. What is written to it comes in.
func openTun(t *testing.T, ns *familytest.NS, name string) int {
	t.Helper()
	fd, err := -1, error(nil)
	ns.Do(func() { fd, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0) }) // of the namespace that it was opened in
	require.NoError(t, err)
	t.Cleanup(func() { _ = unix.Close(fd) })
	req, err := unix.NewIfreq(name)
	require.NoError(t, err)
	req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	require.NoError(t, unix.IoctlIfreq(fd, unix.TUNSETIFF, req))
	out, err := exec.Command("ip", "-n", ns.Name(), "link", "set", name, "up").CombinedOutput()
	require.NoError(t, err, "%s", out)
	return fd
}

// The longest program is still attached on a kernel of small option memory.
func TestTheKernelTakesTheLongestProgram(t *testing.T) {
	ns := familytest.NewNS(t)
	var texts []string
	var longest []bpf.RawInstruction
	for i := 0; ; i++ {
		texts = append(texts, "tcp port "+strconv.Itoa(1000+i))
		raw := Union(mustCompile(t, pcapng.Ethernet, texts...), Scope{Mixed: true})
		if raw == nil {
			break
		}
		longest = raw
	}
	require.Greater(t, len(longest), maxUnion*9/10)
	ns.Do(func() {
		// A namespace's own since Linux 6.7; before, this was the default, and nothing is there to write.
		_ = os.WriteFile("/proc/sys/net/core/optmem_max", []byte("20480"), 0o644)
	})
	openTap(t, ns, 0, longest)
}
