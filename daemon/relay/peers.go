package relay

import (
	"container/list"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/ksock"
)

// What may wait for a session's dial: a burst of a client that does not know
// that there is a dial, and no more.
const (
	pendingMessages = 256
	pendingBytes    = 256 << 10
	// pendingFiles is what one message can carry (SCM_MAX_FD), so that none is
	// refused for its own size.
	pendingFiles = 253
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
	// stalled: a dial was waited for in vain, and none has ended since. Of the reader.
	stalled bool

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
	pending []kept
	bytes   int
	files   int
}

// kept is a message that waits for a dial, with the descriptors that came with it.
type kept struct {
	frame frame
	files []int
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
		fr, n, err := from.receive(b)
		if err == nil {
			p.deliver(b, fr)
		}
		p.r.lost.add(causeFiles, discardFiles(&b.in)) // those that did not go on
		switch {
		case err == nil:
		case isAgain(err):
			return families.ErrAgain
		case errors.Is(err, families.ErrCut):
			p.r.turnAway(1, n, causeCut)
		case !from.passes(err):
			return err
		}
	}
}

// deliver gives one message to its sender's session. When there is none, or its
// backend turns out to be gone, the message opens a new one: a backend that was
// restarted costs none.
func (p *peers) deliver(b *buffer, fr frame) {
	c := p.find(b.in.Peer)
	if !p.lets(c, b) {
		p.r.turnAway(1, len(fr.payload()), causeDenied)
		return
	}
	if c != nil {
		if c.take(fr, b) {
			return
		}
		p.drop(c)
	}
	if !p.makeRoom() {
		p.r.turnAway(1, len(fr.payload()), causeBusy)
		return
	}
	p.open(b, fr)
}

// lets asks of each message whether its sender may come in, by the rules of its
// session: a name says nothing about who has it now, and unnamed ones share a session.
func (p *peers) lets(c *peer, b *buffer) bool {
	l := p.r.allowed()
	if c != nil {
		l = c.s.plan.allow
	}
	switch {
	case len(l) == 0:
		return true
	case p.unix:
		return p.r.eng.doorman.letsSender(l, b.in.Creds)
	}
	return l.admitsAddr(ksock.AddrPortOf(&b.in.Peer).Addr())
}

// take sends a message on, or keeps it until there is somewhere to send it. It
// is false when the session is over and has not taken the message.
func (c *peer) take(fr frame, b *buffer) bool {
	s, n := c.s, len(fr.payload())
	if waiting, ok := c.wait(fr, b); !ok {
		return false
	} else if waiting {
		return true
	}
	defer c.done()
	s.rx.take(n)
	s.touch()
	if err := s.paceMessage(&s.rx, n); err != nil {
		return true // counted
	}
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
func (c *peer) wait(fr frame, b *buffer) (waiting, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.gone:
		return false, false
	case c.ready:
		c.sending = true
		return false, true
	}
	c.keepLocked(fr, b)
	return true, true
}

// keepLocked keeps a copy of a message, if there is room for it, and takes over
// its descriptors, if they are passed on.
func (c *peer) keepLocked(fr frame, b *buffer) {
	n := len(fr.payload())
	c.s.rx.received(n)
	k := kept{frame: append(frame(nil), fr...)}
	if c.s.plan.pass {
		k.files = b.in.Files
	}
	if len(c.pending) >= pendingMessages || c.bytes+n > pendingBytes || c.files+len(k.files) > pendingFiles {
		c.loseLocked(n, causePending)
		return
	}
	if k.files != nil {
		b.in.Files = nil
	}
	c.pending = append(c.pending, k)
	c.bytes += n
	c.files += len(k.files)
}

// next takes the message that has waited longest; none means that the reader sends
// from now on.
func (c *peer) next() (k kept, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.pending) == 0 {
		c.pending, c.ready = nil, true
		return kept{}, false
	}
	k, c.pending[0] = c.pending[0], kept{}
	c.pending = c.pending[1:]
	n := len(k.frame.payload())
	c.bytes, c.files = c.bytes-n, c.files-len(k.files)
	c.s.rx.hold(n)
	return k, true
}

// waitsLocked is what waits for the dial.
func (c *peer) waitsLocked() (a amount) {
	for _, k := range c.pending {
		a.add(len(k.frame.payload()))
	}
	return a
}

// find is the session of a client, or nil.
func (p *peers) find(key families.Name) *peer {
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
	return nil
}

