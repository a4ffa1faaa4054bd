package acceptance

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Ten thousand replaces between two backends while clients come at a thousand a
// second: the listener never closes, so none is refused, reset or left without one
// of the two answers.
func TestReplacesUnderLoadRefuseNobody(t *testing.T) {
	const replaces = 10_000
	s := start(t, nil)
	k := s.caller()
	var backends []*backend
	for _, name := range []string{"a", "b"} {
		backends = append(backends, tcpBackend(t, func(c net.Conn) { answer(c, name) }))
	}
	const from = "tcp:127.0.0.1:0" // the same FROM, so the same port
	addr := relayAddress(t, s.run("relay", "add", "swap", from, backends[0].endpoint()))
	g := &guests{addr: addr}
	require.NoError(t, g.visit(), "the first visit makes what is made once")
	s.eventually("it is over", func() bool { return k.relay().Sessions == 0 })
	before := s.descriptors()

	leave := g.come(t)
	for i := range replaces {
		require.NoError(t, k.replace("swap", from, backends[i%2].endpoint()))
	}
	leave()
	g.failed.none(t, fmt.Sprintf("of %d visits", g.visits.Load()))
	require.Greater(t, g.a.Load(), int64(100), "both backends had visitors")
	require.Greater(t, g.b.Load(), int64(100), "both backends had visitors")
	s.eventually("all sessions are over", func() bool { return k.relay().Sessions == 0 })
	require.EqualValues(t, g.visits.Load(), k.relay().Total, "every visit was a session")
	require.Empty(t, k.relay().Drops)
	s.settles(before)
}

// answer reads a request and answers with a name.
func answer(c net.Conn, name string) {
	if _, err := io.ReadFull(c, make([]byte, 1)); err == nil {
		_, _ = io.WriteString(c, name) // the client sees what went wrong
	}
}

// guests visit a relay, ask, and note who answered.
type guests struct {
	addr         string
	visits, a, b atomic.Int64
	failed       failures
}

// come lets guests in, one a millisecond, until leave, which waits for the last.
func (g *guests) come(t *testing.T) (leave func()) {
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	var work sync.WaitGroup
	pace := time.NewTicker(time.Millisecond)
	for range 16 { // at a time: a tick that finds none free is left out
		work.Add(1)
		go func() {
			defer work.Done()
			for g.next(ctx, pace.C) {
				g.failed.add(g.visit())
			}
		}()
	}
	return func() { cancel(); work.Wait(); pace.Stop() }
}

// next waits for a guest's turn; false means that no more come. They are fewer than
// there are ports.
func (g *guests) next(ctx context.Context, pace <-chan time.Time) bool {
	select {
	case <-ctx.Done():
		return false
	case <-pace:
		return ctx.Err() == nil && g.visits.Load() < 25_000
	}
}

// visit connects, asks, and reads the answer to its end.
func (g *guests) visit() error {
	g.visits.Add(1)
	c, err := net.DialTimeout("tcp", g.addr, patience)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if _, err := c.Write([]byte("?")); err != nil {
		return err
	}
	got, err := io.ReadAll(c)
	switch {
	case err != nil:
		return err
	case string(got) == "a":
		g.a.Add(1)
	case string(got) == "b":
		g.b.Add(1)
	default:
		return fmt.Errorf("the answer is %q", got)
	}
	return nil
}

// crowd is clients that connect, ask once, and stay until they may leave.
type crowd struct {
	served  atomic.Int64
	failed  failures
	work    sync.WaitGroup
	release chan struct{}
	once    sync.Once
}

// gather lets n clients connect to addr at once.
func gather(t *testing.T, addr string, n int) *crowd {
	c := &crowd{release: make(chan struct{})}
	for range n {
		c.work.Add(1)
		go func() {
			defer c.work.Done()
			c.failed.add(c.stay(addr))
		}()
	}
	t.Cleanup(c.leave)
	return c
}

func (c *crowd) stay(addr string) error {
	conn, err := net.DialTimeout("tcp", addr, patience)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := ask(conn); err != nil {
		return err
	}
	c.served.Add(1)
	<-c.release
	return nil
}

// leave lets everybody leave as soon as they were served, and waits for them.
func (c *crowd) leave() {
	c.once.Do(func() { close(c.release) })
	c.work.Wait()
}

