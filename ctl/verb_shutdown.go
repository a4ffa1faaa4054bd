package ctl

import (
	"context"
	"flag"
	"fmt"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/model"
)

type shutdownIn struct {
	ID  model.ID `json:"id"`
	How string   `json:"how"`
}

var _ = addMethod(unary("io.sockd.Manager.Shutdown", func(ctx context.Context, r request, in shutdownIn) (socketOut, error) {
	if err := checkHow(in.How); err != nil {
		return socketOut{}, err
	}
	s, err := r.Shutdown(ctx, r.caller, in.ID, in.How)
	return socketOut{s}, err
}))

func checkHow(how string) error {
	switch how {
	case "rd", "wr", "both":
		return nil
	}
	return fmt.Errorf("shutdown %q: want rd, wr or both: %w", how, families.ErrSyntax)
}

var _ = register(Verb{
	Name:  "shutdown",
	Args:  "ID rd|wr|both",
	Short: "end one direction of a socket, or both",
	Long:  `Ends a direction as shutdown(2) does: after wr the peer reads the end of the stream while the other direction runs on; after rd nothing more is received. The socket stays open until it is closed.`,
	Examples: []string{
		"sockd-ctl shutdown 2 wr               # the request is complete: now recv the answer",
	},
	Complete: []string{"socket", ""},
	Setup: func(*flag.FlagSet) Run {
		return func(ctx context.Context, e *Env, args []string) error {
			if err := wantArgs("shutdown", args, 2, 2); err != nil {
				return err
			}
			id, err := parseID("shutdown", args[0])
			if err != nil {
				return err
			}
			if err := checkHow(args[1]); err != nil {
				return err
			}
			var out socketOut
			if err := e.call(ctx, "io.sockd.Manager.Shutdown", shutdownIn{id, args[1]}, &out); err != nil {
				return err
			}
			return printObject(e, out.Socket, printNothing)
		}
	},
})
