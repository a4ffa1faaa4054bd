package tap

import (
	"context"
	"errors"
	"io"
	"net"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/sockd/sockd/ctl"
	"github.com/sockd/sockd/ctl/ctltest"
	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/familytest"
	"github.com/sockd/sockd/families/packet/pcapng"
	"github.com/stretchr/testify/require"
)

// serve has a daemon in memory listen. Each of its captures has three packets.
func serve(t *testing.T) (b *ctltest.Backend, socket string) {
	t.Helper()
	familytest.NoLeaks(t)
	b, socket = ctltest.New(t), filepath.Join(t.TempDir(), "control")
	s, err := ctl.NewServer(b, ctl.ServerOptions{}), error(nil)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	require.NoError(t, err)
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() {
		require.NoError(t, s.Shutdown(context.Background()))
		<-served
	})
	return b, socket
}

func mustOpen(t *testing.T, o Options) *Tap {
	t.Helper()
	tap, err := Open(t.Context(), o)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, tap.Close()) })
	return tap
}

func TestATapHasThePacketsOfItsCapture(t *testing.T) {
	_, socket := serve(t)
	tap := mustOpen(t, Options{Socket: socket, Source: "eth0", Count: 3})
	require.Positive(t, tap.ID())
	for i := range byte(3) {
		p, err := tap.Next(t.Context())
		require.NoError(t, err)
		require.Equal(t, &Packet{
			Time: time.Unix(0, int64(i)+1), Data: []byte{i}, Len: 60, Direction: pcapng.Inbound, Dropped: uint64(i),
			Interface: &Interface{Name: "eth0", Link: pcapng.Ethernet},
		}, p)
	}
	require.EqualValues(t, 3, tap.Stats().Packets)
	require.EqualValues(t, 0+1+2, tap.Stats().Dropped, "what the packets tell")
	for range 2 {
		_, err := tap.Next(t.Context())
		require.Equal(t, io.EOF, err)
	}
	stats := tap.Stats()
	require.Equal(t, Stats{Packets: 3, Dropped: 4, Sleeps: stats.Sleeps, DroppedKernel: 1, DroppedSubscriber: 3}, stats, "and what came after the last")
}

func TestStopBringsTheEnd(t *testing.T) {
	_, socket := serve(t)
	tap := mustOpen(t, Options{Socket: socket, Source: "eth0"})
	for range 3 {
		_, err := tap.Next(t.Context())
		require.NoError(t, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err := tap.Next(ctx)
	require.Equal(t, context.DeadlineExceeded, err, "there is none, and no end")
	require.NoError(t, tap.Stop())
	_, err = tap.Next(t.Context())
	require.Equal(t, io.EOF, err)
	require.NoError(t, tap.Close())
	require.NoError(t, tap.Stop(), "there is nothing to stop")
	_, err = tap.Next(t.Context())
	require.Equal(t, net.ErrClosed, err)
}

func TestCloseEndsANextUnderWay(t *testing.T) {
	_, socket := serve(t)
	tap := mustOpen(t, Options{Socket: socket, Source: "eth0"})
	ended := make(chan error)
	go func() {
		for {
			if _, err := tap.Next(context.Background()); err != nil {
				ended <- err
				return
			}
		}
	}()
	familytest.Eventually(t, "Next does not sleep", func() bool { return tap.reader.Stats().Sleeps > 0 })
	require.NoError(t, tap.Close())
	require.Equal(t, net.ErrClosed, <-ended)
}

func TestTheDaemonsErrorsAreTold(t *testing.T) {
	b, socket := serve(t)
	for _, tt := range []struct {
		name string
		fail error
		o    Options
		is   func(error) bool
	}{
		{"an interface that is not there", &families.OpError{Op: "capture", Family: "packet", Addr: "eth7", Err: syscall.ENODEV}, Options{Source: "eth7"}, isRemote},
		{"a filter that does not compile", &families.SyntaxError{What: "filter", Text: "tpc", Why: "no"}, Options{Source: "eth0", Filter: "tpc"}, isRemote},
		{"a direction that is none", nil, Options{Source: "eth0", Direction: "up"}, isRemote},
		{"a namespace that is not there", nil, Options{Source: "eth0", Netns: "no-such-namespace"}, func(err error) bool { return errors.Is(err, families.ErrNotFound) }},
		{"no daemon", nil, Options{Source: "eth0", Socket: socket + "-not"}, func(err error) bool {
			var e *ctl.UnreachableError
			return errors.As(err, &e)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b.Fail(tt.fail)
			if tt.o.Socket == "" {
				tt.o.Socket = socket
			}
			tap, err := Open(t.Context(), tt.o)
			require.Nil(t, tap)
			require.True(t, tt.is(err), "%T: %v", err, err)
		})
	}
}

func isRemote(err error) bool {
	var e *ctl.RemoteError
	return errors.As(err, &e)
}

func TestADaemonThatGoesIsNoEnd(t *testing.T) {
	b, socket := serve(t)
	b.EndCaptures(errors.New("it fell over"))
	tap := mustOpen(t, Options{Socket: socket, Source: "eth0"})
	_, err := tap.Next(t.Context())
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
	require.ErrorContains(t, err, "capture eth0")
}
