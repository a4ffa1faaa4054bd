package familytest_test

import (
	"net"
	"os/exec"
	"strconv"
	"sync/atomic"
	"testing"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/familytest"
	"github.com/stretchr/testify/require"
)

var words atomic.Int64

func word(f families.Family, t families.Type) func(testing.TB) families.Addr {
	return func(tb testing.TB) families.Addr {
		return familytest.MustAddr(tb, f, t, "w"+strconv.FormatInt(words.Add(1), 10))
	}
}

// The suite must hold for a family that is no kernel's, or it tests the kernel.
func TestToyFamilyKeepsTheLaws(t *testing.T) {
	toy := familytest.NewMem()
	familytest.Run(t, toy, familytest.Config{
		Addrs: map[families.Type][]string{families.Stream: {"here", "a-1"}, families.Dgram: {"here"}},
		Bad:   map[families.Type][]string{families.Stream: {"", "Capital", "a b"}, families.Dgram: {""}},
		Cases: []familytest.Case{
			{Spec: families.Spec{Type: families.Stream}, Addr: word(toy, families.Stream), Listener: true, HalfCloser: true},
			{Spec: families.Spec{Type: families.Dgram}, Addr: word(toy, families.Dgram), Max: func(testing.TB, families.Socket) int { return 64 << 10 }},
		},
	})
}

func FuzzToyAddr(f *testing.F) {
	familytest.FuzzAddr(f, familytest.NewMem(), "here", "", "-", "UPPER", "a b")
}

func TestNamespacesAreApart(t *testing.T) {
	familytest.NoLeaks(t)
	a, b := familytest.NewNS(t), familytest.NewNS(t)
	familytest.Veth(t, a, "left", "10.9.0.1/24", b, "right", "10.9.0.2/24")

	require.Equal(t, []string{"left", "lo"}, interfaces(t, a))
	require.Equal(t, []string{"lo", "right"}, interfaces(t, b))
	require.NoError(t, exec.Command("ip", "-n", b.Name(), "link", "show", "right").Run())

	var l net.Listener
	b.Do(func() {
		var err error
		l, err = net.Listen("tcp", "10.9.0.2:7")
		require.NoError(t, err)
	})
	defer l.Close()
	a.Do(func() {
		c, err := net.Dial("tcp", "10.9.0.2:7")
		require.NoError(t, err, "the pair carries packets")
		require.NoError(t, c.Close())
	})
	out, err := b.Command("ip", "-o", "-4", "addr", "show", "dev", "right").Output()
	require.NoError(t, err)
	require.Contains(t, string(out), "10.9.0.2/24")
}

func interfaces(t *testing.T, ns *familytest.NS) (names []string) {
	ns.Do(func() {
		all, err := net.Interfaces()
		require.NoError(t, err)
		for _, i := range all {
			names = append(names, i.Name)
		}
	})
	require.Len(t, names, 2)
	if names[0] > names[1] {
		names[0], names[1] = names[1], names[0]
	}
	return names
}
