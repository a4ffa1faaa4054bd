package relay

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/all"
	"github.com/sockd/sockd/families/familytest"
	"github.com/sockd/sockd/families/ksock"
	"github.com/sockd/sockd/families/model"
	"github.com/stretchr/testify/require"
)

// childOf is set in a process that runs an engine for a test, to be killed.
const childOf = "SOCKD_RELAY_TEST_CHILD"

func TestMain(m *testing.M) {
	if from := os.Getenv(childOf); from != "" {
		if err := runChild(from); err != nil {
			fmt.Fprintln(os.Stderr, "child:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// runChild takes up what descriptor 3 brings, or else adds the relay of its
// environment, prints its relays, and runs until its standard input ends.
func runChild(text string) error {
	w := lotWire{3}
	parked, err := w.all()
	if err != nil {
		return err
	}
	e := New(Options{Families: all.Set(), Host: newHost(), Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})), Parking: mortalOf(w)})
	if len(parked) > 0 {
		err = e.Restore(context.Background(), parked)
	} else {
		err = addFromText(e, text)
	}
	if err != nil {
		return err
	}
	return serveChild(e)
}

func addFromText(e *Engine, text string) error {
	from, to, _ := strings.Cut(text, " ")
	s := model.RelaySpec{Name: "kept", FromFD: model.NoFD, Durable: model.DurableYes}
	var err error
	if s.From, err = families.ParseEndpoint(from); err != nil {
		return err
	}
	end, err := families.ParseEndpoint(to)
	if err != nil {
		return err
	}
	s.To = []families.Endpoint{end}
	_, err = e.Add(context.Background(), s)
	return err
}

// serveChild answers each line with the relays, sessions, or books.
func serveChild(e *Engine) error {
	out := json.NewEncoder(os.Stdout)
	lines := bufio.NewScanner(os.Stdin)
	if err := out.Encode(e.Relays()); err != nil {
		return err
	}
	for lines.Scan() {
		var err error
		switch lines.Text() {
		case "relays":
			err = out.Encode(e.Relays())
		case "sessions":
			err = out.Encode(e.Sessions())
		case "audit":
			err = out.Encode(e.Audit(0))
		case "abandon":
			err = e.Abandon()
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// dieAt is where a child kills itself: "before 3" or "after 3", the third call of its
// Parking.
const dieAt = "SOCKD_RELAY_TEST_DIE_AT"

// mortal is a lotWire that ends its process at a call.
type mortal struct {
	lotWire
	before, after int64
	calls         atomic.Int64
}

func mortalOf(w lotWire) Parking {
	m := &mortal{lotWire: w}
	for format, at := range map[string]*int64{"before %d": &m.before, "after %d": &m.after} {
		if _, err := fmt.Sscanf(os.Getenv(dieAt), format, at); err == nil {
			return m
		}
	}
	return w
}

func (m *mortal) at(call func()) {
	n := m.calls.Add(1)
	if n == m.before {
		die()
	}
	call()
	if n == m.after {
		die()
	}
}

// die is SIGKILL, at once.
func die() {
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {}
}

func (m *mortal) Park(rec ParkRecord, fds []int) (err error) {
	m.at(func() { err = m.lotWire.Park(rec, fds) })
	return err
}

func (m *mortal) Leave(id uint64) { m.at(func() { m.lotWire.Leave(id) }) }

// victim is an engine in a process that is killed and comes back.
type victim struct {
	tb    testing.TB
	text  string
	lot   *lot
	kills int
	dieAt string // where the next process kills itself

	cmd    *exec.Cmd
	in     io.WriteCloser
	out    *json.Decoder
	kept   chan error
	relays []model.Relay
}

// newVictim starts one with a relay of a FROM and a TO.
func newVictim(tb testing.TB, from, to string) *victim {
	tb.Helper()
	v := &victim{tb: tb, text: from + " " + to, lot: newLot()}
	v.start()
	tb.Cleanup(func() {
		v.kill()
		v.lot.close()
	})
	return v
}

func (v *victim) start() {
	v.tb.Helper()
	own, other := mustPair(v.tb)
	exe, err := os.Executable()
	require.NoError(v.tb, err)
	v.cmd = exec.Command(exe)
	v.cmd.Env = append(os.Environ(), childOf+"="+v.text, dieAt+"="+v.dieAt)
	v.dieAt = ""
	file := fileOf(other, "parking")
	v.cmd.ExtraFiles, v.cmd.Stderr = []*os.File{file}, os.Stderr
	v.in, err = v.cmd.StdinPipe()
	require.NoError(v.tb, err)
	out, err := v.cmd.StdoutPipe()
	require.NoError(v.tb, err)
	require.NoError(v.tb, v.cmd.Start())
	require.NoError(v.tb, file.Close())
	require.NoError(v.tb, v.lot.hand(own))
	v.kept = make(chan error, 1)
	go func() { v.kept <- v.lot.keep(own) }()
	v.out = json.NewDecoder(out)
	v.relays = nil
	require.NoError(v.tb, v.out.Decode(&v.relays), "the engine did not start")
}

// kill is SIGKILL; what was parked is held when it returns.
func (v *victim) kill() {
	v.tb.Helper()
	if v.cmd == nil {
		return
	}
	_ = v.cmd.Process.Kill()
	_ = v.cmd.Wait()
	v.cmd = nil
	require.NoError(v.tb, <-v.kept)
	v.kills++
}

// mustDie waits until the victim has killed itself.
func (v *victim) mustDie() {
	v.tb.Helper()
	dead := make(chan error, 1)
	go func() { dead <- v.cmd.Wait() }()
	select {
	case err := <-dead:
		require.ErrorContains(v.tb, err, "killed")
	case <-time.After(deadline):
		v.tb.Fatal("it did not die")
	}
	v.cmd = nil
	require.NoError(v.tb, <-v.kept)
}

func (v *victim) restart() {
	v.tb.Helper()
	v.kill()
	v.start()
}

// ask is the victim's answer to a line.
func ask[T any](v *victim, line string) (answer T) {
	v.tb.Helper()
	_, err := fmt.Fprintln(v.in, line)
	require.NoError(v.tb, err)
	require.NoError(v.tb, v.out.Decode(&answer))
	return answer
}

func (v *victim) mustDial() net.Conn { return mustDial(v.tb, v.relays[0]) }

// streamPairs are all pairs of networks, as the last words of a FROM and of a listener.
func streamPairs(t *testing.T, run func(t *testing.T, v *victim, l net.Listener)) {
	for _, from := range []string{"tcp4", "tcp6", "unix"} {
		for _, to := range []string{"tcp4", "tcp6", "unix"} {
			t.Run(from+" to "+to, func(t *testing.T) {
				familytest.NoLeaks(t)
				dir, err := os.MkdirTemp("", "kill")
				require.NoError(t, err)
				t.Cleanup(func() { _ = os.RemoveAll(dir) })
				at := map[string]string{"tcp4": "127.0.0.1:0", "tcp6": "[::1]:0", "unix": filepath.Join(dir, "back")}
				l, err := net.Listen(to, at[to])
				require.NoError(t, err)
				t.Cleanup(func() { _ = l.Close() })
				at["unix"] = filepath.Join(dir, "front")
				run(t, newVictim(t, from+":"+at[from], to+":"+l.Addr().String()), l)
			})
		}
	}
}

// random bytes, n of them, the same for a seed.
func random(seed byte, n int64) io.Reader {
	return io.LimitReader(rand.NewChaCha8([32]byte{seed}), n)
}

func sumOf(r io.Reader) string {
	h := sha256.New()
	n, err := io.Copy(h, r)
	return fmt.Sprintf("%d bytes, %x, %v", n, h.Sum(nil), err)
}

// counted counts what is read of a connection.
type counted struct {
	io.Reader
	n *atomic.Int64
}

func (c counted) Read(b []byte) (int, error) {
	n, err := c.Reader.Read(b)
	c.n.Add(int64(n))
	return n, err
}

// talk sends n bytes and an end, and says what came back.
func talk(c net.Conn, seed byte, n int64, got *atomic.Int64) (string, error) {
	sent := make(chan error, 1)
	go func() {
		_, err := io.Copy(struct{ io.Writer }{c}, random(seed, n))
		if err == nil {
			err = c.(halfCloser).CloseWrite()
		}
		sent <- err
	}()
	sum := sumOf(counted{struct{ io.Reader }{c}, got})
	return sum, <-sent
}

type said struct {
	sum string
	err error
}

func TestKillsLoseNoByteOfADurableStream(t *testing.T) {
	const n, kills = 64 << 20, 20
	streamPairs(t, func(t *testing.T, v *victim, l net.Listener) {
		var moved atomic.Int64
		back := make(chan said, 1)
		go func() {
			c, err := l.Accept()
			if err != nil {
				back <- said{"", err}
				return
			}
			defer c.Close()
			sum, err := talk(c, 2, n, &moved)
			back <- said{sum, err}
		}()
		c := v.mustDial()
		require.NoError(t, c.SetDeadline(time.Now().Add(2*time.Minute)))
		front := make(chan said, 1)
		go func() {
			sum, err := talk(c, 1, n, &moved)
			front <- said{sum, err}
		}()
		for i := range int64(kills) {
			at := max(1, (i+rand.Int64N(2))*(2*n/(kills+1))) // sometimes at once after another
			familytest.Eventually(t, fmt.Sprintf("nothing moves at %d of %d after %d kills", moved.Load(), 2*n, i), func() bool { return moved.Load() >= at })
			v.restart()
		}
		require.Equal(t, said{sumOf(random(2, n)), nil}, <-front)
		require.Equal(t, said{sumOf(random(1, n)), nil}, <-back)
		mustBooks(t, v, n, n)
		require.GreaterOrEqual(t, v.kills, kills)
	})
}

// mustBooks waits for the session's end and looks at what the relay says of it.
func mustBooks(tb testing.TB, v *victim, rx, tx int64) {
	tb.Helper()
	var r model.Relay
	familytest.Eventually(tb, "the session did not end", func() bool {
		r = ask[[]model.Relay](v, "relays")[0]
		return r.Sessions == 0
	})
	require.Equal(tb, "kept", r.Name)
	require.EqualValues(tb, 1, r.Total)
	require.Equal(tb, rx, r.RxBytes)
	require.Equal(tb, tx, r.TxBytes)
	require.Empty(tb, r.Drops)
	for _, line := range ask[[]model.Audit](v, "audit") {
		require.True(tb, line.Holds, "%+v", line)
	}
	familytest.Eventually(tb, "something stayed parked", func() bool { return v.lot.len() == 1 })
}

// meet is a client and its backend, joined by the victim.
func (v *victim) meet(l net.Listener) (client, backend net.Conn) {
	v.tb.Helper()
	client = v.mustDial()
	_, err := client.Write([]byte("hello"))
	require.NoError(v.tb, err)
	backend, err = l.Accept()
	require.NoError(v.tb, err)
	v.tb.Cleanup(func() { _ = backend.Close() })
	require.NoError(v.tb, backend.SetDeadline(time.Now().Add(deadline)))
	mustRead(v.tb, backend, "hello")
	return client, backend
}

func mustRead(tb testing.TB, c net.Conn, want string) {
	tb.Helper()
	b := make([]byte, len(want))
	_, err := io.ReadFull(c, b)
	require.NoError(tb, err)
	require.Equal(tb, want, string(b))
}

func mustSay(tb testing.TB, c net.Conn, text string) {
	tb.Helper()
	_, err := c.Write([]byte(text))
	require.NoError(tb, err)
}

func mustEnd(tb testing.TB, c net.Conn) {
	tb.Helper()
	_, err := c.Read(make([]byte, 1))
	require.Equal(tb, io.EOF, err)
}

func TestAnIdleSessionOutlivesAKill(t *testing.T) {
	streamPairs(t, func(t *testing.T, v *victim, l net.Listener) {
		client, backend := v.meet(l)
		var before model.Session
		familytest.Eventually(t, "the bytes were not counted", func() bool {
			before = ask[[]model.Session](v, "sessions")[0]
			return before.RxBytes == 5
		})
		v.restart()
		after := ask[[]model.Session](v, "sessions")[0]
		before.Since, after.Since = before.Since.Round(0).UTC(), after.Since.UTC()
		require.Equal(t, before, after)
		mustSay(t, client, "question")
		mustRead(t, backend, "question")
		mustSay(t, backend, "answer")
		mustRead(t, client, "answer")
		require.NoError(t, client.(halfCloser).CloseWrite())
		mustEnd(t, backend)
		require.NoError(t, backend.(halfCloser).CloseWrite())
		mustEnd(t, client)
		mustBooks(t, v, 13, 6)
	})
}

func TestAHalfClosedSessionStaysHalfClosed(t *testing.T) {
	streamPairs(t, func(t *testing.T, v *victim, l net.Listener) {
		client, backend := v.meet(l)
		require.NoError(t, client.(halfCloser).CloseWrite())
		mustEnd(t, backend)
		v.restart()
		familytest.Eventually(t, "the session is not half-closed", func() bool {
			return ask[[]model.Session](v, "sessions")[0].State == "half-closed-from"
		})
		mustSay(t, backend, "late answer")
		mustRead(t, client, "late answer")
		v.restart()
		mustSay(t, backend, "later")
		mustRead(t, client, "later")
		require.NoError(t, backend.(halfCloser).CloseWrite())
		mustEnd(t, client)
		mustBooks(t, v, 5, 16)
	})
}

// What the peers do while nobody is there is told them when somebody is again.
func TestEndsThatCameWhileItWasDead(t *testing.T) {
	t.Run("an end", func(t *testing.T) {
		streamPairs(t, func(t *testing.T, v *victim, l net.Listener) {
			client, backend := v.meet(l)
			v.kill()
			mustSay(t, client, "last words")
			require.NoError(t, client.(halfCloser).CloseWrite())
			v.start()
			mustRead(t, backend, "last words")
			mustEnd(t, backend)
			mustSay(t, backend, "heard")
			require.NoError(t, backend.(halfCloser).CloseWrite())
			mustRead(t, client, "heard")
			mustEnd(t, client)
			mustBooks(t, v, 15, 5)
		})
	})
	t.Run("a reset", func(t *testing.T) {
		streamPairs(t, func(t *testing.T, v *victim, l net.Listener) {
			client, backend := v.meet(l)
			v.kill()
			resets := true
			for _, c := range []net.Conn{client, backend} {
				if c, ok := c.(*net.TCPConn); ok {
					require.NoError(t, c.SetLinger(0))
				} else {
					resets = false // a unix socket has an end for both
				}
			}
			require.NoError(t, client.Close())
			v.start()
			_, err := backend.Read(make([]byte, 1))
			require.Equal(t, resets, isReset(err), "got %v", err)
			require.Equal(t, !resets, err == io.EOF, "got %v", err)
		})
	})
}

// The kernel tells an error once. If the process that was told is killed, the next one
// sees an end, as of a client that had finished.
func TestAResetThatOnlyTheDeadHasSeenIsNoEnd(t *testing.T) {
	for _, halfClosed := range []bool{false, true} {
		t.Run(fmt.Sprintf("half-closed %v", halfClosed), func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			require.NoError(t, err)
			t.Cleanup(func() { _ = l.Close() })
			v := newVictim(t, "tcp:127.0.0.1:0", "tcp:"+l.Addr().String())
			client, backend := v.meet(l)
			if halfClosed { // the relay has sent a FIN, so that the client's state says little
				require.NoError(t, backend.(halfCloser).CloseWrite())
				mustEnd(t, client)
			}
			v.kill()
			require.NoError(t, client.(*net.TCPConn).SetLinger(0))
			require.NoError(t, client.Close())
			fd := sessionFD(t, v.lot)
			familytest.Eventually(t, "no reset came", func() bool {
				_, err := syscall.Read(fd, make([]byte, 1)) // takes the error
				return err == syscall.ECONNRESET
			})
			n, err := syscall.Read(fd, make([]byte, 1))
			require.NoError(t, err)
			require.Zero(t, n, "the kernel says: an end")
			v.start()
			_, err = backend.Read(make([]byte, 1))
			require.True(t, isReset(err), "got %v", err)
		})
	}
}

// sessionFD is the client of the one session that is parked.
func sessionFD(tb testing.TB, l *lot) int {
	tb.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, p := range l.held {
		if p.Kind == ParkedSession {
			return p.FDs[0]
		}
	}
	tb.Fatal("no session is parked")
	return -1
}

func TestTheUrgentByteOutlivesAKill(t *testing.T) {
	familytest.NoLeaks(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.Close() })
	v := newVictim(t, "tcp:127.0.0.1:0", "tcp:"+l.Addr().String())
	client, backend := v.meet(l)
	rc, err := backend.(*net.TCPConn).SyscallConn()
	require.NoError(t, err)
	require.NoError(t, rc.Control(func(fd uintptr) {
		err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_OOBINLINE, 1)
	}))
	require.NoError(t, err)
	v.kill()
	mustSay(t, client, "before")
	mustUrgent(t, client, '!')
	mustSay(t, client, "behind")
	v.start()
	mustRead(t, backend, "before")
	mustBeAtMark(t, backend)
	mustRead(t, backend, "!behind")
	require.NoError(t, client.(halfCloser).CloseWrite())
	mustEnd(t, backend)
	require.NoError(t, backend.(halfCloser).CloseWrite())
	mustEnd(t, client)
	mustBooks(t, v, 18, 0)
}

func mustUrgent(tb testing.TB, c net.Conn, b byte) {
	tb.Helper()
	rc, err := c.(syscall.Conn).SyscallConn()
	require.NoError(tb, err)
	var serr error
	require.NoError(tb, rc.Control(func(fd uintptr) { serr = syscall.Sendto(int(fd), []byte{b}, syscall.MSG_OOB, nil) }))
	require.NoError(tb, serr)
}

// A client that was parked while it waited for its backend gets it from the next
// process.
func TestASessionThatWasDialledIsDialledAgain(t *testing.T) {
	familytest.NoLeaks(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	at := l.Addr().String()
	require.NoError(t, l.Close()) // refused, so that retry= goes on
	v := newVictim(t, "tcp:127.0.0.1:0", "tcp:"+at+",retry=1m")
	client := v.mustDial()
	mustSay(t, client, "hello")
	familytest.Eventually(t, "the client is not parked", func() bool { return v.lot.len() == 2 })
	v.restart()
	require.Equal(t, "connecting", ask[[]model.Session](v, "sessions")[0].State)
	l, err = net.Listen("tcp", at)
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.Close() })
	backend, err := l.Accept()
	require.NoError(t, err)
	t.Cleanup(func() { _ = backend.Close() })
	require.NoError(t, backend.SetDeadline(time.Now().Add(deadline)))
	mustRead(t, backend, "hello")
	mustSay(t, backend, "hi")
	mustRead(t, client, "hi")
}

