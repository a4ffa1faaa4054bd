// Package ctltest has a Backend for tests of ctl and of sockd-ctl: sockets that
// live in memory, that a test fills and looks into. It opens real descriptors for
// local sockets only, which are lent for Borrow. Nothing else uses it.
package ctltest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sort"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/model"
	"github.com/sockd/sockd/families/packet/pcapng"
	"github.com/sockd/sockd/families/packet/shm"
)

// Backend is a daemon in memory. The zero value is not usable: see New.
type Backend struct {
	mu         sync.Mutex // guards what follows
	next       model.ID
	sockets    map[model.ID]*socket
	relays     map[model.ID]*relay
	recorders  []*recorder
	asked      []string // what Authorize was asked
	deny       func(c model.Caller, method string) error
	fail       error
	captureEnd error // of each capture and injection
	// captureFiles is how many files each capture to files makes; 0: one.
	captureFiles int
	captureFull  bool // the disk that they are on

	captureFlickers bool
	dumpEnd         error // of each dump
	injectSpec      model.InjectSpec
	injected        []byte
	badEnd          error // of attachments
	audit           []model.Audit
	undone          int64 // messages that were given back
	handed          []int // descriptors that Open, Attach and the relays took
}

type socket struct {
	model.Socket
	fd       int // of a local socket, or -1
	messages []model.Message
	pending  []string // peers that wait to be accepted
	waiting  int      // callers in Recv and Accept
	options  map[string]string
	changed  chan struct{} // closed and renewed at every change
}

type relay struct {
	model.Relay
	spec model.RelaySpec
}

// New makes a Backend. When the test ends its descriptors are closed.
func New(tb testing.TB) *Backend {
	b := &Backend{sockets: map[model.ID]*socket{}, relays: map[model.ID]*relay{}}
	tb.Cleanup(b.closeFiles)
	return b
}

func (b *Backend) closeFiles() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, s := range b.sockets {
		if s.fd >= 0 {
			_ = syscall.Close(s.fd) // the test is over
		}
	}
	for _, fd := range b.handed {
		_ = syscall.Close(fd) // the test is over
	}
	b.handed = nil
}

// own keeps a descriptor that was handed over until the test ends.
func (b *Backend) own(fd int) {
	if fd >= 0 {
		b.handed = append(b.handed, fd)
	}
}

// Deny makes f decide on every call.
func (b *Backend) Deny(f func(c model.Caller, method string) error) {
	b.mu.Lock()
	b.deny = f
	b.mu.Unlock()
}

// Fail makes every method fail with err, until it is nil.
func (b *Backend) Fail(err error) {
	b.mu.Lock()
	b.fail = err
	b.mu.Unlock()
}

// EndBadly makes attachments end with err.
func (b *Backend) EndBadly(err error) {
	b.mu.Lock()
	b.badEnd = err
	b.mu.Unlock()
}

// Asked lists the methods that Authorize was asked for.
func (b *Backend) Asked() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]string(nil), b.asked...)
}

// Undone counts the messages that were given back.
func (b *Backend) Undone() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.undone
}

// Handed lists the descriptors that callers handed over. They stay b's.
func (b *Backend) Handed() []int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]int(nil), b.handed...)
}

// Push queues a message for Recv.
func (b *Backend) Push(id model.ID, m model.Message) {
	b.change(id, func(s *socket) { s.messages = append(s.messages, m) })
}

// Dial queues a connection for Accept.
func (b *Backend) Dial(id model.ID, peer string) {
	b.change(id, func(s *socket) { s.pending = append(s.pending, peer) })
}

// Waiting counts the callers that wait in Recv and Accept on a socket.
func (b *Backend) Waiting(id model.ID) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	if s := b.sockets[id]; s != nil {
		return s.waiting
	}
	return 0
}

// Sockets counts the sockets that are open.
func (b *Backend) Sockets() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.sockets)
}

// Messages counts what is queued for Recv.
func (b *Backend) Messages(id model.ID) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.sockets[id].messages)
}

func (b *Backend) change(id model.ID, f func(*socket)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.changeLocked(b.sockets[id], f)
}

func (b *Backend) changeLocked(s *socket, f func(*socket)) {
	f(s)
	close(s.changed)
	s.changed = make(chan struct{})
}

