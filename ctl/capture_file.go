package ctl

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/sockd/sockd/families/model"
	"github.com/sockd/sockd/families/packet/files"
)

// fileFlags are the flags of capture that say how its files are.
type fileFlags struct {
	size     int64
	every    time.Duration
	count    int64
	maxBytes int64
	pcap     bool
	comment  string
}

func (f *fileFlags) register(fs *flag.FlagSet) {
	fs.Func("C", "a new file before one is longer than `SIZE`; bare: millions of bytes", millionsFlag(&f.size))
	fs.Func("G", "a new file at each multiple of `SECONDS`, by the clock on the wall", secondsFlag(&f.every))
	fs.Func("W", "with -C keep the last `COUNT` files, with -G alone end after so many", countFlag(&f.count, 1, 1<<31-1))
	fs.Func("max-bytes", "delete the oldest files so that all together stay within `SIZE`", sizeFlag(&f.maxBytes))
	fs.BoolVar(&f.pcap, "pcap", false, "write the older pcap format, with nanoseconds")
	fs.StringVar(&f.comment, "comment", "", "write `TEXT` into the file")
}

// millionsFlag reads -C: a bare number is millions, as in tcpdump.
func millionsFlag(to *int64) func(string) error {
	return func(s string) error {
		if n, err := strconv.ParseInt(s, 10, 64); err == nil && n > 0 && n < 1<<43 {
			*to = n * 1_000_000
			return nil
		}
		if err := sizeFlag(to)(s); err != nil {
			return err
		}
		if *to < model.MinFileSize {
			return fmt.Errorf("want at least %s", model.FormatSize(model.MinFileSize))
		}
		return nil
	}
}

// secondsFlag reads -G: whole seconds.
func secondsFlag(to *time.Duration) func(string) error {
	return func(s string) error {
		d, err := model.ParseDuration(s)
		if err == nil && (d < time.Second || d%time.Second != 0) {
			err = errors.New("want whole seconds, at least one")
		}
		*to = d
		return err
	}
}

// rotates tells whether there are several files.
func (f *fileFlags) rotates() bool { return f.size > 0 || f.every > 0 || f.maxBytes > 0 }

// ring tells whether -W is how many files stay, and not after how many the capture ends.
func (f *fileFlags) ring() bool { return f.size > 0 || f.maxBytes > 0 }

// openAtOnce is how many files can be open while others of --max-bytes are complete: the
// one that is written, and the one that comes next.
const openAtOnce = 2

// check finds flags that do not go together; write is what -w says.
func (f *fileFlags) check(write string) error {
	usage := func(why, hint string) error { return &UsageError{Verb: "capture", Why: why, Hint: hint} }
	cut := f.rotates() || f.count > 0
	switch {
	case write == "" && (cut || f.pcap || f.comment != ""):
		return usage("-C, -G, -W, --max-bytes, --pcap and --comment are for files", "sockd-ctl capture ... -w FILE")
	case cut && !isFile(write):
		return usage("-w "+write+": several files need a file's name", "sockd-ctl capture ... -w FILE")
	case f.count > 0 && !f.rotates():
		return usage("-W: when does a file end?", "-C SIZE or -G SECONDS")
	case f.pcap && f.comment != "":
		return usage("--comment: a pcap file has none", "without --pcap")
	case f.maxBytes > 0 && f.maxBytes/(openAtOnce+1) < max(f.size, model.MinFileSize):
		return usage(fmt.Sprintf("--max-bytes: want at least %d times -C: two files are open while others are there", openAtOnce+1), "")
	}
	if f.rotates() {
		_, err := files.NewPattern(write, 0)
		return err
	}
	return nil
}

// isFile tells whether the daemon can write to what -w says: a file, or one to come.
func isFile(write string) bool {
	if write == "" || write == "-" {
		return false
	}
	st, err := os.Stat(write)
	return err != nil || st.Mode().IsRegular()
}

// parameters are those of a Write.
func (f *fileFlags) parameters(in captureIn, now time.Time) writeIn {
	out := writeIn{captureIn: in}
	size := f.size
	if f.maxBytes > 0 && size == 0 {
		size = max(f.maxBytes/8, model.MinFileSize) // most of it is complete files
	}
	if size > 0 {
		out.Size = &size
	}
	if f.every > 0 {
		ns := int64(f.every)
		out.Every = &ns
		for _, z := range files.Zones(now, time.Local) {
			out.Zones = append(out.Zones, model.Zone(z))
		}
	}
	if f.count > 0 && !f.ring() {
		out.Files = &f.count
	}
	return out
}

