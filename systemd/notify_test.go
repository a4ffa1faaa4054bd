package systemd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

// patience bounds the waits for events that come within milliseconds.
const patience = 30 * time.Second

// A manager is a service manager's end of $NOTIFY_SOCKET.
type manager struct {
	tb   testing.TB
	conn *net.UnixConn
}

// mustManage listens at address and points the environment to it.
func mustManage(tb testing.TB, address string) *manager {
	tb.Helper()
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: address, Net: "unixgram"})
	require.NoError(tb, err)
	tb.Cleanup(func() { _ = conn.Close() })
	return &manager{tb: tb, conn: conn}
}

// mustNext returns the next datagram, one message.
func (m *manager) mustNext() string {
	m.tb.Helper()
	require.NoError(m.tb, m.conn.SetReadDeadline(time.Now().Add(patience)))
	buf := make([]byte, 8192)
	n, err := m.conn.Read(buf)
	require.NoError(m.tb, err)
	return string(buf[:n])
}

// mustBeQuiet checks that no datagram waits. What a Notifier sent is there as
// soon as its method returned.
func (m *manager) mustBeQuiet() {
	m.tb.Helper()
	require.NoError(m.tb, m.conn.SetReadDeadline(time.Now().Add(time.Millisecond)))
	n, err := m.conn.Read(make([]byte, 8192))
	require.ErrorIs(m.tb, err, os.ErrDeadlineExceeded, "%d bytes came", n)
}

func mustNotifier(t *testing.T, socket string, watchdog time.Duration) *Notifier {
	t.Helper()
	t.Setenv("NOTIFY_SOCKET", socket)
	t.Setenv("WATCHDOG_PID", strconv.Itoa(os.Getpid()))
	t.Setenv("WATCHDOG_USEC", "")
	if watchdog > 0 {
		t.Setenv("WATCHDOG_USEC", strconv.FormatInt(watchdog.Microseconds(), 10))
	}
	n, err := NewNotifier()
	require.NoError(t, err)
	return n
}

func TestNotifierSpeaksOneMessageAWord(t *testing.T) {
	for _, tt := range []struct {
		name string
		call func(*Notifier) error
		want string // a regular expression for the whole datagram
	}{
		{"ready", func(n *Notifier) error { return n.Ready("serving 3 relays") }, `READY=1\nSTATUS=serving 3 relays`},
		{"status", func(n *Notifier) error { return n.Status("draining") }, `STATUS=draining`},
		{"reloading, with its time in the same message", (*Notifier).Reloading, `RELOADING=1\nMONOTONIC_USEC=[1-9][0-9]*`},
		{"stopping", (*Notifier).Stopping, `STOPPING=1`},
		{"ping", (*Notifier).Ping, `WATCHDOG=1`},
		{"trigger", (*Notifier).Trigger, `WATCHDOG=trigger`},
		{"a status of several lines is one", func(n *Notifier) error { return n.Status("a\nMAINPID=1\r\tb\x00") }, `STATUS=a MAINPID=1  b `},
		{"a status that is not UTF-8", func(n *Notifier) error { return n.Status("caf\xc3") }, "STATUS=caf\uFFFD"},
		{"a status without end is cut at a rune", func(n *Notifier) error { return n.Status("x" + strings.Repeat("é", 5000)) },
			fmt.Sprintf("STATUS=x(é){%d}", (maxStatus-1)/2)},
		{"an empty status", func(n *Notifier) error { return n.Status("") }, `STATUS=`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "notify")
			m, n := mustManage(t, path), mustNotifier(t, path, 0)
			require.True(t, n.Enabled())
			require.NoError(t, tt.call(n))
			require.Regexp(t, regexp.MustCompile(`\A(?:`+tt.want+`)\z`), m.mustNext())
			m.mustBeQuiet()
		})
	}
}

func TestNotifierReachesAnAbstractSocket(t *testing.T) {
	name := fmt.Sprintf("@sockd-notify-%d", os.Getpid())
	m, n := mustManage(t, name), mustNotifier(t, name, 0)
	require.NoError(t, n.Stopping())
	require.Equal(t, "STOPPING=1", m.mustNext())
}

