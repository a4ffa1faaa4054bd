package ksock

import (
	"context"
	"errors"
	"net"
	"os"
	"sync"
	"time"

	"github.com/sockd/sockd/families"
	"golang.org/x/sys/unix"
)

// line is the queue of callers that wait for one direction of a socket.
//
// Go's poller lets one caller at a time wait for a direction, and has one
// deadline for it. So the first in line does the waiting and the others wait for
// their turn to be the first:
//
//	Wait ──► nobody leads? ──yes──► lead: poll, sleep in the runtime's poller
//	              │no                  │ ready, own context ended, or closed
//	              ▼                    ▼
//	        stand in line ◄──turn── pass the lead to the next, return
//	              │ own context ended
//	              ▼
//	        leave the line, return
//
// No goroutine is needed, and no wake-up is lost: who gets the lead polls before
// it sleeps. When a socket is readable, the lead runs down the line at once; if
// somebody takes the data meanwhile, it stops where there is nothing to read.
type line struct {
	mu          sync.Mutex // guards led, first, last and the waiters' links
	led         bool
	first, last *waiter
}

type waiter struct {
	turn       chan struct{} // receives once: you lead
	prev, next *waiter
	queued     bool
}

// enter takes the lead and returns nil, or stands in line.
func (l *line) enter() *waiter {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.led {
		l.led = true
		return nil
	}
	w := &waiter{turn: make(chan struct{}, 1), prev: l.last, queued: true}
	if l.last == nil {
		l.first = w
	} else {
		l.last.next = w
	}
	l.last = w
	return w
}

// leave takes w out of the line, or reports that it had the lead already.
func (l *line) leave(w *waiter) (led bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !w.queued {
		return true
	}
	l.removeLocked(w)
	return false
}

// pass gives the lead to the next in line.
func (l *line) pass() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.first == nil {
		l.led = false
		return
	}
	w := l.first
	l.removeLocked(w)
	w.turn <- struct{}{} // has room: each waiter gets one turn
}

func (l *line) removeLocked(w *waiter) {
	if w.prev == nil {
		l.first = w.next
	} else {
		w.prev.next = w.next
	}
	if w.next == nil {
		l.last = w.prev
	} else {
		w.next.prev = w.prev
	}
	w.prev, w.next, w.queued = nil, nil, false
}

// direction is what a caller waits for: one of the two.
type direction bool

const (
	reading direction = false
	writing direction = true
)

func (b *Base) line(d direction) *line {
	if d == writing {
		return &b.write
	}
	return &b.read
}

// events are what poll(2) is asked. The urgent byte (POLLPRI) is not among them:
// without SO_OOBINLINE it stays pending while there is nothing to receive.
func (d direction) events() int16 {
	if d == writing {
		return unix.POLLOUT
	}
	return unix.POLLIN | unix.POLLRDHUP
}

// sleepUntil sleeps in the runtime's poller until ready says so.
func (b *Base) sleepUntil(d direction, ready func(fd uintptr) bool) error {
	if d == writing {
		return b.rc.Write(ready)
	}
	return b.rc.Read(ready)
}

func (b *Base) setDeadline(d direction, t time.Time) {
	// Errors are those of a closed socket, where nobody sleeps any more.
	if d == writing {
		_ = b.conn.SetWriteDeadline(t)
		return
	}
	_ = b.conn.SetReadDeadline(t)
}

// Wait returns nil when r may hold, at once if it does already; ctx's error; or
// net.ErrClosed. Of a socket that is not connected nothing can be received, which
// Recv tells, so Wait does not wait for it.
func (b *Base) Wait(ctx context.Context, r families.Ready) error {
	switch r {
	case families.Readable:
		return b.wait(ctx, reading)
	case families.Writable:
		return b.waitWritable(ctx)
	case families.Readable | families.Writable:
		return b.waitEither(ctx)
	}
	return unix.EINVAL
}

func (b *Base) wait(ctx context.Context, d direction) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	queue := b.line(d)
	if w := queue.enter(); w != nil {
		select {
		case <-w.turn:
		case <-ctx.Done():
			if queue.leave(w) {
				queue.pass()
			}
			return ctx.Err()
		}
	}
	defer queue.pass()
	return b.lead(ctx, d)
}