// fileCapture is a capture to files as sockd-ctl sees to it.
type fileCapture struct {
	e    *Env
	path string // of -w
	note func(string)
	in   writeIn
	fds  []int
	main *Client // for Write
	side *Client // for Supply and Close, meanwhile

	pattern *files.Pattern // nil: one file
	keep    files.Keep

	begun  chan struct{} // closed by the daemon's first answer
	need   chan struct{} // one more file is to be opened
	whole  chan complete // files to be named
	cancel context.CancelFunc

	mu      sync.Mutex // guards what follows
	capture model.Capture
	started bool
	ended   bool
	parts   []*os.File // those that are not complete, in order
	number  int        // of the file that was opened last
	failed  error      // what sockd-ctl could not do

	missing *missingError // of files; run's
}

// complete is a file that is to be named.
type complete struct {
	*os.File
	report model.FileReport
}

// maxUnnamed bounds the files that wait to be on the disk and named. When there are more,
// the next is not opened, and the daemon waits, and counts what it loses by that.
const maxUnnamed = 64

// writeFiles captures to files. The first is opened after the daemon has agreed: a
// capture that is refused leaves an older file alone.
func (f *captureFlags) writeFiles(ctx context.Context, e *Env, in captureIn) error {
	c := &fileCapture{e: e, path: f.write, note: f.noter(e), in: f.file.parameters(in, time.Now()), begun: make(chan struct{}), need: make(chan struct{}, maxSupply), whole: make(chan complete, maxUnnamed)}
	if f.file.rotates() {
		c.rotate(&f.file)
	}
	var err error
	if c.fds, err = c.in.openNamespace(f.netns); err != nil {
		return err
	}
	defer closeAll(c.fds)
	if err := c.dial(ctx); err != nil {
		return err
	}
	defer c.main.Close()
	defer c.side.Close()
	begin, ctx, cancel := e.running(ctx)
	defer cancel()
	err = c.run(begin, ctx)
	if c.started && c.ended {
		(&captureRun{e: e, flags: f, capture: c.capture, packets: c.capture.Delivered, ended: true}).summary()
		if e.JSON {
			err = errors.Join(err, e.printJSON(c.capture))
		}
	}
	switch {
	case err != nil:
		return err
	case c.missing != nil:
		return c.missing
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return fmt.Errorf("capture %s: %w", c.capture.Source, ctx.Err())
	}
	return nil
}

// rotate prepares names and bounds.
func (c *fileCapture) rotate(f *fileFlags) {
	ring := 0
	if f.ring() {
		ring = int(f.count)
		c.keep.Count = ring
	}
	c.pattern, _ = files.NewPattern(c.path, ring) // check has tried
	if f.maxBytes > 0 {
		c.keep.Bytes = f.maxBytes - openAtOnce**c.in.Size
	}
}

func (c *fileCapture) dial(ctx context.Context) (err error) {
	if c.main, err = c.e.Dial(ctx); err != nil {
		return err
	}
	if c.side, err = c.e.Dial(ctx); err != nil {
		return errors.Join(err, c.main.Close())
	}
	return nil
}

// run captures until the daemon has answered for the last time. begin is how long its
// first answer may take, ctx is the end of the capture.
func (c *fileCapture) run(begin, ctx context.Context) error {
	call, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	c.cancel = cancel
	var helpers sync.WaitGroup
	helpers.Go(func() { c.supply(call) })
	helpers.Go(c.name)
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() { defer close(stopped); c.stop(begin, call) })
	err := c.main.More(call, writeMethod, c.in, c.reply, c.fds...)
	if !stop() {
		<-stopped
	}
	ours := call.Err() != nil
	cancel() // the supplier has nobody any more
	close(c.need)
	close(c.whole)
	helpers.Wait()
	c.tidy()
	switch {
	case c.failed != nil && (err == nil || ours && ctx.Err() == nil):
		return c.failed // which is why it was ended, if it was
	case err != nil && !c.started && ctx.Err() != nil:
		return context.Cause(ctx)
	}
	return err
}

