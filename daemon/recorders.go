package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"syscall"

	"github.com/sockd/sockd/daemon/capture"
	"github.com/sockd/sockd/daemon/config"
	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/model"
)

// sourceRuntime is where an object comes from that no file asks for.
const sourceRuntime = "runtime"

// recorders are those that there are, by ID. They share their names with relays.
type recorders struct {
	engine *capture.Recorders

	mu    sync.Mutex // guards all, and file and kept of each
	all   map[model.ID]*recording
	ended bool // the daemon stops
}

// recording is one recorder. One of a file that could not be started has no
// recorder, and a cause.
type recording struct {
	id    model.ID
	spec  model.RecorderSpec // as it was asked for
	rec   *capture.Recorder  // nil: it does not run
	cause string             // why not

	// What follows is written with the configuration's turn held, too.
	file string // of the configuration or the state directory
	kept bool   // from the state directory: --permanent
}

// put lets a recorder in, unless one has its name.
func (r *recorders) put(p *recording) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ended {
		return errStopping
	}
	for _, other := range r.all {
		if other.spec.Name == p.spec.Name {
			return fmt.Errorf("recorder add %q: a recorder has this name: %w", p.spec.Name, syscall.EEXIST)
		}
	}
	if r.all == nil {
		r.all = map[model.ID]*recording{}
	}
	r.all[p.id] = p
	return nil
}

// has tells whether a recorder is in.
func (r *recorders) has(p *recording) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.all[p.id] == p
}

// take takes a recorder out; false when it was out already.
func (r *recorders) take(p *recording) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.all[p.id] != p {
		return false
	}
	delete(r.all, p.id)
	return true
}

// list are all recorders, by ID.
func (r *recorders) list() []*recording {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]*recording, 0, len(r.all))
	for _, p := range r.all {
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b *recording) int { return cmp.Compare(a.id, b.id) })
	return out
}

// named finds a recorder by its NAME; nil when there is none.
func (r *recorders) named(name string) *recording {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range r.all {
		if p.spec.Name == name {
			return p
		}
	}
	return nil
}

// lookup finds the ID of a name.
func (r *recorders) lookup(name string) (model.ID, bool) {
	if p := r.named(name); p != nil {
		return p.id, true
	}
	return 0, false
}

// view is a recorder as callers see it.
func (r *recorders) view(p *recording) model.Recorder {
	r.mu.Lock()
	file := p.file
	r.mu.Unlock()
	spec := p.spec
	v := model.Recorder{Source: spec.Source, Filter: spec.Filter, State: model.RecorderFailed, Cause: p.cause, Last: spec.Last}
	if p.rec != nil {
		v, spec = p.rec.View(), p.rec.Spec()
	}
	v.ID, v.Name, v.Owner, v.SourceFile = p.id, spec.Name, spec.Owner, cmp.Or(file, sourceRuntime)
	v.Settings = recorderSettings(spec)
	if spec.Disk != nil {
		v.File = families.Escape(spec.Disk.To.Path)
	}
	return v
}

// recorderSettings are the flags that differ from their defaults, as typed.
func recorderSettings(spec model.RecorderSpec) map[string]string {
	out := map[string]string{}
	add := func(name string, differs bool, value string) {
		if differs {
			out[name] = value
		}
	}
	t := spec.Trigger
	add("direction", spec.Direction != "", spec.Direction)
	add("snaplen", spec.Snaplen != 0, fmt.Sprint(spec.Snaplen))
	add("no-promisc", spec.NoPromisc, "yes")
	add("last", spec.Last != 0, model.FormatDuration(spec.Last))
	add("bytes", spec.Bytes != 0, model.FormatSize(spec.Bytes))
	add("trigger", t.Filter != "", t.Filter)
	add("on-drop", t.OnDrop != 0, fmt.Sprint(t.OnDrop))
	add("after", t.After != 0, model.FormatDuration(t.After))
	add("dump-to", t.To.Path != "", families.Escape(t.To.Path))
	if d := spec.Disk; d != nil {
		add("size", d.Size != 0, model.FormatSize(d.Size))
		add("every", d.Every != 0, model.FormatDuration(d.Every))
		add("count", d.Count != 0, fmt.Sprint(d.Count))
		add("max-bytes", d.MaxBytes != 0, model.FormatSize(d.MaxBytes))
	}
	return out
}

