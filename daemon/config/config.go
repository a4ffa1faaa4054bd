package config

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/model"
)

// Config is all that was read.
type Config struct {
	Daemon    Daemon
	Relays    []Relay    // by name
	Recorders []Recorder // by name
	Problems  []Problem
	// BrokenRecorders are the names of recorders whose files cannot be used.
	BrokenRecorders []string
	// Broken are the names of relays whose files cannot be used: what runs under
	// such a name is to be left as it is.
	Broken []string
	// Partial are those relays as far as their files can be read, for those who look
	// for further mistakes. They are not to be run.
	Partial []Relay
}

// Daemon is sockd.conf.
type Daemon struct {
	LogLevel   *slog.Level // nil: not said
	MaxSockets int         // how many sockets verbs may have open at once; 0: as many as there are descriptors
}

// Relay is one file of relays.d with its drop-ins.
type Relay struct {
	Spec model.RelaySpec
	Origin
	tos []setting // those of Spec.To
}

// Origin is where an object stands: its file, and the file and line of each key.
type Origin struct {
	File  string
	lines map[string]setting
}

// Problem is an error about the object, at the line of its key ("From", "To").
func (o Origin) Problem(key string, err error) Problem {
	if s, ok := o.lines[key]; ok {
		return *s.problem(err)
	}
	return Problem{File: o.File, Err: err}
}

// ProblemTo is Problem at the line of the i-th TO.
func (r Relay) ProblemTo(i int, err error) Problem {
	if i < len(r.tos) {
		return *r.tos[i].problem(err)
	}
	return r.Problem("To", err)
}

// The directories of configuration of a daemon that serves the whole host, the
// last one strongest.
const (
	vendorDir  = "/usr/lib/sockd"
	runtimeDir = "/run/sockd"
	systemDir  = "/etc/sockd"
)

// DefaultDirs are the directories of configuration, the last one strongest: the
// system's for root and for the service that ConfigurationDirectory= gave
// /etc/sockd, the user's own for anybody else. getenv is os.Getenv.
func DefaultDirs(uid int, getenv func(string) string) []string {
	given, _, _ := strings.Cut(getenv("CONFIGURATION_DIRECTORY"), ":")
	switch {
	case given == systemDir || given == "" && uid == 0:
		return []string{vendorDir, runtimeDir, systemDir}
	case given != "":
		return []string{given}
	}
	return home(getenv, "XDG_CONFIG_HOME", ".config")
}

// DefaultState is the directory of --permanent relays, or "" when there is no
// place for one.
func DefaultState(uid int, getenv func(string) string) string {
	given, _, _ := strings.Cut(getenv("STATE_DIRECTORY"), ":")
	switch {
	case given != "":
		return given
	case uid == 0:
		return "/var/lib/sockd"
	}
	for _, dir := range home(getenv, "XDG_STATE_HOME", ".local/state") {
		return dir
	}
	return ""
}

// home is sockd's folder in one of the user's base directories.
func home(getenv func(string) string, variable, below string) []string {
	if dir := getenv(variable); filepath.IsAbs(dir) {
		return []string{filepath.Join(dir, "sockd")}
	}
	if dir := getenv("HOME"); filepath.IsAbs(dir) {
		return []string{filepath.Join(dir, below, "sockd")}
	}
	return nil
}

// Load reads everything below dirs. It always returns a Config: what could not be
// read is among its Problems. A directory that is not there holds nothing.
func Load(dirs []string) Config {
	var c Config
	c.loadDaemon(dirs)
	c.loadRelays(dirs)
	c.loadRecorders(dirs)
	return c
}

// LoadState reads the relays and recorders that Save and SaveRecorder wrote below dir.
func LoadState(dir string) Config {
	var c Config
	if dir != "" {
		c.loadRelays([]string{dir})
		c.loadRecorders([]string{dir})
	}
	return c
}

func (c *Config) loadDaemon(dirs []string) {
	main := ""
	for _, dir := range dirs {
		file := filepath.Join(dir, "sockd.conf")
		if _, err := os.Lstat(file); err == nil {
			main = unmasked(file)
		}
	}
	settings, problems := readAll(dirs, main, "sockd.conf.d", "Daemon")
	c.Problems = append(c.Problems, problems...)
	for _, s := range settings {
		if err := c.Daemon.set(s.key, s.value); err != nil {
			c.Problems = append(c.Problems, *s.problem(err))
		}
	}
}

