package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/sockd/sockd/daemon/config"
	"github.com/sockd/sockd/daemon/relay"
	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/model"
)

// configured are the relays of the configuration and of the state directory.
type configured struct {
	// turn is held by the one who changes relays and files, so that a reload and a
	// call never act on half of each other's work. It is locked before everything
	// else, and no verb on sockets wants it.
	turn sync.Mutex

	mu       sync.Mutex // guards what follows
	entries  map[string]entry
	problems []string
}

// An entry is one relay that a file asks for.
type entry struct {
	relay config.Relay
	id    model.ID // in the engine, or of what is listed when cause is set
	kept  bool     // from the state directory: --permanent
	cause string   // why it could not be started, or ""
}

func (c *configured) init() { c.entries = map[string]entry{} }

func (c *configured) set(name string, e entry) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.entries[name] = e
}

func (c *configured) get(name string) (entry, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.entries[name]
	return e, ok
}

func (c *configured) drop(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.entries, name)
}

// moved notes that a caller replaced the relay of a file by one with another ID.
// Where the file's could not be started it is no longer listed: a name is one object.
func (c *configured) moved(name string, id model.ID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e, ok := c.entries[name]; ok {
		e.id, e.cause = id, ""
		c.entries[name] = e
	}
}

func (c *configured) names() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []string
	for name := range c.entries {
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}

// has tells whether the relay with this ID is the one that a file asked for.
func (c *configured) has(name string, id model.ID) bool {
	e, ok := c.get(name)
	return ok && e.id == id
}

func (c *configured) isKept(name string) bool {
	e, ok := c.get(name)
	return ok && e.kept
}

func (c *configured) isFailed(id model.ID) bool {
	return slices.ContainsFunc(c.failed(), func(r model.Relay) bool { return r.ID == id })
}

// lookup finds a relay that could not be started.
func (c *configured) lookup(name string) (model.ID, bool) {
	e, ok := c.get(name)
	return e.id, ok && e.cause != ""
}

func (c *configured) spec(name string) (model.RelaySpec, bool) {
	e, ok := c.get(name)
	return e.relay.Spec, ok
}

// failed are the relays that could not be started, as they are listed.
func (c *configured) failed() []model.Relay {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []model.Relay
	for _, e := range c.entries {
		if e.cause != "" {
			out = append(out, e.view())
		}
	}
	return out
}

func (e entry) view() model.Relay {
	spec := e.relay.Spec
	v := model.Relay{
		ID: e.id, Name: spec.Name, From: spec.From.String(), To: []string{}, Local: []string{}, State: stateFailed,
		Drops: model.Drops{}, Owner: spec.Owner, Cause: e.cause, Source: e.relay.File,
	}
	for _, to := range spec.To {
		v.To = append(v.To, to.String())
	}
	return v
}

func (c *configured) setProblems(p []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.problems = p
}

// allProblems are those of the files, and the relays that could not be started.
func (c *configured) allProblems() []string {
	failed := c.failed()
	slices.SortFunc(failed, func(a, b model.Relay) int { return int(a.ID - b.ID) })
	c.mu.Lock()
	defer c.mu.Unlock()
	out := append([]string{}, c.problems...)
	for _, r := range failed {
		out = append(out, fmt.Sprintf("relay %s: %s", r.Name, r.Cause))
	}
	return out
}

// Reload reads the configuration and the state directory, and applies the
// difference: a relay that is what its file says keeps its listener and sessions,
// another one (its file has changed, or a caller has changed it) is replaced, one whose file is gone runs its sessions to their end, and one whose
// file is broken stays as it was. A relay that cannot be started is listed as
// failed and tried again by the next Reload. What went wrong is logged, and told
// by Status; it is no error.
func (d *Daemon) Reload(ctx context.Context) error {
	ctx, end, err := d.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	d.config.turn.Lock()
	defer d.config.turn.Unlock()
	l := d.load()
	d.applySettings(l.Daemon)
	d.retireRecorders(l)
	problems, warnings := d.applyRelays(ctx, l)
	l.problems, l.warnings = append(l.problems, problems...), append(l.warnings, warnings...)
	l.problems = append(l.problems, d.applyRecorders(l)...)
	for _, p := range l.problems {
		d.log.Error("configuration", "problem", p)
	}
	for _, w := range l.warnings {
		d.log.Warn("configuration", "problem", w)
	}
	d.config.setProblems(append(l.problems, l.warnings...))
	return nil
}

