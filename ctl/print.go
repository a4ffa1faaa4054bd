package ctl

import (
	"encoding/json"
	"fmt"
	"io"
	"sync"
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

// sharingStderr is e for a verb whose goroutines say things, each a line.
func (e *Env) sharingStderr() *Env {
	shared := *e
	shared.Stderr = &sharedWriter{w: e.Stderr}
	return &shared
}

// sharedWriter has one Write at a time.
type sharedWriter struct {
	mu sync.Mutex // held while w is written
	w  io.Writer
}

func (s *sharedWriter) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.w.Write(p)
}
