package ksock

import (
	"time"

	"golang.org/x/sys/unix"
)

// O_NONBLOCK belongs to the open file description, not to the descriptor: whoever
// has a duplicate of a socket (it was borrowed, adopted, or handed over by systemd)
// can clear it under us. recvmsg and sendmsg do not care, they are told
// MSG_DONTWAIT. accept4 and connect have no such flag, and would hold their thread,
// and everybody who closes the socket, for as long as it takes.
//
// So before each of them:
//
//	O_NONBLOCK is set again where it is missing
//	accept:  poll says that a connection waits
//	once:    SO_RCVTIMEO and SO_SNDTIMEO bound what is left, another process
//	         that clears the flag, and takes the connection, between these calls
//
// The two options count for blocking calls alone (socket(7)), which nobody here
// makes, and which others make only after they cleared the flag: no user of a
// socket sees them but one who does what this is against. A bound that somebody has
// set already stays.

// stuckLimit is how long a call may hold its thread when everything else fails.
const stuckLimit = time.Second

// guard makes fd one on which accept4 and connect do not block.
func (b *Base) guard(fd int) error {
	if err := setNonblock(fd); err != nil {
		return err
	}
	if b.bounded.Swap(true) {
		return nil
	}
	for _, opt := range []int{unix.SO_RCVTIMEO, unix.SO_SNDTIMEO} {
		if err := boundCalls(fd, opt); err != nil {
			return err
		}
	}
	return nil
}

func setNonblock(fd int) error {
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil || flags&unix.O_NONBLOCK != 0 {
		return err
	}
	_, err = unix.FcntlInt(uintptr(fd), unix.F_SETFL, flags|unix.O_NONBLOCK)
	return err
}

func boundCalls(fd, opt int) error {
	now, err := unix.GetsockoptTimeval(fd, unix.SOL_SOCKET, opt)
	if err != nil || *now != (unix.Timeval{}) {
		return err
	}
	limit := unix.NsecToTimeval(stuckLimit.Nanoseconds())
	return unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, opt, &limit)
}

// dontLinger takes SO_LINGER's waiting away from a socket that is about to be
// closed: close(2) holds its thread for that many seconds, O_NONBLOCK or not
// (tcp_close in the kernel), while the peer takes what is queued, and all the
// daemon with it. The kernel goes on sending after a close that does not wait, too.
// 0 seconds, which is a reset, stays.
func dontLinger(fd int) error {
	l, err := unix.GetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER)
	if err != nil || l.Onoff == 0 || l.Linger == 0 {
		return err
	}
	return unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{})
}