// The law's edge: a connection whose sockd is killed before it is parked is over, with a
// reset where the client has said something by then, and none of its bytes is passed on.
// All others answer.
func TestClientsThatComeWhileItDies(t *testing.T) {
	familytest.NoLeaks(t)
	l := serve(t, "tcp", "127.0.0.1:0", func(c net.Conn) {
		b := make([]byte, 8)
		if _, err := io.ReadFull(c, b); err == nil {
			_, _ = c.Write(b)
			_, _ = io.Copy(io.Discard, struct{ io.Reader }{c})
		}
	})
	v := newVictim(t, "tcp:127.0.0.1:0", "tcp:"+l.Addr().String())
	network, address := endpoint(t, v.relays[0])
	var answered, reset, other atomic.Int64
	stop, done := make(chan struct{}), make(chan error, 1)
	go func() {
		for {
			select {
			case <-stop:
				done <- nil
				return
			default:
			}
			switch err := askOnce(network, address); {
			case err == nil:
				answered.Add(1)
			case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE), err == io.EOF:
				reset.Add(1)
			default:
				other.Add(1)
				done <- err
				return
			}
		}
	}()
	for i := range int64(30) {
		familytest.Eventually(t, "nobody is answered", func() bool { return answered.Load() >= 20*i || other.Load() > 0 })
		v.restart()
	}
	close(stop)
	require.NoError(t, <-done)
	require.LessOrEqual(t, reset.Load(), int64(30), "one a kill at most")
}

