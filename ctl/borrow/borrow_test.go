package borrow

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/familytest"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// asNobody names the function that the test binary runs instead of its tests,
// when a test starts it again as another user.
const asNobody = "SOCKD_TEST_AS_NOBODY"

// nobody is a user without rights.
const nobody = 65534

func TestMain(m *testing.M) {
	if what := os.Getenv(asNobody); what != "" {
		if err := errands[what](os.Args[1:]); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// errands are what a test has done by a user without rights.
var errands = map[string]func(args []string) error{
	"bind": func(args []string) error {
		fd, err := socket("unix")
		if err != nil {
			return err
		}
		return Bind(fd, args[0])
	},
	"connect": func(args []string) error {
		_, err := Dial(context.Background(), "unix", args[0])
		return err
	},
	"give away": func(args []string) error {
		_, err := ListenAt("unix", args[0], 0, Access{User: "root"})
		return err
	},
	"netns": func(args []string) error {
		_, err := OpenIn(args[0], "inet", "dgram", 0, "")
		return err
	},
}

// runAsNobody runs an errand and returns what it printed.
func runAsNobody(t *testing.T, errand string, args ...string) string {
	t.Helper()
	familytest.Need(t, familytest.Root())
	// The test binary lies where nobody may not go: hand it over, open.
	exe, err := os.Open("/proc/self/exe")
	require.NoError(t, err)
	defer exe.Close()
	cmd := exec.Command("/proc/self/fd/3", args...)
	cmd.ExtraFiles = []*os.File{exe}
	cmd.Env = append(os.Environ(), asNobody+"="+errand)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

// openDirectory is a temporary directory that everybody may enter.
func openDirectory(t *testing.T, mode os.FileMode) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "sockd-borrow-")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	require.NoError(t, os.Chmod(dir, mode))
	return dir
}

func mustSocket(t *testing.T, network string) int {
	t.Helper()
	fd, err := socket(network)
	require.NoError(t, err)
	t.Cleanup(func() { _ = unix.Close(fd) })
	return fd
}

func localName(t *testing.T, fd int) string {
	t.Helper()
	sa, err := unix.Getsockname(fd)
	require.NoError(t, err)
	return sa.(*unix.SockaddrUnix).Name
}

func TestBindShowsThePathFromTheRoot(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	for addr, want := range map[string]string{
		"app":                              dir + "/app",
		"./@x":                             dir + "/@x",
		"../" + filepath.Base(dir) + "/up": dir + "/../" + filepath.Base(dir) + "/up",
		dir + "/abs":                       dir + "/abs",
		"@sockd-test-" + filepath.Base(filepath.Dir(dir)): "@sockd-test-" + filepath.Base(filepath.Dir(dir)),
	} {
		t.Run(addr, func(t *testing.T) {
			fd := mustSocket(t, "unix")
			require.NoError(t, Bind(fd, addr))
			require.Equal(t, want, localName(t, fd))
			absolute, err := Absolute(addr)
			require.NoError(t, err)
			require.Equal(t, want, absolute)
		})
	}
}

// x/sys/unix refused the longest that the kernel takes: an abstract name of 107
// bytes, and a path of 108, which has no room for its NUL.
func TestTheLongestAddressesWork(t *testing.T) {
	dir := openDirectory(t, 0o755)
	for name, addr := range map[string]string{
		"a path":           dir + "/" + strings.Repeat("p", families.MaxUnixPath-len(dir)-1),
		"an abstract name": "@" + fmt.Sprintf("%-*d", families.MaxAbstractName, os.Getpid()),
	} {
		t.Run(name, func(t *testing.T) {
			l := mustSocket(t, "unix")
			require.NoError(t, Bind(l, addr))
			require.NoError(t, Listen(l, 0))
			require.NoError(t, Connect(context.Background(), mustSocket(t, "unix"), addr))
			require.ErrorIs(t, Bind(mustSocket(t, "unix"), addr), unix.EADDRINUSE)
		})
	}
	server, addr := mustSocket(t, "unixgram"), "@"+fmt.Sprintf("%-*d", families.MaxAbstractName, -os.Getpid())
	require.NoError(t, Bind(server, addr))
	require.NoError(t, SendTo(ended(), mustSocket(t, "unixgram"), []byte("hello"), addr))
	buf := make([]byte, 10)
	n, err := unix.Read(server, buf)
	require.NoError(t, err)
	require.Equal(t, "hello", string(buf[:n]))
}

// From a deep directory a short name can be reached; what cannot be bound is told as
// what it is, and not by an errno.
func TestAPathThatIsTooLongFromTheRoot(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("d", 120))
	require.NoError(t, os.Mkdir(dir, 0o755))
	t.Chdir(dir)
	l := mustSocket(t, "unix")
	require.ErrorIs(t, Bind(l, "app"), families.ErrSyntax)
	require.NoFileExists(t, "app")
	_, err := Absolute("app")
	require.ErrorIs(t, err, families.ErrSyntax)

	require.NoError(t, unix.Bind(l, &unix.SockaddrUnix{Name: "app"}))
	require.NoError(t, Listen(l, 0))
	require.NoError(t, Connect(context.Background(), mustSocket(t, "unix"), "app"))
}