// Authorize lets everybody, or asks the function that Deny set.
func (b *Backend) Authorize(c model.Caller, method string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.asked = append(b.asked, method)
	if b.deny == nil {
		return nil
	}
	return b.deny(c, method)
}

// with calls f on a socket with the lock held.
func (b *Backend) with(id model.ID, f func(s *socket) error) (model.Socket, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s, err := b.findLocked(id)
	if err == nil {
		err = f(s)
	}
	if err != nil {
		return model.Socket{}, err
	}
	return s.Socket, nil
}

func (b *Backend) findLocked(id model.ID) (*socket, error) {
	if b.fail != nil {
		return nil, b.fail
	}
	s := b.sockets[id]
	if s == nil {
		return nil, fmt.Errorf("socket %d: %w", id, families.ErrNotFound)
	}
	return s, nil
}

func (b *Backend) addLocked(s model.Socket, fd int) *socket {
	b.next++
	s.ID, s.Drops = b.next, model.Drops{}
	added := &socket{Socket: s, fd: fd, changed: make(chan struct{}), options: map[string]string{"so_rcvbuf": "212992", "so_keepalive": "0"}}
	b.sockets[s.ID] = added
	return added
}

var socketTypes = map[string]int{"stream": syscall.SOCK_STREAM, "dgram": syscall.SOCK_DGRAM, "seqpacket": syscall.SOCK_SEQPACKET}

// Open opens a socket; one of family local has a real descriptor.
func (b *Backend) Open(_ context.Context, c model.Caller, family, typ string, protocol int, protocolName string, fd int) (model.Socket, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.fail != nil {
		return model.Socket{}, b.fail
	}
	if _, err := families.ParseType(typ); err != nil {
		return model.Socket{}, err
	}
	own := -1
	if family == "local" {
		var err error
		if own, err = syscall.Socket(syscall.AF_UNIX, socketTypes[typ]|syscall.SOCK_NONBLOCK|syscall.SOCK_CLOEXEC, 0); err != nil {
			return model.Socket{}, err
		}
	}
	b.own(fd)
	word := protocolName
	if protocol != 0 {
		word = strconv.Itoa(protocol)
	}
	return b.addLocked(model.Socket{Family: family, Type: typ, Protocol: word, State: "new", Owner: c.Owner()}, own).Socket, nil
}

// Keep notes that a socket is durable.
func (b *Backend) Keep(_ context.Context, _ model.Caller, id model.ID) (model.Socket, error) {
	return b.with(id, func(s *socket) error { s.Durable = true; return nil })
}

// Bind remembers the address; a local socket's is the caller's to bind.
func (b *Backend) Bind(_ context.Context, _ model.Caller, id model.ID, addr string) (model.Socket, error) {
	return b.with(id, func(s *socket) error {
		if s.fd >= 0 {
			return &families.OpError{Op: "bind", Family: s.Family, Addr: addr, Err: families.ErrBorrow}
		}
		s.Local, s.State = addr, "bound"
		return nil
	})
}

// Listen makes a socket listening; a local one is its caller's to.
func (b *Backend) Listen(_ context.Context, _ model.Caller, id model.ID, _ int) (model.Socket, error) {
	return b.with(id, func(s *socket) error {
		if s.fd >= 0 {
			return &families.OpError{Op: "listen", Family: s.Family, Err: families.ErrBorrow}
		}
		s.State = "listening"
		return nil
	})
}

// Connect connects at once; a local socket is its caller's to connect.
func (b *Backend) Connect(_ context.Context, _ model.Caller, id model.ID, addr string) (model.Socket, error) {
	return b.with(id, func(s *socket) error {
		if s.fd >= 0 {
			return &families.OpError{Op: "connect", Family: s.Family, Addr: addr, Err: families.ErrBorrow}
		}
		s.Peer, s.State = addr, "connected"
		return nil
	})
}

// wait runs attempts with the lock held, one at every change of the socket,
// until one is done or ctx ends.
func (b *Backend) wait(ctx context.Context, id model.ID, attempt func(s *socket) (done bool)) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for {
		s, err := b.findLocked(id)
		if err != nil {
			return err
		}
		if attempt(s) {
			return nil
		}
		changed := s.changed
		s.waiting++
		b.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			err = fmt.Errorf("wait for socket %d: %w", id, ctx.Err())
		}
		b.mu.Lock()
		s.waiting--
		if err != nil {
			return err
		}
	}
}

