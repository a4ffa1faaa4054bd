package ctl

import (
	"encoding/json"
	"fmt"
)

// printJSON writes one JSON value and a newline to stdout.
func (e *Env) printJSON(v any) error {
	enc := json.NewEncoder(e.Stdout)
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// wantsJSON tells whether the result is to be one JSON value.
func (e *Env) wantsJSON() bool { return e.JSON || e.JSONL }

// say writes words, which are no result, to stderr.
func (e *Env) say(format string, args ...any) {
	fmt.Fprintf(e.Stderr, format+"\n", args...)
}