func askOnce(network, address string) error {
	c, err := net.Dial(network, address)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(deadline)); err != nil {
		return err
	}
	if _, err := c.Write([]byte("question")); err != nil {
		return err
	}
	_, err = io.ReadFull(c, make([]byte, 8))
	return err
}

// mustBeAtMark waits until what c gives next is the urgent byte.
func mustBeAtMark(tb testing.TB, c net.Conn) {
	tb.Helper()
	rc, err := c.(syscall.Conn).SyscallConn()
	require.NoError(tb, err)
	familytest.Eventually(tb, "the urgent byte is not urgent any more", func() bool {
		at := false
		require.NoError(tb, rc.Control(func(fd uintptr) { at = ksock.FD(fd).AtMark() }))
		return at
	})
}

// A session's life has three calls of the Parking: its client, all of it, and its end. A
// process that dies around any of them leaves a session that goes on, or one of which
// nothing was passed on.
func TestEachStepOfASessionsLifeMayBeTheLast(t *testing.T) {
	for _, tc := range []struct {
		at    string
		edge  bool  // the client was not parked
		total int64 // that the relay counts in the end
	}{
		{"before 1", true, 1}, {"after 1", false, 1},
		{"before 2", false, 1}, {"after 2", false, 1},
		{"before 3", false, 1}, {"after 3", false, 1},
	} {
		t.Run(tc.at, func(t *testing.T) {
			streamPairs(t, func(t *testing.T, v *victim, l net.Listener) {
				v.dieAt = tc.at
				v.restart() // takes the relay up, and makes no call for that
				got := make(chan string, 2)
				go hearThenAnswer(l, got)
				c := v.mustDial()
				_, err := c.Write([]byte("question"))
				if tc.edge { // it may have died before it was asked
					v.mustDie()
					_, err = c.Read(make([]byte, 1))
					require.Error(t, err)
					v.start()
					require.EqualValues(t, 0, ask[[]model.Relay](v, "relays")[0].RxBytes)
					return
				}
				require.NoError(t, err)
				_ = c.(halfCloser).CloseWrite()
				v.mustDie()
				v.start()
				answer, err := io.ReadAll(struct{ io.Reader }{c})
				require.NoError(t, err)
				require.Equal(t, "answer", string(answer))
				mustHear(t, got, "question")
				mustBooks(t, v, 8, 6)
				require.EqualValues(t, tc.total, ask[[]model.Relay](v, "relays")[0].Total)
			})
		})
	}
}

