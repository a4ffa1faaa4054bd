package links

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/mdlayher/socket"
	"golang.org/x/sys/unix"
)

// Watcher follows the interfaces of one network namespace until Close. Its methods may
// be called from any goroutine.
type Watcher struct {
	conn *socket.Conn
	raw  syscall.RawConn
	done chan struct{} // closed when follow has ended

	overruns atomic.Uint64

	table *table // these belong to follow, and before it to who opens
	buf   []byte

	mu      sync.Mutex // guards list, changed, err, closed
	list    []Interface
	changed chan struct{}
	err     error
	closed  bool
}

// A message is a page or two, an answer to a dump up to 32 KiB (netlink_dump).
const bufferSize = 64 << 10

// answerTime is how long the kernel may take for a dump, which takes it milliseconds,
// before it is asked again; and before Watch gives up.
const answerTime = 5 * time.Second

// drainMost is how many datagrams are applied before the list is published, so that a
// storm that does not end cannot hide what it did.
const drainMost = 256

// Watch follows the interfaces of the calling thread's network namespace. The list is
// complete when it returns.
func Watch() (*Watcher, error) {
	c, err := dial()
	if err != nil {
		return nil, fmt.Errorf("watch interfaces: %w", err)
	}
	return watch(c)
}

// WatchFD follows the interfaces of the namespace of fd, a NETLINK_ROUTE socket that
// the caller opened there, bound or not. On success fd belongs to the Watcher, which keeps a
// duplicate and closes fd; on an error it is the caller's still.
//
// Whoever holds another duplicate can take messages away: the list is then worth no
// more than they are, but nothing waits for ever and nothing breaks.
func WatchFD(fd int) (*Watcher, error) {
	c, err := adopt(fd)
	if err != nil {
		return nil, fmt.Errorf("watch interfaces: %w", err)
	}
	w, err := watch(c)
	if err == nil {
		_ = unix.Close(fd) // the watcher has its duplicate
	}
	return w, err
}

// List is the interfaces of the calling thread's network namespace, sorted by index.
func List() ([]Interface, error) {
	c, err := dial()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	defer c.Close() // nothing is queued
	w, err := newWatcher(c)
	if err == nil {
		err = w.first()
	}
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	return w.table.list(), nil
}

func dial() (*socket.Conn, error) {
	return socket.Socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE, "netlink", nil)
}

// Check tells whether fd is a socket that WatchFD takes: of AF_NETLINK and NETLINK_ROUTE.
// It changes nothing. Errors wrap an errno: EINVAL for another kind, ENOTSOCK for what is no
// socket.
func Check(fd int) error {
	domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil {
		return fmt.Errorf("descriptor: %w", err)
	}
	protocol, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	if err != nil {
		return fmt.Errorf("descriptor: %w", err)
	}
	if domain != unix.AF_NETLINK || protocol != unix.NETLINK_ROUTE {
		return fmt.Errorf("a socket of domain %d and protocol %d, not of AF_NETLINK and NETLINK_ROUTE: %w", domain, protocol, unix.EINVAL)
	}
	return nil
}

// adopt duplicates a netlink socket, so that fd is untouched when anything fails.
// (mdlayher/netlink opens its sockets itself and takes over no other.)
func adopt(fd int) (*socket.Conn, error) {
	if err := Check(fd); err != nil {
		return nil, err
	}
	// With this option the kernel would not tell that messages were lost.
	if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_NO_ENOBUFS, 0); err != nil {
		return nil, fmt.Errorf("setsockopt netlink_no_enobufs: %w", err)
	}
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("duplicate the socket: %w", err)
	}
	return socket.New(dup, "netlink")
}

// watch owns c: it is closed when anything fails.
func watch(c *socket.Conn) (*Watcher, error) {
	w, err := newWatcher(c)
	if err == nil {
		err = w.subscribe()
	}
	if err != nil {
		_ = c.Close() // the first error counts
		return nil, fmt.Errorf("watch interfaces: %w", err)
	}
	go w.follow()
	return w, nil
}

func newWatcher(c *socket.Conn) (*Watcher, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	return &Watcher{
		conn: c, raw: raw, done: make(chan struct{}),
		table: newTable(), buf: make([]byte, bufferSize), changed: make(chan struct{}),
	}, nil
}

// subscribe has the kernel tell of changes, and then learns what there is: so no change
// falls between the two.
func (w *Watcher) subscribe() error {
	if err := w.conn.SetsockoptInt(unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, unix.RTNLGRP_LINK); err != nil {
		return fmt.Errorf("join the link group: %w", err)
	}
	if err := w.first(); err != nil {
		return err
	}
	w.list = w.table.list()
	return nil
}

