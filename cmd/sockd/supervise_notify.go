package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"github.com/sockd/sockd/systemd"
)

const (
	// maxHeld is how many descriptors a supervisor holds: eight of the parking
	// lots, the control socket, those that another manager handed over, and room.
	maxHeld = 64
	// maxNotify is the longest message, systemd's NOTIFY_BUFFER_MAX.
	maxNotify = 4096
	// maxRights is how many descriptors the kernel sends with one (SCM_MAX_FD).
	maxRights = 253
)

// A notifySocket is what $NOTIFY_SOCKET names, and what came through it. Only the
// present child is heard: the kernel says with each message whose it is.
type notifySocket struct {
	log  *slog.Logger
	dir  string // of the socket, removed at the end
	path string
	conn *net.UnixConn
	done chan struct{} // closed when listen has ended

	mu        sync.Mutex // guards what follows; held while a message is received, so that none is between
	held      []systemd.File
	pid       int // of the child, 0 while there is none
	ready     bool
	stopping  bool
	strangers uint64 // messages that were not the child's
	buf       [maxNotify + 1]byte
	oob       []byte
}

// newNotifySocket listens in a directory that nobody else can enter. On success it
// owns files, which every child gets.
func newNotifySocket(log *slog.Logger, files []systemd.File) (*notifySocket, error) {
	dir, err := os.MkdirTemp("", "sockd-notify-")
	if err != nil {
		return nil, fmt.Errorf("notify socket: %w", err)
	}
	path := filepath.Join(dir, "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("notify socket %s: %w", path, pathless(err)), os.RemoveAll(dir))
	}
	n := &notifySocket{log: log, dir: dir, path: path, conn: conn, done: make(chan struct{}), held: files}
	n.oob = make([]byte, syscall.CmsgSpace(4*maxRights)+syscall.CmsgSpace(syscall.SizeofUcred))
	if err := n.askWho(); err != nil {
		return nil, errors.Join(err, conn.Close(), os.RemoveAll(dir))
	}
	go n.listen()
	return n, nil
}

// askWho makes the kernel send SCM_CREDENTIALS with each message.
func (n *notifySocket) askWho() error {
	conn, err := n.conn.SyscallConn()
	if err != nil {
		return err
	}
	var optErr error
	err = conn.Control(func(fd uintptr) {
		optErr = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_PASSCRED, 1)
	})
	return errors.Join(err, os.NewSyscallError("setsockopt", optErr))
}

// close ends listening and lets go of all that is held.
func (n *notifySocket) close() error {
	err := n.conn.Close()
	<-n.done
	return errors.Join(err, os.RemoveAll(n.dir), closeFiles(n.held))
}

// listen receives until the socket is closed.
func (n *notifySocket) listen() {
	defer close(n.done)
	conn, err := n.conn.SyscallConn()
	for err == nil {
		err = conn.Read(func(fd uintptr) bool { return n.receive(int(fd)) })
	}
}

// receive takes one message, and reports whether there was one.
func (n *notifySocket) receive(fd int) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.receiveLocked(fd)
}

func (n *notifySocket) receiveLocked(fd int) bool {
	k, oobn, flags, _, err := syscall.Recvmsg(fd, n.buf[:], n.oob, syscall.MSG_DONTWAIT|syscall.MSG_CMSG_CLOEXEC)
	if err != nil {
		if err != syscall.EAGAIN {
			n.log.Error("receive from sockd", "err", err)
		}
		return false
	}
	fds, who := parseControl(n.oob[:oobn])
	switch { // who is in a pid namespace that we do not see has pid 0
	case who == nil || n.pid == 0 || int(who.Pid) != n.pid || int(who.Uid) != os.Geteuid():
		n.strangeLocked(who)
	case k > maxNotify || flags&(syscall.MSG_TRUNC|syscall.MSG_CTRUNC) != 0:
		n.log.Error("message of sockd's is too long", "bytes", k, "descriptors", len(fds))
	default:
		fds = n.obeyLocked(string(n.buf[:k]), fds)
	}
	closeFDs(fds)
	return true
}

