package ctl

import (
	"context"
	"flag"

	"github.com/sockd/sockd/ctl/borrow"
	"github.com/sockd/sockd/families/model"
)

type connectIn struct {
	ID      model.ID `json:"id"`
	Address string   `json:"address"`
	Timeout *int64   `json:"timeout,omitempty"`
}

var _ = addMethod(unary("io.sockd.Manager.Connect", func(ctx context.Context, r request, in connectIn) (socketOut, error) {
	ctx, cancel := withTimeout(ctx, in.Timeout)
	defer cancel()
	s, err := r.Connect(ctx, r.caller, in.ID, in.Address)
	return socketOut{s}, err
}))

var _ = register(Verb{
	Name:  "connect",
	Args:  "ID ADDRESS",
	Short: "connect a socket and wait until the connection stands",
	Long: `Connects a socket to ADDRESS, written without its network as in bind. Names are looked up by the daemon. It waits until the connection stands or is refused, at most --timeout; after a failure the socket can be connected again.

A path or @name is connected by sockd-ctl itself, with its user's rights: the peer sees that user.`,
	Examples: []string{
		"sockd-ctl connect 2 127.0.0.1:7000    # then: sockd-ctl send 2 hello",
		"sockd-ctl --timeout 3 connect 2 [2001:db8::1]:443  # exit 6 after three seconds",
		"sockd-ctl connect 4 /run/app.sock     # with the caller's own rights",
	},
	Complete: []string{"socket", ""},
	Setup: func(*flag.FlagSet) Run {
		return func(ctx context.Context, e *Env, args []string) error {
			if err := wantArgs("connect", args, 2, 2); err != nil {
				return err
			}
			id, err := parseID("connect", args[0])
			if err != nil {
				return err
			}
			addr, err := parseAddress(args[1])
			if err != nil {
				return err
			}
			s, err := connectSocket(ctx, e, id, addr)
			if err != nil {
				return err
			}
			return printObject(e, s, printNothing)
		}
	},
})

func connectSocket(ctx context.Context, e *Env, id model.ID, addr address) (model.Socket, error) {
	c, err := e.Dial(ctx)
	if err != nil {
		return model.Socket{}, err
	}
	defer c.Close()
	var out socketOut
	err = c.Call(ctx, "io.sockd.Manager.Connect", connectIn{id, addr.text, e.timeoutParameter()}, &out)
	if mustBorrow(err) {
		out.Socket, err = c.borrowSocket(ctx, id, "connect", nothingSent(func(fd int) error {
			ctx, cancel := withTimeout(ctx, e.timeoutParameter())
			defer cancel()
			return borrow.Connect(ctx, fd, addr.plain)
		}))
	}
	return out.Socket, err
}
