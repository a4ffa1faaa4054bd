package ctl

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"syscall"
	"time"

	"github.com/sockd/sockd/ctl/borrow"
	"github.com/sockd/sockd/ctl/varlink"
	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/model"
)

type attachIn struct {
	ID         *model.ID `json:"id,omitempty"`
	Endpoint   *string   `json:"endpoint,omitempty"`
	Descriptor *int      `json:"descriptor,omitempty"`
	KeepOpen   *bool     `json:"keep_open,omitempty"`
	HalfClose  *int64    `json:"half_close,omitempty"`
}

type attachOut struct {
	Socket  model.Socket `json:"socket"`
	Outcome *int         `json:"outcome,omitempty"`
}

var _ = addMethod(method{
	name: "io.sockd.Manager.Attach", in: attachIn{}, out: attachOut{}, upgrade: true,
	serve: serveAttach,
})

func serveAttach(ctx context.Context, s *Server, c *varlink.ServerCall) error {
	var in attachIn
	if err := c.Decode(&in); err != nil {
		return err
	}
	r := s.request(c)
	spec, err := r.attachSpec(in)
	if err != nil {
		return err
	}
	a, err := r.Attach(ctx, r.caller, spec)
	if err != nil {
		closeFile(spec.FD)
		return err
	}
	defer a.Close()
	return serveToOutcome(c, "attach",
		func(index *int) any { return attachOut{a.Socket(), index} },
		func(conn *net.UnixConn) error { return a.Run(ctx, conn, c.Gone()) })
}

// attachSpec reads the parameters. On success its descriptor is the caller's.
func (r request) attachSpec(in attachIn) (spec model.AttachSpec, err error) {
	spec = model.AttachSpec{ID: orZero(in.ID), KeepOpen: orZero(in.KeepOpen), HalfClose: time.Duration(orZero(in.HalfClose)), FD: model.NoFD}
	if (in.ID == nil) == (in.Endpoint == nil) {
		return spec, fmt.Errorf("attach: want either an id or an endpoint: %w", families.ErrSyntax)
	}
	if in.Endpoint != nil {
		e, err := families.ParseEndpoint(*in.Endpoint)
		if err != nil {
			return spec, err
		}
		spec.Endpoint = &e
	}
	spec.FD, err = r.takeFile(in.Descriptor)
	return spec, err
}

var _ = register(Verb{
	Name:  "attach",
	Args:  "ID|ENDPOINT",
	Short: "join stdin and stdout to a socket",
	Long: `Joins stdin and stdout to an open socket, or to an ENDPOINT that is dialled for it and closed afterwards. The end of stdin is sent to the peer as the end of the stream; attach itself ends when the peer ends. How it ended is the exit code: a peer that resets the connection is 8 (ECONNRESET), a socket that somebody closes 3.
A sockd-ctl that is killed has not ended its stdin: the peer gets what was sent, but no end of the stream, and the socket stays as it is for others.
While it is attached, the send, recv and attach of others on the socket are "in use" (exit 7).
--keep-open does not pass the end of stdin on. --half-close ends the whole that long after one side has ended.`,
	Examples: []string{
		"sockd-ctl attach 5                    # type to the peer of socket 5",
		"printf 'GET / HTTP/1.0\\r\\n\\r\\n' | sockd-ctl attach tcp:127.0.0.1:80",
		"sockd-ctl attach unix:/run/app.sock   # connected with the caller's own rights",
	},
	Complete: []string{"socket"},
	Setup: func(fs *flag.FlagSet) Run {
		keep := fs.Bool("keep-open", false, "do not pass the end of stdin on")
		var half time.Duration
		fs.Var(durationValue{d: &half}, "half-close", "end `D` after one side has ended")
		return func(ctx context.Context, e *Env, args []string) error {
			if err := wantArgs("attach", args, 1, 1); err != nil {
				return err
			}
			ctx, cancel := withTimeout(ctx, e.timeoutParameter())
			defer cancel()
			in := attachIn{KeepOpen: keep}
			if half > 0 {
				ns := int64(half)
				in.HalfClose = &ns
			}
			fds, err := in.target(ctx, e, args[0])
			if err != nil {
				return err
			}
			defer closeAll(fds)
			return attach(ctx, e, in, fds)
		}
	},
})

// target reads ID or ENDPOINT. A unix endpoint is connected here, with the
// caller's own rights, and its descriptor goes along.
func (in *attachIn) target(ctx context.Context, e *Env, s string) (fds []int, err error) {
	if id, ok := model.ParseID(s); ok {
		in.ID = &id
		return nil, nil
	}
	ep, err := families.ParseEndpoint(s)
	if err != nil {
		return nil, err
	}
	if ep.Network == families.NetworkID {
		id, err := parseID("attach", ep.Address)
		in.ID = &id
		return nil, err
	}
	if !borrow.IsLocal(ep.Network) {
		text := ep.String() // whatever bytes s has: JSON takes UTF-8 alone
		in.Endpoint = &text
		return nil, nil
	}
	ctx, cancel := withTimeout(ctx, e.timeoutParameter())
	defer cancel()
	fd, err := borrow.Dial(ctx, ep.Network, ep.Address)
	if err != nil {
		return nil, err
	}
	// The daemon shows the path, and has another working directory.
	if ep.Address, err = borrow.Absolute(ep.Address); err != nil {
		closeFile(fd)
		return nil, err
	}
	text := ep.String()
	in.Endpoint, in.Descriptor = &text, new(int)
	return []int{fd}, nil
}

func attach(ctx context.Context, e *Env, in attachIn, fds []int) error {
	c, err := e.Dial(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	var out attachOut
	conn, files, err := c.UpgradeFiles(ctx, "io.sockd.Manager.Attach", in, &out, fds...)
	if err != nil {
		return err
	}
	defer conn.Close()
	outcome, err := takeOutcome("attach", out.Outcome, files)
	if err != nil {
		return err
	}
	defer outcome.Close()
	stop := context.AfterFunc(ctx, func() { _, _ = conn.Close(), outcome.Close() })
	defer stop()
	err = join(e, conn)
	if err == nil {
		err = c.readOutcome("io.sockd.Manager.Attach", outcome)
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// join copies both ways until the peer ends. What reads stdin is not waited for:
// nothing interrupts a read of a terminal, and the program ends with the verb.
func join(e *Env, conn *net.UnixConn) error {
	go sendStdin(conn, e.Stdin)
	_, err := io.Copy(e.Stdout, conn)
	// A peer that ends before it took all of stdin shows as a reset of this side.
	// What it was, the outcome tells.
	if err != nil && !errors.Is(err, net.ErrClosed) && !errors.Is(err, syscall.ECONNRESET) {
		return fmt.Errorf("attach: %w", err)
	}
	return nil
}

// sendStdin passes the end of stdin on. A write that fails means that the peer
// has ended, which the other direction tells.
func sendStdin(conn *net.UnixConn, stdin io.Reader) {
	_, _ = io.Copy(conn, stdin)
	_ = conn.CloseWrite()
}
