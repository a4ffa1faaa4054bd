package main

import (
	"syscall"
	"unsafe"
)

// hasTermios tells whether TCGETS works on fd, as isatty(3) does.
func hasTermios(fd uintptr) bool {
	var t syscall.Termios
	_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, fd, syscall.TCGETS, uintptr(unsafe.Pointer(&t)))
	return errno == 0
}
