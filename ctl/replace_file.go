package ctl

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"github.com/sockd/sockd/families/packet/files"
	"golang.org/x/sys/unix"
)

// replacement is a file that takes the place of another one, or a name that is free,
// once it is complete. Until then the old one stays as it is, also when that never comes:
// the new one has no name (open(2), O_TMPFILE) unless the file system wants one.
type replacement struct {
	*os.File
	path string // a link is followed
	part string // the name that it has meanwhile; "": none
	here bool   // it is the old one, in a directory where nothing can be made
}

// replace opens a replacement for what is at path, a regular file if anything, with its
// permissions and its owner where the caller may give those.
func replace(path string) (*replacement, error) {
	if whole, err := filepath.EvalSymlinks(path); err == nil {
		path = whole
	}
	if files.OfRecorder(path) {
		return nil, ofRecorder(path)
	}
	old, err := os.Stat(path)
	there := err == nil
	r := &replacement{path: path}
	err = r.open()
	if there && (errors.Is(err, os.ErrPermission) || errors.Is(err, syscall.EROFS)) {
		r.here = true
		r.File, err = os.OpenFile(path, os.O_WRONLY, 0)
	}
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: causeOf(err)}
	}
	if there && !r.here {
		if err := likeness(r.File, old); err != nil {
			r.discard()
			return nil, err
		}
	}
	return r, nil
}

// ofRecorder is the error of who wants to write over a recorder's file.
func ofRecorder(path string) error {
	return fmt.Errorf("%s is a file of a recorder's: %w", visible(path), syscall.EEXIST)
}

// causeOf is err without the name of what is nobody's business.
func causeOf(err error) error {
	var path *os.PathError
	if errors.As(err, &path) {
		return path.Err
	}
	return err
}

func (r *replacement) open() (err error) {
	r.File, err = os.OpenFile(filepath.Dir(r.path), os.O_WRONLY|unix.O_TMPFILE, 0o666)
	if !errors.Is(err, syscall.EOPNOTSUPP) && !errors.Is(err, syscall.EISDIR) {
		return err
	}
	for n := 1; ; n++ {
		r.part = r.partName(n)
		r.File, err = os.OpenFile(r.part, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
		if !errors.Is(err, os.ErrExist) || n == maxParts {
			return err
		}
	}
}

func (r *replacement) partName(n int) string {
	dir, base := filepath.Split(r.path)
	return fmt.Sprintf("%s.%s.%d.part", dir, base, n)
}

// likeness gives f the owner and the permissions of a file. Where the group cannot be the
// same it may nothing: another one would read what that one could.
func likeness(f *os.File, old os.FileInfo) error {
	mode := old.Mode().Perm()
	st := old.Sys().(*syscall.Stat_t)
	if f.Chown(int(st.Uid), int(st.Gid)) != nil && f.Chown(-1, int(st.Gid)) != nil {
		mode &^= 0o070
	}
	return f.Chmod(mode)
}

// complete puts the file in its place, on the disk first: after a crash the name must not
// stand for half of it. It closes it.
func (r *replacement) complete() error {
	err := r.Sync()
	if err == nil && r.part == "" && !r.here {
		err = r.link()
	}
	if err == nil && !r.here {
		err = r.rename()
	}
	if err != nil {
		r.discard()
		return err
	}
	return r.Close()
}

// rename gives the file its place, which may have become a recorder's meanwhile.
func (r *replacement) rename() error {
	if files.OfRecorder(r.path) {
		return ofRecorder(r.path)
	}
	return os.Rename(r.part, r.path)
}

// link gives a file without a name one, under which it can take another one's place.
func (r *replacement) link() error {
	raw, err := r.SyscallConn()
	if err != nil {
		return err
	}
	for n := 1; ; n++ {
		part := r.partName(n)
		var linked error
		err := raw.Control(func(fd uintptr) {
			linked = unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), unix.AT_FDCWD, part, unix.AT_SYMLINK_FOLLOW)
		})
		switch {
		case err != nil:
			return err
		case linked == nil:
			r.part = part
			return nil
		case !errors.Is(linked, syscall.EEXIST) || n == maxParts:
			return &os.PathError{Op: "link", Path: part, Err: linked}
		}
	}
}

// discard closes the file and leaves nothing of it.
func (r *replacement) discard() {
	_ = r.Close() // nobody wants it
	if r.part != "" {
		_ = os.Remove(r.part) // the first error is the one to tell
	}
}
