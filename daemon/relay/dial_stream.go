package relay

import (
	"cmp"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/ksock"
)

// fastTarget is a TO that a shard can dial by itself: an address of TCP that stands
// there literally, without options.
type fastTarget struct {
	name   families.Name
	domain int
	text   string // for lists
}

// fastTargetOf is how a shard dials a backend, or nil where a goroutine must.
func (e *Engine) fastTargetOf(b *backend) *fastTarget {
	if b.kind != kindStream || len(b.end.Options) > 0 || b.own.framing != "" || b.own.proxy != "" || b.own.src.IsValid() {
		return nil
	}
	targets, err := e.resolveLiteral(b.end)
	if err != nil || len(targets) != 1 || targets[0].Addr == nil || len(targets[0].Spec.Options) > 0 {
		return nil
	}
	t := targets[0]
	_, plain := t.Family.(families.Plain)
	if scope := t.Addr.Scope(); !plain || !scope.Prefix.IsValid() || t.Spec.Type != families.Stream {
		return nil
	}
	name := t.Addr.Sockaddr()
	return &fastTarget{name: name, domain: ksock.Domain(&name), text: textOf(b.end.Network, t.Addr, b.text)}
}

// fast tells whether a shard can dial every backend of the plan.
func (p *plan) fast() bool {
	for _, b := range p.backends {
		if b.fast == nil {
			return false
		}
	}
	return true
}

// dialling is a stream's search for a backend, on its shard.
type dialling struct {
	left  []*backend    // to be tried in this round
	b     *backend      // under way, or nil
	err   error         // of the last one that failed
	until time.Duration // when retry= ends, since epoch
	pause time.Duration // before the next round
}

// beginFast dials for a registered session, and owns its client. Its shard calls it.
func (s *stream) beginFast(client ksock.FD, local bool) {
	s.dial = &dialling{pause: soonestRedial}
	if s.over { // ended meanwhile
		s.dropClient(joining{fd: client, local: local})
		return
	}
	if err := s.from.join(client, local, true); err != nil {
		s.dropClient(joining{fd: client, local: local})
		s.abort(err)
		return
	}
	if err := s.parkClient(int(client)); err != nil {
		s.abort(err)
		return
	}
	s.from.parked = s.dur != nil
	s.dialRound()
}

// dialRound tries each backend in the plan's order.
func (s *stream) dialRound() {
	s.dial.left = s.plan.order()
	s.dialNext()
}

func (s *stream) dialNext() {
	d := s.dial
	for len(d.left) > 0 {
		d.b, d.left = d.left[0], d.left[1:]
		err := s.tryDial(d.b)
		if err == nil {
			return
		}
		s.dialFailed(err)
	}
	s.dialOver()
}

// tryDial begins one connection. What is left to do is an event.
func (s *stream) tryDial(b *backend) error {
	b.busy.enter() // from here on, so that "least" sees dials under way
	fd, err := s.spare.take(b.fast.domain)
	if err != nil {
		return err
	}
	fd.Tune(ksock.RelayedTCP)
	if err := fd.Connect(&b.fast.name); err != nil && !ksock.IsUnderWay(err) {
		fd.Close()
		return err
	}
	if err := s.to.join(fd, false, true); err != nil {
		fd.Close()
		return err
	}
	if d := s.plan.connectTimeout; d > 0 {
		s.bound = s.sh.after(d, func() { s.dialLate(d) })
	}
	return s.eager()
}

// eager passes on what the client has said already. Where the backend is near, the
// connection stands by now, although connect did not say so, and a turn is saved. If it
// does not, the bytes stay in hand.
func (s *stream) eager() error {
	if s.dur != nil {
		return s.eagerKept()
	}
	if s.up.inHand() == 0 {
		if err := s.up.first(s); err != nil {
			s.abort(s.sideError(&s.from, err))
			return nil
		}
	}
	if s.up.inHand() == 0 || s.up.urgent {
		return nil
	}
	n, err := s.to.fd.Send(s.up.held[s.up.off:])
	switch {
	case ksock.IsEAGAIN(err), err == syscall.ENOTCONN:
		return nil
	case err != nil:
		return err
	}
	s.up.flow.outBytes.Add(int64(n))
	if s.up.off += n; s.up.off == len(s.up.held) {
		s.up.drop()
	}
	s.moved, s.to.writable = true, true
	s.dialDone()
	return nil
}

// eagerKept is eager for a durable stream, which takes nothing into hand: it asks
// whether the connection stands.
func (s *stream) eagerKept() error {
	switch err := s.to.fd.Connect(&s.dial.b.fast.name); {
	case ksock.IsUnderWay(err):
		return nil
	case err != nil && err != syscall.EISCONN:
		return err
	}
	s.to.writable = true
	s.dialDone()
	return nil
}

