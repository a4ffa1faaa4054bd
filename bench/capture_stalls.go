package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"
)

// The counts of a stall, over all its captures. Arrived is by the interface's own
// counter; times the number of captures it is what each should account for.
var (
	stallSent       = column{key: "sent", head: "sent", digits: 0}
	stallWritten    = column{key: "in_file", head: "in file", digits: 0}
	stallKernel     = column{key: "dropped_kernel", head: "kernel", digits: 0}
	stallDaemon     = column{key: "dropped_daemon", head: "daemon", digits: 0}
	stallSubscriber = column{key: "dropped_subscriber", head: "subscriber", digits: 0}
	stallUnwritten  = column{key: "not_in_dropcounts", head: "no dropcount", digits: 0}
	stallDifference = column{key: "difference", head: "difference", digits: 0}
	stallMisplaced  = column{key: "misplaced", head: "misplaced", digits: 0}
	stallListed     = column{key: "listed", head: "ls differs", digits: 0}
)

// A stall is a way to make sockd lose packets: who is stopped while frames pass.
type stall struct {
	who string
	// files and piped are how many captures write to a file, and how many with -w - to
	// a pipe that nobody reads meanwhile. It takes both: what writes a file does not
	// wait for sockd-ctl.
	files, piped int
	during       int64 // frames meanwhile
	// stopped are the processes that stand still meanwhile. The captures of pipes are
	// the last ones.
	stopped func(c *captures) []*child
	cause   string // the count that must have moved, or nothing was forced
}

const (
	stallFrame = 1400
	stallRate  = 50_000
	stallApart = 5_000 // frames before and after
)

func stalls(quick bool) []stall {
	daemon := func(c *captures) []*child { return []*child{c.daemon} }
	last := func(c *captures) []*child { return c.procs[len(c.procs)-1:] }
	nobody := func(*captures) []*child { return nil }
	out := []stall{
		{"daemon stopped", 1, 0, 100_000, daemon, stallKernel.key},
		{"1 pipe not read", 1, 1, 40_000, nobody, stallSubscriber.key},
		{"1 client stopped", 1, 1, 40_000, last, stallSubscriber.key},
		// All queues together are bounded below what so many may have alone.
		{"24 not read", 0, 24, 20_000, nobody, stallDaemon.key},
	}
	if quick {
		return out[:2]
	}
	return out
}

// measureStalls forces each loss and adds up.
func measureStalls(ctx context.Context, b *captureBench) (*captureTable, error) {
	if err := roomFor(b.ram, 2<<30); err != nil {
		return nil, err
	}
	var contests []contest
	for _, s := range stalls(b.quick) {
		contests = append(contests, contest{who: s.who, sample: b.inRAM(func(ctx context.Context, dir string) (sample, error) { return b.measureStall(ctx, dir, s) })})
	}
	contests = append(contests, contest{who: "tcpdump stopped", whyNot: b.found(tcpdump(theirs)), sample: b.inRAM(b.measureTcpdumpStall)})
	t := compete(ctx, plan{rounds: 1}, contests)
	for _, s := range stalls(b.quick) {
		l := t.line(s.who)
		t.atMost(l, stallDifference.key, 0, s.who+": sent - in file - counted")
		t.atMost(l, stallUnwritten.key, 0, s.who+": counted losses that no packet's dropcount tells")
		if s.cause != stallKernel.key {
			t.atMost(l, stallMisplaced.key, 0, s.who+": gaps whose dropcount is not their size")
		}
		t.atMost(l, stallListed.key, 0, s.who+": what ls and the file count differently")
		t.atLeast(l, s.cause, 1, s.who+": "+s.cause)
	}
	t.Notes = append(t.Notes, "misplaced: of losses in the ring the kernel tells the sum only, when it is asked, and now and then it loses one packet between two blocks")
	return t.finish(stallSent, stallWritten, stallKernel, stallDaemon, stallSubscriber, stallDifference, stallUnwritten, stallMisplaced, stallListed), nil
}

