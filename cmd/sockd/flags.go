package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"

	"github.com/sockd/sockd/daemon/config"
	"github.com/sockd/sockd/systemd"
)

// env is the outside world. Every field can be replaced in a test.
type env struct {
	args    []string
	stdout  io.Writer
	stderr  *os.File
	getenv  func(string) string
	getuid  func() int // the effective one
	files   func() ([]systemd.File, error)
	signals <-chan os.Signal // SIGHUP reloads, any other ends
}

// settings are what the command line says, with defaults in the gaps.
type settings struct {
	socket  string // "": what defaultSocket says
	dirs    []string
	state   string
	check   bool
	version bool
	parent  bool        // --supervise, and this is not its child
	level   *slog.Level // nil: LogLevel= decides
}

// errUsage is a command line that does not parse: exit 2.
var errUsage = errors.New("usage")

func parse(e env) (settings, error) {
	var s settings
	fs := flag.NewFlagSet("sockd", flag.ContinueOnError)
	fs.SetOutput(io.Discard) // run prints the error, once
	fs.StringVar(&s.socket, "socket", "", "listen for callers at `PATH`, unless systemd hands a control socket over")
	dir := fs.String("config", "", "read the configuration below `DIR` only")
	fs.StringVar(&s.state, "state", config.DefaultState(e.getuid(), e.getenv), "keep --permanent relays below `DIR`")
	fs.BoolVar(&s.check, "check-config", false, "check the configuration, name file and line of what is wrong, and exit")
	level := fs.String("log-level", "", "`LEVEL` debug, info, warning or error; goes before LogLevel=")
	fs.BoolVar(&s.parent, "supervise", false, "run sockd as a child that is started again when it dies, and hold its sockets meanwhile, where there is no systemd")
	fs.BoolVar(&s.version, "version", false, "print the version and exit")
	switch err := fs.Parse(e.args); {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(e.stdout, "usage: sockd [flags]\n\nsockd owns sockets of every family and serves them over its control socket; sockd-ctl talks to it.\n\n")
		fs.SetOutput(e.stdout)
		fs.PrintDefaults()
		return settings{}, err
	case err != nil:
		return settings{}, fmt.Errorf("%w: %w; see sockd --help", errUsage, err)
	}
	if fs.NArg() > 0 {
		return settings{}, fmt.Errorf("%w: unexpected argument %q", errUsage, fs.Arg(0))
	}
	if *level != "" {
		l, err := config.ParseLevel(*level)
		if err != nil {
			return settings{}, fmt.Errorf("%w: --log-level: %w", errUsage, err)
		}
		s.level = &l
	}
	var err error
	if s.parent {
		var child bool
		if child, err = isChild(e); err != nil {
			return settings{}, err
		}
		s.parent = !child
	}
	if s.state != "" {
		s.state, err = filepath.Abs(s.state)
	}
	if err == nil {
		s.dirs, err = configDirs(e, *dir)
	}
	return s, err
}

// configDirs: a directory that somebody names must be there.
func configDirs(e env, named string) ([]string, error) {
	if named == "" {
		return config.DefaultDirs(e.getuid(), e.getenv), nil
	}
	if info, err := os.Stat(named); err != nil {
		return nil, fmt.Errorf("%w: --config: %w", errUsage, err)
	} else if !info.IsDir() {
		return nil, fmt.Errorf("%w: --config: %s is not a directory", errUsage, named)
	}
	dir, err := filepath.Abs(named)
	return []string{dir}, err
}

// version is set by the Makefile; else it is what the build knows.
var version = ""

func versionText() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}
