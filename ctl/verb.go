package ctl

import (
	"context"
	"flag"
	"fmt"
	"sort"
	"strings"
)

// Verb is one verb of sockd-ctl as its user meets it.
type Verb struct {
	Name     string   // "bind", "relay add"
	Args     string   // the usage after the name: "ID ADDRESS"
	Short    string   // one line for the list of verbs
	Long     string   // what the manual says
	Examples []string // commands as typed, each with what it does after "  # "
	// Group is the heading under which the list of verbs has it; "" is GroupSockets.
	Group string
	// ReadOnly verbs never change anything.
	ReadOnly bool
	// Complete says what each positional argument is, for shell completion:
	// "socket", "relay", "recorder", "ref", "iface", "family", "type", "network", "kind" (of
	// ls) or "". The last one repeats.
	Complete []string
	// Setup declares the verb's flags and returns what runs it. Arguments reach
	// Run without the flags; a wrong number of them is a UsageError.
	Setup func(fs *flag.FlagSet) Run
}

// The headings of the list of verbs, in its order.
const (
	GroupSockets = "Sockets, one verb for each call of the socket API"
	GroupFlows   = "Flows"
	GroupInspect = "Inspect"
	GroupOther   = "Other"
)

// Groups are the headings of the list of verbs, in its order.
func Groups() []string { return []string{GroupSockets, GroupFlows, GroupInspect, GroupOther} }

// Run runs a verb in sockd-ctl. Results go to e.Stdout, words to e.Stderr; the
// error is printed by the caller, who also turns it into the exit code (ExitCode).
type Run func(ctx context.Context, e *Env, args []string) error

var verbs = map[string]Verb{}

// register adds a verb; each verb's file calls it once. A second one of the same
// name is a mistake in the program.
func register(v Verb) struct{} {
	if _, dup := verbs[v.Name]; dup {
		panic("ctl: two verbs are called " + v.Name)
	}
	verbs[v.Name] = v
	return struct{}{}
}

// Verbs are all verbs by name.
func Verbs() []Verb {
	out := make([]Verb, 0, len(verbs))
	for _, v := range verbs {
		out = append(out, v)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Name < out[j].Name })
	return out
}

// UsageError is a command line that does not parse: exit 2.
type UsageError struct {
	Verb string
	Why  string
	Hint string
}

func (u *UsageError) Error() string {
	if u.Verb == "" {
		return u.Why
	}
	return u.Verb + ": " + u.Why
}

// wantArgs checks the number of arguments against min and max (max < 0: any).
func wantArgs(verb string, args []string, min, max int) error {
	v := verbs[verb]
	switch {
	case len(args) < min:
		return &UsageError{Verb: verb, Why: "too few arguments", Hint: fmt.Sprintf("sockd-ctl %s %s", verb, v.Args)}
	case max >= 0 && len(args) > max:
		return &UsageError{Verb: verb, Why: fmt.Sprintf("too many arguments: %s", strings.Join(args[max:], " ")), Hint: fmt.Sprintf("sockd-ctl %s %s", verb, v.Args)}
	}
	return nil
}
