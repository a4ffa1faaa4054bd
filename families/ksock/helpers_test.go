package ksock_test

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/familytest"
	"github.com/sockd/sockd/families/inet"
	"github.com/sockd/sockd/families/ksock"
	"github.com/sockd/sockd/families/local"
	"github.com/stretchr/testify/require"
)

func TestQueuesTellWhatIsInThem(t *testing.T) {
	familytest.NoLeaks(t)
	a, b := tcpPair(t)
	_, err := a.Send(&families.Msg{Data: []byte("12345")})
	require.NoError(t, err)
	require.NoError(t, b.Wait(t.Context(), families.Readable))
	n, err := ksock.Inq(b)
	require.NoError(t, err)
	require.Equal(t, 5, n)
	familytest.Eventually(t, "the bytes are not acknowledged", func() bool {
		n, err := ksock.Outq(a)
		return err == nil && n == 0
	})
	x, _ := socketpair(t, syscall.SOCK_STREAM)
	_, err = x.Send(&families.Msg{Data: []byte("12345")})
	require.NoError(t, err)
	n, err = ksock.Outq(x)
	require.NoError(t, err)
	require.Positive(t, n, "nobody has read them")
	_, err = ksock.Inq(toy(t))
	require.ErrorIs(t, err, families.ErrNotSupported)
}

func toy(t *testing.T) families.Socket {
	return familytest.MustOpen(t, familytest.NewMem(), families.Spec{Type: families.Stream})
}

func TestTheUrgentByteHasAMark(t *testing.T) {
	familytest.NoLeaks(t)
	a, b := tcpPair(t)
	require.NoError(t, as[families.Optioner](t, b).SetOption("so_oobinline", ""))
	for _, m := range []families.Msg{{Data: []byte("ab")}, {Data: []byte("!"), Flags: families.FlagOOB}, {Data: []byte("cd")}} {
		_, err := a.Send(&m)
		require.NoError(t, err)
	}
	familytest.Eventually(t, "not all came", func() bool { n, err := ksock.Inq(b); return err == nil && n == 5 })
	// A read stops before the mark.
	for _, want := range []struct {
		text string
		mark bool
	}{{"ab", false}, {"!cd", true}} {
		mark, err := ksock.AtMark(b)
		require.NoError(t, err)
		require.Equal(t, want.mark, mark)
		m := families.Msg{Data: make([]byte, 10)}
		require.NoError(t, b.Recv(&m))
		require.Equal(t, want.text, string(m.Data))
	}
}

func TestTheUrgentByteAlone(t *testing.T) {
	familytest.NoLeaks(t)
	a, b := tcpPair(t)
	_, err := a.Send(&families.Msg{Data: []byte("!"), Flags: families.FlagOOB})
	require.NoError(t, err)
	m := families.Msg{}
	familytest.Eventually(t, "no urgent byte came", func() bool {
		m = families.Msg{Data: make([]byte, 10), Flags: families.FlagOOB}
		return b.Recv(&m) == nil
	})
	require.Equal(t, "!", string(m.Data))
	require.Equal(t, families.FlagOOB, m.Flags)
}

func TestPeerCredIsWhoConnected(t *testing.T) {
	a, _ := socketpair(t, syscall.SOCK_STREAM)
	c, err := ksock.PeerCred(a)
	require.NoError(t, err)
	require.Equal(t, families.Creds{PID: int32(os.Getpid()), UID: uint32(os.Geteuid()), GID: uint32(os.Getegid())}, c)
}

// stage is a listening unix socket at path/s with the given mode, in a directory
// that everybody may enter.
func stage(t *testing.T, mode os.FileMode) (dir string, l families.Socket) {
	t.Helper()
	dir, err := os.MkdirTemp("", "sockd")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	require.NoError(t, os.Chmod(dir, 0o755))
	path := filepath.Join(dir, "s")
	l = open(t, local.Family, families.Stream)
	require.NoError(t, l.Bind(familytest.MustAddr(t, local.Family, families.Stream, path)))
	require.NoError(t, as[families.Listener](t, l).Listen(0))
	require.NoError(t, os.Chmod(path, mode))
	return dir, l
}

func openDir(t *testing.T, path string) int {
	fd, err := syscall.Open(path, syscall.O_DIRECTORY|syscall.O_CLOEXEC, 0)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, syscall.Close(fd)) })
	return fd
}

