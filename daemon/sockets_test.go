package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/familytest"
	"github.com/sockd/sockd/families/model"
)

// The classic procedure: socket, bind, listen, accept for a server; socket,
// connect, send, recv, close for a client.
func TestTheClassicProcedure(t *testing.T) {
	for _, tt := range []struct{ family, typ, addr string }{
		{"inet", "stream", "127.0.0.1:0"},
		{"inet6", "stream", "[::1]:0"},
		{"local", "stream", "path"},
		{"local", "seqpacket", "path"},
		{"unix", "stream", "@sockd-daemon-test"},
	} {
		t.Run(tt.family+" "+tt.typ+" "+tt.addr, func(t *testing.T) {
			d := newDaemon(t)
			addr := tt.addr
			if addr == "path" {
				addr = filepath.Join(t.TempDir(), "server")
			}
			server := mustOpen(t, d, tt.family, tt.typ)
			require.Equal(t, "new", mustShow(t, d, server).State)
			addr = mustBind(t, d, server, addr)
			require.Equal(t, "bound", mustShow(t, d, server).State)
			mustListen(t, d, server, addr)
			require.Equal(t, "listening", mustShow(t, d, server).State)
			client := mustOpen(t, d, tt.family, tt.typ)
			require.Equal(t, addr, mustConnect(t, d, client, addr).Peer)
			accepted := mustAccept(t, d, server)
			require.Equal(t, server, accepted.Parent)
			require.Equal(t, "connected", accepted.State)

			mustSend(t, d, client, "hello")
			require.Equal(t, "hello", mustRecv(t, d, accepted.ID))
			mustSend(t, d, accepted.ID, "world!")
			require.Equal(t, "world!", mustRecv(t, d, client))
			v := mustShow(t, d, client)
			require.Equal(t, []int64{6, 5}, []int64{v.RxBytes, v.TxBytes})

			ids, err := d.Close(t.Context(), me, text(client), false)
			require.NoError(t, err)
			require.Equal(t, []model.ID{client}, ids)
			m, undo, err := d.Recv(testContext(t), me, accepted.ID, model.RecvSpec{})
			require.NoError(t, err)
			require.True(t, m.EOF)
			require.Nil(t, undo)
			ids, err = d.Close(t.Context(), me, text(server), true)
			require.NoError(t, err)
			require.Equal(t, []model.ID{server, accepted.ID}, ids)
			l, err := d.List(t.Context(), me, nil)
			require.NoError(t, err)
			require.Empty(t, l.Sockets)
		})
	}
}

func TestDatagramsNameTheirSender(t *testing.T) {
	d := newDaemon(t)
	a, b := mustOpen(t, d, "inet", "dgram"), mustOpen(t, d, "inet", "dgram")
	at, bt := mustBind(t, d, a, "127.0.0.1:0"), mustBind(t, d, b, "127.0.0.1:0")
	for _, size := range []int{0, 1, 1472, 65507} {
		n, err := d.Send(t.Context(), me, a, make([]byte, size), bt)
		require.NoError(t, err)
		require.Equal(t, size, n)
		m, _, err := d.Recv(testContext(t), me, b, model.RecvSpec{})
		require.NoError(t, err)
		require.Equal(t, at, m.From)
		require.Len(t, m.Data, size)
		require.False(t, m.EOF)
	}
	require.Equal(t, int64(4), mustShow(t, d, b).RxMessages)
	require.Equal(t, int64(4), mustShow(t, d, a).TxMessages)
}

func TestACutMessageIsNotSilent(t *testing.T) {
	d := newDaemon(t)
	a, b := udp(t, d)
	mustSend(t, d, a, "0123456789")
	m, _, err := d.Recv(testContext(t), me, b, model.RecvSpec{Max: 4})
	require.NoError(t, err)
	require.Equal(t, model.Message{Data: []byte("0123"), Full: 10, Cut: true, From: mustShow(t, d, a).Local}, m)
	require.Equal(t, model.Drops{"cut": 1}, mustShow(t, d, b).Drops)
}