// strangeLocked leaves a line for each power of two: who may write here could
// write without end.
func (n *notifySocket) strangeLocked(who *syscall.Ucred) {
	if n.strangers++; n.strangers&(n.strangers-1) == 0 {
		n.log.Warn("somebody else writes to sockd's supervisor", "who", who, "messages", n.strangers)
	}
}

// parseControl picks descriptors and credentials out of control messages.
func parseControl(oob []byte) (fds []int, who *syscall.Ucred) {
	messages, err := syscall.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, nil // the kernel wrote it: there is none
	}
	for i := range messages {
		if got, err := syscall.ParseUnixRights(&messages[i]); err == nil {
			fds = append(fds, got...)
		} else if c, err := syscall.ParseUnixCredentials(&messages[i]); err == nil {
			who = c
		}
	}
	return fds, who
}

func closeFDs(fds []int) {
	for _, fd := range fds {
		_ = syscall.Close(fd) // somebody's duplicate
	}
}

// obeyLocked does what a message says, and returns the descriptors that nobody
// keeps. For BARRIER=1 to let go of its descriptor is all: what was sent before it
// has been done.
func (n *notifySocket) obeyLocked(message string, fds []int) []int {
	said := map[string]string{}
	for line := range strings.Lines(message) {
		name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		said[name] = value
	}
	n.ready = n.ready || said["READY"] == "1"
	n.stopping = n.stopping || said["STOPPING"] == "1"
	switch {
	case said["FDSTOREREMOVE"] == "1":
		n.removeLocked(said["FDNAME"])
	case said["FDSTORE"] == "1":
		return n.storeLocked(said["FDNAME"], fds)
	}
	return fds
}

// storeLocked keeps descriptors, and returns those that are too many.
func (n *notifySocket) storeLocked(name string, fds []int) (tooMany []int) {
	if name == "" {
		name = "stored" // as sd_pid_notify_with_fds(3) says
	}
	err := systemd.CheckFDName(name)
	if err == nil && len(n.held)+len(fds) > maxHeld {
		err = fmt.Errorf("%d are held, %d is the most", len(n.held), maxHeld)
	}
	if err != nil {
		n.log.Error("descriptors of sockd's are not held", "name", name, "descriptors", len(fds), "err", err)
		return fds // all: half a pair is of no use
	}
	for _, fd := range fds {
		n.held = append(n.held, systemd.File{Name: name, FD: fd})
	}
	return nil
}

// removeLocked lets go of what was stored under name. The control socket is not
// the child's to give up.
func (n *notifySocket) removeLocked(name string) {
	kept := n.held[:0]
	for _, f := range n.held {
		if f.Name != name || name == systemd.ControlName {
			kept = append(kept, f)
		} else if err := f.Close(); err != nil {
			n.log.Error("let go of what sockd stored", "err", err)
		}
	}
	n.held = kept
}

// keep holds fd for every child. It is for the time before the first.
func (n *notifySocket) keep(name string, fd int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.held = append(n.held, systemd.File{Name: name, FD: fd})
}

// count returns how many descriptors are held.
func (n *notifySocket) count() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.held)
}

// launch starts a child with all that is held. No message is read meanwhile, so
// that the first finds its sender known.
func (n *notifySocket) launch(start func(names []string, fds []uintptr) (int, error)) (int, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	var names []string
	var fds []uintptr
	for _, f := range n.held {
		names = append(names, f.Name)
		fds = append(fds, uintptr(f.FD))
	}
	pid, err := start(names, fds)
	n.pid, n.ready, n.stopping = pid, false, false
	return pid, err
}

// buried hears what the child said before it died, and then nothing of it any
// more. It returns whether the child was ready, and whether it was about to end.
func (n *notifySocket) buried() (ready, stopping bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if conn, err := n.conn.SyscallConn(); err == nil {
		_ = conn.Control(func(fd uintptr) { // fails on a closed socket, which has no messages
			for n.receiveLocked(int(fd)) {
			}
		})
	}
	n.pid = 0
	return n.ready, n.stopping
}
