package daemon

import (
	"bytes"
	"context"
	"crypto/rand"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/familytest"
	"github.com/sockd/sockd/families/model"
)

// unixPair is a connection as the control socket's after an upgrade: the daemon's
// end and the caller's.
func unixPair(tb testing.TB) (daemon, caller *net.UnixConn) {
	tb.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, 0)
	require.NoError(tb, err)
	var conns [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		c, err := net.FileConn(f)
		require.NoError(tb, err)
		require.NoError(tb, f.Close())
		conns[i] = c.(*net.UnixConn)
		tb.Cleanup(func() { _ = c.Close() }) // most tests close it themselves
	}
	return conns[0], conns[1]
}

// attached runs an attachment. ended has what Run returned.
func attached(tb testing.TB, d *Daemon, spec model.AttachSpec) (a model.Attachment, caller *net.UnixConn, ended <-chan error) {
	tb.Helper()
	a, err := d.Attach(testContext(tb), me, spec)
	require.NoError(tb, err)
	mine, caller := unixPair(tb)
	c := make(chan error, 1)
	go func() { c <- a.Run(context.Background(), mine, nil); _ = mine.Close() }()
	return a, caller, c
}

func mustRead(tb testing.TB, r io.Reader, n int) string {
	tb.Helper()
	b := make([]byte, n)
	_, err := io.ReadFull(r, b)
	require.NoError(tb, err)
	return string(b)
}

func TestAttachPassesTheEndOnAndWaitsForThePeers(t *testing.T) {
	d := newDaemon(t)
	client, server := pair(t, d)
	_, caller, ended := attached(t, d, model.AttachSpec{ID: client, FD: model.NoFD})
	_, err := caller.Write([]byte("question"))
	require.NoError(t, err)
	require.Equal(t, "question", mustRecv(t, d, server))
	require.NoError(t, caller.CloseWrite())
	m, _, err := d.Recv(testContext(t), me, server, model.RecvSpec{})
	require.NoError(t, err)
	require.True(t, m.EOF, "the end of stdin is FIN")
	mustSend(t, d, server, "answer")
	require.Equal(t, "answer", mustRead(t, caller, 6))
	_, err = d.Shutdown(t.Context(), me, server, "wr")
	require.NoError(t, err)
	require.NoError(t, within(t, "attach did not end with its peer", ended))
	v := mustShow(t, d, client)
	require.Equal(t, []int64{6, 8}, []int64{v.RxBytes, v.TxBytes})
	_, err = recv(t, d, client)
	require.NoError(t, err, "the socket is free again")
}

// recv is a recv that shows whether the socket may be used.
func recv(t *testing.T, d *Daemon, id model.ID) (model.Message, error) {
	m, _, err := d.Recv(testContext(t), me, id, model.RecvSpec{})
	return m, err
}

func TestAttachIsExclusive(t *testing.T) {
	d := newDaemon(t)
	client, server := pair(t, d)
	blocked := make(chan error, 1)
	go func() { _, _, err := d.Recv(context.Background(), me, client, model.RecvSpec{}); blocked <- err }()
	awaitWaiters(t, d, client, 1)
	a, err := d.Attach(t.Context(), me, model.AttachSpec{ID: client, FD: model.NoFD})
	require.NoError(t, err)
	require.ErrorIs(t, within(t, "a recv that was there before did not end", blocked), families.ErrBusy)
	for name, do := range map[string]func() error{
		"send":   func() error { _, err := d.Send(t.Context(), me, client, []byte("x"), ""); return err },
		"recv":   func() error { _, _, err := d.Recv(t.Context(), me, client, model.RecvSpec{}); return err },
		"attach": func() error { _, err := d.Attach(t.Context(), me, model.AttachSpec{ID: client}); return err },
		"relay":  func() error { _, err := d.Take(me.Owner(), client); return err },
	} {
		require.ErrorIs(t, do(), families.ErrBusy, name)
	}
	require.Equal(t, client, a.Socket().ID)
	require.NoError(t, a.Close())
	require.NoError(t, a.Close(), "twice is nil")
	mustSend(t, d, server, "free")
	require.Equal(t, "free", mustRecv(t, d, client))
}

func TestAttachGivesWhatCameBackFirst(t *testing.T) {
	d := newDaemon(t)
	client, server := pair(t, d)
	mustSend(t, d, server, "first ")
	_, undo, err := d.Recv(testContext(t), me, client, model.RecvSpec{})
	require.NoError(t, err)
	undo()
	a, caller, ended := attached(t, d, model.AttachSpec{ID: client, FD: model.NoFD})
	mustSend(t, d, server, "second")
	require.Equal(t, "first second", mustRead(t, caller, 12))
	require.NoError(t, a.Close())
	require.NoError(t, within(t, "attach did not end by Close", ended))
}

