package daemon

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/sockd/sockd/daemon/park"
	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/familytest"
	"github.com/sockd/sockd/families/model"
)

// A manager holds lots for one daemon after the other, as systemd does.
type manager struct {
	tb   testing.TB
	held map[string][]int
	log  bytes.Buffer // of the last daemon
}

func newManager(tb testing.TB) *manager {
	tb.Helper()
	familytest.NoLeaks(tb)
	m := &manager{tb: tb, held: map[string][]int{}}
	tb.Cleanup(func() {
		for name := range m.held {
			require.NoError(tb, m.Remove(name))
		}
	})
	return m
}

func (m *manager) Store(name string, fds ...int) error {
	for _, fd := range fds {
		m.held[name] = append(m.held[name], mustDup(m.tb, fd))
	}
	return nil
}

func (m *manager) Remove(name string) error {
	for _, fd := range m.held[name] {
		require.NoError(m.tb, syscall.Close(fd))
	}
	delete(m.held, name)
	return nil
}

func (m *manager) Barrier(context.Context) error { return nil }

func mustDup(tb testing.TB, fd int) int {
	tb.Helper()
	n, err := syscall.Dup(fd)
	require.NoError(tb, err)
	syscall.CloseOnExec(n)
	return n
}

// open takes over what is parked.
func (m *manager) open() *Parking {
	m.tb.Helper()
	var files []park.File
	for name, fds := range m.held {
		for _, fd := range fds {
			files = append(files, park.File{Name: name, FD: mustDup(m.tb, fd)})
		}
	}
	p := &Parking{}
	var err error
	p.Lots, p.Back, err = park.Open(context.Background(), m, files, func(e park.Event) { p.Refused = append(p.Refused, e) })
	require.NoError(m.tb, err)
	return p
}

// start starts the next daemon. Whoever starts it stops it.
func (m *manager) start(change ...func(*Options)) *Daemon {
	m.tb.Helper()
	m.log.Reset()
	o := Options{Families: set, Log: slog.New(slog.NewTextHandler(&m.log, nil)), Version: "test", Parking: m.open()}
	for _, f := range change {
		f(&o)
	}
	d, err := New(o)
	require.NoError(m.tb, err)
	m.tb.Cleanup(func() { require.NoError(m.tb, d.Stop()) }) // again, or for a test that failed
	return d
}

// echoAt is a backend: it gives back what it gets. At the end of the test it ends what
// may be parked still.
func echoAt(tb testing.TB) (addr string) {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(tb, err)
	ended := make(chan struct{})
	done, cancel := context.WithCancel(context.Background())
	tb.Cleanup(func() { cancel(); require.NoError(tb, l.Close()); <-ended })
	go func() {
		defer close(ended)
		var work sync.WaitGroup
		defer work.Wait()
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			stop := context.AfterFunc(done, func() { _ = c.Close() }) // whatever goes on
			work.Go(func() {
				_, _ = io.Copy(c, struct{ io.Reader }{c}) // until its client ends
				_ = c.Close()
				stop()
			})
		}
	}()
	return l.Addr().String()
}

func mustEcho(tb testing.TB, c net.Conn, word string) {
	tb.Helper()
	require.NoError(tb, c.SetDeadline(time.Now().Add(patience)))
	_, err := io.WriteString(c, word)
	require.NoError(tb, err)
	back := make([]byte, len(word))
	_, err = io.ReadFull(c, back)
	require.NoError(tb, err)
	require.Equal(tb, word, string(back))
}

func durable(t *testing.T, from, to string) model.RelaySpec {
	t.Helper()
	return model.RelaySpec{
		Name: "web", From: mustEndpoint(t, "tcp:"+from), To: []families.Endpoint{mustEndpoint(t, "tcp:"+to)},
		Durable: model.DurableYes, FromFD: model.NoFD,
	}
}

