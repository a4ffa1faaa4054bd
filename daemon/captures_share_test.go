package daemon

import (
	"context"
	"errors"
	"net"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/sockd/sockd/families/familytest"
	"github.com/sockd/sockd/families/model"
)

func TestASharedCaptureIsACaptureLikeOthers(t *testing.T) {
	familytest.Need(t, familytest.Root())
	for _, tt := range []struct {
		name string
		end  func(d *Daemon, p model.Sharing, left chan<- struct{}) error
	}{
		{"its caller leaves", func(_ *Daemon, _ model.Sharing, left chan<- struct{}) error { close(left); return nil }},
		{"close ID", func(d *Daemon, p model.Sharing, _ chan<- struct{}) error {
			_, err := d.Close(context.Background(), me, text(p.View().ID), false)
			return err
		}},
		{"close --all", func(d *Daemon, _ model.Sharing, _ chan<- struct{}) error {
			_, err := d.CloseAll(context.Background(), me)
			return err
		}},
		{"the daemon stops", func(d *Daemon, _ model.Sharing, _ chan<- struct{}) error { return d.Stop() }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := newDaemon(t)
			p, err := d.CaptureShare(testContext(t), me, model.CaptureSpec{Source: "lo", Filter: "udp", Queue: 1 << 62})
			require.NoError(t, err)
			left, ended := make(chan struct{}), make(chan error, 1)
			go func() { ended <- p.Run(context.Background(), nil, left) }()

			v, err := d.CaptureSet(t.Context(), me, text(p.View().ID), "tcp")
			require.NoError(t, err)
			require.Equal(t, "tcp", v.Filter)
			_, err = d.CaptureSet(t.Context(), stranger, text(p.View().ID), "")
			require.ErrorIs(t, err, syscall.EPERM)
			l, err := d.List(t.Context(), me, []string{"captures"})
			require.NoError(t, err)
			require.Len(t, l.Captures, 1)
			require.Equal(t, me.Owner(), l.Captures[0].Owner)

			require.NoError(t, tt.end(d, p, left))
			err = <-ended
			require.True(t, err == nil || errors.Is(err, net.ErrClosed), "%v", err)
			require.NoError(t, p.Close())
			require.NoError(t, p.Close())
			require.Empty(t, d.visibleCaptures(me))
		})
	}
}
