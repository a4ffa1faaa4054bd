package relay

import (
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/ksock"
)

// stream is a session of two connected streams. It lives on a shard, which alone
// touches it once it is open; before that, where dialling takes more than one
// system call, a goroutine has it (see prologue).
//
//	src ends      dst gets the end (FIN); the other direction runs on
//	src breaks    dst gets what was read, then a reset; all ends
//	dst breaks    what dst had sent is still brought to src, then src is reset
type stream struct {
	record
	sh       *shard
	from, to end
	up, down way // from FROM towards TO, and back
	dial     *dialling
	dur      *durability // nil: it ends with this process
	nth      int64       // the relay's total with it; 0: it is not registered
	broken   bool        // one side broke: what is left to do ends with resets
	over     bool
	moved    bool // in this run
	kept     bool // TO's keepalive is on
	doomed   bool // its time is bounded, since a side has failed

	// What the texts of both ends are made of, when somebody asks.
	peer     families.Name
	namer    families.Socket
	peerText string
	toText   string
	load     *gauge // of its backend
	spare    spare  // for TO, until it is dialled

	bound *alarm // of a dial, a half-closed direction, or a broken one
	idle  *alarm

	// Guarded by record.mu.
	prologue func() // cancels the goroutine that has the session; nil: the shard has it
}

var _ conversation = (*stream)(nil)

// end is one side of a stream.
type end struct {
	s     *stream
	fd    ksock.FD
	token token
	local bool // a unix socket: it has no reset, and its short reads mean nothing
	// own: nobody else has a duplicate of the description, so that its O_NONBLOCK
	// stays and splice never blocks.
	own bool

	readable, writable bool // until an attempt says EAGAIN
	failed             bool // an error is behind what is queued
	finished           bool // the peer's end, or an error, is behind what is queued
	urgent             bool // an urgent byte is somewhere in what is queued
	sure               bool // an event told of input, and nothing was received since
	hearsRoom          bool // of a unix socket: it is watched for room too
	deep               bool // its send buffer is that of bulk
	// parked: somebody else holds a duplicate, which keeps close from ending anything.
	parked bool
}

// newStream makes a session that is not registered yet. The hold on p is its own.
func newStream(r *relay, p *plan, sh *shard) *stream {
	s := &stream{sh: sh, kept: true, spare: noSpare}
	sh.live.Add(1)
	s.init(r, p)
	s.from.s, s.to.s = s, s
	s.from.fd, s.to.fd = ksock.NoDescriptor, ksock.NoDescriptor
	s.up = way{src: &s.from, dst: &s.to, flow: &s.rx, place: r.pace[0].turn()}
	s.down = way{src: &s.to, dst: &s.from, flow: &s.tx, place: r.pace[1].turn()}
	return s
}

// join makes fd one side. On error the caller still owns it.
func (e *end) join(fd ksock.FD, local, own bool) error {
	watch := e.s.sh.watch
	if local {
		watch = e.s.sh.watchUnix
		fd.Tune(ksock.RelayedUnix)
	}
	t, err := watch(int(fd), e)
	if err != nil {
		return err
	}
	e.writable = local
	e.fd, e.token, e.local, e.own = fd, t, local, own
	return nil
}

// ready is an event: handler.
func (e *end) ready(ev ksock.Events) {
	e.readable = e.readable || ev.Readable()
	e.writable = e.writable || ev.Writable()
	e.urgent = e.urgent || ev.Urgent()
	e.sure = e.sure || ev.Input()
	e.finished = e.finished || ev.Ended()
	s := e.s
	switch {
	case s.dial != nil:
		s.dialEvent(e, ev)
		return
	case ev.Failed():
		e.failed = true
	}
	s.run()
}

// drained notes a read that did not fill its room: there is no more, and the next
// arrival is a new event. It does not hold before an end or a mark, where a read
// stops too, nor of a unix socket, which stops behind each descriptor.
func (e *end) drained(short bool) {
	e.sure = false
	if short && !e.finished && !e.urgent && !e.local {
		e.readable = false
	}
}

// full notes that a send found no room, and that the next event tells of some.
func (e *end) full() {
	e.writable = false
	if e.local && !e.hearsRoom {
		e.hearsRoom = e.s.sh.poller.AddOutput(int(e.fd), uint64(e.token)) == nil
	}
}

// deepen gives a sink of bulk a larger send buffer, once.
func (e *end) deepen() {
	switch {
	case e.deep:
	case e.local:
		e.fd.SetSendBuffer(unixSendBuffer)
	default:
		e.fd.DeepenTCP(tcpSendBuffer)
	}
	e.deep = true
}

