package ksock_test

import (
	"bytes"
	"fmt"
	"net/netip"
	"syscall"
	"testing"

	"github.com/sockd/sockd/families/familytest"
	"github.com/sockd/sockd/families/ksock"
	"github.com/stretchr/testify/require"
)

// udpFD is a UDP socket bound to an address.
func udpFD(tb testing.TB, address string) (ksock.FD, ksock.Peer) {
	tb.Helper()
	p := ksock.PeerFrom(netip.MustParseAddrPort(address))
	fd, err := ksock.NewDatagramFD(p.Domain())
	require.NoError(tb, err)
	tb.Cleanup(fd.Close)
	a := p.AddrPort()
	var sa syscall.Sockaddr = &syscall.SockaddrInet4{Port: int(a.Port()), Addr: [4]byte(a.Addr().AsSlice()[:4])}
	if a.Addr().Is6() {
		sa = &syscall.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
	}
	require.NoError(tb, syscall.Bind(int(fd), sa))
	name, err := fd.LocalPeer()
	require.NoError(tb, err)
	return fd, name
}

// receiveAll takes what is there, cut into datagrams, and tells how many slots it
// took.
func receiveAll(tb testing.TB, fd ksock.FD, n int) (data [][]byte, slots int) {
	tb.Helper()
	in := ksock.NewInbox()
	familytest.Eventually(tb, "datagrams are missing", func() bool {
		got, err := in.Recv(fd, 0)
		if err != nil {
			require.Equal(tb, syscall.EAGAIN, err)
			return len(data) >= n
		}
		for i := range got {
			d := in.Take(i)
			slots++
			for rest, more := d.Data, true; more; more = len(rest) > 0 {
				k := len(rest)
				if d.Segment > 0 {
					k = min(k, d.Segment)
				}
				data = append(data, bytes.Clone(rest[:k]))
				rest = rest[k:]
			}
		}
		return len(data) >= n
	})
	return data, slots
}

// filled are datagrams of these lengths, each with a byte of its own.
func filled(lengths ...int) [][]byte {
	out := make([][]byte, len(lengths))
	for i, n := range lengths {
		out[i] = bytes.Repeat([]byte{byte(i + 1)}, n)
	}
	return out
}

func TestOutboxJoinsRunsAndNothingElse(t *testing.T) {
	for _, c := range []struct {
		name    string
		lengths []int
		parcels int
	}{
		{"equal ones are one", []int{64, 64, 64, 64}, 1},
		{"a shorter one ends it", []int{64, 64, 10, 64}, 2},
		{"a longer one begins another", []int{64, 64, 65, 65}, 2},
		{"an empty one stays alone", []int{64, 64, 0, 64}, 3},
		{"empty ones stay alone", []int{0, 0, 0}, 3},
		{"no more than a packet holds", []int{60000, 60000, 5507}, 2},
	} {
		for _, runs := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, to a receiver of runs: %v", c.name, runs), func(t *testing.T) {
				a, _ := udpFD(t, "127.0.0.1:0")
				b, to := udpFD(t, "127.0.0.1:0")
				b.ReceiveRuns(runs)
				var o ksock.Outbox
				want := filled(c.lengths...)
				for _, d := range want {
					o.Add(d, 0, ksock.Dest{Tag: 1, To: &to, MaxSegment: ksock.AnySegment})
				}
				require.Equal(t, c.parcels, o.Len())
				require.NoError(t, o.Send(a))
				sent := 0
				for i := range o.Len() {
					p := o.Parcel(i)
					require.False(t, p.Left() || p.Whole || p.Lost > 0, "parcel %d: %+v", i, p)
					sent += p.Sent
				}
				require.Equal(t, len(want), sent)
				got, slots := receiveAll(t, b, len(want))
				require.Equal(t, want, got)
				if runs && c.lengths[0] < 1000 {
					require.Equal(t, c.parcels, slots)
				}
			})
		}
	}
}

func TestOutboxKeepsDestinationsApart(t *testing.T) {
	a, _ := udpFD(t, "127.0.0.1:0")
	b, toB := udpFD(t, "127.0.0.1:0")
	c, toC := udpFD(t, "127.0.0.1:0")
	var o ksock.Outbox
	want := filled(8, 8, 8, 8)
	for i, d := range want {
		to := &toB
		if i%2 == 1 {
			to = &toC
		}
		o.Add(d, 0, ksock.Dest{Tag: to, To: to, MaxSegment: ksock.AnySegment})
	}
	require.NoError(t, o.Send(a))
	got, _ := receiveAll(t, b, 2)
	require.Equal(t, [][]byte{want[0], want[2]}, got)
	got, _ = receiveAll(t, c, 2)
	require.Equal(t, [][]byte{want[1], want[3]}, got)
}

