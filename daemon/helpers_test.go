package daemon

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/familytest"
	"github.com/sockd/sockd/families/inet"
	"github.com/sockd/sockd/families/inet6"
	"github.com/sockd/sockd/families/local"
	"github.com/sockd/sockd/families/model"
)

// patience bounds every wait for something that is about to happen.
const patience = 20 * time.Second

// me is the caller of most tests: the daemon's own user.
var me = model.Caller{UID: uint32(os.Geteuid()), GID: uint32(os.Getegid())}

// stranger may nothing.
var stranger = model.Caller{UID: 54321, GID: 54321}

var set = families.Set{inet6.Family, inet.Family, local.Family}

// newDaemon makes a daemon that is stopped when the test ends, and then no
// goroutine and no descriptor is left.
func newDaemon(tb testing.TB, change ...func(*Options)) *Daemon {
	tb.Helper()
	familytest.NoLeaks(tb)
	o := Options{Families: set, Log: slog.New(slog.DiscardHandler), Version: "test", StateDir: filepath.Join(tb.TempDir(), "state")}
	for _, f := range change {
		f(&o)
	}
	d, err := New(o)
	require.NoError(tb, err)
	tb.Cleanup(func() { require.NoError(tb, d.Stop()) })
	return d
}

// testContext ends with the test, and before it hangs for good.
func testContext(tb testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	tb.Cleanup(cancel)
	return ctx
}

func mustOpen(tb testing.TB, d *Daemon, family, typ string) model.ID {
	tb.Helper()
	v, err := d.Open(testContext(tb), me, family, typ, 0, "", model.NoFD)
	require.NoError(tb, err)
	return v.ID
}

// mustBind binds, and borrows the descriptor where the address is a path, as
// sockd-ctl does.
func mustBind(tb testing.TB, d *Daemon, id model.ID, addr string) string {
	tb.Helper()
	ctx := testContext(tb)
	v, err := d.Bind(ctx, me, id, addr)
	if isPath(addr) {
		require.ErrorIs(tb, err, families.ErrBorrow)
		v = mustBorrow(tb, d, id, "bind", func(fd int) error { return syscall.Bind(fd, &syscall.SockaddrUnix{Name: addr}) })
		return v.Local
	}
	require.NoError(tb, err)
	return v.Local
}

func mustListen(tb testing.TB, d *Daemon, id model.ID, addr string) {
	tb.Helper()
	_, err := d.Listen(testContext(tb), me, id, 0)
	if isPath(addr) {
		require.ErrorIs(tb, err, families.ErrBorrow)
		mustBorrow(tb, d, id, "listen", func(fd int) error { return syscall.Listen(fd, 16) })
		return
	}
	require.NoError(tb, err)
}

func mustConnect(tb testing.TB, d *Daemon, id model.ID, addr string) model.Socket {
	tb.Helper()
	v, err := d.Connect(testContext(tb), me, id, addr)
	if isPath(addr) {
		require.ErrorIs(tb, err, families.ErrBorrow)
		return mustBorrow(tb, d, id, "connect", func(fd int) error { return syscall.Connect(fd, &syscall.SockaddrUnix{Name: addr}) })
	}
	require.NoError(tb, err)
	return v
}

func mustBorrow(tb testing.TB, d *Daemon, id model.ID, done string, use func(fd int) error) model.Socket {
	tb.Helper()
	require.NoError(tb, d.Borrow(testContext(tb), me, id, func(fd int, _ string) error { return use(fd) }))
	v, err := d.Return(testContext(tb), me, id, done, 0, 0)
	require.NoError(tb, err)
	return v
}

func isPath(addr string) bool { return strings.HasPrefix(addr, "/") || strings.HasPrefix(addr, "@") }

func mustAccept(tb testing.TB, d *Daemon, id model.ID) model.Socket {
	tb.Helper()
	v, err := d.Accept(testContext(tb), me, id)
	require.NoError(tb, err)
	return v
}

func mustSend(tb testing.TB, d *Daemon, id model.ID, data string) {
	tb.Helper()
	n, err := d.Send(testContext(tb), me, id, []byte(data), "")
	require.NoError(tb, err)
	require.Equal(tb, len(data), n)
}

func mustRecv(tb testing.TB, d *Daemon, id model.ID) string {
	tb.Helper()
	m, _, err := d.Recv(testContext(tb), me, id, model.RecvSpec{})
	require.NoError(tb, err)
	return string(m.Data)
}

// listenTCP is a listening socket on a port of loopback.
func listenTCP(tb testing.TB, d *Daemon) (id model.ID, addr string) {
	tb.Helper()
	id = mustOpen(tb, d, "inet", "stream")
	addr = mustBind(tb, d, id, "127.0.0.1:0")
	mustListen(tb, d, id, addr)
	return id, addr
}

// pair is a connection: who connected, and who was accepted.
func pair(tb testing.TB, d *Daemon) (client, server model.ID) {
	tb.Helper()
	l, addr := listenTCP(tb, d)
	client = mustOpen(tb, d, "inet", "stream")
	mustConnect(tb, d, client, addr)
	server = mustAccept(tb, d, l).ID
	_, err := d.Close(testContext(tb), me, text(l), false)
	require.NoError(tb, err)
	return client, server
}

// udp are two datagram sockets that are connected to each other.
func udp(tb testing.TB, d *Daemon) (a, b model.ID) {
	tb.Helper()
	a, b = mustOpen(tb, d, "inet", "dgram"), mustOpen(tb, d, "inet", "dgram")
	at, bt := mustBind(tb, d, a, "127.0.0.1:0"), mustBind(tb, d, b, "127.0.0.1:0")
	mustConnect(tb, d, a, bt)
	mustConnect(tb, d, b, at)
	return a, b
}

func text(id model.ID) string { return strconv.FormatInt(int64(id), 10) }

// mustShow is one socket as it is listed.
func mustShow(tb testing.TB, d *Daemon, id model.ID) model.Socket {
	tb.Helper()
	o, err := d.Show(testContext(tb), me, text(id))
	require.NoError(tb, err)
	require.NotNil(tb, o.Socket)
	return *o.Socket
}

// waiters is how many verbs wait on a socket now.
func waiters(d *Daemon, id model.ID) int {
	k, err := d.table.get(id)
	if err != nil {
		return 0
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.waiting)
}

func awaitWaiters(tb testing.TB, d *Daemon, id model.ID, n int) {
	tb.Helper()
	familytest.Eventually(tb, strconv.Itoa(n)+" verbs wait on socket "+text(id), func() bool { return waiters(d, id) == n })
}

func within[T any](tb testing.TB, what string, c <-chan T) T {
	tb.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		tb.Fatalf("after %v: %s", patience, what)
	}
	panic("unreachable")
}
