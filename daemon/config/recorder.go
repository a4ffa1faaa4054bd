package config

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/unit"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/model"
)

// Recorder is one file of recorders.d with its drop-ins.
type Recorder struct {
	Spec model.RecorderSpec
	Origin
}

func (c *Config) loadRecorders(dirs []string) {
	c.Recorders = loadAll(c, dirs, recorderFiles, readRecorder, func(name string, _ Recorder) {
		c.BrokenRecorders = append(c.BrokenRecorders, name)
	})
}

func readRecorder(dirs []string, name, file string) (Recorder, []Problem) {
	if !model.ValidName(name) {
		return Recorder{}, badName(file, name)
	}
	settings, problems := recorderFiles.read(dirs, name, file)
	r := Recorder{Origin: originOf(file)}
	r.Spec = model.RecorderSpec{Name: name, SourceFile: file, Trigger: model.TriggerSpec{To: model.Place{Dir: model.NoFD}}}
	for _, s := range settings {
		if err := r.set(s); err != nil {
			problems = append(problems, *s.problem(err))
		}
	}
	if len(problems) == 0 {
		problems = r.check()
	}
	return r, problems
}

// recorderKeys are the keys of [Recorder] in the order in which they are written.
var recorderKeys = []string{
	"Source", "Filter", "Direction", "SnapLen", "Promisc", "Last", "Bytes",
	"File", "Size", "Every", "Count", "MaxBytes", "Trigger", "OnDrop", "After", "DumpTo",
}

func (r *Recorder) set(s setting) error {
	r.lines[s.key] = s
	spec, t := &r.Spec, &r.Spec.Trigger
	switch s.key {
	case "Source":
		spec.Source = s.value
	case "Filter":
		spec.Filter = s.value
	case "Direction":
		spec.Direction = s.value
	case "SnapLen":
		return setNumber(&spec.Snaplen, s.value)
	case "Promisc":
		return setPromisc(&spec.NoPromisc, s.value)
	case "Last":
		return setSpan(&spec.Last, s.value)
	case "Bytes":
		return setSize(&spec.Bytes, s.value)
	case "Trigger":
		t.Filter = s.value
	case "OnDrop":
		return setSize(&t.OnDrop, s.value)
	case "After":
		return setSpan(&t.After, s.value)
	case "DumpTo":
		return setPlace(&t.To, s)
	default:
		return r.setDisk(s)
	}
	return nil
}

// setDisk sets what is of a recorder to files.
func (r *Recorder) setDisk(s setting) error {
	d := model.DiskSpec{To: model.Place{Dir: model.NoFD}}
	if r.Spec.Disk != nil {
		d = *r.Spec.Disk
	}
	var err error
	switch s.key {
	case "File":
		err = setPlace(&d.To, s)
	case "Size":
		err = setSize(&d.Size, s.value)
	case "Every":
		err = setSpan(&d.Every, s.value)
	case "Count":
		err = setNumber(&d.Count, s.value)
	case "MaxBytes":
		err = setSize(&d.MaxBytes, s.value)
	default:
		return unknownKey(s.key, strings.Join(recorderKeys[:len(recorderKeys)-1], "=, ")+"= or DumpTo=")
	}
	r.Spec.Disk = &d
	if d == (model.DiskSpec{To: model.Place{Dir: model.NoFD}}) {
		r.Spec.Disk = nil // taken back
	}
	return err
}

// setPromisc reads a boolean of systemd.syntax(7); an empty value is the default.
func setPromisc(no *bool, value string) error {
	switch strings.ToLower(value) {
	case "", "1", "yes", "y", "true", "t", "on":
		*no = false
	case "0", "no", "n", "false", "f", "off":
		*no = true
	default:
		return &families.SyntaxError{What: "value", Text: value, Why: "want yes or no"}
	}
	return nil
}

