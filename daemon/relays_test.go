package daemon

import (
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/sockd/sockd/daemon/config"
	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/familytest"
	"github.com/sockd/sockd/families/model"
)

// An echo is a TCP server that answers with what it got, after a word of its own.
func echo(t *testing.T, word string) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.WriteString(c, word) // the client's reads tell
				// Plain copying: io.Copy between TCPConns keeps pipes for later, which
				// a test that counts descriptors takes for a leak.
				_, _ = io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c})
			}()
		}
	}()
	t.Cleanup(func() {
		require.NoError(t, l.Close())
		<-done
	})
	return l.Addr().String()
}

func spec(t *testing.T, name, from string, to ...string) model.RelaySpec {
	t.Helper()
	s := model.RelaySpec{Name: name, FromFD: model.NoFD}
	var err error
	s.From, err = families.ParseEndpoint(from)
	require.NoError(t, err)
	for _, text := range to {
		e, err := families.ParseEndpoint(text)
		require.NoError(t, err)
		s.To = append(s.To, e)
	}
	return s
}

// A session is a client's connection through a relay.
type session struct {
	t *testing.T
	net.Conn
}

func dial(t *testing.T, addr, word string) *session {
	t.Helper()
	c, err := net.Dial("tcp", strings.TrimPrefix(addr, "tcp:"))
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Close() }) // most tests leave it to this
	s := &session{t, c}
	require.Equal(t, word, mustRead(t, c, len(word)))
	return s
}

func (s *session) says(text string) {
	s.t.Helper()
	_, err := io.WriteString(s, text)
	require.NoError(s.t, err)
	require.Equal(s.t, text, mustRead(s.t, s, len(text)))
}

// relayNamed finds a relay that is not draining.
func relayNamed(t *testing.T, d *Daemon, name string) (model.Relay, bool) {
	t.Helper()
	l, err := d.List(t.Context(), me, []string{"relays"})
	require.NoError(t, err)
	for _, r := range l.Relays {
		if r.Name == name && r.State != stateDraining {
			return r, true
		}
	}
	return model.Relay{}, false
}

func mustRelay(t *testing.T, d *Daemon, name string) model.Relay {
	t.Helper()
	r, ok := relayNamed(t, d, name)
	require.True(t, ok, "there is no relay %s", name)
	return r
}

func TestRelayVerbs(t *testing.T) {
	d := newDaemon(t)
	one, two := echo(t, "one"), echo(t, "two")
	r, err := d.RelayAdd(testContext(t), me, spec(t, "web", "tcp:127.0.0.1:0", "tcp:"+one), false)
	require.NoError(t, err)
	require.Equal(t, "listening", r.State)
	require.Equal(t, me.Owner(), r.Owner)
	first := dial(t, r.Local[0], "one")
	first.says("hello")
	o, err := d.Show(t.Context(), me, "web")
	require.NoError(t, err)
	require.Equal(t, r.ID, o.Relay.ID)
	_, err = d.RelayAdd(testContext(t), me, spec(t, "web", "tcp:127.0.0.1:0", "tcp:"+one), false)
	require.ErrorIs(t, err, syscall.EEXIST)

	to := spec(t, "", "tcp::1", "tcp:"+two).To
	_, err = d.RelaySet(testContext(t), me, "web", model.RelayChange{To: &to})
	require.NoError(t, err)
	dial(t, r.Local[0], "two").says("hello too")
	first.says("still here")
	got, err := d.RelaySpec(t.Context(), me, text(r.ID))
	require.NoError(t, err)
	require.Equal(t, to, got.To)

	l, err := d.List(t.Context(), me, []string{"sessions"})
	require.NoError(t, err)
	require.Len(t, l.Sessions, 2)
	ids, err := d.Close(t.Context(), me, text(l.Sessions[1].ID), false)
	require.NoError(t, err)
	require.Equal(t, []model.ID{l.Sessions[1].ID}, ids)

	gone, err := d.RelayRemove(t.Context(), me, "web", forever)
	require.NoError(t, err)
	require.Equal(t, stateDraining, gone.State)
	first.says("to my end")
	_, err = d.RelayRemove(t.Context(), me, "web", 0)
	require.ErrorIs(t, err, families.ErrNotFound)
	_, err = d.RelayRemove(t.Context(), me, text(r.ID), 0)
	require.NoError(t, err)
	_, err = first.Read(make([]byte, 1))
	require.Error(t, err, "a drain of 0 ends what is left")
}

