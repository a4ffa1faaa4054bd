package relay

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/familytest"
	"github.com/sockd/sockd/families/inet"
	"github.com/sockd/sockd/families/ksock"
	"github.com/sockd/sockd/families/model"
	"github.com/stretchr/testify/require"
)

// udpEcho answers every datagram until the test ends, and gives its address.
func udpEcho(tb testing.TB, network, address string) *net.UDPConn {
	tb.Helper()
	a, err := net.ResolveUDPAddr(network, address)
	require.NoError(tb, err)
	c, err := net.ListenUDP(network, a)
	require.NoError(tb, err)
	require.NoError(tb, c.SetReadBuffer(8<<20))
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, 1<<16)
		for {
			n, peer, err := c.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			_, _ = c.WriteToUDPAddrPort(b[:n], peer) // a client that left is none of its affair
		}
	}()
	tb.Cleanup(func() {
		_ = c.Close()
		<-done
	})
	return c
}

// udpRelay is a relay to an echo, and where it listens.
func (w *world) udpRelay(from string, change func(*model.RelaySpec)) (model.Relay, netip.AddrPort) {
	w.tb.Helper()
	echo := udpEcho(w.tb, "udp", "127.0.0.1:0")
	s := spec(w.tb, from, "udp:"+echo.LocalAddr().String())
	if change != nil {
		change(&s)
	}
	r := w.mustAdd(s)
	_, address := endpoint(w.tb, r)
	at, err := netip.ParseAddrPort(address)
	require.NoError(w.tb, err)
	return r, at
}

func mustDialUDP(tb testing.TB, local, to string) *net.UDPConn {
	tb.Helper()
	d := net.Dialer{}
	if local != "" {
		d.LocalAddr = net.UDPAddrFromAddrPort(netip.MustParseAddrPort(local))
	}
	c, err := d.Dial("udp", to)
	require.NoError(tb, err)
	tb.Cleanup(func() { _ = c.Close() })
	require.NoError(tb, c.SetDeadline(time.Now().Add(deadline)))
	return c.(*net.UDPConn)
}

// mustAnswer sends a datagram and wants it back. The socket is connected: an answer
// from another address than the one it spoke to never comes.
func mustAnswer(tb testing.TB, c net.Conn, msg []byte) {
	tb.Helper()
	_, err := c.Write(msg)
	require.NoError(tb, err)
	b := make([]byte, 1<<16)
	n, err := c.Read(b)
	require.NoError(tb, err)
	require.True(tb, bytes.Equal(msg, b[:n]), "got %d bytes; want %d", n, len(msg))
}

func TestUDPKeepsBordersAtEverySize(t *testing.T) {
	for _, from := range []string{"udp:127.0.0.1:0", "udp:[::1]:0", "udp::0"} {
		t.Run(from, func(t *testing.T) {
			w := newWorld(t)
			r, at := w.udpRelay(from, nil)
			c := mustDialUDP(t, "", at.String())
			for _, n := range []int{0, 1, 1472, 9000, 65507} {
				mustAnswer(t, c, bytes.Repeat([]byte{byte(n)}, n))
			}
			require.Empty(t, w.mustRelay(r.ID).Drops)
			require.IsType(t, &udpFront{}, w.front(r.ID))
		})
	}
}

func (w *world) front(id model.ID) front {
	w.tb.Helper()
	r, err := w.eng.relay(id)
	require.NoError(w.tb, err)
	return r.front
}

// On a wildcard FROM, whoever speaks to an address is answered from it: the client's
// connected socket would drop anything else.
func TestAnswersComeFromTheAddressThatWasSpokenTo(t *testing.T) {
	for _, c := range []struct{ from, first, second string }{
		{"udp4:0.0.0.0:0", "127.0.0.2", "127.0.0.3"},
		{"udp::0", "127.0.0.2", "127.0.0.3"},
		{"udp::0", "127.0.0.2", "::1"},
		{"udp6:[::]:0", "::1", "::1"},
	} {
		t.Run(c.from+" at "+c.first+" and "+c.second, func(t *testing.T) {
			w := newWorld(t)
			r, at := w.udpRelay(c.from, nil)
			for _, host := range []string{c.first, c.second} {
				to := netip.AddrPortFrom(netip.MustParseAddr(host), at.Port())
				for range 3 {
					mustAnswer(t, mustDialUDP(t, "", to.String()), []byte(host))
				}
			}
			require.Empty(t, w.mustRelay(r.ID).Drops)
			require.Len(t, w.eng.Sessions(), 6)
		})
	}
}

