package ctl

import (
	"context"
	"flag"
	"fmt"

	"github.com/sockd/sockd/families"
)

var _ = register(Verb{
	Name:     "recorder show",
	Group:    GroupFlows,
	Args:     "NAME",
	Short:    "show one recorder",
	Long:     `Shows all fields of a recorder: what it holds and may hold, from when to when, what it received, what was lost, and how often it was dumped.`,
	Examples: []string{"sockd-ctl recorder show black", "sockd-ctl recorder show black -o oldest --no-header"},
	ReadOnly: true,
	Complete: []string{"recorder"},
	Setup: func(*flag.FlagSet) Run {
		return func(ctx context.Context, e *Env, args []string) error {
			if err := wantArgs("recorder show", args, 1, 1); err != nil {
				return err
			}
			object, err := e.show(ctx, args[0])
			if err != nil {
				return err
			}
			if object.Recorder == nil {
				return fmt.Errorf("recorder show %q: it is a %s: %w", args[0], object.Kind, families.ErrNotFound)
			}
			return printFields(e, object.Recorder)
		}
	},
})
