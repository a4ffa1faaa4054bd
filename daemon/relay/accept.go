package relay

import (
	"errors"
	"syscall"
	"time"

	"github.com/sockd/sockd/families"
)

// acceptor is a FROM that listens: each connection is a session.
type acceptor struct{ socket }

func (a *acceptor) endless() bool { return false }

// serve accepts while there is room: beyond the bound, clients wait in the
// listener's queue, and beyond that in their own connect.
func (a *acceptor) serve(r *relay) error {
	l, err := families.As[families.Listener](a.sock)
	if err != nil {
		return err
	}
	pause := soonestRetry
	for {
		if err := a.waitRoom(r); err != nil {
			return err
		}
		c, err := l.Accept()
		if err == nil {
			pause = soonestRetry
			a.begin(r, c)
			if r.single {
				return a.only(r)
			}
			continue
		}
		r.unclaim()
		switch {
		case isAgain(err):
			err = a.idle(r)
		case outOfDescriptors(err):
			r.lost.add(causeDescriptors, 1)
			r.setState(stateWaiting, err.Error())
			err = a.backOff(r, &pause)
		case passing(err):
			err = nil
		}
		if err != nil {
			return err
		}
	}
}

// How soon and how late accept is tried again when no descriptor was free.
const (
	soonestRetry = 5 * time.Millisecond
	latestRetry  = time.Second
)

// only stops listening after the one session that TO has room for. The relay drains
// from here on, under its name.
func (a *acceptor) only(r *relay) error {
	a.close()
	r.stopFront()
	return r.ctx.Err()
}

// begin makes a session of a connection.
func (a *acceptor) begin(r *relay, c families.Socket) {
	s := newSession(r, r.holdPlan(), newLeg(c, a.kind))
	r.begin(s, s.run)
}

// waitRoom claims room for a session, however long that takes.
func (a *acceptor) waitRoom(r *relay) error {
	for !r.claim() {
		r.setState(stateWaiting, "it has as many sessions as --max-conns allows")
		select {
		case <-r.room:
		case <-r.ctx.Done():
			return r.ctx.Err()
		}
	}
	return nil
}

// idle waits for a client.
func (a *acceptor) idle(r *relay) error {
	r.setState(stateListening, "")
	return a.sock.Wait(r.ctx, families.Readable)
}

// backOff waits until a descriptor may be free: a session's end, or some time.
// Until then the connection stays in the queue, where poll would find it again
// and again.
func (a *acceptor) backOff(r *relay, pause *time.Duration) error {
	t := time.NewTimer(*pause)
	defer t.Stop()
	*pause = min(2**pause, latestRetry)
	select {
	case <-t.C:
		return nil
	case <-r.room:
		return nil
	case <-r.ctx.Done():
		return r.ctx.Err()
	}
}

func outOfDescriptors(err error) bool {
	return errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) || errors.Is(err, syscall.ENOBUFS) || errors.Is(err, syscall.ENOMEM)
}

// passing tells whether an error of accept is about a connection that died in the
// queue: Linux hands its network errors to accept (accept(2)).
func passing(err error) bool {
	for _, e := range []syscall.Errno{
		syscall.ECONNABORTED, syscall.EPERM, syscall.EPROTO, syscall.ENETDOWN, syscall.ENOPROTOOPT, syscall.EHOSTDOWN,
		syscall.ENONET, syscall.EHOSTUNREACH, syscall.EOPNOTSUPP, syscall.ENETUNREACH, syscall.ECONNRESET, syscall.ETIMEDOUT,
	} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// once is a FROM that is one connection already, or one interface: there is one
// session, which begins as soon as TO can be dialled. See cable for an interface that
// may come back.
type once struct {
	socket
	leg *leg // until the session has it
	to  *leg // dialled already, or nil
}

func (o *once) endless() bool { return o.socket.kind.endless() }

// serve dials until there is a session, then waits for the relay's end.
func (o *once) serve(r *relay) error {
	p := r.holdPlan()
	to, err := o.dial(r, p)
	if err != nil {
		p.release()
		return err
	}
	o.begin(r, p, to)
	if o.kind == kindPacket {
		r.works()
	} else {
		r.setState(stateDraining, "") // nobody else can come
	}
	<-r.ctx.Done()
	return r.ctx.Err()
}

// begin makes the session of FROM and a TO that was dialled, which takes over the
// hold on p. done closes when its pumps have ended.
func (o *once) begin(r *relay, p *plan, to *leg) (s *session, done <-chan struct{}) {
	r.mu.Lock()
	r.busy++
	r.mu.Unlock()
	s = newSession(r, p, o.leg)
	o.handed()
	s.attach(to)
	over := make(chan struct{})
	r.begin(s, func() {
		defer close(over)
		s.runDialled()
	})
	return s, over
}

// dial tries again and again: the backend may start after the relay.
func (o *once) dial(r *relay, p *plan) (*leg, error) {
	if to := o.to; to != nil {
		o.to = nil
		return to, nil
	}
	for pause := soonestRedial; ; pause = min(2*pause, latestRedial) {
		to, err := r.dial(r.ctx, p)
		if err == nil {
			return to, nil
		}
		if r.ctx.Err() != nil {
			return nil, r.ctx.Err()
		}
		r.lost.add(causeDial, 1)
		r.waits(err)
		if !rest(r.ctx, pause) {
			return nil, r.ctx.Err()
		}
	}
}

// close lets go of what no session has taken.
func (o *once) close() {
	if o.to != nil {
		o.to.abort()
	}
	o.socket.close()
}
