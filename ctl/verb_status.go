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
	Name:     "status",
	Group:    GroupInspect,
	Short:    "how the daemon is, and what it lacks",
	Long:     `Shows the daemon's version and uptime, whether systemd runs it, what it has open, and the capabilities that it lacks with what each would allow.`,
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
		for _, m := range s.Missing {
			rows = append(rows, []string{"missing", fmt.Sprintf("%s, which would allow: %s", cell(m.Capability), cell(m.Allows))})
		}
		for _, p := range s.Problems {
			rows = append(rows, []string{"problem", cell(p)})
		}
		return writePadded(w, rows)
	}
}
