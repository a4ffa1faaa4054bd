package main

import (
	"fmt"
	"net/netip"
	"os"
	"syscall"
	"unsafe"
)

const (
	// Room for the replies to a whole window, whatever else the machine does. As
	// root it holds; else the kernel cuts it to net.core.rmem_max.
	generatorBuffer = 4 << 20
	// One system call moves up to this many datagrams. UIO_MAXIOV would be 1024;
	// longer batches than this gain nothing and make the traffic burstier.
	batchSize = 64
	// The largest datagram of a row, and some.
	datagramRoom = 2048
	// The largest burst: what fits a packet. Fewer of them are as many bytes.
	burstRoom, burstBatch = 64 << 10, 16

	msgWaitForOne = 0x10000 // MSG_WAITFORONE of recvmmsg(2)
)

// mmsghdr is struct mmsghdr of recvmmsg(2).
type mmsghdr struct {
	hdr syscall.Msghdr
	len uint32
}

// A batch is a set of datagrams with their buffers, used again and again.
type batch struct {
	msgs  []mmsghdr
	iovs  []syscall.Iovec
	names []syscall.RawSockaddrInet4
	ctls  []control
	bufs  [][]byte
}

// newBatch is one of datagrams, newBurstBatch one of bursts of them.
func newBatch() *batch      { return makeBatch(batchSize, datagramRoom) }
func newBurstBatch() *batch { return makeBatch(burstBatch, burstRoom) }

func makeBatch(n, room int) *batch {
	b := &batch{
		msgs:  make([]mmsghdr, n),
		iovs:  make([]syscall.Iovec, n),
		names: make([]syscall.RawSockaddrInet4, n),
		ctls:  make([]control, n),
		bufs:  make([][]byte, n),
	}
	for i := range b.msgs {
		b.bufs[i] = make([]byte, room)
		b.iovs[i].Base = &b.bufs[i][0]
		b.msgs[i].hdr.Iov, b.msgs[i].hdr.Iovlen = &b.iovs[i], 1
		b.msgs[i].hdr.Name = (*byte)(unsafe.Pointer(&b.names[i]))
	}
	return b
}

// recv waits for one datagram or burst and takes what else is there. What the kernel
// has to tell of each (arrival) it tells if the socket asked for it. It returns
// syscall.EAGAIN after the socket's SO_RCVTIMEO.
func (b *batch) recv(fd int) (int, error) {
	for i := range b.msgs {
		b.iovs[i].SetLen(len(b.bufs[i]))
		b.msgs[i].hdr.Namelen = syscall.SizeofSockaddrInet4
		b.control(i, controlRoom)
	}
	return b.call(syscall.SYS_RECVMMSG, fd, 0, len(b.msgs), msgWaitForOne)
}

// control lets a message carry so many bytes of control messages.
func (b *batch) control(i, n int) {
	h := &b.msgs[i].hdr
	h.Control = nil
	if n > 0 {
		h.Control = (*byte)(unsafe.Pointer(&b.ctls[i]))
	}
	h.SetControllen(n)
}

// aim makes message i one of n datagrams, each of size bytes, to a destination, from
// a source address of this host that need not be the one the socket is bound to.
func (b *batch) aim(i, size, n int, to syscall.RawSockaddrInet4, from [4]byte) {
	b.iovs[i].SetLen(n * size)
	b.names[i], b.msgs[i].hdr.Namelen = to, syscall.SizeofSockaddrInet4
	used := b.ctls[i].putSource(0, from)
	if n > 1 {
		used = b.ctls[i].putSegment(used, size)
	}
	b.control(i, used)
}

// arrival is where message i, just received, was sent to ("to" is zero if the socket
// does not ask), and how long each datagram in it is, but for the last.
func (b *batch) arrival(i int) (to [4]byte, segment int) {
	to, segment = b.ctls[i].read(int(b.msgs[i].hdr.Controllen))
	if segment == 0 {
		segment = int(b.msgs[i].len)
	}
	return to, segment
}

// back makes the first n messages, just received, their own answers, bursts as bursts.
func (b *batch) back(n int) {
	for i := range n {
		length, used := int(b.msgs[i].len), 0
		if _, segment := b.arrival(i); segment < length {
			used = b.ctls[i].putSegment(0, segment)
		}
		b.iovs[i].SetLen(length)
		b.control(i, used)
	}
}

// send sends the first n messages, all of them.
func (b *batch) send(fd, n int) error {
	for sent := 0; sent < n; {
		k, err := b.call(sysSendmmsg, fd, sent, n-sent, 0)
		if err != nil {
			return err
		}
		sent += k
	}
	return nil
}

// call is recvmmsg or sendmmsg with n messages from the first on.
func (b *batch) call(nr uintptr, fd, first, n, flags int) (int, error) {
	for {
		r, _, errno := syscall.Syscall6(nr, uintptr(fd), uintptr(unsafe.Pointer(&b.msgs[first])), uintptr(n), uintptr(flags), 0, 0)
		switch errno {
		case 0:
			return int(r), nil
		case syscall.EINTR:
		default:
			return 0, errno
		}
	}
}

// bindUDP opens a blocking UDP socket and says its address.
func bindUDP(e endpoint) (fd int, addr string, err error) {
	_, sa, err := sockaddr(e)
	if err != nil {
		return -1, "", err
	}
	fd, err = syscall.Socket(syscall.AF_INET, syscall.SOCK_DGRAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, "", os.NewSyscallError("socket", err)
	}
	for _, o := range []int{syscall.SO_RCVBUF, syscall.SO_SNDBUF, syscall.SO_RCVBUFFORCE, syscall.SO_SNDBUFFORCE} {
		_ = syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, o, generatorBuffer) // the last two need CAP_NET_ADMIN
	}
	if err := syscall.Bind(fd, sa); err != nil {
		_ = syscall.Close(fd) // the first error is what matters
		return -1, "", fmt.Errorf("bind %s %s: %w", e.Net, e.Addr, err)
	}
	return fd, boundTo(fd), nil
}

// rawAddr is an IPv4 endpoint as struct sockaddr_in.
func rawAddr(e endpoint) (syscall.RawSockaddrInet4, error) {
	ap, err := netip.ParseAddrPort(e.Addr)
	if err != nil {
		return syscall.RawSockaddrInet4{}, err
	}
	sa := syscall.RawSockaddrInet4{Family: syscall.AF_INET, Addr: ap.Addr().As4()}
	port := (*[2]byte)(unsafe.Pointer(&sa.Port)) // network order
	port[0], port[1] = byte(ap.Port()>>8), byte(ap.Port())
	return sa, nil
}