// One client that speaks to two addresses of FROM has two conversations.
func TestAnAddressSpokenToIsPartOfTheSession(t *testing.T) {
	w := newWorld(t)
	_, at := w.udpRelay("udp4:0.0.0.0:0", nil)
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	require.NoError(t, err)
	defer c.Close()
	require.NoError(t, c.SetDeadline(time.Now().Add(deadline)))
	for _, host := range []string{"127.0.0.2", "127.0.0.3", "127.0.0.2"} {
		to := netip.AddrPortFrom(netip.MustParseAddr(host), at.Port())
		_, err := c.WriteToUDPAddrPort([]byte(host), to)
		require.NoError(t, err)
		b := make([]byte, 100)
		n, from, err := c.ReadFromUDPAddrPort(b)
		require.NoError(t, err)
		require.Equal(t, host, string(b[:n]))
		require.Equal(t, to, from)
	}
	require.Len(t, w.eng.Sessions(), 2)
}

// refused waits until a connected socket is told that its port is not there.
func refused(tb testing.TB, c net.Conn) {
	tb.Helper()
	_, err := c.Write([]byte("anybody?"))
	require.NoError(tb, err)
	_, err = c.Read(make([]byte, 10))
	require.ErrorIs(tb, err, syscall.ECONNREFUSED)
}

func TestAnICMPErrorReachesTheClientItBelongsTo(t *testing.T) {
	for _, c := range []struct{ from, host, backend string }{
		{"udp:127.0.0.1:0", "127.0.0.1", "127.0.0.1"},
		{"udp:[::1]:0", "::1", "::1"},
		{"udp:[::1]:0", "::1", "127.0.0.1"},
		{"udp::0", "127.0.0.5", "127.0.0.1"},
		{"udp::0", "::1", "127.0.0.1"},
	} {
		t.Run(fmt.Sprintf("%s from %s to %s", c.from, c.host, c.backend), func(t *testing.T) {
			w := newWorld(t)
			echo := udpEcho(t, "udp", net.JoinHostPort(c.backend, "0"))
			gone := echo.LocalAddr().String()
			r := w.mustAdd(spec(t, c.from, "udp:"+gone))
			_, address := endpoint(t, r)
			to := netip.AddrPortFrom(netip.MustParseAddr(c.host), netip.MustParseAddrPort(address).Port()).String()
			second := mustDialUDP(t, "", to)
			mustAnswer(t, second, []byte("while it is there"))
			require.NoError(t, echo.Close())
			first := mustDialUDP(t, "", to)
			refused(t, first)
			// The other one is told nothing of that: its next call is the first to fail.
			require.NoError(t, second.SetReadDeadline(time.Now().Add(20*time.Millisecond)))
			_, err := second.Read(make([]byte, 10))
			var late net.Error
			require.True(t, errors.As(err, &late) && late.Timeout(), "got %v", err)
			drops := w.mustRelay(r.ID).Drops
			require.EqualValues(t, 1, drops["refused"])
			require.Zero(t, drops["untold"])
		})
	}
}

