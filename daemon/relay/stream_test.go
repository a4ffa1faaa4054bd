package relay

import (
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sockd/sockd/families/familytest"
	"github.com/sockd/sockd/families/model"
	"github.com/stretchr/testify/require"
)

func TestStreamsCarryMebibytesBothWays(t *testing.T) {
	for _, tc := range []struct{ from, network, to string }{
		{"tcp:127.0.0.1:0", "tcp", "127.0.0.1:0"},
		{"tcp:[::1]:0", "tcp", "127.0.0.1:0"},
		{"tcp6:[::1]:0", "tcp6", "[::1]:0"},
		{"tcp::0", "unix", "backend"},
		{"unix:front", "tcp4", "127.0.0.1:0"},
		{"unix:@relay-front", "unix", "@relay-back"},
	} {
		t.Run(tc.from+" to "+tc.network, func(t *testing.T) {
			w := newWorld(t)
			address := tc.to
			if address == "backend" {
				address = w.path(address)
			}
			l := serve(t, tc.network, address, echo)
			from := tc.from
			if from == "unix:front" {
				from = "unix:" + w.path("front")
			}
			r := w.mustAdd(spec(t, from, tc.network+":"+l.Addr().String()))
			c := mustDial(t, r)
			mustEcho(t, c, bulk)
			got := w.mustIdle(r.ID)
			require.EqualValues(t, bulk, got.RxBytes)
			require.EqualValues(t, bulk, got.TxBytes)
			require.Empty(t, got.Drops)
			require.EqualValues(t, 1, got.Total)
		})
	}
}

// bulk is what the stream tests send: large enough to fill every queue on the
// way many times.
const bulk = 16 << 20

// mustEcho sends n random bytes through an echo, ends, and compares.
func mustEcho(tb testing.TB, c net.Conn, n int64) {
	tb.Helper()
	want, got := sha256.New(), sha256.New()
	sent := make(chan error, 1)
	go func() {
		_, err := io.CopyN(io.MultiWriter(c, want), rand.Reader, n)
		if err == nil {
			err = c.(halfCloser).CloseWrite()
		}
		sent <- err
	}()
	m, err := io.Copy(got, c)
	require.NoError(tb, <-sent)
	require.NoError(tb, err)
	require.Equal(tb, n, m)
	require.Equal(tb, want.Sum(nil), got.Sum(nil))
}

func TestAClientThatHasEndedStillGetsItsAnswer(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			w := newWorld(t)
			asked := make(chan string, 1)
			answer := make(chan struct{})
			l := serve(t, "tcp", "127.0.0.1:0", func(c net.Conn) {
				question, _ := io.ReadAll(c)
				asked <- string(question)
				<-answer
				_, _ = c.Write(make([]byte, 1<<20))
			})
			from := "tcp:127.0.0.1:0"
			if network == "unix" {
				from = "unix:" + w.path("s")
			}
			r := w.mustAdd(spec(t, from, "tcp:"+l.Addr().String()))
			c := mustDial(t, r)
			_, err := c.Write([]byte("question"))
			require.NoError(t, err)
			require.NoError(t, c.(halfCloser).CloseWrite())
			require.Equal(t, "question", <-asked) // the end has arrived: ReadAll returned
			require.Equal(t, "half-closed-from", w.eng.Sessions()[0].State)
			close(answer)
			got, err := io.ReadAll(c)
			require.NoError(t, err)
			require.Len(t, got, 1<<20)
			require.Empty(t, w.mustIdle(r.ID).Drops)
			require.Empty(t, w.host.mustEvent(t, "session", "closed", 0).Cause)
		})
	}
}

func TestHalfCloseIsBoundedWhenAsked(t *testing.T) {
	w := newWorld(t)
	l := serve(t, "tcp", "127.0.0.1:0", func(c net.Conn) {
		_, _ = io.ReadAll(c)
		_, _ = c.Read(make([]byte, 1)) // holds on until the relay ends it
		<-t.Context().Done()
	})
	s := spec(t, "tcp:127.0.0.1:0", "tcp:"+l.Addr().String())
	s.HalfClose = 20 * time.Millisecond
	r := w.mustAdd(s)
	c := mustDial(t, r)
	require.NoError(t, c.(halfCloser).CloseWrite())
	_, err := c.Read(make([]byte, 1))
	require.True(t, isReset(err), "got %v", err)
	require.Equal(t, "half-closed for 20ms", w.host.mustEvent(t, "session", "closed", 0).Cause)
}

