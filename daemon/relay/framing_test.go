package relay

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"syscall"
	"testing"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/familytest"
	"github.com/stretchr/testify/require"
)

var framings = []framing{framingU16BE, framingU32BE, framingLF}

// framedPair is a framed socket and the plain other end of its stream, in memory:
// a stream that holds 64 KiB.
func framedPair(tb testing.TB, k framing) (f *framedSocket, plain families.Socket) {
	tb.Helper()
	family := familytest.NewMem()
	at := familytest.MustAddr(tb, family, families.Stream, "here")
	l := familytest.MustOpen(tb, family, families.Spec{Type: families.Stream})
	require.NoError(tb, l.Bind(at))
	listener, err := families.As[families.Listener](l)
	require.NoError(tb, err)
	require.NoError(tb, listener.Listen(0))
	plain = familytest.MustOpen(tb, family, families.Spec{Type: families.Stream})
	require.NoError(tb, plain.Connect(tb.Context(), at))
	s, err := listener.Accept()
	require.NoError(tb, err)
	f = newFramed(s, k).(*framedSocket)
	tb.Cleanup(func() { require.NoError(tb, f.Close()) })
	return f, plain
}

func within(tb testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	tb.Cleanup(cancel)
	return ctx
}

func mustRecv(tb testing.TB, s families.Socket) []byte {
	tb.Helper()
	m := families.Msg{Data: make([]byte, messageRoom)}
	require.NoError(tb, families.RecvWait(within(tb), s, &m))
	require.Equal(tb, len(m.Data), m.Full)
	return m.Data
}

// line is n bytes that every framing can say.
func line(n int, r byte) []byte { return bytes.Repeat([]byte{'a' + r%26}, n) }

func TestMessagesComeOutOfAnySplitOfTheirStream(t *testing.T) {
	for _, k := range framings {
		t.Run(string(k), func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(1, 2))
			f, plain := framedPair(t, k)
			for range 20 {
				messages, stream := someMessages(rnd, k)
				sent := make(chan error, 1)
				go func() { sent <- sendInPieces(plain, stream, rnd) }()
				for _, m := range messages {
					require.Equal(t, m, append([]byte{}, mustRecv(t, f)...))
				}
				require.NoError(t, <-sent)
				require.ErrorIs(t, f.Recv(&families.Msg{Data: make([]byte, 10)}), families.ErrAgain)
				require.Nil(t, f.in.buf, "an idle stream holds a buffer")
			}
		})
	}
}

func someMessages(rnd *rand.Rand, k framing) (messages [][]byte, stream []byte) {
	sizes := []int{0, 1, 2, 1472, 9000, 65507, 65535, rnd.IntN(3000)}
	for range 1 + rnd.IntN(12) {
		m := line(sizes[rnd.IntN(len(sizes))], byte(rnd.Uint32()))
		messages, stream = append(messages, m), k.append(stream, m)
	}
	return messages, stream
}

func sendInPieces(s families.Socket, stream []byte, rnd *rand.Rand) error {
	pieces := rand.New(rand.NewPCG(rnd.Uint64(), 0))
	for len(stream) > 0 {
		n := min(len(stream), 1+pieces.IntN(1<<pieces.IntN(17)))
		if _, err := families.SendAll(context.Background(), s, &families.Msg{Data: stream[:n]}); err != nil {
			return err
		}
		stream = stream[n:]
	}
	return nil
}

// FuzzDeframer: what comes out, framed again, is what went in, up to where it is
// not whole or goes beyond the bound; and it is the same however the bytes came.
func FuzzDeframer(f *testing.F) {
	for i := range framings {
		for _, seed := range []string{"", "\n", "\x00\x00", "\x00\x01a\x00\x02bc", "\x00\x00\x00\x01a", "one\ntwo\r\n\nthr", "\xff\xff\xff\xff", "\x00\x04\x00\x01x"} {
			f.Add(uint8(i), []byte(seed), uint8(1))
			f.Add(uint8(i), []byte(seed), uint8(3))
		}
	}
	f.Fuzz(func(t *testing.T, which uint8, stream []byte, step uint8) {
		k := framings[int(which)%len(framings)]
		all, allRest, allErr := deframe(k, stream, len(stream)+1)
		some, someRest, someErr := deframe(k, stream, int(step)+1)
		require.Equal(t, all, some)
		require.Equal(t, allErr == nil, someErr == nil)
		var again []byte
		for _, m := range all {
			require.NoError(t, k.check(m))
			again = k.append(again, m)
		}
		require.Equal(t, string(stream[:len(again)]), string(again))
		if allErr == nil {
			require.Equal(t, allRest, someRest)
			require.Equal(t, max(0, len(stream)-len(again)-k.head()), allRest)
		}
	})
}

