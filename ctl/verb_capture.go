package ctl

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/sockd/sockd/ctl/varlink"
	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/model"
)

// A capture runs like this:
//
//	sockd-ctl ── Start, upgrade ─────────────> sockd
//	          <── the capture ───────────────
//	          <══ pcapng ════════════════════
//	Ctrl-C:   ── end of the sending side ────>
//	          <══ what is on its way, then statistics
//	          <── end ───────────────────────

const captureMethod = "io.sockd.Capture.Start"

// captureIn are the parameters of a capture that is streamed or written to files: those of
// every capture, and how a file is.
type captureIn struct {
	ShareIn
	Format  *string `json:"format,omitempty"`
	Comment *string `json:"comment,omitempty"`
}

type captureOut struct {
	Capture model.Capture `json:"capture"`
	Outcome *int          `json:"outcome,omitempty"`
}

var _ = addMethod(method{
	name: captureMethod, in: captureIn{}, out: captureOut{}, upgrade: true,
	serve: serveCapture,
})

func serveCapture(ctx context.Context, s *Server, c *varlink.ServerCall) error {
	var in captureIn
	if err := c.Decode(&in); err != nil {
		return err
	}
	capture, err := s.request(c).capture(ctx, in)
	if err != nil {
		return err
	}
	defer capture.Close()
	return serveToNotedOutcome(c, "capture",
		func(index *int) any { return captureOut{capture.View(), index} },
		func(conn *net.UnixConn, o *outcome) error {
			capture.Notes(o.note)
			defer capture.Notes(nil)
			err := runCapture(ctx, capture, conn)
			if errors.Is(err, net.ErrClosed) {
				return nil // somebody has closed the capture: the file is complete, and that is no failure
			}
			return err
		})
}

// maxSnaplen is the longest packet that a capture keeps, as in tcpdump.
const maxSnaplen = 262144

// spec checks what does not depend on the daemon.
func (in captureIn) spec() (model.CaptureSpec, error) {
	spec := model.CaptureSpec{
		Source: in.Source, Filter: orZero(in.Filter), Direction: orZero(in.Direction),
		Snaplen: int(orZero(in.Snaplen)), Count: orZero(in.Count),
		NoPromisc: orZero(in.NoPromisc), Duration: time.Duration(orZero(in.Duration)),
		Wait: orZero(in.Wait), Queue: orZero(in.Queue), Rings: int(min(orZero(in.Rings), math.MaxInt32)),
		Format: orZero(in.Format), Comment: orZero(in.Comment),
	}
	switch {
	case spec.Direction != "" && !slices.Contains(directions, spec.Direction):
		return model.CaptureSpec{}, &families.SyntaxError{What: "direction", Text: spec.Direction, Why: "want in, out or inout"}
	case orZero(in.Snaplen) < 0 || orZero(in.Snaplen) > maxSnaplen:
		return model.CaptureSpec{}, &families.SyntaxError{What: "snaplen", Text: fmt.Sprint(*in.Snaplen), Why: fmt.Sprintf("want at most %d", maxSnaplen)}
	case spec.Count < 0:
		return model.CaptureSpec{}, &families.SyntaxError{What: "count", Text: fmt.Sprint(spec.Count), Why: "is below 0"}
	case spec.Duration < 0:
		return model.CaptureSpec{}, &families.SyntaxError{What: "duration", Text: fmt.Sprint(*in.Duration), Why: "is below 0"}
	}
	if in.Duration != nil && spec.Duration == 0 {
		spec.Duration = 1 // at once: 0 is no end
	}
	return spec, nil
}

var directions = []string{"in", "out", "inout"}

// runCapture sends a capture until its end, or until the caller shuts its sending
// side down, or leaves.
func runCapture(ctx context.Context, capture Capturing, conn *net.UnixConn) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	left := make(chan struct{})
	go func() {
		defer close(left)
		awaitEnd(conn)
		cancel()
	}()
	err := capture.Run(ctx, drainWriter{ctx, conn})
	// The capture ended by itself: wake the goroutine, which waits for the caller.
	_ = conn.SetReadDeadline(time.Unix(1, 0))
	<-left
	return err
}

// awaitEnd reads until the caller has shut its sending side down or left. What
// it sends means nothing.
func awaitEnd(conn *net.UnixConn) { _, _ = io.Copy(io.Discard, conn) }

