package ctl

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"github.com/sockd/sockd/families/model"
	"github.com/sockd/sockd/families/packet/pcapng"
)

// fileRun is one run of capture -r: the packets of a file, without a daemon.
type fileRun struct {
	e       *Env
	flags   *captureFlags
	name    string
	filter  string
	reader  pcapng.BlockReader
	matches map[pcapng.LinkType]PacketFilter // the filter, for each kind of frame
	names   map[string]bool                  // of the interfaces so far
	lines   packetLines
	copy    *packetCopy   // of -w
	waited  uint64        // fragments of earlier sections of which nobody knows
	capture model.Capture // what --json prints at the end
}

// readFile prints the packets of the file of -r, or copies them to that of -w.
func (f *captureFlags) readFile(ctx context.Context, e *Env, filter string) error {
	if err := f.checkRead(); err != nil {
		return err
	}
	ctx, stop := e.whileRead(ctx)
	defer stop()
	in, closeInput, err := openInput(e, f.read)
	if err != nil {
		return err
	}
	defer closeInput()
	ctx, cancel := withTimeout(ctx, timeoutOf(e, in))
	defer cancel()
	out := bufio.NewWriter(e.Stdout)
	r := &fileRun{e: e, flags: f, name: f.read, filter: filter, matches: map[pcapng.LinkType]PacketFilter{}, names: map[string]bool{}}
	r.capture = model.Capture{Source: f.read, Filter: filter}
	r.lines = packetLines{e: e, out: out, options: f.packets}
	if r.lines.options.Named, err = severalIn(in); err != nil {
		return r.fail(err)
	}
	if err := r.openCopy(ctx, in); err != nil {
		return err
	}
	ctx, stopPipe := r.copy.whileRead(ctx, e)
	err = r.run(ctx, &flushingReader{interruptible{ctx, in}, out})
	stopPipe()
	return r.end(ctx, cmp.Or(err, out.Flush(), r.copy.Close()))
}

// checkRead finds flags that ask of a file what only an interface has.
func (f *captureFlags) checkRead() error {
	switch {
	case len(f.sources) > 0:
		return &UsageError{Verb: "capture", Why: "-r and -i: the packets come from a file or from an interface"}
	case f.file.rotates() || f.file.count > 0:
		return &UsageError{Verb: "capture", Why: "-r: -C, -G, -W and --max-bytes are for interfaces", Hint: "sockd-ctl capture -r FILE -w FILE"}
	case f.duration != nil, f.wait, f.netns != "", f.queue > 0, f.rings > 0:
		return &UsageError{Verb: "capture", Why: "-r: --duration, --wait, --netns, --queue and --rings are for interfaces"}
	}
	return nil
}

// openInput opens a file, or is stdin for -.
func openInput(e *Env, name string) (r io.Reader, closer func(), err error) {
	if name == "-" {
		return e.Stdin, func() {}, nil
	}
	file, err := os.Open(name)
	if err != nil {
		return nil, nil, fmt.Errorf("capture: %w", err)
	}
	return file, func() { _ = file.Close() }, nil // it was only read
}

// timeoutOf is --timeout for reading in: with 0, which is not to wait, a file is read all
// the same, for which nobody waits.
func timeoutOf(e *Env, in io.Reader) *int64 {
	timeout := e.timeoutParameter()
	file, ok := in.(*os.File)
	if timeout == nil || *timeout > 0 || !ok {
		return timeout
	}
	if info, err := file.Stat(); err != nil || !info.Mode().IsRegular() {
		return timeout
	}
	return nil
}

// severalIn tells whether a file has packets of several interfaces, which is known only
// at its end: it is read twice. Of what cannot be read twice it is found out on the way.
func severalIn(in io.Reader) (bool, error) {
	file, ok := in.(*os.File)
	if !ok {
		return false, nil
	}
	info, err := file.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return false, nil // reading it will say why
	}
	begun, err := file.Seek(0, io.SeekCurrent) // stdin may have been read before
	if err != nil {
		return false, err
	}
	several := false
	if r, err := pcapng.Open(file); err == nil {
		several = severalNames(r)
	}
	_, err = file.Seek(begun, io.SeekStart)
	return several, err
}

// severalNames reads until there are two names, or nothing more.
func severalNames(r pcapng.BlockReader) bool {
	names := map[string]bool{}
	for b := (pcapng.Block{}); r.Next(&b) == nil && len(names) < 2; {
		if b.Type == pcapng.InterfaceBlock {
			names[b.Interface.Name] = true
		}
	}
	return len(names) > 1
}

