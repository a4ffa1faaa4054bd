package ring

import (
	"encoding/binary"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/familytest"
	"github.com/stretchr/testify/require"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// small is a ring of 2 MiB, enough for every test but those that stall it.
var small = Config{BlockSize: 256 << 10, Blocks: 8}

// testType is an EtherType that nothing else sends.
const testType = 0x88b5

// onlyTestType rejects what the kernel sends by itself.
var onlyTestType = []bpf.RawInstruction{{Op: 0x28, K: 12}, {Op: 0x15, Jf: 1, K: testType}, {Op: 0x06, K: 0xffffffff}, {Op: 0x06}}

// pair is two namespaces joined by v0 in a and v1 in b.
func pair(t *testing.T) (a, b *familytest.NS) {
	t.Helper()
	a, b = familytest.NewNS(t), familytest.NewNS(t)
	familytest.Veth(t, a, "v0", "", b, "v1", "")
	return a, b
}

func mustOpen(t *testing.T, ns *familytest.NS, name string, cfg Config) *Ring {
	t.Helper()
	var r *Ring
	var err error
	ns.Do(func() { r, err = Open(name, cfg) })
	require.NoError(t, err)
	t.Cleanup(func() { _ = r.Close() })
	return r
}

// sender sends frames out of an interface.
type sender struct {
	tb testing.TB
	fd int
	to unix.SockaddrLinklayer
}

func newSender(t *testing.T, ns *familytest.NS, iface string) *sender {
	t.Helper()
	s := &sender{tb: t}
	var err error
	ns.Do(func() {
		var i *net.Interface
		if i, err = net.InterfaceByName(iface); err == nil {
			s.to.Ifindex = i.Index
			s.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		}
	})
	require.NoError(t, err)
	t.Cleanup(func() { _ = unix.Close(s.fd) })
	return s
}

func (s *sender) send(frame []byte) {
	s.tb.Helper()
	require.NoError(s.tb, unix.Sendto(s.fd, frame, 0, &s.to))
}

// frame is one to another host, of so many bytes, that begins its payload with seq.
func frame(seq uint32, length int) []byte {
	f := append([]byte{2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 1}, testType>>8, testType&0xff)
	f = binary.BigEndian.AppendUint32(f, seq)
	return append(f, make([]byte, length-len(f))...)
}

// next is the next frame of the test's type; frames of the kernel's own, such as
// IPv6 router solicitations, are passed by. Its data is copied.
func next(t *testing.T, r *Ring, wanted int) []Frame {
	t.Helper()
	var out []Frame
	for len(out) < wanted {
		b, err := r.Next()
		require.NoError(t, err)
		for it := b.Frames(); it.Next(); {
			if f := it.Frame; strings.Contains(string(f.Data), "\x88\xb5") {
				f.Data = append([]byte(nil), f.Data...)
				out = append(out, f)
			}
		}
		b.Release()
	}
	return out
}

func TestFramesComeWholeAndInOrder(t *testing.T) {
	a, b := pair(t)
	r, s := mustOpen(t, b, "v1", small), newSender(t, a, "v0")
	before := time.Now().UnixNano()
	var want [][]byte
	for i, length := range []int{18, 19, 60, 1000, 1514} {
		f := frame(uint32(i), length)
		want = append(want, f)
		s.send(f)
	}
	for i, f := range next(t, r, len(want)) {
		require.Equal(t, want[i], f.Data)
		require.Equal(t, len(want[i]), f.Len)
		require.Equal(t, OtherHost, f.Type, "promiscuous")
		require.Equal(t, r.Interface().Index, f.Ifindex)
		require.False(t, f.Loopback)
		require.True(t, f.Time >= before && f.Time <= time.Now().UnixNano(), "time %d", f.Time)
	}
}

func TestWhatGoesOutIsOutgoing(t *testing.T) {
	a, _ := pair(t)
	r, s := mustOpen(t, a, "v0", small), newSender(t, a, "v0")
	s.send(frame(1, 60))
	require.Equal(t, Outgoing, next(t, r, 1)[0].Type)
}

// A tag that stands in the frame when it is sent is taken out by the receiving end
// of a veth, and must be back in its place, whatever its kind.
func TestVLANTagsArePutBack(t *testing.T) {
	a, b := pair(t)
	in, out, s := mustOpen(t, b, "v1", small), mustOpen(t, a, "v0", small), newSender(t, a, "v0")
	for _, tt := range []struct {
		name string
		tags string
	}{
		{"802.1Q with priority", "\x81\x00\xe0\x64"},
		{"802.1ad", "\x88\xa8\x00\x05"},
		{"QinQ", "\x88\xa8\x00\x05\x81\x00\x00\x07"},
		{"VLAN 0", "\x81\x00\x00\x00"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			plain := frame(7, 60)
			tagged := append(append(append([]byte(nil), plain[:12]...), tt.tags...), plain[12:]...)
			s.send(tagged)
			for _, r := range []*Ring{out, in} {
				f := next(t, r, 1)[0]
				require.Equal(t, tagged, f.Data)
				require.Equal(t, len(tagged), f.Len)
			}
		})
	}
}

