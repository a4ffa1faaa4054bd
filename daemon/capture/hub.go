package capture

import (
	"log/slog"
	"net"
	"runtime/debug"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/model"
	"github.com/sockd/sockd/families/packet/filter"
	"github.com/sockd/sockd/families/packet/ring"
)

// limits bound a hub's memory. Tests make them small.
type limits struct {
	blockSize, blocks int // of one ring
	rings             int // bytes of all rings together
	queue             int // bytes that wait for one subscription's writer
	queues            int // bytes that wait for all of them
}

var defaultLimits = limits{
	blockSize: ring.DefaultBlockSize,
	blocks:    ring.DefaultBlocks,
	rings:     4 * ring.DefaultBlocks * ring.DefaultBlockSize, // 256 MiB; further rings are smaller
	queue:     8 << 20,                                        // 67 ms of a full gigabit link, or 250 ms of 200,000 packets of 96 bytes a second
	queues:    16 * 8 << 20,                                   // 16 subscriptions whose writers stand still
}

// leastBlocks is the smallest ring worth opening.
const leastBlocks = 8

// Hub owns the rings. Its methods may be called from any goroutine.
type Hub struct {
	log    *slog.Logger
	limits limits
	queued atomic.Int64 // bytes in all queues
	burst  atomic.Bool  // a queue was large since memory was given back

	mu     sync.Mutex // guards taps, memory, closed, and each tap's users
	taps   map[int]*tap
	memory int // bytes of all rings
	closed bool
}

// New makes a hub without rings.
func New(log *slog.Logger) *Hub {
	return &Hub{log: log, limits: defaultLimits, taps: map[int]*tap{}}
}

// Subscribe starts a capture: packets queue from now on, and Run writes them. The
// interface is one of the caller's network namespace. The subscription must be closed
// or run to its end.
//
// Errors: *families.OpError wrapping ENODEV (no such interface), EPERM (no
// CAP_NET_RAW) or ENOBUFS (no memory left for a ring); *families.SyntaxError of the filter; net.ErrClosed.
func (h *Hub) Subscribe(spec model.CaptureSpec) (*Subscription, error) {
	if err := check(spec); err != nil {
		return nil, err
	}
	iface, err := ring.Lookup(spec.Source)
	if err != nil {
		return nil, err
	}
	program, err := filter.Compile(spec.Filter, iface.Link)
	if err != nil {
		return nil, err
	}
	t, err := h.enter(iface)
	if err != nil {
		return nil, err
	}
	s := newSubscription(t, spec, program)
	if err := t.add(s); err != nil {
		h.leave(t)
		return nil, err
	}
	return s, nil
}

// enter finds or makes the interface's tap, and counts one more user of it.
func (h *Hub) enter(iface ring.Interface) (*tap, error) {
	h.mu.Lock()
	if h.closed {
		h.mu.Unlock()
		return nil, net.ErrClosed
	}
	t, found := h.taps[iface.Index]
	if !found {
		blocks := min(h.limits.blocks, (h.limits.rings-h.memory)/h.limits.blockSize)
		if blocks < leastBlocks {
			h.mu.Unlock()
			return nil, &families.OpError{Op: "capture", Family: "packet", Addr: iface.Name, Err: syscall.ENOBUFS}
		}
		t = newTap(h, iface, blocks*h.limits.blockSize)
		h.memory += t.bytes
		h.taps[iface.Index] = t
	}
	t.users++
	h.mu.Unlock()

	if !found {
		t.open()
	}
	<-t.opened
	if t.openErr != nil {
		h.leave(t)
		return nil, t.openErr
	}
	return t, nil
}

// leave counts one user less, and closes the tap after the last one.
func (h *Hub) leave(t *tap) {
	h.mu.Lock()
	t.users--
	last := t.users == 0
	if last {
		h.forgetLocked(t)
	}
	h.mu.Unlock()
	if !last {
		return
	}
	t.close()
	h.mu.Lock()
	h.memory -= t.bytes
	h.mu.Unlock()
}

// giveBack gives the memory of queues that a burst made large back to the system
// when the last capture has ended. The runtime would keep it for long: nothing in an
// idle daemon makes it collect garbage but a timer of minutes, and then it returns
// memory slowly, and not all. A collection of what is left, a small heap, takes
// about a millisecond, and only after a burst.
func (h *Hub) giveBack() {
	h.mu.Lock()
	idle := len(h.taps) == 0 && h.queued.Load() == 0
	h.mu.Unlock()
	if idle && h.burst.Swap(false) {
		debug.FreeOSMemory()
	}
}

// forget makes the next subscription open the interface anew.
func (h *Hub) forget(t *tap) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.forgetLocked(t)
}

func (h *Hub) forgetLocked(t *tap) {
	if h.taps[t.iface.Index] == t {
		delete(h.taps, t.iface.Index)
	}
}

// Close ends every subscription and closes every ring, and waits for their
// readers. Each Run that is under way completes its file and returns net.ErrClosed; whoever
// called it waits for it. Twice is nil.
func (h *Hub) Close() error {
	h.mu.Lock()
	h.closed = true
	var taps []*tap
	for _, t := range h.taps {
		taps = append(taps, t)
	}
	h.mu.Unlock()
	for _, t := range taps {
		<-t.opened
		for _, s := range t.subscriptions() {
			_ = s.Close() // always nil
		}
		t.close()
	}
	return nil
}

// check refuses what cannot be captured whatever the interface.
func check(spec model.CaptureSpec) error {
	switch spec.Direction {
	case "", "in", "out", "inout":
	default:
		return &families.SyntaxError{What: "direction", Text: spec.Direction, Why: "want in, out or inout"}
	}
	if spec.Snaplen < 0 || spec.Snaplen > maxSnaplen {
		return &families.SyntaxError{What: "snaplen", Text: strconv.Itoa(spec.Snaplen), Why: "want 0 to " + strconv.Itoa(maxSnaplen)}
	}
	if spec.Count < 0 {
		return &families.SyntaxError{What: "count", Text: strconv.FormatInt(spec.Count, 10), Why: "want 0 or more"}
	}
	return nil
}
