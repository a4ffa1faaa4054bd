package daemon

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/sockd/sockd/daemon/capture"
	"github.com/sockd/sockd/daemon/config"
	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/model"
)

// A wantedRecorder is one that a file asks for.
type wantedRecorder struct {
	config.Recorder
	kept bool // from the state directory: --permanent
}

// checkRecorders makes broken what a recorder cannot be. The problems are these alone.
func checkRecorders(c *config.Config) []config.Problem {
	var out []config.Problem
	var good []config.Recorder
	for _, r := range c.Recorders {
		if err := capture.CheckRecorder(r.Spec); err != nil {
			out = append(out, r.Problem(recorderKey(r.Spec, err), err))
			c.BrokenRecorders = append(c.BrokenRecorders, r.Spec.Name)
			continue
		}
		good = append(good, r)
	}
	c.Recorders = good
	return out
}

// recorderKey is the key that an error of CheckRecorder is about.
func recorderKey(spec model.RecorderSpec, err error) string {
	var syntax *families.SyntaxError
	if !errors.As(err, &syntax) {
		return "Source"
	}
	switch syntax.What {
	case "filter":
		if strings.TrimSpace(syntax.Text) == strings.TrimSpace(spec.Trigger.Filter) {
			return "Trigger"
		}
		return "Filter"
	case "file name":
		if spec.Disk != nil {
			return "File"
		}
		return "DumpTo"
	}
	return cmp.Or(recorderKeys[syntax.What], "Source")
}

// recorderKeys are the keys of what an error is about.
var recorderKeys = map[string]string{
	"direction": "Direction", "snaplen": "SnapLen", "last": "Last", "bytes": "Bytes",
	"size of files": "Size", "interval of files": "Every", "size of all files": "MaxBytes",
	"trigger": "Trigger", "drops": "OnDrop", "after": "After", "dump file": "DumpTo",
}

// loadRecorders finds what recorders the files ask for. A name in both is the
// configuration's.
func (l *loaded) loadRecorders(state *config.Config) {
	l.recorders, l.brokenRecorders = map[string]wantedRecorder{}, map[string]bool{}
	for _, p := range append(checkRecorders(&l.Config), checkRecorders(state)...) {
		l.problems = append(l.problems, p.Error())
	}
	for _, name := range append(l.BrokenRecorders, state.BrokenRecorders...) {
		l.brokenRecorders[name] = true
	}
	for _, r := range l.Recorders {
		r.Spec.Owner = self()
		l.recorders[r.Spec.Name] = wantedRecorder{r, false}
	}
	for _, r := range state.Recorders {
		if by, ok := l.recorders[r.Spec.Name]; ok {
			l.warnings = append(l.warnings, fmt.Sprintf("%s: %s has a recorder of this name too, and counts", r.File, by.File))
			continue
		}
		r.Spec.Owner, r.Spec.Permanent = self(), true
		l.recorders[r.Spec.Name] = wantedRecorder{r, true}
	}
}

// retireRecorders ends those whose files are gone, before relays want their names.
func (d *Daemon) retireRecorders(l loaded) {
	for _, p := range d.recorders.list() {
		name := p.spec.Name
		_, wanted := l.recorders[name]
		if p.file != "" && !wanted && !l.brokenRecorders[name] {
			d.dropRecorder(p)
			d.log.Info("recorder removed", "recorder", name, "file", p.file)
		}
	}
}

// dropRecorder ends one without touching its file.
func (d *Daemon) dropRecorder(p *recording) {
	if !d.recorders.take(p) {
		return
	}
	if err := d.closeRecorder(p); err != nil {
		d.log.Warn("closing a recorder", "recorder", p.spec.Name, "err", err) // it is closed all the same
	}
}

// applyRecorders makes run what the files ask for, and returns the problems of those
// that cannot.
func (d *Daemon) applyRecorders(l loaded) (problems []string) {
	for _, name := range slices.Sorted(maps.Keys(l.recorders)) {
		if l.brokenRecorders[name] {
			continue // it stays as it was
		}
		if problem := d.applyRecorder(name, l.recorders[name]); problem != "" {
			problems = append(problems, problem)
		}
	}
	return problems
}

// applyRecorder makes the recorder of one file run, in the place of one that runs
// under its name. One that is what its file says goes on; of one whose file has other
// bounds or another filter what it holds stays.
func (d *Daemon) applyRecorder(name string, want wantedRecorder) (problem string) {
	have := d.recorders.named(name)
	if have != nil && have.rec != nil && d.becomes(have, want) {
		d.fromFile(have, want)
		return ""
	}
	var id model.ID
	if have != nil {
		id = have.id // a file's recorder keeps its ID
		d.dropRecorder(have)
	} else {
		id = d.NewID()
	}
	p, err := d.recordAs(id, want.Spec)
	if err != nil {
		d.recorderFails(id, want, err)
		return want.Problem("Source", fmt.Errorf("recorder %s: %w", name, err)).Error()
	}
	d.fromFile(p, want)
	d.log.Info("recorder runs", "recorder", name, "id", id, "file", want.File)
	return ""
}

// recorderFails lists a recorder that could not be started, unless a relay has its name.
func (d *Daemon) recorderFails(id model.ID, want wantedRecorder, err error) {
	p := &recording{id: id, spec: want.Spec, cause: err.Error()}
	if d.nameIsFree(want.Spec.Name) != nil || d.recorders.put(p) != nil {
		return
	}
	d.fromFile(p, want)
	d.tellRecorder(p, "added", p.cause)
}

func (d *Daemon) fromFile(p *recording, want wantedRecorder) {
	d.recorders.mu.Lock()
	defer d.recorders.mu.Unlock()
	p.file, p.kept = want.File, want.kept
}

// becomes makes a recorder that runs what a file says, if that takes nothing that costs
// what it holds.
func (d *Daemon) becomes(p *recording, want wantedRecorder) bool {
	have := p.rec.Spec()
	to := want.Spec
	change := model.RecorderChange{Filter: &to.Filter, Last: &to.Last, Bytes: &to.Bytes}
	if config.FormatRecorder(have) == config.FormatRecorder(to) {
		return true
	}
	have.Filter, have.Last, have.Bytes = to.Filter, to.Last, to.Bytes
	if config.FormatRecorder(have) != config.FormatRecorder(to) {
		return false
	}
	if err := p.rec.Set(change); err != nil {
		d.log.Warn("recorder is begun anew", "recorder", to.Name, "err", err)
		return false
	}
	d.tellRecorder(p, "changed", want.File+" has changed")
	return true
}
