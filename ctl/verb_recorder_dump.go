package ctl

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/sockd/sockd/ctl/varlink"
	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/model"
	"github.com/sockd/sockd/families/packet/files"
	"github.com/sockd/sockd/families/packet/pcapng"
)

type recorderDumpIn struct {
	Ref        string  `json:"ref"`
	Last       *int64  `json:"last,omitempty"`
	Filter     *string `json:"filter,omitempty"`
	Descriptor int     `json:"descriptor"`
}

type recorderDumpOut struct {
	Report model.DumpReport `json:"report"`
}

type recorderStreamIn struct {
	Ref    string  `json:"ref"`
	Last   *int64  `json:"last,omitempty"`
	Filter *string `json:"filter,omitempty"`
}

type recorderStreamOut struct {
	Outcome *int `json:"outcome,omitempty"`
}

const (
	recorderDumpMethod   = "io.sockd.Recorder.Dump"
	recorderStreamMethod = "io.sockd.Recorder.Stream"
)

var _ = addMethod(unary(recorderDumpMethod, serveRecorderDump))

// serveRecorderDump leaves the file alone until there is something to write.
func serveRecorderDump(ctx context.Context, r request, in recorderDumpIn) (recorderDumpOut, error) {
	spec, err := dumpSpec(in.Last, in.Filter)
	if err != nil {
		return recorderDumpOut{}, err
	}
	fd, err := r.takeFileOf("descriptor", &in.Descriptor)
	if err != nil {
		return recorderDumpOut{}, err
	}
	file := &dumpedFile{fd: fd}
	report, err := r.RecorderDump(ctx, r.caller, in.Ref, spec, file)
	if err = errors.Join(err, file.Close()); err != nil {
		return recorderDumpOut{}, err
	}
	return recorderDumpOut{report}, nil
}

func dumpSpec(last *int64, filter *string) (model.DumpSpec, error) {
	if last != nil && *last < 1 {
		return model.DumpSpec{}, &families.SyntaxError{What: "last", Text: fmt.Sprint(*last), Why: "want more than 0"}
	}
	return model.DumpSpec{Last: time.Duration(orZero(last)), Filter: orZero(filter)}, nil
}

// dumpedFile is a file that the caller opened. It is emptied by the first Write.
type dumpedFile struct {
	fd   int
	file *files.File
}

func (d *dumpedFile) Write(p []byte) (int, error) {
	if d.file == nil {
		f, err := files.Adopt(d.fd)
		if err != nil {
			return 0, fmt.Errorf("dump: %w", err)
		}
		d.file, d.fd = f, model.NoFD
	}
	return d.file.Write(p)
}

func (d *dumpedFile) Close() error {
	if d.file != nil {
		return d.file.Close()
	}
	closeFile(d.fd)
	return nil
}

var _ = addMethod(method{
	name: recorderStreamMethod, in: recorderStreamIn{}, out: recorderStreamOut{}, upgrade: true,
	serve: serveRecorderStream,
})

func serveRecorderStream(ctx context.Context, s *Server, c *varlink.ServerCall) error {
	var in recorderStreamIn
	if err := c.Decode(&in); err != nil {
		return err
	}
	spec, err := dumpSpec(in.Last, in.Filter)
	if err != nil {
		return err
	}
	return serveToOutcome(c, "recorder dump",
		func(index *int) any { return recorderStreamOut{index} },
		func(conn *net.UnixConn) error {
			_, err := s.backend.RecorderDump(ctx, s.caller(c), in.Ref, spec, patientWriter{conn})
			return err
		})
}

// dumpPatience bounds a write to a caller who does not read: what a dump has not
// written yet takes memory.
const dumpPatience = time.Minute

type patientWriter struct{ conn *net.UnixConn }

func (w patientWriter) Write(p []byte) (int, error) {
	if err := w.conn.SetWriteDeadline(time.Now().Add(dumpPatience)); err != nil {
		return 0, err
	}
	return w.conn.Write(p)
}

// dumpFlags are the flags of recorder dump.
type dumpFlags struct {
	last  *int64
	write string
}

var _ = register(Verb{
	Name:  "recorder dump",
	Group: GroupFlows,
	Args:  "NAME [FILTER word]... [--last D] -w FILE|-",
	Short: "write what a recorder has",
	Long: `Writes the packets that a recorder has as pcapng: those of the last D, or all, and of them those that the filter takes, which may be any now. They are in the order of their times, which are the original ones. The recorder goes on meanwhile.

A FILE that is there is replaced when the dump is complete, and stays as it was when it never is; where nothing can be made beside it, it is written over. A file of a recorder's is not replaced (exit 7). Where packets were lost the next one says how many, and the statistics at the end how many in all. What is asked for from before the recorder's oldest packet is not there, and a line on stderr says so; a dump without packets is a file, too.`,
	Examples: []string{
		"sockd-ctl recorder dump black -w all.pcapng",
		"sockd-ctl recorder dump black --last 30s host 10.0.0.1 -w last.pcapng",
		"sockd-ctl recorder dump black -w - | tcpdump -r - -n",
	},
	ReadOnly: true,
	Complete: []string{"recorder", ""},
	Setup: func(fs *flag.FlagSet) Run {
		f := &dumpFlags{}
		fs.Func("last", "only the last `D`", spanSetting(&f.last))
		fs.StringVar(&f.write, "w", "", "write to `FILE`, - is standard output")
		return func(ctx context.Context, e *Env, args []string) error {
			if err := wantArgs("recorder dump", args, 1, -1); err != nil {
				return err
			}
			if err := f.check(e); err != nil {
				return err
			}
			in := recorderStreamIn{Ref: args[0], Last: f.last}
			if filter := strings.Join(args[1:], " "); filter != "" {
				in.Filter = &filter
			}
			return f.run(ctx, e, in)
		}
	},
})

