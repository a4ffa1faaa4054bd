package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"
)

// `bench compare` asks what becomes of what passes through a relay: the end of a
// stream, a reset, a datagram's borders. It puts one trial after the other before
// direct, sockd and its peers and says who behaves as if nothing were between.
// `make compare` runs it; docs/comparison.md holds what it measured and how to read
// it. It measures no speed: that is the rest of this program.

// trialTimeout bounds one trial of one contestant, start and end of the relay
// included.
const trialTimeout = 30 * time.Second

// compareOptions are the flags of one comparison.
type compareOptions struct {
	selection
	doc string
}

func parseCompareFlags(args []string) (compareOptions, error) {
	var o compareOptions
	f := flag.NewFlagSet("bench compare", flag.ContinueOnError)
	o.register(f, onlyPeers)
	f.StringVar(&o.doc, "doc", "", "write the tables between the marks in this `FILE`")
	if err := parseAll(f, args); err != nil {
		return o, err
	}
	if o.doc != "" && !o.all() {
		return o, errors.New("-doc wants every row and every peer: leave out -row and -peer")
	}
	return o, nil
}

// compareMain is the program behind `bench compare`.
func compareMain(args []string) error {
	o, err := parseCompareFlags(args)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	c, err := compare(ctx, o, os.Stdout)
	if err != nil {
		return err
	}
	if o.doc == "" {
		return c.write(os.Stdout)
	}
	return rewriteDoc(o.doc, c)
}

// compare runs all trials and says on progress what came of each.
func compare(ctx context.Context, o compareOptions, progress io.Writer) (c *comparison, err error) {
	bin, err := filepath.Abs(o.bin)
	if err != nil {
		return nil, err
	}
	b, err := newRig()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, b.close()) }()

	c = &comparison{peers: chooseContestants(bin, o.peer)}
	for _, t := range allTrials() {
		if !o.row.MatchString(t.name) {
			continue
		}
		l := b.try(ctx, t, c.peers)
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		l.report(progress, c.peers)
		c.lines = append(c.lines, l)
	}
	if len(c.lines) == 0 {
		return nil, fmt.Errorf("-row %s matches no row", o.row)
	}
	return c, nil
}

// A finding is what a trial saw: word is compared, detail is shown only.
type finding struct{ word, detail string }

// A verdict is what one contestant made of one trial.
type verdict struct {
	finding
	cannot string // why the contestant has no such thing, or is not here
	failed error  // the trial itself went wrong
}

// A line is a trial with everybody's verdict, in the order of the contestants.
type line struct {
	trial
	verdicts []verdict
}

// good tells whether the i-th contestant did what direct did, or the best that
// something between can do. Direct comes first.
func (l line) good(i int) bool {
	v := l.verdicts[i]
	if v.cannot != "" || v.failed != nil {
		return false
	}
	first := l.verdicts[0]
	return l.best != "" && v.word == l.best || first.cannot == "" && first.failed == nil && v.word == first.word
}

// mark is a cell of the table.
func (l line) mark(i int) string {
	v := l.verdicts[i]
	switch {
	case v.cannot != "":
		return "— " + v.cannot
	case v.failed != nil:
		return "✗ failed: " + v.failed.Error()
	case i == 0:
		return v.word
	case l.good(i):
		return "✓"
	}
	return "✗ " + v.word
}

func (l line) report(w io.Writer, peers []contestant) {
	fmt.Fprintf(w, "%s: %s\n", l.name, l.title)
	for i, p := range peers {
		detail := l.verdicts[i].detail
		if detail != "" {
			detail = " (" + detail + ")"
		}
		fmt.Fprintf(w, "  %-11s %s%s\n", p.name, l.mark(i), detail)
	}
}

