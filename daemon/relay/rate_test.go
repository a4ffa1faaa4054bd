package relay

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// handClock is a clock that the test moves.
type handClock struct{ t time.Duration }

func (c *handClock) now() time.Duration { return c.t }

// bound is what may pass within d: rate × time and one burst.
func bound(rate int64, d time.Duration) float64 {
	return float64(rate) * (d + burstOf(rate)).Seconds()
}

var someRates = []int64{1, 7, 999, 64 << 10, 1e6, 123456789, 1 << 40}

// Whatever is asked for and when, also by those who do not wait as they were told, no
// more passes than the rate and one burst allow.
func TestNoMorePassesThanTheRateAndOneBurst(t *testing.T) {
	for _, rate := range someRates {
		t.Run(fmt.Sprint(rate), func(t *testing.T) {
			random := rand.New(rand.NewPCG(1, uint64(rate)))
			c := &handClock{t: time.Hour}
			b := newBucketAt(rate, c.now)
			turns := []turn{b.turn(), b.turn(), b.turn(), b.turn(), b.turn()}
			passed, biggest := int64(0), 0
			for range 3000 {
				who := &turns[random.IntN(len(turns))]
				switch random.IntN(10) {
				case 0:
					who.leave()
				case 1:
					biggest = max(biggest, spendIfPaid(b, random.IntN(3000), &passed))
				default:
					want := 1 + random.IntN(1<<random.IntN(21))
					n, wait := who.take(want)
					require.LessOrEqual(t, n, want)
					require.True(t, (n > 0) != (wait > 0), "granted %d, wait %v", n, wait)
					unused := 0
					if n > 0 {
						unused = random.IntN(n)
					}
					who.giveBack(unused)
					passed += int64(n - unused)
				}
				require.LessOrEqual(t, float64(passed), bound(rate, c.t-time.Hour)+float64(biggest)+1)
				c.t += time.Duration(random.Int64N(int64(time.Second) / (1 + random.Int64N(1000))))
			}
			require.Positive(t, passed)
		})
	}
}

// spendIfPaid sends a message as its sender would that waits as told: not while
// earlier bytes are still owed.
func spendIfPaid(b *bucket, n int, passed *int64) int {
	if b.paid > b.clock() {
		return 0
	}
	b.spend(n)
	*passed += int64(n)
	return n
}

// waiting is who passes as much as it may, and comes back when it was told to.
type waiting struct {
	turn
	want   int
	at     time.Duration // when it comes back
	passed int64
	longest,
	last time.Duration // without a grant
}

func (w *waiting) run(c *handClock) {
	for w.at <= c.t {
		n, wait := w.take(w.want)
		if n == 0 {
			w.at = c.t + wait
			return
		}
		w.longest, w.last = max(w.longest, c.t-w.last), c.t
		w.passed += int64(n)
	}
}

// simulate runs the clock to the next one's time, again and again. Of those of the
// same time the first in the list is always first: whoever is served by luck is
// found out.
func simulate(c *handClock, all []*waiting, until time.Duration) {
	for c.t < until {
		next := until
		for _, w := range all {
			w.run(c)
			next = min(next, w.at)
		}
		c.t = max(next, c.t+1)
	}
}

func TestNobodyStarves(t *testing.T) {
	for _, rate := range []int64{1000, 1e6, 20e6} {
		for _, wants := range [][]int{{1 << 20, 1 << 20}, {1 << 20, 1}, {1, 1 << 20, 100, 64 << 10, 1 << 20}, make([]int, 50)} {
			t.Run(fmt.Sprint(rate, " ", len(wants)), func(t *testing.T) {
				c := &handClock{t: time.Hour}
				b := newBucketAt(rate, c.now)
				var all []*waiting
				for _, want := range wants {
					all = append(all, &waiting{turn: b.turn(), want: max(want, 1500), last: c.t})
				}
				simulate(c, all, c.t+10*time.Second)
				round := time.Duration(len(wants)+1) * (time.Second/pieceShare + time.Millisecond)
				var total int64
				for i, w := range all {
					total += w.passed
					require.LessOrEqual(t, max(w.longest, c.t-w.last), round, "the turn of %d came late", i)
				}
				require.InDelta(t, float64(rate)*10, float64(total), float64(rate)*10*0.01+bound(rate, 0), "all of the rate is used")
			})
		}
	}
}

func TestEqualsGetEqualShares(t *testing.T) {
	const rate = 10 << 20
	c := &handClock{}
	b := newBucketAt(rate, c.now)
	var all []*waiting
	for range 8 {
		all = append(all, &waiting{turn: b.turn(), want: 1 << 20})
	}
	simulate(c, all, 30*time.Second)
	for i, w := range all {
		require.InDelta(t, rate*30/8, w.passed, rate*30/8*0.05+float64(rate)*burstTime.Seconds(), "share of %d", i)
	}
}

