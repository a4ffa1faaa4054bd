package daemon

import (
	"context"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/model"
)

// A hundred callers wait on one socket, each with its own timeout. Each ends at
// its own time; a hundred and first gets the message, and another user's call on
// another socket is not held up.
func TestAHundredBlockedRecvsDoNotDisturbEachOther(t *testing.T) {
	d := newDaemon(t)
	a, b := udp(t, d)
	const n = 100
	type end struct {
		wanted, took time.Duration
		err          error
	}
	ends := make(chan end, n)
	for i := range n {
		wanted := 100*time.Millisecond + time.Duration(i)*5*time.Millisecond
		go func() {
			start := time.Now()
			ctx, cancel := context.WithTimeout(context.Background(), wanted)
			defer cancel()
			_, _, err := d.Recv(ctx, me, b, model.RecvSpec{})
			ends <- end{wanted, time.Since(start), err}
		}()
	}
	quick := time.Now()
	other, _ := udp(t, d)
	require.Equal(t, "bound", mustShow(t, d, mustBound(t, d)).State)
	require.Less(t, time.Since(quick), 5*time.Second, "another call waited for them")
	require.NotZero(t, other)
	for range n {
		e := within(t, "a recv did not end", ends)
		require.ErrorIs(t, e.err, context.DeadlineExceeded)
		require.GreaterOrEqual(t, e.took, e.wanted)
	}
	mustSend(t, d, a, "at last")
	require.Equal(t, "at last", mustRecv(t, d, b))
	require.Zero(t, waiters(d, b))
}

func mustBound(t *testing.T, d *Daemon) model.ID {
	id := mustOpen(t, d, "inet", "dgram")
	mustBind(t, d, id, "127.0.0.1:0")
	return id
}

func TestOneOfManyWaitersGetsEachMessage(t *testing.T) {
	d := newDaemon(t)
	a, b := udp(t, d)
	const n = 50
	got := make(chan string, n)
	for range n {
		go func() {
			m, _, err := d.Recv(testContextBackground(), me, b, model.RecvSpec{})
			if err != nil {
				got <- err.Error()
				return
			}
			got <- string(m.Data)
		}()
	}
	want := map[string]bool{}
	for i := range n {
		mustSend(t, d, a, fmt.Sprint(i))
		want[fmt.Sprint(i)] = true
	}
	for range n {
		delete(want, within(t, "a message was not received", got))
	}
	require.Empty(t, want)
}

func testContextBackground() context.Context { return context.Background() }

func TestACallerThatLeavesEndsItsCallAndLosesNothing(t *testing.T) {
	d := newDaemon(t)
	a, b := udp(t, d)
	ctx, leave := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { _, _, err := d.Recv(ctx, me, b, model.RecvSpec{}); ended <- err }()
	awaitWaiters(t, d, b, 1)
	leave()
	require.ErrorIs(t, within(t, "recv did not end", ended), context.Canceled)

	for _, m := range []string{"1", "2", "3"} {
		mustSend(t, d, a, m)
	}
	var undos []func()
	for range 3 {
		_, undo, err := d.Recv(testContext(t), me, b, model.RecvSpec{})
		require.NoError(t, err)
		undos = append(undos, undo)
	}
	mustSend(t, d, a, "4")
	for _, i := range []int{1, 2, 0, 0} { // in whatever order their callers leave, and once each
		undos[i]()
	}
	for _, want := range []string{"1", "2", "3", "4"} {
		require.Equal(t, want, mustRecv(t, d, b))
	}
	require.Equal(t, int64(4), mustShow(t, d, b).RxMessages, "each is counted once")
}