// deframe gives a deframer a stream piece by piece, parking it in between.
func deframe(k framing, stream []byte, step int) (messages [][]byte, rest int, err error) {
	d := deframer{framing: k}
	defer d.release()
	for {
		for {
			m, size, err := d.first()
			if err != nil {
				return messages, d.rest(), err
			}
			if size == 0 {
				break
			}
			messages = append(messages, bytes.Clone(append([]byte{}, m...)))
			d.drop(size)
		}
		if len(stream) == 0 {
			return messages, d.rest(), nil
		}
		n := copy(d.room(), stream[:min(step, len(stream))])
		d.grew(n)
		stream = stream[n:]
		d.park()
	}
}

func TestAMessageIsSentWhole(t *testing.T) {
	for _, k := range []framing{framingU32BE, framingLF} {
		t.Run(string(k), func(t *testing.T) {
			f, plain := framedPair(t, k)
			first, second := line(200_000, 1), line(frameLimit, 2)
			n, err := f.Send(&families.Msg{Data: first})
			require.NoError(t, err)
			require.Equal(t, len(first), n)
			_, err = f.Send(&families.Msg{Data: second})
			require.ErrorIs(t, err, families.ErrAgain)
			lapsed, cancel := context.WithCancel(context.Background())
			cancel()
			require.ErrorIs(t, f.Wait(lapsed, families.Writable), context.Canceled)
			require.ErrorIs(t, f.Wait(lapsed, families.Writable|families.Readable), context.Canceled)
			done := make(chan error, 1)
			go func() {
				_, err := families.SendAll(context.Background(), f, &families.Msg{Data: second})
				done <- errors.Join(err, f.CloseWrite())
			}()
			want := k.append(k.append(nil, first), second)
			require.Equal(t, want, readAll(t, plain))
			require.NoError(t, <-done)
			require.Zero(t, f.lost.n[causeUnsent].Load())
		})
	}
}

func readAll(tb testing.TB, s families.Socket) (all []byte) {
	tb.Helper()
	for {
		m := families.Msg{Data: make([]byte, 10_000)}
		err := families.RecvWait(within(tb), s, &m)
		if err == io.EOF {
			return all
		}
		require.NoError(tb, err)
		all = append(all, m.Data...)
	}
}

func TestWhatCloseFindsUnsentIsCounted(t *testing.T) {
	f, plain := framedPair(t, framingU32BE)
	const n = 200_000
	_, err := f.Send(&families.Msg{Data: line(n, 1)})
	require.NoError(t, err)
	require.NoError(t, f.Close())
	require.NoError(t, f.Close())
	arrived := len(readAll(t, plain))
	require.Equal(t, n+4, arrived+int(f.lost.n[causeUnsent].Load()))
	_, err = f.Send(&families.Msg{Data: []byte("x")})
	require.ErrorIs(t, err, net.ErrClosed)
	require.ErrorIs(t, f.Wait(context.Background(), families.Readable), net.ErrClosed)
}

// A message behind the one that was received is there, though the stream has
// nothing more to give.
func TestWaitDoesNotWaitForAMessageThatIsThere(t *testing.T) {
	f, plain := framedPair(t, framingLF)
	_, err := plain.Send(&families.Msg{Data: []byte("one\ntwo\nthr")})
	require.NoError(t, err)
	require.Equal(t, "one", string(mustRecv(t, f)))
	require.NoError(t, f.Wait(within(t), families.Readable))
	m := families.Msg{Data: make([]byte, 10), Flags: families.FlagPeek}
	require.NoError(t, f.Recv(&m))
	require.Equal(t, "two", string(m.Data))
	m = families.Msg{Data: make([]byte, 2)}
	require.ErrorIs(t, f.Recv(&m), families.ErrCut)
	require.Equal(t, "tw", string(m.Data))
	require.Equal(t, 3, m.Full)
	lapsed, cancel := context.WithCancel(context.Background())
	cancel()
	require.ErrorIs(t, f.Wait(lapsed, families.Readable), context.Canceled)
}

