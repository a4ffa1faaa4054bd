package local_test

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/familytest"
	"github.com/sockd/sockd/families/local"
	"github.com/stretchr/testify/require"
)

var count atomic.Int64

// dir is a directory with a short name: a socket's path has 108 bytes.
func dir(tb testing.TB) string {
	d, err := os.MkdirTemp("", "sockd")
	require.NoError(tb, err)
	tb.Cleanup(func() { require.NoError(tb, os.RemoveAll(d)) })
	return d
}

func newPath(t families.Type) func(testing.TB) families.Addr {
	return func(tb testing.TB) families.Addr { return addr(tb, t, filepath.Join(dir(tb), "s")) }
}

func newAbstract(t families.Type) func(testing.TB) families.Addr {
	return func(tb testing.TB) families.Addr {
		return addr(tb, t, fmt.Sprintf("@sockd-test-%d-%d", os.Getpid(), count.Add(1)))
	}
}

func addr(tb testing.TB, t families.Type, text string) families.Addr {
	return familytest.MustAddr(tb, local.Family, t, text)
}

// largest is what unix_dgram_sendmsg allows: the send buffer but for 32 bytes.
func largest(tb testing.TB, s families.Socket) int {
	o, err := families.As[families.Optioner](s)
	require.NoError(tb, err)
	v, err := o.Option("so_sndbuf")
	require.NoError(tb, err)
	n, err := strconv.Atoi(v)
	require.NoError(tb, err)
	return n - 32
}

func TestFamilyKeepsTheLaws(t *testing.T) {
	all := []string{"/run/x.sock", "x.sock", "./@x", "@x", "@", `/a\,b`, `@a\x00b`, `@\x00`, `/tmp/back\\slash`, "/tmp/spa ce", "/tmp/ünï", `/tmp/\xff`, `@\x01\x7f`, strings.Repeat("p", 108), "@" + strings.Repeat("a", 107)}
	bad := []string{"", `/tmp/a\b`, `/tmp/\x4`, "/tmp/a\x00b", `/tmp/a\x00b`, strings.Repeat("p", 109), "@" + strings.Repeat("a", 108)}
	cfg := familytest.Config{Addrs: map[families.Type][]string{}, Bad: map[families.Type][]string{}}
	for _, typ := range local.Family.Types() {
		cfg.Addrs[typ], cfg.Bad[typ] = all, bad
		spec := families.Spec{Type: typ}
		for kind, a := range map[string]func(testing.TB) families.Addr{"path": newPath(typ), "abstract": newAbstract(typ)} {
			c := familytest.Case{Name: typ.String() + " by " + kind, Spec: spec, Addr: a, Optioner: true}
			if typ.Messages() {
				c.Max = largest
			}
			if typ != families.Dgram {
				c.Listener, c.HalfCloser = true, true
				c.Deaf = func(tb testing.TB) families.Addr { return familytest.Deaf(tb, local.Family, spec, a(tb)) }
			}
			cfg.Cases = append(cfg.Cases, c)
		}
	}
	familytest.Run(t, local.Family, cfg)
}

