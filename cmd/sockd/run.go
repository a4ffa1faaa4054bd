package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"time"

	"github.com/sockd/sockd/ctl"
	"github.com/sockd/sockd/daemon"
	"github.com/sockd/sockd/families/all"
	"github.com/sockd/sockd/families/model"
	"github.com/sockd/sockd/systemd"
)

const (
	// reloadTime bounds the reading of relays.d, whose FROMs may name hosts.
	reloadTime = 30 * time.Second
	// stopTime is what callers get to read their last answers: the end of a capture of a
	// busy interface takes a second, and then 8 MiB may be queued, which who reads at all
	// has read in the rest. Who stands still does not hold the end any longer. The unit's
	// TimeoutStopSec= is more than ten times that.
	stopTime = 1500 * time.Millisecond
)

// run is all of sockd but its process: it serves until a signal other than SIGHUP
// comes or ctx ends, and returns the exit code.
func run(ctx context.Context, e env) int {
	s, err := parse(e)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		return complain(e, err)
	case s.version:
		fmt.Fprintf(e.stdout, "sockd %s\n", versionText())
		return 0
	case s.check:
		return checkConfig(e, s)
	case s.parent:
		return supervise(ctx, e, s)
	}
	if err := serve(ctx, e, s); err != nil {
		code := complain(e, err)
		brake(ctx, e)
		return code
	}
	return 0
}

// brakeTime is how long a sockd that cannot serve stays before it ends: the unit's
// RestartSec= is short, since sessions wait for it after a crash.
const brakeTime = 500 * time.Millisecond

// brake waits where a manager would start sockd again at once, in vain.
func brake(ctx context.Context, e env) {
	if e.getenv("NOTIFY_SOCKET") == "" {
		return
	}
	select {
	case <-time.After(brakeTime):
	case <-ctx.Done():
	case <-e.signals:
	}
}

// complain prints err as one line and returns its exit code.
func complain(e env, err error) int {
	fmt.Fprintf(e.stderr, "sockd: %v\n", err)
	switch {
	case errors.Is(err, errUsage):
		return ctl.ExitUsage
	case errors.Is(err, syscall.EADDRINUSE):
		return ctl.ExitInUse
	}
	return ctl.ExitCode(err)
}

func checkConfig(e env, s settings) int {
	problems := daemon.CheckConfig(all.Set(), s.dirs, s.state)
	for _, p := range problems {
		fmt.Fprintf(e.stderr, "sockd: %s\n", ctl.Visible(p.Error())) // a file's name may hold a line feed
	}
	if len(problems) > 0 {
		return ctl.ExitUsage
	}
	return 0
}

// A service is one running sockd.
type service struct {
	env     env
	log     *slog.Logger
	daemon  *daemon.Daemon
	server  *ctl.Server
	control *control
	notify  *systemd.Notifier
}

func serve(ctx context.Context, e env, s settings) error {
	level := new(slog.LevelVar)
	if s.level != nil {
		level.Set(*s.level)
	}
	log := slog.New(systemd.Handler(e.stderr, level))
	slog.SetDefault(log) // for those who are given no logger, such as the watchdog
	if s.level != nil {
		level = nil // the flag goes before LogLevel=
	}
	notify, err := systemd.NewNotifier()
	if err != nil {
		return err
	}
	files, err := e.files()
	if err != nil {
		return err
	}
	control, rest, err := openControl(e, s, files)
	if err != nil {
		return err
	}
	path, err := filepath.Abs(control.path)
	if err != nil {
		return errors.Join(err, control.Close(), closeFiles(rest))
	}
	parking, rest := openParking(log, notify, rest)
	v := &service{env: e, log: log, control: control, notify: notify}
	v.daemon, err = daemon.New(daemon.Options{
		Families: all.Set(), Log: log, Level: level, Version: versionText(),
		ControlSocket: path, ConfigDirs: s.dirs, StateDir: s.state,
		Systemd: systemd.UnderSystemd(), Files: daemonFiles(rest),
		Callers: func() int64 { return v.server.Stats().Conns },
		Loops:   moreProcessors(),
		Parking: parking,
	})
	if err != nil {
		return errors.Join(err, control.Close(), closeFiles(rest), closeParking(parking))
	}
	v.server = ctl.NewServer(v.daemon, ctl.ServerOptions{Version: versionText(), Served: v.served, Starved: v.starved()})
	return v.run(ctx)
}

// moreProcessors gives the Go scheduler twice the processors that the machine lets us
// have, and returns how many those are: the relays' event loops, one each, hold on to
// one while they wait for a moment, and everybody else shall find another.
func moreProcessors() int {
	n := runtime.GOMAXPROCS(0)
	runtime.GOMAXPROCS(2 * n)
	return n
}

