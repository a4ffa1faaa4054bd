package familytest

import (
	"context"
	"io"
	"net"
	"strconv"
	"sync"
	"syscall"

	"github.com/sockd/sockd/families"
)

// Bounds of the toy network: small, so that tests reach them.
const (
	memStreamRoom = 64 << 10 // bytes that a stream holds
	memDgramRoom  = 64       // messages that a datagram socket holds
	memLargest    = 64 << 10 // bytes of a message
	memBacklog    = 128      // connections that wait
	memNameMax    = 64
)

// Mem is a family that lives in memory: "toy", with streams and datagrams, to
// test what uses families without the kernel. Its addresses are words. Each Mem
// is a network of its own.
type Mem struct {
	mu      sync.Mutex // guards all that belongs to the network, sockets too
	bound   map[memAddr]*memSocket
	next    int
	changed chan struct{} // closed and replaced at each change
}

// NewMem makes a toy network.
func NewMem() *Mem {
	return &Mem{bound: map[memAddr]*memSocket{}, changed: make(chan struct{})}
}

var (
	_ families.Family     = (*Mem)(nil)
	_ families.Listener   = (*memStream)(nil)
	_ families.HalfCloser = (*memStream)(nil)
)

// Name is "toy".
func (*Mem) Name() string { return "toy" }

// Networks are toy, of streams, and toygram.
func (*Mem) Networks() []families.Network {
	return []families.Network{{Name: "toy", Type: families.Stream}, {Name: "toygram", Type: families.Dgram}}
}

// Types are stream and dgram.
func (*Mem) Types() []families.Type { return []families.Type{families.Stream, families.Dgram} }

// ParseAddr reads a word of letters, digits and hyphens.
func (*Mem) ParseAddr(t families.Type, s string) (families.Addr, error) {
	if s == "" || len(s) > memNameMax {
		return nil, &families.SyntaxError{What: "address", Text: s, Column: 1, Why: "want a word", Hint: "here"}
	}
	for i := range len(s) {
		if c := s[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return nil, &families.SyntaxError{What: "address", Text: s, Column: i + 1, Why: "want letters, digits and hyphens", Hint: "here"}
		}
	}
	return memAddr{t, s}, nil
}

// ParseProtocol knows none.
func (*Mem) ParseProtocol(t families.Type, s string) (int, error) {
	if s != "" {
		return 0, &families.SyntaxError{What: "protocol", Text: s, Column: 1, Why: "toys have none"}
	}
	return 0, nil
}

// Open opens a socket. There are no options.
func (n *Mem) Open(ctx context.Context, spec families.Spec) (families.Socket, error) {
	for _, o := range spec.Options {
		return nil, &families.SyntaxError{What: "option", Text: o.Name, Column: 1, Why: "toys have none"}
	}
	switch spec.Type {
	case families.Stream:
		return &memStream{n.socket(spec.Type)}, nil
	case families.Dgram:
		return n.socket(spec.Type), nil
	}
	return nil, &families.OpError{Op: "open", Family: "toy", Addr: spec.Type.String(), Err: families.ErrNotSupported}
}

func (n *Mem) socket(t families.Type) *memSocket { return &memSocket{net: n, typ: t} }

// changeLocked wakes everybody who waits; they look for themselves.
func (n *Mem) changeLocked() {
	close(n.changed)
	n.changed = make(chan struct{})
}

type memAddr struct {
	typ  families.Type
	word string
}

func (a memAddr) Network() string {
	if a.typ == families.Dgram {
		return "toygram"
	}
	return "toy"
}
func (a memAddr) String() string          { return a.word }
func (a memAddr) Sockaddr() families.Name { return families.MakeName([]byte(a.word)) }
func (a memAddr) Scope() families.Scope   { return families.Scope{Path: a.word} }

type memMsg struct {
	data []byte
	from families.Name
}

// memSocket is a socket of either type; its fields are guarded by net.mu.
type memSocket struct {
	net         *Mem
	typ         families.Type
	local, peer memAddr
	other       *memSocket // of a connected stream
	listening   bool
	backlog     []*memSocket
	queue       []memMsg // of a stream, pieces
	queued      int      // bytes in queue
	endRead     bool     // nothing will be queued any more
	endWrite    bool
	closed      bool
}

// memStream is a stream with its capabilities.
type memStream struct{ *memSocket }

func (s *memSocket) fail(op, addr string, err error) error {
	return &families.OpError{Op: op, Family: "toy", Addr: addr, Err: err}
}

