package ksock

import (
	"encoding/binary"
	"fmt"
	"os"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// SocketError is one error of a socket's error queue (ip(7), IP_RECVERR).
type SocketError struct {
	Errno syscall.Errno
	// FromNet: an ICMP message brought it; else it was found on this host.
	FromNet bool
	// MTU is that of the route, with EMSGSIZE.
	MTU uint32
}

// RecvError takes one error out of the queue of a socket with QueueErrors. EAGAIN:
// there is none.
func (f FD) RecvError() (SocketError, error) {
	var control [32]uint64 // sock_extended_err and the address of who sent it
	var data [1]byte       // what the datagram was is of no use here
	iov := unix.Iovec{Base: &data[0]}
	iov.SetLen(len(data))
	h := unix.Msghdr{Iov: &iov, Control: (*byte)(unsafe.Pointer(&control))}
	h.SetIovlen(1)
	h.SetControllen(len(control) * 8)
	_, _, errno := unix.RawSyscall(unix.SYS_RECVMSG, uintptr(f), uintptr(unsafe.Pointer(&h)), unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
	if errno != 0 {
		return SocketError{}, errno
	}
	return readError(unsafe.Slice((*byte)(unsafe.Pointer(&control)), len(control)*8)[:h.Controllen]), nil
}

func readError(rest []byte) SocketError {
	for len(rest) >= unix.SizeofCmsghdr {
		h := (*unix.Cmsghdr)(unsafe.Pointer(&rest[0]))
		size := int(h.Len)
		if size < unix.SizeofCmsghdr || size > len(rest) {
			break
		}
		isError := h.Level == unix.SOL_IP && h.Type == unix.IP_RECVERR || h.Level == unix.SOL_IPV6 && h.Type == unix.IPV6_RECVERR
		if isError && size >= unix.CmsgLen(int(unsafe.Sizeof(unix.SockExtendedErr{}))) {
			e := (*unix.SockExtendedErr)(unsafe.Pointer(&rest[unix.CmsgLen(0)]))
			net := e.Origin == unix.SO_EE_ORIGIN_ICMP || e.Origin == unix.SO_EE_ORIGIN_ICMP6
			return SocketError{Errno: syscall.Errno(e.Errno), FromNet: net, MTU: e.Info}
		}
		rest = rest[min(unix.CmsgSpace(size-unix.CmsgLen(0)), len(rest)):]
	}
	return SocketError{} // the kernel puts one on every message of this queue
}

// OpenICMP opens a raw ICMP socket (AF_INET) or ICMPv6 socket (AF_INET6) in the
// network namespace of like. It takes CAP_NET_RAW, and in another namespace than the
// process's own CAP_SYS_ADMIN and CAP_NET_ADMIN, too. It receives nothing.
func OpenICMP(domain int, like FD) (FD, error) {
	fd, err := rawICMP(domain)
	if err != nil {
		return NoDescriptor, fmt.Errorf("open a raw icmp socket: %w", err)
	}
	if same, err := sameNetwork(like, fd); err == nil && same {
		return fd, nil
	}
	fd.Close()
	if fd, err = icmpElsewhere(domain, like); err != nil {
		return NoDescriptor, fmt.Errorf("open a raw icmp socket in another network namespace: %w", err)
	}
	return fd, nil
}

// rawICMP is a socket with a filter that refuses all types: nothing is queued that
// nobody reads.
func rawICMP(domain int) (FD, error) {
	proto := unix.IPPROTO_ICMP
	if domain == unix.AF_INET6 {
		proto = unix.IPPROTO_ICMPV6
	}
	fd, err := unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, proto)
	if err != nil {
		return NoDescriptor, err
	}
	nothing := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K}
	prog := unix.SockFprog{Len: 1, Filter: &nothing}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &prog); err != nil {
		_ = unix.Close(fd) // the first error is the one to tell
		return NoDescriptor, err
	}
	return FD(fd), nil
}

// sameNetwork tells whether two sockets are of one network namespace
// (SO_NETNS_COOKIE, since Linux 5.14).
func sameNetwork(a, b FD) (bool, error) {
	x, err := unix.GetsockoptUint64(int(a), unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return false, err
	}
	y, err := unix.GetsockoptUint64(int(b), unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	return x == y, err
}

// icmpElsewhere opens the socket on a thread that enters like's namespace. The
// thread ends with its goroutine when it cannot come back.
func icmpElsewhere(domain int, like FD) (FD, error) {
	there, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(like), unix.SIOCGSKNS, 0)
	if errno != 0 {
		return NoDescriptor, os.NewSyscallError("ioctl SIOCGSKNS", errno)
	}
	defer unix.Close(int(there)) // a namespace's descriptor has nothing to lose
	type result struct {
		fd  FD
		err error
	}
	done := make(chan result, 1)
	go func() {
		runtime.LockOSThread() // and not unlocked: the thread ends here
		if err := unix.Setns(int(there), unix.CLONE_NEWNET); err != nil {
			done <- result{NoDescriptor, os.NewSyscallError("setns", err)}
			return
		}
		fd, err := rawICMP(domain)
		done <- result{fd, err}
	}()
	r := <-done
	return r.fd, r.err
}