func TestAResetIsNotACleanEnd(t *testing.T) {
	reset := func(c net.Conn) { _ = c.(*net.TCPConn).SetLinger(0); _ = c.Close() }
	t.Run("from the backend, after the bytes before it", func(t *testing.T) {
		w := newWorld(t)
		wrote := make(chan struct{})
		l := serve(t, "tcp", "127.0.0.1:0", func(c net.Conn) {
			_, _ = c.Write(make([]byte, 1000))
			<-wrote
			reset(c)
		})
		c := mustDial(t, w.mustAdd(spec(t, "tcp:127.0.0.1:0", "tcp:"+l.Addr().String())))
		n, err := io.ReadFull(c, make([]byte, 1000))
		require.NoError(t, err)
		require.Equal(t, 1000, n)
		close(wrote)
		_, err = c.Read(make([]byte, 1))
		require.True(t, isReset(err), "got %v", err)
		require.Contains(t, w.host.mustEvent(t, "session", "closed", 0).Cause, "connection reset by peer")
	})
	t.Run("from the client", func(t *testing.T) {
		w := newWorld(t)
		got := make(chan error, 1)
		l := serve(t, "tcp", "127.0.0.1:0", func(c net.Conn) {
			_, err := io.ReadFull(c, make([]byte, 1000))
			if err == nil {
				_, err = c.Read(make([]byte, 1))
			}
			got <- err
		})
		r := w.mustAdd(spec(t, "tcp:127.0.0.1:0", "tcp:"+l.Addr().String()))
		c := mustDial(t, r)
		_, err := c.Write(make([]byte, 1000))
		require.NoError(t, err)
		familytest.Eventually(t, "the bytes did not pass", func() bool { return w.mustRelay(r.ID).RxBytes == 1000 })
		reset(c)
		err = <-got
		require.True(t, isReset(err), "got %v", err)
	})
}

// A server that refuses an upload answers first and closes then.
func TestTheAnswerToARefusedUploadArrives(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			w := newWorld(t)
			address := map[string]string{"tcp": "127.0.0.1:0", "unix": w.path("b")}[network]
			answer := make([]byte, 100<<10)
			l := serve(t, network, address, func(c net.Conn) {
				_, _ = io.ReadFull(c, make([]byte, 10))
				_, _ = c.Write(answer)
			})
			c := mustDial(t, w.mustAdd(spec(t, "tcp:127.0.0.1:0", network+":"+l.Addr().String())))
			stop := make(chan struct{})
			go func() {
				defer close(stop)
				for {
					if _, err := c.Write(make([]byte, 64<<10)); err != nil {
						return
					}
				}
			}()
			got, err := io.ReadFull(c, make([]byte, len(answer)))
			require.NoError(t, err)
			require.Equal(t, len(answer), got)
			_ = c.Close()
			<-stop
		})
	}
}

