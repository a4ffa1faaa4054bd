package varlink

import (
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A reserve is one descriptor that is held for nothing. When a process has no
// other left, connections wait in the listener's queue and their callers do not
// learn why: accept(2) cannot take them even to close them. With the reserve given
// up it can take one, tell it, and close it, which gives the reserve back.
type reserve struct{ f *os.File }

// take takes the reserve, unless it is held already, and tells whether it is held.
func (r *reserve) take() bool {
	if r.f == nil {
		if f, err := os.Open(os.DevNull); err == nil {
			r.f = f
		}
	}
	return r.f != nil
}

// free gives the reserve up, and tells whether there was one.
func (r *reserve) free() bool {
	if r.f == nil {
		return false
	}
	_ = r.f.Close() // nothing was written
	r.f = nil
	return true
}

// errnoOf is what accept(2) said, without the listener's address.
func errnoOf(err error) error {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno
	}
	return err
}

// hasCaller tells whether a connection waits to be accepted.
func hasCaller(l *net.UnixListener) bool {
	rc, err := l.SyscallConn()
	if err != nil {
		return false
	}
	n := 0
	err = rc.Control(func(fd uintptr) {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, _ = retryEINTR(func() (int, error) { return unix.Poll(fds, 0) })
	})
	return err == nil && n > 0
}

// turnAwayTime bounds what does not wait: to accept a connection that is there, and
// to write some hundred bytes into an empty queue.
const turnAwayTime = time.Second

// turnAway accepts one connection, by the descriptor that spare has given up, to
// say why it cannot be served. It is false when somebody else in this process was
// faster to take the descriptor.
func (s *Server) turnAway(l *net.UnixListener, spare *reserve, why error) bool {
	_ = l.SetDeadline(time.Now().Add(turnAwayTime)) // fails on a closed listener: so does the accept
	uc, err := l.AcceptUnix()
	_ = l.SetDeadline(time.Time{})
	if err != nil {
		return false
	}
	if spare.take() {
		s.admit(uc) // descriptors have come back meanwhile
		return true
	}
	s.stats.turnedAway.Add(1)
	sc := &serverConn{srv: s, conn: NewConn(uc)}
	_ = sc.conn.SetWriteDeadline(time.Now().Add(turnAwayTime)) // the write tells
	why = fmt.Errorf("the service cannot take another caller: %w", errnoOf(why))
	_ = sc.write(&Reply{}, s.answerError(why)) // a peer that is gone needs no answer
	_ = sc.conn.Close()                        // it has carried nothing else
	return true
}
