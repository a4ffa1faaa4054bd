package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

var (
	rotFiles   = column{key: "files", head: "files", digits: 0}
	rotMost    = column{key: "most_files", head: "most at once", digits: 0}
	rotLargest = column{key: "largest_kib", head: "largest KiB", digits: 0}
	rotTotal   = column{key: "most_total_kib", head: "most in all KiB", digits: 0}
	rotPackets = column{key: "packets", head: "packets", digits: 0}
	rotGaps    = column{key: "gaps", head: "gaps", digits: 0}
	rotTail    = column{key: "missing_at_end", head: "missing at the end", digits: 0}
	rotSeconds = column{key: "over_the_second", head: "over the second", digits: 0}
	rotFull    = column{key: "ended_by_size", head: "by size", digits: 0}
	rotTimed   = column{key: "ended_by_time", head: "by time", digits: 0}
)

// The four limits. At the first rate a file ends by its size, at the second by time.
const (
	rotateSize  = 2 << 20
	rotateCount = 6
	rotateBytes = 7 << 20
	rotateFull  = rotateSize * 9 / 10 // a file of so much ended by its size
	rotateFast  = 10_000
	rotateSlow  = 400
)

// measureRotate captures with all limits at once and looks at what is there, all the
// time and at the end.
func measureRotate(ctx context.Context, b *captureBench) (*captureTable, error) {
	t := compete(ctx, plan{rounds: 1}, []contest{{who: ours, sample: b.inRAM(b.measureRotation)}})
	l := t.line(ours)
	if strings.Contains(l.WhyNot, "flag") { // sockd-ctl has them not
		l.WhyNot = "n/a: " + strings.TrimPrefix(l.WhyNot, "failed: ")
	}
	t.atMost(l, rotLargest.key, rotateSize>>10, "KiB of the largest file (-C)")
	t.atMost(l, rotMost.key, rotateCount, "files at once (-W)")
	t.atMost(l, rotTotal.key, rotateBytes>>10, "KiB of all files at once (--max-bytes)")
	t.atMost(l, rotSeconds.key, 0, "files that reach over a second's end (-G 1)")
	t.atLeast(l, rotFull.key, 1, "files that ended by size")
	t.atLeast(l, rotTimed.key, 2, "files that ended by time")
	t.atMost(l, rotGaps.key, 0, "gaps within and between the files")
	t.atMost(l, rotTail.key, 0, "packets missing at the end")
	return t.finish(rotFiles, rotMost, rotLargest, rotTotal, rotPackets, rotGaps, rotTail, rotSeconds, rotFull, rotTimed), nil
}

// rotated makes sockd's capture one of many files.
func rotated(p captureProgram) captureProgram {
	plain := p.command
	p.command = func(file, filter string) []string {
		return append(plain(file, filter),
			"-C", "2M", "-G", "1", "-W", fmt.Sprint(rotateCount), "--max-bytes", fmt.Sprint(rotateBytes))
	}
	return p
}

func (b *captureBench) measureRotation(ctx context.Context, dir string) (s sample, err error) {
	c, err := b.startRotation(ctx, dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, c.end()) }()
	w := watchFolder(dir)
	sent, err := b.sendRotation(ctx, c)
	most, watchErr := w.stop()
	if err := errors.Join(err, watchErr); err != nil {
		return nil, err
	}
	s, err = sumRotation(dir, sent)
	if err != nil {
		return nil, err
	}
	s[rotMost.key], s[rotTotal.key] = float64(most.files), float64(most.bytes)/1024
	s[rotLargest.key], s[rotFull.key] = float64(most.largest)/1024, float64(most.full)
	return s, nil
}

// startRotation is startCaptures with the flags of rotation.
func (b *captureBench) startRotation(ctx context.Context, dir string) (c *captures, err error) {
	if c, err = b.prepareCaptures(ctx, b.sockd("")); err != nil {
		return nil, err
	}
	c.program = rotated(c.program)
	if err = c.add(b.net, filepath.Join(dir, "r.pcapng"), ""); err == nil {
		err = c.awaitReady(ctx, b)
	}
	if err != nil {
		return nil, errors.Join(err, c.end())
	}
	return c, nil
}

