package ksock_test

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/familytest"
	"github.com/sockd/sockd/families/inet"
	"github.com/sockd/sockd/families/local"
	"github.com/stretchr/testify/require"
)

// patience bounds what should take no time.
const patience = 20 * time.Second

func open(tb testing.TB, f families.Family, t families.Type, options ...families.Option) families.Socket {
	return familytest.MustOpen(tb, f, families.Spec{Type: t, Options: options})
}

func as[T any](tb testing.TB, s families.Socket) T {
	tb.Helper()
	c, err := families.As[T](s)
	require.NoError(tb, err)
	return c
}

// socketpair is two connected unix sockets.
func socketpair(tb testing.TB, kind int) (a, b families.Socket) {
	tb.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, kind|syscall.SOCK_CLOEXEC, 0)
	require.NoError(tb, err)
	for i, s := range []*families.Socket{&a, &b} {
		sock, err := local.Family.(families.Adopter).Adopt(fds[i])
		require.NoError(tb, err)
		tb.Cleanup(func() { require.NoError(tb, sock.Close()) })
		*s = sock
	}
	return a, b
}

// tcpPair is a connected pair over the loopback.
func tcpPair(tb testing.TB) (a, b families.Socket) {
	tb.Helper()
	l := open(tb, inet.Family, families.Stream)
	require.NoError(tb, l.Bind(familytest.MustAddr(tb, inet.Family, families.Stream, "127.0.0.1:0")))
	require.NoError(tb, as[families.Listener](tb, l).Listen(0))
	a = open(tb, inet.Family, families.Stream)
	require.NoError(tb, a.Connect(context.Background(), l.Info().Local))
	b, err := families.AcceptWait(context.Background(), l)
	require.NoError(tb, err)
	tb.Cleanup(func() { require.NoError(tb, b.Close()) })
	return a, b
}

func TestAThousandWaitersEndEachAtItsTime(t *testing.T) {
	familytest.NoLeaks(t)
	const waiters = 1000
	_, b := socketpair(t, syscall.SOCK_DGRAM)
	start := time.Now()
	var all sync.WaitGroup
	for i := range waiters {
		all.Go(func() {
			d := time.Duration((i*7919)%waiters) * 300 * time.Microsecond // in no order
			ctx, cancel := context.WithDeadline(t.Context(), start.Add(d))
			defer cancel()
			err := b.Wait(ctx, families.Readable)
			if took := time.Since(start); !errors.Is(err, context.DeadlineExceeded) || took < d || took > d+patience {
				t.Errorf("a wait of %v ended after %v with %v", d, took, err)
			}
		})
	}
	all.Wait()
	// What they left behind is a socket like new: no deadline, nobody leads.
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, b.Wait(ctx, families.Readable), context.DeadlineExceeded)
}

// Readers that take turns while leaders come and go: each message is received
// once, and none stays behind with everybody asleep.
func TestNoWakeUpIsLost(t *testing.T) {
	familytest.NoLeaks(t)
	const messages, readers = 2000, 16
	a, b := socketpair(t, syscall.SOCK_SEQPACKET)
	got := make(chan struct{}, messages)
	var all sync.WaitGroup
	for range readers {
		all.Go(func() {
			for {
				m := families.Msg{Data: make([]byte, 10)}
				ctx, cancel := context.WithTimeout(t.Context(), 3*time.Millisecond)
				err := families.RecvWait(ctx, b, &m)
				cancel()
				switch {
				case err == nil:
					got <- struct{}{}
				case errors.Is(err, io.EOF):
					return
				case !errors.Is(err, context.DeadlineExceeded):
					t.Error(err)
					return
				}
			}
		})
	}
	for range messages {
		_, err := families.SendAll(t.Context(), a, &families.Msg{Data: []byte("x")})
		require.NoError(t, err)
	}
	for range messages {
		select {
		case <-got:
		case <-time.After(patience):
			t.Fatal("a message was not received")
		}
	}
	require.NoError(t, as[families.HalfCloser](t, a).CloseWrite())
	all.Wait()
	require.Empty(t, got)
}

