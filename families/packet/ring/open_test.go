package ring

import (
	"encoding/binary"
	"errors"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/familytest"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// udpFrame is an Ethernet frame of a flow, there or back, that ends with its number.
func udpFrame(flow, number uint32, back bool) []byte {
	src, dst := []byte{10, 0, byte(flow >> 8), byte(flow)}, []byte{10, 1, 0, 1}
	srcPort, dstPort := uint16(1000+flow%7), uint16(53)
	if back {
		src, dst, srcPort, dstPort = dst, src, dstPort, srcPort
	}
	f := append([]byte{2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 1, 8, 0}, 0x45, 0, 0, 36, 0, 0, 0, 0, 64, unix.IPPROTO_UDP, 0, 0)
	f = append(append(f, src...), dst...)
	f = binary.BigEndian.AppendUint16(f, srcPort)
	f = binary.BigEndian.AppendUint16(f, dstPort)
	f = append(f, 0, 16, 0, 0)
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(f, flow), number)
}

// seen is which ring saw a packet of a flow.
type seen struct {
	ring         int
	flow, number uint32
}

// Two rings of a group see every packet once, and both directions of a flow in one
// ring, in order.
func TestAFanoutGroupSharesTheFlows(t *testing.T) {
	const flows, packets = 300, 4
	a, b := pair(t)
	s := newSender(t, a, "v0")
	cfg := small
	cfg.Fanout, cfg.Filter = 4711, RejectAll
	rings := []*Ring{mustOpen(t, b, "v1", cfg), mustOpen(t, b, "v1", cfg)}
	for _, r := range rings {
		require.NoError(t, r.SetFilter(nil))
	}
	found := make(chan seen, flows*packets*2) // twice what there is: no reader waits
	var readers sync.WaitGroup
	for i, r := range rings {
		readers.Go(func() { report(r, i, found) })
	}
	for number := range uint32(packets) {
		for flow := range uint32(flows) {
			s.send(udpFrame(flow, number, number%2 == 1))
		}
	}
	home, count, share := map[uint32]int{}, map[uint32]uint32{}, [2]int{}
	for range flows * packets {
		f := <-found
		if ring, ok := home[f.flow]; ok {
			require.Equal(t, ring, f.ring, "flow %d is in both rings", f.flow)
		}
		require.Equal(t, count[f.flow], f.number, "flow %d is out of order", f.flow)
		home[f.flow] = f.ring
		count[f.flow]++
		share[f.ring]++
	}
	for _, r := range rings {
		familytest.Eventually(t, "it is not idle", r.Idle)
		require.NoError(t, r.Close())
	}
	readers.Wait()
	require.Empty(t, found, "more than was sent")
	require.NotZero(t, share[0])
	require.NotZero(t, share[1])
}

// report tells of the test's packets until the ring is closed.
func report(r *Ring, ring int, found chan<- seen) {
	for {
		b, err := r.Next()
		if err != nil {
			return
		}
		for it := b.Frames(); it.Next(); {
			if d := it.Frame.Data; len(d) == 50 && d[14] == 0x45 {
				found <- seen{ring, binary.BigEndian.Uint32(d[42:]), binary.BigEndian.Uint32(d[46:])}
			}
		}
		b.Release()
	}
}

// mustSocket opens a socket in a namespace, which is closed with the test unless a ring
// has it by then.
func mustSocket(t *testing.T, ns *familytest.NS, domain, kind int) int {
	t.Helper()
	var fd int
	var err error
	ns.Do(func() { fd, err = unix.Socket(domain, kind|unix.SOCK_CLOEXEC, 0) })
	require.NoError(t, err)
	return fd
}

// A socket of another namespace is one of that namespace in everything: the name, its
// hardware, whether it is up, whether it is gone.
func TestASocketOfAnotherNamespaceIsTakenOver(t *testing.T) {
	for _, tt := range []struct {
		name    string
		iface   string
		prepare func(t *testing.T, fd, index int)
	}{
		{"unbound", "v1", func(*testing.T, int, int) {}},
		{"bound", "v1", func(t *testing.T, fd, index int) {
			require.NoError(t, unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: allProtocols, Ifindex: index}))
		}},
		{"with a header that is in the way", "v1", func(t *testing.T, fd, _ int) {
			require.NoError(t, unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1))
		}},
		{"on all interfaces", Any, func(*testing.T, int, int) {}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			familytest.NoLeaks(t)
			a, b := pair(t)
			s, index := newSender(t, a, "v0"), mustLookup(t, b, "v1").Index
			fd := mustSocket(t, b, unix.AF_PACKET, unix.SOCK_RAW)
			tt.prepare(t, fd, index)
			s.send(frame(1, 60)) // a bound socket has it already, and the ring must not
			r, err := OpenFD(fd, tt.iface, small)
			require.NoError(t, err)
			defer r.Close()
			_, err = unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
			require.ErrorIs(t, err, unix.EBADF, "it is the ring's now")

			s.send(frame(2, 60))
			f := next(t, r, 1)[0]
			require.Equal(t, frame(2, 60), f.Data)
			require.Equal(t, index, f.Ifindex)
			if tt.iface == Any {
				return
			}
			require.Equal(t, index, r.Interface().Index)
			require.Equal(t, "1", promiscuity(t, b, "v1"))
			require.NoError(t, b.Command("ip", "link", "set", "v1", "down").Run())
			require.NoError(t, a.Command("ip", "link", "del", "v0").Run())
			require.ErrorIs(t, untilError(r), syscall.ENODEV)
		})
	}
}