func TestTheSystemPicksAName(t *testing.T) {
	fd := mustSocket(t, "unix")
	require.NoError(t, Bind(fd, "@"))
	require.Regexp(t, `^@[0-9a-f]{5}$`, localName(t, fd))
}

func TestAStalePathIsReplacedAndALiveOneIsNot(t *testing.T) {
	for _, network := range []string{"unix", "unixgram", "unixpacket"} {
		t.Run(network, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "app")
			first, err := ListenAt(network, path, 1, Access{})
			require.NoError(t, err)
			for _, other := range []string{"unix", "unixgram", "unixpacket"} {
				require.ErrorIs(t, Bind(mustSocket(t, other), path), unix.EADDRINUSE, "%s on a live %s", other, network)
			}
			require.NoError(t, unix.Close(first))
			require.NoError(t, Bind(mustSocket(t, network), path), "stale")
		})
	}
}

// Of two that bound one path before they listened, both were told yes, and the first
// could not be reached any more.
func TestAPathThatIsBoundIsAliveBeforeItListens(t *testing.T) {
	for _, network := range []string{"unix", "unixgram", "unixpacket"} {
		t.Run(network, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "app")
			first := mustSocket(t, network)
			require.NoError(t, Bind(first, path))
			for _, other := range []string{"unix", "unixgram", "unixpacket"} {
				require.ErrorIs(t, Bind(mustSocket(t, other), path), unix.EADDRINUSE, "%s on a bound %s", other, network)
			}
			if network != "unixgram" {
				require.NoError(t, Listen(first, 0))
			}
			require.NoError(t, Connect(ended(), mustSocket(t, network), path), "the first is reached")
		})
	}
}

// A server that starts again takes its path back while a connection of its
// predecessor still lives: that one has the path as its name, and not the file.
func TestAPathWhoseListenerIsGoneIsStaleWhileItsConnectionsLive(t *testing.T) {
	path := filepath.Join(t.TempDir(), "app")
	l, err := ListenAt("unix", path, 1, Access{})
	require.NoError(t, err)
	require.NoError(t, Connect(ended(), mustSocket(t, "unix"), path))
	c, _, err := unix.Accept(l)
	require.NoError(t, err)
	defer unix.Close(c)
	require.NoError(t, unix.Close(l))
	require.NoError(t, Bind(mustSocket(t, "unix"), path))
}

