package systemd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode"

	"golang.org/x/sys/unix"
)

const (
	// maxFDName is FDNAME_MAX, the longest name that systemd takes.
	maxFDName = 255
	// maxSent is SCM_MAX_FD, how many descriptors the kernel sends in a message.
	maxSent = 253
)

// Store gives duplicates of fds to the service manager, all under name. They come
// back at every later start of the service, as Files of that name in no
// particular order, until Remove. The caller's stay the caller's. It is on its way
// when Store returns, and Barrier tells when it has arrived.
//
// The manager must be told how many to take (FileDescriptorStoreMax=); those that
// are too many it closes without a word. FDPOLL=0 is always sent: without it
// the manager drops a descriptor that shows an error or a hang-up, as a listener
// and a connected socket do at some time.
//
// A name has 1 to 255 bytes, none of them a colon or a control character. Without
// a manager the error wraps errors.ErrUnsupported: nobody holds anything then.
func (n *Notifier) Store(name string, fds ...int) error {
	if err := CheckFDName(name); err != nil {
		return fmt.Errorf("store descriptors: %w", err)
	}
	if len(fds) == 0 || len(fds) > maxSent {
		return fmt.Errorf("store descriptors %q: %d of them, want 1 to %d", name, len(fds), maxSent)
	}
	if err := n.sendFDs("FDSTORE=1\nFDPOLL=0\nFDNAME="+name, fds...); err != nil {
		return fmt.Errorf("store descriptors %q: %w", name, err)
	}
	return nil
}

// Remove tells the manager to close all that it holds under name; no such name is
// no error. Its errors are those of Store.
func (n *Notifier) Remove(name string) error {
	if err := CheckFDName(name); err != nil {
		return fmt.Errorf("remove stored descriptors: %w", err)
	}
	if err := n.sendFDs("FDSTOREREMOVE=1\nFDNAME=" + name); err != nil {
		return fmt.Errorf("remove stored descriptors %q: %w", name, err)
	}
	return nil
}

// Barrier returns when the manager has read all that was sent before: it closes
// the pipe that comes with the word (sd_notify_barrier(3)). It gives up with ctx.
func (n *Notifier) Barrier(ctx context.Context) error {
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("wait for service manager: %w", err)
	}
	defer r.Close() // nobody writes to it
	err = errors.Join(n.sendFile("BARRIER=1", w), w.Close())
	if err == nil {
		err = awaitEnd(ctx, r)
	}
	if err != nil {
		return fmt.Errorf("wait for service manager: %w", err)
	}
	return nil
}

// awaitEnd reads until all write ends are closed.
func awaitEnd(ctx context.Context, r *os.File) error {
	stop := context.AfterFunc(ctx, func() {
		_ = r.SetReadDeadline(time.Unix(1, 0)) // fails on a closed file only
	})
	defer stop()
	_, err := io.Copy(io.Discard, r)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return context.Cause(ctx)
	}
	return err
}

// sendFile is sendFDs of a file, which stays as it is: Fd() would make it blocking.
func (n *Notifier) sendFile(message string, f *os.File) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var sendErr error
	err = conn.Control(func(fd uintptr) { sendErr = n.sendFDs(message, int(fd)) })
	return errors.Join(err, sendErr)
}

// sendFDs sends one message with descriptors. Package net cannot: a connected
// datagram socket of its refuses a message with an address, and an unconnected one
// has none to send from.
func (n *Notifier) sendFDs(message string, fds ...int) error {
	if !n.Enabled() {
		return fmt.Errorf("no service manager ($NOTIFY_SOCKET): %w", errors.ErrUnsupported)
	}
	s, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(s)
	timeout := unix.NsecToTimeval(sendTimeout.Nanoseconds())
	if err := unix.SetsockoptTimeval(s, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &timeout); err != nil {
		return os.NewSyscallError("setsockopt", err)
	}
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	return sendMessage(s, []byte(message), rights, &unix.SockaddrUnix{Name: n.socket})
}

// sendMessage sends until it is sent or the socket's timeout, which begins anew
// after a signal; Go's own come ten times a second at most.
func sendMessage(s int, message, rights []byte, to unix.Sockaddr) error {
	for deadline := time.Now().Add(sendTimeout); ; {
		err := unix.Sendmsg(s, message, rights, to, unix.MSG_NOSIGNAL)
		switch {
		case err == unix.EINTR && time.Now().Before(deadline):
		case err == unix.EAGAIN:
			return fmt.Errorf("sendmsg: %w", os.ErrDeadlineExceeded)
		default:
			return os.NewSyscallError("sendmsg", err)
		}
	}
}

// CheckFDName refuses the names that systemd would: fdname_is_valid in
// basic/fd-util.c. A line feed would begin another assignment, a colon another name
// of LISTEN_FDNAMES, and a NUL would end it.
func CheckFDName(name string) error {
	bad := strings.IndexFunc(name, func(r rune) bool { return r == ':' || unicode.IsControl(r) || r > unicode.MaxASCII })
	if name == "" || len(name) > maxFDName || bad >= 0 {
		return fmt.Errorf("name %q: want 1 to %d ASCII characters without a colon", name, maxFDName)
	}
	return nil
}
