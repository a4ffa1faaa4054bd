package ksock

import (
	"fmt"
	"math"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"unsafe"

	"github.com/sockd/sockd/families"
	"golang.org/x/sys/unix"
)

// FD is a bare descriptor of a connected socket, for an event loop that has
// thousands of them: four bytes, no runtime poller, no allocation a call. Its calls
// are attempts that never block, made without telling the Go scheduler, and their
// errors are plain syscall.Errno (EAGAIN: not now). It belongs to one goroutine, which
// closes it once. Everybody else uses families.Socket.
type FD int32

// NoDescriptor is the FD of nothing.
const NoDescriptor FD = -1

// Detach takes the descriptor out of a socket of this package, which is closed
// without its connection ending. On success the caller owns the FD and s is of no
// more use; on error s is as it was. Nobody may be waiting on s.
func Detach(s families.Socket) (FD, error) {
	d, err := families.As[families.Descriptor](s)
	if err != nil {
		return NoDescriptor, err
	}
	fd := -1
	err = d.Control(func(n int) (err error) {
		fd, err = Dup(n)
		return err
	})
	if err != nil {
		return NoDescriptor, err
	}
	_ = s.Close() // the duplicate holds the connection
	return FD(fd), nil
}

// NewFD opens a stream socket for Connect.
func NewFD(domain int) (FD, error) {
	fd, err := unix.Socket(domain, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return NoDescriptor, err
	}
	return FD(fd), nil
}

// AcceptFD takes one connection out of a listening socket's queue, and its peer's
// name. The listening description must be this process's alone: with O_NONBLOCK
// cleared by somebody else, it would block.
func AcceptFD(listener int, peer *families.Name) (FD, error) {
	raw := peer.Buffer()
	for {
		size := uint32(len(raw))
		fd, _, errno := unix.RawSyscall6(unix.SYS_ACCEPT4, uintptr(listener), uintptr(unsafe.Pointer(&raw[0])),
			uintptr(unsafe.Pointer(&size)), unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0, 0)
		switch errno {
		case 0:
			peer.SetLen(int(size))
			if size <= 2 {
				*peer = families.Name{} // the family alone: unnamed
			}
			return FD(fd), nil
		case unix.EINTR, unix.ECONNABORTED: // died in the queue; the kernel tells each once
		default:
			return NoDescriptor, errno
		}
	}
}

// Connect begins a connection, or asks how it goes. EINPROGRESS and EALREADY: it is
// under way, the first Send says EAGAIN until it stands; nil and EISCONN: it stands.
func (f FD) Connect(to *families.Name) error {
	raw := to.Bytes()
	if len(raw) == 0 {
		return unix.EINVAL
	}
	_, _, errno := unix.RawSyscall(unix.SYS_CONNECT, uintptr(f), uintptr(unsafe.Pointer(&raw[0])), uintptr(len(raw)))
	return plain(errno)
}

// Recv takes what is there, up to len(b). 0 without an error is the end, or, with
// an urgent byte pending, nothing.
func (f FD) Recv(b []byte) (int, error) {
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(f), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), unix.MSG_DONTWAIT, 0, 0)
		if errno != unix.EINTR {
			return count(n, errno)
		}
	}
}

// Send gives the kernel as much of b as there is room for.
func (f FD) Send(b []byte) (int, error) { return f.send(b, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL) }

// SendUrgent sends one byte as TCP's urgent byte.
func (f FD) SendUrgent(b byte) error {
	one := [1]byte{b}
	_, err := f.send(one[:], unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL|unix.MSG_OOB)
	return err
}

func (f FD) send(b []byte, flags uintptr) (int, error) {
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(f), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), flags, 0, 0)
		if errno != unix.EINTR {
			return count(n, errno)
		}
	}
}