func TestAPathWithAFullBacklogIsAlive(t *testing.T) {
	path := filepath.Join(t.TempDir(), "app")
	l, err := ListenAt("unix", path, 1, Access{})
	require.NoError(t, err)
	defer unix.Close(l)
	fillBacklog(t, path)
	require.ErrorIs(t, Bind(mustSocket(t, "unix"), path), unix.EADDRINUSE)
}

// fillBacklog connects until nobody more fits.
func fillBacklog(t *testing.T, path string) {
	t.Helper()
	for range 10 {
		if err := Connect(ended(), mustSocket(t, "unix"), path); err != nil {
			require.ErrorIs(t, err, context.Canceled)
			return
		}
	}
	t.Fatal("the backlog has no bound")
}

// ended is a context that has ended: one attempt.
func ended() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

func TestOtherFilesAreNeverReplaced(t *testing.T) {
	dir := t.TempDir()
	target, err := ListenAt("unix", filepath.Join(dir, "stale"), 1, Access{})
	require.NoError(t, err)
	require.NoError(t, unix.Close(target))
	file, link := filepath.Join(dir, "file"), filepath.Join(dir, "link")
	require.NoError(t, os.WriteFile(file, []byte("precious"), 0o600))
	require.NoError(t, os.Symlink(filepath.Join(dir, "stale"), link))
	for _, path := range []string{file, link, dir} {
		require.ErrorIs(t, Bind(mustSocket(t, "unix"), path), unix.EADDRINUSE, path)
		_, err := os.Lstat(path)
		require.NoError(t, err)
	}
}

func TestConnectWaitsForAFullBacklog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "app")
	l, err := ListenAt("unix", path, 1, Access{})
	require.NoError(t, err)
	defer unix.Close(l)
	fillBacklog(t, path)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, Connect(ctx, mustSocket(t, "unix"), path), context.DeadlineExceeded)

	done := make(chan error, 1)
	fd := mustSocket(t, "unix")
	go func() { done <- Connect(context.Background(), fd, path) }()
	c, _, err := unix.Accept(l)
	require.NoError(t, err)
	defer unix.Close(c)
	require.NoError(t, <-done)
}

func TestSendToWaitsForAFullQueue(t *testing.T) {
	path := filepath.Join(t.TempDir(), "app")
	server := mustSocket(t, "unixgram")
	require.NoError(t, Bind(server, path))
	client := mustSocket(t, "unixgram")
	sent := 0
	for ; ; sent++ {
		err := SendTo(ended(), client, fmt.Appendf(nil, "message %d", sent), path)
		if err != nil {
			require.ErrorIs(t, err, context.Canceled)
			break
		}
		require.Less(t, sent, 10000)
	}
	done := make(chan error, 1)
	go func() { done <- SendTo(context.Background(), client, []byte("the last"), path) }()
	buf := make([]byte, 100)
	n, err := unix.Read(server, buf)
	require.NoError(t, err)
	require.Equal(t, "message 0", string(buf[:n]))
	require.NoError(t, <-done)
	require.Error(t, SendTo(ended(), client, nil, path+"x"), "nobody is there")
}

func TestThePeerSeesTheCallerAndNotWhoLentTheSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "app")
	l, err := ListenAt("unix", path, 0, Access{})
	require.NoError(t, err)
	defer unix.Close(l)
	fd, err := Dial(context.Background(), "unix", path)
	require.NoError(t, err)
	defer unix.Close(fd)
	creds, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	require.NoError(t, err)
	require.Equal(t, int32(os.Getpid()), creds.Pid)
}

