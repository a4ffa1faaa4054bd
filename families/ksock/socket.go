package ksock

import (
	"context"
	"errors"
	"math"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"github.com/mdlayher/socket"
	"github.com/sockd/sockd/families"
	"golang.org/x/sys/unix"
)

// What the types promise.
var (
	_ families.Socket     = (*Base)(nil)
	_ families.Descriptor = (*Base)(nil)
	_ families.Optioner   = (*Base)(nil)
	_ families.Dropper    = (*Lossy)(nil)
	_ families.Listener   = (*Conn)(nil)
	_ families.HalfCloser = (*Conn)(nil)
	_ families.Resetter   = (*TCP)(nil)
)

// Base is a socket of any type with what every kernel socket can do.
type Base struct {
	fam   *Family
	typ   families.Type
	proto int
	conn  *socket.Conn
	rc    syscall.RawConn

	read, write line

	closed  atomic.Bool
	ended   atomic.Bool // reading is over on a datagram socket, which recvmsg does not tell
	crowded atomic.Bool // a receiver's queue was full, which poll does not tell
	marked  atomic.Bool // seqpacket: SO_PASSCRED is set, so that an end differs from an empty message
	creds   atomic.Bool // the user wants credentials
	bounded atomic.Bool // no call blocks for long; see guard

	mu   sync.Mutex // guards what follows
	was  bool       // connected once
	peer families.Name
	shut shutdowns
	last families.Info // what Close saw
	lost uint64        // drops that Close saw
}

type shutdowns struct{ read, write bool }

// Lossy is a datagram or raw socket whose kernel queue drops when it is full.
type Lossy struct{ *Base }

// Conn is a stream or seqpacket socket.
type Conn struct{ *Base }

// TCP is a Conn that can end with a reset.
type TCP struct{ *Conn }

// newBase wraps an open socket. On error the caller still owns conn.
func newBase(f *Family, conn *socket.Conn) (*Base, error) {
	rc, err := conn.SyscallConn()
	if err != nil {
		return nil, cause(err)
	}
	b := &Base{fam: f, conn: conn, rc: rc}
	err = b.control(func(fd int) (err error) {
		if b.typ, err = socketType(fd); err != nil {
			return err
		}
		b.proto, err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
		return err
	})
	if err != nil {
		return nil, err
	}
	return b, nil
}

// adopted finds out what happened to a socket before it was ours.
func (b *Base) adopted() {
	_ = b.control(func(fd int) error { // what cannot be asked is as in a new socket
		_, err := sockaddrOf(fd, unix.SYS_GETPEERNAME)
		b.was = err == nil
		if b.fam.Control {
			on, _ := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PASSCRED) // 0 on error
			b.creds.Store(on != 0)
		}
		return nil
	})
}

// dress gives b the type with its capabilities.
func (b *Base) dress() families.Socket {
	switch {
	case b.isTCP():
		return &TCP{&Conn{b}}
	case b.typ == families.Stream, b.typ == families.Seqpacket:
		return &Conn{b}
	case b.fam.Drops:
		return &Lossy{b}
	}
	return b
}

func (b *Base) isTCP() bool {
	inet := b.fam.Domain == unix.AF_INET || b.fam.Domain == unix.AF_INET6
	return inet && b.typ == families.Stream && (b.proto == unix.IPPROTO_TCP || b.proto == unix.IPPROTO_MPTCP)
}

// Close ends every Wait with net.ErrClosed, and returns when no call is under
// way any more. Twice is nil.
func (b *Base) Close() error {
	last, lost := b.Info(), b.drops()
	b.mu.Lock()
	if b.closed.Load() {
		b.mu.Unlock()
		return nil
	}
	b.last, b.lost = last, lost
	b.last.State = families.Closed
	b.closed.Store(true)
	b.mu.Unlock()
	if b.isTCP() {
		_ = b.control(dontLinger) // a second Close finds it closed
	}
	return cause(b.conn.Close())
}

// Control calls f with the descriptor, which stays open until f returns. f must
// not close or keep it, nor call Close, which waits for f.
func (b *Base) Control(f func(fd int) error) error { return b.control(f) }

// control calls f with the descriptor. Its own error is net.ErrClosed.
func (b *Base) control(f func(fd int) error) error {
	var ferr error
	if err := b.rc.Control(func(fd uintptr) { ferr = f(int(fd)) }); err != nil {
		return net.ErrClosed
	}
	return ferr
}

// try is control for what the user asked, with an error that says so.
func (b *Base) try(op string, addr string, f func(fd int) error) error {
	if err := b.control(f); err != nil {
		return b.fam.fail(op, addr, err)
	}
	return nil
}

