package capture

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/model"
	"github.com/sockd/sockd/families/packet/pcapng"
	"github.com/sockd/sockd/families/packet/shm"
)

// sharedStore is a store whose packets stand in memory that the reader maps, too: they
// are written once, where they are read.
type sharedStore struct {
	sub *Subscription // whose mu guards everything below

	w       *shm.Writer
	scratch []byte   // a block on its way
	backlog [][]byte // descriptions that found no room: nothing is taken in before them
	waiting int      // bytes of backlog

	broken chan struct{} // closed with err
	err    error         // why the subscription must end
	filled chan struct{} // closed when the capture's count is reached
	closed bool          // w is
}

var _ store = (*sharedStore)(nil)

// maxBacklog bounds the descriptions that wait for a reader who does not read: they
// are those of thousands of interfaces.
const maxBacklog = 1 << 20

var errBacklog = fmt.Errorf("reader stands still, and %d bytes of interface descriptions wait for it: %w", maxBacklog, syscall.ENOBUFS)

func newSharedStore(s *Subscription, w *shm.Writer) *sharedStore {
	return &sharedStore{sub: s, w: w, broken: make(chan struct{}), filled: make(chan struct{})}
}

func (m *sharedStore) describe(i *pcapng.Interface) {
	m.scratch = pcapng.AppendInterface(m.scratch[:0], *i)
	if m.settle() && m.write(m.scratch) {
		return
	}
	m.backlog = append(m.backlog, slices.Clone(m.scratch))
	if m.waiting += len(m.scratch); m.waiting > maxBacklog {
		m.fail(errBacklog)
	}
}

// stats is written if it still finds room, of which packets leave some: enough for the
// interfaces of most captures. The first has the losses of all.
func (m *sharedStore) stats(s *pcapng.Stats) {
	if m.settle() {
		m.scratch = pcapng.AppendStats(m.scratch[:0], *s)
		m.write(m.scratch)
	}
}

func (m *sharedStore) add(p *pcapng.Packet) verdict {
	if !m.settle() {
		m.w.Lose()
		return noRoom
	}
	n := p.Size()
	room, err := m.w.Room(n, false)
	if err != nil {
		m.fail(err)
		m.w.Lose()
		return noRoom
	}
	pcapng.AppendPacket(room, p)
	m.w.Commit(n, true)
	return kept
}

// settle writes the descriptions that had to wait, and tells whether none does any more.
func (m *sharedStore) settle() bool {
	for len(m.backlog) > 0 {
		if !m.write(m.backlog[0]) {
			return false
		}
		m.waiting -= len(m.backlog[0])
		m.backlog = m.backlog[1:]
	}
	return true
}

// write writes a block that is no packet, if there is room.
func (m *sharedStore) write(block []byte) bool {
	room, err := m.w.Room(len(block), true)
	if err != nil {
		m.fail(err)
		return false
	}
	copy(room[:len(block)], block)
	m.w.Commit(len(block), false)
	return true
}

func (m *sharedStore) flush() {
	m.fail(m.w.Flush())
	if m.sub.full && !isClosed(m.filled) {
		close(m.filled)
	}
}

