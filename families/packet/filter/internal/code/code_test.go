package code

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func mustAssemble(tb testing.TB, b *Builder, root *Node, plain bool) *Program {
	tb.Helper()
	p, err := b.Assemble(root, plain)
	require.NoError(tb, err)
	return p
}

// both are the programs of a graph without and with the optimiser.
func both(tb testing.TB, s *source, root *Node) (plain, optimised *Program) {
	tb.Helper()
	plain = mustAssemble(tb, s.b, root, true)
	optimised = mustAssemble(tb, s.b, root, false)
	require.LessOrEqual(tb, len(inOrder(s.b.optimise(root), s.b.nodes.n).all), len(inOrder(root, s.b.nodes.n).all))
	return plain, optimised
}

// A graph, its plain program and its optimised one say the same.
func sameVerdicts(tb testing.TB, s *source, tests, packets int) (taken int) {
	tb.Helper()
	root := s.graph(tests)
	plain, optimised := both(tb, s, root)
	if accepts, known := optimised.Constant(); known {
		require.False(tb, accepts && root.rejects())
	}
	for range packets {
		data, m := s.packet(), s.metadata()
		length := uint32(len(data) + s.IntN(2)*s.IntN(100))
		want := newJudge(data, length, m).takes(root)
		if plain.Run(data, length, m) != want || optimised.Run(data, length, m) != want {
			tb.Fatalf("want %t, plain %t, optimised %t: % x, length %d, %+v\n%s\n%s", want,
				plain.Run(data, length, m), optimised.Run(data, length, m), data, length, m, text(tb, plain), text(tb, optimised))
		}
		if want {
			taken++
		}
	}
	return taken
}

func TestTheOptimiserKeepsVerdicts(t *testing.T) {
	taken := 0
	for seed := range uint64(6000) {
		s := newSource(seed)
		s.owners = seed%2 == 0
		taken += sameVerdicts(t, s, 1+int(seed%24), 40)
	}
	require.Greater(t, taken, 6000*40/20, "packets that are taken")
}

func FuzzTheOptimiserKeepsVerdicts(f *testing.F) {
	f.Add(uint64(1), 3)
	f.Add(uint64(2), 30)
	f.Fuzz(func(t *testing.T, seed uint64, tests int) {
		s := newSource(seed)
		s.owners = seed%2 == 0
		sameVerdicts(t, s, 1+(tests&63), 50)
	})
}