func TestListenAtMakesTheFileAsAsked(t *testing.T) {
	familytest.Need(t, familytest.Root())
	before := unix.Umask(0o022)
	defer unix.Umask(before)
	tests := []struct {
		name     string
		access   Access
		mode     fs.FileMode
		uid, gid uint32
	}{
		{"everybody", Access{Mode: "666"}, 0o666, 0, 0},
		{"nobody else", Access{Mode: "0600"}, 0o600, 0, 0},
		{"a group", Access{Mode: "660", Group: "65534"}, 0o660, 0, 65534},
		{"a user by name", Access{User: "root"}, 0o755, 0, 0},
		{"a user by number", Access{User: "65534"}, 0o755, 65534, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "app")
			fd, err := ListenAt("unix", path, 0, tt.access)
			require.NoError(t, err)
			defer unix.Close(fd)
			info, err := os.Stat(path)
			require.NoError(t, err)
			require.Equal(t, tt.mode, info.Mode().Perm())
			st := info.Sys().(*syscall.Stat_t)
			require.Equal(t, [2]uint32{tt.uid, tt.gid}, [2]uint32{st.Uid, st.Gid})
			_, err = net.Dial("unix", path)
			require.NoError(t, err)
		})
	}
	for _, bad := range []Access{{Mode: "8"}, {Mode: "77777"}, {Mode: "rw"}, {User: "no such user"}, {Group: "no such group"}} {
		path := filepath.Join(t.TempDir(), "app")
		_, err := ListenAt("unix", path, 0, bad)
		require.ErrorIs(t, err, families.ErrSyntax, "%+v", bad)
		require.NoFileExists(t, path)
	}
}

func TestNetworksThatAreTheCallers(t *testing.T) {
	for network, want := range map[string]bool{"unix": true, "unixgram": true, "unixpacket": true, "tcp": false, "packet": false, "": false} {
		require.Equal(t, want, IsLocal(network), network)
	}
	_, err := Dial(context.Background(), "tcp", "/x")
	require.ErrorIs(t, err, families.ErrNotSupported)
	_, err = ListenAt("tcp", "/x", 0, Access{})
	require.ErrorIs(t, err, families.ErrNotSupported)
}

func TestDirIsTheDirectoryAndTheName(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	for _, addr := range []string{dir + "/app", "app", "./app"} {
		fd, name, err := Dir(addr)
		require.NoError(t, err)
		require.Equal(t, "app", name)
		got, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
		require.NoError(t, err)
		require.Equal(t, dir, got)
		_, err = unix.Read(fd, make([]byte, 1))
		require.ErrorIs(t, err, unix.EBADF, "O_PATH: it names, and opens nothing")
		require.NoError(t, unix.Close(fd))
	}
	for addr, want := range map[string]error{"@x": families.ErrNotSupported, "/nonexistent/x": unix.ENOENT, "/": unix.EISDIR, "..": unix.EISDIR, "": families.ErrSyntax} {
		_, _, err := Dir(addr)
		require.ErrorIs(t, err, want, addr)
	}
}

func TestAUserWithoutRightsGetsTheKernelsAnswer(t *testing.T) {
	familytest.Need(t, familytest.Root())
	mine, everybodys := openDirectory(t, 0o755), openDirectory(t, 0o777)
	private := filepath.Join(everybodys, "private")
	l, err := ListenAt("unix", private, 0, Access{Mode: "600"})
	require.NoError(t, err)
	defer unix.Close(l)
	public := filepath.Join(everybodys, "public")
	l2, err := ListenAt("unix", public, 0, Access{Mode: "666"})
	require.NoError(t, err)
	defer unix.Close(l2)
	// A stale socket of root in a directory where only its owner may unlink.
	sticky := openDirectory(t, 0o777|os.ModeSticky)
	stale := filepath.Join(sticky, "stale")
	fd, err := ListenAt("unix", stale, 0, Access{Mode: "666"})
	require.NoError(t, err)
	require.NoError(t, unix.Close(fd))

	tests := []struct{ name, errand, path, want string }{
		{"bind where he may not write", "bind", mine + "/app", "permission denied"},
		{"bind where he may", "bind", everybodys + "/app", ""},
		{"connect to what is private", "connect", private, "permission denied"},
		{"connect to what is public", "connect", public, ""},
		{"bind over a private one that lives", "bind", private, "address already in use"},
		{"replace what he may not unlink", "bind", stale, "operation not permitted"},
		{"enter a network namespace", "netns", "/proc/self/ns/net", "operation not permitted"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := runAsNobody(t, tt.errand, tt.path)
			if tt.want == "" {
				require.Empty(t, got)
				return
			}
			require.Contains(t, got, tt.want)
		})
	}
	require.Contains(t, runAsNobody(t, "give away", everybodys+"/given"), "chown: operation not permitted")
	require.NoFileExists(t, everybodys+"/given", "what failed leaves no file")
	info, err := os.Stat(everybodys + "/app")
	require.NoError(t, err)
	require.Equal(t, uint32(nobody), info.Sys().(*syscall.Stat_t).Uid, "the file is the caller's")
}

