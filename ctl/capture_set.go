package ctl

import (
	"context"
	"fmt"
	"strings"

	"github.com/sockd/sockd/families/model"
)

type captureSetIn struct {
	Ref    string `json:"ref"`
	Filter string `json:"filter"`
}

type captureSetOut struct {
	Capture model.Capture `json:"capture"`
}

const captureSetMethod = "io.sockd.Capture.Set"

var _ = addMethod(unary(captureSetMethod, func(ctx context.Context, r request, in captureSetIn) (captureSetOut, error) {
	v, err := r.CaptureSet(ctx, r.caller, in.Ref, in.Filter)
	return captureSetOut{v}, err
}))

// setCapture is set for a capture: words are its new filter.
func setCapture(ctx context.Context, e *Env, ref string, words []string) error {
	if len(words) == 0 {
		return &UsageError{Verb: "set", Why: fmt.Sprintf("%s is a capture: which FILTER shall it have?", ref), Hint: fmt.Sprintf("sockd-ctl set %s FILTER..., with '' for every packet", ref)}
	}
	var out captureSetOut
	if err := e.call(ctx, captureSetMethod, captureSetIn{Ref: ref, Filter: strings.Join(words, " ")}, &out); err != nil {
		return err
	}
	return printObject(e, out.Capture, printNothing)
}