func (s *memSocket) Close() error {
	s.net.mu.Lock()
	defer s.net.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed, s.endRead = true, true
	if s.net.bound[s.local] == s {
		delete(s.net.bound, s.local)
	}
	s.endWriteLocked()
	for _, c := range s.backlog {
		c.closed = true
		c.endWriteLocked()
	}
	s.net.changeLocked()
	return nil
}

func (s *memSocket) endWriteLocked() {
	s.endWrite = true
	if s.other != nil {
		s.other.endRead = true
	}
}

func (s *memSocket) Bind(a families.Addr) error {
	s.net.mu.Lock()
	defer s.net.mu.Unlock()
	addr, ok := a.(memAddr)
	switch {
	case s.closed:
		return s.fail("bind", a.String(), net.ErrClosed)
	case !ok || addr.typ != s.typ:
		return s.fail("bind", a.String(), syscall.EAFNOSUPPORT)
	case s.net.bound[addr] != nil:
		return s.fail("bind", a.String(), syscall.EADDRINUSE)
	case s.local.word != "":
		return s.fail("bind", a.String(), syscall.EINVAL)
	}
	s.net.bound[addr], s.local = s, addr
	return nil
}

func (s *memSocket) autobindLocked() {
	if s.local.word != "" {
		return
	}
	s.net.next++
	s.local = memAddr{s.typ, "auto-" + strconv.Itoa(s.net.next)}
	s.net.bound[s.local] = s
}

func (s *memSocket) Connect(ctx context.Context, a families.Addr) error {
	s.net.mu.Lock()
	defer s.net.mu.Unlock()
	addr, ok := a.(memAddr)
	target := s.net.bound[addr]
	switch {
	case ctx.Err() != nil:
		return s.fail("connect", a.String(), ctx.Err())
	case s.closed:
		return s.fail("connect", a.String(), net.ErrClosed)
	case !ok || addr.typ != s.typ:
		return s.fail("connect", a.String(), syscall.EAFNOSUPPORT)
	case s.other != nil:
		return s.fail("connect", a.String(), syscall.EISCONN)
	case target == nil, s.typ == families.Stream && (!target.listening || len(target.backlog) == memBacklog):
		return s.fail("connect", a.String(), syscall.ECONNREFUSED)
	}
	s.autobindLocked()
	s.peer = addr
	if s.typ == families.Stream {
		s.other = &memSocket{net: s.net, typ: s.typ, local: addr, peer: s.local, other: s}
		target.backlog = append(target.backlog, s.other)
		s.net.changeLocked()
	}
	return nil
}

func (s *memStream) Listen(int) error {
	s.net.mu.Lock()
	defer s.net.mu.Unlock()
	if s.closed {
		return s.fail("listen", "", net.ErrClosed)
	}
	s.autobindLocked()
	s.listening = true
	return nil
}

func (s *memStream) Accept() (families.Socket, error) {
	s.net.mu.Lock()
	defer s.net.mu.Unlock()
	switch {
	case s.closed:
		return nil, s.fail("accept", "", net.ErrClosed)
	case len(s.backlog) == 0:
		return nil, families.ErrAgain
	}
	c := s.backlog[0]
	s.backlog = s.backlog[1:]
	return &memStream{c}, nil
}

func (s *memStream) CloseRead() error {
	return s.shutdown(func() { s.endRead = true })
}

func (s *memStream) CloseWrite() error { return s.shutdown(s.endWriteLocked) }

func (s *memStream) CloseBoth() error {
	return s.shutdown(func() {
		s.endRead = true
		s.endWriteLocked()
	})
}

func (s *memStream) shutdown(end func()) error {
	s.net.mu.Lock()
	defer s.net.mu.Unlock()
	if s.other == nil {
		return s.fail("shutdown", "", syscall.ENOTCONN)
	}
	end()
	s.net.changeLocked()
	return nil
}

func (s *memSocket) Recv(m *families.Msg) error {
	s.net.mu.Lock()
	defer s.net.mu.Unlock()
	room, peek := m.Data[:cap(m.Data)], m.Flags&families.FlagPeek != 0
	*m = families.Msg{Data: room[:0]}
	switch {
	case s.closed:
		return s.fail("recv", "", net.ErrClosed)
	case len(s.queue) == 0 && s.endRead:
		return io.EOF
	case len(s.queue) == 0:
		return families.ErrAgain
	}
	head := &s.queue[0]
	n := copy(room, head.data)
	m.Data, m.Full = room[:n], n
	if s.typ == families.Dgram {
		m.Full, m.Peer = len(head.data), head.from
	}
	if !peek {
		s.takeLocked(n)
		s.net.changeLocked()
	}
	if m.Full > n {
		return families.ErrCut
	}
	return nil
}

