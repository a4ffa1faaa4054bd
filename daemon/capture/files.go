package capture

import (
	"context"
	"fmt"
	"math"
	"net"
	"sync"
	"time"

	"github.com/sockd/sockd/families/model"
	"github.com/sockd/sockd/families/packet/files"
	"github.com/sockd/sockd/families/packet/pcapng"
	"github.com/sockd/sockd/families/packet/ring"
)

// supplyPatience is how long after its end a capture waits for a file that it needs
// for what is still queued. A caller who is there opens one in less than a millisecond. When
// its context has ended the caller has left, as a rule, or the daemon is to end, and that
// within two seconds.
const (
	supplyPatience = 2 * time.Second
	leavePatience  = time.Second
)

// RunFiles is Run into files, which the caller opens and names and the subscription
// fills, cuts and closes: see model.Capturing. While next waits for a descriptor packets
// queue; when they find no room any more they are counted as this subscriber's loss. So
// are those that a file cannot take, whatever its error: the file is cut back to its last
// whole packet, and written again when that is possible.
//
// It ends as Run does, and well after spec.Files files, or when next or done fails. It is
// an error when next gives something else than a regular file that is open for writing.
func (s *Subscription) RunFiles(ctx context.Context, spec model.FileSpec, next func(context.Context) (fd int, err error), done func(model.FileReport) error) error {
	if err := spec.Check(); err != nil {
		return err
	}
	if err := s.enter(); err != nil {
		return err
	}
	defer s.release()
	hold, letGo := context.WithCancel(context.Background())
	defer letGo()
	patience := time.AfterFunc(math.MaxInt64, letGo)
	defer patience.Stop()
	w := newFileWriter(s, spec, func() (int, error) { return next(hold) }, done)
	ended := make(chan error, 1)
	go func() { ended <- s.conclude(ctx, w.enough, patience) }()
	return w.run(ended)
}

// conclude waits for the capture's end, sees to it that all packets from before are
// queued, and says what ended it. The writer goes on meanwhile: a ring runs empty only
// if its blocks come back.
func (s *Subscription) conclude(ctx context.Context, enough <-chan struct{}, patience *time.Timer) error {
	end := s.awaitEnd(ctx, enough)
	if ctx.Err() != nil {
		patience.Reset(leavePatience)
	} else {
		patience.Reset(supplyPatience)
	}
	s.settle()
	s.finish()
	return end
}

func (s *Subscription) awaitEnd(ctx context.Context, enough <-chan struct{}) error {
	var expired <-chan time.Time
	if s.spec.Duration > 0 {
		timer := time.NewTimer(s.spec.Duration)
		defer timer.Stop()
		expired = timer.C
	}
	select {
	case <-expired:
	case <-ctx.Done():
	case <-enough:
	case <-s.closed:
		return net.ErrClosed
	}
	return nil
}

// fileWriter writes what a subscription queues, and blocks of rings, into files.
type fileWriter struct {
	sub    *Subscription
	cut    cutter
	err    error // what ended it before its time
	enough chan struct{}
	once   sync.Once // closes enough

	// What follows is guarded by sub.mu.
	held  []heldBlock // that flush has not taken yet
	spare []heldBlock // to swap with held
	lent  int         // blocks of the ring that were not released
}

// heldBlock is a block of a ring that waits to be written.
type heldBlock struct {
	ring.Block
	iface   uint32
	dropped uint64
	after   int // bytes of the queue that come before it
}

func newFileWriter(s *Subscription, spec model.FileSpec, next func() (int, error), done func(model.FileReport) error) *fileWriter {
	w := &fileWriter{sub: s, enough: make(chan struct{})}
	w.cut = cutter{
		size: spec.Size, clock: files.Clock{Every: spec.Every}, most: spec.Files,
		classic: s.spec.Format == model.FormatPcap, snaplen: uint32(s.snaplen), section: s.header(),
		next:  func() (sink, error) { return w.adopt(next) },
		done:  func(r model.FileReport) { w.tell(r, done) },
		stats: w.stats, now: time.Now, until: -1, page: files.Aligned(ring.Page),
	}
	for _, z := range spec.Zones {
		w.cut.clock.Zones = append(w.cut.clock.Zones, files.Zone(z))
	}
	s.queue.gatherUp(min(gather, s.queue.limit/4), gatherTime) // the rest is for what comes meanwhile
	if !w.cut.classic && (spec.Size == 0 || spec.Size >= leastCut) {
		s.mu.Lock()
		s.blocks = w
		s.mu.Unlock()
		s.takesBlocks.Store(true)
	}
	return w
}

// leastCut is how long files must be for blocks to be written where they lie: one
// of a few blocks has them cut.
const leastCut = 1 << 20