// drainPatience bounds a write to a caller who has asked for the end and does
// not read.
const drainPatience = 30 * time.Second

// drainWriter writes to a caller. Once ctx has ended a write that gets nowhere
// fails: until then only a caller who left makes it fail.
type drainWriter struct {
	ctx  context.Context
	conn *net.UnixConn
}

func (w drainWriter) Write(p []byte) (int, error) {
	stop := context.AfterFunc(w.ctx, func() { _ = w.conn.SetWriteDeadline(time.Now().Add(drainPatience)) })
	defer stop()
	return w.conn.Write(p)
}

// captureFlags are the flags of capture. One letter means what tcpdump(8) means.
type captureFlags struct {
	sources   []string
	read      string // -r
	list      bool   // -D
	compile   bool   // --compile
	program   int    // -d: how often
	link      string // -y
	plain     bool   // -O
	write     string
	count     int64
	snaplen   int64
	direction string
	noPromisc bool
	duration  *time.Duration // nil: none
	wait      bool
	queue     int64
	rings     int64
	netns     string
	hex, text int // -x, -X: how often
	packets   PacketOptions
	file      fileFlags
}

func newCaptureFlags(fs *flag.FlagSet) *captureFlags {
	f := &captureFlags{}
	fs.Var(listValue{&f.sources}, "i", "capture on `SOURCE`; then every word is filter")
	fs.StringVar(&f.read, "r", "", "read `FILE`, pcapng or pcap, and no interface; - is standard input; then every word is filter")
	fs.BoolVar(&f.list, "D", false, "list the interfaces that can be captured on")
	fs.BoolVar(&f.compile, "compile", false, "capture nothing: print the program of the filter, that every word is of, as -d")
	fs.Var(countValue{&f.program}, "d", "print the program of the filter for people; -dd as C, -ddd as numbers")
	fs.StringVar(&f.link, "y", "", "with -d: for frames of `LINKTYPE`, EN10MB (the default), RAW, IPV4, IPV6, NULL, LOOP, LINUX_SLL or LINUX_SLL2")
	fs.BoolVar(&f.plain, "O", false, "with -d: not optimised")
	fs.Func("w", "write pcapng to `FILE` or, with -C, -G or --max-bytes, to files named after it; - is standard output", f.setWrite)
	f.file.register(fs)
	fs.Func("c", "end after `N` packets", countFlag(&f.count, 1, 1<<62))
	fs.Func("s", "keep the first `SNAPLEN` bytes of each packet (262144)", countFlag(&f.snaplen, 0, maxSnaplen))
	fs.Func("Q", "only packets that go in, out or inout: `WAY`", f.setDirection)
	fs.BoolVar(&f.noPromisc, "p", false, "leave out packets for other hosts")
	fs.Var(OptionalDuration(&f.duration), "duration", "end after `D`; 0: at once, none: not by itself")
	fs.BoolVar(&f.wait, "wait", false, "wait for an interface that is not there yet")
	fs.StringVar(&f.netns, "netns", "", "interfaces of the network namespace `N`")
	fs.Func("queue", "how much may wait while nobody reads: `SIZE` (8M)", sizeFlag(&f.queue))
	fs.Func("rings", "share the packets out to `N` rings, by flow, where none is open yet", countFlag(&f.rings, 1, 16))
	fs.BoolVar(&f.packets.Ethernet, "e", false, "show the link-level header")
	fs.Var(&switchValue{&f.packets.NoNames}, "n", "no names: none are ever looked up")
	fs.BoolVar(&f.packets.Quiet, "q", false, "shorter lines")
	fs.Var(countValue{&f.packets.Verbose}, "v", "more of each packet; -vv still more")
	fs.Var(countValue{&f.hex}, "x", "the packet in hexadecimal; -xx with the link-level header")
	fs.Var(countValue{&f.text}, "X", "in hexadecimal and as text; -XX with the link-level header")
	fs.BoolVar(&f.packets.ASCII, "A", false, "as text")
	fs.Var(countValue{&f.packets.Times}, "t", "no time; -tt seconds, -ttt since the one before, -tttt with the date, -ttttt since the first")
	return f
}

func (f *captureFlags) setWrite(s string) error {
	if s == "" {
		return errors.New("want a file's name, or -")
	}
	f.write = s
	return nil
}

// switchValue is a switch that may be given several times (-nn).
type switchValue struct{ on *bool }

