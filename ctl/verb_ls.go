package ctl

import (
	"context"
	"flag"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/sockd/sockd/families/model"
)

// kindAll is every kind.
const kindAll = "all"

var _ = register(Verb{
	Name:  "ls",
	Group: GroupInspect,
	Args:  "[sockets|relays|sessions|captures|recorders|all] [FIELD=GLOB]...",
	Short: "list what sockd has open",
	Long: `Lists sockets, those that verbs opened or adopted, when nothing is named. Each FIELD=GLOB keeps the objects whose field matches the pattern, in which * stands for any text, ? for one letter and [a-z] for one of several; fields are those of --json, and uid and gid.
With --json the result is one list, with --jsonl an object a line; those of ls all say their kind.`,
	Examples: []string{
		"sockd-ctl ls                                    # sockets",
		"sockd-ctl ls relays                             # or: sockd-ctl relay ls",
		"sockd-ctl ls sockets state=listening 'local=*:80'",
		"sockd-ctl ls all -o kind,id --no-header         # for scripts: a tab between",
	},
	ReadOnly: true,
	Complete: []string{"kind", ""},
	Setup: func(*flag.FlagSet) Run {
		return func(ctx context.Context, e *Env, args []string) error {
			kind := listKinds[0]
			if len(args) > 0 && !strings.Contains(args[0], "=") {
				kind, args = args[0], args[1:]
			}
			return list(ctx, e, kind, args)
		}
	},
})

// list prints the objects of a kind that the FIELD=GLOB words keep.
func list(ctx context.Context, e *Env, kind string, words []string) error {
	if kind != kindAll && !slices.Contains(listKinds, kind) {
		return &UsageError{Verb: "ls", Why: fmt.Sprintf("no kind is called %q", kind), Hint: "kinds: " + strings.Join(append(listKinds, kindAll), " ")}
	}
	globs, err := parseGlobs(words)
	if err != nil {
		return err
	}
	l, err := e.list(ctx, kind)
	if err != nil {
		return err
	}
	switch kind {
	case "sockets":
		return printKept(e, l.Sockets, globs, socketColumns)
	case "relays":
		return printKept(e, l.Relays, globs, relayColumns)
	case "sessions":
		return printKept(e, l.Sessions, globs, sessionColumns)
	case "captures":
		return printKept(e, l.Captures, globs, captureColumns)
	case "recorders":
		return printKept(e, l.Recorders, globs, recorderColumns)
	}
	return printAll(e, l, globs)
}

// What tables show when -o does not say.
var (
	socketColumns  = []string{"id", "family", "type", "protocol", "state", "local", "peer", "uid"}
	sessionColumns = []string{"id", "relay", "state", "peer", "backend", "path", "rx_bytes", "tx_bytes"}
	captureColumns = []string{"id", "source", "filter", "received", "delivered", "dropped_kernel", "dropped_daemon", "dropped_subscriber"}
)

func printKept[T any](e *Env, objects []T, globs []fieldGlob, columns []string) error {
	kept, err := keep(objects, globs)
	if err != nil {
		return err
	}
	return printList(e, kept, columns)
}

// Objects of ls all say their kind first.
type (
	kindSocket struct {
		Kind string `json:"kind"`
		model.Socket
	}
	kindRelay struct {
		Kind string `json:"kind"`
		model.Relay
	}
	kindSession struct {
		Kind string `json:"kind"`
		model.Session
	}
	kindCapture struct {
		Kind string `json:"kind"`
		model.Capture
	}
	kindRecorder struct {
		Kind string `json:"kind"`
		model.Recorder
	}
)

// withKinds are all objects of a listing with their kinds.
func withKinds(l Listing) []any {
	objects := []any{}
	for _, s := range l.Sockets {
		objects = append(objects, kindSocket{model.KindSocket, s})
	}
	for _, r := range l.Relays {
		objects = append(objects, kindRelay{model.KindRelay, r})
	}
	for _, s := range l.Sessions {
		objects = append(objects, kindSession{model.KindSession, s})
	}
	for _, c := range l.Captures {
		objects = append(objects, kindCapture{model.KindCapture, c})
	}
	for _, r := range l.Recorders {
		objects = append(objects, kindRecorder{model.KindRecorder, r})
	}
	return objects
}