func TestAPinnedPathIsDialledWhateverItsNameLeadsTo(t *testing.T) {
	familytest.NoLeaks(t)
	dir, l := stage(t, 0o600)
	target, err := ksock.OpenPath(openDir(t, dir), "s")
	require.NoError(t, err)
	defer func() { require.NoError(t, target.Close()); require.NoError(t, target.Close()) }()
	require.Equal(t, uint32(os.Geteuid()), target.UID)
	require.Equal(t, os.FileMode(0o600), target.Mode)

	require.NoError(t, os.Rename(filepath.Join(dir, "s"), filepath.Join(dir, "elsewhere")))
	s := open(t, local.Family, families.Stream)
	require.NoError(t, ksock.DialPath(t.Context(), s, target))
	p, err := families.AcceptWait(t.Context(), l)
	require.NoError(t, err)
	require.NoError(t, p.Close())
}

func TestADatagramReachesAPinnedPath(t *testing.T) {
	familytest.NoLeaks(t)
	path := filepath.Join(os.TempDir(), "sockd-pinned-"+time.Now().Format("150405.000000"))
	to := open(t, local.Family, families.Dgram)
	require.NoError(t, to.Bind(familytest.MustAddr(t, local.Family, families.Dgram, path)))
	target, err := ksock.OpenPath(ksock.AtCWD, path)
	require.NoError(t, err)
	defer target.Close()
	from := open(t, local.Family, families.Dgram)
	_, err = from.Send(&families.Msg{Data: []byte("x"), Peer: target.SendName()})
	require.NoError(t, err)
	m := families.Msg{Data: make([]byte, 10)}
	require.NoError(t, families.RecvWait(t.Context(), to, &m))
}

func TestOnlySocketsArePinned(t *testing.T) {
	familytest.NoLeaks(t)
	dir, _ := stage(t, 0o600)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "file"), nil, 0o600))
	require.NoError(t, os.Symlink("s", filepath.Join(dir, "link")))
	d := openDir(t, dir)
	for name, want := range map[string]error{"file": syscall.ENOTSOCK, "link": syscall.ELOOP, "none": syscall.ENOENT, ".": syscall.ENOTSOCK} {
		_, err := ksock.OpenPath(d, name)
		require.ErrorIs(t, err, want, name)
	}
}

const nobody = 65534

func TestAnotherUserIsHeldToTheModeOfThePath(t *testing.T) {
	familytest.Need(t, familytest.Root())
	familytest.NoLeaks(t)
	for _, row := range []struct {
		mode os.FileMode
		want error
	}{{0o600, syscall.EACCES}, {0o666, nil}} {
		dir, l := stage(t, row.mode)
		target, err := ksock.OpenPath(openDir(t, dir), "s")
		require.NoError(t, err)
		s := open(t, local.Family, families.Stream)
		err = ksock.AsUser(nobody, nobody, nil, func() error { return ksock.DialPath(t.Context(), s, target) })
		require.NoError(t, target.Close())
		if row.want != nil {
			require.ErrorIs(t, err, row.want)
			continue
		}
		require.NoError(t, err)
		p, err := families.AcceptWait(t.Context(), l)
		require.NoError(t, err)
		c, err := ksock.PeerCred(p)
		require.NoError(t, err)
		require.Equal(t, uint32(nobody), c.UID, "the peer sees the user")
		require.Equal(t, uint32(nobody), c.GID)
		require.NoError(t, p.Close())
	}
}

// No other goroutine ever gets the thread of somebody else, and groups count.
func TestAsUserLeavesNoTrace(t *testing.T) {
	familytest.Need(t, familytest.Root())
	familytest.NoLeaks(t)
	const group = 54321
	dir, _ := stage(t, 0o660)
	require.NoError(t, os.Chown(filepath.Join(dir, "s"), 0, group))
	target, err := ksock.OpenPath(openDir(t, dir), "s")
	require.NoError(t, err)
	defer target.Close()
	dial := func(groups []uint32) error {
		s, err := local.Family.Open(context.Background(), families.Spec{Type: families.Stream})
		if err != nil {
			return err
		}
		defer s.Close()
		return ksock.AsUser(nobody, nobody, groups, func() error { return ksock.DialPath(context.Background(), s, target) })
	}
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			if err := dial([]uint32{group}); err != nil {
				t.Errorf("as a member: %v", err)
			}
			if err := dial(nil); !errors.Is(err, syscall.EACCES) {
				t.Errorf("as a stranger: got %v, want EACCES", err)
			}
		})
	}
	all.Wait()
	// Every thread that is left is root's.
	tasks, err := filepath.Glob("/proc/self/task/*/status")
	require.NoError(t, err)
	for _, task := range tasks {
		familytest.Eventually(t, "a thread kept another user", func() bool {
			b, err := os.ReadFile(task)
			return err != nil || !hasEffective(string(b), nobody)
		})
	}
	require.NoError(t, ksock.AsUser(0, 0, nil, func() error { return nil }))
	boom := errors.New("boom")
	require.ErrorIs(t, ksock.AsUser(nobody, nobody, nil, func() error { return boom }), boom)
}

