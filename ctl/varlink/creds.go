package varlink

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Creds is who is at the other end, as the kernel remembers it from the moment of
// connect(2). PID is for the journal only: it may have been given to another
// process since.
type Creds struct {
	UID    uint32
	GID    uint32
	PID    int32
	Groups []uint32 // supplementary
}

// Peer asks for the peer's credentials (SO_PEERCRED and SO_PEERGROUPS, socket(7)).
func (c *Conn) Peer() (Creds, error) {
	var creds Creds
	var opErr error
	err := c.rc.Control(func(fd uintptr) { creds, opErr = peerCreds(int(fd)) })
	if err == nil {
		err = opErr
	}
	if err != nil {
		return Creds{}, fmt.Errorf("credentials of the peer: %w", err)
	}
	return creds, nil
}

func peerCreds(fd int) (Creds, error) {
	ucred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return Creds{}, fmt.Errorf("SO_PEERCRED: %w", err)
	}
	groups, err := peerGroups(fd)
	if err != nil {
		return Creds{}, fmt.Errorf("SO_PEERGROUPS: %w", err)
	}
	return Creds{UID: ucred.Uid, GID: ucred.Gid, PID: ucred.Pid, Groups: groups}, nil
}

// peerGroups grows its buffer to what the kernel asks for with ERANGE: a user may
// be in up to 65536 groups.
func peerGroups(fd int) ([]uint32, error) {
	groups := make([]uint32, 32)
	for {
		size := uint32(len(groups) * 4)
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(&groups[0])), uintptr(unsafe.Pointer(&size)), 0)
		switch {
		case errno == 0:
			return groups[:size/4], nil
		case errors.Is(errno, unix.ERANGE) && int(size) > len(groups)*4:
			groups = make([]uint32, size/4)
		case errors.Is(errno, unix.ENODATA):
			return nil, nil // a socketpair made by a process without groups has none to tell
		default:
			return nil, errno
		}
	}
}