// anyFields are the fields of all kinds together.
func anyFields() []string {
	var names []string
	for _, shape := range []any{kindSocket{}, kindRelay{}, kindSession{}, kindCapture{}, kindRecorder{}} {
		names = append(names, fieldNames(shape)...)
	}
	return names
}

// printAll prints objects of several kinds: a table for each, or with -o one for
// all of them.
func printAll(e *Env, l Listing, globs []fieldGlob) error {
	fields := make([]string, len(globs))
	for i, g := range globs {
		fields[i] = g.field
	}
	if err := checkFields("ls", fields, anyFields()); err != nil {
		return err
	}
	kept := []any{}
	for _, o := range withKinds(l) {
		if match(o, globs) {
			kept = append(kept, o)
		}
	}
	if e.wantsJSON() || len(e.Columns) > 0 {
		if len(e.Columns) > 0 && !e.wantsJSON() {
			return printTableShape(e, anyFields(), kept, nil)
		}
		return printList(e, kept, nil)
	}
	return printSections(e, kept)
}

// printSections prints a table for each kind that there is.
func printSections(e *Env, objects []any) error {
	sections := []struct {
		kind    string
		columns []string
	}{{model.KindSocket, socketColumns}, {model.KindRelay, relayColumns}, {model.KindSession, sessionColumns}, {model.KindCapture, captureColumns}, {model.KindRecorder, recorderColumns}}
	empty := true
	for _, s := range sections {
		var of []any
		for _, o := range objects {
			if fieldTexts(o)["kind"] == s.kind {
				of = append(of, o)
			}
		}
		if len(of) == 0 {
			continue
		}
		if !empty {
			if _, err := io.WriteString(e.Stdout, "\n"); err != nil {
				return err
			}
		}
		empty = false
		if err := printTable(e, of, append([]string{"kind"}, s.columns...)); err != nil {
			return err
		}
	}
	return nil
}

// Ref is something that a REF can name.
type Ref struct {
	Name  string // as it is typed: an ID, or a relay's or recorder's name
	About string // what it is, in words
}

// Refs asks the daemon for what can stand where a verb wants a "socket", a
// "relay", a "recorder" or any "ref".
func (e *Env) Refs(ctx context.Context, kind string) ([]Ref, error) {
	what := map[string]string{"socket": "sockets", "relay": "relays", "recorder": "recorders"}[kind]
	if what == "" {
		what = kindAll
	}
	l, err := e.list(ctx, what)
	if err != nil {
		return nil, err
	}
	var refs []Ref
	for _, s := range l.Sockets {
		refs = append(refs, Ref{idText(s.ID), socketLine(s)})
	}
	for _, r := range l.Relays {
		refs = append(refs, Ref{r.Name, relayLine(r)})
	}
	for _, s := range l.Sessions {
		refs = append(refs, Ref{idText(s.ID), sessionLine(s)})
	}
	for _, c := range l.Captures {
		refs = append(refs, Ref{idText(c.ID), captureLine(c)})
	}
	for _, r := range l.Recorders {
		refs = append(refs, Ref{r.Name, recorderLine(r)})
	}
	return refs, nil
}

func idText(id model.ID) string { return strconv.FormatInt(int64(id), 10) }

// One line about an object, for watch and completion.

func socketLine(s model.Socket) string {
	return strings.Join([]string{s.Family, s.Type, s.State, cell(s.Local), cell(s.Peer)}, " ")
}

func relayLine(r model.Relay) string {
	return strings.Join([]string{r.Name, r.State, cell(r.From), cell(strings.Join(r.To, " "))}, " ")
}

func sessionLine(s model.Session) string {
	return fmt.Sprintf("of relay %d %s %s %s", s.Relay, s.State, cell(s.Peer), cell(s.Backend))
}

func captureLine(c model.Capture) string {
	return strings.TrimSpace(c.Source + " " + cell(c.Filter))
}
