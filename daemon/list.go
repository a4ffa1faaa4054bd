package daemon

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/model"
)

// kinds says which lists are wanted.
type kinds struct{ sockets, relays, sessions, captures, recorders bool }

// kindsOf reads sockets, relays, sessions, captures and recorders, or all; none is all.
func kindsOf(words []string) kinds {
	want := func(word string) bool {
		return len(words) == 0 || slices.Contains(words, word) || slices.Contains(words, "all")
	}
	return kinds{want("sockets"), want("relays"), want("sessions"), want("captures"), want("recorders")}
}

// List returns every object of the given kinds (none: of all) that c may see, by
// ID.
func (d *Daemon) List(ctx context.Context, c model.Caller, words []string) (model.Listing, error) {
	for _, w := range words {
		if !slices.Contains([]string{"sockets", "relays", "sessions", "captures", "recorders", "all"}, w) {
			return model.Listing{}, &families.SyntaxError{What: "kind", Text: w, Why: "want sockets, relays, sessions, captures, recorders or all"}
		}
	}
	_, end, err := d.begin(ctx)
	if err != nil {
		return model.Listing{}, err
	}
	defer end()
	return d.list(c, kindsOf(words)), nil
}

func (d *Daemon) list(c model.Caller, want kinds) model.Listing {
	l := model.Listing{Sockets: []model.Socket{}, Relays: []model.Relay{}, Sessions: []model.Session{}, Captures: []model.Capture{}, Recorders: []model.Recorder{}}
	if want.sockets {
		for _, k := range d.visibleSockets(c) {
			l.Sockets = append(l.Sockets, k.view())
		}
	}
	if want.relays {
		l.Relays = append(l.Relays, d.visibleRelays(c)...)
	}
	if want.sessions {
		l.Sessions = append(l.Sessions, d.visibleSessions(c)...)
	}
	if want.captures {
		l.Captures = append(l.Captures, d.visibleCaptures(c)...)
	}
	if want.recorders {
		l.Recorders = append(l.Recorders, d.visibleRecorders(c)...)
	}
	return l
}

func (d *Daemon) visibleSockets(c model.Caller) []*sock {
	return d.table.all(func(k *sock) bool { return d.policy.Sees(c, k.owner) })
}

// visibleRelays are the engine's, and those of the configuration that could not
// be started.
func (d *Daemon) visibleRelays(c model.Caller) []model.Relay {
	all := append(d.relays.Relays(), d.config.failed()...)
	slices.SortFunc(all, func(a, b model.Relay) int { return cmp.Compare(a.ID, b.ID) })
	return slices.DeleteFunc(all, func(r model.Relay) bool { return !d.policy.Sees(c, r.Owner) })
}

func (d *Daemon) visibleSessions(c model.Caller) []model.Session {
	seen := map[model.ID]bool{}
	for _, r := range d.visibleRelays(c) {
		seen[r.ID] = true
	}
	return slices.DeleteFunc(d.relays.Sessions(), func(s model.Session) bool { return !seen[s.Relay] })
}

// Show finds one object of any kind by its ID, or a relay or recorder by its NAME.
func (d *Daemon) Show(ctx context.Context, c model.Caller, ref string) (model.Object, error) {
	_, end, err := d.begin(ctx)
	if err != nil {
		return model.Object{}, err
	}
	defer end()
	id, err := d.find(ref)
	if err != nil {
		return model.Object{}, fmt.Errorf("show: %w", err)
	}
	if k, err := d.table.get(id); err == nil && d.policy.Sees(c, k.owner) {
		v := k.view()
		return model.Object{Kind: model.KindSocket, Socket: &v}, nil
	}
	for _, r := range d.visibleRelays(c) {
		if r.ID == id {
			return model.Object{Kind: model.KindRelay, Relay: &r}, nil
		}
	}
	for _, s := range d.visibleSessions(c) {
		if s.ID == id {
			return model.Object{Kind: model.KindSession, Session: &s}, nil
		}
	}
	for _, v := range d.visibleCaptures(c) {
		if v.ID == id {
			return model.Object{Kind: model.KindCapture, Capture: &v}, nil
		}
	}
	if p, err := d.recorderID(c, id); err == nil {
		v := d.recorders.view(p)
		return model.Object{Kind: model.KindRecorder, Recorder: &v}, nil
	}
	return model.Object{}, fmt.Errorf("show: %w", notFound(ref))
}

// find turns a REF into an ID; a NAME is a relay's or a recorder's.
func (d *Daemon) find(ref string) (model.ID, error) {
	if id, ok := model.ParseID(ref); ok {
		return id, nil
	}
	if !model.ValidName(ref) {
		return 0, &families.SyntaxError{What: "reference", Text: ref, Why: "want an ID or a NAME"}
	}
	if id, ok := d.relays.Lookup(ref); ok {
		return id, nil
	}
	if id, ok := d.config.lookup(ref); ok {
		return id, nil
	}
	if id, ok := d.recorders.lookup(ref); ok {
		return id, nil
	}
	return 0, notFound(ref)
}

func notFound(ref string) error {
	return fmt.Errorf("nothing is called %q: %w", ref, families.ErrNotFound)
}
