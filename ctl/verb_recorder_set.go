package ctl

import (
	"context"
	"flag"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/model"
)

type recorderSetIn struct {
	Ref    string  `json:"ref"`
	Filter *string `json:"filter,omitempty"`
	Last   *int64  `json:"last,omitempty"`
	Bytes  *int64  `json:"bytes,omitempty"`
}

const recorderSetMethod = "io.sockd.Recorder.Set"

var _ = addMethod(unary(recorderSetMethod, func(ctx context.Context, r request, in recorderSetIn) (recorderOut, error) {
	change := model.RecorderChange{Filter: in.Filter, Bytes: in.Bytes}
	if in.Last != nil {
		last := time.Duration(*in.Last)
		change.Last = &last
	}
	for name, n := range map[string]*int64{"last": in.Last, "bytes": in.Bytes} {
		if orZero(n) < 0 {
			return recorderOut{}, &families.SyntaxError{What: name, Text: fmt.Sprint(*n), Why: "is below 0"}
		}
	}
	v, err := r.RecorderSet(ctx, r.caller, in.Ref, change)
	return recorderOut{v}, err
}))

// recorderChange is what the flags of set and recorder set change.
type recorderChange struct{ last, bytes *int64 }

func newRecorderChange(fs *flag.FlagSet) *recorderChange {
	c := &recorderChange{}
	fs.Func("last", "of a recorder: keep the packets of the last `D`, none or default for as much as fits", orZeroWord(&c.last, spanSetting, "none", defaultWord))
	fs.Func("bytes", "of a recorder: keep them in so much memory, `SIZE`, default for 256M", orZeroWord(&c.bytes, sizeSetting, defaultWord))
	return c
}

// orZeroWord reads a setting, of which words are 0.
func orZeroWord(to **int64, read func(**int64) func(string) error, words ...string) func(string) error {
	return func(s string) error {
		if slices.Contains(words, s) {
			*to = new(int64)
			return nil
		}
		return read(to)(s)
	}
}

// any tells whether a flag was given.
func (c *recorderChange) any() bool { return c.last != nil || c.bytes != nil }

// run makes the change, as verb; words are the new filter, if there are any.
func (c *recorderChange) run(ctx context.Context, e *Env, verb, ref string, words []string) error {
	in := recorderSetIn{Ref: ref, Last: c.last, Bytes: c.bytes}
	if len(words) > 0 {
		filter := strings.Join(words, " ")
		in.Filter = &filter
	}
	if !c.any() && in.Filter == nil {
		return &UsageError{Verb: verb, Why: "nothing to change", Hint: "sockd-ctl recorder set NAME [FILTER word]... [--last D] [--bytes SIZE]"}
	}
	var out recorderOut
	if err := e.call(ctx, recorderSetMethod, in, &out); err != nil {
		return err
	}
	return printObject(e, out.Recorder, printNothing)
}

var _ = register(Verb{
	Name:  "recorder set",
	Group: GroupFlows,
	Args:  "NAME [FILTER word]... [--last D] [--bytes SIZE]",
	Short: "change a recorder while it runs",
	Long:  `Changes what is given; the rest stays. The words after NAME are its new filter, '' takes every packet: it is for packets from now on. What the new bounds still hold stays: growing loses nothing, shrinking the oldest packets.`,
	Examples: []string{
		"sockd-ctl recorder set black --last 5m --bytes 1G",
		"sockd-ctl recorder set dns udp port 53 or tcp port 53",
	},
	Complete: []string{"recorder", ""},
	Setup: func(fs *flag.FlagSet) Run {
		change := newRecorderChange(fs)
		return func(ctx context.Context, e *Env, args []string) error {
			if err := wantArgs("recorder set", args, 1, -1); err != nil {
				return err
			}
			return change.run(ctx, e, "recorder set", args[0], args[1:])
		}
	},
})
