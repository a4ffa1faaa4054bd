package park

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// session is what a relayed stream parks: two sockets and two pipes.
func mustSession(tb testing.TB) []int {
	tb.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		tb.Fatal(err)
	}
	return append(pair[:], append(mustPipe(tb, "there"), mustPipe(tb, "back")...)...)
}

// BenchmarkSession is what a durable session costs here: the client is parked, then
// all six descriptors, and it leaves. Others sit still meanwhile.
func BenchmarkSession(b *testing.B) {
	for _, idle := range []uint64{0, 500, 1600} {
		b.Run(fmt.Sprintf("idle=%d", idle), func(b *testing.B) {
			h := newHolder(b)
			// The stock net.core.wmem_max: 555 messages a lot.
			p, _ := h.mustOpen(settings{count: maxLots, buffer: 212992})
			fds := mustSession(b)
			defer closeAll(fds)
			r := Record{Kind: 1, Data: make([]byte, 100)}
			for r.ID = 1; r.ID <= idle; r.ID++ {
				if err := p.Park(r, fds...); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportAllocs()
			for b.Loop() {
				r.ID++
				if err := errors.Join(p.Park(r, fds[0]), p.Replace(r, fds...), p.Leave(r.ID)); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(p.Use().Turned)/float64(b.N), "copies/op")
		})
	}
}

// BenchmarkRelaysComeBack parks 10,000 relays of six descriptors each, or as many as
// this process may have open, kills nobody, and takes them all out again.
func BenchmarkRelaysComeBack(b *testing.B) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		b.Fatal(err)
	}
	s := settings{count: maxLots, buffer: sendBuffer}
	var parking, opening time.Duration
	parked := 0
	for b.Loop() {
		h := newHolder(b)
		p, _ := h.mustOpen(s)
		parked = min(10_000, int(limit.Cur-200)/6, p.Use().Bound)
		for id := range uint64(parked) {
			fds := mustSession(b)
			begun := time.Now()
			if err := p.Park(Record{Kind: 1, ID: id}, fds...); err != nil {
				b.Fatal(err)
			}
			parking += time.Since(begun)
			closeAll(fds)
		}
		begun := time.Now()
		p, back := h.mustOpen(s)
		opening += time.Since(begun)
		if len(back) != parked {
			b.Fatalf("%d of %d came back", len(back), parked)
		}
		for _, r := range back {
			closeAll(r.FDs)
		}
		b.ReportMetric(float64(p.Use().Descriptors), "descriptors")
	}
	b.ReportMetric(float64(parked), "relays")
	b.ReportMetric(float64(parking.Microseconds())/float64(b.N*parked), "µs/park")
	b.ReportMetric(float64(opening.Milliseconds())/float64(b.N), "ms/open")
}