func TestAttachEndsHowItIsTold(t *testing.T) {
	for _, tt := range []struct {
		name  string
		dgram bool
		spec  model.AttachSpec
		does  func(t *testing.T, d *Daemon, client, server model.ID, caller *net.UnixConn)
		is    error
	}{
		{name: "the peer resets", does: func(t *testing.T, d *Daemon, _, server model.ID, _ *net.UnixConn) {
			linger := "0"
			_, err := d.Options(t.Context(), me, server, []model.Option{{Name: "so_linger", Value: &linger}})
			require.NoError(t, err)
			_, err = d.Close(t.Context(), me, text(server), false)
			require.NoError(t, err)
		}, is: syscall.ECONNRESET},
		{name: "the socket is closed", does: func(t *testing.T, d *Daemon, client, _ model.ID, _ *net.UnixConn) {
			_, err := d.Close(t.Context(), me, text(client), false)
			require.NoError(t, err)
		}, is: net.ErrClosed},
		{name: "the socket is closed while the caller reads nothing", does: func(t *testing.T, d *Daemon, client, server model.ID, _ *net.UnixConn) {
			fill(t, d, server)
			_, err := d.Close(t.Context(), me, text(client), false)
			require.NoError(t, err)
		}, is: net.ErrClosed},
		{name: "a silent peer has --half-close", spec: model.AttachSpec{HalfClose: 50 * time.Millisecond}, does: func(t *testing.T, _ *Daemon, _, _ model.ID, caller *net.UnixConn) {
			require.NoError(t, caller.CloseWrite())
		}},
		{name: "the end of stdin ends datagrams", dgram: true, does: func(t *testing.T, _ *Daemon, _, _ model.ID, caller *net.UnixConn) {
			require.NoError(t, caller.CloseWrite())
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := newDaemon(t)
			connect := pair
			if tt.dgram {
				connect = udp
			}
			client, server := connect(t, d)
			tt.spec.ID, tt.spec.FD = client, model.NoFD
			_, caller, ended := attached(t, d, tt.spec)
			tt.does(t, d, client, server, caller)
			err := within(t, "attach did not end", ended)
			if tt.is == nil {
				require.NoError(t, err)
				return
			}
			require.ErrorIs(t, err, tt.is)
		})
	}
}

func TestAttachKeepsTheStreamOpenWhenAsked(t *testing.T) {
	d := newDaemon(t)
	client, server := pair(t, d)
	a, caller, ended := attached(t, d, model.AttachSpec{ID: client, FD: model.NoFD, KeepOpen: true})
	require.NoError(t, caller.CloseWrite())
	mustSend(t, d, server, "x")
	require.Equal(t, "x", mustRead(t, caller, 1))
	require.Equal(t, "connected", mustShow(t, d, server).State, "no FIN came")
	require.NoError(t, a.Close())
	require.NoError(t, within(t, "attach did not end", ended))
	mustSend(t, d, client, "still open")
	require.Equal(t, "still open", mustRecv(t, d, server))
}

func TestWhatACallerLeavesOfAnAttachmentIsReadNext(t *testing.T) {
	d := newDaemon(t)
	client, server := pair(t, d)
	_, caller, ended := attached(t, d, model.AttachSpec{ID: client, FD: model.NoFD})
	require.NoError(t, caller.Close())
	mustSend(t, d, server, "for the next")
	require.NoError(t, within(t, "attach did not end", ended))
	require.Equal(t, "for the next", mustRecv(t, d, client))
}

func TestAttachDialsAnEndpointAndClosesItAfterwards(t *testing.T) {
	d := newDaemon(t)
	listener, addr := listenTCP(t, d)
	e, err := families.ParseEndpoint("tcp:" + addr)
	require.NoError(t, err)
	a, caller, ended := attached(t, d, model.AttachSpec{Endpoint: &e, FD: model.NoFD})
	server := mustAccept(t, d, listener)
	sent := make([]byte, 5<<20)
	_, err = rand.Read(sent)
	require.NoError(t, err)
	go func() {
		_, _ = caller.Write(sent) // the comparison below tells
		_ = caller.CloseWrite()
	}()
	var got bytes.Buffer
	for {
		m, err := recv(t, d, server.ID)
		require.NoError(t, err)
		if m.EOF {
			break
		}
		got.Write(m.Data)
	}
	require.True(t, bytes.Equal(sent, got.Bytes()))
	dialled := a.Socket().ID
	require.Equal(t, "half-closed", mustShow(t, d, dialled).State)
	_, err = d.Close(t.Context(), me, text(server.ID), false)
	require.NoError(t, err)
	require.NoError(t, within(t, "attach did not end", ended))
	_, err = d.Show(t.Context(), me, text(dialled))
	require.ErrorIs(t, err, families.ErrNotFound)
}

func TestAttachRefuses(t *testing.T) {
	d := newDaemon(t)
	listener, _ := listenTCP(t, d)
	endpoint := func(s string) *families.Endpoint {
		e, err := families.ParseEndpoint(s)
		require.NoError(t, err)
		return &e
	}
	for _, tt := range []struct {
		name string
		spec model.AttachSpec
		is   error
	}{
		{"a listening socket", model.AttachSpec{ID: listener}, families.ErrNotSupported},
		{"no such socket", model.AttachSpec{ID: 99}, families.ErrNotFound},
		{"an id that is none", model.AttachSpec{Endpoint: endpoint("id:x")}, families.ErrSyntax},
		{"a path without its descriptor", model.AttachSpec{Endpoint: endpoint("unix:/run/x"), FD: model.NoFD}, families.ErrBorrow},
		{"an unknown network", model.AttachSpec{Endpoint: endpoint("smtp:x"), FD: model.NoFD}, families.ErrSyntax},
		{"nobody listens", model.AttachSpec{Endpoint: endpoint("tcp:127.0.0.1:1"), FD: model.NoFD}, syscall.ECONNREFUSED},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := d.Attach(testContext(t), me, tt.spec)
			require.ErrorIs(t, err, tt.is)
		})
	}
	familytest.Eventually(t, "nothing is left of them", func() bool { return d.table.len() == 1 })
}
