package files

import (
	"errors"
	"io"
	"math"
	"os"
	"strings"
	"syscall"

	"github.com/sockd/sockd/families/packet/pcapng"
	"golang.org/x/sys/unix"
)

// RenameNew gives a file a name that nothing has, in one step: of two who want it one
// has it, and the other's error wraps EEXIST. Where the file system cannot, it is done in
// two.
func RenameNew(from, to string) error {
	err := retry(func() error { return unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE) })
	if !errors.Is(err, syscall.EINVAL) && !errors.Is(err, syscall.ENOSYS) {
		return linkError(from, to, err)
	}
	return linkNew(from, to)
}

// linkNew is RenameNew for a file system that has no flags for it: link(2) never replaces.
func linkNew(from, to string) error {
	if err := os.Link(from, to); err == nil || errors.Is(err, syscall.EEXIST) {
		if err == nil {
			err = os.Remove(from)
		}
		return err
	}
	if _, err := os.Lstat(to); err == nil { // one that has no links either
		return linkError(from, to, syscall.EEXIST)
	}
	return os.Rename(from, to)
}

func linkError(from, to string, err error) error {
	if err == nil {
		return nil
	}
	return &os.LinkError{Op: "rename", Old: from, New: to, Err: err}
}

// ofRecorder begins the comment of a recorder's files, before its name.
const ofRecorder = "recorder "

// Signature is the comment by which a recorder's files are known to be its own.
func Signature(recorder string) string { return ofRecorder + recorder }

// Claim marks a file that a recorder has just made as one that it writes, until the
// descriptor is closed: its signature comes with its first packet. Where the file system has no
// locks it is not marked, which is no error.
func Claim(fd int) {
	_ = retry(func() error { return unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) })
}

// OfRecorder tells whether a file is a recorder's, which has signed or claimed it: who else
// writes files does not replace it. A link is none.
func OfRecorder(path string) bool {
	f, err := openHere(path)
	if err != nil {
		return false
	}
	defer f.Close() // read-only
	return IsRecorders(f)
}

// IsRecorders is OfRecorder of an open file, which can be read.
func IsRecorders(f *os.File) bool {
	if claimed(f) { // first: what is no longer empty then is signed
		return true
	}
	comment, ok := commentOf(f)
	return ok && strings.HasPrefix(comment, ofRecorder)
}

// claimed tells whether a file is claimed and still empty.
func claimed(f *os.File) bool {
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() || info.Size() > 0 {
		return false
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return false
	}
	locked := false
	err = raw.Control(func(fd uintptr) {
		err := retry(func() error { return unix.Flock(int(fd), unix.LOCK_SH|unix.LOCK_NB) })
		if locked = errors.Is(err, syscall.EWOULDBLOCK); err == nil {
			_ = unix.Flock(int(fd), unix.LOCK_UN) // it was only asked
		}
	})
	return err == nil && locked
}

// Comment is that of the first section of a pcapng file; false for anything else.
func Comment(path string) (comment string, ok bool) {
	f, err := openHere(path)
	if err != nil {
		return "", false
	}
	defer f.Close() // read-only
	return commentOf(f)
}

// openHere opens a file to read it, and not what a link leads to. A FIFO is not waited for.
func openHere(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
}

// commentOf is Comment of an open file, which stays where it is.
func commentOf(f *os.File) (comment string, ok bool) {
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return "", false
	}
	var b pcapng.Block
	if err := pcapng.NewReader(io.NewSectionReader(f, 0, math.MaxInt64)).Next(&b); err != nil || b.Type != pcapng.SectionBlock {
		return "", false
	}
	return b.Section.Comment, true
}
