package main

import (
	"bytes"
	"context"
	"flag"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/sockd/sockd/ctl"
	"github.com/stretchr/testify/require"
)

// world is an Env whose output is kept, and whose daemon is at socket.
func world(socket string) (e *ctl.Env, stdout, stderr *bytes.Buffer) {
	stdout, stderr = &bytes.Buffer{}, &bytes.Buffer{}
	return &ctl.Env{
		Stdin: strings.NewReader(""), Stdout: stdout, Stderr: stderr, Version: "1.2.3",
		Getenv: func(name string) string {
			return map[string]string{"SOCKD_SOCKET": socket}[name]
		},
		Getuid: os.Getuid, Packets: newPacketPrinter,
	}, stdout, stderr
}

func TestASignalEndsAVerbThatWaits(t *testing.T) {
	for signal, code := range map[syscall.Signal]int{syscall.SIGINT: 130, syscall.SIGTERM: 143} {
		socket := filepath.Join(t.TempDir(), "s")
		l, err := net.Listen("unix", socket)
		require.NoError(t, err)
		ctx, cancel := context.WithCancelCause(t.Context())
		asked := make(chan error, 1)
		go func() { // a daemon that reads the question and never answers
			conn, err := l.Accept()
			if err == nil {
				_, err = conn.Read(make([]byte, 1))
				cancel(&ctl.SignalError{Signal: signal})
				defer conn.Close()
			}
			asked <- err
		}()
		e, stdout, stderr := world(socket)
		require.Equal(t, code, run(ctx, e, []string{"accept", "1"}))
		require.NoError(t, <-asked)
		require.Empty(t, stdout.String())
		require.Empty(t, stderr.String(), "a signal is its own word")
		require.NoError(t, l.Close())
	}
}

func TestSignalsCancelTheVerb(t *testing.T) {
	ctx, stop := withSignals(t.Context())
	defer stop()
	require.NoError(t, syscall.Kill(os.Getpid(), syscall.SIGTERM))
	<-ctx.Done()
	var signal *ctl.SignalError
	require.ErrorAs(t, context.Cause(ctx), &signal)
	require.Equal(t, syscall.SIGTERM, signal.Signal)
}

func TestEveryVerbIsExplained(t *testing.T) {
	for _, v := range ctl.Verbs() {
		t.Run(v.Name, func(t *testing.T) {
			require.NotEmpty(t, v.Short)
			require.NotEmpty(t, v.Long)
			require.NotEmpty(t, v.Examples)
			require.NotContains(t, v.Short, "\n")
			require.False(t, strings.HasSuffix(v.Short, "."), "the list of verbs has no full stops")
			verbFlags(v).VisitAll(func(f *flag.Flag) {
				require.NotEmpty(t, f.Usage, "-%s says what it does", f.Name)
			})
			e, stdout, _ := world("")
			require.Zero(t, run(t.Context(), e, append(strings.Fields(v.Name), "--help")))
			require.Contains(t, stdout.String(), "Usage: sockd-ctl "+v.Name)
			require.Contains(t, stdout.String(), v.Examples[0])
		})
	}
}

func TestAGlobalFlagHasNoOtherMeaning(t *testing.T) {
	globals := map[string]bool{"help": true, "h": true, "version": true, "H": true, "host": true}
	globalFlags(&ctl.Env{}).VisitAll(func(f *flag.Flag) { globals[f.Name] = true })
	for _, v := range ctl.Verbs() {
		verbFlags(v).VisitAll(func(f *flag.Flag) {
			require.False(t, globals[f.Name], "%s has a flag -%s of its own", v.Name, f.Name)
		})
	}
}

func TestGlobalFlagsStandBeforeOrAfterTheVerb(t *testing.T) {
	for _, line := range []string{"--json ls", "ls --json", "--json --socket nowhere ls", "ls --socket nowhere --json", "--timeout 5s ls --json --no-header -o id,state"} {
		e, _, stderr := world("nowhere")
		require.Equal(t, ctl.ExitUnreachable, run(t.Context(), e, strings.Fields(line)), line)
		require.True(t, strings.HasPrefix(stderr.String(), `{"error":"io.sockd.Unreachable"`), "%s: %s", line, stderr)
	}
}

