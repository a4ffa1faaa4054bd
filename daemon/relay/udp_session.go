package relay

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"syscall"
	"time"

	"github.com/sockd/sockd/families/ksock"
)

// udpSession is one client of a udpFront, with its TO. Only the shard touches it, but
// for its record.
type udpSession struct {
	record
	f   *udpFront
	key udpKey
	out post // to the backend

	newer, older *udpSession // by last use
	first, final int8        // its datagrams in the batch in hand; -1: none

	// runs and backRuns are the longest datagrams that can travel in runs, to the
	// backend and to the client.
	runs, backRuns uint16
	closed         bool
	load           *gauge             // of its backend
	cancel         context.CancelFunc // of a dial elsewhere, or nil
	client         proxyHeader        // what FROM's header says
	header         []byte             // in front of each datagram to the backend, or nil

	// Guarded by record.mu.
	backend string
	drops   uint64 // of TO, when it was closed
}

func newUDPSession(f *udpFront, key udpKey, h proxyHeader, p *plan) *udpSession {
	s := &udpSession{f: f, key: key, client: h, first: -1, runs: ksock.AnySegment, backRuns: ksock.AnySegment}
	s.out = post{front: f, session: s, fd: ksock.NoDescriptor}
	s.init(f.r, p)
	return s
}

// parties are the client and the backend. The client's text is made when somebody
// asks.
func (s *udpSession) parties() (peer, backend string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if peer = s.client.text(); peer != "" {
		return peer, s.backend
	}
	if a := s.f.sock.NameAddr(s.key.peer.Name()); a != nil {
		peer = textOf(a.Network(), a, "")
	}
	return peer, s.backend
}

func (s *udpSession) path() string { return "batch" }

func (s *udpSession) loop() *shard { return s.f.sh }

// measure counts the datagrams that wait for room or for a dial, and the answers that
// have gathered for the end of the turn.
func (s *udpSession) measure() (rx, tx books) {
	back := s.f.out.waitsOf(s).plus(s.f.gatheredFor(s))
	return s.rx.audit(s.out.waitsOf(s)), s.tx.audit(back)
}

// gatheredFor is what lies in the front's Outbox of one session.
func (f *udpFront) gatheredFor(s *udpSession) (a amount) {
	if f.sh.mail == nil || f.sh.mail.owner != f {
		return amount{}
	}
	o := &f.sh.mail.replies
	for i := range o.Len() {
		if p := o.Parcel(i); p.Tag == any(s) {
			a = a.plus(amount{int64(p.Datagrams - p.Sent - p.Lost), int64(p.Bytes - p.SentBytes - p.LostBytes)})
		}
	}
	return a
}

// kernelDrops is what the kernel dropped from TO's queue. The lock is held across the
// call, which only reads counters, so that the descriptor is still TO's.
func (s *udpSession) kernelDrops() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.open || s.ended {
		return s.drops
	}
	return s.out.fd.Drops()
}

// dialled tells whether datagrams go to a backend at once.
func (s *udpSession) dialled() bool { return s.out.fd != ksock.NoDescriptor }

// dial finds a backend: the plan's first that can be connected to. Where that takes
// more than system calls it goes on elsewhere, and datagrams wait.
func (s *udpSession) dial() error {
	var last error
	for _, b := range s.plan.order() {
		if b.udp == nil {
			s.dialElsewhere()
			return nil
		}
		b.busy.enter()
		fd, err := b.udp.connect()
		if err == nil {
			s.load = b.busy
			if err = s.attach(fd, b.udp.text, b.own.proxy); err == nil {
				return nil
			}
			s.load = nil
		}
		b.busy.leave()
		last = &DialError{To: b.text, Err: err}
	}
	return last
}

// attach gives the session its TO, which it owns on success; else it is closed.
func (s *udpSession) attach(fd ksock.FD, backend, proxy string) error {
	name, err := fd.LocalPeer()
	if err == nil {
		fd.QueueErrors(name.Domain())
		fd.ReceiveRuns(true)
		if !s.saysQueue() {
			fd.Deepen(udpOwnQueue)
		}
		s.out.tok, err = s.f.sh.watchInput(int(fd), s)
	}
	if err != nil {
		fd.Close()
		return err
	}
	s.mu.Lock()
	s.out.fd, s.open, s.backend = fd, true, backend
	s.mu.Unlock()
	if proxy == proxyV2 {
		s.wrap()
	}
	s.r.dialled(nil)
	return nil
}

