package capture

import (
	"errors"
	"log/slog"
	"net"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/sockd/sockd/families/packet/ring"
	"golang.org/x/net/bpf"
)

// tap is one interface's ring and who listens to it.
type tap struct {
	hub   *Hub
	iface ring.Interface
	bytes int // of memory that the hub set aside
	users int // guarded by hub.mu

	opened  chan struct{} // closed when ring or openErr is set
	ring    *ring.Ring
	openErr error

	done    chan struct{} // closed when the reader has ended, and readErr says why
	readErr error

	subs atomic.Pointer[[]*Subscription] // never changed in place; replaced under tune

	// tune guards what follows, and is held across the system calls that set it: two
	// at once would leave the kernel with the wrong one.
	tune     sync.Mutex
	filtered bool   // filter holds; before, the kernel rejects all
	filter   string // what the kernel filters by; "" is everything
	promisc  bool
}

func newTap(h *Hub, iface ring.Interface, bytes int) *tap {
	t := &tap{hub: h, iface: iface, bytes: bytes, opened: make(chan struct{}), done: make(chan struct{})}
	t.subs.Store(new([]*Subscription))
	return t
}

// open opens the ring, closed to all packets, and starts its reader.
func (t *tap) open() {
	defer close(t.opened)
	size := t.hub.limits.blockSize
	t.ring, t.openErr = ring.Open(t.iface.Name, ring.Config{BlockSize: size, Blocks: t.bytes / size, NoPromisc: true, Filter: ring.RejectAll})
	if t.openErr != nil {
		close(t.done)
		return
	}
	t.hub.log.Debug("ring opened", slog.String("interface", t.iface.Name), slog.Int("bytes", t.ring.Bytes()))
	go t.read()
}

// close closes the ring and waits for the reader. When it returns, the socket and
// its memory are gone.
func (t *tap) close() {
	if t.openErr != nil {
		return
	}
	_ = t.ring.Close() // nothing is left to be written
	<-t.done
	t.hub.log.Debug("ring closed", slog.String("interface", t.iface.Name))
}

// read hands blocks out until the ring is closed or the interface is gone.
func (t *tap) read() {
	defer close(t.done)
	for {
		b, err := t.ring.Next()
		if err != nil {
			t.readErr = err
			t.hub.forget(t)
			if !errors.Is(err, net.ErrClosed) {
				t.hub.log.Warn("capture ended", slog.String("interface", t.iface.Name), slog.Any("error", err))
			}
			return
		}
		t.deliver(&b)
		b.Release()
	}
}

// deliver copies a block to each queue that wants any of it.
func (t *tap) deliver(b *ring.Block) {
	if b.Losing() {
		t.ring.Stats()
	}
	drops := t.ring.Dropped()
	for _, s := range t.subscriptions() {
		s.take(b, drops)
	}
}

func (t *tap) subscriptions() []*Subscription { return *t.subs.Load() }

// add lets a subscription have the packets from now on.
func (t *tap) add(s *Subscription) error {
	t.tune.Lock()
	defer t.tune.Unlock()
	subs := append(slices.Clone(t.subscriptions()), s)
	if err := t.retune(subs); err != nil {
		return err
	}
	s.begin(t.ring.Stats().Drops)
	t.subs.Store(&subs)
	return nil
}

// remove ends that. The kernel goes on with what the others want.
func (t *tap) remove(s *Subscription) {
	t.tune.Lock()
	defer t.tune.Unlock()
	subs := slices.DeleteFunc(slices.Clone(t.subscriptions()), func(o *Subscription) bool { return o == s })
	t.subs.Store(&subs)
	if len(subs) == 0 {
		return // the ring is about to be closed
	}
	if err := t.retune(subs); err != nil {
		// More than is wanted still arrives, and is dropped here.
		t.hub.log.Debug("ring not narrowed", slog.String("interface", t.iface.Name), slog.Any("error", err))
	}
}

// retune sets the kernel's filter to the one that all have, or to none, and
// promiscuous mode when one wants it. t.tune is held.
func (t *tap) retune(subs []*Subscription) error {
	promisc := slices.ContainsFunc(subs, func(s *Subscription) bool { return !s.spec.NoPromisc })
	if promisc != t.promisc {
		if err := t.ring.SetPromisc(promisc); err != nil {
			return err
		}
		t.promisc = promisc
	}
	program := subs[0].program
	for _, s := range subs {
		if s.program.String() != program.String() {
			return t.setFilter("", nil)
		}
	}
	return t.setFilter(program.String(), program.Kernel())
}

// setFilter makes the kernel filter by code, known by its text; nil takes all.
func (t *tap) setFilter(text string, code []bpf.RawInstruction) error {
	if t.filtered && t.filter == text {
		return nil
	}
	if err := t.ring.SetFilter(code); err != nil {
		return err
	}
	t.filtered, t.filter = true, text
	return nil
}
