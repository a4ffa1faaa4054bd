package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// A trial is one row of the comparison.
type trial struct {
	name  string // for -row
	title string
	means string // what it costs a user when it is otherwise
	wish  wish
	// best is as good as direct, or all that something between can do; "": only what
	// direct does.
	best string
	run  performance
}

// A performance is a trial of one contestant.
type performance func(ctx context.Context, s *stage) (finding, error)

const (
	// A backend that takes its time: longer than socat waits (0.5 s) after one side
	// has ended.
	lateAnswer = 1200 * time.Millisecond
	answerSize = 1 << 20
	// What is sent before a reset.
	lastWords = 1000
)

func allTrials() []trial {
	all := closingTrials(lateAnswer)
	all = append(all, failingTrials()...)
	all = append(all, datagramTrials()...)
	all = append(all, unixTrials()...)
	all = append(all, identityTrials()...)
	all = append(all, pressureTrials(2*time.Second)...)
	return append(all, operationTrials(20, 150*time.Millisecond)...)
}

// repeated runs a trial again and again, for what depends on who is faster. The word
// stands for all of them only if it is always the same.
func repeated(times int, run performance) performance {
	return func(ctx context.Context, s *stage) (finding, error) {
		words := map[string]int{}
		for s.attempt = range times {
			f, err := run(ctx, s)
			if err != nil {
				return finding{}, err
			}
			words[f.word]++
		}
		return finding{word: tally(words, times)}, nil
	}
}

// tally says how often each word was found, unless it is one alone.
func tally(words map[string]int, times int) string {
	var out []string
	for _, w := range slices.Sorted(maps.Keys(words)) {
		if words[w] == times {
			return w
		}
		out = append(out, fmt.Sprintf("%d of %d: %s", words[w], times, w))
	}
	return strings.Join(out, "; ")
}