func TestClosingARelayLeavesItsSessionsUnlessAsked(t *testing.T) {
	for _, sessions := range []bool{false, true} {
		d := newDaemon(t)
		r, err := d.RelayAdd(testContext(t), me, spec(t, "", "tcp:127.0.0.1:0", "tcp:"+echo(t, "x")), false)
		require.NoError(t, err)
		s := dial(t, r.Local[0], "x")
		ids, err := d.Close(t.Context(), me, r.Name, sessions)
		require.NoError(t, err)
		require.Equal(t, []model.ID{r.ID}, ids)
		if !sessions {
			s.says("going on")
			continue
		}
		_, err = s.Read(make([]byte, 1))
		require.Error(t, err)
	}
}

func TestARelayTakesOpenSocketsByTheirID(t *testing.T) {
	d := newDaemon(t)
	listener, addr := listenTCP(t, d)
	r, err := d.RelayAdd(testContext(t), me, spec(t, "web", "id:"+text(listener), "tcp:"+echo(t, "hi")), false)
	require.NoError(t, err)
	dial(t, addr, "hi").says("through a listener that was open")
	_, err = d.Bind(t.Context(), me, listener, "x")
	require.ErrorIs(t, err, families.ErrNotFound, "it is the relay's now")
	require.Equal(t, []string{"tcp:" + addr}, r.Local)

	a1, b1 := pair(t, d)
	a2, b2 := pair(t, d)
	_, err = d.RelayAdd(testContext(t), me, spec(t, "joint", "id:"+text(b1), "id:"+text(b2)), false)
	require.NoError(t, err)
	mustSend(t, d, a1, "from one")
	require.Equal(t, "from one", mustRecv(t, d, a2))
	mustSend(t, d, a2, "and back")
	require.Equal(t, "and back", mustRecv(t, d, a1))
}

func TestASocketIsBackWhenItsRelayDidNotComeToBe(t *testing.T) {
	d := newDaemon(t)
	listener, addr := listenTCP(t, d)
	_, err := d.RelayAdd(testContext(t), me, spec(t, "web", "id:"+text(listener), "unixgram:@x"), false)
	require.ErrorIs(t, err, families.ErrNotSupported)
	require.Equal(t, "listening", mustShow(t, d, listener).State)
	client := mustOpen(t, d, "inet", "stream")
	mustConnect(t, d, client, addr)
	mustAccept(t, d, listener)
	require.Empty(t, d.lent.socks)
}

func TestAUnixPathInARelayIsItsCallersToOpen(t *testing.T) {
	d := newDaemon(t)
	path := filepath.Join(t.TempDir(), "x")
	_, err := d.RelayAdd(testContext(t), me, spec(t, "", "tcp:127.0.0.1:0", "unix:"+path), false)
	require.ErrorIs(t, err, families.ErrBorrow)
	_, err = d.RelayAdd(testContext(t), me, spec(t, "", "unix:"+path, "tcp:127.0.0.1:1"), false)
	require.ErrorIs(t, err, families.ErrBorrow)
	r, err := d.RelayAdd(testContext(t), me, spec(t, "web", "tcp:127.0.0.1:0", "tcp:127.0.0.1:1"), false)
	require.NoError(t, err)
	to := spec(t, "", "tcp::1", "unix:"+path).To
	_, err = d.RelaySet(testContext(t), me, r.Name, model.RelayChange{To: &to})
	require.ErrorIs(t, err, families.ErrBorrow)
}

