package ksock

import (
	"fmt"

	"github.com/sockd/sockd/families"
	"golang.org/x/sys/unix"
)

// control calls f with the descriptor of any socket that has one.
func control(s families.Socket, f func(fd int) error) error {
	d, err := families.As[families.Descriptor](s)
	if err != nil {
		return err
	}
	return d.Control(f)
}

// Inq is how many bytes can be received now (SIOCINQ); for a datagram socket, of
// the next message.
func Inq(s families.Socket) (int, error) { return queue(s, unix.SIOCINQ) }

// Outq is how many bytes were sent and have not arrived (SIOCOUTQ): for TCP what
// the peer has not acknowledged, else what has not left or not been received.
func Outq(s families.Socket) (int, error) { return queue(s, unix.SIOCOUTQ) }

func queue(s families.Socket, request uint) (int, error) {
	var n int
	err := control(s, func(fd int) (err error) {
		n, err = unix.IoctlGetInt(fd, request)
		return err
	})
	return n, err
}

// AtMark tells whether the next byte that a stream gives is the urgent one
// (sockatmark(3); the socket has SO_OOBINLINE).
func AtMark(s families.Socket) (bool, error) {
	n, err := queue(s, unix.SIOCATMARK)
	return n != 0, err
}

// PeerCred is who made the other end of a connected unix socket, as it was when
// they connected or listened (SO_PEERCRED). Of any other socket the error wraps
// ENODATA: there the kernel says user -1, and no error.
func PeerCred(s families.Socket) (families.Creds, error) {
	var c families.Creds
	err := control(s, func(fd int) error {
		u, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
		if err != nil {
			return err
		}
		if u.Uid == ^uint32(0) {
			return fmt.Errorf("the peer has no credentials: %w", unix.ENODATA)
		}
		c = families.Creds{PID: u.Pid, UID: u.Uid, GID: u.Gid}
		return nil
	})
	return c, err
}
