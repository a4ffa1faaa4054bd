package relay

import (
	"context"
	"errors"
	"fmt"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/ksock"
)

// prologue is all that goes before a stream's first byte and takes more than an
// event: asking who the client is, reading a PROXY header, looking a name up, dialling
// a unix path as its owner, writing a header. A goroutine does it, and hands both
// sides to the session's shard.
type prologue struct {
	s     *stream
	from  families.Socket // the client; its own until handOver
	own   bool            // nobody else has a duplicate of the client's description
	known bool            // the client was let in already
	to    *leg            // dialled already, or nil
}

// begin registers the session and runs its prologue. It owns what p has.
func (p *prologue) begin() {
	ctx, cancel := context.WithCancel(context.Background())
	p.s.mu.Lock()
	p.s.prologue = cancel
	p.s.mu.Unlock()
	p.s.r.enter(p.s)
	go p.run(ctx)
}

func (p *prologue) run(ctx context.Context) {
	err := p.prepare(ctx)
	if err == nil {
		err = p.handOver(ctx)
	}
	if err != nil {
		p.fail(ctx, err)
	}
}

// prepare leaves both sides ready for the first byte.
func (p *prologue) prepare(ctx context.Context) error {
	client, err := p.admit(ctx)
	if err != nil {
		return err
	}
	if err := p.park(); err != nil {
		return err
	}
	p.s.spare.drop() // its place is needed now
	if p.to == nil {
		if p.to, err = p.s.r.dialRetry(ctx, p.s.plan); err != nil {
			return err
		}
	}
	p.s.r.dialled(nil)
	return p.announce(ctx, client)
}

// fail ends a session that did not come to be: the client gets a reset.
func (p *prologue) fail(ctx context.Context, err error) {
	s := p.s
	s.spare.drop()
	var dial *DialError
	if errors.As(err, &dial) && ctx.Err() == nil {
		s.lost.add(causeDial, 1)
		s.r.dialled(err)
	}
	s.because(err)
	s.mu.Lock()
	s.ended, s.prologue = true, nil
	s.mu.Unlock()
	s.sh.live.Add(-1)
	if s.dur != nil && s.isLeftBehind() {
		_ = p.from.Close() // its duplicate lives on
		p.to.abort()
		s.r.forsake(s)
		return
	}
	p.abort()
	s.r.exit(s)
}

// abort resets both sides.
func (p *prologue) abort() {
	p.to.abort()
	if p.s.dur != nil {
		p.s.dur.giveUp(p.from)
		return
	}
	newLeg(p.from, kindStream).abort()
}

// park makes the session durable, where it is to be.
func (p *prologue) park() error {
	d, err := families.As[families.Descriptor](p.from)
	if err != nil || !p.s.wantsParking() {
		return nil // a socket that is no descriptor is none of a durable relay
	}
	return d.Control(p.s.parkClient)
}

// leftover is a socket with bytes that were received from it before, which come
// first.
type leftover interface {
	// Leftover gives the socket itself, and them.
	Leftover() (families.Socket, []byte)
}

// bareFD takes the descriptor out of a socket, and what was received before. That
// takes another descriptor for a moment, and is waited for.
func bareFD(ctx context.Context, s families.Socket) (fd ksock.FD, before []byte, err error) {
	if l, ok := s.(leftover); ok {
		s, before = l.Leftover()
	}
	patiently(ctx, func() error {
		fd, err = ksock.Detach(s)
		return err
	})
	return fd, before, err
}

// admit decides whether the client may come in, and finds out who it says it is.
func (p *prologue) admit(ctx context.Context) (proxyHeader, error) {
	s := p.s
	if !p.known && !s.r.lets(s.plan, p.from) {
		s.r.lost.add(causeDenied, 1)
		return proxyHeader{}, errDenied
	}
	if s.plan.own.proxy == "" {
		return proxyHeader{}, nil
	}
	h, err := s.r.readHeader(ctx, s.plan, p.from, s.peerText)
	if err != nil {
		return proxyHeader{}, err
	}
	if text := h.text(); text != "" {
		s.setPeer(text)
	}
	return h, nil
}

// lets asks whether a connection may come in by a plan's rules.
func (r *relay) lets(p *plan, c families.Socket) bool {
	if len(p.allow) == 0 {
		return true
	}
	d, err := families.As[families.Descriptor](c)
	if err != nil {
		return false
	}
	ok := false
	err = d.Control(func(n int) error {
		fd := ksock.FD(n)
		peer, err := fd.Peer()
		ok = err == nil && r.eng.doorman.lets(p.allow, fd, &peer)
		return err
	})
	return err == nil && ok
}

// announce tells TO who the client is, where it wants to know.
func (p *prologue) announce(ctx context.Context, client proxyHeader) error {
	if p.to.proxy == "" {
		return nil
	}
	return p.to.sendHeader(ctx, proxyOf(p.to.proxy, client, p.from, p.from.Info().Peer))
}

// handOver gives both sides to the shard, which owns them then. On error they are
// closed.
func (p *prologue) handOver(ctx context.Context) error {
	local := p.local()
	from, fromBefore, err := bareFD(ctx, p.from)
	if err != nil {
		return fmt.Errorf("from %s: %w", describe(p.s.peerText), err)
	}
	to, toBefore, err := bareFD(ctx, p.to.sock)
	if err != nil {
		p.s.dropClient(joining{fd: from, local: local})
		return fmt.Errorf("to %s: %w", describe(p.to.text), err)
	}
	s := p.s
	s.load, p.to.active = p.to.active, nil
	s.from.parked = s.dur != nil
	s.sh.do(func() { // the shard outlives its sessions
		s.up.before(fromBefore)
		s.down.before(toBefore)
		s.join(ctx, joining{from, local, p.own}, joining{to, p.to.local, p.to.own}, p.to.text)
	})
	return nil
}

func (p *prologue) local() bool { return p.from.Info().Family == "local" }

// before puts what was received earlier in front.
func (w *way) before(b []byte) {
	if len(b) > 0 {
		w.held = b
		w.flow.inBytes.Add(int64(len(b)))
	}
}

// joining is a side that comes out of a prologue.
type joining struct {
	fd    ksock.FD
	local bool
	own   bool
}

// dropClient lets go of a client, or backend, that no end has: it gets a reset, unless it
// lives on in another process.
func (s *stream) dropClient(c joining) {
	if s.dur != nil && s.isLeftBehind() {
		c.fd.Close()
		return
	}
	c.fd.ResetAll(!c.local)
}

// join begins the session proper, on its shard. One that was ended meanwhile ends
// here.
func (s *stream) join(ctx context.Context, from, to joining, backend string) {
	s.mu.Lock()
	s.prologue = nil
	s.mu.Unlock()
	err := ctx.Err()
	if err == nil {
		err = s.from.join(from.fd, from.local, from.own)
	}
	if err != nil {
		s.dropClient(from)
	} else {
		err = s.to.join(to.fd, to.local, to.own)
	}
	if err != nil {
		to.fd.Reset(!to.local)
		s.abort(err)
		return
	}
	s.opened(backend)
}
