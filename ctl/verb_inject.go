package ctl

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/sockd/sockd/ctl/varlink"
	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/model"
)

// An injection runs like this:
//
//	sockd-ctl ── Inject, upgrade ───────────────> sockd
//	          <── a pipe, the outcome's pipe ───
//	          ══ frames ══ the pipe ═══════════>  sends them
//	          <── how far it is ────────────────
//	Ctrl-C:   ── end of the sending side ──────>
//	          <── how far it came, end ─────────
//
// The frames have a pipe of their own so that Ctrl-C need not wait behind them. The
// daemon makes it: the caller has its writing end alone, and cannot make a read block.

const injectMethod = "io.sockd.Packet.Inject"

type injectIn struct {
	Interface string `json:"interface"`
	Count     *int64 `json:"count,omitempty"`
	Loop      *int64 `json:"loop,omitempty"`
	PPS       *int64 `json:"pps,omitempty"`
	Link      *int64 `json:"link,omitempty"`
}

type injectOut struct {
	Injected model.Injected `json:"injected"`
	Frames   int            `json:"frames"`
	Outcome  *int           `json:"outcome,omitempty"`
}

var _ = addMethod(method{
	name: injectMethod, in: injectIn{}, out: injectOut{}, upgrade: true,
	serve: serveInject,
})

func serveInject(ctx context.Context, s *Server, c *varlink.ServerCall) error {
	var in injectIn
	if err := c.Decode(&in); err != nil {
		return err
	}
	spec, err := in.spec()
	if err != nil {
		return err
	}
	n, err := s.backend.Inject(ctx, s.caller(c), spec)
	if err != nil {
		return err
	}
	defer n.Close()
	frames, writer, err := framePipe()
	if err != nil {
		return err
	}
	defer frames.Close()
	closeWriter := sync.OnceFunc(func() { closeFile(writer) })
	defer closeWriter()
	return serveToOutcome(c, "inject",
		func(index *int) any { return injectOut{n.View(), *index + 1, index} },
		func(conn *net.UnixConn) error {
			closeWriter() // the caller has it: its close is the end of the frames
			return runInjection(ctx, n, conn, frames)
		}, writer)
}

// spec checks what does not depend on the interface.
func (in injectIn) spec() (model.InjectSpec, error) {
	spec := model.InjectSpec{Interface: in.Interface, Link: int(orZero(in.Link)), Count: orZero(in.Count), Loop: 1, PPS: model.OriginalTiming}
	if in.Loop != nil {
		spec.Loop = *in.Loop
	}
	if in.PPS != nil {
		spec.PPS = *in.PPS
	}
	for _, n := range []*int64{in.Count, in.Loop, in.PPS, in.Link} {
		if orZero(n) < 0 {
			return model.InjectSpec{}, &families.SyntaxError{What: "number", Text: strconv.FormatInt(*n, 10), Why: "is below 0"}
		}
	}
	return spec, nil
}

// framePipeSize is what a pipe may be made by anybody (pipe-max-size): a batch of large
// frames fits.
const framePipeSize = 1 << 20

// fcntlSetPipeSize is F_SETPIPE_SZ of fcntl(2).
const fcntlSetPipeSize = 1031

// framePipe is a pipe for frames. Its reading end does not block.
func framePipe() (reader *os.File, writer int, err error) {
	var p [2]int
	if err := syscall.Pipe2(p[:], syscall.O_CLOEXEC); err != nil {
		return nil, -1, fmt.Errorf("inject: pipe: %w", err)
	}
	if err := syscall.SetNonblock(p[0], true); err != nil {
		closeFile(p[0])
		closeFile(p[1])
		return nil, -1, fmt.Errorf("inject: pipe: %w", err)
	}
	// It works with 64 KiB, too.
	_, _, _ = syscall.Syscall(syscall.SYS_FCNTL, uintptr(p[0]), fcntlSetPipeSize, framePipeSize)
	return os.NewFile(uintptr(p[0]), "frames"), p[1], nil
}

