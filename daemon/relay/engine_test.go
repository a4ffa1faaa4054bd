package relay

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/familytest"
	"github.com/sockd/sockd/families/inet"
	"github.com/sockd/sockd/families/model"
	"github.com/stretchr/testify/require"
)

// tellName is a backend that says its name and then echoes.
func tellName(name string) func(net.Conn) {
	return func(c net.Conn) {
		_, _ = c.Write([]byte(name))
		echo(c)
	}
}

// mustName dials a relay and reads which backend answers.
func mustName(tb testing.TB, r model.Relay, n int) (string, net.Conn) {
	tb.Helper()
	c := mustDial(tb, r)
	name := make([]byte, n)
	_, err := io.ReadFull(c, name)
	require.NoError(tb, err)
	return string(name), c
}

func TestNamesAndLists(t *testing.T) {
	w := newWorld(t)
	l := serve(t, "tcp", "127.0.0.1:0", echo)
	s := spec(t, "tcp:127.0.0.1:0", "tcp:"+l.Addr().String())
	s.Owner = model.Owner{UID: 1000, GID: 100}
	s.Idle = 90 * time.Second
	unnamed := w.mustAdd(s)
	require.Equal(t, fmt.Sprintf("r%d", unnamed.ID), unnamed.Name)
	s.Name = "web"
	web := w.mustAdd(s)
	id, ok := w.eng.Lookup("web")
	require.True(t, ok)
	require.Equal(t, web.ID, id)
	require.Equal(t, []model.ID{unnamed.ID, web.ID}, []model.ID{w.eng.Relays()[0].ID, w.eng.Relays()[1].ID})
	require.Equal(t, "listening", web.State)
	require.Equal(t, map[string]string{"idle": "90s"}, web.Settings)
	require.Equal(t, s.Owner, web.Owner)
	require.True(t, strings.HasPrefix(web.Local[0], "tcp:127.0.0.1:"), web.Local[0])

	_, err := w.eng.Add(context.Background(), s)
	require.ErrorIs(t, err, syscall.EEXIST)
	require.ErrorContains(t, err, `relay add "web": `)
	s.Name = "other"
	s.From = mustEndpoint(t, web.Local[0])
	_, err = w.eng.Add(context.Background(), s)
	require.ErrorIs(t, err, syscall.EADDRINUSE)
	_, ok = w.eng.Lookup("other")
	require.False(t, ok, "a relay that was refused keeps no name")

	got, ok := w.eng.Spec(web.ID)
	require.True(t, ok)
	require.Equal(t, "tcp:127.0.0.1:0", got.From.String())
	require.Equal(t, model.NoFD, got.FromFD)
	require.Equal(t, 90*time.Second, got.Idle)

	mustEcho(t, mustDial(t, web), 1000)
	w.mustIdle(web.ID)
	opened := w.host.mustEvent(t, "session", "opened", 0)
	closed := w.host.mustEvent(t, "session", "closed", opened.ID)
	var session model.Session
	require.NoError(t, json.Unmarshal(closed.Object, &session))
	require.EqualValues(t, 1000, session.RxBytes)
	require.Equal(t, "tcp:"+l.Addr().String(), session.Backend)
	require.Equal(t, web.ID, session.Relay)
	require.Equal(t, "copy", session.Path)
	w.host.mustEvent(t, "relay", "added", web.ID)
	require.NoError(t, w.eng.Remove(web.ID, 0))
	w.host.mustEvent(t, "relay", "removed", web.ID)
	require.ErrorIs(t, w.eng.Remove(web.ID, 0), syscall.ENOENT)
	require.ErrorIs(t, w.eng.CloseSession(web.ID), syscall.ENOENT)
}

func TestRemoveDrains(t *testing.T) {
	for _, tc := range []struct {
		name  string
		drain time.Duration
		reset bool
	}{
		{"to the sessions' own end", -1, false},
		{"then resets what is left", 30 * time.Millisecond, true},
		{"or resets at once", 0, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t)
			l := serve(t, "tcp", "127.0.0.1:0", tellName("A"))
			s := spec(t, "tcp:127.0.0.1:0", "tcp:"+l.Addr().String())
			s.Name = "web"
			r := w.mustAdd(s)
			_, c := mustName(t, r, 1)
			require.NoError(t, w.eng.Remove(r.ID, tc.drain))
			_, found := w.eng.Lookup("web")
			require.False(t, found)
			network, address := endpoint(t, r)
			_, err := net.Dial(network, address)
			require.ErrorIs(t, err, syscall.ECONNREFUSED, "the listener is closed when Remove returns")
			if tc.reset {
				_, err := c.Read(make([]byte, 1))
				require.True(t, isReset(err), "got %v", err)
			} else {
				require.Equal(t, "draining", w.mustRelay(r.ID).State)
				require.Equal(t, "draining", w.eng.Sessions()[0].State)
				again := w.mustAdd(s) // the name is free
				require.NotEqual(t, r.ID, again.ID)
				mustEcho(t, c, 1000)
			}
			w.host.mustEvent(t, "relay", "removed", r.ID)
		})
	}
}