// setSpan reads a duration; an empty value is none.
func setSpan(to *time.Duration, value string) error {
	return setValue(to, value, "duration", "want more than 0", func(s string) (time.Duration, error) {
		d, err := model.ParseDuration(s)
		return max(d, 0), err // "none" is refused, too
	})
}

// setSize reads a size, or a number; an empty value is none.
func setSize(to *int64, value string) error {
	return setValue(to, value, "size", "want more than 0", model.ParseSize)
}

// setPlace reads an absolute path, in a file that nobody else can write: the daemon
// makes files there with its own rights.
func setPlace(to *model.Place, s setting) error {
	*to = model.Place{Dir: model.NoFD}
	if s.value == "" {
		return nil
	}
	path, err := families.Unescape(s.value)
	if err != nil {
		return err
	}
	if !filepath.IsAbs(path) {
		return &families.SyntaxError{What: "path", Text: s.value, Column: 1, Why: "a path in a file begins with /"}
	}
	if err := trusted(s.file); err != nil {
		return err
	}
	to.Path = filepath.Clean(path)
	return nil
}

// check looks at what no single line can tell.
func (r *Recorder) check() []Problem {
	switch d := r.Spec.Disk; {
	case r.Spec.Source == "":
		return []Problem{r.Problem("Source", fmt.Errorf("there is no Source=: %w", families.ErrSyntax))}
	case d != nil && d.To.Path == "":
		return []Problem{r.Problem("File", fmt.Errorf("there is no File= to cut: %w", families.ErrSyntax))}
	}
	return nil
}

// FormatRecorder writes a recorder as a file of recorders.d that reads back the same.
// Name, owner, descriptors and Permanent are not in it.
func FormatRecorder(spec model.RecorderSpec) string {
	values := recorderValues(spec)
	var opts []*unit.UnitOption
	for _, key := range recorderKeys {
		if v := values[key]; v != "" {
			opts = append(opts, &unit.UnitOption{Section: recorderFiles.section, Name: key, Value: v})
		}
	}
	return serialize(opts)
}

// recorderValues are the values of keys; "" is the default.
func recorderValues(spec model.RecorderSpec) map[string]string {
	t := spec.Trigger
	v := map[string]string{
		"Source": spec.Source, "Filter": words(spec.Filter), "Direction": spec.Direction, "SnapLen": number(int64(spec.Snaplen)),
		"Last": span(spec.Last), "Bytes": size(spec.Bytes),
		"Trigger": words(t.Filter), "OnDrop": number(t.OnDrop), "After": span(t.After), "DumpTo": pathOf(t.To),
	}
	if spec.NoPromisc {
		v["Promisc"] = "no"
	}
	if d := spec.Disk; d != nil {
		v["File"], v["Size"], v["Every"] = pathOf(d.To), size(d.Size), span(d.Every)
		v["Count"], v["MaxBytes"] = number(int64(d.Count)), size(d.MaxBytes)
	}
	return v
}

// words is a filter on one line. Spaces stay, for names in quotes may have some; these have no line breaks.
func words(filter string) string {
	return strings.TrimSpace(strings.ReplaceAll(filter, "\n", " "))
}

func pathOf(p model.Place) string { return line(families.Escape(p.Path)) }

func number(n int64) string {
	if n == 0 {
		return ""
	}
	return strconv.FormatInt(n, 10)
}

func size(n int64) string {
	if n == 0 {
		return ""
	}
	return model.FormatSize(n)
}

func span(d time.Duration) string {
	if d == 0 {
		return ""
	}
	return model.FormatDuration(d)
}

// SaveRecorder writes a recorder below dir, as recorders.d/NAME.conf, as Save does a relay.
func SaveRecorder(dir string, spec model.RecorderSpec) (string, error) {
	return recorderFiles.save(dir, spec.Name, FormatRecorder(spec))
}

// RemoveRecorder deletes what SaveRecorder wrote. One that was never saved is no error.
func RemoveRecorder(dir, name string) error { return recorderFiles.remove(dir, name) }
