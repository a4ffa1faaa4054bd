package systemd

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// childEnv makes the test binary play a service: the activated one, which calls
// Files and prints a report, or the one of service_test.go.
const childEnv = "SOCKD_TEST_ACTIVATED"

func TestMain(m *testing.M) {
	switch mode := os.Getenv(childEnv); mode {
	case "":
	case "service":
		os.Exit(service())
	case "store":
		os.Exit(storing())
	default:
		os.Exit(activated(mode))
	}
	code := m.Run()
	if programsDir != "" {
		_ = os.RemoveAll(programsDir) // a temporary folder
	}
	os.Exit(code)
}

// A report is what the activated child saw.
type report struct {
	Files []reportedFile
	Err   string
	Again int      // what a second call of Files gave
	Env   []string // LISTEN_ variables that are left
	Open  []int    // descriptors that are left once Files' result is closed
}

type reportedFile struct {
	Name                 string
	Nonblock, CloseOnExe bool
	Socket               string // its bound address
	Listener             bool
}

// activated is the child. In mode "own" the descriptors are for it, in mode
// "other" they are for process 1. Only it knows its pid, so it sets LISTEN_PID.
func activated(mode string) int {
	pid := os.Getpid()
	if mode == "other" {
		pid = 1
	}
	os.Setenv("LISTEN_PID", strconv.Itoa(pid))
	if os.Getenv("LISTEN_PIDFDID") == "own" {
		ino, err := pidfdInode()
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		os.Setenv("LISTEN_PIDFDID", strconv.FormatUint(ino, 10))
	}

	before := openSockets()
	r := report{}
	files, err := Files()
	if err != nil {
		r.Err = err.Error()
	}
	for _, f := range files {
		r.Files = append(r.Files, look(f))
		if err := f.Close(); err != nil {
			r.Err = err.Error()
		}
	}
	again, _ := Files()
	r.Again = len(again)
	for _, v := range os.Environ() {
		if strings.HasPrefix(v, "LISTEN_") {
			r.Env = append(r.Env, v)
		}
	}
	r.Open = openSockets()
	if mode == "other" && len(before) != len(r.Open) {
		r.Err = fmt.Sprintf("sockets of another process were touched: %v, then %v", before, r.Open)
	}
	if err := json.NewEncoder(os.Stdout).Encode(r); err != nil {
		return 1
	}
	return 0
}

func look(f File) reportedFile {
	flags, _ := unix.FcntlInt(uintptr(f.FD), unix.F_GETFL, 0)
	fdFlags, _ := unix.FcntlInt(uintptr(f.FD), unix.F_GETFD, 0)
	listening, _ := unix.GetsockoptInt(f.FD, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	r := reportedFile{
		Name:       f.Name,
		Nonblock:   flags&unix.O_NONBLOCK != 0,
		CloseOnExe: fdFlags&unix.FD_CLOEXEC != 0,
		Listener:   listening == 1,
	}
	if sa, err := unix.Getsockname(f.FD); err == nil {
		if u, ok := sa.(*unix.SockaddrUnix); ok {
			r.Socket = u.Name
		}
	}
	return r
}

// openSockets lists the descriptors of this process that are sockets.
func openSockets() []int {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		panic(err)
	}
	var fds []int
	for _, e := range entries {
		if to, _ := os.Readlink("/proc/self/fd/" + e.Name()); strings.HasPrefix(to, "socket:") {
			fd, _ := strconv.Atoi(e.Name())
			fds = append(fds, fd)
		}
	}
	return fds
}

// mustActivate runs the child with descriptors from 3 on and env beside its own.
func mustActivate(t *testing.T, mode string, files []*os.File, env ...string) report {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	// The race detector would linger for a second at each exit.
	cmd.Env = append(append(os.Environ(), childEnv+"="+mode, "GORACE=atexit_sleep_ms=0"), env...)
	cmd.ExtraFiles = files
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	require.NoError(t, err)
	var r report
	require.NoError(t, json.Unmarshal(out, &r), "%s", out)
	return r
}