func TestBalances(t *testing.T) {
	w := newWorld(t)
	dead, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	nobody := "tcp:" + dead.Addr().String()
	require.NoError(t, dead.Close())
	var live []string
	for _, name := range []string{"A", "B"} {
		live = append(live, "tcp:"+serve(t, "tcp", "127.0.0.1:0", tellName(name)).Addr().String())
	}
	for _, tc := range []struct {
		balance string
		to      []string
		want    string
	}{
		{"", live, "ABABAB"},
		{"roundrobin", []string{live[0], nobody, live[1]}, "ABBABB"},
		{"failover", []string{nobody, live[1], live[0]}, "BBBBBB"},
		{"failover", []string{live[0], live[1]}, "AAAAAA"},
		{"roundrobin", []string{live[0] + ",backup", live[1]}, "BBBBBB"},
		{"roundrobin", []string{live[0] + ",backup", nobody}, "AAAAAA"},
		{"least", live, "ABABAB"}, // the connections stay open
	} {
		t.Run(tc.balance+" "+tc.want, func(t *testing.T) {
			s := spec(t, "tcp:127.0.0.1:0", tc.to...)
			s.Balance = tc.balance
			r := w.mustAdd(s)
			got := ""
			for range tc.want {
				name, _ := mustName(t, r, 1)
				got += name
			}
			require.Equal(t, tc.want, got)
			require.NoError(t, w.eng.Remove(r.ID, 0))
		})
	}
}

func TestSetAndReplaceKeepListenerAndSessions(t *testing.T) {
	w := newWorld(t)
	a := serve(t, "tcp", "127.0.0.1:0", tellName("A"))
	b := serve(t, "tcp", "127.0.0.1:0", tellName("B"))
	s := spec(t, "tcp:127.0.0.1:0", "tcp:"+a.Addr().String())
	s.Name, s.MaxConns = "web", 50
	r := w.mustAdd(s)
	name, old := mustName(t, r, 1)
	require.Equal(t, "A", name)

	to := []families.Endpoint{mustEndpoint(t, "tcp:"+b.Addr().String())}
	none := 0
	got, err := w.eng.Set(context.Background(), r.ID, model.RelayChange{To: &to, MaxConns: &none})
	require.NoError(t, err)
	require.Equal(t, r.Local, got.Local)
	require.Nil(t, got.Settings)
	name, _ = mustName(t, r, 1)
	require.Equal(t, "B", name)
	mustEcho(t, old, 1000)

	got, err = w.eng.Replace(context.Background(), s)
	require.NoError(t, err)
	require.Equal(t, r.ID, got.ID)
	require.Equal(t, r.Local, got.Local)
	name, old = mustName(t, r, 1)
	require.Equal(t, "A", name)

	s.From = mustEndpoint(t, "unix:"+w.path("front"))
	got, err = w.eng.Replace(context.Background(), s)
	require.NoError(t, err)
	require.NotEqual(t, r.ID, got.ID)
	require.Equal(t, "draining", w.mustRelay(r.ID).State)
	mustEcho(t, old, 1000)
	name, _ = mustName(t, got, 1)
	require.Equal(t, "A", name)

	bad := []families.Endpoint{mustEndpoint(t, "udp:127.0.0.1:9")}
	_, err = w.eng.Set(context.Background(), got.ID, model.RelayChange{To: &bad})
	require.ErrorIs(t, err, families.ErrNotSupported)
	name, _ = mustName(t, got, 1)
	require.Equal(t, "A", name, "a change that is refused changes nothing")
}

// While a relay is replaced again and again, every connect is served.
func TestReplaceRefusesNobody(t *testing.T) {
	w := newWorld(t)
	l := serve(t, "unix", w.path("b"), tellName("A"))
	s := spec(t, "tcp:127.0.0.1:0", "unix:"+l.Addr().String())
	s.Name = "web"
	s.Owner = model.Owner{UID: uint32(os.Getuid()), GID: uint32(os.Getgid())}
	s.ToDirs = []model.DirFD{w.dirFD("b")}
	r := w.mustAdd(s)
	var clients sync.WaitGroup
	var stop atomic.Bool
	var served atomic.Int64
	for range 4 {
		clients.Go(func() {
			network, address := endpoint(t, r)
			for !stop.Load() {
				c, err := net.Dial(network, address)
				if err == nil {
					_, err = io.ReadFull(c, make([]byte, 1))
					_ = c.Close()
				}
				if err != nil {
					t.Errorf("a client was not served: %v", err)
					return
				}
				served.Add(1)
			}
		})
	}
	for range 100 {
		s.ToDirs = []model.DirFD{w.dirFD("b")}
		_, err := w.eng.Replace(context.Background(), s)
		require.NoError(t, err)
		before := served.Load()
		familytest.Eventually(t, "nobody is served", func() bool { return served.Load() > before || t.Failed() })
	}
	stop.Store(true)
	clients.Wait()
}

// dirFD is what a client passes for a unix path: its directory and the name.
func (w *world) dirFD(name string) model.DirFD {
	w.tb.Helper()
	const oPath = 0x200000
	fd, err := syscall.Open(w.dir, oPath|syscall.O_DIRECTORY|syscall.O_CLOEXEC, 0)
	require.NoError(w.tb, err)
	return model.DirFD{FD: fd, Name: name}
}

