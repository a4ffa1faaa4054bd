package relay

import (
	"errors"
	"syscall"
	"time"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/ksock"
)

// acceptor is a FROM that listens: each connection is a session. Where the listening
// description is the daemon's alone, a shard accepts by itself (see door);
// else a goroutine does.
type acceptor struct {
	socket
	door *door // nil: a goroutine accepts
}

// newAcceptor makes FROM of a listening socket. plain tells that its connections are
// streams as they are, and more than one.
func newAcceptor(e *Engine, s socket, plain bool) (*acceptor, error) {
	a := &acceptor{socket: s}
	// A unix path is removed by its socket's Close, so that socket stays.
	if !plain || s.kind != kindStream || s.adopted || s.id != 0 || s.sock.Info().Family == "local" {
		return a, nil
	}
	d, err := newDoor(e, s.sock)
	if errors.Is(err, families.ErrNotSupported) {
		return a, nil // a socket that is no descriptor
	}
	if err != nil {
		return nil, err
	}
	a.door = d
	return a, nil
}

func (a *acceptor) endless() bool { return false }

// close lets go of the listener.
func (a *acceptor) close() {
	if a.door == nil {
		a.socket.close()
		return
	}
	if a.released.Swap(true) {
		return
	}
	if a.name == "" || !a.giveBack() {
		a.door.fd.Close()
	}
}

// giveBack returns systemd's listener.
func (a *acceptor) giveBack() bool {
	s, err := a.door.refit()
	if err != nil {
		return false
	}
	a.host.GiveBack(a.name, s)
	return true
}

// relisten changes the length of the queue.
func (a *acceptor) relisten(backlog int) error {
	if a.door != nil {
		return a.door.fd.Listen(backlog)
	}
	l, err := families.As[families.Listener](a.sock)
	if err != nil {
		return err
	}
	return l.Listen(backlog)
}

// serve accepts while there is room: beyond the bound, clients wait in the
// listener's queue, and beyond that in their own connect.
func (a *acceptor) serve(r *relay) error {
	if a.door != nil {
		return a.door.serve(r)
	}
	l, err := families.As[families.Listener](a.sock)
	if err != nil {
		return err
	}
	pause := soonestRetry
	for {
		if err := r.awaitClaim(); err != nil {
			return err
		}
		c, spare, err := acceptWithSpare(l)
		if err == nil {
			pause = soonestRetry
			a.begin(r, c, spare)
			if r.single {
				return a.only(r)
			}
			continue
		}
		r.unclaim()
		switch {
		case isAgain(err):
			r.setState(stateListening, "")
			err = a.sock.Wait(r.ctx, families.Readable)
		case outOfDescriptors(err):
			err = r.backOff(err, &pause)
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
func (a *acceptor) begin(r *relay, c families.Socket, spare spare) {
	p := r.holdPlan()
	if a.kind != kindStream || p.own.framing != "" {
		spare.drop() // its dial waits where it must
	}
	switch {
	case (a.kind != kindStream || p.own.framing != "") && !r.lets(p, c):
		p.release()
		r.lost.add(causeDenied, 1)
		newLeg(c, a.kind).abort()
		r.unclaim()
	case a.kind != kindStream:
		s := newSession(r, p, newLeg(c, a.kind))
		r.begin(s, s.run)
	case p.own.framing != "":
		s := newSession(r, p, framedLeg(c, p.own.framing, c.Info().Family == "local"))
		r.begin(s, s.run)
	default:
		r.beginStream(p, c, spare)
	}
}

// beginStream makes a stream of a connection that was accepted.
func (r *relay) beginStream(p *plan, c families.Socket, spare spare) {
	s := newStream(r, p, r.eng.pick())
	s.spare = spare
	if d, err := families.As[families.Descriptor](c); err == nil && len(p.allow) == 0 {
		_ = d.Control(s.parkEarly) // it is tried again where there is something to do about it
	}
	s.peerText = newLeg(c, kindStream).text
	if p.fast() && p.own.proxy == "" && len(p.allow) == 0 {
		local := c.Info().Family == "local"
		if fd, err := ksock.Detach(c); err == nil {
			r.enter(s)
			s.sh.do(func() { s.beginFast(fd, local) })
			return
		}
	}
	(&prologue{s: s, from: c, own: true}).begin()
}

// backOff waits until a descriptor may be free: a session's end, or some time.
// Until then the connection stays in the queue, where poll would find it again
// and again.
func (r *relay) backOff(trouble error, pause *time.Duration) error {
	r.lost.add(causeDescriptors, 1)
	r.setState(stateWaiting, trouble.Error())
	r.eng.spareDescriptors()
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
	switch o.leg.kind { // a framed stream has a leg of messages
	case kindPacket:
		o.begin(r, p, to)
		r.works()
	case kindStream:
		o.beginStream(r, p, to)
		r.setState(stateDraining, "") // nobody else can come
	default:
		o.begin(r, p, to)
		r.setState(stateDraining, "")
	}
	<-r.ctx.Done()
	return r.ctx.Err()
}

// begin makes the session of FROM and a TO that was dialled, which takes over the
// hold on p. done closes when its pumps have ended.
func (o *once) begin(r *relay, p *plan, to *leg) (s *session, done <-chan struct{}) {
	r.claimAnyway()
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

// beginStream is begin for a connected stream.
func (o *once) beginStream(r *relay, p *plan, to *leg) {
	r.claimAnyway()
	s := newStream(r, p, r.eng.pick())
	s.peerText = o.leg.text
	o.handed()
	(&prologue{s: s, from: o.leg.sock, known: true, to: to}).begin()
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