func TestErrorsSayWhatWasTried(t *testing.T) {
	d := newDaemon(t)
	stream, dgram, unix := mustOpen(t, d, "inet", "stream"), mustOpen(t, d, "inet", "dgram"), mustOpen(t, d, "local", "stream")
	_, taken := listenTCP(t, d)
	now, cancel := context.WithCancel(t.Context())
	cancel()
	for _, tt := range []struct {
		name string
		do   func() error
		is   error
		says string
	}{
		{"an address that does not parse", func() error { _, err := d.Bind(t.Context(), me, stream, "nonsense"); return err }, families.ErrSyntax, `bind inet "nonsense": `},
		{"an address that is taken", func() error { _, err := d.Bind(t.Context(), me, stream, taken); return err }, syscall.EADDRINUSE, `bind inet "` + taken + `": address already in use`},
		{"an address that nobody has", func() error { _, err := d.Bind(t.Context(), me, stream, "203.0.113.9:80"); return err }, syscall.EADDRNOTAVAIL, `bind inet "203.0.113.9:80": cannot assign requested address`},
		{"nobody listens", func() error { _, err := d.Connect(testContext(t), me, stream, "127.0.0.1:1"); return err }, syscall.ECONNREFUSED, `connect inet "127.0.0.1:1": connection refused`},
		{"no such socket", func() error { _, err := d.Bind(t.Context(), me, 999, "x"); return err }, families.ErrNotFound, "bind: socket 999: not found"},
		{"no such reference", func() error { _, err := d.Show(t.Context(), me, "nothing"); return err }, families.ErrNotFound, `show: nothing is called "nothing": not found`},
		{"closing what is not there", func() error { _, err := d.Close(t.Context(), me, "999", false); return err }, families.ErrNotFound, `close: nothing is called "999": not found`},
		{"a reference that is no ID as IDs are printed", func() error { _, err := d.Close(t.Context(), me, "01", false); return err }, families.ErrSyntax, `close: reference "01"`},
		{"a reference that is none", func() error { _, err := d.Show(t.Context(), me, "-"); return err }, families.ErrSyntax, `reference "-"`},
		{"no such family", func() error { _, err := d.Open(t.Context(), me, "ax25", "stream", 0, "", model.NoFD); return err }, families.ErrSyntax, `family "ax25"`},
		{"no such type", func() error { _, err := d.Open(t.Context(), me, "inet", "tcp", 0, "", model.NoFD); return err }, families.ErrSyntax, `type "tcp"`},
		{"no such protocol", func() error {
			_, err := d.Open(t.Context(), me, "inet", "raw", 0, "nonsense", model.NoFD)
			return err
		}, families.ErrSyntax, `open inet "nonsense"`},
		{"datagrams do not listen", func() error { _, err := d.Listen(t.Context(), me, dgram, 1); return err }, families.ErrNotSupported, "listen inet: "},
		{"datagrams have no directions", func() error { _, err := d.Shutdown(t.Context(), me, dgram, "wr"); return err }, families.ErrNotSupported, "shutdown inet: "},
		{"a direction that is none", func() error { _, err := d.Shutdown(t.Context(), me, stream, "up"); return err }, families.ErrSyntax, "shutdown inet: want rd, wr or both"},
		{"an unknown option", func() error { _, err := d.Options(t.Context(), me, stream, []model.Option{{Name: "so_x"}}); return err }, families.ErrSyntax, `opt inet "so_x": `},
		{"a path is its caller's", func() error { _, err := d.Bind(t.Context(), me, unix, "/run/x"); return err }, families.ErrBorrow, `bind local "/run/x": `},
		{"inet descriptors are not lent", func() error {
			return d.Borrow(t.Context(), me, stream, func(int, string) error { return nil })
		}, families.ErrNotSupported, "borrow inet: only sockets of family local are lent"},
		{"a use that nobody knows", func() error { _, err := d.Return(t.Context(), me, unix, "rename", 0, 0); return err }, families.ErrSyntax, `return local "rename": `},
		{"a kind that nobody knows", func() error { _, err := d.List(t.Context(), me, []string{"files"}); return err }, families.ErrSyntax, `kind "files"`},
		{"nothing to receive at once", func() error { _, _, err := d.Recv(now, me, dgram, model.RecvSpec{}); return err }, context.Canceled, "recv inet: its caller left"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := tt.do()
			require.ErrorIs(t, err, tt.is)
			require.Contains(t, err.Error(), tt.says)
		})
	}
}

func TestOptions(t *testing.T) {
	d := newDaemon(t)
	id := mustOpen(t, d, "inet", "stream")
	on := "1"
	got, err := d.Options(t.Context(), me, id, []model.Option{{Name: "tcp_nodelay", Value: &on}, {Name: "so_keepalive"}})
	require.NoError(t, err)
	require.Equal(t, "tcp_nodelay", got[0].Name)
	require.Equal(t, "1", *got[0].Value)
	require.Equal(t, "so_keepalive", got[1].Name)
	require.Equal(t, "0", *got[1].Value)
	all, err := d.Options(t.Context(), me, id, nil)
	require.NoError(t, err)
	require.Greater(t, len(all), 10)
}

