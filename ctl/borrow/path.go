package borrow

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/sockd/sockd/families"
	"golang.org/x/sys/unix"
)

// maxPath is the longest path that fits sun_path with its NUL (unix(7)).
const maxPath = 107

func isAbstract(addr string) bool { return strings.HasPrefix(addr, "@") }

// absolute is the path of addr from the root. Not cleaned: "a/../b" is another
// file than "b" where a is a symbolic link.
func absolute(addr string) (string, error) {
	switch {
	case addr == "":
		return "", fmt.Errorf("a path is missing: %w", families.ErrSyntax)
	case strings.ContainsRune(addr, 0):
		return "", fmt.Errorf("a NUL in a path: %w", families.ErrSyntax)
	case filepath.IsAbs(addr):
		return addr, nil
	}
	wd, err := unix.Getwd()
	if err != nil {
		return "", fmt.Errorf("working directory: %w", err)
	}
	return wd + "/" + strings.TrimPrefix(addr, "./"), nil
}

// Absolute is how a unix address reads from everywhere: an abstract name as it
// is, a path from the root.
func Absolute(addr string) (string, error) {
	if isAbstract(addr) {
		return addr, nil
	}
	path, err := absolute(addr)
	return path, opError("resolve", addr, err)
}

// at calls f with addr as a socket address. A path that is too long for one goes
// through a descriptor of its directory, /proc/self/fd/N/NAME, which is the same
// file to the kernel.
func at(addr string, f func(unix.Sockaddr) error) error {
	if isAbstract(addr) {
		// The name is all that follows "@", NULs included.
		if len(addr) > maxPath+1 {
			return unix.ENAMETOOLONG
		}
		return f(&unix.SockaddrUnix{Name: addr})
	}
	path, err := absolute(addr)
	if err != nil {
		return err
	}
	if len(path) <= maxPath {
		return f(&unix.SockaddrUnix{Name: path})
	}
	dir, name, err := openDir(path)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	short := fmt.Sprintf("/proc/self/fd/%d/%s", dir, name)
	if len(short) > maxPath {
		return unix.ENAMETOOLONG
	}
	return f(&unix.SockaddrUnix{Name: short})
}

// Dir opens the directory of a unix path, O_PATH: with it whoever gets it can
// find name there, as the caller can now, and nothing else. The caller owns fd.
func Dir(addr string) (fd int, name string, err error) {
	if isAbstract(addr) {
		return -1, "", opError("open", addr, fmt.Errorf("an abstract name has no directory: %w", families.ErrNotSupported))
	}
	path, err := absolute(addr)
	if err == nil {
		fd, name, err = openDir(path)
	}
	if err != nil {
		return -1, "", opError("open", addr, err)
	}
	return fd, name, nil
}

func openDir(path string) (fd int, name string, err error) {
	slash := strings.LastIndexByte(path, '/')
	name = path[slash+1:]
	if name == "" || name == "." || name == ".." {
		return -1, "", unix.EISDIR
	}
	fd, err = unix.Open(path[:slash+1], unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, "", fmt.Errorf("directory %s: %w", path[:slash+1], err)
	}
	return fd, name, nil
}

// opError says what was tried on which address; nil stays nil.
func opError(op, addr string, err error) error {
	var already *families.OpError
	if err == nil || errors.As(err, &already) {
		return err
	}
	return &families.OpError{Op: op, Family: "local", Addr: addr, Err: err}
}
