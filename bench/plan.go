package main

import (
	"iter"
	"slices"
)

// A plan says how often everybody has a turn.
type plan struct {
	rounds int
	warm   int // so many of them, from the first on, do not count
}

// A turn is one peer's in one round.
type turn struct {
	peer   int
	counts bool
}

// turns goes through the rounds. Each begins with the next peer, so that nobody always
// follows the same neighbour's leavings or always comes first.
func (p plan) turns(peers int) iter.Seq[turn] {
	return func(yield func(turn) bool) {
		for round := range p.rounds {
			for i := range peers {
				if !yield(turn{peer: (round + i) % peers, counts: round >= p.warm}) {
					return
				}
			}
		}
	}
}

// A summary is one number over all rounds.
type summary struct {
	Median  float64   `json:"median"`
	Min     float64   `json:"min"`
	Max     float64   `json:"max"`
	Ratio   *float64  `json:"ratio_to_direct,omitempty"`
	Samples []float64 `json:"samples"` // in the order in which they were taken
}

// summarize needs one value at least.
func summarize(values []float64) summary {
	sorted := slices.Sorted(slices.Values(values))
	return summary{Median: median(sorted), Min: sorted[0], Max: sorted[len(sorted)-1], Samples: values}
}

// median of sorted values: of an even number, the mean of the two in the middle.
func median(sorted []float64) float64 {
	n := len(sorted)
	if n%2 == 1 {
		return sorted[n/2]
	}
	return (sorted[n/2-1] + sorted[n/2]) / 2
}

// collect gathers what the samples say of one key; nil if they do not have it.
func collect(samples []sample, key string) []float64 {
	var out []float64
	for _, s := range samples {
		if v, ok := s[key]; ok {
			out = append(out, v)
		}
	}
	return out
}