const (
	// injectStep is between two words of how far an injection is.
	injectStep = 500 * time.Millisecond
	// tellPatience is what one of them may take. Who does not read them gets no more.
	tellPatience = time.Second
)

// runInjection sends frames until their end, or until the caller shuts its sending side
// down, or leaves.
func runInjection(ctx context.Context, n Injection, conn *net.UnixConn, frames *os.File) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var others sync.WaitGroup
	others.Go(func() {
		awaitEnd(conn)
		cancel()
	})
	done := make(chan struct{})
	told := make(chan struct{})
	go func() {
		defer close(told)
		tellInjected(n, conn, done)
	}()
	err := n.Run(ctx, frames)
	close(done)
	<-told
	_ = tell(conn, n.View()) // the outcome says whether it was heard
	_ = conn.SetReadDeadline(time.Unix(1, 0))
	others.Wait()
	return err
}

// tellInjected tells from time to time how far it is.
func tellInjected(n Injection, conn *net.UnixConn, done <-chan struct{}) {
	t := time.NewTicker(injectStep)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			if tell(conn, n.View()) != nil {
				return
			}
		case <-done:
			return
		}
	}
}

func tell(conn *net.UnixConn, v model.Injected) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_ = conn.SetWriteDeadline(time.Now().Add(tellPatience)) // fails on a closed conn, as does Write
	_, err = conn.Write(append(text, '\n'))
	return err
}

// injectFlags are the flags of inject.
type injectFlags struct {
	hex   bool
	file  string
	count int64
	loop  int64
	pps   *int64
}

func newInjectFlags(fs *flag.FlagSet) *injectFlags {
	f := &injectFlags{loop: 1}
	fs.BoolVar(&f.hex, "hex", false, "the frame is hex digits")
	fs.StringVar(&f.file, "r", "", "the packets of `FILE`, pcapng or pcap; - is stdin")
	fs.Func("c", "end after `FRAMES`", countFlag(&f.count, 1, 1<<62))
	fs.Func("loop", "go `N` times through them, 0 for ever", countFlag(&f.loop, 0, 1<<62))
	fs.Func("pps", "`N` frames a second, or max", f.setPPS)
	return f
}

func (f *injectFlags) setPPS(s string) error {
	var n int64
	if s != "max" {
		if err := countFlag(&n, 1, int64(time.Second))(s); err != nil {
			return fmt.Errorf("%w, or max", err)
		}
	}
	f.pps = &n
	return nil
}

// check finds what does not go together.
func (f *injectFlags) check(e *Env, args []string) error {
	switch {
	case f.file != "" && len(args) > 1:
		return &UsageError{Verb: "inject", Why: "-r and DATA are one too many"}
	case f.file != "" && f.hex:
		return &UsageError{Verb: "inject", Why: "--hex is for DATA and stdin: a file has packets"}
	case f.file == "" && f.loop != 1 && f.pps == nil:
		return &UsageError{Verb: "inject", Why: "--loop: a single frame has no timing of its own", Hint: "sockd-ctl inject ... --loop N --pps 1, or --pps max"}
	case len(e.Columns) > 0:
		return &UsageError{Verb: "inject", Why: "-o: an injection is no list", Hint: "sockd-ctl inject ... --json"}
	}
	return nil
}

