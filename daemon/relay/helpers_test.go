package relay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/all"
	"github.com/sockd/sockd/families/familytest"
	"github.com/sockd/sockd/families/model"
	"github.com/stretchr/testify/require"
)

// deadline bounds what a healthy machine does in milliseconds.
const deadline = 20 * time.Second

// host is a daemon with a table of open sockets.
type host struct {
	mu     sync.Mutex // guards all
	next   model.ID
	open   map[model.ID]families.Socket
	named  map[string]families.Socket
	events []model.Event
	moved  chan struct{} // closed and replaced by each event
}

func newHost() *host {
	return &host{next: 100, open: map[model.ID]families.Socket{}, named: map[string]families.Socket{}, moved: make(chan struct{})}
}

func (h *host) NewID() model.ID {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.next++
	return h.next
}

func (h *host) KeepID(id model.ID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.next = max(h.next, id)
}

func (h *host) Take(_ model.Owner, id model.ID) (families.Socket, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s, ok := h.open[id]
	if !ok {
		return nil, fmt.Errorf("socket %d: %w", id, syscall.ENOENT)
	}
	delete(h.open, id)
	return s, nil
}

func (h *host) Untake(id model.ID, s families.Socket) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.open[id] = s
}

func (h *host) Named(name string) (families.Socket, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s, ok := h.named[name]
	if !ok {
		return nil, fmt.Errorf("descriptor %s: %w", name, syscall.ENOENT)
	}
	delete(h.named, name)
	return s, nil
}

func (h *host) GiveBack(name string, s families.Socket) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.named[name] = s
}

func (h *host) Emit(e model.Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.events = append(h.events, e)
	close(h.moved)
	h.moved = make(chan struct{})
}

func (h *host) Watched() bool { return true }

// mustEvent waits for an event that matches.
func (h *host) mustEvent(tb testing.TB, kind, event string, id model.ID) model.Event {
	tb.Helper()
	late := time.After(deadline)
	for {
		h.mu.Lock()
		for _, e := range h.events {
			if e.Kind == kind && e.Event == event && (id == 0 || e.ID == id) {
				h.mu.Unlock()
				return e
			}
		}
		moved := h.moved
		h.mu.Unlock()
		select {
		case <-moved:
		case <-late:
			tb.Fatalf("no event %s %s of %d", kind, event, id)
		}
	}
}

// world is an engine under test with all it needs.
type world struct {
	tb   testing.TB
	host *host
	eng  *Engine
	dir  string
}

func newWorld(tb testing.TB) *world { return newWorldOf(tb, all.Set()) }

func newWorldOf(tb testing.TB, set families.Set) *world {
	tb.Helper()
	familytest.NoLeaks(tb)
	dir, err := os.MkdirTemp("", "relay") // short: a unix path has 107 bytes
	require.NoError(tb, err)
	tb.Cleanup(func() { _ = os.RemoveAll(dir) })
	w := &world{tb: tb, host: newHost(), dir: dir}
	w.eng = New(Options{Families: set, Host: w.host, Log: slog.New(slog.DiscardHandler), ControlSocket: filepath.Join(dir, "control")})
	tb.Cleanup(func() {
		require.NoError(tb, w.eng.Close())
		for _, s := range w.host.open {
			_ = s.Close()
		}
		for _, s := range w.host.named {
			_ = s.Close()
		}
	})
	return w
}

func (w *world) path(name string) string { return filepath.Join(w.dir, name) }

func mustEndpoint(tb testing.TB, text string) families.Endpoint {
	tb.Helper()
	e, err := families.ParseEndpoint(text)
	require.NoError(tb, err)
	return e
}

// spec is a relay of root's configuration: paths are named freely.
func spec(tb testing.TB, from string, to ...string) model.RelaySpec {
	tb.Helper()
	s := model.RelaySpec{From: mustEndpoint(tb, from), FromFD: model.NoFD}
	for _, t := range to {
		s.To = append(s.To, mustEndpoint(tb, t))
	}
	return s
}

func (w *world) mustAdd(s model.RelaySpec) model.Relay {
	w.tb.Helper()
	r, err := w.eng.Add(context.Background(), s)
	require.NoError(w.tb, err)
	return r
}

// mustRelay is a relay as it is now.
func (w *world) mustRelay(id model.ID) model.Relay {
	w.tb.Helper()
	for _, r := range w.eng.Relays() {
		if r.ID == id {
			return r
		}
	}
	w.tb.Fatalf("no relay %d", id)
	return model.Relay{}
}

// mustEnd waits until a relay has no sessions, with all counted.
func (w *world) mustIdle(id model.ID) model.Relay {
	w.tb.Helper()
	familytest.Eventually(w.tb, "sessions did not end", func() bool { return w.mustRelay(id).Sessions == 0 })
	return w.mustRelay(id)
}

// endpoint is where a relay listens, split for package net.
func endpoint(tb testing.TB, r model.Relay) (network, address string) {
	tb.Helper()
	require.NotEmpty(tb, r.Local)
	e := mustEndpoint(tb, r.Local[0])
	return e.Network, e.Address
}

func mustDial(tb testing.TB, r model.Relay) net.Conn {
	tb.Helper()
	network, address := endpoint(tb, r)
	c, err := net.Dial(network, address)
	require.NoError(tb, err)
	tb.Cleanup(func() { _ = c.Close() })
	require.NoError(tb, c.SetDeadline(time.Now().Add(deadline)))
	return c
}

// halfCloser is a net.Conn of a stream.
type halfCloser interface {
	net.Conn
	CloseWrite() error
}

// serve runs a stream server until the test ends; handle owns no connection.
func serve(tb testing.TB, network, address string, handle func(net.Conn)) net.Listener {
	tb.Helper()
	l, err := net.Listen(network, address)
	require.NoError(tb, err)
	var handlers sync.WaitGroup
	handlers.Add(1)
	go func() {
		defer handlers.Done()
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			handlers.Add(1)
			go func() {
				defer handlers.Done()
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(deadline))
				handle(c)
			}()
		}
	}()
	tb.Cleanup(func() {
		_ = l.Close()
		handlers.Wait()
	})
	return l
}

// echo copies by plain reads and writes: package net would splice, and keep the
// pipes for later.
func echo(c net.Conn) {
	_, _ = io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c})
	_ = c.(halfCloser).CloseWrite()
}

func isReset(err error) bool { return errors.Is(err, syscall.ECONNRESET) }

func (m *meeting) hearEnd(s families.Socket) {
	m.tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	require.ErrorIs(m.tb, families.RecvWait(ctx, s, &families.Msg{Data: make([]byte, 10)}), io.EOF)
}

func renameFile(from, to string) error { return os.Rename(from, to) }