func TestABurstIsATenthOfASecondOrOneBuffer(t *testing.T) {
	for rate, want := range map[int64]int64{1: leastBurst, 1000: leastBurst, 10 << 20: 1 << 20, 100 << 30: 10 << 30} {
		c := &handClock{t: 1e9}
		b := newBucketAt(rate, c.now)
		got := int64(0)
		for tn := b.turn(); ; {
			n, wait := tn.take(1 << 20)
			if wait > 0 {
				break
			}
			got += int64(n)
		}
		require.InDelta(t, want, got, 1<<20, "rate %d", rate)
		require.LessOrEqual(t, got, want)
	}
}

func TestMessagesPassWholeAndArePaidForAfterwards(t *testing.T) {
	c := &handClock{t: time.Hour}
	b := newBucketAt(10_000, c.now)
	require.Zero(t, b.spend(leastBurst), "the burst")
	require.Equal(t, 150*time.Millisecond, b.spend(1500))
	require.Equal(t, 300*time.Millisecond, b.spend(1500), "behind the one before")
	c.t += 300 * time.Millisecond
	require.Equal(t, 100*time.Microsecond, b.spend(1))
	require.Zero(t, b.spend(0), "an empty message costs nothing")
}

func TestWithoutARateAllPasses(t *testing.T) {
	b := newBucket(0)
	tn := b.turn()
	n, wait := tn.take(1 << 30)
	require.Equal(t, 1<<30, n)
	require.Zero(t, wait)
	require.Zero(t, b.spend(1<<20))
}

func TestAnotherRateCountsForThoseWhoWait(t *testing.T) {
	c := &handClock{t: time.Hour}
	b := newBucketAt(100, c.now)
	b.spend(leastBurst + 1000)
	tn := b.turn()
	_, wait := tn.take(1000)
	require.Greater(t, wait, 10*time.Second)
	b.setRate(100)
	_, again := tn.take(1000)
	require.Equal(t, wait, again, "the same rate changes nothing")

	b.setRate(1 << 20)
	n, _ := tn.take(1000)
	require.Equal(t, 1000, n)
	b.setRate(100)
	tn.giveBack(1000) // granted at another rate: not a credit of this one
	require.Zero(t, b.spend(leastBurst))
	require.Positive(t, b.spend(1))

	_, wait = tn.take(1)
	require.Positive(t, wait)
	b.setRate(0)
	n, _ = tn.take(1 << 20)
	require.Equal(t, 1<<20, n)
}

func TestWhoLeavesGivesTheTurnToOthers(t *testing.T) {
	c := &handClock{t: time.Hour}
	b := newBucketAt(1000, c.now)
	b.spend(leastBurst)
	first, second := b.turn(), b.turn()
	_, wait := first.take(10)
	require.Equal(t, 10*time.Millisecond, wait)
	first.leave()
	first.leave()
	_, wait = second.take(10)
	require.Equal(t, 10*time.Millisecond, wait, "as if the first had never been there")
}

// Run with -race: the promise is one goroutine's, the bucket is everybody's.
func TestManyGoroutinesShareOneBucket(t *testing.T) {
	const rate = 20 << 20
	start := time.Now()
	b := newBucket(rate)
	var work sync.WaitGroup
	var mu sync.Mutex
	total := int64(0)
	for range 8 {
		work.Go(func() {
			tn := b.turn()
			defer tn.leave()
			for mine := 0; mine < 1<<20; {
				n, wait := tn.take(64 << 10)
				if n == 0 {
					time.Sleep(wait) // what a caller of take does
					continue
				}
				mine += n
				mu.Lock()
				total += int64(n)
				ok := float64(total) <= bound(rate, time.Since(start))
				mu.Unlock()
				if !ok {
					t.Errorf("%d bytes after %v", total, time.Since(start))
					return
				}
			}
		})
	}
	work.Wait()
}

func TestTakingAllocatesNothing(t *testing.T) {
	b := newBucket(1 << 30)
	tn := b.turn()
	require.Zero(t, testing.AllocsPerRun(1000, func() {
		n, _ := tn.take(64 << 10)
		tn.giveBack(n / 2)
		b.spend(100)
	}))
}

func BenchmarkTake(b *testing.B) {
	tn := newBucket(1 << 40).turn()
	b.ReportAllocs()
	for b.Loop() {
		tn.take(1500)
	}
}
