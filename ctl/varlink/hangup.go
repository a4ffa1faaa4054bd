package varlink

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// hangups tells when peers are gone for good. It must not read, since what is
// queued may be the next call, and must not mistake a peer that closed its
// sending half for one that left: only EPOLLHUP (both directions gone) counts.
// Go's poller cannot wait for that alone, so there is one epoll set of our own
// for all connections; its descriptor is waited for by Go's poller.
type hangups struct {
	f    *os.File
	rc   syscall.RawConn
	done chan struct{} // closed when run has returned

	mu   sync.Mutex // guards next and gone
	next uint64     // never used again, so a late event finds nobody
	gone map[uint64]func()
}

func newHangups() (*hangups, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("epoll_create1: %w", err)
	}
	// os.NewFile gives a non-blocking descriptor to Go's poller.
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("epoll descriptor: %w", err)
	}
	f := os.NewFile(uintptr(fd), "epoll")
	rc, err := f.SyscallConn()
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("epoll descriptor: %w", err)
	}
	h := &hangups{f: f, rc: rc, done: make(chan struct{}), gone: map[uint64]func(){}}
	go h.run()
	return h, nil
}

// close ends run and waits for it.
func (h *hangups) close() {
	_ = h.f.Close() // unblocks run; closing an epoll set loses nothing
	<-h.done
}

// watch calls gone, which must not block, once when the peer of c is gone. The
// number is for unwatch.
func (h *hangups) watch(c *Conn, gone func()) (uint64, error) {
	h.mu.Lock()
	h.next++
	id := h.next
	h.gone[id] = gone
	h.mu.Unlock()
	// EPOLLHUP and EPOLLERR are always waited for. One shot, because they stay.
	event := unix.EpollEvent{Events: unix.EPOLLONESHOT, Fd: int32(id), Pad: int32(id >> 32)}
	if err := h.ctl(unix.EPOLL_CTL_ADD, c, &event); err != nil {
		h.forget(id)
		return 0, fmt.Errorf("watch for hang-up: %w", err)
	}
	return id, nil
}

// unwatch ends a watch; it must come before c is closed, or handed to others who
// might duplicate its descriptor.
func (h *hangups) unwatch(id uint64, c *Conn) {
	h.forget(id)
	_ = h.ctl(unix.EPOLL_CTL_DEL, c, &unix.EpollEvent{}) // fails when c is closed: then the kernel did it
}

func (h *hangups) forget(id uint64) {
	h.mu.Lock()
	delete(h.gone, id)
	h.mu.Unlock()
}

func (h *hangups) ctl(op int, c *Conn, event *unix.EpollEvent) error {
	var err error
	outer := h.rc.Control(func(epoll uintptr) {
		inner := c.rc.Control(func(fd uintptr) {
			err = unix.EpollCtl(int(epoll), op, int(fd), event)
		})
		err = errors.Join(err, inner)
	})
	return errors.Join(err, outer)
}

// run tells of hang-ups until close.
func (h *hangups) run() {
	defer close(h.done)
	for {
		var events [64]unix.EpollEvent
		var n int
		err := h.rc.Read(func(epoll uintptr) bool {
			n = waitEvents(int(epoll), events[:])
			return n > 0
		})
		if err != nil {
			return // closed
		}
		for _, e := range events[:n] {
			h.fire(uint64(uint32(e.Fd)) | uint64(uint32(e.Pad))<<32)
		}
	}
}

// waitEvents takes what is there without waiting. It fails only for arguments
// that are wrong.
func waitEvents(epoll int, events []unix.EpollEvent) int {
	n, err := retryEINTR(func() (int, error) { return unix.EpollWait(epoll, events, 0) })
	if err != nil {
		return 0
	}
	return n
}

func (h *hangups) fire(id uint64) {
	h.mu.Lock()
	gone := h.gone[id]
	delete(h.gone, id)
	h.mu.Unlock()
	if gone != nil {
		gone()
	}
}
