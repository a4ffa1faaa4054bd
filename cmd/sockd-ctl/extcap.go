package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/sockd/sockd/ctl"
	"github.com/sockd/sockd/families/model"
	"github.com/sockd/sockd/families/packet/filter"
	"github.com/sockd/sockd/families/packet/pcapng"
)

// Wireshark and tshark find programs of their extcap folder and ask each of them, as
// extcap(4) tells:
//
//	sockd-extcap --extcap-interfaces                                  what can be captured on
//	sockd-extcap --extcap-interface I --extcap-dlts                   what its frames are
//	sockd-extcap --extcap-interface I --extcap-config                 what can be set
//	sockd-extcap --extcap-interface I --extcap-capture-filter F       is F a filter?
//	sockd-extcap --extcap-interface I --capture --fifo PATH [...]     capture until told to stop
//
// The program is a link to sockd-ctl. It has no rights of its own: the daemon says who
// may capture.

// extcapName is what the link is called.
const extcapName = "sockd-extcap"

// extcapPrefix stands before the name of an interface, to tell it from the one that
// Wireshark would capture on itself.
const extcapPrefix = "sockd-"

// extcapPatience bounds the questions that are asked while Wireshark starts.
const extcapPatience = 3 * time.Second

// calledAsExtcap tells whether the program was called by its link in Wireshark's folder.
func calledAsExtcap(program string) bool { return filepath.Base(program) == extcapName }

// extcapCall is one command line of Wireshark's.
type extcapCall struct {
	interfaces, dlts, config, capture, version bool

	iface, fifo, filter, direction string
	snaplen                        int
	promiscuous                    bool
}