func TestMaxConnsLetsClientsWait(t *testing.T) {
	w := newWorld(t)
	l := serve(t, "tcp", "127.0.0.1:0", tellName("A"))
	s := spec(t, "tcp:127.0.0.1:0", "tcp:"+l.Addr().String())
	s.MaxConns = 1
	r := w.mustAdd(s)
	_, first := mustName(t, r, 1)
	second := mustDial(t, r)
	familytest.Eventually(t, "the relay does not wait", func() bool { return w.mustRelay(r.ID).State == "waiting" })
	require.EqualValues(t, 1, w.mustRelay(r.ID).Sessions)
	require.Contains(t, w.mustRelay(r.ID).Cause, "max-conns")
	require.NoError(t, first.Close())
	_, err := io.ReadFull(second, make([]byte, 1))
	require.NoError(t, err)
	third := mustDial(t, r)
	more := 5
	_, err = w.eng.Set(context.Background(), r.ID, model.RelayChange{MaxConns: &more})
	require.NoError(t, err)
	_, err = io.ReadFull(third, make([]byte, 1))
	require.NoError(t, err)
	familytest.Eventually(t, "the relay does not listen again", func() bool { return w.mustRelay(r.ID).State == "listening" })
}

// hungry is a family whose listeners find no free descriptor.
type hungry struct {
	families.Family
	accepts *atomic.Int64
	until   *atomic.Bool
}

type hungryListener struct {
	families.Socket
	f hungry
}

func (f hungry) Open(ctx context.Context, s families.Spec) (families.Socket, error) {
	sock, err := f.Family.Open(ctx, s)
	return hungryListener{sock, f}, err
}

func (l hungryListener) Unwrap() families.Socket { return l.Socket }

func (l hungryListener) Listen(n int) error {
	inner, err := families.As[families.Listener](l.Socket)
	if err != nil {
		return err
	}
	return inner.Listen(n)
}

func (l hungryListener) Accept() (families.Socket, error) {
	l.f.accepts.Add(1)
	inner, err := families.As[families.Listener](l.Socket)
	if err != nil {
		return nil, err
	}
	if !l.f.until.Load() {
		return nil, &families.OpError{Op: "accept", Family: "inet", Err: syscall.EMFILE}
	}
	return inner.Accept()
}

func TestNoFreeDescriptorIsWaitedFor(t *testing.T) {
	f := hungry{inet.Family, new(atomic.Int64), new(atomic.Bool)}
	w := newWorldOf(t, families.Set{f})
	l := serve(t, "tcp", "127.0.0.1:0", tellName("A"))
	r := w.mustAdd(spec(t, "tcp:127.0.0.1:0", "tcp:"+l.Addr().String()))
	c := mustDial(t, r)
	familytest.Eventually(t, "it is not counted", func() bool { return w.mustRelay(r.ID).Drops["no_descriptors"] >= 3 })
	require.Equal(t, "waiting", w.mustRelay(r.ID).State)
	require.Contains(t, w.mustRelay(r.ID).Cause, "too many open files")
	require.Less(t, f.accepts.Load(), int64(100), "accept spins")
	f.until.Store(true)
	_, err := io.ReadFull(c, make([]byte, 1))
	require.NoError(t, err)
	familytest.Eventually(t, "the relay does not listen again", func() bool { return w.mustRelay(r.ID).State == "listening" })
}

func TestAJoinOfTwoOpenSocketsEndsWithThem(t *testing.T) {
	w := newWorld(t)
	m := &meeting{world: w}
	a, near := m.connected(mustEndpoint(t, "tcp:127.0.0.1:0"))
	b, far := m.connected(mustEndpoint(t, "unix:"+w.path("s")))
	w.host.open[7], w.host.open[8] = a, b
	m.relay = w.mustAdd(spec(t, "id:7", "id:8"))
	m.far = far
	require.Empty(t, w.host.open)
	m.say(near, families.Name{}, []byte("hello"))
	m.hear(far, []byte("hello"))
	require.NoError(t, near.Close())
	m.hearEnd(far)
	require.NoError(t, far.Close())
	w.host.mustEvent(t, "relay", "removed", m.relay.ID)
	require.Empty(t, w.eng.Relays())
	_, err := w.eng.Add(context.Background(), spec(t, "id:7", "id:8"))
	require.ErrorIs(t, err, syscall.ENOENT)
}

func TestADescriptorOfSystemdGoesBack(t *testing.T) {
	for _, network := range []string{"tcp:127.0.0.1:0", "udp:127.0.0.1:0"} {
		t.Run(network, func(t *testing.T) {
			m := &meeting{world: newWorld(t)}
			held, target := m.target(mustEndpoint(t, network))
			require.NoError(t, held.Bind(target.Addr))
			if l, err := families.As[families.Listener](held); err == nil {
				require.NoError(t, l.Listen(0))
			}
			m.host.named["web"] = held
			for range 2 {
				to := m.backend(mustEndpoint(t, network))
				m.far = nil
				if m.listener == nil {
					m.far, _ = m.target(to)
				}
				m.relay = m.mustAdd(spec(t, "fd:web", to.String()))
				require.Empty(t, m.host.named)
				require.NoError(t, m.eng.Remove(m.relay.ID, 0))
				require.Len(t, m.host.named, 1)
			}
			_, err := m.eng.Add(t.Context(), spec(t, "fd:web", "ip4:icmp:127.0.0.1"))
			require.ErrorIs(t, err, families.ErrNotSupported)
			_, err = m.eng.Add(t.Context(), spec(t, "fd:web", "id:99"))
			require.ErrorIs(t, err, syscall.ENOENT)
			require.Len(t, m.host.named, 1, "a relay that is refused keeps nothing")
			require.NotEqual(t, families.Closed, m.host.named["web"].Info().State)
		})
	}
}