// saysQueue tells whether the user has said how much may wait to be received from a
// backend.
func (s *udpSession) saysQueue() bool {
	return slices.ContainsFunc(s.plan.backends, func(b *backend) bool { return saysQueue(b.end.Options) })
}

// dialOver is the end of dialElsewhere.
func (s *udpSession) dialOver(to *leg, err error) {
	s.cancel = nil
	if err != nil {
		if !s.closed {
			s.out.abandon(causeDial)
			s.noBackend(err)
		}
		return
	}
	if s.closed {
		to.abort()
		return
	}
	fd, err := ksock.Detach(to.sock)
	if err == nil {
		s.load = to.active
		err = s.attach(fd, to.text, to.proxy)
	}
	if err != nil {
		s.out.abandon(causeDial)
		s.noBackend(err)
		return
	}
	s.out.resume()
}

// noBackend ends a session that found none.
func (s *udpSession) noBackend(err error) {
	s.tellUnreachable(err)
	s.r.dialled(err)
	s.because(err)
	s.close()
}

// forward sends the client's datagrams of a batch on.
func (s *udpSession) forward(m *mail) {
	s.used()
	first := s.first
	s.first = -1
	if s.header != nil {
		s.forwardWrapped(m, first)
		return
	}
	if d := &m.got[first]; first == s.final && d.Segment == 0 && !d.Cut && s.sendAlone(d.Data) {
		return
	}
	for i := first; i >= 0; i = m.next[i] {
		d := &m.got[i]
		if s.take(&s.rx, d) {
			m.out.Add(d.Data, d.Segment, s.dest(false))
		}
	}
	s.out.send(&m.out)
}

// sendAlone is the short way of one datagram; false means that it takes the long one.
func (s *udpSession) sendAlone(data []byte) bool {
	if !s.dialled() || len(s.out.waiting) > 0 {
		return false
	}
	if _, err := s.out.fd.Send(data); err != nil {
		return false // of an earlier one, or it is tried again, and counted
	}
	s.rx.received(len(data))
	s.rx.sent(len(data))
	return true
}

// take counts what was received; false means it cannot go on.
func (s *udpSession) take(f *flow, d *ksock.Datagram) bool {
	n := ksock.Segments(len(d.Data), d.Segment)
	f.receivedMany(n, len(d.Data))
	if d.Cut {
		s.loseMany(f, n, len(d.Data), causeCut)
	}
	return !d.Cut
}

// used notes that the session was.
func (s *udpSession) used() {
	s.active.Store(int64(s.f.sh.now()))
	s.f.recent.renew(s)
}

// dest is where datagrams go: to the client, or to the backend.
func (s *udpSession) dest(back bool) ksock.Dest {
	if !back {
		return ksock.Dest{Tag: s, MaxSegment: int(s.runs)}
	}
	d := ksock.Dest{Tag: s, To: &s.key.peer, MaxSegment: int(s.backRuns)}
	if s.f.bound == (ksock.Local{}) {
		d.From = s.key.local
	}
	return d
}

// ready: the backend has answered, or takes more again, or an error came.
func (s *udpSession) ready(ev ksock.Events) {
	if ev.Failed() {
		s.readErrors()
	}
	if ev.Writable() {
		s.out.resume()
	}
	if ev.Readable() {
		s.run()
	}
}

// run receives from the backend.
func (s *udpSession) run() {
	if s.closed || s.tx.paced.Load() {
		return
	}
	s.used()
	m := s.f.sh.mailOf(s.f)
	for range udpRounds {
		if m.used == ksock.BatchSize {
			s.f.flush()
		}
		room := ksock.BatchSize - m.used
		n, err := m.in.Recv(s.out.fd, m.used)
		switch {
		case err == syscall.EAGAIN:
			return
		case err != nil:
			s.readErrors() // which has it, too
			continue
		}
		if s.pause(s.answer(m, n)) || n < room {
			return
		}
	}
	s.f.sh.later(s)
}

// pause is udpFront's of the other direction.
func (s *udpSession) pause(bytes int) bool {
	wait := s.r.pace[1].spend(bytes)
	if wait <= 0 {
		return false
	}
	s.tx.paced.Store(true)
	s.f.sh.after(wait, func() {
		s.tx.paced.Store(false)
		s.run()
	})
	return true
}