func lookupIn(ns *familytest.NS, name string) (i Interface, err error) {
	ns.Do(func() { i, err = Lookup(name) })
	return i, err
}

func TestLoopbackIsTold(t *testing.T) {
	ns := familytest.NewNS(t)
	r, s := mustOpen(t, ns, "lo", small), newSender(t, ns, "lo")
	s.send(frame(1, 60))
	for _, f := range next(t, r, 2) { // going out and coming in
		require.True(t, f.Loopback)
	}
}

// A ring is opened closed: what its filter rejects is not received, from the start.
func TestFiltersCanBeSwapped(t *testing.T) {
	a, b := pair(t)
	cfg := small
	cfg.Filter = RejectAll
	r, s := mustOpen(t, b, "v1", cfg), newSender(t, a, "v0")
	s.send(frame(1, 60))
	require.NoError(t, r.SetFilter(nil))
	s.send(frame(2, 60))
	require.NoError(t, r.SetFilter(RejectAll))
	s.send(frame(3, 60))
	require.NoError(t, r.SetFilter(AcceptAll))
	s.send(frame(4, 60))
	got := next(t, r, 2)
	require.Equal(t, frame(2, 60), got[0].Data)
	require.Equal(t, frame(4, 60), got[1].Data)
}

func TestPromiscuousModeIsTheInterfaces(t *testing.T) {
	_, b := pair(t)
	r := mustOpen(t, b, "v1", small)
	require.Equal(t, "1", promiscuity(t, b, "v1"))
	require.NoError(t, r.SetPromisc(false))
	require.Equal(t, "0", promiscuity(t, b, "v1"))
	require.NoError(t, r.SetPromisc(false), "when it is off")
	require.NoError(t, r.SetPromisc(true))
	require.NoError(t, r.Close())
	require.Equal(t, "0", promiscuity(t, b, "v1"))
}

// A reader that stands still loses what does not fit, to the packet.
func TestEveryPacketIsReceivedOrCounted(t *testing.T) {
	a, b := pair(t)
	cfg := small
	cfg.Filter = onlyTestType
	witness := mustOpen(t, b, "v1", cfg) // opened first, so the kernel serves it after the ring
	r, s := mustOpen(t, b, "v1", cfg), newSender(t, a, "v0")
	const sent = 4000 // of 1514 bytes: about three times the ring
	f := frame(0, 1514)
	for range sent {
		s.send(f)
	}
	// What still is on its way when the reading begins would make a second gap.
	familytest.Eventually(t, "not all have arrived", func() bool { return witness.Stats().Packets >= sent })
	received, losing := 0, 0
	stop := frame(1, 60)
	for ended := false; !ended; {
		if r.Idle() {
			s.send(stop) // there is room for it now
		}
		blk, err := r.Next()
		require.NoError(t, err)
		if blk.Losing() {
			losing++
		}
		for it := blk.Frames(); it.Next(); {
			if it.Frame.Len == len(stop) {
				ended = true
				continue
			}
			received++
		}
		blk.Release()
	}
	st := r.Stats()
	require.Equal(t, sent, received+int(st.Drops), "received %d, dropped %d", received, st.Drops)
	require.NotZero(t, st.Drops, "the ring was to overflow")
	require.NotZero(t, st.Freezes)
	// Frames that the machine held back may come when the ring is full again.
	require.NotZero(t, losing, "a block tells of the gap")
	require.NoError(t, r.Close())
	require.Equal(t, st.Drops, r.Stats().Drops, "counts outlive the socket")
}

func TestNextEndsWith(t *testing.T) {
	t.Run("Close", func(t *testing.T) {
		familytest.NoLeaks(t)
		r := mustOpen(t, familytest.NewNS(t), "lo", small)
		ended := make(chan error)
		go func() {
			_, err := r.Next()
			ended <- err
		}()
		require.NoError(t, r.Close())
		require.ErrorIs(t, <-ended, net.ErrClosed)
		require.NoError(t, r.Close(), "twice")
		_, err := r.Next()
		require.ErrorIs(t, err, net.ErrClosed)
		require.True(t, r.Idle())
	})
	t.Run("the interface", func(t *testing.T) {
		a, b := pair(t)
		r := mustOpen(t, b, "v1", small)
		ended := make(chan error)
		go func() {
			for {
				blk, err := r.Next()
				if err != nil {
					ended <- err
					return
				}
				blk.Release()
			}
		}()
		require.NoError(t, a.Command("ip", "link", "del", "v0").Run())
		err := <-ended
		require.ErrorIs(t, err, syscall.ENODEV)
		require.EqualError(t, err, `capture packet "v1": the interface is gone: no such device`)
	})
}

