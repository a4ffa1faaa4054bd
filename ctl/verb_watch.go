package ctl

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"time"

	"github.com/sockd/sockd/ctl/varlink"
	"github.com/sockd/sockd/families/model"
)

var _ = addMethod(method{
	name: "io.sockd.Manager.Watch", in: struct{}{}, out: model.Event{}, more: true,
	serve: serveWatch,
})

func serveWatch(ctx context.Context, s *Server, c *varlink.ServerCall) error {
	if err := c.Decode(&struct{}{}); err != nil {
		return err
	}
	return s.backend.Watch(ctx, s.caller(c), func(ev model.Event) error { return c.Continue(ev) })
}

var _ = register(Verb{
	Name:  "watch",
	Group: GroupInspect,
	Short: "tell of every change as it comes",
	Long: `Prints first what is there now (present), then ready, then every change. With --json or --jsonl each event is one object on a line: time, event, id, cause, object and its kind.
With -o only the named fields are printed, and object is its JSON.
A watcher that does not read fast enough loses events, and gets one event lost that counts them. Ctrl-C is its normal end; --timeout ends it with exit 6.`,
	Examples: []string{"sockd-ctl watch", "sockd-ctl watch --jsonl | jq 'select(.event == \"accepted\").id'"},
	ReadOnly: true,
	Setup: func(*flag.FlagSet) Run {
		return func(ctx context.Context, e *Env, args []string) error {
			if err := wantArgs("watch", args, 0, 0); err != nil {
				return err
			}
			if err := checkFields("-o", e.Columns, fieldNames(model.Event{})); err != nil {
				return err
			}
			return watch(ctx, e)
		}
	},
})

func watch(ctx context.Context, e *Env) error {
	c, err := e.Dial(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	read, stop := e.whileRead(ctx)
	defer stop()
	limited, cancel := withTimeout(read, e.timeoutParameter())
	defer cancel()
	rows := *e // each event is a table of its own, and only the first has a header
	err = c.More(limited, "io.sockd.Manager.Watch", nil, func(raw json.RawMessage) error {
		switch {
		case e.wantsJSON():
			return e.printJSON(raw)
		case len(e.Columns) > 0:
			err := printEventRow(&rows, raw)
			rows.NoHeader = true
			return err
		}
		return printEvent(e, raw)
	})
	var signal *SignalError
	if errors.As(context.Cause(ctx), &signal) {
		return nil // Ctrl-C is the normal end
	}
	return err
}

func parseEvent(raw json.RawMessage) (ev model.Event, err error) {
	if err := json.Unmarshal(raw, &ev); err != nil {
		return model.Event{}, fmt.Errorf("watch: event %s: %w", raw, err)
	}
	return ev, nil
}

// printEventRow prints the fields of one event that -o names.
func printEventRow(e *Env, raw json.RawMessage) error {
	ev, err := parseEvent(raw)
	if err != nil {
		return err
	}
	return printTable(e, []any{ev}, nil)
}

// printEvent prints one event as a line.
func printEvent(e *Env, raw json.RawMessage) error {
	ev, err := parseEvent(raw)
	if err != nil {
		return err
	}
	line := ev.Event
	if ev.Kind != "" {
		line += fmt.Sprintf(" %s %d %s", ev.Kind, ev.ID, eventObject(ev))
	} else if ev.ID != 0 {
		line += " " + idText(ev.ID)
	}
	if ev.Cause != "" {
		line += ": " + cell(ev.Cause)
	}
	if !ev.Time.IsZero() {
		line = ev.Time.Local().Format("15:04:05.000 ") + line
	}
	_, err = fmt.Fprintln(e.Stdout, line)
	return err
}

// eventObject is a line about an event's object. What does not decode is a
// newer daemon's, and left out.
func eventObject(ev model.Event) string {
	switch ev.Kind {
	case model.KindSocket:
		return aboutObject(ev.Object, socketLine)
	case model.KindRelay:
		return aboutObject(ev.Object, relayLine)
	case model.KindSession:
		return aboutObject(ev.Object, sessionLine)
	case model.KindCapture:
		return aboutObject(ev.Object, captureLine)
	case model.KindRecorder:
		return aboutObject(ev.Object, recorderLine)
	case model.KindInjection:
		return aboutObject(ev.Object, injectionLine)
	}
	return ""
}

func aboutObject[T any](raw json.RawMessage, line func(T) string) string {
	var object T
	if json.Unmarshal(raw, &object) != nil {
		return ""
	}
	return line(object)
}

// sinceText is how long ago something was, in whole units.
func sinceText(d time.Duration) string {
	switch {
	case d >= 24*time.Hour:
		return fmt.Sprintf("%dd%dh", d/(24*time.Hour), d%(24*time.Hour)/time.Hour)
	case d >= time.Hour:
		return fmt.Sprintf("%dh%dm", d/time.Hour, d%time.Hour/time.Minute)
	case d >= time.Minute:
		return fmt.Sprintf("%dm%ds", d/time.Minute, d%time.Minute/time.Second)
	}
	return fmt.Sprintf("%ds", d/time.Second)
}
