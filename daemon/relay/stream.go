package relay

import (
	"context"
	"errors"
	"io"

	"github.com/sockd/sockd/families"
)

// sinkError is a pump's error that came from where it sends to; all others came
// from where it receives.
type sinkError struct{ error }

func (e sinkError) Unwrap() error { return e.error }

// runStreams pumps both directions until both have ended, and tells what broke
// the session, or nil when both ended in order.
//
//	src ends      dst gets the end (FIN); the other direction runs on
//	src breaks    dst gets what was read, then a reset; all ends
//	dst breaks    what dst had sent is still brought to src, then src is reset
func (s *session) runStreams() {
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.pumpStream(s.from, s.to, &s.tx)
	}()
	s.pumpStream(s.to, s.from, &s.rx)
	<-done
}

// pumpStream runs one direction and passes its end on.
func (s *session) pumpStream(dst, src *leg, f *flow) {
	err := s.copyStream(dst, src, f)
	switch e, sink := err.(sinkError); {
	case err == io.EOF:
		s.halfClosed(f)
		dst.closeWrite()
	case sink:
		s.brokenSink(dst, e.error)
	default:
		s.brokenSource(dst, src, err)
	}
}

// brokenSource: what was read has been sent, so dst may have it before the reset.
func (s *session) brokenSource(dst, src *leg, err error) {
	s.because(s.legError(src, err))
	dst.settle(s.ctx)
	s.end(nil)
}

// brokenSink: dst takes no more, but its answer may wait to be read, as that of a
// server that refuses an upload. The other pump brings it to src and ends then;
// finish resets src afterwards.
func (s *session) brokenSink(dst *leg, err error) {
	s.because(s.legError(dst, err))
	dst.closeRead()
	s.endLater(lingerTime)
}

// copyStream moves bytes until src ends (io.EOF) or something breaks. It waits
// without a context, since the session's end closes both sockets, and a wait
// without one costs nothing.
func (s *session) copyStream(dst, src *leg, f *flow) error {
	for {
		b := streamBuffers.Get().(*buffer)
		err := s.drainStream(dst, src, f, b)
		streamBuffers.Put(b)
		if err != families.ErrAgain {
			return err
		}
		if err := src.sock.Wait(context.Background(), families.Readable); err != nil {
			return err
		}
	}
}

// drainStream copies until there is nothing more to read now (ErrAgain).
func (s *session) drainStream(dst, src *leg, f *flow, b *buffer) error {
	for {
		b.in.Data = b.room
		err := src.sock.Recv(&b.in)
		s.lost.add(causeFiles, discardFiles(&b.in))
		switch {
		case isAgain(err):
			return families.ErrAgain
		case err != nil && !errors.Is(err, families.ErrCut): // only its descriptors were cut
			return err
		}
		f.received(len(b.in.Data))
		s.touch()
		if err := s.sendStream(dst, b.in.Data, f, b); err != nil {
			return sinkError{err}
		}
	}
}

// sendStream sends all of data, waiting for dst as long as that takes: a peer
// that does not read stops the other one from sending, and nothing piles up here.
func (s *session) sendStream(dst *leg, data []byte, f *flow, b *buffer) error {
	for {
		b.out.Data = data
		n, err := dst.sock.Send(&b.out)
		f.outBytes.Add(int64(n))
		data = data[n:]
		switch {
		case len(data) == 0 && err == nil:
			f.outMessages.Add(1)
			return nil
		case err == nil:
			continue
		case !isAgain(err):
			f.lost(len(data))
			s.lost.add(causeUnsent, int64(len(data)))
			return err
		}
		f.waits.Store(true)
		err = dst.sock.Wait(context.Background(), families.Writable)
		f.waits.Store(false)
		if err != nil {
			f.lost(len(data))
			s.lost.add(causeUnsent, int64(len(data)))
			return err
		}
		s.touch()
	}
}