// A block that was filled before the interface went down, and handed over after,
// made the ring forget that it was down, and wait for ever when it was deleted.
func TestABlockFromBeforeDoesNotHideThatTheInterfaceIsGone(t *testing.T) {
	familytest.NoLeaks(t)
	a, b := pair(t)
	slow := small
	slow.Retire = time.Second // the block comes after the interface is down
	r, s := mustOpen(t, b, "v1", slow), newSender(t, a, "v0")
	s.send(frame(1, 60))
	require.NoError(t, b.Command("ip", "link", "set", "v1", "down").Run())
	seen := make(chan int, 16) // more blocks than come in this test
	ended := make(chan error)
	go func() {
		for {
			blk, err := r.Next()
			if err != nil {
				ended <- err
				return
			}
			seen <- blk.Len()
			blk.Release()
		}
	}()
	require.Positive(t, <-seen)
	require.NoError(t, a.Command("ip", "link", "del", "v0").Run())
	select {
	case err := <-ended:
		require.ErrorIs(t, err, syscall.ENODEV)
	case <-time.After(20 * time.Second):
		require.NoError(t, r.Close())
		t.Fatalf("the ring waits for an interface that was deleted: %v", <-ended)
	}
}

func TestAnInterfaceThatIsDownIsWaitedFor(t *testing.T) {
	a, b := pair(t)
	r, s := mustOpen(t, b, "v1", small), newSender(t, a, "v0")
	require.NoError(t, b.Command("ip", "link", "set", "v1", "down").Run())
	require.NoError(t, b.Command("ip", "link", "set", "v1", "up").Run())
	familytest.Eventually(t, "v0 has no carrier", func() bool {
		up := false
		a.Do(func() {
			i, err := net.InterfaceByName("v0")
			up = err == nil && i.Flags&net.FlagRunning != 0
		})
		return up
	})
	s.send(frame(5, 60))
	require.Equal(t, frame(5, 60), next(t, r, 1)[0].Data)
}

// The memory of a block that is held outlives the ring.
func TestABlockOutlivesClose(t *testing.T) {
	a, b := pair(t)
	r, s := mustOpen(t, b, "v1", small), newSender(t, a, "v0")
	s.send(frame(1, 60))
	blk, err := r.Next()
	require.NoError(t, err)
	require.NoError(t, r.Close())
	n := 0
	for it := blk.Frames(); it.Next(); {
		n += len(it.Frame.Data)
	}
	require.NotZero(t, n)
	require.Contains(t, maps(t), "socket:", "the ring is still mapped")
	blk.Release()
	require.NotContains(t, maps(t), "socket:")
}

func maps(t *testing.T) string {
	t.Helper()
	m, err := os.ReadFile("/proc/self/maps")
	require.NoError(t, err)
	return string(m)
}

func TestOpenSaysWhyNot(t *testing.T) {
	for _, name := range []string{"nosuch0", "", "a-name-that-is-too-long"} {
		_, err := Open(name, small)
		require.ErrorIs(t, err, syscall.ENODEV, name)
		var op *families.OpError
		require.ErrorAs(t, err, &op, name)
		require.Equal(t, name, op.Addr)
	}
}

func TestReadingDoesNotAllocate(t *testing.T) {
	a, b := pair(t)
	r, s := mustOpen(t, b, "v1", small), newSender(t, a, "v0")
	f := frame(1, 60)
	got := 0
	allocs := testing.AllocsPerRun(20, func() {
		s.send(f)
		blk, err := r.Next()
		if err != nil {
			t.Fatal(err)
		}
		for it := blk.Frames(); it.Next(); {
			got += it.Frame.Len
		}
		blk.Release()
	})
	require.NotZero(t, got)
	require.Zero(t, allocs, "for a packet sent, waited for and read")
}

// The test runs itself once more, as a process without the capability.
func TestOpenNeedsCapNetRaw(t *testing.T) {
	const marker = "SOCKD_TEST_WITHOUT_NET_RAW"
	if os.Getenv(marker) != "" {
		_, err := Open("lo", small)
		require.ErrorIs(t, err, syscall.EPERM)
		require.EqualError(t, err, `capture packet "lo": needs CAP_NET_RAW: operation not permitted`)
		return
	}
	familytest.Need(t, familytest.Root())
	cmd := exec.Command("setpriv", "--bounding-set", "-net_raw", os.Args[0], "-test.run", "^TestOpenNeedsCapNetRaw$", "-test.v")
	cmd.Env = append(os.Environ(), marker+"=1")
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Contains(t, string(out), "--- PASS: TestOpenNeedsCapNetRaw")
}

// What the kernel had put into a block that its timer had not handed over yet was
// forgotten when a capture ended on a busy machine: the ring looked idle.
func TestARingIsNotIdleWhileABlockFills(t *testing.T) {
	a, b := pair(t)
	slow := small
	slow.Retire = time.Second
	r, s := mustOpen(t, b, "v1", slow), newSender(t, a, "v0")
	s.send(frame(1, 60))
	familytest.Eventually(t, "the kernel has not seen it", func() bool { return r.Stats().Packets > 0 })
	require.False(t, r.Idle())
	next(t, r, 1)
	familytest.Eventually(t, "it is not idle", func() bool { // other packets of the kernel's come and go
		require.NoError(t, r.SetFilter(RejectAll))
		return r.Idle()
	})
}
