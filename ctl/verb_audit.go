package ctl

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"

	"github.com/sockd/sockd/ctl/varlink"
	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/model"
)

type auditIn struct {
	Ref *string `json:"ref,omitempty"`
}

type auditOut struct {
	Lines []model.Audit `json:"lines"`
	Holds bool          `json:"holds"`
}

var _ = addMethod(method{
	name: "io.sockd.Relay.Audit", in: auditIn{}, out: auditOut{},
	serve: serveAudit,
})

func serveAudit(ctx context.Context, s *Server, c *varlink.ServerCall) error {
	var in auditIn
	if err := c.Decode(&in); err != nil {
		return err
	}
	if in.Ref != nil && *in.Ref == "" { // to the backend it is all relays, which nobody asked for
		return fmt.Errorf("audit: %q is no ID or NAME: %w", "", families.ErrSyntax)
	}
	lines, err := s.backend.RelayAudit(ctx, s.caller(c), orZero(in.Ref))
	if err != nil {
		return err
	}
	out := auditOut{Lines: notNil(lines), Holds: len(broken(lines)) == 0}
	if !c.More {
		err := c.Reply(out)
		if errors.Is(err, varlink.ErrTooLarge) {
			return fmt.Errorf("audit: %w: call it with more", err)
		}
		return err
	}
	for len(out.Lines) > auditPart {
		if err := c.Continue(auditOut{out.Lines[:auditPart], out.Holds}); err != nil {
			return err
		}
		out.Lines = out.Lines[auditPart:]
	}
	return c.Reply(out)
}

// auditPart is how many lines one message carries: each is some 300 bytes, and one with
// a branch as long as the longest endpoint still fits.
const auditPart = 500

// broken are the lines in which the law does not hold.
func broken(lines []model.Audit) (out []model.Audit) {
	for _, l := range lines {
		if !l.Holds {
			out = append(out, l)
		}
	}
	return out
}

var _ = register(Verb{
	Name:  "audit",
	Group: GroupInspect,
	Args:  "[NAME|ID]",
	Short: "check that relays have lost nothing that they have not counted",
	Long: `Checks the books of a relay, or of all of them: for each direction (rx: from FROM towards TO) of each session, in = out + in flight + lost, in bytes and, except for streams, in messages. What is in flight is not computed from the counters but found where it lies. Nothing stops meanwhile.
Session 0 stands for all sessions of a relay that have ended, together with messages that belonged to none. A session of --balance fanout also has a line for each branch: what was given to it is in, what it has sent is out; "*" stands for the answers of all.
What a socket took is out: what the kernel or the network then loses is not sockd's to know. A framed stream's messages count as their sender meant them, without what frames them; a part of a frame is no message yet. PROXY headers are not counted.
Exits with 0 when all lines hold, else with 1 and a line on stderr for each that does not.`,
	Examples: []string{
		"sockd-ctl audit                # every relay",
		"sockd-ctl audit web --json | jq '.[] | select(.lost_bytes > 0)'",
		"sockd-ctl audit dns -o session,direction,in_messages,out_messages,lost_messages",
	},
	ReadOnly: true,
	Complete: []string{"relay"},
	Setup: func(*flag.FlagSet) Run {
		return func(ctx context.Context, e *Env, args []string) error {
			if err := wantArgs("audit", args, 0, 1); err != nil {
				return err
			}
			var in auditIn
			if len(args) > 0 {
				in.Ref = &args[0]
			}
			lines, err := e.audit(ctx, in)
			if err != nil {
				return err
			}
			if err := printList(e, lines, auditColumns); err != nil {
				return err
			}
			return e.tellBroken(lines)
		}
	},
})

var auditColumns = []string{"name", "session", "branch", "direction", "in_bytes", "out_bytes", "in_flight_bytes", "lost_bytes", "holds"}

// audit asks for all lines.
func (e *Env) audit(ctx context.Context, in auditIn) ([]model.Audit, error) {
	c, err := e.Dial(ctx)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	const name = "io.sockd.Relay.Audit"
	ctx, cancel := e.bound(ctx, name)
	defer cancel()
	lines := []model.Audit{}
	err = c.More(ctx, name, in, func(raw json.RawMessage) error {
		var part auditOut
		if err := json.Unmarshal(raw, &part); err != nil {
			return fmt.Errorf("audit: %w", err)
		}
		lines = append(lines, part.Lines...)
		return nil
	})
	return lines, err
}

// tellBroken prints an error for each line that does not hold, and gives the first.
func (e *Env) tellBroken(lines []model.Audit) error {
	var first error
	for _, l := range broken(lines) {
		err := &auditError{l}
		PrintError(e.Stderr, err, e.wantsJSON())
		if first == nil {
			first = &printedError{err}
		}
	}
	return first
}

// auditError is a line that does not hold.
type auditError struct{ line model.Audit }

func (e *auditError) Error() string {
	l := e.line
	of := fmt.Sprintf("session %d", l.Session)
	if l.Session == 0 {
		of = "the sessions that have ended"
	}
	if l.Branch != "" {
		of += ", branch " + l.Branch
	}
	return fmt.Sprintf("audit %s: %s: %s: %s", l.Name, of, l.Direction, e.why())
}

func (e *auditError) why() string {
	l := e.line
	bytes := l.InBytes - l.OutBytes - l.InFlightBytes - l.LostBytes
	messages := l.InMessages - l.OutMessages - l.InFlightMessages - l.LostMessages
	switch {
	case bytes != 0:
		return fmt.Sprintf("%d bytes in, but %d out + %d in flight + %d lost: %+d", l.InBytes, l.OutBytes, l.InFlightBytes, l.LostBytes, bytes)
	case messages != 0:
		return fmt.Sprintf("%d messages in, but %d out + %d in flight + %d lost: %+d", l.InMessages, l.OutMessages, l.InFlightMessages, l.LostMessages, messages)
	}
	return "its counters are not those that the relay shows"
}