// RecorderAdd starts a recorder. On success the daemon owns spec's descriptors. A
// path without one wraps families.ErrBorrow.
func (d *Daemon) RecorderAdd(ctx context.Context, c model.Caller, spec model.RecorderSpec) (model.Recorder, error) {
	_, end, err := d.begin(ctx)
	if err != nil {
		return model.Recorder{}, err
	}
	defer end()
	spec.Owner, spec.SourceFile = c.Owner(), ""
	if err := d.mayRecord(c, spec); err != nil {
		return model.Recorder{}, err
	}
	d.config.turn.Lock()
	defer d.config.turn.Unlock()
	p, err := d.record(spec)
	if err != nil {
		return model.Recorder{}, err
	}
	if spec.Permanent {
		if err := d.keepRecorder(p); err != nil {
			return model.Recorder{}, errors.Join(err, d.endRecorder(p))
		}
	}
	closePlaces(spec) // the recorder has duplicates
	return d.recorders.view(p), nil
}

// mayRecord checks what only the daemon knows of a recorder that a caller asks for.
func (d *Daemon) mayRecord(c model.Caller, spec model.RecorderSpec) error {
	if err := capture.CheckRecorder(spec); err != nil {
		return err
	}
	for _, place := range placesOf(spec) {
		if err := d.mayWriteIn(c, place, spec.Permanent); err != nil {
			return fmt.Errorf("recorder of %s to %s: %w", families.Printable(spec.Source), families.Printable(place.Path), err)
		}
	}
	if spec.Permanent && d.opts.StateDir == "" {
		return fmt.Errorf("keep a recorder: there is no state directory (sockd --state DIR): %w", families.ErrNotSupported)
	}
	return nil
}

// placesOf are the places that a recorder writes to.
func placesOf(spec model.RecorderSpec) []model.Place {
	var out []model.Place
	if spec.Disk != nil {
		out = append(out, spec.Disk.To)
	}
	if spec.Trigger.To.Path != "" {
		out = append(out, spec.Trigger.To)
	}
	return out
}

// mayWriteIn tells whether the daemon may make files in a directory for c. It does so
// with its own rights, which may be more than c's: so the directory has to be c's own,
// who could make files there, unless c may all that the daemon may. A kept recorder opens
// the directory by its path when it is started anew.
func (d *Daemon) mayWriteIn(c model.Caller, p model.Place, kept bool) error {
	if p.Dir < 0 {
		return families.ErrBorrow
	}
	var st syscall.Stat_t
	if err := syscall.Fstat(p.Dir, &st); err != nil {
		return err
	}
	switch trusted := d.policy.Trusted(c.UID); {
	case st.Mode&syscall.S_IFMT != syscall.S_IFDIR:
		return syscall.ENOTDIR
	case trusted:
		return nil
	case kept:
		return d.policy.Object(c, self(), "the daemon's right to write "+families.Escape(p.Path))
	}
	return d.policy.Object(c, model.Owner{UID: st.Uid, GID: st.Gid}, "the directory "+families.Escape(p.Folder()))
}

// record starts a recorder, with duplicates of spec's descriptors.
func (d *Daemon) record(spec model.RecorderSpec) (*recording, error) {
	return d.recordAs(d.NewID(), spec)
}

// recordAs is record under an ID.
func (d *Daemon) recordAs(id model.ID, spec model.RecorderSpec) (*recording, error) {
	release, err := d.naming.claim(model.KindRecorder, spec.Name)
	if err != nil {
		return nil, fmt.Errorf("recorder add %q: %w", spec.Name, err)
	}
	defer release()
	if err := d.nameIsFree(spec.Name); err != nil {
		return nil, err
	}
	p := &recording{id: id}
	if spec.Name == "" {
		spec.Name = fmt.Sprintf("r%d", p.id)
	}
	if p.spec, err = duplicatePlaces(spec); err != nil {
		return nil, fmt.Errorf("recorder %s: %w", spec.Name, err)
	}
	p.rec, err = d.recorders.engine.Add(p.spec, func(event, cause string) { d.tellRecorder(p, event, cause) })
	if err != nil {
		closePlaces(p.spec)
		return nil, err
	}
	if err := d.recorders.put(p); err != nil {
		return nil, errors.Join(err, p.rec.Close())
	}
	d.tellRecorder(p, "added", "")
	return p, nil
}

