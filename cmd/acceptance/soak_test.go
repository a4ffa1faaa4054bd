package acceptance

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// soakFor is how long TestSoak lasts; `make soak` gives it ten minutes.
var soakFor = flag.Duration("for", 5*time.Second, "how long TestSoak lasts")

// What is alike after a lap may differ by so much: the heap's own breathing, and
// threads that the runtime keeps once it had a use for them.
const (
	soakGrowth  = 16 << 20
	soakThreads = 4
)

// Mixed sessions, short and long, cut and half-closed, with slow readers, while relays
// are replaced. A first lap makes what is made once; after the second one the daemon
// holds no more than after the first, and every byte that a client has counted is in
// the relays' counters.
func TestSoak(t *testing.T) {
	k := newSoak(t)
	before := k.s.descriptors()
	k.lap(*soakFor / 5)
	first := k.settle()
	k.lap(*soakFor - *soakFor/5)
	last := k.settle()
	t.Logf("before: %d descriptors; after the first lap: %v; after the second: %v", before, first, last)

	k.s.settles(before + keptDescriptors)
	require.LessOrEqual(t, last.threads, first.threads+soakThreads)
	require.Less(t, last.resident-first.resident, int64(soakGrowth))
	require.Less(t, k.s.goroutines(), quietGoroutines)
}

// A soak is a daemon with relays, and those who use them.
type soak struct {
	t       *testing.T
	s       *sockd
	k       *caller
	streams []*account // by network: tcp, unix
	swap    *account   // the one that is replaced
	guests  *guests    // of swap
	two     [2]*backend
	turn    int // of two
	// replacer is a second caller: calls on one are made one after another.
	replacer *caller
	udp      *account
	clients  *udpClients
	client   int // the next of clients
	failed   failures
}

// An account is what the clients of a relay have counted.
type account struct {
	name, network, addr string
	rx, tx, sessions    atomic.Int64
}

// Whose FROM is replaced is written the same each time.
const soakFrom = "tcp:127.0.0.1:0"

func newSoak(t *testing.T) *soak {
	t.Helper()
	s := start(t, nil)
	k := &soak{t: t, s: s, k: s.caller(), replacer: s.caller()}
	path, to := filepath.Join(s.dir, "soak"), filepath.Join(s.dir, "backend")
	k.streams = []*account{
		k.add("stream", "tcp", soakFrom, tcpBackend(t, echo).endpoint()),
		k.add("local", "unix", "unix:"+path, serveOn(t, listen(t, "unix", to), echo).endpoint()),
	}
	for i, name := range []string{"a", "b"} {
		k.two[i] = tcpBackend(t, func(c net.Conn) { answer(c, name) })
	}
	k.swap = k.add("swap", "tcp", soakFrom, k.two[0].endpoint())
	k.guests = &guests{addr: k.swap.addr}
	k.udp = k.add("datagrams", "udp", "udp:127.0.0.1:0", "udp:"+udpEcho(t), "--max-conns", "500", "--idle", "1s")
	k.clients = newUDPClients(t, k.udp.addr)
	return k
}

func (k *soak) add(name, network, from, to string, flags ...string) *account {
	k.t.Helper()
	addr := relayAddress(k.t, k.s.run(append([]string{"relay", "add", name, from, to}, flags...)...))
	return &account{name: name, network: network, addr: addr}
}

// lap lets everybody work for d, and waits for them.
func (k *soak) lap(d time.Duration) {
	k.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	var work sync.WaitGroup
	// How many at a time, and how often each begins something: some 500 sessions a
	// second, which leaves ports and processors to others.
	for _, w := range []struct {
		workers int
		every   time.Duration
		act     func() error
	}{
		{4, 20 * time.Millisecond, k.short},
		{2, 20 * time.Millisecond, k.cut},
		{3, 500 * time.Millisecond, k.long},
		{2, 300 * time.Millisecond, k.slow},
		{1, 200 * time.Millisecond, k.bulk},
		{4, 20 * time.Millisecond, k.guests.visit},
		{1, 100 * time.Millisecond, k.datagrams},
		{1, 10 * time.Millisecond, k.replace},
	} {
		for range w.workers {
			work.Add(1)
			go func() { defer work.Done(); k.repeat(ctx, w.every, w.act) }()
		}
	}
	k.watch(ctx)
	work.Wait()
	k.failed.none(k.t, "what the clients did")
}

// repeat does something again and again, until ctx ends or it goes wrong.
func (k *soak) repeat(ctx context.Context, every time.Duration, act func() error) {
	pace := time.NewTicker(every)
	defer pace.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-pace.C:
		}
		if err := act(); err != nil {
			k.failed.add(err)
			return
		}
	}
}

// watch prints what the daemon holds every ten seconds.
func (k *soak) watch(ctx context.Context) {
	k.t.Helper()
	pace := time.NewTicker(10 * time.Second)
	defer pace.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-pace.C:
			k.t.Logf("%v, %d sessions, %v of CPU", k.s.holds(), len(k.k.list().Sessions), k.s.cpu())
		}
	}
}

