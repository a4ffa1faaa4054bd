package code

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// chainOf is "ip protochain 6" or "ip6 protochain 6".
func chainOf(tb testing.TB, ip6 bool) *Program {
	tb.Helper()
	b := NewBuilder()
	kind := uint32(0x800)
	if ip6 {
		kind = 0x86dd
	}
	walk := b.Chain(Chain{Start: 14, IP6: ip6, Protocol: 6}, b.Accept(), b.Reject())
	return mustAssemble(tb, b, b.Test(Equal, b.Load(nil, 12, 2), b.Const(kind), walk, b.Reject()), false)
}

func TestChainsAreLibpcaps(t *testing.T) {
	for filter, ip6 := range map[string]bool{"ip protochain 6": false, "ip6 protochain 6": true} {
		require.Equal(t, mustFind(t, filter).text["d"], text(t, chainOf(t, ip6)), filter)
	}
}

// ip6 is a packet of Ethernet and IPv6 with extensions, each its first two bytes and where it stands
// behind the IPv6 header's beginning.
func ip6(next byte, headers map[int][2]byte) []byte {
	f := make([]byte, 14+2000)
	f[12], f[13], f[20] = 0x86, 0xdd, next
	for at, h := range headers {
		f[14+at], f[15+at] = h[0], h[1]
	}
	return f
}

func TestChainsAreWalked(t *testing.T) {
	p := chainOf(t, true)
	loop := ip6(51, map[int][2]byte{40: {51, 8}}) // AH that leads to 4*(8+2)
	for _, tt := range []struct {
		name  string
		frame []byte
		want  bool
	}{
		{"the protocol at once", ip6(6, nil), true},
		{"another", ip6(17, nil), false},
		{"behind options", ip6(0, map[int][2]byte{40: {6, 0}}), true},
		{"behind options and a fragment header", ip6(0, map[int][2]byte{40: {44, 1}, 56: {6, 0}}), true},
		{"no header follows", ip6(60, map[int][2]byte{40: {59, 0}, 48: {6, 0}}), false},
		{"behind AH, where libpcap looks", ip6(51, map[int][2]byte{40: {0, 10}, 48: {6, 0}}), true},
		{"AH that leads to itself", loop, false},
		{"AH and options that lead to each other", ip6(51, map[int][2]byte{40: {0, 10}, 48: {51, 0xff}}), false},
		{"options without an end", ip6(0, nil), false},
		{"cut off", ip6(0, map[int][2]byte{40: {6, 0}})[:54], false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			require.Equal(t, tt.want, p.Run(tt.frame, uint32(len(tt.frame)), nil))
		})
	}
	require.False(t, p.Run(make([]byte, 14), 14, nil))
}

// One walk ends with the registers with which the next one steps back first.
func TestOneChainIsNotTakenForAnother(t *testing.T) {
	b := NewBuilder()
	root := b.Reject()
	for _, protocol := range []uint32{6, 17, 58} {
		root = b.Chain(Chain{Start: 14, IP6: true, Protocol: protocol}, b.Accept(), root)
	}
	p := mustAssemble(t, b, root, false)
	for next, want := range map[byte]bool{6: true, 17: true, 58: true, 7: false} {
		require.Equal(t, want, p.Run(ip6(0, map[int][2]byte{40: {next, 0}}), 2014, nil), next)
	}
}

// A loop is found soon: a packet must not take longer for it than its bytes are worth.
func TestChainsEnd(t *testing.T) {
	var r machine
	steps := 0
	for x := uint32(0); !r.again(2, 51, 4*(x%300)); x++ {
		steps++
	}
	require.LessOrEqual(t, steps, 3*300)
}

func TestAChainIsNotForTheKernelToWalk(t *testing.T) {
	raw := Kernel([]*Program{chainOf(t, true)}, Scope{})
	require.True(t, vmTakes(t, raw, frameMeta{}, ip6(0, nil)), "options, behind which there may be what is looked for")
	require.False(t, vmTakes(t, raw, frameMeta{}, ip6(17, nil)))
	require.False(t, vmTakes(t, raw, frameMeta{}, tcpFrame()))
}

func TestOwnersArePrintedInWordsAlone(t *testing.T) {
	b := NewBuilder()
	root := b.Owner(UID, 7, "", b.Accept(), b.Owner(Comm, 0, "sshd", b.Accept(), b.Reject()))
	p := mustAssemble(t, b, root, false)
	require.Equal(t, strings.Join([]string{
		"(000) uid      #7               jt 2\tjf 1",
		`(001) comm     "sshd"           jt 2` + "\tjf 3",
		"(002) ret      #262144",
		"(003) ret      #0",
	}, "\n")+"\n", text(t, p))
	for _, style := range []Style{C, Decimal} {
		require.ErrorIs(t, p.List(&strings.Builder{}, style), ErrNotClassic)
	}
	require.True(t, vmTakes(t, Kernel([]*Program{p}, Scope{}), frameMeta{}, tcpFrame()))
}
