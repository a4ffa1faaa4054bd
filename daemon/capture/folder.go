package capture

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/model"
	"github.com/sockd/sockd/families/packet/files"
)

// folder is a directory in which the daemon makes files with its own rights. What is
// in it can be watched by others and changed by its owner: names are made anew
// beside what is there, never followed, and put in place by rename(2).
type folder struct {
	path  string // how the daemon reaches it
	shown string // its name for people, with a slash at its end
	owner model.Owner
}

// folderOf is the directory of a place. The descriptor stays the place's.
func folderOf(p model.Place, owner model.Owner) folder {
	f := folder{path: p.Folder(), shown: p.Folder(), owner: owner}
	if p.Dir >= 0 {
		// An O_PATH descriptor is good for looking names up below, whatever has become
		// of the path meanwhile.
		f.path = fmt.Sprintf("/proc/self/fd/%d/", p.Dir)
	}
	return f
}

// closePlace closes the directory of a place.
func closePlace(p model.Place) {
	if p.Dir >= 0 {
		_ = syscall.Close(p.Dir) // nothing was written through it
	}
}

// create makes a file that nobody else has, for rename or remove. The caller owns the
// descriptor. The error wraps syscall.EEXIST when there is something of that name.
func (f folder) create(name string) (fd int, err error) {
	fd, err = f.openNew(name)
	if err != nil {
		return model.NoFD, f.explain("create", name, err)
	}
	if os.Geteuid() == 0 && f.owner.UID != 0 {
		err = syscall.Fchown(fd, int(f.owner.UID), int(f.owner.GID))
	}
	if err != nil {
		_ = syscall.Close(fd) // nothing was written through it
		return model.NoFD, errors.Join(f.explain("give away", name, err), f.remove(name))
	}
	files.Claim(fd)
	return fd, nil
}

// fileMode lets the group read where the umask does, or where the directory has a
// default ACL: then its mask is what the group may (acl(5)), and its owner reads files of
// a daemon that cannot give them away.
const fileMode = 0o640

func (f folder) openNew(name string) (fd int, err error) {
	for {
		fd, err = syscall.Open(filepath.Join(f.path, name), syscall.O_WRONLY|syscall.O_CREAT|syscall.O_EXCL|syscall.O_NOFOLLOW|syscall.O_CLOEXEC, fileMode)
		if !errors.Is(err, syscall.EINTR) {
			return fd, err
		}
	}
}

// renameNew gives a file a name that nothing has; else the error wraps syscall.EEXIST.
func (f folder) renameNew(from, to string) error {
	if err := files.RenameNew(filepath.Join(f.path, from), filepath.Join(f.path, to)); err != nil {
		return f.explain("rename to", to, err)
	}
	return nil
}

// rename gives a file its name, which may be another one's so far.
func (f folder) rename(from, to string) error {
	if err := os.Rename(filepath.Join(f.path, from), filepath.Join(f.path, to)); err != nil {
		return f.explain("rename to", to, err)
	}
	return nil
}

func (f folder) remove(name string) error {
	if err := os.Remove(filepath.Join(f.path, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return f.explain("remove", name, err)
	}
	return nil
}

// open opens a file to read it.
func (f folder) open(name string) (*os.File, error) {
	file, err := os.OpenFile(filepath.Join(f.path, name), os.O_RDONLY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return nil, f.explain("open", name, err)
	}
	return file, nil
}

// explain says which file, by the name that its user knows, and what would help.
func (f folder) explain(op, name string, err error) error {
	var path *os.PathError
	var link *os.LinkError
	switch {
	case errors.As(err, &path):
		err = path.Err
	case errors.As(err, &link):
		err = link.Err
	}
	out := &families.OpError{Op: op, Family: "file", Addr: families.Escape(f.shown + name), Err: err}
	if errors.Is(err, syscall.EACCES) && os.Geteuid() != 0 {
		return &hinted{out, fmt.Sprintf("sockd writes it as uid %[1]d: setfacl -m u:%[1]d:rwx -m d:u:%[2]d:rw %[3]s", os.Geteuid(), f.owner.UID, families.Printable(f.shown))}
	}
	return out
}

// shelf is a folder whose files are named by a pattern. It must be used by one goroutine
// at a time.
type shelf struct {
	folder
	pattern *files.Pattern
	base    string // the name that pattern is of
	timed   bool   // it has the time in it
	ring    int    // after so many files names come again, and replace those from before; 0: never
	parts   int
	mine    map[string]bool // names of files that are this shelf's: nothing else is replaced
}

// newShelf is a shelf at a place; of a ring of files when ring is not 0. Errors are
// *families.SyntaxError.
func newShelf(p model.Place, ring int, owner model.Owner) (*shelf, error) {
	pattern, err := files.NewPattern(p.Name(), ring)
	if err != nil {
		return nil, err
	}
	base := p.Name()
	timed := strings.Contains(strings.ReplaceAll(base, "%%", ""), "%")
	return &shelf{folder: folderOf(p, owner), pattern: pattern, base: base, timed: timed, ring: ring, mine: map[string]bool{}}, nil
}

// maxParts is how many names are tried for a file that is not complete: as many may
// have been left by others who write files of the same name.
const maxParts = 10_000

// create makes the next file, under a name that it has until it is complete. Names that
// others have are passed over. The caller owns the descriptor.
func (s *shelf) create() (part string, fd int, err error) {
	for range maxParts {
		s.parts++
		part = s.pattern.Part(s.parts)
		if fd, err = s.folder.create(part); !errors.Is(err, syscall.EEXIST) {
			break
		}
	}
	return part, fd, err
}

// place gives a file that began at t its name. It replaces nothing but, in a ring, the
// shelf's own oldest file.
func (s *shelf) place(part string, t time.Time) (name string, err error) {
	for tried := 1; ; tried++ {
		name = s.pattern.Next(t)
		if s.ring > 0 && s.mine[name] {
			err = s.rename(part, name)
		} else {
			err = s.renameNew(part, name) // in one step: others may want the name just now
		}
		if !errors.Is(err, syscall.EEXIST) || tried == s.ring {
			break
		}
	}
	if err != nil {
		return "", err
	}
	s.mine[name] = true
	return name, nil
}

// forget tells the shelf that a file of its own is deleted.
func (s *shelf) forget(name string) {
	s.pattern.Forget(name)
	delete(s.mine, name)
}

// hinted is an error with what would help.
type hinted struct {
	error
	hint string
}

// Hint is what would help.
func (h *hinted) Hint() string { return h.hint }

func (h *hinted) Unwrap() error { return h.error }