// What this host finds out itself is told as a router would: a network without a
// route, and a host that does not answer to its address.
func TestAnUnreachableBackendIsToldAsSuch(t *testing.T) {
	a, b := familytest.NewNS(t), familytest.NewNS(t)
	familytest.Veth(t, a, "va", "10.9.2.1/24", b, "vb", "10.9.2.2/24")
	for _, c := range []struct {
		to   string
		want syscall.Errno
	}{{"203.0.113.1:9", syscall.ENETUNREACH}, {"10.9.2.77:9", syscall.EHOSTUNREACH}} {
		t.Run(c.want.Error(), func(t *testing.T) {
			w := newWorldOf(t, families.Set{a.Family(inet.Family)})
			r := w.mustAdd(spec(t, "udp:127.0.0.1:0", "udp:"+c.to))
			var client ksock.FD
			a.Do(func() {
				var err error
				client, err = ksock.NewDatagramFD(syscall.AF_INET)
				require.NoError(t, err)
			})
			defer client.Close()
			client.QueueErrors(syscall.AF_INET)
			_, address := endpoint(t, r)
			to := ksock.PeerFrom(netip.MustParseAddrPort(address))
			require.NoError(t, client.ConnectPeer(&to))
			_, err := client.Send([]byte("anybody?"))
			require.NoError(t, err)
			var told ksock.SocketError
			familytest.Eventually(t, "the client is not told", func() bool {
				told, err = client.RecvError()
				return err == nil
			})
			require.Equal(t, c.want, told.Errno)
			require.True(t, told.FromNet)
		})
	}
}

// A client behind a proxy is who the header names: several may speak from the proxy's
// one socket, and each has a session. The backend is told the same.
func TestPROXYHeadersOnDatagrams(t *testing.T) {
	w := newWorld(t)
	far := newBlast(t, false)
	name, err := far.fd.LocalPeer()
	require.NoError(t, err)
	r := w.mustAdd(spec(t, "udp:127.0.0.1:0,proxy=accept", fmt.Sprintf("udp:127.0.0.1:%d,proxy=v2", name.AddrPort().Port())))
	require.IsType(t, &udpFront{}, w.front(r.ID))
	_, address := endpoint(t, r)
	proxy := mustDialUDP(t, "", address)
	headers := map[string]proxyHeader{}
	for _, client := range []string{"192.0.2.1:1", "192.0.2.1:2", "[2001:db8::1]:1"} {
		h := proxyHeader{version: 2, transport: proxyDgram}
		h.between(netip.MustParseAddrPort(client), netip.MustParseAddrPort("198.51.100.1:53"))
		headers[client] = h
		for range 3 {
			_, err := proxy.Write(appendProxyDatagram(nil, h, []byte(client)))
			require.NoError(t, err)
		}
	}
	_, err = proxy.Write([]byte("no header"))
	require.NoError(t, err)
	from := map[string]ksock.Peer{}
	far.collect(9, func(d *ksock.Datagram) {
		h, payload, err := proxyDatagram(d.Data)
		require.NoError(t, err)
		require.Equal(t, headers[string(payload)], h)
		if before, ok := from[string(payload)]; ok {
			require.Equal(t, before, *d.Peer)
		}
		from[string(payload)] = *d.Peer
	})
	require.Len(t, from, 3)
	var peers []string
	for _, s := range w.eng.Sessions() {
		peers = append(peers, s.Peer)
	}
	require.ElementsMatch(t, []string{"udp:192.0.2.1:1", "udp:192.0.2.1:2", "udp:[2001:db8::1]:1"}, peers)
	answer := from["192.0.2.1:2"]
	far.out.Add([]byte("answer"), 0, ksock.Dest{Tag: 1, To: &answer})
	require.NoError(t, far.out.Send(far.fd))
	b := make([]byte, 100)
	n, err := proxy.Read(b)
	require.NoError(t, err)
	require.Equal(t, "answer", string(b[:n]))
	require.Equal(t, model.Drops{"no_header": 1}, w.mustRelay(r.ID).Drops)
	require.EqualValues(t, 3*(2*len("192.0.2.1:1")+len("[2001:db8::1]:1")), w.mustRelay(r.ID).RxBytes, "headers are not the client's bytes")
	w.requireBooks(r.ID)
}

