package main

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// A report is all that a run found: what -json writes.
type report struct {
	Started   time.Time         `json:"started"`
	Finished  time.Time         `json:"finished"`
	Kernel    string            `json:"kernel"`
	CPUs      int               `json:"cpus"`
	Quick     bool              `json:"quick"`
	Rounds    int               `json:"rounds"`
	LoadStart string            `json:"load_average_start"`
	LoadEnd   string            `json:"load_average_end"`
	Peers     map[string]string `json:"peers"` // version, or why it is missing
	Rows      []rowReport       `json:"rows"`

	order   []candidate
	missing []string
}

type rowReport struct {
	Name   string       `json:"name"`
	Title  string       `json:"title"`
	Load   string       `json:"load_average"` // as the row began
	Others float64      `json:"others_cpus"`  // the most that others kept busy during a sample
	Peers  []peerReport `json:"peers"`

	cols []column
}

type peerReport struct {
	Peer    string             `json:"peer"`
	Metrics map[string]summary `json:"metrics,omitempty"`
	WhyNot  string             `json:"why_not,omitempty"`
}

func newReport(o options, peers []candidate) *report {
	kernel, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		kernel = []byte("unknown")
	}
	p := rounds(o)
	r := &report{
		Started: time.Now().UTC(), Kernel: strings.TrimSpace(string(kernel)), CPUs: runtime.NumCPU(),
		Quick: o.quick, Rounds: p.rounds - p.warm, LoadStart: loadAverage(), Peers: map[string]string{}, order: peers,
	}
	for _, c := range peers {
		r.Peers[c.name] = c.version
		if c.missing != nil {
			r.Peers[c.name] = "missing: " + c.missing.Error()
			r.missing = append(r.missing, c.name+": "+c.missing.Error())
		}
	}
	return r
}

func (r *report) finish() { r.Finished, r.LoadEnd = time.Now().UTC(), loadAverage() }

// add sums up a row.
func (r *report) add(w row, load string, results []result) {
	out := rowReport{Name: w.name, Title: w.title, Load: load, cols: w.cols}
	for _, res := range results {
		p := peerReport{Peer: res.peer, WhyNot: res.whyNot}
		for _, c := range w.cols {
			values := collect(res.samples, c.key)
			if len(values) == 0 {
				continue
			}
			if p.Metrics == nil {
				p.Metrics = map[string]summary{}
			}
			p.Metrics[c.key] = summarize(values)
		}
		for _, v := range collect(res.samples, othersKey) {
			out.Others = max(out.Others, v)
		}
		out.Peers = append(out.Peers, p)
	}
	out.compare()
	r.Rows = append(r.Rows, out)
}

// compare fills the ratios to direct.
func (r *rowReport) compare() {
	var direct map[string]summary
	for _, p := range r.Peers {
		if p.Peer == "direct" {
			direct = p.Metrics
		}
	}
	for _, p := range r.Peers {
		for key, s := range p.Metrics {
			if d, ok := direct[key]; ok && d.Median > 0 {
				ratio := s.Median / d.Median
				s.Ratio = &ratio
				p.Metrics[key] = s
			}
		}
	}
}

func (r *report) printHead(w io.Writer) {
	how := fmt.Sprintf("median of %d rounds, after one that does not count", r.Rounds)
	if r.Quick {
		how = "QUICK: one short round; these numbers rank nobody"
	}
	fmt.Fprintf(w, "Linux %s, %d CPUs, load average %s; %s\n", r.Kernel, r.CPUs, r.LoadStart, how)
	for _, c := range r.order {
		if c.missing == nil {
			fmt.Fprintf(w, "  %-13s %s\n", c.name, c.version)
		}
	}
	for _, m := range r.missing {
		fmt.Fprintln(w, "  missing, left out:", m)
	}
}

func (r *report) printEnd(w io.Writer) {
	fmt.Fprintf(w, "\ntook %v; load average at the end %s\n", r.Finished.Sub(r.Started).Round(time.Second), r.LoadEnd)
	for _, m := range r.missing {
		fmt.Fprintln(w, "missing, left out:", m)
	}
}

// printRow prints the table of row i.
func (r *report) printRow(w io.Writer, i int) {
	row := r.Rows[i]
	fmt.Fprintf(w, "\n%s: %s\n", row.Name, row.Title)
	table := [][]string{row.heads()}
	var notes []string
	for _, p := range row.Peers {
		if p.WhyNot == "" {
			table = append(table, p.cells(row.cols))
			continue
		}
		notes = append(notes, fmt.Sprintf("  %-13s %s\n", p.Peer, p.WhyNot))
	}
	printTable(w, table)
	for _, n := range notes {
		fmt.Fprint(w, n)
	}
	// What this bench itself and the kernel's own threads take stays below.
	if row.Others > 0.2 {
		fmt.Fprintf(w, "  (others kept up to %.1f CPUs busy meanwhile)\n", row.Others)
	}
}

func (r rowReport) heads() []string {
	out := []string{""}
	for _, c := range r.cols {
		out = append(out, c.head)
		if c.spread {
			out = append(out, "min", "max")
		}
		if c.ratio {
			out = append(out, "×direct")
		}
	}
	return out
}

func (p peerReport) cells(cols []column) []string {
	out := []string{p.Peer}
	for _, c := range cols {
		s, ok := p.Metrics[c.key]
		number := func(v float64) string {
			if !ok {
				return "-"
			}
			return strconv.FormatFloat(v, 'f', c.digits, 64)
		}
		out = append(out, number(s.Median))
		if c.spread {
			out = append(out, number(s.Min), number(s.Max))
		}
		if !c.ratio {
			continue
		}
		if s.Ratio == nil {
			out = append(out, "-")
		} else {
			out = append(out, strconv.FormatFloat(*s.Ratio, 'f', 2, 64))
		}
	}
	return out
}

// printTable aligns its first column to the left and the others to the right.
func printTable(w io.Writer, rows [][]string) {
	width := make([]int, len(rows[0]))
	for _, r := range rows {
		for i, cell := range r {
			width[i] = max(width[i], utf8.RuneCountInString(cell))
		}
	}
	width[0] = max(width[0], 13)
	for _, r := range rows {
		line := "  " + r[0] + strings.Repeat(" ", width[0]-utf8.RuneCountInString(r[0]))
		for i, cell := range r[1:] {
			line += strings.Repeat(" ", 2+width[i+1]-utf8.RuneCountInString(cell)) + cell
		}
		fmt.Fprintln(w, strings.TrimRight(line, " "))
	}
}
