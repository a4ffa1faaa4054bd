package acceptance

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/sockd/sockd/ctl/varlink"
	"github.com/sockd/sockd/families/model"
)

// A backend serves every connection to a listener in a goroutine of its own. Its
// end, with the test, closes them all and waits for them.
type backend struct {
	l    net.Listener
	each func(net.Conn)
	work sync.WaitGroup

	mu     sync.Mutex // guards conns and closed
	conns  map[net.Conn]bool
	closed bool
}

// serveOn runs a backend on l. each need not close its connection.
func serveOn(t *testing.T, l net.Listener, each func(net.Conn)) *backend {
	b := &backend{l: l, each: each, conns: map[net.Conn]bool{}}
	b.work.Add(1)
	go b.accept()
	t.Cleanup(b.close)
	return b
}

func (b *backend) accept() {
	defer b.work.Done()
	for {
		c, err := b.l.Accept()
		if err != nil {
			return // closed by close
		}
		b.work.Add(1)
		go b.run(c)
	}
}

func (b *backend) run(c net.Conn) {
	defer b.work.Done()
	defer c.Close()
	b.mu.Lock()
	closed := b.closed
	b.conns[c] = true
	b.mu.Unlock()
	if !closed {
		b.each(c)
	}
	b.mu.Lock()
	delete(b.conns, c)
	b.mu.Unlock()
}

func (b *backend) close() {
	_ = b.l.Close() // twice is harmless
	b.mu.Lock()
	b.closed = true
	for c := range b.conns {
		_ = c.Close() // its goroutine closes it, too
	}
	b.mu.Unlock()
	b.work.Wait()
}

// open is how many connections it has.
func (b *backend) open() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.conns)
}

// endpoint is the backend as a relay's TO.
func (b *backend) endpoint() string { return b.l.Addr().Network() + ":" + b.l.Addr().String() }

func listen(t *testing.T, network, addr string) net.Listener {
	t.Helper()
	l, err := net.Listen(network, addr)
	require.NoError(t, err)
	return l
}

// tcpBackend is a backend on a port of loopback.
func tcpBackend(t *testing.T, each func(net.Conn)) *backend {
	t.Helper()
	return serveOn(t, listen(t, "tcp", "127.0.0.1:0"), each)
}

// echo answers every byte with itself.
func echo(c net.Conn) { _, _ = io.Copy(c, c) } // the client sees what went wrong

// ask sends one byte and waits for it to come back.
func ask(c net.Conn) error {
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if _, err := c.Write([]byte("?")); err != nil {
		return err
	}
	_, err := io.ReadFull(c, make([]byte, 1))
	return err
}

// A caller is one connection to the control socket, for many calls.
type caller struct {
	t *testing.T
	c *varlink.Client
}

// caller connects, and has had one answer: the daemon holds what it needs for it.
func (s *sockd) caller() *caller {
	s.t.Helper()
	c, err := varlink.Dial(context.Background(), s.socket)
	require.NoError(s.t, err)
	s.t.Cleanup(func() { _ = c.Close() }) // the daemon ends first or last, as it likes
	k := &caller{s.t, c}
	k.list()
	return k
}

func (k *caller) call(method string, params, reply any) {
	k.t.Helper()
	require.NoError(k.t, k.c.Call(context.Background(), method, params, reply), method)
}

type listing struct {
	Relays   []model.Relay   `json:"relays"`
	Sessions []model.Session `json:"sessions"`
}

func (k *caller) list() listing {
	k.t.Helper()
	var all listing
	k.call("io.sockd.Manager.List", map[string]any{"kinds": []string{"relays", "sessions"}}, &all)
	return all
}

// named is the relay of a name.
func (k *caller) named(name string) model.Relay {
	k.t.Helper()
	for _, r := range k.list().Relays {
		if r.Name == name {
			return r
		}
	}
	k.t.Fatalf("no relay %s", name)
	return model.Relay{}
}

// relay is the one relay that there is.
func (k *caller) relay() model.Relay {
	k.t.Helper()
	all := k.list()
	require.Len(k.t, all.Relays, 1)
	return all.Relays[0]
}

// session is the one session that there is, or nothing.
func (k *caller) session() model.Session {
	k.t.Helper()
	if all := k.list(); len(all.Sessions) == 1 {
		return all.Sessions[0]
	}
	return model.Session{}
}

// replace makes the relay lead from one endpoint to another.
func (k *caller) replace(name, from, to string) error {
	return k.c.Call(context.Background(), "io.sockd.Relay.Replace", map[string]any{"name": name, "from": from, "to": []string{to}}, nil)
}

// cpu is the CPU time that the daemon has used, in ticks of 10 ms.
func (s *sockd) cpu() time.Duration {
	s.t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.cmd.Process.Pid))
	require.NoError(s.t, err)
	_, rest, ok := strings.Cut(string(b), ") ")
	require.True(s.t, ok)
	f := strings.Fields(rest) // from the third field of proc_pid_stat(5) on
	var ticks int64
	for _, text := range f[11:13] {
		n, err := strconv.ParseInt(text, 10, 64)
		require.NoError(s.t, err)
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}

// spends is the CPU time that the daemon uses while d passes.
func (s *sockd) spends(d time.Duration) time.Duration {
	s.t.Helper()
	before := s.cpu()
	time.Sleep(d) // what is measured, not a wait for something
	return s.cpu() - before
}

// settles waits until the daemon holds no more descriptors than before.
func (s *sockd) settles(before int) {
	s.t.Helper()
	s.eventually(fmt.Sprintf("there are no more than %d descriptors again", before), func() bool { return s.descriptors() <= before })
}

// failures collects what went wrong in goroutines: the first, and how many.
type failures struct {
	mu    sync.Mutex // guards first and n
	first error
	n     int
}

func (f *failures) add(err error) {
	if err == nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.n++; f.first == nil {
		f.first = err
	}
}

// none fails the test unless nothing went wrong.
func (f *failures) none(t *testing.T, what string) {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	require.Zero(t, f.n, "%s: %d failed, the first by: %v", what, f.n, f.first)
}