func TestDirectionsAreApart(t *testing.T) {
	familytest.NoLeaks(t)
	a, b := tcpPair(t)
	fill(t, a)
	ctx, cancel := context.WithCancel(t.Context())
	read, written := make(chan error, 1), make(chan error, 1)
	go func() { read <- a.Wait(ctx, families.Readable) }()
	go func() { written <- a.Wait(t.Context(), families.Writable) }()
	drained := make(chan error, 1)
	go func() { drained <- drain(t.Context(), b) }()
	require.NoError(t, <-written, "there is room again")
	select {
	case err := <-read:
		t.Fatalf("the reader ended with %v", err)
	default:
	}
	cancel()
	require.ErrorIs(t, <-read, context.Canceled)
	require.NoError(t, a.Close())
	require.NoError(t, <-drained)
}

func fill(t *testing.T, s families.Socket) {
	buf := make([]byte, 1<<16)
	for {
		if _, err := s.Send(&families.Msg{Data: buf}); err != nil {
			require.ErrorIs(t, err, families.ErrAgain)
			// What the kernel took in the meantime has made room at most once.
			if _, err := s.Send(&families.Msg{Data: buf}); err != nil {
				require.ErrorIs(t, err, families.ErrAgain)
				return
			}
		}
	}
}

func drain(ctx context.Context, s families.Socket) error {
	buf := make([]byte, 1<<20)
	for {
		err := families.RecvWait(ctx, s, &families.Msg{Data: buf})
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// poll(2) calls a new TCP socket hung up. Waiters must not spin: Recv tells.
func TestAnUnconnectedStreamIsAnErrorAndNotAWait(t *testing.T) {
	familytest.NoLeaks(t)
	s := open(t, inet.Family, families.Stream)
	m := families.Msg{Data: make([]byte, 10)}
	require.ErrorIs(t, families.RecvWait(t.Context(), s, &m), syscall.ENOTCONN)
}

// poll(2) calls a datagram socket readable for good that was shut down, while
// recvmsg(2) says EAGAIN.
func TestADatagramSocketThatWasShutDownIsAtItsEnd(t *testing.T) {
	familytest.NoLeaks(t)
	_, b := socketpair(t, syscall.SOCK_DGRAM)
	require.NoError(t, as[families.Descriptor](t, b).Control(func(fd int) error { return syscall.Shutdown(fd, syscall.SHUT_RD) }))
	m := families.Msg{Data: make([]byte, 10)}
	ended := make(chan error, 1)
	go func() { ended <- families.RecvWait(t.Context(), b, &m) }()
	select {
	case err := <-ended:
		require.ErrorIs(t, err, io.EOF)
	case <-time.After(patience):
		t.Error("RecvWait spins")
		require.NoError(t, b.Close())
		<-ended
	}
}

func TestWaitingForNothingIsAnError(t *testing.T) {
	_, b := socketpair(t, syscall.SOCK_DGRAM)
	require.ErrorIs(t, b.Wait(t.Context(), 0), syscall.EINVAL)
}

func TestCloseWaitsForCallsUnderWay(t *testing.T) {
	familytest.NoLeaks(t)
	_, b := socketpair(t, syscall.SOCK_DGRAM)
	inside, leave := make(chan struct{}), make(chan struct{})
	controlled := make(chan error, 1)
	go func() {
		controlled <- as[families.Descriptor](t, b).Control(func(fd int) error {
			close(inside)
			<-leave
			_, err := syscall.GetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_TYPE)
			return err
		})
	}()
	<-inside
	closed := make(chan error, 1)
	go func() { closed <- b.Close() }()
	require.ErrorIs(t, b.Wait(t.Context(), families.Readable), net.ErrClosed)
	require.Empty(t, closed, "the descriptor is in use")
	close(leave)
	require.NoError(t, <-controlled, "the descriptor was open until f returned")
	require.NoError(t, <-closed)
}

func BenchmarkWaitReady(b *testing.B) {
	x, y := socketpair(b, syscall.SOCK_DGRAM)
	_, err := x.Send(&families.Msg{Data: []byte("x")})
	require.NoError(b, err)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	b.ReportAllocs()
	for b.Loop() {
		if err := y.Wait(ctx, families.Readable); err != nil {
			b.Fatal(err)
		}
	}
}