// hearThenAnswer serves two connections: the first may be one that was dialled by a
// process that died before it could say so.
func hearThenAnswer(l net.Listener, got chan<- string) {
	for range 2 {
		c, err := l.Accept()
		if err != nil {
			return
		}
		_ = c.SetDeadline(time.Now().Add(deadline))
		b, _ := io.ReadAll(struct{ io.Reader }{c})
		if len(b) > 0 {
			_, _ = c.Write([]byte("answer"))
		}
		_ = c.Close()
		got <- string(b)
	}
}

// mustHear skips a connection on which nothing came.
func mustHear(tb testing.TB, got <-chan string, want string) {
	tb.Helper()
	heard := <-got
	if heard == "" {
		heard = <-got
	}
	require.Equal(tb, want, heard)
}

// A reset and a kill at the same moment: whoever was told of the reset, the backend gets
// one, behind what the client had sent before, or a part of it.
func TestAResetNearAKillIsNeverAnEnd(t *testing.T) {
	familytest.NoLeaks(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.Close() })
	v := newVictim(t, "tcp:127.0.0.1:0", "tcp:"+l.Addr().String())
	for range 25 {
		client, backend := v.meet(l)
		got := make(chan said, 1)
		go func() {
			b, err := io.ReadAll(struct{ io.Reader }{backend})
			got <- said{string(b), err}
		}()
		text := strings.Repeat("payload ", rand.IntN(40000))
		mustSay(t, client, text)
		reset := make(chan error, 1)
		go func() {
			reset <- errors.Join(client.(*net.TCPConn).SetLinger(0), client.Close())
		}()
		v.kill()
		require.NoError(t, <-reset)
		v.start()
		end := <-got
		require.True(t, isReset(end.err), "got %v", end.err)
		require.True(t, strings.HasPrefix(text, end.sum), "%d bytes that are not those of the client", len(end.sum))
	}
	require.EqualValues(t, 25, ask[[]model.Relay](v, "relays")[0].Total)
}

