package systemd

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/sockd/sockd/systemd/systemdtest"
)

// bigValue does not fit a datagram to journald: it goes through a file.
var bigValue = strings.Repeat("sockd", 1<<18)

// service is the test binary as a service of a real systemd: it logs, says that
// it is ready, follows SIGHUP, feeds its watchdog, and ends on SIGTERM.
func service() int {
	log := slog.New(Handler(os.Stderr, slog.LevelInfo)).With("under_systemd", UnderSystemd())
	n, err := NewNotifier()
	if err != nil {
		log.Error("no notifier", "err", err)
		return 1
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGHUP, syscall.SIGTERM)
	ctx, cancel := context.WithCancel(context.Background())
	fed := make(chan struct{})
	go func() {
		defer close(fed)
		n.RunWatchdog(ctx, func(context.Context) error { return nil })
	}()
	defer func() { cancel(); <-fed }()

	log.Warn("hello", "lines", "one\ntwo", "big", bigValue)
	say := func(err error) {
		if err != nil {
			log.Error("not said", "err", err)
		}
	}
	say(n.Ready("first"))
	for s := range signals {
		if s == syscall.SIGTERM {
			say(n.Stopping())
			return 0
		}
		say(n.Reloading())
		say(n.Ready("reloaded"))
	}
	return 1
}

// TestAServiceUnderARealSystemd sees with systemd's and the journal's eyes what
// this package tells them.
func TestAServiceUnderARealSystemd(t *testing.T) {
	self, err := os.Executable()
	require.NoError(t, err)
	binary, err := os.ReadFile(self)
	require.NoError(t, err)
	tree := t.TempDir()
	for path, file := range map[string]struct {
		content string
		mode    os.FileMode
	}{
		"/usr/local/bin/service": {string(binary), 0o755},
		"/usr/local/lib/systemd/system/self.service": {"[Service]\nType=notify\nWatchdogSec=2s\n" +
			"ExecStart=/usr/local/bin/service\nExecReload=/bin/kill -HUP $MAINPID\n" +
			"Environment=" + childEnv + "=service GORACE=atexit_sleep_ms=0\n", 0o644},
	} {
		require.NoError(t, os.MkdirAll(tree+path[:strings.LastIndex(path, "/")], 0o755))
		require.NoError(t, os.WriteFile(tree+path, []byte(file.content), file.mode))
	}
	m := systemdtest.Boot(t, tree)

	m.Run("systemctl", "start", "self.service") // returns when READY=1 came
	require.Equal(t, "first", m.Property("self.service", "StatusText"))
	fed := func() string { return m.Property("self.service", "WatchdogTimestampMonotonic") }
	for range 2 {
		last := fed()
		m.Until("the watchdog is fed", func() bool { return fed() != last })
	}

	m.Run("systemctl", "reload", "self.service")
	m.Until("the reload is over", func() bool { return m.Property("self.service", "StatusText") == "reloaded" })
	require.Equal(t, "active", m.Property("self.service", "ActiveState"))

	field := func(name string) string {
		return m.Journal("cat", "--all", "--output-fields="+name, "SOCKD_UNDER_SYSTEMD=true", "PRIORITY=4", "_TRANSPORT=journal",
			fmt.Sprintf("_PID=%d", m.MainPID("self.service")))
	}
	require.Equal(t, "one\ntwo", field("SOCKD_LINES"))
	require.Equal(t, bigValue, field("SOCKD_BIG"))
	require.Contains(t, field("MESSAGE"), `hello under_systemd=true lines="one\ntwo" big=sockdsockd`)

	m.Run("systemctl", "stop", "self.service")
	require.Equal(t, "success", m.Property("self.service", "Result"))
}
