package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"
)

// Trials of backends that do not do what was hoped for.

func failingTrials() []trial {
	tcp := wish{from: "tcp", to: "tcp"}
	impatient := tcp
	impatient.patience = time.Second
	return []trial{
		{name: "refused", title: "backend refuses the connection: what the client sees", wish: tcp, best: "RST",
			means: "a service that is down looks like one that answers with nothing", run: refused},
		{name: "timed-out", title: "backend does not answer the SYN, connect timeout 1 s: what the client sees", wish: impatient, best: "RST",
			means: "as above", run: timedOut},
		{name: "early-answer", title: "backend answers 1000 B amid an upload of 8 MiB and closes, 5 times: does the answer arrive", wish: tcp,
			means: "`413 Request Entity Too Large` becomes a connection error", run: repeated(5, earlyAnswer)},
	}
}

func refused(ctx context.Context, s *stage) (finding, error) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return finding{}, err
	}
	to := endpoint{"tcp", l.Addr().String()}
	if err := l.Close(); err != nil {
		return finding{}, err
	}
	return s.knock(ctx, to, connTimeout)
}

// knock connects, says nothing, and tells how that ends.
func (s *stage) knock(ctx context.Context, to endpoint, d time.Duration) (finding, error) {
	l, err := s.relay(ctx, to)
	if err != nil {
		return finding{}, err
	}
	c, err := s.clientWithin(l, d)
	var timeout net.Error
	switch {
	case errors.As(err, &timeout) && timeout.Timeout():
		return finding{word: "no connection"}, nil
	case err != nil:
		return finding{word: ending(err)}, nil
	}
	started := time.Now()
	_, end := readOut(c)
	return finding{word: end, detail: fmt.Sprintf("after %.1f s", time.Since(started).Seconds())}, nil
}

func timedOut(ctx context.Context, s *stage) (finding, error) {
	to, err := s.jammed()
	if err != nil {
		return finding{}, err
	}
	return s.knock(ctx, to, 3*time.Second/2)
}

// jammed is a TCP listener that accepts nobody and whose queue is full: on a backlog
// of 0 one connection may wait, and the kernel drops the SYN of the next ones.
func (s *stage) jammed() (endpoint, error) {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, 0)
	if err != nil {
		return endpoint{}, os.NewSyscallError("socket", err)
	}
	s.own(os.NewFile(uintptr(fd), "jammed"))
	err = errors.Join(syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), syscall.Listen(fd, 0))
	if err != nil {
		return endpoint{}, fmt.Errorf("listen without a backlog: %w", err)
	}
	sa, err := syscall.Getsockname(fd)
	if err != nil {
		return endpoint{}, os.NewSyscallError("getsockname", err)
	}
	to := endpoint{"tcp", fmt.Sprintf("127.0.0.1:%d", sa.(*syscall.SockaddrInet4).Port)}
	c, err := net.Dial(to.Net, to.Addr)
	if err != nil {
		return endpoint{}, err
	}
	s.own(c)
	return to, nil
}

const uploadSize = 8 << 20

func earlyAnswer(ctx context.Context, s *stage) (finding, error) {
	to, err := s.serve(func(c net.Conn) {
		_, _ = io.ReadFull(c, make([]byte, 64<<10))
		_, _ = c.Write(make([]byte, lastWords))
	})
	if err != nil {
		return finding{}, err
	}
	l, err := s.relay(ctx, to)
	if err != nil {
		return finding{}, err
	}
	n, err := s.upload(l)
	if n == lastWords {
		return finding{word: "arrives"}, err
	}
	return finding{word: fmt.Sprintf("%d of %d B", n, lastWords)}, err
}

// upload sends until it is stopped, and reads meanwhile. It returns how much was
// answered; how that ended, writing or reading is told, whichever asks first.
func (s *stage) upload(l *laid) (int64, error) {
	c, err := s.client(l)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		_, _ = c.Write(make([]byte, uploadSize)) // is not to succeed
	}()
	n, _ := readOut(c)
	_ = c.Close() // ends the write, too
	<-sent
	return n, nil
}
