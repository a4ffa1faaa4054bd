package main

import (
	"context"
	"net"
	"sort"
	"strings"
	"time"

	"github.com/sockd/sockd/ctl"
	"github.com/spf13/cobra"
)

// completionPatience bounds what a press of the tab key waits for the daemon.
const completionPatience = 500 * time.Millisecond

// completionCommand prints the scripts that make shells ask sockd-ctl.
func completionCommand(e *ctl.Env) *cobra.Command {
	return &cobra.Command{
		Use:       "completion bash|zsh|fish",
		Short:     "print the completion script of a shell",
		Long:      "Prints a script that teaches a shell to complete sockd-ctl's verbs, flags, IDs and names.\n\n  bash: sockd-ctl completion bash > /etc/bash_completion.d/sockd-ctl\n  zsh:  sockd-ctl completion zsh > \"${fpath[1]}/_sockd-ctl\"\n  fish: sockd-ctl completion fish > ~/.config/fish/completions/sockd-ctl.fish",
		ValidArgs: []string{"bash", "zsh", "fish"},
		Args:      cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return &ctl.UsageError{Verb: "completion", Why: "want one shell", Hint: "sockd-ctl completion bash|zsh|fish"}
			}
			root := cmd.Root()
			switch args[0] {
			case "bash":
				return root.GenBashCompletionV2(e.Stdout, true)
			case "zsh":
				return root.GenZshCompletion(e.Stdout)
			case "fish":
				return root.GenFishCompletion(e.Stdout, true)
			}
			return &ctl.UsageError{Verb: "completion", Why: "no completion for " + args[0], Hint: "sockd-ctl completion bash|zsh|fish"}
		},
	}
}

type completer = func(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective)

// completeArgs completes a verb's arguments by what its Complete says they are.
// The last one repeats.
func completeArgs(e *ctl.Env, v ctl.Verb) completer {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(v.Complete) == 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		kind := v.Complete[min(len(args), len(v.Complete)-1)]
		return candidates(cmd.Context(), e, kind)
	}
}

// networks are the endpoint words.
var networks = []string{
	"tcp:", "tcp4:", "tcp6:", "udp:", "udp4:", "udp6:", "ip4:", "ip6:",
	"unix:", "unixgram:", "unixpacket:", "packet:", "fd:", "id:",
}

// candidates are the words of a kind (see ctl.Verb.Complete).
func candidates(ctx context.Context, e *ctl.Env, kind string) ([]string, cobra.ShellCompDirective) {
	switch kind {
	case "family":
		return []string{"inet", "inet6", "local", "unix", "packet"}, cobra.ShellCompDirectiveNoFileComp
	case "type":
		return []string{"stream", "dgram", "seqpacket", "raw"}, cobra.ShellCompDirectiveNoFileComp
	case "iface":
		return interfaces(), cobra.ShellCompDirectiveNoFileComp
	case "network":
		return networks, cobra.ShellCompDirectiveNoSpace | cobra.ShellCompDirectiveNoFileComp
	case "socket", "relay", "recorder", "ref":
		return refs(ctx, e, kind), cobra.ShellCompDirectiveNoFileComp
	case "kind":
		return []string{"sockets", "relays", "sessions", "captures", "recorders", "all"}, cobra.ShellCompDirectiveNoFileComp
	}
	return nil, cobra.ShellCompDirectiveNoFileComp
}

func interfaces() []string {
	list, err := net.Interfaces()
	if err != nil {
		return []string{"any"}
	}
	names := []string{"any"}
	for _, i := range list {
		names = append(names, i.Name)
	}
	sort.Strings(names)
	return names
}

// refs asks the daemon what there is. Without an answer there is nothing to offer.
func refs(ctx context.Context, e *ctl.Env, kind string) []string {
	if ctx == nil {
		ctx = context.Background()
	}
	ctx, cancel := context.WithTimeout(ctx, completionPatience)
	defer cancel()
	list, err := e.Refs(ctx, kind)
	if err != nil {
		return nil
	}
	words := make([]string, len(list))
	for i, r := range list {
		words[i] = r.Name + "\t" + strings.ReplaceAll(r.About, "\n", " ")
	}
	return words
}
