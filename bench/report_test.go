package main

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestTurnsRotate(t *testing.T) {
	var order []int
	counted := 0
	for turn := range (plan{rounds: 3, warm: 1}).turns(3) {
		order = append(order, turn.peer)
		if turn.counts {
			counted++
		}
	}
	require.Equal(t, []int{0, 1, 2, 1, 2, 0, 2, 0, 1}, order, "each round begins with the next one")
	require.Equal(t, 6, counted, "the warm-up does not count")
}

func TestSummaries(t *testing.T) {
	for name, c := range map[string]struct {
		values           []float64
		median, min, max float64
	}{
		"one":  {[]float64{7}, 7, 7, 7},
		"odd":  {[]float64{9, 1, 5}, 5, 1, 9},
		"even": {[]float64{4, 1, 3, 2}, 2.5, 1, 4},
	} {
		t.Run(name, func(t *testing.T) {
			s := summarize(c.values)
			require.Equal(t, []float64{c.median, c.min, c.max}, []float64{s.Median, s.Min, s.Max})
			require.Equal(t, c.values, s.Samples, "as they were taken")
		})
	}
}

func TestQuantiles(t *testing.T) {
	l := newLatencies()
	for i := range 100 {
		l.add(time.Duration(100-i) * time.Microsecond)
	}
	l.add(time.Hour) // beyond 32 bits of ns: the longest there is
	var o outcome
	l.into(&o)
	require.InDelta(t, 51, o.P50, 1e-9)
	require.InDelta(t, 100, o.P99, 1e-9)
	require.Zero(t, latencies{}.quantile(0.5))

	full := make(latencies, 0, 1)
	full.add(1)
	full.add(2)
	require.Len(t, full, 1, "it does not grow")
}

func TestPrices(t *testing.T) {
	second := outcome{Start: 5e9, End: 6e9, Ops: 1000, Bytes: 2e9, Lost: 250, P50: 3, P99: 9}
	spent := bill{box: 1.5, relay: 0.5}

	s := priced(bulk, second, spent, true)
	require.InDelta(t, 16, s[gbps.key], 1e-9)
	require.InDelta(t, 0.75, s[boxGB.key], 1e-9)
	require.InDelta(t, 0.25, s[relayGB.key], 1e-9)

	s = priced(exchange, second, spent, true)
	require.InDelta(t, 1000, s[rate.key], 1e-9)
	require.InDelta(t, 1500, s[boxOp.key], 1e-9)
	require.InDelta(t, 500, s[relayOp.key], 1e-9)
	require.Equal(t, []float64{3, 9}, []float64{s[p50.key], s[p99.key]})

	s = priced(datagrams, second, spent, false)
	require.InDelta(t, 20, s[lost.key], 1e-9)
	require.NotContains(t, s, relayOp.key, "without a relay it costs nothing, which is not 0")
}

func twoPeers() *report {
	r := newReport(options{rounds: 3}, []candidate{
		{peer: peer{name: "direct"}, version: "no relay"},
		{peer: peer{name: "sockd"}, version: "sockd 1"},
		{peer: peer{name: "haproxy"}, missing: errors.New("haproxy is not installed")},
	})
	r.add(bulkRow("bulk", "bulk", "tcp", "tcp"), "0.1 0.2 0.3", []result{
		{peer: "direct", samples: []sample{{gbps.key: 30, boxGB.key: 0.4}, {gbps.key: 20, boxGB.key: 0.3}, {gbps.key: 10, boxGB.key: 0.2}}},
		{peer: "sockd", samples: []sample{{gbps.key: 15, boxGB.key: 0.6, relayGB.key: 0.2, othersKey: 0.7}}},
		{peer: "haproxy", whyNot: "haproxy is not installed"},
	})
	return r
}

func TestReport(t *testing.T) {
	r := twoPeers()
	require.Equal(t, 0.75, *r.Rows[0].Peers[1].Metrics[gbps.key].Ratio)
	require.Equal(t, "missing: haproxy is not installed", r.Peers["haproxy"])

	var out strings.Builder
	r.printRow(&out, 0)
	require.Equal(t, `
bulk: bulk, 1 stream
                  Gb/s    min    max  ×direct  box s/GB  relay s/GB
  direct         20.00  10.00  30.00     1.00     0.300           -
  sockd          15.00  15.00  15.00     0.75     0.600       0.200
  haproxy       haproxy is not installed
  (others kept up to 0.7 CPUs busy meanwhile)
`, out.String())

	out.Reset()
	r.printHead(&out)
	require.Contains(t, out.String(), "median of 3 rounds, after one that does not count")
	require.Contains(t, out.String(), "missing, left out: haproxy: haproxy is not installed")
	require.NoError(t, writeJSON(filepath.Join(t.TempDir(), "out.json"), r))
}