// inRAM is a sample with a folder in memory.
func (b *captureBench) inRAM(take func(ctx context.Context, dir string) (sample, error)) func(ctx context.Context) (sample, error) {
	return func(ctx context.Context) (sample, error) { return inFolder(ctx, b, b.ram, take) }
}

// measureStall is one stall of sockd.
func (b *captureBench) measureStall(ctx context.Context, dir string, st stall) (s sample, err error) {
	pipes, err := newPipes(dir, st.piped)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, pipes.close()) }()
	c, err := b.startStalled(ctx, st, dir, pipes)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, c.end()) }()
	passed, err := b.net.passed(func() error { return b.forceStall(ctx, c, st, pipes) })
	if err != nil {
		return nil, err
	}
	listed, err := b.listed(ctx, c.control)
	if err != nil {
		return nil, err
	}
	if err := c.stop(ctx); err != nil {
		return nil, err
	}
	if err := pipes.wait(); err != nil {
		return nil, err
	}
	return sumUp(passed, c.files, listed)
}

// startStalled starts the captures, those that write into pipes last.
func (b *captureBench) startStalled(ctx context.Context, st stall, dir string, pipes pipes) (*captures, error) {
	c, err := b.prepareCaptures(ctx, b.sockd(""))
	if err != nil {
		return nil, err
	}
	for i := range st.files {
		err = errors.Join(err, c.add(b.net, fmt.Sprintf("%s/%d.pcapng", dir, i), ""))
	}
	for _, p := range pipes {
		c.files = append(c.files, p.file)
		line := append([]string{"-c", `exec "$@" >"$0"`, p.path}, c.program.command("-", "")...)
		err = errors.Join(err, c.start(inside(b.net.far, "sh", line...)))
	}
	if err == nil {
		err = c.awaitReady(ctx, b)
	}
	if err != nil {
		return nil, errors.Join(err, c.end())
	}
	return c, nil
}

// forceStall sends frames, then more while somebody stands still, then, when all have
// caught up, the last ones.
func (b *captureBench) forceStall(ctx context.Context, c *captures, st stall, pipes pipes) error {
	if err := b.sendPart(ctx, 0, stallApart); err != nil {
		return err
	}
	if err := c.settle(ctx); err != nil {
		return err
	}
	if err := whileStopped(st.stopped(c), func() error { return b.sendPart(ctx, stallApart, st.during) }); err != nil {
		return err
	}
	pipes.read()
	if err := c.settle(ctx); err != nil {
		return err
	}
	if err := b.sendPart(ctx, stallApart+st.during, stallApart); err != nil {
		return err
	}
	return c.settle(ctx)
}

func (b *captureBench) sendPart(ctx context.Context, first, n int64) error {
	_, err := b.send(ctx, frameLoad{size: stallFrame, count: n, rate: stallRate}.job(first))
	return err
}

// whileStopped calls f while processes are stopped by SIGSTOP.
func whileStopped(procs []*child, f func() error) error {
	var errs []error
	for _, p := range procs {
		errs = append(errs, syscall.Kill(p.pid(), syscall.SIGSTOP))
	}
	errs = append(errs, f())
	for _, p := range procs {
		errs = append(errs, syscall.Kill(p.pid(), syscall.SIGCONT))
	}
	return errors.Join(errs...)
}

// listed are the losses that ls tells of all captures together.
func (b *captureBench) listed(ctx context.Context, control string) (losses, error) {
	out, err := b.ctl(ctx, control, "ls", "captures", "--json")
	if err != nil {
		return losses{}, err
	}
	return parseListed([]byte(out))
}

func parseListed(out []byte) (l losses, err error) {
	all, err := parseCaptures(out)
	for _, c := range all {
		l = l.plus(losses{c.Kernel, c.Daemon, c.Subscriber})
	}
	return l, err
}

// A listedCapture is what the bench wants of a capture in ls captures --json.
type listedCapture struct {
	Kernel     int64 `json:"dropped_kernel"`
	Daemon     int64 `json:"dropped_daemon"`
	Subscriber int64 `json:"dropped_subscriber"`
}