// The client binds a unix FROM with its own rights and passes the descriptor.
func TestFromCanBeADescriptorOfTheCaller(t *testing.T) {
	m := &meeting{world: newWorld(t)}
	l := serve(t, "tcp", "127.0.0.1:0", tellName("A"))
	bound, target := m.target(mustEndpoint(t, "unix:"+m.path("front")))
	require.NoError(t, bound.Bind(target.Addr))
	listener, err := families.As[families.Listener](bound)
	require.NoError(t, err)
	require.NoError(t, listener.Listen(0))
	s := spec(t, "unix:"+m.path("front"), "udp:127.0.0.1:9")
	s.FromFD = familytest.Dup(t, bound)
	s.ToDirs = nil
	_, err = m.eng.Add(context.Background(), s)
	require.ErrorIs(t, err, families.ErrNotSupported)
	s.To = []families.Endpoint{mustEndpoint(t, "tcp:"+l.Addr().String())}
	r := m.mustAdd(s) // the descriptor is still the caller's after an error
	require.Equal(t, []string{"unix:" + m.path("front")}, r.Local)
	name, _ := mustName(t, r, 1)
	require.Equal(t, "A", name)
}

// What is no socket was ENOTSOCK, and one of another family or type was not told from
// a pair that makes no sense.
func TestADescriptorThatIsNoFromIsRefused(t *testing.T) {
	w := newWorld(t)
	other := serve(t, "tcp", "127.0.0.1:0", echo).(*net.TCPListener)
	gram, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: w.path("g"), Net: "unixgram"})
	require.NoError(t, err)
	defer gram.Close()
	file, err := os.Open(w.dir)
	require.NoError(t, err)
	defer file.Close()
	for why, from := range map[string]syscall.Conn{
		"the descriptor is no socket: does not parse":                                    file,
		"the descriptor is a socket of address family 2, and local is 1: does not parse": other,
		"the descriptor is a dgram socket: does not parse":                               gram,
	} {
		s := spec(t, "unix:"+w.path("s"), "tcp:127.0.0.1:1")
		rc, err := from.SyscallConn()
		require.NoError(t, err)
		require.NoError(t, rc.Control(func(fd uintptr) {
			s.FromFD = int(fd)
			_, err = w.eng.Add(context.Background(), s)
		}))
		require.EqualError(t, err, "relay from "+s.From.String()+": "+why)
		require.ErrorIs(t, err, families.ErrSyntax)
	}
}

func TestAUnixFromGetsItsPermissions(t *testing.T) {
	w := newWorld(t)
	l := serve(t, "tcp", "127.0.0.1:0", echo)
	r := w.mustAdd(spec(t, "unix:"+w.path("s")+",mode=0620,user=1,group=2", "tcp:"+l.Addr().String()))
	info, err := os.Stat(w.path("s"))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o620), info.Mode().Perm())
	st := info.Sys().(*syscall.Stat_t)
	require.Equal(t, []uint32{1, 2}, []uint32{st.Uid, st.Gid})
	require.NoError(t, w.eng.Remove(r.ID, 0))
	_, err = os.Stat(w.path("s"))
	require.ErrorIs(t, err, os.ErrNotExist)
}