func TestWhatCannotBeSaidIsNot(t *testing.T) {
	for _, c := range []struct {
		name    string
		k       framing
		message []byte
		want    error
	}{
		{"u16be beyond 65535", framingU16BE, make([]byte, 65536), syscall.EMSGSIZE},
		{"u32be beyond the bound", framingU32BE, make([]byte, frameLimit+1), syscall.EMSGSIZE},
		{"a line beyond the bound", framingLF, make([]byte, frameLimit+1), syscall.EMSGSIZE},
		{"a line feed in a line", framingLF, []byte("two\nlines"), syscall.EINVAL},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, plain := framedPair(t, c.k)
			_, err := f.Send(&families.Msg{Data: c.message})
			require.ErrorIs(t, err, c.want)
			require.ErrorIs(t, plain.Recv(&families.Msg{Data: make([]byte, 10)}), families.ErrAgain)
		})
	}
}

func TestAFrameThatWillNotBeWholeEndsTheStream(t *testing.T) {
	longest := binary.BigEndian.AppendUint32(nil, frameLimit+1)
	for _, c := range []struct {
		name   string
		k      framing
		stream string
		got    int
		why    string
		is     error
	}{
		{"an end within a length", framingU16BE, "\x00\x01a\x00", 0, "ended inside a frame", io.ErrUnexpectedEOF},
		{"an end within a message", framingU32BE, "\x00\x00\x00\x01a\x00\x00\x00\x05bcd", 3, "ended inside a frame", io.ErrUnexpectedEOF},
		{"an end within a line", framingLF, "a\nbcd", 3, "ended inside a frame", io.ErrUnexpectedEOF},
		{"a length beyond the bound", framingU32BE, "\x00\x00\x00\x01a" + string(longest) + "xy", 2, fmt.Sprintf("a frame of %d bytes, and %d is the bound", frameLimit+1, frameLimit), syscall.EMSGSIZE},
		{"a line beyond the bound", framingLF, "a\n" + string(line(frameLimit+1, 1)), frameLimit + 1, fmt.Sprintf("a line of more than %d bytes", frameLimit), syscall.EMSGSIZE},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, plain := framedPair(t, c.k)
			go func() {
				_, _ = families.SendAll(context.Background(), plain, &families.Msg{Data: []byte(c.stream)}) // the end tells
				h, _ := families.As[families.HalfCloser](plain)
				_ = h.CloseWrite()
			}()
			require.Equal(t, "a", string(mustRecv(t, f)))
			err := families.RecvWait(within(t), f, &families.Msg{Data: make([]byte, 10)})
			var torn *tornError
			require.ErrorAs(t, err, &torn)
			require.Equal(t, c.got, torn.got)
			require.ErrorContains(t, err, c.why)
			require.ErrorIs(t, err, c.is)
			require.NotErrorIs(t, err, io.EOF)
			require.NoError(t, f.Wait(within(t), families.Readable))
			require.ErrorAs(t, f.Recv(&families.Msg{Data: make([]byte, 10)}), &torn)
			require.Zero(t, torn.got, "it is lost twice")
		})
	}
}

// tunnel is two relays with a framed stream between them: messages, a stream, and
// messages again.
func tunnel(t *testing.T, from, stream string, to string) *meeting {
	t.Helper()
	m := &meeting{world: newWorld(t)}
	ep := m.backend(mustEndpoint(t, to+":"+m.anyAddress(to, sideTo)))
	network, option := word(stream)
	at := map[string]string{"tcp": "127.0.0.1:0", "unix": m.path("tunnel")}[network]
	exit := m.mustAdd(spec(t, network+":"+at+option, ep.String()))
	m.relay = m.mustAdd(spec(t, from+":"+m.anyAddress(from, sideFrom), exit.Local[0]+option))
	m.near = m.client(m.relay.Local[0])
	return m
}

