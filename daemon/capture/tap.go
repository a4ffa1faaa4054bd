package capture

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/model"
	"github.com/sockd/sockd/families/packet/filter"
	"github.com/sockd/sockd/families/packet/pcapng"
	"github.com/sockd/sockd/families/packet/ring"
)

// tap is the ring of one interface, or of all, and who listens to it. With a fanout it
// is several rings, each of which has a part of the flows.
type tap struct {
	space *space
	index int // 0: all interfaces
	name  string
	want  int // rings
	users int // guarded by space.mu

	opened  chan struct{} // closed when rings or openErr is set
	rings   []*ring.Ring
	bytes   int // of memory that the hub set aside
	openErr error

	done    chan struct{} // closed when the readers have ended
	reading atomic.Int32  // readers
	readErr atomic.Pointer[error]

	atts atomic.Pointer[[]*attachment] // never changed in place; replaced under tune

	// tune guards what follows, and is held across the system calls that set it: two
	// at once would leave the kernel with the wrong one.
	tune    sync.Mutex
	tuned   bool // kernel is set; before, the kernel rejects all
	kernel  string
	promisc map[int]bool // the interfaces that are promiscuous for us
}

func newTap(s *space, index int, name string, rings int) *tap {
	t := &tap{space: s, index: index, name: name, want: rings, opened: make(chan struct{}), done: make(chan struct{}), promisc: map[int]bool{}}
	t.atts.Store(new([]*attachment))
	return t
}

// open opens the rings, closed to all packets, and starts their readers.
func (t *tap) open() {
	defer close(t.opened)
	t.space.hub.inside(func() { t.openErr = t.openRings() })
	if t.openErr != nil {
		t.closeRings()
		close(t.done)
		return
	}
	t.space.hub.log.Debug("ring opened", slog.String("interface", t.name), slog.Int("rings", len(t.rings)), slog.Int("bytes", t.bytes))
	t.reading.Store(int32(len(t.rings)))
	for _, r := range t.rings {
		go t.read(r)
	}
}

func (t *tap) openRings() error {
	h := t.space.hub
	cfg := ring.Config{BlockSize: h.limits.blockSize, NoPromisc: true, Filter: ring.RejectAll}
	var ok bool
	if t.bytes, ok = h.reserve(); !ok {
		return &families.OpError{Op: "capture", Family: "packet", Addr: t.name, Err: syscall.ENOBUFS}
	}
	cfg.Blocks = max(t.bytes/h.limits.blockSize/t.want, leastBlocks)
	if t.want > 1 {
		cfg.Fanout = h.fanoutGroup()
	}
	for range t.want {
		r, err := t.openRing(cfg)
		if err != nil {
			return err
		}
		t.rings = append(t.rings, r)
	}
	return nil
}

func (t *tap) openRing(cfg ring.Config) (*ring.Ring, error) {
	if !t.space.foreign {
		return t.openOwn(cfg)
	}
	fd := t.space.borrow()
	if fd == model.NoFD {
		return nil, &families.OpError{Op: "capture", Family: "packet", Addr: t.name, Err: syscall.EBADF}
	}
	r, err := ring.OpenFD(fd, t.name, cfg)
	if err != nil {
		_ = syscall.Close(fd) // a socket without packets
	}
	return r, err
}

// openOwn opens a ring by the interface's name, which may have become another one's
// since rtnetlink told of it.
func (t *tap) openOwn(cfg ring.Config) (*ring.Ring, error) {
	r, err := ring.Open(t.name, cfg)
	if err == nil && r.Interface().Index != t.index {
		_ = r.Close() // it is on the wrong interface
		return nil, noInterface(t.name)
	}
	return r, err
}

func (t *tap) closeRings() {
	for _, r := range t.rings {
		_ = r.Close() // nothing is left to be written
	}
	t.space.hub.giveRing(t.bytes)
}

// close closes the rings and waits for their readers. When it returns, the sockets and
// their memory are gone.
func (t *tap) close() {
	if t.openErr != nil {
		return
	}
	t.closeRings()
	<-t.done
	t.space.hub.log.Debug("ring closed", slog.String("interface", t.name))
}

// read hands the blocks of a ring out until it is closed or the interface is gone.
func (t *tap) read(r *ring.Ring) {
	defer t.readerEnded()
	for {
		b, err := r.Next()
		if err != nil {
			t.readErr.Store(&err)
			if !errors.Is(err, net.ErrClosed) {
				t.space.hub.log.Info("interface is gone", slog.String("interface", t.name), slog.Any("error", err))
			}
			return
		}
		t.deliver(r, &b)
	}
}

// readerEnded tells that the tap has, when it is the last reader of it.
func (t *tap) readerEnded() {
	if t.reading.Add(-1) > 0 {
		return
	}
	close(t.done)
	t.space.tapEnded(t)
}

// deliver copies a block to each store that wants any of it. A store that takes
// whole blocks comes last, because it may keep this one, and change it.
func (t *tap) deliver(r *ring.Ring, b *ring.Block) {
	if b.Losing() {
		r.Stats()
	}
	drops := t.dropped()
	var taker *attachment
	for _, a := range *t.atts.Load() {
		if taker == nil && a.sub.takesBlocks.Load() {
			taker = a
			continue
		}
		a.take(b, drops)
	}
	if taker != nil && taker.takeWhole(b, drops) {
		return
	}
	b.Release()
}

