package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/coreos/go-systemd/v22/unit"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/model"
)

// Format writes a relay as a file of relays.d that reads back the same. Name,
// owner, descriptors and Permanent are not in it.
func Format(spec model.RelaySpec) string {
	opts := []*unit.UnitOption{{Section: "Relay", Name: "From", Value: endpoint(spec.From)}}
	add := func(name, value string) {
		opts = append(opts, &unit.UnitOption{Section: "Relay", Name: name, Value: value})
	}
	for _, to := range spec.To {
		add("To", endpoint(to))
	}
	if spec.Balance != "" {
		add("Balance", spec.Balance)
	}
	if spec.MaxConns != 0 {
		add("MaxConns", strconv.Itoa(spec.MaxConns))
	}
	if spec.ConnectTimeout != 0 {
		add("ConnectTimeout", model.FormatDuration(spec.ConnectTimeout))
	}
	if spec.Idle != 0 {
		add("Idle", model.FormatDuration(spec.Idle))
	}
	if spec.HalfClose > 0 {
		add("HalfClose", model.FormatDuration(spec.HalfClose))
	}
	for _, a := range spec.Allow { // a line each: a file's line is bounded
		add("Allow", a.String())
	}
	if spec.Rate > 0 {
		add("Rate", model.FormatSize(spec.Rate))
	}
	if spec.Pass != "" {
		add("Pass", spec.Pass)
	}
	if spec.Durable != "" {
		add("Durable", spec.Durable)
	}
	return serialize(opts)
}

func serialize(opts []*unit.UnitOption) string {
	text, _ := io.ReadAll(unit.Serialize(opts)) // it reads memory
	return string(text)
}

func endpoint(e families.Endpoint) string { return line(e.String()) }

// line prints escaped text for a line of its own, where spaces at the end are cut off
// and a backslash at the end would join the next line to it.
func line(s string) string {
	if spaces := s[len(strings.TrimRight(s, " ")):]; spaces != "" {
		s = s[:len(s)-len(spaces)] + strings.Repeat(`\x20`, len(spaces))
	}
	if strings.HasSuffix(s, `\\`) {
		s = strings.TrimSuffix(s, `\\`) + `\x5c`
	}
	return s
}

// Save writes a relay below dir, as relays.d/NAME.conf: whole or not at all, also
// if the power goes. It returns the file's path.
func Save(dir string, spec model.RelaySpec) (string, error) {
	return relayFiles.save(dir, spec.Name, Format(spec))
}

// A folder is one kind of object that the state directory keeps.
type folder struct{ kind, dir, section string }

var (
	relayFiles    = folder{"relay", "relays.d", "Relay"}
	recorderFiles = folder{"recorder", "recorders.d", "Recorder"}
)

// save writes the text of one object: whole or not at all.
func (f folder) save(dir, name, text string) (string, error) {
	file, err := f.file(dir, name)
	if err != nil {
		return "", err
	}
	if _, problems := parseUnit(file, text, f.section); len(problems) > 0 {
		return "", fmt.Errorf("save %s %s: %w", f.kind, name, problems[0]) // a line too long for systemd's syntax
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return "", fmt.Errorf("save %s %s: %w", f.kind, name, err)
	}
	if err := writeAtomically(file, text); err != nil {
		return "", fmt.Errorf("save %s %s: %w", f.kind, name, err)
	}
	return file, nil
}

// Remove deletes what Save wrote. A relay that was never saved is no error.
func Remove(dir, name string) error { return relayFiles.remove(dir, name) }

func (f folder) remove(dir, name string) error {
	file, err := f.file(dir, name)
	if err != nil {
		return err
	}
	if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forget %s %s: %w", f.kind, name, err)
	}
	return nil
}

func (f folder) file(dir, name string) (string, error) {
	if dir == "" {
		return "", fmt.Errorf("%s %s: there is no state directory to keep it in: %w", f.kind, name, families.ErrNotSupported)
	}
	if !model.ValidName(name) {
		return "", &families.SyntaxError{What: "name", Text: name, Why: "no " + f.kind + " can have this name"}
	}
	return filepath.Join(dir, f.dir, name+".conf"), nil
}

// writeAtomically writes beside file and renames; the folder is synced too, since
// a rename is in the folder.
func writeAtomically(file, text string) error {
	f, err := os.CreateTemp(filepath.Dir(file), ".new-*")
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), file)
	}
	if err != nil {
		_ = os.Remove(f.Name()) // the first error is the one to tell
		return err
	}
	return syncDir(filepath.Dir(file))
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
