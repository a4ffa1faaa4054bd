package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/model"
)

// attachRoom is what one step of an attachment moves: nearly any message, and enough
// of a stream that copying is not what takes the time.
const attachRoom = 64 << 10

// An attachment is one socket joined to one caller.
//
//	caller ──conn.Read──> up ──send──> socket ──> peer
//	caller <──conn.Write── down <──take── socket <── peer
//
// The end of the caller's bytes goes on as FIN, and down runs on until the peer
// ends. Whatever ends first of peer, context and Close ends both.
//
// A caller who was killed has ended both directions of conn, and has meant no end of
// its bytes: what it had sent is sent, no FIN follows, and the socket is free for
// others as it is. (One that was dialled for the caller is closed, as the kernel
// closes the sockets of any program that is killed.) What the caller had not read of
// the bytes in its own queue is lost with it.
type attachment struct {
	d     *Daemon
	k     *sock
	spec  model.AttachSpec
	owned bool // dialled for the purpose, closed afterwards

	free sync.Once // gives the socket back

	mu     sync.Mutex // guards what follows
	cancel context.CancelCauseFunc
	closed bool
	runs   sync.WaitGroup
}

// What ends an attachment in the ordinary way.
var (
	errEnded = errors.New("ended")
	errLeft  = errors.New("the caller left")
)

// drainTime is what the socket gets to take what a caller had sent who is gone. It
// takes no time but from a peer who does not read, and others wait for the socket.
const drainTime = time.Second

// Attach takes a socket for one caller: others' send, recv and attach wrap
// families.ErrBusy until the Attachment has run or is closed. An endpoint is
// dialled, with spec.FD adopted, which the daemon owns on success.
func (d *Daemon) Attach(ctx context.Context, c model.Caller, spec model.AttachSpec) (model.Attachment, error) {
	ctx, end, err := d.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	k, owned, err := d.attachTo(ctx, c, spec)
	if err != nil {
		return nil, err
	}
	a := &attachment{d: d, k: k, spec: spec, owned: owned}
	// What was dialled is nobody else's: hold can fail only because the daemon
	// stops, and then spec.FD has gone with the socket. Run tells.
	if err := k.hold(a); err != nil && !owned {
		return nil, opError("attach", k.family.Name(), "", err)
	}
	return a, nil
}

// attachTo finds the socket, or dials one.
func (d *Daemon) attachTo(ctx context.Context, c model.Caller, spec model.AttachSpec) (k *sock, owned bool, err error) {
	id := spec.ID
	switch e := spec.Endpoint; {
	case e == nil:
	case e.Network == families.NetworkID:
		n, ok := model.ParseID(e.Address)
		if !ok {
			return nil, false, &families.SyntaxError{What: "endpoint", Text: e.String(), Column: 4, Why: "want the number of an open socket", Hint: "sockd-ctl ls"}
		}
		id = n
	default:
		k, err := d.dial(ctx, c, *e, spec.FD)
		return k, true, err
	}
	k, err = d.sock(c, id)
	if err != nil {
		return nil, false, fmt.Errorf("attach: %w", err)
	}
	switch i := k.s.Info(); {
	case i.State == families.Listening:
		return nil, false, opError("attach", k.family.Name(), "", fmt.Errorf("socket %d listens and carries no data: accept first: %w", id, families.ErrNotSupported))
	case needsPeer(i.Type) && unconnected[i.State]:
		return nil, false, opError("attach", k.family.Name(), "", syscall.ENOTCONN)
	}
	return k, false, nil
}

// needsPeer tells whether sockets of a type carry data over connections alone.
func needsPeer(t families.Type) bool { return t == families.Stream || t == families.Seqpacket }

// unconnected are the states before a connection. One that has ended may still have
// data to give.
var unconnected = map[families.State]bool{families.New: true, families.Bound: true, families.Connecting: true}

// dial opens an endpoint and puts it into the table as c's.
func (d *Daemon) dial(ctx context.Context, c model.Caller, e families.Endpoint, fd int) (*sock, error) {
	if err := d.table.room(); err != nil {
		return nil, opError("attach", e.Network, families.Escape(e.Address), err)
	}
	targets, err := d.opts.Families.Resolve(ctx, e)
	if err != nil {
		return nil, fmt.Errorf("attach %s: %w", e, err)
	}
	var first error
	for _, t := range targets {
		s, err := d.dialTarget(ctx, t, fd)
		if err == nil {
			k := newSock(d.NewID(), c.Owner(), 0, t.Family, s)
			d.enterTable(k, "connected")
			return k, nil
		}
		if first == nil {
			first = opError("connect", t.Family.Name(), families.Escape(e.Address), err)
		}
	}
	return nil, first
}

