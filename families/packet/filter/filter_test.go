package filter

import (
	"bytes"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/packet/pcapng"
	"github.com/stretchr/testify/require"
	"golang.org/x/net/bpf"
)

// expressions mean the same to us and to libpcap.
var expressions = []string{
	"", "ip", "ip6", "arp", "rarp", "ipx", "stp", "tcp", "udp", "sctp", "icmp", "icmp6", "igmp", "ah", "esp", "pim", "vrrp",
	"not ip", "! arp", "not tcp", "not udp port 53", "not (ip or ip6)", "not not ip",
	"ether proto 0x88b5", "ether proto 0x800", `ether proto \ip`, `ether proto \ip6`, `ether proto \arp`, `ether proto \ipx`, `ether proto \stp`, `ether proto \iso`, `ether proto \netbeui`,
	"ether proto 0xe0", "ether proto 0x42", "ether proto 0xfe", "ether proto 0xf0", "ether proto 6", "ether proto 1500", "ether proto 1501", `ether proto \loopback`,
	"ip proto 6", `ip proto \tcp`, `ip proto \udp`, "ip proto 17", `ip6 proto \udp`, "ip6 proto 58", "ip6 proto 44", "proto 6", `proto \sctp`,
	"ether host 02:00:00:00:00:01", "ether src 02:00:00:00:00:01", "ether dst host 02:00:00:00:00:02", "ether src or dst 02:00:00:00:00:02", "ether src and dst host 02:00:00:00:00:02",
	"host 10.0.0.1", "src 10.0.0.1", "dst host 10.0.0.1", "src or dst host 10.0.0.2", "src and dst host 10.0.0.2", "dst or src 10.0.0.2",
	"ip host 10.0.0.2", "arp host 10.0.0.1", "arp src 10.0.0.1", "rarp host 10.0.0.1", "arp net 10.0.0.0/24", "ip src net 10.0.0.0/24",
	"host 2001:db8::1", "src host 2001:db8::1", "dst host ff02::fb", "ip6 host fe80::1", "ip6 dst host fe80::1",
	"net 10.0.0.0/8", "net 10", "net 10.0", "net 10.0.0", "net 10.0.0.0", "net 192.168/16", "src net 192.168.7.0/24", "dst net 10.1.0.0/16", "net 0.0.0.0/0", "net 10.0.0.0 mask 255.0.0.0", "net 10.0.0.2/31", "net 10.0.0.1/32",
	"ip6 net 2001:db8::/32", "net 2001:db8::/32", "src net fe80::/10", "net 2001:db8:5::/48", "net ::/0", "net 2001:db8::1/128", "net 2001:db8::/65",
	"port 80", "src port 80", "dst port 80", "tcp port 80", "udp port 53", "sctp port 80", "tcp src port 80", "udp dst port 53", "src and dst port 53", "port 65535", "port 0x50", "port 0", "src or dst port 53",
	"port http", "tcp port https", "port domain",
	"portrange 50-100", "portrange 100-50", "tcp portrange 1-65535", "udp src portrange 50-60", "portrange 80-80", "src and dst portrange 50-60", "portrange 80",
	"less 60", "greater 60", "less 0", "greater 1000", "not less 60", "less 100 and greater 60",
	"vlan", "vlan 100", "vlan 0", "not vlan", "vlan and ip", "vlan 100 and tcp port 80", "vlan and vlan", "vlan 7 and vlan 100 and ip", "vlan and vlan and udp port 53", "vlan or ip", "ip or vlan", "(vlan) or ip", "not vlan and ip", "vlan 100 or vlan 5", "vlan and host 10.0.0.1", "vlan and arp", "vlan and ether proto 0x88b5", "vlan and ipx", "vlan and ip6 and port 80", "vlan and ether host 02:00:00:00:00:01",
	"broadcast", "multicast", "ether broadcast", "ether multicast", "ip multicast", "ip6 multicast", "not broadcast and not multicast",
	"ip and tcp", "tcp or udp", "tcp or udp and port 53", "udp and port 53 or tcp", "tcp and port 80 or port 443", "port 53 or tcp and host 10.0.0.1", "tcp && port 80 || icmp",
	"port 80 or 443", "host 10.0.0.1 or 10.0.0.2", "src 10.0.0.1 or 10.0.0.2 and tcp", "port (80 or 443)", "host (10.0.0.1 or 192.168.7.9)", "port (80 or 443) and host 10.0.0.1", "not host 10.0.0.1 and 10.0.0.2", "host 10.0.0.1 and not 10.0.0.2",
	"(tcp or udp) and not (port 53 or port 443)", "((((ip))))", "tcp and (host 10.0.0.1 or net 192.168.0.0/16)", "not(tcp)", "src host 10.0.0.1 and dst port 80", "tcp port 80 and (src net 10.0.0.0/8 or dst net 10.0.0.0/8)",
	"ip and not src net 10.0.0.0/8 and not dst net 10.0.0.0/8", "(port 80 or port 443) and tcp", "host 10.0.0.1 and (port 80 or 443)",
}