// AtMark tells whether the next byte is the urgent one (SIOCATMARK), with
// SO_OOBINLINE set.
func (f FD) AtMark() bool {
	var at int32
	_, _, errno := unix.RawSyscall(unix.SYS_IOCTL, uintptr(f), unix.SIOCATMARK, uintptr(unsafe.Pointer(&at)))
	return errno == 0 && at != 0
}

// Unsent is how many bytes the peer has not acknowledged (TCP) or not received
// (unix): SIOCOUTQ.
func (f FD) Unsent() (int, error) { return f.ioctl(unix.SIOCOUTQ) }

// Unread is how many bytes wait to be received: SIOCINQ.
func (f FD) Unread() (int, error) { return f.ioctl(unix.SIOCINQ) }

func (f FD) ioctl(request uintptr) (int, error) {
	var n int32
	_, _, errno := unix.RawSyscall(unix.SYS_IOCTL, uintptr(f), request, uintptr(unsafe.Pointer(&n)))
	return int(n), plain(errno)
}

// CloseWrite sends the end; CloseRead makes Recv see what is queued and then the
// end.
func (f FD) CloseWrite() error { return f.shutdown(unix.SHUT_WR) }

// CloseRead ends reading.
func (f FD) CloseRead() error { return f.shutdown(unix.SHUT_RD) }

func (f FD) shutdown(how uintptr) error {
	_, _, errno := unix.RawSyscall(unix.SYS_SHUTDOWN, uintptr(f), how, 0)
	return plain(errno)
}

// Reset ends a TCP connection with a reset and closes it; what is queued is lost.
// connect(2) to AF_UNSPEC works on any duplicate, where closing with a linger time of
// 0 would wait for the last one. A unix socket is closed.
func (f FD) Reset(tcp bool) {
	if tcp {
		_ = disconnect(int(f)) // ENOTCONN is as good as reset
	}
	f.Close()
}

// Close ends the connection in order.
func (f FD) Close() {
	_, _, _ = unix.RawSyscall(unix.SYS_CLOSE, uintptr(f), 0, 0) // it is gone either way
}

// Peer is whom the socket is connected to, and Local its own name.
func (f FD) Peer() (families.Name, error) { return sockaddrOf(int(f), unix.SYS_GETPEERNAME) }

// Local is the socket's own name.
func (f FD) Local() (families.Name, error) { return sockaddrOf(int(f), unix.SYS_GETSOCKNAME) }

// Err takes the pending error: SO_ERROR.
func (f FD) Err() error {
	n, err := unix.GetsockoptInt(int(f), unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		return err
	}
	return plain(syscall.Errno(n))
}

// Tune sets what a relay wants of a socket. Each that fails is left as it is: the
// connection works all the same.
func (f FD) Tune(options []IntOption) {
	for i := range options {
		o := &options[i]
		_, _, _ = unix.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(f), uintptr(o.Level), uintptr(o.Name), uintptr(unsafe.Pointer(&o.Value)), 4, 0)
	}
}

// IntOption is a socket option whose value is an int.
type IntOption struct {
	Level, Name int
	Value       int32
}

// RelayedTCP are the options of a relay's TCP connections. A relay passes on what it
// gets at once, so Nagle's algorithm would only add its wait to the sender's own. The
// urgent byte stays in its place, or it would be lost without a count.
var RelayedTCP = []IntOption{
	{unix.IPPROTO_TCP, unix.TCP_NODELAY, 1},
	{unix.SOL_SOCKET, unix.SO_OOBINLINE, 1},
}

