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
	Args:  "REF [FILTER word]... [--to TO]...",
	Short: "change what REF names while it runs",
	Long: `Changes a relay, by its ID or NAME, as relay set does: what is given changes, the rest stays, and so do sessions. The value default takes a setting back. --to, which can be repeated, replaces all TOs at once.
Of a capture all words after REF are its new filter, '' takes every packet. It changes between two packets, and no capture loses any: those from before were judged by the old filter, those from now on are by the new one.
Of a recorder --last and --bytes change what it keeps, as recorder set does, and words are its new filter.
Of other kinds it says where something can be set: the options of a socket by opt, the settings of a session by its relay.`,
	Examples: []string{
		"sockd-ctl set web --to unix:/run/app2.sock --idle 5m",
		"sockd-ctl set 7 --max-conns default",
		"sockd-ctl set 9 udp port 53                     # a capture's filter",
	},
	Complete: []string{"ref", ""},
	Setup: func(fs *flag.FlagSet) Run {
		change, recorder := newRelayChange(fs), newRecorderChange(fs)
		return func(ctx context.Context, e *Env, args []string) error {
			if err := wantArgs("set", args, 1, -1); err != nil {
				return err
			}
			object, err := e.show(ctx, args[0])
			if err != nil {
				return ofVerb("set", err)
			}
			if object.Kind == model.KindRecorder {
				return recorder.run(ctx, e, "set", args[0], args[1:])
			}
			if recorder.any() {
				return &UsageError{Verb: "set", Why: fmt.Sprintf("%s is a %s: --last and --bytes are of recorders", args[0], object.Kind)}
			}
			if object.Kind == model.KindCapture {
				return setCapture(ctx, e, args[0], args[1:])
			}
			if err := settable(object, args); err != nil {
				return err
			}
			return change.run(ctx, e, "set", args[0])
		}
	},
})

// ofVerb is an error of the daemon's as of verb, which asked for show.
func ofVerb(verb string, err error) error {
	var remote *RemoteError
	if !errors.As(err, &remote) {
		return err
	}
	rest, shown := strings.CutPrefix(remote.Message, "show")
	if !shown {
		return err
	}
	named := *remote
	named.Message = verb + rest
	return &named
}

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
	}
	return &UsageError{Verb: "set", Why: fmt.Sprintf("%s is a %s, of which this sockd-ctl can set nothing", ref, o.Kind)}
}
