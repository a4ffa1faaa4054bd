package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/sockd/sockd/ctl"
	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/systemd"
)

// control is the control socket: systemd's, or one that this process made and
// removes.
type control struct {
	*net.UnixListener
	path string
}

// openControl takes the control socket out of files, or makes one. The rest of
// the files are the caller's; on error all are closed.
func openControl(e env, s settings, files []systemd.File) (*control, []systemd.File, error) {
	fd, rest, err := systemd.TakeControl(files)
	if err != nil {
		return nil, nil, errors.Join(err, closeFiles(files))
	}
	var c *control
	if fd >= 0 {
		c, err = handedControl(fd)
	} else {
		c, err = makeControl(e, s)
	}
	if err != nil {
		return nil, nil, errors.Join(err, closeFiles(rest))
	}
	return c, rest, nil
}

// maxControlPath leaves room for the NUL, without which Go, and with it most who
// would connect, knows no path of a socket.
const maxControlPath = families.MaxUnixPath - 1

func makeControl(e env, s settings) (*control, error) {
	path := s.socket
	if path == "" {
		var err error
		if path, err = defaultSocket(e); err != nil {
			return nil, err
		}
	}
	if len(path) > maxControlPath {
		return nil, fmt.Errorf("%w: control socket %s: a path has at most %d bytes, this one has %d", errUsage, families.Printable(path), maxControlPath, len(path))
	}
	l, err := listenAt(e, path)
	if err != nil {
		return nil, fmt.Errorf("control socket %s: %w", path, err)
	}
	return &control{UnixListener: l, path: path}, nil
}

// handedControl makes a listener of systemd's descriptor, which it closes. The
// socket's file stays systemd's: closing the listener does not remove it.
func handedControl(fd int) (*control, error) {
	f := os.NewFile(uintptr(fd), systemd.ControlName)
	defer f.Close() // FileListener has its own duplicate
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("control socket of systemd's: %w", err)
	}
	return &control{UnixListener: l.(*net.UnixListener), path: l.Addr().String()}, nil // TakeControl looked
}

// defaultSocket is the system's for root, the user's own for anybody else. Its
// directory is made.
func defaultSocket(e env) (string, error) {
	path, mode := ctl.SystemSocket, os.FileMode(0o755)
	if e.getuid() != 0 {
		dir := e.getenv("XDG_RUNTIME_DIR")
		if !filepath.IsAbs(dir) {
			return "", fmt.Errorf("%w: $XDG_RUNTIME_DIR is not set: say --socket PATH", errUsage)
		}
		path, mode = filepath.Join(dir, "sockd", "io.sockd"), 0o700
	}
	if err := os.MkdirAll(filepath.Dir(path), mode); err != nil {
		return "", fmt.Errorf("control socket: %w", err)
	}
	return path, nil
}

// listenAt listens at path, in place of a socket that nobody serves any more. The
// directory is locked meanwhile, so that of two daemons that start at once only one
// finds the place free.
func listenAt(e env, path string) (*net.UnixListener, error) {
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return nil, pathless(err)
	}
	defer dir.Close() // and the lock with it
	if err := lock(dir); err != nil {
		return nil, fmt.Errorf("lock its directory: %w", err)
	}
	if err := removeStale(path); err != nil {
		return nil, err
	}
	// Between bind and chmod the socket has the mode that the umask leaves: nothing
	// for others.
	old := syscall.Umask(0o177)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	syscall.Umask(old)
	if err != nil {
		return nil, pathless(err)
	}
	if err := admit(e, path); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

func lock(dir *os.File) error {
	conn, err := dir.SyscallConn()
	if err != nil {
		return err
	}
	var flockErr error
	err = conn.Control(func(fd uintptr) {
		for flockErr = syscall.EINTR; flockErr == syscall.EINTR; {
			flockErr = syscall.Flock(int(fd), syscall.LOCK_EX)
		}
	})
	return errors.Join(err, flockErr)
}

// removeStale makes room at path: it removes a socket that nobody has any more,
// and nothing else.
func removeStale(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return pathless(err)
	case info.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("there is something else: %w", syscall.EEXIST)
	}
	// A datagram socket asks: to a stream one that is bound and does not listen yet is
	// the same as none, and gets ECONNREFUSED.
	conn, err := net.Dial("unixgram", path)
	switch {
	case err == nil:
		_ = conn.Close() // nothing was said
		return fmt.Errorf("a datagram socket is there: %w", syscall.EADDRINUSE)
	case errors.Is(err, syscall.ECONNREFUSED):
		return pathless(os.Remove(path))
	case errors.Is(err, syscall.EPROTOTYPE): // a stream socket lives there
		return fmt.Errorf("another sockd serves it: %w", syscall.EADDRINUSE)
	}
	return pathless(err)
}

// admit lets group sockd in where root serves and the group exists.
func admit(e env, path string) error {
	if e.getuid() != 0 {
		return nil
	}
	group, err := user.LookupGroup("sockd")
	if err != nil {
		return nil // root alone
	}
	gid, err := strconv.Atoi(group.Gid)
	if err != nil {
		return fmt.Errorf("group sockd: %w", err)
	}
	if err := os.Chown(path, -1, gid); err != nil {
		return pathless(err)
	}
	return pathless(os.Chmod(path, 0o660))
}

// pathless takes the path off an error whose reader knows it.
func pathless(err error) error {
	var path *fs.PathError
	var op *net.OpError
	var sys *os.SyscallError
	switch {
	case errors.As(err, &path):
		return path.Err
	case errors.As(err, &sys):
		return sys.Err
	case errors.As(err, &op):
		return op.Err
	}
	return err
}
