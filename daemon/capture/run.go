package capture

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/sockd/sockd/families/packet/pcapng"
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
	if _, err := w.Write(s.header()); err != nil {
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
	if err == nil {
		_, err = w.Write(s.statistics())
	}
	if err != nil {
		return s.abandon(err)
	}
	return end
}

func (s *Subscription) enter() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.state == waiting:
		s.state = running
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
		case <-s.wake:
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
		case <-s.tap.done:
			return s.tap.readErr, nil
		}
	}
}

func (s *Subscription) isFull() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.full && len(s.queue) == 0
}

// settle waits until the packets from before this moment have come through the
// ring, and lets no later ones in.
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
			if s.tap.ring.Idle() {
				return
			}
		case <-most:
			return
		case <-s.tap.done: // nothing more comes
			return
		}
	}
}

// flush writes what is queued and counts it as delivered.
func (s *Subscription) flush(w io.Writer) error {
	s.mu.Lock()
	chunk, frames := s.queue, s.frames
	s.queue, s.frames, s.spare = s.spare[:0], 0, nil
	s.mu.Unlock()
	if len(chunk) == 0 {
		s.keep(chunk)
		return nil
	}
	_, err := w.Write(chunk)
	s.tap.hub.queued.Add(-int64(len(chunk)))
	s.mu.Lock()
	if err == nil {
		s.counts.delivered += frames
	} else {
		s.counts.subscriber += frames
	}
	s.mu.Unlock()
	s.keep(chunk)
	return err
}

// keep has a buffer for the next packets, unless a burst has made it large.
func (s *Subscription) keep(buf []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if cap(buf) <= keepBytes {
		s.spare = buf
	}
}

// abandon ends a capture whose writer failed.
func (s *Subscription) abandon(err error) error {
	s.discard()
	return fmt.Errorf("write capture of %s: %w", s.spec.Source, err)
}

// header is what a file begins with.
func (s *Subscription) header() []byte {
	b := pcapng.AppendSection(nil, pcapng.Section{Comment: s.spec.Comment, OS: "Linux", UserAppl: "sockd"})
	return pcapng.AppendInterface(b, pcapng.Interface{
		Link: s.tap.iface.Link, Snaplen: uint32(s.snaplen), Name: s.spec.Source, Filter: s.program.String(),
	})
}

// statistics is what a file ends with. What the ring dropped is isb_ifdrop, as in
// dumpcap's files; what the queues dropped is isb_osdrop; the comment has all three.
func (s *Subscription) statistics() []byte {
	v := s.View()
	s.mu.Lock()
	start, until := s.start, s.until
	s.mu.Unlock()
	return pcapng.AppendStats(nil, pcapng.Stats{
		Time: until, Start: start, End: until,
		Received:  uint64(v.Received + v.DroppedKernel),
		IfDrop:    uint64(v.DroppedKernel),
		Accepted:  uint64(v.Received),
		OSDrop:    uint64(v.DroppedDaemon + v.DroppedSubscriber),
		Delivered: uint64(v.Delivered),
		Comment:   fmt.Sprintf("dropped_kernel=%d dropped_daemon=%d dropped_subscriber=%d", v.DroppedKernel, v.DroppedDaemon, v.DroppedSubscriber),
	})
}
