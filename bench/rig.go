package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"
)

// sampleTimeout bounds one sample, start and end of the programs included.
const sampleTimeout = 45 * time.Second

// A rig is where samples are taken: a folder of its own, and the limit of descriptors
// that every program inherits.
type rig struct {
	dir   string
	self  string // this program, to run as source and sink
	limit int
	count int
}

func newRig() (*rig, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	limit, err := raiseLimit()
	if err != nil {
		return nil, err
	}
	if err := adoptOrphans(); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "sockd-bench")
	if err != nil {
		return nil, err
	}
	return &rig{dir: dir, self: self, limit: limit}, nil
}

func (b *rig) close() error { return os.RemoveAll(b.dir) }

// raiseLimit raises the soft limit of descriptors to the hard one and returns it.
func raiseLimit() (int, error) {
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		return 0, os.NewSyscallError("getrlimit", err)
	}
	// Set by ourselves, it is inherited; what the Go runtime raised is not.
	l.Cur = l.Max
	return int(min(l.Max, 1<<20)), os.NewSyscallError("setrlimit", syscall.Setrlimit(syscall.RLIMIT_NOFILE, &l))
}

// A sample is what one turn of one peer gave, by column key.
type sample map[string]float64

// A result is what all turns of one peer in one row gave.
type result struct {
	peer    string
	samples []sample
	whyNot  string // why there are no numbers
}

// measure takes a row's samples: every peer once a round, each round beginning with
// another one. A peer that fails is out of the rest of the row.
func (b *rig) measure(ctx context.Context, r row, peers []candidate, p plan) []result {
	out := make([]result, len(peers))
	for i, c := range peers {
		out[i].peer = c.name
		if _, out[i].whyNot = r.fit(c.peer, b.limit); out[i].whyNot == "" && c.missing != nil {
			out[i].whyNot = c.missing.Error()
		}
	}
	for turn := range p.turns(len(peers)) {
		res := &out[turn.peer]
		if res.whyNot != "" || ctx.Err() != nil {
			continue
		}
		fitted, _ := r.fit(peers[turn.peer].peer, b.limit)
		s, err := b.sample(ctx, fitted, peers[turn.peer].peer)
		if err != nil {
			res.whyNot, res.samples = "failed: "+err.Error(), nil
			continue
		}
		if turn.counts {
			res.samples = append(res.samples, s)
		}
	}
	return out
}

// sample is one turn: a sink, a peer before it, a source; and their end.
func (b *rig) sample(ctx context.Context, r row, p peer) (s sample, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, sampleTimeout, fmt.Errorf("no result within %v", sampleTimeout))
	defer cancel()
	b.count++
	dir := fmt.Sprintf("%s/%d", b.dir, b.count)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	t := &turnout{}
	defer func() { err = errors.Join(err, t.end(), os.RemoveAll(dir)) }()
	if err := t.start(ctx, b.self, dir, r, p); err != nil {
		return nil, err
	}
	if r.job.Kind == idle {
		return t.hold(ctx)
	}
	return t.run(ctx, r.job)
}

// A turnout is the programs of one sample.
type turnout struct {
	sink, relay, source *child // relay is nil for direct
}

// start runs the programs until the source is ready to begin.
func (t *turnout) start(ctx context.Context, self, dir string, r row, p peer) (err error) {
	if t.sink, err = startChild(self, "sink", dir); err != nil {
		return err
	}
	var at places
	if err := t.sink.hear(ctx, &at); err != nil {
		return fmt.Errorf("sink: %w", err)
	}
	j := r.job
	if j.To, t.relay, err = p.lay(ctx, dir, r.from, at.of(r)); err != nil {
		return err
	}
	if t.source, err = startChild(self, "source"); err != nil {
		return err
	}
	if err := t.source.say(j); err != nil {
		return err
	}
	var ready string
	return t.blame(t.source.hear(ctx, &ready))
}

// end ends what start started, the source first, so that the others see it leave.
func (t *turnout) end() error {
	var errs []error
	for _, c := range []*child{t.source, t.relay, t.sink} {
		if c != nil {
			errs = append(errs, c.end())
		}
	}
	return errors.Join(errs...)
}

