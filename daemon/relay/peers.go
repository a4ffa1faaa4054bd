package relay

import (
	"container/list"
	"errors"
	"fmt"
	"io"
	"sync"
	"syscall"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/ksock"
)

// What may wait for a session's dial: a burst of a client that does not know
// that there is a dial, and no more.
const (
	pendingMessages = 256
	pendingBytes    = 256 << 10
)

// peers is a FROM of datagrams: one socket for all clients, told apart by their
// addresses. One goroutine reads it and gives each message to the session of its
// sender; each session has one goroutine, which dials, sends what waited for
// that, and then brings the answers back.
//
//	clients ──► FROM ──reader──► session A's TO ──► backend
//	   ▲                    └──► session B's TO ──► backend
//	   └───────────◄ each session's goroutine ◄────────┘
type peers struct {
	socket
	r    *relay
	unix bool

	mu     sync.Mutex // guards what follows
	byName map[families.Name]*peer
	recent list.List // of *peer, the one used last at the front
}

// peer is one client of a FROM of datagrams.
type peer struct {
	s   *session
	key families.Name
	at  *list.Element

	sent sync.Cond // on mu

	mu      sync.Mutex // guards what follows
	gone    bool       // nothing may wait any more
	sending bool       // the reader is sending; sent tells when it no longer is
	ready   bool       // the reader sends by itself; pending is empty for good
	pending []frame
	bytes   int
}

func newPeers(s socket) *peers {
	return &peers{socket: s, unix: s.sock.Info().Family == "local", byName: map[families.Name]*peer{}}
}

func (p *peers) endless() bool { return true }

// serve reads FROM.
func (p *peers) serve(r *relay) error {
	p.r = r
	from := &leg{sock: p.sock, kind: kindDgram, local: p.unix}
	for {
		b := messageBuffers.Get().(*buffer)
		err := p.drain(from, b)
		messageBuffers.Put(b)
		if err != families.ErrAgain {
			return err
		}
		if err := p.sock.Wait(r.ctx, families.Readable); err != nil {
			return err
		}
	}
}

// drain takes what is there now (ErrAgain).
func (p *peers) drain(from *leg, b *buffer) error {
	for {
		fr, _, err := from.receive(b)
		files := discardFiles(&b.in)
		p.r.lost.add(causeFiles, files)
		switch {
		case err == nil:
			p.deliver(b, fr)
		case isAgain(err):
			return families.ErrAgain
		case errors.Is(err, families.ErrCut):
			p.r.lost.add(causeCut, 1)
		case !from.passes(err):
			return err
		}
	}
}

// deliver gives one message to its sender's session. When that session's backend
// turns out to be gone, the message opens a new one: a backend that was restarted
// costs none.
func (p *peers) deliver(b *buffer, fr frame) {
	for range 2 {
		c := p.find(b)
		if c == nil {
			p.r.lost.add(causeBusy, 1)
			return
		}
		if c.take(fr, b) {
			return
		}
	}
	p.r.lost.add(causeEnded, 1)
}

// take sends a message on, or keeps it until there is somewhere to send it. It
// is false when the session is over and has not taken the message.
func (c *peer) take(fr frame, b *buffer) bool {
	s, n := c.s, len(fr.payload())
	if waiting, ok := c.wait(fr); !ok {
		return false
	} else if waiting {
		return true
	}
	defer c.done()
	s.rx.received(n)
	s.touch()
	err := s.forward(s.to, s.from, fr, &s.rx, b)
	if err == nil {
		return true
	}
	// The message is tried again elsewhere, so here it neither came nor went.
	s.rx.takeBack(n)
	s.lost.add(causeEnded, -1)
	s.end(s.legError(s.to, err))
	return false
}

// done ends what wait began.
func (c *peer) done() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sending = false
	c.sent.Signal()
}

// wait keeps a copy of a message while the session is dialled; when it is, the
// caller sends, and calls done. ok is false when the session has ended.
func (c *peer) wait(fr frame) (waiting, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.gone:
		return false, false
	case c.ready:
		c.sending = true
		return false, true
	}
	n := len(fr.payload())
	c.s.rx.received(n)
	if len(c.pending) >= pendingMessages || c.bytes+n > pendingBytes {
		c.s.lose(&c.s.rx, n, causePending)
		return true, true
	}
	c.pending = append(c.pending, append(frame(nil), fr...))
	c.bytes += n
	return true, true
}

// waited takes what has waited; none means that the reader sends from now on.
func (c *peer) waited() []frame {
	c.mu.Lock()
	defer c.mu.Unlock()
	w := c.pending
	c.pending, c.bytes = nil, 0
	c.ready = len(w) == 0
	return w
}

