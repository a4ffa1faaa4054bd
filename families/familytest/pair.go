package familytest

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/sockd/sockd/families"
	"github.com/stretchr/testify/require"
)

// MustAddr parses an address.
func MustAddr(tb testing.TB, f families.Family, t families.Type, text string) families.Addr {
	tb.Helper()
	a, err := f.ParseAddr(t, text)
	require.NoError(tb, err)
	return a
}

// MustOpen opens a socket, which is closed when the test ends.
func MustOpen(tb testing.TB, f families.Family, spec families.Spec) families.Socket {
	tb.Helper()
	s, err := f.Open(context.Background(), spec)
	require.NoError(tb, err)
	closed(tb, s)
	return s
}

// closed closes s when the test ends.
func closed(tb testing.TB, s families.Socket) {
	tb.Cleanup(func() { require.NoError(tb, s.Close()) })
}

// bounded is a context for what takes no time.
func bounded(tb testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	tb.Cleanup(cancel)
	return ctx
}

// lapsed is a context that has ended.
func lapsed(tb testing.TB) context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

func mustAs[T any](tb testing.TB, s families.Socket) T {
	tb.Helper()
	c, err := families.As[T](s)
	require.NoError(tb, err)
	return c
}

func (s suite) open(tb testing.TB) families.Socket {
	tb.Helper()
	return MustOpen(tb, s.f, s.c.Spec)
}

func (s suite) listener(tb testing.TB) families.Socket {
	tb.Helper()
	l := s.open(tb)
	require.NoError(tb, l.Bind(s.c.Addr(tb)))
	require.NoError(tb, mustAs[families.Listener](tb, l).Listen(0))
	return l
}

// pair is two sockets that send to each other, closed when the test ends.
func (s suite) pair(tb testing.TB) (a, b families.Socket) {
	tb.Helper()
	if s.c.connects() {
		return s.accepted(tb)
	}
	a, b = s.open(tb), s.open(tb)
	require.NoError(tb, a.Bind(s.c.Addr(tb)))
	require.NoError(tb, b.Bind(s.c.Addr(tb)))
	require.NoError(tb, a.Connect(bounded(tb), b.Info().Local))
	require.NoError(tb, b.Connect(bounded(tb), a.Info().Local))
	require.Equal(tb, families.Connected, a.Info().State)
	return a, b
}

func (s suite) accepted(tb testing.TB) (a, b families.Socket) {
	tb.Helper()
	l := s.listener(tb)
	a = s.open(tb)
	require.NoError(tb, a.Connect(bounded(tb), l.Info().Local))
	b, err := families.AcceptWait(bounded(tb), l)
	require.NoError(tb, err)
	closed(tb, b)
	require.NoError(tb, l.Close())
	return a, b
}

func mustSend(tb testing.TB, s families.Socket, text string) {
	tb.Helper()
	n, err := families.SendAll(bounded(tb), s, &families.Msg{Data: []byte(text)})
	require.NoError(tb, err)
	require.Equal(tb, len(text), n)
}

func (s suite) mustRecv(tb testing.TB, from families.Socket) string {
	tb.Helper()
	m := families.Msg{Data: make([]byte, 1000)}
	require.NoError(tb, families.RecvWait(bounded(tb), from, &m))
	return string(m.Data[s.c.Header:])
}

// pattern is n bytes in which no two stretches are the same.
func pattern(n int) []byte {
	b := make([]byte, n)
	x := uint32(2463534242)
	for i := range b {
		x ^= x << 13
		x ^= x >> 17
		x ^= x << 5
		b[i] = byte(x)
	}
	return b
}

// Deaf makes a listener at a whose queue is full: whoever connects to it gets no
// answer. It returns where it listens.
func Deaf(tb testing.TB, f families.Family, spec families.Spec, a families.Addr) families.Addr {
	tb.Helper()
	l := MustOpen(tb, f, spec)
	require.NoError(tb, l.Bind(a))
	require.NoError(tb, mustAs[families.Listener](tb, l).Listen(1))
	to := l.Info().Local
	const most = 10 // the kernel rounds the queue's length up, but not that far
	for range most {
		ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		err := MustOpen(tb, f, spec).Connect(ctx, to)
		cancel()
		if errors.Is(err, context.DeadlineExceeded) {
			return to
		}
		require.NoError(tb, err)
	}
	tb.Fatalf("%d connections fit into a queue of 1", most)
	return nil
}
