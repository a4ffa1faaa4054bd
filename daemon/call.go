package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/model"
)

// A call is one verb on one socket: counted, so that whoever closes the socket or
// the daemon waits for it.
type call struct {
	d   *Daemon
	op  string
	k   *sock
	ctx context.Context // ends with the caller and with the daemon
	end func()
}

// call begins a verb on a socket of c's. end must be called.
func (d *Daemon) call(ctx context.Context, c model.Caller, op string, id model.ID) (*call, error) {
	ctx, end, err := d.begin(ctx)
	if err != nil {
		return nil, err
	}
	k, err := d.sock(c, id)
	if err == nil {
		err = k.enter()
	}
	if err != nil {
		end()
		return nil, fmt.Errorf("%s: %w", op, err)
	}
	return &call{d: d, op: op, k: k, ctx: ctx, end: func() { k.leave(); end() }}, nil
}

// sock finds a socket that c may use.
func (d *Daemon) sock(c model.Caller, id model.ID) (*sock, error) {
	k, err := d.table.get(id)
	if err != nil {
		return nil, err
	}
	return k, d.policy.Object(c, k.owner, fmt.Sprintf("socket %d", id))
}

// fail says what was tried, on what, and why it failed. addr is as the user wrote
// it, or empty.
func (c *call) fail(addr string, err error) error {
	_, gone := c.k.state(nil)
	switch {
	case errors.Is(context.Cause(c.ctx), errStopping):
		err = errStopping
	case errors.Is(err, net.ErrClosed) && gone != nil:
		err = gone // which says why it was closed
	}
	return opError(c.op, c.k.family.Name(), addr, err)
}

// done tells the watchers of the socket's new state, and returns it.
func (c *call) done(event string) model.Socket {
	v := c.k.view()
	c.d.emitSocket(event, v)
	return v
}

// opError wraps err in *families.OpError, unless it is one of this operation's
// already. Of a step on the way to it (resolve) only the reason is kept.
func opError(op, family, addr string, err error) error {
	var done *families.OpError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &done) && done.Op == op:
		return &families.OpError{Op: op, Family: done.Family, Addr: done.Addr, Err: plainly(done.Err)}
	case done != nil:
		err = done.Err
	}
	return &families.OpError{Op: op, Family: family, Addr: addr, Err: plainly(err)}
}

// plainly gives errors a wording for people where their own is for programmers,
// or repeats what stands in front of it.
func plainly(err error) error {
	var syntax *families.SyntaxError
	switch {
	case errors.As(err, &syntax):
		return &worded{err, syntaxWhy(syntax)}
	case errors.Is(err, context.DeadlineExceeded):
		return &worded{err, "timed out"}
	case errors.Is(err, context.Canceled):
		return &worded{err, "its caller left"}
	}
	return err
}

func syntaxWhy(e *families.SyntaxError) string {
	if e.Column > 0 {
		return fmt.Sprintf("column %d: %s", e.Column, e.Why)
	}
	return e.Why
}

// worded is an error in other words.
type worded struct {
	err   error
	words string
}

func (w *worded) Error() string { return w.words }

func (w *worded) Unwrap() error { return w.err }