// Many sessions at once, in all stages, and an end of each in order.
func TestManySessionsOutliveKills(t *testing.T) {
	const sessions, rounds, piece, kills = 60, 40, 3000, 8
	streamPairs(t, func(t *testing.T, v *victim, l net.Listener) {
		served := make(chan struct{})
		go func() {
			defer close(served)
			serveEchoes(l)
		}()
		var done, edges atomic.Int64
		ends, relay := make(chan error, sessions), v.relays[0]
		for i := range sessions {
			go func() {
				err := chat(relay, byte(i), rounds, piece, &done)
				for errors.Is(err, errEdge) {
					edges.Add(1)
					err = chat(relay, byte(i), rounds, piece, &done)
				}
				ends <- err
			}()
		}
		for i := range int64(kills) {
			at := (i + 1) * sessions * rounds / (kills + 2)
			familytest.Eventually(t, "nothing moves", func() bool { return done.Load() >= at || len(ends) == sessions })
			v.restart()
		}
		for range sessions {
			require.NoError(t, <-ends)
		}
		r := ask[[]model.Relay](v, "relays")[0]
		familytest.Eventually(t, "sessions did not end", func() bool {
			r = ask[[]model.Relay](v, "relays")[0]
			return r.Sessions == 0
		})
		require.EqualValues(t, sessions*rounds*piece, r.RxBytes)
		require.EqualValues(t, sessions*rounds*piece, r.TxBytes)
		require.LessOrEqual(t, edges.Load(), int64(kills), "one a kill at most")
		require.LessOrEqual(t, r.Total, sessions+edges.Load())
		familytest.Eventually(t, "something stayed parked", func() bool { return v.lot.len() == 1 })
		require.NoError(t, l.Close())
		<-served
	})
}

