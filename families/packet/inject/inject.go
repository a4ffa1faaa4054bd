// Package inject sends frames out of an interface, as they are, in batches. One
// Sender is one AF_PACKET socket that receives nothing. daemon/inject uses it, which
// decides when a frame goes; who sends single messages uses the packet family.
//
// # Why sendmmsg
//
// Measured on a veth with 64-byte frames and everything on one core, against
// trafgen's 591 thousand frames a second (medians of five interleaved runs):
// sendmmsg with 256 frames a call 679, with 64 704, with 32 558; PACKET_TX_RING (V2)
// 568. A ring saves the copy of a frame, which is short, and costs a page reference
// and a scan a frame. It also hands a slot back as soon as a veth has taken the
// packet, while a reader at the other end may still look at the page.
//
// PACKET_QDISC_BYPASS gained nothing either (627 for 704, within the noise), and its
// frames are invisible to a capture on the same interface. So it is not used: what is
// injected is seen by who captures there, and waits its turn in the interface's queue.
//
// The socket is not with Go's poller. There every packet that is freed wakes it, for the
// socket is writable (again): a third of the sender's time went into switching threads.
package inject

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/packet/pcapng"
	"golang.org/x/sys/unix"
)

// BatchSize is how many frames one call sends at most. More gained nothing.
const BatchSize = 256

// Interface is where frames go, as it was when the Sender was opened.
type Interface struct {
	Name string
	// Link is what its frames begin with: Ethernet, Raw, or LinuxSLL2 for a header that
	// is not known here, which nothing fits.
	Link pcapng.LinkType
	// MTU is the longest payload; a frame has its link-level header beside.
	MTU int
	// Header is how long the link-level header is: no frame is shorter.
	Header int
}

// Fits tells whether frames of a link type can go out of the interface as they are.
func (i Interface) Fits(l pcapng.LinkType) bool {
	return l == i.Link && l != pcapng.LinuxSLL2 || i.Link == pcapng.Raw && (l == linkIPv4 || l == linkIPv6)
}

// LINKTYPE_IPV4 and LINKTYPE_IPV6: raw packets of one version alone.
const linkIPv4, linkIPv6 pcapng.LinkType = 228, 229

// mmsghdr is struct mmsghdr of sendmmsg(2).
type mmsghdr struct {
	hdr unix.Msghdr
	n   uint32
	_   [4]byte
}

// Sender sends frames out of one interface. It belongs to one goroutine, but for
// Interrupt, which any may call before Close.
type Sender struct {
	iface       Interface
	fd          int
	interrupted atomic.Bool

	first, end int // the frames that wait are those of msgs[first:end]
	msgs       [BatchSize]mmsghdr
	iovs       [BatchSize]unix.Iovec
}

// Open opens a Sender on an interface of the calling thread's network namespace. Errors
// are *families.OpError: ENODEV where there is none of that name, ENETDOWN where it is
// down, EPERM without CAP_NET_RAW.
func Open(name string) (*Sender, error) {
	i, err := net.InterfaceByName(name)
	switch {
	case err != nil:
		return nil, opError(name, fmt.Errorf("%w", syscall.ENODEV))
	case i.Flags&net.FlagUp == 0:
		return nil, opError(name, syscall.ENETDOWN)
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, opError(name, err)
	}
	s := &Sender{iface: Interface{Name: name, MTU: i.MTU}, fd: fd}
	if err := s.setUp(i.Index); err != nil {
		_ = s.Close() // the first error counts
		return nil, opError(name, err)
	}
	return s, nil
}

func opError(name string, err error) error {
	return &families.OpError{Op: "inject", Family: "packet", Addr: families.Escape(name), Err: err}
}

func (s *Sender) setUp(index int) (err error) {
	for i := range s.msgs {
		s.msgs[i].hdr.Iov = &s.iovs[i]
		s.msgs[i].hdr.SetIovlen(1)
	}
	// Protocol 0: bound to the interface, and hooked to nothing that arrives.
	if err := unix.Bind(s.fd, &unix.SockaddrLinklayer{Ifindex: index}); err != nil {
		return err
	}
	s.iface.Link, s.iface.Header, err = linkType(s.fd, s.iface.Name)
	return err
}

// ethernetHeader is two addresses and a type.
const ethernetHeader = 14

// linkType asks what the interface's frames begin with, and how long that is.
func linkType(fd int, name string) (link pcapng.LinkType, header int, err error) {
	req, err := unix.NewIfreq(name)
	if err != nil {
		return 0, 0, err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFHWADDR, req); err != nil {
		return 0, 0, fmt.Errorf("hardware address: %w", err)
	}
	switch req.Uint16() { // sa_family of ifr_hwaddr
	case unix.ARPHRD_ETHER, unix.ARPHRD_LOOPBACK:
		return pcapng.Ethernet, ethernetHeader, nil
	case unix.ARPHRD_NONE, unix.ARPHRD_RAWIP, unix.ARPHRD_TUNNEL, unix.ARPHRD_TUNNEL6, unix.ARPHRD_SIT:
		return pcapng.Raw, 0, nil
	}
	return pcapng.LinuxSLL2, 0, nil
}