func TestADescriptorOfSystemdsIsTakenOnceAndComesBack(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	d := newDaemon(t, func(o *Options) {
		o.Files = []File{{Name: "web", FD: dup(t, l.(*net.TCPListener))}, {Name: "null", FD: dupFile(t, os.DevNull)}}
	})
	to := "tcp:" + echo(t, "hi")
	r, err := d.RelayAdd(testContext(t), me, spec(t, "one", "fd:web", to), false)
	require.NoError(t, err)
	require.Equal(t, []string{"tcp:" + l.Addr().String()}, r.Local)
	dial(t, l.Addr().String(), "hi").says("hello")
	_, err = d.RelayAdd(testContext(t), me, spec(t, "two", "fd:web", to), false)
	require.ErrorIs(t, err, families.ErrBusy)
	_, err = d.RelayAdd(testContext(t), me, spec(t, "two", "fd:other", to), false)
	require.ErrorIs(t, err, families.ErrNotFound)
	_, err = d.RelayAdd(testContext(t), me, spec(t, "two", "fd:null", to), false)
	require.ErrorIs(t, err, syscall.ENOTSOCK)
	_, err = d.RelayRemove(t.Context(), me, "one", 0)
	require.NoError(t, err)
	_, err = d.RelayAdd(testContext(t), me, spec(t, "two", "fd:web", to), false)
	require.NoError(t, err)
	dial(t, l.Addr().String(), "hi").says("again")
}

// dup is a duplicate of a listener's descriptor.
func dup(t *testing.T, l syscall.Conn) (fd int) {
	t.Helper()
	conn, err := l.SyscallConn()
	require.NoError(t, err)
	require.NoError(t, conn.Control(func(p uintptr) {
		n, _, errno := syscall.Syscall(syscall.SYS_FCNTL, p, syscall.F_DUPFD_CLOEXEC, 0)
		require.Zero(t, errno)
		fd = int(n)
	}))
	return fd
}