// word finds the words of a shell line, in quotes or not.
var word = regexp.MustCompile(`'[^']*'|"[^"]*"|[^\s]+`)

// exampleArgs are an example's words after sockd-ctl, up to a pipe or a remark.
func exampleArgs(example string) []string {
	var args []string
	seen := false
	for _, w := range word.FindAllString(example, -1) {
		switch {
		case w == "sockd-ctl":
			seen = true
			continue
		case !seen:
			continue
		case w == "#" || w == "|" || strings.HasPrefix(w, ">") || strings.HasPrefix(w, "<"):
			return args
		}
		args = append(args, strings.Trim(w, `'"`))
	}
	return args
}

// An example in a manual must at least be a command line: it may find no daemon,
// but never be a mistake of usage.
func TestEveryExampleParses(t *testing.T) {
	t.Chdir(t.TempDir())
	examples := append([]string{}, firstSteps...)
	for _, v := range ctl.Verbs() {
		examples = append(examples, v.Examples...)
	}
	for _, x := range examples {
		args := exampleArgs(x)
		require.NotEmpty(t, args, x)
		cmd, rest, err := newRoot(&ctl.Env{}).Find(args)
		require.NoError(t, err, x)
		require.True(t, cmd.HasParent(), "%s: which verb?", x)
		require.NoError(t, cmd.ParseFlags(rest), x)
		if name := strings.TrimPrefix(cmd.CommandPath(), "sockd-ctl "); strings.HasPrefix(name, "relay ") {
			continue // they would open real paths before they ask
		}
		e, _, stderr := world("nowhere")
		code := run(t.Context(), e, args)
		require.NotEqual(t, ctl.ExitUsage, code, "%s: %s", x, stderr)
	}
}

func TestTheManualIsTheSameEachTime(t *testing.T) {
	var a, b bytes.Buffer
	require.NoError(t, writeMan(&a))
	require.NoError(t, writeMan(&b))
	require.Equal(t, a.String(), b.String())
	for _, v := range ctl.Verbs() {
		require.Contains(t, a.String(), ".SS "+escapeRoff(usageLine(v)))
	}
}

// The page that is shipped is the one that the verbs make.
func TestTheShippedManualIsUpToDate(t *testing.T) {
	shipped, err := os.ReadFile("../../docs/man/sockd-ctl.1")
	require.NoError(t, err)
	var page bytes.Buffer
	require.NoError(t, writeMan(&page))
	require.True(t, page.String() == string(shipped), "a verb has changed: make man")
}

func TestRoffShowsTextAsItIs(t *testing.T) {
	var m roff
	m.text(".start \\n it's -x\n\n  literal 'quoted'\nback")
	require.Equal(t, ".PP\n\\&.start \\en it\\(aqs \\-x\n.PP\n.nf\n  literal \\(aqquoted\\(aq\n.fi\nback\n", m.String())
}

func TestCompletionKnowsWhatStandsWhere(t *testing.T) {
	for line, want := range map[string]string{
		"open |":            "inet6",
		"open inet |":       "seqpacket",
		"capture |":         "lo",
		"relay |":           "replace\t",
		"ls |":              "captures",
		"relay add web |":   "tcp:",
		"|":                 "open\t",
		"capture lo --dur|": "--duration\t",
		"close |":           ":4", // nobody to ask: nothing to offer, and no file names
		"completion |":      "zsh",
		"capture lo -|":     "--duration\t",
	} {
		e, stdout, _ := world("nowhere")
		args := append([]string{"__complete"}, strings.Fields(strings.TrimSuffix(line, "|"))...)
		if strings.HasSuffix(line, " |") || line == "|" {
			args = append(args, "")
		}
		require.Zero(t, run(t.Context(), e, args), line)
		require.Contains(t, stdout.String(), want, line)
		require.NotContains(t, stdout.String(), "---", line)
	}
}