func TestASocketInAnotherNetworkNamespace(t *testing.T) {
	familytest.NoLeaks(t)
	t.Run("namespace", func(t *testing.T) {
		ns := familytest.NewNS(t)
		for _, name := range []string{ns.Name(), "/run/netns/" + ns.Name()} {
			fd, err := OpenIn(name, "inet", "dgram", 0, "")
			require.NoError(t, err)
			require.NoError(t, unix.Bind(fd, &unix.SockaddrInet4{Port: 4711, Addr: [4]byte{127, 0, 0, 1}}))
			out, err := ns.Command("ss", "-Huln", "sport", "=", "4711").Output()
			require.NoError(t, err)
			require.Contains(t, string(out), "127.0.0.1:4711", "it is in the namespace")
			out, err = exec.Command("ss", "-Huln", "sport", "=", "4711").Output()
			require.NoError(t, err)
			require.NotContains(t, string(out), "127.0.0.1:4711", "this process is where it was")
			require.NoError(t, unix.Close(fd))
		}
	})
}

func TestSpecOfASocketElsewhere(t *testing.T) {
	tests := []struct {
		family, typ string
		protocol    int
		name        string
		want        spec
	}{
		{"inet", "stream", 0, "", spec{unix.AF_INET, unix.SOCK_STREAM, 0}},
		{"inet6", "raw", 0, "icmpv6", spec{unix.AF_INET6, unix.SOCK_RAW, unix.IPPROTO_ICMPV6}},
		{"inet", "raw", 89, "", spec{unix.AF_INET, unix.SOCK_RAW, 89}},
		{"unix", "seqpacket", 0, "", spec{unix.AF_UNIX, unix.SOCK_SEQPACKET, 0}},
		{"packet", "raw", 0x88b5, "", spec{unix.AF_PACKET, unix.SOCK_RAW, int(htons(0x88b5))}},
		{"packet", "dgram", 0, "arp", spec{unix.AF_PACKET, unix.SOCK_DGRAM, int(htons(unix.ETH_P_ARP))}},
	}
	for _, tt := range tests {
		got, err := parseSpec(tt.family, tt.typ, tt.protocol, tt.name)
		require.NoError(t, err)
		require.Equal(t, tt.want, got)
	}
	for _, bad := range [][3]string{{"ipx", "dgram", ""}, {"inet", "rdm", ""}, {"inet", "raw", "arp"}, {"packet", "raw", "icmp"}} {
		_, err := parseSpec(bad[0], bad[1], 0, bad[2])
		require.ErrorIs(t, err, families.ErrSyntax, "%v", bad)
	}
	_, err := OpenIn("no-such-namespace", "inet", "dgram", 0, "")
	require.ErrorIs(t, err, families.ErrNotFound)
}

func TestMemfdHoldsTheData(t *testing.T) {
	for _, size := range []int{0, 1, 1 << 20} {
		fd, err := Memfd(make([]byte, size))
		require.NoError(t, err)
		var st unix.Stat_t
		require.NoError(t, unix.Fstat(fd, &st))
		require.Equal(t, int64(size), st.Size)
		require.NoError(t, unix.Close(fd))
	}
}