func closeFiles(files []systemd.File) error {
	var errs []error
	for _, f := range files {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}

func daemonFiles(files []systemd.File) []daemon.File {
	var out []daemon.File
	for _, f := range files {
		out = append(out, daemon.File{Name: f.Name, FD: f.FD})
	}
	return out
}

// unremarkable are the calls that only look, or move data: they are logged when
// somebody looks for a fault. All others leave a record each.
var unremarkable = map[string]bool{
	"io.sockd.Manager.List": true, "io.sockd.Manager.Show": true, "io.sockd.Manager.Status": true, "io.sockd.Manager.Watch": true,
	"io.sockd.Manager.Send": true, "io.sockd.Manager.Recv": true, "io.sockd.Manager.Options": true, "io.sockd.Relay.Spec": true,
	"org.varlink.service.GetInfo": true, "org.varlink.service.GetInterfaceDescription": true,
}

// served leaves a record of a call, after it.
func (v *service) served(c model.Caller, method string, err error) {
	level := slog.LevelInfo
	if unremarkable[method] {
		level = slog.LevelDebug
	}
	attrs := []any{"method", method, "uid", c.UID, "gid", c.GID, "pid", c.PID}
	if err != nil {
		attrs = append(attrs, "err", err)
	}
	v.log.Log(context.Background(), level, "call", attrs...)
}

// starvedEvery is how often callers who cannot be accepted leave a line: there can
// be thousands of them, each for the same reason.
const starvedEvery = 10 * time.Second

// starved logs that callers cannot be accepted. The control socket's loop calls it,
// and nobody else, so that it needs no lock.
func (v *service) starved() func(err error, told bool) {
	var last time.Time
	callers := 0
	return func(err error, told bool) {
		callers++
		if now := time.Now(); now.Sub(last) >= starvedEvery {
			v.log.Error("callers cannot be accepted", "callers", callers, "told", told, "err", err)
			last, callers = now, 0
		}
	}
}

// run serves until it is told to end, and waits for all that it started.
func (v *service) run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	end := v.reload(ctx)
	var work sync.WaitGroup
	work.Go(func() {
		if err := v.server.Serve(v.control.UnixListener); err != nil {
			cancel(fmt.Errorf("serve the control socket: %w", err))
		}
	})
	if end == nil {
		v.tell("ready", v.notify.Ready(v.status(ctx)))
		v.log.Info("sockd serves", "version", versionText(), "socket", v.control.path, "pid", os.Getpid())
		work.Go(func() { v.notify.RunWatchdog(ctx, v.probe) })
		end = v.loop(ctx)
	}
	err := end(v.log)
	v.tell("stopping", v.notify.Stopping())
	cancel(nil)
	err = errors.Join(err, v.stop())
	work.Wait()
	return err
}

// An ending is why the service ends: it logs that, and its error is what broke.
type ending func(*slog.Logger) error

func endedBy(s os.Signal) ending {
	return func(log *slog.Logger) error {
		log.Info("sockd ends", "signal", s.String())
		return nil
	}
}

func endedWith(ctx context.Context) ending {
	return func(*slog.Logger) error {
		if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
			return err
		}
		return nil
	}
}

// loop handles signals until one of them, or ctx, ends the service.
func (v *service) loop(ctx context.Context) ending {
	for {
		select {
		case <-ctx.Done():
			return endedWith(ctx)
		case s := <-v.env.signals:
			if s != syscall.SIGHUP {
				return endedBy(s)
			}
			v.tell("reloading", v.notify.Reloading())
			if end := v.reload(ctx); end != nil {
				return end
			}
			v.tell("ready", v.notify.Ready(v.status(ctx)))
		}
	}
}

// reload reads the configuration, again when SIGHUP comes meanwhile. A signal that
// ends the service does not wait for name servers.
func (v *service) reload(ctx context.Context) ending {
	for again := true; again; {
		again = false
		ctx, cancel := context.WithTimeout(ctx, reloadTime)
		done := make(chan error, 1)
		go func() { done <- v.daemon.Reload(ctx) }()
		for running := true; running; {
			select {
			case err := <-done:
				v.tellReload(err)
				running = false
			case s := <-v.env.signals:
				again = again || s == syscall.SIGHUP
				if s != syscall.SIGHUP {
					cancel()
					<-done
					return endedBy(s)
				}
			}
		}
		cancel()
	}
	return nil
}

func (v *service) tellReload(err error) {
	if err != nil {
		v.log.Error("reload", "err", err)
	}
}

// tell logs a word that the service manager did not get: it is no reason to stop.
func (v *service) tell(word string, err error) {
	if err != nil {
		v.log.Warn("the service manager was not told", "word", word, "err", err)
	}
}

// status is the line that systemctl shows.
func (v *service) status(ctx context.Context) string {
	s, err := v.daemon.Status(ctx, model.Caller{UID: uint32(v.env.getuid())})
	if err != nil {
		return err.Error()
	}
	line := fmt.Sprintf("serving %s, %d relays", v.control.path, s.Relays)
	if n := len(s.Problems); n > 0 {
		line += fmt.Sprintf(", %d problems: sockd-ctl status", n)
	}
	return line
}

// probe asks the way a user asks: through the control socket.
func (v *service) probe(ctx context.Context) error {
	c, err := (&ctl.Env{Socket: v.control.path, Getenv: v.env.getenv, Getuid: v.env.getuid}).Dial(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	return c.Call(ctx, "org.varlink.service.GetInfo", nil, nil)
}

// stop lets callers read their last answers, then ends everything. The socket's
// file goes with its listener when this process made it.
func (v *service) stop() error {
	ctx, cancel := context.WithTimeout(context.Background(), stopTime)
	defer cancel()
	if err := v.server.Shutdown(ctx); err != nil {
		v.log.Warn("callers were cut off", "err", err)
	}
	// Calls end with their connections, and with the daemon. One that does not, held
	// by the kernel, must not hold the end of the process, which ends it.
	err := v.daemon.Stop()
	if !errors.Is(err, daemon.ErrStuck) {
		_ = v.server.Close() // waits for their last steps
	}
	return err
}
