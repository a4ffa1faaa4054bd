package ctl

import (
	"context"
	"flag"
	"fmt"
	"io"
)

var _ = addMethod(unary("io.sockd.Manager.Show", func(ctx context.Context, r request, in refIn) (Object, error) {
	return r.Show(ctx, r.caller, in.Ref)
}))

var _ = register(Verb{
	Name:     "show",
	Group:    GroupInspect,
	Args:     "REF",
	Short:    "show all of one socket, relay, session, capture or recorder",
	Long:     `Shows every field of what REF names, one a line. With --json it is one object, with -o only the fields that are named.`,
	Examples: []string{"sockd-ctl show 3", "sockd-ctl show web --json", "sockd-ctl show 3 -o local --no-header"},
	ReadOnly: true,
	Complete: []string{"ref"},
	Setup: func(*flag.FlagSet) Run {
		return func(ctx context.Context, e *Env, args []string) error {
			if err := wantArgs("show", args, 1, 1); err != nil {
				return err
			}
			object, err := e.show(ctx, args[0])
			if err != nil {
				return err
			}
			of, err := objectOf(object)
			if err != nil {
				return err
			}
			return printFields(e, of)
		}
	},
})

// show asks for one object.
func (e *Env) show(ctx context.Context, ref string) (Object, error) {
	var o Object
	err := e.call(ctx, "io.sockd.Manager.Show", refIn{ref}, &o)
	return o, err
}

// objectOf is what an Object holds.
func objectOf(o Object) (any, error) {
	switch {
	case o.Socket != nil:
		return o.Socket, nil
	case o.Relay != nil:
		return o.Relay, nil
	case o.Session != nil:
		return o.Session, nil
	case o.Capture != nil:
		return o.Capture, nil
	case o.Recorder != nil:
		return o.Recorder, nil
	}
	return nil, fmt.Errorf("show: the daemon answered with a %q, which this sockd-ctl does not know", o.Kind)
}

// printFields prints all fields of an object, one a line.
func printFields(e *Env, object any) error {
	return printObject(e, object, func(w io.Writer) error {
		var rows [][]string
		walkFields(object, func(name, text string) {
			if name != "gid" && name != "uid" { // they are what owner says
				rows = append(rows, []string{name, cell(text)})
			}
		})
		return writePadded(w, rows)
	})
}
