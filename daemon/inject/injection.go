package inject

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/model"
	"github.com/sockd/sockd/families/packet/inject"
	"github.com/sockd/sockd/families/packet/inject/wire"
	"github.com/sockd/sockd/families/packet/pcapng"
)

// How long a frame waits for room in the interface's queue, in growing steps. The
// longest queue that Linux makes (1000 frames of 1500 bytes) drains through 10 Mbit/s
// in a little more.
const (
	sendPatience = time.Second
	firstPause   = 100 * time.Microsecond
	longestPause = 10 * time.Millisecond
)

// MaxPPS is the fastest rate that can be asked for: a frame a nanosecond.
const MaxPPS = int64(time.Second)

// Injection is one injection.
type Injection struct {
	spec   model.InjectSpec
	sender *inject.Sender
	memory *Memory
	keep   int // keepMost; tests make it small

	// What follows belongs to Run.
	pace   pace
	tried  int64         // frames that were handed to the sender, or given up
	inVain int64         // frames in a row that could not be sent
	paused time.Duration // for the first frame that waits

	counts counts
	ran    atomic.Bool
}

// counts are read by View while Run counts.
type counts struct {
	sent, bytes, retries, passes atomic.Int64
	begun                        atomic.Int64 // UnixNano; 0: not yet
	took                         atomic.Int64 // ns, at the end
	failed                       [causes]failure
}

// Open opens the socket. The caller must be in the interface's network namespace.
// Errors are those of families/packet/inject's Open; a spec that cannot be meant wraps
// families.ErrSyntax, as do frames of another link type than the interface's.
func Open(spec model.InjectSpec, memory *Memory) (*Injection, error) {
	if spec.Count < 0 || spec.Loop < 0 || spec.PPS < model.OriginalTiming || spec.PPS > MaxPPS {
		return nil, fmt.Errorf("inject: count %d, loop %d or rate %d is out of range: %w", spec.Count, spec.Loop, spec.PPS, families.ErrSyntax)
	}
	if spec.Interface == "any" {
		return nil, &families.SyntaxError{What: "interface", Text: spec.Interface, Why: "frames go out of one interface"}
	}
	s, err := inject.Open(spec.Interface)
	if err != nil {
		return nil, err
	}
	if link := pcapng.LinkType(spec.Link); spec.Link != 0 && (int(link) != spec.Link || !s.Interface().Fits(link)) {
		_ = s.Close() // nothing was sent
		return nil, fmt.Errorf("inject %s: frames of link-type %s do not fit an interface of %s: %w", spec.Interface, link, s.Interface().Link, families.ErrSyntax)
	}
	return &Injection{spec: spec, sender: s, memory: memory, keep: keepMost, pace: pace{pps: spec.PPS}}, nil
}

// View is how far it is, without ID and Owner.
func (n *Injection) View() model.Injected {
	c := &n.counts
	v := model.Injected{
		Interface: n.spec.Interface, Sent: c.sent.Load(), Bytes: c.bytes.Load(),
		Failed: model.Drops{}, Retries: c.retries.Load(), Passes: c.passes.Load(), Duration: c.took.Load(),
	}
	if begun := c.begun.Load(); v.Duration == 0 && begun != 0 {
		v.Duration = time.Now().UnixNano() - begun
	}
	for i := range c.failed {
		v.Failed.Add(causeNames[i], c.failed[i].count.Load())
	}
	return v
}

// Close closes the socket, when Run has returned or was not called. Twice is nil.
func (n *Injection) Close() error { return n.sender.Close() }

// errEnough ends a run whose count is reached.
var errEnough = errors.New("enough frames")

// Run is model.Injection's. Nothing of it runs on when it returns, and nobody reads
// frames.
func (n *Injection) Run(ctx context.Context, frames model.FrameReader) error {
	if n.ran.Swap(true) {
		return errors.New("inject: it was run before")
	}
	stop := context.AfterFunc(ctx, n.sender.Interrupt)
	defer stop()
	f := newFeed(ctx, frames)
	defer f.close()
	err := n.play(ctx, f)
	n.counts.took.Store(int64(n.pace.elapsed()))
	switch {
	case ctx.Err() != nil && (errors.Is(err, context.Cause(ctx)) || errors.Is(err, os.ErrDeadlineExceeded)):
		err = nil // its caller has had enough
	case errors.Is(err, errEnough):
		err = nil
	}
	if err != nil {
		return n.opError(err)
	}
	return n.failures()
}

func (n *Injection) opError(err error) error {
	var already *families.OpError
	if errors.As(err, &already) {
		return err
	}
	return &families.OpError{Op: "inject", Family: "packet", Addr: families.Escape(n.spec.Interface), Err: err}
}

