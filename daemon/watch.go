package daemon

import (
	"context"
	"encoding/json"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sockd/sockd/families/model"
)

// watchQueue bounds what waits for one watcher: enough for a burst of a thousand
// accepts while the watcher's terminal scrolls, about half a megabyte.
const watchQueue = 1024

// feed tells watchers of changes. It never makes anybody wait.
type feed struct {
	count atomic.Int64 // of watchers

	mu       sync.Mutex // guards watchers
	watchers map[*watcher]struct{}
}

// A watcher is one caller of Watch.
type watcher struct {
	wake chan struct{} // holds one: there is something to take

	mu    sync.Mutex // guards what follows
	queue []model.Event
	lost  int // since queue was last taken
}

func (f *feed) enter() *watcher {
	w := &watcher{wake: make(chan struct{}, 1)}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.watchers == nil {
		f.watchers = map[*watcher]struct{}{}
	}
	f.watchers[w] = struct{}{}
	f.count.Store(int64(len(f.watchers)))
	return w
}

func (f *feed) leave(w *watcher) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.watchers, w)
	f.count.Store(int64(len(f.watchers)))
}

// all are the watchers of now.
func (f *feed) all() []*watcher {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := make([]*watcher, 0, len(f.watchers))
	for w := range f.watchers {
		out = append(out, w)
	}
	return out
}

// offer queues an event, or counts it as lost.
func (w *watcher) offer(e model.Event) {
	w.mu.Lock()
	if len(w.queue) < watchQueue {
		w.queue = append(w.queue, e)
	} else {
		w.lost++
	}
	w.mu.Unlock()
	select {
	case w.wake <- struct{}{}:
	default: // it will look anyway
	}
}

// take empties the queue; what was lost came after all that is in it.
func (w *watcher) take() []model.Event {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := w.queue
	if w.lost > 0 {
		out = append(out, model.Event{Time: time.Now().UTC(), Event: "lost", Cause: strconv.Itoa(w.lost)})
	}
	w.queue, w.lost = nil, 0
	return out
}

// Emit tells the watchers of a change. It never blocks.
func (d *Daemon) Emit(e model.Event) {
	if e.Time.IsZero() {
		e.Time = time.Now().UTC()
	}
	for _, w := range d.feed.all() {
		w.offer(e)
	}
}

// Watched tells whether anybody would hear of a change.
func (d *Daemon) Watched() bool { return d.feed.count.Load() > 0 }

// emit tells of one object; it is written as JSON only when somebody watches.
func (d *Daemon) emit(event, kind string, id model.ID, cause string, object any) {
	if d.Watched() {
		d.Emit(describe(event, kind, id, cause, object))
	}
}

func (d *Daemon) emitSocket(event string, v model.Socket) {
	d.emit(event, model.KindSocket, v.ID, "", v)
}

func describe(event, kind string, id model.ID, cause string, object any) model.Event {
	text, err := json.Marshal(object)
	if err != nil {
		panic("daemon: a view does not marshal: " + err.Error()) // it is strings and numbers
	}
	return model.Event{Time: time.Now().UTC(), Event: event, Kind: kind, ID: id, Cause: cause, Object: text}
}

// Watch calls f for each event until ctx ends or f fails: first "present" for what
// there is, then "ready", then each change. A watcher that does not keep up gets
// one "lost" with the count as its cause, and goes on. What is made while the
// snapshot is taken may be told of twice.
func (d *Daemon) Watch(ctx context.Context, c model.Caller, f func(model.Event) error) error {
	ctx, end, err := d.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	w := d.feed.enter()
	defer d.feed.leave(w)
	for _, e := range d.snapshot(c) {
		if err := f(e); err != nil {
			return err
		}
	}
	if err := f(model.Event{Time: time.Now().UTC(), Event: "ready"}); err != nil {
		return err
	}
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-w.wake:
		}
		for _, e := range w.take() {
			if !d.mayKnow(c, e) {
				continue
			}
			if err := f(e); err != nil {
				return err
			}
		}
	}
}

// mayKnow tells whether c may be told of e: of whose object it is the object says.
func (d *Daemon) mayKnow(c model.Caller, e model.Event) bool {
	if d.policy.Trusted(c.UID) || e.Kind == "" {
		return true
	}
	var object struct{ Owner *model.Owner }
	err := json.Unmarshal(e.Object, &object)
	return err == nil && object.Owner != nil && d.policy.Sees(c, *object.Owner)
}

func (d *Daemon) snapshot(c model.Caller) []model.Event {
	l := d.list(c, kindsOf(nil))
	var out []model.Event
	for _, v := range l.Sockets {
		out = append(out, describe("present", model.KindSocket, v.ID, "", v))
	}
	for _, v := range l.Relays {
		out = append(out, describe("present", model.KindRelay, v.ID, "", v))
	}
	for _, v := range l.Sessions {
		out = append(out, describe("present", model.KindSession, v.ID, "", v))
	}
	for _, v := range l.Captures {
		out = append(out, describe("present", model.KindCapture, v.ID, "", v))
	}
	for _, v := range l.Recorders {
		out = append(out, describe("present", model.KindRecorder, v.ID, "", v))
	}
	return out
}
