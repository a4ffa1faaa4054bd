package files

import (
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sockd/sockd/families"
)

// Pattern makes the names of a capture's files out of the one name that was given. It
// must be used by one goroutine at a time.
//
//	FILE                 names
//	cap.pcapng           cap_00001.pcapng cap_00002.pcapng ...
//	cap.pcapng, ring 10  cap_01.pcapng ... cap_10.pcapng cap_01.pcapng ...
//	cap-%H.pcapng        cap-08.pcapng cap-09.pcapng, and cap-09_00002.pcapng when that is there
type Pattern struct {
	dir, stem, suffix string
	timed             bool // stem or suffix has a conversion
	ring              int
	width             int
	given             map[string]struct{} // by Next, of those that Forget has not had; timed only
	count             int
}

// counterWidth is how wide the counter of files without number is: they sort by name
// for 99,999 files, and become wider then.
const counterWidth = 5

// NewPattern reads FILE. Its directory is taken as it stands; in its last element the
// conversions of strftime(3) stand for the time that a file begins, %% for a per cent
// sign. ring is after how many files a counter begins anew, and how wide it is; 0:
// never. Errors are *families.SyntaxError.
func NewPattern(file string, ring int) (*Pattern, error) {
	dir, base := filepath.Split(file)
	if base == "" || base == "." || base == ".." {
		return nil, &families.SyntaxError{What: "file name", Text: file, Why: "is a directory's"}
	}
	if err := checkFormat(base); err != nil {
		return nil, err
	}
	p := &Pattern{dir: dir, ring: ring, width: counterWidth, given: map[string]struct{}{}}
	if ring > 0 {
		p.width = len(strconv.Itoa(ring))
	}
	p.suffix = filepath.Ext(base)
	if p.suffix == base { // .capture has no suffix
		p.suffix = ""
	}
	p.stem = strings.TrimSuffix(base, p.suffix)
	p.timed = strings.Contains(strings.ReplaceAll(base, "%%", ""), "%")
	return p, nil
}

// Part is the name under which file number n, from 1, is written until it is complete.
// It is hidden, and in the same directory, so that renaming it is one step.
func (p *Pattern) Part(n int) string {
	return filepath.Join(p.dir, fmt.Sprintf(".%s.%d.part", strings.ReplaceAll(p.stem+p.suffix, "%", ""), n))
}

// Next is the name of the next file that is complete, which began at t. No name is
// given twice but those of a ring, whose oldest file is to be replaced, and those that
// Forget was told of.
func (p *Pattern) Next(t time.Time) string {
	if !p.timed {
		p.count++
		n := p.count
		if p.ring > 0 {
			n = (n-1)%p.ring + 1
		}
		return p.numbered(format(p.stem, t), format(p.suffix, t), n)
	}
	stem, suffix := format(p.stem, t), format(p.suffix, t)
	name := filepath.Join(p.dir, stem+suffix)
	for n := 2; p.wasGiven(name); n++ {
		name = p.numbered(stem, suffix, n)
	}
	p.given[name] = struct{}{}
	return name
}

func (p *Pattern) wasGiven(name string) bool {
	_, given := p.given[name]
	return given
}

func (p *Pattern) numbered(stem, suffix string, n int) string {
	return filepath.Join(p.dir, fmt.Sprintf("%s_%0*d%s", stem, p.width, n, suffix))
}

// Names matches the names, without their directory, that Next may give, and has the
// counter as its first group: "" where there is none.
func (p *Pattern) Names() *regexp.Regexp {
	counter := `_([0-9]+)`
	if p.timed {
		counter = `(?:_([0-9]+))?`
	}
	return regexp.MustCompile(`^` + shape(p.stem) + counter + shape(p.suffix) + `$`)
}

// Given tells that there is a file already of a name that Next might give.
func (p *Pattern) Given(name string) {
	if p.timed {
		p.given[name] = struct{}{}
	}
}

// Forget tells that a file is deleted: its name may be given again.
func (p *Pattern) Forget(name string) { delete(p.given, name) }

// Keep says which files are to be deleted so that the rest stays within bounds. It
// must be used by one goroutine at a time.
type Keep struct {
	Count int   // files; 0: no bound
	Bytes int64 // of all together; 0: no bound

	list  []kept
	bytes int64
}

type kept struct {
	name string
	size int64
}

// Has tells whether a file is one of those that stay.
func (k *Keep) Has(name string) bool {
	return slices.ContainsFunc(k.list, func(f kept) bool { return f.name == name })
}

// Add takes a file in and gives the names of those that are too many, the oldest
// first. A file of the same name was replaced by this one.
func (k *Keep) Add(name string, size int64) (remove []string) {
	for i, f := range k.list {
		if f.name == name {
			k.bytes -= f.size
			k.list = append(k.list[:i], k.list[i+1:]...)
			break
		}
	}
	k.list = append(k.list, kept{name, size})
	k.bytes += size
	for k.Count > 0 && len(k.list) > k.Count || k.Bytes > 0 && k.bytes > k.Bytes {
		oldest := k.list[0]
		k.list, k.bytes = k.list[1:], k.bytes-oldest.size
		remove = append(remove, oldest.name)
	}
	return remove
}