func TestARefusedBackendResetsTheClient(t *testing.T) {
	w := newWorld(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	nobody := l.Addr().String()
	require.NoError(t, l.Close())
	r := w.mustAdd(spec(t, "tcp:127.0.0.1:0", "tcp:"+nobody))
	network, address := endpoint(t, r)
	c, err := net.Dial(network, address)
	if err == nil {
		_, err = c.Read(make([]byte, 1))
		_ = c.Close()
	}
	require.True(t, isReset(err), "got %v", err) // connect itself may see it already
	require.EqualValues(t, 1, w.mustIdle(r.ID).Drops["dial"])
	require.Contains(t, w.host.mustEvent(t, "session", "closed", 0).Cause, "connection refused")
}

func TestAPeerThatDoesNotReadStopsTheOther(t *testing.T) {
	w := newWorld(t)
	l := serve(t, "tcp", "127.0.0.1:0", func(c net.Conn) { <-t.Context().Done() })
	r := w.mustAdd(spec(t, "tcp:127.0.0.1:0", "tcp:"+l.Addr().String()))
	c := mustDial(t, r)
	require.NoError(t, c.SetWriteDeadline(time.Now().Add(300*time.Millisecond)))
	_, err := io.Copy(struct{ io.Writer }{c}, rand.Reader)
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	s := w.eng.Sessions()[0]
	require.Equal(t, "to", s.LimitedBy)
	require.LessOrEqual(t, w.mustStream(r.ID).rx.inFlight(), int64(pipeSize))
	require.NoError(t, w.eng.CloseSession(s.ID))
	got := w.mustIdle(r.ID)
	require.LessOrEqual(t, got.Drops["unsent_bytes"], int64(pipeSize))
	require.Positive(t, got.Drops["unsent_bytes"])
}

func TestIdleSessionsEnd(t *testing.T) {
	w := newWorld(t)
	l := serve(t, "tcp", "127.0.0.1:0", echo)
	s := spec(t, "tcp:127.0.0.1:0", "tcp:"+l.Addr().String())
	s.Idle = 500 * time.Millisecond // a slow machine needs some to connect
	c := mustDial(t, w.mustAdd(s))
	_, err := c.Read(make([]byte, 1))
	require.True(t, isReset(err), "got %v", err)
	require.Equal(t, "idle for 500ms", w.host.mustEvent(t, "session", "closed", 0).Cause)
}

func TestAConnectThatTakesTooLongIsGivenUp(t *testing.T) {
	w := newWorld(t)
	// A full queue of a unix listener keeps connect waiting.
	full, err := net.Listen("unix", w.path("full"))
	require.NoError(t, err)
	defer full.Close()
	rc, err := full.(*net.UnixListener).SyscallConn()
	require.NoError(t, err)
	require.NoError(t, rc.Control(func(fd uintptr) { require.NoError(t, syscall.Listen(int(fd), 0)) }))
	for range 1 {
		c, err := net.Dial("unix", w.path("full"))
		require.NoError(t, err)
		defer c.Close()
	}
	s := spec(t, "tcp:127.0.0.1:0", "unix:"+w.path("full"))
	s.ConnectTimeout = 50 * time.Millisecond
	c := mustDial(t, w.mustAdd(s))
	_, err = c.Read(make([]byte, 1))
	require.True(t, isReset(err), "got %v", err)
	require.Contains(t, w.host.mustEvent(t, "session", "closed", 0).Cause, "no connection within 50ms")
}

func TestTCPLegsKeepAliveAndDoNotDelay(t *testing.T) {
	w := newWorld(t)
	l := serve(t, "tcp", "127.0.0.1:0", tellName("A"))
	r := w.mustAdd(spec(t, "tcp:127.0.0.1:0,so_keepalive=0", "tcp:"+l.Addr().String()))
	mustName(t, r, 1)
	s := w.mustStream(r.ID)
	s.onShard(func() { s.bound.f() }) // the alarm that turns the keepalive on
	for _, tc := range []struct {
		end                 *end
		level, option, want int
		reason              string
	}{
		{&s.to, syscall.SOL_SOCKET, syscall.SO_KEEPALIVE, 1, "a peer that vanished is found"},
		{&s.to, syscall.IPPROTO_TCP, syscall.TCP_KEEPIDLE, 60, "within two minutes"},
		{&s.to, syscall.IPPROTO_TCP, syscall.TCP_NODELAY, 1, "a relay adds no delay"},
		{&s.from, syscall.IPPROTO_TCP, syscall.TCP_NODELAY, 1, "accepted sockets have it from the listener"},
		{&s.from, syscall.IPPROTO_TCP, syscall.TCP_KEEPIDLE, 60, "accepted sockets have it from the listener"},
		{&s.from, syscall.SOL_SOCKET, syscall.SO_KEEPALIVE, 0, "the user's word counts"},
	} {
		var got int
		var err error
		s.onShard(func() { got, err = syscall.GetsockoptInt(int(tc.end.fd), tc.level, tc.option) })
		require.NoError(t, err)
		require.Equal(t, tc.want, got, tc.reason)
	}
}

// mustStream is a relay's one session.
func (w *world) mustStream(id model.ID) *stream {
	w.tb.Helper()
	r, err := w.eng.relay(id)
	require.NoError(w.tb, err)
	var all []conversation
	familytest.Eventually(w.tb, "there is no session", func() bool {
		all = r.list()
		return len(all) == 1
	})
	return all[0].(*stream)
}

// onShard calls f where the session lives.
func (s *stream) onShard(f func()) {
	done := make(chan struct{})
	s.sh.do(func() { f(); close(done) })
	<-done
}

func BenchmarkStreamPingPong(b *testing.B) {
	w := newWorld(b)
	l := serve(b, "tcp", "127.0.0.1:0", echo)
	c := mustDial(b, w.mustAdd(spec(b, "tcp:127.0.0.1:0", "tcp:"+l.Addr().String())))
	require.NoError(b, c.SetDeadline(time.Time{}))
	buf := make([]byte, 64)
	b.ReportAllocs()
	for b.Loop() {
		_, err := c.Write(buf)
		require.NoError(b, err)
		_, err = io.ReadFull(c, buf)
		require.NoError(b, err)
	}
}

// A reset throws away what is queued, so it waits until the client has it all.
func TestAResetWaitsForASlowReader(t *testing.T) {
	w := newWorld(t)
	const n = 300 << 10
	passed := make(chan struct{})
	l := serve(t, "tcp", "127.0.0.1:0", func(c net.Conn) {
		_, _ = c.Write(make([]byte, n))
		<-passed
		_ = c.(*net.TCPConn).SetLinger(0)
	})
	r := w.mustAdd(spec(t, "tcp:127.0.0.1:0", "tcp:"+l.Addr().String()))
	network, address := endpoint(t, r)
	slow := net.Dialer{Control: func(_, _ string, rc syscall.RawConn) error {
		return rc.Control(func(fd uintptr) { _ = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 4096) })
	}}
	c, err := slow.Dial(network, address)
	require.NoError(t, err)
	defer c.Close()
	require.NoError(t, c.SetDeadline(time.Now().Add(deadline)))
	familytest.Eventually(t, "the bytes did not pass", func() bool { return w.mustRelay(r.ID).TxBytes == n })
	st := w.mustStream(r.ID)
	st.onShard(func() {
		left, err := st.from.fd.Unsent()
		require.NoError(t, err)
		require.Positive(t, left, "something must be queued")
	})
	close(passed)
	familytest.Eventually(t, "the reset did not arrive", func() bool { return st.reason() != nil })
	got, err := io.ReadFull(c, make([]byte, n))
	require.NoError(t, err)
	require.Equal(t, n, got)
	_, err = c.Read(make([]byte, 1))
	require.True(t, isReset(err), "got %v", err)
}

