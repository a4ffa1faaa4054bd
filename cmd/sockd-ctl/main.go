// Command sockd-ctl is sockd's command line. It turns ctl's verbs into commands,
// gives them the outside world, and prints what went wrong; what a verb does
// stands in package ctl. It talks to the daemon over its control socket alone.
package main

import (
	"context"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/sockd/sockd/ctl"
	"github.com/sockd/sockd/families/packet/filter"
	"github.com/sockd/sockd/families/packet/pcapng"
)

// version is set by the linker: -X main.version=1.2.3.
var version string

func main() {
	ctx, stop := withSignals(context.Background())
	answer := run
	if calledAsExtcap(os.Args[0]) {
		answer = extcap
	}
	code := answer(ctx, newEnv(), os.Args[1:])
	stop()
	os.Exit(code)
}

// withSignals is a context that SIGINT and SIGTERM cancel, with a
// *ctl.SignalError as the cause. After the first one signals kill as if nobody
// listened: a second Ctrl-C ends what the first could not. SIGPIPE is left as the
// runtime has it: a write to a closed stdout ends the program without a word.
//
// stop must be called; it waits for the goroutine that listens.
func withSignals(parent context.Context) (ctx context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(parent)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	done := make(chan struct{})
	go func() {
		defer close(done)
		select {
		case s := <-signals:
			signal.Stop(signals)
			cancel(&ctl.SignalError{Signal: s.(syscall.Signal)})
		case <-ctx.Done():
			signal.Stop(signals)
		}
	}()
	return ctx, func() {
		cancel(context.Canceled)
		<-done
	}
}

// newEnv is the world of this process.
func newEnv() *ctl.Env {
	return &ctl.Env{
		Stdin:          os.Stdin,
		Stdout:         os.Stdout,
		Stderr:         os.Stderr,
		StdoutTerminal: isTerminal(os.Stdout),
		StderrTerminal: isTerminal(os.Stderr),
		ReaderGone:     func(ctx context.Context) bool { return readerGone(ctx, os.Stdout) },
		Getenv:         os.Getenv,
		Getuid:         os.Getuid,
		Packets:        newPacketPrinter,
		Filter:         compileFilter,
		Version:        buildVersion(),
	}
}

// compileFilter is ctl.Env.Filter.
func compileFilter(text string, link pcapng.LinkType) (ctl.PacketFilter, error) {
	p, err := filter.Compile(text, link)
	if err != nil {
		return nil, err
	}
	return p.Match, nil
}

// buildVersion is what the linker was told, else what the build knows of itself.
func buildVersion() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}

// isTerminal asks for the terminal's settings, which nothing else has.
func isTerminal(f *os.File) bool {
	conn, err := f.SyscallConn()
	if err != nil {
		return false
	}
	terminal := false
	if err := conn.Control(func(fd uintptr) { terminal = hasTermios(fd) }); err != nil {
		return false
	}
	return terminal
}
