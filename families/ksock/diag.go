package ksock

import (
	"errors"
	"fmt"
	"net/netip"
	"unsafe"

	"github.com/mdlayher/netlink"
	"github.com/sockd/sockd/families"
	"golang.org/x/sys/unix"
)

// PeerOwner is the user whose process holds the other end of s, a TCP connection
// within this host. The error wraps families.ErrNotFound when there is none: the
// peer is on another host, has closed its socket, or s is no connection any more.
// Whoever asks to let somebody in must take every error for a no.
//
// It asks as OwnerOf does, and sees to it that the answer is about s: that s belongs
// to the network namespace that is asked, where the same addresses may have somebody
// else's connection, and that s is still connected afterwards. While it is, nobody
// else can have taken over its peer's address and port; a connection that was reset
// may have left its bytes to be read and its peer's port to another user.
func PeerOwner(s families.Socket) (uint32, error) {
	i := s.Info()
	if i.Protocol != unix.IPPROTO_TCP || i.Local == nil || i.Peer == nil {
		return 0, fmt.Errorf("owner of the peer of %s %s: %w", i.Family, i.State, families.ErrNotFound)
	}
	local, peer := addrPort(i.Local), addrPort(i.Peer)
	c, err := dialDiag()
	if err != nil {
		return 0, ownerError(peer, err)
	}
	defer c.Close() // nothing is queued
	if err := sameNamespace(func(f func(fd int) error) error { return control(s, f) }, c); err != nil {
		return 0, ownerError(peer, err)
	}
	uid, err := askOwner(c, local, peer)
	if err != nil {
		return 0, ownerError(peer, err)
	}
	if st := s.Info().State; st != families.Connected && st != families.HalfClosed {
		return 0, ownerError(peer, fmt.Errorf("the connection is %s: %w", st, families.ErrNotFound))
	}
	return uid, nil
}

func addrPort(a families.Addr) netip.AddrPort {
	s := a.Scope()
	return netip.AddrPortFrom(s.Prefix.Addr(), s.Port)
}

// OwnerOf is the user whose process holds the peer's socket of the TCP connection
// between local and peer, both on this host, in the network namespace of the calling
// thread: the socket that peer is the name of and that is connected to local. IPv4
// may be mapped into IPv6 or not, whatever the sockets are.
//
// It asks the kernel for this one socket (sock_diag(7), inet_diag.h), which takes no
// privilege. The user is as this process's user namespace sees it: one that it does
// not know is the overflow user, 65534. The error wraps families.ErrNotFound when
// there is no such connection or its process has closed it. See PeerOwner for what an
// answer is worth.
func OwnerOf(local, peer netip.AddrPort) (uint32, error) {
	c, err := dialDiag()
	if err != nil {
		return 0, ownerError(peer, err)
	}
	defer c.Close() // nothing is queued
	uid, err := askOwner(c, local, peer)
	if err != nil {
		return 0, ownerError(peer, err)
	}
	return uid, nil
}

func ownerError(peer netip.AddrPort, err error) error {
	return &families.OpError{Op: "find the owner of", Family: "tcp", Addr: peer.String(), Err: err}
}

func dialDiag() (*netlink.Conn, error) {
	c, err := netlink.Dial(unix.NETLINK_SOCK_DIAG, nil)
	if err != nil {
		return nil, fmt.Errorf("open sock_diag: %w", cause(err))
	}
	return c, nil
}