func (d *Daemon) set(key, value string) error {
	switch key {
	case "LogLevel":
		return d.setLogLevel(value)
	case "MaxSockets":
		return setNumber(&d.MaxSockets, value)
	}
	return unknownKey(key, "LogLevel=, MaxSockets=")
}

func (d *Daemon) setLogLevel(value string) error {
	d.LogLevel = nil
	if value == "" {
		return nil
	}
	level, err := ParseLevel(value)
	if err == nil {
		d.LogLevel = &level
	}
	return err
}

// ParseLevel reads debug, info, warning or error.
func ParseLevel(s string) (slog.Level, error) {
	switch strings.ToLower(s) {
	case "debug":
		return slog.LevelDebug, nil
	case "info":
		return slog.LevelInfo, nil
	case "warn", "warning":
		return slog.LevelWarn, nil
	case "error", "err":
		return slog.LevelError, nil
	}
	return 0, &families.SyntaxError{What: "log level", Text: s, Why: "want debug, info, warning or error"}
}

// setNumber reads a number from 1; an empty value is 0, the default.
func setNumber(to *int, value string) error {
	return setValue(to, value, "number", "want a number from 1", func(s string) (int, error) {
		n, err := strconv.Atoi(s)
		if err != nil {
			n = 0 // refused like it
		}
		return max(n, 0), nil
	})
}

// setValue reads a value whose default is 0: an empty one is that, and one that parse
// takes for 0 is refused.
func setValue[T ~int | ~int64](to *T, value, what, why string, parse func(string) (T, error)) error {
	*to = 0
	if value == "" {
		return nil
	}
	v, err := parse(value)
	if err == nil && v == 0 {
		err = &families.SyntaxError{What: what, Text: value, Why: why}
	}
	*to = v
	return err
}

func unknownKey(key, known string) error {
	return &families.SyntaxError{What: "key", Text: key, Why: "there is none of this name; want " + known}
}

func (c *Config) loadRelays(dirs []string) {
	c.Relays = loadAll(c, dirs, relayFiles, readRelay, func(name string, r Relay) {
		c.Broken = append(c.Broken, name)
		c.Partial = append(c.Partial, r)
	})
}

// loadAll reads the objects of one kind, by name. broken is told of those that cannot be
// used, as far as they can be read.
func loadAll[T any](c *Config, dirs []string, f folder, read func(dirs []string, name, file string) (T, []Problem), broken func(name string, o T)) (all []T) {
	files, problems := find(dirs, f.dir)
	c.Problems = append(c.Problems, problems...)
	for _, file := range sortedKeys(files) {
		if files[file] == "" {
			continue
		}
		name := strings.TrimSuffix(file, ".conf")
		o, problems := read(dirs, name, files[file])
		if len(problems) > 0 {
			c.Problems = append(c.Problems, problems...)
			broken(name, o)
			continue
		}
		all = append(all, o)
	}
	return all
}

// read reads the file of one object, and its drop-ins.
func (f folder) read(dirs []string, name, file string) ([]setting, []Problem) {
	return readAll(dirs, file, filepath.Join(f.dir, name+".conf.d"), f.section)
}

func originOf(file string) Origin { return Origin{File: file, lines: map[string]setting{}} }

// badName is the problem of a file whose name is none of a relay or recorder.
func badName(file, name string) []Problem {
	return []Problem{{File: file, Err: &families.SyntaxError{What: "name", Text: name, Why: "want a letter or _, then letters, digits, _ . -, 64 at most"}}}
}

func readRelay(dirs []string, name, file string) (Relay, []Problem) {
	if !model.ValidName(name) {
		return Relay{}, badName(file, name)
	}
	settings, problems := relayFiles.read(dirs, name, file)
	lines := len(problems) == 0 // else what seems to be missing may stand in a line that does not parse
	r := Relay{Origin: originOf(file), Spec: model.RelaySpec{Name: name, Source: file, FromFD: model.NoFD}}
	for _, s := range settings {
		if err := r.set(s); err != nil {
			problems = append(problems, *s.problem(err))
		}
	}
	if lines {
		problems = append(problems, r.check()...)
	}
	return r, problems
}