func serveEchoes(l net.Listener) {
	var handlers sync.WaitGroup
	defer handlers.Wait()
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		handlers.Go(func() {
			defer c.Close()
			echo(c)
		})
	}
}

// errEdge is a session that was killed before it was parked: it gets no answer.
var errEdge = errors.New("over before the first answer")

// chat sends pieces and waits for each to come back, and ends in order. done counts
// them.
func chat(r model.Relay, seed byte, rounds int, piece int64, done *atomic.Int64) error {
	e, err := families.ParseEndpoint(r.Local[0])
	if err != nil {
		return err
	}
	c, err := net.Dial(e.Network, e.Address)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return err
	}
	for i := range rounds {
		want, err := io.ReadAll(random(seed+byte(i), piece))
		if err != nil {
			return err
		}
		got := make([]byte, piece)
		_, err = c.Write(want)
		if err == nil {
			_, err = io.ReadFull(c, got)
		}
		switch {
		case i == 0 && (isReset(err) || errors.Is(err, syscall.EPIPE) || err == io.EOF):
			return errEdge
		case err != nil || string(got) != string(want):
			return fmt.Errorf("round %d: got other bytes, or %w", i, err)
		}
		done.Add(1)
	}
	if err := c.(halfCloser).CloseWrite(); err != nil {
		return err
	}
	if n, err := c.Read(make([]byte, 1)); err != io.EOF {
		return fmt.Errorf("after the end: %d bytes, %w", n, err)
	}
	return nil
}