// nameIsFree: a relay has not this name. Recorders know their own.
func (d *Daemon) nameIsFree(name string) error {
	_, relay := d.relays.Lookup(name)
	_, failed := d.config.lookup(name)
	if name != "" && (relay || failed) {
		return fmt.Errorf("recorder add %q: a relay has this name: %w", name, syscall.EEXIST)
	}
	return nil
}

// tellRecorder tells watchers of a recorder; of one that is still being made they hear
// when it is.
func (d *Daemon) tellRecorder(p *recording, event, cause string) {
	if d.Watched() && d.recorders.has(p) {
		d.emit(event, model.KindRecorder, p.id, cause, d.recorders.view(p))
	}
}

// keepRecorder writes a permanent recorder to the state directory. turn is held.
func (d *Daemon) keepRecorder(p *recording) error {
	file, err := config.SaveRecorder(d.opts.StateDir, p.rec.Spec())
	if err != nil {
		return err
	}
	d.recorders.mu.Lock()
	defer d.recorders.mu.Unlock()
	p.file, p.kept = file, true
	return nil
}

// endRecorder ends and forgets a recorder, and its file when it is permanent. turn is
// held.
func (d *Daemon) endRecorder(p *recording) error {
	if !d.recorders.take(p) {
		return families.ErrNotFound // somebody else was first
	}
	var err error
	if p.kept {
		err = config.RemoveRecorder(d.opts.StateDir, p.spec.Name)
	}
	return errors.Join(err, d.closeRecorder(p))
}

// closeRecorder ends one that is taken out.
func (d *Daemon) closeRecorder(p *recording) error {
	v := d.recorders.view(p)
	var err error
	if p.rec != nil {
		err = p.rec.Close()
	}
	d.emit("removed", model.KindRecorder, p.id, "", v)
	return err
}

// recorder finds one that c may use, by ID or NAME.
func (d *Daemon) recorder(c model.Caller, op, ref string) (*recording, error) {
	id, err := d.find(ref)
	if err == nil {
		var p *recording
		if p, err = d.recorderID(c, id); err == nil {
			return p, nil
		}
	}
	return nil, fmt.Errorf("%s %q: %w", op, ref, err)
}

func (d *Daemon) recorderID(c model.Caller, id model.ID) (*recording, error) {
	for _, p := range d.recorders.list() {
		if p.id == id {
			return p, d.policy.Object(c, p.spec.Owner, "recorder "+p.spec.Name)
		}
	}
	return nil, families.ErrNotFound
}

// runs is recorder for what takes one that runs.
func (d *Daemon) runs(c model.Caller, op, ref string) (*recording, error) {
	p, err := d.recorder(c, op, ref)
	if err == nil && p.rec == nil {
		return nil, fmt.Errorf("%s %q: it does not run: mend %s and reload: %w", op, ref, p.file, families.ErrNotSupported)
	}
	return p, err
}

// RecorderSet changes a recorder, and its file when it is permanent. What its new bounds
// still hold stays.
func (d *Daemon) RecorderSet(ctx context.Context, c model.Caller, ref string, change model.RecorderChange) (model.Recorder, error) {
	_, end, err := d.begin(ctx)
	if err != nil {
		return model.Recorder{}, err
	}
	defer end()
	d.config.turn.Lock()
	defer d.config.turn.Unlock()
	p, err := d.runs(c, "recorder set", ref)
	if err != nil {
		return model.Recorder{}, err
	}
	if err := p.rec.Set(change); err != nil {
		return model.Recorder{}, err
	}
	d.tellRecorder(p, "changed", "")
	if p.kept {
		if err := d.keepRecorder(p); err != nil {
			return model.Recorder{}, err // the change stands until the daemon ends
		}
	}
	return d.recorders.view(p), nil
}

// RecorderRemove ends a recorder. What it has in memory is gone, its files stay.
func (d *Daemon) RecorderRemove(ctx context.Context, c model.Caller, ref string) (model.Recorder, error) {
	_, end, err := d.begin(ctx)
	if err != nil {
		return model.Recorder{}, err
	}
	defer end()
	d.config.turn.Lock()
	defer d.config.turn.Unlock()
	p, err := d.recorder(c, "recorder rm", ref)
	if err != nil {
		return model.Recorder{}, err
	}
	v := d.recorders.view(p)
	if err := d.endRecorder(p); err != nil {
		return model.Recorder{}, fmt.Errorf("recorder rm %q: %w", ref, err)
	}
	return v, nil
}