func parseCaptures(out []byte) (all []listedCapture, err error) {
	if err := json.Unmarshal(out, &all); err != nil {
		return nil, fmt.Errorf("ls captures --json: %w", err)
	}
	return all, nil
}

// sumUp reads the files of captures that should each account for so many packets.
func sumUp(passed int64, files []string, listed losses) (sample, error) {
	s := sample{stallSent.key: float64(passed * int64(len(files)))}
	var all losses
	for _, file := range files {
		f, err := readCapture(file)
		if err != nil {
			return nil, err
		}
		// Each is added by its size: one too many here is no cure for one too few there.
		s[stallDifference.key] += abs(passed - int64(len(f.numbers)) - f.losses.sum())
		s[stallWritten.key] += float64(len(f.numbers))
		s[stallUnwritten.key] += abs(f.losses.sum() - f.dropped)
		s[stallMisplaced.key] += float64(f.misplaced)
		all = all.plus(f.losses)
	}
	s[stallKernel.key], s[stallDaemon.key], s[stallSubscriber.key] = float64(all.kernel), float64(all.daemon), float64(all.subscriber)
	s[stallListed.key] = abs(all.kernel-listed.kernel) + abs(all.daemon-listed.daemon) + abs(all.subscriber-listed.subscriber)
	return s, nil
}

func abs(n int64) float64 { return float64(max(n, -n)) }

// measureTcpdumpStall is the first stall with tcpdump in the daemon's place, for
// comparison: it has one count and no place for it in the file.
func (b *captureBench) measureTcpdumpStall(ctx context.Context, dir string) (s sample, err error) {
	c, err := b.startCaptures(ctx, tcpdump(theirs), dir, "")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, c.end()) }()
	all := stall{during: stalls(true)[0].during, stopped: func(c *captures) []*child { return c.procs }}
	passed, err := b.net.passed(func() error { return b.forceStall(ctx, c, all, nil) })
	if err != nil {
		return nil, err
	}
	tallies, _, err := c.finish(ctx)
	if err != nil {
		return nil, err
	}
	f, err := readCapture(c.files[0])
	if err != nil {
		return nil, err
	}
	written, kernel := int64(len(f.numbers)), tallies[0].kernel
	return sample{
		stallSent.key: float64(passed), stallWritten.key: float64(written), stallKernel.key: float64(kernel),
		stallDifference.key: abs(passed - written - kernel),
	}, nil
}

///// pipes that are not read

// A pipe is a named one whose reader waits until read, and then writes what comes
// into a file.
type pipe struct {
	path, file string
	in         *os.File
	done       chan error // nil until read; closed when the writer has ended and all is in the file
}

type pipes []*pipe

func newPipes(dir string, n int) (all pipes, err error) {
	for i := range n {
		p, err := newPipe(fmt.Sprintf("%s/pipe%d", dir, i))
		if err != nil {
			return nil, errors.Join(err, all.close())
		}
		all = append(all, p)
	}
	return all, nil
}

// newPipe opens the reading side, so that a writer does not wait for it.
func newPipe(path string) (*pipe, error) {
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		return nil, fmt.Errorf("mkfifo %s: %w", path, err)
	}
	in, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	return &pipe{path: path, file: path + ".pcapng", in: in}, nil
}

// read lets the readers go.
func (all pipes) read() {
	for _, p := range all {
		p.done = make(chan error, 1)
		go p.copy()
	}
}

func (p *pipe) copy() {
	defer close(p.done)
	out, err := os.Create(p.file)
	if err == nil {
		_, err = io.Copy(out, p.in)
		err = errors.Join(err, out.Close())
	}
	p.done <- err
}

// wait waits until the writers have ended and all is in the files.
func (all pipes) wait() error {
	var errs []error
	for _, p := range all {
		errs = append(errs, <-p.done)
	}
	return errors.Join(errs...)
}

// close ends the readers that still read.
func (all pipes) close() error {
	var errs []error
	for _, p := range all {
		_ = p.in.SetReadDeadline(time.Now()) // a pipe has deadlines
		if p.done != nil {
			<-p.done
		}
		errs = append(errs, p.in.Close())
	}
	return errors.Join(errs...)
}
