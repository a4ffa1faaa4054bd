package ksock

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Diag asks the kernel about sockets of the network namespace that it was opened in
// (sock_diag(7)), which takes no privilege. It is not for concurrent use.
type Diag struct{ conn *netlink.Conn }

// DialDiag opens a Diag in the network namespace of the calling thread.
func DialDiag() (*Diag, error) {
	c, err := dialDiag()
	if err != nil {
		return nil, err
	}
	return &Diag{conn: c}, nil
}

// Close closes it.
func (d *Diag) Close() error { return d.conn.Close() }

// Cookie is SO_NETNS_COOKIE of the namespace that it asks.
func (d *Diag) Cookie() (uint64, error) {
	rc, err := d.conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cookie uint64
	var inner error
	err = rc.Control(func(fd uintptr) {
		cookie, inner = unix.GetsockoptUint64(int(fd), unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	})
	if err = errors.Join(err, inner); err != nil {
		return 0, fmt.Errorf("ask for our network namespace: %w", err)
	}
	return cookie, nil
}

// Holder is a socket that some process holds.
type Holder struct {
	UID    uint32 // who made it, as this process's user namespace sees it
	Inode  uint32 // of its file: /proc/PID/fd has "socket:[INODE]"
	Cgroup uint64 // the id of the version 2 cgroup that it was made in, 0: not known
}

// Holders are the sockets that a TCP segment or a UDP datagram between own, an address
// of this host, and peer can be of. Of TCP there is one at most, the connection. Of UDP there
// is one when it is connected; else all that are bound to own's port and to its address
// or to none: several with SO_REUSEPORT, or of a multicast group. What no process
// holds any more, as in TIME_WAIT, is not among them.
func (d *Diag) Holders(protocol uint8, own, peer netip.AddrPort) ([]Holder, error) {
	own, peer = unmapped(own), unmapped(peer)
	exact, err := d.one(protocol, own, peer)
	if err != nil || len(exact) > 0 || protocol != unix.IPPROTO_UDP {
		return exact, err
	}
	return d.bound(own)
}

// one asks for the socket that is connected from own to peer.
func (d *Diag) one(protocol uint8, own, peer netip.AddrPort) ([]Holder, error) {
	q := diagQuery{protocol: protocol, src: own, dst: peer}
	if protocol == unix.IPPROTO_UDP {
		q.src, q.dst = peer, own // udp_dump_one has them the other way round
	}
	replies, err := d.conn.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.SOCK_DIAG_BY_FAMILY, Flags: netlink.Request}, Data: q.encode(),
	})
	switch err := cause(err); {
	case errors.Is(err, unix.ENOENT):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("ask sock_diag: %w", err)
	}
	return holders(replies, func(s diagSocket) bool {
		return s.src == own && s.dst == peer && (protocol != unix.IPPROTO_TCP || heldState(s.state))
	}), nil
}

// bound asks for the unconnected UDP sockets that own can be of: those of IPv6 with no
// address take IPv4 as well.
func (d *Diag) bound(own netip.AddrPort) ([]Holder, error) {
	families := []uint8{unix.AF_INET6}
	if own.Addr().Is4() {
		families = []uint8{unix.AF_INET, unix.AF_INET6}
	}
	var found []Holder
	for _, family := range families {
		q := diagQuery{family: family, protocol: unix.IPPROTO_UDP, src: netip.AddrPortFrom(netip.Addr{}, own.Port())}
		replies, err := d.conn.Execute(netlink.Message{
			Header: netlink.Header{Type: unix.SOCK_DIAG_BY_FAMILY, Flags: netlink.Request | netlink.Dump}, Data: q.encode(),
		})
		if err != nil {
			return nil, fmt.Errorf("list UDP sockets by sock_diag: %w", cause(err))
		}
		found = append(found, holders(replies, func(s diagSocket) bool {
			here := s.src.Addr() == own.Addr() || s.src.Addr().IsUnspecified() && (s.family == unix.AF_INET6 || own.Addr().Is4())
			return here && s.src.Port() == own.Port() && s.dst.Port() == 0
		})...)
	}
	return found, nil
}

// diagQuery is struct inet_diag_req_v2.
type diagQuery struct {
	family, protocol uint8 // family 0: that of src
	src, dst         netip.AddrPort
}

func (q diagQuery) encode() []byte {
	req := make([]byte, diagRequestSize)
	req[0], req[1] = q.family, q.protocol
	if q.family == 0 {
		req[0] = unix.AF_INET6
		if q.src.Addr().Is4() {
			req[0] = unix.AF_INET
		}
	}
	nativeEndian.PutUint32(req[4:], ^uint32(0)) // in any state
	binary.BigEndian.PutUint16(req[8:], q.src.Port())
	binary.BigEndian.PutUint16(req[10:], q.dst.Port())
	copy(req[12:28], q.src.Addr().AsSlice())
	copy(req[28:44], q.dst.Addr().AsSlice())
	nativeEndian.PutUint32(req[48:], noCookie)
	nativeEndian.PutUint32(req[52:], noCookie)
	return req
}

// diagSocket is an answer: struct inet_diag_msg and the attributes behind it.
type diagSocket struct {
	family, state uint8
	src, dst      netip.AddrPort // its own address and its peer's
	Holder
}

// holders are those of some answers that want takes and that are held.
func holders(replies []netlink.Message, want func(diagSocket) bool) []Holder {
	var out []Holder
	for _, r := range replies {
		if s, ok := readDiag(r.Data); ok && s.Inode != 0 && want(s) {
			out = append(out, s.Holder)
		}
	}
	return out
}

func readDiag(b []byte) (s diagSocket, ok bool) {
	if len(b) < diagReplySize {
		return s, false
	}
	id, own := b[4:4+diagIDSize], b[4+diagIDSize:]
	s.family, s.state = b[0], b[1]
	s.src = netip.AddrPortFrom(diagAddr(s.family, id[4:20]), binary.BigEndian.Uint16(id))
	s.dst = netip.AddrPortFrom(diagAddr(s.family, id[20:36]), binary.BigEndian.Uint16(id[2:]))
	s.UID, s.Inode = nativeEndian.Uint32(own[12:]), nativeEndian.Uint32(own[16:])
	ad, err := netlink.NewAttributeDecoder(b[diagReplySize:])
	if err != nil {
		return s, true // the attributes are extra
	}
	for ad.Next() {
		if ad.Type() == diagCgroupID && len(ad.Bytes()) == 8 {
			s.Cgroup = nativeEndian.Uint64(ad.Bytes())
		}
	}
	return s, true
}

// diagCgroupID is INET_DIAG_CGROUP_ID of linux/inet_diag.h, there since Linux 5.9.
const diagCgroupID = 21
