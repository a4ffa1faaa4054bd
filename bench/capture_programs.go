package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// A captureProgram is one way to write what comes out of the far end into a file.
type captureProgram struct {
	name string
	find func() (version string, err error)
	// command is its arguments, itself among them.
	command func(file, filter string) []string
	// shared says that all captures go to one daemon, which is sockd.
	shared bool
	// linger is how long its ring keeps a block that is not full: after the last
	// packet the program may stay idle that long and still has packets to write.
	linger time.Duration
	// ready is what it says when it captures; nil: it says nothing in time, or the
	// daemon is asked.
	ready *regexp.Regexp
	tally func(words string) (account, error)
}

// An account is what a program says at its end: packets.
type account struct{ captured, kernel int64 }

// The names by which rows compare.
const (
	ours    = "sockd"
	theirs  = "tcpdump"
	theirsB = "tcpdump -B16M"
)

// privateRing is the ring of each program in the disk row, as large as sockd's own.
const privateRing = 64 // MiB

// sockd is a capture by sockd-ctl; the control socket is its daemon's.
func (b *captureBench) sockd(control string) captureProgram {
	return captureProgram{
		name: ours, find: findSockd(b.bin), shared: true, linger: 300 * time.Millisecond,
		tally: tallyTcpdump,
		command: func(file, filter string) []string {
			return append([]string{filepath.Join(b.bin, "sockd-ctl"), "--socket", control, "capture", farIface, "-w", file}, words(filter)...)
		},
	}
}

// tcpdump stays root: the files are in folders that only root may enter.
func tcpdump(name string, flags ...string) captureProgram {
	return captureProgram{
		name: name, find: finder("tcpdump", "--version"), linger: 1200 * time.Millisecond,
		ready: regexp.MustCompile(`listening on`), tally: tallyTcpdump,
		command: func(file, filter string) []string {
			line := append([]string{"tcpdump", "-Z", "root", "-i", farIface, "-n", "-s", "0", "-w", file}, flags...)
			return append(line, words(filter)...)
		},
	}
}

func dumpcap(flags ...string) captureProgram {
	return captureProgram{
		name: "dumpcap", find: finder("dumpcap", "--version"), linger: 600 * time.Millisecond,
		ready: regexp.MustCompile(`(?m)^File: `), tally: tallyDumpcap,
		command: func(file, filter string) []string {
			line := append([]string{"dumpcap", "-q", "-i", farIface, "-w", file}, flags...)
			if filter != "" {
				line = append(line, "-f", filter)
			}
			return line
		},
	}
}

// netsniff leaves the machine's socket memory and interrupts as they are. Its own
// choice of a ring goes by the interface's speed and is 2.4 GB for a veth: a few of
// them would take the machine's memory.
func netsniff() captureProgram {
	return captureProgram{
		name: "netsniff-ng", find: findAny("netsniff-ng"), linger: 600 * time.Millisecond,
		tally: tallyNetsniff,
		command: func(file, filter string) []string {
			line := []string{"netsniff-ng", "--in", farIface, "--out", file, "--ring-size", fmt.Sprintf("%dMiB", privateRing), "--silent", "--no-sock-mem", "--notouch-irq"}
			return append(line, words(filter)...)
		},
	}
}

// findAny looks for a program whose version is what it prints with --version, whatever
// its exit status.
func findAny(name string) func() (string, error) {
	return func() (string, error) {
		path, err := look(name)
		if err != nil {
			return "", err
		}
		out, _ := exec.Command(path, "--version").CombinedOutput() // netsniff-ng ends with 1
		line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
		return line, nil
	}
}

// words splits a filter into arguments; none if it is empty.
func words(filter string) []string { return strings.Fields(filter) }

///// what they say at the end

var (
	packetsCaptured  = regexp.MustCompile(`(\d+) packets? captured`)
	droppedByKernel  = regexp.MustCompile(`(\d+) packets? dropped by kernel`)
	dumpcapTotals    = regexp.MustCompile(`Packets received/dropped on interface '[^']*': (\d+)/(\d+) \(pcap:(\d+)/`)
	netsniffPassed   = regexp.MustCompile(`(\d+)\s+packets passed filter`)
	netsniffOutSpace = regexp.MustCompile(`(\d+)\s+packets failed filter \(out of space\)`)
)

// tallyTcpdump reads what tcpdump says, and sockd-ctl in the same words.
func tallyTcpdump(text string) (account, error) {
	return tallyOf(text, packetsCaptured, 1, droppedByKernel, 1)
}

// tallyDumpcap: dropped is the sum of what the parentheses tell apart; only "pcap" is
// the kernel's.
func tallyDumpcap(text string) (account, error) {
	return tallyOf(text, dumpcapTotals, 1, dumpcapTotals, 3)
}

