package code

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// either is "host 1 or host 2 or host 3": each test of a source before that of its destination.
func either(b *Builder) *Node {
	root := b.Reject()
	for _, host := range []uint32{3, 2, 1} {
		k := b.Const(host)
		root = b.Test(Equal, b.Load(nil, 0, 4), k, b.Accept(), b.Test(Equal, b.Load(nil, 4, 4), k, b.Accept(), root))
	}
	return root
}

func TestTestsOfOneValueStandTogether(t *testing.T) {
	b := NewBuilder()
	require.Equal(t, strings.Join([]string{
		"(000) ld       [0]",
		"(001) jeq      #0x1             jt 9\tjf 2",
		"(002) ld       [4]",
		"(003) jeq      #0x1             jt 9\tjf 4",
		"(004) jeq      #0x2             jt 9\tjf 5",
		"(005) jeq      #0x3             jt 9\tjf 6",
		"(006) ld       [0]",
		"(007) jeq      #0x2             jt 9\tjf 8",
		"(008) jeq      #0x3             jt 9\tjf 10",
		"(009) ret      #262144",
		"(010) ret      #0",
	}, "\n")+"\n", text(t, mustAssemble(t, b, either(b), false)))
}

// A packet that ends before the first destination is taken for the first source alone.
func TestTestsAreNotMovedBeforeALoad(t *testing.T) {
	b := NewBuilder()
	p := mustAssemble(t, b, either(b), false)
	for source, want := range map[byte]bool{1: true, 2: false, 3: false} {
		packet := []byte{0, 0, 0, source, 0, 0, 0, 9}
		require.True(t, p.Run(packet, 8, nil), source)
		require.Equal(t, want, p.Run(packet[:7], 8, nil), source)
	}
}
