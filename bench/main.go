// Command bench puts sockd beside its peers (socat, systemd-socket-proxyd, haproxy,
// nginx) and beside no relay at all, on this machine, and prints what each costs.
// `make bench` runs it for whoever works on the relay engine or doubts a number in
// docs/performance.md, which tells how to read the output. It is no load tester for
// other programs: all load stays on loopback and on unix sockets in a folder of its
// own, is bounded in count and time, and ends with the process.
//
// A measurement is one sample of one row and one peer: a fresh sink, a fresh peer
// before it, a fresh source. Sink and source are this program run again, so that
// their CPU time is told apart from the relay's. Samples of a row are taken in rounds
// in which every peer has its turn, in an order that rotates; what is printed is the
// median over the rounds.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"syscall"
	"time"
)

func main() {
	if done, err := runRole(os.Args[1:]); done {
		exit("bench "+os.Args[1], err)
	}
	o, err := parseFlags(os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err = run(ctx, o)
	interrupted := ctx.Err() != nil
	stop()
	if interrupted {
		fmt.Fprintln(os.Stderr, "bench: interrupted; every program it started has ended")
		os.Exit(130)
	}
	exit("bench", err)
}

func exit(name string, err error) {
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// runRole runs this process as source, sink, or one of the other benches when args
// say so.
func runRole(args []string) (done bool, err error) {
	if len(args) == 0 {
		return false, nil
	}
	switch args[0] {
	case "source":
		return true, source(os.Stdin, os.Stdout)
	case "sink":
		if len(args) != 2 {
			return true, errors.New("the sink needs its folder")
		}
		return true, sink(args[1], os.Stdin, os.Stdout)
	case "compare":
		return true, compareMain(args[1:])
	case "capture":
		return true, captureMain(args[1:])
	}
	return false, nil
}

// options are the flags of one run that measures.
type options struct {
	selection
	json   string
	rounds int
	quick  bool
}

// selection are the flags of every run: what is measured, of which programs.
type selection struct {
	bin  string
	row  *regexp.Regexp
	peer *regexp.Regexp
}

// register adds the flags; peer is what -peer means.
func (s *selection) register(f *flag.FlagSet, peer string) {
	f.StringVar(&s.bin, "bin", "bin", "the folder with sockd and sockd-ctl")
	s.row, s.peer = regexp.MustCompile(""), regexp.MustCompile("")
	f.Func("row", "only rows whose name matches this `REGEXP`", pattern(&s.row))
	f.Func("peer", peer, pattern(&s.peer))
}

// all tells whether nothing is left out.
func (s *selection) all() bool { return s.row.String()+s.peer.String() == "" }

func pattern(to **regexp.Regexp) func(string) error {
	return func(text string) (err error) {
		r, err := regexp.Compile(text)
		if err == nil {
			*to = r
		}
		return err
	}
}

// parseAll parses flags, which are all that may be said.
func parseAll(f *flag.FlagSet, args []string) error {
	if err := f.Parse(args); err != nil {
		return err
	}
	if f.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", f.Arg(0))
	}
	return nil
}

func parseFlags(args []string) (options, error) {
	return readOptions("bench", flagWords{
		rounds: "rounds that count, after one that does not",
		quick:  "one short round and no warm-up: tells what is broken, not what is fast",
		peer:   onlyPeers,
	}, args)
}

const onlyPeers = "only peers whose name matches this `REGEXP` (direct always runs)"

// flagWords are what a run says of the flags that mean something else in each.
type flagWords struct{ rounds, quick, peer string }

// readOptions reads the flags of a run that measures.
func readOptions(name string, words flagWords, args []string) (options, error) {
	var o options
	f := flag.NewFlagSet(name, flag.ContinueOnError)
	o.register(f, words.peer)
	f.StringVar(&o.json, "json", "", "also write every number to this `FILE`")
	f.IntVar(&o.rounds, "rounds", 5, words.rounds)
	f.BoolVar(&o.quick, "quick", false, words.quick)
	if err := parseAll(f, args); err != nil {
		return o, err
	}
	if o.rounds < 1 || o.rounds > 100 {
		return o, fmt.Errorf("-rounds %d: want 1 to 100", o.rounds)
	}
	return o, nil
}

// run takes all samples and prints a table for each row as soon as it is complete.
func run(ctx context.Context, o options) (err error) {
	rows := chooseRows(o.quick, o.row)
	if len(rows) == 0 {
		return fmt.Errorf("-row %s matches none of: %s", o.row, rowNames())
	}
	bin, err := filepath.Abs(o.bin)
	if err != nil {
		return err
	}
	b, err := newRig()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.close()) }()

	peers := choosePeers(bin, o.peer)
	rep := newReport(o, peers)
	rep.printHead(os.Stdout)
	for _, r := range rows {
		load := loadAverage()
		res := b.measure(ctx, r, peers, rounds(o))
		if ctx.Err() != nil {
			return ctx.Err()
		}
		rep.add(r, load, res)
		rep.printRow(os.Stdout, len(rep.Rows)-1)
	}
	rep.finish()
	rep.printEnd(os.Stdout)
	if o.json == "" {
		return nil
	}
	return writeJSON(o.json, rep)
}

// rounds is how many rounds are taken and how many of them, from the first on, are
// thrown away as warm-up.
func rounds(o options) plan {
	if o.quick {
		return plan{rounds: 1}
	}
	return plan{rounds: o.rounds + 1, warm: 1}
}

func writeJSON(file string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(b, '\n'), 0o644)
}

// now is the time in nanoseconds that source and sink, on one machine, share.
func now() int64 { return time.Now().UnixNano() }