// word takes NETWORK,OPTION apart, with the comma at the option.
func word(s string) (network, option string) {
	network, option, ok := strings.Cut(s, ",")
	if ok {
		option = "," + option
	}
	return network, option
}

func TestATunnelOfFramesCarriesDatagrams(t *testing.T) {
	for _, c := range []struct {
		from, stream, to string
		more             []int
	}{
		{"udp", "tcp,framing=u16be", "udp", nil},
		{"udp", "unix,framing=u32be", "udp", nil},
		{"unixgram", "tcp,framing=u16be", "unixgram", []int{65535}},
		{"unixpacket", "unix,framing=u16be", "unixpacket", []int{65535}},
		{"unixpacket", "tcp,framing=u32be", "unixgram", []int{65535, 200_000}},
		{"udp", "tcp,framing=lf", "unixpacket", nil},
	} {
		t.Run(c.from+" to "+c.stream+" to "+c.to, func(t *testing.T) {
			m := tunnel(t, c.from, c.stream, c.to)
			total := int64(0)
			for i, n := range append([]int{1, 0, 1472, 9000, 65507}, c.more...) {
				total += int64(n)
				msg := line(n, byte(i))
				m.say(m.near, families.Name{}, msg)
				m.meetFar()
				m.hear(m.far, msg)
				m.say(m.far, m.farPeer, msg)
				m.hear(m.near, msg)
			}
			m.requireBalanced()
			for _, r := range m.eng.Relays() {
				familytest.Eventually(t, "messages are missing in the books", func() bool {
					r := m.mustRelay(r.ID)
					return r.RxBytes == total && r.TxBytes == total
				})
				require.Empty(t, r.Drops)
			}
		})
	}
}

func TestAStreamOfOneFramingBecomesOneOfAnother(t *testing.T) {
	w := newWorld(t)
	l := serve(t, "tcp", "127.0.0.1:0", echo)
	r := w.mustAdd(spec(t, "tcp:127.0.0.1:0,framing=lf", "tcp:"+l.Addr().String()+",framing=u16be"))
	c := mustDial(t, r)
	_, err := c.Write([]byte("one\n\nthree\n"))
	require.NoError(t, err)
	require.NoError(t, c.(halfCloser).CloseWrite())
	all, err := io.ReadAll(c)
	require.NoError(t, err)
	require.Equal(t, "one\n\nthree\n", string(all))
	require.Empty(t, w.mustIdle(r.ID).Drops)
	require.EqualValues(t, len("onethree"), w.mustRelay(r.ID).RxBytes) // messages, without frames
}

func TestALineClientTalksToDatagrams(t *testing.T) {
	m := &meeting{world: newWorld(t)}
	ep := m.backend(mustEndpoint(t, "unixgram:"+m.path("to")))
	m.relay = m.mustAdd(spec(t, "tcp:127.0.0.1:0,framing=lf", ep.String()))
	c := mustDial(t, m.relay)
	_, err := c.Write([]byte("hello\r\n\nwor"))
	require.NoError(t, err)
	m.hear(m.far, []byte("hello\r")) // a carriage return is the sender's
	m.hear(m.far, nil)
	_, err = c.Write([]byte("ld\n"))
	require.NoError(t, err)
	m.hear(m.far, []byte("world"))
	m.say(m.far, m.farPeer, []byte("answer"))
	m.say(m.far, m.farPeer, []byte("two\nlines"))
	m.say(m.far, m.farPeer, []byte("end"))
	lines := bufio.NewReader(c)
	for _, want := range []string{"answer\n", "end\n"} {
		got, err := lines.ReadString('\n')
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
	require.EqualValues(t, 1, m.mustRelay(m.relay.ID).Drops["invalid"])
	m.requireLedger(int64(len("two\nlines")))
}

// What came before it is delivered, then both sides are reset: a clean end would
// hide that a message is missing.
func TestATornFrameIsAReset(t *testing.T) {
	for _, c := range []struct{ name, rest, why string }{
		{"an end inside a frame", "\x00\x00\x00\x09half", "the stream ended inside a frame, after 4 bytes of its message"},
		{"a frame beyond the bound", "\xff\xff\xff\xffhalf", "a frame of 4294967295 bytes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			heard, ended := make(chan string, 1), make(chan error, 1)
			l := serve(t, "tcp", "127.0.0.1:0", func(c net.Conn) {
				b := make([]byte, 5)
				_, _ = io.ReadFull(c, b) // the end tells
				heard <- string(b)
				_, err := c.Read(b)
				ended <- err
			})
			r := w.mustAdd(spec(t, "tcp:127.0.0.1:0,framing=u32be", "tcp:"+l.Addr().String()+",framing=u16be"))
			conn := mustDial(t, r)
			_, err := conn.Write([]byte("\x00\x00\x00\x03abc" + c.rest))
			require.NoError(t, err)
			_ = conn.(halfCloser).CloseWrite() // a frame beyond the bound has reset it already
			require.Equal(t, "\x00\x03abc", <-heard)
			require.True(t, isReset(<-ended))
			_, err = io.ReadAll(conn)
			require.True(t, isReset(err))
			require.EqualValues(t, 1, w.mustIdle(r.ID).Drops["torn"])
			require.Contains(t, w.host.mustEvent(t, "session", "closed", 0).Cause, c.why)
		})
	}
}