func dupFile(t *testing.T, path string) int {
	t.Helper()
	fd, err := syscall.Open(path, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	require.NoError(t, err)
	return fd
}

func TestCloseAllLeavesTheConfigurationsRelays(t *testing.T) {
	dir := t.TempDir()
	d := newDaemon(t, func(o *Options) { o.ConfigDirs = []string{dir} })
	writeRelay(t, dir, "kept", "tcp:127.0.0.1:0", "tcp:127.0.0.1:1")
	require.NoError(t, d.Reload(testContext(t)))
	_, err := d.RelayAdd(testContext(t), me, spec(t, "mine", "tcp:127.0.0.1:0", "tcp:127.0.0.1:1"), false)
	require.NoError(t, err)
	mustOpen(t, d, "inet", "stream")
	ids, err := d.CloseAll(t.Context(), me)
	require.NoError(t, err)
	require.Len(t, ids, 2)
	mustRelay(t, d, "kept")
	_, ok := relayNamed(t, d, "mine")
	require.False(t, ok)
}

func writeRelay(t *testing.T, dir, name, from string, to ...string) {
	t.Helper()
	write(t, dir, "relays.d/"+name+".conf", config.Format(spec(t, name, from, to...)))
}

func write(t *testing.T, dir, file, text string) {
	t.Helper()
	path := filepath.Join(dir, file)
	require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
	require.NoError(t, os.WriteFile(path, []byte(text), 0o644))
}

// An unchanged relay keeps its listener and sessions through a reload, whatever
// becomes of the others.
func TestReloadAppliesTheDifference(t *testing.T) {
	dir := t.TempDir()
	d := newDaemon(t, func(o *Options) { o.ConfigDirs = []string{dir} })
	one, two := "tcp:"+echo(t, "one"), "tcp:"+echo(t, "two")
	for _, name := range []string{"same", "changed", "gone", "broken"} {
		writeRelay(t, dir, name, "tcp:127.0.0.1:0", one)
	}
	require.NoError(t, d.Reload(testContext(t)))
	before := map[string]model.Relay{}
	sessions := map[string]*session{}
	for _, name := range []string{"same", "changed", "gone", "broken"} {
		before[name] = mustRelay(t, d, name)
		require.Equal(t, filepath.Join(dir, "relays.d", name+".conf"), before[name].Source)
		sessions[name] = dial(t, before[name].Local[0], "one")
	}
	require.Empty(t, mustStatus(t, d).Problems)

	writeRelay(t, dir, "changed", "tcp:127.0.0.1:0", two)
	writeRelay(t, dir, "new", "tcp:127.0.0.1:0", two)
	require.NoError(t, os.Remove(filepath.Join(dir, "relays.d/gone.conf")))
	write(t, dir, "relays.d/broken.conf", "[Relay]\nFrom=tcp:127.0.0.1:0\nTo=nonsense\n")
	require.NoError(t, d.Reload(testContext(t)))

	for name, s := range sessions {
		s.says("a session of " + name)
	}
	require.Equal(t, before["same"].Local, mustRelay(t, d, "same").Local)
	require.Equal(t, before["same"].ID, mustRelay(t, d, "same").ID)
	require.Equal(t, before["broken"].ID, mustRelay(t, d, "broken").ID)
	require.Equal(t, before["changed"].Local, mustRelay(t, d, "changed").Local, "the same FROM: the listener never closes")
	dial(t, mustRelay(t, d, "changed").Local[0], "two").says("x")
	dial(t, mustRelay(t, d, "new").Local[0], "two").says("x")
	_, ok := relayNamed(t, d, "gone")
	require.False(t, ok)
	problems := mustStatus(t, d).Problems
	require.Len(t, problems, 1)
	require.Contains(t, problems[0], filepath.Join(dir, "relays.d/broken.conf")+":3: ")
}

func mustStatus(t *testing.T, d *Daemon) model.Status {
	t.Helper()
	s, err := d.Status(t.Context(), me)
	require.NoError(t, err)
	return s
}

func TestARelayThatCannotStartIsListedAndTriedAgain(t *testing.T) {
	dir := t.TempDir()
	d := newDaemon(t, func(o *Options) { o.ConfigDirs = []string{dir} })
	listener, addr := listenTCP(t, d)
	writeRelay(t, dir, "web", "tcp:"+addr, "tcp:"+echo(t, "hi"))
	require.NoError(t, d.Reload(testContext(t)))
	r := mustRelay(t, d, "web")
	require.Equal(t, stateFailed, r.State)
	require.Contains(t, r.Cause, "address already in use")
	require.Contains(t, mustStatus(t, d).Problems[0], "relay web: ")
	require.NoError(t, d.Reload(testContext(t)))
	require.Equal(t, r.ID, mustRelay(t, d, "web").ID, "it keeps its ID while it fails")
	o, err := d.Show(t.Context(), me, "web")
	require.NoError(t, err)
	require.Equal(t, r.ID, o.Relay.ID)

	_, err = d.Close(t.Context(), me, text(listener), false)
	require.NoError(t, err)
	require.NoError(t, d.Reload(testContext(t)))
	require.Equal(t, "listening", mustRelay(t, d, "web").State)
	dial(t, addr, "hi").says("at last")
	require.Empty(t, mustStatus(t, d).Problems)
}

// With a relay of a caller's under a name of the configuration there were two relays
// "web", one of them failed.
func TestAConfiguredRelayTakesTheNameOfACallers(t *testing.T) {
	dir := t.TempDir()
	d := newDaemon(t, func(o *Options) { o.ConfigDirs = []string{dir} })
	from := "tcp:" + freeTCP(t)
	_, err := d.RelayAdd(testContext(t), me, spec(t, "web", from, "tcp:"+echo(t, "one")), false)
	require.NoError(t, err)
	mine := mustRelay(t, d, "web")
	session := dial(t, mine.Local[0], "one")

	writeRelay(t, dir, "web", from, "tcp:"+echo(t, "two"))
	require.NoError(t, d.Reload(testContext(t)))
	web := mustRelay(t, d, "web")
	require.Equal(t, mine.ID, web.ID, "with the same FROM the listener stays")
	require.Equal(t, filepath.Join(dir, "relays.d/web.conf"), web.Source)
	require.Len(t, mustList(t, d).Relays, 1)
	dial(t, web.Local[0], "two").says("the configuration counts")
	session.says("and sessions go on")
	problems := mustStatus(t, d).Problems
	require.Len(t, problems, 1)
	require.Contains(t, problems[0], "relays.d/web.conf: relay web: a caller had added one of this name")
	require.NoError(t, d.Reload(testContext(t)))
	require.Empty(t, mustStatus(t, d).Problems)

	_, err = d.RelayAdd(testContext(t), me, spec(t, "other", "tcp:127.0.0.1:0", "tcp:"+echo(t, "three")), false)
	require.NoError(t, err)
	other := mustRelay(t, d, "other")
	writeRelay(t, dir, "other", from, "tcp:"+echo(t, "four"))
	require.NoError(t, d.Reload(testContext(t)))
	require.Equal(t, other.ID, mustRelay(t, d, "other").ID, "FROM is taken")
	require.Len(t, mustList(t, d).Relays, 2)
	require.Contains(t, mustStatus(t, d).Problems[0], "relay other stays as it was")
	dial(t, other.Local[0], "three").says("it does")
}

func mustList(t *testing.T, d *Daemon) model.Listing {
	t.Helper()
	l, err := d.List(t.Context(), me, nil)
	require.NoError(t, err)
	return l
}

// freeTCP is an address that nobody listens on.
func freeTCP(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, l.Close())
	return l.Addr().String()
}