func (d *Daemon) dialTarget(ctx context.Context, t families.Target, fd int) (families.Socket, error) {
	switch {
	case fd >= 0:
		if _, err := syscall.Getpeername(fd); err != nil && needsPeer(t.Spec.Type) {
			return nil, err // before fd is taken over
		}
		return adopt(t.Family, t.Spec.Type, fd)
	case t.Addr == nil:
		return nil, fmt.Errorf("it names no address: %w", families.ErrSyntax)
	case t.Addr.Scope().Path != "":
		return nil, families.ErrBorrow
	}
	s, err := t.Family.Open(ctx, t.Spec)
	if err != nil {
		return nil, err
	}
	if err := join(ctx, s, t.Addr); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// join connects s. A packet socket has nobody to connect to: it is bound to its
// interface, and frames name their receivers.
func join(ctx context.Context, s families.Socket, a families.Addr) error {
	scope := a.Scope()
	if scope.Interface != "" && !scope.Prefix.IsValid() {
		return s.Bind(a)
	}
	return s.Connect(ctx, a)
}

// hold makes a the only one who may use k's data.
func (k *sock) hold(a *attachment) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.stateLocked(nil); err != nil {
		return err
	}
	k.holder = a
	k.wakeLocked(forTurn)
	return nil
}

func (k *sock) release(a *attachment) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.holder == a {
		k.holder = nil
	}
}

// Socket is the socket as it stands.
func (a *attachment) Socket() model.Socket { return a.k.view() }

// Close ends Run, if it is under way, waits for it, and frees the socket. Twice is
// nil.
func (a *attachment) Close() error {
	a.mu.Lock()
	a.closed = true
	if a.cancel != nil {
		a.cancel(errEnded)
	}
	a.mu.Unlock()
	a.runs.Wait()
	a.leave()
	return nil
}

func (a *attachment) leave() {
	a.free.Do(func() {
		a.k.release(a)
		if a.owned {
			a.d.closeSock(a.k)
		}
	})
}

// Run moves bytes between the socket and conn until the peer ends, the caller is
// gone, ctx ends, or Close. It frees the socket; conn stays its caller's.
func (a *attachment) Run(ctx context.Context, conn *net.UnixConn, gone <-chan struct{}) error {
	defer a.leave()
	ctx, end, err := a.d.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if !a.start(cancel) {
		return net.ErrClosed
	}
	defer a.runs.Done()
	if err := a.k.enter(); err != nil {
		return err
	}
	defer a.k.leave()
	err = a.k.until(ctx, func(ctx context.Context) error { return a.join(ctx, cancel, conn, gone) })
	switch {
	case errors.Is(err, errEnded), errors.Is(err, errLeft):
		return nil
	case errors.Is(err, context.Canceled): // the server of conn ends its calls, with the daemon
		err = errStopping
	}
	return opError("attach", a.k.family.Name(), "", err)
}

func (a *attachment) start(cancel context.CancelCauseFunc) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed || a.cancel != nil {
		return false
	}
	a.cancel = cancel
	a.runs.Add(1)
	return true
}

// join runs both directions and waits for both. A deadline in the past is what
// gets a goroutine out of conn.
func (a *attachment) join(ctx context.Context, cancel context.CancelCauseFunc, conn *net.UnixConn, gone <-chan struct{}) error {
	interrupted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(interrupted)
		_ = conn.SetDeadline(time.Unix(1, 0)) // fails on a closed conn only
	})
	up, watched := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(up)
		a.up(ctx, cancel, conn)
	}()
	go func() {
		defer close(watched)
		a.watch(ctx, cancel, gone, up)
	}()
	err := a.down(ctx, conn)
	if errors.Is(err, errLeft) {
		a.drain(ctx, up)
	}
	cancel(cmp.Or(err, errEnded))
	<-up
	<-watched
	if !stop() {
		<-interrupted
	}
	_ = conn.SetDeadline(time.Time{}) // the conn is the caller's again
	return context.Cause(ctx)
}