// RecorderDump writes what a recorder has to w as pcapng. It ends with ctx.
func (d *Daemon) RecorderDump(ctx context.Context, c model.Caller, ref string, spec model.DumpSpec, w io.Writer) (model.DumpReport, error) {
	ctx, end, err := d.begin(ctx)
	if err != nil {
		return model.DumpReport{}, err
	}
	defer end()
	p, err := d.runs(c, "recorder dump", ref)
	if err != nil {
		return model.DumpReport{}, err
	}
	report, err := p.rec.Dump(ctx, spec, w)
	if err != nil {
		return model.DumpReport{}, err
	}
	d.tellRecorder(p, "dumped", fmt.Sprintf("uid %d took %d packets", c.UID, report.Packets))
	return report, nil
}

func (d *Daemon) visibleRecorders(c model.Caller) []model.Recorder {
	var out []model.Recorder
	for _, p := range d.recorders.list() {
		if d.policy.Sees(c, p.spec.Owner) {
			out = append(out, d.recorders.view(p))
		}
	}
	return out
}

// recordersOf are the recorders of owners, but for those of the configuration.
func (d *Daemon) recordersOf(owns func(model.Owner) bool) []model.ID {
	var ids []model.ID
	for _, p := range d.recorders.list() {
		if owns(p.spec.Owner) && d.recorders.view(p).SourceFile == sourceRuntime {
			ids = append(ids, p.id)
		}
	}
	return ids
}

// closeRecorderID is Close for a recorder.
func (d *Daemon) closeRecorderID(c model.Caller, id model.ID) ([]model.ID, error) {
	d.config.turn.Lock()
	defer d.config.turn.Unlock()
	p, err := d.recorderID(c, id)
	if err != nil {
		return nil, err
	}
	return []model.ID{id}, d.endRecorder(p)
}

// closeRecorders ends all with the daemon. Files of permanent ones stay.
func (d *Daemon) closeRecorders() error {
	d.recorders.mu.Lock()
	d.recorders.ended = true
	d.recorders.mu.Unlock()
	var errs []error
	for _, p := range d.recorders.list() {
		if d.recorders.take(p) {
			errs = append(errs, d.closeRecorder(p))
		}
	}
	return errors.Join(errs...)
}

// duplicatePlaces is spec with descriptors of its own.
func duplicatePlaces(spec model.RecorderSpec) (model.RecorderSpec, error) {
	var err error
	if spec.Trigger.To.Dir, err = duplicateFD(spec.Trigger.To.Dir); err != nil || spec.Disk == nil {
		return spec, err
	}
	disk := *spec.Disk
	if disk.To.Dir, err = duplicateFD(disk.To.Dir); err != nil {
		closeFD(spec.Trigger.To.Dir)
		return model.RecorderSpec{}, err
	}
	spec.Disk = &disk
	return spec, nil
}

func closePlaces(spec model.RecorderSpec) {
	for _, p := range placesOf(spec) {
		closeFD(p.Dir)
	}
}

// naming sees to it that a name does not become a relay's and a recorder's at once:
// who adds one claims it meanwhile.
type naming struct {
	mu     sync.Mutex // guards claims
	claims map[string]claim
}

type claim struct {
	kind  string
	count int
}

// claim has the name for one kind of object until release is called. Several may
// claim it for the same kind, which has its own rules. No name is never claimed.
func (n *naming) claim(kind, name string) (release func(), err error) {
	if name == "" {
		return func() {}, nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	c := n.claims[name]
	if c.count > 0 && c.kind != kind {
		return nil, fmt.Errorf("a %s of this name is being added: %w", c.kind, syscall.EEXIST)
	}
	if n.claims == nil {
		n.claims = map[string]claim{}
	}
	n.claims[name] = claim{kind, c.count + 1}
	return func() { n.release(name) }, nil
}

func (n *naming) release(name string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	c := n.claims[name]
	if c.count--; c.count == 0 {
		delete(n.claims, name)
		return
	}
	n.claims[name] = c
}
