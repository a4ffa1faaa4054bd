package familytest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/sockd/sockd/families"
	"github.com/stretchr/testify/require"
)

// Config says how to test a family.
type Config struct {
	// Addrs are addresses that parse, and print as they are written.
	Addrs map[families.Type][]string
	// Bad are addresses that do not parse.
	Bad map[families.Type][]string
	// Cases are the socket types, one or several ways each.
	Cases []Case
}

// Case is one type of socket and how to make two of them talk.
type Case struct {
	Name string // defaults to the type
	Spec families.Spec
	// Addr is a new address to bind to, each time.
	Addr func(tb testing.TB) families.Addr
	// Max is the largest message, as s sends it. Nil for streams.
	Max func(tb testing.TB, s families.Socket) int
	// Min is the smallest message that the kernel hands over, where that is not 0.
	Min int
	// Endless tells that one byte more than Max is not an error.
	Endless bool
	// Header is how many bytes stand before the payload in what is received, as the
	// IP header does on a raw IPv4 socket.
	Header int
	// PeerUnknown tells that the kernel does not know whom a socket is connected to,
	// only who connected it does. On a raw socket it never knows.
	PeerUnknown bool
	// Deaf is an address that a connection attempt to stays without an answer.
	// Nil where there is none.
	Deaf func(tb testing.TB) families.Addr
	// What the type can do.
	Listener, HalfCloser, Resetter, Dropper, Optioner bool
}

func (c Case) name() string {
	if c.Name != "" {
		return c.Name
	}
	return c.Spec.Type.String()
}

// connects tells whether sockets of c are made by listening and accepting.
func (c Case) connects() bool { return c.Listener }

// Run checks the laws of package families on f.
func Run(t *testing.T, f families.Family, cfg Config) {
	t.Run("addresses print what they parse", func(t *testing.T) { testAddrs(t, f, cfg) })
	t.Run("a type that it has not is refused", func(t *testing.T) { testOtherTypes(t, f) })
	for _, c := range cfg.Cases {
		s := suite{f, c}
		t.Run(c.name(), s.run)
	}
}

type suite struct {
	f families.Family
	c Case
}

func (s suite) run(t *testing.T) {
	for _, law := range []struct {
		name string
		test func(t *testing.T)
		when bool
	}{
		{"a new socket says what it is", s.testNew, true},
		{"has the capabilities of its type and no others", s.testCapabilities, true},
		{"an unknown option does not parse", s.testUnknownOption, true},
		{"attempts never block", s.testAgain, true},
		{"what is there is received at once", s.testReady, true},
		{"each of many waiters ends at its own time", s.testTimeouts, true},
		{"waiters do not disturb a reader", s.testReader, true},
		{"close ends every wait", s.testCloseWaiters, true},
		{"close twice is nil and then all is closed", s.testCloseTwice, true},
		{"a wait for both directions ends by either", s.testEither, true},
		{"messages keep their borders", s.testBorders, s.c.Spec.Type.Messages()},
		{"a cut message is an error", s.testCut, s.c.Spec.Type.Messages()},
		{"a peek leaves the data", s.testPeek, true},
		{"a stream gives what was sent, in order", s.testStream, s.c.Spec.Type == families.Stream},
		{"accept gives new sockets and the listener stays", s.testAccept, s.c.connects()},
		{"the end is EOF, and an empty message is not the end", s.testEnd, s.c.connects()},
		{"half of a connection runs on", s.testHalfClose, s.c.HalfCloser},
		{"a reset is not an end", s.testReset, s.c.Resetter},
		{"connecting to nobody is refused", s.testRefused, s.c.connects()},
		{"a connect that was given up can be tried again", s.testGiveUp, s.c.Deaf != nil},
		{"a descriptor can be taken in", s.testAdopt, isAdopter(s.f)},
	} {
		if !law.when {
			continue
		}
		t.Run(law.name, func(t *testing.T) {
			NoLeaks(t)
			law.test(t)
		})
	}
}

func isAdopter(f families.Family) bool {
	_, ok := f.(families.Adopter)
	return ok
}

