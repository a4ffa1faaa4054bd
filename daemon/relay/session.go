package relay

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sockd/sockd/families/model"
)

// lingerTime bounds how long the answer of a far side that takes no more is still
// brought to the near one.
const lingerTime = 30 * time.Second

// session is one conversation: two legs, and the pumps between them.
//
//	connecting ──dialled──► open ──one end──► half-closed-* ──the other──► gone
//	     └──────────── an error, a bound or a caller ends it ────────────► gone
type session struct {
	r     *relay
	id    model.ID
	since time.Time
	plan  *plan // how it was dialled; its bounds hold for its whole life

	// ctx ends with the session; it bounds the dialling and what waits on timers.
	ctx    context.Context
	cancel context.CancelFunc

	from   *leg
	rx, tx flow // from FROM towards TO, and back
	lost   losses

	slot   sync.Once    // gives back the relay's room for it
	active atomic.Int64 // when bytes last moved, nanoseconds since the engine's start

	mu       sync.Mutex // guards what follows
	to       *leg       // nil while it is dialled; then it stays (but see redial)
	fromDone bool       // FROM has ended
	toDone   bool       // TO has ended
	ended    bool       // end was called: the legs are closed
	cause    error      // why it ends, when not in order
	idle     *time.Timer
	bounds   []*time.Timer // on half-closed and broken directions: a few at most
}

func newSession(r *relay, p *plan, from *leg) *session {
	s := &session{r: r, id: r.eng.opts.Host.NewID(), since: time.Now(), plan: p, from: from}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.touch()
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
	s.to = to
	return true
}

// run dials TO, pumps until the session is over, and closes what it owns.
func (s *session) run() {
	if err := s.dial(); err != nil {
		if s.noBackend(err) {
			s.lost.add(causeDial, 1)
		}
		s.end(err)
		return
	}
	s.runDialled()
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
	s.pump()
	s.finish()
}

// dial opens TO with the plan the relay has now.
func (s *session) dial() error {
	to, err := s.r.dial(s.ctx, s.plan)
	if err != nil {
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
	if err != nil {
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
	return nil
}

func (s *session) pump() {
	if s.from.kind == kindStream {
		s.runStreams()
		return
	}
	s.runMessages()
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

// because notes why the session ends. The first reason is the one that counts.
func (s *session) because(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cause == nil {
		s.cause = err
	}
}

func (s *session) isEnded() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ended
}

func (s *session) reason() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cause
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
	s.mu.Lock()
	if f == &s.rx {
		s.fromDone = true
	} else {
		s.toDone = true
	}
	both := s.fromDone && s.toDone
	s.mu.Unlock()
	if d := s.plan.halfClose; d > 0 && !both {
		s.after(d, func() { s.end(fmt.Errorf("half-closed for %v", d)) })
	}
}

// touch notes that bytes moved.
func (s *session) touch() { s.active.Store(int64(time.Since(epoch))) }

// epoch is where touch counts from: only differences matter.
var epoch = time.Now()

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
	quiet := time.Since(epoch) - time.Duration(s.active.Load())
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

// model is the session as lists show it.
func (s *session) model() model.Session {
	draining := s.r.isDraining()
	s.mu.Lock()
	state := s.stateLocked(draining)
	backend := ""
	if s.to != nil {
		backend = s.to.text
	}
	s.mu.Unlock()
	return model.Session{
		ID: s.id, Relay: s.r.id, Peer: s.from.text, Backend: backend, State: state, Since: s.since,
		RxBytes: s.rx.outBytes.Load(), TxBytes: s.tx.outBytes.Load(),
		Path: "copy", LimitedBy: s.limitedBy(),
	}
}

func (s *session) stateLocked(draining bool) string {
	switch {
	case s.to == nil:
		return "connecting"
	case s.fromDone:
		return "half-closed-from"
	case s.toDone:
		return "half-closed-to"
	case draining:
		return "draining"
	}
	return "open"
}

// limitedBy names the side that a pump waits for now.
func (s *session) limitedBy() string {
	switch {
	case s.rx.waits.Load():
		return "to"
	case s.tx.waits.Load():
		return "from"
	}
	return ""
}
