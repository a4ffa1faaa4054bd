package varlink

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Defaults of a Server.
const (
	// DefaultStallTimeout: a call is written in one go, so a peer that needs longer
	// has stopped.
	DefaultStallTimeout = 30 * time.Second
	// DefaultWriteTimeout: the kernel holds some 200 KiB for a peer that does not
	// read; one that leaves that unread for so long holds a goroutine for nothing.
	DefaultWriteTimeout = 30 * time.Second
	// DefaultMaxConns bounds the connections of all users but root. An idle one
	// costs a descriptor and some 12 KiB: 12 MiB for all.
	DefaultMaxConns = 1024
	// DefaultMaxConnsPerUser leaves room for others when one user takes all that it
	// may. Root has only this bound, so that it always finds room to look.
	DefaultMaxConnsPerUser = 512
)

// Method is one method that a Server serves.
type Method struct {
	Name  string // qualified: io.sockd.Manager.Open
	Serve func(ctx context.Context, c *ServerCall) error
	// NeedsMore: a call without the more flag is answered with ExpectedMore.
	NeedsMore bool
	// NeedsUpgrade: a call without the upgrade flag is answered with ExpectedUpgrade.
	NeedsUpgrade bool
	// MayUpgrade: the upgrade flag is welcome. Other methods refuse it as an
	// invalid parameter, since their plain reply would read as a confirmation.
	MayUpgrade bool
}

// Server serves Varlink on AF_UNIX stream sockets. Set its fields and Register
// what it serves before Serve; end with Shutdown or Close.
type Server struct {
	// Info is what GetInfo says; Server puts in the interfaces.
	Info Info
	// Authorize decides on each call, org.varlink.service and unknown methods
	// included, before anything of its parameters is looked at. Nil lets everybody.
	// Its error is answered as that of a method.
	Authorize func(caller Creds, method string) error
	// MapError turns an error that a method returned into the one that is answered;
	// *Error and *InvalidParameterError are answered without it. It must be set.
	MapError func(error) *Error
	// Served, when set, is told of each call after it, with the error that the
	// method returned or that writing the answer gave.
	Served func(caller Creds, method string, err error)

	// Starved, when set, is told of each accept(2) that failed, and whether the
	// connection could be answered all the same. It is called from Serve.
	Starved func(err error, answered bool)

	// Zero values mean the defaults above.
	StallTimeout    time.Duration
	WriteTimeout    time.Duration
	MaxConns        int
	MaxConnsPerUser int

	registry registry
	stats    serverStats

	ctx    context.Context // of all calls: ends when Shutdown or Close begins
	cancel context.CancelFunc
	wg     sync.WaitGroup // one for each connection

	mu        sync.Mutex // guards what follows
	hangups   *hangups   // from the first Serve on
	listeners map[*net.UnixListener]bool
	conns     map[*serverConn]bool
	perUser   map[uint32]int
	ended     chan struct{} // closed when closing and no connection is left
	closing   bool
}

type serverStats struct {
	accepted, refused, failedAccepts, turnedAway, calls, malformed, stalled, undelivered atomic.Int64
}

// Stats counts what a server did since it was made.
type Stats struct {
	Conns         int64 // now
	Accepted      int64 // connections
	Refused       int64 // connections closed at once: over a limit, or without credentials
	FailedAccepts int64 // accept(2) that failed, for want of descriptors as a rule
	TurnedAway    int64 // connections that were told so, and closed
	Calls         int64
	Malformed     int64 // connections closed for a message without a well-defined answer
	Stalled       int64 // connections closed for half a message
	Undelivered   int64 // answers that were taken back: see ServerCall.OnUndelivered
}

// NewServer makes a server of org.varlink.service, which says info.
func NewServer(info Info) *Server {
	s := &Server{
		Info:      info,
		listeners: map[*net.UnixListener]bool{},
		conns:     map[*serverConn]bool{},
		perUser:   map[uint32]int{},
		ended:     make(chan struct{}),
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.registerService()
	return s
}

// Register adds an interface by its description and the methods that serve it. A
// method that the description has but nobody serves is answered with
// MethodNotImplemented; one that it has not is an error.
func (s *Server) Register(description string, methods ...Method) error {
	return s.registry.add(description, methods)
}

// Conns counts the connections that are open now.
func (s *Server) Conns() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conns)
}

// Stats tells the counters.
func (s *Server) Stats() Stats {
	return Stats{
		Conns:         int64(s.Conns()),
		Accepted:      s.stats.accepted.Load(),
		Refused:       s.stats.refused.Load(),
		FailedAccepts: s.stats.failedAccepts.Load(),
		TurnedAway:    s.stats.turnedAway.Load(),
		Calls:         s.stats.calls.Load(),
		Malformed:     s.stats.malformed.Load(),
		Stalled:       s.stats.stalled.Load(),
		Undelivered:   s.stats.undelivered.Load(),
	}
}

// Serve accepts and serves connections until Shutdown or Close, which make it
// return nil even when they came first, or until l fails. It owns l and closes it. Connections outlive it:
// Shutdown and Close wait for them.
func (s *Server) Serve(l *net.UnixListener) error {
	defer l.Close()
	if s.MapError == nil {
		return errors.New("varlink server: MapError is not set")
	}
	switch err := s.open(l); {
	case errors.Is(err, net.ErrClosed):
		return nil
	case err != nil:
		return err
	}
	defer s.dropListener(l)
	var spare reserve
	defer spare.free()
	for {
		spare.take()
		uc, err := l.AcceptUnix()
		if err == nil {
			s.admit(uc)
			continue
		}
		if s.ctx.Err() != nil {
			return nil
		}
		if !passes(err) {
			return fmt.Errorf("varlink server: %w", err)
		}
		if !s.relieve(l, &spare, err) {
			s.pause()
		}
	}
}

