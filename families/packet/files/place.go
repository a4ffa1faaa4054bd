package files

import (
	"errors"
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

// OfRecorder tells whether a file is a recorder's, by its signature: who else writes
// files does not replace it.
func OfRecorder(path string) bool {
	comment, ok := Comment(path)
	return ok && strings.HasPrefix(comment, ofRecorder)
}

// Comment is that of the first section of a pcapng file; false for anything else.
func Comment(path string) (comment string, ok bool) {
	// A FIFO must not be waited for.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return "", false
	}
	defer f.Close() // read-only
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return "", false
	}
	var b pcapng.Block
	if err := pcapng.NewReader(f).Next(&b); err != nil || b.Type != pcapng.SectionBlock {
		return "", false
	}
	return b.Section.Comment, true
}
