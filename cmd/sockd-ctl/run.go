package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"strings"

	"github.com/sockd/sockd/ctl"
	"github.com/sockd/sockd/families"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// run runs one command line and returns the exit code. What went wrong is
// written to e.Stderr.
func run(ctx context.Context, e *ctl.Env, args []string) int {
	root := newRoot(e)
	root.SetArgs(append([]string{}, args...)) // nil would mean os.Args
	err := root.ExecuteContext(ctx)
	if err == nil {
		err = root.OutOrStdout().(*shown).err
	}
	if errors.Is(err, errHelpShown) {
		return ctl.ExitUsage
	}
	ctl.PrintError(e.Stderr, err, e.JSON || e.JSONL || wantsJSON(args))
	return ctl.ExitCode(err)
}

// shown is stdout for what cobra prints itself, help and version, and keeps what
// went wrong there: cobra asks for no error.
type shown struct {
	io.Writer
	err error
}

func (s *shown) Write(p []byte) (int, error) {
	n, err := s.Writer.Write(p)
	s.keep(err)
	return n, err
}

func (s *shown) keep(err error) {
	if s.err == nil {
		s.err = err
	}
}

// errHelpShown: nothing was asked, so the help was shown, on stderr.
var errHelpShown = errors.New("no verb")

// wantsJSON looks for --json where the command line did not parse.
func wantsJSON(args []string) bool {
	for _, a := range args {
		switch a {
		case "--json", "--jsonl":
			return true
		case "--":
			return false
		}
	}
	return false
}

// newRoot builds the commands from ctl's verbs.
func newRoot(e *ctl.Env) *cobra.Command {
	root := &cobra.Command{
		Use:           "sockd-ctl",
		Short:         "open, join, watch and capture sockets of every family through sockd",
		Version:       e.Version,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return unknownVerb(cmd, args[0])
			}
			_ = writeRootHelp(e.Stderr) // there is nobody to tell
			return errHelpShown
		},
	}
	out := &shown{Writer: e.Stdout}
	root.SetOut(out)
	root.SetErr(e.Stderr)
	root.SetVersionTemplate("sockd-ctl {{.Version}}\n")
	root.SetHelpFunc(func(cmd *cobra.Command, _ []string) {
		if err := misnamed(cmd); err != nil {
			out.keep(err)
			return
		}
		out.keep(writeHelp(e.Stdout, cmd))
	})
	root.SetFlagErrorFunc(flagError)
	root.CompletionOptions.DisableDefaultCmd = true
	globals := globalFlags(e)
	addFlags(root.PersistentFlags(), globals)
	root.PersistentFlags().BoolP("help", "h", false, "help for a verb")
	root.PersistentFlags().Bool("version", false, "print the version")
	for _, v := range ctl.Verbs() {
		addVerb(root, e, v)
	}
	root.AddCommand(completionCommand(e), manCommand(e))
	root.SetHelpCommand(helpCommand(root, e))
	return root
}

// globalFlags are the flags that every verb has and that never mean anything else.
func globalFlags(e *ctl.Env) *flag.FlagSet {
	fs := flag.NewFlagSet("sockd-ctl", flag.ContinueOnError)
	fs.StringVar(&e.Socket, "socket", "", "where the daemon listens: `PATH` of its control socket")
	fs.BoolVar(&e.User, "user", false, "the daemon of this user: $XDG_RUNTIME_DIR/sockd/io.sockd")
	fs.BoolVar(&e.JSON, "json", false, "results as one JSON value, errors as one too")
	fs.BoolVar(&e.JSONL, "jsonl", false, "results as one JSON object a line")
	fs.Var(columnsValue{&e.Columns}, "o", "the fields to print: `COLS`, with commas between")
	fs.BoolVar(&e.NoHeader, "no-header", false, "no line of column names")
	fs.Var(ctl.OptionalDuration(&e.Timeout), "timeout", "how long to wait at most: `D` is 500ms, 10s, 5m; 0 does not wait")
	return fs
}

// columnsValue is -o.
type columnsValue struct{ list *[]string }

func (v columnsValue) String() string {
	if v.list == nil {
		return ""
	}
	return strings.Join(*v.list, ",")
}

func (v columnsValue) Set(s string) error {
	*v.list = strings.FieldsFunc(s, func(r rune) bool { return r == ',' || r == ' ' })
	if len(*v.list) == 0 {
		return errors.New("want field names, with commas between")
	}
	return nil
}

// shorthandOnly marks the long name of a flag that has only a letter. No command
// line can say it: three dashes are bad syntax.
const shorthandOnly = "-"

// addFlags takes flags of package flag over. One letter is -c and not --c.
func addFlags(to *pflag.FlagSet, from *flag.FlagSet) {
	from.VisitAll(func(f *flag.Flag) {
		p := pflag.PFlagFromGoFlag(f)
		if len(f.Name) == 1 {
			p.Name = shorthandOnly + f.Name
			p.Hidden = true // completion would offer the name that cannot be said
		}
		to.AddFlag(p)
	})
}

