package ksock

import (
	"os"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Events is what a Poller found out about a descriptor: epoll(7)'s bits.
type Events uint32

// Readable tells that a receive will not say ErrAgain at once: there is data, an
// end or an error.
func (e Events) Readable() bool {
	return e&(unix.EPOLLIN|unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0
}

// Input tells that there is data, or the end.
func (e Events) Input() bool { return e&unix.EPOLLIN != 0 }

// Writable tells that a send will not say ErrAgain at once: there is room or an
// error.
func (e Events) Writable() bool { return e&(unix.EPOLLOUT|unix.EPOLLHUP|unix.EPOLLERR) != 0 }

// Urgent tells that an urgent byte is on its way (tcp(7), EPOLLPRI).
func (e Events) Urgent() bool { return e&unix.EPOLLPRI != 0 }

// Ended tells that the peer sends no more: the end, or an error, stands behind
// what is queued.
func (e Events) Ended() bool { return e&(unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0 }

// Failed tells of an error, such as one of the error queue.
func (e Events) Failed() bool { return e&unix.EPOLLERR != 0 }

// Event is one descriptor's news, under the token that it was added with.
type Event struct {
	Token  uint64
	Events Events
}

// Poller is an epoll(7) set for one goroutine that is locked to its thread. It
// reports edges: after an event, calls are repeated until they say ErrAgain, or the
// rest is never told. Only Wake may be called from elsewhere.
//
// A Go program's own poller parks goroutines; this one keeps one thread that turns
// from descriptor to descriptor, which for many short calls costs a fraction.
type Poller struct {
	// Greedy keeps the processor of the Go scheduler while Wait waits, as long as that is
	// short: giving it up and getting it back costs several microseconds, and keeps the
	// runtime's monitor busy, which is what a request between two busy peers would wait
	// for. A thread that the garbage collector wants to stop, or that has waited for
	// some milliseconds, is sent a signal by the runtime, which ends the wait; then it
	// waits as Go wants it. Whoever sets it gives the scheduler a processor more.
	Greedy bool

	fd, bell, timer int
	raw             [maxEvents]unix.EpollEvent
	out             [maxEvents]Event
	lapsed          bool // the timer has fired since the last Wait began
	// rung: the bell was written to and not read yet.
	rung atomic.Bool
}

// maxEvents is how many events one call fetches. More only delays timers and
// tasks.
const maxEvents = 256

// The tokens of the bell and the timer; no caller's.
const (
	bellToken  = ^uint64(0)
	timerToken = bellToken - 1
)

// NewPoller makes an empty set. The caller closes it.
func NewPoller() (*Poller, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	p := &Poller{fd: fd, bell: -1, timer: -1}
	if err := p.furnish(); err != nil {
		p.Close()
		return nil, err
	}
	return p, nil
}

// furnish opens the bell and the timer.
func (p *Poller) furnish() (err error) {
	if p.bell, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return os.NewSyscallError("eventfd", err)
	}
	if p.timer, err = unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_CLOEXEC|unix.TFD_NONBLOCK); err != nil {
		return os.NewSyscallError("timerfd_create", err)
	}
	if err := p.AddLevel(p.bell, bellToken); err != nil {
		return err
	}
	return p.AddLevel(p.timer, timerToken)
}

// edges is what every descriptor is watched for.
const edges = unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLRDHUP | unix.EPOLLPRI | unix.EPOLLET&(1<<32-1)

// Add watches fd for everything, until Remove or until the last descriptor of its
// description is closed. What holds already is reported too.
func (p *Poller) Add(fd int, token uint64) error {
	return p.watch(unix.EPOLL_CTL_ADD, fd, token, edges)
}

// AddLevel watches fd for input as long as there is some: for a listening socket,
// of which a turn takes only a part.
func (p *Poller) AddLevel(fd int, token uint64) error {
	return p.watch(unix.EPOLL_CTL_ADD, fd, token, unix.EPOLLIN)
}

// AddUnix is Add without word of when there is room to send: for a unix socket, which
// tells so whenever its peer has received anything.
func (p *Poller) AddUnix(fd int, token uint64) error {
	return p.watch(unix.EPOLL_CTL_ADD, fd, token, edges&^unix.EPOLLOUT)
}

// AddOutput adds it to what was added by AddUnix. What holds already is reported.
func (p *Poller) AddOutput(fd int, token uint64) error {
	return p.watch(unix.EPOLL_CTL_MOD, fd, token, edges)
}

func (p *Poller) watch(op, fd int, token uint64, events uint32) error {
	ev := unix.EpollEvent{Events: events, Fd: int32(token), Pad: int32(token >> 32)}
	return p.control(op, fd, &ev)
}

// Remove ends the watch of fd. Events that were fetched already still come.
func (p *Poller) Remove(fd int) error { return p.control(unix.EPOLL_CTL_DEL, fd, &unix.EpollEvent{}) }

func (p *Poller) control(op, fd int, ev *unix.EpollEvent) error {
	_, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_CTL, uintptr(p.fd), uintptr(op), uintptr(fd), uintptr(unsafe.Pointer(ev)), 0, 0)
	if errno != 0 {
		return os.NewSyscallError("epoll_ctl", errno)
	}
	return nil
}

