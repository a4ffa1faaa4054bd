package packet

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"syscall"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/ksock"
	"golang.org/x/sys/unix"
)

// Socket is an AF_PACKET socket. Besides what every kernel socket does it knows
// interfaces by name in its own network namespace, and counts what
// PACKET_STATISTICS forgets with each reading.
type Socket struct {
	*ksock.Lossy
	protocol uint16 // for a Bind that names none; 0: all

	mu      sync.Mutex // guards what follows
	promisc bool       // wanted
	index   int        // the interface that is promiscuous for us; 0: none
	bound   int        // the interface of the last Bind; 0: none, or Any
	peer    families.Name
	last    *families.Info // what Close saw

	statsMu        sync.Mutex // guards the counts; held across getsockopt, because reading resets the kernel's
	packets, drops uint64
}

// Bind makes the socket receive the packets of an interface, of the address's
// EtherType, or else of the protocol that the socket was opened with, or else all.
// A hardware address is of no use to it.
func (s *Socket) Bind(a families.Addr) error {
	_, err := s.bind("bind", a)
	return err
}

// bind returns the address with all that was looked up.
func (s *Socket) bind(op string, a families.Addr) (found, error) {
	f, err := s.resolve(op, a)
	if err != nil {
		return found{}, err
	}
	if err := s.Lossy.Bind(f); err != nil {
		return found{}, retitled(err, op)
	}
	s.mu.Lock()
	s.bound = f.at
	s.mu.Unlock()
	return f, s.tunePromisc(op)
}

// resolve finds the interface, and fills in the EtherType.
func (s *Socket) resolve(op string, a families.Addr) (found, error) {
	addr, ok := a.(Addr)
	if !ok {
		return found{}, fail(op, a.String(), syscall.EAFNOSUPPORT)
	}
	index, err := addr.index(s.indexOf)
	if err != nil {
		return found{}, fail(op, a.String(), err)
	}
	if addr.EtherType == 0 {
		addr.EtherType = s.protocol
	}
	if addr.EtherType == 0 {
		addr.EtherType = unix.ETH_P_ALL
	}
	return found{addr, index, a.String()}, nil
}

// Connect makes a the address that Send uses when a message has none, and binds
// the socket to it first if it is not bound. So, as with UDP, a bound socket goes on
// receiving what it was bound to. A cooked socket needs the hardware address in a,
// unless the interface is a loopback.
func (s *Socket) Connect(ctx context.Context, a families.Addr) error {
	if err := ctx.Err(); err != nil {
		return fail("connect", a.String(), err)
	}
	find := s.resolve
	if s.Info().Local == nil {
		find = s.bind
	}
	f, err := find("connect", a)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.peer = f.Sockaddr()
	return nil
}

// Send is one attempt. A raw message carries its own link header, and goes out of
// the interface of its Peer, or of the one the socket is bound to.
func (s *Socket) Send(m *families.Msg) (int, error) {
	peer := m.Peer
	if peer.Empty() {
		s.mu.Lock()
		m.Peer = s.peer
		s.mu.Unlock()
	}
	if index, ok := indexIn(m.Peer); ok && index < 0 {
		m.Peer = peer
		return 0, fail("send", "", syscall.ENODEV) // Sockaddr found no such interface
	}
	n, err := s.Lossy.Send(m)
	if err != nil {
		s.nameIn(err, m.Peer)
	}
	m.Peer = peer // m is the caller's
	return n, err
}

// nameIn has an error say where a message went as users say it.
func (s *Socket) nameIn(err error, to families.Name) {
	var op *families.OpError
	if errors.As(err, &op) && op.Addr != "" {
		op.Addr = s.NameAddr(to).String()
	}
}

// NameAddr reads a sender's address. An interface that is gone is #INDEX.
func (s *Socket) NameAddr(n families.Name) families.Addr {
	a, index, ok := readSockaddr(n)
	if !ok {
		return nil
	}
	if index != 0 {
		a.Interface = s.nameOf(index)
	}
	return a
}

// Info has the EtherType that is received as Protocol, and the interface's own
// hardware address left out of Local.
func (s *Socket) Info() families.Info {
	i := s.Lossy.Info()
	if i.State == families.Closed {
		return s.closedInfo(i)
	}
	i.Protocol, i.Proto = int(s.protocol), etherTypeWord(s.protocol)
	if s.protocol == 0 {
		i.Proto = "all"
	}
	if local, ok := i.Local.(Addr); ok {
		local.MACLen, local.MAC = 0, [maxMAC]byte{}
		if index, err := local.index(s.indexOf); err == nil && index > 0 {
			local.Interface = s.nameOf(index)
		}
		i.Local = local
		i.Protocol, i.Proto = int(local.EtherType), etherTypeWord(local.EtherType)
	}
	s.mu.Lock()
	peer := s.peer
	s.mu.Unlock()
	if !peer.Empty() {
		i.Peer = s.NameAddr(peer)
		if i.State == families.Bound {
			i.State = families.Connected
		}
	}
	return i
}