// A stranger is refused by Authorize before every method; that the verbs look at
// the owner too is a second lock.
func TestAStrangerMayNothing(t *testing.T) {
	d := newDaemon(t)
	id := mustOpen(t, d, "local", "stream")
	require.ErrorIs(t, d.Authorize(stranger, "io.sockd.Manager.List"), syscall.EPERM)
	require.NoError(t, d.Authorize(me, "io.sockd.Manager.List"))
	_, err := d.Listen(t.Context(), stranger, id, 0)
	require.ErrorIs(t, err, syscall.EPERM)
	_, err = d.Close(t.Context(), stranger, text(id), false)
	require.ErrorIs(t, err, syscall.EPERM)
	_, err = d.Show(t.Context(), stranger, text(id))
	require.ErrorIs(t, err, families.ErrNotFound)
	l, err := d.List(t.Context(), stranger, nil)
	require.NoError(t, err)
	require.Empty(t, l.Sockets)
	require.NotNil(t, l.Sockets)
	ids, err := d.CloseAll(t.Context(), stranger)
	require.NoError(t, err)
	require.Empty(t, ids)
	require.Equal(t, "new", mustShow(t, d, id).State)
}

func TestOnlyTheOwnerBorrows(t *testing.T) {
	familytest.Need(t, familytest.Root())
	d := newDaemon(t)
	other := model.Caller{UID: 54321, GID: 54321}
	v, err := d.Open(t.Context(), other, "local", "stream", 0, "", model.NoFD)
	require.NoError(t, err)
	require.Equal(t, model.Owner{UID: 54321, GID: 54321}, v.Owner)
	lend := func(c model.Caller) error {
		return d.Borrow(t.Context(), c, v.ID, func(int, string) error { return nil })
	}
	require.NoError(t, lend(other))
	require.NoError(t, lend(me), "root may")
	require.ErrorIs(t, lend(model.Caller{UID: 54322}), syscall.EPERM)
}

func TestOpenAdoptsADescriptor(t *testing.T) {
	d := newDaemon(t)
	open := func(domain, typ int) int {
		fd, err := syscall.Socket(domain, typ|syscall.SOCK_CLOEXEC, 0)
		require.NoError(t, err)
		return fd
	}
	fd := open(syscall.AF_INET, syscall.SOCK_STREAM)
	require.NoError(t, syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	v, err := d.Open(t.Context(), me, "inet", "stream", 0, "", fd)
	require.NoError(t, err)
	require.Equal(t, "bound", v.State)
	require.Regexp(t, `^127\.0\.0\.1:[1-9]`, v.Local)

	for _, tt := range []struct{ name, family, typ string }{
		{"the wrong family", "inet6", "stream"},
		{"the wrong type", "inet", "dgram"},
		{"no family at all", "nonsense", "stream"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			fd := open(syscall.AF_INET, syscall.SOCK_STREAM)
			_, err := d.Open(t.Context(), me, tt.family, tt.typ, 0, "", fd)
			require.ErrorIs(t, err, families.ErrSyntax)
			require.NoError(t, syscall.Close(fd), "it is still the caller's")
		})
	}
	t.Run("not a socket", func(t *testing.T) {
		f, err := os.Open(os.DevNull)
		require.NoError(t, err)
		defer f.Close()
		conn, err := f.SyscallConn()
		require.NoError(t, err)
		require.NoError(t, conn.Control(func(fd uintptr) {
			_, err = d.Open(t.Context(), me, "inet", "stream", 0, "", int(fd))
		}))
		require.ErrorIs(t, err, syscall.ENOTSOCK)
	})
}

func TestDescriptorsThatCameWithAMessageAreClosedAndCounted(t *testing.T) {
	d := newDaemon(t)
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	defer syscall.Close(fds[0])
	v, err := d.Open(t.Context(), me, "local", "stream", 0, "", fds[1])
	require.NoError(t, err)
	require.NoError(t, syscall.Sendmsg(fds[0], []byte("x"), syscall.UnixRights(fds[0], fds[0]), nil, 0))
	require.Equal(t, "x", mustRecv(t, d, v.ID))
	require.Equal(t, model.Drops{"rights": 2}, mustShow(t, d, v.ID).Drops)
}

func TestCloseUnblocksEverybody(t *testing.T) {
	d := newDaemon(t)
	listener, _ := listenTCP(t, d)
	sender, _ := pair(t, d)
	receiver, _ := pair(t, d)
	send := fill(t, d, sender)
	for name, verb := range map[string]struct {
		id model.ID
		do func() error
	}{
		"accept": {listener, func() error { _, err := d.Accept(context.Background(), me, listener); return err }},
		"recv":   {receiver, func() error { _, _, err := d.Recv(context.Background(), me, receiver, model.RecvSpec{}); return err }},
		"send":   {sender, send},
	} {
		ended := make(chan error, 1)
		go func() { ended <- verb.do() }()
		awaitWaiters(t, d, verb.id, 1)
		_, err := d.Close(testContext(t), me, text(verb.id), false)
		require.NoError(t, err)
		err = within(t, name+" did not end", ended)
		require.ErrorIs(t, err, net.ErrClosed)
		require.Contains(t, err.Error(), fmt.Sprintf("%s inet: socket %d was closed", name, verb.id))
	}
}

