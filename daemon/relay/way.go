package relay

import (
	"sync/atomic"
	"syscall"

	"github.com/sockd/sockd/families/ksock"
)

// way is one direction of a stream: what its source gives goes to its sink. At most
// one piece is in hand: what the sink did not take of it stays here, and nothing
// more is taken from the source meanwhile, so that a peer that does not read stops
// the other one from sending and nothing piles up.
//
//	        ┌─ 64 KiB, in bulk 512 KiB ─► room (the shard's) ─┐
//	source ─┤                                                 ├─► sink
//	        └─ bulk from TCP to unix ───► pipe (spliced) ─────┘
//
// Copying in large pieces is as fast as splicing towards TCP, and takes less of the
// whole machine; towards a unix socket splicing saves it a copy. A stream that is to
// outlive this process takes the pipe alone: then no byte is ever in its memory (see
// durable_way.go).
type way struct {
	src, dst *end
	flow     *flow

	held   []byte // what dst did not take yet
	off    int    // what of held is sent
	room   *room  // where held is, or nil: it is a slice of its own
	urgent bool   // held is the urgent byte
	files  []int  // that go with the first byte of held

	pipe     *ksock.Pipe // nil while no bytes are in it, but of a durable stream
	lane     *lane       // of a durable stream: where its counters outlive this process
	splicing atomic.Bool
	bulk     bool
	streak   int // pieces in a row that speak for the other means

	round  int  // bytes of this run
	place  turn // at the relay's rate
	ended  bool // the source has ended; what is in hand comes first
	closed bool // nothing moves any more
	paused bool // an alarm will go on
}

const (
	// turnPieces and turnBytes bound what one direction moves before others have
	// their turn: some hundred microseconds.
	turnPieces = 64
	turnBytes  = 1 << 20
	// fileCost is what a descriptor that comes along counts for in a turn: some
	// microseconds, in which 16 KiB would have moved.
	fileCost = 16 << 10
	// manyFull pieces in a row that fill all of their room are bulk, manySmall ones
	// are not.
	manyFull  = 2
	manySmall = 8
	// unixSendBuffer is what a unix sink gets for bulk: the stock 208 KiB would take
	// half of a piece at a time, and a fifth of a pipe.
	unixSendBuffer = 2 << 20
	// tcpSendBuffer is what a TCP sink gets where the system allows it. The more is on
	// its way, the longer a sink may be scheduled away before the source has to wait:
	// a twentieth faster, and a tenth less CPU time.
	tcpSendBuffer = 4 << 20
)

// inHand is how many bytes have been received and not passed on.
func (w *way) inHand() int {
	n := len(w.held) - w.off
	if w.pipe != nil {
		n += w.pipe.Held
	}
	return n
}

// run moves what can be moved now; more tells that there is more, after others had
// their turn.
func (w *way) run(s *stream) (more bool) {
	w.round = 0
	for pieces := 0; pieces < turnPieces && w.round < turnBytes; pieces++ {
		if !w.step(s) {
			w.rest(s)
			return false
		}
	}
	return true
}

// rest lets go of a pipe that nothing flows through.
func (w *way) rest(s *stream) {
	if w.pipe != nil && w.pipe.Held == 0 && w.lane == nil {
		s.sh.pipes.give(w.pipe)
		w.pipe = nil
	}
}

// step moves one piece; false means that there is nothing to do before the next
// event.
func (w *way) step(s *stream) bool {
	switch {
	case w.closed, w.paused:
		return false
	case w.inHand() > 0:
		return w.flush(s)
	case w.ended:
		s.sourceEnded(w)
		return false
	case !w.src.readable || !w.dst.writable:
		return false
	}
	return w.take(s)
}

// take receives one piece. A splice stops at the urgent byte by itself.
func (w *way) take(s *stream) bool {
	if w.lane != nil {
		return w.takeKept(s)
	}
	splicing := w.splicing.Load()
	if !splicing || w.src.urgent {
		any, urgent := w.src.look()
		switch {
		case !any:
			w.src.readable = false
			return false
		case urgent:
			return w.takeUrgent(s)
		}
	}
	n := s.pace(w)
	switch {
	case n == 0:
		return false
	case splicing:
		return w.fillPipe(s, n)
	}
	return w.copy(s, n)
}

