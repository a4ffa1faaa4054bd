package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A captureTable is what one row found.
type captureTable struct {
	Name  string         `json:"name"`
	Title string         `json:"title"`
	Load  string         `json:"load_average"` // as the row began
	Lines []*captureLine `json:"lines"`
	Bars  []bar          `json:"bars"`
	Notes []string       `json:"notes,omitempty"`

	cols []column
}

// A captureLine is one contestant's numbers, by the keys of the columns.
type captureLine struct {
	Who     string             `json:"who"`
	Metrics map[string]summary `json:"metrics,omitempty"`
	WhyNot  string             `json:"why_not,omitempty"`

	samples []sample
}

// A contest is one line of a table that is measured in rounds.
type contest struct {
	who    string
	sample func(ctx context.Context) (sample, error)
	whyNot string // it cannot take part
}

// compete takes everybody's samples in rounds. Who fails is out of the rest.
func compete(ctx context.Context, p plan, contests []contest) *captureTable {
	t := &captureTable{Load: loadAverage()}
	for _, c := range contests {
		t.Lines = append(t.Lines, &captureLine{Who: c.who, WhyNot: c.whyNot})
	}
	for turn := range p.turns(len(contests)) {
		l := t.Lines[turn.peer]
		if l.WhyNot != "" || ctx.Err() != nil {
			continue
		}
		s, err := contests[turn.peer].sample(ctx)
		if err != nil {
			l.WhyNot, l.samples = "failed: "+err.Error(), nil
			continue
		}
		l.samples = append(l.samples, s)
	}
	return t
}

// line finds a contestant; one that is not there has no samples.
func (t *captureTable) line(who string) *captureLine {
	for _, l := range t.Lines {
		if l.Who == who {
			return l
		}
	}
	return &captureLine{Who: who, WhyNot: "left out"}
}

// compare adds to each of a line's samples the ratio of a number to that of another
// line in the same round, which was taken minutes nearer than the other rounds.
func (l *captureLine) compare(to *captureLine, of, as string) {
	if len(l.samples) != len(to.samples) {
		return // one of them is out
	}
	for i, s := range l.samples {
		if base := to.samples[i][of]; base > 0 {
			s[as] = s[of] / base
		}
	}
}

// median is the median of one number; ok tells whether there is one.
func (l *captureLine) median(key string) (v float64, ok bool) {
	values := collect(l.samples, key)
	if len(values) == 0 {
		return 0, false
	}
	return summarize(values).Median, true
}

// finish sums the samples up, for these columns.
func (t *captureTable) finish(cols ...column) *captureTable {
	t.cols = cols
	for _, l := range t.Lines {
		for _, key := range l.keys() {
			if l.Metrics == nil {
				l.Metrics = map[string]summary{}
			}
			l.Metrics[key] = summarize(collect(l.samples, key))
		}
	}
	return t
}

func (l *captureLine) keys() []string {
	all := map[string]bool{}
	for _, s := range l.samples {
		for key := range s {
			all[key] = true
		}
	}
	return slices.Sorted(maps.Keys(all))
}

///// bars

// A bar is what a table has to show, and whether it does.
type bar struct {
	What    string  `json:"what"`
	Want    float64 `json:"want"`
	AtMost  bool    `json:"at_most"`
	Got     float64 `json:"got"`
	Verdict string  `json:"verdict"` // held, missed, or why it is not judged
}

const (
	held   = "held"
	missed = "missed"
	// One short round ranks nobody.
	tooQuick = "not judged: quick"
)

// atLeast and atMost judge the median of one number of a line.
func (t *captureTable) atLeast(l *captureLine, key string, want float64, what string) {
	t.judge(l, key, bar{What: what, Want: want})
}

func (t *captureTable) atMost(l *captureLine, key string, want float64, what string) {
	t.judge(l, key, bar{What: what, Want: want, AtMost: true})
}

func (t *captureTable) judge(l *captureLine, key string, b bar) {
	got, ok := l.median(key)
	switch b.Got = got; {
	case !ok && l.WhyNot != "":
		b.Verdict = "not judged: " + l.Who + " has no numbers"
	case !ok:
		b.Verdict = "not judged: nothing to compare with"
	case b.AtMost == (got <= b.Want) || got == b.Want:
		b.Verdict = held
	default:
		b.Verdict = missed
	}
	t.Bars = append(t.Bars, b)
}

