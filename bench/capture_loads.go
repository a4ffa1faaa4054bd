package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"
)

// The numbers of a load: frames into the far end while captures write them.
var (
	sentKpps    = column{key: "sent_kpps", head: "sent kpps", digits: 0, spread: true}
	toOne       = column{key: "ratio_to_one", head: "×1", digits: 2}
	toTcpdump   = column{key: "ratio_to_tcpdump", head: "×tcpdump", digits: 2}
	toTcpdumpB  = column{key: "ratio_to_tcpdump_b", head: "×-B16M", digits: 2}
	lostPercent = column{key: "lost_percent", head: "not in file %", digits: 2}
	kernelDrops = column{key: "kernel_drops", head: "kernel drops", digits: 0}
	cpuEach     = column{key: "cpu_s_per_million", head: "CPU s/M", digits: 2}
	cpuWritten  = column{key: "cpu_ns_per_written", head: "CPU ns each", digits: 0}
	cpuDaemon   = column{key: "daemon_cpu_s_per_million", head: "daemon s/M", digits: 2}
	cpuRatio    = column{key: "cpu_ratio_to_tcpdump", head: "×tcpdump", digits: 2}
)

// A load is one sample of captures: so many of a program at once, while a job's
// frames pass.
type load struct {
	program captureProgram
	n       int
	in      string // the place of the files
	job     frameLoad
}

// A frameLoad is a job of frames.
type frameLoad struct {
	size  int
	count int64
	rate  int64
	dur   time.Duration
}

func (f frameLoad) job(first int64) job {
	return job{Size: f.size, Count: f.count, For: f.dur, Frames: &frameJob{First: first, Rate: f.rate}}
}

// measureLoad runs a load. Its numbers are by what came out of the far end: a frame
// that the kernel lost on the way there nobody could capture.
func (b *captureBench) measureLoad(ctx context.Context, l load) (sample, error) {
	return inFolder(ctx, b, l.in, func(ctx context.Context, dir string) (sample, error) {
		if l.n == 0 {
			s, _, err := b.pass(ctx, l.job)
			return s, err
		}
		return b.capture(ctx, l, dir)
	})
}

// capture is a load with captures.
func (b *captureBench) capture(ctx context.Context, l load, dir string) (s sample, err error) {
	c, err := b.startCaptures(ctx, l.program, dir, make([]string, l.n)...)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, c.end()) }()
	if err := c.begin(); err != nil {
		return nil, err
	}
	s, passed, err := b.pass(ctx, l.job)
	if err != nil {
		return nil, err
	}
	if err := c.settle(ctx); err != nil {
		return nil, err
	}
	tallies, spent, err := c.finish(ctx)
	if err != nil {
		return nil, err
	}
	s.price(passed, tallies, spent)
	return s, weigh(c.files, tallies, l.job.size)
}

// pass sends a load's frames and returns how many came out of the far end.
func (b *captureBench) pass(ctx context.Context, f frameLoad) (s sample, n int64, err error) {
	var o outcome
	n, err = b.net.passed(func() (err error) { o, err = b.send(ctx, f.job(0)); return err })
	if err != nil {
		return nil, 0, err
	}
	elapsed := float64(o.End-o.Start) / 1e9
	return sample{sentKpps.key: float64(n) / elapsed / 1e3}, n, nil
}

// price adds what captures of so many passed frames made of them, and what they cost.
func (s sample) price(passed int64, tallies []account, spent cost) {
	var captured, kernel int64
	for _, t := range tallies {
		captured += t.captured
		kernel += t.kernel
	}
	all := float64(passed) * float64(len(tallies))
	s[lostPercent.key] = 100 * (all - float64(captured)) / all
	s[kernelDrops.key] = float64(kernel)
	s[cpuEach.key] = spent.all / (float64(passed) / 1e6)
	if spent.daemon > 0 {
		s[cpuDaemon.key] = spent.daemon / (float64(passed) / 1e6)
	}
	if captured > 0 {
		s[cpuWritten.key] = spent.all * 1e9 / float64(captured)
	}
}

// weigh fails when a file is smaller than the packets that a program says it wrote.
func weigh(files []string, tallies []account, size int) error {
	for i, file := range files {
		info, err := os.Stat(file)
		if err != nil {
			return err
		}
		if want := tallies[i].captured * int64(size); info.Size() < want {
			return fmt.Errorf("a file of %d bytes for %d packets of %d", info.Size(), tallies[i].captured, size)
		}
	}
	return nil
}

// contest makes a load a line of a table.
func (b *captureBench) contest(who string, l load) contest {
	c := contest{who: who, sample: func(ctx context.Context) (sample, error) { return b.measureLoad(ctx, l) }}
	if l.n > 0 {
		c.whyNot = b.found(l.program)
	}
	return c
}

///// taps

// tapCounts are how many captures there are at once, and which of them netsniff-ng has.
func tapCounts(quick bool) (counts, few []int) {
	if quick {
		return []int{1, 8}, []int{8}
	}
	return []int{1, 2, 4, 8, 16}, []int{8, 16}
}

func times(program string, n int) string { return fmt.Sprintf("%2d %s", n, program) }

