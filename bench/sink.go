package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"syscall"
)

// places are the addresses on which a sink listens, its first line of output.
type places struct {
	TCP    string `json:"tcp"`
	Unix   string `json:"unix"`
	UDP    string `json:"udp"`
	Bursts string `json:"bursts"` // UDP, too: bursts arrive and leave in one piece
}

// of is the sink's endpoint for a row.
func (p places) of(r row) endpoint {
	if r.job.Burst > 1 {
		return endpoint{Net: r.to, Addr: p.Bursts}
	}
	return endpoint{Net: r.to, Addr: map[string]string{"tcp": p.TCP, "unix": p.Unix, "udp": p.UDP}[r.to]}
}

// sink is the backend of every row: it discards or echoes streams, echoes datagrams,
// and ends when in does. Its threads are not waited for: they end with the
// process, which does nothing else.
func sink(dir string, in io.Reader, out io.Writer) error {
	debug.SetGCPercent(400) // little is allocated, and nothing while it matters
	s, p, err := newSink(dir, json.NewEncoder(out))
	if err != nil {
		return err
	}
	if err := s.out.Encode(p); err != nil {
		return err
	}
	failed := make(chan error, 4)
	go func() { failed <- s.streams() }()
	go func() { failed <- echoDatagrams(s.udp, newBatch()) }()
	go func() { failed <- echoDatagrams(s.bursts, newBurstBatch()) }()
	go func() { _, err := io.Copy(io.Discard, in); failed <- err }()
	return <-failed
}

type sinkServer struct {
	out       *json.Encoder
	poll      *epoll
	listeners map[int]bool
	udp       int
	bursts    int
	conns     map[int]*stream
	buf       []byte
}

// A stream is one accepted connection.
type stream struct {
	kind  byte // 0 until its first byte
	bytes int64
	last  int64 // when the last byte came
}

func newSink(dir string, out *json.Encoder) (*sinkServer, places, error) {
	s := &sinkServer{out: out, listeners: map[int]bool{}, conns: map[int]*stream{}, buf: make([]byte, 256<<10)}
	var err error
	if s.poll, err = newEpoll(); err != nil {
		return nil, places{}, err
	}
	p := places{Unix: filepath.Join(dir, "sink.sock")}
	if p.TCP, err = s.listen(endpoint{"tcp", "127.0.0.1:0"}); err != nil {
		return nil, places{}, err
	}
	if _, err = s.listen(endpoint{"unix", p.Unix}); err != nil {
		return nil, places{}, err
	}
	if s.udp, p.UDP, err = bindUDP(endpoint{"udp", "127.0.0.1:0"}); err != nil {
		return nil, places{}, err
	}
	if s.bursts, p.Bursts, err = bindUDP(endpoint{"udp", "127.0.0.1:0"}); err != nil {
		return nil, places{}, err
	}
	return s, p, joinDatagrams(s.bursts)
}

// listen opens a listening socket, puts it into the epoll set and says its address.
func (s *sinkServer) listen(e endpoint) (addr string, err error) {
	domain, sa, err := sockaddr(e)
	if err != nil {
		return "", err
	}
	fd, err := syscall.Socket(domain, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, 0)
	if err != nil {
		return "", os.NewSyscallError("socket", err)
	}
	if err := syscall.Bind(fd, sa); err != nil {
		return "", fmt.Errorf("bind %s %s: %w", e.Net, e.Addr, err)
	}
	// The kernel cuts it to net.core.somaxconn.
	if err := syscall.Listen(fd, 1<<16-1); err != nil {
		return "", fmt.Errorf("listen %s %s: %w", e.Net, e.Addr, err)
	}
	s.listeners[fd] = true
	return boundTo(fd), s.poll.add(fd)
}

// boundTo is the IPv4 address of a socket, "" where it has none.
func boundTo(fd int) string {
	sa, err := syscall.Getsockname(fd)
	if err != nil {
		return ""
	}
	if in, ok := sa.(*syscall.SockaddrInet4); ok {
		return net.JoinHostPort(net.IP(in.Addr[:]).String(), fmt.Sprint(in.Port))
	}
	return ""
}

// streams serves all stream connections from one thread.
func (s *sinkServer) streams() error {
	runtime.LockOSThread()
	for {
		ready, err := s.poll.wait(forever)
		if err != nil {
			return err
		}
		for _, ev := range ready {
			fd := int(ev.Fd)
			if s.listeners[fd] {
				err = s.accept(fd)
			} else {
				err = s.serve(fd, s.conns[fd])
			}
			if err != nil {
				return err
			}
		}
	}
}

func (s *sinkServer) accept(listener int) error {
	for {
		fd, sa, err := syscall.Accept4(listener, syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK)
		switch {
		case errors.Is(err, syscall.EAGAIN):
			return nil
		case errors.Is(err, syscall.EINTR), errors.Is(err, syscall.ECONNABORTED):
			continue
		case err != nil:
			return os.NewSyscallError("accept4", err)
		}
		if _, tcp := sa.(*syscall.SockaddrInet4); tcp {
			_ = syscall.SetsockoptInt(fd, syscall.IPPROTO_TCP, syscall.TCP_NODELAY, 1) // a refusal only makes it slower
		}
		s.conns[fd] = &stream{}
		if err := s.poll.add(fd); err != nil {
			return err
		}
	}
}

// serve does one read of a connection and what follows from it.
func (s *sinkServer) serve(fd int, c *stream) error {
	n, err := read(fd, s.buf)
	switch {
	case errors.Is(err, syscall.EAGAIN):
		return nil
	case err != nil:
		return s.end(fd, c)
	}
	if c.kind == 0 {
		c.kind = s.buf[0]
	}
	if c.kind == echo {
		if w, err := write(fd, s.buf[:n]); err != nil || w < n {
			return s.end(fd, c) // the source sees it and says so
		}
		return nil
	}
	c.bytes += int64(n)
	c.last = now()
	return nil
}

// end closes a connection and reports it if it was one to discard.
func (s *sinkServer) end(fd int, c *stream) error {
	delete(s.conns, fd)
	if err := syscall.Close(fd); err != nil {
		return os.NewSyscallError("close", err)
	}
	if c.kind != discard {
		return nil
	}
	return s.out.Encode(arrived{Bytes: c.bytes, End: c.last})
}
