package ctl

import (
	"context"
	"flag"
	"time"

	"github.com/sockd/sockd/families/model"
)

type relayRemoveIn struct {
	Ref   string `json:"ref"`
	Drain *int64 `json:"drain,omitempty"`
}

var _ = addMethod(unary("io.sockd.Relay.Remove", func(ctx context.Context, r request, in relayRemoveIn) (relayOut, error) {
	drain := model.NoLimit
	if in.Drain != nil && *in.Drain >= 0 {
		drain = time.Duration(*in.Drain)
	}
	relay, err := r.RelayRemove(ctx, r.caller, in.Ref, drain)
	return relayOut{relay}, err
}))

var _ = register(Verb{
	Name:  "relay rm",
	Group: GroupFlows,
	Args:  "NAME... [--drain D | --now]",
	Short: "remove relays",
	Long:  `Closes the listener at once, and the name is free. Sessions run to their end, the relay being "draining" meanwhile; --drain resets what is left after that time, --now at once. With several NAMEs all are tried, and the first failure counts.`,
	Examples: []string{
		"sockd-ctl relay rm web                # sessions end by themselves",
		"sockd-ctl relay rm web dns --drain 30s",
		"sockd-ctl relay rm web --now",
	},
	Complete: []string{"relay"},
	Setup: func(fs *flag.FlagSet) Run {
		drain := model.NoLimit
		given := false
		fs.Var(durationValue{&drain, &given}, "drain", "reset sessions that are left after `D`")
		now := fs.Bool("now", false, "reset sessions at once")
		return func(ctx context.Context, e *Env, args []string) error {
			if err := wantArgs("relay rm", args, 1, -1); err != nil {
				return err
			}
			if *now && given {
				return &UsageError{Verb: "relay rm", Why: "either --drain or --now"}
			}
			if *now {
				drain = 0
			}
			return removeRelays(ctx, e, args, drain)
		}
	},
})

func removeRelays(ctx context.Context, e *Env, refs []string, drain time.Duration) error {
	c, err := e.Dial(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	var first error // printed, as all are: in the order of the NAMEs
	removed := []model.Relay{}
	for _, ref := range refs {
		in := relayRemoveIn{Ref: ref}
		if drain >= 0 {
			ns := int64(drain)
			in.Drain = &ns
		}
		var out relayOut
		if err := c.Call(ctx, "io.sockd.Relay.Remove", in, &out); err != nil {
			PrintError(e.Stderr, err, e.wantsJSON())
			if first == nil {
				first = &printedError{err}
			}
			continue
		}
		removed = append(removed, out.Relay)
	}
	if e.wantsJSON() {
		if err := printRemoved(e, removed); err != nil {
			return err
		}
	}
	return first
}

// printRemoved prints one object as itself, and several as a list.
func printRemoved(e *Env, relays []model.Relay) error {
	if len(relays) == 1 {
		return e.printJSON(relays[0])
	}
	return printList(e, relays, relayColumns)
}