// find is the session of the client that sent what is in b, a new one if need be.
// It is nil when there is no room for one.
func (p *peers) find(b *buffer) *peer {
	key := b.in.Peer
	p.mu.Lock()
	c := p.byName[key]
	if c != nil && !c.s.isEnded() {
		p.recent.MoveToFront(c.at)
		p.mu.Unlock()
		return c
	}
	p.mu.Unlock()
	if c != nil {
		p.drop(c)
	}
	return p.add(key, b)
}

// add opens a session for a client. When there are as many as may be, the one
// that was used least recently makes room.
func (p *peers) add(key families.Name, b *buffer) *peer {
	for !p.r.claim() {
		if p.r.single || !p.evict() {
			return nil
		}
	}
	c := &peer{key: key}
	c.sent.L = &c.mu
	c.s = newSession(p.r, p.r.holdPlan(), p.legOf(key, b))
	p.mu.Lock()
	p.byName[key] = c
	c.at = p.recent.PushFront(c)
	p.mu.Unlock()
	p.r.begin(c.s, func() { c.run(p) })
	return c
}

// evict ends the session that was used least recently; false means there is none.
func (p *peers) evict() bool {
	p.mu.Lock()
	last := p.recent.Back()
	p.mu.Unlock()
	if last == nil {
		return false
	}
	c := last.Value.(*peer)
	p.drop(c)
	c.s.end(fmt.Errorf("made room for a new session: %w", syscall.EMFILE))
	p.r.leave(c.s)
	return true
}

// drop takes a client out of the table.
func (p *peers) drop(c *peer) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.byName[c.key] == c {
		delete(p.byName, c.key)
		p.recent.Remove(c.at)
	}
}

// legOf is the way back to a client.
func (p *peers) legOf(key families.Name, b *buffer) *leg {
	l := &leg{sock: p.sock, kind: kindDgram, local: p.unix, shared: true, limit: replyTime, peer: key}
	a := p.sock.NameAddr(key)
	if a == nil {
		l.mute = true // an unbound unixgram socket: all of them share one session
		return l
	}
	l.text = textOf(a.Network(), a, "")
	if path := a.Scope().Path; p.unix && path != "" && path[0] != '@' {
		l.pinTo(path, b.in.Creds)
	}
	return l
}

// pinTo makes answers go to the socket that the client has now, and not to
// whatever its path may lead to later. A path that is not the sender's own socket
// gets no answers: it could be anybody's, and the daemon may write to more than
// the client may.
func (l *leg) pinTo(path string, sender *families.Creds) {
	target, err := ksock.OpenPath(ksock.AtCWD, path)
	if err != nil {
		l.mute = true
		return
	}
	if sender == nil || sender.UID != 0 && sender.UID != target.UID {
		_ = target.Close() // O_PATH, nothing to lose
		l.mute = true
		return
	}
	l.pin, l.peer = target, target.SendName()
}

// run is the session's goroutine.
func (c *peer) run(p *peers) {
	s := c.s
	defer p.drop(c)
	defer c.abandon()
	if err := s.dial(); err != nil {
		s.end(err)
		return
	}
	s.to.limit = briefly
	if err := c.flush(); err != nil {
		s.end(s.legError(s.to, err))
		return
	}
	s.watchIdle(s.plan.idleFor(kindDgram))
	err := s.copyMessages(s.from, s.to, &s.tx)
	if e, sink := err.(sinkError); sink {
		s.end(s.legError(s.from, e.error))
		return
	}
	if err == io.EOF {
		s.end(fmt.Errorf("to %s: it has ended", describe(s.to.text)))
		return
	}
	s.end(s.legError(s.to, err))
}

// flush sends what has waited for the dial, in its order, before the reader goes
// on by itself.
func (c *peer) flush() error {
	b := messageBuffers.Get().(*buffer)
	defer messageBuffers.Put(b)
	for {
		waited := c.waited()
		if len(waited) == 0 {
			return nil
		}
		for i, fr := range waited {
			if err := c.s.forward(c.s.to, c.s.from, fr, &c.s.rx, b); err != nil {
				c.lose(waited[i+1:])
				return err
			}
		}
	}
}

// abandon counts what still waits when the session ends. The reader is done with
// the session then, so that its counters are final.
func (c *peer) abandon() {
	c.mu.Lock()
	waited := c.pending
	c.pending, c.gone = nil, true
	for c.sending {
		c.sent.Wait()
	}
	c.mu.Unlock()
	c.lose(waited)
}

func (c *peer) lose(frames []frame) {
	for _, fr := range frames {
		c.s.lose(&c.s.rx, len(fr.payload()), causeEnded)
	}
}