func testAddrs(t *testing.T, f families.Family, cfg Config) {
	for typ, addrs := range cfg.Addrs {
		for _, text := range addrs {
			a := MustAddr(t, f, typ, text)
			require.Equal(t, text, a.String())
			checkAddr(t, f, typ, text)
		}
	}
	for typ, addrs := range cfg.Bad {
		for _, text := range addrs {
			a, err := f.ParseAddr(typ, text)
			require.ErrorIs(t, err, families.ErrSyntax, "%s %q parses as %v", typ, text, a)
			require.Nil(t, a)
		}
	}
}

// checkAddr is the law: what parses prints what parses to the same, and its
// network is one of the family's; what does not parse is ErrSyntax and nil.
func checkAddr(t *testing.T, f families.Family, typ families.Type, text string) {
	a, err := f.ParseAddr(typ, text)
	if err != nil {
		if !errors.Is(err, families.ErrSyntax) || a != nil {
			t.Errorf("%s %s: parse %q: got %v, %v; want nil and an error that wraps ErrSyntax", f.Name(), typ, text, a, err)
		}
		return
	}
	again, err := f.ParseAddr(typ, a.String())
	if err != nil || again != a {
		t.Errorf("%s %s: parse %q gives %q, which parses to %v, %v", f.Name(), typ, text, a, again, err)
	}
	for _, n := range f.Networks() {
		if n.Name == a.Network() && n.Type == typ {
			return
		}
	}
	t.Errorf("%s %s: network of %q is %q, which the family has not for this type", f.Name(), typ, text, a.Network())
}

// FuzzAddr fuzzes the address law of f with the given seeds.
func FuzzAddr(fz *testing.F, f families.Family, seeds ...string) {
	for _, s := range seeds {
		for _, t := range f.Types() {
			fz.Add(uint8(t), s)
		}
	}
	fz.Fuzz(func(t *testing.T, n uint8, text string) {
		types := f.Types()
		checkAddr(t, f, types[int(n)%len(types)], text)
	})
}

func testOtherTypes(t *testing.T, f families.Family) {
	has := map[families.Type]bool{}
	for _, typ := range f.Types() {
		has[typ] = true
	}
	for _, typ := range []families.Type{0, families.Stream, families.Dgram, families.Seqpacket, families.Raw} {
		if has[typ] {
			continue
		}
		_, err := f.Open(t.Context(), families.Spec{Type: typ})
		require.ErrorIs(t, err, families.ErrNotSupported, typ.String())
	}
}

func (s suite) testNew(t *testing.T) {
	sock := s.open(t)
	i := sock.Info()
	require.Equal(t, s.f.Name(), i.Family)
	require.Equal(t, s.c.Spec.Type, i.Type)
	require.NotEmpty(t, i.Proto)
	require.Nil(t, i.Peer)
	if s.c.Spec.Type != families.Raw { // a raw socket may be bound to its protocol from the start
		require.Equal(t, families.New, i.State)
		require.Nil(t, i.Local)
	}
	a := s.c.Addr(t)
	require.NoError(t, sock.Bind(a))
	i = sock.Info()
	require.Equal(t, families.Bound, i.State)
	require.NotNil(t, i.Local)
	again, err := s.f.ParseAddr(s.c.Spec.Type, i.Local.String())
	require.NoError(t, err)
	require.Equal(t, i.Local, again)
}

func (s suite) testCapabilities(t *testing.T) {
	sock := s.open(t)
	requireCapability[families.Listener](t, sock, s.c.Listener)
	requireCapability[families.HalfCloser](t, sock, s.c.HalfCloser)
	requireCapability[families.Resetter](t, sock, s.c.Resetter)
	requireCapability[families.Dropper](t, sock, s.c.Dropper)
	requireCapability[families.Optioner](t, sock, s.c.Optioner)
	requireCapability[families.Descriptor](t, sock, isAdopter(s.f))
}

func requireCapability[T any](t *testing.T, s families.Socket, want bool) {
	t.Helper()
	_, err := families.As[T](s)
	if want {
		require.NoError(t, err, "%T", *new(T))
		return
	}
	require.ErrorIs(t, err, families.ErrNotSupported)
}

func (s suite) testUnknownOption(t *testing.T) {
	spec := s.c.Spec
	spec.Options = append([]families.Option{}, spec.Options...)
	spec.Options = append(spec.Options, families.Option{Name: "no_such_option", Value: "1"})
	_, err := s.f.Open(t.Context(), spec)
	require.ErrorIs(t, err, families.ErrSyntax)
}