// Accept waits for a Dial.
func (b *Backend) Accept(ctx context.Context, _ model.Caller, id model.ID) (model.Socket, error) {
	var out model.Socket
	err := b.wait(ctx, id, func(s *socket) bool {
		if len(s.pending) == 0 {
			return false
		}
		out = b.addLocked(model.Socket{Family: s.Family, Type: s.Type, State: "connected", Peer: s.pending[0], Parent: s.ID, Owner: s.Owner}, -1).Socket
		s.pending = s.pending[1:]
		return true
	})
	return out, err
}

// Recv waits for a Push.
func (b *Backend) Recv(ctx context.Context, _ model.Caller, id model.ID, spec model.RecvSpec) (model.Message, func(), error) {
	var m model.Message
	var tooLong error
	err := b.wait(ctx, id, func(s *socket) bool {
		if len(s.messages) == 0 {
			return false
		}
		m = s.messages[0]
		if spec.Max == 0 && len(m.Data) > spec.Room {
			tooLong = fmt.Errorf("recv: %d bytes: %w", len(m.Data), syscall.EMSGSIZE)
			return true
		}
		s.messages = s.messages[1:]
		return true
	})
	if err := errors.Join(err, tooLong); err != nil {
		return model.Message{}, nil, err
	}
	whole := m
	m.Full = len(m.Data)
	if spec.Max > 0 && m.Full > spec.Max {
		m.Data, m.Cut = m.Data[:spec.Max], true
	}
	return m, func() { b.giveBack(id, whole) }, nil
}

func (b *Backend) giveBack(id model.ID, m model.Message) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.undone++
	if s := b.sockets[id]; s != nil {
		b.changeLocked(s, func(s *socket) { s.messages = append([]model.Message{m}, s.messages...) })
	}
}

// Send queues the data for Recv on the same socket: what goes out comes back.
func (b *Backend) Send(_ context.Context, _ model.Caller, id model.ID, data []byte, to string) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s, err := b.findLocked(id)
	if err != nil {
		return 0, err
	}
	if s.fd >= 0 && to != "" {
		return 0, &families.OpError{Op: "send", Family: s.Family, Addr: to, Err: families.ErrBorrow}
	}
	b.changeLocked(s, func(s *socket) {
		s.messages = append(s.messages, model.Message{Data: append([]byte(nil), data...), From: to})
		s.TxBytes += int64(len(data))
		s.TxMessages++
	})
	return len(data), nil
}

// Shutdown half-closes or closes.
func (b *Backend) Shutdown(_ context.Context, _ model.Caller, id model.ID, how string) (model.Socket, error) {
	return b.with(id, func(s *socket) error {
		s.State = map[string]string{"rd": "half-closed", "wr": "half-closed", "both": "closed"}[how]
		return nil
	})
}

// Options has so_rcvbuf and so_keepalive.
func (b *Backend) Options(_ context.Context, _ model.Caller, id model.ID, opts []model.Option) ([]model.Option, error) {
	var out []model.Option
	_, err := b.with(id, func(s *socket) error {
		if len(opts) == 0 {
			for name := range s.options {
				opts = append(opts, model.Option{Name: name})
			}
			sort.Slice(opts, func(i, j int) bool { return opts[i].Name < opts[j].Name })
		}
		for _, o := range opts {
			if _, ok := s.options[o.Name]; !ok {
				return &families.SyntaxError{What: "option", Text: o.Name, Why: "is unknown"}
			}
			if o.Value != nil {
				s.options[o.Name] = *o.Value
			}
			value := s.options[o.Name]
			out = append(out, model.Option{Name: o.Name, Value: &value})
		}
		return nil
	})
	return out, err
}

// Borrow lends a local socket's descriptor.
func (b *Backend) Borrow(_ context.Context, _ model.Caller, id model.ID, f func(fd int, typ string) error) error {
	b.mu.Lock()
	s, err := b.findLocked(id)
	if err != nil {
		b.mu.Unlock()
		return err
	}
	if s.fd < 0 {
		b.mu.Unlock()
		return fmt.Errorf("borrow %s: %w", s.Family, families.ErrNotSupported)
	}
	fd, err := syscall.Dup(s.fd)
	typ := s.Type
	b.mu.Unlock()
	if err != nil {
		return err
	}
	defer syscall.Close(fd)
	return f(fd, typ)
}