func tallyNetsniff(text string) (account, error) {
	return tallyOf(text, netsniffPassed, 1, netsniffOutSpace, 1)
}

// tallyOf takes the last match of each expression.
func tallyOf(text string, captured *regexp.Regexp, c int, kernel *regexp.Regexp, k int) (t account, err error) {
	if t.captured, err = lastNumber(text, captured, c); err != nil {
		return account{}, err
	}
	t.kernel, err = lastNumber(text, kernel, k)
	if err != nil {
		return account{}, err
	}
	return t, nil
}

func lastNumber(text string, r *regexp.Regexp, group int) (int64, error) {
	all := r.FindAllStringSubmatch(text, -1)
	if len(all) == 0 {
		return 0, fmt.Errorf("no %q in what it said: %q", r, text)
	}
	return strconv.ParseInt(all[len(all)-1][group], 10, 64)
}

///// running them

// captures are programs that capture, from start to finish. The caller ends them.
type captures struct {
	program captureProgram
	daemon  *child // sockd's; nil for others
	control string // its socket
	procs   []*child
	files   []string
	others  int  // packet sockets that were there before
	before  cost // what they had used when the window began
}

// startCaptures starts one capture for each filter, into files of a folder, and
// returns when all of them capture.
func (b *captureBench) startCaptures(ctx context.Context, p captureProgram, dir string, filters ...string) (c *captures, err error) {
	if c, err = b.prepareCaptures(ctx, p); err != nil {
		return nil, err
	}
	for i, filter := range filters {
		if err = c.add(b.net, fmt.Sprintf("%s/%d.pcap", dir, i), filter); err != nil {
			break
		}
	}
	if err == nil {
		err = c.awaitReady(ctx, b)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", p.name, err), c.end())
	}
	return c, nil
}

// prepareCaptures starts what a program's captures share.
func (b *captureBench) prepareCaptures(ctx context.Context, p captureProgram) (c *captures, err error) {
	c = &captures{program: p}
	if c.others, err = b.net.packetSockets(); err != nil || !p.shared {
		return c, err
	}
	if c.daemon, c.control, err = b.startDaemon(ctx, b.net.far); err != nil {
		return nil, err
	}
	c.program.command = b.sockd(c.control).command
	return c, nil
}

// add starts one capture more at the far end.
func (c *captures) add(w *world, file, filter string) error {
	c.files = append(c.files, file)
	return c.start(inside(w.far, "sh", quietly(c.program.command(file, filter))...))
}

// quietly makes sh run a program with its standard output where its standard error
// is: netsniff-ng says on the one what others say on the other.
func quietly(line []string) []string {
	return append([]string{"-c", `exec "$@" >&2`, "sh"}, line...)
}

func (c *captures) start(line []string) error {
	p, err := startChild(line[0], line[1:]...)
	if err == nil {
		c.procs = append(c.procs, p)
	}
	return err
}

// removeLast ends the capture that was added last.
func (c *captures) removeLast() error {
	last := len(c.procs) - 1
	p := c.procs[last]
	c.procs, c.files = c.procs[:last], c.files[:last]
	return p.end()
}

// startDaemon starts a sockd with nothing configured in a namespace, after words that
// run it.
func (b *captureBench) startDaemon(ctx context.Context, ns *child, before ...string) (*child, string, error) {
	dir, err := b.folder(b.control)
	if err != nil {
		return nil, "", err
	}
	control, config := filepath.Join(dir, "control"), filepath.Join(dir, "config")
	if err := os.Mkdir(config, 0o700); err != nil {
		return nil, "", err
	}
	line := append(before, filepath.Join(b.bin, "sockd"), "--socket", control, "--config", config, "--state", filepath.Join(dir, "state"), "--log-level", "warn")
	line = inside(ns, line[0], line[1:]...)
	_, c, err := layProgram(ctx, endpoint{"unix", control}, line[0], line[1:]...)
	return c, control, err
}

// awaitReady waits until every program says that it captures, and has its socket.
func (c *captures) awaitReady(ctx context.Context, b *captureBench) error {
	return poll(ctx, patience, 20*time.Millisecond, "does not capture", func() (bool, error) {
		for _, p := range c.procs {
			if ended(p) {
				return false, reason(p)
			}
			if r := c.program.ready; r != nil && !r.MatchString(p.words.text()) {
				return false, nil
			}
		}
		if c.program.shared {
			return c.allListed(ctx, b)
		}
		n, err := b.net.packetSockets()
		return n >= c.others+len(c.procs), err
	})
}

