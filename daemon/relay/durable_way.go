package relay

import (
	"syscall"

	"github.com/sockd/sockd/families/ksock"
)

// What is different in a way of a durable stream. Its bytes are in its source, its
// pipe, or its sink, so that whoever has them goes on by the same step: drain the pipe,
// then fill it. After each move its counters are noted, before the next one.
//
//	source ──splice──► pipe ──splice──► sink
//	          in ▲              ▲ out
//	             ╰─── lane ─────╯

// note writes down what has moved: two stores, for one that is different.
func (w *way) note() {
	if w.lane == nil {
		return
	}
	w.lane.in.Store(w.flow.inBytes.Load())
	w.lane.out.Store(w.flow.outBytes.Load())
}

// takeKept takes one piece into the pipe, which is empty. Splice stops at a TCP urgent
// byte by itself; that of a unix socket it would take for any other.
func (w *way) takeKept(s *stream) bool {
	if w.src.urgent || w.src.local {
		any, urgent := w.src.look()
		switch {
		case !any:
			return false
		case urgent:
			return w.passUrgent(s)
		}
	}
	n := s.pace(w)
	return n != 0 && w.fillPipe(s, n)
}

// passUrgent passes the urgent byte on as such. It is sent before it is taken, and
// written down between the two: a process that is killed in the first gap has it sent
// twice, and never not at all.
func (w *way) passUrgent(s *stream) bool {
	if w.lane.urgent.Load() != w.flow.inBytes.Load()+1 {
		if done, more := w.sendPeeked(s); !done {
			return more
		}
		w.lane.urgent.Store(w.flow.inBytes.Load() + 1)
	}
	var one [1]byte
	if n, err := w.src.fd.Recv(one[:]); err != nil || n == 0 {
		s.brokenSource(w, syscall.ECONNRESET) // it was there just now
		return false
	}
	w.src.urgent, w.src.sure = false, false
	w.flow.outBytes.Add(1)
	w.received(s, 1)
	return true
}

// sendPeeked sends the byte that the source gives next, as urgent where the sink has
// such. When it is not done, more is what passUrgent returns.
func (w *way) sendPeeked(s *stream) (done, more bool) {
	var one [1]byte
	n, err := w.src.fd.Peek(one[:])
	switch {
	case err != nil:
		return false, w.nothing(s, err)
	case n == 0:
		return false, w.endOf(s)
	}
	switch err = w.dst.fd.SendUrgent(one[0]); err {
	case syscall.EOPNOTSUPP, syscall.EINVAL: // a sink without urgent bytes gets it in its place
		_, err = w.dst.fd.Send(one[:])
	}
	if err != nil {
		return false, w.refused(s, err)
	}
	return true, false
}

// endIsTrue tells an end from an error that the process before was told and not this
// one, since the kernel tells each once: after a FIN, TCP has received one more than
// was taken, after a reset it has not. A unix socket has no such count; there the
// process before has noted the error.
func (w *way) endIsTrue(s *stream) bool {
	switch {
	case !s.dur.again || s.broken:
		return true // what this process was told, and ends that it made itself
	case s.dur.acct.fate.Load() >= fateBroke:
		return false
	case w.src.local:
		return true
	}
	n, err := w.src.fd.Received()
	return err != nil || n > w.flow.inBytes.Load()
}

// resize makes the pipe larger for bulk, and small again: large ones are scarce (pipe(7),
// fs.pipe-user-pages-soft).
func (w *way) resize() {
	size := ksock.PlainPipe
	if w.bulk {
		size = pipeSize
	}
	_ = w.pipe.Resize(size) // EPERM, EBUSY: it stays as it is
}