// A backend by name is dialled elsewhere: what waits for that gets its header, too.
func TestPROXYHeadersOfAClientThatSpeaksToItsRelay(t *testing.T) {
	w := newWorld(t)
	far := newBlast(t, true)
	name, err := far.fd.LocalPeer()
	require.NoError(t, err)
	r := w.mustAdd(spec(t, "udp4:0.0.0.0:0", fmt.Sprintf("udp4:localhost:%d,proxy=v2", name.AddrPort().Port())))
	_, address := endpoint(t, r)
	to := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.2"), netip.MustParseAddrPort(address).Port())
	c := mustDialUDP(t, "", to.String())
	const n = 100
	for i := range n {
		_, err := c.Write([]byte{byte(i)})
		require.NoError(t, err)
	}
	next := 0
	far.collect(n, func(d *ksock.Datagram) {
		for data := range ksock.Cut(d.Data, d.Segment) {
			h, payload, err := proxyDatagram(data)
			require.NoError(t, err)
			require.Equal(t, c.LocalAddr().String(), h.src.String())
			require.Equal(t, to, h.dst)
			require.Equal(t, []byte{byte(next)}, payload)
			next++
		}
	})
	require.EqualValues(t, n, w.mustRelay(r.ID).RxBytes)
	w.requireBooks(r.ID)
}

// The same over an interface, whose sockets are in other namespaces than the daemon:
// two addresses, both families.
func TestUDPOverVeth(t *testing.T) {
	w := newWorld(t)
	a, b := familytest.NewNS(t), familytest.NewNS(t)
	familytest.Veth(t, a, "va", "10.9.0.1/24", b, "vb", "10.9.0.2/24")
	for _, extra := range []string{"10.9.0.3/24", "fd09::1/64", "fd09::3/64"} {
		run(t, a, "addr", "add", extra, "dev", "va")
	}
	run(t, b, "addr", "add", "fd09::2/64", "dev", "vb")
	echo := udpEcho(t, "udp", "127.0.0.1:0")
	s := spec(t, "udp::0", "udp:"+echo.LocalAddr().String())
	a.Do(func() {
		fd, err := syscall.Socket(syscall.AF_INET6, syscall.SOCK_DGRAM|syscall.SOCK_CLOEXEC, 0)
		require.NoError(t, err)
		require.NoError(t, syscall.Bind(fd, &syscall.SockaddrInet6{}))
		s.FromFD = fd
	})
	r := w.mustAdd(s)
	_, address := endpoint(t, r)
	port := netip.MustParseAddrPort(address).Port()
	dial := func(host string) (c *net.UDPConn) {
		b.Do(func() { c = mustDialUDP(t, "", netip.AddrPortFrom(netip.MustParseAddr(host), port).String()) })
		return c
	}
	hosts := []string{"10.9.0.1", "10.9.0.3", "fd09::1", "fd09::3"}
	for _, host := range hosts {
		mustAnswer(t, dial(host), bytes.Repeat([]byte("v"), 5000)) // fragments
	}
	require.NoError(t, echo.Close())
	for _, host := range hosts {
		refused(t, dial(host))
	}
}

