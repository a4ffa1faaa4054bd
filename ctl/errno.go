package ctl

import (
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// maxErrno is the largest error number that Linux gives to programs.
const maxErrno = 133

// errnoName is the symbolic name of a kernel error, such as "EADDRINUSE", or ""
// for a number that has none.
func errnoName(e syscall.Errno) string { return unix.ErrnoName(e) }

var errnos = sync.OnceValue(func() map[string]syscall.Errno {
	m := make(map[string]syscall.Errno, maxErrno)
	for e := syscall.Errno(1); e <= maxErrno; e++ {
		if name := unix.ErrnoName(e); name != "" {
			m[name] = e
		}
	}
	return m
})

// errnoNamed is errnoName's inverse.
func errnoNamed(name string) (syscall.Errno, bool) {
	e, ok := errnos()[name]
	return e, ok
}