func TestNotifierWithoutManagerDoesNothing(t *testing.T) {
	zero := &Notifier{}
	for name, n := range map[string]*Notifier{"from the environment": mustNotifier(t, "", time.Second), "the zero value": zero} {
		t.Run(name, func(t *testing.T) {
			require.False(t, n.Enabled())
			require.Zero(t, n.WatchdogInterval())
			require.NoError(t, errors.Join(n.Ready(""), n.Status(""), n.Reloading(), n.Stopping(), n.Ping(), n.Trigger()))
			n.RunWatchdog(t.Context(), func(context.Context) error {
				t.Error("probed without a watchdog")
				return nil
			})
		})
	}
}

func TestNotifierSaysWhatItCouldNotSay(t *testing.T) {
	n := mustNotifier(t, filepath.Join(t.TempDir(), "nobody"), 0)
	err := n.Ready("up")
	require.ErrorIs(t, err, os.ErrNotExist)
	require.ErrorContains(t, err, `notify service manager "READY=1": `)
}

func TestWatchdogInterval(t *testing.T) {
	own := strconv.Itoa(os.Getpid())
	for _, tt := range []struct {
		name, usec, pid string
		want            time.Duration
		err             string
	}{
		{name: "not watched"},
		{name: "this process", usec: "30000000", pid: own, want: 30 * time.Second},
		{name: "whoever it is", usec: "500000", want: 500 * time.Millisecond},
		{name: "another process", usec: "30000000", pid: "1"},
		{name: "no number", usec: "soon", pid: own, err: "read watchdog interval: "},
		{name: "not positive", usec: "0", pid: own, err: "read watchdog interval: "},
		{name: "no pid", usec: "1", pid: "me", err: "read watchdog interval: "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv("NOTIFY_SOCKET", "/run/systemd/notify")
			t.Setenv("WATCHDOG_USEC", tt.usec)
			t.Setenv("WATCHDOG_PID", tt.pid)
			n, err := NewNotifier()
			if tt.err != "" {
				require.ErrorContains(t, err, tt.err)
				require.Nil(t, n)
				return
			}
			require.NoError(t, err)
			require.Equal(t, tt.want, n.WatchdogInterval())
		})
	}
}

// startWatchdog runs the watchdog, and waits for its end when the test ends.
func startWatchdog(t *testing.T, n *Notifier, probe func(context.Context) error) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		n.RunWatchdog(ctx, probe)
	}()
	stop = func() { cancel(); <-done }
	t.Cleanup(stop)
	return stop
}

func TestWatchdogPingsOnceForEachGoodProbe(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	path := filepath.Join(t.TempDir(), "notify")
	m, n := mustManage(t, path), mustNotifier(t, path, 40*time.Millisecond)
	var probes atomic.Int64
	begun := time.Now()
	stop := startWatchdog(t, n, func(ctx context.Context) error {
		deadline, ok := ctx.Deadline()
		if !ok || time.Until(deadline) > n.WatchdogInterval()/3 {
			t.Error("a probe must end before the watchdog does")
		}
		probes.Add(1)
		return nil
	})
	const pings = 5
	for range pings {
		require.Equal(t, "WATCHDOG=1", m.mustNext())
	}
	took := time.Since(begun)
	stop()
	require.GreaterOrEqual(t, probes.Load(), int64(pings))
	require.GreaterOrEqual(t, took, (pings-2)*n.WatchdogInterval()/2, "pings come at half the interval, not faster")
}

func TestWatchdogStarvesWhileTheProbeFails(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	m, n := mustManage(t, path), mustNotifier(t, path, 20*time.Millisecond)
	sick, probed := atomic.Bool{}, make(chan struct{})
	sick.Store(true)
	stop := startWatchdog(t, n, func(ctx context.Context) error {
		if !sick.Load() {
			return nil
		}
		select {
		case probed <- struct{}{}:
		case <-ctx.Done():
		}
		return errors.New("no answer")
	})
	for range 3 {
		<-probed
	}
	m.mustBeQuiet()
	sick.Store(false)
	require.Equal(t, "WATCHDOG=1", m.mustNext(), "a daemon that answers again is fed again")
	stop()
}

func TestWatchdogCutsOffAProbeThatHangs(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	m, n := mustManage(t, path), mustNotifier(t, path, 30*time.Millisecond)
	cut := make(chan error)
	stop := startWatchdog(t, n, func(ctx context.Context) error {
		<-ctx.Done()
		select {
		case cut <- ctx.Err():
		default:
		}
		return ctx.Err()
	})
	require.ErrorIs(t, <-cut, context.DeadlineExceeded)
	m.mustBeQuiet()
	stop()
}
