package borrow

import (
	"path/filepath"
	"strings"

	"github.com/sockd/sockd/families"
	"golang.org/x/sys/unix"
)

// Folder opens the directory of a file, O_PATH: with it whoever gets it can find names
// there, as the caller can now. path is file from the root, not cleaned (see absolute).
// The caller owns fd.
func Folder(file string) (fd int, path string, err error) {
	path = file
	if !filepath.IsAbs(path) {
		wd, err := unix.Getwd()
		if err != nil {
			return -1, "", fileError(file, err)
		}
		path = wd + "/" + strings.TrimPrefix(file, "./")
	}
	slash := strings.LastIndexByte(path, '/')
	if name := path[slash+1:]; name == "" || name == "." || name == ".." {
		return -1, "", fileError(file, unix.EISDIR)
	}
	fd, err = unix.Open(path[:slash+1], unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, "", fileError(file, err)
	}
	return fd, path, nil
}

func fileError(file string, err error) error {
	return &families.OpError{Op: "open the directory of", Family: "file", Addr: families.Escape(file), Err: err}
}
