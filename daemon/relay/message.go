package relay

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"syscall"
	"time"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/ksock"
)

// runMessages pumps messages both ways between two sockets of the session's own.
func (s *session) runMessages() {
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.pumpMessages(s.from, s.to, &s.tx)
	}()
	s.pumpMessages(s.to, s.from, &s.rx)
	<-done
}

// pumpMessages runs one direction and passes its end on. An end towards a socket
// that cannot be told of one (udp, unixgram, packet) leaves the other direction
// open for answers, for as long as a datagram session may be idle.
func (s *session) pumpMessages(dst, src *leg, f *flow) {
	err := s.copyMessages(dst, src, f)
	switch e, sink := err.(sinkError); {
	case err == io.EOF:
		s.halfClosed(f)
		dst.closeWrite()
		if dst.kind.endless() {
			s.watchIdle(s.plan.idleFor(dst.kind))
		}
	case sink:
		s.brokenSink(dst, e.error)
		if dst.kind.endless() {
			s.end(nil) // nothing is queued behind an error there
		}
	default:
		s.brokenSource(dst, src, err)
	}
}

// copyMessages is copyStream for messages.
func (s *session) copyMessages(dst, src *leg, f *flow) error {
	for {
		b := messageBuffers.Get().(*buffer)
		err := s.drainMessages(dst, src, f, b)
		messageBuffers.Put(b)
		if err != families.ErrAgain {
			return err
		}
		if err := src.sock.Wait(context.Background(), families.Readable); err != nil {
			return err
		}
	}
}

// drainMessages passes messages on until there is none to receive now (ErrAgain).
func (s *session) drainMessages(dst, src *leg, f *flow, b *buffer) error {
	for {
		frame, err := s.receive(src, f, b)
		switch {
		case err != nil:
			s.lost.add(causeFiles, discardFiles(&b.in))
			return err
		case frame == nil:
			continue
		}
		err = s.forward(dst, src, frame, f, b)
		s.lost.add(causeFiles, discardFiles(&b.in)) // those that did not go on
		if err != nil {
			return sinkError{err}
		}
	}
}

// frame is one message in a buffer: room for a virtio_net_hdr, then the message.
type frame []byte

func (fr frame) payload() []byte { return fr[vnetLen:] }

// receive takes one message. A nil frame without an error is a message that was
// lost, or an error that passes.
func (s *session) receive(src *leg, f *flow, b *buffer) (frame, error) {
	fr, n, err := src.receive(b)
	if err == nil {
		f.take(n)
		s.touch()
		return fr, s.paceMessage(f, n)
	}
	switch {
	case isAgain(err):
		return nil, families.ErrAgain
	case errors.Is(err, families.ErrCut):
		s.lost.add(causeFiles, discardFiles(&b.in))
		f.take(n)
		s.lose(f, n, causeCut)
		return nil, nil
	case errors.Is(err, io.EOF):
		return nil, io.EOF
	case s.tore(f, err):
		return nil, err
	case src.passes(err):
		s.lost.add(noted(err), 1)
		if errors.Is(err, syscall.ENETDOWN) {
			s.r.notice()
		}
		return nil, nil
	}
	return nil, src.explain(err)
}

// paceMessage holds a message until the relay's rate lets it pass: those behind it
// wait in the kernel. A session that ends meanwhile loses it.
func (s *session) paceMessage(f *flow, n int) error {
	wait := s.r.paceOf(s, f).spend(n)
	if wait == 0 {
		return nil
	}
	f.paced.Store(true)
	defer f.paced.Store(false)
	if rest(s.ctx, wait) {
		return nil
	}
	s.lose(f, n, causeEnded)
	return net.ErrClosed
}

// tore counts what has come of a frame that never will be whole.
func (s *session) tore(f *flow, err error) bool {
	torn, ok := err.(*tornError)
	if ok {
		f.take(torn.got)
		s.lose(f, torn.got, causeTorn)
	}
	return ok
}

// receive is one attempt: the message with the header's room before it, and its
// full length, which is more than what is there when it was cut.
func (l *leg) receive(b *buffer) (frame, int, error) {
	if l.frames != nil {
		return l.receiveFrame(b)
	}
	room := b.room[vlanLen:]
	b.in.Data = room[vnetLen:]
	b.in.Flags = 0
	err := l.sock.Recv(&b.in)
	return room[:vnetLen+len(b.in.Data)], b.in.Full, err
}

// attachFiles gives the message that b sends the descriptors that came with it, where
// the relay passes them on and dst can carry them. Credentials cannot go along: to
// say that somebody else sent a message takes capabilities (unix(7),
// SCM_CREDENTIALS), so the far side sees sockd's.
func (s *session) attachFiles(dst *leg, b *buffer) {
	b.out.Files = nil
	if s.plan.pass && len(b.in.Files) > 0 && dst.carriesFiles() {
		b.out.Files = b.in.Files
	}
}

// passedOn closes descriptors that went on with a message: the far side has its
// own by now.
func (b *buffer) passedOn() {
	if len(b.out.Files) > 0 {
		ksock.CloseFiles(b.in.Files)
		b.in.Files, b.out.Files = nil, nil
	}
}

// carriesFiles tells whether descriptors can be sent on a leg with a message: on a
// unix socket that is one. What looks like a message of a framed stream or of a
// fanout is none to the kernel.
func (l *leg) carriesFiles() bool {
	_, err := families.As[families.Descriptor](l.sock)
	return err == nil && l.local && (l.kind == kindDgram || l.kind == kindSeqpacket)
}

// discardFiles closes descriptors that came with a message and did not go on with
// one, and tells how many.
func discardFiles(m *families.Msg) int64 {
	n := len(m.Files)
	if n > 0 {
		ksock.CloseFiles(m.Files)
		m.Files = nil
	}
	return int64(n)
}

