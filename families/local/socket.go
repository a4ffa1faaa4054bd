package local

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/ksock"
)

// conn is a stream or seqpacket socket that takes its path away when it closes.
type conn struct {
	*ksock.Conn
	made file
}

// dgram is a datagram socket that takes its path away when it closes.
type dgram struct {
	*ksock.Base
	made file
}

var (
	_ families.Listener   = (*conn)(nil)
	_ families.HalfCloser = (*conn)(nil)
	_ families.FileKeeper = (*conn)(nil)
	_ families.FileKeeper = (*dgram)(nil)
)

// Bind binds, to a path in place of a socket file on which nobody listens any more.
func (c *conn) Bind(a families.Addr) error { return c.made.bind(a, c.Conn.Bind) }

// Close closes the socket and removes the file that Bind made.
func (c *conn) Close() error {
	c.made.remove()
	return c.Conn.Close()
}

// Bind binds, to a path in place of a socket file that nobody has open any more.
func (d *dgram) Bind(a families.Addr) error { return d.made.bind(a, d.Base.Bind) }

// KeepFile makes Close leave the file that Bind made, and gives its path, or "": the
// socket goes on in a duplicate of its descriptor.
func (c *conn) KeepFile() string { return c.made.keep() }

// OwnFile makes Close remove the socket file at path, an absolute one: the socket was
// made from a duplicate of the one that made it.
func (c *conn) OwnFile(path string) { c.made.made(path) }

// KeepFile is that of conn.
func (d *dgram) KeepFile() string { return d.made.keep() }

// OwnFile is that of conn.
func (d *dgram) OwnFile(path string) { d.made.made(path) }

// Close closes the socket and removes the file that Bind made.
func (d *dgram) Close() error {
	d.made.remove()
	return d.Base.Close()
}

// file is the socket file that a Bind made, so that only this one is removed and
// not what somebody put in its place.
type file struct {
	mu   sync.Mutex // guards what follows
	path string     // absolute; "" when there is none
	info fs.FileInfo
}

func (f *file) bind(a families.Addr, bind func(families.Addr) error) error {
	err := bind(a)
	path := pathOf(a)
	if path == "" {
		return err
	}
	if errors.Is(err, syscall.EADDRINUSE) && removeStale(path) {
		err = bind(a)
	}
	if err != nil {
		return err
	}
	f.made(path)
	return nil
}

func pathOf(a families.Addr) string {
	if l, ok := a.(Addr); ok {
		return l.path()
	}
	return ""
}

// made remembers a file. When it is gone already, there is nothing to remove.
func (f *file) made(path string) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return
	}
	info, err := os.Lstat(abs)
	if err != nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.path, f.info = abs, info
}

// keep forgets the file.
func (f *file) keep() (path string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	path = f.path
	f.path, f.info = "", nil
	return path
}

func (f *file) remove() {
	f.mu.Lock()
	path, info := f.path, f.info
	f.path, f.info = "", nil
	f.mu.Unlock()
	if path == "" {
		return
	}
	if now, err := os.Lstat(path); err == nil && os.SameFile(now, info) {
		_ = os.Remove(path) // may belong to a directory that is not ours any more
	}
}

// removeStale removes a socket file that no socket is behind, and tells whether
// it did. Files of other kinds are never touched.
//
// The question is asked of a pinned inode, and the name must still lead to it
// when it is removed. Between that last look and the removal somebody may yet
// replace the file: they would have to remove the stale one at the same instant,
// and rename(2) has no form that would rule it out.
func removeStale(path string) bool {
	target, err := ksock.OpenPath(ksock.AtCWD, path)
	if err != nil {
		return false
	}
	defer target.Close()
	if !stale(target) {
		return false
	}
	again, err := ksock.OpenPath(ksock.AtCWD, path)
	if err != nil {
		return false
	}
	defer again.Close()
	return again.Same(target) && os.Remove(path) == nil
}

// stale asks by a datagram socket: of a stream listener it gets EPROTOTYPE and
// leaves no trace in its queue. ECONNREFUSED means that there is no socket.
func stale(target *ksock.PathTarget) bool {
	probe, err := kernel.Open(context.Background(), families.Spec{Type: families.Dgram})
	if err != nil {
		return false
	}
	defer probe.Close()
	return errors.Is(ksock.DialPath(context.Background(), probe, target), syscall.ECONNREFUSED)
}
