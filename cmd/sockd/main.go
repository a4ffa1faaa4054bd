// Command sockd is the daemon: it owns sockets of every family and serves them
// over its control socket. systemd starts it, or anybody in the foreground.
//
// It is where the parts meet: systemd's descriptors, the families, the daemon that
// owns the sockets, and the server that speaks to its callers. Users call it
// through sockd-ctl.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/sockd/sockd/ctl"
	"github.com/sockd/sockd/daemon"
)

var _ ctl.Backend = (*daemon.Daemon)(nil)

func main() {
	signals := make(chan os.Signal, 8) // more at once say nothing new
	signal.Notify(signals, syscall.SIGHUP, syscall.SIGTERM, syscall.SIGINT)
	os.Exit(run(context.Background(), env{
		args: os.Args[1:], stdout: os.Stdout, stderr: os.Stderr,
		getenv: os.Getenv, getuid: os.Geteuid, files: handedFiles, signals: signals,
	}))
}
