package main

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"syscall"
	"time"
)

// The generator makes its system calls itself, on one thread and without the
// runtime's poller: what it costs is taken from the relay under test, so it is to
// cost little and the same for everyone.

// answerTimeout bounds how long a blocking source waits for one answer.
const answerTimeout = 10 * time.Second

// sockaddr turns an endpoint into what the system calls want.
func sockaddr(e endpoint) (domain int, sa syscall.Sockaddr, err error) {
	if e.Net == "unix" {
		return syscall.AF_UNIX, &syscall.SockaddrUnix{Name: e.Addr}, nil
	}
	ap, err := netip.ParseAddrPort(e.Addr)
	if err != nil {
		return 0, nil, err
	}
	if !ap.Addr().Is4() {
		return 0, nil, fmt.Errorf("%s %s: want an IPv4 address", e.Net, e.Addr)
	}
	return syscall.AF_INET, &syscall.SockaddrInet4{Port: int(ap.Port()), Addr: ap.Addr().As4()}, nil
}

// dial connects a blocking stream socket, with Nagle's algorithm off as every
// request-response client has it.
func dial(e endpoint) (fd int, err error) {
	domain, sa, err := sockaddr(e)
	if err != nil {
		return -1, err
	}
	fd, err = syscall.Socket(domain, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	if err := setUpStream(fd, domain, sa); err != nil {
		_ = syscall.Close(fd) // the first error is what matters
		return -1, fmt.Errorf("connect %s %s: %w", e.Net, e.Addr, err)
	}
	return fd, nil
}

func setUpStream(fd, domain int, sa syscall.Sockaddr) error {
	tv := syscall.NsecToTimeval(int64(answerTimeout))
	if err := syscall.SetsockoptTimeval(fd, syscall.SOL_SOCKET, syscall.SO_RCVTIMEO, &tv); err != nil {
		return err
	}
	if domain == syscall.AF_INET {
		if err := syscall.SetsockoptInt(fd, syscall.IPPROTO_TCP, syscall.TCP_NODELAY, 1); err != nil {
			return err
		}
	}
	return again(func() error { return syscall.Connect(fd, sa) })
}

// again repeats a call that a signal interrupted (Go's own preemption signals do).
func again(call func() error) error {
	for {
		if err := call(); !errors.Is(err, syscall.EINTR) {
			return err
		}
	}
}

// read is read(2), with the end of the stream as io.EOF.
func read(fd int, p []byte) (n int, err error) {
	err = again(func() (err error) { n, err = syscall.Read(fd, p); return err })
	if err == nil && n == 0 {
		err = io.EOF
	}
	return max(n, 0), err
}

func write(fd int, p []byte) (n int, err error) {
	err = again(func() (err error) { n, err = syscall.Write(fd, p); return err })
	return max(n, 0), err
}

// ask sends a request on a blocking socket and reads as many bytes back.
func ask(fd int, request, answer []byte) error {
	if n, err := write(fd, request); err != nil || n < len(request) {
		return fmt.Errorf("send a request: %d of %d bytes: %w", n, len(request), orShort(err))
	}
	for got := 0; got < len(request); {
		n, err := read(fd, answer[got:len(request)])
		if err != nil {
			return fmt.Errorf("wait for the answer: %d of %d bytes: %w", got, len(request), err)
		}
		got += n
	}
	return nil
}

func orShort(err error) error {
	if err == nil {
		return io.ErrShortWrite
	}
	return err
}

// An epoll set, level-triggered, for reading only.
type epoll struct {
	fd     int
	events []syscall.EpollEvent
}

func newEpoll() (*epoll, error) {
	fd, err := syscall.EpollCreate1(syscall.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	return &epoll{fd: fd, events: make([]syscall.EpollEvent, 256)}, nil
}

func (e *epoll) add(fd int) error {
	ev := syscall.EpollEvent{Events: syscall.EPOLLIN, Fd: int32(fd)}
	return os.NewSyscallError("epoll_ctl", syscall.EpollCtl(e.fd, syscall.EPOLL_CTL_ADD, fd, &ev))
}

// forever is a wait without a timeout.
const forever = -1 * time.Millisecond

// wait returns what is readable; after timeout, nothing.
func (e *epoll) wait(timeout time.Duration) (ready []syscall.EpollEvent, err error) {
	ms := -1
	if timeout >= 0 {
		ms = int(timeout.Milliseconds())
	}
	var n int
	err = again(func() (err error) { n, err = syscall.EpollWait(e.fd, e.events, ms); return err })
	if err != nil {
		return nil, os.NewSyscallError("epoll_wait", err)
	}
	return e.events[:n], nil
}