// Return looks at what the borrower did.
func (b *Backend) Return(_ context.Context, _ model.Caller, id model.ID, done string, bytes, messages int64) (model.Socket, error) {
	return b.with(id, func(s *socket) error {
		s.TxBytes += bytes
		s.TxMessages += messages
		s.State = map[string]string{"bind": "bound", "listen": "listening", "connect": "connected", "send": s.State}[done]
		if sa, err := syscall.Getsockname(s.fd); err == nil {
			s.Local = sa.(*syscall.SockaddrUnix).Name
		}
		if sa, err := syscall.Getpeername(s.fd); err == nil {
			s.Peer = sa.(*syscall.SockaddrUnix).Name
		}
		return nil
	})
}

// Close closes a socket or relay.
func (b *Backend) Close(_ context.Context, _ model.Caller, ref string, accepted bool) ([]model.ID, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if r := b.relayLocked(ref); r != nil {
		delete(b.relays, r.ID)
		return []model.ID{r.ID}, nil
	}
	if r, err := b.recorderLocked(ref); err == nil {
		b.recorders = slices.DeleteFunc(b.recorders, func(o *recorder) bool { return o == r })
		return []model.ID{r.ID}, nil
	}
	n, _ := strconv.ParseInt(ref, 10, 64)
	s, err := b.findLocked(model.ID(n))
	if err != nil {
		return nil, fmt.Errorf("close %q: %w", ref, err)
	}
	ids := []model.ID{s.ID}
	for id, child := range b.sockets {
		if accepted && child.Parent == s.ID {
			ids = append(ids, id)
		}
	}
	b.closeLocked(ids)
	return ids, nil
}

// CloseAll closes what the caller owns.
func (b *Backend) CloseAll(_ context.Context, c model.Caller) ([]model.ID, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var ids []model.ID
	for id, s := range b.sockets {
		if s.Owner == c.Owner() {
			ids = append(ids, id)
		}
	}
	b.closeLocked(ids)
	return ids, b.fail
}

func (b *Backend) closeLocked(ids []model.ID) {
	sort.Slice(ids, func(i, j int) bool { return ids[i] < ids[j] })
	for _, id := range ids {
		s := b.sockets[id]
		if s.fd >= 0 {
			_ = syscall.Close(s.fd) // nothing is queued in a fake
		}
		delete(b.sockets, id)
		b.changeLocked(s, func(*socket) {})
	}
}

// List lists sockets and relays.
func (b *Backend) List(_ context.Context, _ model.Caller, kinds []string) (model.Listing, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	l := model.Listing{Sockets: []model.Socket{}, Relays: []model.Relay{}, Sessions: []model.Session{}, Captures: []model.Capture{}, Recorders: []model.Recorder{}}
	for _, kind := range kinds {
		switch kind {
		case "sockets":
			for _, s := range b.sockets {
				l.Sockets = append(l.Sockets, s.Socket)
			}
		case "relays":
			for _, r := range b.relays {
				l.Relays = append(l.Relays, r.Relay)
			}
		case "recorders":
			for _, r := range b.recorders {
				l.Recorders = append(l.Recorders, r.Recorder)
			}
		}
	}
	sort.Slice(l.Sockets, func(i, j int) bool { return l.Sockets[i].ID < l.Sockets[j].ID })
	sort.Slice(l.Relays, func(i, j int) bool { return l.Relays[i].ID < l.Relays[j].ID })
	return l, b.fail
}

// Show finds a socket or relay.
func (b *Backend) Show(_ context.Context, _ model.Caller, ref string) (model.Object, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if r := b.relayLocked(ref); r != nil {
		view := r.Relay
		return model.Object{Kind: model.KindRelay, Relay: &view}, nil
	}
	if r, err := b.recorderLocked(ref); err == nil {
		view := r.Recorder
		return model.Object{Kind: model.KindRecorder, Recorder: &view}, nil
	}
	n, _ := strconv.ParseInt(ref, 10, 64)
	s, err := b.findLocked(model.ID(n))
	if err != nil {
		return model.Object{}, fmt.Errorf("show %q: %w", ref, err)
	}
	view := s.Socket
	return model.Object{Kind: model.KindSocket, Socket: &view}, nil
}