// What a path of the caller's may lead to, and what not.
func TestAPathIsFollowedAsFarAsItsOwnerMeant(t *testing.T) {
	const nobody = 65534
	listen := func(t *testing.T, w *world, name string, uid int) net.Listener {
		l := serve(t, "unix", w.path(name), tellName("A"))
		l.(*net.UnixListener).SetUnlinkOnClose(false)
		require.NoError(t, os.Chown(w.path(name), uid, uid))
		return l
	}
	dialled := func(w *world, r model.Relay) error {
		network, address := endpoint(w.tb, r)
		c, err := net.Dial(network, address) // may see the reset already
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = io.ReadFull(c, make([]byte, 1))
		return err
	}
	add := func(t *testing.T, w *world, owner uint32) model.Relay {
		s := spec(t, "tcp:127.0.0.1:0", "unix:"+w.path("b"))
		s.Owner = model.Owner{UID: owner, GID: owner}
		s.ToDirs = []model.DirFD{w.dirFD("b")}
		return w.mustAdd(s)
	}
	cause := func(w *world) string { return w.host.mustEvent(w.tb, "session", "closed", 0).Cause }

	t.Run("a restarted backend of the same owner", func(t *testing.T) {
		w := newWorld(t)
		l := listen(t, w, "b", nobody)
		require.NoError(t, os.Chown(w.dir, nobody, nobody))
		r := add(t, w, nobody)
		require.NoError(t, dialled(w, r))
		require.NoError(t, l.Close())
		require.NoError(t, os.Remove(w.path("b")))
		listen(t, w, "b", nobody)
		require.NoError(t, dialled(w, r))
	})
	t.Run("not another user's socket", func(t *testing.T) {
		w := newWorld(t)
		listen(t, w, "b", nobody)
		require.NoError(t, os.Chown(w.dir, nobody, nobody))
		r := add(t, w, 0)
		require.NoError(t, dialled(w, r))
		require.NoError(t, os.Rename(w.path("b"), w.path("old")))
		listen(t, w, "b", 1)
		require.Error(t, dialled(w, r))
		familytest.Eventually(t, "no cause", func() bool {
			return closedBecause(w.host, "belongs to user 1 now and belonged to 65534")
		})
	})
	t.Run("not a new socket where others may put one", func(t *testing.T) {
		w := newWorld(t)
		require.NoError(t, os.Chmod(w.dir, 0o777))
		listen(t, w, "b", 0)
		r := add(t, w, 0)
		require.NoError(t, dialled(w, r))
		require.NoError(t, os.Rename(w.path("b"), w.path("old")))
		listen(t, w, "b", 0)
		require.Error(t, dialled(w, r))
		familytest.Eventually(t, "no cause", func() bool { return closedBecause(w.host, "is open to others") })
	})
	t.Run("not a link", func(t *testing.T) {
		w := newWorld(t)
		listen(t, w, "real", 0)
		require.NoError(t, os.Symlink("real", w.path("b")))
		require.Error(t, dialled(w, add(t, w, 0)))
		require.Contains(t, cause(w), "too many levels of symbolic links")
	})
	t.Run("not what the owner may not open, with a hint", func(t *testing.T) {
		w := newWorld(t)
		listen(t, w, "b", 0)
		require.NoError(t, os.Chmod(w.path("b"), 0o600))
		require.NoError(t, os.Chmod(w.dir, 0o755))
		r := add(t, w, nobody)
		require.Error(t, dialled(w, r))
		require.Contains(t, cause(w), "permission denied")
		rel, err := w.eng.relay(r.ID)
		require.NoError(t, err)
		_, err = rel.dial(t.Context(), rel.current)
		var hinted interface{ Hint() string }
		require.True(t, errors.As(err, &hinted))
		require.Equal(t, "setfacl -m u:sockd:rw "+w.path("b"), hinted.Hint())
	})
	t.Run("not the control socket by another name", func(t *testing.T) {
		w := newWorld(t)
		listen(t, w, "control", 0)
		require.NoError(t, os.Link(w.path("control"), w.path("b")))
		_, err := w.eng.Add(context.Background(), spec(t, "tcp:127.0.0.1:0", "unix:"+w.path("b")))
		require.ErrorIs(t, err, families.ErrNotSupported)
		require.NoError(t, os.Remove(w.path("b")))
		listen(t, w, "b", 0)
		r := add(t, w, 0)
		require.NoError(t, dialled(w, r))
		require.NoError(t, os.Remove(w.path("b")))
		require.NoError(t, os.Link(w.path("control"), w.path("b")))
		require.Error(t, dialled(w, r))
		familytest.Eventually(t, "no cause", func() bool { return closedBecause(w.host, "own control socket") })
	})
}

// closedBecause tells whether some session has ended for a reason with these
// words: sessions that overlap end in any order.
func closedBecause(h *host, words string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.ContainsFunc(h.events, func(e model.Event) bool {
		return e.Event == "closed" && strings.Contains(e.Cause, words)
	})
}