// A unix backend may stop reading alone: what it still says is brought, and when it is
// done the session ends as one whose bytes were refused.
func TestABackendThatOnlyStopsReadingIsHeard(t *testing.T) {
	w := newWorld(t)
	refused := make(chan struct{})
	l := serve(t, "unix", w.path("b"), func(c net.Conn) {
		_, _ = c.Write([]byte("enough"))
		_ = c.(*net.UnixConn).CloseRead()
		<-refused
		_, _ = c.Write([]byte("more"))
	})
	r := w.mustAdd(spec(t, "unix:"+w.path("f"), "unix:"+l.Addr().String()))
	c := mustDial(t, r)
	answer := make([]byte, 6)
	_, err := io.ReadFull(c, answer)
	require.NoError(t, err)
	familytest.Eventually(t, "nobody refuses", func() bool {
		_, err := c.Write(make([]byte, 1000))
		return errors.Is(err, syscall.EPIPE)
	})
	close(refused)
	rest, err := io.ReadAll(c)
	require.NoError(t, err)
	require.Equal(t, "more", string(rest))
	require.Contains(t, w.host.mustEvent(t, "session", "closed", 0).Cause, "broken pipe")
}

// A client that resets as soon as it is connected is a reset for the backend, and
// leaves nothing behind.
func TestAResetRightAfterConnectIsOne(t *testing.T) {
	w := newWorld(t)
	ends := make(chan error, 200)
	l := serve(t, "tcp", "127.0.0.1:0", func(c net.Conn) {
		_, err := io.Copy(io.Discard, struct{ io.Reader }{c})
		ends <- err
	})
	r := w.mustAdd(spec(t, "tcp:127.0.0.1:0", "tcp:"+l.Addr().String()))
	network, address := endpoint(t, r)
	for i := range 100 {
		c, err := net.Dial(network, address)
		require.NoError(t, err)
		if i%2 == 0 {
			mustWrite(t, c, []byte("x"))
		}
		hangUp(c)
	}
	w.mustIdle(r.ID)
	for range len(ends) {
		require.ErrorIs(t, <-ends, syscall.ECONNRESET)
	}
}

// A relay may be removed while its sessions fail: each ends once.
func TestRemovingWhileDialsFail(t *testing.T) {
	w := newWorld(t)
	for _, to := range []string{"unix:" + w.path("nobody"), "tcp:localhost:1", "tcp:127.0.0.1:1"} {
		for range 10 {
			r := w.mustAdd(spec(t, "tcp:127.0.0.1:0", to))
			network, address := endpoint(t, r)
			var clients sync.WaitGroup
			for range 8 {
				clients.Go(func() {
					if c, err := net.Dial(network, address); err == nil {
						_ = c.Close()
					}
				})
			}
			require.NoError(t, w.eng.Remove(r.ID, 0))
			clients.Wait()
			w.host.mustEvent(t, "relay", "removed", r.ID)
		}
	}
	for _, sh := range w.eng.allShards() {
		require.Zero(t, sh.live.Load())
	}
	require.Zero(t, w.eng.budget.used.Load())
}