func FuzzAddr(f *testing.F) {
	familytest.FuzzAddr(f, local.Family, "/run/x", "@x", "@", "./@x", `\x00`, `@\x00`, `\`, `\\`, `\x4`, "\xff", "a\x00b", `\,`, `\x40`)
}

// An address had a layer of escapes of its own below the endpoint's, so that a path
// that was printed by one named another file when it was typed into the other. There
// is one layer: an address is written as in an endpoint, and the endpoint has the
// bytes.
func TestAnAddressIsWrittenAsInAnEndpoint(t *testing.T) {
	set := families.Set{local.Family}
	for _, plain := range []string{"/tmp/a,b", `/tmp/a\b`, `/tmp/\x1b`, "/tmp/\x1b[31m", "@a\x00b", "/tmp/\xff\xfe", "/tmp/\ufffd", "/tmp/\u202e", "/tmp/a b\n", "/tmp/ü", "./@x"} {
		e := families.Endpoint{Network: "unix", Address: plain}
		back, err := families.ParseEndpoint(e.String())
		require.NoError(t, err)
		require.Equal(t, e, back)
		targets, err := set.Resolve(t.Context(), back)
		require.NoError(t, err)
		require.Equal(t, e.String(), "unix:"+targets[0].Addr.String())
		require.Equal(t, addr(t, families.Stream, families.Escape(plain)), targets[0].Addr)
		require.Equal(t, plain, targets[0].Addr.Scope().Path)
	}
}

func TestScopeIsThePathOrTheAbstractName(t *testing.T) {
	require.Equal(t, families.Scope{Path: "/run/x"}, addr(t, families.Stream, "/run/x").Scope())
	require.Equal(t, families.Scope{Path: "@a\x00b"}, addr(t, families.Stream, `@a\x00b`).Scope())
}

func TestThereIsNoProtocolToChoose(t *testing.T) {
	for _, word := range []string{"", "0", "unix"} {
		n, err := local.Family.ParseProtocol(families.Stream, word)
		require.NoError(t, err)
		require.Zero(t, n)
	}
	_, err := local.Family.ParseProtocol(families.Stream, "tcp")
	require.ErrorIs(t, err, families.ErrSyntax)
}

func open(tb testing.TB, t families.Type, options ...families.Option) families.Socket {
	return familytest.MustOpen(tb, local.Family, families.Spec{Type: t, Options: options})
}

func TestAStalePathIsReplacedAndALiveOneIsInUse(t *testing.T) {
	for _, typ := range local.Family.Types() {
		t.Run(typ.String(), func(t *testing.T) {
			familytest.NoLeaks(t)
			path := filepath.Join(dir(t), "s")
			require.NoError(t, orphan(path, typ))

			s := open(t, typ)
			require.NoError(t, s.Bind(addr(t, typ, path)), "nobody is behind it")
			require.ErrorIs(t, open(t, typ).Bind(addr(t, typ, path)), syscall.EADDRINUSE, "somebody is, who does not listen yet")
			if l, err := families.As[families.Listener](s); err == nil {
				require.NoError(t, l.Listen(0))
			}
			require.ErrorIs(t, open(t, typ).Bind(addr(t, typ, path)), syscall.EADDRINUSE)
			require.ErrorIs(t, open(t, families.Dgram).Bind(addr(t, families.Dgram, path)), syscall.EADDRINUSE, "nor for another type")
			if l, err := families.As[families.Listener](s); err == nil {
				_, err := l.Accept()
				require.ErrorIs(t, err, families.ErrAgain, "asking left no connection behind")
			}
		})
	}
}

// orphan leaves a socket file behind, as a process does that was killed.
func orphan(path string, t families.Type) error {
	kinds := map[families.Type]int{families.Stream: syscall.SOCK_STREAM, families.Dgram: syscall.SOCK_DGRAM, families.Seqpacket: syscall.SOCK_SEQPACKET}
	fd, err := syscall.Socket(syscall.AF_UNIX, kinds[t]|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer syscall.Close(fd)
	return syscall.Bind(fd, &syscall.SockaddrUnix{Name: path})
}

func TestAFileThatIsNoSocketIsNeverRemoved(t *testing.T) {
	d := dir(t)
	file, link := filepath.Join(d, "file"), filepath.Join(d, "link")
	require.NoError(t, os.WriteFile(file, []byte("precious"), 0o600))
	require.NoError(t, orphan(filepath.Join(d, "orphan"), families.Stream))
	require.NoError(t, os.Symlink(filepath.Join(d, "orphan"), link))
	for _, path := range []string{file, link, d} {
		require.ErrorIs(t, open(t, families.Stream).Bind(addr(t, families.Stream, path)), syscall.EADDRINUSE)
		require.FileExists(t, file)
	}
	_, err := os.Lstat(link)
	require.NoError(t, err)
}

func TestCloseRemovesThePathThatBindMade(t *testing.T) {
	d := dir(t)
	a := addr(t, families.Stream, filepath.Join(d, "s"))

	s := open(t, families.Stream)
	require.NoError(t, s.Bind(a))
	require.FileExists(t, a.String())
	require.NoError(t, s.Close())
	require.NoFileExists(t, a.String())

	// Somebody else's file with the same name stays.
	s = open(t, families.Stream)
	require.NoError(t, s.Bind(a))
	require.NoError(t, os.Remove(a.String()))
	require.NoError(t, orphan(a.String(), families.Stream))
	require.NoError(t, s.Close())
	require.FileExists(t, a.String())
}

func TestAnAdoptedSocketLeavesItsPath(t *testing.T) {
	a := newPath(families.Stream)(t)
	s := open(t, families.Stream)
	require.NoError(t, s.Bind(a))
	twin, err := local.Family.(families.Adopter).Adopt(familytest.Dup(t, s))
	require.NoError(t, err)
	require.NoError(t, twin.Close())
	require.FileExists(t, a.String())
}

func TestAtAloneLetsTheSystemPick(t *testing.T) {
	s := open(t, families.Stream)
	require.NoError(t, s.Bind(addr(t, families.Stream, "@")))
	require.Regexp(t, `^@[0-9a-f]{5}$`, s.Info().Local.String())
}

func TestFilesAndCredentialsComeWithMessages(t *testing.T) {
	for _, typ := range local.Family.Types() {
		t.Run(typ.String(), func(t *testing.T) {
			familytest.NoLeaks(t)
			a, b := pair(t, typ)
			o, err := families.As[families.Optioner](b)
			require.NoError(t, err)
			require.NoError(t, o.SetOption("so_passcred", ""))
			r, w, err := os.Pipe()
			require.NoError(t, err)
			defer r.Close()
			fds := []int{fd(t, w), fd(t, w)}
			_, err = a.Send(&families.Msg{Data: []byte("take these"), Files: fds})
			require.NoError(t, err)
			require.NoError(t, w.Close())

			m := families.Msg{Data: make([]byte, 100)}
			require.NoError(t, families.RecvWait(t.Context(), b, &m))
			require.Equal(t, "take these", string(m.Data))
			require.Len(t, m.Files, 2)
			require.Equal(t, &families.Creds{PID: int32(os.Getpid()), UID: uint32(os.Getuid()), GID: uint32(os.Getgid())}, m.Creds)
			for _, fd := range m.Files {
				flags, _, errno := syscall.Syscall(syscall.SYS_FCNTL, uintptr(fd), syscall.F_GETFD, 0)
				require.Zero(t, errno)
				require.Equal(t, uintptr(syscall.FD_CLOEXEC), flags)
			}
			_, err = syscall.Write(m.Files[1], []byte("x"))
			require.NoError(t, err)
			for _, fd := range m.Files {
				require.NoError(t, syscall.Close(fd))
			}
			got := make([]byte, 2)
			n, err := r.Read(got)
			require.NoError(t, err)
			require.Equal(t, "x", string(got[:n]))

			_, err = a.Send(&families.Msg{Data: []byte("alone")})
			require.NoError(t, err)
			require.NoError(t, families.RecvWait(t.Context(), b, &m))
			require.Empty(t, m.Files, "every field is overwritten")
		})
	}
}

func fd(t *testing.T, f *os.File) (n int) {
	rc, err := f.SyscallConn()
	require.NoError(t, err)
	require.NoError(t, rc.Control(func(fd uintptr) { n = int(fd) }))
	return n
}

func pair(t *testing.T, typ families.Type) (a, b families.Socket) {
	a, b = open(t, typ), open(t, typ)
	require.NoError(t, b.Bind(newAbstract(typ)(t)))
	if typ == families.Dgram {
		require.NoError(t, a.Connect(t.Context(), b.Info().Local))
		return a, b
	}
	l, err := families.As[families.Listener](b)
	require.NoError(t, err)
	require.NoError(t, l.Listen(0))
	require.NoError(t, a.Connect(t.Context(), b.Info().Local))
	c, err := l.Accept()
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close()) })
	return a, c
}

// What the peer said before it went is received before the end, the empty message
// too, although nobody had asked for credentials when it was sent.
func TestAnEmptyMessageOfAPeerThatIsGone(t *testing.T) {
	familytest.NoLeaks(t)
	a, b := pair(t, families.Seqpacket)
	_, err := a.Send(&families.Msg{})
	require.NoError(t, err)
	require.NoError(t, a.Close())
	m := families.Msg{Data: make([]byte, 10)}
	require.NoError(t, b.Recv(&m))
	require.Empty(t, m.Data)
	require.ErrorIs(t, b.Recv(&m), io.EOF)
	require.Nil(t, b.Info().Peer, "and connecting gave it no name")
}

// More descriptors than this process may open are an error, and none is left over.
func TestFilesThatDoNotFitAreAnError(t *testing.T) {
	familytest.NoLeaks(t)
	a, b := pair(t, families.Seqpacket)
	r, w, err := os.Pipe()
	require.NoError(t, err)
	defer r.Close()
	defer w.Close()
	_, err = a.Send(&families.Msg{Data: []byte("many"), Files: repeat(fd(t, w), 200)})
	require.NoError(t, err)
	m := families.Msg{Data: make([]byte, 100)}
	withFewFiles(t, func() { err = b.Recv(&m) })
	require.ErrorIs(t, err, families.ErrCut)
	require.Equal(t, "many", string(m.Data))
	require.Empty(t, m.Files)
	_, err = a.Send(&families.Msg{Data: []byte("x"), Files: repeat(fd(t, w), 254)})
	require.ErrorIs(t, err, syscall.EINVAL)
}

func repeat(n, times int) []int {
	out := make([]int, times)
	for i := range out {
		out[i] = n
	}
	return out
}

// withFewFiles calls f with a limit at which no 200 more files can be opened.
func withFewFiles(t *testing.T, f func()) {
	var old syscall.Rlimit
	require.NoError(t, syscall.Getrlimit(syscall.RLIMIT_NOFILE, &old))
	few := old
	few.Cur = 100
	require.NoError(t, syscall.Setrlimit(syscall.RLIMIT_NOFILE, &few))
	defer func() { require.NoError(t, syscall.Setrlimit(syscall.RLIMIT_NOFILE, &old)) }()
	f()
}

// A client that sends to an unconnected receiver whose queue is full waits
// without spinning, and goes on when there is room. poll(2) knows nothing of it.
func TestAFullReceiverIsWaitedFor(t *testing.T) {
	familytest.NoLeaks(t)
	to := open(t, families.Dgram)
	require.NoError(t, to.Bind(newAbstract(families.Dgram)(t)))
	from := open(t, families.Dgram)
	m := families.Msg{Data: []byte("x"), Peer: to.Info().Local.Sockaddr()}
	queued := 0
	for {
		if _, err := from.Send(&m); err != nil {
			require.ErrorIs(t, err, families.ErrAgain)
			break
		}
		queued++
	}
	sent := make(chan error, 1)
	go func() {
		_, err := families.SendAll(t.Context(), from, &families.Msg{Data: []byte("last"), Peer: to.Info().Local.Sockaddr()})
		sent <- err
	}()
	for range queued {
		got := families.Msg{Data: make([]byte, 10)}
		require.NoError(t, families.RecvWait(t.Context(), to, &got))
		require.Equal(t, "x", string(got.Data))
	}
	require.NoError(t, <-sent)
	got := families.Msg{Data: make([]byte, 10)}
	require.NoError(t, families.RecvWait(t.Context(), to, &got))
	require.Equal(t, "last", string(got.Data))
	require.Nil(t, to.NameAddr(got.Peer), "the sender has no name")
}

func BenchmarkFamily(b *testing.B) {
	var cfg familytest.Config
	for _, typ := range local.Family.Types() {
		cfg.Cases = append(cfg.Cases, familytest.Case{Spec: families.Spec{Type: typ}, Addr: newAbstract(typ), Listener: typ != families.Dgram})
	}
	familytest.Bench(b, local.Family, cfg)
}
