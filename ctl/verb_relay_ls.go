package ctl

import (
	"context"
	"flag"
)

var _ = register(Verb{
	Name:     "relay ls",
	Group:    GroupFlows,
	Args:     "[FIELD=GLOB]...",
	Short:    "list relays",
	Long:     `The same as ls relays.`,
	Examples: []string{"sockd-ctl relay ls", "sockd-ctl relay ls state=draining -o name,sessions --no-header"},
	ReadOnly: true,
	Setup: func(*flag.FlagSet) Run {
		return func(ctx context.Context, e *Env, args []string) error {
			return list(ctx, e, "relays", args)
		}
	},
})