// A relay of the configuration that could not be started has its name all the same.
func TestTheNameOfAFailedRelayIsTaken(t *testing.T) {
	dir := t.TempDir()
	d := newDaemon(t, func(o *Options) { o.ConfigDirs = []string{dir} })
	_, addr := listenTCP(t, d)
	writeRelay(t, dir, "web", "tcp:"+addr, "tcp:"+echo(t, "one"))
	require.NoError(t, d.Reload(testContext(t)))
	require.Equal(t, stateFailed, mustRelay(t, d, "web").State)
	mine := spec(t, "web", "tcp:127.0.0.1:0", "tcp:"+echo(t, "two"))
	_, err := d.RelayAdd(testContext(t), me, mine, false)
	require.ErrorIs(t, err, syscall.EEXIST)
	require.ErrorContains(t, err, `relay add "web": `)
	_, err = d.RelayAdd(testContext(t), me, mine, true)
	require.NoError(t, err)
	require.Len(t, mustList(t, d).Relays, 1)
	dial(t, mustRelay(t, d, "web").Local[0], "two").says("replaced")
	require.Empty(t, mustStatus(t, d).Problems)
}

func TestPermanentRelaysComeBack(t *testing.T) {
	state, dir := t.TempDir(), t.TempDir()
	at := func(o *Options) { o.StateDir, o.ConfigDirs = state, []string{dir} }
	d := newDaemon(t, at)
	s := spec(t, "web", "tcp:127.0.0.1:0", "tcp:"+echo(t, "one"))
	s.Permanent = true
	_, err := d.RelayAdd(testContext(t), me, s, false)
	require.NoError(t, err)
	id := mustRelay(t, d, "web").ID
	require.NoError(t, d.Reload(testContext(t)))
	require.Equal(t, id, mustRelay(t, d, "web").ID, "a reload leaves it alone")
	two := spec(t, "", "tcp::1", "tcp:"+echo(t, "two")).To
	_, err = d.RelaySet(testContext(t), me, "web", model.RelayChange{To: &two})
	require.NoError(t, err)
	require.NoError(t, d.Stop())

	d = newDaemon(t, at)
	require.NoError(t, d.Reload(testContext(t)))
	dial(t, mustRelay(t, d, "web").Local[0], "two").says("back")
	writeRelay(t, dir, "web", "tcp:127.0.0.1:0", "tcp:"+echo(t, "three"))
	require.NoError(t, d.Reload(testContext(t)))
	dial(t, mustRelay(t, d, "web").Local[0], "three").says("the configuration counts")
	require.Contains(t, mustStatus(t, d).Problems[0], "counts")
	require.NoError(t, os.Remove(filepath.Join(dir, "relays.d/web.conf")))
	require.NoError(t, d.Reload(testContext(t)))
	dial(t, mustRelay(t, d, "web").Local[0], "two").says("and without it the state")

	_, err = d.RelayRemove(t.Context(), me, "web", 0)
	require.NoError(t, err)
	require.NoFileExists(t, filepath.Join(state, "relays.d/web.conf"))
	require.NoError(t, d.Reload(testContext(t)))
	_, ok := relayNamed(t, d, "web")
	require.False(t, ok)
}

