package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	// connTimeout bounds everything that a client or a backend of a trial waits for.
	connTimeout = 6 * time.Second
	// tellTimeout bounds the wait for what a backend has to tell, which it does
	// after connTimeout at the latest.
	tellTimeout = connTimeout + time.Second
)

// A stage is one trial of one contestant while it runs: the backends, the relays
// before them and the clients. end ends all of them.
type stage struct {
	dir   string
	trial trial
	peer  contestant
	// attempt is the number of the repetition, from 0.
	attempt int

	mu     sync.Mutex // guards open, ended and count
	open   []io.Closer
	ended  bool
	count  int
	relays []*child
	wg     sync.WaitGroup // every goroutine of the trial's backends
}

// own keeps c to be closed at the end of the trial, or closes it when that was.
func (s *stage) own(c io.Closer) {
	s.mu.Lock()
	ended := s.ended
	if !ended {
		s.open = append(s.open, c)
	}
	s.mu.Unlock()
	if ended {
		_ = c.Close() // the trial is over, whatever it says
	}
}

// end closes every socket, waits for the backends and ends the relays.
func (s *stage) end() error {
	s.mu.Lock()
	open := s.open
	s.open, s.ended = nil, true
	s.mu.Unlock()
	for _, c := range open {
		_ = c.Close() // many are closed already, which is their trial's business
	}
	s.wg.Wait()
	var errs []error
	for _, c := range s.relays {
		errs = append(errs, c.end())
	}
	return errors.Join(errs...)
}

// sub is a folder for one relay or backend more.
func (s *stage) sub() (string, error) {
	s.mu.Lock()
	s.count++
	dir := filepath.Join(s.dir, fmt.Sprint(s.count))
	s.mu.Unlock()
	return dir, os.Mkdir(dir, 0o700)
}

// network is the backend's. With nothing between it is the client's.
func (s *stage) network() string {
	if s.peer.can.direct {
		return s.trial.wish.from
	}
	return s.trial.wish.to
}

// backend is where a backend of this trial may listen; of inet the port is chosen by
// the system.
func (s *stage) backend() (endpoint, error) {
	if !strings.HasPrefix(s.network(), "unix") {
		return endpoint{s.network(), "127.0.0.1:0"}, nil
	}
	dir, err := s.sub()
	return endpoint{s.network(), filepath.Join(dir, "back.sock")}, err
}

// serve is a backend that accepts: handle has each connection for itself, and it is
// closed afterwards.
func (s *stage) serve(handle func(c net.Conn)) (endpoint, error) {
	at, err := s.backend()
	if err != nil {
		return endpoint{}, err
	}
	l, err := net.Listen(at.Net, at.Addr)
	if err != nil {
		return endpoint{}, err
	}
	s.own(l)
	s.wg.Go(func() { s.acceptAll(l, handle) })
	return endpoint{at.Net, l.Addr().String()}, nil
}

func (s *stage) acceptAll(l net.Listener, handle func(c net.Conn)) {
	for {
		c, err := l.Accept()
		if err != nil {
			return // closed by end
		}
		s.own(c)
		s.wg.Go(func() {
			defer c.Close()
			if c.SetDeadline(time.Now().Add(connTimeout)) == nil {
				handle(c)
			}
		})
	}
}

// packets is a backend of datagrams; handle reads from it until it fails.
func (s *stage) packets(host string, handle func(c net.PacketConn)) (endpoint, error) {
	at, err := s.backend()
	if err != nil {
		return endpoint{}, err
	}
	if at.Net == "udp" {
		at = endpoint{"udp4", net.JoinHostPort(host, "0")}
	}
	c, err := net.ListenPacket(at.Net, at.Addr)
	if err != nil {
		return endpoint{}, err
	}
	s.own(c)
	s.wg.Go(func() { handle(c) })
	return endpoint{strings.TrimSuffix(at.Net, "4"), c.LocalAddr().String()}, nil
}

// relay lays the contestant before a backend, as the trial wishes it.
func (s *stage) relay(ctx context.Context, to endpoint) (*laid, error) {
	return s.relayWith(ctx, s.trial.wish, to)
}

func (s *stage) relayWith(ctx context.Context, w wish, to endpoint) (*laid, error) {
	dir, err := s.sub()
	if err != nil {
		return nil, err
	}
	l, err := s.peer.lay(ctx, dir, w, to)
	if err != nil {
		return nil, err
	}
	if l.relay != nil {
		s.relays = append(s.relays, l.relay)
	}
	return l, nil
}

// client connects to a laid relay.
func (s *stage) client(l *laid) (net.Conn, error) { return s.clientWithin(l, connTimeout) }

func (s *stage) clientWithin(l *laid, d time.Duration) (net.Conn, error) {
	c, err := net.DialTimeout(l.at.Net, l.at.Addr, d)
	if err != nil {
		return nil, err
	}
	s.own(c)
	return c, c.SetDeadline(time.Now().Add(connTimeout))
}

// through lays the relay and connects a client to it.
func (s *stage) through(ctx context.Context, to endpoint) (net.Conn, error) {
	l, err := s.relay(ctx, to)
	if err != nil {
		return nil, err
	}
	return s.client(l)
}

///// what both sides of a trial do

// reset closes a TCP connection with RST instead of FIN (SO_LINGER of socket(7)).
func reset(c net.Conn) error {
	if t, ok := c.(*net.TCPConn); ok {
		if err := t.SetLinger(0); err != nil {
			return err
		}
	}
	return c.Close()
}

// closeWrite sends FIN and leaves the other direction open.
func closeWrite(c net.Conn) error {
	half, ok := c.(interface{ CloseWrite() error })
	if !ok {
		return fmt.Errorf("%T has no half-close", c)
	}
	return half.CloseWrite()
}

// readOut reads to the end and says how it ended.
func readOut(c io.Reader) (n int64, end string) {
	n, err := io.Copy(io.Discard, c)
	return n, ending(err)
}

// ending is a word for the error that a stream ended with.
func ending(err error) string {
	switch {
	case err == nil, errors.Is(err, io.EOF):
		return "FIN"
	case errors.Is(err, syscall.ECONNRESET):
		return "RST"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "refused"
	case errors.Is(err, os.ErrDeadlineExceeded):
		return "nothing"
	}
	return err.Error()
}

// first waits for what a backend has seen.
func first[T any](ctx context.Context, seen <-chan T, what string) (T, error) {
	t := time.NewTimer(tellTimeout)
	defer t.Stop()
	select {
	case v := <-seen:
		return v, nil
	case <-t.C:
		var none T
		return none, fmt.Errorf("%s saw nobody", what)
	case <-ctx.Done():
		var none T
		return none, context.Cause(ctx)
	}
}

// tell hands on what was seen unless somebody else was first.
func tell[T any](seen chan<- T, v T) {
	select {
	case seen <- v:
	default:
	}
}