// oracle is libpcap's own compiler.
func oracle(tb testing.TB, expression string, link pcapng.LinkType, flags ...string) (*bpf.VM, error) {
	tb.Helper()
	tcpdump, err := exec.LookPath("tcpdump")
	require.NoError(tb, err, "this test needs tcpdump: apt-get install tcpdump")
	var stdout, stderr bytes.Buffer
	cmd := exec.Command(tcpdump, append(flags, "-ddd", "-y", link.String(), expression)...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("%s", strings.TrimSpace(stderr.String()))
	}
	var code []bpf.Instruction
	for _, line := range strings.Split(strings.TrimSpace(stdout.String()), "\n")[1:] {
		code = append(code, rawInstruction(tb, line).Disassemble())
	}
	vm, err := bpf.NewVM(code)
	require.NoError(tb, err)
	return vm, nil
}

func rawInstruction(tb testing.TB, line string) bpf.RawInstruction {
	tb.Helper()
	f := strings.Fields(line)
	require.Len(tb, f, 4)
	n := make([]uint64, 4)
	for i, bits := range []int{16, 8, 8, 32} {
		var err error
		n[i], err = strconv.ParseUint(f[i], 10, bits)
		require.NoError(tb, err)
	}
	return bpf.RawInstruction{Op: uint16(n[0]), Jt: uint8(n[1]), Jf: uint8(n[2]), K: uint32(n[3])}
}

// libpcap's optimizer drops and moves loads, and a load beyond the end rejects a
// frame: so of frames that are cut within their headers its two programs can
// judge differently. There, no answer is wrong; everywhere else there is one.
func TestMatchAgreesWithLibpcap(t *testing.T) {
	for _, link := range links {
		frames, whole := corpus(link)
		for _, e := range expressions {
			t.Run(link.String()+"/"+e, func(t *testing.T) {
				optimized, theirs := oracle(t, e, link)
				p, ours := Compile(e, link)
				if theirs != nil && theirs.Error() == "tcpdump: expression rejects all packets" {
					require.NoError(t, ours)
					requireNone(t, p, frames)
					return
				}
				if theirs != nil {
					require.Error(t, ours, "libpcap refuses it: %v", theirs)
					return
				}
				require.NoError(t, ours)
				plain, err := oracle(t, e, link, "-O")
				require.NoError(t, err)
				for i, f := range frames {
					want := verdict(t, optimized, f)
					if i >= whole && want != verdict(t, plain, f) {
						continue
					}
					if p.Match(f, len(f)) != want {
						t.Fatalf("frame %d, % x: got %v; want %v", i, f, !want, want)
					}
				}
			})
		}
	}
}

// links are the link types that can be compiled for.
var links = []pcapng.LinkType{pcapng.Ethernet, pcapng.Raw, pcapng.LinuxSLL2}

func requireNone(t *testing.T, p *Program, frames [][]byte) {
	t.Helper()
	for i, f := range frames {
		require.False(t, p.Match(f, len(f)), "frame %d, % x", i, f)
	}
}

func verdict(t *testing.T, vm *bpf.VM, frame []byte) bool {
	t.Helper()
	n, err := vm.Run(frame)
	require.NoError(t, err)
	return n != 0
}

