package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

var (
	injectedKpps = column{key: "injected_kpps", head: "kpps", digits: 0, spread: true}
	toTrafgen    = column{key: "ratio_to_trafgen", head: "×trafgen", digits: 2}
	injectCPU    = column{key: "cpu_ns_per_frame", head: "CPU ns each", digits: 0}
)

const (
	trafgen      = "trafgen"
	trafgenQdisc = "trafgen -q"
)

// injectFrames is how many different frames are sent, again and again.
const injectFrames = 64

// trafgen binds its one process to the first processor, so everybody goes there.
const injectCPUMask = "0"

var findTrafgen = findAny(trafgen)

// measureInject counts what comes out of the far end while a program sends as fast as
// it can, everything of it on one processor.
func measureInject(ctx context.Context, b *captureBench) (*captureTable, error) {
	dir, err := b.folder(b.ram)
	if err != nil {
		return nil, err
	}
	pcap, conf := filepath.Join(dir, "frames.pcap"), filepath.Join(dir, "trafgen.cfg")
	if err := errors.Join(os.WriteFile(pcap, injectPcap(), 0o600), os.WriteFile(conf, []byte(trafgenConfig()), 0o600)); err != nil {
		return nil, err
	}
	t := compete(ctx, b.plan(), []contest{
		b.injection(ours, findSockd(b.bin), func(ctx context.Context) (*captures, error) { return b.startInject(ctx, pcap) }),
		b.injection(trafgen, findTrafgen, func(context.Context) (*captures, error) { return b.startTrafgen(conf) }),
		b.injection(trafgenQdisc, findTrafgen, func(context.Context) (*captures, error) { return b.startTrafgen(conf, "--qdisc-path") }),
	})
	for _, l := range t.Lines {
		l.compare(t.line(trafgen), injectedKpps.key, toTrafgen.key)
	}
	t.Notes = append(t.Notes, "trafgen goes past the queueing discipline, trafgen -q through it")
	t.atLeast(t.line(ours), toTrafgen.key, 1, "frames a second of sockd, to trafgen's")
	if b.quick {
		t.withdraw()
	}
	return t.finish(injectedKpps, toTrafgen, injectCPU), nil
}

func (b *captureBench) injection(who string, find func() (string, error), start func(ctx context.Context) (*captures, error)) contest {
	return contest{
		who: who, whyNot: b.found(captureProgram{name: who, find: find}),
		sample: func(ctx context.Context) (sample, error) { return b.measureInjection(ctx, start) },
	}
}

// startInject lets a daemon of its own send.
func (b *captureBench) startInject(ctx context.Context, pcap string) (c *captures, err error) {
	c = &captures{}
	if c.daemon, c.control, err = b.startDaemon(ctx, b.net.near, "taskset", "-c", injectCPUMask); err != nil {
		return nil, err
	}
	err = c.start(inside(b.net.near, "taskset", "-c", injectCPUMask, filepath.Join(b.bin, "sockd-ctl"), "--socket", c.control,
		"inject", nearIface, "-r", pcap, "--loop", "1000000000", "--pps", "max"))
	if err != nil {
		return nil, errors.Join(err, c.end())
	}
	return c, nil
}

func (b *captureBench) startTrafgen(conf string, flags ...string) (*captures, error) {
	c := &captures{}
	line := []string{"-c", injectCPUMask, trafgen, "--dev", nearIface, "--conf", conf, "--cpus", "1", "--no-sock-mem", "--notouch-irq"}
	err := c.start(inside(b.net.near, "sh", quietly(append([]string{"taskset"}, append(line, flags...)...))...))
	if err != nil {
		return nil, err
	}
	return c, nil
}

// measureInjection starts a program and counts in the middle of its work.
func (b *captureBench) measureInjection(ctx context.Context, start func(ctx context.Context) (*captures, error)) (s sample, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, sampleTimeout, fmt.Errorf("no result within %v", sampleTimeout))
	defer cancel()
	first, err := b.net.arrived()
	if err != nil {
		return nil, err
	}
	c, err := start(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, c.end()) }()
	if err := b.awaitFrames(ctx, c, first+10_000); err != nil {
		return nil, err
	}
	return b.window(ctx, c, long(b, 1500*time.Millisecond, 300*time.Millisecond))
}

// awaitFrames waits until so many frames came out of the far end.
func (b *captureBench) awaitFrames(ctx context.Context, c *captures, n int64) error {
	return poll(ctx, patience, 10*time.Millisecond, "sends nothing", func() (bool, error) {
		if p := c.procs[0]; ended(p) {
			return false, reason(p)
		}
		got, err := b.net.arrived()
		return got >= n, err
	})
}

// window counts frames and CPU time for a while.
func (b *captureBench) window(ctx context.Context, c *captures, d time.Duration) (sample, error) {
	before, cpuErr := c.withForks()
	begin := time.Now()
	from, err := b.net.arrived()
	if err := errors.Join(err, cpuErr); err != nil {
		return nil, err
	}
	select {
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-time.After(d):
	}
	to, err := b.net.arrived()
	elapsed := time.Since(begin).Seconds()
	after, cpuErr := c.withForks()
	if err := errors.Join(err, cpuErr); err != nil {
		return nil, err
	}
	n := float64(to - from)
	if n == 0 {
		return nil, errors.New("stopped sending")
	}
	return sample{injectedKpps.key: n / elapsed / 1e3, injectCPU.key: (after - before) * 1e9 / n}, nil
}

// withForks is the CPU time of the processes and of those that they started: trafgen
// sends from a child.
func (c *captures) withForks() (cpu float64, err error) {
	for _, p := range c.all() {
		n, err := cpuOf(p.pid())
		if err != nil {
			return 0, err
		}
		cpu += n
	}
	return cpu, nil
}

// injectPcap is the frames as a pcap file.
func injectPcap() []byte {
	b := appendPcapHead(nil)
	for i := range int64(injectFrames) {
		b = appendPcapRecord(b, time.Unix(0, i*1000), newFrame(64, i))
	}
	return b
}

// trafgenConfig is the same frames in trafgen's language.
func trafgenConfig() string {
	var b strings.Builder
	for i := range int64(injectFrames) {
		b.WriteString("{ ")
		for j, octet := range newFrame(64, i) {
			if j > 0 {
				b.WriteString(", ")
			}
			fmt.Fprintf(&b, "0x%02x", octet)
		}
		b.WriteString(" }\n")
	}
	return b.String()
}
