// Package borrow makes the calls on unix sockets and network namespaces that the
// daemon must not make for its callers: those that a path, an abstract name or a
// namespace grants to whoever asks. sockd-ctl makes them in its own process, with
// its user's rights, on a descriptor that the daemon lent, or on one that it
// hands over afterwards. So files belong to that user, and SO_PEERCRED tells the
// peer of him and not of the daemon.
//
// The daemon never calls this package. Every function takes a path as the user
// wrote it: relative to the working directory, "@name" for an abstract name, and
// "./@x" for a file that is called so. Errors are *families.OpError.
package borrow

import (
	"context"
	"errors"
	"math"
	"time"

	"golang.org/x/sys/unix"
)

// Bind binds a borrowed socket. A path that is left from a socket on which nobody
// listens any more is replaced, as by the caller himself: a live one is
// EADDRINUSE.
func Bind(fd int, addr string) error {
	return opError("bind", addr, bind(fd, addr))
}

func bind(fd int, addr string) error {
	return at(addr, func(sa unix.Sockaddr) error {
		err := unix.Bind(fd, sa)
		if !errors.Is(err, unix.EADDRINUSE) || isAbstract(addr) {
			return err
		}
		if err := removeStale(fd, addr, sa); err != nil {
			return err
		}
		return unix.Bind(fd, sa)
	})
}

// removeStale unlinks the socket at addr when nobody is behind it, and says
// EADDRINUSE otherwise. Between the question and the unlink somebody may bind the
// path: unix(7) knows no lock against it, and so has every program that replaces
// a stale path.
func removeStale(fd int, addr string, sa unix.Sockaddr) error {
	path, err := absolute(addr)
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFSOCK || !isStale(fd, sa) {
		return unix.EADDRINUSE
	}
	return unix.Unlink(path)
}

// isStale tries to connect with a socket of fd's type. Only ECONNREFUSED says
// that nobody is there: a peer of another type, with a full backlog, or who may
// not be asked, is somebody.
func isStale(fd int, sa unix.Sockaddr) bool {
	typ, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil {
		return false
	}
	probe, err := unix.Socket(unix.AF_UNIX, typ|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return false
	}
	defer unix.Close(probe)
	return errors.Is(unix.Connect(probe, sa), unix.ECONNREFUSED)
}

// Connect connects a borrowed socket, and waits while the peer's backlog is full
// until ctx ends.
func Connect(ctx context.Context, fd int, addr string) error {
	err := at(addr, func(sa unix.Sockaddr) error {
		return patiently(ctx, func() error { return unix.Connect(fd, sa) })
	})
	return opError("connect", addr, err)
}

// Listen opens the queue of pending connections. It is the caller's to do
// because the kernel shows the peers who called listen(2). A backlog of 0 or less
// is the system's largest (net.core.somaxconn).
func Listen(fd, backlog int) error {
	if backlog <= 0 {
		backlog = math.MaxInt32
	}
	return opError("listen", "", unix.Listen(fd, backlog))
}

// SendTo sends one message to an address, and waits while the receiver's queue is
// full until ctx ends.
func SendTo(ctx context.Context, fd int, data []byte, addr string) error {
	err := at(addr, func(sa unix.Sockaddr) error {
		return patiently(ctx, func() error { return unix.Sendto(fd, data, unix.MSG_NOSIGNAL, sa) })
	})
	return opError("send", addr, err)
}

// patiently makes attempts until one is not EAGAIN. A full unix backlog, and the
// full queue of a receiver that one is not connected to, have nothing to poll
// (unix(7)): only asking again helps. A ctx that has ended makes one attempt.
func patiently(ctx context.Context, attempt func() error) error {
	const longest = 50 * time.Millisecond
	for pause := time.Millisecond; ; pause = min(2*pause, longest) {
		err := retryEINTR(attempt)
		if !errors.Is(err, unix.EAGAIN) {
			return err
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return context.Cause(ctx)
		case <-timer.C:
		}
	}
}

func retryEINTR(f func() error) error {
	for {
		if err := f(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