// parseExtcap reads a command line. --socket goes to e.
func parseExtcap(e *ctl.Env, args []string) (*extcapCall, error) {
	c := &extcapCall{}
	fs := flag.NewFlagSet(extcapName, flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.BoolVar(&c.interfaces, "extcap-interfaces", false, "")
	fs.BoolVar(&c.dlts, "extcap-dlts", false, "")
	fs.BoolVar(&c.config, "extcap-config", false, "")
	fs.BoolVar(&c.capture, "capture", false, "")
	fs.BoolVar(&c.version, "version", false, "")
	fs.String("extcap-version", "", "") // Wireshark's own, which makes no difference
	fs.StringVar(&c.iface, "extcap-interface", "", "")
	fs.StringVar(&c.fifo, "fifo", "", "")
	fs.StringVar(&c.filter, "extcap-capture-filter", "", "")
	fs.StringVar(&e.Socket, "socket", "", "")
	fs.StringVar(&c.direction, "direction", "inout", "")
	fs.IntVar(&c.snaplen, "snaplen", 0, "")
	c.promiscuous = true
	fs.Func("promiscuous", "", func(s string) (err error) {
		c.promiscuous, err = strconv.ParseBool(s)
		return err
	})
	if err := fs.Parse(args); err != nil {
		return nil, &ctl.UsageError{Why: err.Error(), Hint: "Wireshark calls " + extcapName + "; you may want sockd-ctl capture"}
	}
	return c, nil
}

// extcap answers one call of Wireshark's, and returns the exit code.
func extcap(ctx context.Context, e *ctl.Env, args []string) int {
	c, err := parseExtcap(e, args)
	if err == nil {
		err = c.answer(ctx, e)
	}
	ctl.PrintError(e.Stderr, err, false)
	return ctl.ExitCode(err)
}

func (c *extcapCall) answer(ctx context.Context, e *ctl.Env) error {
	switch {
	case c.interfaces:
		return c.listInterfaces(ctx, e)
	case c.version:
		_, err := fmt.Fprintf(e.Stdout, "%s %s\n", extcapName, e.Version)
		return err
	case c.iface == "":
		return &ctl.UsageError{Why: "want --extcap-interfaces, or --extcap-interface NAME", Hint: "Wireshark calls " + extcapName + "; you may want sockd-ctl capture"}
	case c.dlts:
		return c.listLinkTypes(ctx, e)
	case c.config:
		_, err := io.WriteString(e.Stdout, extcapOptions)
		return err
	case c.capture:
		return c.run(ctx, e)
	}
	return c.checkFilter(ctx, e)
}

// source is the interface as the daemon knows it.
func (c *extcapCall) source() string { return strings.TrimPrefix(c.iface, extcapPrefix) }

// ask asks the daemon for its interfaces. It must not keep Wireshark from starting.
func (c *extcapCall) ask(ctx context.Context, e *ctl.Env) ([]model.Interface, error) {
	patience := extcapPatience
	asking := *e
	asking.Timeout = &patience
	return asking.Interfaces(ctx)
}

// listInterfaces writes those of the daemon. Without a daemon there are none, which is
// no failure: Wireshark would show it at each start.
func (c *extcapCall) listInterfaces(ctx context.Context, e *ctl.Env) error {
	list, err := c.ask(ctx, e)
	if err != nil {
		ctl.PrintError(e.Stderr, err, false)
	}
	lines := fmt.Sprintf("extcap {version=%s}{help=https://github.com/sockd/sockd}{display=sockd}\n", e.Version)
	for _, i := range list {
		if strings.ContainsAny(i.Name, "{}") {
			continue // the answer has no way to write it
		}
		lines += fmt.Sprintf("interface {value=%s%s}{display=sockd: %s}\n", extcapPrefix, i.Name, i.Name)
	}
	_, err = io.WriteString(e.Stdout, lines)
	return err
}

// A linkName is a link type as libpcap numbers and names it, and what Wireshark shows.
type linkName struct {
	dlt           int
	name, display string
	link          pcapng.LinkType
}

// extcapLinks are by the daemon's word.
var extcapLinks = map[string]linkName{
	pcapng.Ethernet.String():  {1, "EN10MB", "Ethernet", pcapng.Ethernet},
	pcapng.Raw.String():       {12, "RAW", "Raw IP", pcapng.Raw},
	pcapng.LinuxSLL2.String(): {276, "LINUX_SLL2", "Linux cooked v2", pcapng.LinuxSLL2},
}

// link is the link type of the interface, that of Ethernet when nobody can tell.
func (c *extcapCall) link(ctx context.Context, e *ctl.Env) linkName {
	list, err := c.ask(ctx, e)
	if err == nil {
		for _, i := range list {
			if found, ok := extcapLinks[i.LinkType]; ok && i.Name == c.source() {
				return found
			}
		}
	}
	return extcapLinks[pcapng.Ethernet.String()]
}

func (c *extcapCall) listLinkTypes(ctx context.Context, e *ctl.Env) error {
	l := c.link(ctx, e)
	_, err := fmt.Fprintf(e.Stdout, "dlt {number=%d}{name=%s}{display=%s}\n", l.dlt, l.name, l.display)
	return err
}

// extcapOptions are what Wireshark's dialogue offers for each interface.
const extcapOptions = `arg {number=0}{call=--socket}{display=Control socket}{type=string}{tooltip=Where sockd listens. Empty: where sockd-ctl looks for it}
arg {number=1}{call=--snaplen}{display=Snapshot length}{type=unsigned}{range=0,262144}{default=0}{tooltip=Bytes of each packet that are kept. 0: all}
arg {number=2}{call=--direction}{display=Direction}{type=selector}{tooltip=Which way the packets go}
value {arg=2}{value=inout}{display=in and out}{default=true}
value {arg=2}{value=in}{display=in}{default=false}
value {arg=2}{value=out}{display=out}{default=false}
arg {number=3}{call=--promiscuous}{display=Promiscuous}{type=boolean}{default=true}{tooltip=Packets for other hosts, too}
`

// checkFilter writes what is wrong with a filter, on stdout, where Wireshark looks for
// it; nothing when it is right.
func (c *extcapCall) checkFilter(ctx context.Context, e *ctl.Env) error {
	const anyMask = 0xffffff00 // the daemon knows that of the interface
	if _, err := compileFilter(filter.Options{Netmask: anyMask}, c.filter, filter.LinkType(c.link(ctx, e).link)); err != nil {
		_, err = fmt.Fprintln(e.Stdout, err)
		return err
	}
	return nil
}

// run captures into the fifo until a signal, or until nobody reads it any more; both
// are its normal end. What a capture says on stderr Wireshark would show as an error.
func (c *extcapCall) run(ctx context.Context, e *ctl.Env) error {
	if c.fifo == "" {
		return &ctl.UsageError{Why: "--capture: want --fifo PATH"}
	}
	fifo, err := openFifo(ctx, c.fifo)
	if err != nil {
		return err
	}
	defer fifo.Close() // after an error of a write there is nothing more to learn
	verb, _ := findVerb("capture")
	fs := flag.NewFlagSet(verb.Name, flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	run := verb.Setup(fs)
	if err := fs.Parse(c.captureFlags()); err != nil {
		return &ctl.UsageError{Why: err.Error()}
	}
	capturing := *e
	capturing.Stdout, capturing.Stderr, capturing.StdoutTerminal = fifo, io.Discard, false
	capturing.ReaderGone = func(ctx context.Context) bool { return readerGone(ctx, fifo) }
	err = run(ctx, &capturing, fs.Args())
	var signal *ctl.SignalError
	if errors.Is(err, syscall.EPIPE) || errors.As(err, &signal) {
		return nil
	}
	return err
}

// openFifo opens a pipe that somebody is to read, which takes until he opens it, too, or
// ctx ends. After that the program ends, and with it an open that still waits.
func openFifo(ctx context.Context, path string) (*os.File, error) {
	type result struct {
		file *os.File
		err  error
	}
	opened := make(chan result, 1)
	go func() {
		file, err := os.OpenFile(path, os.O_WRONLY, 0)
		opened <- result{file, err}
	}()
	select {
	case r := <-opened:
		if r.err != nil {
			return nil, fmt.Errorf("capture: %w", r.err)
		}
		return r.file, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// captureFlags are those of sockd-ctl capture that do what is asked for.
func (c *extcapCall) captureFlags() []string {
	flags := []string{"-i", c.source(), "-w", "-", "-Q", c.direction}
	if c.snaplen > 0 {
		flags = append(flags, "-s", strconv.Itoa(c.snaplen))
	}
	if !c.promiscuous {
		flags = append(flags, "-p")
	}
	if c.filter != "" {
		flags = append(flags, "--", c.filter)
	}
	return flags
}