// copy takes one piece through memory.
func (w *way) copy(s *stream, limit int) bool {
	size := pieceRoom
	if w.bulk {
		size = bulkRoom
	}
	room := s.sh.room[:min(limit, size)]
	n, err := w.recv(s, room)
	s.unpace(w, limit-n)
	switch {
	case err != nil:
		return w.nothing(s, err)
	case n == 0:
		w.ended = true
		return true
	}
	w.received(s, n)
	w.src.drained(n < len(room))
	w.weigh(n >= pieceRoom)
	sent, err := w.sendFirst(room[:n])
	w.flow.outBytes.Add(int64(sent))
	if sent == n {
		return true
	}
	w.keep(s.sh, sent, n)
	return w.refused(s, err)
}

// first takes a piece into hand, for a sink that may not be there yet. Descriptors and
// an urgent byte wait for it. The error is the source's.
func (w *way) first(s *stream) error {
	if any, urgent := w.src.look(); !any || urgent || w.src.local {
		return nil
	}
	limit := s.pace(w)
	if limit == 0 {
		return nil
	}
	n, err := w.src.fd.Recv(s.sh.room[:min(limit, pieceRoom)])
	s.unpace(w, limit-n)
	switch {
	case ksock.IsEAGAIN(err):
		return nil
	case err != nil:
		return err // the kernel tells it once
	case n == 0:
		return nil // the end stays
	}
	w.src.sure = false
	w.received(s, n)
	w.keep(s.sh, 0, n)
	return nil
}

// recv is one attempt. A unix source may send descriptors along: they are passed on
// where the relay is asked to, with the bytes that they came with, else closed and
// counted.
func (w *way) recv(s *stream, room []byte) (int, error) {
	if !w.src.local {
		return w.src.fd.Recv(room)
	}
	pass := s.plan.pass && w.dst.local
	if pass {
		if n := w.src.fd.FilesAhead(room); n > 0 {
			room = room[:n] // they come with the next piece
		}
	}
	n, files, cut, err := w.src.fd.RecvFiles(room)
	w.round += len(files) * fileCost
	switch {
	case cut:
		s.lost.add(causeFiles, 1)
	case pass:
		w.files = files
	case len(files) > 0:
		s.lost.add(causeFiles, int64(len(files)))
		ksock.CloseFiles(files)
	}
	return n, err
}

// sendFirst is the first attempt to send a piece.
func (w *way) sendFirst(b []byte) (int, error) {
	if len(w.files) == 0 {
		return w.dst.fd.Send(b)
	}
	return w.sendFiles(b)
}

// sendFiles sends a piece with what belongs to its first byte, which is here no more
// when that has gone.
func (w *way) sendFiles(b []byte) (int, error) {
	n, err := w.dst.fd.SendFiles(b, w.files)
	if n > 0 {
		ksock.CloseFiles(w.files)
		w.files = nil
	}
	return n, err
}

// keep holds what the sink did not take of the shard's room. A large rest stays where
// it is, and the shard gets another room.
func (w *way) keep(sh *shard, from, to int) {
	if to-from > pieceRoom {
		w.held, w.off, w.room = sh.room[from:to], 0, sh.room
		sh.room = rooms.Get().(*room)
		return
	}
	w.held, w.off = append([]byte(nil), sh.room[from:to]...), 0
}

// fillPipe takes one piece into the pipe.
func (w *way) fillPipe(s *stream, limit int) bool {
	if w.pipe == nil {
		pipe, err := s.sh.pipes.take()
		if err != nil { // no descriptor, no memory: copying needs none
			s.unpace(w, limit)
			w.splicing.Store(false)
			return true
		}
		w.pipe = pipe
	}
	n, err := w.pipe.Fill(w.src.fd, limit)
	w.src.sure = false
	s.unpace(w, limit-n)
	switch {
	case err != nil:
		return w.nothing(s, err)
	case n == 0 && w.src.fd.AtMark(): // with the end behind it, it looks like the end
		w.src.urgent = true
		return true
	case n == 0:
		return w.endOf(s)
	}
	w.received(s, n)
	w.weigh(n >= min(pieceRoom, w.pipe.Size/2))
	return w.flush(s)
}

// endOf is what becomes of a splice that gave the end.
func (w *way) endOf(s *stream) bool {
	if w.lane != nil && !w.endIsTrue(s) {
		s.brokenSource(w, syscall.ECONNRESET)
		return false
	}
	w.ended = true
	return true
}

