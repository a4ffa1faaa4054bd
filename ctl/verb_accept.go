package ctl

import (
	"context"
	"flag"

	"github.com/sockd/sockd/families/model"
)

type waitIn struct {
	ID      model.ID `json:"id"`
	Timeout *int64   `json:"timeout,omitempty"`
}

var _ = addMethod(unary("io.sockd.Manager.Accept", func(ctx context.Context, r request, in waitIn) (socketOut, error) {
	ctx, cancel := withTimeout(ctx, in.Timeout)
	defer cancel()
	s, err := r.Accept(ctx, r.caller, in.ID)
	return socketOut{s}, err
}))

var _ = register(Verb{
	Name:  "accept",
	Args:  "ID",
	Short: "wait for a connection and print its new ID and its peer",
	Long: `Waits until somebody connects to a listening socket, and prints the new socket's ID and the peer's address ("-" when it has none). The listening socket stays as it is; the new one belongs to the listening socket's owner.
When the caller is gone before the answer arrives, the new socket stays listed.`,
	Examples: []string{
		"sockd-ctl accept 1                    # prints: 5 127.0.0.1:51234",
		"sockd-ctl --timeout 0 accept 1        # only if somebody waits already, else exit 6",
	},
	Complete: []string{"socket"},
	Setup: func(*flag.FlagSet) Run {
		return func(ctx context.Context, e *Env, args []string) error {
			if err := wantArgs("accept", args, 1, 1); err != nil {
				return err
			}
			id, err := parseID("accept", args[0])
			if err != nil {
				return err
			}
			var out socketOut
			if err := e.call(ctx, "io.sockd.Manager.Accept", waitIn{id, e.timeoutParameter()}, &out); err != nil {
				return err
			}
			return printObject(e, out.Socket, printLine(out.Socket.ID, cell(out.Socket.Peer)))
		}
	},
})