// mustSocket returns a blocking unix socket bound to a path, as systemd makes
// them, listening if its type listens.
func mustSocket(t *testing.T, typ int, path string) *os.File {
	t.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, typ|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	f := os.NewFile(uintptr(fd), path)
	t.Cleanup(func() { _ = f.Close() }) // a second close of a test's own
	require.NoError(t, unix.Bind(fd, &unix.SockaddrUnix{Name: path}))
	if typ != unix.SOCK_DGRAM {
		require.NoError(t, unix.Listen(fd, 8))
	}
	return f
}

func TestFilesTakesWhatSystemdHandsOver(t *testing.T) {
	dir := t.TempDir()
	control := mustSocket(t, unix.SOCK_STREAM, dir+"/control")
	second := mustSocket(t, unix.SOCK_STREAM, dir+"/second")
	datagrams := mustSocket(t, unix.SOCK_DGRAM, dir+"/datagrams")

	row := func(name, file string, listener bool) reportedFile {
		return reportedFile{Name: name, Nonblock: true, CloseOnExe: true, Socket: dir + "/" + file, Listener: listener}
	}
	for _, tt := range []struct {
		name  string
		files []*os.File
		env   []string
		want  []reportedFile
	}{
		{"one with its name", []*os.File{control}, []string{"LISTEN_FDS=1", "LISTEN_FDNAMES=varlink"},
			[]reportedFile{row("varlink", "control", true)}},
		{"one without names", []*os.File{control}, []string{"LISTEN_FDS=1"},
			[]reportedFile{row("", "control", true)}},
		{"three in order, one name twice, one no listener", []*os.File{second, datagrams, control},
			[]string{"LISTEN_FDS=3", "LISTEN_FDNAMES=web:syslog:web"},
			[]reportedFile{row("web", "second", true), row("syslog", "datagrams", false), row("web", "control", true)}},
		{"more descriptors than names", []*os.File{control, second}, []string{"LISTEN_FDS=2", "LISTEN_FDNAMES=varlink"},
			[]reportedFile{row("varlink", "control", true), row("", "second", true)}},
		{"our own pidfd", []*os.File{control}, []string{"LISTEN_FDS=1", "LISTEN_FDNAMES=varlink", "LISTEN_PIDFDID=own"},
			[]reportedFile{row("varlink", "control", true)}},
		{"none at all", nil, []string{"LISTEN_FDS=0"}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := mustActivate(t, "own", tt.files, tt.env...)
			require.Empty(t, r.Err)
			require.Equal(t, tt.want, r.Files)
			require.Zero(t, r.Again, "a second call gives nothing")
			require.Empty(t, r.Env, "a child of the daemon must not inherit the variables")
			require.Empty(t, r.Open, "the duplicates were closed and so are the originals")
		})
	}
}

func TestFilesLeavesOthersDescriptorsAlone(t *testing.T) {
	control := mustSocket(t, unix.SOCK_STREAM, t.TempDir()+"/control")
	for _, tt := range []struct {
		name, mode string
		env        []string
	}{
		{"another pid", "other", []string{"LISTEN_FDS=1", "LISTEN_FDNAMES=varlink"}},
		{"our pid and another's pidfd", "own", []string{"LISTEN_FDS=1", "LISTEN_PIDFDID=1"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := mustActivate(t, tt.mode, []*os.File{control}, tt.env...)
			require.Empty(t, r.Err)
			require.Empty(t, r.Files)
			require.Empty(t, r.Env)
			require.Equal(t, []int{3}, r.Open)
		})
	}
}

func TestFilesRefusesWhatItCannotRead(t *testing.T) {
	control := mustSocket(t, unix.SOCK_STREAM, t.TempDir()+"/control")
	for _, tt := range []struct {
		name string
		env  []string
		want string
	}{
		{"a count that is no number", []string{"LISTEN_FDS=many"}, `read LISTEN_FDS="many": invalid syntax`},
		{"a negative count", []string{"LISTEN_FDS=-1"}, `read LISTEN_FDS="-1": a count cannot be negative`},
		{"more than there are", []string{"LISTEN_FDS=2000000000"}, "set handed-over descriptor"},
		{"a pidfd number that is none", []string{"LISTEN_FDS=1", "LISTEN_PIDFDID=x"}, `read LISTEN_PIDFDID="x": invalid syntax`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := mustActivate(t, "own", []*os.File{control}, tt.env...)
			require.Contains(t, r.Err, tt.want)
			require.Empty(t, r.Files)
			require.Empty(t, r.Env)
		})
	}
}