// hasEffective tells whether the status of a thread names uid as effective.
func hasEffective(status string, uid int) bool {
	for line := range strings.Lines(status) {
		if f := strings.Fields(line); len(f) > 2 && f[0] == "Uid:" {
			return f[2] == strconv.Itoa(uid)
		}
	}
	return false
}

func TestConnectThatNobodyTakesIsTriedAgainUntilThereIsRoom(t *testing.T) {
	familytest.NoLeaks(t)
	f, spec := local.Family, families.Spec{Type: families.Stream}
	l := open(t, f, families.Stream)
	require.NoError(t, l.Bind(familytest.MustAddr(t, f, families.Stream, "@")))
	require.NoError(t, as[families.Listener](t, l).Listen(1))
	to := l.Info().Local
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	for familytest.MustOpen(t, f, spec).Connect(ctx, to) == nil {
	}
	late := make(chan error, 1)
	s := open(t, f, families.Stream)
	go func() { late <- s.Connect(t.Context(), to) }()
	for {
		p, err := families.AcceptWait(t.Context(), l)
		require.NoError(t, err)
		require.NoError(t, p.Close())
		select {
		case err := <-late:
			require.NoError(t, err)
			return
		default:
		}
	}
}

func TestARefusedConnectCanBeTriedAgain(t *testing.T) {
	familytest.NoLeaks(t)
	gone := open(t, inet.Family, families.Stream)
	require.NoError(t, gone.Bind(familytest.MustAddr(t, inet.Family, families.Stream, "127.0.0.1:0")))
	to := gone.Info().Local
	s := open(t, inet.Family, families.Stream)
	for range 3 {
		require.ErrorIs(t, s.Connect(t.Context(), to), syscall.ECONNREFUSED)
	}
	require.NoError(t, as[families.Listener](t, gone).Listen(0))
	require.NoError(t, s.Connect(t.Context(), to))
	require.ErrorIs(t, s.Connect(t.Context(), to), syscall.EISCONN)
	require.Equal(t, families.Connected, s.Info().State)
}

func TestTCPStatesAreTheKernels(t *testing.T) {
	familytest.NoLeaks(t)
	a, b := tcpPair(t)
	require.Equal(t, families.Connected, a.Info().State)
	require.NoError(t, a.(families.HalfCloser).CloseWrite())
	familytest.Eventually(t, "the peer saw no FIN", func() bool { return b.Info().State == families.HalfClosed })
	require.Equal(t, families.HalfClosed, a.Info().State)
	require.NoError(t, b.(families.HalfCloser).CloseWrite())
	familytest.Eventually(t, "both ended", func() bool { return a.Info().State == families.Closed && b.Info().State == families.Closed })
}

func TestConnectingIsAState(t *testing.T) {
	familytest.NoLeaks(t)
	spec := families.Spec{Type: families.Stream}
	deaf := familytest.Deaf(t, inet.Family, spec, familytest.MustAddr(t, inet.Family, families.Stream, "127.0.0.1:0"))
	s := open(t, inet.Family, families.Stream)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Connect(ctx, deaf) }()
	familytest.Eventually(t, "it is not connecting", func() bool { return s.Info().State == families.Connecting })
	cancel()
	require.ErrorIs(t, <-ended, context.Canceled)
	// Not new: getsockname(2) goes on to show the port that had been picked.
	require.Equal(t, families.Bound, s.Info().State)
}

func TestReadingCanEndAlone(t *testing.T) {
	familytest.NoLeaks(t)
	for name, make := range map[string]func() (a, b families.Socket){
		"tcp":       func() (a, b families.Socket) { return tcpPair(t) },
		"unix":      func() (a, b families.Socket) { return socketpair(t, syscall.SOCK_STREAM) },
		"seqpacket": func() (a, b families.Socket) { return socketpair(t, syscall.SOCK_SEQPACKET) },
	} {
		a, b := make()
		require.NoError(t, as[families.HalfCloser](t, a).CloseRead(), name)
		require.Equal(t, families.HalfClosed, a.Info().State, name)
		m := families.Msg{Data: []byte("still")}
		_, err := a.Send(&m)
		require.NoError(t, err, name)
		m = families.Msg{Data: []byte("0123456789")}
		require.NoError(t, families.RecvWait(t.Context(), b, &m), name)
		require.Equal(t, "still", string(m.Data), name)
		require.ErrorIs(t, a.Recv(&m), io.EOF, name)
		require.NoError(t, as[families.HalfCloser](t, a).CloseWrite(), name)
		if name != "tcp" {
			require.Equal(t, families.Closed, a.Info().State, name)
		}
	}
	require.ErrorIs(t, open(t, inet.Family, families.Stream).(families.HalfCloser).CloseWrite(), syscall.ENOTCONN)
}