func (s suite) testAgain(t *testing.T) {
	a, b := s.pair(t)
	for _, sock := range []families.Socket{a, b} {
		m := families.Msg{Data: make([]byte, 100)}
		require.ErrorIs(t, sock.Recv(&m), families.ErrAgain)
	}
	if s.c.connects() {
		l := s.listener(t)
		_, err := mustAs[families.Listener](t, l).Accept()
		require.ErrorIs(t, err, families.ErrAgain)
	}
}

func (s suite) testReady(t *testing.T) {
	a, b := s.pair(t)
	mustSend(t, a, "hello")
	require.NoError(t, b.Wait(bounded(t), families.Readable))
	require.NoError(t, b.Wait(bounded(t), families.Readable), "readable is a level, not an edge")
	require.NoError(t, b.Wait(bounded(t), families.Writable))
	require.Equal(t, "hello", s.mustRecv(t, b))
	require.ErrorIs(t, b.Wait(lapsed(t), families.Readable), context.Canceled)
}

// testTimeouts has a hundred waiters with times of their own, fifty that are
// called off by hand, and one reader, all on one socket. Those with the longer
// times must be there when those with the shorter ones have ended.
func (s suite) testTimeouts(t *testing.T) {
	const waiters, step = 100, 2 * time.Millisecond
	a, b := s.pair(t)
	patient, callOff := context.WithCancel(t.Context())
	defer callOff()
	var patients sync.WaitGroup
	late := make(chan error, waiters)
	for range waiters / 2 {
		patients.Go(func() { late <- b.Wait(patient, families.Readable) })
	}
	var timed sync.WaitGroup
	start := time.Now()
	for i := range waiters {
		timed.Go(func() {
			d := time.Duration(waiters-i) * step
			ctx, cancel := context.WithDeadline(t.Context(), start.Add(d))
			defer cancel()
			err := b.Wait(ctx, families.Readable)
			if took := time.Since(start); !errors.Is(err, context.DeadlineExceeded) || took < d || took > d+patience {
				t.Errorf("a wait of %v ended after %v with %v", d, took, err)
			}
		})
	}
	timed.Wait()
	require.Empty(t, late, "a waiter without a deadline ended by another's")
	callOff()
	patients.Wait()
	for range waiters / 2 {
		require.ErrorIs(t, <-late, context.Canceled)
	}
	mustSend(t, a, "after it")
	require.Equal(t, "after it", s.mustRecv(t, b))
}

// testReader has readers that take one message each between waiters that end all
// the time.
func (s suite) testReader(t *testing.T) {
	const messages, waiters = 200, 20
	a, b := s.pair(t)
	ctx, cancel := context.WithCancel(t.Context())
	var around sync.WaitGroup
	for range waiters {
		around.Go(func() {
			for ctx.Err() == nil {
				short, done := context.WithTimeout(ctx, time.Millisecond)
				_ = b.Wait(short, families.Readable) // only there to be in the way
				done()
			}
		})
	}
	// Every reader takes bytes until all are there, so that each wake-up counts.
	read := make(chan error, 1)
	go func() { read <- s.readBytes(t.Context(), b, messages*len("message")) }()
	for range messages {
		mustSend(t, a, "message")
	}
	select {
	case err := <-read:
		require.NoError(t, err)
	case <-time.After(patience):
		t.Error("a reader was not woken")
	}
	cancel()
	around.Wait()
}

func (s suite) readBytes(ctx context.Context, sock families.Socket, n int) error {
	buf := make([]byte, 1000)
	for n > 0 {
		m := families.Msg{Data: buf}
		if err := families.RecvWait(ctx, sock, &m); err != nil {
			return err
		}
		n -= len(m.Data) - s.header()
	}
	return nil
}

func (s suite) header() int { return s.c.Header }

func (s suite) testCloseWaiters(t *testing.T) {
	const waiters = 100
	_, b := s.pair(t)
	var entered sync.WaitGroup
	ended := make(chan error, waiters)
	for range waiters {
		entered.Add(1)
		go func() {
			entered.Done()
			ended <- b.Wait(t.Context(), families.Readable)
		}()
	}
	entered.Wait()
	require.NoError(t, b.Close())
	for range waiters {
		select {
		case err := <-ended:
			require.ErrorIs(t, err, net.ErrClosed)
		case <-time.After(patience):
			t.Fatal("a wait did not end with the socket")
		}
	}
}

