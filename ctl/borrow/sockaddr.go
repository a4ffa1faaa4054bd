package borrow

import (
	"encoding/binary"
	"unsafe"

	"github.com/sockd/sockd/families"
	"golang.org/x/sys/unix"
)

// sockaddr is a struct sockaddr_un with the length that it is passed with.
// unix.SockaddrUnix has no room for the longest that the kernel takes: a path of 108
// bytes, which has no NUL, and an abstract name of 107.
type sockaddr []byte

// sockaddrOf is the address of a path or an abstract name. A path is taken as it is,
// relative to the working directory too. For "@" alone it is the family: bind(2)
// takes that for a name to be picked.
func sockaddrOf(addr string) (sockaddr, error) {
	if err := families.CheckUnixAddress(addr); err != nil {
		return nil, err
	}
	sa := binary.NativeEndian.AppendUint16(nil, unix.AF_UNIX)
	switch {
	case addr == "@":
	case isAbstract(addr):
		sa = append(append(sa, 0), addr[1:]...)
	default:
		sa = append(sa, addr...)
		if len(addr) < families.MaxUnixPath {
			sa = append(sa, 0)
		}
	}
	return sa, nil
}

func (sa sockaddr) bind(fd int) error {
	_, _, errno := unix.Syscall(unix.SYS_BIND, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(sa))), uintptr(len(sa)))
	return orNil(errno)
}

func (sa sockaddr) connect(fd int) error {
	_, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(sa))), uintptr(len(sa)))
	return orNil(errno)
}

// sendTo sends one message. The socket does not block.
func (sa sockaddr) sendTo(fd int, data []byte) error {
	_, _, errno := unix.Syscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(data))), uintptr(len(data)),
		unix.MSG_NOSIGNAL, uintptr(unsafe.Pointer(unsafe.SliceData(sa))), uintptr(len(sa)))
	return orNil(errno)
}

func orNil(errno unix.Errno) error {
	if errno == 0 {
		return nil
	}
	return errno
}
