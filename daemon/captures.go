package daemon

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/sockd/sockd/daemon/capture"
	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/model"
)

// captures are those that run, by ID.
type captures struct {
	mu  sync.Mutex // guards all
	all map[model.ID]*capturing
}

// capturing is one capture of one caller's.
type capturing struct {
	d     *Daemon
	id    model.ID
	owner model.Owner
	sub   *capture.Subscription
}

// Capture starts a capture: from now on packets are kept, and Run writes them.
// The caller closes it, which also ends it in List.
func (d *Daemon) Capture(ctx context.Context, c model.Caller, spec model.CaptureSpec) (model.Capturing, error) {
	_, end, err := d.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	sub, err := d.captures.Subscribe(spec)
	if err != nil {
		return nil, err
	}
	p := &capturing{d: d, id: d.NewID(), owner: c.Owner(), sub: sub}
	d.running.add(p)
	d.emit("added", model.KindCapture, p.id, "", p.View())
	return p, nil
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
	v := p.sub.View()
	v.ID, v.Owner = p.id, p.owner
	return v
}

// Run writes pcapng to w until the count, the duration, ctx or Close ends it; w is
// complete then.
func (p *capturing) Run(ctx context.Context, w io.Writer) error {
	ctx, end, err := p.d.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	return p.sub.Run(ctx, w)
}

// Close ends and forgets the capture. Twice is nil.
func (p *capturing) Close() error {
	err := p.sub.Close()
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
	for _, p := range d.running.list() {
		if p.id != id {
			continue
		}
		if err := d.policy.Object(c, p.owner, fmt.Sprintf("capture %d", id)); err != nil {
			return nil, err
		}
		return []model.ID{id}, p.Close()
	}
	return nil, families.ErrNotFound
}