// relieve deals with an accept that failed with why, and tells whether the next may
// be tried at once. accept(2) looks for a descriptor before it looks for a
// connection, so it fails without any caller, too.
func (s *Server) relieve(l *net.UnixListener, spare *reserve, why error) bool {
	if !hasCaller(l) {
		return false
	}
	s.stats.failedAccepts.Add(1)
	answered := spare.free() && s.turnAway(l, spare, why)
	if s.Starved != nil {
		s.Starved(why, answered)
	}
	return answered
}

// passes tells whether accept(2) may work again later: descriptors or memory ran
// out, or that one connection failed.
func passes(err error) bool {
	for _, errno := range []unix.Errno{unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM, unix.ECONNABORTED} {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}

// pause lets descriptors come back: nothing tells when they do.
func (s *Server) pause() {
	select {
	case <-time.After(50 * time.Millisecond):
	case <-s.ctx.Done():
	}
}

func (s *Server) open(l *net.UnixListener) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return fmt.Errorf("varlink server: %w", net.ErrClosed)
	}
	if s.hangups == nil {
		h, err := newHangups()
		if err != nil {
			return fmt.Errorf("varlink server: %w", err)
		}
		s.hangups = h
	}
	s.listeners[l] = true
	return nil
}

func (s *Server) dropListener(l *net.UnixListener) {
	s.mu.Lock()
	delete(s.listeners, l)
	s.mu.Unlock()
}

// admit starts to serve a connection, or refuses it by closing it.
func (s *Server) admit(uc *net.UnixConn) {
	sc := &serverConn{srv: s, conn: NewConn(uc)}
	sc.conn.StallTimeout = orDefault(s.StallTimeout, DefaultStallTimeout)
	var err error
	if sc.caller, err = sc.conn.Peer(); err != nil || !s.enter(sc) {
		s.stats.refused.Add(1)
		_ = sc.conn.Close() // it has carried nothing
		return
	}
	s.stats.accepted.Add(1)
	go sc.run()
}

func orDefault[T int | time.Duration](v, otherwise T) T {
	if v == 0 {
		return otherwise
	}
	return v
}

// enter books a connection, unless the server closes or a limit is reached.
func (s *Server) enter(sc *serverConn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	uid := sc.caller.UID
	full := uid != 0 && len(s.conns)-s.perUser[0] >= orDefault(s.MaxConns, DefaultMaxConns)
	if s.closing || full || s.perUser[uid] >= orDefault(s.MaxConnsPerUser, DefaultMaxConnsPerUser) {
		return false
	}
	s.conns[sc] = true
	s.perUser[uid]++
	s.wg.Add(1)
	return true
}

// leave undoes enter.
func (s *Server) leave(sc *serverConn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, sc)
	if s.perUser[sc.caller.UID]--; s.perUser[sc.caller.UID] == 0 {
		delete(s.perUser, sc.caller.UID)
	}
	if s.closing && len(s.conns) == 0 {
		close(s.ended)
	}
	s.wg.Done()
}

// Shutdown stops accepting, ends the context of running calls, lets them answer,
// and returns when all connections and goroutines are gone. When ctx ends first it
// closes the connections and returns ctx's error with the number of those that
// still run; Close waits for them.
func (s *Server) Shutdown(ctx context.Context) error {
	s.begin()
	select {
	case <-s.ended:
		s.finish()
		return nil
	case <-ctx.Done():
		n := s.closeConns()
		return fmt.Errorf("varlink server: %d connections still open: %w", n, context.Cause(ctx))
	}
}

// Close is Shutdown without patience: connections are closed under their calls. It
// waits for the methods to return, so a method must not call it.
func (s *Server) Close() error {
	s.begin()
	s.closeConns()
	<-s.ended
	s.finish()
	return nil
}

// begin stops all that is new. The lock is held over no call that waits.
func (s *Server) begin() {
	s.cancel()
	listeners, conns := s.beginClosing()
	for _, l := range listeners {
		_ = l.Close() // Serve returns
	}
	for _, sc := range conns {
		sc.conn.stopReading()
	}
}

func (s *Server) beginClosing() (listeners []*net.UnixListener, conns []*serverConn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closing {
		s.closing = true
		if len(s.conns) == 0 {
			close(s.ended)
		}
	}
	for l := range s.listeners {
		listeners = append(listeners, l)
	}
	for sc := range s.conns {
		conns = append(conns, sc)
	}
	return listeners, conns
}

func (s *Server) closeConns() int {
	_, conns := s.beginClosing()
	for _, sc := range conns {
		_ = sc.conn.Close() // its goroutine sees it
	}
	return len(conns)
}

func (s *Server) finish() {
	s.wg.Wait()
	s.mu.Lock()
	h := s.hangups
	s.hangups = nil
	s.mu.Unlock()
	if h != nil {
		h.close()
	}
}

// answerError turns what a method returned into what is answered.
func (s *Server) answerError(err error) *Error {
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	var invalid *InvalidParameterError
	if errors.As(err, &invalid) {
		return InvalidParameter(invalid.Parameter)
	}
	return s.MapError(err)
}

// endsCleanly tells that a peer ended its stream between messages.
func endsCleanly(err error) bool { return errors.Is(err, io.EOF) }
