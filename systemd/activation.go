package systemd

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/coreos/go-systemd/v22/activation"
	"golang.org/x/sys/unix"
)

// ControlName is the name under which the control socket is handed over:
// FileDescriptorName= in sockd.socket. UAPI.20 asks for this word where there
// is more than one descriptor.
const ControlName = "varlink"

// firstFD is SD_LISTEN_FDS_START: descriptors are handed over from here on.
const firstFD = 3

// A File is one descriptor that systemd handed over. Whoever holds it owns FD:
// it is open, non-blocking and close-on-exec until somebody closes it.
type File struct {
	// Name is the FileDescriptorName= of the socket unit, the unit's own name
	// where that is not set, and empty where the sender gave no names at all.
	Name string
	// FD is the descriptor.
	FD int
}

// Close closes the descriptor. It is for the File that nobody uses.
func (f File) Close() error {
	if err := unix.Close(f.FD); err != nil {
		return fmt.Errorf("close handed-over descriptor %q: %w", f.Name, err)
	}
	return nil
}

// Files returns the descriptors handed over to this process, in systemd's
// order, and forgets them: it removes the variables from the environment, so
// that a child process does not take them for its own, and a second call
// returns none. Call it once, before anything else opens descriptors.
//
// Descriptors that are meant for another process ($LISTEN_PID,
// $LISTEN_PIDFDID) are left alone, and the result is empty without an error.
// On success the caller owns every File; on an error all of them are closed.
func Files() ([]File, error) {
	defer unsetListenEnv()

	n, err := handedOver()
	if err != nil || n == 0 {
		return nil, err
	}
	if err := setNonblock(n); err != nil {
		return nil, errors.Join(err, closeRange(n))
	}
	return takeOver(activation.Files(true))
}

// unsetListenEnv removes what go-systemd does not know or does not reach when
// the descriptors are another process's.
func unsetListenEnv() {
	for _, name := range []string{"LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		_ = os.Unsetenv(name) // fails for names with = or NUL only
	}
}

// handedOver counts the descriptors meant for this process. Each of the
// variables is checked here, because go-systemd takes a malformed one for none
// at all and then the daemon would open a control socket of its own.
func handedOver() (int, error) {
	pid, fds := os.Getenv("LISTEN_PID"), os.Getenv("LISTEN_FDS")
	if pid == "" || fds == "" {
		return 0, nil
	}
	if p, err := strconv.Atoi(pid); err != nil {
		return 0, fmt.Errorf("read LISTEN_PID=%q: %w", pid, errors.Unwrap(err))
	} else if p != os.Getpid() {
		return 0, nil
	}
	if ours, err := pidfdMatches(os.Getenv("LISTEN_PIDFDID")); err != nil || !ours {
		return 0, err
	}

	n, err := strconv.Atoi(fds)
	if err != nil {
		return 0, fmt.Errorf("read LISTEN_FDS=%q: %w", fds, errors.Unwrap(err))
	}
	if n < 0 {
		return 0, fmt.Errorf("read LISTEN_FDS=%q: a count cannot be negative", fds)
	}
	return n, nil
}

// pidfdMatches reports whether id, the value of $LISTEN_PIDFDID, is the inode
// number of this process's pidfd. Unlike a pid it is never used twice, so it
// tells a process from a later one with the same pid. Empty means not sent,
// and a kernel before 6.9 has no such number: then LISTEN_PID alone decides.
func pidfdMatches(id string) (bool, error) {
	if id == "" {
		return true, nil
	}
	want, err := strconv.ParseUint(id, 10, 64)
	if err != nil {
		return false, fmt.Errorf("read LISTEN_PIDFDID=%q: %w", id, errors.Unwrap(err))
	}
	own, err := pidfdInode()
	if errors.Is(err, errors.ErrUnsupported) {
		return true, nil
	}
	return own == want, err
}

// pidfdInode returns the inode number of this process's pidfd, or an error that
// wraps errors.ErrUnsupported where pidfds have no file system of their own and
// all share one inode.
func pidfdInode() (uint64, error) {
	fd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		return 0, fmt.Errorf("open own pidfd: %w", err)
	}
	defer unix.Close(fd)

	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil {
		return 0, fmt.Errorf("statfs own pidfd: %w", err)
	}
	if fs.Type != unix.PID_FS_MAGIC {
		return 0, fmt.Errorf("number of own pidfd: %w", errors.ErrUnsupported)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0, fmt.Errorf("stat own pidfd: %w", err)
	}
	return st.Ino, nil
}

