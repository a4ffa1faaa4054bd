package main

import (
	"bytes"
	"flag"
	"fmt"
	"io"
	"sort"
	"strings"

	"github.com/sockd/sockd/ctl"
	"github.com/spf13/cobra"
)

const rootIntro = `sockd-ctl opens, joins, watches and captures sockets of every family. The daemon
sockd owns them, so they stay open between commands.

Usage: sockd-ctl [flags] VERB [arguments]
`

// firstSteps are the examples of the list of verbs.
var firstSteps = []string{
	"sockd-ctl open inet stream                                     # a TCP socket; prints its ID, say 1",
	"sockd-ctl connect 1 127.0.0.1:80                               # as connect(2) does",
	"sockd-ctl relay add web tcp:127.0.0.1:8080 unix:/run/app.sock  # a port in front of a unix socket",
	"sockd-ctl capture eth0 port 53                                 # DNS, as lines of text",
	"sockd-ctl ls all                                               # everything that sockd has open",
}

// writeHelp writes the help of a command: a verb, a group of verbs, or all.
func writeHelp(w io.Writer, cmd *cobra.Command) error {
	name := strings.TrimPrefix(cmd.CommandPath(), "sockd-ctl ")
	if v, ok := findVerb(name); ok {
		return writeVerbHelp(w, v)
	}
	if !cmd.HasParent() {
		return writeRootHelp(w)
	}
	return writeCommandHelp(w, cmd)
}

func findVerb(name string) (ctl.Verb, bool) {
	for _, v := range ctl.Verbs() {
		if v.Name == name {
			return v, true
		}
	}
	return ctl.Verb{}, false
}

// writeRootHelp writes the list of verbs, by groups.
func writeRootHelp(w io.Writer) error {
	var b bytes.Buffer
	b.WriteString(rootIntro)
	verbs := byGroup()
	for _, g := range ctl.Groups() {
		rows := make([][2]string, 0, len(verbs[g]))
		for _, v := range verbs[g] {
			rows = append(rows, [2]string{v.Name, v.Short})
		}
		if g == ctl.GroupOther {
			rows = append(rows, [2]string{"completion", "print the completion script of a shell"}, [2]string{"help", "help for a verb"})
		}
		writeSection(&b, g, rows)
	}
	writeSection(&b, "Flags, before or after the verb", globalRows())
	writeExamples(&b, firstSteps)
	b.WriteString("\nsockd-ctl VERB --help tells more of one. See sockd-ctl(1), sockd(8).\n")
	_, err := w.Write(b.Bytes())
	return err
}

// byGroup has the verbs of each heading, by name.
func byGroup() map[string][]ctl.Verb {
	groups := map[string][]ctl.Verb{}
	for _, v := range ctl.Verbs() {
		g := v.Group
		if g == "" {
			g = ctl.GroupSockets
		}
		groups[g] = append(groups[g], v)
	}
	return groups
}

func writeVerbHelp(w io.Writer, v ctl.Verb) error {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s\n\nUsage: %s\n", sentence(v.Short), usageLine(v))
	if v.Long != "" {
		b.WriteString("\n" + wrap(v.Long, helpWidth) + "\n")
	}
	if rows := flagRows(verbFlags(v)); len(rows) > 0 {
		writeSection(&b, "Flags", rows)
	}
	writeSection(&b, "Flags of every verb", globalRows())
	writeExamples(&b, v.Examples)
	_, err := w.Write(b.Bytes())
	return err
}

func writeCommandHelp(w io.Writer, cmd *cobra.Command) error {
	var b bytes.Buffer
	fmt.Fprintf(&b, "Usage: %s\n", cmd.UseLine())
	if cmd.Long != "" {
		b.WriteString("\n" + cmd.Long + "\n")
	}
	var rows [][2]string
	for _, c := range cmd.Commands() {
		if c.IsAvailableCommand() {
			rows = append(rows, [2]string{cmd.Name() + " " + c.Name(), c.Short})
		}
	}
	if len(rows) > 0 {
		writeSection(&b, "Verbs", rows)
	}
	_, err := w.Write(b.Bytes())
	return err
}

