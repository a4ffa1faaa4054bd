package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/coreos/go-systemd/v22/unit"
)

// A Problem is something in a file that cannot be used, or that cannot be
// meant. Line is 0 where the file as a whole is wrong.
type Problem struct {
	File string
	Line int
	Err  error
}

func (p Problem) Error() string {
	if p.Line == 0 {
		return fmt.Sprintf("%s: %v", p.File, p.Err)
	}
	return fmt.Sprintf("%s:%d: %v", p.File, p.Line, p.Err)
}

func (p Problem) Unwrap() error { return p.Err }

// A setting is one Key=Value line and where it stands.
type setting struct {
	file       string
	line       int
	key, value string
}

func (s setting) problem(err error) *Problem { return &Problem{File: s.file, Line: s.line, Err: err} }

func (s setting) problemf(format string, args ...any) *Problem {
	return s.problem(fmt.Errorf(format, args...))
}

// maxFile bounds what is read of one file: settings are a few lines, and a
// directory may hold anything.
const maxFile = 1 << 20

// readUnit reads one file, whose only section is section.
func readUnit(file, section string) ([]setting, []Problem) {
	info, err := os.Stat(file)
	if err != nil {
		return nil, []Problem{{File: file, Err: cause(err)}}
	}
	if !info.Mode().IsRegular() {
		return nil, []Problem{{File: file, Err: errors.New("not a file")}}
	}
	if info.Size() > maxFile {
		return nil, []Problem{{File: file, Err: fmt.Errorf("larger than %d bytes", maxFile)}}
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, []Problem{{File: file, Err: cause(err)}}
	}
	return parseUnit(file, string(text), section)
}

// cause takes the path off an error, which the Problem names already.
func cause(err error) error {
	var path *fs.PathError
	if errors.As(err, &path) {
		return path.Err
	}
	return err
}

// parseUnit reads the text of one file. go-systemd reads each line; which line it
// is only we know, because it tells no numbers. What is below a section that is not
// the file's is not read, and of what is above the first one only the first line is
// a problem.
func parseUnit(file, text, section string) ([]setting, []Problem) {
	var out []setting
	var problems []Problem
	lines := strings.Split(text, "\n")
	inside, elsewhere := false, false
	for i := 0; i < len(lines); i++ {
		here := setting{file: file, line: i + 1}
		line := strings.TrimSpace(lines[i])
		switch {
		case line == "" || line[0] == '#' || line[0] == ';':
			continue
		case line[0] == '[':
			inside = line == "["+section+"]"
			elsewhere = !inside
			if elsewhere {
				problems = append(problems, *here.problemf("section %s: this file has [%s] only", line, section))
			}
			continue
		case !inside && !elsewhere:
			problems = append(problems, *here.problemf("%q stands before [%s]", line, section))
			elsewhere = true
		}
		whole := strings.TrimRight(lines[i], "\r")
		for strings.HasSuffix(whole, `\`) && i+1 < len(lines) {
			i++
			whole += "\n" + strings.TrimRight(lines[i], "\r")
		}
		if elsewhere {
			continue
		}
		var err error
		if here.key, here.value, err = parseLine(whole); err != nil {
			problems = append(problems, *here.problem(err))
			continue
		}
		out = append(out, here)
	}
	return out, problems
}

// parseLine reads one Key=Value with its continuation lines. A backslash at a
// line's end and the line feed are one space (systemd.syntax(7)).
func parseLine(line string) (key, value string, err error) {
	if !strings.Contains(line, "=") {
		return "", "", fmt.Errorf("%q: want Key=Value", line)
	}
	opts, err := unit.DeserializeOptions(strings.NewReader("[x]\n" + line))
	if err != nil {
		return "", "", err
	}
	if len(opts) != 1 || opts[0].Name == "" {
		return "", "", fmt.Errorf("%q: want Key=Value", line)
	}
	value = opts[0].Value
	if strings.HasSuffix(strings.TrimSpace(value), `\`) {
		return "", "", errors.New("the line goes on, and the file ends")
	}
	return opts[0].Name, strings.TrimSpace(strings.ReplaceAll(value, "\\\n", " ")), nil
}

// find lists the *.conf files of one folder below each of dirs, by name; the file
// of the last directory stands for its name. masked ones have an empty path.
func find(dirs []string, folder string) (map[string]string, []Problem) {
	files := map[string]string{}
	var problems []Problem
	for _, dir := range dirs {
		path := filepath.Join(dir, folder)
		entries, err := os.ReadDir(path)
		switch {
		case missing(path):
			continue
		case err != nil:
			problems = append(problems, Problem{File: path, Err: cause(err)})
			continue
		}
		for _, e := range entries {
			if name := e.Name(); strings.HasSuffix(name, ".conf") && !e.IsDir() {
				files[name] = unmasked(filepath.Join(path, name))
			}
		}
	}
	return files, problems
}

// missing tells whether there is nothing at path, also because what is above it
// is no directory.
func missing(path string) bool {
	_, err := os.Lstat(path)
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR)
}

// unmasked is file, or "" when it is a link to /dev/null.
func unmasked(file string) string {
	to, err := filepath.EvalSymlinks(file)
	if err == nil && to == os.DevNull {
		return ""
	}
	return file
}

// readAll reads a file and its drop-ins. main is "" when there is none.
func readAll(dirs []string, main, dropins, section string) ([]setting, []Problem) {
	var out []setting
	files, problems := find(dirs, dropins)
	paths := make([]string, 0, len(files)+1)
	if main != "" {
		paths = append(paths, main)
	}
	for _, name := range sortedKeys(files) {
		if files[name] != "" {
			paths = append(paths, files[name])
		}
	}
	for _, path := range paths {
		settings, wrong := readUnit(path, section)
		out, problems = append(out, settings...), append(problems, wrong...)
	}
	return out, problems
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