// A message that only one of two framings can carry is a drop, not the end.
func TestAMessageBeyondAFramingIsCounted(t *testing.T) {
	m := &meeting{world: newWorld(t)}
	l := serve(t, "tcp", "127.0.0.1:0", echo)
	m.relay = m.mustAdd(spec(t, "unixpacket:"+m.path("from"), "tcp:"+l.Addr().String()+",framing=u16be"))
	m.near = m.client(m.relay.Local[0])
	m.say(m.near, families.Name{}, make([]byte, 65536))
	m.say(m.near, families.Name{}, []byte("next"))
	m.hear(m.near, []byte("next"))
	require.EqualValues(t, 1, m.mustRelay(m.relay.ID).Drops["too_big"])
	m.requireLedger(65536)
}

// A framed TO that takes nothing slows its sender down, and loses nothing.
func TestASlowFramedReaderLosesNothing(t *testing.T) {
	m := &meeting{world: newWorld(t)}
	read := make(chan struct{})
	total := make(chan int64, 1)
	l := serve(t, "tcp", "127.0.0.1:0", func(c net.Conn) {
		<-read
		n, _ := io.Copy(io.Discard, c) // the count tells
		total <- n
	})
	m.relay = m.mustAdd(spec(t, "unixpacket:"+m.path("from"), "tcp:"+l.Addr().String()+",framing=u32be"))
	m.near = m.client(m.relay.Local[0])
	const size, count = 60_000, 300
	sent := make(chan error, 1)
	go func() {
		for range count {
			if _, err := families.SendAll(context.Background(), m.near, &families.Msg{Data: make([]byte, size)}); err != nil {
				sent <- err
				return
			}
		}
		h, err := families.As[families.HalfCloser](m.near)
		if err == nil {
			err = h.CloseWrite()
		}
		sent <- err
	}()
	familytest.Eventually(t, "the sender is not held up", func() bool {
		ss := m.eng.Sessions()
		return len(ss) == 1 && ss[0].LimitedBy == "to"
	})
	close(read)
	require.NoError(t, <-sent)
	require.EqualValues(t, count*(size+4), <-total)
	require.Empty(t, m.mustRelay(m.relay.ID).Drops)
}

// Open sockets can be framed, too: as FROM, as TO, and as both.
func TestOpenStreamsCanBeFramed(t *testing.T) {
	stream := party{"id of a stream", "stream"}
	m := &meeting{world: newWorld(t)}
	from, to := m.openID(stream, sideFrom), m.openID(stream, sideTo)
	m.relay = m.mustAdd(spec(t, from.String()+",framing=lf", to.String()+",framing=u16be"))
	m.say(m.near, families.Name{}, []byte("one\n"))
	m.hear(m.far, []byte("\x00\x03one"))
	m.say(m.far, families.Name{}, []byte("\x00\x04back"))
	m.hear(m.near, []byte("back\n"))
	require.NoError(t, m.near.Close())
	m.hearEnd(m.far)
	require.NoError(t, m.far.Close())
	e := m.host.mustEvent(t, "relay", "removed", m.relay.ID)
	require.Empty(t, e.Cause)
}
