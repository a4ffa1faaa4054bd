package main

import (
	"context"
	"errors"
	"fmt"
)

var (
	inOurs     = column{key: "in_sockd", head: "sockd's", digits: 0}
	inTheirs   = column{key: "in_tcpdump", head: "tcpdump's", digits: 0}
	setMissing = column{key: "missing", head: "missing", digits: 0}
	setExtra   = column{key: "extra", head: "extra", digits: 0}
	setTwice   = column{key: "twice", head: "twice", digits: 0}
	setDropped = column{key: "dropped", head: "drops of both", digits: 0}
	setWrong   = column{key: "wrong", head: "wrong", digits: 0}
)

// setFilters are what the subscribers ask for: everything, by protocol, by number, by
// range, in combination, by exclusion, by the bytes of headers and of the frame's number.
var setFilters = []string{
	"",
	"udp",
	"src port 40003",
	"udp src portrange 40004-40011",
	"ip src host 10.99.1.2",
	"src net 10.99.1.0/31 and not src port 40000",
	"ether host 02:53:6b:64:00:02 and src port 40005",
	"not (src host 10.99.1.3 or src port 40001)",
	"udp[0:2] & 3 = 1",
	"udp[8 + 7] % 8 = 3 and len <= 100",
	"ip[(ip[0] & 15) * 4 - 5] > 1 or ether[35] - 64 = 2",
}

// measureSets lets subscribers with different filters run beside private tcpdumps with
// the same ones, and compares which packets each of them wrote.
func measureSets(ctx context.Context, b *captureBench) (*captureTable, error) {
	t := &captureTable{Load: loadAverage()}
	if whyNot := b.found(tcpdump(theirs)); whyNot != "" {
		t.Lines = []*captureLine{{Who: theirs, WhyNot: whyNot}}
		return t.finish(inOurs), nil
	}
	f := frameLoad{size: 64, rate: 50_000, count: long(b, int64(200_000), 20_000)}
	lines, err := inFolder(ctx, b, b.ram, func(ctx context.Context, dir string) ([]*captureLine, error) {
		return b.compareSets(ctx, f, dir)
	})
	if err != nil {
		lines = []*captureLine{{Who: ours, WhyNot: "failed: " + err.Error()}}
	}
	t.Lines = lines
	t.judgeSets()
	return t.finish(inOurs, inTheirs, setMissing, setExtra, setTwice, setDropped), nil
}

// judgeSets adds the bars: every filter has its set, and each is tcpdump's.
func (t *captureTable) judgeSets() {
	for _, l := range t.Lines {
		for _, s := range l.samples {
			s[setWrong.key] = s[setMissing.key] + s[setExtra.key] + s[setTwice.key]
			if s[inTheirs.key] == 0 {
				s[setWrong.key]++ // an empty set shows nothing
			}
		}
		t.atMost(l, setWrong.key, 0, "packets other than tcpdump's: "+l.Who)
	}
}

// compareSets runs all captures at once and returns a line for each filter.
func (b *captureBench) compareSets(ctx context.Context, f frameLoad, dir string) (lines []*captureLine, err error) {
	mine, err := b.prepareCaptures(ctx, b.sockd(""))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, mine.end()) }()
	lines, accepted := b.addSets(ctx, mine, dir)
	if len(accepted) == 0 {
		return lines, nil
	}
	peer, err := b.folder(dir)
	if err != nil {
		return nil, err
	}
	private, err := b.startCaptures(ctx, tcpdump(theirs, "-B", "16384"), peer, accepted...)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, private.end()) }()
	if _, err := b.send(ctx, f.job(0)); err != nil {
		return nil, err
	}
	samples, err := compareCaptures(ctx, mine, private)
	return fillLines(lines, samples), err
}

// addSets starts sockd's captures one by one: a filter that it refuses costs a line,
// not the row. It returns all lines, and the filters that were accepted.
func (b *captureBench) addSets(ctx context.Context, c *captures, dir string) (lines []*captureLine, accepted []string) {
	for i, filter := range setFilters {
		l := &captureLine{Who: filter}
		if filter == "" {
			l.Who = "(no filter)"
		}
		lines = append(lines, l)
		err := c.add(b.net, fmt.Sprintf("%s/%d.pcap", dir, i), filter)
		if err == nil {
			err = c.awaitReady(ctx, b)
		}
		if err != nil {
			l.WhyNot = errors.Join(err, c.removeLast()).Error()
			continue
		}
		accepted = append(accepted, filter)
	}
	return lines, accepted
}

// fillLines gives the samples to the lines that take part, in their order.
func fillLines(lines []*captureLine, samples []sample) []*captureLine {
	for _, l := range lines {
		if l.WhyNot == "" && len(samples) > 0 {
			l.samples, samples = samples[:1:1], samples[1:]
		}
	}
	return lines
}

// compareCaptures ends both and reads their files.
func compareCaptures(ctx context.Context, ours, theirs *captures) ([]sample, error) {
	var drops [2][]account
	for i, c := range []*captures{ours, theirs} {
		if err := c.settle(ctx); err != nil {
			return nil, err
		}
		var err error
		if drops[i], _, err = c.finish(ctx); err != nil {
			return nil, err
		}
	}
	var out []sample
	for i := range ours.files {
		s, err := compareFiles(ours.files[i], theirs.files[i])
		if err != nil {
			return nil, err
		}
		s[setDropped.key] = float64(drops[0][i].kernel + drops[1][i].kernel)
		out = append(out, s)
	}
	return out, nil
}

func compareFiles(ours, theirs string) (sample, error) {
	got, err := readCapture(ours)
	if err != nil {
		return nil, err
	}
	want, err := readCapture(theirs)
	if err != nil {
		return nil, err
	}
	d := differ(got.numbers, want.numbers)
	return sample{
		inOurs.key: float64(len(got.numbers)), inTheirs.key: float64(len(want.numbers)),
		setMissing.key: float64(d.missing), setExtra.key: float64(d.extra), setTwice.key: float64(d.twice),
	}, nil
}
