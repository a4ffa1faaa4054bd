package owner

import (
	"fmt"
	"syscall"

	"github.com/sockd/sockd/families"
)

// Inode is that of a socket, by which sock_diag(7) and /proc/PID/fd name it.
func Inode(s families.Socket) (uint32, error) {
	d, err := families.As[families.Descriptor](s)
	if err != nil {
		return 0, err
	}
	var st syscall.Stat_t
	if err := d.Control(func(fd int) error { return syscall.Fstat(fd, &st) }); err != nil {
		return 0, fmt.Errorf("inode of a socket: %w", err)
	}
	return uint32(st.Ino), nil // inode numbers of sockets have 32 bits: sock_alloc
}