func TestCheckSaysWhatIsWrong(t *testing.T) {
	w := newWorld(t)
	for _, tc := range []struct {
		name, from string
		to         []string
		balance    string
		want       string
		column     int
	}{
		{name: "fine", from: "tcp::80", to: []string{"unix:/run/x.sock"}},
		{name: "a host name is not looked up", from: "tcp::80", to: []string{"tcp:no.such.host.invalid:80"}},
		{name: "nonsense balance", from: "tcp::80", to: []string{"unix:/x"}, balance: "luck", want: `balance "luck": want roundrobin, least, failover or fanout`},
		{name: "backlog on TO", from: "tcp::80", to: []string{"tcp:127.0.0.1:81,backlog=3"}, want: `endpoint "tcp:127.0.0.1:81,backlog=3": column 18: "backlog" belongs to FROM`, column: 18},
		{name: "backup on FROM", from: "tcp::80,backup", to: []string{"unix:/x"}, want: `endpoint "tcp::80,backup": column 9: "backup" belongs to TO`, column: 9},
		{name: "mode on tcp", from: "tcp::80,mode=0600", to: []string{"unix:/x"}, want: `endpoint "tcp::80,mode=0600": column 9: "mode" is for a unix path`, column: 9},
		{name: "mode that is none", from: "unix:/y,mode=rw", to: []string{"unix:/x"}, want: `endpoint "unix:/y,mode=rw": column 9: mode wants octal permissions such as 0660`, column: 9},
		{name: "backlog on udp", from: "udp::80,backlog=3", to: []string{"udp:127.0.0.1:1"}, want: `endpoint "udp::80,backlog=3": column 9: "backlog" is for what listens: tcp, unix, unixpacket`, column: 9},
		{name: "no network", from: "tpc::80", to: []string{"unix:/x"}, want: `endpoint "tpc::80": column 1: no network is called "tpc"`, column: 1},
		{name: "no ipx yet", from: "tcp::80", to: []string{"ipx:1.2.3@eth0"}, want: `endpoint "ipx:1.2.3@eth0": column 1: no network is called "ipx"`, column: 1},
		{name: "itself", from: "tcp:127.0.0.1:80", to: []string{"tcp:127.0.0.1:80"}, want: "tcp:127.0.0.1:80 to tcp:127.0.0.1:80: the relay would dial itself; give TO another address"},
		{name: "itself by a wildcard", from: "udp::80", to: []string{"udp:127.0.0.1:80"}, want: "udp::80 to udp:127.0.0.1:80: the relay would dial itself; give TO another address"},
		{name: "itself by a path", from: "unix:/run/x", to: []string{"unix:/run/../run/x"}, want: "unix:/run/x to unix:/run/../run/x: the relay would dial itself; give TO another address"},
		{name: "the same interface", from: "packet:eth0", to: []string{"packet:eth0"}, want: "packet:eth0 to packet:eth0: the relay would dial itself; give TO another address"},
		{name: "udp and tcp on one port", from: "tcp:127.0.0.1:80", to: []string{"tcp:127.0.0.1:81"}},
		{name: "any", from: "packet:any", to: []string{"packet:eth0"}, want: "packet:any is every interface at once and cannot send; name one interface"},
		{name: "cooked", from: "packet:eth0,cooked", to: []string{"packet:eth1"}, want: "packet: a cooked packet socket has no link header to send on; leave out cooked"},
		{name: "a loop", from: "packet:eth0,outgoing", to: []string{"packet:eth1"}, want: "packet:eth0,outgoing: the relay would see what it sends itself, for ever; leave out outgoing"},
		{name: "fd as TO", from: "tcp::80", to: []string{"fd:web"}, want: "fd:web: what systemd holds is a FROM; dial its address instead"},
		{name: "an id among several", from: "tcp::80", to: []string{"id:7", "unix:/x"}, want: "id:7 is one connection and cannot stand among several TO; make it the only one"},
		{name: "an id that is none", from: "id:web", to: []string{"unix:/x"}, want: `endpoint "id:web": column 4: want the number of an open socket`, column: 4},
		{name: "control", from: "tcp::80", to: []string{"unix:" + w.path("control")}, want: "unix:" + w.path("control") + " is sockd's own control socket; it is never a target"},
		{name: "no TO", from: "tcp::80", want: `relay "tcp::80": it has no TO`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := spec(t, tc.from, tc.to...)
			s.Balance = tc.balance
			err := w.eng.Check(s)
			if tc.want == "" {
				require.NoError(t, err)
				return
			}
			require.EqualError(t, err, tc.want)
			if syntax, ok := asSyntax(err); ok {
				require.Equal(t, tc.column, syntax.Column)
			}
		})
	}
}

func TestAnUnknownOptionHasItsColumn(t *testing.T) {
	w := newWorld(t)
	for _, tc := range []struct{ from, to, want string }{
		{"tcp:127.0.0.1:0,nonsense=1", "tcp:127.0.0.1:9", `endpoint "tcp:127.0.0.1:0,nonsense=1": column 17: `},
		{"tcp:127.0.0.1:0", "tcp:127.0.0.1:9,nonsense", `endpoint "tcp:127.0.0.1:9,nonsense": column 17: `},
	} {
		_, err := w.eng.Add(context.Background(), spec(t, tc.from, tc.to))
		require.ErrorIs(t, err, families.ErrSyntax)
		require.ErrorContains(t, err, tc.want)
	}
	require.Empty(t, w.eng.Relays())
}

func TestCloseEndsEverything(t *testing.T) {
	w := newWorld(t) // checks goroutines and descriptors
	l := serve(t, "tcp", "127.0.0.1:0", tellName("A"))
	r := w.mustAdd(spec(t, "tcp:127.0.0.1:0", "tcp:"+l.Addr().String()))
	d := w.mustAdd(spec(t, "udp:127.0.0.1:0", "udp:127.0.0.1:9"))
	var open []net.Conn
	for range 50 {
		_, c := mustName(t, r, 1)
		open = append(open, c)
	}
	c := mustDial(t, d)
	_, err := c.Write([]byte("x"))
	require.NoError(t, err)
	before := runtime.NumGoroutine()
	require.NoError(t, w.eng.Close())
	require.NoError(t, w.eng.Close())
	require.Less(t, runtime.NumGoroutine(), before)
	for _, c := range open {
		_, err := c.Read(make([]byte, 1))
		require.True(t, isReset(err), "got %v", err)
	}
	_, err = w.eng.Add(context.Background(), spec(t, "tcp:127.0.0.1:0", "tcp:"+l.Addr().String()))
	require.ErrorIs(t, err, syscall.ESHUTDOWN)
	require.Empty(t, w.eng.Relays())
}

