package ctl

import (
	"context"
	"flag"

	"github.com/sockd/sockd/families/model"
)

type closeIn struct {
	Refs     []string `json:"refs"`
	Accepted *bool    `json:"accepted,omitempty"`
	All      *bool    `json:"all,omitempty"`
}

type closeOut struct {
	Closed []model.ID `json:"closed"`
	Failed []failure  `json:"failed"`
}

// failure is why one of several REFs failed.
type failure struct {
	Ref     string  `json:"ref"`
	Error   string  `json:"error"`
	Message string  `json:"message"`
	Exit    int     `json:"exit"`
	Errno   *string `json:"errno,omitempty"`
	Hint    *string `json:"hint,omitempty"`
}

var _ = addMethod(unary("io.sockd.Manager.Close", serveClose))

func serveClose(ctx context.Context, r request, in closeIn) (closeOut, error) {
	out := closeOut{Closed: []model.ID{}, Failed: []failure{}}
	if orZero(in.All) {
		if len(in.Refs) > 0 {
			return closeOut{}, &UsageError{Verb: "close", Why: "either REFs or all"}
		}
		ids, err := r.CloseAll(ctx, r.caller)
		out.Closed = append(out.Closed, ids...)
		return out, err
	}
	for _, ref := range in.Refs {
		ids, err := r.Close(ctx, r.caller, ref, orZero(in.Accepted))
		out.Closed = append(out.Closed, ids...)
		if err != nil {
			out.Failed = append(out.Failed, failed(ref, err))
		}
	}
	return out, nil
}

func failed(ref string, err error) failure {
	e := describe(err)
	w := e.wire()
	return failure{Ref: ref, Error: e.Name, Message: w.Message, Exit: e.Exit, Errno: w.Errno, Hint: w.Hint}
}

// err is the failure as the error that it was.
func (f failure) err() error {
	return &RemoteError{Name: f.Error, Message: f.Message, Exit: f.Exit, Errno: orZero(f.Errno), Hint: orZero(f.Hint)}
}

var _ = register(Verb{
	Name:  "close",
	Args:  "REF... | --all",
	Short: "close sockets, relays, sessions, captures and recorders",
	Long: `Closes whatever the REFs name: the ID of a socket, relay, session, capture or recorder, or the NAME of a relay or recorder. All are tried, each failure is a line on stderr, and the first one's exit code counts.
With --accepted a listening socket takes with it what it accepted. With --all everything is closed that the caller owns.`,
	Examples: []string{
		"sockd-ctl close 1 2 web               # two sockets and a relay",
		"sockd-ctl close --accepted 1          # a listener and all its connections",
		"sockd-ctl close --all                 # all that is mine",
	},
	Complete: []string{"ref"},
	Setup: func(fs *flag.FlagSet) Run {
		all := fs.Bool("all", false, "close everything that the caller owns")
		accepted := fs.Bool("accepted", false, "close what a listening socket accepted, too")
		return func(ctx context.Context, e *Env, args []string) error {
			switch {
			case *all && len(args) > 0:
				return &UsageError{Verb: "close", Why: "either REFs or --all", Hint: "sockd-ctl close --all"}
			case !*all:
				if err := wantArgs("close", args, 1, -1); err != nil {
					return err
				}
			}
			in := closeIn{Refs: append([]string{}, args...), All: all, Accepted: accepted}
			var out closeOut
			if err := e.call(ctx, "io.sockd.Manager.Close", in, &out); err != nil {
				return err
			}
			return reportClosed(e, out)
		}
	},
})

// reportClosed prints every failure in the order of the REFs. The first one
// counts.
func reportClosed(e *Env, out closeOut) error {
	if e.wantsJSON() {
		if err := e.printJSON(out); err != nil {
			return err
		}
	}
	if len(out.Failed) == 0 {
		return nil
	}
	for _, f := range out.Failed {
		PrintError(e.Stderr, f.err(), e.wantsJSON())
	}
	return &printedError{out.Failed[0].err()}
}