// Watch tells that it is ready, and of nothing more.
func (b *Backend) Watch(ctx context.Context, _ model.Caller, f func(model.Event) error) error {
	if err := f(model.Event{Event: "ready"}); err != nil {
		return err
	}
	<-ctx.Done()
	return ctx.Err()
}

// Status says who it is.
func (b *Backend) Status(context.Context, model.Caller) (model.Status, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return model.Status{Version: "test", PID: 1, Sockets: int64(len(b.sockets)), Relays: int64(len(b.relays)), Families: []string{"inet", "local"}, Missing: []model.Missing{}, Problems: []string{}}, b.fail
}

// Attach gives what is sent back to its sender.
func (b *Backend) Attach(_ context.Context, _ model.Caller, spec model.AttachSpec) (model.Attachment, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.fail != nil {
		return nil, b.fail
	}
	b.own(spec.FD)
	if spec.Endpoint != nil {
		return &echo{model.Socket{Family: "inet", Type: "stream", Peer: spec.Endpoint.Address, Drops: model.Drops{}}, b.badEnd}, nil
	}
	s, err := b.findLocked(spec.ID)
	if err != nil {
		return nil, err
	}
	return &echo{s.Socket, b.badEnd}, nil
}

type echo struct {
	socket model.Socket
	fail   error
}

func (e *echo) Socket() model.Socket { return e.socket }
func (e *echo) Close() error         { return nil }

func (e *echo) Run(ctx context.Context, conn *net.UnixConn, _ <-chan struct{}) error {
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	_, err := io.Copy(conn, conn)
	return errors.Join(err, conn.CloseWrite(), e.fail)
}

func (b *Backend) relayLocked(ref string) *relay {
	for _, r := range b.relays {
		if r.Name == ref || strconv.FormatInt(int64(r.ID), 10) == ref {
			return r
		}
	}
	return nil
}

// RelayAdd remembers a relay.
func (b *Backend) RelayAdd(_ context.Context, c model.Caller, spec model.RelaySpec, replace bool) (model.Relay, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.fail != nil {
		return model.Relay{}, b.fail
	}
	r := b.relayLocked(spec.Name)
	switch {
	case r != nil && !replace:
		return model.Relay{}, fmt.Errorf("relay %s: the name is taken: %w", spec.Name, families.ErrBusy)
	case r == nil:
		b.next++
		r = &relay{Relay: model.Relay{ID: b.next, Owner: c.Owner()}}
		b.relays[r.ID] = r
	}
	b.own(spec.FromFD)
	for _, d := range spec.ToDirs {
		b.own(d.FD)
	}
	if spec.Name == "" {
		spec.Name = fmt.Sprintf("r%d", r.ID)
	}
	r.spec = spec
	r.Name, r.From, r.State, r.Drops = spec.Name, spec.From.String(), "listening", model.Drops{}
	r.Local = []string{r.From}
	r.To = texts(spec.To)
	return r.Relay, nil
}

func texts(endpoints []families.Endpoint) []string {
	out := []string{}
	for _, e := range endpoints {
		out = append(out, e.String())
	}
	return out
}

// RelaySet changes what is given.
func (b *Backend) RelaySet(_ context.Context, _ model.Caller, ref string, change model.RelayChange) (model.Relay, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	r := b.relayLocked(ref)
	if r == nil {
		return model.Relay{}, fmt.Errorf("relay %q: %w", ref, families.ErrNotFound)
	}
	for _, d := range change.ToDirs {
		b.own(d.FD)
	}
	if change.To != nil {
		r.spec.To = *change.To
		r.To = texts(*change.To)
	}
	set(&r.spec.MaxConns, change.MaxConns)
	set(&r.spec.ConnectTimeout, change.ConnectTimeout)
	set(&r.spec.Idle, change.Idle)
	set(&r.spec.HalfClose, change.HalfClose)
	set(&r.spec.Balance, change.Balance)
	set(&r.spec.Allow, change.Allow)
	set(&r.spec.Rate, change.Rate)
	set(&r.spec.Pass, change.Pass)
	return r.Relay, nil
}

func set[T any](to *T, from *T) {
	if from != nil {
		*to = *from
	}
}

// RelayRemove forgets a relay.
func (b *Backend) RelayRemove(_ context.Context, _ model.Caller, ref string, _ time.Duration) (model.Relay, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	r := b.relayLocked(ref)
	if r == nil {
		return model.Relay{}, fmt.Errorf("relay %q: %w", ref, families.ErrNotFound)
	}
	delete(b.relays, r.ID)
	return r.Relay, nil
}

