package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sockd/sockd/daemon/capture"
	"github.com/sockd/sockd/daemon/inject"
	"github.com/sockd/sockd/daemon/policy"
	"github.com/sockd/sockd/daemon/relay"
	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/model"
)

// Options of a Daemon.
type Options struct {
	Families families.Set
	Log      *slog.Logger // nil: slog.Default
	// Level is what LogLevel= of sockd.conf sets; nil when a flag decided.
	Level   *slog.LevelVar
	Version string
	// ControlSocket is the path of the control socket, which is never a target.
	ControlSocket string
	ConfigDirs    []string // weakest first; see Reload
	StateDir      string   // where --permanent relays are kept; "": nowhere
	Systemd       bool     // started by systemd
	// Files are the descriptors for fd:NAME. New owns them when it succeeds.
	Files []File
	// Callers counts the connections to the control socket, for Status; may be nil.
	Callers func() int64
	// Loops is how many event loops the relays have; see relay.Options.
	Loops int
	// Parking is what outlives this process; nil: nothing does. New owns it when it
	// succeeds.
	Parking *Parking
}

// File is a descriptor under a name, as systemd hands it over.
type File struct {
	Name string
	FD   int
}

// Daemon is one sockd. Its methods may be called from any goroutine.
type Daemon struct {
	opts      Options
	log       *slog.Logger
	policy    policy.Policy
	started   time.Time
	nextID    atomic.Int64
	numbers   numbers
	table     table
	handed    handed
	lent      lent
	relays    *relay.Engine
	captures  *capture.Hub
	running   captures
	recorders recorders
	naming    naming
	repeated  *inject.Memory // the frames that injections keep to repeat
	feed      feed
	config    configured
	refused   []string // what was parked and could not be taken up; New alone writes it

	ctx  context.Context // ends when Stop begins
	stop context.CancelFunc

	stopTime time.Duration // what Stop waits; tests make it short
	stopped  chan struct{} // closed when nothing is left

	mu     sync.Mutex // guards closed; calls.Add happens under it
	closed bool
	calls  sync.WaitGroup
}

// errStopping ends what is under way when the daemon stops.
var errStopping = fmt.Errorf("sockd is stopping: %w", net.ErrClosed)

// New makes a daemon with what the process before had parked; Reload brings what the
// configuration says. Families with state of their own are started.
func New(o Options) (*Daemon, error) {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	d := &Daemon{opts: o, log: o.Log, policy: policy.New(), started: time.Now(), stopTime: stopTime, stopped: make(chan struct{})}
	d.ctx, d.stop = context.WithCancel(context.Background())
	if err := startFamilies(d.ctx, o.Families); err != nil {
		d.stop()
		return nil, err
	}
	d.table.init()
	d.handed.init(o.Families, o.Files)
	d.config.init()
	d.relays = relay.New(relay.Options{Families: o.Families, Host: d, Log: o.Log, ControlSocket: o.ControlSocket, Loops: o.Loops, Parking: lotFor(o.Parking, o.Log)})
	d.repeated = inject.NewMemory()
	d.captures = capture.New(o.Log)
	d.captures.Broker(d.broker)
	d.recorders.engine = capture.NewRecorders(d.captures)
	d.restore(d.ctx)
	return d, nil
}

func startFamilies(ctx context.Context, set families.Set) error {
	for i, f := range set {
		r, ok := f.(families.Runner)
		if !ok {
			continue
		}
		if err := r.Start(ctx); err != nil {
			return errors.Join(fmt.Errorf("start family %s: %w", f.Name(), err), closeFamilies(set[:i]))
		}
	}
	return nil
}

func closeFamilies(set families.Set) error {
	var errs []error
	for _, f := range set {
		if r, ok := f.(families.Runner); ok {
			errs = append(errs, r.Close())
		}
	}
	return errors.Join(errs...)
}

// ErrStuck is why Stop returned though something still runs.
var ErrStuck = errors.New("something does not end")

// stopTime is what Stop waits for calls, relays, captures and sockets. They end at
// once, however many they are, but for one that a call into the kernel holds.
const stopTime = 10 * time.Second

// Stop ends every call, relay, capture and socket, and returns when none is
// left; with Parking, relays and durable sessions stay parked as they are. Twice is
// nil. When some do not end it returns all the same, after ten seconds, with an error
// wrapping ErrStuck: the end of the process ends them.
func (d *Daemon) Stop() error {
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		return d.awaitStopped(nil)
	}
	d.closed = true
	d.mu.Unlock()
	d.stop()
	done := make(chan error, 1)
	go func() {
		defer close(d.stopped)
		done <- d.closeEverything()
	}()
	return d.awaitStopped(done)
}

// awaitStopped waits for closeEverything and returns what it said, if anything can
// be said twice.
func (d *Daemon) awaitStopped(said <-chan error) error {
	t := time.NewTimer(d.stopTime)
	defer t.Stop()
	select {
	case <-d.stopped:
	case <-t.C:
		return fmt.Errorf("stop, after %v: %w", d.stopTime, ErrStuck)
	}
	if said == nil {
		return nil
	}
	return <-said
}

func (d *Daemon) closeEverything() error {
	err := errors.Join(d.endRelays(), d.closeRecorders(), d.captures.Close())
	for _, k := range d.table.empty() {
		k.leaveBehind()
		err = errors.Join(err, k.close(errStopping))
	}
	d.calls.Wait()
	return errors.Join(err, d.handed.close(), closeFamilies(d.opts.Families))
}

// Authorize tells whether c may call method. It is asked before every method.
func (d *Daemon) Authorize(c model.Caller, method string) error {
	err := d.policy.Check(c, method)
	if err != nil {
		d.log.Warn("call refused", "uid", c.UID, "gid", c.GID, "pid", c.PID, "method", method)
	}
	return err
}

// begin counts a call, so that Stop waits for it, and gives it a context that
// ends with the daemon too. end must be called.
func (d *Daemon) begin(ctx context.Context) (_ context.Context, end func(), err error) {
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		return nil, nil, errStopping
	}
	d.calls.Add(1)
	d.mu.Unlock()
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(d.ctx, func() { cancel(errStopping) })
	return ctx, func() {
		stop()
		cancel(nil)
		d.calls.Done()
	}, nil
}

// self is the daemon as an owner.
func self() model.Owner {
	return model.Owner{UID: uint32(os.Geteuid()), GID: uint32(os.Getegid())}
}