var _ = register(Verb{
	Name:  "inject",
	Group: GroupFlows,
	Args:  "IFNAME [DATA]",
	Short: "send frames out of an interface, as they are",
	Long: `Sends DATA as one frame out of IFNAME, with the link-level header that it begins with; without DATA and -r, what stdin has. --hex reads it as hex digits; white space between them is left out. DATA that begins with "-" comes after "--".

-r sends the packets of a pcapng or pcap file, in its order and with its timing: each as long after the first as it was captured. --pps sends so many a second instead, or with max as many as can be. --loop goes through the file again, after the average of its pauses; the frames are then kept in the daemon's memory, at most 64 MiB of them. -c ends after so many frames, whatever became of them. A packet that was cut when it was captured is sent as short as it is.

A frame that the interface does not take, because it is shorter than a link-level header or longer than its MTU and header, is left out; the rest goes on, the first of each kind is told of, and the exit code is 8 (EMSGSIZE, EINVAL). So is one for which the interface's queue has no room for a second (ENOBUFS). Packets of a file whose link-type is not the interface's are refused: exit 2. An interface that is down, or goes down, is exit 8 (ENETDOWN), one that is not there or goes away 3.

Ctrl-C is a normal end: nothing more is sent then. At the end a line on stderr says how many frames went out; on a terminal there is one before, too. --json prints the same as an object on stdout. What is injected is seen by captures on the same interface.`,
	Examples: []string{
		"sockd-ctl inject eth0 --hex 'ffffffffffff 020000000001 88b5 68656c6c6f'",
		"sockd-ctl inject eth0 -r trace.pcapng            # with its own timing",
		"sockd-ctl inject eth0 -r trace.pcap --loop 0 --pps max   # until Ctrl-C",
		"sockd-ctl inject veth0 -c 1000 --loop 0 --pps 100 < frame.bin",
	},
	Complete: []string{"iface", ""},
	Setup: func(fs *flag.FlagSet) Run {
		f := newInjectFlags(fs)
		return func(ctx context.Context, e *Env, args []string) error {
			if err := wantArgs("inject", args, 1, 2); err != nil {
				return err
			}
			if err := f.check(e, args); err != nil {
				return err
			}
			begin, run, cancel := e.running(ctx)
			defer cancel()
			if f.file == "" && f.loop == 1 {
				run = begin // one frame waits for nothing
			}
			return inject(begin, run, e, f, args)
		}
	},
})

// inject opens the frames first: what cannot be read is no reason to open an interface. ctx
// ends what has begun.
func inject(begin, ctx context.Context, e *Env, f *injectFlags, args []string) error {
	reading, stopReading := context.WithCancel(begin)
	defer stopReading()
	source, err := f.open(reading, e, args[1:])
	if err != nil {
		return err
	}
	defer source.Close()
	in := injectIn{Interface: args[0], Loop: &f.loop, PPS: f.pps, Link: source.link()}
	if f.count > 0 {
		in.Count = &f.count
	}
	c, err := e.Dial(begin)
	if err != nil {
		return err
	}
	defer c.Close()
	var out injectOut
	conn, files, err := c.UpgradeFiles(begin, injectMethod, in, &out)
	if err != nil {
		return err
	}
	defer conn.Close()
	frames, outcome, err := out.take(files)
	if err != nil {
		return err
	}
	defer outcome.Close()
	run := &injectRun{e: e, injected: out.Injected, source: source, frames: frames, once: f.loop == 1}
	err = run.run(ctx, conn, stopReading)
	if err == nil {
		err = c.readOutcome(injectMethod, outcome)
	}
	return run.sumUp(ctx, err)
}

// take sorts out a reply's descriptors, all of which it owns.
func (o injectOut) take(files []int) (frames, outcome *os.File, err error) {
	at := o.Frames
	if o.Outcome == nil || at < 0 || at >= len(files) || at == *o.Outcome {
		closeAll(files)
		return nil, nil, errors.New("inject: the answer has no descriptor for the frames")
	}
	pipe := files[at]
	rest := make([]int, len(files)) // with none where the frames' was
	copy(rest, files)
	rest[at] = model.NoFD
	if outcome, err = takeOutcome("inject", o.Outcome, rest); err != nil {
		closeFile(pipe)
		return nil, nil, err
	}
	if err := syscall.SetNonblock(pipe, true); err != nil {
		closeFile(pipe)
		_ = outcome.Close() // nothing was read from it
		return nil, nil, fmt.Errorf("inject: %w", err)
	}
	return os.NewFile(uintptr(pipe), "frames"), outcome, nil
}
