package code

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestAssembleBoundsWhatItMakes(t *testing.T) {
	for _, tt := range []struct {
		name string
		root func(b *Builder) *Node
		want error
	}{
		{"more tests than a program may have", func(b *Builder) *Node {
			root := b.Reject()
			for i := range uint32(maxCode) {
				root = b.Test(Equal, b.Load(nil, 0, 4), b.Const(i), b.Accept(), root)
			}
			return root
		}, ErrTooLong},
		{"more tests than a graph may have", func(b *Builder) *Node {
			root := b.Reject()
			for i := range uint32(maxGraph + 1) {
				root = b.Test(Equal, b.Load(nil, i%20, 4), b.Const(i/20), b.Accept(), root)
			}
			return root
		}, ErrTooLong},
		{"more chains than a program may have", func(b *Builder) *Node {
			root := b.Reject()
			for i := range uint32(1000) {
				root = b.Chain(Chain{Start: i, IP6: true, Protocol: 6}, b.Accept(), root)
			}
			return root
		}, ErrTooLong},
		{"a value of itself, many times over", func(b *Builder) *Node {
			v := b.Load(nil, 0, 4)
			for range 60 {
				v = b.Compute(Mul, b.Compute(Add, v, b.Load(v, 0, 1)), v)
			}
			return b.Test(Equal, v, b.Const(1), b.Accept(), b.Reject())
		}, ErrTooDeep},
		{"arithmetic that is nested as deeply as memory goes", func(b *Builder) *Node { return nested(b, memory) }, nil},
		{"and deeper", func(b *Builder) *Node { return nested(b, memory+1) }, ErrTooDeep},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, plain := range []bool{true, false} {
				b := NewBuilder()
				p, err := b.Assemble(tt.root(b), plain)
				require.ErrorIs(t, err, tt.want)
				require.Equal(t, tt.want == nil, p != nil)
			}
		})
	}
}

// nested is an expression that needs n words of scratch memory.
func nested(b *Builder, n int) *Node {
	at := func(k uint32) *Value { return b.Load(b.Load(nil, k, 1), 0, 1) }
	v := at(99)
	for i := range n {
		v = b.Compute(Sub, at(uint32(i)), b.Compute(Div, v, b.Const(3)))
	}
	return b.Test(Greater, v, b.Const(1), b.Accept(), b.Reject())
}

// What is listed in the bits of classic BPF does what the program does, jumps of more than 255 and all.
func TestListKeepsVerdicts(t *testing.T) {
	long := 0
	for seed := range uint64(60) {
		s := newSource(seed)
		s.offsets, s.metas = offsets[:20], []Meta{Length, Interface, packetType} // without what is not the same in the bits
		p := mustAssemble(t, s.b, s.graph(400), true)
		var out strings.Builder
		require.NoError(t, p.List(&out, Decimal))
		raw := classicOf(t, out.String())
		if len(raw) > p.Len() {
			long++
		}
		listed := programOf(raw)
		for range 50 {
			data, m := s.packet(), s.metadata()
			require.Equal(t, p.Run(data, 70, m), listed.Run(data, 70, m))
		}
	}
	require.NotZero(t, long, "no program was long enough for a jump that leads far")
}

func TestConstantPrograms(t *testing.T) {
	b := NewBuilder()
	x := b.Load(nil, 0, 1)
	for _, tt := range []struct {
		name           string
		root           *Node
		accepts, known bool
	}{
		{"everything", b.Accept(), true, true},
		{"nothing", b.Reject(), false, true},
		{"a byte above 255", b.Test(Greater, x, b.Const(255), b.Accept(), b.Reject()), false, true},
		{"two values of one", b.Test(Equal, x, b.Const(1), b.Test(Equal, x, b.Const(2), b.Accept(), b.Reject()), b.Reject()), false, true},
		{"a byte below 256, which must be there", b.Test(Greater, x, b.Const(255), b.Reject(), b.Accept()), false, false},
		{"a length that is one or another", b.Test(Greater, b.Meta(Length), b.Const(5), b.Accept(), b.Accept()), true, true},
		{"a direction that nothing has", b.Test(Equal, b.Meta(Direction), b.Const(9), b.Accept(), b.Reject()), false, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			accepts, known := mustAssemble(t, b, tt.root, false).Constant()
			require.Equal(t, [2]bool{tt.accepts, tt.known}, [2]bool{accepts && known, known})
		})
	}
}
