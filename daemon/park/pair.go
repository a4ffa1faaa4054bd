package park

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// sendBuffer is what each lot asks for, in bytes. The kernel gives it twice, and
// no more than twice net.core.wmem_max: that sysctl is the bound in practice.
const sendBuffer = 16 << 20

// A pair is both ends of a lot's socket: what is sent on write waits at read.
type pair struct{ write, read int }

// newPair makes an empty pair.
func newPair(buffer int) (pair, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return pair{}, fmt.Errorf("make parking lot: %w", err)
	}
	p := pair{write: fds[0], read: fds[1]}
	// The direction stands in the kernel from now on: it is how ends tells them
	// apart when they come back in any order.
	if err := unix.Shutdown(p.write, unix.SHUT_RD); err != nil {
		return pair{}, errors.Join(fmt.Errorf("make parking lot one-way: %w", err), p.close())
	}
	if err := p.widen(buffer); err != nil {
		return pair{}, errors.Join(err, p.close())
	}
	return p, nil
}

// widen asks for room; what the kernel gives is asked by messages.
func (p pair) widen(buffer int) error {
	if err := unix.SetsockoptInt(p.write, unix.SOL_SOCKET, unix.SO_SNDBUF, buffer); err != nil {
		return fmt.Errorf("set send buffer of parking lot: %w", err)
	}
	return nil
}

// ends finds which of two descriptors is which end of a pair.
func ends(a, b int) (pair, error) {
	aw, err := isWriteEnd(a)
	if err != nil {
		return pair{}, err
	}
	bw, err := isWriteEnd(b)
	if err != nil {
		return pair{}, err
	}
	switch {
	case aw == bw:
		return pair{}, errors.New("descriptors are not two ends of a parking lot")
	case aw:
		return pair{write: a, read: b}, nil
	}
	return pair{write: b, read: a}, nil
}

// isWriteEnd reports whether fd is an end whose reading was shut down, and an
// error where it is no socket of a parking lot at all.
func isWriteEnd(fd int) (bool, error) {
	for _, want := range []struct{ opt, value int }{{unix.SO_DOMAIN, unix.AF_UNIX}, {unix.SO_TYPE, unix.SOCK_SEQPACKET}} {
		if got, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, want.opt); err != nil {
			return false, fmt.Errorf("look at parking lot: %w", err)
		} else if got != want.value {
			return false, errors.New("descriptor is no unix seqpacket socket")
		}
	}
	poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
	if _, err := retry(func() (int, error) { return unix.Poll(poll, 0) }); err != nil {
		return false, fmt.Errorf("poll parking lot: %w", err)
	}
	return poll[0].Revents&unix.POLLRDHUP != 0, nil
}

// messages returns how many messages of charge bytes each fit into the pair:
// the kernel takes one as long as it has not charged all of the buffer.
func (p pair) messages(charge int) (int, error) {
	buffer, err := unix.GetsockoptInt(p.write, unix.SOL_SOCKET, unix.SO_SNDBUF)
	if err != nil {
		return 0, fmt.Errorf("ask send buffer of parking lot: %w", err)
	}
	return (buffer + charge - 1) / charge, nil
}

// chargeOfMessage asks the kernel what it charges for a message (its truesize),
// with one that is thrown away.
func chargeOfMessage() (int, error) {
	p, err := newPair(sendBuffer)
	if err != nil {
		return 0, err
	}
	defer p.close()
	if err := p.send(make([]byte, MessageSize), nil); err != nil {
		return 0, fmt.Errorf("try a parking lot: %w", err)
	}
	charge, err := unix.IoctlGetInt(p.write, unix.SIOCOUTQ)
	if err != nil {
		return 0, fmt.Errorf("ask queue of parking lot: %w", err)
	}
	return max(charge, 1), nil
}

// send puts a message at the tail. It is in the kernel, or it is not: there is
// nothing between. EAGAIN means that the lot is full.
func (p pair) send(m []byte, fds []int) error {
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	_, err := retry(func() (int, error) {
		return unix.SendmsgN(p.write, m, rights, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
	})
	return err
}

// drop takes the head off and lets its descriptors go: without room for them
// they are closed in the kernel.
func (p pair) drop(m []byte) (int, error) {
	return retry(func() (int, error) {
		n, _, _, _, err := unix.Recvmsg(p.read, m, nil, unix.MSG_DONTWAIT|unix.MSG_TRUNC)
		return n, err
	})
}

// glance reads the message at the peek offset without its descriptors, and
// returns its true length, which may be more than m holds. An empty message is
// seen once, and never again; the end of a queue that somebody shut down would be
// seen for ever, and is an error.
func (p pair) glance(m []byte) (int, error) {
	n, err := retry(func() (int, error) {
		n, _, _, _, err := unix.Recvmsg(p.read, m, nil, unix.MSG_DONTWAIT|unix.MSG_PEEK|unix.MSG_TRUNC)
		return n, err
	})
	if n == 0 && err == nil {
		if down, err := isWriteEnd(p.read); err != nil || down {
			return 0, errors.Join(err, unix.EPIPE)
		}
	}
	return n, err
}

// errFewFDs is a message whose descriptors did not all fit into this process.
var errFewFDs = fmt.Errorf("take descriptors out of parking lot: %w", unix.EMFILE)

// peek reads the message at the peek offset and duplicates of its descriptors,
// which the caller owns. The message stays.
func (p pair) peek(m []byte) (n int, fds []int, err error) {
	rights := make([]byte, unix.CmsgSpace(4*(MaxFDs+1))) // one too many is seen, not cut off
	var used, flags int
	n, err = retry(func() (int, error) {
		var n int
		n, used, flags, _, err = unix.Recvmsg(p.read, m, rights, unix.MSG_DONTWAIT|unix.MSG_PEEK|unix.MSG_CMSG_CLOEXEC)
		return n, err
	})
	if err != nil {
		return 0, nil, err
	}
	fds = parseRights(rights[:used])
	if flags&unix.MSG_CTRUNC != 0 {
		closeAll(fds)
		return 0, nil, errFewFDs
	}
	return n, fds, nil
}

func parseRights(oob []byte) (fds []int) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil // the kernel wrote it: there is none
	}
	for i := range msgs {
		if got, err := unix.ParseUnixRights(&msgs[i]); err == nil {
			fds = append(fds, got...)
		}
	}
	return fds
}

// seek sets where glance and peek read, in bytes from the head; -1 is always the
// head. The kernel moves it on by what a peek has read, and it outlives the process
// that set it: socket(7), SO_PEEK_OFF.
func (p pair) seek(offset int) error {
	if err := unix.SetsockoptInt(p.read, unix.SOL_SOCKET, unix.SO_PEEK_OFF, offset); err != nil {
		return fmt.Errorf("seek in parking lot: %w", err)
	}
	return nil
}

func (p pair) close() error {
	return errors.Join(closeFD(p.write), closeFD(p.read))
}

func closeFD(fd int) error {
	if err := unix.Close(fd); err != nil {
		return os.NewSyscallError("close", err)
	}
	return nil
}

// closeAll closes descriptors that were ours for a moment.
func closeAll(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd) // a duplicate: what it stood for lives elsewhere
	}
}

// retry makes a call again that a signal cut short.
func retry(call func() (int, error)) (int, error) {
	for {
		if n, err := call(); err != unix.EINTR {
			return n, err
		}
	}
}