func (r *Relay) set(s setting) error {
	r.lines[s.key] = s
	spec := &r.Spec
	switch s.key {
	case "From":
		return setEndpoint(&spec.From, s)
	case "To":
		return r.addTo(s)
	case "Balance":
		spec.Balance = s.value
		return nil
	case "MaxConns":
		return setNumber(&spec.MaxConns, s.value)
	case "ConnectTimeout":
		return setLimit(&spec.ConnectTimeout, s.value)
	case "Idle":
		return setLimit(&spec.Idle, s.value)
	case "HalfClose":
		return setHalfClose(&spec.HalfClose, s.value)
	case "Allow":
		return addAllow(&spec.Allow, s.value)
	case "Rate":
		return setRate(&spec.Rate, s.value)
	case "Pass":
		spec.Pass = s.value
		return nil
	case "Durable":
		return setDurable(&spec.Durable, s.value)
	}
	return unknownKey(s.key, "From=, To=, Balance=, MaxConns=, ConnectTimeout=, Idle=, HalfClose=, Allow=, Rate=, Pass= or Durable=")
}

// setDurable reads a switch of systemd's units, or prefer.
func setDurable(to *string, value string) error {
	switch strings.ToLower(value) {
	case "", "no", "false", "off", "0":
		*to = ""
	case "yes", "true", "on", "1":
		*to = model.DurableYes
	case model.DurablePrefer:
		*to = model.DurablePrefer
	default:
		return &families.SyntaxError{What: "durable", Text: value, Why: "want yes, no or prefer"}
	}
	return nil
}

// addAllow adds the rules of one line, with spaces between them; an empty value takes
// back those before. A name becomes a number now, and is asked for again at the next
// reading.
func addAllow(to *[]model.Allow, value string) error {
	if value == "" {
		*to = nil
		return nil
	}
	for _, word := range strings.Fields(value) {
		a, err := model.ParseAllow(word)
		if err != nil {
			return err
		}
		*to = append(*to, a)
	}
	return nil
}

// setRate reads bytes a second; an empty value is no limit.
func setRate(to *int64, value string) error {
	return setValue(to, value, "rate", "want at least a byte a second", model.ParseSize)
}

func (r *Relay) addTo(s setting) error {
	if s.value == "" {
		r.Spec.To, r.tos = nil, nil
		return nil
	}
	var e families.Endpoint
	if err := setEndpoint(&e, s); err != nil {
		return err
	}
	r.Spec.To, r.tos = append(r.Spec.To, e), append(r.tos, s)
	return nil
}

// setEndpoint reads an endpoint. A unix path must be absolute, because a file has
// no working directory, and stand in a file that nobody else can write: the daemon
// opens it with its own rights.
func setEndpoint(to *families.Endpoint, s setting) error {
	*to = families.Endpoint{}
	if s.value == "" {
		return nil
	}
	e, err := families.ParseEndpoint(s.value)
	if err != nil {
		return err
	}
	if e.NamesPath() {
		if !filepath.IsAbs(e.Address) {
			return &families.SyntaxError{What: "endpoint", Text: s.value, Column: len(e.Network) + 2, Why: "a path in a file begins with /"}
		}
		if err := trusted(s.file); err != nil {
			return err
		}
	}
	*to = e
	return nil
}

// trusted checks that only root, or the daemon's own user, can write the file.
func trusted(file string) error {
	info, err := os.Stat(file)
	if err != nil {
		return cause(err)
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok || stat.Uid != 0 && stat.Uid != uint32(os.Geteuid()) || info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("a path may stand only in a file that root or the daemon's own user alone can write: %w", syscall.EPERM)
	}
	return nil
}

// setLimit reads a duration that has a default: 0 in the specification is that
// default, so 0 in the file is refused.
func setLimit(to *time.Duration, value string) error {
	return setValue(to, value, "duration", "want more than 0, or none", model.ParseDuration)
}

// setHalfClose reads a duration whose default is none.
func setHalfClose(to *time.Duration, value string) error {
	if value == "none" || value == "0" {
		value = ""
	}
	return setLimit(to, value)
}

// check looks at what no single line can tell. An endpoint that does not parse is
// there, and was reported.
func (r *Relay) check() []Problem {
	var out []Problem
	if r.Spec.From.Network == "" && r.lines["From"].value == "" {
		out = append(out, r.Problem("From", fmt.Errorf("there is no From=: %w", families.ErrSyntax)))
	}
	if len(r.Spec.To) == 0 && r.lines["To"].value == "" {
		out = append(out, r.Problem("To", fmt.Errorf("there is no To=: %w", families.ErrSyntax)))
	}
	return out
}
