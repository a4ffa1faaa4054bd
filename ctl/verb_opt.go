package ctl

import (
	"context"
	"flag"
	"fmt"
	"io"
	"strings"

	"github.com/sockd/sockd/families/model"
)

type optionsIn struct {
	ID      model.ID `json:"id"`
	Options []Option `json:"options"`
}

type optionsOut struct {
	Options []Option `json:"options"`
}

var _ = addMethod(unary("io.sockd.Manager.Options", func(ctx context.Context, r request, in optionsIn) (optionsOut, error) {
	opts, err := r.Options(ctx, r.caller, in.ID, in.Options)
	if opts == nil {
		opts = []Option{}
	}
	return optionsOut{opts}, err
}))

var _ = register(Verb{
	Name:  "opt",
	Args:  "ID [NAME[=VALUE]]...",
	Short: "read and set socket options",
	Long: `Reads a socket's options, or sets them, in the order in which they are given, and prints what each is then as NAME=VALUE, one a line. Without NAME it prints all that the socket has, but for so_error, which reading clears.
Names are those of socket(7), tcp(7), ip(7), packet(7) and so on in lower case: so_rcvbuf, tcp_nodelay. Some values the kernel changes: it doubles so_rcvbuf.`,
	Examples: []string{
		"sockd-ctl opt 2                       # all of them",
		"sockd-ctl opt 2 so_rcvbuf             # one",
		"sockd-ctl opt 2 tcp_nodelay=1 so_keepalive=1",
	},
	Complete: []string{"socket", ""},
	Setup: func(*flag.FlagSet) Run {
		return func(ctx context.Context, e *Env, args []string) error {
			if err := wantArgs("opt", args, 1, -1); err != nil {
				return err
			}
			in, err := parseOptions(args)
			if err != nil {
				return err
			}
			var out optionsOut
			if err := e.call(ctx, "io.sockd.Manager.Options", in, &out); err != nil {
				return err
			}
			if e.wantsJSON() {
				return printList(e, out.Options, nil)
			}
			return printOptions(e.Stdout, out.Options)
		}
	},
})

func parseOptions(args []string) (in optionsIn, err error) {
	if in.ID, err = parseID("opt", args[0]); err != nil {
		return in, err
	}
	in.Options = []Option{}
	for _, arg := range args[1:] {
		name, value, set := strings.Cut(arg, "=")
		if name == "" {
			return in, &UsageError{Verb: "opt", Why: fmt.Sprintf("%q: want NAME or NAME=VALUE", arg)}
		}
		o := Option{Name: name}
		if set {
			o.Value = &value
		}
		in.Options = append(in.Options, o)
	}
	return in, nil
}

func printOptions(w io.Writer, opts []Option) error {
	for _, o := range opts {
		if _, err := fmt.Fprintf(w, "%s=%s\n", o.Name, orZero(o.Value)); err != nil {
			return err
		}
	}
	return nil
}
