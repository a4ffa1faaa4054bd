package ksock

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"unsafe"

	"github.com/sockd/sockd/families"
	"golang.org/x/sys/unix"
)

// Peer is the struct sockaddr_in or sockaddr_in6 of who sends or receives: 28 bytes
// without a pointer, comparable, so it can be a map key. The zero Peer is nobody.
type Peer struct {
	family uint16 // as the kernel has it
	port   [2]byte
	v4     [4]byte // flow information of IPv6, which is not kept
	v6     [16]byte
	scope  uint32
}

// PeerOf reads a Name. One of another family than the internet's is nobody.
func PeerOf(n families.Name) Peer {
	var p Peer
	b := n.Bytes()
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&p)), unsafe.Sizeof(p)), b)
	p.cut(uint32(len(b)))
	return p
}

// PeerFrom is an address and port, of the family that the address has.
func PeerFrom(a netip.AddrPort) Peer {
	var p Peer
	binary.BigEndian.PutUint16(p.port[:], a.Port())
	if a.Addr().Is4() {
		p.family, p.v4 = unix.AF_INET, a.Addr().As4()
		return p
	}
	p.family, p.v6 = unix.AF_INET6, a.Addr().As16()
	return p
}

// cut clears what is beyond the address that the kernel wrote, so that equal peers
// are equal.
func (p *Peer) cut(n uint32) {
	switch {
	case p.family == unix.AF_INET && n >= unix.SizeofSockaddrInet4:
		p.v6, p.scope = [16]byte{}, 0
	case p.family == unix.AF_INET6 && n >= unix.SizeofSockaddrInet6:
		p.v4 = [4]byte{}
	default:
		*p = Peer{}
	}
}

// sockaddr is what msg_name and msg_namelen are for it. A nil Peer is that of a
// connected socket.
func (p *Peer) sockaddr() (*byte, uint32) {
	switch {
	case p == nil:
		return nil, 0
	case p.family == unix.AF_INET:
		return (*byte)(unsafe.Pointer(p)), unix.SizeofSockaddrInet4
	}
	return (*byte)(unsafe.Pointer(p)), unix.SizeofSockaddrInet6
}

// Name is the address as the families read it.
func (p *Peer) Name() families.Name {
	if p.family == 0 {
		return families.Name{}
	}
	b, n := p.sockaddr()
	return families.MakeName(unsafe.Slice(b, n))
}

// Domain is AF_INET or AF_INET6; 0 is nobody's.
func (p *Peer) Domain() int { return int(p.family) }

// AddrPort is the address without a zone. An IPv4 peer of a dual-stack socket is an
// IPv4 address.
func (p *Peer) AddrPort() netip.AddrPort {
	port := binary.BigEndian.Uint16(p.port[:])
	if p.family == unix.AF_INET {
		return netip.AddrPortFrom(netip.AddrFrom4(p.v4), port)
	}
	return netip.AddrPortFrom(netip.AddrFrom16(p.v6).Unmap(), port)
}

// Local is a local address that a datagram came to, and that an answer goes out
// from: of IPv4 in its IPv6 form. Interface is set where the address means nothing
// without it. The zero Local is unknown.
type Local struct {
	Addr      [16]byte
	Interface uint32
}

// LocalOf is the local address that a socket's own name is; zero for a wildcard.
func LocalOf(p Peer) Local {
	a := p.AddrPort().Addr()
	if p.family == 0 || a.IsUnspecified() {
		return Local{}
	}
	return Local{Addr: a.As16(), Interface: p.scope}
}

// IP is the address.
func (l Local) IP() netip.Addr { return netip.AddrFrom16(l.Addr).Unmap() }

func (l Local) is4() bool { return netip.AddrFrom16(l.Addr).Is4In6() }

func (l Local) pktinfo4() unix.Inet4Pktinfo {
	return unix.Inet4Pktinfo{Spec_dst: [4]byte(l.Addr[12:])}
}

// local4 is the address to answer from, which of a broadcast or multicast datagram
// is not the one that it was sent to. The kernel has found it out only for what came
// after IP_PKTINFO was set.
func local4(i *unix.Inet4Pktinfo) Local {
	if i.Spec_dst != [4]byte{} {
		return Local{Addr: netip.AddrFrom4(i.Spec_dst).As16()}
	}
	if a := netip.AddrFrom4(i.Addr); isUnicast(a) {
		return Local{Addr: a.As16()}
	}
	return Local{}
}

