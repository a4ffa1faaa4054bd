package relay

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/ksock"
)

// lingerTime bounds how long the answer of a far side that takes no more is still
// brought to the near one.
const lingerTime = 30 * time.Second

// session is a conversation of messages, or of anything else that is not a pair of
// bare descriptors: two legs, and goroutines that pump between them. Streams have
// stream.
type session struct {
	record

	// ctx ends with the session; it bounds the dialling and what waits on timers.
	ctx    context.Context
	cancel context.CancelFunc

	from   *leg
	client proxyHeader // what FROM's PROXY header said of the client
	peer   *peer       // whose session it is, on a FROM of datagrams; else nil

	// Guarded by record.mu.
	to     *leg // nil while it is dialled; then it stays (but see redial)
	idle   *time.Timer
	bounds []*time.Timer // on half-closed and broken directions: a few at most
}

func newSession(r *relay, p *plan, from *leg) *session {
	s := &session{from: from}
	s.init(r, p)
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

// attach gives the session its TO. It is false when the session has ended
// meanwhile; then the caller still owns the leg.
func (s *session) attach(to *leg) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return false
	}
	s.to, s.open = to, true
	return true
}

// run dials TO, pumps until the session is over, and closes what it owns.
func (s *session) run() {
	err := s.greet()
	if err == nil {
		err = s.dial()
	}
	if err != nil {
		var greeting *greetError
		if !errors.As(err, &greeting) && s.noBackend(err) {
			s.lost.add(causeDial, 1)
		}
		s.end(err)
		return
	}
	s.runDialled()
}

// greet reads the PROXY header in front of a client's first message.
func (s *session) greet() error {
	if s.plan.own.proxy == "" || s.from.shared {
		return nil
	}
	h, err := s.r.readHeader(s.ctx, s.plan, unframed(s.from.sock), s.from.text)
	if err != nil {
		return &greetError{err}
	}
	s.client = h
	if text := h.text(); text != "" {
		s.from.text = text
	}
	return nil
}

// greetError is the end of a client that did not say who it is.
type greetError struct{ error }

func (e *greetError) Unwrap() error { return e.error }

// announce tells a TO that was just dialled who the client is, where it wants to know.
func (s *session) announce(to *leg) error {
	if to.proxy == "" || to.kind == kindDgram {
		return nil // each datagram would have its own
	}
	peer := s.from.sock.NameAddr(s.from.peer)
	if !s.from.shared {
		peer = s.from.sock.Info().Peer
	}
	return to.sendHeader(s.ctx, proxyOf(to.proxy, s.client, unframed(s.from.sock), peer))
}

// readHeader receives the PROXY header in front of a client's first byte.
func (r *relay) readHeader(ctx context.Context, p *plan, from families.Socket, peer string) (proxyHeader, error) {
	ctx, cancel := withLimit(ctx, p.connectTimeout, "no PROXY header")
	defer cancel()
	h, err := acceptProxy(ctx, from)
	if err != nil {
		r.lost.add(causeInvalid, 1)
		return proxyHeader{}, fmt.Errorf("from %s: %w", describe(peer), err)
	}
	return h, nil
}

// sendHeader sends a PROXY header to a TO that was just dialled.
func (l *leg) sendHeader(ctx context.Context, h proxyHeader) error {
	if _, err := families.SendAll(ctx, unframed(l.sock), &families.Msg{Data: appendProxy(nil, h)}); err != nil {
		return fmt.Errorf("to %s: send the PROXY header: %w", describe(l.text), err)
	}
	return nil
}

// proxyOf is the header that a TO is told: what is in front of us said of the client,
// which knows better, or the client's connection.
func proxyOf(version string, client proxyHeader, from families.Socket, peer families.Addr) proxyHeader {
	n := uint8(2)
	if version == proxyV1 {
		n = 1
	}
	if client.text() != "" {
		client.version = n
		return client
	}
	i := from.Info()
	h := proxyBetween(n, families.Stream, peer, i.Local)
	if c, err := ksock.PeerCred(from); err == nil {
		h = h.withCreds(c)
	}
	return h
}

// unframed is the stream below messages with framing=, or s itself.
func unframed(s families.Socket) families.Socket {
	switch f := s.(type) {
	case *framedSocket:
		return f.Socket
	case *framedTCP:
		return f.framedSocket.Socket
	}
	return s
}

// noBackend tells whether a dial failed by itself, and not because the session was
// ended meanwhile. The relay says why.
func (s *session) noBackend(err error) bool {
	if s.isEnded() {
		return false
	}
	s.r.dialled(err)
	return true
}

// runDialled is run for a session that has its TO already.
func (s *session) runDialled() {
	s.watchIdle(s.plan.idleFor(s.from.kind))
	s.runMessages()
	s.finish()
}