// settle waits until nothing is under way, and checks all counters.
func (k *soak) settle() held {
	k.t.Helper()
	k.swap.count(k.guests.visits.Load())
	for _, a := range append(k.streams, k.swap, k.udp) {
		k.s.eventually("the sessions of "+a.name+" are over", func() bool { return k.k.named(a.name).Sessions == 0 })
		r := k.k.named(a.name)
		k.t.Logf("%s: %d sessions, %d bytes there, %d back, drops %v", a.name, r.Total, r.RxBytes, r.TxBytes, r.Drops)
		require.Equal(k.t, a.sessions.Load(), r.Total, a.name)
		require.Equal(k.t, a.rx.Load(), r.RxBytes, "%s: what the clients sent", a.name)
		require.Equal(k.t, a.tx.Load(), r.TxBytes, "%s: what the clients got", a.name)
		delete(r.Drops, "evicted") // those made room for others
		require.Empty(k.t, r.Drops, a.name)
	}
	return k.s.holds()
}

// count says that there were n exchanges of a byte, one a session.
func (a *account) count(n int64) {
	a.sessions.Store(n)
	a.rx.Store(n)
	a.tx.Store(n)
}

// held is what the daemon holds.
type held struct {
	descriptors, threads int
	resident             int64
}

func (h held) String() string {
	return fmt.Sprintf("%d descriptors, %d threads, %.1f MiB", h.descriptors, h.threads, float64(h.resident)/(1<<20))
}

func (s *sockd) holds() held {
	s.t.Helper()
	return held{s.descriptors(), s.threads(), s.resident()}
}

// any is one of the stream relays.
func (k *soak) any() *account { return k.streams[rand.IntN(len(k.streams))] }

// short is a request and its answer.
func (k *soak) short() error { return k.any().stream(1+rand.IntN(4096), 1<<16, 0) }

// long is a session of half a second or two with little in it.
func (k *soak) long() error {
	return k.any().stream(1+rand.IntN(64<<10), 4<<10, 100*time.Millisecond)
}

// slow is a reader that holds the others back.
func (k *soak) slow() error {
	return k.any().stream(1<<20+rand.IntN(4<<20), 256<<10, 20*time.Millisecond)
}

// bulk is as much as it can be.
func (k *soak) bulk() error { return k.any().stream(1<<20+rand.IntN(8<<20), 1<<20, 0) }

// stream sends size bytes, ends its side, and reads as many back, in pieces with a
// pause after each.
func (a *account) stream(size, piece int, pause time.Duration) error {
	c, err := a.dial()
	if err != nil {
		return err
	}
	defer c.Close()
	data := randomBytes(size)
	sent := make(chan error, 1)
	go func() {
		_, err := c.Write(data)
		sent <- errors.Join(err, c.(interface{ CloseWrite() error }).CloseWrite())
	}()
	got, err := readSlowly(c, piece, pause)
	if err != nil {
		_ = c.Close() // so that the writer ends
	}
	if err := errors.Join(err, <-sent); err != nil {
		return fmt.Errorf("%s: %d of %d bytes came back: %w", a.name, len(got), size, err)
	}
	if !bytes.Equal(data, got) {
		return fmt.Errorf("%s: %d bytes came back as other %d", a.name, size, len(got))
	}
	a.add(size)
	return nil
}

func (a *account) dial() (net.Conn, error) {
	c, err := net.DialTimeout(a.network, a.addr, patience)
	if err != nil {
		return nil, err
	}
	return c, c.SetDeadline(time.Now().Add(patience))
}

// add notes a session with so many bytes there and back.
func (a *account) add(size int) {
	a.sessions.Add(1)
	a.rx.Add(int64(size))
	a.tx.Add(int64(size))
}

var noise = sync.OnceValue(func() []byte {
	b := make([]byte, 16<<20)
	for i := range b {
		b[i] = byte(rand.Uint32())
	}
	return b
})

// randomBytes are n bytes, not to be written to.
func randomBytes(n int) []byte {
	at := rand.IntN(len(noise()) - n)
	return noise()[at : at+n]
}

func readSlowly(r io.Reader, piece int, pause time.Duration) (got []byte, err error) {
	buf := make([]byte, piece)
	for {
		n, err := io.ReadFull(r, buf)
		got = append(got, buf[:n]...)
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return got, nil
		case err != nil:
			return got, err
		}
		time.Sleep(pause) // this client is slow
	}
}

// cut is a session that its client resets when it has what it wanted.
func (k *soak) cut() error {
	a := k.streams[0]
	c, err := a.dial()
	if err != nil {
		return err
	}
	defer c.Close()
	data := randomBytes(1 + rand.IntN(8<<10))
	if _, err := c.Write(data); err != nil {
		return err
	}
	if _, err := io.ReadFull(c, make([]byte, len(data))); err != nil {
		return err
	}
	a.add(len(data))
	return c.(*net.TCPConn).SetLinger(0)
}

// datagrams lets the next few clients ask.
func (k *soak) datagrams() error {
	const clients = 64
	err := k.clients.ask(k.client, k.client+clients)
	k.client += clients
	k.udp.sessions.Add(clients)
	k.udp.rx.Add(int64(clients * k.clients.size()))
	k.udp.tx.Add(int64(clients * k.clients.size()))
	return err
}

// replace lets swap lead to its other backend.
func (k *soak) replace() error {
	k.turn++
	return k.replacer.replace(k.swap.name, soakFrom, k.two[k.turn%2].endpoint())
}
