package capture

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"time"

	"github.com/sockd/sockd/families/packet/pcapng"
	"github.com/sockd/sockd/families/packet/ring"
)

// errAgain: a capture is run once.
var errAgain = errors.New("capture was run before")

// Run writes the capture to w as pcapng, until the count or the duration is
// reached or ctx ends, which are its normal ends and return nil; until Close, which
// returns net.ErrClosed; until the interface is deleted, which is an *families.OpError
// wrapping ENODEV; or until w fails, which returns w's error. In all cases but
// the last the file is complete: everything that the kernel saw before the end, and the
// statistics. It can be called once; after Close it writes nothing.
//
// Each Write is a whole number of blocks. Packets that arrive slowly are written at
// once, and fast ones in batches. Run cannot interrupt a Write that blocks: who owns w closes it.
func (s *Subscription) Run(ctx context.Context, w io.Writer) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.release()
	if err := s.open(w); err != nil {
		s.finish()
		return s.abandon(err)
	}
	end, err := s.pump(ctx, w)
	if err == nil {
		s.settle()
	}
	s.finish()
	if err == nil {
		err = s.flush(w)
	}
	if err != nil {
		return s.abandon(err)
	}
	return end
}

// open writes what a file begins with: also the interfaces, before they have packets,
// because who reads the file waits for them.
func (s *Subscription) open(w io.Writer) error {
	if _, err := w.Write(s.header()); err != nil {
		return err
	}
	return s.flush(w)
}

func (s *Subscription) enter() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.state == waiting:
		s.state = running
		close(s.entered)
		return nil
	case s.isClosed():
		return net.ErrClosed
	}
	return errAgain
}

func (s *Subscription) isClosed() bool {
	select {
	case <-s.closed:
		return true
	default:
		return false
	}
}

// pump writes what is queued until the capture's end, and says what ended it, or
// that w failed.
func (s *Subscription) pump(ctx context.Context, w io.Writer) (end, err error) {
	var expired <-chan time.Time
	if s.spec.Duration > 0 {
		timer := time.NewTimer(s.spec.Duration)
		defer timer.Stop()
		expired = timer.C
	}
	for {
		select {
		case <-s.queue.wake:
			if err := s.flush(w); err != nil {
				return nil, err
			}
			if s.isFull() {
				return nil, nil
			}
		case <-expired:
			return nil, nil
		case <-ctx.Done():
			return nil, nil
		case <-s.closed:
			return net.ErrClosed, nil
		}
	}
}

func (s *Subscription) isFull() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.full && s.queue.empty()
}

// What ends a capture must wait for: the kernel hands a block over when its retire
// time has passed and its timer, of a few milliseconds, fires.
const (
	settleFirst = 5 * ring.DefaultRetire
	settleStep  = 2 * time.Millisecond
	settleMost  = time.Second // a ring that never runs empty is not waited for any longer
)

// settle waits until the packets from before this moment have come through the
// rings, and lets no later ones in.
func (s *Subscription) settle() {
	s.mu.Lock()
	s.until = time.Now().UnixNano()
	full := s.full
	s.mu.Unlock()
	if full {
		return
	}
	most := time.After(settleMost)
	for step := time.After(settleFirst); ; step = time.After(settleStep) {
		select {
		case <-step:
			if s.idle() {
				return
			}
		case <-most:
			return
		}
	}
}

// idle tells whether nothing is left in the rings.
func (s *Subscription) idle() bool {
	return !slices.ContainsFunc(s.attached(), func(a *attachment) bool { return !a.tap.ended() && !a.tap.idle() })
}

// flush writes what is queued and counts it as delivered.
func (s *Subscription) flush(w io.Writer) error {
	chunk, sum := s.queue.take()
	defer s.queue.done(chunk)
	if len(chunk) == 0 {
		return nil
	}
	_, err := w.Write(chunk)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		s.delivered += sum.packets
	} else {
		s.subscriber += sum.packets
	}
	return err
}

// abandon ends a capture whose writer failed.
func (s *Subscription) abandon(err error) error {
	s.discard()
	return fmt.Errorf("write capture of %s: %w", s.spec.Source, err)
}

// header is what a file begins with.
func (s *Subscription) header() []byte {
	return pcapng.AppendSection(nil, pcapng.Section{Comment: s.spec.Comment, OS: "Linux", UserAppl: "sockd"})
}

// release forgets the buffers of a capture that has been written to its end.
func (s *Subscription) release() {
	s.mu.Lock()
	s.queue.discard()
	s.mu.Unlock()
	s.hub.giveBack()
}