// KeptAlive finds TCP peers that vanished, within two minutes of silence.
var KeptAlive = []IntOption{
	{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 60},
	{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 15},
	{unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 4},
	{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
}

// RelayedUnix are the options of a relay's unix connections: its urgent byte (since
// Linux 5.15) stays in its place.
var RelayedUnix = []IntOption{{unix.SOL_SOCKET, unix.SO_OOBINLINE, 1}}

// Listen changes the length of a listening socket's queue; 0 or less is the system's
// largest.
func (f FD) Listen(backlog int) error {
	if backlog <= 0 {
		backlog = math.MaxInt32
	}
	return unix.Listen(int(f), backlog)
}

// largestSendBuffer is what net.core.wmem_max allows.
var largestSendBuffer = sync.OnceValue(func() int {
	text, err := os.ReadFile("/proc/sys/net/core/wmem_max")
	if err != nil {
		return 0
	}
	n, _ := strconv.Atoi(strings.TrimSpace(string(text))) // 0: nothing is known to be allowed
	return n
})

// DeepenTCP gives a TCP socket room for n bytes on their way. Without net.core.wmem_max
// that large it is left alone: the kernel grows it by itself, up to net.ipv4.tcp_wmem,
// and a size that is set ends that.
func (f FD) DeepenTCP(n int) {
	if largestSendBuffer() >= n {
		f.SetSendBuffer(n)
	}
}

// SetSendBuffer asks for room for n bytes on their way, of which the kernel gives as
// much as net.core.wmem_max allows: SO_SNDBUF.
func (f FD) SetSendBuffer(n int) {
	o := [1]IntOption{{unix.SOL_SOCKET, unix.SO_SNDBUF, int32(n)}}
	f.Tune(o[:])
}

// count is what a call returned.
func count(n uintptr, errno syscall.Errno) (int, error) {
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

func plain(errno syscall.Errno) error {
	if errno != 0 {
		return errno
	}
	return nil
}

// Domain is the AF_ number of a name.
func Domain(n *families.Name) int {
	b := n.Bytes()
	if len(b) < 2 {
		return unix.AF_UNSPEC
	}
	return int(*(*uint16)(unsafe.Pointer(&b[0])))
}

// Pipe is a pipe(2) through which bytes are spliced from one socket to another
// without passing through this process. It belongs to one goroutine.
type Pipe struct {
	r, w int32
	// Size is its capacity in bytes, Held what is in it.
	Size, Held int
}

// NewPipe makes a pipe of about size bytes: less, where the system's bounds allow no
// more (pipe(7), fs.pipe-user-pages-soft).
func NewPipe(size int) (*Pipe, error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_NONBLOCK|unix.O_CLOEXEC); err != nil {
		return nil, fmt.Errorf("make a pipe: %w", err)
	}
	p := &Pipe{r: int32(fds[0]), w: int32(fds[1])}
	if n, err := unix.FcntlInt(uintptr(p.w), unix.F_SETPIPE_SZ, size); err == nil {
		p.Size = n
	} else if n, err := unix.FcntlInt(uintptr(p.w), unix.F_GETPIPE_SZ, 0); err == nil {
		p.Size = n
	}
	return p, nil
}

// Close lets go of the pipe and what is in it.
func (p *Pipe) Close() {
	FD(p.r).Close()
	FD(p.w).Close()
}

// Fill moves up to n bytes from a socket into the pipe. EAGAIN: nothing there, the
// pipe is full, or the next byte is the urgent one; 0 is the end, or the urgent byte
// with the end behind it.
func (p *Pipe) Fill(from FD, n int) (int, error) {
	moved, err := splice(int32(from), p.w, n)
	p.Held += moved
	return moved, err
}

// Drain moves what is in the pipe to a socket, as much as it takes.
func (p *Pipe) Drain(to FD) (int, error) {
	moved, err := splice(p.r, int32(to), p.Held)
	p.Held -= moved
	return moved, err
}

func splice(from, to int32, n int) (int, error) {
	for {
		moved, _, errno := unix.RawSyscall6(unix.SYS_SPLICE, uintptr(from), 0, uintptr(to), 0, uintptr(n), unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
		if errno != unix.EINTR {
			return count(moved, errno)
		}
	}
}

// IsEAGAIN tells of an attempt that can be made again later.
func IsEAGAIN(err error) bool { return err == unix.EAGAIN }

// IsUnderWay tells whether a Connect goes on in the background.
func IsUnderWay(err error) bool { return err == unix.EINPROGRESS || err == unix.EALREADY }