// dial opens TO with the plan the relay has now.
func (s *session) dial() error {
	to, err := s.r.dialRetry(s.ctx, s.plan)
	if err != nil {
		return err
	}
	if err := s.announce(to); err != nil {
		to.abort()
		return err
	}
	s.r.dialled(nil)
	if !s.attach(to) {
		to.abort()
		return s.reason()
	}
	return nil
}

// redial gives a session another TO. Only the goroutine that dialled may call it,
// and only before anybody else sends.
func (s *session) redial() error {
	to, err := s.r.dial(s.ctx, s.plan)
	if err == nil {
		err = s.announce(to)
	}
	if err != nil {
		to.abort()
		return err
	}
	s.mu.Lock()
	if s.ended {
		s.mu.Unlock()
		to.abort()
		return s.reason()
	}
	old := s.to
	to.limit = old.limit
	s.to = to
	s.mu.Unlock()
	old.abort()
	s.lost.addInside(old)
	return nil
}

// finish closes the legs after the pumps have ended: in order, or with a reset
// after what was sent has arrived.
func (s *session) finish() {
	if s.reason() == nil {
		s.mu.Lock()
		s.ended = true
		s.mu.Unlock()
		s.stop()
		s.from.close()
		s.to.close()
		return
	}
	s.from.settle(s.ctx)
	s.to.settle(s.ctx)
	s.end(nil)
	s.to.abort() // waits for whoever closes it meanwhile: its counters are final then
}

// dialled is TO, or nil while there is none.
func (s *session) dialled() *leg {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.to
}

// end ends the session now, with resets; err says why, if nothing else did
// before. The pumps see closed sockets and return.
func (s *session) end(err error) {
	s.because(err)
	s.mu.Lock()
	if s.ended {
		s.mu.Unlock()
		return
	}
	s.ended = true
	to := s.to
	s.mu.Unlock()
	s.stop()
	s.from.abort()
	if to != nil {
		to.abort()
	}
}

// stop ends what waits on the session's context or timers.
func (s *session) stop() {
	s.cancel()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, t := range s.bounds {
		t.Stop()
	}
	if s.idle != nil {
		s.idle.Stop()
	}
}

// sinkError is a pump's error that came from where it sends to; all others came
// from where it receives.
type sinkError struct{ error }

func (e sinkError) Unwrap() error { return e.error }

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

// after calls f once d has passed, unless the session has ended.
func (s *session) after(d time.Duration, f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return
	}
	s.bounds = append(s.bounds, time.AfterFunc(d, f))
}

func (s *session) endLater(d time.Duration) {
	s.after(d, func() { s.end(errors.New("the other direction did not end")) })
}

// halfClosed notes that a direction has ended in order, and starts the bound on
// the other one.
func (s *session) halfClosed(f *flow) {
	both := s.directionDone(f)
	if d := s.plan.halfClose; d > 0 && !both {
		s.after(d, func() { s.end(fmt.Errorf("half-closed for %v", d)) })
	}
}

// watchIdle ends the session when nothing has moved for d. Where it is called
// again, the first time counts.
func (s *session) watchIdle(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if d <= 0 || s.ended || s.idle != nil {
		return
	}
	s.idle = time.AfterFunc(d, func() { s.checkIdle(d) })
}

// checkIdle looks how long it has been quiet, rather than starting a timer anew
// for each piece of data.
func (s *session) checkIdle(d time.Duration) {
	quiet := s.quiet()
	if quiet >= d {
		s.end(fmt.Errorf("idle for %v", d))
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.ended {
		s.idle.Reset(d - quiet)
	}
}

// legError says which side an error came from.
func (s *session) legError(l *leg, err error) error {
	side := "to"
	if l == s.from {
		side = "from"
	}
	return &legFault{fmt.Errorf("%s %s: %w", side, describe(l.text), err)}
}

// legFault is the end of a session that one of its sides broke.
type legFault struct{ error }

func (e *legFault) Unwrap() error { return e.error }

func describe(text string) string {
	if text == "" {
		return "unnamed"
	}
	return text
}

// parties are both ends, for lists.
func (s *session) parties() (peer, backend string) {
	if to := s.dialled(); to != nil {
		backend = to.text
	}
	return s.from.text, backend
}

func (s *session) path() string { return "copy" }

func (s *session) loop() *shard { return nil }

// measure is exact, for what is counted together is counted under the locks that are
// held here.
func (s *session) measure() (rx, tx books) {
	var waits amount
	if s.peer != nil {
		s.peer.mu.Lock()
		defer s.peer.mu.Unlock()
		waits = s.peer.waitsLocked()
	}
	return s.rx.audit(waits), s.tx.audit(amount{})
}

// kernelDrops is what the kernel dropped from TO's queue.
func (s *session) kernelDrops() uint64 {
	if to := s.dialled(); to != nil {
		return kernelDrops(to.sock)
	}
	return 0
}
