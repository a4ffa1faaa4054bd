package relay

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"
)

// logEvery is how often a relay logs that its sessions fail: a backend that is
// down fails thousands a second, and a line says how many went before it unsaid.
const logEvery = 10 * time.Second

// throttle lets one line through in logEvery.
type throttle struct {
	mu     sync.Mutex // guards what follows
	next   time.Time
	hidden int
}

// pass tells whether a line may be written now, and how many were not since the
// one before.
func (t *throttle) pass(now time.Time) (hidden int, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if now.Before(t.next) {
		t.hidden++
		return 0, false
	}
	hidden, t.hidden, t.next = t.hidden, 0, now.Add(logEvery)
	return hidden, true
}

// logEnd logs a session's end: one that found no backend is a warning, one that
// broke is worth knowing, and any other is detail.
func (r *relay) logEnd(c conversation, why error) {
	level := slog.LevelDebug
	message := "session ended"
	var dial *DialError
	var broken *legFault
	switch {
	case errors.As(why, &dial):
		level, message = slog.LevelWarn, "session found no backend"
	case errors.As(why, &broken):
		level, message = slog.LevelInfo, "session broke"
	}
	ctx := context.Background()
	if !r.eng.opts.Log.Enabled(ctx, level) {
		return
	}
	peer, _ := c.parties()
	attrs := []slog.Attr{slog.String("relay", r.name), slog.Int64("session", int64(c.common().id)), slog.String("peer", describe(peer))}
	if why != nil {
		attrs = append(attrs, slog.Any("err", why))
	}
	if level > slog.LevelDebug {
		hidden, ok := r.failures.pass(time.Now())
		if !ok {
			return
		}
		if hidden > 0 {
			attrs = append(attrs, slog.Int("unsaid", hidden))
		}
	}
	r.eng.opts.Log.LogAttrs(ctx, level, message, attrs...)
}

// dialled notes how a session's dial went: the last failure is the relay's cause
// until a dial succeeds.
func (r *relay) dialled(err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	r.mu.Lock()
	was := r.failure
	r.failure = text
	r.mu.Unlock()
	if was != text {
		r.emit("changed", text)
	}
}

// waits notes why a relay that lasts has no session now.
func (r *relay) waits(err error) {
	if r.setState(stateWaiting, err.Error()) {
		r.eng.opts.Log.Warn("relay waits", "relay", r.name, "id", r.id, "err", err)
	}
}

// works notes that it has one.
func (r *relay) works() {
	if r.setState(stateListening, "") {
		r.eng.opts.Log.Info("relay works again", "relay", r.name, "id", r.id)
	}
}

// notice wakes a cable, to look at its interfaces.
func (r *relay) notice() {
	select {
	case r.trouble <- struct{}{}:
	default: // it is about to look
	}
}