// A table whose rows match nothing would agree with anything.
func TestExpressionsMatchSomething(t *testing.T) {
	frames, _ := corpus(pcapng.Ethernet)
	nothing := []string{"ether proto 1500", "net 10.0.0.0"}
	for _, e := range expressions {
		p, err := Compile(e, pcapng.Ethernet)
		require.NoError(t, err)
		matched := slices.ContainsFunc(frames, func(f []byte) bool { return p.Match(f, len(f)) })
		if !matched && !slices.Contains(nothing, e) {
			t.Errorf("%q matches no frame", e)
		}
	}
}

func TestShortNetworksTakeALength(t *testing.T) {
	p, err := Compile("net 10/8", pcapng.Ethernet)
	require.NoError(t, err)
	frame := ether(macB, macA, etherIP, ip4("10.0.0.1", "192.0.2.1", 6, 0, 0, ports(5000, 80)))
	require.True(t, p.Match(frame, len(frame)))
}

// What Match takes the kernel must take, and for frames whose tag is in their data
// it must be the same. The VM of x/net/bpf does not know tags in metadata, so the
// three instructions that ask for them are checked by eye and by the capture tests.
func TestKernelTakesWhatMatchTakes(t *testing.T) {
	frames, _ := corpus(pcapng.Ethernet)
	for _, e := range expressions {
		p, err := Compile(e, pcapng.Ethernet)
		require.NoError(t, err, e)
		raw := p.Kernel()
		if e == "" {
			require.Nil(t, raw)
			continue
		}
		require.Equal(t, []bpf.RawInstruction{{Op: 0x20, K: 0xfffff030}, {Op: 0x15, Jt: 1}, {Op: 0x06, K: 0xffffffff}}, raw[:3])
		code, ok := bpf.Disassemble(raw[3:])
		require.True(t, ok, e)
		vm, err := bpf.NewVM(code)
		require.NoError(t, err)
		for _, f := range frames {
			n, err := vm.Run(f)
			require.NoError(t, err)
			require.Equal(t, p.Match(f, len(f)), n != 0, "%s: % x", e, f)
		}
	}
}

func TestKernelTakesAllWhereItCannotTell(t *testing.T) {
	cooked, err := Compile("tcp", pcapng.LinuxSLL2)
	require.NoError(t, err)
	require.Nil(t, cooked.Kernel(), "the kernel has no header to look at in cooked mode")

	long := "port 1" + strings.Repeat(" or 2", 200)
	far, err := Compile(long, pcapng.Ethernet)
	require.NoError(t, err)
	require.Nil(t, far.Kernel(), "thousands of instructions")
	require.True(t, far.Match(ether(macB, macA, etherIP, ip4("10.0.0.1", "10.0.0.2", 6, 0, 0, ports(2, 9))), 60))
}

