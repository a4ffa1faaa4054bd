package borrow

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Memfd makes an anonymous file of data, to pass what is too large for a message.
// The caller owns the descriptor.
func Memfd(data []byte) (fd int, err error) {
	fd, err = unix.MemfdCreate("sockd-data", unix.MFD_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("memfd: %w", err)
	}
	for len(data) > 0 {
		n, err := unix.Write(fd, data)
		if err != nil {
			_ = unix.Close(fd) // it holds nothing that counts
			return -1, fmt.Errorf("memfd: %w", err)
		}
		data = data[n:]
	}
	return fd, nil
}