// adopt takes over the next file.
func (w *fileWriter) adopt(next func() (int, error)) (sink, error) {
	fd, err := next()
	if err != nil {
		return nil, err
	}
	f, err := files.Adopt(fd)
	if err != nil {
		files.Discard(fd)
		w.err = fmt.Errorf("the file that was handed over: %w", err)
		return nil, err
	}
	return f, nil
}

func (w *fileWriter) tell(r model.FileReport, done func(model.FileReport) error) {
	if r.Reason == "error" {
		w.sub.say("file cannot be written: " + r.Error)
	}
	if err := done(r); err != nil {
		w.stop() // nobody names the next file
	}
}

func (w *fileWriter) stop() { w.once.Do(func() { close(w.enough) }) }

// Files end some time after their interval, when nothing comes that would end them:
// a late packet may still be on its way.
const (
	lateness = time.Second
	lookAt   = time.Second
)

// A file is written in pieces of gather, or of what has come within gatherTime: who
// reads it meanwhile sees a packet that much later.
const (
	gather     = 1 << 20
	gatherTime = 50 * time.Millisecond
)

// run writes until the capture has ended.
func (w *fileWriter) run(ended <-chan error) error {
	tick := time.NewTicker(lookAt)
	defer tick.Stop()
	if w.cut.size == 0 && w.cut.clock.Every == 0 {
		w.cut.begin()
	}
	for {
		select {
		case <-w.sub.queue.wake:
			w.flush()
		case <-tick.C:
			w.flush()
			w.cut.elapsed(time.Now().Add(-lateness).UnixNano())
		case end := <-ended:
			w.flush()
			w.cut.end()
			if w.err != nil {
				return w.err
			}
			return end
		}
		if w.sub.isFull() || w.cut.enough() {
			w.stop()
		}
	}
}

// flush writes what is queued and the blocks that are held, in the order in which they
// came, and counts what was written as delivered.
func (w *fileWriter) flush() {
	s := w.sub
	s.mu.Lock()
	chunk, sum := s.queue.takeLocked()
	held := w.held
	w.held, w.spare = w.spare[:0], nil
	s.mu.Unlock()
	w.cut.kept, w.cut.lost = 0, 0
	frames, at := sum.packets, 0
	for i := range held {
		h := &held[i]
		w.cut.write(chunk[at:h.after])
		at = h.after
		frames += int64(h.Len())
		w.cut.block(&h.Block, h.iface, h.dropped)
		w.giveBack(h)
	}
	if at > 0 { // sum is of more
		w.cut.write(chunk[at:])
	} else {
		w.cut.writeAll(chunk, &sum)
	}
	s.mu.Lock()
	s.delivered += w.cut.kept
	s.subscriber += frames - w.cut.kept - w.cut.beyond
	s.told += uint64(w.cut.lost) // by the files: nobody else need
	w.cut.lost = 0
	w.uncountLocked()
	w.spare = held
	s.mu.Unlock()
	s.queue.done(chunk)
}

// uncountLocked takes packets back that came after the end of the capture.
func (w *fileWriter) uncountLocked() {
	if w.cut.beyond == 0 {
		return
	}
	w.sub.received -= w.cut.beyond
	for id, i := range w.cut.ifaces {
		w.sub.ids[id].received -= i.beyond
		i.beyond = 0
	}
	w.cut.beyond = 0
}

func (w *fileWriter) giveBack(h *heldBlock) {
	h.Release()
	w.sub.mu.Lock()
	w.lent--
	w.sub.mu.Unlock()
}

// leastBlock is from how many bytes on a block is held. One that was
// handed over for its age has less: to copy it costs little, and it leaves the file dense.
const leastBlock = 32 << 10

// takeBlock holds a block until it is written, but no more than a quarter of the ring:
// the rest must do while the disk is slow, for everybody.
func (w *fileWriter) takeBlock(b *ring.Block, iface uint32, dropped uint64) bool {
	if w.lent >= b.RingBlocks()/4 || b.Bytes() < leastBlock || !small(b) && !b.Rewritable() {
		return false
	}
	w.lent++
	w.sub.queue.aside += b.Bytes() / 2 // of small frames about as much is the ring's
	// What fills the ring with large frames is too fast for a disk that has waited.
	w.sub.queue.hurry = w.sub.queue.hurry || !small(b) || w.lent > b.RingBlocks()/8
	w.held = append(w.held, heldBlock{*b, iface, dropped, len(w.sub.queue.buf)})
	return true
}

// stats are the statistics of one interface as they stand. What files have lost since
// flush began is not yet counted as the subscription's.
func (w *fileWriter) stats(id uint32, first bool) pcapng.Stats {
	s := w.sub
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.ids[id]
	out := pcapng.Stats{Interface: id, Time: s.until, Start: st.start, End: s.until, OSDrop: uint64(st.lost)}
	if first {
		out.IfDrop, out.Comment = s.kernel, lossComment(s.kernel, s.daemon, s.subscriber+w.cut.lost)
	}
	return out
}
