package daemon

import (
	"bytes"
	"context"
	"encoding/binary"
	"net"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/familytest"
	"github.com/sockd/sockd/families/model"
)

func TestACaptureIsListedAndEndsByClose(t *testing.T) {
	familytest.Need(t, familytest.Root())
	for _, tt := range []struct {
		name string
		end  func(d *Daemon, p model.Capturing) error
	}{
		{"its caller closes it", func(_ *Daemon, p model.Capturing) error { return p.Close() }},
		{"close ID", func(d *Daemon, p model.Capturing) error {
			_, err := d.Close(context.Background(), me, text(p.View().ID), false)
			return err
		}},
		{"close --all", func(d *Daemon, _ model.Capturing) error {
			_, err := d.CloseAll(context.Background(), me)
			return err
		}},
		{"the daemon stops", func(d *Daemon, _ model.Capturing) error { return d.Stop() }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := newDaemon(t)
			captureEndsBy(t, d, func(p model.Capturing) error { return tt.end(d, p) })
		})
	}
}

func captureEndsBy(t *testing.T, d *Daemon, end func(model.Capturing) error) {
	p, err := d.Capture(testContext(t), me, model.CaptureSpec{Source: "lo", Filter: "udp"})
	require.NoError(t, err)
	l, err := d.List(t.Context(), me, []string{"captures"})
	require.NoError(t, err)
	require.Len(t, l.Captures, 1)
	require.Equal(t, p.View().ID, l.Captures[0].ID)
	require.Equal(t, me.Owner(), l.Captures[0].Owner)
	require.Equal(t, "lo", l.Captures[0].Source)
	o, err := d.Show(t.Context(), me, text(p.View().ID))
	require.NoError(t, err)
	require.Equal(t, model.KindCapture, o.Kind)
	hidden, err := d.List(t.Context(), stranger, []string{"captures"})
	require.NoError(t, err)
	require.Empty(t, hidden.Captures)
	_, err = d.Close(t.Context(), stranger, text(p.View().ID), false)
	require.ErrorIs(t, err, syscall.EPERM)

	var file bytes.Buffer
	ended := make(chan error, 1)
	go func() { ended <- p.Run(context.Background(), &file) }()
	conn, err := net.Dial("udp", "127.0.0.1:9")
	require.NoError(t, err)
	defer conn.Close()
	familytest.Eventually(t, "a datagram is captured", func() bool {
		_, _ = conn.Write([]byte("x")) // nobody listens: every second one fails
		return p.View().Received > 0
	})
	require.NoError(t, end(p))
	if err := within(t, "the capture did not end", ended); err != nil { // nil: its context ended first
		require.ErrorIs(t, err, net.ErrClosed)
	}
	require.Equal(t, uint32(0x0a0d0d0a), binary.LittleEndian.Uint32(file.Bytes()), "pcapng")
	require.NoError(t, p.Close(), "twice is nil")
	require.Empty(t, d.running.list())
}

func TestACaptureOfNothing(t *testing.T) {
	d := newDaemon(t)
	_, err := d.Capture(testContext(t), me, model.CaptureSpec{Source: "nonexistent0"})
	require.ErrorIs(t, err, syscall.ENODEV)
	_, err = d.Capture(testContext(t), me, model.CaptureSpec{Source: "lo", Filter: "nonsense"})
	require.ErrorIs(t, err, families.ErrSyntax)
	require.Empty(t, d.running.list())
}