// RelaySpec tells what RelayAdd was told.
func (b *Backend) RelaySpec(_ context.Context, _ model.Caller, ref string) (model.RelaySpec, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	r := b.relayLocked(ref)
	if r == nil {
		return model.RelaySpec{}, fmt.Errorf("relay %q: %w", ref, families.ErrNotFound)
	}
	return r.spec, nil
}

// Audited makes lines what every audit finds, of relays that are called as they say.
func (b *Backend) Audited(lines []model.Audit) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.audit = lines
}

// RelayAudit finds what Audited says.
func (b *Backend) RelayAudit(_ context.Context, _ model.Caller, ref string) ([]model.Audit, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var lines []model.Audit
	for _, l := range b.audit {
		if ref == "" || ref == l.Name {
			lines = append(lines, l)
		}
	}
	if ref != "" && lines == nil && b.relayLocked(ref) == nil {
		return nil, fmt.Errorf("audit %q: %w", ref, families.ErrNotFound)
	}
	return lines, b.fail
}

// Capture starts a capture that sees nothing and ends at once, with a complete file:
// well, or with EndCaptures' error.
func (b *Backend) Capture(_ context.Context, c model.Caller, spec model.CaptureSpec) (model.Capturing, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.fail != nil {
		return nil, b.fail
	}
	b.next++
	v := model.Capture{ID: b.next, Source: spec.Source, Filter: spec.Filter, Owner: c.Owner()}
	return &capturing{view: v, spec: spec, end: b.captureEnd, files: max(1, b.captureFiles), full: b.captureFull, flickers: b.captureFlickers}, nil
}

// CaptureShare starts a capture of three packets, the numbers 0 to 2, which ends when its caller asks for
// it, or by itself after spec.Count.
func (b *Backend) CaptureShare(_ context.Context, c model.Caller, spec model.CaptureSpec) (model.Sharing, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.fail != nil {
		return nil, b.fail
	}
	w, err := shm.NewWriter(int(spec.Queue))
	if err != nil {
		return nil, err
	}
	b.next++
	return &sharing{w: w, view: model.Capture{ID: b.next, Source: spec.Source, Filter: spec.Filter, Owner: c.Owner()}, counted: spec.Count > 0, end: b.captureEnd}, nil
}

type sharing struct {
	w       *shm.Writer
	view    model.Capture
	counted bool
	end     error
}

func (s *sharing) View() model.Capture { return s.view }

func (s *sharing) Files() (data, control, wake int) {
	f := s.w.Files()
	return f.Data, f.Control, f.Wake
}

func (s *sharing) Run(ctx context.Context, done, left <-chan struct{}) error {
	defer s.w.Close()
	s.w.CloseFiles()
	if s.end != nil {
		return s.end
	}
	s.put(pcapng.AppendSection(nil, pcapng.Section{UserAppl: "ctltest"}))
	s.put(pcapng.AppendInterface(nil, pcapng.Interface{Link: pcapng.Ethernet, Name: s.view.Source}))
	for i := range byte(3) {
		s.put(pcapng.AppendPacket(nil, &pcapng.Packet{Time: int64(i) + 1, Data: []byte{i}, Len: 60, Direction: pcapng.Inbound, Dropped: uint64(i)}))
	}
	_ = s.w.Flush() // the reader is ours
	if !s.counted {
		await(ctx, done)
	}
	s.put(pcapng.AppendStats(nil, pcapng.Stats{Accepted: 6, Delivered: 3, OSDrop: 3, Comment: "dropped_kernel=1 dropped_daemon=0 dropped_subscriber=3"}))
	s.w.End()
	await(ctx, left)
	return nil
}

func await(ctx context.Context, c <-chan struct{}) {
	select {
	case <-ctx.Done():
	case <-c:
	}
}

func (s *sharing) put(block []byte) {
	if room, err := s.w.Room(len(block), true); err == nil {
		s.w.Commit(copy(room[:len(block)], block), block[0] == byte(pcapng.PacketBlock))
	}
}

func (s *sharing) Close() error {
	s.w.Close()
	return nil
}