// Interface is where the frames go.
func (s *Sender) Interface() Interface { return s.iface }

// Waiting is how many frames were added and are not sent.
func (s *Sender) Waiting() int { return s.end - s.first }

// Full tells that Add has no room before the next Send.
func (s *Sender) Full() bool { return s.end == BatchSize }

// Add puts a frame behind those that wait. It is read when it is sent: until then it
// must stay as it is. The Sender must not be Full.
func (s *Sender) Add(frame []byte) {
	s.iovs[s.end].Base = unsafe.SliceData(frame)
	s.iovs[s.end].SetLen(len(frame))
	s.end++
}

// First is the length of the first frame that waits.
func (s *Sender) First() int { return int(s.iovs[s.first].Len) }

// Skip gives the first frame that waits up.
func (s *Sender) Skip() { s.advance(1) }

// Send hands frames that wait to the kernel, in order, and tells how many it took and
// of how many bytes. It waits while the socket's buffer is full, until Interrupt. The
// error is about the first frame that waits then, and 0 frames were taken:
//
//	EMSGSIZE   it is longer than the interface takes
//	EINVAL     it is shorter than a link-level header
//	ENOBUFS    the interface's queue is full: it can be tried again
//	ENETDOWN   the interface is down
//	ENODEV     it is not there any more
//	os.ErrDeadlineExceeded   after Interrupt
func (s *Sender) Send() (frames int, bytes int64, err error) {
	if s.Waiting() == 0 {
		return 0, 0, nil
	}
	took, errno := s.attempt()
	for errno == unix.EAGAIN {
		if err := s.awaitRoom(); err != nil {
			return 0, 0, err
		}
		took, errno = s.attempt()
	}
	if errno != 0 {
		return 0, 0, s.explain(errno)
	}
	for i := s.first; i < s.first+took; i++ {
		bytes += int64(s.iovs[i].Len)
	}
	s.advance(took)
	return took, bytes, nil
}

func (s *Sender) advance(n int) {
	s.first += n
	if s.first == s.end {
		s.first, s.end = 0, 0
	}
}

// attempt is one call, which does not wait.
func (s *Sender) attempt() (int, syscall.Errno) {
	for {
		n, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, uintptr(s.fd), uintptr(unsafe.Pointer(&s.msgs[s.first])), uintptr(s.Waiting()), unix.MSG_DONTWAIT, 0, 0)
		if errno != unix.EINTR {
			return int(n), errno
		}
	}
}

// pollStep is how long Interrupt may take to be noticed.
const pollStep = 20 * time.Millisecond

// awaitRoom waits until the socket's buffer has room, for pollStep at most.
func (s *Sender) awaitRoom() error {
	if s.interrupted.Load() {
		return os.ErrDeadlineExceeded
	}
	_, err := unix.Poll([]unix.PollFd{{Fd: int32(s.fd), Events: unix.POLLOUT}}, int(pollStep/time.Millisecond))
	if err != nil && !errors.Is(err, unix.EINTR) {
		return fmt.Errorf("poll: %w", err)
	}
	return nil
}

// goneTime is how long an interface that goes down is watched for going altogether:
// a deleted one is taken down first, and the kernel waits for readers in between.
const goneTime = 200 * time.Millisecond

// explain tells an interface that is down from one that was deleted. It may wait up to
// goneTime.
func (s *Sender) explain(errno syscall.Errno) error {
	switch errno {
	case unix.ENXIO: // bound to nothing any more
		return syscall.ENODEV
	case unix.ENETDOWN:
		for until := time.Now().Add(goneTime); time.Now().Before(until); Nap(goneTime / 20) {
			if s.isGone() {
				return syscall.ENODEV
			}
		}
	}
	return errno
}

// isGone tells whether the interface was deleted: then the kernel gives a bound socket
// the index -1 (packet_notifier).
func (s *Sender) isGone() bool {
	sa, err := unix.Getsockname(s.fd)
	ll, ok := sa.(*unix.SockaddrLinklayer)
	return err == nil && ok && ll.Ifindex == -1
}

// Interrupt ends a Send that waits, and every later one that would.
func (s *Sender) Interrupt() { s.interrupted.Store(true) }

// Close closes the socket; frames that wait are not sent. Twice is nil.
func (s *Sender) Close() error {
	fd := s.fd
	s.fd = -1
	if fd < 0 {
		return nil
	}
	return unix.Close(fd)
}

// Nap sleeps for a short time, and by the kernel's own clock: a timer of Go's is up to
// a millisecond late when nothing else runs, nanosleep(2) some 60 µs. Nothing
// interrupts it, and it may end early.
func Nap(d time.Duration) {
	if d > 0 {
		t := unix.NsecToTimespec(int64(d))
		_ = unix.Nanosleep(&t, nil) // EINTR: who waits for a moment looks at the clock again
	}
}

// Sleep waits until d has passed, exactly as far as it can, or ctx has ended.
func Sleep(ctx context.Context, d time.Duration) {
	const exact = 2 * time.Millisecond // what is left to Nap
	until := time.Now().Add(d)
	if d > exact {
		t := time.NewTimer(d - exact)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
	}
	for left := time.Until(until); left > 0; left = time.Until(until) {
		Nap(left)
	}
}