func untilError(r *Ring) error {
	for {
		b, err := r.Next()
		if err != nil {
			return err
		}
		b.Release()
	}
}

func promiscuity(t *testing.T, ns *familytest.NS, name string) string {
	t.Helper()
	out, err := ns.Command("ip", "-d", "link", "show", name).CombinedOutput()
	require.NoError(t, err)
	_, rest, _ := strings.Cut(string(out), "promiscuity ")
	return strings.Fields(rest)[0]
}

// What an adopted socket had counted is not the ring's.
func TestAnAdoptedSocketCountsFromZero(t *testing.T) {
	a, b := pair(t)
	s := newSender(t, a, "v0")
	fd := mustSocket(t, b, unix.AF_PACKET, unix.SOCK_RAW)
	require.NoError(t, unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: allProtocols, Ifindex: mustLookup(t, b, "v1").Index}))
	for i := range 10 {
		s.send(frame(uint32(i), 60))
	}
	cfg := small
	cfg.Filter = RejectAll
	r, err := OpenFD(fd, "v1", cfg)
	require.NoError(t, err)
	defer r.Close()
	require.Zero(t, r.Stats())
	require.True(t, r.Idle())
}

func TestASocketThatDoesNotFitStaysItsCallers(t *testing.T) {
	familytest.NoLeaks(t)
	_, b := pair(t)
	ringed := mustSocket(t, b, unix.AF_PACKET, unix.SOCK_RAW)
	r, err := OpenFD(mustDup(t, ringed), "v1", small)
	require.NoError(t, err)
	defer r.Close()
	for _, tt := range []struct {
		name, iface string
		fd          int
		want        error
	}{
		{"cooked", "v1", mustSocket(t, b, unix.AF_PACKET, unix.SOCK_DGRAM), unix.EINVAL},
		{"of another family", "v1", mustSocket(t, b, unix.AF_INET, unix.SOCK_DGRAM), unix.EINVAL},
		{"without such an interface", "nosuch0", mustSocket(t, b, unix.AF_PACKET, unix.SOCK_RAW), unix.ENODEV},
		{"with the name of an alias", "lo:1", mustSocket(t, b, unix.AF_PACKET, unix.SOCK_RAW), unix.ENODEV},
		{"with a ring", "v1", ringed, unix.EBUSY},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := OpenFD(tt.fd, tt.iface, small)
			require.ErrorIs(t, err, tt.want)
			var op *families.OpError
			require.ErrorAs(t, err, &op)
			require.Equal(t, tt.iface, op.Addr)
			require.NoError(t, unix.Close(tt.fd), "it is still open")
		})
	}
	_, err = OpenFD(-1, "v1", small)
	require.ErrorIs(t, err, unix.EBADF)
}

// Check is for sockets of those who are not trusted: it takes fresh ones alone.
func TestOnlyAFreshPacketSocketPasses(t *testing.T) {
	_, b := pair(t)
	bound, ringed := mustSocket(t, b, unix.AF_PACKET, unix.SOCK_RAW), mustSocket(t, b, unix.AF_PACKET, unix.SOCK_RAW)
	require.NoError(t, unix.Bind(bound, &unix.SockaddrLinklayer{Ifindex: 1}))
	r, err := OpenFD(mustDup(t, ringed), Any, small)
	require.NoError(t, err)
	defer r.Close()
	for name, tt := range map[string]struct {
		fd   int
		want error
	}{
		"fresh":             {mustSocket(t, b, unix.AF_PACKET, unix.SOCK_RAW), nil},
		"cooked":            {mustSocket(t, b, unix.AF_PACKET, unix.SOCK_DGRAM), unix.EINVAL},
		"of another family": {mustSocket(t, b, unix.AF_INET, unix.SOCK_DGRAM), unix.EINVAL},
		"bound":             {bound, unix.EBUSY},
		"with a ring":       {ringed, unix.EBUSY},
	} {
		require.ErrorIs(t, Check(tt.fd), tt.want, name)
		require.NoError(t, unix.Close(tt.fd), name)
	}
	require.ErrorIs(t, Check(-1), unix.EBADF)
}

func mustDup(t *testing.T, fd int) int {
	t.Helper()
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	require.NoError(t, err)
	return dup
}

