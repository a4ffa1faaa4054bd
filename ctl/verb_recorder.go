package ctl

import (
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/sockd/sockd/ctl/borrow"
	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/model"
)

// What the verbs of recorder have in common: the parameters of io.sockd.Recorder. One
// file each: add, set, dump, show, ls, rm.

type recorderOut struct {
	Recorder model.Recorder `json:"recorder"`
}

// recorderPlace is a directory in which the daemon makes files: its descriptor, and the
// whole path in escaped form.
type recorderPlace struct {
	Descriptor int    `json:"descriptor"`
	Path       string `json:"path"`
}

// recorderSettings are the settings of a recorder on the wire; nil has its default.
type recorderSettings struct {
	Direction *string        `json:"direction,omitempty"`
	Snaplen   *int64         `json:"snaplen,omitempty"`
	NoPromisc *bool          `json:"no_promisc,omitempty"`
	Last      *int64         `json:"last,omitempty"`
	Bytes     *int64         `json:"bytes,omitempty"`
	File      *recorderPlace `json:"file,omitempty"`
	Size      *int64         `json:"size,omitempty"`
	Every     *int64         `json:"every,omitempty"`
	Count     *int64         `json:"count,omitempty"`
	MaxBytes  *int64         `json:"max_bytes,omitempty"`
	Trigger   *string        `json:"trigger,omitempty"`
	OnDrop    *int64         `json:"on_drop,omitempty"`
	After     *int64         `json:"after,omitempty"`
	DumpTo    *recorderPlace `json:"dump_to,omitempty"`
	Permanent *bool          `json:"permanent,omitempty"`
}

// recorderSpec reads the settings of a recorder of source. On success the descriptors are
// the caller's.
func (r request) recorderSpec(s recorderSettings) (spec model.RecorderSpec, err error) {
	if err := s.check(); err != nil {
		return model.RecorderSpec{}, err
	}
	spec = model.RecorderSpec{
		Direction: orZero(s.Direction), Snaplen: int(orZero(s.Snaplen)), NoPromisc: orZero(s.NoPromisc),
		Last: time.Duration(orZero(s.Last)), Bytes: orZero(s.Bytes), Permanent: orZero(s.Permanent),
		Trigger: model.TriggerSpec{Filter: orZero(s.Trigger), OnDrop: orZero(s.OnDrop), After: time.Duration(orZero(s.After))},
		Owner:   r.caller.Owner(),
	}
	if spec.Trigger.To, err = r.takePlace("settings.dump_to", s.DumpTo); err != nil {
		return model.RecorderSpec{}, err
	}
	if spec.Disk, err = r.takeDisk(s); err != nil {
		closeFile(spec.Trigger.To.Dir)
		return model.RecorderSpec{}, err
	}
	return spec, nil
}

// takeDisk is where a recorder to disk writes, nil for one in memory.
func (r request) takeDisk(s recorderSettings) (*model.DiskSpec, error) {
	if s.File == nil {
		if s.Size != nil || s.Every != nil || s.Count != nil || s.MaxBytes != nil {
			return nil, fmt.Errorf("size, every, count and max_bytes are of files, and there is no file: %w", families.ErrSyntax)
		}
		return nil, nil
	}
	to, err := r.takePlace("settings.file", s.File)
	if err != nil {
		return nil, err
	}
	return &model.DiskSpec{To: to, Size: orZero(s.Size), Every: time.Duration(orZero(s.Every)), Count: int(orZero(s.Count)), MaxBytes: orZero(s.MaxBytes)}, nil
}

// takePlace takes the descriptor of p, which parameter names.
func (r request) takePlace(parameter string, p *recorderPlace) (model.Place, error) {
	if p == nil {
		return model.Place{Dir: model.NoFD}, nil
	}
	path, err := families.Unescape(p.Path)
	if err != nil {
		return model.Place{}, fmt.Errorf("%s.path: %w", parameter, err)
	}
	if !filepath.IsAbs(path) || strings.HasSuffix(path, "/") || strings.ContainsRune(path, 0) {
		return model.Place{}, fmt.Errorf("%s.path is %s: want an absolute path of a file: %w", parameter, families.Quote(p.Path), families.ErrSyntax)
	}
	fd, err := r.takeFileOf(parameter+".descriptor", &p.Descriptor)
	if err != nil {
		return model.Place{}, err
	}
	return model.Place{Path: path, Dir: fd}, nil
}

// closePlaces closes the descriptors of a recorder that was refused.
func closePlaces(spec model.RecorderSpec) {
	closeFile(spec.Trigger.To.Dir)
	if spec.Disk != nil {
		closeFile(spec.Disk.To.Dir)
	}
}

// check finds numbers that mean nothing.
func (s recorderSettings) check() error {
	for name, n := range map[string]*int64{
		"snaplen": s.Snaplen, "last": s.Last, "bytes": s.Bytes, "size": s.Size, "every": s.Every,
		"count": s.Count, "max_bytes": s.MaxBytes, "on_drop": s.OnDrop, "after": s.After,
	} {
		if n != nil && *n < 1 {
			return &families.SyntaxError{What: name, Text: fmt.Sprint(*n), Why: "want a number from 1"}
		}
	}
	if n := orZero(s.Snaplen); n > maxSnaplen {
		return &families.SyntaxError{What: "snaplen", Text: fmt.Sprint(n), Why: fmt.Sprintf("want at most %d", maxSnaplen)}
	}
	if n := orZero(s.Count); n > maxFiles {
		return &families.SyntaxError{What: "count", Text: fmt.Sprint(n), Why: fmt.Sprintf("want at most %d", maxFiles)}
	}
	return nil
}

// maxFiles bounds the files that a recorder keeps: their names are remembered.
const maxFiles = 1 << 20

// places are directories that were opened to be sent.
type places struct{ files []int }

// open opens the directory of a path with the caller's own rights, for the daemon to
// make files in it.
func (p *places) open(path string) (*recorderPlace, error) {
	fd, path, err := borrow.Folder(path)
	if err != nil {
		return nil, err
	}
	p.files = append(p.files, fd)
	return &recorderPlace{Descriptor: len(p.files) - 1, Path: families.Escape(path)}, nil
}

func (p *places) close() { closeAll(p.files) }

// recorderColumns are what ls shows of recorders.
var recorderColumns = []string{"id", "name", "state", "source", "filter", "held_packets", "held_bytes", "oldest", "received", "dropped_kernel", "dumps"}

func recorderLine(r model.Recorder) string {
	return strings.Join([]string{r.Name, r.State, cell(r.Source), cell(r.Filter)}, " ")
}