// A run whose datagrams exceed the route's MTU cannot go as one: the kernel refuses
// it, and it goes in fragments, whole and in order.
func TestOutboxSendsApartWhatTheRouteRefusesAsARun(t *testing.T) {
	ns := familytest.NewNS(t)
	out, err := ns.Command("ip", "link", "set", "lo", "mtu", "1500").CombinedOutput()
	require.NoError(t, err, "%s", out)
	ns.Do(func() {
		for _, address := range []string{"127.0.0.1:0", "[::1]:0"} {
			a, _ := udpFD(t, address)
			b, to := udpFD(t, address)
			var o ksock.Outbox
			want := filled(2000, 2000, 2000, 2000, 100)
			most := ksock.AnySegment
			for round := range 2 {
				for _, d := range want {
					o.Add(d, 0, ksock.Dest{Tag: 1, To: &to, MaxSegment: most})
				}
				require.NoError(t, o.Send(a))
				got, _ := receiveAll(t, b, len(want))
				require.Equal(t, want, got)
				if p := o.Parcel(0); round == 0 {
					require.True(t, p.Whole)
					require.Equal(t, 5, p.Sent)
					most = p.Segment - 1
				} else {
					require.False(t, p.Whole)
				}
				o.Reset()
			}
			// What came as a run that this route is known to refuse goes apart at once.
			o.Add(bytes.Join(want[:4], nil), 2000, ksock.Dest{Tag: 1, To: &to, MaxSegment: most})
			require.NoError(t, o.Send(a))
			got, _ := receiveAll(t, b, 4)
			require.Equal(t, want[:4], got)
		}
	})
}

// An error of an earlier datagram is told in the place of sending: no datagram is
// lost by that, and the error queue says what it was.
func TestAnEarlierErrorCostsNoDatagram(t *testing.T) {
	for _, address := range []string{"127.0.0.1:0", "[::1]:0"} {
		t.Run(address, func(t *testing.T) {
			a, _ := udpFD(t, address)
			b, to := udpFD(t, address)
			a.QueueErrors(to.Domain())
			require.NoError(t, a.ConnectPeer(&to))
			b.Close()
			_, err := a.Send([]byte("nobody"))
			require.NoError(t, err)
			var told ksock.SocketError
			there, _ := udpFD(t, to.AddrPort().String())
			var o ksock.Outbox
			want := filled(3, 4, 5)
			for _, d := range want {
				o.Add(d, 0, ksock.Dest{Tag: 1})
			}
			require.NoError(t, o.Send(a))
			got, _ := receiveAll(t, there, len(want))
			require.Equal(t, want, got)
			familytest.Eventually(t, "the error is not told", func() (ok bool) {
				told, err = a.RecvError()
				return err == nil
			})
			require.Equal(t, syscall.ECONNREFUSED, told.Errno)
			require.True(t, told.FromNet)
			_, err = a.RecvError()
			require.Equal(t, syscall.EAGAIN, err)
		})
	}
}

func TestPeersAndLocalsReadAsTheyAre(t *testing.T) {
	for _, text := range []string{"192.0.2.1:80", "[2001:db8::1]:80"} {
		p := ksock.PeerFrom(netip.MustParseAddrPort(text))
		require.Equal(t, text, p.AddrPort().String())
		require.Equal(t, p, ksock.PeerOf(p.Name()))
		require.Equal(t, p.AddrPort().Addr(), ksock.LocalOf(p).IP())
	}
	require.Zero(t, ksock.LocalOf(ksock.PeerFrom(netip.MustParseAddrPort("[::]:80"))))
	mapped := ksock.PeerFrom(netip.MustParseAddrPort("[::ffff:192.0.2.1]:80"))
	require.Equal(t, "192.0.2.1:80", mapped.AddrPort().String())
}

