package relay

import (
	"errors"
	"fmt"
	"sync"
	"syscall"
	"time"

	"github.com/sockd/sockd/families/ksock"
)

// cable is a FROM that is an interface, opened by its name. It lasts: an interface
// that is deleted, or a backend that ends, ends the one session, and the next one
// begins when both ends can be had again.
//
//	open FROM ──► dial TO ──► session ──► its end
//	    ▲                                   │
//	    └────────────── pause ◄─────────────┘
type cable struct {
	names []string // what FROM is bound to, while it is there

	mu   sync.Mutex // guards what follows
	end  *once      // FROM of this round; nil between rounds
	past uint64     // what the kernel dropped from FROM's queue in earlier rounds
}

// How soon and how late a cable's ends are looked for again. The first wait is
// shorter than an interface that is made anew takes to come up; the last is what
// somebody who has plugged a cable in does not notice, and costs two or three
// system calls.
const (
	soonestRedial = 50 * time.Millisecond
	latestRedial  = 2 * time.Second
)

// recheckDown is how often an interface that is down is looked at: the kernel
// tells a packet socket when one goes down, but not when it comes up or is
// deleted after that (net/packet/af_packet.c, packet_notifier).
const recheckDown = 500 * time.Millisecond

func newCable(o *once) *cable { return &cable{names: o.names, end: o} }

func (c *cable) local() []string { return c.names }
func (c *cable) endless() bool   { return true }

func (c *cable) drops() uint64 {
	c.mu.Lock()
	o, n := c.end, c.past
	c.mu.Unlock()
	if o != nil {
		n += o.drops()
	}
	return n
}

// close lets go of a FROM that no session has taken.
func (c *cable) close() {
	if o := c.current(); o != nil {
		c.leave(o)
	}
}

func (c *cable) current() *once {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.end
}

// leave ends a round.
func (c *cable) leave(o *once) {
	o.close()
	n := o.drops()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.end, c.past = nil, c.past+n
}

// serve runs one session after the other until the relay stops.
func (c *cable) serve(r *relay) error {
	for pause := soonestRedial; ; pause = min(2*pause, latestRedial) {
		began := time.Now()
		err := c.round(r)
		if r.ctx.Err() != nil {
			return r.ctx.Err()
		}
		if time.Since(began) > latestRedial {
			pause = soonestRedial // it has worked
		}
		r.waits(err)
		if !rest(r.ctx, pause) {
			return r.ctx.Err()
		}
	}
}

// round is one session, and what ended it or kept it from beginning.
func (c *cable) round(r *relay) error {
	o, err := c.open(r)
	if err != nil {
		return err
	}
	defer c.leave(o)
	p := r.holdPlan()
	to := o.to
	o.to = nil
	if to == nil {
		if to, err = r.dial(r.ctx, p); err != nil {
			p.release()
			r.lost.add(causeDial, 1)
			return err
		}
	}
	s, done := o.begin(r, p, to)
	r.works()
	return c.watch(r, s, done)
}

// open is FROM as it was built, or opened anew.
func (c *cable) open(r *relay) (*once, error) {
	if o := c.current(); o != nil {
		return o, nil
	}
	s, err := r.eng.openFrom(r.ctx, r.copySpec())
	if err != nil {
		return nil, err
	}
	o, err := packetOnce(s)
	if err != nil {
		s.close()
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.end = o
	return o, nil
}

// watch waits for the session's end, and says meanwhile when an interface is down.
func (c *cable) watch(r *relay, s *session, done <-chan struct{}) error {
	var again <-chan time.Time
	for {
		select {
		case <-done:
			if err := s.reason(); err != nil {
				return err
			}
			return errors.New("its session has ended")
		case <-r.ctx.Done():
			return r.ctx.Err()
		case <-r.trouble:
		case <-again:
		}
		down, err := s.interfaces()
		again = nil
		switch {
		case err != nil:
			s.end(err)
		case down != "":
			r.setState(stateListening, down)
			again = time.After(recheckDown)
		default:
			r.setState(stateListening, "")
		}
	}
}

// interfaces says which of a session's interfaces is down, if one is. The error
// is that one is gone.
func (s *session) interfaces() (down string, err error) {
	for _, l := range []*leg{s.from, s.dialled()} {
		if l.kind != kindPacket {
			continue
		}
		name, up, err := ksock.Interface(l.sock)
		switch {
		case errors.Is(err, syscall.ENODEV):
			return "", s.legError(l, errInterfaceGone)
		case err == nil && !up: // another error is a socket that was just closed: its session ends by itself
			down = fmt.Sprintf("interface %s is down", name)
		}
	}
	return down, nil
}

var errInterfaceGone = fmt.Errorf("the interface is gone: %w", syscall.ENODEV)

// explain says what an error of a packet socket means when its interface was
// deleted: the kernel says only that the network is down.
func (l *leg) explain(err error) error {
	if l.kind != kindPacket || l.hasInterface() {
		return err
	}
	for _, e := range []syscall.Errno{syscall.ENETDOWN, syscall.ENXIO, syscall.ENODEV} {
		if errors.Is(err, e) {
			return errInterfaceGone
		}
	}
	return err
}

// packetOnce makes a packet socket's FROM for one session.
func packetOnce(s socket) (*once, error) {
	l := newLeg(s.sock, s.kind)
	if err := l.becomePacket(s.target); err != nil {
		return nil, err
	}
	if l.text == "" && len(s.names) > 0 {
		l.text = s.names[0]
	}
	return &once{socket: s, leg: l}, nil
}

// lasts tells whether FROM can be opened again by its name, and TO dialled again.
func lasts(s socket, p *plan) bool {
	return s.kind == kindPacket && s.id == 0 && s.name == "" && !s.adopted && !p.single()
}