// fill sends until there is no more room, and returns a send that blocks.
func fill(t *testing.T, d *Daemon, id model.ID) (send func() error) {
	t.Helper()
	block := make([]byte, 1<<20)
	for {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		_, err := d.Send(ctx, me, id, block, "")
		cancel()
		if errors.Is(err, context.DeadlineExceeded) {
			break
		}
		require.NoError(t, err)
	}
	return func() error { _, err := d.Send(context.Background(), me, id, block, ""); return err }
}

func TestSendReportsWhatWasTakenWhenTimeIsUp(t *testing.T) {
	d := newDaemon(t)
	client, _ := pair(t, d)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	n, err := d.Send(ctx, me, client, make([]byte, 64<<20), "")
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.Contains(t, err.Error(), "send inet: timed out")
	require.Positive(t, n)
	require.Equal(t, int64(n), mustShow(t, d, client).TxBytes)
}

func TestStopEndsEverything(t *testing.T) {
	d := newDaemon(t)
	listener, _ := listenTCP(t, d)
	ended := make(chan error, 2)
	go func() { _, err := d.Accept(context.Background(), me, listener); ended <- err }()
	go func() { ended <- d.Watch(context.Background(), me, func(model.Event) error { return nil }) }()
	awaitWaiters(t, d, listener, 1)
	require.NoError(t, d.Stop())
	for range 2 {
		require.ErrorIs(t, within(t, "a call did not end", ended), net.ErrClosed)
	}
	require.NoError(t, d.Stop(), "twice is nil")
	_, err := d.Open(t.Context(), me, "inet", "stream", 0, "", model.NoFD)
	require.ErrorIs(t, err, net.ErrClosed)
}

func TestAcceptedSocketsOutliveTheirListenerUnlessAsked(t *testing.T) {
	for _, accepted := range []bool{false, true} {
		t.Run(fmt.Sprintf("accepted=%v", accepted), func(t *testing.T) {
			d := newDaemon(t)
			listener, addr := listenTCP(t, d)
			client := mustOpen(t, d, "inet", "stream")
			mustConnect(t, d, client, addr)
			child := mustAccept(t, d, listener)
			ids, err := d.Close(t.Context(), me, text(listener), accepted)
			require.NoError(t, err)
			if accepted {
				require.Equal(t, []model.ID{listener, child.ID}, ids)
				return
			}
			require.Equal(t, []model.ID{listener}, ids)
			mustSend(t, d, client, "still here")
			require.Equal(t, "still here", mustRecv(t, d, child.ID))
		})
	}
}

func TestMaxSockets(t *testing.T) {
	d := newDaemon(t)
	d.table.setMax(2)
	mustOpen(t, d, "inet", "stream")
	id := mustOpen(t, d, "inet", "stream")
	_, err := d.Open(t.Context(), me, "inet", "stream", 0, "", model.NoFD)
	require.ErrorIs(t, err, syscall.EMFILE)
	require.Contains(t, err.Error(), "MaxSockets=")
	_, err = d.Close(t.Context(), me, text(id), false)
	require.NoError(t, err)
	mustOpen(t, d, "inet", "stream")
}

func TestTenThousandSockets(t *testing.T) {
	var limit syscall.Rlimit
	require.NoError(t, syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit))
	const n = 10000
	if limit.Cur < n+500 {
		t.Fatalf("the limit of descriptors is %d; this test needs %d", limit.Cur, n+500)
	}
	d := newDaemon(t)
	before := heap()
	for range n {
		mustOpenQuick(t, d)
	}
	l, err := d.List(t.Context(), me, []string{"sockets"})
	require.NoError(t, err)
	require.Len(t, l.Sockets, n)
	for i, s := range l.Sockets {
		require.Equal(t, model.ID(i+1), s.ID, "by ID")
	}
	full := heap()
	ids, err := d.CloseAll(t.Context(), me)
	require.NoError(t, err)
	require.Len(t, ids, n)
	l.Sockets = nil
	after := heap()
	t.Logf("heap: %d KiB, with %d sockets %d KiB, after %d KiB", before>>10, n, full>>10, after>>10)
	require.Less(t, after, before+2<<20, "memory did not come back")
}

func mustOpenQuick(t *testing.T, d *Daemon) {
	if _, err := d.Open(t.Context(), me, "inet", "dgram", 0, "", model.NoFD); err != nil {
		t.Fatal(err)
	}
}

func heap() uint64 {
	runtime.GC()
	runtime.GC() // finalizers ran after the first
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
