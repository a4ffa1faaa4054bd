package ctl

import (
	"context"
	"flag"

	"github.com/sockd/sockd/families/model"
)

const recorderRemoveMethod = "io.sockd.Recorder.Remove"

var _ = addMethod(unary(recorderRemoveMethod, func(ctx context.Context, r request, in refIn) (recorderOut, error) {
	v, err := r.RecorderRemove(ctx, r.caller, in.Ref)
	return recorderOut{v}, err
}))

var _ = register(Verb{
	Name:     "recorder rm",
	Group:    GroupFlows,
	Args:     "NAME...",
	Short:    "remove recorders",
	Long:     `Ends them, and their names are free. What they have in memory is gone; files stay. With several NAMEs all are tried, and the first failure counts.`,
	Examples: []string{"sockd-ctl recorder rm black"},
	Complete: []string{"recorder"},
	Setup: func(*flag.FlagSet) Run {
		return func(ctx context.Context, e *Env, args []string) error {
			if err := wantArgs("recorder rm", args, 1, -1); err != nil {
				return err
			}
			return removeRecorders(ctx, e, args)
		}
	},
})

func removeRecorders(ctx context.Context, e *Env, refs []string) error {
	c, err := e.Dial(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	var first error // printed, as all are: in the order of the NAMEs
	removed := []model.Recorder{}
	for _, ref := range refs {
		var out recorderOut
		if err := c.Call(ctx, recorderRemoveMethod, refIn{ref}, &out); err != nil {
			PrintError(e.Stderr, err, e.wantsJSON())
			if first == nil {
				first = &printedError{err}
			}
			continue
		}
		removed = append(removed, out.Recorder)
	}
	if !e.wantsJSON() {
		return first
	}
	if len(removed) == 1 {
		err = e.printJSON(removed[0])
	} else {
		err = printList(e, removed, recorderColumns)
	}
	if err != nil {
		return err
	}
	return first
}