// A backend whose neighbour does not answer yet takes no more than a socket buffer: what
// comes then waits within a bound, is counted beyond it, and goes on in order when the
// neighbour is there.
func TestWhatABackendDoesNotTakeWaitsWithinABound(t *testing.T) {
	a, b := familytest.NewNS(t), familytest.NewNS(t)
	familytest.Veth(t, a, "va", "10.9.1.1/24", b, "vb", "10.9.1.2/24")
	w := newWorldOf(t, families.Set{a.Family(inet.Family)})
	r := w.mustAdd(spec(t, "udp:127.0.0.1:0", "udp:10.9.1.77:7,so_sndbuf=20000"))
	require.IsType(t, &udpFront{}, w.front(r.ID))
	var c *net.UDPConn
	a.Do(func() {
		_, address := endpoint(t, r)
		c = mustDialUDP(t, "", address)
	})
	const n, size = 600, 500
	_, err := c.Write(make([]byte, size)) // number 0
	require.NoError(t, err)
	familytest.Eventually(t, "there is no session", func() bool { return w.mustRelay(r.ID).RxBytes == size })
	for i := 1; i < n; i++ {
		msg := make([]byte, size)
		binary.BigEndian.PutUint32(msg, uint32(i))
		_, err := c.Write(msg)
		require.NoError(t, err)
	}
	familytest.Eventually(t, "nothing is beyond the bound", func() bool { return w.mustRelay(r.ID).Drops["full"] > 0 })
	require.Equal(t, "to", w.eng.Sessions()[0].LimitedBy)
	run(t, b, "addr", "add", "10.9.1.77/24", "dev", "vb")
	var far *net.UDPConn
	b.Do(func() {
		var err error
		far, err = net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(10, 9, 1, 77), Port: 7})
		require.NoError(t, err)
		require.NoError(t, far.SetReadBuffer(1<<20)) // for all that is let go at once
	})
	defer far.Close()
	require.NoError(t, far.SetReadDeadline(time.Now().Add(deadline)))
	// The kernel lets go what it holds for the neighbour while others may already send to
	// it. Nobody does: what is sent then would overtake what is let go.
	held, released := make(chan struct{}), make(chan struct{})
	release := sync.OnceFunc(func() { close(released) })
	defer release()
	require.True(t, w.front(r.ID).(*udpFront).sh.do(func() { close(held); <-released }))
	<-held
	run(t, a, "neigh", "replace", "10.9.1.77", "lladdr", macOf(t, b, "vb"), "dev", "va")
	release()
	full := w.mustRelay(r.ID).Drops["full"]
	msg := make([]byte, size)
	for i := range n - int(full) {
		_, err := far.Read(msg)
		require.NoError(t, err, "datagram %d; %v", i, w.mustRelay(r.ID))
		require.EqualValues(t, i, binary.BigEndian.Uint32(msg))
	}
	w.requireBooks(r.ID)
}

// requireBooks: in = out + lost for every session, when nothing is in flight.
func (w *world) requireBooks(id model.ID) {
	w.tb.Helper()
	r, err := w.eng.relay(id)
	require.NoError(w.tb, err)
	for _, s := range r.list() {
		for _, f := range []*flow{&s.common().rx, &s.common().tx} {
			familytest.Eventually(w.tb, "the books do not balance", func() bool { return f.inFlight() == 0 })
			require.Equal(w.tb, f.inMessages.Load(), f.outMessages.Load()+f.lostMs.Load())
		}
	}
}

func macOf(tb testing.TB, ns *familytest.NS, iface string) (mac string) {
	tb.Helper()
	ns.Do(func() {
		i, err := net.InterfaceByName(iface)
		require.NoError(tb, err)
		mac = i.HardwareAddr.String()
	})
	return mac
}

func run(tb testing.TB, ns *familytest.NS, args ...string) {
	tb.Helper()
	out, err := ns.Command("ip", args...).CombinedOutput()
	require.NoError(tb, err, "%s", out)
}

func TestICMPErrorsToClientsAreBounded(t *testing.T) {
	var b icmpTeller
	b.tokens = icmpBurst
	n := 0
	for range 10 * icmpBurst {
		if b.allowed(time.Second) {
			n++
		}
	}
	require.Equal(t, icmpBurst, n)
	require.True(t, b.allowed(time.Second+10*time.Millisecond))
}

// blast is a socket that sends and receives in batches.
type blast struct {
	tb  testing.TB
	fd  ksock.FD
	in  *ksock.Inbox
	out ksock.Outbox
}

func newBlast(tb testing.TB, runs bool) *blast {
	tb.Helper()
	fd, err := ksock.NewDatagramFD(syscall.AF_INET)
	require.NoError(tb, err)
	tb.Cleanup(fd.Close)
	require.NoError(tb, syscall.Bind(int(fd), &syscall.SockaddrInet4{}))
	fd.TellLocal(syscall.AF_INET)
	fd.Deepen(8 << 20)
	fd.ReceiveRuns(runs)
	return &blast{tb: tb, fd: fd, in: ksock.NewInbox()}
}