func TestADurableRelayAndItsSessionsGoOnInTheNextDaemon(t *testing.T) {
	m, ctx := newManager(t), testContext(t)
	d := m.start()
	r, err := d.RelayAdd(ctx, me, durable(t, "127.0.0.1:0", echoAt(t)), false)
	require.NoError(t, err)
	addr := r.Local[0][len("tcp:"):]
	c, err := net.Dial("tcp", addr)
	require.NoError(t, err)
	mustEcho(t, c, "before")
	session := d.relays.Sessions()[0].ID

	require.NoError(t, d.Stop())
	late, err := net.Dial("tcp", addr)
	require.NoError(t, err, "the listener takes clients meanwhile")
	d = m.start()

	mustEcho(t, c, "after")
	require.NoError(t, c.Close())
	mustEcho(t, late, "the one who came meanwhile")
	require.NoError(t, late.Close())
	familytest.Eventually(t, "both sessions are over", func() bool { return len(d.relays.Sessions()) == 0 })
	now, err := d.relayRef(me, "", "web")
	require.NoError(t, err)
	require.Equal(t, r.ID, now.ID)
	require.Equal(t, r.Local, now.Local)
	require.EqualValues(t, 2, now.Total)
	require.EqualValues(t, len("before"+"after"+"the one who came meanwhile"), now.RxBytes)
	require.Greater(t, d.NewID(), session, "no ID is given twice")

	s, err := d.Status(ctx, me)
	require.NoError(t, err)
	require.EqualValues(t, 2, s.Parking.Parked, "the relay, and what IDs there were")
	require.Equal(t, "net.core.wmem_max", s.Parking.Sysctl)

	_, err = d.RelayRemove(ctx, me, "web", 0)
	require.NoError(t, err)
	l, err := net.Listen("tcp", addr)
	require.NoError(t, err, "its address is free at once")
	require.NoError(t, l.Close())
	require.NoError(t, d.Stop())
	require.Empty(t, m.start().relays.Relays(), "what has ended does not come back")
}

func TestAConfiguredRelayJoinsTheListenerThatWasParked(t *testing.T) {
	m, ctx, dir := newManager(t), testContext(t), t.TempDir()
	at := func(o *Options) { o.ConfigDirs = []string{dir} }
	file := filepath.Join(dir, "relays.d", "web.conf")
	require.NoError(t, os.Mkdir(filepath.Dir(file), 0o755))
	write := func(text string) {
		require.NoError(t, os.WriteFile(file, []byte("[Relay]\nFrom=tcp:127.0.0.1:0\nTo=tcp:"+text), 0o644))
	}
	to := echoAt(t)
	write(to + "\nDurable=yes\n")
	d := m.start(at)
	require.NoError(t, d.Reload(ctx))
	before := d.relays.Relays()[0]
	c, err := net.Dial("tcp", before.Local[0][len("tcp:"):])
	require.NoError(t, err)
	defer c.Close()
	mustEcho(t, c, "before")
	require.NoError(t, d.Stop())

	write(to + "\nDurable=yes\nMaxConns=7\n") // it was edited meanwhile
	d = m.start(at)
	require.NoError(t, d.Reload(ctx))
	after := d.relays.Relays()
	require.Len(t, after, 1)
	require.Equal(t, before.Local, after[0].Local)
	require.Equal(t, before.ID, after[0].ID)
	require.Equal(t, "7", after[0].Settings["max-conns"])
	require.Empty(t, d.config.allProblems(), "nobody's relay had to make room")
	mustEcho(t, c, "after")
	require.NoError(t, d.Stop())

	require.NoError(t, os.Remove(file))
	d = m.start(at)
	require.NoError(t, d.Reload(ctx))
	require.Equal(t, stateDraining, d.relays.Relays()[0].State, "its file is gone")
	mustEcho(t, c, "to the end")
}

func TestWithoutParkingADurableRelayIsRefused(t *testing.T) {
	d := newDaemon(t)
	_, err := d.RelayAdd(testContext(t), me, durable(t, "127.0.0.1:0", "127.0.0.1:1"), false)
	require.ErrorContains(t, err, "run it by systemd or with --supervise")
	s, err := d.Status(testContext(t), me)
	require.NoError(t, err)
	require.Nil(t, s.Parking)
}

func TestARecordOfAnotherVersionIsRefusedAndLetGo(t *testing.T) {
	m, ctx := newManager(t), testContext(t)
	p := m.open()
	var pipe [2]int
	require.NoError(t, syscall.Pipe2(pipe[:], syscall.O_CLOEXEC|syscall.O_NONBLOCK))
	for id, kind := range []park.Kind{1, 2, 200} { // a relay and a session of nonsense, and what nobody knows
		require.NoError(t, p.Lots.Park(park.Record{Kind: kind, ID: uint64(id + 1), Data: []byte("nonsense")}, pipe[1]))
	}
	require.NoError(t, p.Lots.Close())
	require.NoError(t, syscall.Close(pipe[1]))

	d := m.start()
	s, err := d.Status(ctx, me)
	require.NoError(t, err)
	require.Len(t, s.Problems, 3, "%v", s.Problems)
	require.EqualValues(t, 0, s.Parking.Parked)
	require.NoError(t, d.Stop())
	require.Empty(t, m.start().opts.Parking.Back, "they do not come back")
	require.NoError(t, syscall.Close(pipe[0]))
}