// speed bars say nothing after one short round.
func (t *captureTable) withdraw() {
	for i := range t.Bars {
		t.Bars[i].Verdict = tooQuick
	}
}

func (b bar) judged() bool { return b.Verdict == held || b.Verdict == missed }

// String is a line of the table; only for bars that are judged.
func (b bar) String() string {
	sign := ">="
	if b.AtMost {
		sign = "<="
	}
	return fmt.Sprintf("bar: %s %s %s: %s, %s", b.What, sign, short(b.Want), short(b.Got), b.Verdict)
}

// short is a number with as many digits as say something.
func short(v float64) string {
	if v >= 100 || v == float64(int64(v)) {
		return strconv.FormatFloat(v, 'f', 0, 64)
	}
	return strconv.FormatFloat(v, 'g', 3, 64)
}

///// printing

func (t *captureTable) print(w io.Writer) {
	fmt.Fprintf(w, "\n%s: %s\n", t.Name, t.Title)
	shape := rowReport{cols: t.cols}
	table := [][]string{shape.heads()}
	for _, l := range t.Lines {
		if l.WhyNot == "" {
			table = append(table, peerReport{Peer: l.Who, Metrics: l.Metrics}.cells(t.cols))
		}
	}
	if len(table) > 1 {
		printTable(w, table)
	}
	for _, l := range t.Lines {
		if l.WhyNot != "" {
			fmt.Fprintf(w, "  %-13s %s\n", l.Who, l.WhyNot)
		}
	}
	for _, n := range t.Notes {
		fmt.Fprintf(w, "  %s\n", n)
	}
	open := map[string]int{} // bars that are not judged, by reason
	for _, b := range t.Bars {
		if b.judged() {
			fmt.Fprintf(w, "  %s\n", b)
		} else {
			open[b.Verdict]++
		}
	}
	for _, why := range slices.Sorted(maps.Keys(open)) {
		fmt.Fprintf(w, "  bars: %d %s\n", open[why], why)
	}
}

// A captureReport is all that a run found: what -json writes.
type captureReport struct {
	Started  time.Time         `json:"started"`
	Finished time.Time         `json:"finished"`
	Machine  string            `json:"machine"`
	CPUs     int               `json:"cpus"`
	Quick    bool              `json:"quick"`
	Rounds   int               `json:"rounds"`
	Programs map[string]string `json:"programs"` // version, or why it is missing
	Rows     []*captureTable   `json:"rows"`
}

func newCaptureReport(b *captureBench) *captureReport {
	r := &captureReport{
		Started: time.Now().UTC(), Machine: machine(), CPUs: runtime.NumCPU(),
		Quick: b.quick, Rounds: b.plan().rounds, Programs: map[string]string{},
	}
	for _, p := range []captureProgram{b.sockd(""), tcpdump(theirs), dumpcap(), netsniff(), {name: trafgen, find: findTrafgen}} {
		version, err := p.find()
		if err != nil {
			version = "missing: " + err.Error()
		}
		r.Programs[p.name] = version
	}
	return r
}

func (r *captureReport) printHead(w io.Writer) {
	how := fmt.Sprintf("median of %d rounds, ratios within a round", r.Rounds)
	if r.Quick {
		how = "QUICK: one short round; these numbers rank nobody"
	}
	fmt.Fprintf(w, "%s, %d CPUs, load average %s; %s\n", r.Machine, r.CPUs, loadAverage(), how)
	for _, name := range slices.Sorted(maps.Keys(r.Programs)) {
		fmt.Fprintf(w, "  %-13s %s\n", name, r.Programs[name])
	}
}

func (r *captureReport) finish(w io.Writer) {
	r.Finished = time.Now().UTC()
	count := map[string]int{}
	for _, t := range r.Rows {
		for _, b := range t.Bars {
			verdict, _, _ := strings.Cut(b.Verdict, ":")
			count[verdict]++
		}
	}
	fmt.Fprintf(w, "\ntook %v; bars: %d held, %d missed, %d not judged; load average at the end %s\n",
		r.Finished.Sub(r.Started).Round(time.Second), count[held], count[missed], count["not judged"], loadAverage())
}

// found tells why a program cannot take part; "": it can.
func (b *captureBench) found(p captureProgram) (whyNot string) {
	if p.name != ours && !b.peer.MatchString(p.name) {
		return "left out by -peer"
	}
	if _, err := p.find(); err != nil {
		return err.Error()
	}
	return ""
}