// run goes through the blocks.
func (r *fileRun) run(ctx context.Context, in io.Reader) error {
	var err error
	if r.reader, err = pcapng.Open(in); errors.Is(err, io.EOF) {
		return r.fail(fmt.Errorf("it is empty: %w", pcapng.ErrFormat))
	}
	var b pcapng.Block
	for err == nil {
		if err = r.reader.Next(&b); err == nil {
			err = r.block(&b)
		}
	}
	switch {
	case errors.Is(err, errEnough):
		return nil
	case r.copy.failure() != nil:
		return err // it names the other file
	case errors.Is(err, io.EOF):
		if n := r.undecided(); n > 0 {
			r.e.say("fragments left out, as the first of their datagrams is not in the file, or comes too late: %d", n)
		}
		return nil
	case context.Cause(ctx) != nil:
		return nil // Ctrl-C and the end of the time: end says which
	}
	return r.fail(err)
}

// errEnough ends a run that has all packets that it wants.
var errEnough = errors.New("enough packets")

func (r *fileRun) fail(err error) error { return readError("capture", r.name, err) }

// readError is what is wrong with a file of packets.
func readError(verb, name string, err error) error {
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%s: %s ends within a block", verb, visible(name))
	}
	return fmt.Errorf("%s: read %s: %w", verb, visible(name), err)
}

func (r *fileRun) block(b *pcapng.Block) error {
	switch b.Type {
	case pcapng.SectionBlock:
		r.waited = r.undecided()
		clear(r.matches) // its interfaces are others, whatever their numbers
		return r.copy.section(&b.Section)
	case pcapng.InterfaceBlock:
		return r.announce(&b.Interface)
	case pcapng.PacketBlock:
		return r.packet(&b.Packet)
	}
	return nil
}

// announce prepares for the packets of an interface: a filter that does not parse is
// found before the first of them.
func (r *fileRun) announce(i *pcapng.Interface) error {
	if len(r.names) == 0 {
		r.e.say("reading from %s, link-type %s, snapshot length %d bytes", cell(r.name), i.Link, cmp.Or(i.Snaplen, maxSnaplen))
	}
	r.names[i.Name] = true
	r.lines.named(len(r.names) > 1)
	if _, ok := r.matches[i.Link]; !ok {
		match, err := r.compile(i.Link)
		if err != nil {
			return err
		}
		r.matches[i.Link] = match
	}
	return r.copy.iface(i)
}

func (r *fileRun) compile(link pcapng.LinkType) (PacketFilter, error) {
	if r.filter == "" {
		return everyPacket{}, nil
	}
	if r.e.Filter == nil {
		return nil, errors.New("this program cannot filter packets")
	}
	return r.e.Filter(r.filter, link)
}

// everyPacket is no filter.
type everyPacket struct{}

func (everyPacket) Judge(p *pcapng.Packet, yield func(*pcapng.Packet) error) error { return yield(p) }
func (everyPacket) Undecided() uint64                                              { return 0 }

// undecided are the fragments of which nobody knows whether they are wanted.
func (r *fileRun) undecided() uint64 {
	n := r.waited
	for _, f := range r.matches {
		n += f.Undecided()
	}
	return n
}

// packet takes the packets that are wanted now that p has come.
func (r *fileRun) packet(p *pcapng.Packet) error {
	r.capture.Received++
	if !r.wants(p) {
		return nil
	}
	return r.matches[r.reader.Interfaces()[p.Interface].Link].Judge(p, r.take)
}

// take prints or copies a packet, until there are enough.
func (r *fileRun) take(p *pcapng.Packet) error {
	i := &r.reader.Interfaces()[p.Interface]
	if n := int(r.flags.snaplen); n > 0 && n < len(p.Data) {
		p.Data = p.Data[:n]
	}
	err := r.copy.packet(p)
	if r.copy == nil {
		err = r.lines.print(i, p)
	}
	if err != nil {
		return err
	}
	if r.capture.Delivered++; r.capture.Delivered == r.flags.count {
		return errEnough
	}
	return nil
}

// wants tells whether -Q and -p leave a packet in.
func (r *fileRun) wants(p *pcapng.Packet) bool {
	switch {
	case r.flags.noPromisc && p.Reception == pcapng.Promiscuous:
		return false
	case r.flags.direction == "in":
		return p.Direction == pcapng.Inbound
	case r.flags.direction == "out":
		return p.Direction == pcapng.Outbound
	}
	return true
}

// end says how it ended.
func (r *fileRun) end(ctx context.Context, err error) error {
	var signal *SignalError
	if (errors.As(err, &signal) || errors.As(context.Cause(ctx), &signal)) && signal.Signal == syscall.SIGPIPE {
		return signal // nobody reads
	}
	r.capture.Delivered -= r.copy.unwritten()
	if r.e.JSON && !r.e.JSONL {
		err = cmp.Or(err, r.e.printJSON(r.capture))
	}
	if err == nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return r.fail(ctx.Err())
	}
	return err
}

func sameFile(in io.Reader, path string) bool {
	file, ok := in.(*os.File)
	if !ok || path == "" || path == "-" {
		return false
	}
	a, errA := file.Stat()
	b, errB := os.Stat(path)
	return errA == nil && errB == nil && a.Mode().IsRegular() && os.SameFile(a, b)
}
