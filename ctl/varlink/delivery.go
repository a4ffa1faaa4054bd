package varlink

import (
	"context"
	"slices"
	"time"
)

// A method may take something irrevocably, as a message from a socket's queue, for
// a caller who dies before it reads the answer. An AF_UNIX stream tells: when a
// peer closes with unread bytes in its queue, our end gets ECONNRESET, else a
// clean end of stream.
//
//	answer written ──> nothing left unread (SIOCOUTQ)   ──> delivered
//	       │           peer closed, no ECONNRESET       ──> delivered
//	       │           peer closed, ECONNRESET          ──> taken back
//	not written ───────────────────────────────────────────> taken back
//
// When a pipelining caller dies, answers that it read just before may be taken
// back together with the ones that it did not: nothing is lost, but something may
// come twice. What is pending is bounded by what the kernel holds for a peer that
// does not read, some 200 KiB of answers, and one more.
type delivery struct {
	takeBack func()
	end      int64 // of its answer in the stream of all that was written
}

// addPending registers for the answer that was written last.
func (sc *serverConn) addPending(takeBacks ...func()) {
	sc.mu.Lock()
	defer sc.mu.Unlock()
	for _, takeBack := range takeBacks {
		sc.pending = append(sc.pending, delivery{takeBack, sc.written})
	}
}

func (sc *serverConn) hasPending() bool {
	sc.mu.Lock()
	defer sc.mu.Unlock()
	return len(sc.pending) > 0
}

// confirm forgets the pending answers that have been read. When one is unread,
// all that was written behind it is too; so it has been read when as much as the
// peer's whole queue was written behind it. The kernel counts a queue with its
// overhead, so this errs on the side of unread. The queue is asked for before the
// error: a peer that closes sets the error before it throws its queue away.
func (sc *serverConn) confirm() {
	if !sc.hasPending() {
		return
	}
	unread, err := sc.conn.unread()
	if err != nil {
		return
	}
	sc.noteReset(sc.conn.pendingError())
	sc.mu.Lock()
	defer sc.mu.Unlock()
	if sc.reset {
		return
	}
	sc.pending = slices.DeleteFunc(sc.pending, func(d delivery) bool {
		return sc.written-d.end >= int64(unread)
	})
}

// awaitReading gives a peer that has closed its sending half the time to read its
// answers.
func (sc *serverConn) awaitReading() {
	if !sc.hasPending() {
		return
	}
	stop := context.AfterFunc(sc.srv.ctx, func() { _ = sc.conn.SetWriteDeadline(past) })
	defer stop()
	_ = sc.conn.waitRead(time.Now().Add(orDefault(sc.srv.StallTimeout, DefaultStallTimeout))) // settle looks again
}

// settle decides on what is pending, since nothing more will be learned.
func (sc *serverConn) settle() {
	sc.confirm()
	sc.mu.Lock()
	lost := sc.pending
	sc.pending = nil
	sc.mu.Unlock()
	for _, d := range slices.Backward(lost) {
		sc.takeBack(d.takeBack)
	}
}

// takeBack calls the latest first, so that each can go back to the head of the
// queue that it came from.
func (sc *serverConn) takeBack(takeBacks ...func()) {
	for _, takeBack := range slices.Backward(takeBacks) {
		sc.srv.stats.undelivered.Add(1)
		takeBack()
	}
}
