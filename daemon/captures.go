package daemon

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"
	"sync"

	"github.com/sockd/sockd/daemon/capture"
	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/model"
	"github.com/sockd/sockd/families/packet/filter"
	"github.com/sockd/sockd/families/packet/shm"
)

// captures are those that run, by ID.
type captures struct {
	mu  sync.Mutex // guards all
	all map[model.ID]*capturing
}

// flow is what captures of every kind of delivery have in common.
type flow interface {
	View() model.Capture
	SetFilter(text string) error
	Tell(f func(cause string))
	Close() error
}

// capturing is one capture of one caller's.
type capturing struct {
	d     *Daemon
	id    model.ID
	owner model.Owner
	flow  flow
}

// written is a capturing whose packets are written.
type written struct {
	*capturing
	sub *capture.Subscription
}

// Capture starts a capture: from now on packets are kept, and Run writes them.
// The caller closes it, which also ends it in List. On success the daemon owns
// spec's descriptors.
func (d *Daemon) Capture(ctx context.Context, c model.Caller, spec model.CaptureSpec) (model.Capturing, error) {
	_, end, err := d.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	sub, err := startWith(spec, d.captures.Subscribe)
	if err != nil {
		return nil, err
	}
	return &written{d.enlist(c, sub), sub}, nil
}

// startWith starts a capture with duplicates of spec's descriptors, which start owns: a
// caller whose capture is refused keeps his own.
func startWith[T any](spec model.CaptureSpec, start func(model.CaptureSpec) (T, error)) (f T, err error) {
	theirs := spec.Elsewhere
	if spec.Elsewhere, err = duplicateNamespace(theirs); err != nil {
		return f, fmt.Errorf("capture %s: %w", families.Printable(spec.Source), err)
	}
	if f, err = start(spec); err == nil && theirs != nil {
		closeFD(theirs.PacketFD)
		closeFD(theirs.RouteFD)
	}
	return f, err
}

// shared is a capturing whose packets one program reads from shared memory.
type shared struct {
	*capturing
	mem *capture.Shared
}

// CaptureShare starts a capture into shared memory of spec.Queue bytes. The caller closes
// it, which also ends it in List. On success the daemon owns spec's descriptors.
func (d *Daemon) CaptureShare(ctx context.Context, c model.Caller, spec model.CaptureSpec) (model.Sharing, error) {
	_, end, err := d.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	mem, err := startWith(spec, func(spec model.CaptureSpec) (*capture.Shared, error) {
		return d.captures.Share(spec, int(min(spec.Queue, shm.MaxBytes)))
	})
	if err != nil {
		return nil, err
	}
	return &shared{d.enlist(c, mem), mem}, nil
}

// Files are the descriptors that the reader needs.
func (p *shared) Files() (data, control, wake int) { return p.mem.Files() }

// Run lets the reader have packets until the end, and waits for it to leave.
func (p *shared) Run(ctx context.Context, done, left <-chan struct{}) error {
	ctx, end, err := p.d.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	return p.mem.Run(ctx, done, left)
}

// enlist makes a flow an object that callers see.
func (d *Daemon) enlist(c model.Caller, f flow) *capturing {
	p := &capturing{d: d, id: d.NewID(), owner: c.Owner(), flow: f}
	d.running.add(p)
	d.emit("added", model.KindCapture, p.id, "", p.View())
	f.Tell(func(cause string) { d.emit("changed", model.KindCapture, p.id, cause, p.View()) })
	return p
}

// CaptureSet changes the filter of a capture that runs.
func (d *Daemon) CaptureSet(ctx context.Context, c model.Caller, ref, filter string) (model.Capture, error) {
	_, end, err := d.begin(ctx)
	if err != nil {
		return model.Capture{}, err
	}
	defer end()
	p, err := d.capture(c, ref)
	if err != nil {
		return model.Capture{}, fmt.Errorf("set %q: %w", ref, err)
	}
	if err := p.flow.SetFilter(filter); err != nil {
		return model.Capture{}, err
	}
	v := p.View()
	d.emit("changed", model.KindCapture, p.id, "", v)
	return v, nil
}

// capture finds one that c may use.
func (d *Daemon) capture(c model.Caller, ref string) (*capturing, error) {
	id, err := d.find(ref)
	if err != nil {
		return nil, err
	}
	for _, p := range d.running.list() {
		if p.id == id {
			return p, d.policy.Object(c, p.owner, fmt.Sprintf("capture %d", id))
		}
	}
	return nil, families.ErrNotFound
}

func (r *captures) add(p *capturing) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.all == nil {
		r.all = map[model.ID]*capturing{}
	}
	r.all[p.id] = p
}

func (r *captures) remove(p *capturing) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.all[p.id] != p {
		return false
	}
	delete(r.all, p.id)
	return true
}

// list are all captures, by ID.
func (r *captures) list() []*capturing {
	r.mu.Lock()
	out := make([]*capturing, 0, len(r.all))
	for _, p := range r.all {
		out = append(out, p)
	}
	r.mu.Unlock()
	slices.SortFunc(out, func(a, b *capturing) int { return cmp.Compare(a.id, b.id) })
	return out
}

// View is the capture as it stands.
func (p *capturing) View() model.Capture {
	v := p.flow.View()
	v.ID, v.Owner = p.id, p.owner
	return v
}

// Run writes pcapng to w until the count, the duration, ctx or Close ends it; w is
// complete then.
func (p *written) Run(ctx context.Context, w io.Writer) error {
	ctx, end, err := p.d.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	return p.sub.Run(ctx, w)
}

// RunFiles is Run into files that next gives.
func (p *written) RunFiles(ctx context.Context, spec model.FileSpec, next func(context.Context) (int, error), done func(model.FileReport) error) error {
	ctx, end, err := p.d.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	return p.sub.RunFiles(ctx, spec, next, done)
}

// Notes has f told of the interfaces.
func (p *written) Notes(f func(note string)) { p.sub.Notes(f) }

// Close ends and forgets the capture. Twice is nil.
func (p *capturing) Close() error {
	err := p.flow.Close()
	if p.d.running.remove(p) {
		p.d.emit("removed", model.KindCapture, p.id, "", p.View())
	}
	return err
}

func (d *Daemon) visibleCaptures(c model.Caller) []model.Capture {
	var out []model.Capture
	for _, p := range d.running.list() {
		if d.policy.Sees(c, p.owner) {
			out = append(out, p.View())
		}
	}
	return out
}

func (d *Daemon) closeCapture(c model.Caller, id model.ID) ([]model.ID, error) {
	p, err := d.capture(c, strconv.FormatInt(int64(id), 10))
	if err != nil {
		return nil, err
	}
	return []model.ID{id}, p.Close()
}

// broker tells filters whose packets those of a socket are that the daemon holds: its owner's. A
// relay's connections are nobody else's. It takes a leaf lock alone: see capture.Hub.Broker.
func (d *Daemon) broker(inode uint32) (filter.Owner, bool) {
	k, ok := d.table.holding(inode)
	if !ok {
		return filter.Owner{}, false
	}
	return filter.Owner{UID: k.owner.UID, KnownUID: true}, true
}