// look tells what may be received: nothing, the urgent byte alone, or what is there. An
// event has told of an urgent byte, if what it told of is still there; else the kernel
// is asked, whether there is anything first: a byte that comes after the question
// whether it is urgent could be.
func (e *end) look() (any, urgent bool) {
	switch {
	case e.sure && !e.urgent:
		return true, false
	case e.sure, e.hasInput():
		return true, e.fd.AtMark()
	}
	return e.finished, false
}

// hasInput tells whether there is something to receive: a mark can be ahead of all
// that has come.
func (e *end) hasInput() bool {
	n, err := e.fd.Unread()
	return err == nil && n > 0
}

// run moves what can be moved, on both ways: runner.
func (s *stream) run() {
	if s.over {
		return
	}
	more := s.up.run(s)
	if !s.over && s.down.run(s) {
		more = true
	}
	if s.moved {
		s.moved = false
		s.active.Store(int64(s.sh.now()))
	}
	switch {
	case s.over:
	case more:
		s.sh.later(s)
	default:
		s.doom(&s.up)
		s.doom(&s.down)
	}
}

// pace is how much the relay's rate lets w take now; 0: an alarm goes on.
func (s *stream) pace(w *way) int {
	n, wait := w.place.take(pipeSize)
	if n == 0 {
		w.flow.paced.Store(true)
		w.paused = true
		s.sh.after(wait, func() {
			w.paused = false
			w.flow.paced.Store(false)
			s.run()
		})
	}
	return n
}

// unpace gives back what pace granted and was not used.
func (s *stream) unpace(w *way, n int) {
	if n > 0 && w.place.b.rate.Load() > 0 {
		w.place.giveBack(n)
	}
}

// sourceEnded passes an end on.
func (s *stream) sourceEnded(w *way) {
	w.close(s)
	if s.broken {
		s.settle(w.dst)
		return
	}
	if s.directionDone(w.flow) {
		s.finish(ksock.FD.Close)
		return
	}
	_ = w.dst.fd.CloseWrite() // the peer is gone: the other direction sees that too
	if d := s.plan.halfClose; d > 0 {
		s.limit(d, fmt.Errorf("half-closed for %v", d))
	}
}

// brokenSource: what was read has been sent, so the sink may have it before the
// reset.
func (s *stream) brokenSource(w *way, err error) {
	s.because(s.sideError(w.src, err))
	s.breaks()
	s.up.close(s)
	s.down.close(s)
	s.settle(w.dst)
}

// brokenSink: the sink takes no more, but its answer may wait to be read, as that
// of a server that refuses an upload. The other way brings it, and ends then.
func (s *stream) brokenSink(w *way, err error) {
	s.because(s.sideError(w.dst, err))
	s.breaks()
	w.close(s)
	back := s.opposite(w)
	if back.closed {
		s.settle(w.src)
		return
	}
	if w.dst.local && !w.dst.finished {
		// It has stopped reading, and may go on writing; a unix client is told so.
		_ = w.src.fd.CloseRead() // what it sends from now on is refused, or not read
		return
	}
	_ = w.dst.fd.CloseRead() // ENOTCONN: then the reader sees the end anyway
	w.dst.readable, w.dst.finished = true, true
	s.limit(lingerTime, errors.New("the other direction did not end"))
	s.sh.later(s)
}

// breaks notes that one side is broken.
func (s *stream) breaks() {
	s.broken = true
	s.dur.mark(fateBroke)
}

func (s *stream) opposite(w *way) *way {
	if w == &s.up {
		return &s.down
	}
	return &s.up
}

// doom bounds how long a sink may take what a source sent before it broke, from when
// the sink is first found full.
func (s *stream) doom(w *way) {
	if s.broken || s.doomed || !w.src.failed || w.inHand() == 0 {
		return
	}
	s.doomed = true
	s.limit(settleTime, fmt.Errorf("%s broke and the other side takes nothing", s.side(w.src)))
}

// limit aborts the session after d.
func (s *stream) limit(d time.Duration, why error) {
	s.keep()
	s.bound.stop()
	s.bound = s.sh.after(d, func() { s.abort(why) })
}

// settle resets both sides when the peer of e has taken what was sent to it: a reset
// throws away what is queued. It gives up after settleTime: a peer that reads nothing
// shall not hold a session that is over.
func (s *stream) settle(e *end) {
	until := s.sh.now() + settleTime
	const soonest, latest = time.Millisecond, 20 * time.Millisecond
	pause := soonest
	var look func()
	look = func() {
		n, err := e.fd.Unsent()
		if e.local || err != nil || n == 0 || e.gone() || s.sh.now() >= until {
			s.abort(nil)
			return
		}
		s.bound = s.sh.after(pause, look)
		pause = min(2*pause, latest)
	}
	s.bound.stop()
	look()
}