// sendRotation sends fast and then slowly, and ends the capture.
func (b *captureBench) sendRotation(ctx context.Context, c *captures) (sent int64, err error) {
	for _, f := range []frameLoad{
		{size: stallFrame, rate: rotateFast, count: long(b, int64(20_000), 10_000)},
		{size: stallFrame, rate: rotateSlow, count: rotateSlow * 5 / 2},
	} {
		o, err := b.send(ctx, f.job(sent))
		if err != nil {
			return 0, err
		}
		sent += o.Ops
	}
	if err := c.settle(ctx); err != nil {
		return 0, err
	}
	return sent, c.stop(ctx)
}

// sumRotation reads the files that are left, in the order of their first packets.
func sumRotation(dir string, sent int64) (sample, error) {
	names, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		return nil, err
	}
	s := sample{rotFiles.key: float64(len(names)), rotSeconds.key: 0, rotTimed.key: 0}
	var files []*captureFile
	for _, name := range names {
		f, err := s.rotated(name)
		if err != nil {
			return nil, err
		}
		if len(f.numbers) > 0 { // the last second may have been quiet
			files = append(files, f)
		}
	}
	all := inOrder(files)
	if len(all) == 0 {
		return nil, errNoPackets
	}
	s[rotPackets.key], s[rotGaps.key] = float64(len(all)), float64(gaps(all))
	s[rotTail.key] = float64(sent - 1 - all[len(all)-1])
	return s, nil
}

// inOrder are the numbers of files that are not empty, whatever their names.
func inOrder(files []*captureFile) (all []int64) {
	slices.SortFunc(files, func(a, b *captureFile) int { return cmp.Compare(a.numbers[0], b.numbers[0]) })
	for _, f := range files {
		all = append(all, f.numbers...)
	}
	return all
}

// rotated reads a file and counts it by what ended it.
func (s sample) rotated(name string) (*captureFile, error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	f, err := readCapture(name)
	if err != nil || len(f.times) == 0 {
		return f, err
	}
	const second = int64(time.Second)
	if f.times[0]/second != f.times[len(f.times)-1]/second {
		s[rotSeconds.key]++
	}
	if info.Size() < rotateFull {
		s[rotTimed.key]++
	}
	return f, nil
}

///// what is there meanwhile

// A folderWatch looks at a folder again and again, and keeps the most that it saw.
type folderWatch struct {
	dir   string
	quit  chan struct{}
	done  sync.WaitGroup
	most  folderSize
	sizes map[uint64]int64 // by inode, the most that each file had
	err   error
}

// A folderSize is the most that was there at once, and of each file that ever was.
type folderSize struct {
	files   int
	bytes   int64
	largest int64
	full    int // files that came near rotateSize
}

func watchFolder(dir string) *folderWatch {
	w := &folderWatch{dir: dir, quit: make(chan struct{}), sizes: map[uint64]int64{}}
	w.done.Go(w.run)
	return w
}

func (w *folderWatch) run() {
	t := time.NewTicker(5 * time.Millisecond)
	defer t.Stop()
	for w.err == nil {
		select {
		case <-w.quit:
			w.look()
			return
		case <-t.C:
			w.look()
		}
	}
}

func (w *folderWatch) look() {
	entries, err := os.ReadDir(w.dir)
	if err != nil {
		w.err = err
		return
	}
	var now folderSize
	seen := map[uint64]bool{} // a file that was renamed meanwhile may be there twice
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || seen[inode(info)] {
			continue // it was taken away meanwhile
		}
		seen[inode(info)] = true
		w.sizes[inode(info)] = max(w.sizes[inode(info)], info.Size())
		now.files++
		now.bytes += info.Size()
	}
	w.most.files, w.most.bytes = max(w.most.files, now.files), max(w.most.bytes, now.bytes)
}

func inode(info os.FileInfo) uint64 { return info.Sys().(*syscall.Stat_t).Ino }

// stop ends the watching and returns the most that was there.
func (w *folderWatch) stop() (folderSize, error) {
	close(w.quit)
	w.done.Wait()
	for _, size := range w.sizes {
		w.most.largest = max(w.most.largest, size)
		if size > rotateFull {
			w.most.full++
		}
	}
	return w.most, w.err
}
