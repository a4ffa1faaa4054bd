package capture

import (
	"fmt"
	"log/slog"
	"maps"
	"math"
	"net"
	"os"
	"runtime/debug"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/model"
	"github.com/sockd/sockd/families/packet/filter"
	"github.com/sockd/sockd/families/packet/links"
	"github.com/sockd/sockd/families/packet/ring"
)

// limits bound a hub's memory. Tests make them small.
type limits struct {
	blockSize, blocks int // of one ring
	rings             int // bytes of all rings together
	queue             int // bytes that wait for one subscription's writer
	queues            int // bytes that wait for all of them
	linger            time.Duration
}

var defaultLimits = limits{
	blockSize: ring.DefaultBlockSize,
	blocks:    ring.DefaultBlocks,
	rings:     4 * ring.DefaultBlocks * ring.DefaultBlockSize, // 256 MiB; further rings are smaller
	queue:     8 << 20,                                        // 67 ms of a full gigabit link, or 250 ms of 200,000 packets of 96 bytes a second
	linger:    2 * time.Second,                                // for packets of an interface that is gone
	queues:    16 * 8 << 20,                                   // 16 subscriptions whose writers stand still
}

// leastBlocks is the smallest ring worth opening.
const leastBlocks = 8

// Hub owns the rings. Its methods may be called from any goroutine.
type Hub struct {
	log    *slog.Logger
	limits limits
	queued atomic.Int64  // bytes in all queues
	burst  atomic.Bool   // a queue was large since memory was given back
	groups atomic.Uint32 // of PACKET_FANOUT, so far
	inside func(func())  // runs what opens sockets; tests do it in a namespace of theirs

	// brokered tells whom this process holds a socket for; nil: for nobody.
	brokered func(inode uint32) (filter.Owner, bool)

	mu     sync.Mutex // guards spaces, memory, closed, and each space's users
	spaces map[uint64]*space
	memory int // bytes of all rings
	closed bool
}

// New makes a hub without rings.
func New(log *slog.Logger) *Hub {
	return &Hub{log: log, limits: defaultLimits, spaces: map[uint64]*space{}, inside: func(f func()) { f() }}
}

// Broker tells the hub whom this process holds its sockets for, by the inode of each, so that
// packets of theirs are not taken for its own. It is called before the first Subscribe. Readers of
// rings call f with a subscription's lock held: it must not block, nor call the hub.
func (h *Hub) Broker(f func(inode uint32) (filter.Owner, bool)) { h.brokered = f }

// Subscribe starts a capture: packets queue from now on, and Run or RunFiles writes
// them. The subscription must be closed or run to its end. The sockets of
// spec.Elsewhere are the hub's, also when there is an error.
//
// Errors: *families.OpError wrapping ENODEV (no such interface), EPERM (no
// CAP_NET_RAW) or ENOBUFS (no memory left for a ring); *families.SyntaxError of the
// source, the filter or another field; net.ErrClosed.
func (h *Hub) Subscribe(spec model.CaptureSpec) (*Subscription, error) {
	return h.subscribe(spec, func(s *Subscription) store {
		s.queue = newQueue(h, spec.Queue, &s.mu)
		return s.queue
	})
}

// subscribe starts a capture into the store that keep makes for it.
func (h *Hub) subscribe(spec model.CaptureSpec, keep func(*Subscription) store) (*Subscription, error) {
	src, err := check(spec)
	if err != nil {
		if spec.Elsewhere != nil {
			closeNamespace(spec.Elsewhere)
		}
		return nil, err
	}
	sp, err := h.enter(spec.Elsewhere)
	if err != nil {
		return nil, err
	}
	s, err := start(sp, spec, src, keep)
	if err != nil {
		h.leave(sp)
		return nil, err
	}
	return s, nil
}

// start makes a subscription and puts it on its taps. From the moment that the space
// knows it, it follows what becomes of the interfaces.
func start(sp *space, spec model.CaptureSpec, src source, keep func(*Subscription) store) (*Subscription, error) {
	j, err := newJudge(spec.Filter, sp.linkOf(src), sp.maskOf(src))
	if err != nil {
		return nil, err
	}
	if err := j.openLabels(sp); err != nil {
		return nil, err
	}
	s := newSubscription(sp, spec, src, j)
	s.store = keep(s)
	if err := s.attach(); err != nil {
		s.leaveTaps()
		j.close()
		return nil, err
	}
	sp.add(s)
	s.follow() // what has changed since attach looked
	return s, nil
}

// enter finds or makes a space, and counts one more user of it.
func (h *Hub) enter(n *model.Namespace) (*space, error) {
	if n == nil {
		return h.enterSpace(0, nil)
	}
	cookie, err := namespaceOf(n)
	if err == nil {
		var sp *space
		if sp, err = h.enterSpace(cookie, n); err == nil {
			return sp, nil
		}
	}
	closeNamespace(n)
	return nil, fmt.Errorf("capture in network namespace %s: %w", families.Printable(n.Name), err)
}

