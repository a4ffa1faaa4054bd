package daemon

import (
	"context"
	"encoding/json"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/sockd/sockd/families/familytest"
	"github.com/sockd/sockd/families/model"
)

// watch runs a watcher. Its events come through the channel.
func watch(t *testing.T, d *Daemon) <-chan model.Event {
	events := make(chan model.Event)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		ended <- d.Watch(ctx, me, func(e model.Event) error {
			select {
			case events <- e:
			case <-ctx.Done():
			}
			return nil
		})
	}()
	t.Cleanup(func() {
		cancel()
		require.Error(t, within(t, "watch did not end", ended))
	})
	return events
}

func TestWatchTellsOfWhatIsThereAndThenOfChanges(t *testing.T) {
	d := newDaemon(t)
	a := mustOpen(t, d, "inet", "stream")
	b := mustOpen(t, d, "inet6", "stream")
	events := watch(t, d)
	next := func() model.Event { return within(t, "no event came", events) }
	for _, id := range []model.ID{a, b} {
		e := next()
		require.Equal(t, []any{"present", model.KindSocket, id}, []any{e.Event, e.Kind, e.ID})
		require.False(t, e.Time.IsZero())
	}
	require.Equal(t, "ready", next().Event)

	c := mustOpen(t, d, "inet", "stream")
	addr := mustBind(t, d, c, "127.0.0.1:0")
	mustListen(t, d, c, addr)
	mustConnect(t, d, a, addr)
	accepted := mustAccept(t, d, c)
	_, err := d.Close(t.Context(), me, text(c), true)
	require.NoError(t, err)
	for _, want := range []struct {
		event string
		id    model.ID
		state string
	}{
		{"opened", c, "new"}, {"bound", c, "bound"}, {"listening", c, "listening"}, {"connected", a, "connected"},
		{"accepted", accepted.ID, "connected"}, {"closed", c, "closed"}, {"closed", accepted.ID, "closed"},
	} {
		e := next()
		var v model.Socket
		require.NoError(t, json.Unmarshal(e.Object, &v))
		require.Equal(t, want.event, e.Event)
		require.Equal(t, want.id, e.ID)
		require.Equal(t, want.id, v.ID)
		require.Equal(t, want.state, v.State)
	}
}

// A watcher that does not read holds nobody up: it learns how much it missed.
func TestAWatcherThatDoesNotReadLosesEventsAndIsTold(t *testing.T) {
	d := newDaemon(t)
	events := watch(t, d)
	require.Equal(t, "ready", within(t, "the snapshot did not end", events).Event)
	const more = 300
	d.Emit(model.Event{Event: "changed", ID: 1})
	var w *watcher
	familytest.Eventually(t, "the watcher took the first event", func() bool {
		w = d.feed.all()[0]
		w.mu.Lock()
		defer w.mu.Unlock()
		return len(w.queue) == 0
	})
	for i := range watchQueue + more {
		d.Emit(model.Event{Event: "changed", ID: model.ID(i + 2)})
	}
	for i := range watchQueue + 1 {
		require.Equal(t, model.ID(i+1), within(t, "an event is missing", events).ID)
	}
	lost := within(t, "no word of what was lost", events)
	require.Equal(t, "lost", lost.Event)
	require.Equal(t, strconv.Itoa(more), lost.Cause)
	d.Emit(model.Event{Event: "changed", ID: 5000})
	require.Equal(t, model.ID(5000), within(t, "it does not go on", events).ID)
}

func TestAWatcherIsToldOfWhatItMaySee(t *testing.T) {
	d := newDaemon(t)
	mine := describe("opened", model.KindSocket, 1, "", model.Socket{Owner: stranger.Owner()})
	others := describe("opened", model.KindSocket, 2, "", model.Socket{Owner: me.Owner()})
	require.True(t, d.mayKnow(stranger, mine))
	require.False(t, d.mayKnow(stranger, others))
	require.False(t, d.mayKnow(stranger, describe("opened", model.KindSession, 3, "", model.Session{})))
	require.True(t, d.mayKnow(stranger, model.Event{Event: "lost"}))
	require.True(t, d.mayKnow(me, mine))
}

func TestWatchEndsWithItsCaller(t *testing.T) {
	d := newDaemon(t)
	require.ErrorIs(t, d.Watch(t.Context(), me, func(model.Event) error { return context.Canceled }), context.Canceled)
	require.Empty(t, d.feed.all())
}