// Wait returns what has happened; when nothing has, it waits for it if block says so.
// lapsed tells that the time of WakeIn has come. The events are valid until the next
// Wait.
func (p *Poller) Wait(block bool) (events []Event, lapsed bool) {
	p.lapsed = false
	patience := 0
	if block && p.Greedy {
		patience = -1
	}
	n := p.look(patience)
	if n == 0 && block {
		n = p.sleep()
	}
	return p.events(n), p.lapsed
}

// WakeIn makes a Wait return after d; another time that was set before is forgotten.
// A timer of its own is armed once, where a time-out of epoll_wait(2) would be with
// each call, which in a virtual machine is most of what such a call costs.
func (p *Poller) WakeIn(d time.Duration) {
	spec := unix.ItimerSpec{Value: unix.NsecToTimespec(max(1, int64(d)))}
	_ = unix.TimerfdSettime(p.timer, 0, &spec, nil) // it is a timer, and the time is in range
}

// look waits without telling the Go scheduler: -1 until there is something, or a
// signal; 0 not at all.
func (p *Poller) look(patience int) int {
	n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(p.fd), uintptr(unsafe.Pointer(&p.raw)), maxEvents, uintptr(patience), 0, 0)
	if errno != 0 {
		return 0 // EINTR: sleep, or the next turn, asks again
	}
	return int(n)
}

// sleep waits as Go wants it.
func (p *Poller) sleep() int {
	n, _, errno := unix.Syscall6(unix.SYS_EPOLL_PWAIT, uintptr(p.fd), uintptr(unsafe.Pointer(&p.raw)), maxEvents, ^uintptr(0), 0, 0)
	if errno != 0 {
		return 0 // EINTR
	}
	return int(n)
}

func (p *Poller) events(n int) []Event {
	out := p.out[:0]
	for i := range p.raw[:n] {
		raw := &p.raw[i]
		token := uint64(uint32(raw.Fd)) | uint64(uint32(raw.Pad))<<32
		switch token {
		case bellToken:
			p.silence()
			continue
		case timerToken:
			p.lapse()
			continue
		}
		out = append(out, Event{token, Events(raw.Events)})
	}
	return out
}

// Wake makes the Wait under way, or the next one, return. It may be called from any
// goroutine until Close.
func (p *Poller) Wake() {
	if p.rung.Swap(true) {
		return
	}
	one := [8]byte{0: 1}
	_, _ = unix.Write(p.bell, one[:]) // it cannot be full: one is added to 0
}

// silence takes back the bell's ring, before the waker's reason is looked at.
func (p *Poller) silence() {
	var b [8]byte
	_, _ = unix.Read(p.bell, b[:]) // EAGAIN: another turn has read it
	p.rung.Store(false)
}

// lapse notes that the timer has fired.
func (p *Poller) lapse() {
	var b [8]byte
	_, _ = unix.Read(p.timer, b[:]) // EAGAIN: it was set anew meanwhile
	p.lapsed = true
}

// Close ends the set; what was watched stays open.
func (p *Poller) Close() {
	for _, fd := range []int{p.timer, p.bell, p.fd} {
		_ = unix.Close(fd) // nothing is lost; -1 was never opened
	}
}