func TestWhatCannotBeKept(t *testing.T) {
	d := newDaemon(t)
	listener, _ := listenTCP(t, d)
	s := spec(t, "web", "id:"+text(listener), "tcp:127.0.0.1:1")
	s.Permanent = true
	_, err := d.RelayAdd(testContext(t), me, s, false)
	require.ErrorIs(t, err, families.ErrNotSupported)
	require.Equal(t, "listening", mustShow(t, d, listener).State)
	none := newDaemon(t, func(o *Options) { o.StateDir = "" })
	s = spec(t, "web", "tcp:127.0.0.1:0", "tcp:127.0.0.1:1")
	s.Permanent = true
	_, err = none.RelayAdd(testContext(t), me, s, false)
	require.ErrorIs(t, err, families.ErrNotSupported)
	_, ok := relayNamed(t, none, "web")
	require.False(t, ok)
}

func TestCheckConfigNamesFileAndLine(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "sockd.conf", "[Daemon]\nMaxSockets=many\n")
	write(t, dir, "relays.d/pair.conf", "[Relay]\nFrom=udp:127.0.0.1:0\nTo=tcp:127.0.0.1:1\n")
	write(t, dir, "relays.d/option.conf", "[Relay]\nFrom=tcp:127.0.0.1:0\n\nTo=tcp:127.0.0.1:1,mode=0600\n")
	write(t, dir, "relays.d/balance.conf", "[Relay]\nFrom=tcp:127.0.0.1:0\nTo=tcp:127.0.0.1:1\nBalance=luck\n")
	write(t, dir, "relays.d/good.conf", "[Relay]\nFrom=tcp:127.0.0.1:0\nTo=tcp:backend.example:1\n")
	var got []string
	for _, err := range CheckConfig(set, []string{dir}, "") {
		got = append(got, strings.TrimPrefix(err.Error(), dir+"/"))
	}
	require.Len(t, got, 4)
	for i, want := range []string{"relays.d/balance.conf:4: ", "relays.d/option.conf:4: ", "relays.d/pair.conf:3: ", "sockd.conf:2: "} {
		require.True(t, strings.HasPrefix(got[i], want), "got %q; want %q", got[i], want)
	}
}

// Only the first kind of mistake was named: Balance=foo was not, beside Idle=zz, nor
// was a second endpoint.
func TestCheckConfigNamesEveryMistake(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "relays.d/all.conf", "[Relay]\nFrom=tcp:80\nBalance=foo\nIdle=zz\nnonsense\nTo=smtp:a\nTo=tcp:127.0.0.1:1\nTo=udp:127.0.0.1:1,mode=1\nMaxConns=no\n[Other]\nIdle=yy\n")
	write(t, dir, "relays.d/line.conf", "[Relay]\nnonsense\n")
	write(t, dir, "relays.d/pair.conf", "[Relay]\nFrom=udp:127.0.0.1:0\nTo=udp:127.0.0.1:1\nTo=tcp:127.0.0.1:1\nTo=ip4:icmp:\n")
	write(t, dir, "sockd.conf", "[Daemon]\nnonsense\nLogLevel=loud\nMaxSockets=many\n")
	var got []string
	for _, err := range CheckConfig(set, []string{dir}, "") {
		got = append(got, strings.TrimPrefix(err.Error(), dir+"/"))
	}
	want := []string{
		"relays.d/all.conf:2: endpoint", "relays.d/all.conf:3: balance", "relays.d/all.conf:4: duration", `relays.d/all.conf:5: "nonsense"`,
		"relays.d/all.conf:6: endpoint", "relays.d/all.conf:8: endpoint", "relays.d/all.conf:9: number", "relays.d/all.conf:10: section",
		"relays.d/line.conf:2: ", "relays.d/pair.conf:4: udp to tcp", "relays.d/pair.conf:5: ip4",
		"sockd.conf:2: ", "sockd.conf:3: log level", "sockd.conf:4: number",
	}
	require.Len(t, got, len(want), "%s", strings.Join(got, "\n"))
	for i := range want {
		require.True(t, strings.HasPrefix(got[i], want[i]), "got %q; want %q", got[i], want[i])
	}
}

func TestStatus(t *testing.T) {
	d := newDaemon(t, func(o *Options) {
		o.ControlSocket, o.Systemd, o.Callers = "/run/x", true, func() int64 { return 3 }
	})
	mustOpen(t, d, "inet", "stream")
	s := mustStatus(t, d)
	require.Equal(t, []string{"inet6", "inet", "local"}, s.Families)
	require.Equal(t, []int64{1, 0, 0, 0, 3, int64(os.Getpid())}, []int64{s.Sockets, s.Relays, s.Sessions, s.Captures, s.Callers, s.PID})
	require.NotEmpty(t, s.Kernel)
	require.True(t, s.Systemd)
	require.NotNil(t, s.Missing)
	require.NotNil(t, s.Problems)
	require.Positive(t, s.Uptime)
}

