package ctl

import (
	"context"
	"flag"
	"fmt"
	"strings"

	"github.com/sockd/sockd/families"
)

type refIn struct {
	Ref string `json:"ref"`
}

type relaySpecOut struct {
	Name     string        `json:"name"`
	From     string        `json:"from"`
	To       []string      `json:"to"`
	Settings relaySettings `json:"settings"`
}

var _ = addMethod(unary("io.sockd.Relay.Spec", func(ctx context.Context, r request, in refIn) (relaySpecOut, error) {
	spec, err := r.RelaySpec(ctx, r.caller, in.Ref)
	if err != nil {
		return relaySpecOut{}, err
	}
	out := relaySpecOut{Name: spec.Name, From: spec.From.String(), To: []string{}, Settings: settingsOf(spec)}
	for _, to := range spec.To {
		out.To = append(out.To, to.String())
	}
	return out, nil
}))

var _ = register(Verb{
	Name:     "relay show",
	Group:    GroupFlows,
	Args:     "NAME",
	Short:    "show one relay",
	Long:     `Shows all fields of a relay. With --command it prints the command that makes the same relay again.`,
	Examples: []string{"sockd-ctl relay show web", "sockd-ctl relay show web --command"},
	ReadOnly: true,
	Complete: []string{"relay"},
	Setup: func(fs *flag.FlagSet) Run {
		command := fs.Bool("command", false, "print the relay add line that makes it again")
		return func(ctx context.Context, e *Env, args []string) error {
			if err := wantArgs("relay show", args, 1, 1); err != nil {
				return err
			}
			if *command {
				return showCommand(ctx, e, args[0])
			}
			return showRelay(ctx, e, args[0])
		}
	},
})

func showRelay(ctx context.Context, e *Env, ref string) error {
	object, err := e.show(ctx, ref)
	if err != nil {
		return err
	}
	if object.Relay == nil {
		return fmt.Errorf("relay show %q: it is a %s: %w", ref, object.Kind, families.ErrNotFound)
	}
	return printFields(e, object.Relay)
}

func showCommand(ctx context.Context, e *Env, ref string) error {
	spec, err := e.specOf(ctx, ref)
	if err != nil {
		return err
	}
	words := append([]string{"sockd-ctl", "relay", "add", spec.Name, spec.From}, spec.To...)
	words = append(words, spec.Settings.words()...)
	for i, w := range words {
		words[i] = shellWord(w)
	}
	return printObject(e, spec, printLine(strings.Join(words, " ")))
}

// plainShell are the bytes that mean themselves in every shell.
const plainShell = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./:@,=+%"

// shellWord quotes s so that a shell reads one word back.
func shellWord(s string) string {
	if s != "" && strings.Trim(s, plainShell) == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