// collect receives n datagrams, and hands each, or each run, to f.
func (b *blast) collect(n int, f func(d *ksock.Datagram)) {
	b.tb.Helper()
	familytest.Eventually(b.tb, "datagrams are missing", func() bool {
		for n > 0 {
			got, err := b.in.Recv(b.fd, 0)
			if err != nil {
				require.Equal(b.tb, syscall.EAGAIN, err)
				return false
			}
			for i := range got {
				d := b.in.Take(i)
				n -= ksock.Segments(len(d.Data), d.Segment)
				f(&d)
			}
		}
		return true
	})
}

// Runs of datagrams, sent as such or not, arrive as they were: all, in order, with
// their lengths.
func TestRunsKeepOrderAndBorders(t *testing.T) {
	for _, c := range []struct {
		name       string
		sends, has bool
	}{{"sent as runs to a plain receiver", true, false}, {"sent as runs, received as runs", true, true}, {"sent one by one, received as runs", false, true}} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			far := newBlast(t, c.has)
			name, err := far.fd.LocalPeer()
			require.NoError(t, err)
			r := w.mustAdd(spec(t, "udp:127.0.0.1:0", fmt.Sprintf("udp:127.0.0.1:%d", name.AddrPort().Port())))
			_, address := endpoint(t, r)
			near := newBlast(t, c.has)
			ep := ksock.PeerFrom(netip.MustParseAddrPort(address))
			dest := ksock.Dest{Tag: near, To: &ep}
			if c.sends {
				dest.MaxSegment = ksock.AnySegment
			}
			want := near.sendNumbered(dest)
			var got [][]byte
			back := &ksock.Outbox{}
			var client ksock.Peer
			far.collect(len(want), func(d *ksock.Datagram) {
				got = append(got, cut(d)...)
				client = *d.Peer
			})
			require.Equal(t, want, got)
			for _, data := range got {
				if back.Full() {
					require.NoError(t, back.Send(far.fd))
					back.Reset()
				}
				back.Add(data, 0, ksock.Dest{Tag: far, To: &client, MaxSegment: dest.MaxSegment})
			}
			require.NoError(t, back.Send(far.fd))
			got = got[:0]
			near.collect(len(want), func(d *ksock.Datagram) { got = append(got, cut(d)...) })
			require.Equal(t, want, got)
			require.Empty(t, w.mustRelay(r.ID).Drops)
		})
	}
}

// cut is a copy of each datagram of a run.
func cut(d *ksock.Datagram) (out [][]byte) {
	for data := range ksock.Cut(d.Data, d.Segment) {
		out = append(out, bytes.Clone(data))
	}
	return out
}

// sendNumbered sends datagrams of many lengths, many equal ones among them, and gives
// what was sent.
func (b *blast) sendNumbered(dest ksock.Dest) (sent [][]byte) {
	b.tb.Helper()
	for i := range 600 {
		n := []int{64, 64, 64, 64, 20, 1400, 1400, 1400, 7, 1400}[i/20%10]
		if i%50 == 49 {
			n = 0
		}
		d := make([]byte, n)
		if n >= 4 {
			binary.BigEndian.PutUint32(d, uint32(i))
		}
		sent = append(sent, d)
		if b.out.Full() {
			require.NoError(b.tb, b.out.Send(b.fd))
			b.out.Reset()
		}
		b.out.Add(d, 0, dest)
	}
	require.NoError(b.tb, b.out.Send(b.fd))
	b.out.Reset()
	return sent
}

