package borrow

import (
	"context"
	"fmt"
	"os"
	"os/user"
	"strconv"

	"github.com/sockd/sockd/families"
	"golang.org/x/sys/unix"
)

// networks are the endpoint words of the local family.
var networks = map[string]int{
	"unix":       unix.SOCK_STREAM,
	"unixgram":   unix.SOCK_DGRAM,
	"unixpacket": unix.SOCK_SEQPACKET,
}

// IsLocal tells whether endpoints of the network are the caller's to open.
func IsLocal(network string) bool { return networks[network] != 0 }

// Access says whom the file of a bound path belongs to and who may connect. What
// is empty is left to the kernel and the umask.
type Access struct {
	Mode  string // octal: "660"
	User  string // name or number
	Group string // name or number
}

// access is an Access that parsed; -1 leaves as it is.
type access struct {
	mode     int64
	uid, gid int
}

func (a Access) parse() (access, error) {
	p := access{mode: -1, uid: -1, gid: -1}
	if a.Mode != "" {
		mode, err := strconv.ParseUint(a.Mode, 8, 12)
		if err != nil {
			return p, &families.SyntaxError{What: "mode", Text: a.Mode, Why: "want an octal number", Hint: "mode=660"}
		}
		p.mode = int64(mode)
	}
	var err error
	if p.uid, err = lookup("user", a.User, func(name string) (string, error) {
		u, err := user.Lookup(name)
		if err != nil {
			return "", err
		}
		return u.Uid, nil
	}); err != nil {
		return p, err
	}
	p.gid, err = lookup("group", a.Group, func(name string) (string, error) {
		g, err := user.LookupGroup(name)
		if err != nil {
			return "", err
		}
		return g.Gid, nil
	})
	return p, err
}

// lookup reads a number, or a name through find. "" is -1.
func lookup(what, s string, find func(string) (string, error)) (int, error) {
	if s == "" {
		return -1, nil
	}
	if n, err := strconv.ParseUint(s, 10, 31); err == nil {
		return int(n), nil
	}
	number, err := find(s)
	if err != nil {
		return -1, &families.SyntaxError{What: what, Text: s, Why: "is unknown here", Hint: what + "= takes a name or a number"}
	}
	return strconv.Atoi(number)
}

// ListenAt makes a socket that is bound to addr, and listens unless it is a
// unixgram. The file is never open to more than a.Mode says, not even for a
// moment. The caller owns the descriptor, which is non-blocking. backlog is
// Listen's.
func ListenAt(network, addr string, backlog int, a Access) (fd int, err error) {
	want, err := a.parse()
	if err != nil {
		return -1, err
	}
	fd, err = socket(network)
	if err != nil {
		return -1, opError("listen", addr, err)
	}
	if err := listenAt(fd, network, addr, backlog, want); err != nil {
		_ = unix.Close(fd) // never used
		return -1, err
	}
	return fd, nil
}

// SetAccess gives the file of a bound socket another mode, user or group. What is ""
// stays.
func SetAccess(addr string, a Access) error {
	want, err := a.parse()
	if err != nil || isAbstract(addr) {
		return err
	}
	if err := grant(addr, want); err != nil {
		return opError("listen", addr, err)
	}
	return nil
}

func listenAt(fd int, network, addr string, backlog int, a access) error {
	// bind(2) makes the file with the socket's own mode, less the umask.
	if a.mode >= 0 {
		if err := unix.Fchmod(fd, uint32(a.mode)); err != nil {
			return opError("listen", addr, err)
		}
	}
	if err := Bind(fd, addr); err != nil {
		return err
	}
	if !isAbstract(addr) {
		if err := grant(addr, a); err != nil {
			_ = removeOwn(addr) // the first error counts
			return opError("listen", addr, err)
		}
	}
	if network == "unixgram" {
		return nil
	}
	return Listen(fd, backlog)
}

// grant gives the bound file its owner and then its mode: chown(2) may clear bits.
// It goes through a descriptor of the file, so that a path that was exchanged
// meanwhile is not touched through a symbolic link.
func grant(addr string, a access) error {
	if a.mode < 0 && a.uid < 0 && a.gid < 0 {
		return nil
	}
	path, err := absolute(addr)
	if err != nil {
		return err
	}
	file, err := unix.Open(path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(file)
	if a.uid >= 0 || a.gid >= 0 {
		if err := unix.Fchownat(file, "", a.uid, a.gid, unix.AT_EMPTY_PATH); err != nil {
			return fmt.Errorf("chown: %w", err)
		}
	}
	if a.mode >= 0 {
		if err := unix.Chmod(fmt.Sprintf("/proc/self/fd/%d", file), uint32(a.mode)); err != nil {
			return fmt.Errorf("chmod: %w", err)
		}
	}
	return nil
}

func removeOwn(addr string) error {
	path, err := absolute(addr)
	if err != nil {
		return err
	}
	return os.Remove(path)
}

// Dial makes a socket that is connected to addr. The caller owns the descriptor,
// which is non-blocking.
func Dial(ctx context.Context, network, addr string) (fd int, err error) {
	fd, err = socket(network)
	if err != nil {
		return -1, opError("connect", addr, err)
	}
	if err := Connect(ctx, fd, addr); err != nil {
		_ = unix.Close(fd) // never used
		return -1, err
	}
	return fd, nil
}

func socket(network string) (int, error) {
	typ, ok := networks[network]
	if !ok {
		return -1, fmt.Errorf("network %q: %w", network, families.ErrNotSupported)
	}
	return unix.Socket(unix.AF_UNIX, typ|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
}