func TestDurableSocketsAreThereInTheNextDaemon(t *testing.T) {
	m, ctx := newManager(t), testContext(t)
	d := m.start()
	keep := func(id model.ID) model.ID {
		v, err := d.Keep(ctx, me, id)
		require.NoError(t, err)
		require.True(t, v.Durable)
		return id
	}
	l, addr := listenTCP(t, d)
	keep(keep(l))
	client := keep(mustOpen(t, d, "inet", "stream"))
	mustConnect(t, d, client, addr)
	server := mustAccept(t, d, l)
	require.True(t, server.Durable, "what a durable socket accepts is durable")
	path := filepath.Join(t.TempDir(), "dgram")
	dgram := keep(mustOpen(t, d, "local", "dgram"))
	mustBind(t, d, dgram, path)
	plain := mustOpen(t, d, "inet", "stream")
	closed, taken := listenTCP(t, d)
	_, err := d.Close(ctx, me, text(keep(closed)), false)
	require.NoError(t, err)
	other, err := net.Listen("tcp", taken)
	require.NoError(t, err, "the address of a closed one is free")
	require.NoError(t, other.Close())
	mustSend(t, d, client, "on its way")
	taker := d.NewID()

	require.NoError(t, d.Stop())
	d = m.start()

	require.Equal(t, "on its way", mustRecv(t, d, server.ID))
	mustSend(t, d, server.ID, "answered")
	require.Equal(t, "answered", mustRecv(t, d, client))
	require.Equal(t, l, mustShow(t, d, server.ID).Parent)
	late := mustOpen(t, d, "inet", "stream")
	require.Greater(t, late, taker, "no ID is given twice")
	mustConnect(t, d, late, addr)
	require.NotZero(t, mustAccept(t, d, l).ID)
	require.Equal(t, path, mustShow(t, d, dgram).Local)
	require.FileExists(t, path)
	_, err = d.Show(ctx, me, text(plain))
	require.ErrorIs(t, err, families.ErrNotFound, "what is not durable ended")
	_, err = d.Show(ctx, me, text(closed))
	require.ErrorIs(t, err, families.ErrNotFound)
}

func TestADurableSocketThatARelayTookIsTheRelays(t *testing.T) {
	m, ctx := newManager(t), testContext(t)
	d := m.start()
	l, _ := listenTCP(t, d)
	_, err := d.Keep(ctx, me, l)
	require.NoError(t, err)
	broken := spec(t, "web", "id:"+text(l), "tcp:127.0.0.1:1")
	broken.Durable = model.DurableYes // a relay of a verb's socket cannot be
	_, err = d.RelayAdd(ctx, me, broken, false)
	require.Error(t, err)
	require.NoError(t, d.Stop())
	d = m.start()
	require.Equal(t, "listening", mustShow(t, d, l).State, "it came back from the relay, and is durable again")

	_, err = d.RelayAdd(ctx, me, spec(t, "web", "id:"+text(l), "tcp:127.0.0.1:1"), false)
	require.NoError(t, err)
	require.NoError(t, d.Stop())
	d = m.start()
	_, err = d.Show(ctx, me, text(l))
	require.ErrorIs(t, err, families.ErrNotFound)
}

func TestWithoutParkingASocketCannotBeKept(t *testing.T) {
	d := newDaemon(t)
	_, err := d.Keep(testContext(t), me, mustOpen(t, d, "inet", "stream"))
	require.ErrorIs(t, err, families.ErrNotSupported)
	require.ErrorContains(t, err, "run it by systemd or with --supervise")
}

// FuzzSocketRecord: what is read prints back the same.
func FuzzSocketRecord(f *testing.F) {
	f.Add(socketRecord{gid: 7, parent: 9}.encode())
	f.Add([]byte{})
	f.Add(make([]byte, socketRecordLen))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parseSocket(b)
		if err != nil {
			require.Zero(t, r)
			return
		}
		require.Equal(t, b, r.encode())
	})
}
