package ctl

import (
	"context"
	"errors"
	"fmt"

	"github.com/sockd/sockd/ctl/varlink"
	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/model"
)

// A verb on a local socket's path runs like this:
//
//	sockd-ctl ── Bind(id, path) ──────────> sockd
//	          <── BorrowRequired ──────────
//	          ── Borrow(id) ──────────────>
//	          <── a duplicate descriptor ──
//	   bind(2) with the caller's own rights
//	          ── Return(id, "bind") ──────>
//	          <── the socket as it is now ─

type idIn struct {
	ID model.ID `json:"id"`
}

type borrowOut struct {
	Descriptor int    `json:"descriptor"`
	Type       string `json:"type"`
}

type returnIn struct {
	ID       model.ID `json:"id"`
	Done     string   `json:"done"` // bind connect listen send
	Bytes    *int64   `json:"bytes,omitempty"`
	Messages *int64   `json:"messages,omitempty"`
}

var _ = addMethod(method{
	name: "io.sockd.Manager.Borrow", in: idIn{}, out: borrowOut{},
	serve: serveBorrow,
})

func serveBorrow(ctx context.Context, s *Server, c *varlink.ServerCall) error {
	var in idIn
	if err := c.Decode(&in); err != nil {
		return err
	}
	// The reply is sent inside: the descriptor is only lent to f.
	return s.backend.Borrow(ctx, s.caller(c), in.ID, func(fd int, typ string) error {
		return c.Reply(borrowOut{Descriptor: 0, Type: typ}, fd)
	})
}

var _ = addMethod(unary("io.sockd.Manager.Return", func(ctx context.Context, r request, in returnIn) (socketOut, error) {
	s, err := r.Return(ctx, r.caller, in.ID, in.Done, orZero(in.Bytes), orZero(in.Messages))
	return socketOut{s}, err
}))

// mustBorrow tells whether the daemon left a call to its caller.
func mustBorrow(err error) bool { return errors.Is(err, families.ErrBorrow) }

// borrowSocket makes a call on a local socket's descriptor with the caller's own
// rights, and tells the daemon what was done. use reports the bytes that it sent,
// if sending was what it did.
func (c *Client) borrowSocket(ctx context.Context, id model.ID, done string, use func(fd int) (sent *int64, err error)) (model.Socket, error) {
	var lent borrowOut
	fds, err := c.CallFiles(ctx, "io.sockd.Manager.Borrow", idIn{id}, &lent)
	defer closeAll(fds)
	if err != nil {
		return model.Socket{}, err
	}
	if lent.Descriptor < 0 || lent.Descriptor >= len(fds) {
		return model.Socket{}, fmt.Errorf("borrow %d: descriptor %d of %d", id, lent.Descriptor, len(fds))
	}
	sent, err := use(fds[lent.Descriptor])
	if err != nil {
		return model.Socket{}, err
	}
	in := returnIn{ID: id, Done: done, Bytes: sent}
	if sent != nil {
		in.Messages = new(int64)
		*in.Messages = 1
	}
	var out socketOut
	err = c.Call(ctx, "io.sockd.Manager.Return", in, &out)
	return out.Socket, err
}

// address is an ADDRESS of a verb in its two forms.
type address struct {
	text  string // in escaped form, as it goes over the wire
	plain string // as the system takes it
}

// parseAddress reads an ADDRESS as the user wrote it. What it means is asked of the
// daemon.
func parseAddress(s string) (address, error) {
	plain, err := families.Unescape(s)
	return address{families.Escape(plain), plain}, err
}

// nothingSent makes a use of borrowSocket from a call that sends nothing.
func nothingSent(f func(fd int) error) func(int) (*int64, error) {
	return func(fd int) (*int64, error) { return nil, f(fd) }
}