// stop asks for the end, of what has begun. When the daemon does not hear it the connection is closed,
// which ends the capture, too.
func (c *fileCapture) stop(begin, ctx context.Context) {
	select {
	case <-c.begun:
	case <-begin.Done(): // in most cases it has
	case <-ctx.Done():
	}
	c.mu.Lock()
	id, started := c.capture.ID, c.started
	c.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	if !started || c.side.Call(ctx, "io.sockd.Manager.Close", closeIn{Refs: []string{idText(id)}}, nil) != nil {
		c.cancel()
	}
}

// reply takes one reply.
func (c *fileCapture) reply(raw json.RawMessage) error {
	var out writeOut
	if err := json.Unmarshal(raw, &out); err != nil {
		return fmt.Errorf("capture: answer %s: %w", raw, err)
	}
	if out.Capture != nil {
		c.view(*out.Capture)
	}
	if out.File != nil {
		c.file(*out.File)
	}
	if out.Note != nil {
		c.note(*out.Note)
	}
	return nil
}

// view takes the capture, the first time at its beginning.
func (c *fileCapture) view(v model.Capture) {
	c.mu.Lock()
	first := !c.started
	c.capture, c.started, c.ended = v, true, !first
	c.mu.Unlock()
	if !first {
		return
	}
	snaplen := orZero(c.in.Snaplen)
	if snaplen == 0 {
		snaplen = maxSnaplen
	}
	c.e.say("capturing on %s, snapshot length %d bytes", cell(v.Source), snaplen)
	close(c.begun)
	c.need <- struct{}{}
	if c.pattern != nil {
		c.need <- struct{}{} // the one ahead
	}
}

// file takes what the daemon says of a file.
func (c *fileCapture) file(r fileOut) {
	if r.Reason == "error" {
		c.e.say("%s: packets are lost until it can be written: %s", cell(c.path), r.Error)
		return
	}
	c.mu.Lock()
	if len(c.parts) == 0 {
		c.mu.Unlock()
		return // of a file that was never supplied
	}
	part := c.parts[0]
	c.parts = c.parts[1:]
	c.mu.Unlock()
	c.unwritten(r)
	c.whole <- complete{part, r.FileReport}
	if c.pattern != nil {
		select {
		case c.need <- struct{}{}:
		default: // two wait to be opened already
		}
	}
}

// unwritten takes down what a file should have and has not, for the exit code.
func (c *fileCapture) unwritten(r fileOut) {
	errno, known := errnoNamed(orZero(r.Errno))
	if !known || r.Lost == 0 && r.Bytes > 0 {
		return // nothing was lost in the end, or by the file's format
	}
	if c.missing == nil {
		c.missing = &missingError{path: c.path, errno: errno}
	}
	c.missing.lost += r.Lost
}

// missingError is the error of a capture whose files could not take all packets.
type missingError struct {
	path  string
	lost  int64
	errno syscall.Errno // of the first such file
}

func (m *missingError) Error() string {
	return fmt.Sprintf("capture to %s: %s lost: %v", visible(m.path), packets(m.lost), m.errno)
}

func (m *missingError) Unwrap() error { return m.errno }

// supply opens files and hands them over, until the capture has ended. Where the first
// cannot be opened it ends. A later one is tried again: the capture goes on meanwhile, and
// the daemon counts what it loses.
func (c *fileCapture) supply(ctx context.Context) {
	supplied := false
	for range c.need {
		for told := false; ctx.Err() == nil; told = true {
			err := c.supplyOne(ctx)
			if err == nil || ctx.Err() != nil {
				supplied = supplied || err == nil
				break
			}
			if c.pattern == nil || !supplied {
				c.fail(err)
				c.cancel() // there is no other file, or none can be made here
				return
			}
			if !told {
				c.e.say("sockd-ctl: %v: trying again", err)
			}
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
		}
	}
}

func (c *fileCapture) supplyOne(ctx context.Context) error {
	f, err := c.open()
	if err != nil {
		return fmt.Errorf("capture: %w", err)
	}
	c.mu.Lock()
	id := c.capture.ID
	c.parts = append(c.parts, f) // before the daemon can say anything of it
	c.mu.Unlock()
	if err := c.hand(ctx, id, f); err != nil {
		if c.pattern != nil && c.drop(f) {
			_ = os.Remove(f.Name()) // it is empty
		}
		return err
	}
	return nil
}