func TestMissingCapabilitiesSayWhatTheyWouldAllow(t *testing.T) {
	const all = 1<<13 | 1<<10
	require.Empty(t, missing(all))
	require.Equal(t, []model.Missing{{Capability: "CAP_NET_RAW", Allows: "raw and packet sockets, packet relays, captures"}}, missing(all&^(1<<13)))
	if familytest.Root() == nil {
		require.NotZero(t, effectiveCapabilities())
	}
}

// When the file cannot be written the relay is not there, and what the caller
// passed is still the caller's to close. On success it is the daemon's: that none
// is left is what newDaemon looks at.
func TestARelayThatCannotBeKeptIsNotThere(t *testing.T) {
	d := newDaemon(t, func(o *Options) { o.StateDir = os.DevNull })
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	s := spec(t, "web", "tcp:"+l.Addr().String(), "tcp:127.0.0.1:1")
	s.Permanent, s.FromFD = true, dup(t, l.(*net.TCPListener))
	_, err = d.RelayAdd(testContext(t), me, s, false)
	require.ErrorIs(t, err, syscall.ENOTDIR)
	require.NoError(t, syscall.Close(s.FromFD))
	_, ok := relayNamed(t, d, "web")
	require.False(t, ok)

	s.Permanent, s.FromFD = false, dup(t, l.(*net.TCPListener))
	_, err = d.RelayAdd(testContext(t), me, s, false)
	require.NoError(t, err)
}

func TestWhatACallerChangedAReloadBringsBack(t *testing.T) {
	dir := t.TempDir()
	d := newDaemon(t, func(o *Options) { o.ConfigDirs = []string{dir} })
	one, two := "tcp:"+echo(t, "one"), "tcp:"+echo(t, "two")
	writeRelay(t, dir, "web", "tcp:127.0.0.1:0", one)
	require.NoError(t, d.Reload(testContext(t)))
	r := mustRelay(t, d, "web")
	to := spec(t, "", "tcp::1", two).To
	_, err := d.RelaySet(testContext(t), me, "web", model.RelayChange{To: &to})
	require.NoError(t, err)
	dial(t, r.Local[0], "two").says("x")
	require.NoError(t, d.Reload(testContext(t)))
	dial(t, r.Local[0], "one").says("x")

	replaced, err := d.RelayAdd(testContext(t), me, spec(t, "web", "tcp:127.0.0.2:0", two), true)
	require.NoError(t, err)
	require.NotEqual(t, r.ID, replaced.ID)
	require.NoError(t, d.Reload(testContext(t)))
	dial(t, mustRelay(t, d, "web").Local[0], "one").says("x")
	require.Empty(t, mustStatus(t, d).Problems)

	_, err = d.RelayRemove(t.Context(), me, "web", 0)
	require.NoError(t, err)
	require.NoError(t, d.Reload(testContext(t)))
	dial(t, mustRelay(t, d, "web").Local[0], "one").says("x")
}

// unixEcho is echo at a unix path.
func unixEcho(t *testing.T, path, word string) {
	t.Helper()
	l, err := net.Listen("unix", path)
	require.NoError(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.WriteString(c, word) // the client's reads tell
				_, _ = io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c})
			}()
		}
	}()
	t.Cleanup(func() {
		require.NoError(t, l.Close())
		<-done
	})
}

// dirOf opens a path's directory as sockd-ctl does.
func dirOf(t *testing.T, path string) model.DirFD {
	t.Helper()
	const oPath = 0x200000 // O_PATH, which package syscall has not
	fd, err := syscall.Open(filepath.Dir(path), oPath|syscall.O_DIRECTORY|syscall.O_CLOEXEC, 0)
	require.NoError(t, err)
	return model.DirFD{FD: fd, Name: filepath.Base(path)}
}

