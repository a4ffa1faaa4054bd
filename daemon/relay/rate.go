package relay

import (
	"math/bits"
	"sync"
	"sync/atomic"
	"time"
)

// bucket paces one direction of all sessions of a relay together: over any time, no
// more than rate × time and one burst pass. It has no goroutine and no timer: whoever
// has to wait is told how long, and comes back. Its methods may be called from any
// goroutine and allocate nothing.
//
// It is a token bucket told in time: paid is when everything that was promised so far
// is paid for at the rate. Before now, there is credit, of a burst at most; after
// now, bytes have been promised ahead.
//
//	          burst of credit
//	──────┼──────────────────┼───────────────┼────────► time
//	    oldest              now             paid
//	                         └─ promised ahead ─┘
type bucket struct {
	clock func() time.Duration // monotonic
	rate  atomic.Int64         // bytes a second; 0 is no limit
	// epoch moves with the rate: a promise at another rate is none.
	epoch atomic.Uint32

	mu   sync.Mutex // guards paid, part
	paid time.Duration
	part int64 // of a nanosecond behind paid, in 1/rate
}

const (
	// burstTime is how long a direction that was quiet may make up for: short enough
	// that a second's count is within a tenth of the rate.
	burstTime = 100 * time.Millisecond
	// leastBurst is what may pass at once at any rate: one buffer of a stream, and
	// more than the longest datagram, which has to pass in one piece.
	leastBurst = 64 << 10
	// pieceShare is what part of a second's bytes a session is promised when it has
	// to wait: more would make others wait longer for their turn, less would wake it
	// for next to nothing.
	pieceShare = 100
)

// newBucket makes one for rate bytes a second; 0 is no limit.
func newBucket(rate int64) *bucket {
	start := time.Now()
	return newBucketAt(rate, func() time.Duration { return time.Since(start) })
}

func newBucketAt(rate int64, clock func() time.Duration) *bucket {
	b := &bucket{clock: clock}
	b.setRate(rate)
	return b
}

// setRate changes the rate, from now on, also for those who wait. The same rate
// changes nothing; another one begins with a full burst.
func (b *bucket) setRate(rate int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if rate == b.rate.Load() && b.epoch.Load() > 0 {
		return
	}
	b.rate.Store(rate)
	b.epoch.Add(1)
	b.part = 0
	if rate > 0 {
		b.paid = b.clock() - burstOf(rate)
	}
}

// burstOf is how long the burst takes at a rate.
func burstOf(rate int64) time.Duration {
	return max(burstTime, time.Duration((leastBurst*int64(time.Second)+rate-1)/rate))
}

// spend counts n bytes that pass in one piece, as a message does, whether there is
// room or not, and says how long to wait before the next one. n is a message or a
// batch of them, not more than 1 GiB. Who waits as told is over the rate by no more
// than that one piece.
func (b *bucket) spend(n int) (wait time.Duration) {
	if b.rate.Load() == 0 || n <= 0 {
		return 0
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	rate, now := b.rate.Load(), b.clock()
	if rate == 0 {
		return 0
	}
	b.settleLocked(rate, now)
	b.chargeLocked(rate, int64(n))
	return max(0, b.dueLocked()-now)
}

// settleLocked forgets credit beyond a burst.
func (b *bucket) settleLocked(rate int64, now time.Duration) {
	if oldest := now - burstOf(rate); b.paid < oldest {
		b.paid, b.part = oldest, 0
	}
}

// creditLocked is how many bytes may pass now.
func (b *bucket) creditLocked(rate int64, now time.Duration) int64 {
	d := now - b.dueLocked()
	if d <= 0 {
		return 0
	}
	hi, lo := bits.Mul64(uint64(d), uint64(rate)) // d is a burst at most: the quotient fits
	n, _ := bits.Div64(hi, lo, uint64(time.Second))
	return int64(n)
}

// chargeLocked promises n bytes, or with a negative n takes a promise back. Nothing is
// lost to rounding.
func (b *bucket) chargeLocked(rate, n int64) {
	whole, part := n*int64(time.Second)/rate, n*int64(time.Second)%rate
	b.paid, b.part = b.paid+time.Duration(whole), b.part+part
	switch {
	case b.part >= rate:
		b.paid, b.part = b.paid+1, b.part-rate
	case b.part < 0:
		b.paid, b.part = b.paid-1, b.part+rate
	}
}

// dueLocked is paid with its part of a nanosecond rounded up.
func (b *bucket) dueLocked() time.Duration {
	if b.part > 0 {
		return b.paid + 1
	}
	return b.paid
}

// turn is one stream's place at a bucket. It belongs to one goroutine at a time.
//
// Who finds the bucket empty is promised a piece of what comes, behind all those who
// were promised theirs before: so everybody's turn comes, however busy the others
// are. The promise is kept here.
type turn struct {
	b     *bucket
	held  int           // bytes that are promised
	due   time.Duration // from when on
	epoch uint32
}

// turn gives a stream its place.
func (b *bucket) turn() turn { return turn{b: b} }

// take asks to pass up to want bytes. Either granted is 1 or more, the bytes may pass
// at once, and wait is 0; or it is 0, and wait is how long to wait before asking
// again, which is then granted something. Nothing forbids to ask sooner. want is from
// 1 to 1 GiB. What was granted and did not pass goes to giveBack.
func (t *turn) take(want int) (granted int, wait time.Duration) {
	if t.b.rate.Load() == 0 {
		t.held = 0
		return want, 0
	}
	t.b.mu.Lock()
	defer t.b.mu.Unlock()
	rate, now := t.b.rate.Load(), t.b.clock()
	if rate == 0 {
		t.held = 0
		return want, 0
	}
	t.b.settleLocked(rate, now)
	if e := t.b.epoch.Load(); t.epoch != e {
		t.epoch, t.held = e, 0
	}
	if t.held == 0 {
		t.promiseLocked(rate, now, want)
	}
	if t.due > now {
		return 0, t.due - now
	}
	granted = min(want, t.held)
	t.b.chargeLocked(rate, int64(granted-t.held))
	t.held = 0
	return granted, 0
}

// promiseLocked takes what credit there is, or where that is next to nothing the next
// piece.
func (t *turn) promiseLocked(rate int64, now time.Duration, want int) {
	n := min(int64(want), max(1, rate/pieceShare))
	n = max(n, min(int64(want), t.b.creditLocked(rate, now)))
	t.b.chargeLocked(rate, n)
	t.held, t.due = int(n), t.b.dueLocked()
}

// giveBack returns what was granted and did not pass.
func (t *turn) giveBack(n int) {
	t.b.mu.Lock()
	defer t.b.mu.Unlock()
	if rate := t.b.rate.Load(); n > 0 && rate > 0 && t.epoch == t.b.epoch.Load() {
		t.b.chargeLocked(rate, -int64(n))
	}
}

// leave gives up the place, with what is promised.
func (t *turn) leave() {
	n := t.held
	t.held = 0
	t.giveBack(n)
}