// dialEvent is an event while the session is dialled. An error that the kernel has
// told elsewhere is the usual one.
func (s *stream) dialEvent(e *end, ev ksock.Events) {
	switch {
	case e == &s.from && ev.Failed():
		s.abort(s.sideError(e, cmp.Or(e.fd.Err(), error(syscall.ECONNRESET))))
	case e == &s.from: // it waits
	case ev.Failed():
		s.redial(cmp.Or(e.fd.Err(), error(syscall.ECONNREFUSED)))
	case ev.Writable():
		s.dialDone()
	}
}

// dialLate gives a connection up that takes too long.
func (s *stream) dialLate(d time.Duration) { s.redial(errTimedOut(d)) }

// redial goes on with the next backend.
func (s *stream) redial(err error) {
	s.dialFailed(err)
	s.dialNext()
}

// dialFailed notes why a backend could not be reached, and lets go of the attempt.
func (s *stream) dialFailed(err error) {
	d := s.dial
	s.bound.stop() // the attempt's: the next one has its own
	if !outOfDescriptors(err) {
		d.b.away()
	}
	d.err = &DialError{To: d.b.text, Next: dialHint(d.b, err), Err: s.dialOpError(d.b, err)}
	s.stopDial(ksock.FD.Close)
}

// dialOpError is an error with the words of a socket's own.
func (s *stream) dialOpError(b *backend, err error) error {
	if _, ok := errors.AsType[syscall.Errno](err); !ok || errors.Is(err, syscall.ETIMEDOUT) && err != syscall.ETIMEDOUT {
		return err
	}
	return &families.OpError{Op: "connect", Family: b.family(), Addr: b.end.Address, Err: err}
}

// stopDial lets go of an attempt under way, as how says, with a reset where it is nil:
// the connection may stand without our knowing.
func (s *stream) stopDial(how func(ksock.FD)) {
	if s.dial == nil || s.dial.b == nil {
		return
	}
	s.dial.b.busy.leave()
	s.dial.b = nil
	s.to.leave(how)
}

// dialDone begins the session proper.
func (s *stream) dialDone() {
	b := s.dial.b
	b.back()
	s.dial, s.load = nil, b.busy
	s.keepAlive()
	s.opened(b.fast.text)
}

// keepAliveAfter is when a session that was dialled here has its TO watched over: most
// connections are over by then, and are spared the calls.
const keepAliveAfter = 10 * time.Second

// keepAlive makes the alarm of the dial that of the keepalive.
func (s *stream) keepAlive() {
	if s.bound == nil {
		s.to.fd.Tune(ksock.KeptAlive)
		return
	}
	s.kept = false
	s.bound.f = s.keep
	s.bound.reset(keepAliveAfter)
}

// keep turns the keepalive on, if it is not yet. Whoever takes the alarm for something
// else calls it first.
func (s *stream) keep() {
	if !s.kept && s.to.fd != ksock.NoDescriptor {
		s.kept = true
		s.to.fd.Tune(ksock.KeptAlive)
	}
}

// opened is when both sides are there.
func (s *stream) opened(backend string) {
	if err := s.parkWhole(); err != nil {
		s.abort(err)
		return
	}
	s.mu.Lock()
	s.open, s.toText = true, backend
	s.mu.Unlock()
	s.r.dialled(nil)
	s.watchIdle()
	s.run()
}

// dialOver is when no backend could be reached: retry= may allow another round.
func (s *stream) dialOver() {
	d := s.dial
	if d.until == 0 {
		d.until = s.sh.now() + s.plan.retry()
	}
	if s.sh.now()+d.pause > d.until {
		s.lost.add(causeDial, 1)
		s.r.dialled(d.err)
		s.abort(d.err)
		return
	}
	s.bound = s.sh.after(d.pause, s.dialRound)
	d.pause = min(2*d.pause, latestRedial)
}

// retry is how long a session without a backend looks for one: the longest that a TO
// allows.
func (p *plan) retry() time.Duration {
	var d time.Duration
	for _, b := range p.backends {
		d = max(d, b.own.retry)
	}
	return d
}

// A backend that could not be reached is tried after the others for a while, which
// doubles with each failure.
const (
	shortestAway = 100 * time.Millisecond
	longestAway  = 5 * time.Second
)

// away notes a failed dial.
func (b *backend) away() {
	pause := min(max(2*time.Duration(b.awayFor.Load()), shortestAway), longestAway)
	b.awayFor.Store(int64(pause))
	b.awayUntil.Store(int64(time.Since(epoch) + pause))
}

// back notes one that stood.
func (b *backend) back() {
	if b.awayFor.Load() != 0 {
		b.awayFor.Store(0)
		b.awayUntil.Store(0)
	}
}

func (b *backend) isAway() bool { return b.awayUntil.Load() > int64(time.Since(epoch)) }

// family is the word of a backend's family.
func (b *backend) family() string {
	switch b.fast.domain {
	case syscall.AF_INET:
		return "inet"
	case syscall.AF_INET6:
		return "inet6"
	}
	return fmt.Sprintf("family %d", b.fast.domain)
}
