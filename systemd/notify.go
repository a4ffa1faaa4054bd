package systemd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"time"
	"unicode"

	"github.com/coreos/go-systemd/v22/daemon"
)

const (
	// sendTimeout bounds one message. PID 1 reads its socket within
	// milliseconds; a manager that does not must not stop the daemon.
	sendTimeout = 5 * time.Second
	// maxStatus bounds the status text in bytes. systemd drops a message of
	// more than 4096 bytes (NOTIFY_BUFFER_MAX) with all that it says.
	maxStatus = 1024
)

// A Notifier tells the service manager how the daemon fares, by sd_notify(3).
// Without $NOTIFY_SOCKET all its methods do nothing and return nil, and so do
// those of the zero Notifier; only Store, Remove and Barrier say that nobody holds
// descriptors then. It holds nothing open and has no Close. Its methods may be
// called at the same time.
//
// It speaks the protocol itself rather than through go-systemd's SdNotify,
// which writes without a deadline and cannot send a descriptor.
type Notifier struct {
	socket   string        // path, or @name for an abstract socket; empty: nobody listens
	watchdog time.Duration // 0: no watchdog
}

// NewNotifier returns a Notifier for the manager that the environment names
// ($NOTIFY_SOCKET, $WATCHDOG_USEC, $WATCHDOG_PID). A malformed watchdog
// interval is an error: a daemon that does not know when to answer is killed.
func NewNotifier() (*Notifier, error) {
	interval, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		return nil, fmt.Errorf("read watchdog interval: %w", err)
	}
	return &Notifier{socket: os.Getenv("NOTIFY_SOCKET"), watchdog: interval}, nil
}

// Enabled reports whether a service manager listens.
func (n *Notifier) Enabled() bool { return n.socket != "" }

// WatchdogInterval returns the time after which the manager kills a daemon
// that sent no Ping, or 0 where it does not watch this process.
func (n *Notifier) WatchdogInterval() time.Duration {
	if !n.Enabled() {
		return 0
	}
	return n.watchdog
}

// Ready says that the control socket accepts, at start and at the end of each
// reload. The status text is shown by systemctl status.
func (n *Notifier) Ready(status string) error {
	return n.send(daemon.SdNotifyReady, statusLine(status))
}

// Status replaces the text that systemctl status shows.
func (n *Notifier) Status(text string) error { return n.send(statusLine(text)) }

// Reloading says that a reload begins; Ready ends it. The time stamp rides in
// the same message, without it Type=notify-reload waits for ever.
func (n *Notifier) Reloading() error {
	stamp := strings.TrimSuffix(daemon.SdNotifyMonotonicUsec(), "\n")
	return n.send(daemon.SdNotifyReloading, stamp)
}

// Stopping says that the daemon shuts down.
func (n *Notifier) Stopping() error { return n.send(daemon.SdNotifyStopping) }

// Ping feeds the watchdog.
func (n *Notifier) Ping() error { return n.send(daemon.SdNotifyWatchdog) }

// Trigger asks the manager to treat the daemon as if the watchdog had run out:
// to kill it with a core dump and start it anew. It is for a broken invariant.
func (n *Notifier) Trigger() error { return n.send("WATCHDOG=trigger") }

// RunWatchdog feeds the watchdog twice an interval, each time only if probe
// returns nil. The probe must travel the way a user's call travels (connect to
// the control socket, ask, read the answer), so that a daemon which lives but
// does not serve is restarted. The probe's context ends after a third of the
// interval, which keeps two good answers less than an interval apart.
//
// A failed probe or ping is logged by slog.Default and tried again at the next
// turn; two in a row run the watchdog out. RunWatchdog returns when ctx is
// done, or at once where there is no watchdog. Whoever starts it in a goroutine
// waits for it.
func (n *Notifier) RunWatchdog(ctx context.Context, probe func(context.Context) error) {
	interval := n.WatchdogInterval()
	if interval == 0 {
		return
	}
	tick := time.NewTicker(interval / 2)
	defer tick.Stop()
	for {
		if err := n.feed(ctx, probe); err != nil && ctx.Err() == nil {
			slog.WarnContext(ctx, "watchdog not fed", "err", err, "interval", interval)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// feed sends one ping if one probe succeeds.
func (n *Notifier) feed(ctx context.Context, probe func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, n.watchdog/3)
	defer cancel()
	if err := probe(ctx); err != nil {
		return fmt.Errorf("probe control socket: %w", err)
	}
	return n.Ping()
}

// send sends one message of several assignments. It dials each time: messages
// are rare, and a manager that was started anew has a new socket at that path.
func (n *Notifier) send(assignments ...string) error {
	if !n.Enabled() {
		return nil
	}
	if err := n.sendMessage(strings.Join(assignments, "\n")); err != nil {
		return fmt.Errorf("notify service manager %q: %w", assignments[0], err)
	}
	return nil
}

func (n *Notifier) sendMessage(message string) error {
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: n.socket, Net: "unixgram"})
	if err != nil {
		return err
	}
	_ = conn.SetWriteDeadline(time.Now().Add(sendTimeout)) // fails on a closed conn only
	_, err = conn.Write([]byte(message))
	return errors.Join(err, conn.Close())
}

// statusLine makes an assignment of text. A line feed in it would begin another
// assignment (MAINPID=...), and systemd refuses what is not UTF-8.
func statusLine(text string) string {
	text = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, text)
	if len(text) > maxStatus {
		text = text[:maxStatus]
	}
	return "STATUS=" + strings.ToValidUTF8(text, "")
}