// setNonblock prepares the n descriptors from firstFD on. It comes before any
// os.File is made of them: an os.File of a blocking descriptor never joins the
// runtime's poller, and every use of it would hold a thread.
func setNonblock(n int) error {
	for fd := firstFD; fd < firstFD+n; fd++ {
		if err := unix.SetNonblock(fd, true); err != nil {
			return fmt.Errorf("set handed-over descriptor %d of %d non-blocking: %w", fd-firstFD+1, n, err)
		}
	}
	return nil
}

// closeRange closes what was handed over when it cannot be used. The count may
// be any number somebody wrote into the environment, hence one call, not n.
func closeRange(n int) error {
	if err := unix.CloseRange(firstFD, uint(firstFD+n-1), 0); err != nil {
		return fmt.Errorf("close handed-over descriptors: %w", err)
	}
	return nil
}

// takeOver turns os.Files into bare descriptors. An os.File closes its
// descriptor when the garbage collector finds it, so each gives a duplicate and
// is closed.
func takeOver(from []*os.File) ([]File, error) {
	files := make([]File, 0, len(from))
	var failed error
	for _, f := range from {
		fd, err := duplicate(f)
		if err != nil {
			failed = errors.Join(failed, err)
		} else {
			files = append(files, File{Name: givenName(f.Name()), FD: fd})
		}
		_ = f.Close() // the duplicate holds what it stands for
	}
	if failed == nil {
		return files, nil
	}
	for _, f := range files {
		failed = errors.Join(failed, f.Close())
	}
	return nil, failed
}

// duplicate returns a close-on-exec duplicate of f's descriptor, without Fd(),
// which would make the shared description blocking.
func duplicate(f *os.File) (int, error) {
	conn, err := f.SyscallConn()
	if err != nil {
		return -1, fmt.Errorf("duplicate handed-over descriptor %q: %w", f.Name(), err)
	}
	dup, dupErr := -1, error(nil)
	err = conn.Control(func(fd uintptr) {
		dup, dupErr = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, firstFD)
	})
	if err = errors.Join(err, dupErr); err != nil {
		return -1, fmt.Errorf("duplicate handed-over descriptor %q: %w", f.Name(), err)
	}
	return dup, nil
}

// givenName undoes the name that go-systemd makes up for the nameless.
func givenName(name string) string {
	if strings.HasPrefix(name, "LISTEN_FD_") {
		return ""
	}
	return name
}

// TakeControl finds the control socket among files. It is the one named
// ControlName, or a single file that has no name of its own, as when
// sockd.socket lacks its FileDescriptorName= or another activator sends it. It
// returns the socket's descriptor, or -1 where there is none, and the others.
//
// The caller still owns every file, also on an error: two control sockets, or
// one that is not a listening unix stream socket.
func TakeControl(files []File) (control int, rest []File, err error) {
	control = -1
	for _, f := range files {
		switch {
		case !isControl(f, len(files)):
			rest = append(rest, f)
		case control >= 0:
			return -1, nil, fmt.Errorf("take control socket: more than one descriptor is named %q", ControlName)
		default:
			control = f.FD
		}
	}
	if control >= 0 {
		if err := checkControl(control); err != nil {
			return -1, nil, err
		}
	}
	return control, rest, nil
}

// isControl reports whether f, one of n files, is the control socket.
func isControl(f File, n int) bool {
	return f.Name == ControlName || n == 1 && (f.Name == "" || f.Name == "sockd.socket")
}

// checkControl tells a misconfigured unit apart at start, rather than by the
// first accept.
func checkControl(fd int) error {
	for _, want := range []struct {
		opt, value int
		what       string
	}{
		{unix.SO_DOMAIN, unix.AF_UNIX, "a unix socket"},
		{unix.SO_TYPE, unix.SOCK_STREAM, "a stream socket (ListenStream=)"},
		{unix.SO_ACCEPTCONN, 1, "listening"},
	} {
		got, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, want.opt)
		if err != nil {
			return fmt.Errorf("take control socket: descriptor %d: %w", fd, err)
		}
		if got != want.value {
			return fmt.Errorf("take control socket: descriptor %d is not %s", fd, want.what)
		}
	}
	return nil
}