// dropped is what the kernel has dropped, as known last.
func (t *tap) dropped() (n uint64) {
	for _, r := range t.rings {
		n += r.Dropped()
	}
	return n
}

// drops asks the kernel.
func (t *tap) drops() (n uint64) {
	for _, r := range t.rings {
		n += r.Stats().Drops
	}
	return n
}

// idle tells whether everything that the kernel has put into the rings was handed out.
func (t *tap) idle() bool {
	return !slices.ContainsFunc(t.rings, func(r *ring.Ring) bool { return !r.Idle() })
}

// ended tells whether the tap's readers have.
func (t *tap) ended() bool {
	select {
	case <-t.done:
		return true
	default:
		return false
	}
}

// add lets a subscription have the packets from now on.
func (t *tap) add(a *attachment) error {
	t.tune.Lock()
	defer t.tune.Unlock()
	atts := append(slices.Clone(*t.atts.Load()), a)
	if err := t.retune(atts); err != nil {
		return err
	}
	a.begin(t.drops())
	t.atts.Store(&atts)
	return nil
}

// remove ends that. The kernel goes on with what the others want.
func (t *tap) remove(a *attachment) {
	t.tune.Lock()
	defer t.tune.Unlock()
	atts := slices.DeleteFunc(slices.Clone(*t.atts.Load()), func(o *attachment) bool { return o == a })
	t.atts.Store(&atts)
	if len(atts) == 0 || t.ended() {
		return // the ring is about to be closed
	}
	t.try(atts)
}

// adjust sets the kernel to what is wanted now that somebody's wishes have changed, or
// the interfaces.
func (t *tap) adjust() {
	t.tune.Lock()
	defer t.tune.Unlock()
	if !t.ended() {
		t.try(*t.atts.Load())
	}
}

// try is retune where a failure does no harm: more than is wanted still arrives, and
// is dropped here.
func (t *tap) try(atts []*attachment) {
	if err := t.retune(atts); err != nil {
		t.space.hub.log.Debug("ring not tuned", slog.String("interface", t.name), slog.Any("error", err))
	}
}

// retune sets the kernel's filter to the union of all, and promiscuous mode where
// somebody wants it. t.tune is held.
func (t *tap) retune(atts []*attachment) error {
	return errors.Join(t.setPromisc(atts), t.setFilter(atts))
}

// setPromisc asks for it, or takes it back, interface by interface.
func (t *tap) setPromisc(atts []*attachment) error {
	want := map[int]bool{}
	for _, a := range atts {
		if !a.sub.spec.NoPromisc {
			t.addWanted(want, a.sub)
		}
	}
	v := t.space.now.Load()
	var errs []error
	for index := range t.promisc {
		if !want[index] {
			delete(t.promisc, index)
			if i := v.byIndex[index]; i != nil && !i.gone.Load() { // else it has taken its mode with it
				errs = append(errs, t.rings[0].SetPromiscOn(index, false))
			}
		}
	}
	for index := range want {
		if t.promisc[index] {
			continue
		}
		if err := t.rings[0].SetPromiscOn(index, true); err != nil {
			errs = append(errs, err)
			continue
		}
		t.promisc[index] = true
	}
	return errors.Join(errs...)
}

// addWanted adds the interfaces that a subscription has of this tap.
func (t *tap) addWanted(to map[int]bool, s *Subscription) {
	if t.index != 0 {
		to[t.index] = true
		return
	}
	for _, i := range t.space.now.Load().list {
		if s.source.matches(i.name) {
			to[i.index] = true
		}
	}
}

// setFilter makes the kernel filter by the union of what all want. The key says which
// one, so that nothing is set twice.
func (t *tap) setFilter(atts []*attachment) error {
	var programs []*filter.Program
	key := ""
	for _, a := range atts {
		for _, p := range a.sub.kernelPrograms(t.link()) {
			programs = append(programs, p)
			key += p.String() + "\x00"
		}
	}
	scope := t.scope(atts, &key)
	if t.tuned && t.kernel == key {
		return nil
	}
	code := filter.Union(programs, scope)
	for _, r := range t.rings {
		if err := r.SetFilter(code); err != nil {
			return err
		}
	}
	t.tuned, t.kernel = true, key
	return nil
}

// scope says of which interfaces the kernel shall take packets.
func (t *tap) scope(atts []*attachment, key *string) filter.Scope {
	if t.index != 0 {
		return filter.Scope{}
	}
	scope := filter.Scope{Mixed: true}
	want := map[int]bool{}
	for _, a := range atts {
		if a.sub.source.all() {
			return scope
		}
		t.addWanted(want, a.sub)
	}
	scope.Interfaces, scope.Known = slices.Sorted(maps.Keys(want)), t.space.now.Load().greatest()
	if scope.Interfaces == nil {
		scope.Interfaces = []int{}
	}
	*key += fmt.Sprint(scope.Interfaces, scope.Known)
	return scope
}

// isLoopback tells whether the tap's only interface is a loopback.
func (t *tap) isLoopback() bool { return t.rings[0].Interface().Hardware == syscall.ARPHRD_LOOPBACK }

// link is the link type that programs for the kernel are of.
func (t *tap) link() pcapng.LinkType {
	if t.index == 0 {
		return pcapng.Ethernet
	}
	return t.rings[0].Interface().Link
}
