package borrow

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/sockd/sockd/families"
	"golang.org/x/sys/unix"
)

func isAbstract(addr string) bool { return strings.HasPrefix(addr, "@") }

// absolute is the path of addr from the root. Not cleaned: "a/../b" is another
// file than "b" where a is a symbolic link.
func absolute(addr string) (string, error) {
	if err := families.CheckUnixAddress(addr); err != nil || filepath.IsAbs(addr) {
		return addr, err
	}
	wd, err := unix.Getwd()
	if err != nil {
		return "", fmt.Errorf("working directory: %w", err)
	}
	path := wd + "/" + strings.TrimPrefix(addr, "./")
	return path, families.CheckUnixAddress(path)
}

// Absolute is how a unix address reads from everywhere: an abstract name as it
// is, a path from the root.
func Absolute(addr string) (string, error) {
	if isAbstract(addr) {
		return addr, opError("resolve", addr, families.CheckUnixAddress(addr))
	}
	path, err := absolute(addr)
	return path, opError("resolve", addr, err)
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

// opError says what was tried on which address, given in plain form; nil stays nil.
func opError(op, addr string, err error) error {
	var already *families.OpError
	if err == nil || errors.As(err, &already) {
		return err
	}
	return &families.OpError{Op: op, Family: "local", Addr: families.Escape(addr), Err: plainly(err)}
}

// plainly leaves of a SyntaxError what OpError does not say.
func plainly(err error) error {
	var syntax *families.SyntaxError
	if errors.As(err, &syntax) {
		return &worded{err, syntax.Why}
	}
	return err
}

// worded is an error in other words.
type worded struct {
	err   error
	words string
}

func (w *worded) Error() string { return w.words }
func (w *worded) Unwrap() error { return w.err }