// open begins a session that room was claimed for, with the message in b as the
// first that waits for its dial.
func (p *peers) open(b *buffer, fr frame) {
	c := &peer{key: b.in.Peer}
	c.sent.L = &c.mu
	c.s = newSession(p.r, p.r.holdPlan(), p.legOf(c.key, b))
	c.s.peer = c
	c.mu.Lock()
	c.keepLocked(fr, b)
	c.mu.Unlock()
	p.mu.Lock()
	p.byName[c.key] = c
	c.at = p.recent.PushFront(c)
	p.mu.Unlock()
	p.r.begin(c.s, func() { c.run(p) })
	if p.r.single {
		p.r.setState(stateDraining, "") // FROM stays, for the one client alone
	}
}

// makeRoom claims room for one more session, at the cost of the one that was used
// least recently. Sessions that still dial have messages waiting, so they are left
// alone and one of their dials is waited for: briefly, since the reader keeps all
// clients waiting meanwhile, and not again before one has ended.
func (p *peers) makeRoom() bool {
	if p.r.claim() {
		return true
	}
	patience := briefly
	if p.stalled {
		patience = 0
	}
	late := time.NewTimer(patience)
	defer late.Stop()
	for !p.r.claim() {
		switch {
		case p.r.single:
			return false
		case p.evict():
		case !p.awaitDial(late.C):
			return false
		}
	}
	return true
}

// awaitDial waits until a dial or a session has ended, or it is late.
func (p *peers) awaitDial(late <-chan time.Time) bool {
	p.stalled = false
	select {
	case <-p.r.room:
		return true
	default:
	}
	select {
	case <-p.r.room:
		return true
	case <-late:
		p.stalled = true
	case <-p.r.ctx.Done():
	}
	return false
}

var errEvicted = errors.New("made room for a new session, since there are as many as --max-conns allows")

// evict ends the session that was used least recently of those that are dialled;
// false means there is none.
func (p *peers) evict() bool {
	c := p.oldest()
	if c == nil {
		return false
	}
	p.drop(c)
	p.r.lost.add(causeEvicted, 1)
	c.s.end(errEvicted)
	p.r.leave(c.s)
	return true
}

func (p *peers) oldest() *peer {
	p.mu.Lock()
	defer p.mu.Unlock()
	for at := p.recent.Back(); at != nil; at = at.Prev() {
		if c := at.Value.(*peer); c.isReady() {
			return c
		}
	}
	return nil
}

// isReady tells whether no message waits for the dial any more.
func (c *peer) isReady() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ready
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
	lost := causeEnded // what still waits at the end
	defer func() { c.abandon(lost) }()
	if err := s.dial(); err != nil {
		if s.noBackend(err) {
			lost = causeDial
		}
		s.end(err)
		return
	}
	defer func() { s.dialled().abort() }() // waits for whoever closes it meanwhile: its counters are final then
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
	for moved := false; ; moved = true {
		k, ok := c.next()
		if !ok {
			c.s.r.signal() // it may make room now
			return nil
		}
		b.in.Files = k.files
		err := c.send(k.frame, b, moved)
		c.s.lost.add(causeFiles, discardFiles(&b.in)) // those that did not go on
		if err != nil {
			return err // abandon counts what still waits
		}
	}
}

// send sends one message that has waited. Where others went before it, a backend
// that takes this one no more may have been restarted meanwhile: it is dialled
// once again, as the reader would.
func (c *peer) send(fr frame, b *buffer, again bool) error {
	s, n := c.s, len(fr.payload())
	err := s.forward(s.to, s.from, fr, &s.rx, b)
	if err == nil || !again {
		return err
	}
	if s.redial() != nil {
		return err // counted, with its cause
	}
	s.rx.takeBack(n)
	s.lost.add(causeEnded, -1)
	s.rx.take(n)
	return s.forward(s.to, s.from, fr, &s.rx, b)
}

// abandon counts what still waits when the session ends, as lost by why. The
// reader is done with the session then, so that its counters are final.
func (c *peer) abandon(why cause) {
	c.mu.Lock()
	c.gone = true
	for c.sending {
		c.sent.Wait()
	}
	waited := c.pending
	c.pending = nil
	for _, k := range waited {
		c.loseLocked(len(k.frame.payload()), why)
	}
	c.mu.Unlock()
	for _, k := range waited {
		c.s.lost.add(causeFiles, discardFiles(&families.Msg{Files: k.files}))
	}
}

// loseLocked counts a message that is not in a pump's hand.
func (c *peer) loseLocked(n int, why cause) {
	c.s.rx.lost(n)
	c.s.lost.add(why, 1)
}