// measureTaps counts what the sender loses to captures at the far end, whose taps the
// kernel serves in the sender's own time.
func measureTaps(ctx context.Context, b *captureBench) (*captureTable, error) {
	f := frameLoad{size: 64, dur: long(b, 1200*time.Millisecond, 250*time.Millisecond)}
	if err := roomFor(b.ram, 4<<30); err != nil {
		return nil, err
	}
	t := compete(ctx, b.plan(), b.tapContests(f))
	counts, _ := tapCounts(b.quick)
	for _, p := range []string{ours, theirs, theirsB, "dumpcap"} {
		for _, n := range counts {
			t.line(times(p, n)).compare(t.line(times(p, 1)), sentKpps.key, toOne.key)
		}
	}
	for _, l := range t.Lines {
		var n int
		if _, err := fmt.Sscan(l.Who, &n); err != nil {
			continue // nobody captures
		}
		l.compare(t.line(times(theirs, n)), sentKpps.key, toTcpdump.key)
		l.compare(t.line(times(theirsB, n)), sentKpps.key, toTcpdumpB.key)
	}
	t.tapBars()
	if b.quick {
		t.withdraw()
	}
	return t.finish(sentKpps, toOne, toTcpdump, toTcpdumpB, lostPercent, kernelDrops, cpuEach, cpuDaemon), nil
}

func (b *captureBench) tapContests(f frameLoad) []contest {
	contests := []contest{b.contest("nobody", load{in: b.ram, job: f})}
	counts, few := tapCounts(b.quick)
	for _, n := range counts {
		for _, p := range []captureProgram{b.sockd(""), tcpdump(theirs), tcpdump(theirsB, "-B", "16384"), dumpcap()} {
			contests = append(contests, b.contest(times(p.name, n), load{p, n, b.ram, f}))
		}
	}
	for _, n := range few {
		contests = append(contests, b.contest(times("netsniff-ng", n), load{netsniff(), n, b.ram, f}))
	}
	return contests
}

func (t *captureTable) tapBars() {
	t.atLeast(t.line(times(ours, 8)), toOne.key, 0.85, "sender with 8 subscribers of sockd, to with 1")
	t.atLeast(t.line(times(ours, 8)), toTcpdump.key, 1.6, "sender with 8 subscribers of sockd, to with 8 tcpdumps")
	t.atLeast(t.line(times(ours, 16)), toTcpdump.key, 2.5, "sender with 16 subscribers of sockd, to with 16 tcpdumps")
	for _, n := range []int{1, 2, 4, 8, 16} {
		if l := t.line(times(ours, n)); len(l.samples) > 0 {
			t.atMost(l, kernelDrops.key, 0, fmt.Sprintf("kernel drops, %d subscribers of sockd", n))
			t.atMost(l, lostPercent.key, 0, fmt.Sprintf("%% not in the files, %d subscribers of sockd", n))
		}
	}
}

///// one capture

// measureFull is one capture of each program while the sender does what it can.
func measureFull(ctx context.Context, b *captureBench) (*captureTable, error) {
	f := frameLoad{size: 64, dur: long(b, 2*time.Second, 300*time.Millisecond)}
	t := b.competeAlone(ctx, b.ram, f, b.sockd(""), tcpdump(theirs), tcpdump(theirsB, "-B", "16384"), dumpcap(), netsniff())
	t.atMost(t.line(ours), lostPercent.key, 0, "% not in sockd's file")
	t.atMost(t.line(ours), kernelDrops.key, 0, "kernel drops of sockd")
	t.atMost(t.line(ours), cpuRatio.key, 1, "CPU a packet of sockd, to tcpdump's")
	if b.quick {
		t.withdraw()
	}
	return t.finish(sentKpps, lostPercent, kernelDrops, cpuWritten, cpuRatio, cpuDaemon), nil
}

// The disk row's rate, and how many bytes a packet takes in a file at most.
const (
	diskRate   = 300_000
	diskFrame  = 1400
	diskInFile = 1500
)

// measureDisk is the same at a fixed rate, to a real disk.
func measureDisk(ctx context.Context, b *captureBench) (*captureTable, error) {
	f := frameLoad{size: diskFrame, rate: diskRate, dur: long(b, 4*time.Second, 400*time.Millisecond)}
	if err := roomFor(b.disk, int64(f.dur.Seconds()*diskRate*diskInFile*5/4)); err != nil {
		return nil, err
	}
	ring := fmt.Sprint(privateRing)
	t := b.competeAlone(ctx, b.disk, f, b.sockd(""), tcpdump(theirs, "-B", fmt.Sprint(privateRing<<10)),
		dumpcap("-B", ring), netsniff())
	t.atMost(t.line(ours), lostPercent.key, 0, "% not in sockd's file")
	t.atMost(t.line(ours), cpuRatio.key, 1.0/3, "CPU a packet of sockd, to tcpdump's")
	if rate, ok := t.line(ours).median(sentKpps.key); ok && rate < 0.97*diskRate/1e3 {
		t.Notes = append(t.Notes, fmt.Sprintf("the sender reached %.0f,000 packets/s, not %d,000", rate, diskRate/1000))
	}
	if inMemory(b.disk) {
		t.Notes = append(t.Notes, b.disk+" is in memory: TMPDIR names a folder on a disk")
	}
	if b.quick {
		t.withdraw()
	}
	return t.finish(sentKpps, lostPercent, kernelDrops, cpuWritten, cpuRatio, cpuDaemon), nil
}

// competeAlone is one capture of each program at a time, compared with tcpdump.
func (b *captureBench) competeAlone(ctx context.Context, in string, f frameLoad, programs ...captureProgram) *captureTable {
	var contests []contest
	for _, p := range programs {
		contests = append(contests, b.contest(p.name, load{p, 1, in, f}))
	}
	t := compete(ctx, b.plan(), contests)
	for _, l := range t.Lines {
		l.compare(t.line(theirs), cpuWritten.key, cpuRatio.key)
	}
	return t
}