func (v *switchValue) String() string {
	if v.on == nil {
		return ""
	}
	return strconv.FormatBool(*v.on)
}

func (v *switchValue) Set(string) error { *v.on = true; return nil }

// IsBoolFlag tells the flag parser that no argument follows.
func (v *switchValue) IsBoolFlag() bool { return true }

// countFlag reads a number from least to most.
func countFlag(to *int64, least, most int64) func(string) error {
	return func(s string) error {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil || n < least || n > most {
			return fmt.Errorf("want a number from %d to %d", least, most)
		}
		*to = n
		return nil
	}
}

// sizeFlag reads a SIZE of at least a byte.
func sizeFlag(to *int64) func(string) error {
	return func(s string) error {
		n, err := model.ParseSize(s)
		if err == nil && n == 0 {
			err = errors.New("want at least a byte")
		}
		*to = n
		return err
	}
}

func (f *captureFlags) setDirection(s string) error {
	if !slices.Contains(directions, s) {
		return fmt.Errorf("want in, out or inout")
	}
	f.direction = s
	return nil
}

var _ = register(Verb{
	Name:  "capture",
	Group: GroupFlows,
	Args:  "SOURCE [FILTER word]...",
	Short: "capture packets, as lines of text or to a pcapng file",
	Long: `Captures packets of SOURCE: an interface, or any for all of them. All words after it are the filter, in the language of pcap-filter(7), with words of sockd's own: "and fragments" takes the other fragments of the datagrams whose first it takes, and uid N, pid N, comm NAME and unit NAME ask for the local process that sent a packet, or received it. What is known of that is written with the packets: the process in the option made for it, the rest in the comment. What is not known is no match and never guessed: of a socket that is closed already, of a later fragment, of another network namespace, and, where sockd may not look into other users' processes, as under its systemd unit, pid and comm; unit comes from the socket's cgroup there. Of a socket that sockd holds for a caller the uid is the caller's; the connections of relays are sockd's own. With -i there is no SOURCE word.

Packets are printed as tcpdump -n prints them, or with -w written as pcapng. Where several interfaces may deliver, each line begins with the interface and the way, as of tcpdump -i any: In, Out, B for broadcast, M for multicast, P for another host. With --jsonl each packet is an object: time, interface, direction, length (on the wire), captured, src, dst, pid and comment (where the packet has them), data (base64), and layers, what its headers say; sockd-ctl(1) names their members. With --json no packet is printed, and at the end the capture as one object.

--compile, or -d, prints the program that the filter compiles to, and asks no daemon: as tcpdump -d prints it, -dd as C and -ddd as numbers, for Ethernet or the link type of -y. It is the exact program; the kernel gets one that lets more through where it cannot know.

-r reads a file, pcapng or pcap, and asks no daemon: its packets are printed, or those that the filter takes are written to the file of -w. -Q, -c, -s and -p are as in a capture. -D lists the interfaces of the daemon's host.

The daemon writes the files of -w itself, into descriptors that this command opens with its caller's rights. With -C, -G or --max-bytes there are several: no file is ever longer than -C, none has a part of a packet, and -G begins a new one at each multiple of so many seconds since midnight, by this host's clock on the wall; an interval without packets makes no file. They are named after FILE: its last element takes the conversions of strftime(3) for the time that a file begins (that of its interval, with -G), %% for a per cent sign; without any, a counter stands before the suffix: cap.pcapng gives cap_00001.pcapng. A name that would come twice gets a counter, too. With -C or --max-bytes, -W is how many files stay, and the counter begins anew after as many; with -G alone the capture ends after so many. --max-bytes bounds the files that are there and the two that are open; the oldest goes first. Only files of this capture are deleted.

One of several files is written as .NAME.N.part beside the others, put on the disk and given its name when it is complete. When this command is killed the daemon completes the file that it is writing, under that name. A file that cannot be written (a full disk) ends with its last whole packet, and is gone on with when it can be; what is lost meanwhile is counted, told before the next packet and in the statistics at its end, for which there is always room, and the exit code is 8 (ENOSPC). A file for which there is not even room to begin is deleted. A copy that -r makes ends with its last whole packet there, with the same exit code. What has the name of a file is replaced, as by tcpdump, but never a file of a recorder's: FILE is refused (exit 7), also through a link, another name passed over. When a file cannot be named or deleted this is said, the capture goes on, and the exit code is 1.

Ctrl-C is the normal end, as are -c and --duration: the file is complete, a summary goes to stderr. A second Ctrl-C within two seconds changes nothing, a later one ends the command without a summary. So it is after --timeout, which is exit 6. When an interface is deleted the capture waits for the next one of that name; a line on stderr says that it is gone, and that it is there, but with -q. One that gets another name is gone, too, and captured on all the same, though not with --netns. A FIFO as FILE is waited for until somebody reads it, and ends the capture when nobody does any more, as does -w -. A short flag means what tcpdump(8) means by it; others of its flags are refused.`,
	Examples: []string{
		"sockd-ctl capture eth0                          # lines of text, until Ctrl-C",
		"sockd-ctl capture eth0 tcp port 80 and host 10.0.0.1",
		"sockd-ctl capture any -c 100 -w /tmp/all.pcapng",
		"sockd-ctl capture eth0 -w cap.pcapng -C 100M -W 10          # the last ten files",
		"sockd-ctl capture eth0 -w '%Y-%m-%d_%H.pcapng' -G 1h --max-bytes 20G",
		"sockd-ctl capture -i lo -X udp port 53",
		"sockd-ctl capture any unit nginx.service and tcp port 443",
		"sockd-ctl capture -d 'tcp[tcpflags] & tcp-syn != 0'",
		"sockd-ctl capture eth0 -w - | tshark -r -       # any reader of pcapng",
		"sockd-ctl capture -r /tmp/all.pcapng -v icmp    # a file, without a daemon",
		"sockd-ctl capture any --jsonl | jq '.layers[] | select(.layer == \"dns\") | .questions[].name'",
	},
	ReadOnly: true,
	Complete: []string{"iface", ""},
	Setup: func(fs *flag.FlagSet) Run {
		flags := newCaptureFlags(fs)
		return func(ctx context.Context, e *Env, args []string) error {
			if flags.list || flags.read != "" || flags.compiles() {
				return flags.withoutCapture(ctx, e, args)
			}
			if flags.link != "" || flags.plain {
				return &UsageError{Verb: "capture", Why: "-y and -O are for -d and --compile"}
			}
			in, err := flags.parameters(args)
			if err != nil {
				return err
			}
			if err := flags.check(e); err != nil {
				return err
			}
			return startCapture(ctx, e, flags, in)
		}
	},
})