// try puts a trial before everybody.
func (b *rig) try(ctx context.Context, t trial, peers []contestant) line {
	l := line{trial: t}
	for _, p := range peers {
		v := verdict{cannot: p.missing()}
		if v.cannot == "" {
			v.cannot = p.can.lacks(t.wish)
		}
		if v.cannot == "" && ctx.Err() == nil {
			v.finding, v.failed = b.act(ctx, t, p)
		}
		l.verdicts = append(l.verdicts, v)
	}
	return l
}

// act is one trial of one contestant: in a folder of its own, with everything that
// was started ended before it returns.
func (b *rig) act(ctx context.Context, t trial, p contestant) (f finding, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, trialTimeout, fmt.Errorf("no outcome within %v", trialTimeout))
	defer cancel()
	b.count++
	dir := fmt.Sprintf("%s/%d", b.dir, b.count)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return finding{}, err
	}
	s := &stage{dir: dir, trial: t, peer: p}
	defer func() { err = errors.Join(err, s.end(), os.RemoveAll(dir)) }()
	return t.run(ctx, s)
}

///// the document

// The tables of docs/comparison.md stand between these lines.
const (
	docBegin = "<!-- written by make compare: begin -->\n"
	docEnd   = "<!-- written by make compare: end -->\n"
)

// A comparison is everything that was found.
type comparison struct {
	peers []contestant
	lines []line
}

// rewriteDoc puts the tables into a document, between its marks.
func rewriteDoc(file string, c *comparison) error {
	old, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	text, err := between(string(old), c)
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	return os.WriteFile(file, []byte(text), 0o644)
}

func between(text string, c *comparison) (string, error) {
	head, rest, ok := strings.Cut(text, docBegin)
	_, tail, ok2 := strings.Cut(rest, docEnd)
	if !ok || !ok2 {
		return "", fmt.Errorf("wants the lines %q and %q", strings.TrimSpace(docBegin), strings.TrimSpace(docEnd))
	}
	var b strings.Builder
	if err := c.write(&b); err != nil {
		return "", err
	}
	return head + docBegin + "\n" + b.String() + "\n" + docEnd + tail, nil
}

// write prints versions, the table, and what each row means, as Markdown.
func (c *comparison) write(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "Measured on %s.\n\n", machine())
	for _, p := range c.peers[1:] {
		fmt.Fprintf(&b, "- %s: %s\n", p.name, p.version)
	}
	b.WriteString("\n" + c.table() + "\n" + c.meanings())
	_, err := io.WriteString(w, b.String())
	return err
}

// table is a row a trial, a column a contestant.
func (c *comparison) table() string {
	head, rule := []string{"what is tried"}, []string{"---"}
	for _, p := range c.peers {
		head, rule = append(head, p.name), append(rule, "---")
	}
	rows := [][]string{head, rule}
	for _, l := range c.lines {
		cells := []string{l.title}
		for i := range l.verdicts {
			cells = append(cells, l.mark(i))
		}
		rows = append(rows, cells)
	}
	return markdown(rows)
}

// meanings says what a ✗ costs, and what was seen besides the word.
func (c *comparison) meanings() string {
	rows := [][]string{{"row", "what a ✗ means", "seen"}, {"---", "---", "---"}}
	for _, l := range c.lines {
		var seen []string
		for i, v := range l.verdicts {
			if v.detail != "" {
				seen = append(seen, c.peers[i].name+": "+v.detail)
			}
		}
		rows = append(rows, []string{l.title, l.means, strings.Join(seen, "; ")})
	}
	return markdown(rows)
}

func markdown(rows [][]string) string {
	var b strings.Builder
	for _, cells := range rows {
		for _, cell := range cells {
			b.WriteString("| " + strings.NewReplacer("|", `\|`, "\n", " ").Replace(cell) + " ")
		}
		b.WriteString("|\n")
	}
	return b.String()
}

// machine says on what it was measured: a kernel behaves, and not only a program.
func machine() string {
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return "an unknown kernel"
	}
	return "Linux " + regexp.MustCompile(`^[0-9.]*[0-9]`).FindString(string(release))
}
