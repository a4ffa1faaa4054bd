package daemon

import (
	"context"
	"encoding/json"
	"os"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/sockd/sockd/families/familytest"
	"github.com/sockd/sockd/families/model"
	"github.com/sockd/sockd/families/packet/inject/wire"
)

// mustInject opens an injection out of v0, whose other end is in a namespace of its own.
func mustInject(t *testing.T, d *Daemon, spec model.InjectSpec) model.Injection {
	t.Helper()
	familytest.Need(t, familytest.Root())
	a, b := familytest.NewNS(t), familytest.NewNS(t)
	familytest.Veth(t, a, "v0", "", b, "v1", "")
	var n model.Injection
	var err error
	a.Do(func() { n, err = d.Inject(testContext(t), me, spec) })
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, n.Close()) })
	return n
}

// frames are three of 60 bytes, in a pipe that ends behind them.
func frames(t *testing.T) *os.File {
	t.Helper()
	r, w, err := os.Pipe()
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, r.Close()) })
	frame := append([]byte{2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 1, 0x88, 0xb5}, make([]byte, 46)...)
	for range 3 {
		_, err = w.Write(wire.Append(nil, wire.Record{Frame: frame}))
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	return r
}

func TestAnInjectionIsToldOfAtItsEnd(t *testing.T) {
	d := newDaemon(t)
	n := mustInject(t, d, model.InjectSpec{Interface: "v0", Loop: 2})
	require.Equal(t, me.Owner(), n.View().Owner)
	require.Positive(t, n.View().ID)
	w := d.feed.enter()
	defer d.feed.leave(w)
	require.NoError(t, n.Run(testContext(t), frames(t)))
	events := w.take()
	require.Len(t, events, 1)
	e := events[0]
	require.Equal(t, "injected", e.Event)
	require.Equal(t, model.KindInjection, e.Kind)
	require.Equal(t, n.View().ID, e.ID)
	require.Empty(t, e.Cause)
	var v model.Injected
	require.NoError(t, json.Unmarshal(e.Object, &v))
	require.Equal(t, n.View(), v)
	require.EqualValues(t, 6, v.Sent)
	require.EqualValues(t, 360, v.Bytes)
	require.EqualValues(t, 2, v.Passes)
	require.True(t, d.mayKnow(me, e))
	require.False(t, d.mayKnow(stranger, e), "it is not theirs")
}

func TestAnInjectionEndsWithTheDaemon(t *testing.T) {
	d := newDaemon(t)
	n := mustInject(t, d, model.InjectSpec{Interface: "v0", PPS: 1000})
	ended := make(chan error, 1)
	go func() { ended <- n.Run(context.Background(), frames(t)) }()
	familytest.Eventually(t, "it sends", func() bool { return n.View().Sent > 3 })
	require.NoError(t, d.Stop())
	err := within(t, "the injection did not end", ended)
	require.ErrorIs(t, err, errStopping)
	require.ErrorContains(t, err, `inject packet "v0": sockd is stopping`)
	_, err = d.Inject(context.Background(), me, model.InjectSpec{Interface: "lo"})
	require.ErrorIs(t, err, errStopping)
}

func TestAnInjectionIsRefused(t *testing.T) {
	familytest.NoLeaks(t)
	d := newDaemon(t)
	_, err := d.Inject(testContext(t), me, model.InjectSpec{Interface: "nonexistent0", Loop: 1})
	require.ErrorIs(t, err, syscall.ENODEV)
}