// answer puts n datagrams that were received to the front's answers, and says how
// many bytes they are.
func (s *udpSession) answer(m *mail, n int) (bytes int) {
	m.owner = s.f
	for range n {
		d := m.in.Take(m.used)
		m.used++
		bytes += len(d.Data)
		if s.take(&s.tx, &d) {
			m.replies.Add(d.Data, d.Segment, s.dest(true))
		}
	}
	if !s.f.flushing {
		s.f.flushing = true
		s.f.sh.later((*udpFlush)(s.f))
	}
	return bytes
}

// readErrors counts what the network says of datagrams that had left, and tells the
// client.
func (s *udpSession) readErrors() {
	for {
		e, err := s.out.fd.RecvError()
		if err != nil {
			return
		}
		if e.FromNet { // others were told to whoever sent
			s.lost.add(noted(e.Errno), 1)
			s.tell(e)
		}
	}
}

// tell passes on to the client why its datagram did not arrive, or counts that it
// could not.
func (s *udpSession) tell(e ksock.SocketError) {
	if !s.f.icmp.tell(s, e) {
		s.lost.add(causeUntold, 1)
	}
}

// tellUnreachable tells of an error that this host found out itself, as the client
// would have got it from a router.
func (s *udpSession) tellUnreachable(err error) {
	var errno syscall.Errno
	if errors.As(err, &errno) && lossOf(errno) == causeUnreachable {
		s.tell(ksock.SocketError{Errno: errno})
	}
}

// end ends the session soon. The shard does it.
func (s *udpSession) end(err error) {
	s.because(err)
	s.f.sh.do(s.close)
}

// close ends the session now.
func (s *udpSession) close() {
	if s.closed {
		return
	}
	s.f.flush() // its answers may be among those that wait
	s.closed = true
	s.f.remove(s)
	s.out.abandon(causeEnded)
	s.f.out.abandonOf(s)
	if s.cancel != nil {
		s.cancel()
	}
	s.hangUp()
	s.load.leave()
	s.r.exit(s)
}

// hangUp closes TO.
func (s *udpSession) hangUp() {
	s.mu.Lock()
	fd := s.out.fd
	if s.open {
		s.drops = fd.Drops()
	}
	s.ended = true
	s.mu.Unlock()
	if fd != ksock.NoDescriptor {
		s.f.sh.forget(s.out.tok)
		fd.Close()
	}
}

func idleError(d time.Duration) error { return fmt.Errorf("idle for %v", d) }

// receivedMany counts n messages of so many bytes together.
func (f *flow) receivedMany(n, bytes int) {
	f.inBytes.Add(int64(bytes))
	f.inMessages.Add(int64(n))
}

func (f *flow) sentMany(n, bytes int) {
	f.outBytes.Add(int64(bytes))
	f.outMessages.Add(int64(n))
}

// loseMany counts n messages that were received and not passed on.
func (c *record) loseMany(f *flow, n, bytes int, why cause) {
	f.lostBytes.Add(int64(bytes))
	f.lostMs.Add(int64(n))
	c.lost.add(why, int64(n))
}

// udpOrder is sessions by their last use: a ring with one that is no session between
// the newest and the oldest.
type udpOrder struct{ root udpSession }

func (o *udpOrder) init() { o.root.newer, o.root.older = &o.root, &o.root }

// push puts a session in as the newest.
func (o *udpOrder) push(s *udpSession) {
	s.newer, s.older = &o.root, o.root.older
	s.older.newer, o.root.older = s, s
}

func (o *udpOrder) remove(s *udpSession) {
	s.newer.older, s.older.newer = s.older, s.newer
	s.newer, s.older = nil, nil
}

// renew makes a session the newest.
func (o *udpOrder) renew(s *udpSession) {
	if o.root.older != s {
		o.remove(s)
		o.push(s)
	}
}

// all are the sessions, the oldest first. The one in hand may be removed.
func (o *udpOrder) all() iter.Seq[*udpSession] {
	return func(yield func(*udpSession) bool) {
		for s := o.root.newer; s != &o.root; {
			next := s.newer
			if !yield(s) {
				return
			}
			s = next
		}
	}
}

// oldest is the first of all that fits, or nil.
func (o *udpOrder) oldest(fits func(*udpSession) bool) *udpSession {
	for s := range o.all() {
		if fits(s) {
			return s
		}
	}
	return nil
}