// sameNamespace is nil when the socket that ask has the descriptor of is one of the
// network namespace that c asks.
func sameNamespace(ask func(f func(fd int) error) error, c *netlink.Conn) error {
	rc, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var here, there uint64
	err = ask(func(fd int) (err error) {
		there, err = unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
		return err
	})
	if err != nil {
		return fmt.Errorf("ask for its network namespace: %w", err)
	}
	var hereErr error
	if err := rc.Control(func(fd uintptr) {
		here, hereErr = unix.GetsockoptUint64(int(fd), unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	}); err != nil {
		return err
	}
	switch {
	case hereErr != nil:
		return fmt.Errorf("ask for our network namespace: %w", hereErr)
	case here != there:
		return fmt.Errorf("it is in another network namespace: %w", families.ErrNotFound)
	}
	return nil
}

// askOwner looks one socket up.
func askOwner(c *netlink.Conn, local, peer netip.AddrPort) (uint32, error) {
	if !local.IsValid() || !peer.IsValid() {
		return 0, families.ErrNotFound
	}
	replies, err := c.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.SOCK_DIAG_BY_FAMILY, Flags: netlink.Request},
		// An address is IPv4 to the kernel's tables even when the socket is of IPv6
		// (measured: AF_INET finds both, AF_INET6 with mapped addresses does too).
		Data: diagQuery{protocol: unix.IPPROTO_TCP, src: unmapped(peer), dst: unmapped(local)}.encode(),
	})
	switch err := cause(err); {
	case errors.Is(err, unix.ENOENT):
		return 0, fmt.Errorf("nobody holds it: %w", families.ErrNotFound)
	case err != nil:
		return 0, err
	case len(replies) != 1:
		return 0, fmt.Errorf("%d answers for one socket: %w", len(replies), unix.EPROTO)
	}
	return ownerIn(replies[0].Data, local, peer)
}

// Where things stand in struct inet_diag_req_v2 and struct inet_diag_msg: each has
// some fields of its own around one struct inet_diag_sockid.
const (
	diagRequestSize = 8 + diagIDSize
	diagReplySize   = 4 + diagIDSize + 5*4
	diagIDSize      = 2*2 + 2*16 + 3*4
)

// noCookie is INET_DIAG_NOCOOKIE: whichever socket has the addresses.
const noCookie = ^uint32(0)

func unmapped(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap().WithZone(""), a.Port())
}

// ownerIn reads the answer, and does not believe every one. Where no connection has
// the addresses the kernel answers with what listens on peer's. A socket that no
// process holds any more (TIME_WAIT, or closed with data in flight) is the root
// user's in the answer, and has no inode. One that is not connected yet may be
// somebody's attempt to come after a peer that is gone.
func ownerIn(reply []byte, local, peer netip.AddrPort) (uint32, error) {
	s, ok := readDiag(reply)
	switch {
	case !ok:
		return 0, fmt.Errorf("an answer of %d bytes: %w", len(reply), unix.EPROTO)
	case s.src != unmapped(peer) || s.dst != unmapped(local):
		return 0, fmt.Errorf("there is a socket between %v and %v instead: %w", s.src, s.dst, families.ErrNotFound)
	case s.Inode == 0:
		return 0, fmt.Errorf("no process holds it any more: %w", families.ErrNotFound)
	case !heldState(s.state):
		return 0, fmt.Errorf("it is not connected (TCP state %d): %w", s.state, families.ErrNotFound)
	}
	return s.UID, nil
}

// heldState tells whether a socket in this state has been connected and may still be
// held: every state between the handshake and TIME_WAIT.
func heldState(state byte) bool {
	switch state {
	case tcpEstablished, tcpFinWait1, tcpFinWait2, tcpCloseWait, tcpLastAck, tcpClosing:
		return true
	}
	return false
}

func diagAddr(family byte, b []byte) netip.Addr {
	if family == unix.AF_INET {
		return netip.AddrFrom4([4]byte(b))
	}
	return netip.AddrFrom16([16]byte(b)).Unmap()
}

// PeerGroups are the supplementary groups of who made the other end of a connected
// unix socket, as PeerCred (SO_PEERGROUPS, Linux 4.13).
func PeerGroups(s families.Socket) ([]uint32, error) {
	var groups []uint32
	err := control(s, func(fd int) (err error) {
		groups, err = peerGroups(fd)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("ask for the peer's groups: %w", err)
	}
	return groups, nil
}

// fewGroups is enough for nearly everybody; a user may be in 65536 (NGROUPS_MAX).
const fewGroups = 32

// peerGroups has the kernel say with ERANGE how much room it takes.
func peerGroups(fd int) ([]uint32, error) {
	groups := make([]uint32, fewGroups)
	for {
		size := uint32(len(groups)) * 4
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(&groups[0])), uintptr(unsafe.Pointer(&size)), 0)
		switch {
		case errno == 0:
			return groups[:size/4], nil
		case errno == unix.ERANGE && int(size) > 4*len(groups):
			groups = make([]uint32, size/4)
		case errno != unix.EINTR:
			return nil, errno
		}
	}
}