// weigh decides from the pieces whether the stream is bulk.
func (w *way) weigh(large bool) {
	if large == w.bulk {
		w.streak = 0
		return
	}
	if w.streak++; w.bulk && w.streak < manySmall || w.streak < manyFull {
		return
	}
	w.streak, w.bulk = 0, large
	if w.bulk {
		w.dst.deepen()
	}
	if w.lane != nil {
		w.resize()
		return
	}
	// What is spliced out of a unix socket loses its descriptors without a word.
	w.splicing.Store(w.bulk && w.dst.local && !w.src.local && w.src.own && w.dst.own)
}

// takeUrgent passes the urgent byte on as such.
func (w *way) takeUrgent(s *stream) bool {
	n, err := w.src.fd.Recv(s.sh.room[:1])
	switch {
	case err != nil:
		return w.nothing(s, err)
	case n == 0:
		w.ended = true
		return true
	}
	w.src.urgent = false
	w.src.sure = false
	w.received(s, 1)
	w.keep(s.sh, 0, 1)
	w.urgent = true
	return w.flush(s)
}

// nothing is what becomes of an attempt to receive that gave none.
func (w *way) nothing(s *stream, err error) bool {
	if !ksock.IsEAGAIN(err) {
		s.brokenSource(w, err)
		return false
	}
	// At the mark, splice says EAGAIN for as long as the urgent byte is there.
	if w.src.fd.AtMark() && w.src.hasInput() {
		w.src.urgent = true
		return true
	}
	w.src.readable, w.src.urgent, w.src.sure = false, false, false
	return false
}

func (w *way) received(s *stream, n int) {
	w.flow.inBytes.Add(int64(n))
	w.note()
	w.round += n
	s.moved = true
}

// flush gives the sink what is in hand; true means it took all.
func (w *way) flush(s *stream) bool {
	for w.inHand() > 0 {
		if !w.dst.writable {
			w.flow.waits.Store(true)
			return false
		}
		n, err := w.drain()
		w.flow.outBytes.Add(int64(n))
		w.note()
		if n > 0 {
			s.moved = true
		}
		if err != nil && !w.refused(s, err) {
			return false
		}
	}
	w.flow.waits.Store(false)
	return true
}

// drain is one attempt.
func (w *way) drain() (int, error) {
	if w.pipe != nil && w.pipe.Held > 0 {
		return w.pipe.Drain(w.dst.fd)
	}
	n, err := w.send()
	if w.off += n; w.off == len(w.held) {
		w.drop()
	}
	return n, err
}

func (w *way) send() (int, error) {
	switch {
	case len(w.files) > 0:
		return w.sendFiles(w.held[w.off:])
	case !w.urgent:
		return w.dst.fd.Send(w.held[w.off:])
	}
	err := w.dst.fd.SendUrgent(w.held[0])
	switch err {
	case nil:
		return 1, nil
	case syscall.EOPNOTSUPP, syscall.EINVAL: // a sink without urgent bytes gets it in its place
		return w.dst.fd.Send(w.held)
	}
	return 0, err
}

// drop lets go of what was held.
func (w *way) drop() {
	if w.room != nil {
		rooms.Put(w.room)
	}
	w.held, w.off, w.room, w.urgent = nil, 0, nil, false
}

// refused is what becomes of a sink that did not take all: it is full, or broken.
func (w *way) refused(s *stream, err error) bool {
	switch {
	case err == nil:
		return true // the next attempt says why
	case ksock.IsEAGAIN(err):
		w.dst.full()
		w.flow.waits.Store(true)
		return false
	}
	s.brokenSink(w, err)
	return false
}

// close ends the way: what is in hand is lost, and counted.
func (w *way) close(s *stream) {
	if n := w.inHand(); n > 0 {
		w.flow.lostBytes.Add(int64(n))
		s.lost.add(causeUnsent, int64(n))
	}
	if len(w.files) > 0 {
		s.lost.add(causeFiles, int64(len(w.files)))
		ksock.CloseFiles(w.files)
		w.files = nil
	}
	w.drop()
	if w.pipe != nil && w.lane == nil {
		s.sh.pipes.give(w.pipe)
	}
	w.pipe = nil // a durable one's is its durability's
	w.place.leave()
	w.flow.waits.Store(false)
	w.flow.paced.Store(false)
	w.closed = true
}
