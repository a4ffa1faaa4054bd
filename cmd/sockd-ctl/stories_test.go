package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/sockd/sockd/families/familytest"
	"github.com/stretchr/testify/require"
)

// The test binary is sockd-ctl when it is called so.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"sockd-ctl": main})
}

// TestStories runs testdata: one story for each group of verbs, against a real
// daemon on a private control socket. Beside testscript's own commands there are:
//
//	daemon              starts sockd (in the namespace of netns, if there was one)
//	netns               makes a network namespace, $NS, with loopback up
//	exits CODE CMD...   runs a command that must end with that exit code
//	until CMD...        runs a command again and again until it succeeds
//	capture-name VAR    puts the last word of stdout into a variable
func TestStories(t *testing.T) {
	familytest.Need(t, familytest.Root())
	bin := mustBuildDaemon(t)
	testscript.Run(t, testscript.Params{
		Dir:                "testdata",
		RequireUniqueNames: true,
		Setup: func(e *testscript.Env) error {
			e.Setenv("SOCKD_SOCKET", filepath.Join(e.WorkDir, "control"))
			e.Setenv("PATH", bin+string(os.PathListSeparator)+e.Getenv("PATH"))
			// The race detector has every program sleep for a second before it ends.
			e.Setenv("GORACE", "atexit_sleep_ms=0")
			return os.MkdirAll(filepath.Join(e.WorkDir, "config"), 0o755)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"daemon": daemonCommand, "netns": netnsCommand, "exits": exitsCommand,
			"until": untilCommand, "capture-name": captureNameCommand,
		},
	})
}

func mustBuildDaemon(tb testing.TB) string {
	tb.Helper()
	dir := tb.TempDir()
	build := exec.Command("go", slices.Concat([]string{"build", "-o", dir}, buildFlags, []string{"../sockd"})...)
	out, err := build.CombinedOutput()
	require.NoError(tb, err, "%s", out)
	return dir
}

// patience bounds every wait for what is about to happen.
const patience = 20 * time.Second

// daemonCommand starts sockd, waits until it accepts, and ends it with the story.
func daemonCommand(ts *testscript.TestScript, neg bool, args []string) {
	if neg {
		ts.Fatalf("daemon cannot be negated")
	}
	socket := ts.Getenv("SOCKD_SOCKET")
	argv := append([]string{"sockd", "--socket", socket, "--config", ts.MkAbs("config"), "--state", ts.MkAbs("state")}, args...)
	if ns := ts.Getenv("NS"); ns != "" {
		argv = append([]string{"ip", "netns", "exec", ns}, argv...)
	}
	path := ts.Getenv("PATH")
	var log strings.Builder
	cmd := exec.Command(lookIn(path, argv[0]), argv[1:]...)
	cmd.Dir, cmd.Env, cmd.Stderr = ts.MkAbs("."), []string{"PATH=" + path, "GORACE=" + ts.Getenv("GORACE")}, &log
	ts.Check(cmd.Start())
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	ts.Defer(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended by itself
		<-done
		if strings.Contains(log.String(), "panic") || strings.Contains(log.String(), "DATA RACE") {
			ts.Fatalf("sockd: %s", log.String())
		}
	})
	for deadline := time.Now().Add(patience); ; time.Sleep(2 * time.Millisecond) {
		conn, err := net.Dial("unix", socket)
		if err == nil {
			ts.Check(conn.Close())
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("sockd does not accept: %v", err)
		}
	}
}

func lookIn(path, name string) string {
	for _, dir := range filepath.SplitList(path) {
		if file := filepath.Join(dir, name); exec.Command("test", "-x", file).Run() == nil {
			return file
		}
	}
	return name
}

var namespaces atomic.Int64

func netnsCommand(ts *testscript.TestScript, _ bool, _ []string) {
	name := fmt.Sprintf("sockd-story-%d-%d", os.Getpid(), namespaces.Add(1))
	ts.Check(exec.Command("ip", "netns", "add", name).Run())
	ts.Defer(func() { _ = exec.Command("ip", "netns", "del", name).Run() }) // the story has ended
	ts.Check(exec.Command("ip", "-n", name, "link", "set", "lo", "up").Run())
	ts.Setenv("NS", name)
}

func exitsCommand(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE CMD...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			ts.Fatalf("%v", err)
		}
		got = exit.ExitCode()
	}
	if got != want {
		ts.Fatalf("%s: exit code %d; want %d", strings.Join(args[1:], " "), got, want)
	}
}

func untilCommand(ts *testscript.TestScript, _ bool, args []string) {
	for deadline := time.Now().Add(patience); ts.Exec(args[0], args[1:]...) != nil; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			ts.Fatalf("%s: never succeeded", strings.Join(args, " "))
		}
	}
}

func captureNameCommand(ts *testscript.TestScript, _ bool, args []string) {
	words := strings.Fields(ts.ReadFile("stdout"))
	if len(args) != 1 || len(words) == 0 {
		ts.Fatalf("usage: capture-name VAR, after a command that printed something")
	}
	ts.Setenv(args[0], words[len(words)-1])
}