// passes tells whether an error of receiving concerns one message, and the next
// may come. ICMP errors are told on the socket that they belong to: a UDP backend
// that is not up now may be later. EINVAL from a packet socket is a frame whose
// offload no virtio_net_hdr can say.
func (l *leg) passes(err error) bool {
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		return false
	}
	switch l.kind {
	case kindDgram:
		return !l.local && errno != syscall.EBADF && errno != syscall.ENOTSOCK && errno != syscall.ENOTCONN
	case kindPacket:
		return errno == syscall.EINVAL || errno == syscall.ENOBUFS || errno == syscall.ENETDOWN && l.hasInterface()
	}
	return false
}

// noted is the cause that an error which passes is counted by. The message that
// an ICMP error is about was sent, and is counted so.
func noted(err error) cause {
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return causeRefused
	case errors.Is(err, syscall.EINVAL):
		return causeInvalid
	case errors.Is(err, syscall.EMSGSIZE):
		return causeTooBig
	}
	return causeUnreachable
}

// hasInterface tells whether a packet leg's interface still exists: one that is
// down may come up again, one that was deleted has left nothing but a number.
func (l *leg) hasInterface() bool {
	local := l.sock.Info().Local
	return local != nil && !strings.HasPrefix(local.Scope().Interface, "#")
}

// forward sends one message of src's on to dst, in the form that dst speaks. The
// error is dst's, when it will take nothing any more.
//
//	packet → packet         frame and virtio_net_hdr as they are
//	packet → messages       checksums completed, GSO frames cut into segments
//	messages → packet       an empty virtio_net_hdr in front
//	messages → messages     as they are
func (s *session) forward(dst, src *leg, fr frame, f *flow, b *buffer) error {
	n := len(fr.payload())
	if dst.mute {
		s.lose(f, n, causeNoAddress)
		return nil
	}
	if !src.vnet || dst.vnet {
		return s.account(f, n, s.sendOne(dst, wire(dst, src, fr), f, b))
	}
	b.cutter.reset(fr)
	for {
		seg, err := b.cutter.next()
		switch {
		case err == io.EOF:
			f.pass(n)
			return nil
		case err != nil:
			s.lose(f, n, causeInvalid)
			return nil
		}
		if o := s.sendOne(dst, seg, f, b); o.fate != sent {
			return s.account(f, n, o)
		}
	}
}

// wire is the form in which a frame goes out when it need not be cut.
func wire(dst, src *leg, fr frame) []byte {
	if !dst.vnet {
		return fr.payload()
	}
	if !src.vnet {
		clear(fr[:vnetLen])
	}
	return fr
}

// outcome is what became of a message.
type outcome struct {
	fate  fate
	cause cause // why it was not sent
	err   error // of a broken leg
}

// account counts a message of n bytes by its outcome. The error is that of a leg
// that will take nothing any more.
func (s *session) account(f *flow, n int, o outcome) error {
	switch o.fate {
	case sent:
		f.pass(n)
		return nil
	case dropped:
		s.lose(f, n, o.cause)
		return nil
	}
	s.lose(f, n, causeEnded)
	return o.err
}

// patience with a far side whose queue is full.
const (
	// briefly is how long the one reader of a shared FROM waits for a backend, for
	// it keeps all other clients waiting meanwhile.
	briefly = 100 * time.Millisecond
	// replyTime is how long an answer waits for a client that does not read.
	replyTime = time.Second
)

// sendOne sends one message. Between two sockets of a session it waits as long as
// it takes, so that a slow reader slows its sender down and nothing is lost. On a
// shared socket it waits a bounded time, since others wait behind it.
func (s *session) sendOne(dst *leg, data []byte, f *flow, b *buffer) outcome {
	b.out.Data, b.out.Peer, b.out.Flags = data, dst.peer, 0
	s.attachFiles(dst, b)
	dst.giveUp = time.Time{}
	retried := false
	for {
		_, err := dst.sock.Send(&b.out)
		switch {
		case err == nil:
			dst.stalled = false
			b.passedOn()
			s.touch()
			return outcome{fate: sent}
		case isAgain(err):
			if !s.waitWritable(dst, f) {
				return s.unsendable()
			}
		case errors.Is(err, syscall.ECONNREFUSED) && !dst.local && !retried:
			retried = true // it was about an earlier datagram: this one was not tried
			s.lost.add(causeRefused, 1)
		default:
			if dst.kind == kindPacket && errors.Is(err, syscall.ENETDOWN) {
				s.r.notice()
			}
			return dst.failedSend(err)
		}
	}
}

// waitWritable waits for room as long as dst is worth; false means no room.
func (s *session) waitWritable(dst *leg, f *flow) bool {
	if dst.stalled {
		return false // it took nothing for its whole time, so it is not waited for again
	}
	f.waits.Store(true)
	defer f.waits.Store(false)
	if dst.limit == 0 {
		return dst.sock.Wait(context.Background(), families.Writable) == nil
	}
	ctx, cancel := context.WithDeadline(s.ctx, dst.deadline())
	defer cancel()
	if dst.sock.Wait(ctx, families.Writable) == nil {
		return true
	}
	dst.stalled = true
	return false
}

// deadline is when the wait for the message in hand ends.
func (l *leg) deadline() time.Time {
	if l.giveUp.IsZero() {
		l.giveUp = time.Now().Add(l.limit)
	}
	return l.giveUp
}

// unsendable is a message that there was no room for.
func (s *session) unsendable() outcome {
	if s.ctx.Err() != nil {
		return outcome{fate: broken, err: net.ErrClosed}
	}
	return outcome{fate: dropped, cause: causeFull}
}