// fail ends the subscription for an error that is not of today.
func (m *sharedStore) fail(err error) {
	if err == nil || m.err != nil || errors.Is(err, shm.ErrFull) {
		return
	}
	m.err = err
	close(m.broken)
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// Shared is a capture whose packets one program reads from memory, without asking
// anybody (package shm). Its methods may be called from any goroutine.
type Shared struct {
	sub     *Subscription
	mem     *sharedStore
	bytes   int
	claimed atomic.Bool // somebody is going to free the memory: Run, or else Close
}

// What a Shared is to the daemon.
var _ model.Sharing = (*Shared)(nil)

// Share starts a capture into shared memory of so many bytes, 0 for the default, all of
// which count as queued while it lasts. It must be closed, or run to its end. The sockets of
// spec.Elsewhere are the hub's, also when there is an error. Errors are those of Subscribe,
// and ENOBUFS when there is no memory left for it.
func (h *Hub) Share(spec model.CaptureSpec, bytes int) (*Shared, error) {
	s := &Shared{bytes: shm.RingBytes(bytes)}
	w, err := h.memoryOf(s.bytes, spec)
	if err != nil {
		if spec.Elsewhere != nil {
			closeNamespace(spec.Elsewhere)
		}
		return nil, err
	}
	s.sub, err = h.subscribe(spec, func(sub *Subscription) store {
		s.mem = newSharedStore(sub, w)
		s.mem.write(sub.header())
		return s.mem
	})
	if err != nil {
		w.Close()
		h.queued.Add(-int64(s.bytes))
		return nil, err
	}
	return s, nil
}

// memoryOf sets memory for a capture aside.
func (h *Hub) memoryOf(bytes int, spec model.CaptureSpec) (*shm.Writer, error) {
	if spec.Format != "" {
		return nil, &families.SyntaxError{What: "format", Text: spec.Format, Why: "shared memory holds pcapng"}
	}
	if h.queued.Add(int64(bytes)) > int64(h.limits.queues) {
		h.queued.Add(-int64(bytes))
		return nil, &families.OpError{Op: "capture", Family: "packet", Addr: spec.Source, Err: syscall.ENOBUFS}
	}
	w, err := shm.NewWriter(bytes)
	if err != nil {
		h.queued.Add(-int64(bytes))
	}
	return w, err
}

// Files are the descriptors that the reader needs, as shm.Files has them. They stay
// s's, until Run.
func (s *Shared) Files() (data, control, wake int) {
	s.sub.mu.Lock()
	defer s.sub.mu.Unlock()
	f := s.mem.w.Files()
	return f.Data, f.Control, f.Wake
}

// View is the capture as it stands. Delivered is what the reader has said that it has
// taken; at the end the rest counts as dropped by it.
func (s *Shared) View() model.Capture {
	v := s.sub.View()
	s.sub.mu.Lock()
	defer s.sub.mu.Unlock()
	stats, err := s.mem.w.Stats()
	s.mem.fail(err)
	v.Delivered = stats.Taken
	if s.mem.closed {
		v.DroppedSubscriber += stats.Packets - stats.Taken
	}
	return v
}

// SetFilter replaces the filter; see Subscription.SetFilter.
func (s *Shared) SetFilter(text string) error { return s.sub.SetFilter(text) }

// Tell is Subscription.Tell.
func (s *Shared) Tell(f func(cause string)) { s.sub.Tell(f) }

// Run lets the reader have packets until the count or the duration is reached, the
// reader asks for the end by closing done, or ctx ends. What the kernel saw before comes
// through, then the statistics, and the reader is told that this was all. Run waits
// until it has left, or ctx ends, and frees the memory. These are normal ends and
// return nil; Close is net.ErrClosed, and a reader that breaks the rules *shm.ReaderError.
//
// Files must have been passed on before: it closes them. It can be called once.
func (s *Shared) Run(ctx context.Context, done, left <-chan struct{}) error {
	if s.claimed.Swap(true) {
		return s.again()
	}
	end, reading, err := s.run(ctx, done, left)
	s.free(reading)
	if err != nil {
		return err
	}
	return end
}

// run is Run, and tells whether the reader may still be reading.
func (s *Shared) run(ctx context.Context, done, left <-chan struct{}) (end error, reading bool, err error) {
	if err := s.sub.enter(); err != nil {
		return nil, false, err
	}
	s.sub.mu.Lock()
	s.mem.w.CloseFiles()
	s.sub.mu.Unlock()
	end, err = s.await(ctx, done, left)
	if err == nil && !isClosed(left) {
		s.sub.settle()
	}
	s.sub.finish()
	if err != nil {
		return nil, false, err
	}
	s.end()
	return end, s.awaitReader(ctx, left), nil
}

// readPatience is how long a reader may read on when somebody has closed its capture.
const readPatience = 5 * time.Second

// awaitReader waits until the reader has left, and tells whether it still may have
// something to read when it has not.
func (s *Shared) awaitReader(ctx context.Context, left <-chan struct{}) bool {
	closed, patience := s.sub.closed, (<-chan time.Time)(nil)
	for {
		select {
		case <-left:
			return false
		case <-s.mem.broken:
			return false
		case <-patience:
			return false
		case <-ctx.Done():
			return !isClosed(left)
		case <-closed:
			closed, patience = nil, time.After(readPatience)
		}
	}
}

// again says why Run does not run.
func (s *Shared) again() error {
	if s.sub.isClosed() {
		return net.ErrClosed
	}
	return errAgain
}

// await waits for the capture's end, and says what ended it, or that the reader
// cannot go on.
func (s *Shared) await(ctx context.Context, done, left <-chan struct{}) (end, err error) {
	var expired <-chan time.Time
	if s.sub.spec.Duration > 0 {
		timer := time.NewTimer(s.sub.spec.Duration)
		defer timer.Stop()
		expired = timer.C
	}
	select {
	case <-expired:
	case <-s.mem.filled:
	case <-done:
	case <-left:
	case <-ctx.Done():
	case <-s.sub.closed:
		return net.ErrClosed, nil
	case <-s.mem.broken:
		return nil, fmt.Errorf("capture of %s: %w", s.sub.spec.Source, s.mem.err)
	}
	return nil, nil
}

// end tells the reader that nothing more comes.
func (s *Shared) end() {
	s.sub.mu.Lock()
	defer s.sub.mu.Unlock()
	s.mem.w.End()
}

// free gives the memory back, or where a reader is still reading, leaves it to it. The
// subscription has ended.
func (s *Shared) free(reading bool) {
	s.sub.mu.Lock()
	if reading {
		s.mem.w.Leave()
	} else {
		s.mem.w.Close()
	}
	s.mem.closed = true
	s.sub.mu.Unlock()
	s.sub.hub.queued.Add(-int64(s.bytes))
}

// Close ends the capture: Run, if somebody runs it, tells the reader of the end and
// returns net.ErrClosed, and its caller waits for that. Twice is nil.
func (s *Shared) Close() error {
	mine := !s.claimed.Swap(true)
	err := s.sub.Close()
	if mine {
		<-s.sub.Done()
		s.free(false)
	}
	return err
}