func TestAMessageThatComesBackWakesAWaiter(t *testing.T) {
	d := newDaemon(t)
	a, b := udp(t, d)
	mustSend(t, d, a, "first")
	_, undo, err := d.Recv(testContext(t), me, b, model.RecvSpec{})
	require.NoError(t, err)
	got := make(chan string, 1)
	go func() {
		m, _, _ := d.Recv(context.Background(), me, b, model.RecvSpec{})
		got <- string(m.Data)
	}()
	awaitWaiters(t, d, b, 1)
	undo()
	require.Equal(t, "first", within(t, "the message went to nobody", got))
}

func TestAStreamThatComesBackIsReadInPieces(t *testing.T) {
	d := newDaemon(t)
	client, server := pair(t, d)
	mustSend(t, d, client, "abcdefghij")
	m, undo, err := d.Recv(testContext(t), me, server, model.RecvSpec{Max: 6})
	require.NoError(t, err)
	require.Equal(t, "abcdef", string(m.Data))
	undo()
	m, undo, err = d.Recv(testContext(t), me, server, model.RecvSpec{Max: 2})
	require.NoError(t, err)
	require.Equal(t, "ab", string(m.Data))
	require.Equal(t, 2, m.Full)
	undo()
	for _, want := range []string{"abc", "def", "ghi", "j"} {
		m, _, err = d.Recv(testContext(t), me, server, model.RecvSpec{Max: 3})
		require.NoError(t, err)
		require.Equal(t, want, string(m.Data))
		require.False(t, m.Cut)
	}
}

func TestAMessageThatComesBackIsCutForLessRoomAndNotForgotten(t *testing.T) {
	d := newDaemon(t)
	a, b := udp(t, d)
	mustSend(t, d, a, "0123456789")
	_, undo, err := d.Recv(testContext(t), me, b, model.RecvSpec{})
	require.NoError(t, err)
	undo()
	m, undo, err := d.Recv(testContext(t), me, b, model.RecvSpec{Max: 4})
	require.NoError(t, err)
	require.Equal(t, "0123", string(m.Data))
	require.Equal(t, 10, m.Full)
	require.True(t, m.Cut)
	undo()
	require.Equal(t, "0123456789", mustRecv(t, d, b))
}

func TestPushbackIsBounded(t *testing.T) {
	var b pushback
	big := make([]byte, 1<<20)
	for i := range maxBackBytes >> 20 {
		require.True(t, b.put(piece{number: uint64(i), data: big}))
	}
	require.False(t, b.put(piece{number: 99, data: big}))
	for range maxBackBytes >> 20 {
		_, ok := b.take(1, true)
		require.True(t, ok)
	}
	require.Zero(t, b.bytes)
	for i := range maxBackPieces {
		require.True(t, b.put(piece{number: uint64(i)}))
	}
	require.False(t, b.put(piece{}))
}

func TestAnAcceptedSocketStaysWhenItsCallerLeft(t *testing.T) {
	d := newDaemon(t)
	listener, addr := listenTCP(t, d)
	ctx, leave := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { _, err := d.Accept(ctx, me, listener); ended <- err }()
	awaitWaiters(t, d, listener, 1)
	leave()
	require.ErrorIs(t, within(t, "accept did not end", ended), context.Canceled)
	conn, err := net.Dial("tcp", addr)
	require.NoError(t, err)
	defer conn.Close()
	// A call whose caller has gone still makes its one attempt.
	v, err := d.Accept(ctx, me, listener)
	require.NoError(t, err)
	require.Equal(t, conn.LocalAddr().String(), mustShow(t, d, v.ID).Peer)
}

// What two callers send at once on one stream is not mixed.
func TestSendsOnAStreamTakeTurns(t *testing.T) {
	d := newDaemon(t)
	client, server := pair(t, d)
	const size, each = 3 << 20, 2
	var work sync.WaitGroup
	for _, letter := range []byte("ab") {
		work.Go(func() {
			data := make([]byte, size)
			for i := range data {
				data[i] = letter
			}
			_, err := d.Send(context.Background(), me, client, data, "")
			require.NoError(t, err)
		})
	}
	changes, total, last := 0, 0, byte(0)
	for total < each*size {
		m, _, err := d.Recv(testContext(t), me, server, model.RecvSpec{})
		require.NoError(t, err)
		for _, c := range m.Data {
			if c != last {
				changes++
			}
			last = c
		}
		total += len(m.Data)
	}
	work.Wait()
	require.Equal(t, 2, changes, "one whole, then the other")
}

