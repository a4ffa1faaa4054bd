package ctl

import (
	"context"
	"flag"
	"fmt"
	"slices"
	"time"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/model"
)

type relaySetIn struct {
	Ref      string         `json:"ref"`
	To       []string       `json:"to,omitempty"`
	Settings *relaySettings `json:"settings,omitempty"`
	Reset    []string       `json:"reset,omitempty"`
	Dirs     []relayDir     `json:"dirs,omitempty"`
}

var _ = addMethod(unary("io.sockd.Relay.Set", func(ctx context.Context, r request, in relaySetIn) (relayOut, error) {
	change, err := r.relayChange(in)
	if err != nil {
		return relayOut{}, err
	}
	relay, err := r.RelaySet(ctx, r.caller, in.Ref, change)
	if err != nil {
		closeDirs(change.ToDirs)
		return relayOut{}, err
	}
	return relayOut{relay}, nil
}))

// relayChange reads the parameters. On success the descriptors are the caller's.
func (r request) relayChange(in relaySetIn) (model.RelayChange, error) {
	var c model.RelayChange
	if err := changeSettings(&c, orZero(in.Settings)); err != nil {
		return model.RelayChange{}, err
	}
	for _, name := range in.Reset {
		if err := resetSetting(&c, name); err != nil {
			return model.RelayChange{}, err
		}
	}
	if in.To == nil {
		if len(in.Dirs) > 0 {
			return model.RelayChange{}, fmt.Errorf("dirs without to: %w", families.ErrSyntax)
		}
		return c, nil
	}
	to, err := endpoints(in.To)
	if err != nil {
		return model.RelayChange{}, err
	}
	if len(to) == 0 {
		return model.RelayChange{}, fmt.Errorf("a relay has at least one TO: %w", families.ErrSyntax)
	}
	c.To = &to
	c.ToDirs, err = r.takeDirs(in.Dirs, len(to))
	return c, err
}

// changeSettings takes over the settings that are given.
func changeSettings(c *model.RelayChange, s relaySettings) error {
	var spec model.RelaySpec
	if err := s.apply(&spec); err != nil {
		return err
	}
	if s.Permanent != nil {
		return fmt.Errorf("%s is set by add and replace: %w", settingPermanent, families.ErrNotSupported)
	}
	if s.Durable != nil {
		return fmt.Errorf("%s is set by add and replace: %w", settingDurable, families.ErrNotSupported)
	}
	if s.MaxConns != nil {
		c.MaxConns = &spec.MaxConns
	}
	if s.ConnectTimeout != nil {
		c.ConnectTimeout = &spec.ConnectTimeout
	}
	if s.Idle != nil {
		c.Idle = &spec.Idle
	}
	if s.HalfClose != nil {
		c.HalfClose = &spec.HalfClose
	}
	if s.Balance != nil {
		c.Balance = &spec.Balance
	}
	if s.Allow != nil {
		c.Allow = &spec.Allow
	}
	if s.Rate != nil {
		c.Rate = &spec.Rate
	}
	if s.Pass != nil {
		c.Pass = &spec.Pass
	}
	return nil
}

// resetSetting gives a setting its default back: the zero value.
func resetSetting(c *model.RelayChange, name string) error {
	switch name {
	case settingMaxConns:
		c.MaxConns = new(int)
	case settingConnectTimeout:
		c.ConnectTimeout = new(time.Duration)
	case settingIdle:
		c.Idle = new(time.Duration)
	case settingHalfClose:
		c.HalfClose = new(time.Duration)
	case settingBalance:
		c.Balance = new(string)
	case settingAllow:
		c.Allow = new([]model.Allow)
	case settingRate:
		c.Rate = new(int64)
	case settingPass:
		c.Pass = new(string)
	default:
		return fmt.Errorf("reset: no setting is called %q: %w", name, families.ErrSyntax)
	}
	return nil
}

var _ = register(Verb{
	Name:  "relay set",
	Group: GroupFlows,
	Args:  "NAME [--to TO]...",
	Short: "change a relay while it runs",
	Long:  `Changes what is given; the rest stays, and so do sessions. The value default takes a setting back. --to, which can be repeated, replaces all TOs at once; so does --allow all rules.`,
	Examples: []string{
		"sockd-ctl relay set web --to unix:/run/app2.sock     # new sessions go there",
		"sockd-ctl relay set web --idle 5m --max-conns default",
		"sockd-ctl relay set web --allow 10.0.0.0/8 --allow ::1   # these and nobody else",
	},
	Complete: []string{"relay", ""},
	Setup: func(fs *flag.FlagSet) Run {
		change := newRelayChange(fs)
		return func(ctx context.Context, e *Env, args []string) error {
			if err := wantArgs("relay set", args, 1, 1); err != nil {
				return err
			}
			return change.run(ctx, e, "relay set", args[0])
		}
	},
})

// relayChange is what the flags of set and relay set change.
type relayChange struct {
	flags *relayFlags
	to    []string
}

func newRelayChange(fs *flag.FlagSet) *relayChange {
	c := &relayChange{flags: newRelayFlags(fs, true)}
	fs.Var(listValue{&c.to}, "to", "dial `TO` from now on; can be repeated")
	return c
}

// run makes the change, as verb.
func (c *relayChange) run(ctx context.Context, e *Env, verb, ref string) error {
	if !c.flags.any && len(c.to) == 0 {
		return &UsageError{Verb: verb, Why: "nothing to change", Hint: "sockd-ctl " + verb + " --help"}
	}
	if slices.Contains(c.flags.reset, settingAllow) && c.flags.given.Allow != nil {
		return &UsageError{Verb: verb, Why: "--allow default lets everybody in, and the other --allow do not", Hint: "leave one or the other out"}
	}
	return setRelay(ctx, e, relaySetIn{Ref: ref, Settings: c.flags.settings(), Reset: c.flags.reset}, c.to)
}

func setRelay(ctx context.Context, e *Env, in relaySetIn, to []string) error {
	var o opened
	defer o.close()
	if err := o.openTo(to); err != nil {
		return err
	}
	in.To, in.Dirs = o.to, o.dirs
	var out relayOut
	if err := e.call(ctx, "io.sockd.Relay.Set", in, &out, o.files...); err != nil {
		return err
	}
	return printObject(e, out.Relay, printNothing)
}