// Bind gives the socket a local address.
func (b *Base) Bind(a families.Addr) error {
	name := a.Sockaddr()
	return b.try("bind", a.String(), func(fd int) error { return sockaddrCall(unix.SYS_BIND, fd, &name) })
}

// Connect connects a stream, and sets the peer of a datagram socket. It returns
// when the connection stands; when ctx ends first, the attempt is taken back and
// the socket can be connected again.
func (b *Base) Connect(ctx context.Context, a families.Addr) error {
	name := a.Sockaddr()
	if err := b.connect(ctx, &name); err != nil {
		return b.fam.fail("connect", a.String(), err)
	}
	b.mu.Lock()
	b.was, b.peer = true, name
	b.mu.Unlock()
	return nil
}

func (b *Base) connect(ctx context.Context, name *families.Name) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	switch err := b.connectOnce(name); err {
	case unix.EINPROGRESS:
		return b.finishConnect(ctx, name)
	case unix.EAGAIN:
		return b.queueConnect(ctx, name)
	default:
		return err
	}
}

func (b *Base) connectOnce(name *families.Name) error {
	return b.control(func(fd int) error {
		if err := b.guard(fd); err != nil {
			return err
		}
		return sockaddrCall(unix.SYS_CONNECT, fd, name)
	})
}

// finishConnect waits for a connection under way. How it went it asks by another
// connect(2): SO_ERROR would tell, too, but leave the socket in its connecting
// state, and the next attempt would fail with ECONNABORTED for no reason.
func (b *Base) finishConnect(ctx context.Context, name *families.Name) error {
	for {
		if err := b.Wait(ctx, families.Writable); err != nil {
			b.takeBack()
			return err
		}
		switch err := b.connectOnce(name); err {
		case unix.EALREADY, unix.EINPROGRESS:
		case unix.EISCONN:
			return nil
		default:
			return err
		}
	}
}

// takeBack ends a connection attempt. connect(2) to AF_UNSPEC does that without
// giving up the local address; it leaves ECONNRESET behind, which is read away.
func (b *Base) takeBack() {
	_ = b.control(func(fd int) error { // a closed socket has no attempt either
		if err := disconnect(fd); err != nil {
			return err
		}
		_, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
		return err
	})
}