// withoutCapture is what capture does with -D, -d, --compile and -r.
func (f *captureFlags) withoutCapture(ctx context.Context, e *Env, args []string) error {
	switch {
	case f.list:
		return listInterfaces(ctx, e, args)
	case f.compiles():
		return f.printProgram(e, strings.Join(args, " "))
	case f.link != "" || f.plain:
		return &UsageError{Verb: "capture", Why: "-y and -O are for -d and --compile"}
	}
	if err := f.check(e); err != nil {
		return err
	}
	return f.readFile(ctx, e, strings.Join(args, " "))
}

// parameters reads SOURCE and filter.
func (f *captureFlags) parameters(args []string) (captureIn, error) {
	if len(f.sources) == 0 {
		if err := wantArgs("capture", args, 1, -1); err != nil {
			return captureIn{}, err
		}
		f.sources, args = args[:1], args[1:]
	}
	in := captureIn{ShareIn: ShareIn{Source: strings.Join(f.sources, ",")}}
	if filter := strings.Join(args, " "); filter != "" {
		in.Filter = &filter
	}
	if f.direction != "" {
		in.Direction = &f.direction
	}
	if f.snaplen > 0 {
		in.Snaplen = &f.snaplen
	}
	if f.count > 0 {
		in.Count = &f.count
	}
	if f.noPromisc {
		in.NoPromisc = &f.noPromisc
	}
	if f.duration != nil && *f.duration >= 0 {
		ns := int64(*f.duration)
		in.Duration = &ns
	}
	f.special(&in)
	return in, nil
}

// special has the parameters that few captures need.
func (f *captureFlags) special(in *captureIn) {
	if f.wait {
		in.Wait = &f.wait
	}
	if f.queue > 0 {
		in.Queue = &f.queue
	}
	if f.rings > 0 {
		in.Rings = &f.rings
	}
	if f.file.pcap {
		in.Format = new(model.FormatPcap)
	}
	if f.file.comment != "" {
		in.Comment = &f.file.comment
	}
}