func (s suite) testCloseTwice(t *testing.T) {
	a, _ := s.pair(t)
	local := a.Info().Local
	require.NoError(t, a.Close())
	require.NoError(t, a.Close())
	m := families.Msg{Data: make([]byte, 10)}
	require.ErrorIs(t, a.Recv(&m), net.ErrClosed)
	_, err := a.Send(&families.Msg{Data: []byte("x")})
	require.ErrorIs(t, err, net.ErrClosed)
	require.ErrorIs(t, a.Wait(t.Context(), families.Readable), net.ErrClosed)
	require.ErrorIs(t, a.Wait(t.Context(), families.Writable), net.ErrClosed)
	require.ErrorIs(t, a.Bind(s.c.Addr(t)), net.ErrClosed)
	i := a.Info()
	require.Equal(t, families.Closed, i.State)
	require.Equal(t, s.f.Name(), i.Family)
	require.Equal(t, local, i.Local, "the address is still known")
}

func (s suite) testEither(t *testing.T) {
	a, b := s.pair(t)
	require.NoError(t, b.Wait(bounded(t), families.Readable|families.Writable))
	mustSend(t, a, "x")
	require.NoError(t, b.Wait(bounded(t), families.Readable|families.Writable))
	require.NoError(t, b.Close())
	require.ErrorIs(t, b.Wait(bounded(t), families.Readable|families.Writable), net.ErrClosed)
}

func (s suite) testBorders(t *testing.T) {
	a, b := s.pair(t)
	largest := s.c.Max(t, a)
	buf := make([]byte, largest+s.c.Header+1)
	for _, size := range []int{0, 1, 2, 0, 100, 1472, 9000, 65507, largest} {
		if size > largest || size < s.c.Min {
			continue
		}
		want := pattern(size)
		n, err := families.SendAll(bounded(t), a, &families.Msg{Data: want})
		require.NoError(t, err, "%d bytes", size)
		require.Equal(t, size, n)
		m := families.Msg{Data: buf}
		require.NoError(t, families.RecvWait(bounded(t), b, &m), "%d bytes", size)
		require.Equal(t, size+s.c.Header, m.Full)
		require.True(t, bytes.Equal(want, m.Data[s.c.Header:]), "%d bytes arrived otherwise", size)
	}
	if !s.c.Endless {
		_, err := a.Send(&families.Msg{Data: pattern(largest + 1)})
		require.Error(t, err, "%d bytes are more than the largest message", largest+1)
		require.NotErrorIs(t, err, families.ErrAgain)
	}
}

func (s suite) testCut(t *testing.T) {
	a, b := s.pair(t)
	mustSend(t, a, "0123456789")
	mustSend(t, a, "next")
	m := families.Msg{Data: make([]byte, s.c.Header+4)}
	require.ErrorIs(t, families.RecvWait(bounded(t), b, &m), families.ErrCut)
	require.Equal(t, "0123", string(m.Data[s.c.Header:]))
	require.Equal(t, s.c.Header+10, m.Full)
	require.Equal(t, "next", s.mustRecv(t, b))
}

func (s suite) testPeek(t *testing.T) {
	a, b := s.pair(t)
	mustSend(t, a, "look")
	for range 2 {
		m := families.Msg{Data: make([]byte, 100), Flags: families.FlagPeek}
		require.NoError(t, families.RecvWait(bounded(t), b, &m))
		require.Equal(t, "look", string(m.Data[s.c.Header:]))
	}
	require.Equal(t, "look", s.mustRecv(t, b))
	m := families.Msg{Data: make([]byte, 100)}
	require.ErrorIs(t, b.Recv(&m), families.ErrAgain)
}

