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
	text, _ := io.ReadAll(unit.Serialize(opts)) // it reads memory
	return string(text)
}

// endpoint prints e for a line of its own, where spaces at the end are cut off
// and a backslash at the end would join the next line to it.
func endpoint(e families.Endpoint) string {
	s := e.String()
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
	file, err := stateFile(dir, spec.Name)
	if err != nil {
		return "", err
	}
	text := Format(spec)
	if _, problems := parseUnit(file, text, "Relay"); len(problems) > 0 {
		return "", fmt.Errorf("save relay %s: %w", spec.Name, problems[0]) // a line too long for systemd's syntax
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return "", fmt.Errorf("save relay %s: %w", spec.Name, err)
	}
	if err := writeAtomically(file, text); err != nil {
		return "", fmt.Errorf("save relay %s: %w", spec.Name, err)
	}
	return file, nil
}

// Remove deletes what Save wrote. A relay that was never saved is no error.
func Remove(dir, name string) error {
	file, err := stateFile(dir, name)
	if err != nil {
		return err
	}
	if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forget relay %s: %w", name, err)
	}
	return nil
}

func stateFile(dir, name string) (string, error) {
	if dir == "" {
		return "", fmt.Errorf("relay %s: there is no state directory to keep it in: %w", name, families.ErrNotSupported)
	}
	if !model.ValidName(name) {
		return "", &families.SyntaxError{What: "name", Text: name, Why: "no relay can have this name"}
	}
	return filepath.Join(dir, "relays.d", name+".conf"), nil
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
