package ring

import (
	"errors"
	"fmt"

	"github.com/sockd/sockd/families"
	"golang.org/x/sys/unix"
)

// Cookie tells the network namespace of the ring: see CookieOf.
func (r *Ring) Cookie() (cookie uint64, err error) {
	err = r.control(func(fd int) (err error) {
		cookie, err = CookieOf(fd)
		return err
	})
	return cookie, err
}

// CookieOf is the kernel's number of the network namespace that a socket of any
// family belongs to. No other namespace has it until the next boot. The error wraps
// families.ErrNotSupported where the kernel has none (SO_NETNS_COOKIE, Linux 5.14).
func CookieOf(fd int) (uint64, error) {
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	switch {
	case errors.Is(err, unix.ENOPROTOOPT):
		return 0, fmt.Errorf("network namespace cookie (Linux 5.14): %w: %w", families.ErrNotSupported, err)
	case err != nil:
		return 0, fmt.Errorf("network namespace cookie: %w", err)
	}
	return cookie, nil
}

// Check tells whether fd is a packet socket as OpenFD wants it from somebody who is not
// trusted: of AF_PACKET and SOCK_RAW, and fresh, so that it has received nothing and
// nobody captures by it. It changes nothing. Errors wrap an errno: EINVAL for another kind,
// EBUSY for one that is bound, ENOTSOCK for what is no socket.
func Check(fd int) error {
	if err := checkKind(fd); err != nil {
		return err
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		return fmt.Errorf("descriptor: %w", err)
	}
	// It is bound by socket(2), too, where its protocol is not 0 (packet(7)).
	if at, ok := name.(*unix.SockaddrLinklayer); !ok || at.Ifindex != 0 || at.Protocol != 0 {
		return fmt.Errorf("it is bound already, want one of protocol 0 that is not: %w", unix.EBUSY)
	}
	return nil
}

// checkKind refuses what is no raw packet socket.
func checkKind(fd int) error {
	domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil {
		return fmt.Errorf("descriptor: %w", err)
	}
	kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil {
		return fmt.Errorf("descriptor: %w", err)
	}
	// A cooked socket (SOCK_DGRAM) has lost the link headers.
	if domain != unix.AF_PACKET || kind != unix.SOCK_RAW {
		return fmt.Errorf("a socket of domain %d and type %d, not of AF_PACKET and SOCK_RAW: %w", domain, kind, unix.EINVAL)
	}
	return nil
}

// Here is CookieOf for the network namespace of the calling thread.
func Here() (uint64, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("network namespace cookie: socket: %w", err)
	}
	defer unix.Close(fd)
	return CookieOf(fd)
}
