package ksock

import (
	"encoding/binary"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// nativeEndian is the byte order of sa_family_t.
var nativeEndian = binary.NativeEndian

// setgroups is setgroups(2) of the calling thread alone.
func setgroups(groups []uint32) syscall.Errno {
	var first unsafe.Pointer
	if len(groups) > 0 {
		first = unsafe.Pointer(&groups[0])
	}
	_, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(first), 0)
	return errno
}
