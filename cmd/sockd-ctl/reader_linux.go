package main

import (
	"context"
	"errors"
	"os"
	"syscall"
	"unsafe"
)

// readerGone waits until nobody reads f any more: poll(2) says POLLERR of a pipe
// and POLLHUP of a socket, though nothing is written. Of anything else it is false
// once ctx has ended, and so it is when the kernel does not tell.
func readerGone(ctx context.Context, f *os.File) bool {
	conn, err := f.SyscallConn()
	if err != nil {
		return false
	}
	ended, end, err := os.Pipe()
	if err != nil {
		return false
	}
	defer ended.Close()
	stop := context.AfterFunc(ctx, func() { _ = end.Close() })
	defer func() {
		if stop() {
			_ = end.Close()
		}
	}()
	other, err := ended.SyscallConn()
	if err != nil {
		return false
	}
	gone := false
	err = conn.Control(func(fd uintptr) {
		// The wait is inside, where neither descriptor can be closed.
		err = other.Control(func(endfd uintptr) { gone = pollReader(int32(fd), int32(endfd)) })
	})
	return err == nil && gone
}

// pollFD is struct pollfd of poll(2).
type pollFD struct {
	fd      int32
	events  int16
	revents int16
}

// The events of poll(2) that it tells without being asked.
const (
	pollErr = 0x8
	pollHup = 0x10
)

// pollReader waits for an error of fd (true), or until end has lost its writer.
func pollReader(fd, end int32) bool {
	fds := [2]pollFD{{fd: fd}, {fd: end}}
	for {
		_, _, errno := syscall.Syscall6(syscall.SYS_PPOLL, uintptr(unsafe.Pointer(&fds[0])), uintptr(len(fds)), 0, 0, 0, 0)
		switch {
		case errors.Is(errno, syscall.EINTR):
			continue
		case errno != 0:
			return false
		case fds[1].revents != 0:
			return false
		}
		return fds[0].revents&(pollErr|pollHup) != 0
	}
}