// CaptureSet says what the capture would be with the filter.
func (b *Backend) CaptureSet(_ context.Context, c model.Caller, ref, filter string) (model.Capture, error) {
	id, ok := model.ParseID(ref)
	if !ok {
		return model.Capture{}, fmt.Errorf("set %q: %w", ref, families.ErrNotFound)
	}
	return model.Capture{ID: id, Source: "eth0", Filter: filter, Owner: c.Owner()}, nil
}

// Interfaces are any, one loopback and one Ethernet interface.
func (b *Backend) Interfaces(context.Context, model.Caller) ([]model.Interface, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return []model.Interface{
		{Name: "any", LinkType: "EN10MB", Up: true, Running: true},
		{Index: 1, Name: "lo", LinkType: "EN10MB", MTU: 65536, Up: true, Running: true, Loopback: true},
		{Index: 7, Name: "eth7", LinkType: "EN10MB", MTU: 1500, MAC: "02:00:00:00:00:07"},
	}, b.fail
}

// EndCaptures makes captures that start from now on end with err.
func (b *Backend) EndCaptures(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.captureEnd = err
}

type capturing struct {
	view  model.Capture
	spec  model.CaptureSpec
	end   error
	files int
	full  bool
	note  func(string)

	flickers bool
}

func (c *capturing) View() model.Capture  { return c.view }
func (c *capturing) Close() error         { return nil }
func (c *capturing) Notes(f func(string)) { c.note = f }

// Flicker has the interfaces of captures that start from now on gone, and there again.
func (b *Backend) Flicker() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.captureFlickers = true
}

func (c *capturing) flicker() {
	if c.flickers && c.note != nil {
		c.note(c.spec.Source + " is gone")
		c.note(c.spec.Source + " is there")
	}
}

// FillDisk makes captures to files that start from now on find the disk full: of all
// files the second has not even its beginning, and two packets are lost.
func (b *Backend) FillDisk() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.captureFull = true
}

// CaptureFiles makes captures to files that start from now on write so many, an hour
// each from the beginning of 2026, of which the second reports an error before it is complete.
func (b *Backend) CaptureFiles(n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.captureFiles = n
}

// RunFiles is Run into each file, with a comment that has its number.
func (c *capturing) RunFiles(ctx context.Context, _ model.FileSpec, next func(context.Context) (int, error), done func(model.FileReport) error) error {
	c.flicker()
	for n := range c.files {
		fd, err := next(ctx)
		if err != nil {
			return err
		}
		r := model.FileReport{Packets: 1, Begun: time.Date(2026, 1, 1, n, 0, 0, 0, time.Local).UTC(), Reason: "error", Error: "no space left on device"}
		if n == 1 {
			if err := done(r); err != nil {
				return err
			}
		}
		if r.Reason, r.Error = "time", ""; n == c.files-1 {
			r.Reason = "end"
		}
		if c.full && n == min(1, c.files-1) {
			r.Error, r.Errno, r.Lost, r.Packets = "write: no space left on device", syscall.ENOSPC, 2, 0
			if err := syscall.Close(fd); err != nil {
				return err
			}
		} else if r.Bytes, err = c.writeFile(fd, n); err != nil {
			return err
		}
		if err := done(r); err != nil {
			return err
		}
	}
	c.view.Received, c.view.Delivered = 3, int64(c.files)
	return c.end
}

func (c *capturing) writeFile(fd, n int) (bytes int64, err error) {
	f := os.NewFile(uintptr(fd), "capture")
	defer f.Close()
	file := pcapng.AppendSection(nil, pcapng.Section{Comment: strconv.Itoa(n)})
	file = pcapng.AppendInterface(file, pcapng.Interface{Link: pcapng.Ethernet, Name: c.view.Source})
	written, err := f.Write(pcapng.AppendStats(file, pcapng.Stats{Received: 3, Accepted: 3}))
	return int64(written), err
}

// Run writes a file without packets.
func (c *capturing) Run(_ context.Context, w io.Writer) error {
	file := pcapng.AppendSection(nil, pcapng.Section{})
	file = pcapng.AppendInterface(file, pcapng.Interface{Link: pcapng.Ethernet, Name: c.view.Source})
	c.flicker()
	if _, err := w.Write(pcapng.AppendStats(file, pcapng.Stats{Received: 3, Accepted: 3})); err != nil {
		return err
	}
	return c.end
}
