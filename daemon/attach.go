package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/model"
)

// attachRoom is what one step of an attachment moves: a whole datagram of any
// family that is in common use, and enough of a stream that copying is not what
// takes the time.
const attachRoom = 64 << 10

// An attachment is one socket joined to one caller.
//
//	caller ──conn.Read──> up ──send──> socket ──> peer
//	caller <──conn.Write── down <──take── socket <── peer
//
// The end of the caller's bytes goes on as FIN, and down runs on until the peer
// ends. Whatever ends first of peer, context and Close ends both.
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

// errEnded ends an attachment in the ordinary way.
var errEnded = errors.New("ended")

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
		n, err := strconv.ParseInt(e.Address, 10, 64)
		if err != nil || n < 1 {
			return nil, false, &families.SyntaxError{What: "endpoint", Text: e.String(), Column: 4, Why: "want the number of an open socket", Hint: "sockd-ctl ls"}
		}
		id = model.ID(n)
	default:
		k, err := d.dial(ctx, c, *e, spec.FD)
		return k, true, err
	}
	k, err = d.sock(c, id)
	if err != nil {
		return nil, false, fmt.Errorf("attach: %w", err)
	}
	if k.s.Info().State == families.Listening {
		return nil, false, opError("attach", k.family.Name(), "", fmt.Errorf("socket %d listens and carries no data: accept first: %w", id, families.ErrNotSupported))
	}
	return k, false, nil
}

// dial opens an endpoint and puts it into the table as c's.
func (d *Daemon) dial(ctx context.Context, c model.Caller, e families.Endpoint, fd int) (*sock, error) {
	if err := d.table.room(); err != nil {
		return nil, opError("attach", e.Network, e.Address, err)
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
			first = opError("connect", t.Family.Name(), e.Address, err)
		}
	}
	return nil, first
}

func (d *Daemon) dialTarget(ctx context.Context, t families.Target, fd int) (families.Socket, error) {
	switch {
	case fd >= 0:
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

// Run moves bytes between the socket and conn until the peer ends, ctx ends, or
// Close. It frees the socket; conn stays its caller's.
func (a *attachment) Run(ctx context.Context, conn *net.UnixConn) error {
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
	err = a.k.until(ctx, func(ctx context.Context) error { return a.join(ctx, cancel, conn) })
	if errors.Is(err, errEnded) {
		return nil
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
func (a *attachment) join(ctx context.Context, cancel context.CancelCauseFunc, conn *net.UnixConn) error {
	interrupted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(interrupted)
		_ = conn.SetDeadline(time.Unix(1, 0)) // fails on a closed conn only
	})
	up := make(chan struct{})
	go func() {
		defer close(up)
		a.up(ctx, cancel, conn)
	}()
	cancel(cmp.Or(a.down(ctx, conn), errEnded))
	<-up
	if !stop() {
		<-interrupted
	}
	_ = conn.SetDeadline(time.Time{}) // the conn is the caller's again
	return context.Cause(ctx)
}

// up copies from the caller to the socket, and passes the end on.
func (a *attachment) up(ctx context.Context, cancel context.CancelCauseFunc, conn *net.UnixConn) {
	room := make([]byte, attachRoom)
	for {
		n, err := conn.Read(room)
		if n > 0 {
			m := families.Msg{Data: room[:n]}
			if _, err := a.k.send(ctx, &m, a); err != nil {
				cancel(err)
				return
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			a.upEnded(ctx, cancel)
			return
		case err != nil:
			cancel(errEnded) // the caller is gone, or was interrupted for another reason
			return
		}
	}
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
			return errEnded // the caller is gone
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
		p, err := a.k.take(room, a)
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