// CheckConfig reads the configuration below dirs and the relays below state, as
// Reload does, and returns all that is wrong with it. It opens nothing and looks
// up no name.
func CheckConfig(set families.Set, dirs []string, state string) []error {
	engine := relay.New(relay.Options{Families: set, Log: slog.Default()})
	var out []error
	for _, c := range []config.Config{config.Load(dirs), config.LoadState(state)} {
		for _, p := range check(engine, &c) {
			out = append(out, p)
		}
		for _, p := range checkRecorders(&c) {
			out = append(out, p)
		}
	}
	return out
}

// check asks the engine about each relay, and makes broken what it refuses. The
// problems are all that there are, by file and line.
func check(engine *relay.Engine, c *config.Config) []config.Problem {
	refused := func(r config.Relay) bool {
		mistakes := engine.Mistakes(r.Spec)
		for _, m := range mistakes {
			c.Problems = append(c.Problems, problemOf(r, m))
		}
		return len(mistakes) > 0
	}
	c.Relays = slices.DeleteFunc(c.Relays, func(r config.Relay) bool {
		if !refused(r) {
			return false
		}
		c.Broken = append(c.Broken, r.Spec.Name)
		return true
	})
	for _, r := range c.Partial {
		refused(r)
	}
	slices.SortStableFunc(c.Problems, func(a, b config.Problem) int {
		return cmp.Or(strings.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line))
	})
	return c.Problems
}

func problemOf(r config.Relay, m relay.Mistake) config.Problem {
	if m.Key == "To" {
		return r.ProblemTo(m.To, m.Err)
	}
	return r.Problem(m.Key, m.Err)
}

// loaded is all that the files say.
type loaded struct {
	config.Config
	want            map[string]entry
	broken          map[string]bool
	recorders       map[string]wantedRecorder
	brokenRecorders map[string]bool
	problems        []string
	warnings        []string
}

func (d *Daemon) load() loaded {
	l := loaded{Config: config.Load(d.opts.ConfigDirs), want: map[string]entry{}, broken: map[string]bool{}}
	state := config.LoadState(d.opts.StateDir)
	for _, p := range append(check(d.relays, &l.Config), check(d.relays, &state)...) {
		l.problems = append(l.problems, p.Error())
	}
	for _, name := range append(l.Broken, state.Broken...) {
		l.broken[name] = true
	}
	for _, r := range l.Relays {
		l.want[r.Spec.Name] = entry{relay: r}
	}
	for _, r := range state.Relays {
		if by, ok := l.want[r.Spec.Name]; ok {
			l.warnings = append(l.warnings, fmt.Sprintf("%s: %s has a relay of this name too, and counts", r.File, by.relay.File))
			continue
		}
		r.Spec.Permanent = true
		l.want[r.Spec.Name] = entry{relay: r, kept: true}
	}
	for name, e := range l.want {
		e.relay.Spec.Owner = self()
		l.want[name] = e
	}
	l.loadRecorders(&state)
	return l
}

func (d *Daemon) applySettings(s config.Daemon) {
	d.table.setMax(s.MaxSockets)
	if d.opts.Level == nil {
		return
	}
	d.opts.Level.Set(0)
	if s.LogLevel != nil {
		d.opts.Level.Set(*s.LogLevel)
	}
}

