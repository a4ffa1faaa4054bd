package ctl

import (
	"context"
	"flag"
	"fmt"
	"io"
	"strings"

	"github.com/sockd/sockd/families/model"
)

type statusOut struct {
	Status model.Status `json:"status"`
}

var _ = addMethod(unary("io.sockd.Manager.Status", func(ctx context.Context, r request, _ struct{}) (statusOut, error) {
	s, err := r.Status(ctx, r.caller)
	if err != nil {
		return statusOut{}, err
	}
	s.Families, s.Missing, s.Problems = notNil(s.Families), notNil(s.Missing), notNil(s.Problems)
	return statusOut{s}, nil
}))

var _ = register(Verb{
	Name:  "status",
	Group: GroupInspect,
	Short: "how the daemon is, and what it lacks",
	Long: `Shows the daemon's version and uptime, whether systemd runs it, what it has open, and the capabilities that it lacks with what each would allow.

Parked is what outlives the daemon's process: one record for each relay and each
session of a durable relay, of how many that fit, and what raises that bound.`,
	Examples: []string{"sockd-ctl status", "sockd-ctl status --json | jq .missing"},
	ReadOnly: true,
	Setup: func(*flag.FlagSet) Run {
		return func(ctx context.Context, e *Env, args []string) error {
			if err := wantArgs("status", args, 0, 0); err != nil {
				return err
			}
			var out statusOut
			if err := e.call(ctx, "io.sockd.Manager.Status", nil, &out); err != nil {
				return err
			}
			return printObject(e, out.Status, statusText(out.Status))
		}
	},
})

// statusText is the status for people.
func statusText(s model.Status) func(io.Writer) error {
	return func(w io.Writer) error {
		by := "by itself"
		if s.Systemd {
			by = "by systemd"
		}
		rows := [][]string{
			{"sockd", cell(s.Version)},
			{"running", fmt.Sprintf("for %s, pid %d, started %s", sinceText(s.Uptime), s.PID, by)},
			{"user", fmt.Sprintf("uid %d, gid %d", s.User.UID, s.User.GID)},
			{"kernel", cell(s.Kernel)},
			{"control", fmt.Sprintf("%s, %d callers", cell(s.Control), s.Callers)},
			{"open", fmt.Sprintf("%d sockets, %d relays, %d sessions, %d captures, %d recorders", s.Sockets, s.Relays, s.Sessions, s.Captures, s.Recorders)},
			{"families", cell(strings.Join(s.Families, " "))},
			{"config", cell(s.Config)},
			{"state", cell(s.StateDir)},
		}
		if s.Parking != nil {
			rows = append(rows, parkingRows(*s.Parking)...)
		}
		for _, m := range s.Missing {
			rows = append(rows, []string{"missing", fmt.Sprintf("%s, which would allow: %s", cell(m.Capability), cell(m.Allows))})
		}
		for _, p := range s.Problems {
			rows = append(rows, []string{"problem", cell(p)})
		}
		return writePadded(w, rows)
	}
}

// parkingRows say what is parked, and the bounds.
func parkingRows(p model.Parking) [][]string {
	descriptors := fmt.Sprintf("%d descriptors", p.Descriptors)
	if p.DescriptorBound > 0 {
		descriptors = fmt.Sprintf("%d of %d descriptors (%s raises it)", p.Descriptors, p.DescriptorBound, cell(p.Limit))
	}
	rows := [][]string{{"parked", fmt.Sprintf("%d of %d records (%s raises it), %s", p.Parked, p.Bound, cell(p.Sysctl), descriptors)}}
	if p.Full > 0 {
		rows = append(rows, []string{"", fmt.Sprintf("%d records were refused for want of room", p.Full)})
	}
	return rows
}