// A hundred thousand clients, one after the other, leave nothing behind (NoLeaks):
// each is answered, no more sessions live than may, and the books balance.
func TestAHundredThousandClientsLeaveNothing(t *testing.T) {
	const clients, most = 100_000, 1000
	w := newWorld(t)
	r, at := w.udpRelay("udp:127.0.0.1:0", func(s *model.RelaySpec) { s.MaxConns = most })
	b := newBlast(t, false)
	to := ksock.PeerFrom(at)
	const batch = ksock.BatchSize
	for first := 0; first < clients; first += batch {
		var data [batch][4]byte
		for i := range batch {
			binary.BigEndian.PutUint32(data[i][:], uint32(first+i))
			b.out.Add(data[i][:], 0, ksock.Dest{Tag: i, To: &to, From: crowdAddr(first + i)})
		}
		require.NoError(t, b.out.Send(b.fd))
		b.out.Reset()
		b.collect(batch, func(d *ksock.Datagram) {
			n := binary.BigEndian.Uint32(d.Data)
			require.Equal(t, crowdAddr(int(n)), d.Local, "an answer went to another client")
		})
	}
	now := w.mustRelay(r.ID)
	require.EqualValues(t, clients, now.Total)
	require.EqualValues(t, most, now.Sessions)
	require.EqualValues(t, 4*clients, now.RxBytes)
	require.EqualValues(t, 4*clients, now.TxBytes)
	require.Equal(t, model.Drops{"evicted": clients - most}, now.Drops)
	require.NoError(t, w.eng.Remove(r.ID, 0))
}

// crowdAddr is the address of client i, in 127.0.0.0/8.
func crowdAddr(i int) ksock.Local {
	return ksock.Local{Addr: netip.AddrFrom4([4]byte{127, byte(1 + i/62500), byte(i / 250 % 250), byte(1 + i%250)}).As16()}
}

func TestUDPIdleSessionsEndEachInItsTime(t *testing.T) {
	w := newWorld(t)
	r, at := w.udpRelay("udp:127.0.0.1:0", func(s *model.RelaySpec) { s.Idle = 30 * time.Millisecond })
	mustAnswer(t, mustDialUDP(t, "", at.String()), []byte("x"))
	require.Equal(t, "idle for 30ms", w.host.mustEvent(t, "session", "closed", 0).Cause)
	w.mustIdle(r.ID)
	long := time.Hour
	_, err := w.eng.Set(t.Context(), r.ID, model.RelayChange{Idle: &long})
	require.NoError(t, err)
	stays := mustDialUDP(t, "", at.String())
	mustAnswer(t, stays, []byte("x"))
	short := 20 * time.Millisecond
	_, err = w.eng.Set(t.Context(), r.ID, model.RelayChange{Idle: &short})
	require.NoError(t, err)
	mustAnswer(t, mustDialUDP(t, "", at.String()), []byte("y"))
	familytest.Eventually(t, "the short one stays", func() bool { return w.mustRelay(r.ID).Sessions == 1 })
	require.Equal(t, "udp:"+stays.LocalAddr().String(), w.eng.Sessions()[0].Peer)
}

func TestUDPAllowKeepsOthersOut(t *testing.T) {
	w := newWorld(t)
	r, at := w.udpRelay("udp:127.0.0.1:0", func(s *model.RelaySpec) {
		s.Allow = []model.Allow{{Kind: model.AllowPrefix, Prefix: netip.MustParsePrefix("127.0.0.8/32")}}
	})
	mustAnswer(t, mustDialUDP(t, "127.0.0.8:0", at.String()), []byte("may"))
	_, err := mustDialUDP(t, "127.0.0.9:0", at.String()).Write([]byte("may not"))
	require.NoError(t, err)
	familytest.Eventually(t, "it is not counted", func() bool { return w.mustRelay(r.ID).Drops["denied"] == 1 })
	require.Len(t, w.eng.Sessions(), 1)
}

func TestUDPRateHoldsMessagesInTheKernel(t *testing.T) {
	w := newWorld(t)
	const size, n, rate = 1000, 300, 1 << 20
	r, at := w.udpRelay("udp:127.0.0.1:0", func(s *model.RelaySpec) { s.Rate = rate })
	c := mustDialUDP(t, "", at.String())
	require.NoError(t, c.SetReadBuffer(1<<20)) // for the burst, which nobody reads meanwhile
	begun := time.Now()
	for range n {
		_, err := c.Write(make([]byte, size))
		require.NoError(t, err)
	}
	b := make([]byte, 2*size)
	for i := range n {
		_, err := c.Read(b)
		require.NoError(t, err, "answer %d; %v", i, w.mustRelay(r.ID))
	}
	// All but a burst of each direction's is paid for.
	unpaid := 2 * burstTime.Seconds() * rate
	require.Greater(t, time.Since(begun).Seconds(), (n*size-unpaid)/rate)
	require.Empty(t, w.mustRelay(r.ID).Drops)
}