// gone tells whether a connection is over, so that what is unsent never will be.
func (e *end) gone() bool {
	_, err := e.fd.Peer()
	return err != nil
}

// abort ends the session now, with resets: on the shard.
func (s *stream) abort(err error) {
	if s.over {
		return
	}
	s.because(err)
	s.finish(nil)
}

// finish closes both sides, with resets where how is nil, and takes leave.
func (s *stream) finish(how func(ksock.FD)) {
	if s.dur != nil && s.isLeftBehind() {
		s.letGo(how != nil)
		return
	}
	if how == nil {
		s.dur.mark(fateReset)
	} else {
		s.dur.mark(fateEnded)
	}
	s.stop(how)
	s.from.leave(how)
	s.to.leave(how)
	if s.dur != nil {
		s.dur.leave()
	}
	s.r.exit(s)
}

// stop is the end of all but the two sides.
func (s *stream) stop(how func(ksock.FD)) {
	s.over = true
	s.mu.Lock()
	s.ended = true
	s.mu.Unlock()
	s.up.close(s)
	s.down.close(s)
	s.bound.stop()
	s.idle.stop()
	s.stopDial(how)
	s.spare.drop()
	s.load.leave()
	s.sh.live.Add(-1)
}

// leave closes one side.
func (e *end) leave(how func(ksock.FD)) {
	if e.fd == ksock.NoDescriptor {
		return
	}
	if e.own && !e.parked {
		e.s.sh.forget(e.token)
	} else {
		e.s.sh.unwatch(e.token, int(e.fd))
	}
	switch {
	case how == nil && e.parked:
		e.fd.ResetAll(!e.local)
	case how == nil:
		e.fd.Reset(!e.local)
	case e.parked:
		e.fd.End()
	default:
		how(e.fd)
	}
	e.fd = ksock.NoDescriptor
}

// end ends the session from anywhere: conversation.
func (s *stream) end(err error) {
	s.because(err)
	s.mu.Lock()
	cancel, over := s.prologue, s.ended
	s.mu.Unlock()
	switch {
	case over:
		return
	case cancel != nil:
		cancel()
		return
	}
	s.sh.do(func() { s.abort(err) })
}

// watchIdle ends the session when nothing has moved for d.
func (s *stream) watchIdle() {
	if d := s.plan.idleFor(kindStream); d > 0 {
		s.idle = s.sh.after(d, func() { s.checkIdle(d) })
	}
}

// checkIdle looks how long it has been quiet, rather than starting an alarm anew for
// each piece of data.
func (s *stream) checkIdle(d time.Duration) {
	quiet := s.quiet()
	if quiet >= d {
		s.abort(fmt.Errorf("idle for %v", d))
		return
	}
	s.idle.reset(d - quiet)
}

// sideError says which side an error came from.
func (s *stream) sideError(e *end, err error) error {
	return &legFault{fmt.Errorf("%s: %w", s.side(e), err)}
}

func (s *stream) side(e *end) string {
	peer, backend := s.parties()
	if e == &s.from {
		return "from " + describe(peer)
	}
	return "to " + describe(backend)
}

// parties are both ends, for lists.
func (s *stream) parties() (peer, backend string) {
	s.mu.Lock()
	peer, backend = s.peerText, s.toText
	s.mu.Unlock()
	if peer != "" || s.namer == nil {
		return peer, backend
	}
	if a := s.namer.NameAddr(s.peer); a != nil {
		peer = textOf(a.Network(), a, "")
	}
	return peer, backend
}

// setPeer is what a PROXY header says of the client.
func (s *stream) setPeer(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.peerText = text
}

func (s *stream) path() string {
	if s.up.splicing.Load() || s.down.splicing.Load() {
		return "splice"
	}
	return "copy"
}

func (s *stream) loop() *shard { return s.sh }

func (s *stream) measure() (rx, tx books) {
	return s.rx.audit(amount{bytes: int64(s.up.inHand())}), s.tx.audit(amount{bytes: int64(s.down.inHand())})
}

// kernelDrops is 0: streams lose nothing on their way.
func (s *stream) kernelDrops() uint64 { return 0 }

// errTimedOut is a dial that took too long.
func errTimedOut(d time.Duration) error {
	return fmt.Errorf("no connection within %v: %w", d, syscall.ETIMEDOUT)
}