func usageLine(v ctl.Verb) string {
	line := "sockd-ctl " + strings.TrimSpace(v.Name+" "+v.Args)
	if len(flagRows(verbFlags(v))) > 0 {
		line += " [flags]"
	}
	return line
}

// verbFlags declares a verb's flags in a set of their own.
func verbFlags(v ctl.Verb) *flag.FlagSet {
	fs := flag.NewFlagSet(v.Name, flag.ContinueOnError)
	v.Setup(fs)
	return fs
}

// flagRows are flags as help shows them: how they are typed, and what they do.
func flagRows(fs *flag.FlagSet) [][2]string {
	var rows [][2]string
	fs.VisitAll(func(f *flag.Flag) { rows = append(rows, flagRow(f)) })
	sort.SliceStable(rows, func(i, j int) bool {
		return strings.ToLower(strings.TrimLeft(rows[i][0], "-")) < strings.ToLower(strings.TrimLeft(rows[j][0], "-"))
	})
	return rows
}

func flagRow(f *flag.Flag) [2]string {
	value, usage := flag.UnquoteUsage(f)
	typed := "--" + f.Name
	if len(f.Name) == 1 {
		typed = "-" + f.Name
	}
	if b, ok := f.Value.(interface{ IsBoolFlag() bool }); ok && b.IsBoolFlag() {
		value = ""
	}
	if value != "" {
		typed += " " + value
	}
	return [2]string{typed, usage}
}

func globalRows() [][2]string {
	rows := flagRows(globalFlags(&ctl.Env{}))
	return append(rows, [2]string{"-h, --help", "help for a verb"}, [2]string{"--version", "print the version"})
}

func writeSection(b *bytes.Buffer, title string, rows [][2]string) {
	if len(rows) == 0 {
		return
	}
	fmt.Fprintf(b, "\n%s:\n", title)
	width := 0
	for _, r := range rows {
		width = max(width, len(r[0]))
	}
	for _, r := range rows {
		fmt.Fprintf(b, "  %-*s  %s\n", width, r[0], r[1])
	}
}

func writeExamples(b *bytes.Buffer, examples []string) {
	if len(examples) == 0 {
		return
	}
	b.WriteString("\nExamples:\n")
	for _, x := range examples {
		b.WriteString("  " + x + "\n")
	}
}

// sentence makes the one line of a verb a sentence.
func sentence(short string) string {
	if short == "" {
		return ""
	}
	return strings.ToUpper(short[:1]) + strings.TrimSuffix(short[1:], ".") + "."
}

// helpWidth is the width of running text: what the narrowest terminal shows.
const helpWidth = 80

// wrap breaks running text into lines. A line that begins with a space stays as it is.
func wrap(text string, width int) string {
	var out []string
	for _, line := range strings.Split(strings.TrimSpace(text), "\n") {
		if strings.HasPrefix(line, " ") || strings.HasPrefix(line, "\t") {
			out = append(out, line)
			continue
		}
		out = append(out, wrapLine(line, width)...)
	}
	return strings.Join(out, "\n")
}

func wrapLine(line string, width int) []string {
	var out []string
	cur := ""
	for _, word := range strings.Fields(line) {
		switch {
		case cur == "":
			cur = word
		case len(cur)+1+len(word) > width:
			out = append(out, cur)
			cur = word
		default:
			cur += " " + word
		}
	}
	return append(out, cur)
}

// helpCommand is `sockd-ctl help VERB`.
func helpCommand(root *cobra.Command, e *ctl.Env) *cobra.Command {
	return &cobra.Command{
		Use:   "help [VERB]",
		Short: "help for a verb",
		Args:  cobra.ArbitraryArgs,
		RunE: func(_ *cobra.Command, args []string) error {
			cmd, rest, err := root.Find(args)
			if err != nil || len(rest) > 0 {
				return unknownVerb(root, strings.Join(args, " "))
			}
			return writeHelp(e.Stdout, cmd)
		},
	}
}