// applyRelays returns the problems of relays whose old form stays, and the warnings
// of those that took a caller's relay's place.
func (d *Daemon) applyRelays(ctx context.Context, l loaded) (problems, warnings []string) {
	for _, name := range d.config.names() {
		if _, wanted := l.want[name]; !wanted && !l.broken[name] {
			d.retire(name)
		}
	}
	for _, name := range sortedNames(l.want) {
		if l.broken[name] {
			continue // a drop-in of the state's name: it stays as it was
		}
		problem, warning := d.applyRelay(ctx, name, l.want[name])
		if problem != "" {
			problems = append(problems, problem)
		}
		if warning != "" {
			warnings = append(warnings, warning)
		}
	}
	return problems, warnings
}

func sortedNames(m map[string]entry) []string {
	var out []string
	for name := range m {
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}

// retire ends a relay whose file is gone.
func (d *Daemon) retire(name string) {
	e, _ := d.config.get(name)
	d.config.drop(name)
	if e.cause != "" {
		d.emit("removed", model.KindRelay, e.id, "", e.view())
		return
	}
	if err := d.relays.Remove(e.id, forever); err != nil {
		d.log.Debug("a relay of the configuration had ended by itself", "relay", name, "err", err)
	}
	d.log.Info("relay removed", "relay", name, "file", e.relay.File)
}

// applyRelay makes the relay of one file run, in the place of one that runs under
// its name: a name in both is the configuration's, and the warning says so. The
// problem is for the case that the old one runs on; a relay that does not run is
// listed as failed instead.
func (d *Daemon) applyRelay(ctx context.Context, name string, want entry) (problem, warning string) {
	if _, taken := d.recorders.lookup(name); taken {
		return want.relay.Problem("From", fmt.Errorf("relay %s: a recorder has this name: %w", name, syscall.EEXIST)).Error(), ""
	}
	have, known := d.config.get(name)
	id, runs := d.relays.Lookup(name)
	ours := known && have.cause == "" && runs && id == have.id
	if ours && d.runsAs(id, want.relay.Spec) {
		want.id = id
		d.config.set(name, want)
		return "", ""
	}
	r, err := d.relays.Replace(ctx, want.relay.Spec)
	switch {
	case err == nil:
		d.relayRuns(name, have, want, r)
		if runs && !ours {
			warning = fmt.Sprintf("%s: relay %s: a caller had added one of this name, which has made room for the configuration's", want.relay.File, name)
		}
		return "", warning
	case runs, errors.Is(err, syscall.EEXIST): // EEXIST: a caller is adding one just now
		return want.relay.Problem("From", fmt.Errorf("relay %s stays as it was: %w", name, err)).Error(), ""
	}
	d.relayFails(name, have, want, err)
	return "", ""
}

// runsAs tells whether a relay is what a file says it shall be, whatever the file
// said before and callers have set meanwhile.
func (d *Daemon) runsAs(id model.ID, want model.RelaySpec) bool {
	spec, ok := d.relays.Spec(id)
	return ok && config.Format(spec) == config.Format(want)
}

// relayRuns notes a relay that was started.
func (d *Daemon) relayRuns(name string, have, want entry, r model.Relay) {
	if have.cause != "" {
		d.emit("removed", model.KindRelay, have.id, "it runs now", have.view())
	}
	want.id = r.ID
	d.config.set(name, want)
	d.log.Info("relay runs", "relay", name, "id", r.ID, "file", want.relay.File, "local", r.Local)
}

// relayFails lists a relay that could not be started. It keeps its ID while it fails.
func (d *Daemon) relayFails(name string, have, want entry, err error) {
	event := "changed"
	want.id, want.cause = have.id, err.Error()
	if have.cause == "" {
		event, want.id = "added", d.NewID()
	}
	d.config.set(name, want)
	d.emit(event, model.KindRelay, want.id, want.cause, want.view())
	d.log.Error("relay does not run", "relay", name, "file", want.relay.File, "err", err)
}