// What the kernel drops from FROM's queue and from a session's is in the books.
func TestUDPKernelDropsAreCounted(t *testing.T) {
	for _, c := range []struct{ name, from, to string }{{"from clients", ",so_rcvbuf=4096", ""}, {"from the backend", "", ",so_rcvbuf=4096"}} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			echo := udpEcho(t, "udp", "127.0.0.1:0")
			r := w.mustAdd(spec(t, "udp:127.0.0.1:0"+c.from, "udp:"+echo.LocalAddr().String()+c.to))
			b := newBlast(t, false)
			_, address := endpoint(t, r)
			to := ksock.PeerFrom(netip.MustParseAddrPort(address))
			familytest.Eventually(t, "the kernel drops nothing", func() bool {
				for range ksock.BatchSize {
					b.out.Add(make([]byte, 2000), 0, ksock.Dest{Tag: 1, To: &to, MaxSegment: ksock.AnySegment})
				}
				require.NoError(t, b.out.Send(b.fd))
				b.out.Reset()
				return w.mustRelay(r.ID).Drops["kernel"] > 0
			})
			before := w.mustRelay(r.ID).Drops["kernel"]
			familytest.Eventually(t, "sessions come again and again", func() bool {
				for _, s := range w.eng.Sessions() { // what is queued still may begin one
					_ = w.eng.CloseSession(s.ID) // ENOENT: it has ended by itself
				}
				return w.mustRelay(r.ID).Sessions == 0
			})
			require.GreaterOrEqual(t, w.mustRelay(r.ID).Drops["kernel"], before, "they stay when the session is over")
		})
	}
}

// A descriptor of systemd's goes back when its relay ends, and serves the next one.
func TestASystemdUDPSocketServesOneRelayAfterTheOther(t *testing.T) {
	w := newWorld(t)
	s, err := inet.Family.Open(t.Context(), families.Spec{Type: families.Dgram})
	require.NoError(t, err)
	require.NoError(t, s.Bind(familytest.MustAddr(t, inet.Family, families.Dgram, "127.0.0.1:0")))
	at := s.Info().Local.String()
	w.host.GiveBack("dns", s)
	for range 2 {
		r, _ := w.udpRelay("fd:dns", nil)
		require.IsType(t, &udpFront{}, w.front(r.ID))
		c := mustDialUDP(t, "", at)
		mustAnswer(t, c, []byte("one"))
		require.NoError(t, w.eng.Remove(r.ID, 0))
	}
}

func TestUDPSetAndCloseAndRemove(t *testing.T) {
	w := newWorld(t)
	r, at := w.udpRelay("udp:127.0.0.1:0", nil)
	c := mustDialUDP(t, "", at.String())
	mustAnswer(t, c, []byte("one"))
	other := udpEcho(t, "udp", "127.0.0.1:0")
	to := []families.Endpoint{mustEndpoint(t, "udp:localhost:"+fmt.Sprint(other.LocalAddr().(*net.UDPAddr).Port))}
	_, err := w.eng.Set(t.Context(), r.ID, model.RelayChange{To: &to})
	require.NoError(t, err)
	before := w.eng.Sessions()
	mustAnswer(t, c, []byte("goes on as it was"))
	require.Equal(t, before[0].Backend, w.eng.Sessions()[0].Backend)
	require.NoError(t, w.eng.CloseSession(before[0].ID))
	w.mustIdle(r.ID)
	mustAnswer(t, c, []byte("a name that is looked up"))
	require.Equal(t, "udp:"+other.LocalAddr().String(), w.eng.Sessions()[0].Backend)
	require.NoError(t, w.eng.Remove(r.ID, time.Hour)) // there is no end to wait for
	again, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
	require.NoError(t, err, "FROM's address is free")
	require.NoError(t, again.Close())
}