// A full unix backlog is EAGAIN, not EINPROGRESS (unix(7)): there is nothing to
// poll, so the attempt is repeated, soon at first and then less and less often.
func (b *Base) queueConnect(ctx context.Context, name *families.Name) error {
	const soonest, latest = time.Millisecond, 50 * time.Millisecond
	for pause := soonest; ; pause = min(2*pause, latest) {
		if err := sleep(ctx, pause); err != nil {
			return err
		}
		if err := b.connectOnce(name); err != unix.EAGAIN {
			return err
		}
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// disconnect dissolves a connection, or an attempt at one: connect(2), AF_UNSPEC.
func disconnect(fd int) error {
	unspec := families.MakeName(make([]byte, unix.SizeofSockaddrInet4))
	return sockaddrCall(unix.SYS_CONNECT, fd, &unspec)
}

// Listen opens the queue of pending connections; 0 or less is the system's
// largest, which the kernel makes of a number that is too large (listen(2)).
func (c *Conn) Listen(backlog int) error {
	if backlog <= 0 {
		backlog = math.MaxInt32
	}
	return c.try("listen", "", func(fd int) error { return unix.Listen(fd, backlog) })
}

// Accept takes one connection out of the queue. The new socket has the type of
// the listening one.
func (c *Conn) Accept() (families.Socket, error) {
	var fd int
	err := c.control(func(listener int) (err error) {
		if err := c.guard(listener); err != nil {
			return err
		}
		fd, err = acceptOnce(listener)
		return err
	})
	switch {
	case err == unix.EAGAIN:
		return nil, families.ErrAgain
	case err != nil:
		return nil, c.fam.fail("accept", "", err)
	}
	conn, err := socket.New(fd, c.fam.Name)
	if err != nil {
		return nil, c.fam.fail("accept", "", cause(err))
	}
	b, err := newBase(c.fam, conn)
	if err != nil {
		_ = conn.Close() // the first error is the one to tell
		return nil, c.fam.fail("accept", "", err)
	}
	b.was = true
	b.creds.Store(c.creds.Load())
	return b.dress(), nil
}

// acceptOnce passes over connections that died in the queue, each of which the
// kernel tells once (accept(2)). It asks before it takes: with O_NONBLOCK cleared
// under us, accept4 would wait.
func acceptOnce(listener int) (int, error) {
	for {
		if poll(listener, unix.POLLIN) == 0 {
			return -1, nothingToAccept(listener)
		}
		fd, _, err := unix.Accept4(listener, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		if err == unix.EAGAIN && poll(listener, unix.POLLRDHUP)&(unix.POLLRDHUP|unix.POLLHUP) != 0 {
			return -1, unix.EINVAL // somebody who shares it has shut a unix listener down: poll says so for ever
		}
		if err != unix.ECONNABORTED && err != unix.EINTR {
			return fd, err
		}
	}
}

// nothingToAccept is what a non-blocking accept4 says when there is no connection.
func nothingToAccept(fd int) error {
	if on, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN); err == nil && on == 0 {
		return unix.EINVAL // it does not listen, and no connection will ever come
	}
	return unix.EAGAIN
}

// CloseRead ends the reading direction.
func (c *Conn) CloseRead() error {
	return c.shutdown(unix.SHUT_RD, func(s *shutdowns) { s.read = true })
}

// CloseWrite ends the writing direction: the peer reads what is queued and then
// the end.
func (c *Conn) CloseWrite() error {
	return c.shutdown(unix.SHUT_WR, func(s *shutdowns) { s.write = true })
}

// CloseBoth ends both directions by one call: after the first of two, a TCP
// connection whose peer has ended already is gone, and the second is ENOTCONN.
func (c *Conn) CloseBoth() error {
	return c.shutdown(unix.SHUT_RDWR, func(s *shutdowns) { s.read, s.write = true, true })
}

func (c *Conn) shutdown(how int, note func(*shutdowns)) error {
	if err := c.try("shutdown", "", func(fd int) error { return unix.Shutdown(fd, how) }); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	note(&c.shut)
	return nil
}

// Reset ends the connection with a reset, drops what is queued, and closes the
// socket. It works on any duplicate of the descriptor, where closing with a
// linger time of 0 would wait for the last one.
func (t *TCP) Reset() error {
	_ = t.control(disconnect) // ENOTCONN and closed are as good as reset
	return t.Close()
}

// Drops is how many messages the kernel dropped for want of room since the
// socket was opened.
func (l *Lossy) Drops() uint64 { return l.Base.drops() }

func (b *Base) drops() uint64 {
	if !b.fam.Drops {
		return 0
	}
	var n uint64
	err := b.control(func(fd int) (err error) {
		n, err = memDrops(fd)
		return err
	})
	if errors.Is(err, net.ErrClosed) {
		b.mu.Lock()
		defer b.mu.Unlock()
		return b.lost
	}
	return n
}

// memDrops reads sk_drops out of SO_MEMINFO (since Linux 4.12), which unlike
// SO_RXQ_OVFL needs no message to ride on.
func memDrops(fd int) (uint64, error) {
	var vars [unix.SK_MEMINFO_VARS]uint32
	size := uint32(unsafe.Sizeof(vars))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_MEMINFO, uintptr(unsafe.Pointer(&vars)), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return 0, errno
	}
	return uint64(vars[unix.SK_MEMINFO_DROPS]), nil
}

// NameAddr reads a Name that Recv gave.
func (b *Base) NameAddr(n families.Name) families.Addr {
	if n.Empty() {
		return nil
	}
	return b.fam.Addr(b.typ, n)
}

func (b *Base) protoWord(protocol int) string {
	if b.fam.Proto != nil {
		if w := b.fam.Proto(protocol); w != "" {
			return w
		}
	}
	return strconv.Itoa(protocol)
}

// sockaddrCall makes a system call that takes a descriptor and a struct sockaddr.
func sockaddrCall(trap uintptr, fd int, name *families.Name) error {
	raw := name.Bytes()
	if len(raw) == 0 {
		return unix.EINVAL
	}
	for {
		_, _, errno := unix.Syscall(trap, uintptr(fd), uintptr(unsafe.Pointer(&raw[0])), uintptr(len(raw)))
		switch errno {
		case 0:
			return nil
		case unix.EINTR:
		default:
			return errno
		}
	}
}

// sockaddrOf is getsockname(2) or getpeername(2).
func sockaddrOf(fd int, trap uintptr) (families.Name, error) {
	var n families.Name
	raw := n.Buffer()
	size := uint32(len(raw))
	_, _, errno := unix.Syscall(trap, uintptr(fd), uintptr(unsafe.Pointer(&raw[0])), uintptr(unsafe.Pointer(&size)))
	if errno != 0 {
		return families.Name{}, errno
	}
	n.SetLen(int(size))
	return n, nil
}