// longAgo as a deadline ends a wait at once.
var longAgo = time.Unix(1, 0)

// nap is one sleep in the runtime's poller. Naps are reused, since a relay takes
// one for each message of a slow peer.
type nap struct {
	b      *Base
	d      direction
	lapsed chan struct{} // receives once for each lapse that ran
	// lapse and ready are closures over the nap, made once.
	lapse func()
	ready func(fd uintptr) bool
}

var naps = sync.Pool{New: func() any {
	n := &nap{lapsed: make(chan struct{}, 1)}
	n.lapse = func() {
		n.b.setDeadline(n.d, longAgo)
		n.lapsed <- struct{}{}
	}
	n.ready = func(fd uintptr) bool {
		now := poll(int(fd), n.d.events())
		n.b.noteEnd(now)
		return now != 0
	}
	return n
}}

// lead waits in the runtime's poller. Only who has the lead touches the deadline,
// and leaves none behind.
func (b *Base) lead(ctx context.Context, d direction) error {
	n := naps.Get().(*nap)
	n.b, n.d = b, d
	err := n.sleep(ctx)
	n.b = nil
	naps.Put(n)
	switch {
	case err == nil:
		return nil
	case b.closed.Load():
		return net.ErrClosed
	case errors.Is(err, os.ErrDeadlineExceeded):
		return ctx.Err()
	}
	// The poller cannot report an error alone (EPOLLERR without EPOLLIN); the
	// next attempt can. The pause keeps a caller whose attempts cannot either
	// from spinning.
	return sleep(ctx, time.Millisecond)
}

// sleep sleeps until the socket is ready, closed, or ctx ends. When it returns,
// lapse runs no more.
func (n *nap) sleep(ctx context.Context) error {
	if ctx.Done() == nil {
		return n.b.sleepUntil(n.d, n.ready)
	}
	stop := context.AfterFunc(ctx, n.lapse)
	err := n.b.sleepUntil(n.d, n.ready)
	if !stop() {
		<-n.lapsed
		n.b.setDeadline(n.d, time.Time{})
	}
	return err
}

// noteEnd remembers that a datagram socket was shut down for reading. poll(2) says
// so again and again, while recvmsg(2) says EAGAIN when it cannot block: without
// this, callers would spin.
func (b *Base) noteEnd(events int16) {
	if events&unix.POLLRDHUP != 0 && (b.typ == families.Dgram || b.typ == families.Raw) {
		b.ended.Store(true)
	}
}

// waitWritable is for most sockets what poll(2) says. A unix datagram socket
// without a peer counts as writable while the receiver's queue is full
// (unix_dgram_poll knows no receiver): there, Wait is a pause.
func (b *Base) waitWritable(ctx context.Context) error {
	if !b.crowded.Swap(false) {
		return b.wait(ctx, writing)
	}
	if err := sleep(ctx, time.Millisecond); err != nil {
		return err
	}
	if b.closed.Load() {
		return net.ErrClosed
	}
	return nil
}

// waitEither waits for both directions at once, by a goroutine for the second
// one that has ended before waitEither returns.
func (b *Base) waitEither(ctx context.Context) error {
	both, cancel := context.WithCancel(ctx)
	defer cancel()
	writable := make(chan error, 1)
	go func() {
		defer cancel()
		writable <- b.waitWritable(both)
	}()
	readErr := b.wait(both, reading)
	cancel()
	writeErr := <-writable
	switch {
	case readErr == nil || writeErr == nil:
		return nil
	case b.closed.Load():
		return net.ErrClosed
	}
	return ctx.Err()
}

// poll asks which of events hold now; errors and hang-ups always count.
func poll(fd int, events int16) int16 {
	fds := [1]unix.PollFd{{Fd: int32(fd), Events: events}}
	for {
		_, err := unix.Poll(fds[:], 0)
		switch err {
		case nil:
			return fds[0].Revents
		case unix.EINTR:
		default:
			return unix.POLLERR // the attempt will tell
		}
	}
}