// check finds flags that do not go together.
func (f *captureFlags) check(e *Env) error {
	switch {
	case f.write == "-" && e.StdoutTerminal:
		return &UsageError{Verb: "capture", Why: "-w -: standard output is a terminal", Hint: "sockd-ctl capture ... -w FILE, or -w - | tshark -r -"}
	case f.write == "-" && e.wantsJSON():
		return &UsageError{Verb: "capture", Why: "-w - and JSON would both go to standard output"}
	case len(e.Columns) > 0:
		return &UsageError{Verb: "capture", Why: "-o: packets have no columns", Hint: "sockd-ctl capture ... --jsonl"}
	}
	f.packets.Hex, f.packets.HexASCII = f.hex > 0, f.text > 0
	f.packets.HexLink = f.hex > 1 || f.text > 1
	return f.file.check(f.write)
}

// startCapture starts a capture and runs it to its end. The file is opened after
// the daemon has agreed: a capture that is refused leaves an older file alone.
func startCapture(ctx context.Context, e *Env, f *captureFlags, in captureIn) error {
	e = e.sharingStderr()
	if isFile(f.write) {
		return f.writeFiles(ctx, e, in)
	}
	if f.write == "" || f.write == "-" {
		read, stop := e.whileRead(ctx)
		defer stop()
		ctx = read
	}
	begin, ctx, cancel := e.running(ctx)
	defer cancel()
	c, err := e.Dial(begin)
	if err != nil {
		return err
	}
	defer c.Close()
	var out captureOut
	fds, err := in.openNamespace(f.netns)
	if err != nil {
		return err
	}
	conn, files, err := c.UpgradeFiles(begin, captureMethod, in, &out, fds...)
	closeAll(fds)
	if err != nil {
		return err
	}
	defer conn.Close()
	outcome, err := takeOutcome("capture", out.Outcome, files)
	if err != nil {
		return err
	}
	defer outcome.Close()
	file, err := f.open(ctx, e)
	if err != nil {
		return err
	}
	run := &captureRun{e: e, flags: f, capture: out.Capture, file: file}
	read, stop := ctx, func() {}
	if file != nil && file != e.Stdout {
		read, stop = e.whilePipeRead(ctx, file)
	}
	err = run.receive(read, conn, c, outcome)
	stop()
	if file != nil && file != e.Stdout {
		if closeErr := file.(io.Closer).Close(); err == nil && closeErr != nil {
			err = closeErr
		}
	}
	return run.conclude(read, err)
}

// receive is copy, until the daemon has told how it ended; what it tells meanwhile is said.
func (r *captureRun) receive(ctx context.Context, conn *net.UnixConn, c *Client, outcome *os.File) error {
	ended := make(chan error, 1)
	go func() { ended <- c.readNotes(captureMethod, outcome, r.flags.noter(r.e)) }()
	err := r.copy(ctx, conn)
	if err != nil {
		_ = outcome.Close() // nobody asks any more
	}
	if told := <-ended; err == nil {
		err = told
	}
	return err
}

// conclude sums up a capture that has ended with err, and returns what the verb ends with.
func (r *captureRun) conclude(ctx context.Context, err error) error {
	var signal *SignalError
	if (errors.As(err, &signal) || errors.As(context.Cause(ctx), &signal)) && signal.Signal == syscall.SIGPIPE {
		return signal // nobody reads, so there is nothing to sum up
	}
	r.summary()
	if r.e.JSON && r.ended { // what was captured, also when something else ended it
		err = cmp.Or(err, r.e.printJSON(r.capture))
	}
	if err == nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return fmt.Errorf("capture %s: %w", r.capture.Source, ctx.Err())
	}
	return err
}

// noter says what becomes of the interfaces, unless -q was given.
func (f *captureFlags) noter(e *Env) func(note string) {
	return func(note string) {
		if !f.packets.Quiet {
			e.say("%s", cell(note))
		}
	}
}

// open opens the file of -w; nil when there is none. An older file is
// overwritten, as by tcpdump. A FIFO's reader is waited for until ctx ends.
func (f *captureFlags) open(ctx context.Context, e *Env) (io.Writer, error) {
	switch f.write {
	case "":
		return nil, nil
	case "-":
		return e.Stdout, nil
	}
	var file *os.File
	var err error
	if isOther(f.write) {
		file, err = openOther(ctx, f.write)
	} else {
		file, err = createFile(f.write)
	}
	if err != nil {
		return nil, fmt.Errorf("capture: %w", err)
	}
	return file, nil
}