// hand hands a file over; it stays open here.
func (c *fileCapture) hand(ctx context.Context, id model.ID, f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var called error
	err = raw.Control(func(fd uintptr) { called = c.side.Call(ctx, supplyMethod, supplyIn{ID: id}, nil, int(fd)) })
	return errors.Join(err, called)
}

// drop forgets a file that the daemon did not take.
func (c *fileCapture) drop(f *os.File) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if n := len(c.parts); n == 0 || c.parts[n-1] != f {
		return false
	}
	c.parts = c.parts[:len(c.parts)-1]
	_ = f.Close() // nothing was written
	return true
}

// maxParts bounds the files of captures that were killed that are passed over.
const maxParts = 1 << 20

// open opens the next file: FILE itself, which it empties as tcpdump does, or one that
// is hidden beside it until it is complete.
func (c *fileCapture) open() (*os.File, error) {
	if c.pattern == nil {
		return createFile(c.path)
	}
	for {
		c.number++
		f, err := os.OpenFile(c.pattern.Part(c.number), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
		if !errors.Is(err, os.ErrExist) || c.number > maxParts {
			return f, err
		}
	}
}

// createFile makes or empties a file, as tcpdump does, but for a recorder's. It looks at what
// it has opened, and not at the name: that may be a link's, or another file's by then.
func createFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o666)
	if err != nil {
		return nil, err
	}
	if files.IsRecorders(f) {
		err = ofRecorder(path)
	} else {
		err = f.Truncate(0)
	}
	if err != nil {
		_ = f.Close() // nothing was written
		return nil, err
	}
	return f, nil
}

// name names files as they are complete, and deletes those that are too many.
func (c *fileCapture) name() {
	for f := range c.whole {
		if f.report.Bytes == 0 {
			c.try(discardFile(f.File))
			continue
		}
		if c.pattern == nil {
			c.try(f.Close())
			continue
		}
		// On the disk first: after a crash a name must not stand for half a file.
		err := f.Sync()
		if closeErr := f.Close(); err == nil {
			err = closeErr
		}
		c.try(err)
		to, err := c.place(f.Name(), f.report.Begun.Local())
		if err != nil {
			c.try(err)
			continue
		}
		for _, old := range c.keep.Add(to, f.report.Bytes) {
			c.remove(old)
		}
	}
}

// place gives a file that began at t its name. What has that name is replaced, as by
// tcpdump, but for a recorder's file, whose name is passed over.
func (c *fileCapture) place(part string, t time.Time) (name string, err error) {
	for tried := 1; ; tried++ {
		name = c.pattern.Next(t)
		err = files.RenameNew(part, name)
		switch {
		case !errors.Is(err, os.ErrExist):
			return name, err
		case !files.OfRecorder(name) || c.keep.Has(name):
			return name, os.Rename(part, name)
		case tried == c.keep.Count:
			return name, ofRecorder(name) // the whole ring
		}
	}
}

// discardFile deletes a file that the disk had no room for: an empty one is none that a
// reader takes. FILE may be another one's name by now.
func discardFile(f *os.File) error {
	own, err := f.Stat()
	_ = f.Close() // nothing was written
	if err != nil {
		return err
	}
	if there, err := os.Lstat(f.Name()); err != nil || !os.SameFile(own, there) {
		return nil
	}
	return os.Remove(f.Name())
}

// remove deletes a file of this capture. One that is gone has been deleted by somebody.
func (c *fileCapture) remove(name string) {
	if err := os.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
		c.try(err)
		return
	}
	c.pattern.Forget(name)
}

// try says what failed, and goes on.
func (c *fileCapture) try(err error) {
	if err != nil {
		c.e.say("sockd-ctl: capture: %v", err)
		c.fail(errUnfinished)
	}
}

// errUnfinished is the error of a capture that has gone on over one that was said.
var errUnfinished = errors.New("capture: not all files could be completed, named or deleted")

func (c *fileCapture) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.failed == nil {
		c.failed = err
	}
}

// tidy looks after files that are not complete: the one ahead is empty, and one that
// was written belongs to a daemon that is gone.
func (c *fileCapture) tidy() {
	for _, f := range c.parts {
		st, err := f.Stat()
		_ = f.Close() // the daemon wrote
		switch {
		case c.pattern == nil:
		case err == nil && st.Size() == 0:
			_ = os.Remove(f.Name())
		default:
			c.e.say("%s is left, and may end early", cell(f.Name()))
		}
	}
}
