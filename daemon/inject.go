package daemon

import (
	"context"
	"errors"

	"github.com/sockd/sockd/daemon/inject"
	"github.com/sockd/sockd/families/model"
)

// injection is one injection of one caller's. It is in no list: it lives as long as its
// caller, who hears all there is to tell of it, and the watchers and the log hear how it
// ended.
type injection struct {
	d     *Daemon
	id    model.ID
	owner model.Owner
	n     *inject.Injection
}

// Inject opens an interface to send frames; Run sends them. The caller closes it.
func (d *Daemon) Inject(ctx context.Context, c model.Caller, spec model.InjectSpec) (model.Injection, error) {
	_, end, err := d.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	n, err := inject.Open(spec, d.repeated)
	if err != nil {
		return nil, err
	}
	return &injection{d: d, id: d.NewID(), owner: c.Owner(), n: n}, nil
}

// View is how far it is.
func (i *injection) View() model.Injected {
	v := i.n.View()
	v.ID, v.Owner = i.id, i.owner
	return v
}

// Run sends the frames until their end, ctx's, or the daemon's.
func (i *injection) Run(ctx context.Context, frames model.FrameReader) error {
	ctx, end, err := i.d.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	err = i.n.Run(ctx, frames)
	if err == nil && errors.Is(context.Cause(ctx), errStopping) {
		err = opError("inject", "packet", i.View().Interface, errStopping)
	}
	i.told(err)
	return err
}

// told tells the watchers and the log what was sent.
func (i *injection) told(err error) {
	v, cause := i.View(), ""
	if err != nil {
		cause = err.Error()
	}
	i.d.emit("injected", model.KindInjection, i.id, cause, v)
	i.d.log.Info("injected", "id", i.id, "uid", i.owner.UID, "interface", v.Interface, "sent", v.Sent, "bytes", v.Bytes, "failed", v.Failed, "err", cause)
}

// Close frees it. Twice is nil.
func (i *injection) Close() error { return i.n.Close() }
