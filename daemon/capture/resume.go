package capture

import (
	"cmp"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sockd/sockd/families/packet/files"
)

// oldFile is a file that a shelf had before the daemon was started.
type oldFile struct {
	name   string
	number int
	size   int64
	time   time.Time // when it was written last
}

// resume has names go on behind the files that bear a signature, and gives those, the
// oldest first. A part that was left by a daemon that was killed becomes a file: it is
// readable up to its last whole packet. All else is somebody else's, whatever its name.
// Where the directory cannot be read there is nothing.
func (s *shelf) resume(signature string) []oldFile {
	old := s.find(s.pattern.Names(), signature)
	if !s.timed {
		for range s.last(old) {
			s.pattern.Next(time.Time{})
		}
	}
	for _, o := range old {
		s.mine[o.name] = true
		s.pattern.Given(o.name)
	}
	base := strings.ReplaceAll(strings.ReplaceAll(s.base, "%%", "%"), "%", "")
	part := regexp.MustCompile(`^\.` + regexp.QuoteMeta(base) + `\.([0-9]+)\.part$`)
	for _, p := range s.find(part, signature) {
		if name, err := s.place(p.name, p.time); err == nil {
			p.name = name
			old = append(old, p)
		}
	}
	return old
}

// find lists the files whose names match and that bear a signature, with the number in
// their names.
func (s *shelf) find(name *regexp.Regexp, signature string) []oldFile {
	entries, err := os.ReadDir(s.path)
	if err != nil {
		return nil
	}
	var out []oldFile
	for _, e := range entries {
		m := name.FindStringSubmatch(e.Name())
		info, err := e.Info()
		if m == nil || err != nil || !info.Mode().IsRegular() {
			continue
		}
		n, err := strconv.Atoi(m[1])
		good := err == nil && n > 0 && n <= maxNumber || m[1] == "" // named by the time alone
		if good && s.signed(e.Name(), signature) {
			out = append(out, oldFile{e.Name(), n, info.Size(), info.ModTime()})
		}
	}
	slices.SortFunc(out, func(a, b oldFile) int { return cmp.Or(a.time.Compare(b.time), cmp.Compare(a.number, b.number)) })
	return out
}

// signed tells whether a file begins with a section of that comment.
func (s *shelf) signed(name, signature string) bool {
	comment, ok := files.Comment(filepath.Join(s.path, name))
	return ok && comment == signature
}

// maxNumber bounds the numbers that are gone on with.
const maxNumber = 1 << 24

// last is how many names were given when the newest of files was.
func (s *shelf) last(old []oldFile) int {
	switch {
	case len(old) == 0:
		return 0
	case s.ring > 0:
		return old[len(old)-1].number % s.ring
	}
	most := 0
	for _, o := range old {
		most = max(most, o.number)
	}
	return most
}