// testStream sends more than any buffer holds, so that sender and receiver wait
// for each other.
func (s suite) testStream(t *testing.T) {
	a, b := s.pair(t)
	want := pattern(16 << 20)
	sent := make(chan error, 1)
	go func() {
		_, err := families.SendAll(t.Context(), a, &families.Msg{Data: want})
		sent <- err
	}()
	got := make([]byte, 0, len(want))
	buf := make([]byte, 100_000)
	for len(got) < len(want) {
		m := families.Msg{Data: buf}
		require.NoError(t, families.RecvWait(bounded(t), b, &m))
		got = append(got, m.Data...)
	}
	require.NoError(t, <-sent)
	require.True(t, bytes.Equal(want, got))
}

func (s suite) testAccept(t *testing.T) {
	l := s.listener(t)
	require.Equal(t, families.Listening, l.Info().State)
	var accepted []families.Socket
	for i := range 3 {
		c := s.open(t)
		require.NoError(t, c.Connect(bounded(t), l.Info().Local))
		require.Equal(t, families.Connected, c.Info().State)
		require.Equal(t, l.Info().Local, c.Info().Peer)
		p, err := families.AcceptWait(bounded(t), l)
		require.NoError(t, err)
		closed(t, p)
		require.Equal(t, families.Connected, p.Info().State)
		mustSend(t, c, fmt.Sprint(i))
		accepted = append(accepted, p)
	}
	for i, p := range accepted {
		require.Equal(t, fmt.Sprint(i), s.mustRecv(t, p))
	}
	require.Equal(t, families.Listening, l.Info().State)
	require.NoError(t, l.Close())
	mustSend(t, accepted[0], "still here")
}

func (s suite) testEnd(t *testing.T) {
	a, b := s.pair(t)
	if s.c.Spec.Type.Messages() {
		mustSend(t, a, "")
		require.Equal(t, "", s.mustRecv(t, b))
	}
	mustSend(t, a, "last words")
	require.NoError(t, a.Close())
	require.Equal(t, "last words", s.mustRecv(t, b))
	for range 2 {
		m := families.Msg{Data: make([]byte, 10)}
		require.ErrorIs(t, families.RecvWait(bounded(t), b, &m), io.EOF)
		require.Empty(t, m.Data)
	}
}

func (s suite) testHalfClose(t *testing.T) {
	a, b := s.pair(t)
	require.NoError(t, mustAs[families.HalfCloser](t, a).CloseWrite())
	require.Equal(t, families.HalfClosed, a.Info().State)
	m := families.Msg{Data: make([]byte, 10)}
	require.ErrorIs(t, families.RecvWait(bounded(t), b, &m), io.EOF)
	require.Equal(t, families.HalfClosed, b.Info().State)
	mustSend(t, b, "answer")
	require.Equal(t, "answer", s.mustRecv(t, a))
	_, err := a.Send(&families.Msg{Data: []byte("x")})
	require.Error(t, err)
}

func (s suite) testReset(t *testing.T) {
	a, b := s.pair(t)
	require.NoError(t, mustAs[families.Resetter](t, a).Reset())
	require.Equal(t, families.Closed, a.Info().State)
	m := families.Msg{Data: make([]byte, 10)}
	err := families.RecvWait(bounded(t), b, &m)
	require.Error(t, err)
	require.NotErrorIs(t, err, io.EOF)
}

func (s suite) testRefused(t *testing.T) {
	gone := s.open(t)
	require.NoError(t, gone.Bind(s.c.Addr(t)))
	a := gone.Info().Local
	require.NoError(t, gone.Close())
	c := s.open(t)
	err := c.Connect(bounded(t), a)
	var op *families.OpError
	require.ErrorAs(t, err, &op)
	require.Equal(t, "connect", op.Op)
	require.Equal(t, s.f.Name(), op.Family)
	require.Equal(t, a.String(), op.Addr)
}

// testGiveUp also has the socket connect to somebody who answers afterwards.
func (s suite) testGiveUp(t *testing.T) {
	deaf := s.c.Deaf(t)
	c := s.open(t)
	for range 2 {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		err := c.Connect(ctx, deaf)
		cancel()
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.NotEqual(t, families.Connecting, c.Info().State)
	}
	l := s.listener(t)
	require.NoError(t, c.Connect(bounded(t), l.Info().Local))
	p, err := families.AcceptWait(bounded(t), l)
	require.NoError(t, err)
	closed(t, p)
	mustSend(t, c, "at last")
	require.Equal(t, "at last", s.mustRecv(t, p))
}