// addVerb adds a verb's command, and for "relay add" the command relay above it.
func addVerb(root *cobra.Command, e *ctl.Env, v ctl.Verb) {
	parent, name := root, v.Name
	if group, sub, ok := strings.Cut(v.Name, " "); ok {
		parent, name = groupCommand(root, group), sub
	}
	fs := flag.NewFlagSet(v.Name, flag.ContinueOnError)
	verb := v.Setup(fs)
	cmd := &cobra.Command{
		Use:               strings.TrimSpace(name + " " + v.Args),
		Short:             v.Short,
		Long:              v.Long,
		Version:           e.Version,           // --version after a verb
		Args:              cobra.ArbitraryArgs, // the verb counts them itself
		ValidArgsFunction: completeArgs(e, v),
		RunE: func(cmd *cobra.Command, args []string) error {
			return verb(cmd.Context(), e, args)
		},
	}
	addFlags(cmd.Flags(), fs)
	parent.AddCommand(cmd)
}

// groupCommand is the command that has the sub-verbs of name.
func groupCommand(root *cobra.Command, name string) *cobra.Command {
	for _, c := range root.Commands() {
		if c.Name() == name {
			return c
		}
	}
	group := &cobra.Command{
		Use:     name,
		Short:   "see sockd-ctl " + name + " --help",
		Version: root.Version,
		Args:    cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return unknownVerb(cmd, args[0])
			}
			return &ctl.UsageError{Verb: name, Why: "a verb is missing", Hint: hintVerbs(cmd)}
		},
	}
	root.AddCommand(group)
	return group
}

// misnamed is for a command whose flags are looked at before its words: a word
// before them that is no verb is the mistake to tell. nil: there is none.
func misnamed(cmd *cobra.Command) error {
	if words := cmd.Flags().Args(); cmd.HasSubCommands() && len(words) > 0 {
		return unknownVerb(cmd, words[0])
	}
	return nil
}

// unknownVerb says which verbs there are, or the one that was meant.
func unknownVerb(cmd *cobra.Command, word string) error {
	u := &ctl.UsageError{Why: fmt.Sprintf("no verb is called %q", word), Hint: hintVerbs(cmd)}
	if cmd.HasParent() {
		u.Verb = cmd.Name()
	}
	cmd.SuggestionsMinimumDistance = 2
	if near := cmd.SuggestionsFor(word); len(near) > 0 {
		u.Hint = fmt.Sprintf("did you mean %s?", strings.Join(near, " or "))
	}
	return u
}

func hintVerbs(cmd *cobra.Command) string {
	var names []string
	for _, c := range cmd.Commands() {
		if c.IsAvailableCommand() {
			names = append(names, c.Name())
		}
	}
	return "verbs: " + strings.Join(names, " ")
}

// flagError turns pflag's errors into usage errors that name the flag as it was typed.
func flagError(cmd *cobra.Command, err error) error {
	if errors.Is(err, pflag.ErrHelp) {
		return err
	}
	if err := misnamed(cmd); err != nil {
		return err
	}
	verb := strings.TrimPrefix(strings.TrimPrefix(cmd.CommandPath(), "sockd-ctl"), " ")
	u := &ctl.UsageError{Verb: verb, Hint: strings.TrimSpace(cmd.CommandPath()) + " --help"}
	var (
		unknown *pflag.NotExistError
		missing *pflag.ValueRequiredError
		invalid *pflag.InvalidValueError
		syntax  *families.SyntaxError
	)
	switch {
	case errors.As(err, &unknown) && unknown.GetSpecifiedShortnames() != "":
		u.Why = "no flag is called -" + unknown.GetSpecifiedName()
	case errors.As(err, &unknown):
		u.Why = "no flag is called --" + unknown.GetSpecifiedName()
	case errors.As(err, &missing):
		u.Why = flagAsTyped(missing.GetFlag()) + " needs a value"
	case errors.As(err, &invalid):
		u.Why = fmt.Sprintf("%s %q: %v", flagAsTyped(invalid.GetFlag()), invalid.GetValue(), plainCause(invalid.Unwrap()))
		if errors.As(err, &syntax) {
			u.Why = flagAsTyped(invalid.GetFlag()) + ": " + syntax.Error()
			if syntax.Hint != "" {
				u.Hint = syntax.Hint
			}
		}
	default:
		u.Why = err.Error()
	}
	return u
}

// plainCause takes strconv's own words out of a number that does not parse.
func plainCause(err error) string {
	if err == nil {
		return "does not parse"
	}
	return strings.TrimPrefix(err.Error(), "parse error: ")
}

func flagAsTyped(f *pflag.Flag) string {
	if strings.HasPrefix(f.Name, shorthandOnly) {
		return "-" + f.Shorthand
	}
	return "--" + f.Name
}