// local6 is the same of IPv6, where a group is nobody's source address.
func local6(i *unix.Inet6Pktinfo) Local {
	a := netip.AddrFrom16(i.Addr)
	switch {
	case !isUnicast(a):
		return Local{}
	case a.IsLinkLocalUnicast():
		return Local{Addr: i.Addr, Interface: i.Ifindex}
	}
	return Local{Addr: i.Addr}
}

func isUnicast(a netip.Addr) bool {
	a = a.Unmap()
	return !a.IsMulticast() && !a.IsUnspecified() && a != netip.AddrFrom4([4]byte{255, 255, 255, 255})
}

// NewDatagramFD opens a UDP socket for ConnectPeer.
func NewDatagramFD(domain int) (FD, error) {
	fd, err := unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return NoDescriptor, fmt.Errorf("open a udp socket: %w", err)
	}
	return FD(fd), nil
}

// ConnectPeer sets whom a datagram socket speaks to.
func (f FD) ConnectPeer(p *Peer) error {
	b, n := p.sockaddr()
	_, _, errno := unix.RawSyscall(unix.SYS_CONNECT, uintptr(f), uintptr(unsafe.Pointer(b)), uintptr(n))
	return plain(errno)
}

// LocalPeer is a socket's own name.
func (f FD) LocalPeer() (Peer, error) {
	n, err := f.Local()
	return PeerOf(n), err
}

// ReceiveRuns lets a socket receive runs of datagrams as one (UDP_GRO), or no longer.
// A kernel without it gives them one by one.
func (f FD) ReceiveRuns(on bool) {
	o := [1]IntOption{{unix.SOL_UDP, unix.UDP_GRO, 0}}
	if on {
		o[0].Value = 1
	}
	f.Tune(o[:])
}

// TellLocal lets a socket tell the address that each datagram was sent to, and
// QueueErrors lets it keep each error with what it is about (IP_RECVERR).
func (f FD) TellLocal(domain int) { f.Tune(tellLocal[domain]) }

// QueueErrors lets a socket keep each error for RecvError.
func (f FD) QueueErrors(domain int) { f.Tune(queueErrors[domain]) }

// A dual-stack socket has IPv4 datagrams, too.
var (
	tellLocal = map[int][]IntOption{
		unix.AF_INET:  {{unix.SOL_IP, unix.IP_PKTINFO, 1}},
		unix.AF_INET6: {{unix.SOL_IPV6, unix.IPV6_RECVPKTINFO, 1}, {unix.SOL_IP, unix.IP_PKTINFO, 1}},
	}
	queueErrors = map[int][]IntOption{
		unix.AF_INET:  {{unix.SOL_IP, unix.IP_RECVERR, 1}},
		unix.AF_INET6: {{unix.SOL_IPV6, unix.IPV6_RECVERR, 1}, {unix.SOL_IP, unix.IP_RECVERR, 1}},
	}
)

// Deepen makes a socket's receive queue at least n bytes, or as large as this process
// may (SO_RCVBUFFORCE takes CAP_NET_ADMIN). It never makes one smaller.
func (f FD) Deepen(n int) {
	// What is read is twice what is set: the kernel counts its own bookkeeping.
	if now, err := unix.GetsockoptInt(int(f), unix.SOL_SOCKET, unix.SO_RCVBUF); err != nil || now >= 2*n {
		return
	}
	if unix.SetsockoptInt(int(f), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, n) != nil {
		_ = unix.SetsockoptInt(int(f), unix.SOL_SOCKET, unix.SO_RCVBUF, n) // it works with what it has
	}
}

// Drops is what the kernel dropped for want of room since the socket was opened.
func (f FD) Drops() uint64 {
	n, _ := memDrops(int(f)) // 0 on a kernel that does not tell
	return n
}

// AddInput watches fd for edges of input and errors alone. A datagram socket that
// was watched for room as well would tell of it with every datagram that leaves.
func (p *Poller) AddInput(fd int, token uint64) error {
	return p.edges(unix.EPOLL_CTL_ADD, fd, token, unix.EPOLLIN)
}

// AwaitRoom makes the watch of an AddInput tell of room, too, or no longer.
func (p *Poller) AwaitRoom(fd int, token uint64, on bool) error {
	events := uint32(unix.EPOLLIN)
	if on {
		events |= unix.EPOLLOUT
	}
	return p.edges(unix.EPOLL_CTL_MOD, fd, token, events)
}

func (p *Poller) edges(op, fd int, token uint64, events uint32) error {
	ev := unix.EpollEvent{Events: events | unix.EPOLLET&(1<<32-1), Fd: int32(token), Pad: int32(token >> 32)}
	return p.control(op, fd, &ev)
}