// first reads until the table is whole.
func (w *Watcher) first() error {
	end := time.Now().Add(answerTime)
	if err := w.ask(); err != nil {
		return err
	}
	for !w.table.whole() {
		switch {
		case w.table.refused != nil:
			return fmt.Errorf("dump links: %w", w.table.refused)
		case time.Now().After(end):
			return fmt.Errorf("dump links: %w", os.ErrDeadlineExceeded)
		}
		if err := w.drain(); err != nil {
			return err
		}
	}
	return nil
}

// Now is the list of interfaces, sorted by index, and a channel that is closed at the
// next change of it. Nobody may write to the list; a change makes another one. Who
// reads the list, acts on it, waits for the channel and begins again misses nothing that
// lasts. What came and went in between shows at most by another Generation.
//
// Once Err says that the watching has ended, the list is the last one and the channel
// is closed: look at Err before waiting again.
func (w *Watcher) Now() (list []Interface, changed <-chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.list, w.changed
}

// Err is nil while the list is kept up to date. It is net.ErrClosed after Close, and
// otherwise why the kernel could not be followed any further.
func (w *Watcher) Err() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err
}

// Overruns is how often messages were lost, because more came than the socket had room
// for. Each time the kernel was asked for all interfaces again.
func (w *Watcher) Overruns() uint64 { return w.overruns.Load() }

// Close ends the watching, wakes who waits for a change, and waits until nothing of the
// Watcher is left running. Twice is nil.
func (w *Watcher) Close() error {
	w.mu.Lock()
	w.closed = true
	w.mu.Unlock()
	err := w.conn.Close()
	<-w.done
	return err
}

// follow reads until the socket is closed.
func (w *Watcher) follow() {
	defer close(w.done)
	for {
		if err := w.drain(); err != nil {
			w.end(err)
			return
		}
		if w.table.dirty {
			w.publish(w.table.list())
		}
	}
}

func (w *Watcher) publish(list []Interface) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.list = list
	close(w.changed)
	w.changed = make(chan struct{})
}

func (w *Watcher) end(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err = fmt.Errorf("watch interfaces: %w", err); w.closed {
		w.err = net.ErrClosed
	}
	close(w.changed)
}

// drain waits for a message and applies it and those behind it. A storm of changes is
// one change so.
func (w *Watcher) drain() error {
	for i := range drainMost {
		err := w.receive(i == 0)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return nil
		case errors.Is(err, unix.ENOBUFS), errors.Is(err, unix.ENOMEM):
			w.overruns.Add(1)
			w.table.overrun()
		case errors.Is(err, os.ErrDeadlineExceeded):
			w.table.lost = true // the answer is overdue
		case err != nil:
			return err
		}
		if err := w.settle(); err != nil {
			return err
		}
	}
	return nil
}

// settle asks again where something was lost, and waits without a limit where nothing
// is to come.
func (w *Watcher) settle() error {
	switch {
	case w.table.lost:
		return w.ask()
	case !w.table.dumping():
		return w.conn.SetReadDeadline(time.Time{})
	}
	return nil
}

// ask requests a dump. One that cannot be asked for now is asked for again in time.
func (w *Watcher) ask() error {
	w.table.begin()
	request, err := dumpRequest(w.table.sequence)
	if err != nil {
		return err
	}
	if err := w.raw.Control(func(fd uintptr) {
		w.table.refused = unix.Sendto(int(fd), request, unix.MSG_DONTWAIT, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	}); err != nil {
		return err
	}
	return w.conn.SetReadDeadline(time.Now().Add(answerTime))
}

// receive reads one datagram and applies it. EAGAIN says that there is none, unless it
// was to wait for one.
func (w *Watcher) receive(wait bool) error {
	var n int
	var from unix.Sockaddr
	var err error
	if readErr := w.raw.Read(func(fd uintptr) bool {
		n, from, err = recv(int(fd), w.buf)
		return !wait || err != unix.EAGAIN
	}); readErr != nil {
		return readErr
	}
	if err != nil {
		return err
	}
	return w.take(n, from)
}

// recv is told the length of a datagram that does not fit. It never waits, though an
// adopted socket may be made blocking by its other holders.
func recv(fd int, b []byte) (n int, from unix.Sockaddr, err error) {
	for {
		n, from, err = unix.Recvfrom(fd, b, unix.MSG_DONTWAIT|unix.MSG_TRUNC)
		if err != unix.EINTR {
			return n, from, err
		}
	}
}

// take applies a datagram of n bytes that is in the buffer, as far as it fits. Others
// than the kernel (port 0) may write to a netlink socket, too.
func (w *Watcher) take(n int, from unix.Sockaddr) error {
	if sender, ok := from.(*unix.SockaddrNetlink); !ok || sender.Pid != 0 {
		return nil
	}
	if n > len(w.buf) {
		w.buf = make([]byte, n)
		w.overruns.Add(1)
		w.table.overrun()
		return nil
	}
	return w.table.apply(w.buf[:n])
}
