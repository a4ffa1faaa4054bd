package ctl

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"strings"

	"github.com/sockd/sockd/families/model"
)

var _ = register(Verb{
	Name:  "set",
	Group: GroupFlows,
	Args:  "REF [--to TO]...",
	Short: "change what REF names while it runs",
	Long: `Changes a relay, by its ID or NAME, as relay set does: what is given changes, the rest stays, and so do sessions. The value default takes a setting back. --to, which can be repeated, replaces all TOs at once.
Of other kinds it says where something can be set: the options of a socket by opt, the settings of a session by its relay, nothing of a capture that runs.`,
	Examples: []string{
		"sockd-ctl set web --to unix:/run/app2.sock --idle 5m",
		"sockd-ctl set 7 --max-conns default",
	},
	Complete: []string{"relay", ""},
	Setup: func(fs *flag.FlagSet) Run {
		change := newRelayChange(fs)
		return func(ctx context.Context, e *Env, args []string) error {
			if err := wantArgs("set", args, 1, -1); err != nil {
				return err
			}
			object, err := e.show(ctx, args[0])
			if err != nil {
				return err
			}
			if err := settable(object, args); err != nil {
				return err
			}
			return change.run(ctx, e, "set", args[0])
		}
	},
})

// settable says of all that is no relay what can be set where. args are REF and
// what else was given.
func settable(o Object, args []string) error {
	ref := args[0]
	switch o.Kind {
	case model.KindRelay:
		return wantArgs("set", args, 1, 1)
	case model.KindSocket:
		options := "NAME=VALUE"
		if len(args) > 1 {
			options = strings.Join(args[1:], " ")
		}
		return &UsageError{Verb: "set", Why: fmt.Sprintf("%s is a socket, whose options opt sets", ref), Hint: fmt.Sprintf("sockd-ctl opt %s %s", ref, options)}
	case model.KindSession:
		if o.Session == nil {
			return errors.New("set: the daemon answered with a session that it does not describe")
		}
		return &UsageError{Verb: "set", Why: fmt.Sprintf("%s is a session, whose settings are its relay's", ref), Hint: fmt.Sprintf("sockd-ctl set %d --idle D", o.Session.Relay)}
	case model.KindCapture:
		return &UsageError{Verb: "set", Why: fmt.Sprintf("%s is a capture: nothing of one that runs can be set, start another one", ref)}
	}
	return &UsageError{Verb: "set", Why: fmt.Sprintf("%s is a %s, of which this sockd-ctl can set nothing", ref, o.Kind)}
}