// allListed tells whether the daemon lists every capture, and has its socket.
func (c *captures) allListed(ctx context.Context, b *captureBench) (bool, error) {
	n, err := b.net.packetSockets()
	if n <= c.others || err != nil {
		return false, err
	}
	out, err := b.ctl(ctx, c.control, "ls", "captures", "--json")
	if err != nil {
		return false, err
	}
	all, err := parseCaptures([]byte(out))
	return len(all) >= len(c.procs), err
}

// reason tells why a program ended. sockd-ctl says it first, and then what would help.
func reason(c *child) error {
	for line := range strings.Lines(c.words.text()) {
		if words, ok := strings.CutPrefix(line, "sockd-ctl: "); ok && c.ended != nil {
			return errors.New(strings.TrimSpace(words))
		}
	}
	return c.why()
}

func ended(c *child) bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

// text is all that is kept.
func (t *tail) text() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.buf)
}

// all are the captures' processes, the daemon's among them.
func (c *captures) all() []*child {
	if c.daemon == nil {
		return c.procs
	}
	return append([]*child{c.daemon}, c.procs...)
}

// running is the CPU time in seconds that the processes have used so far.
func (c *captures) running() (cpu float64, err error) {
	for _, p := range c.all() {
		n, err := cpuOfOne(p.pid())
		if err != nil {
			return 0, err
		}
		cpu += n
	}
	return cpu, nil
}

// cpuOfOne is the CPU time in seconds of one process without its children; see cpuOf
// for why the scheduler is asked too.
func cpuOfOne(pid int) (float64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	s, err := parseProcStat(string(b))
	return max(s.own, scheduled(pid)), err
}

// begin marks the beginning of the window whose CPU time finish tells.
func (c *captures) begin() (err error) {
	if c.daemon != nil {
		if c.before.daemon, err = cpuOfOne(c.daemon.pid()); err != nil {
			return err
		}
	}
	c.before.all, err = c.running()
	return err
}

// settlePatience bounds how long captures may work after the last packet.
const settlePatience = 20 * time.Second

// settle waits until the processes have nothing left to do: none of them used the CPU
// worth speaking of for as long as a packet may linger in the ring. Without it tcpdump
// would leave behind what it had not read yet, which it counts as received.
func (c *captures) settle(ctx context.Context) error {
	last, err := c.running()
	if err != nil {
		return err
	}
	since := time.Now()
	return poll(ctx, settlePatience, 25*time.Millisecond, c.program.name+" does not come to rest", func() (bool, error) {
		now, err := c.running()
		if now-last > 0.02*c.program.linger.Seconds()+0.002 {
			last, since = now, time.Now()
		}
		return time.Since(since) > c.program.linger, err
	})
}

// stop ends the captures as a user does, with Ctrl-C, and waits for them.
func (c *captures) stop(ctx context.Context) error {
	for _, p := range c.procs {
		_ = syscall.Kill(p.pid(), syscall.SIGINT) // one that has ended is told below
	}
	for _, p := range c.procs {
		select {
		case <-p.done:
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(settlePatience):
			return fmt.Errorf("%s does not end within %v of Ctrl-C", c.program.name, settlePatience)
		}
		if p.ended != nil {
			return fmt.Errorf("%s: %w", c.program.name, reason(p))
		}
	}
	return nil
}

// A cost is CPU time in seconds: of all processes, and of the daemon among them.
type cost struct{ all, daemon float64 }

// finish stops the captures. It returns what they say, and what they used since begin,
// the end among it.
func (c *captures) finish(ctx context.Context) (tallies []account, spent cost, err error) {
	if err := c.stop(ctx); err != nil {
		return nil, cost{}, err
	}
	for _, p := range c.procs {
		t, err := c.program.tally(p.words.text())
		if err != nil {
			return nil, cost{}, fmt.Errorf("%s: %w", c.program.name, err)
		}
		tallies = append(tallies, t)
		state := p.cmd.ProcessState
		spent.all += (state.UserTime() + state.SystemTime()).Seconds()
	}
	if c.daemon != nil {
		spent.daemon, err = cpuOfOne(c.daemon.pid())
	}
	return tallies, cost{spent.all + spent.daemon - c.before.all, spent.daemon - c.before.daemon}, err
}

// end ends every process that is left.
func (c *captures) end() error {
	var errs []error
	for _, p := range c.procs {
		errs = append(errs, p.end())
	}
	if c.daemon != nil {
		errs = append(errs, c.daemon.end())
	}
	return errors.Join(errs...)
}

// ctl runs sockd-ctl and returns what it printed.
func (b *captureBench) ctl(ctx context.Context, control string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(b.bin, "sockd-ctl"), append([]string{"--socket", control, "--timeout", patience.String()}, args...)...)
	var said strings.Builder
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("sockd-ctl %s: %s", strings.Join(args, " "), strings.TrimSpace(said.String()))
	}
	return string(out), nil
}