func TestErrorsNameTheColumn(t *testing.T) {
	for _, tt := range []struct {
		text   string
		column int
		why    string
	}{
		{"tcp prot 80", 5, `"prot" cannot stand here`},
		{"tpc", 1, `"tpc" is no word of a filter`},
		{"ip and", 7, "ends too early"},
		{"and ip", 1, `"and" cannot stand here`},
		{"ip and and tcp", 8, `"and" cannot stand here`},
		{"(ip or tcp", 11, "want a closing parenthesis"},
		{"ip)", 3, `")" cannot stand here`},
		{"host", 5, "host wants a value"},
		{"host example.org", 6, `"example.org" is no IP address, and names are not looked up`},
		{"host 10.0.0.1/8", 6, `"10.0.0.1/8" is no IP address, and names are not looked up`},
		{"host 02:00:00:00:00:01", 6, "a hardware address needs ether"},
		{"ether host 10.0.0.1", 12, `"10.0.0.1" is no hardware address`},
		{"port 70000", 6, `"70000" is no port`},
		{"port nosuchservice", 6, `"nosuchservice" is no port`},
		{"ip and port 1-2", 13, `"1-2" is no port`},
		{"net 10.0.0.1/8", 5, "10.0.0.1 has bits beyond its 8"},
		{"net 10.0.0.0/40", 5, "a prefix of 40 bits is too long"},
		{"net 10.0.0.0 mask 255.0.255.0", 19, `"255.0.255.0" is no mask of leading ones`},
		{"vlan 4096", 6, "a VLAN is a number from 0 to 4095"},
		{"less x", 6, "less wants a length in bytes"},
		{"ip port 80", 1, "ip does not go with port"},
		{"tcp host 10.0.0.1", 1, "tcp does not go with host"},
		{"ip6 host 10.0.0.1", 10, "ip6 has no IPv4 addresses"},
		{"ip host ::1", 9, "ip has no IPv6 addresses"},
		{"10.0.0.1", 1, `"10.0.0.1" is no word of a filter`},
		{"ip or 10.0.0.1", 7, `"10.0.0.1" is no word of a filter`},
		{"src proto 6", 5, "proto has no direction"},
		{"ip proto nonsense", 10, `"nonsense" is no protocol`},
		{"tcp[13] & 2 != 0", 1, `"tcp[13]" is no word of a filter`},
		{"src src 10.0.0.1", 5, "host wants a value"},
		{"src or src 10.0.0.1", 8, `"src" stands there twice`},
		{strings.Repeat("(", 300) + "ip", 201, "more than 200 levels deep"},
		{strings.Repeat("ip or ", 2000), 8193, "longer than 8192 bytes"},
		{"port 1" + strings.Repeat("||2", 2000), 0, "more than 16384"},
	} {
		t.Run(tt.text[:min(len(tt.text), 30)], func(t *testing.T) {
			p, err := Compile(tt.text, pcapng.Ethernet)
			require.Nil(t, p)
			var syntax *families.SyntaxError
			require.True(t, errors.As(err, &syntax), "%v", err)
			require.ErrorIs(t, err, families.ErrSyntax)
			require.Equal(t, "filter", syntax.What)
			require.Equal(t, tt.text, syntax.Text)
			require.Contains(t, syntax.Why, tt.why)
			require.Equal(t, tt.column, syntax.Column)
		})
	}
}

func TestEthernetWordsNeedEthernet(t *testing.T) {
	for _, e := range []string{"vlan", "vlan 5", "ether host 02:00:00:00:00:01", "broadcast", "multicast"} {
		for _, link := range []pcapng.LinkType{pcapng.LinuxSLL2, pcapng.Raw} {
			_, err := Compile(e, link)
			require.ErrorIs(t, err, families.ErrSyntax, e)
			require.ErrorContains(t, err, link.String(), e)
		}
	}
}

func TestLengthIsThatOfTheWire(t *testing.T) {
	p, err := Compile("greater 1000", pcapng.Ethernet)
	require.NoError(t, err)
	require.True(t, p.Match(make([]byte, 64), 1500), "a frame that was cut to 64 bytes")
	require.False(t, p.Match(make([]byte, 64), 64))
}

// What compiles judges any frame without a panic, and prints as text that compiles
// to the same; what does not is a SyntaxError within the text.
func FuzzCompile(f *testing.F) {
	frames, _ := corpus(pcapng.Ethernet)
	for i, e := range expressions {
		f.Add(e, frames[i])
	}
	f.Fuzz(func(t *testing.T, text string, frame []byte) {
		for _, link := range links {
			p, err := Compile(text, link)
			if err != nil {
				var syntax *families.SyntaxError
				require.True(t, errors.As(err, &syntax))
				require.True(t, p == nil && syntax.Column >= 0 && syntax.Column <= len(text)+1)
				continue
			}
			q, err := Compile(p.String(), link)
			require.NoError(t, err)
			require.Equal(t, p.Match(frame, len(frame)), q.Match(frame, len(frame)))
			if raw := p.Kernel(); raw != nil {
				n, err := machine(t, raw, meta{}).Run(frame)
				require.NoError(t, err)
				require.Equal(t, p.Match(frame, len(frame)), n != 0)
			}
		}
	})
}

func BenchmarkMatch(b *testing.B) {
	frame := ether(macB, macA, etherIP, ip4("10.0.0.1", "10.0.0.2", 6, 0, 0, ports(5000, 80)))
	for _, e := range []string{"ip", "tcp port 80", "host 10.0.0.1 and (port 443 or 80)"} {
		b.Run(e, func(b *testing.B) {
			p, err := Compile(e, pcapng.Ethernet)
			require.NoError(b, err)
			b.ReportAllocs()
			for b.Loop() {
				if !p.Match(frame, len(frame)) {
					b.Fatal("does not match")
				}
			}
		})
	}
}