// blame adds the relay's last words to what the source met, if it has ended.
func (t *turnout) blame(err error) error {
	if err == nil || t.relay == nil {
		return err
	}
	select {
	case <-t.relay.done:
		return fmt.Errorf("%w; the relay ended: %w", err, t.relay.why())
	default:
		return err
	}
}

// A bill is CPU time in seconds so far: of the whole machine, of the relay, and of
// sink and source.
type bill struct{ box, relay, load float64 }

func (t *turnout) bill() (b bill, err error) {
	var errs [4]error
	b.box, errs[0] = boxCPU()
	if t.relay != nil {
		b.relay, errs[1] = cpuOf(t.relay.pid())
	}
	sink, err := cpuOf(t.sink.pid())
	errs[2] = err
	source, err := cpuOf(t.source.pid())
	errs[3] = err
	b.load = sink + source
	return b, errors.Join(errs[:]...)
}

// run lets the source go and says what came of it.
func (t *turnout) run(ctx context.Context, j job) (sample, error) {
	before, err := t.bill()
	if err != nil {
		return nil, err
	}
	started := time.Now()
	var o outcome
	if err := errors.Join(t.source.say("go"), t.blame(t.source.hear(ctx, &o))); err != nil {
		return nil, err
	}
	if j.Kind == bulk {
		if err := t.arrival(ctx, &o); err != nil {
			return nil, err
		}
	}
	after, err := t.bill()
	if err != nil {
		return nil, err
	}
	spent := bill{after.box - before.box, after.relay - before.relay, after.load - before.load}
	s := priced(j.Kind, o, spent, t.relay != nil)
	s[othersKey] = max(0, spent.box-spent.relay-spent.load) / time.Since(started).Seconds()
	return s, nil
}

// arrival waits until the sink has all of a bulk stream: then it ended, and all of it
// must be there.
func (t *turnout) arrival(ctx context.Context, o *outcome) error {
	var a arrived
	if err := t.sink.hear(ctx, &a); err != nil {
		return fmt.Errorf("the end of the stream did not arrive: %w", t.blame(err))
	}
	if a.Bytes != o.Bytes {
		return fmt.Errorf("%d of %d bytes arrived", a.Bytes, o.Bytes)
	}
	o.End = a.End
	return nil
}

// priced turns an outcome into a sample: work a second, and CPU time a unit of work.
func priced(k kind, o outcome, spent bill, relayed bool) sample {
	elapsed := float64(o.End-o.Start) / 1e9
	s := sample{}
	price := func(box, relay column, units float64) {
		s[box.key] = spent.box / units
		if relayed {
			s[relay.key] = spent.relay / units
		}
	}
	if k == bulk {
		s[gbps.key] = float64(o.Bytes) * 8 / 1e9 / elapsed
		price(boxGB, relayGB, float64(o.Bytes)/1e9)
		return s
	}
	s[rate.key] = float64(o.Ops) / elapsed
	price(boxOp, relayOp, float64(o.Ops)/1e6)
	if k == datagrams {
		s[lost.key] = 100 * float64(o.Lost) / float64(o.Ops+o.Lost)
		return s
	}
	s[p50.key], s[p99.key] = o.P50, o.P99
	return s
}

// hold lets the source open its sessions and says what the relay holds for them.
func (t *turnout) hold(ctx context.Context) (sample, error) {
	empty, err := holdings(t.relay.pid())
	if err != nil {
		return nil, err
	}
	var o outcome
	if err := errors.Join(t.source.say("go"), t.blame(t.source.hear(ctx, &o))); err != nil {
		return nil, err
	}
	full, err := holdings(t.relay.pid())
	if err != nil {
		return nil, err
	}
	n := float64(o.Ops)
	return sample{
		rssKiB.key:     (full.rss - empty.rss) / n,
		pssKiB.key:     (full.pss - empty.pss) / n,
		perSession.key: float64(full.descriptors-empty.descriptors) / n,
		sessions.key:   n,
		emptyMiB.key:   empty.rss / 1024,
	}, nil
}
