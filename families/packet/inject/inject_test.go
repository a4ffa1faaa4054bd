package inject_test

import (
	"context"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/familytest"
	"github.com/sockd/sockd/families/packet/inject"
	"github.com/sockd/sockd/families/packet/pcapng"
	"github.com/stretchr/testify/require"
)

// mustCable is v0 with v1 at its other end, each in a namespace.
func mustCable(tb testing.TB) (a, b *familytest.NS) {
	tb.Helper()
	familytest.Need(tb, familytest.Root())
	a, b = familytest.NewNS(tb), familytest.NewNS(tb)
	familytest.Veth(tb, a, "v0", "", b, "v1", "")
	return a, b
}

func mustOpen(tb testing.TB, ns *familytest.NS, name string) (s *inject.Sender) {
	tb.Helper()
	var err error
	ns.Do(func() { s, err = inject.Open(name) })
	require.NoError(tb, err)
	tb.Cleanup(func() { require.NoError(tb, s.Close()) })
	return s
}

func TestASenderKnowsItsInterface(t *testing.T) {
	familytest.NoLeaks(t)
	a, _ := mustCable(t)
	mustRun(t, a.Command("ip", "link", "set", "v0", "mtu", "9000"))
	require.Equal(t, inject.Interface{Name: "v0", Link: pcapng.Ethernet, MTU: 9000, Header: 14}, mustOpen(t, a, "v0").Interface())
	mustRun(t, a.Command("ip", "link", "set", "lo", "up"))
	require.Equal(t, inject.Interface{Name: "lo", Link: pcapng.Ethernet, MTU: 65536, Header: 14}, mustOpen(t, a, "lo").Interface())
	require.NoError(t, a.Command("ip", "tuntap", "add", "t0", "mode", "tun").Run())
	mustRun(t, a.Command("ip", "link", "set", "t0", "up"))
	require.Equal(t, inject.Interface{Name: "t0", Link: pcapng.Raw, MTU: 1500}, mustOpen(t, a, "t0").Interface())
}

func mustRun(tb testing.TB, c *exec.Cmd) {
	tb.Helper()
	out, err := c.CombinedOutput()
	require.NoError(tb, err, "%s", out)
}

func TestWhatFitsAnInterface(t *testing.T) {
	const ipv4, ipv6, other = 228, 229, 105
	for name, tt := range map[string]struct {
		link pcapng.LinkType
		fits []pcapng.LinkType
	}{
		"Ethernet":          {pcapng.Ethernet, []pcapng.LinkType{pcapng.Ethernet}},
		"a tunnel":          {pcapng.Raw, []pcapng.LinkType{pcapng.Raw, ipv4, ipv6}},
		"what is not known": {pcapng.LinuxSLL2, nil},
	} {
		t.Run(name, func(t *testing.T) {
			for _, l := range []pcapng.LinkType{pcapng.Ethernet, pcapng.Raw, ipv4, ipv6, pcapng.LinuxSLL2, other} {
				fits := false
				for _, f := range tt.fits {
					fits = fits || f == l
				}
				require.Equal(t, fits, inject.Interface{Link: tt.link}.Fits(l), "%v", l)
			}
		})
	}
}

func TestOpenSaysWhatIsWrong(t *testing.T) {
	familytest.NoLeaks(t)
	a, _ := mustCable(t)
	mustRun(t, a.Command("ip", "link", "set", "v0", "down"))
	for name, want := range map[string]error{"nonexistent0": syscall.ENODEV, "": syscall.ENODEV, "v0": syscall.ENETDOWN} {
		a.Do(func() {
			s, err := inject.Open(name)
			require.Nil(t, s)
			require.ErrorIs(t, err, want)
			var op *families.OpError
			require.ErrorAs(t, err, &op)
			require.Equal(t, "inject", op.Op)
		})
	}
}

func TestASenderKeepsTheOrderOfItsFrames(t *testing.T) {
	familytest.NoLeaks(t)
	a, _ := mustCable(t)
	s := mustOpen(t, a, "v0")
	n, bytes, err := s.Send()
	require.NoError(t, err)
	require.Zero(t, n+int(bytes), "nothing waits")
	good, long := make([]byte, 60), make([]byte, 2000)
	for _, f := range [][]byte{good, good, long, good} {
		s.Add(f)
	}
	require.Equal(t, 4, s.Waiting())
	n, bytes, err = s.Send()
	require.NoError(t, err)
	require.Equal(t, 2, n)
	require.EqualValues(t, 120, bytes)
	require.Equal(t, 2000, s.First())
	n, bytes, err = s.Send()
	require.ErrorIs(t, err, syscall.EMSGSIZE)
	require.Zero(t, n+int(bytes))
	s.Skip()
	n, _, err = s.Send()
	require.NoError(t, err)
	require.Equal(t, 1, n)
	require.Zero(t, s.Waiting())
}

func TestASendThatWaitsIsInterrupted(t *testing.T) {
	familytest.NoLeaks(t)
	a, _ := mustCable(t)
	// As good as no rate: the socket's buffer fills, and stays full.
	mustRun(t, a.Command("tc", "qdisc", "add", "dev", "v0", "root", "tbf", "rate", "8bit", "burst", "2kb", "limit", "100mb"))
	s := mustOpen(t, a, "v0")
	ended := make(chan error, 1)
	go func() {
		frame := make([]byte, 1400)
		for {
			for !s.Full() {
				s.Add(frame)
			}
			if _, _, err := s.Send(); err != nil {
				ended <- err
				return
			}
		}
	}()
	select {
	case err := <-ended:
		t.Fatalf("it ended before: %v", err)
	case <-time.After(100 * time.Millisecond): // it may wait by now, or will find the deadline when it would
	}
	s.Interrupt()
	select {
	case err := <-ended:
		require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	case <-time.After(20 * time.Second):
		t.Fatal("it waits still")
	}
	require.NoError(t, s.Close())
	require.NoError(t, s.Close(), "twice is nil")
}

func TestSleepIsExactAndEndsWithItsContext(t *testing.T) {
	for _, d := range []time.Duration{0, 50 * time.Microsecond, time.Millisecond, 7 * time.Millisecond} {
		begun := time.Now()
		inject.Sleep(t.Context(), d)
		require.GreaterOrEqual(t, time.Since(begun), d)
		require.Less(t, time.Since(begun), d+time.Second)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	begun := time.Now()
	inject.Sleep(ctx, time.Hour)
	require.Less(t, time.Since(begun), time.Minute)
}
