// Command sockd-ctl is sockd's command line. It turns ctl's verbs into commands,
// gives them the outside world, and prints what went wrong; what a verb does
// stands in package ctl. It talks to the daemon over its control socket alone.
package main

import (
	"context"
	"os"
	"os/signal"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"github.com/sockd/sockd/ctl"
)

// version is set by the linker: -X main.version=1.2.3.
var version string

func main() {
	ctx, _ := withSignals(context.Background()) // to the end: a signal after the last word must not change the exit code
	answer := run
	if calledAsExtcap(os.Args[0]) {
		answer = extcap
	}
	os.Exit(answer(ctx, newEnv(), os.Args[1:]))
}

// sameWish is how long after a signal further ones mean the same: by then a capture of a
// busy interface, too, has said its summary, unless it waits for somebody.
const sameWish = 2 * time.Second

// withSignals is a context that SIGINT and SIGTERM cancel, with a
// *ctl.SignalError as the cause. Further ones change nothing for as long as sameWish:
// Ctrl-C pressed twice, or passed on by a shell and by timeout(1), must not cut off what
// a verb has to say at its end. After that they kill as if nobody listened: a later Ctrl-C
// ends what the first could not. SIGPIPE is left as the runtime has it: a write to a closed
// stdout ends the program without a word.
//
// stop has signals kill again; it waits for the goroutine that listens.
func withSignals(parent context.Context) (ctx context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(parent)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	ended, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		defer signal.Stop(signals)
		select {
		case s := <-signals:
			cancel(&ctl.SignalError{Signal: s.(syscall.Signal)})
		case <-ended:
			return
		}
		select {
		case <-time.After(sameWish):
		case <-ended:
		}
	}()
	return ctx, sync.OnceFunc(func() {
		cancel(context.Canceled)
		close(ended)
		<-done
	})
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
		PipeGone:       readerGone,
		Getenv:         os.Getenv,
		Getuid:         os.Getuid,
		Packets:        newPacketPrinter,
		Filter:         packetFilter,
		Compile:        printProgram,
		Version:        buildVersion(),
	}
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