func TestARelayDialsAPathThroughTheDirectoryThatItsCallerOpened(t *testing.T) {
	dir, state := t.TempDir(), t.TempDir()
	one, two := filepath.Join(dir, "one"), filepath.Join(dir, "two")
	unixEcho(t, one, "one")
	unixEcho(t, two, "two")
	d := newDaemon(t, func(o *Options) { o.StateDir = state })
	s := spec(t, "web", "tcp:127.0.0.1:0", "unix:"+one)
	s.Permanent, s.ToDirs = true, []model.DirFD{dirOf(t, one)}
	r, err := d.RelayAdd(testContext(t), me, s, false)
	require.NoError(t, err)
	dial(t, r.Local[0], "one").says("hello")

	to := spec(t, "", "tcp::1", "unix:"+two).To
	change := model.RelayChange{To: &to, ToDirs: []model.DirFD{dirOf(t, two)}}
	_, err = d.RelaySet(testContext(t), me, "web", change)
	require.NoError(t, err)
	dial(t, r.Local[0], "two").says("hello")
	change.ToDirs = []model.DirFD{dirOf(t, two)}
	_, err = d.RelaySet(testContext(t), me, "nothing", change)
	require.ErrorIs(t, err, families.ErrNotFound)
	require.NoError(t, syscall.Close(change.ToDirs[0].FD), "it is still the caller's")
	require.NoError(t, d.Stop())

	d = newDaemon(t, func(o *Options) { o.StateDir = state })
	require.NoError(t, d.Reload(testContext(t)))
	dial(t, mustRelay(t, d, "web").Local[0], "two").says("what is kept is the daemon's to open")
}

func TestAFailedRelayIsARelay(t *testing.T) {
	dir := t.TempDir()
	d := newDaemon(t, func(o *Options) { o.ConfigDirs = []string{dir} })
	_, addr := listenTCP(t, d)
	fail := func() model.Relay {
		writeRelay(t, dir, "web", "tcp:"+addr, "tcp:127.0.0.1:1")
		require.NoError(t, d.Reload(testContext(t)))
		r := mustRelay(t, d, "web")
		require.Equal(t, stateFailed, r.State)
		return r
	}
	r := fail()
	require.Equal(t, []string{"tcp:127.0.0.1:1"}, r.To)
	got, err := d.RelaySpec(t.Context(), me, "web")
	require.NoError(t, err)
	require.Equal(t, "tcp:"+addr, got.From.String())
	_, err = d.RelaySet(testContext(t), me, "web", model.RelayChange{})
	require.ErrorIs(t, err, families.ErrNotSupported)
	require.ErrorContains(t, err, "relays.d/web.conf")
	require.Equal(t, int64(1), mustStatus(t, d).Relays)

	_, err = d.RelayRemove(t.Context(), me, "web", forever)
	require.NoError(t, err)
	_, ok := relayNamed(t, d, "web")
	require.False(t, ok)
	require.Greater(t, fail().ID, r.ID, "the next reload tries again")

	require.NoError(t, os.Remove(filepath.Join(dir, "relays.d/web.conf")))
	require.NoError(t, d.Reload(testContext(t)))
	_, ok = relayNamed(t, d, "web")
	require.False(t, ok)
	_, err = d.RelaySpec(t.Context(), me, "web")
	require.ErrorIs(t, err, families.ErrNotFound)
}

func TestReloadAppliesTheSettings(t *testing.T) {
	dir, level := t.TempDir(), new(slog.LevelVar)
	d := newDaemon(t, func(o *Options) { o.ConfigDirs, o.Level = []string{dir}, level })
	write(t, dir, "sockd.conf", "[Daemon]\nLogLevel=debug\nMaxSockets=1\n")
	require.NoError(t, d.Reload(testContext(t)))
	require.Equal(t, slog.LevelDebug, level.Level())
	mustOpen(t, d, "inet", "stream")
	_, err := d.Open(t.Context(), me, "inet", "stream", 0, "", model.NoFD)
	require.ErrorIs(t, err, syscall.EMFILE)
	require.NoError(t, os.Remove(filepath.Join(dir, "sockd.conf")))
	require.NoError(t, d.Reload(testContext(t)))
	require.Equal(t, slog.LevelInfo, level.Level())
	mustOpen(t, d, "inet", "stream")
}
