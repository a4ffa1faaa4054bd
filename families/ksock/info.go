package ksock

import (
	"errors"
	"net"

	"github.com/sockd/sockd/families"
	"golang.org/x/sys/unix"
)

// The states of struct tcp_info, from include/net/tcp_states.h.
const (
	tcpEstablished = iota + 1
	tcpSynSent
	tcpSynRecv
	tcpFinWait1
	tcpFinWait2
	tcpTimeWait
	tcpClose
	tcpCloseWait
	tcpLastAck
	tcpListen
	tcpClosing
)

// Info asks the kernel. After Close it is what Close saw, as closed.
func (b *Base) Info() families.Info {
	i := families.Info{Family: b.fam.Name, Type: b.typ, Protocol: b.proto}
	b.mu.Lock()
	was, shut, peer := b.was, b.shut, b.peer
	b.mu.Unlock()
	err := b.control(func(fd int) error {
		if p, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL); err == nil {
			i.Protocol = p
		}
		if n, err := sockaddrOf(fd, unix.SYS_GETSOCKNAME); err == nil {
			i.Local = b.NameAddr(n)
		}
		n, err := sockaddrOf(fd, unix.SYS_GETPEERNAME)
		switch {
		case err == nil:
			i.Peer = b.NameAddr(n)
		case b.typ == families.Raw:
			// A raw socket has no port, and inet_getname takes port 0 for unconnected.
			i.Peer = b.NameAddr(peer)
		}
		i.State = b.state(fd, err == nil || i.Peer != nil, i.Local != nil, was, shut)
		return nil
	})
	if errors.Is(err, net.ErrClosed) {
		b.mu.Lock()
		defer b.mu.Unlock()
		return b.last
	}
	i.Proto = b.protoWord(i.Protocol)
	return i
}

func (b *Base) state(fd int, connected, bound, was bool, shut shutdowns) families.State {
	if on, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN); err == nil && on != 0 {
		return families.Listening
	}
	if b.isTCP() {
		if s := tcpState(fd, was, shut); s != "" {
			return s
		}
	} else if connected && (b.typ == families.Stream || b.typ == families.Seqpacket) {
		return pairState(fd, shut)
	}
	switch {
	case connected:
		return families.Connected
	case bound:
		return families.Bound
	}
	return families.New
}

// tcpState reads the state out of TCP_INFO. It is empty where that says nothing
// about a connection.
//
//	SYN_SENT, SYN_RECV            connecting
//	ESTABLISHED                   connected
//	FIN_WAIT1/2, CLOSE_WAIT       half-closed
//	CLOSING, LAST_ACK, TIME_WAIT  closed: both sides have ended
//	CLOSE                         closed after a connection, else new or bound
func tcpState(fd int, was bool, shut shutdowns) families.State {
	info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return ""
	}
	switch info.State {
	case tcpSynSent, tcpSynRecv:
		return families.Connecting
	case tcpEstablished:
		if shut.read { // is not told to the peer, nor to TCP
			return families.HalfClosed
		}
		return families.Connected
	case tcpFinWait1, tcpFinWait2, tcpCloseWait:
		return families.HalfClosed
	case tcpClosing, tcpLastAck, tcpTimeWait:
		return families.Closed
	case tcpClose:
		if was {
			return families.Closed
		}
	}
	return ""
}

// pairState is tcpState for connections without such states: what we shut down
// ourselves, and what the peer did, as poll(2) tells.
func pairState(fd int, shut shutdowns) families.State {
	peerEnded := poll(fd, unix.POLLRDHUP)&(unix.POLLRDHUP|unix.POLLHUP) != 0
	switch {
	case shut.write && (shut.read || peerEnded):
		return families.Closed
	case shut.write, shut.read, peerEnded:
		return families.HalfClosed
	}
	return families.Connected
}