// Two hundred clients of a relay for ten: the others wait in the queue, the relay
// says that they do, and each has its turn.
func TestBeyondMaxConnsClientsWait(t *testing.T) {
	const clients, room = 200, 10
	s := start(t, nil)
	k := s.caller()
	b := tcpBackend(t, echo)
	addr := relayAddress(t, s.run("relay", "add", "narrow", "tcp:127.0.0.1:0", b.endpoint(), "--max-conns", fmt.Sprint(room)))
	c := gather(t, addr, clients)
	s.eventually("as many are served as may be", func() bool { return c.served.Load() == room })
	s.eventually("the relay waits", func() bool { return k.relay().State == "waiting" })
	require.Contains(t, k.relay().Cause, "--max-conns")
	require.EqualValues(t, room, k.relay().Sessions)
	require.Equal(t, room, b.open(), "no more than the bound arrive")
	require.Contains(t, s.run("relay", "show", "narrow", "--json"), `"waiting"`)

	c.leave()
	c.failed.none(t, "of the clients")
	require.EqualValues(t, clients, c.served.Load())
	s.eventually("the relay listens", func() bool { r := k.relay(); return r.State == "listening" && r.Sessions == 0 })
	require.EqualValues(t, clients, k.relay().Total)
}

// More clients than descriptors: those who found one are served, the daemon does not
// spin over the others, says why they wait, and serves them when there is room. That
// the last descriptor went to a client and none is left to dial with is no client's
// fault either.
func TestOutOfDescriptorsClientsWait(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		t.Run("with a backend on "+network, func(t *testing.T) { testOutOfDescriptors(t, network) })
	}
}

func testOutOfDescriptors(t *testing.T, network string) {
	const limit, clients = 128, 300
	s := startBy(t, nil, "sh", "-c", fmt.Sprintf(`ulimit -n %d && exec "$@"`, limit), "sh")
	k := s.caller() // a new one would find no descriptor either
	at := map[string]string{"tcp": "127.0.0.1:0", "unix": filepath.Join(t.TempDir(), "to")}
	b := serveOn(t, listen(t, network, at[network]), echo)
	addr := relayAddress(t, s.run("relay", "add", "poor", "tcp:127.0.0.1:0", b.endpoint()))
	before := s.descriptors()

	c := gather(t, addr, clients)
	s.eventually("accept finds no descriptor", func() bool { return k.relay().Drops["no_descriptors"] > 0 })
	c.failed.none(t, "when the descriptors ran out, of the clients")
	s.eventually("the relay waits", func() bool { return k.relay().State == "waiting" })
	require.Less(t, s.spends(2*time.Second), 300*time.Millisecond, "the daemon is full and idle")
	served := c.served.Load()
	require.GreaterOrEqual(t, served, int64(limit/4), "half of the descriptors are enough for so many")
	require.Less(t, served, int64(clients))

	c.leave()
	c.failed.none(t, "of the clients")
	require.EqualValues(t, clients, c.served.Load())
	s.eventually("the relay listens", func() bool { r := k.relay(); return r.State == "listening" && r.Sessions == 0 })
	s.settles(before)
}

// An idle session holds its two sockets and nothing else.
func TestIdleSessionsHoldTwoDescriptors(t *testing.T) {
	const sessions = 2000
	s := start(t, nil)
	k := s.caller()
	b := tcpBackend(t, echo)
	addr := relayAddress(t, s.run("relay", "add", "quiet", "tcp:127.0.0.1:0", b.endpoint()))
	before := s.descriptors()
	conns := make([]net.Conn, sessions)
	for i := range conns {
		c, err := net.Dial("tcp", addr)
		require.NoError(t, err)
		defer c.Close()
		require.NoError(t, ask(c))
		conns[i] = c
	}
	require.EqualValues(t, sessions, k.relay().Sessions)
	s.settles(before + 2*sessions + keptDescriptors)
	require.Less(t, s.spends(time.Second), 100*time.Millisecond, "nobody asks for anything")
	require.NoError(t, errors.Join(ask(conns[0]), ask(conns[sessions-1])), "they live")

	for _, c := range conns {
		require.NoError(t, c.Close())
	}
	s.eventually("all sessions are over", func() bool { return k.relay().Sessions == 0 })
	s.settles(before + keptDescriptors)
}

// keptDescriptors is what sessions may leave behind, however many they were: event
// loops, one a processor, each with some spare pipes.
var keptDescriptors = 16 + 36*runtime.NumCPU()
