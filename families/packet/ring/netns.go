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

// Here is CookieOf for the network namespace of the calling thread.
func Here() (uint64, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("network namespace cookie: socket: %w", err)
	}
	defer unix.Close(fd)
	return CookieOf(fd)
}