func (n *Injection) play(ctx context.Context, f *feed) error {
	if n.spec.Loop == 1 {
		return n.stream(ctx, f)
	}
	s := &store{memory: n.memory, most: n.keep}
	defer s.free()
	if err := s.fill(ctx, f); err != nil {
		return err
	}
	for pass := int64(0); n.spec.Loop == 0 || pass < n.spec.Loop; pass++ {
		if err := n.pass(ctx, s); err != nil {
			return err
		}
		if n.inVain*(pass+1) >= n.tried {
			return nil // a whole pass of frames that cannot be sent: nor will they be
		}
		n.pace.again()
	}
	return n.flush(ctx)
}

// pass sends what is kept. It stays as it is, so that a batch may hold many passes of a
// short one; but not before it is known that any of it can be sent.
func (n *Injection) pass(ctx context.Context, s *store) error {
	for _, c := range s.chunks {
		if err := n.piece(ctx, c); err != nil {
			return err
		}
	}
	n.counts.passes.Add(1)
	if n.counts.sent.Load() > 0 {
		return nil
	}
	return n.flush(ctx)
}

// stream sends the pieces of f as they come.
func (n *Injection) stream(ctx context.Context, f *feed) error {
	for {
		p, err := f.next(ctx)
		if errors.Is(err, io.EOF) {
			n.counts.passes.Add(1)
			return nil
		}
		if err != nil {
			return err
		}
		if err := n.piece(ctx, p); err != nil {
			return err
		}
		if err := n.flush(ctx); err != nil { // its memory is the feed's again then
			return err
		}
		f.giveBack(p)
	}
}

// piece sends the frames of a piece. Those that still wait at the end are flush's.
func (n *Injection) piece(ctx context.Context, p []byte) error {
	for len(p) > 0 {
		r, size, err := wire.Next(p)
		if err != nil {
			return err // the feed has looked
		}
		p = p[size:]
		if err := n.frame(ctx, r); err != nil {
			return err
		}
	}
	return nil
}

// frame sends one frame when it is due, with those behind it that are due, too.
func (n *Injection) frame(ctx context.Context, r wire.Record) error {
	switch {
	case n.spec.Count > 0 && n.tried == n.spec.Count:
		if err := n.flush(ctx); err != nil {
			return err
		}
		return errEnough
	case n.tried == 0:
		n.counts.begun.Store(time.Now().UnixNano())
	}
	if !n.pace.due(r.At) {
		if err := n.flush(ctx); err != nil {
			return err
		}
		n.pace.wait(ctx)
	}
	if len(r.Frame) < n.shortest() {
		return n.skipShort(ctx, r)
	}
	n.tried++
	n.sender.Add(r.Frame)
	if n.sender.Full() {
		return n.flush(ctx)
	}
	return nil
}

// skipShort counts a frame that cannot be sent, after those before it, whose numbers
// refused finds by counting back.
func (n *Injection) skipShort(ctx context.Context, r wire.Record) error {
	err := n.flush(ctx)
	n.tried++
	n.counts.failed[tooShort].add(n.tried, len(r.Frame))
	n.inVain++
	return err
}

// shortest is a link-level header. Less than a byte is nothing: not all drivers look.
func (n *Injection) shortest() int { return max(n.sender.Interface().Header, 1) }

// flush sends what waits.
func (n *Injection) flush(ctx context.Context) error {
	for n.sender.Waiting() > 0 {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		frames, bytes, err := n.sender.Send()
		if err != nil {
			if err := n.refused(err); err != nil {
				return err
			}
			continue
		}
		n.counts.sent.Add(int64(frames))
		n.counts.bytes.Add(bytes)
		n.paused, n.inVain = 0, 0
	}
	return nil
}

// refused decides what becomes of a frame that the kernel did not take: nil is that
// the next Send can go on.
func (n *Injection) refused(err error) error {
	number := n.tried - int64(n.sender.Waiting()) + 1
	switch {
	case errors.Is(err, syscall.EMSGSIZE):
		n.counts.failed[tooLong].add(number, n.sender.First())
	case errors.Is(err, syscall.ENOBUFS) && n.paused < sendPatience:
		n.pause()
		return nil
	case errors.Is(err, syscall.ENOBUFS):
		n.counts.failed[noBuffers].add(number, n.sender.First())
	default:
		return err
	}
	n.sender.Skip()
	n.paused = 0
	n.inVain++
	return nil
}

// pause gives the interface's queue time.
func (n *Injection) pause() {
	d := min(max(n.paused, firstPause), longestPause)
	n.counts.retries.Add(1)
	inject.Nap(d)
	n.paused += d
}