// Unreachable says why a datagram did not arrive, to be told to whom it came from.
type Unreachable struct {
	// To is who sent the datagram, From the address and port that it was sent to.
	To   Peer
	From Local
	Port uint16
	// Why is ECONNREFUSED, ENETUNREACH, EMSGSIZE (with MTU), EACCES, or any other for
	// an unreachable host.
	Why syscall.Errno
	MTU uint32
}

// Message is the ICMP or ICMPv6 message (RFC 792, 4443): destination unreachable or
// packet too big, about a datagram of which the headers stand in for it. The checksum
// of ICMPv6 is left to the kernel.
func (u *Unreachable) Message() []byte {
	if u.To.AddrPort().Addr().Is4() {
		return u.message4()
	}
	return u.message6()
}

const (
	icmpHeader = 8
	udpHeader  = 8
	ip4Header  = 20
	ip6Header  = 40
)

func (u *Unreachable) message4() []byte {
	b := make([]byte, icmpHeader+ip4Header+udpHeader)
	b[0], b[1] = 3, u.code4()
	if u.Why == unix.EMSGSIZE {
		binary.BigEndian.PutUint16(b[6:], uint16(min(u.MTU, 0xffff)))
	}
	ip := b[icmpHeader:]
	ip[0] = 4<<4 | ip4Header/4
	binary.BigEndian.PutUint16(ip[2:], ip4Header+udpHeader)
	ip[8], ip[9] = 64, unix.IPPROTO_UDP
	src, dst := u.To.AddrPort().Addr().As4(), u.From.IP().As4()
	copy(ip[12:], src[:])
	copy(ip[16:], dst[:])
	binary.BigEndian.PutUint16(ip[10:], checksum(ip[:ip4Header]))
	u.ports(ip[ip4Header:])
	binary.BigEndian.PutUint16(b[2:], checksum(b))
	return b
}

// code4 is the code of type 3.
func (u *Unreachable) code4() byte {
	switch u.Why {
	case unix.ECONNREFUSED:
		return 3
	case unix.EMSGSIZE:
		return 4
	case unix.ENETUNREACH:
		return 0
	case unix.EACCES, unix.EPERM:
		return 13
	}
	return 1
}

func (u *Unreachable) message6() []byte {
	b := make([]byte, icmpHeader+ip6Header+udpHeader)
	b[0], b[1] = u.code6()
	if u.Why == unix.EMSGSIZE {
		binary.BigEndian.PutUint32(b[4:], u.MTU)
	}
	ip := b[icmpHeader:]
	ip[0] = 6 << 4
	binary.BigEndian.PutUint16(ip[4:], udpHeader)
	ip[6], ip[7] = unix.IPPROTO_UDP, 64
	src, dst := u.To.AddrPort().Addr().As16(), u.From.IP().As16()
	copy(ip[8:], src[:])
	copy(ip[24:], dst[:])
	u.ports(ip[ip6Header:])
	return b
}

// code6 is the type and code of ICMPv6.
func (u *Unreachable) code6() (typ, code byte) {
	switch u.Why {
	case unix.ECONNREFUSED:
		return 1, 4
	case unix.EMSGSIZE:
		return 2, 0
	case unix.ENETUNREACH:
		return 1, 0
	case unix.EACCES, unix.EPERM:
		return 1, 1
	}
	return 1, 3
}

// ports is the UDP header, by which the receiver finds its socket.
func (u *Unreachable) ports(b []byte) {
	binary.BigEndian.PutUint16(b, u.To.AddrPort().Port())
	binary.BigEndian.PutUint16(b[2:], u.Port)
	binary.BigEndian.PutUint16(b[4:], udpHeader)
}

// checksum is the internet's (RFC 1071).
func checksum(b []byte) uint16 {
	var sum uint32
	for ; len(b) >= 2; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

// SendUnreachable sends u from the address that the datagram was sent to, on a socket
// of OpenICMP.
func (f FD) SendUnreachable(u *Unreachable) error {
	var o letter
	return o.send(f, u)
}

// letter is one message with all that the kernel reads of it.
type letter struct {
	to   Peer
	iov  unix.Iovec
	info controlRoom
	hdr  unix.Msghdr
}

func (o *letter) send(f FD, u *Unreachable) error {
	msg := u.Message()
	o.to = u.To.portless()
	o.iov.Base = &msg[0]
	o.iov.SetLen(len(msg))
	o.hdr.Iov = &o.iov
	o.hdr.SetIovlen(1)
	o.hdr.Name, o.hdr.Namelen = o.to.sockaddr()
	o.hdr.Control = (*byte)(unsafe.Pointer(&o.info))
	o.hdr.SetControllen(o.info.write(u.From, &o.to, 0))
	_, _, errno := unix.RawSyscall(unix.SYS_SENDMSG, uintptr(f), uintptr(unsafe.Pointer(&o.hdr)), unix.MSG_DONTWAIT)
	return plain(errno)
}

// portless is the address for a raw socket, whose port means the protocol; an IPv4
// peer of a dual-stack socket has its IPv4 form.
func (p Peer) portless() Peer {
	p.port = [2]byte{}
	if a := p.AddrPort().Addr(); a.Is4() {
		return Peer{family: unix.AF_INET, v4: a.As4()}
	}
	return p
}