func (f *dumpFlags) check(e *Env) error {
	switch {
	case f.write == "":
		return &UsageError{Verb: "recorder dump", Why: "where to?", Hint: "sockd-ctl recorder dump NAME -w FILE, or -w - | tcpdump -r -"}
	case f.write == "-" && e.StdoutTerminal:
		return &UsageError{Verb: "recorder dump", Why: "-w -: standard output is a terminal", Hint: "sockd-ctl recorder dump NAME -w FILE, or -w - | tcpdump -r -"}
	case f.write == "-" && e.wantsJSON():
		return &UsageError{Verb: "recorder dump", Why: "-w - and JSON would both go to standard output"}
	case len(e.Columns) > 0:
		return &UsageError{Verb: "recorder dump", Why: "-o: packets have no columns"}
	}
	return nil
}

// run dumps to a file by its descriptor, to anything else through this program.
func (f *dumpFlags) run(ctx context.Context, e *Env, in recorderStreamIn) error {
	if f.write == "-" {
		return e.streamDump(ctx, in, e.Stdout)
	}
	if !isFile(f.write) {
		return f.toOther(ctx, e, in)
	}
	file, err := replace(f.write)
	if err != nil {
		return fmt.Errorf("recorder dump: %w", err)
	}
	report, err := f.to(ctx, e, in, file.File)
	if err != nil {
		file.discard()
		return err
	}
	if err := file.complete(); err != nil {
		return fmt.Errorf("recorder dump: %w", err)
	}
	e.sayDump(report)
	e.sayOldest(report, in.Last)
	return printObject(e, report, printNothing)
}

// toOther dumps to what is there and no regular file: a device, a FIFO.
func (f *dumpFlags) toOther(ctx context.Context, e *Env, in recorderStreamIn) error {
	file, err := openOther(ctx, f.write)
	if err != nil {
		return fmt.Errorf("recorder dump: %w", err)
	}
	err = e.streamDump(ctx, in, file)
	if closeErr := file.Close(); err == nil {
		err = closeErr
	}
	return err
}

func (f *dumpFlags) to(ctx context.Context, e *Env, in recorderStreamIn, file *os.File) (model.DumpReport, error) {
	fd, err := duplicateOf(file)
	if err != nil {
		return model.DumpReport{}, fmt.Errorf("recorder dump: %w", err)
	}
	defer closeFile(fd)
	var out recorderDumpOut
	full := recorderDumpIn{Ref: in.Ref, Last: in.Last, Filter: in.Filter}
	if err := e.call(ctx, recorderDumpMethod, full, &out, fd); err != nil {
		return model.DumpReport{}, err
	}
	return out.Report, nil
}

// duplicateOf is a descriptor of its own for a file.
func duplicateOf(file *os.File) (fd int, err error) {
	raw, err := file.SyscallConn()
	if err != nil {
		return model.NoFD, err
	}
	var dupErr error
	if err := raw.Control(func(own uintptr) { fd, dupErr = syscall.Dup(int(own)) }); err != nil {
		return model.NoFD, err
	}
	return fd, dupErr
}

// sayDump says what a dump has.
func (e *Env) sayDump(r model.DumpReport) {
	e.say("%s dumped", packets(r.Packets))
	if r.Dropped > 0 {
		e.say("%s lost meanwhile", packets(r.Dropped))
	}
}

// sayOldest says what a dump could not have.
func (e *Env) sayOldest(r model.DumpReport, last *int64) {
	switch age := time.Since(r.Oldest); {
	case r.Oldest.IsZero():
		e.say("the recorder has no packet yet")
	case last != nil && age < time.Duration(*last):
		e.say("the recorder's oldest packet is %s old", sinceText(age))
	}
}

// streamDump has the dump sent, and writes it to w.
func (e *Env) streamDump(ctx context.Context, in recorderStreamIn, w io.Writer) error {
	ctx, cancel := e.bound(ctx, recorderStreamMethod)
	defer cancel()
	c, err := e.Dial(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	var out recorderStreamOut
	conn, fds, err := c.UpgradeFiles(ctx, recorderStreamMethod, in, &out)
	if err != nil {
		return err
	}
	defer conn.Close()
	outcome, err := takeOutcome("recorder dump", out.Outcome, fds)
	if err != nil {
		return err
	}
	defer outcome.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	report, err := copyDump(conn, w)
	if ctx.Err() != nil {
		return fmt.Errorf("recorder dump: %w", context.Cause(ctx))
	}
	if err == nil {
		err = c.readOutcome(recorderStreamMethod, outcome)
	}
	if err != nil {
		return err
	}
	e.sayDump(report)
	return nil
}

// copyDump copies a stream, and counts what is in it. One that ends in the middle is
// what its outcome tells of.
func copyDump(from io.Reader, to io.Writer) (r model.DumpReport, err error) {
	reader := pcapng.NewReader(io.TeeReader(from, fileWriter{to}))
	var b pcapng.Block
	for {
		switch err := reader.Next(&b); {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return r, nil
		case err != nil:
			return r, err
		}
		switch b.Type {
		case pcapng.PacketBlock:
			r.Packets++
		case pcapng.StatisticsBlock:
			r.Dropped += int64(b.Stats.IfDrop)
		}
	}
}