// Whoever kept a duplicate may write anything into the ring, at any time.
func TestGarbageInARingBreaksNothing(t *testing.T) {
	a, b := pair(t)
	s := newSender(t, a, "v0")
	fd := mustSocket(t, b, unix.AF_PACKET, unix.SOCK_RAW)
	hostile := mustDup(t, fd)
	defer unix.Close(hostile)
	r, err := OpenFD(fd, "v1", small)
	require.NoError(t, err)
	defer r.Close()
	mem, err := unix.Mmap(hostile, 0, r.Bytes(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	require.NoError(t, err)
	defer func() { require.NoError(t, unix.Munmap(mem)) }()
	for round := range 16 {
		s.send(frame(uint32(round), 60))
		blk, err := r.Next()
		require.NoError(t, err)
		garbage := blk.mem[packetsOffset:1024]
		for i := range garbage {
			garbage[i] = byte(0xff - round*i)
		}
		for it := blk.Frames(); it.Next(); {
			require.LessOrEqual(t, len(it.Frame.Data), r.size)
		}
		blk.Release()
	}
}

// The cookie tells namespaces apart, whoever asks.
func TestTheCookieIsTheNamespaces(t *testing.T) {
	a, b := familytest.NewNS(t), familytest.NewNS(t)
	cookie := func(ns *familytest.NS) (c uint64) {
		var err error
		ns.Do(func() { c, err = Here() })
		familytest.Need(t, err)
		return c
	}
	require.NotEqual(t, cookie(a), cookie(b))
	home, err := Here()
	require.NoError(t, err)
	require.NotEqual(t, home, cookie(a))

	got, err := mustOpen(t, a, "lo", small).Cookie()
	require.NoError(t, err)
	require.Equal(t, cookie(a), got)
	fd := mustSocket(t, b, unix.AF_PACKET, unix.SOCK_RAW)
	got, err = CookieOf(fd)
	require.NoError(t, err)
	require.Equal(t, cookie(b), got)
	iface, err := LookupFD(fd, "lo")
	require.NoError(t, err)
	require.Equal(t, "lo", iface.Name)
	require.NoError(t, unix.Close(fd))
	_, err = CookieOf(-1)
	require.ErrorIs(t, err, unix.EBADF)
	require.False(t, errors.Is(err, families.ErrNotSupported))
}

// numbered is a packet of the test's, by its block and its own number.
type numbered struct {
	block  uint64
	packet uint32
}

// readNumbered reads until an error.
func readNumbered(r *Ring) (got []numbered, err error) {
	for {
		b, err := r.Next()
		if err != nil {
			return got, err
		}
		for it := b.Frames(); it.Next(); {
			got = append(got, numbered{b.Seq(), binary.BigEndian.Uint32(it.Frame.Data[14:])})
		}
		b.Release()
	}
}

// A block that was not full when the interface was deleted was lost: its packets came
// after the ring's reader had been told that the interface is gone.
func TestWhatWasReceivedComesBeforeTheEnd(t *testing.T) {
	a, b := pair(t)
	slow := small
	slow.Filter, slow.Retire = onlyTestType, time.Second
	r, s := mustOpen(t, b, "v1", slow), newSender(t, a, "v0")
	s.send(frame(7, 60))
	require.NoError(t, a.Command("ip", "link", "del", "v0").Run())
	got, err := readNumbered(r)
	require.ErrorIs(t, err, syscall.ENODEV)
	require.Equal(t, []numbered{{1, 7}}, got)
}

// Promiscuous mode of single interfaces below one ring on all.
func TestPromiscuousModeOfOneOfMany(t *testing.T) {
	a, b := pair(t)
	familytest.Veth(t, a, "w0", "", b, "w1", "")
	r := mustOpen(t, b, Any, small)
	index := mustLookup(t, b, "v1").Index
	both := func() []string { return []string{promiscuity(t, b, "v1"), promiscuity(t, b, "w1")} }
	require.Equal(t, []string{"0", "0"}, both())
	require.NoError(t, r.SetPromiscOn(index, true))
	require.Equal(t, []string{"1", "0"}, both())
	require.NoError(t, r.SetPromiscOn(index, false))
	require.NoError(t, r.SetPromiscOn(index, false), "when it is off")
	require.Equal(t, []string{"0", "0"}, both())
	require.ErrorIs(t, r.SetPromiscOn(9999, true), syscall.ENODEV)
	require.NoError(t, r.SetPromiscOn(9999, false))
	require.NoError(t, r.SetPromiscOn(index, true))
	require.NoError(t, r.SetPromiscOn(mustLookup(t, b, "w1").Index, true))
	require.NoError(t, a.Command("ip", "link", "del", "v0").Run())
	require.NoError(t, r.SetPromiscOn(index, false), "it is deleted")
	require.Equal(t, "1", promiscuity(t, b, "w1"))
	require.NoError(t, r.Close())
	require.Equal(t, "0", promiscuity(t, b, "w1"))
}