// The numbers of RFC 792 and RFC 4443, and the headers by which a receiver finds the
// socket: the client's own datagram's.
func TestUnreachableMessages(t *testing.T) {
	for _, c := range []struct {
		why          syscall.Errno
		v4, v6       [2]byte
		rest4, rest6 []byte
		mtu          uint32
	}{
		{syscall.ECONNREFUSED, [2]byte{3, 3}, [2]byte{1, 4}, []byte{0, 0, 0, 0}, []byte{0, 0, 0, 0}, 0},
		{syscall.ENETUNREACH, [2]byte{3, 0}, [2]byte{1, 0}, []byte{0, 0, 0, 0}, []byte{0, 0, 0, 0}, 0},
		{syscall.EHOSTUNREACH, [2]byte{3, 1}, [2]byte{1, 3}, []byte{0, 0, 0, 0}, []byte{0, 0, 0, 0}, 0},
		{syscall.EACCES, [2]byte{3, 13}, [2]byte{1, 1}, []byte{0, 0, 0, 0}, []byte{0, 0, 0, 0}, 0},
		{syscall.EMSGSIZE, [2]byte{3, 4}, [2]byte{2, 0}, []byte{0, 0, 5, 0}, []byte{0, 0, 5, 0}, 1280},
	} {
		t.Run(c.why.Error(), func(t *testing.T) {
			u := ksock.Unreachable{
				To:   ksock.PeerFrom(netip.MustParseAddrPort("192.0.2.9:1000")),
				From: ksock.Local{Addr: netip.MustParseAddr("192.0.2.1").As16()}, Port: 53, Why: c.why, MTU: c.mtu,
			}
			b := u.Message()
			require.Equal(t, c.v4[:], b[:2])
			require.Equal(t, c.rest4, b[4:8])
			require.Zero(t, sum(b), "the checksum of all is 0")
			require.Zero(t, sum(b[8:28]))
			require.Equal(t, []byte{192, 0, 2, 9, 192, 0, 2, 1, 1000 >> 8, 1000 & 0xff, 0, 53, 0, 8}, b[20:34])
			u.To = ksock.PeerFrom(netip.MustParseAddrPort("[2001:db8::9]:1000"))
			u.From.Addr = netip.MustParseAddr("2001:db8::1").As16()
			b = u.Message()
			require.Equal(t, c.v6[:], b[:2])
			require.Equal(t, c.rest6, b[4:8])
			require.Equal(t, append(u.To.AddrPort().Addr().AsSlice(), u.From.Addr[:]...), b[16:48])
			require.Equal(t, []byte{1000 >> 8, 1000 & 0xff, 0, 53, 0, 8, 0, 0}, b[48:])
		})
	}
}

// sum is the internet checksum over bytes with their own checksum among them: 0 when
// that is right.
func sum(b []byte) uint16 {
	var s uint32
	for i := 0; i+1 < len(b); i += 2 {
		s += uint32(b[i])<<8 | uint32(b[i+1])
	}
	s = s&0xffff + s>>16
	return ^uint16(s + s>>16)
}

func TestBatchesAllocateNothing(t *testing.T) {
	from, _ := udpFD(t, "127.0.0.1:0")
	fd, to := udpFD(t, "127.0.0.1:0")
	fd.TellLocal(to.Domain())
	in, data := ksock.NewInbox(), make([]byte, 64)
	var o ksock.Outbox
	dest := ksock.Dest{Tag: &to, To: &to, From: ksock.LocalOf(to), MaxSegment: ksock.AnySegment}
	require.Zero(t, testing.AllocsPerRun(100, func() {
		for range ksock.BatchSize {
			o.Add(data, 0, dest)
		}
		if err := o.Send(from); err != nil {
			t.Fatal(err)
		}
		o.Reset()
		for left := ksock.BatchSize; left > 0; {
			n, err := in.Recv(fd, 0)
			if err != nil {
				t.Fatal(err)
			}
			for i := range n {
				if d := in.Take(i); d.Local != dest.From {
					t.Fatal(d.Local)
				}
			}
			left -= n
		}
	}))
}

func BenchmarkBatch(b *testing.B) {
	from, _ := udpFD(b, "127.0.0.1:0")
	fd, to := udpFD(b, "127.0.0.1:0")
	in, data := ksock.NewInbox(), make([]byte, 64)
	var o ksock.Outbox
	b.ReportAllocs()
	for b.Loop() {
		for range ksock.BatchSize {
			o.Add(data, 0, ksock.Dest{Tag: 1, To: &to})
		}
		if err := o.Send(from); err != nil {
			b.Fatal(err)
		}
		o.Reset()
		n, err := in.Recv(fd, 0)
		if err != nil || n != ksock.BatchSize {
			b.Fatal(n, err)
		}
		for i := range n {
			in.Take(i)
		}
	}
}
