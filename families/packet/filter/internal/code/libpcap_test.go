package code

import (
	"fmt"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"
	"github.com/stretchr/testify/require"
	"golang.org/x/net/bpf"
)

// real is a filter's program as tcpdump prints it.
type real struct {
	filter string
	text   map[string]string // plain (not optimised), d, dd and ddd
}

func realPrograms(tb testing.TB) (out []real) {
	tb.Helper()
	archive, err := txtar.ParseFile("testdata/libpcap.txtar")
	require.NoError(tb, err)
	for _, f := range archive.Files {
		style, filter, ok := strings.Cut(f.Name, ": ")
		require.True(tb, ok, f.Name)
		if style == "plain" {
			out = append(out, real{filter, map[string]string{}})
		}
		out[len(out)-1].text[style] = string(f.Data)
	}
	return out
}

func classicOf(tb testing.TB, decimal string) []bpf.RawInstruction {
	tb.Helper()
	r := strings.NewReader(decimal)
	n := 0
	_, err := fmt.Fscan(r, &n)
	require.NoError(tb, err)
	out := make([]bpf.RawInstruction, n)
	for i := range out {
		_, err := fmt.Fscan(r, &out[i].Op, &out[i].Jt, &out[i].Jf, &out[i].K)
		require.NoError(tb, err)
	}
	return out
}

// programOf is one of the same instructions.
func programOf(raw []bpf.RawInstruction) *Program {
	p := &Program{}
	for _, r := range raw {
		c := insn{op: r.Op, jt: uint16(r.Jt), jf: uint16(r.Jf), k: r.K}
		switch {
		case r.Op == opLoadHalf && r.K == extType:
			c = insn{op: opPacketType}
		case r.Op == opLoadWord && r.K == extInterface:
			c = insn{op: opInterface}
		}
		p.code = append(p.code, c)
	}
	p.prepare()
	return p
}

// reader makes the graph of a program of classic BPF, by the values that its registers have
// on each way through it.
type reader struct {
	testing.TB
	b    *Builder
	code []insn
	done map[placed]*Node
}

type placed struct {
	pc int
	state
}

func graphOf(t testing.TB, b *Builder, raw []bpf.RawInstruction) *Node {
	r := reader{t, b, programOf(raw).code, map[placed]*Node{}}
	return r.node(placed{})
}

func (r *reader) node(p placed) *Node {
	if n, ok := r.done[p]; ok {
		return n
	}
	was, n := p, (*Node)(nil)
	for n == nil {
		c := r.code[p.pc]
		p.pc++
		n = r.insn(c, &p)
	}
	r.done[was] = n
	return n
}

// insn does one to the values, or is the node that it leads to.
func (r *reader) insn(c insn, p *placed) *Node {
	if c.conditional() {
		y := r.b.Const(c.k)
		if c.op&byX != 0 {
			y = p.x
		}
		yes, no := *p, *p
		yes.pc, no.pc = p.pc+int(c.jt), p.pc+int(c.jf)
		return r.b.Test(comparesBy[c.op], p.a, y, r.node(yes), r.node(no))
	}
	n, indexed := c.loadSize()
	switch {
	case c.op == opReturn:
		return choose(c.k != 0, r.b.Accept(), r.b.Reject())
	case c.op == opLoadXHeader:
		p.x = r.b.Compute(ShiftLeft, r.b.Compute(And, r.b.Load(nil, c.k, 1), r.b.Const(15)), r.b.Const(2))
	case indexed:
		p.a = r.b.Load(p.x, c.k, int(n))
	case n != 0:
		p.a = r.b.Load(nil, c.k, int(n))
	default:
		r.move(c, p)
	}
	return nil
}

func (r *reader) move(c insn, p *placed) {
	switch c.op {
	case opImm:
		p.a = r.b.Const(c.k)
	case opImmX:
		p.x = r.b.Const(c.k)
	case opLoadMem:
		p.a = p.m[c.k]
	case opLoadXMem:
		p.x = p.m[c.k]
	case opStore:
		p.m[c.k] = p.a
	case opTax:
		p.x = p.a
	case opTxa:
		p.a = p.x
	case opLoadLen:
		p.a = r.b.Meta(Length)
	case opPacketType:
		p.a = r.b.Meta(packetType)
	case opInterface:
		p.a = r.b.Meta(Interface)
	default:
		op, ok := computesBy[c.op]
		require.True(r, ok, "%#x", c.op)
		y := r.b.Const(c.k)
		if c.op&byX != 0 {
			y = p.x
		}
		p.a = r.b.Compute(op, p.a, y)
	}
}

func TestListPrintsAsTcpdumpDoes(t *testing.T) {
	for _, f := range realPrograms(t) {
		t.Run(f.filter, func(t *testing.T) {
			p := programOf(classicOf(t, f.text["ddd"]))
			for style, name := range map[Style]string{Text: "d", C: "dd", Decimal: "ddd"} {
				var out strings.Builder
				require.NoError(t, p.List(&out, style))
				require.Equal(t, f.text[name], out.String())
			}
		})
	}
}

// longer are the programs that may be longer, and why.
//
// libpcap asks all that it asks of one value one after the other: a, b of the source, then a, b of
// the destination, where the filter says a of both, then b of both. Then it takes a packet from b that is cut
// off before the destination, which the filter's order rejects; so does libpcap without its
// optimiser.
var longer = map[string]string{
	"host 10.0.0.1 or host 10.0.0.2":             "order",
	"tcp port 80 or tcp port 443":                "order",
	"tcp and (port 80 or port 443 or port 8080)": "order",
	"(tcp or udp) and (host 10.0.0.1 or host 10.0.0.2) and (port 53 or port 443) and not net 192.168.0.0/16": "order",
	"ip6 net 2001:db8::/32": "libpcap's tests of no bit must be able to load; we make none to begin with",
}

// What libpcap makes without its optimiser is made no longer than what it makes with it, and
// says of packets what libpcap's does.
func TestProgramsAreNotLongerThanLibpcaps(t *testing.T) {
	for i, f := range realPrograms(t) {
		if strings.Contains(f.filter, "protochain") {
			continue // these are no graph; see TestChains
		}
		t.Run(f.filter, func(t *testing.T) {
			raw := classicOf(t, f.text["plain"])
			s := newSource(uint64(i))
			root := graphOf(t, s.b, raw)
			plain, optimised := mustAssemble(t, s.b, root, true), mustAssemble(t, s.b, root, false)
			theirs := classicOf(t, f.text["ddd"])
			t.Logf("%d, libpcap's %d", optimised.Len(), len(theirs))
			require.Equal(t, longer[f.filter] != "", optimised.Len() > len(theirs), "%d, libpcap's %d:\n%s\n%s", optimised.Len(), len(theirs), text(t, optimised), f.text["d"])
			libpcap := programOf(raw)
			for range 500 {
				data, m := s.packet(), s.metadata()
				want := libpcap.Run(data, 100, m)
				require.Equal(t, want, plain.Run(data, 100, m))
				require.Equal(t, want, optimised.Run(data, 100, m))
			}
		})
	}
}