// A relay whose FROM breaks stays in the list and says why; its sessions go on.
func TestABrokenFromIsToldAndRemoved(t *testing.T) {
	m := &meeting{world: newWorld(t)}
	l := serve(t, "tcp", "127.0.0.1:0", tellName("A"))
	held, target := m.target(mustEndpoint(t, "tcp:127.0.0.1:0"))
	require.NoError(t, held.Bind(target.Addr))
	listener, err := families.As[families.Listener](held)
	require.NoError(t, err)
	require.NoError(t, listener.Listen(0))
	d, err := families.As[families.Descriptor](held)
	require.NoError(t, err)
	shared := -1
	require.NoError(t, d.Control(func(fd int) (err error) { shared, err = syscall.Dup(fd); return err }))
	defer syscall.Close(shared)
	m.host.named["web"] = held
	r := m.mustAdd(spec(t, "fd:web", "tcp:"+l.Addr().String()))
	_, c := mustName(t, r, 1)
	require.NoError(t, syscall.Shutdown(shared, syscall.SHUT_RDWR)) // who shares it may
	require.Contains(t, m.host.mustEvent(t, "relay", "failed", r.ID).Cause, "invalid argument")
	require.Equal(t, "failed", m.mustRelay(r.ID).State)
	mustEcho(t, c, 1000)
	require.NoError(t, m.eng.Remove(r.ID, -1))
	m.host.mustEvent(t, "relay", "removed", r.ID)
}

func TestReplaceChangesWhatAListenerCanChange(t *testing.T) {
	w := newWorld(t)
	l := serve(t, "tcp", "127.0.0.1:0", tellName("A"))
	s := spec(t, "unix:"+w.path("s")+",mode=0600", "tcp:"+l.Addr().String())
	s.Name = "web"
	r := w.mustAdd(s)
	s.From = mustEndpoint(t, "unix:"+w.path("s")+",mode=0666,backlog=7")
	got, err := w.eng.Replace(context.Background(), s)
	require.NoError(t, err)
	require.Equal(t, r.ID, got.ID)
	require.Equal(t, s.From.String(), got.From)
	info, err := os.Stat(w.path("s"))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o666), info.Mode().Perm())
	name, _ := mustName(t, got, 1)
	require.Equal(t, "A", name)
}

func TestADatagramRelayIsGoneWhenItIsRemoved(t *testing.T) {
	m := parties(t, "udp", "udp")
	m.say(m.near, families.Name{}, []byte("x"))
	m.hear(m.far, []byte("x"))
	require.NoError(t, m.eng.Remove(m.relay.ID, -1))
	m.host.mustEvent(t, "relay", "removed", m.relay.ID)
	require.Empty(t, m.eng.Sessions())
	again := spec(t, m.relay.Local[0], "udp:127.0.0.1:9")
	m.mustAdd(again) // the address is free
}

// A client could bind a name where the daemon sees another file, or leave a link
// there: it gets no answers.
func TestNoAnswerGoesToASocketThatIsNotTheSenders(t *testing.T) {
	w := newWorld(t)
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: w.path("c"), Net: "unixgram"})
	require.NoError(t, err)
	defer l.Close()
	require.NoError(t, os.Chown(w.path("c"), 1, 1))
	require.NoError(t, os.Symlink("c", w.path("link")))
	for _, tc := range []struct {
		name   string
		sender *families.Creds
		mute   bool
	}{
		{"c", &families.Creds{UID: 1}, false},
		{"c", &families.Creds{UID: 0}, false}, // may write to it anyway
		{"c", &families.Creds{UID: 2}, true},
		{"c", nil, true},
		{"link", &families.Creds{UID: 1}, true},
		{"none", &families.Creds{UID: 1}, true},
	} {
		var leg leg
		leg.pinTo(w.path(tc.name), tc.sender)
		require.Equal(t, tc.mute, leg.mute, "%s %v", tc.name, tc.sender)
		if leg.pin != nil {
			require.NoError(t, leg.pin.Close())
		}
	}
}

// With an open socket as TO the relay said that it listened when its port was closed.
func TestARelayToAnOpenSocketServesOneClient(t *testing.T) {
	for _, tt := range []struct{ from, to string }{{"tcp", "unix"}, {"unixpacket", "unixpacket"}, {"udp", "unixpacket"}} {
		t.Run(tt.from, func(t *testing.T) {
			m := &meeting{world: newWorld(t)}
			var logs logBook
			m.eng.opts.Log = slog.New(&logs)
			given, far := m.connected(mustEndpoint(t, tt.to+":"+m.path("to")))
			m.host.open[7] = given
			from := tt.from + ":127.0.0.1:0"
			if tt.from == "unixpacket" {
				from = tt.from + ":" + m.path("from")
			}
			s := spec(t, from, "id:7")
			s.Name = "one"
			m.relay = m.mustAdd(s)
			require.Equal(t, "listening", m.relay.State)
			near := m.client(m.relay.Local[0])
			m.say(near, families.Name{}, []byte("hello"))
			m.hear(far, []byte("hello"))
			familytest.Eventually(t, "it takes nobody else", func() bool { return m.mustRelay(m.relay.ID).State == "draining" })
			id, found := m.eng.Lookup("one")
			require.True(t, found, "nobody has removed it")
			require.Equal(t, m.relay.ID, id)
			if tt.from == "udp" { // FROM stays for its one client: a second one is counted, and ends nothing
				m.say(m.client(m.relay.Local[0]), families.Name{}, []byte("me too"))
				familytest.Eventually(t, "it is not counted", func() bool { return m.mustRelay(m.relay.ID).Drops["busy"] == 1 })
				m.say(near, families.Name{}, []byte("still here"))
				m.hear(far, []byte("still here"))
			}
			require.NoError(t, far.Close())
			require.NoError(t, near.Close())
			m.host.mustEvent(t, "relay", "removed", m.relay.ID)
			familytest.Eventually(t, "its end is not logged", func() bool { return logs.has("INFO relay ended relay=one") })
			_, found = m.eng.Lookup("one")
			require.False(t, found)
		})
	}
}

