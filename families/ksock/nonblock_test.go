package ksock_test

import (
	"context"
	"errors"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/familytest"
	"github.com/sockd/sockd/families/inet"
	"github.com/sockd/sockd/families/local"
	"github.com/stretchr/testify/require"
)

// share is what somebody else has of a socket: a duplicate, by which it makes the
// common description a blocking one.
func share(tb testing.TB, s families.Socket) (makeBlocking func()) {
	tb.Helper()
	other := -1
	require.NoError(tb, as[families.Descriptor](tb, s).Control(func(fd int) (err error) {
		other, err = syscall.Dup(fd)
		return err
	}))
	tb.Cleanup(func() { _ = syscall.Close(other) })
	return func() { require.NoError(tb, syscall.SetNonblock(other, false)) }
}

func listenLocal(tb testing.TB, backlog int) (families.Socket, families.Addr) {
	tb.Helper()
	l := open(tb, local.Family, families.Stream)
	addr := familytest.MustAddr(tb, local.Family, families.Stream, filepath.Join(tb.TempDir(), "l"))
	require.NoError(tb, l.Bind(addr))
	require.NoError(tb, as[families.Listener](tb, l).Listen(backlog))
	return l, addr
}

func within(tb testing.TB, what string, c <-chan error) error {
	tb.Helper()
	select {
	case err := <-c:
		return err
	case <-time.After(patience):
		tb.Fatalf("after %v: %s", patience, what)
	}
	panic("unreachable")
}

// accept4 has no MSG_DONTWAIT: with O_NONBLOCK cleared by somebody who shares the
// socket it held its thread for ever, and with it Close and the daemon's end.
func TestAcceptDoesNotBlockOnADescriptionThatWasMadeBlocking(t *testing.T) {
	for name, f := range map[string]families.Family{"local": local.Family, "inet": inet.Family} {
		t.Run(name, func(t *testing.T) {
			l := open(t, f, families.Stream)
			if name == "inet" {
				require.NoError(t, l.Bind(familytest.MustAddr(t, f, families.Stream, "127.0.0.1:0")))
				require.NoError(t, as[families.Listener](t, l).Listen(0))
			} else {
				l, _ = listenLocal(t, 0)
			}
			makeBlocking := share(t, l)
			makeBlocking()
			done := make(chan error, 1)
			go func() { _, err := as[families.Listener](t, l).Accept(); done <- err }()
			require.ErrorIs(t, within(t, "accept blocks", done), families.ErrAgain)
			makeBlocking()
			go func() { _, err := families.AcceptWait(context.Background(), l); done <- err }()
			go func() { _ = l.Close() }()
			require.Error(t, within(t, "close does not end accept", done))
		})
	}
}

// Between poll and accept4 somebody may still clear the flag and take the
// connection. Then the kernel's own bound ends the call.
func TestACallThatBlocksAllTheSameIsBounded(t *testing.T) {
	l, _ := listenLocal(t, 0)
	_, err := as[families.Listener](t, l).Accept()
	require.ErrorIs(t, err, families.ErrAgain)
	share(t, l)()
	done := make(chan error, 1)
	go func() {
		done <- as[families.Descriptor](t, l).Control(func(fd int) error {
			_, _, err := syscall.Accept4(fd, syscall.SOCK_CLOEXEC)
			return err
		})
	}()
	require.ErrorIs(t, within(t, "accept4 blocks", done), syscall.EAGAIN)
}

func TestConnectDoesNotBlockOnADescriptionThatWasMadeBlocking(t *testing.T) {
	t.Run("a full unix backlog", func(t *testing.T) {
		_, addr := listenLocal(t, 1)
		var err error
		for err == nil { // until the queue is full
			s := open(t, local.Family, families.Stream)
			share(t, s)()
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			done := make(chan error, 1)
			go func() { done <- s.Connect(ctx, addr) }()
			err = within(t, "connect blocks", done)
			cancel()
		}
		require.ErrorIs(t, err, context.DeadlineExceeded)
	})
	t.Run("a host that does not answer", func(t *testing.T) {
		deaf := familytest.Deaf(t, inet.Family, families.Spec{Type: families.Stream}, familytest.MustAddr(t, inet.Family, families.Stream, "127.0.0.1:0"))
		s := open(t, inet.Family, families.Stream)
		share(t, s)()
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		done := make(chan error, 1)
		go func() { done <- s.Connect(ctx, deaf) }()
		require.ErrorIs(t, within(t, "connect blocks", done), context.DeadlineExceeded)
	})
}

// accept on what does not listen is an error, not a wait for a connection.
func TestAcceptOnAConnectionIsRefused(t *testing.T) {
	a, _ := tcpPair(t)
	_, err := as[families.Listener](t, a).Accept()
	require.ErrorIs(t, err, syscall.EINVAL)
}

// close(2) waits for so_linger seconds while the peer does not read, also on a
// non-blocking socket.
func TestCloseDoesNotLinger(t *testing.T) {
	a, _ := tcpPair(t)
	require.NoError(t, as[families.Optioner](t, a).SetOption("so_linger", "3600"))
	fill(t, a)
	done := make(chan error, 1)
	go func() { done <- a.Close() }()
	require.NoError(t, within(t, "close lingers", done))
}

// Two shutdowns in a row: the first ended the connection, whose peer had ended
// before, and the second said ENOTCONN.
func TestBothDirectionsEndInOneStep(t *testing.T) {
	a, b := tcpPair(t)
	require.NoError(t, as[families.HalfCloser](t, b).CloseWrite())
	require.NoError(t, a.Wait(t.Context(), families.Readable))
	require.NoError(t, as[families.HalfCloser](t, a).CloseBoth())
	m := families.Msg{Data: make([]byte, 1)}
	require.Error(t, families.RecvWait(t.Context(), b, &m))
	familytest.Eventually(t, "both have ended", func() bool { return a.Info().State == families.Closed })
}

// Listing the options read SO_ERROR, which clears it: the next call on the socket
// did not learn that it had failed.
func TestListingOptionsTakesNoErrorAway(t *testing.T) {
	a, b := tcpPair(t)
	require.NoError(t, as[families.Resetter](t, b).Reset())
	require.NoError(t, a.Wait(t.Context(), families.Readable))
	o := as[families.Optioner](t, a)
	for _, name := range o.Options() {
		if _, err := o.Option(name); errors.Is(err, families.ErrSyntax) {
			t.Error(err)
		}
	}
	m := families.Msg{Data: make([]byte, 1)}
	require.ErrorIs(t, a.Recv(&m), syscall.ECONNRESET)
	_, err := o.Option("so_error")
	require.NoError(t, err, "by its name it is there")
}
