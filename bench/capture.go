package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"syscall"
	"time"
)

// `bench capture` puts sockd's captures beside tcpdump, dumpcap and netsniff-ng, and
// its injection beside trafgen: what a tap costs the sender, what one capture costs,
// what reaches the disk, and whether every packet is there or counted. `make
// bench-capture` runs it; docs/performance.md tells how to read the output.
//
// It needs root. All traffic stays on a veth pair between two network namespaces that
// it makes itself; they have no names, so they end with the bench whatever ends it.

func parseCaptureFlags(args []string) (options, error) {
	return readOptions("bench capture", flagWords{
		rounds: "rounds of the rows that measure speed",
		quick:  "one short round: tells what is broken, not what is fast",
		peer:   "only programs whose name matches this `REGEXP` (sockd always runs)",
	}, args)
}

// captureMain is the program behind `bench capture`.
func captureMain(args []string) error {
	o, err := parseCaptureFlags(args)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return runCapture(ctx, o, os.Stdout)
}

// A captureRow is one table: name is for -row.
type captureRow struct {
	name, title string
	measure     func(ctx context.Context, b *captureBench) (*captureTable, error)
}

func captureRows() []captureRow {
	return []captureRow{
		{"taps", "what N captures of one interface cost its sender, 64 B", measureTaps},
		{"full", "one capture to a file, 64 B as fast as they come", measureFull},
		{"disk", "one capture to the disk, 300,000 packets/s of 1400 B", measureDisk},
		{"inject", "frames of 64 B into an interface, from one CPU", measureInject},
		{"sets", "eight filters at once: every packet of a private tcpdump, and no other", measureSets},
		{"stalls", "sent = received + counted loss, whatever stands still", measureStalls},
		{"rotate", "rotation by size, time, count and total at once", measureRotate},
	}
}

func chooseCaptureRows(match *regexp.Regexp) []captureRow {
	return slices.DeleteFunc(captureRows(), func(r captureRow) bool { return !match.MatchString(r.name) })
}

// runCapture measures the rows and prints the table of each as soon as it is complete.
func runCapture(ctx context.Context, o options, out io.Writer) (err error) {
	rows := chooseCaptureRows(o.row)
	if len(rows) == 0 {
		return fmt.Errorf("-row %s matches no row", o.row)
	}
	b, err := newCaptureBench(ctx, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.close()) }()

	rep := newCaptureReport(b)
	rep.printHead(out)
	for _, r := range rows {
		t, err := r.measure(ctx, b)
		if ctx.Err() != nil {
			return fmt.Errorf("%w; everything it started has ended", context.Cause(ctx))
		}
		if err != nil {
			return fmt.Errorf("%s: %w", r.name, err)
		}
		t.Name, t.Title = r.name, r.title
		rep.Rows = append(rep.Rows, t)
		t.print(out)
	}
	rep.finish(out)
	if o.json == "" {
		return nil
	}
	return writeJSON(o.json, rep)
}

// A captureBench is where rows are measured: two joined namespaces, and folders for
// the files.
type captureBench struct {
	options
	self    string // this program, to run as the sender
	net     *world
	ram     string // a folder in memory, for files whose medium is not what is measured
	disk    string // a folder on a disk
	control string // a folder for control sockets and configurations
	count   int    // of samples so far, to name their folders
}

func newCaptureBench(ctx context.Context, o options) (b *captureBench, err error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("want root, to make network namespaces and capture in them: sudo make bench-capture")
	}
	if o.bin, err = filepath.Abs(o.bin); err != nil {
		return nil, err
	}
	b = &captureBench{options: o}
	if b.self, err = os.Executable(); err != nil {
		return nil, err
	}
	if err := adoptOrphans(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.close())
		}
	}()
	if err := b.makeFolders(); err != nil {
		return nil, err
	}
	b.net, err = newWorld(ctx)
	return b, err
}

func (b *captureBench) makeFolders() (err error) {
	disk := os.Getenv("TMPDIR")
	if disk == "" {
		disk = "." // in many systems /tmp is memory
	}
	if disk, err = filepath.Abs(disk); err != nil {
		return err
	}
	for _, f := range []struct {
		at *string
		in string
	}{{&b.ram, "/dev/shm"}, {&b.disk, disk}, {&b.control, os.TempDir()}} {
		if *f.at, err = os.MkdirTemp(f.in, "sockd-bench"); err != nil {
			return err
		}
	}
	return nil
}

func (b *captureBench) close() error {
	var errs []error
	if b.net != nil {
		errs = append(errs, b.net.close())
	}
	for _, dir := range []string{b.ram, b.disk, b.control} {
		if dir != "" {
			errs = append(errs, os.RemoveAll(dir))
		}
	}
	return errors.Join(errs...)
}

// plan is how often a row of speed is measured.
func (b *captureBench) plan() plan {
	if b.quick {
		return plan{rounds: 1}
	}
	return plan{rounds: b.options.rounds}
}

// folder is a new empty folder in a place.
func (b *captureBench) folder(in string) (string, error) {
	b.count++
	dir := fmt.Sprintf("%s/%d", in, b.count)
	return dir, os.Mkdir(dir, 0o700)
}

// inFolder takes a sample with a folder of its own in a place, bounded in time. The
// folder is gone afterwards, and the disks are at rest, so that the next sample does
// not begin among the writes of this one.
func inFolder[T any](ctx context.Context, b *captureBench, in string, take func(ctx context.Context, dir string) (T, error)) (out T, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, sampleTimeout, fmt.Errorf("no result within %v", sampleTimeout))
	defer cancel()
	dir, err := b.folder(in)
	if err != nil {
		return out, err
	}
	defer func() {
		err = errors.Join(err, os.RemoveAll(dir))
		syscall.Sync()
	}()
	return take(ctx, dir)
}

// long is a duration or count of the real run, a part of it if -quick.
func long[T time.Duration | int64](b *captureBench, full, quick T) T {
	if b.quick {
		return quick
	}
	return full
}

// freeBytes is what a folder's file system has left for the caller.
func freeBytes(dir string) (int64, error) {
	var s syscall.Statfs_t
	if err := syscall.Statfs(dir, &s); err != nil {
		return 0, fmt.Errorf("statfs %s: %w", dir, err)
	}
	return int64(s.Bavail) * int64(s.Bsize), nil
}

// roomFor says early that there is nowhere to write.
func roomFor(dir string, bytes int64) error {
	free, err := freeBytes(dir)
	if err != nil {
		return err
	}
	if free < bytes {
		return fmt.Errorf("%s has %d MiB free; this takes %d MiB", dir, free>>20, bytes>>20)
	}
	return nil
}

// inMemory tells whether a folder's files are in memory: tmpfs or ramfs.
func inMemory(dir string) bool {
	var s syscall.Statfs_t
	err := syscall.Statfs(dir, &s)
	return err == nil && (uint32(s.Type) == 0x01021994 || uint32(s.Type) == 0x858458f6) // linux/magic.h
}

// captureCPU is where the sender stays, the last processor; everybody else goes where
// the scheduler puts him. A sender that wanders made the rates of two rounds differ
// by a third.
func captureCPU() int { return runtime.NumCPU() - 1 }