func TestConnectIsTakenBackWhenItsCallerLeaves(t *testing.T) {
	d := newDaemon(t)
	listener := mustOpen(t, d, "inet", "stream")
	addr := mustBind(t, d, listener, "127.0.0.1:0")
	_, err := d.Listen(t.Context(), me, listener, 1)
	require.NoError(t, err)
	// A full queue of pending connections makes the next attempt wait.
	var blocked model.ID
	for blocked == 0 {
		id := mustOpen(t, d, "inet", "stream")
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		_, err := d.Connect(ctx, me, id, addr)
		cancel()
		if err != nil {
			require.ErrorIs(t, err, context.DeadlineExceeded)
			require.Contains(t, err.Error(), "timed out")
			blocked = id
		}
	}
	_, other := listenTCP(t, d)
	mustConnect(t, d, blocked, other)
}

func TestARelayTakesASocketWithWhatCameBack(t *testing.T) {
	d := newDaemon(t)
	client, server := pair(t, d)
	mustSend(t, d, client, "came back,")
	_, undo, err := d.Recv(testContext(t), me, server, model.RecvSpec{})
	require.NoError(t, err)
	undo()
	waiting := make(chan error, 1)
	listener, _ := listenTCP(t, d)
	go func() { _, err := d.Accept(context.Background(), me, listener); waiting <- err }()
	awaitWaiters(t, d, listener, 1)

	s, err := d.Take(me.Owner(), server)
	require.NoError(t, err)
	defer s.Close()
	mustSend(t, d, client, "and more")
	require.NoError(t, s.Wait(t.Context(), families.Readable))
	room := make([]byte, 0, 5)
	var got string
	for len(got) < len("came back,and more") {
		m := families.Msg{Data: room}
		require.NoError(t, families.RecvWait(testContext(t), s, &m))
		got += string(m.Data)
	}
	require.Equal(t, "came back,and more", got)
	_, err = families.As[families.HalfCloser](s)
	require.NoError(t, err)
	_, err = families.As[families.Descriptor](s)
	require.ErrorIs(t, err, families.ErrNotSupported, "reading the descriptor would pass by what came back")
	_, _, err = d.Recv(t.Context(), me, server, model.RecvSpec{})
	require.ErrorIs(t, err, families.ErrNotFound)

	taken, err := d.Take(me.Owner(), listener)
	require.NoError(t, err)
	require.ErrorIs(t, within(t, "accept did not end", waiting), families.ErrNotFound)
	d.Untake(listener, taken)
	require.Equal(t, "listening", mustShow(t, d, listener).State)
	_, err = d.Take(model.Owner{UID: 54321}, listener)
	require.Error(t, err)
}

func TestWhoWaitsForItsTurnToSendEndsAlone(t *testing.T) {
	d := newDaemon(t)
	client, _ := pair(t, d)
	block := fill(t, d, client)
	first, second := make(chan error, 1), make(chan error, 1)
	go func() { first <- block() }()
	awaitWaiters(t, d, client, 1)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	n, err := d.Send(ctx, me, client, []byte("x"), "")
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.Zero(t, n)
	go func() { second <- block() }()
	awaitWaiters(t, d, client, 2)
	a, err := d.Attach(t.Context(), me, model.AttachSpec{ID: client, FD: model.NoFD})
	require.NoError(t, err)
	require.ErrorIs(t, within(t, "who was sending did not end", first), families.ErrBusy)
	require.ErrorIs(t, within(t, "who was waiting did not end", second), families.ErrBusy)
	require.NoError(t, a.Close())
}