// takeLocked removes the first message, or n bytes of the first piece.
func (s *memSocket) takeLocked(n int) {
	head := &s.queue[0]
	if s.typ == families.Stream && n < len(head.data) {
		head.data = head.data[n:]
		s.queued -= n
		return
	}
	s.queued -= len(head.data)
	s.queue = s.queue[1:]
}

func (s *memSocket) Send(m *families.Msg) (int, error) {
	s.net.mu.Lock()
	defer s.net.mu.Unlock()
	if s.closed {
		return 0, s.fail("send", "", net.ErrClosed)
	}
	if s.typ == families.Stream {
		return s.sendStreamLocked(m.Data)
	}
	return s.sendDgramLocked(m)
}

func (s *memSocket) sendStreamLocked(data []byte) (int, error) {
	switch {
	case s.other == nil:
		return 0, s.fail("send", "", syscall.ENOTCONN)
	case s.endWrite || s.other.closed:
		return 0, s.fail("send", "", syscall.EPIPE)
	case s.other.queued >= memStreamRoom:
		return 0, families.ErrAgain
	case len(data) == 0:
		return 0, nil
	}
	n := min(len(data), memStreamRoom-s.other.queued)
	s.other.pushLocked(memMsg{data: append([]byte(nil), data[:n]...)})
	return n, nil
}

func (s *memSocket) sendDgramLocked(m *families.Msg) (int, error) {
	to := s.peer
	if !m.Peer.Empty() {
		to = memAddr{s.typ, string(m.Peer.Bytes())}
	}
	target := s.net.bound[to]
	switch {
	case to.word == "":
		return 0, s.fail("send", "", syscall.EDESTADDRREQ)
	case len(m.Data) > memLargest:
		return 0, s.fail("send", to.word, syscall.EMSGSIZE)
	case target == nil:
		return 0, s.fail("send", to.word, syscall.ECONNREFUSED)
	case len(target.queue) >= memDgramRoom:
		return 0, families.ErrAgain
	}
	s.autobindLocked()
	target.pushLocked(memMsg{data: append([]byte(nil), m.Data...), from: s.local.Sockaddr()})
	return len(m.Data), nil
}

func (s *memSocket) pushLocked(m memMsg) {
	s.queue = append(s.queue, m)
	s.queued += len(m.data)
	s.net.changeLocked()
}

func (s *memSocket) Wait(ctx context.Context, r families.Ready) error {
	for {
		s.net.mu.Lock()
		closed, ready, changed := s.closed, s.readyLocked(r), s.net.changed
		s.net.mu.Unlock()
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case closed:
			return net.ErrClosed
		case ready:
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
		}
	}
}

func (s *memSocket) readyLocked(r families.Ready) bool {
	if r&families.Readable != 0 && (len(s.queue) > 0 || len(s.backlog) > 0 || s.endRead) {
		return true
	}
	return r&families.Writable != 0 && s.writableLocked()
}

func (s *memSocket) writableLocked() bool {
	if s.typ == families.Dgram {
		target := s.net.bound[s.peer]
		return target == nil || len(target.queue) < memDgramRoom
	}
	return s.other == nil || s.other.closed || s.endWrite || s.other.queued < memStreamRoom
}

func (s *memSocket) NameAddr(n families.Name) families.Addr {
	if n.Empty() {
		return nil
	}
	return memAddr{s.typ, string(n.Bytes())}
}

func (s *memSocket) Info() families.Info {
	s.net.mu.Lock()
	defer s.net.mu.Unlock()
	i := families.Info{Family: "toy", Type: s.typ, Proto: "toy", State: s.stateLocked()}
	if s.local.word != "" {
		i.Local = s.local
	}
	if s.peer.word != "" {
		i.Peer = s.peer
	}
	return i
}

func (s *memSocket) stateLocked() families.State {
	switch {
	case s.closed:
		return families.Closed
	case s.listening:
		return families.Listening
	case s.other != nil && (s.endRead || s.endWrite):
		return families.HalfClosed
	case s.peer.word != "":
		return families.Connected
	case s.local.word != "":
		return families.Bound
	}
	return families.New
}