// namespaceOf is the cookie of the namespace of two sockets, both of which are as they
// must be: who brings them may have anything for the space of somebody else.
func namespaceOf(n *model.Namespace) (uint64, error) {
	if err := ring.Check(n.PacketFD); err != nil {
		return 0, fmt.Errorf("packet_socket: %w", err)
	}
	if err := links.Check(n.RouteFD); err != nil {
		return 0, fmt.Errorf("route_socket: %w", err)
	}
	cookie, err := ring.CookieOf(n.PacketFD)
	if err != nil {
		return 0, err
	}
	route, err := ring.CookieOf(n.RouteFD)
	if err == nil && route != cookie {
		err = fmt.Errorf("packet_socket and route_socket are of two: %w", syscall.EINVAL)
	}
	return cookie, err
}

// enterSpace is enter by the namespace's cookie, 0 for our own. On success it owns
// the sockets of n.
func (h *Hub) enterSpace(cookie uint64, n *model.Namespace) (*space, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil, net.ErrClosed
	}
	sp := h.spaces[cookie]
	switch {
	case sp == nil:
		w, err := h.watch(n)
		if err != nil {
			return nil, fmt.Errorf("watch interfaces: %w", err)
		}
		sp = newSpace(h, cookie, w, n != nil)
		sp.start()
		h.spaces[cookie] = sp
	case n != nil:
		_ = syscall.Close(n.RouteFD) // it has one
	}
	if n != nil {
		sp.lend(n.PacketFD)
	}
	sp.users++
	return sp, nil
}

// closeNamespace closes the sockets of a namespace; nothing was sent by them.
func closeNamespace(n *model.Namespace) {
	_ = syscall.Close(n.PacketFD)
	_ = syscall.Close(n.RouteFD)
}

func (h *Hub) watch(n *model.Namespace) (w *links.Watcher, err error) {
	if n != nil {
		return links.WatchFD(n.RouteFD)
	}
	h.inside(func() { w, err = links.Watch() })
	return w, err
}

// leave counts one user less, and closes the space after the last one.
func (h *Hub) leave(sp *space) {
	h.mu.Lock()
	sp.users--
	last := sp.users == 0
	if last {
		delete(h.spaces, sp.cookie)
	}
	h.mu.Unlock()
	if last {
		sp.close()
	}
}

// reserve sets memory aside for a ring: half of what is left, so that a further
// interface always finds some, and no more than a ring needs.
func (h *Hub) reserve() (bytes int, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	l := h.limits
	blocks := min(l.blocks, max((l.rings-h.memory)/2/l.blockSize, leastBlocks))
	if bytes = blocks * l.blockSize; h.memory+bytes > l.rings {
		return 0, false
	}
	h.memory += bytes
	return bytes, true
}

func (h *Hub) giveRing(bytes int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.memory -= bytes
}

// fanoutGroup is an id for a group of rings. They are one space for all programs of a
// network namespace: the process's id keeps two daemons apart.
func (h *Hub) fanoutGroup() uint16 {
	return uint16(os.Getpid()) ^ uint16(h.groups.Add(1)<<8) | 1
}

// giveBack gives the memory of queues that a burst made large back to the system
// when the last capture has ended. The runtime would keep it for long: nothing in an
// idle daemon makes it collect garbage but a timer of minutes, and then it returns
// memory slowly, and not all. A collection of what is left, a small heap, takes
// about a millisecond, and only after a burst.
func (h *Hub) giveBack() {
	h.mu.Lock()
	idle := len(h.spaces) == 0 && h.queued.Load() == 0
	h.mu.Unlock()
	if idle && h.burst.Swap(false) {
		debug.FreeOSMemory()
	}
}

// Close ends every subscription and closes every ring, and waits for their
// readers. Each Run that is under way completes its file and returns net.ErrClosed; whoever
// called it waits for it. Twice is nil.
func (h *Hub) Close() error {
	h.mu.Lock()
	h.closed = true
	spaces := slices.Collect(maps.Values(h.spaces))
	h.mu.Unlock()
	for _, sp := range spaces {
		for _, s := range sp.subscriptions() {
			_ = s.Close() // always nil
			<-s.Done()
		}
	}
	return nil
}

// check refuses what cannot be captured whatever the interfaces.
func check(spec model.CaptureSpec) (source, error) {
	switch spec.Direction {
	case "", "in", "out", "inout":
	default:
		return source{}, &families.SyntaxError{What: "direction", Text: spec.Direction, Why: "want in, out or inout"}
	}
	switch spec.Format {
	case "", model.FormatPcap:
	default:
		return source{}, &families.SyntaxError{What: "format", Text: spec.Format, Why: "want pcap, or nothing for pcapng"}
	}
	for _, n := range []struct {
		what        string
		value, most int64
	}{{"snaplen", int64(spec.Snaplen), maxSnaplen}, {"count", spec.Count, math.MaxInt64}, {"queue", spec.Queue, math.MaxInt64}, {"rings", int64(spec.Rings), maxRings}} {
		if n.value < 0 || n.value > n.most {
			return source{}, &families.SyntaxError{What: n.what, Text: strconv.FormatInt(n.value, 10), Why: fmt.Sprintf("want 0 to %d", n.most)}
		}
	}
	if spec.Elsewhere != nil && spec.Rings > 1 {
		return source{}, &families.SyntaxError{What: "rings", Text: strconv.Itoa(spec.Rings), Why: "there is one socket of another network namespace, and a ring needs one"}
	}
	return parseSource(spec.Source)
}

// maxRings bounds a fanout: each ring has a reader of its own, and more of them than
// processors wait for each other.
const maxRings = 16