// logBook keeps log lines.
type logBook struct {
	mu    sync.Mutex // guards lines
	lines []string
}

func (l *logBook) Enabled(context.Context, slog.Level) bool { return true }
func (l *logBook) WithAttrs([]slog.Attr) slog.Handler       { return l }
func (l *logBook) WithGroup(string) slog.Handler            { return l }

func (l *logBook) Handle(_ context.Context, r slog.Record) error {
	line := r.Level.String() + " " + r.Message
	r.Attrs(func(a slog.Attr) bool {
		line += " " + a.String()
		return true
	})
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, line)
	return nil
}

func (l *logBook) has(text string) bool { return l.count(text) > 0 }

func (l *logBook) count(text string) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, line := range l.lines {
		if strings.Contains(line, text) {
			n++
		}
	}
	return n
}

// A relay whose backend was down gave no reason afterwards, and logged nothing.
func TestARelaySaysWhyItsLastSessionFoundNoBackend(t *testing.T) {
	w := newWorld(t)
	var logs logBook
	w.eng.opts.Log = slog.New(&logs)
	dead, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	at := dead.Addr().String()
	require.NoError(t, dead.Close())
	s := spec(t, "tcp:127.0.0.1:0", "tcp:"+at)
	s.Name = "web"
	r := w.mustAdd(s)
	const failures = 5
	for range failures {
		network, address := endpoint(t, r)
		if c, err := net.Dial(network, address); err == nil { // or it was reset already
			_, err = c.Read(make([]byte, 1))
			require.Error(t, err)
			require.NoError(t, c.Close())
		}
	}
	familytest.Eventually(t, "a session is missing", func() bool { return w.mustRelay(r.ID).Total == failures })
	w.mustIdle(r.ID)
	got := w.mustRelay(r.ID)
	require.Equal(t, "listening", got.State)
	require.Equal(t, "dial tcp:"+at+": connection refused", got.Cause)
	require.Equal(t, model.Drops{"dial": failures}, got.Drops)
	require.Equal(t, got.Cause, w.host.mustEvent(t, "relay", "changed", r.ID).Cause)
	require.True(t, logs.has("WARN session found no backend relay=web"))
	require.Equal(t, 1, logs.count("session found no backend"), "a line for each would flood the log")

	serve(t, "tcp", at, tellName("A"))
	_, c := mustName(t, r, 1)
	require.Empty(t, w.mustRelay(r.ID).Cause)
	require.NoError(t, c.Close())
	w.mustIdle(r.ID)
	familytest.Eventually(t, "its end is not logged", func() bool { return logs.has("DEBUG session ended relay=web") || logs.has("session broke") })
}

// A port of 0 chooses one for FROM, and is nothing that can be dialled.
func TestPortZeroIsNoTarget(t *testing.T) {
	w := newWorld(t)
	for _, to := range []string{"tcp:127.0.0.1:0", "tcp:localhost:0", "tcp:[::1]:00"} {
		err := w.eng.Check(spec(t, "tcp:127.0.0.1:0", to))
		require.ErrorIs(t, err, families.ErrSyntax, to)
		require.ErrorContains(t, err, "port 0", to)
	}
	require.ErrorIs(t, w.eng.Check(spec(t, "udp:127.0.0.1:0", "udp:127.0.0.1:0")), families.ErrSyntax)
}

// Whoever reads where a relay listens may say so when replacing it.
func TestReplaceKnowsTheAddressThatTheSystemChose(t *testing.T) {
	for _, from := range []string{"tcp:127.0.0.1:0", "udp:127.0.0.1:0", "tcp:127.0.0.1:0,backlog=5"} {
		t.Run(from, func(t *testing.T) {
			w := newWorld(t)
			network, _, _ := strings.Cut(from, ":")
			s := spec(t, from, network+":127.0.0.1:9")
			s.Name = "web"
			r := w.mustAdd(s)
			again := spec(t, r.Local[0], network+":127.0.0.1:10")
			again.Name = "web"
			again.From.Options = s.From.Options
			got, err := w.eng.Replace(t.Context(), again)
			require.NoError(t, err)
			require.Equal(t, r.ID, got.ID, "it is the same relay")
			require.Equal(t, r.Local, got.Local)
			require.Equal(t, []string{network + ":127.0.0.1:10"}, got.To)
		})
	}
}
