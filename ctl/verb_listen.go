package ctl

import (
	"context"
	"flag"
	"strconv"

	"github.com/sockd/sockd/ctl/borrow"
	"github.com/sockd/sockd/families/model"
)

type listenIn struct {
	ID      model.ID `json:"id"`
	Backlog *int     `json:"backlog,omitempty"`
}

var _ = addMethod(unary("io.sockd.Manager.Listen", func(ctx context.Context, r request, in listenIn) (socketOut, error) {
	s, err := r.Listen(ctx, r.caller, in.ID, orZero(in.Backlog))
	return socketOut{s}, err
}))

var _ = register(Verb{
	Name:  "listen",
	Args:  "ID [BACKLOG]",
	Short: "let others connect to a bound socket",
	Long: `Opens a socket's queue of pending connections, which accept then takes from. BACKLOG is how many may wait in it; without it that is the system's largest (net.core.somaxconn).
On a local socket sockd-ctl makes the call itself, so that peers see its user.`,
	Examples: []string{
		"sockd-ctl listen 1                    # then: sockd-ctl accept 1",
		"sockd-ctl listen 1 5                  # at most five wait",
	},
	Complete: []string{"socket", ""},
	Setup: func(*flag.FlagSet) Run {
		return func(ctx context.Context, e *Env, args []string) error {
			in, err := parseListen(args)
			if err != nil {
				return err
			}
			c, err := e.Dial(ctx)
			if err != nil {
				return err
			}
			defer c.Close()
			var out socketOut
			err = c.Call(ctx, "io.sockd.Manager.Listen", in, &out)
			if mustBorrow(err) {
				out.Socket, err = c.borrowSocket(ctx, in.ID, "listen", nothingSent(func(fd int) error {
					return borrow.Listen(fd, orZero(in.Backlog))
				}))
			}
			if err != nil {
				return err
			}
			return printObject(e, out.Socket, printNothing)
		}
	},
})

func parseListen(args []string) (in listenIn, err error) {
	if err := wantArgs("listen", args, 1, 2); err != nil {
		return in, err
	}
	if in.ID, err = parseID("listen", args[0]); err != nil || len(args) == 1 {
		return in, err
	}
	backlog, err := strconv.ParseInt(args[1], 10, 32)
	if err != nil || backlog < 1 {
		return in, &UsageError{Verb: "listen", Why: "backlog " + strconv.Quote(args[1]) + ": want a number from 1"}
	}
	n := int(backlog)
	in.Backlog = &n
	return in, nil
}
