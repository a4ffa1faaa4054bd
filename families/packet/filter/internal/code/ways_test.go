package code

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// On each way the type is another one, and on both it is not the third.
func TestWhatEveryWayContradictsIsNeverTaken(t *testing.T) {
	for _, tt := range []struct {
		name  string
		third uint32
		never bool
	}{
		{"a type that no way has", 0x6001, true},
		{"the type of one way", 0x800, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := NewBuilder()
			kind := b.Load(nil, 12, 2)
			is := func(k uint32, yes, no *Node) *Node { return b.Test(Equal, kind, b.Const(k), yes, no) }
			last := b.Test(Equal, b.Load(nil, 40, 1), b.Const(1), is(tt.third, b.Accept(), b.Reject()), b.Reject())
			root := is(0x86dd, last, is(0x800, last, b.Reject()))
			p, err := b.Assemble(root, false)
			require.NoError(t, err)
			accepts, known := p.Constant()
			require.Equal(t, tt.never, known && !accepts)
		})
	}
}

// Of each of many tests both answers lead on: nobody can go all the ways.
func TestTheSearchForAWayEnds(t *testing.T) {
	b := NewBuilder()
	kind := b.Load(nil, 0, 4)
	root := b.Test(Equal, kind, b.Const(3), b.Accept(), b.Reject())
	for i := range uint32(500) {
		side := b.Test(Equal, b.Load(nil, 10+i, 1), b.Const(1), root, b.Test(Equal, b.Load(nil, 1000+i, 1), b.Const(1), root, b.Reject()))
		root = side
	}
	root = b.Test(Equal, kind, b.Const(1), root, b.Test(Equal, kind, b.Const(2), root, b.Reject()))
	p, err := b.Assemble(root, false)
	require.NoError(t, err)
	_, known := p.Constant()
	require.False(t, known, "it rejects all, and that is not seen")
}
