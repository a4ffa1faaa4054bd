package ksock

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/sockd/sockd/families"
	"golang.org/x/sys/unix"
)

// AddrPortOf is the address that an inet or inet6 name holds, without its zone and
// as IPv4 where it maps one. Of any other name it is the zero value.
func AddrPortOf(n *families.Name) netip.AddrPort {
	b := n.Bytes()
	switch d := Domain(n); {
	case d == unix.AF_INET && len(b) >= unix.SizeofSockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:8])), binary.BigEndian.Uint16(b[2:]))
	case d == unix.AF_INET6 && len(b) >= unix.SizeofSockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[8:24])).Unmap(), binary.BigEndian.Uint16(b[2:]))
	}
	return netip.AddrPort{}
}

// PeerCred is who made the other end of a unix connection, and PeerGroups are their
// supplementary groups: see the functions of these names.
func (f FD) PeerCred() (families.Creds, error) {
	u, err := unix.GetsockoptUcred(int(f), unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return families.Creds{}, fmt.Errorf("ask who the peer is: %w", err)
	}
	return families.Creds{PID: u.Pid, UID: u.Uid, GID: u.Gid}, nil
}

// PeerGroups are the supplementary groups of a unix connection's peer.
func (f FD) PeerGroups() ([]uint32, error) {
	groups, err := peerGroups(int(f))
	if err != nil {
		return nil, fmt.Errorf("ask for the peer's groups: %w", err)
	}
	return groups, nil
}

// PeerOwner is the user whose process holds the other end of a TCP connection within
// this host, as the function of this name finds out; peer is that end's address.
func (f FD) PeerOwner(peer netip.AddrPort) (uint32, error) {
	local, err := f.Local()
	if err != nil {
		return 0, ownerError(peer, err)
	}
	c, err := dialDiag()
	if err != nil {
		return 0, ownerError(peer, err)
	}
	defer c.Close() // nothing is queued
	if err := sameNamespace(func(g func(fd int) error) error { return g(int(f)) }, c); err != nil {
		return 0, ownerError(peer, err)
	}
	uid, err := askOwner(c, AddrPortOf(&local), peer)
	if err != nil {
		return 0, ownerError(peer, err)
	}
	if _, err := f.Peer(); err != nil { // ENOTCONN: peer may be somebody else's by now
		return 0, ownerError(peer, err)
	}
	return uid, nil
}