// watch ends the attachment when the caller is gone, also while nothing moves.
func (a *attachment) watch(ctx context.Context, cancel context.CancelCauseFunc, gone, up <-chan struct{}) {
	select {
	case <-gone:
		a.drain(ctx, up)
		cancel(errLeft)
	case <-ctx.Done():
	}
}

// drain gives up the time to send what a caller who is gone had sent before.
func (a *attachment) drain(ctx context.Context, up <-chan struct{}) {
	t := time.NewTimer(drainTime)
	defer t.Stop()
	select {
	case <-up:
	case <-t.C:
	case <-ctx.Done():
	}
}

// up copies from the caller to the socket, and passes the end on.
func (a *attachment) up(ctx context.Context, cancel context.CancelCauseFunc, conn *net.UnixConn) {
	room := make([]byte, attachRoom)
	for {
		n, err := conn.Read(room)
		if n > 0 {
			m := families.Msg{Data: room[:n]}
			if _, err := a.k.send(ctx, &m, a); err != nil {
				a.unsent(ctx)
				cancel(err)
				return
			}
		}
		switch {
		case errors.Is(err, io.EOF) && !hungUp(conn):
			a.upEnded(ctx, cancel)
			return
		case err != nil:
			cancel(errLeft) // or was interrupted for another reason, which was first
			return
		}
	}
}

// unsent counts what the socket did not take in time of a caller who left.
func (a *attachment) unsent(ctx context.Context) {
	if errors.Is(context.Cause(ctx), errLeft) {
		a.k.drops[dropUnsent].Add(1)
	}
}

// hungUp tells whether the caller, whose bytes have come to their end, takes none
// either. A unix socket says EPIPE to that even when nothing is to be sent.
func hungUp(conn *net.UnixConn) bool {
	rc, err := conn.SyscallConn()
	if err != nil {
		return true
	}
	var sendErr error
	err = rc.Control(func(fd uintptr) {
		_, sendErr = syscall.SendmsgN(int(fd), nil, nil, nil, syscall.MSG_NOSIGNAL|syscall.MSG_DONTWAIT)
	})
	return err != nil || errors.Is(sendErr, syscall.EPIPE)
}

// upEnded decides what the end of the caller's bytes means: FIN where there is
// one, and then the peer has the word, as long as HalfClose lets it. A socket
// without directions cannot tell its peer, who will not end: then all ends here,
// or when HalfClose has given answers their time.
func (a *attachment) upEnded(ctx context.Context, cancel context.CancelCauseFunc) {
	h, err := families.As[families.HalfCloser](a.k.s)
	if err == nil && !a.spec.KeepOpen {
		if err := h.CloseWrite(); err != nil {
			cancel(err)
			return
		}
	}
	switch {
	case a.spec.HalfClose > 0:
		t := time.NewTimer(a.spec.HalfClose)
		defer t.Stop()
		select {
		case <-t.C:
			cancel(errEnded)
		case <-ctx.Done():
		}
	case err != nil:
		cancel(errEnded)
	}
}

// down copies from the socket to the caller until the peer ends.
func (a *attachment) down(ctx context.Context, conn *net.UnixConn) error {
	room := make([]byte, attachRoom)
	for {
		p, err := a.next(ctx, room)
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
		n, err := conn.Write(p.data)
		if err != nil {
			a.returnRest(p, n)
			return errLeft
		}
	}
}

// next takes the next piece into room, and waits for it.
func (a *attachment) next(ctx context.Context, room []byte) (piece, error) {
	for {
		changes, err := a.k.state(a)
		if err != nil {
			return piece{}, err
		}
		p, err := a.k.take(room, wholeMessages, a)
		if !errors.Is(err, families.ErrAgain) {
			return p, err
		}
		if err := a.k.await(ctx, changes, forTurn|forData, families.Readable); err != nil {
			return piece{}, err
		}
	}
}

// returnRest gives back what the caller did not get: a message as a whole.
func (a *attachment) returnRest(p piece, written int) {
	if a.k.messages {
		written = 0
	}
	p.data = append([]byte{}, p.data[written:]...)
	p.offset += written
	p.full -= written
	if len(p.data) > 0 || a.k.messages {
		a.d.putBack(a.k, p)
	}
}
