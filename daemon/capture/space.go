package capture

import (
	"encoding/binary"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/sockd/sockd/families/model"
	"github.com/sockd/sockd/families/packet/links"
	"github.com/sockd/sockd/families/packet/pcapng"
	"github.com/sockd/sockd/families/packet/ring"
)

// iface is one generation of an interface: another name or a new interface in its
// place is another iface, with a description of its own in every file.
type iface struct {
	index      int
	name       string
	hardware   uint16 // ARPHRD_
	generation uint64 // of links
	gone       atomic.Bool
}

// is tells whether an interface is still this one.
func (i *iface) is(l links.Interface) bool {
	return i.name == l.Name && i.hardware == l.Hardware && i.generation == l.Generation
}

// isStill tells whether an interface is another one, perhaps under another name.
func (i *iface) isStill(old *iface) bool {
	return i.index == old.index && i.generation == old.generation
}

// view is what is known of the interfaces of a namespace. It is never changed in
// place.
type view struct {
	list    []*iface       // those of now, by index
	byIndex map[int]*iface // also some of those that have gone: packets of theirs may still come
	next    chan struct{}  // closed when there is a newer view
}

// greatest is the greatest index of all. The next interface's will be greater.
func (v *view) greatest() int {
	if len(v.list) == 0 {
		return 0
	}
	return v.list[len(v.list)-1].index
}

// named finds an interface by its name of now.
func (v *view) named(name string) *iface {
	for _, i := range v.list {
		if i.name == name {
			return i
		}
	}
	return nil
}

// maxGone bounds the interfaces that are remembered after they have gone: their last
// packets come within milliseconds, in which a host deletes less.
const maxGone = 1024

// maskOf is the IPv4 mask of a source's only interface, as filter.Options has it: 0 when there
// are several, or none is known.
func (s *space) maskOf(src source) uint32 {
	if src.wide || s.foreign || len(src.items) != 1 {
		return 0
	}
	var addrs []net.Addr
	s.hub.inside(func() {
		if i, err := net.InterfaceByName(src.items[0]); err == nil {
			addrs, _ = i.Addrs() // none: not known
		}
	})
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil && len(n.Mask) == net.IPv4len {
			return binary.BigEndian.Uint32(n.Mask)
		}
	}
	return 0
}

// linkOf is the link type for which a filter of a source must make sense: of the
// interfaces that it names, the first one's.
func (s *space) linkOf(src source) pcapng.LinkType {
	v := s.now.Load()
	for _, name := range src.items {
		if i := v.named(name); i != nil {
			return ring.LinkOf(i.hardware)
		}
	}
	return pcapng.Ethernet
}

// space is a network namespace in which somebody captures: its interfaces, the taps
// on them, and who is told when they change.
type space struct {
	hub     *Hub
	cookie  uint64
	watcher *links.Watcher
	foreign bool // not the daemon's own: it cannot open sockets there
	users   int  // guarded by hub.mu

	updating sync.Mutex // held while the next view is made
	now      atomic.Pointer[view]

	poke      chan struct{} // of capacity 1: an interface or a tap has come or gone
	stop      chan struct{}
	following sync.WaitGroup

	mu   sync.Mutex // guards taps, subs, gone, lent, and each tap's users
	taps map[int]*tap
	subs map[*Subscription]struct{}
	gone []*iface // the latest to go, last
	lent int      // a packet socket for the ring of a foreign space, or NoFD
}

func newSpace(h *Hub, cookie uint64, w *links.Watcher, foreign bool) *space {
	s := &space{
		hub: h, cookie: cookie, watcher: w, foreign: foreign, lent: model.NoFD,
		poke: make(chan struct{}, 1), stop: make(chan struct{}),
		taps: map[int]*tap{}, subs: map[*Subscription]struct{}{},
	}
	s.now.Store(&view{next: make(chan struct{})})
	return s
}

// start reads the interfaces and begins to follow them. There are two goroutines: the
// readers of rings wait for news of an interface while they hold what a subscription
// that is told needs.
func (s *space) start() {
	_, changed := s.watcher.Now()
	s.update()
	s.following.Go(func() { s.follow(changed) })
	s.following.Go(s.tellAll)
}

// follow keeps the view up to date.
func (s *space) follow(changed <-chan struct{}) {
	for {
		select {
		case <-s.stop:
			return
		case <-changed:
		}
		_, changed = s.watcher.Now()
		if err := s.watcher.Err(); err != nil {
			s.hub.log.Error("interfaces are no longer followed", slog.Any("error", err))
			return
		}
		s.update()
		s.wake()
	}
}

// wake has the subscriptions told.
func (s *space) wake() {
	select {
	case s.poke <- struct{}{}:
	default: // they are about to be
	}
}

