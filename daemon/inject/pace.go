package inject

import (
	"context"
	"time"

	"github.com/sockd/sockd/families/packet/inject"
)

// catchUp is how far an injection at a rate of its own may lag behind before what is
// late is given up: a stall must not become a burst of its whole length.
const catchUp = 50 * time.Millisecond

// pace says when each frame is due, after the first. Every due time is counted from the
// beginning, so that nothing drifts, and the clock is asked only when a frame is not due
// by what it said last: once for all those that a late waking finds due.
type pace struct {
	pps   int64 // a rate; 0: all at once; below 0: as each frame says
	begun time.Time
	now   time.Duration // what the clock said last, since begun
	base  time.Duration // when this pass began, or the current second of the rate
	n     int64         // frames since base
	next  time.Duration // when the frame in hand is due
	last  time.Duration // the latest time of a frame in this pass
}

// due tells whether the next frame is known to be due. If not, wait is next.
func (p *pace) due(at time.Duration) bool {
	switch {
	case p.begun.IsZero():
		p.begun = time.Now()
	case p.pps > 0 && p.n == p.pps:
		p.base, p.n = p.base+time.Second, 0
	}
	switch {
	case p.pps > 0:
		p.next = p.base + time.Duration(p.n*int64(time.Second)/p.pps)
	case p.pps < 0:
		p.next = p.base + at
		p.last = max(p.last, at)
	}
	p.n++
	return p.next <= p.now
}

// wait waits until the frame in hand is due, or ctx has ended.
func (p *pace) wait(ctx context.Context) {
	p.now = time.Since(p.begun)
	if late := p.now - p.next; p.pps > 0 && late > catchUp {
		p.base += late
	}
	if p.next > p.now {
		inject.Sleep(ctx, p.next-p.now)
		p.now = time.Since(p.begun)
	}
}

// again begins the next pass: after the last frame by the average of the pauses.
func (p *pace) again() {
	if p.pps >= 0 {
		return
	}
	p.base += p.last
	if p.n > 1 {
		p.base += p.last / time.Duration(p.n-1)
	}
	p.n, p.last = 0, 0
}

func (p *pace) elapsed() time.Duration {
	if p.begun.IsZero() {
		return 0
	}
	return time.Since(p.begun)
}
