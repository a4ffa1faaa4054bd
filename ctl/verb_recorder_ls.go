package ctl

import (
	"context"
	"flag"
)

var _ = register(Verb{
	Name:     "recorder ls",
	Group:    GroupFlows,
	Args:     "[FIELD=GLOB]...",
	Short:    "list recorders",
	Long:     `The same as ls recorders.`,
	Examples: []string{"sockd-ctl recorder ls", "sockd-ctl recorder ls state=waiting -o name,source --no-header"},
	ReadOnly: true,
	Setup: func(*flag.FlagSet) Run {
		return func(ctx context.Context, e *Env, args []string) error {
			return list(ctx, e, "recorders", args)
		}
	},
})
