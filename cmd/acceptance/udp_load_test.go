package acceptance

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/require"
)

// A hundred thousand UDP clients, each with an address of its own, come and go
// through a relay that holds a thousand: each has its answer, and none leaves
// anything behind.
func TestAHundredThousandUDPClientsInTurn(t *testing.T) {
	const first, all, room = 20_000, 100_000, 1000
	s := start(t, nil)
	k := s.caller()
	to := udpEcho(t)
	addr := relayAddress(t, s.run("relay", "add", "udp:127.0.0.1:0", "udp:"+to, "--max-conns", fmt.Sprint(room), "--idle", "1s"))
	c := newUDPClients(t, addr)
	gone := func() bool { return k.relay().Sessions == 0 }

	require.NoError(t, c.ask(0, 1)) // it makes what is made once
	s.eventually("the first session is over", gone)
	before := s.descriptors()
	require.NoError(t, c.ask(1, first))
	require.LessOrEqual(t, k.relay().Sessions, int64(room))
	s.eventually("all sessions are over", gone)
	s.settles(before)
	resident, threads := s.resident(), s.threads()

	require.NoError(t, c.ask(first, all))
	s.eventually("all sessions are over", gone)
	s.settles(before)
	// A goroutine for each of the other 80,000 would be 160 MiB at least.
	require.Less(t, s.resident()-resident, int64(16<<20), "memory does not grow with those who came later")
	require.LessOrEqual(t, s.threads(), threads+4)
	r := k.relay()
	require.EqualValues(t, all, r.Total)
	require.EqualValues(t, all*c.size(), r.RxBytes)
	require.EqualValues(t, all*c.size(), r.TxBytes)
	for cause := range r.Drops {
		require.Equal(t, "evicted", cause, "sessions made room for others; nothing was lost")
	}
	require.Less(t, s.goroutines(), quietGoroutines)
}

// quietGoroutines is more than a daemon with a few relays and no session has: a dozen,
// and an event loop a processor.
var quietGoroutines = 64 + 2*runtime.NumCPU()

// udpEcho sends every datagram back until the test ends.
func udpEcho(t *testing.T) (addr string) {
	t.Helper()
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	require.NoError(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 1<<16)
		for {
			n, from, err := c.ReadFrom(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				_, _ = c.WriteTo(buf[:n], from) // the client sees that it is lost
			}
		}
	}()
	t.Cleanup(func() { _ = c.Close(); <-done })
	return c.LocalAddr().String()
}

// udpClients are any number of clients on one socket: each has an address of its own
// in 127.0.0.0/8, set datagram by datagram (IP_PKTINFO, ip(7)).
type udpClients struct {
	conn    *net.UDPConn
	to      netip.AddrPort
	oob     []byte
	waiting map[uint32]bool // who waits for an answer
}

func newUDPClients(t *testing.T, to string) *udpClients {
	t.Helper()
	conn, err := net.ListenUDP("udp4", nil)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	raw, err := conn.SyscallConn()
	require.NoError(t, err)
	var option error
	require.NoError(t, raw.Control(func(fd uintptr) {
		option = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_IP, syscall.IP_PKTINFO, 1)
	}))
	require.NoError(t, option)
	return &udpClients{conn: conn, to: netip.MustParseAddrPort(to), oob: make([]byte, syscall.CmsgSpace(syscall.SizeofInet4Pktinfo)), waiting: map[uint32]bool{}}
}

// size is how many bytes a client sends.
func (c *udpClients) size() int { return 64 }

// address is client i's. The first ones are 127.1.0.0 and up.
func address(i uint32) [4]byte { return [4]byte{127, 1 + byte(i>>16), byte(i >> 8), byte(i)} }

// ask lets the clients from..to-1 ask once each; those of a batch wait for their
// answers together. A batch fits every socket's receive buffer.
func (c *udpClients) ask(from, to int) error {
	const batch = 64
	for ; from < to; from += batch {
		for i := from; i < min(from+batch, to); i++ {
			if err := c.send(uint32(i)); err != nil {
				return err
			}
		}
		if err := c.answers(); err != nil {
			return err
		}
	}
	return nil
}

func (c *udpClients) send(i uint32) error {
	data := make([]byte, c.size())
	binary.BigEndian.PutUint32(data, i)
	h := (*syscall.Cmsghdr)(unsafe.Pointer(&c.oob[0]))
	h.Level, h.Type = syscall.IPPROTO_IP, syscall.IP_PKTINFO
	h.SetLen(syscall.CmsgLen(syscall.SizeofInet4Pktinfo))
	*(*syscall.Inet4Pktinfo)(unsafe.Pointer(&c.oob[syscall.CmsgLen(0)])) = syscall.Inet4Pktinfo{Spec_dst: address(i)}
	c.waiting[i] = true
	_, _, err := c.conn.WriteMsgUDPAddrPort(data, c.oob, c.to)
	return err
}

// answers waits until each client that asked has its own answer.
func (c *udpClients) answers() error {
	if err := c.conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	data, oob := make([]byte, 1<<10), make([]byte, 64)
	for len(c.waiting) > 0 {
		n, oobn, _, from, err := c.conn.ReadMsgUDPAddrPort(data, oob)
		if err != nil {
			return fmt.Errorf("%d clients of this batch have no answer: %w", len(c.waiting), err)
		}
		if err := c.take(data[:n], oob[:oobn], from); err != nil {
			return err
		}
	}
	return nil
}

// take checks an answer: it comes from where the client asked, and to the client.
func (c *udpClients) take(data, oob []byte, from netip.AddrPort) error {
	msgs, err := syscall.ParseSocketControlMessage(oob)
	if err != nil || len(msgs) != 1 || len(data) != c.size() || from != c.to {
		return fmt.Errorf("an answer of %d bytes from %v with %d control messages: %v", len(data), from, len(msgs), err)
	}
	i := binary.BigEndian.Uint32(data)
	if to := (*syscall.Inet4Pktinfo)(unsafe.Pointer(&msgs[0].Data[0])).Addr; to != address(i) || !c.waiting[i] {
		return fmt.Errorf("client %d's answer went to %v", i, to)
	}
	delete(c.waiting, i)
	return nil
}