func TestTakeControl(t *testing.T) {
	dir := t.TempDir()
	raw := func(f *os.File) int {
		var fd int
		conn, err := f.SyscallConn()
		require.NoError(t, err)
		require.NoError(t, conn.Control(func(n uintptr) { fd = int(n) }))
		return fd
	}
	stream := raw(mustSocket(t, unix.SOCK_STREAM, dir+"/stream"))
	other := raw(mustSocket(t, unix.SOCK_STREAM, dir+"/other"))
	packets := raw(mustSocket(t, unix.SOCK_SEQPACKET, dir+"/packets"))
	datagrams := raw(mustSocket(t, unix.SOCK_DGRAM, dir+"/datagrams"))
	inet, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer inet.Close()
	tcp, err := inet.(*net.TCPListener).File()
	require.NoError(t, err)
	defer tcp.Close()

	for _, tt := range []struct {
		name    string
		files   []File
		control int
		rest    []File
		err     string
	}{
		{name: "nothing handed over", control: -1},
		{name: "by its name", files: []File{{"varlink", stream}}, control: stream},
		{name: "by the unit's name, alone", files: []File{{"sockd.socket", stream}}, control: stream},
		{name: "alone without a name", files: []File{{"", stream}}, control: stream},
		{name: "among others", files: []File{{"web", other}, {"varlink", stream}}, control: stream, rest: []File{{"web", other}}},
		{name: "a relay's listener is not it", files: []File{{"web", other}}, control: -1, rest: []File{{"web", other}}},
		{name: "two without a name", files: []File{{"", stream}, {"", other}}, control: -1, rest: []File{{"", stream}, {"", other}}},
		{name: "two with its name", files: []File{{"varlink", stream}, {"varlink", other}}, control: -1,
			err: `take control socket: more than one descriptor is named "varlink"`},
		{name: "a seqpacket socket", files: []File{{"varlink", packets}}, control: -1,
			err: fmt.Sprintf("take control socket: descriptor %d is not a stream socket (ListenStream=)", packets)},
		{name: "a datagram socket", files: []File{{"varlink", datagrams}}, control: -1,
			err: fmt.Sprintf("take control socket: descriptor %d is not a stream socket (ListenStream=)", datagrams)},
		{name: "a tcp listener", files: []File{{"varlink", raw(tcp)}}, control: -1,
			err: fmt.Sprintf("take control socket: descriptor %d is not a unix socket", raw(tcp))},
	} {
		t.Run(tt.name, func(t *testing.T) {
			control, rest, err := TakeControl(tt.files)
			require.Equal(t, tt.control, control)
			require.Equal(t, tt.rest, rest)
			if tt.err == "" {
				require.NoError(t, err)
			} else {
				require.EqualError(t, err, tt.err)
			}
		})
	}
}

func TestTakeControlNamesTheErrnoOfWhatIsNoSocket(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "file"))
	require.NoError(t, err)
	defer f.Close()
	fd := mustDup(t, f)
	defer unix.Close(fd)
	_, _, err = TakeControl([]File{{ControlName, fd}})
	require.ErrorIs(t, err, syscall.ENOTSOCK)
}

func mustDup(t *testing.T, f *os.File) int {
	t.Helper()
	fd, err := duplicate(f)
	require.NoError(t, err)
	return fd
}

func TestClosingAFileTwiceIsAnError(t *testing.T) {
	// The number may by then be somebody else's: a File does not hide that.
	f := File{Name: "web", FD: 1 << 20}
	require.ErrorIs(t, f.Close(), syscall.EBADF)
}
