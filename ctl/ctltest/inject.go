package ctltest

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"github.com/sockd/sockd/families/model"
	"github.com/sockd/sockd/families/packet/inject/wire"
)

// Inject sends frames nowhere, and keeps them for Injected. They end as EndCaptures
// says.
func (b *Backend) Inject(_ context.Context, c model.Caller, spec model.InjectSpec) (model.Injection, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.fail != nil {
		return nil, b.fail
	}
	b.next++
	b.injectSpec, b.injected = spec, nil
	return &injection{b: b, loop: spec.Loop, view: model.Injected{ID: b.next, Interface: spec.Interface, Owner: c.Owner(), Failed: model.Drops{}}, end: b.captureEnd}, nil
}

// Injected is what Inject was asked for last, and the frames that came, in package
// wire's records.
func (b *Backend) Injected() (spec model.InjectSpec, records []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.injectSpec, b.injected
}

type injection struct {
	b    *Backend
	loop int64
	end  error

	mu   sync.Mutex // guards view
	view model.Injected
}

func (i *injection) Close() error { return nil }

func (i *injection) View() model.Injected {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.view
}

// Run takes all frames.
func (i *injection) Run(ctx context.Context, frames model.FrameReader) error {
	stop := context.AfterFunc(ctx, func() { _ = frames.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := io.Copy(taken{i.b}, frames); err != nil && ctx.Err() == nil {
		return err
	}
	i.b.mu.Lock()
	if ctx.Err() != nil && i.loop != 1 {
		i.b.injected = nil // they were still being collected
	}
	whole, count, err := wire.Whole(i.b.injected)
	i.b.mu.Unlock()
	i.mu.Lock()
	i.view.Sent, i.view.Passes, i.view.Duration = int64(count), 1, int64(2*time.Second)
	i.view.Bytes = int64(whole - count*wire.HeaderLen)
	i.mu.Unlock()
	return errors.Join(err, i.end)
}

// taken keeps what is written to it.
type taken struct{ b *Backend }

func (t taken) Write(p []byte) (int, error) {
	t.b.mu.Lock()
	defer t.b.mu.Unlock()
	t.b.injected = append(t.b.injected, p...)
	return len(p), nil
}