// tellAll tells subscriptions of interfaces and taps that come and go.
func (s *space) tellAll() {
	for {
		select {
		case <-s.stop:
			return
		case <-s.poke:
		}
		for _, sub := range s.subscriptions() {
			sub.follow()
		}
	}
}

// update makes a new view. Interfaces that are what they were keep their identity.
func (s *space) update() {
	s.updating.Lock()
	defer s.updating.Unlock()
	list, _ := s.watcher.Now()
	old := s.now.Load()
	v := &view{byIndex: make(map[int]*iface, len(list)), next: make(chan struct{})}
	for _, l := range list {
		i := old.byIndex[l.Index]
		if i == nil || i.gone.Load() || !i.is(l) {
			i = &iface{index: l.Index, name: l.Name, hardware: l.Hardware, generation: l.Generation}
		}
		v.list, v.byIndex[l.Index] = append(v.list, i), i
	}
	s.mu.Lock()
	for _, i := range old.list {
		if v.byIndex[i.index] != i {
			i.gone.Store(true)
			s.gone = append(s.gone, i)
		}
	}
	s.gone = s.gone[max(0, len(s.gone)-maxGone):]
	for _, i := range s.gone {
		if v.byIndex[i.index] == nil {
			v.byIndex[i.index] = i
		}
	}
	s.mu.Unlock()
	s.now.Store(v)
	close(old.next)
}

// patience is how long the reader of a ring waits to be told of an interface whose
// packets have come already. Both come within a millisecond of each other; the ring
// holds much more than this.
const patience = 50 * time.Millisecond

// lookup finds the interface of a packet.
func (s *space) lookup(index int) *iface {
	if i := s.now.Load().byIndex[index]; i != nil {
		return i
	}
	return s.await(index)
}

func (s *space) await(index int) *iface {
	expired := time.NewTimer(patience)
	defer expired.Stop()
	for {
		v := s.now.Load()
		if i := v.byIndex[index]; i != nil {
			return i
		}
		select {
		case <-v.next:
		case <-expired.C:
			return s.adopt(index)
		}
	}
}

// adopt makes an interface known that was never told of, so that nobody waits again.
func (s *space) adopt(index int) *iface {
	i := &iface{index: index, name: fmt.Sprintf("#%d", index), hardware: syscall.ARPHRD_ETHER}
	i.gone.Store(true)
	s.mu.Lock()
	s.gone = append(s.gone, i)
	s.mu.Unlock()
	s.update()
	return i
}

func (s *space) subscriptions() []*Subscription {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]*Subscription, 0, len(s.subs))
	for sub := range s.subs {
		out = append(out, sub)
	}
	return out
}

func (s *space) add(sub *Subscription) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.subs[sub] = struct{}{}
}

func (s *space) remove(sub *Subscription) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.subs, sub)
}

// tapEnded has the subscriptions of a tap look for what comes in its place.
func (s *space) tapEnded(t *tap) {
	s.mu.Lock()
	if s.taps[t.index] == t {
		delete(s.taps, t.index)
	}
	s.mu.Unlock()
	s.wake()
}

// enter finds or makes the tap on an interface, 0 for all of them, and counts one
// more user of it. rings is how many to open where it is not open yet.
func (s *space) enter(index int, name string, rings int) (*tap, error) {
	s.mu.Lock()
	t, found := s.taps[index]
	if !found {
		t = newTap(s, index, name, max(rings, 1))
		s.taps[index] = t
	}
	t.users++
	s.mu.Unlock()
	if !found {
		t.open()
	}
	<-t.opened
	if t.openErr != nil {
		s.leave(t)
		return nil, t.openErr
	}
	return t, nil
}

// leave counts one user less, and closes the tap after the last one.
func (s *space) leave(t *tap) {
	s.mu.Lock()
	t.users--
	last := t.users == 0
	if last && s.taps[t.index] == t {
		delete(s.taps, t.index)
	}
	s.mu.Unlock()
	if last {
		t.close()
	}
}

// close is called when nobody uses the space any more.
func (s *space) close() {
	close(s.stop)
	s.following.Wait()
	if err := s.watcher.Close(); err != nil {
		s.hub.log.Debug("closing rtnetlink", slog.Any("error", err))
	}
	s.lend(model.NoFD)
}

// lend gives a foreign space a packet socket for its ring, which it opens once it is
// needed; the one that was lent before is closed.
func (s *space) lend(fd int) {
	s.mu.Lock()
	old := s.lent
	s.lent = fd
	s.mu.Unlock()
	if old != model.NoFD {
		_ = syscall.Close(old) // a socket without packets
	}
}

// borrow takes it.
func (s *space) borrow() (fd int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fd, s.lent = s.lent, model.NoFD
	return fd
}