// Close closes the socket. Twice is nil.
func (s *Socket) Close() error {
	last := s.Info() // names of interfaces cannot be asked afterwards
	last.State = families.Closed
	s.mu.Lock()
	if s.last == nil {
		s.last = &last
	}
	s.mu.Unlock()
	return s.Lossy.Close()
}

func (s *Socket) closedInfo(i families.Info) families.Info {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last != nil {
		return *s.last
	}
	return i
}

// tunePromisc makes the bound interface promiscuous or takes that back, as the
// options say. The kernel ends it with the socket.
func (s *Socket) tunePromisc(op string) error {
	s.mu.Lock()
	defer s.mu.Unlock() // across two quick system calls: they must not overtake each other
	want := 0
	if s.promisc {
		want = s.bound
	}
	if want == s.index {
		return nil
	}
	err := s.Control(func(fd int) error {
		if s.index != 0 {
			// An interface that is gone has taken the membership with it.
			_ = member(fd, unix.PACKET_DROP_MEMBERSHIP, s.index)
		}
		s.index = 0
		if want == 0 {
			return nil
		}
		return member(fd, unix.PACKET_ADD_MEMBERSHIP, want)
	})
	if err != nil {
		return fail(op, "promisc", err)
	}
	s.index = want
	return nil
}

func member(fd, opt, index int) error {
	return unix.SetsockoptPacketMreq(fd, unix.SOL_PACKET, opt, &unix.PacketMreq{Ifindex: int32(index), Type: unix.PACKET_MR_PROMISC})
}

const statistics = "packet_statistics"

// Options are the names that Option reads, sorted.
func (s *Socket) Options() []string {
	names := append(s.Lossy.Options(), "promisc", statistics)
	slices.Sort(names)
	return names
}

// Option reads an option. packet_statistics is PACKETS,DROPS since the socket was
// opened, drops included in packets.
func (s *Socket) Option(name string) (string, error) {
	switch name {
	case statistics:
		return s.statistics()
	case "promisc":
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.promisc {
			return "1", nil
		}
		return "0", nil
	}
	return s.Lossy.Option(name)
}

// SetOption sets an option, promisc and nopromisc among them.
func (s *Socket) SetOption(name, value string) error {
	switch name {
	case "nopromisc":
		return s.setPromisc(name, value, opposite(value))
	case "promisc":
		return s.setPromisc(name, value, value)
	case statistics:
		return &families.SyntaxError{What: "option", Text: name, Column: 1, Why: "cannot be set, only read"}
	case "cooked":
		return &families.SyntaxError{What: "option", Text: name, Column: 1, Why: "is for opening a socket, without a value"}
	}
	return s.Lossy.SetOption(name, value)
}

func (s *Socket) setPromisc(name, written, value string) error {
	off := opposite(value)
	if off != "off" && off != "on" {
		return &families.SyntaxError{What: "option", Text: name + "=" + written, Column: len(name) + 2, Why: "want on or off"}
	}
	s.mu.Lock()
	s.promisc = off == "off"
	s.mu.Unlock()
	return s.tunePromisc("set option")
}

func (s *Socket) statistics() (string, error) {
	s.statsMu.Lock()
	defer s.statsMu.Unlock()
	err := s.Control(func(fd int) error {
		// Without a ring the kernel knows the short form; with TPACKET_V3 it
		// fills the same two fields first.
		st, err := unix.GetsockoptTpacketStats(fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
		if err != nil {
			return err
		}
		s.packets += uint64(st.Packets)
		s.drops += uint64(st.Drops)
		return nil
	})
	if err != nil {
		return "", fail("get option", statistics, err)
	}
	return fmt.Sprintf("%d,%d", s.packets, s.drops), nil
}

// indexOf and nameOf ask through the socket itself: it may live in another network
// namespace than its caller.
func (s *Socket) indexOf(iface string) (int, error) {
	req, err := unix.NewIfreq(iface)
	if err != nil {
		return 0, syscall.ENODEV // a name that no interface can have
	}
	err = s.Control(func(fd int) error { return unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, req) })
	return int(req.Uint32()), err
}

func (s *Socket) nameOf(index int) string {
	iface := fmt.Sprintf("#%d", index)
	_ = s.Control(func(fd int) error { // an interface that is gone stays a number
		req, err := unix.NewIfreq("")
		if err != nil {
			return err
		}
		req.SetUint32(uint32(index))
		if err := unix.IoctlIfreq(fd, unix.SIOCGIFNAME, req); err != nil {
			return err
		}
		iface = req.Name()
		return nil
	})
	return iface
}

func fail(op, addr string, err error) error {
	return &families.OpError{Op: op, Family: name, Addr: addr, Err: err}
}

// retitled names what the user asked for where it was done by bind(2).
func retitled(err error, op string) error {
	var e *families.OpError
	if errors.As(err, &e) {
		e.Op = op
	}
	return err
}

// found is an Addr whose interface was looked up.
type found struct {
	Addr
	at   int
	text string
}

func (f found) String() string { return f.text }

func (f found) Sockaddr() families.Name {
	return f.sockaddr(func(string) (int, error) { return f.at, nil })
}
