// Package borrow makes the calls on unix sockets and network namespaces that the
// daemon must not make for its callers: those that a path, an abstract name or a
// namespace grants to whoever asks. sockd-ctl makes them in its own process, with
// its user's rights, on a descriptor that the daemon lent, or on one that it
// hands over afterwards. So files belong to that user, and SO_PEERCRED tells the
// peer of him and not of the daemon.
//
// The daemon never calls this package. Every function takes an address in plain
// form (families.Unescape): a path, relative to the working directory or not, "@name"
// for an abstract name, and "./@x" for a file that is called so. Errors are
// *families.OpError; an address that cannot be one wraps families.ErrSyntax.
package borrow

import (
	"context"
	"errors"
	"math"
	"time"

	"golang.org/x/sys/unix"
)

// Bind binds a borrowed socket. A path that is left from a socket that nobody has
// any more is replaced, as by the caller himself: a live one, listening or not yet,
// is EADDRINUSE.
func Bind(fd int, addr string) error {
	return opError("bind", addr, bind(fd, addr))
}

// bind binds a path from the root: that is how everybody will see it.
func bind(fd int, addr string) error {
	abstract := isAbstract(addr)
	if !abstract {
		var err error
		if addr, err = absolute(addr); err != nil {
			return err
		}
	}
	sa, err := sockaddrOf(addr)
	if err != nil {
		return err
	}
	if err := sa.bind(fd); abstract || !errors.Is(err, unix.EADDRINUSE) {
		return err
	}
	if err := removeStale(addr, sa); err != nil {
		return err
	}
	return sa.bind(fd)
}

// removeStale unlinks the socket at path when nobody has it, and says EADDRINUSE
// otherwise. Between the question and the unlink somebody may bind the path:
// unix(7) knows no lock against it, and so has every program that replaces a stale
// path.
func removeStale(path string, sa sockaddr) error {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFSOCK || !isStale(sa) {
		return unix.EADDRINUSE
	}
	return unix.Unlink(path)
}

// isStale asks by a datagram socket. ECONNREFUSED says that no socket is bound to
// this file, in any network namespace; one of another type is EPROTOTYPE, whether it
// listens or not. A stream socket as the probe could not tell one that does not
// listen yet from none, and would leave a connection in the queue of one that does.
// Who may not be asked (EACCES) is somebody. /proc/net/unix would not do: it shows
// accepted connections under the path of a listener that is gone, and nothing of
// other network namespaces.
func isStale(sa sockaddr) bool {
	probe, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return false
	}
	defer unix.Close(probe)
	return errors.Is(sa.connect(probe), unix.ECONNREFUSED)
}

// Connect connects a borrowed socket, and waits while the peer's backlog is full
// until ctx ends.
func Connect(ctx context.Context, fd int, addr string) error {
	sa, err := sockaddrOf(addr)
	if err == nil {
		err = patiently(ctx, func() error { return sa.connect(fd) })
	}
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
	sa, err := sockaddrOf(addr)
	if err == nil {
		err = patiently(ctx, func() error { return sa.sendTo(fd, data) })
	}
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
