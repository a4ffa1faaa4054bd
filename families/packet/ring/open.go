package ring

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"syscall"
	"time"

	"github.com/mdlayher/packet"
	"github.com/mdlayher/socket"
	"github.com/sockd/sockd/families"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// conn is what a ring asks of its socket, whoever opened it.
type conn interface {
	SyscallConn() (syscall.RawConn, error)
	SetBPF(filter []bpf.RawInstruction) error
	SetReadDeadline(t time.Time) error
	Close() error
}

var (
	_ conn = (*packet.Conn)(nil) // ours
	_ conn = (*socket.Conn)(nil) // somebody else's, which packet cannot take over
)

// Open opens a ring on an interface by name, or on Any. The calling thread must be in
// the interface's network namespace. No packet from before Open, and none that Filter
// rejects, is ever handed out. Errors are *families.OpError, wrapping ENODEV where there is
// no such interface and EPERM where CAP_NET_RAW is missing.
func Open(name string, cfg Config) (*Ring, error) {
	iface, err := Lookup(name)
	if err != nil {
		return nil, err
	}
	c, err := packet.Listen(&net.Interface{Index: iface.Index, Name: name}, packet.Raw, noProtocol, &packet.Config{Filter: RejectAll})
	if err != nil {
		return nil, opError(name, explain(err))
	}
	r, err := newRing(c, iface)
	if err != nil {
		return nil, err
	}
	return r.opened(r.setUp(cfg))
}

func newRing(c conn, iface Interface) (*Ring, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		_ = c.Close() // the first error counts
		return nil, opError(iface.Name, err)
	}
	r := &Ring{conn: c, raw: raw, iface: iface}
	r.wait = r.ready
	return r, nil
}

// OpenFD is Open with a socket of somebody else's, which may be in another network
// namespace: one of AF_PACKET and SOCK_RAW, bound or not, without a ring. name is an
// interface of the socket's namespace, or Any. The socket's filter and binding
// are replaced; packets that it has received are dropped and not counted. On success fd
// belongs to the Ring, which keeps a duplicate and closes fd; on an error it is
// the caller's still, changed as it may be.
//
// Whoever holds another duplicate can write into the ring. Frames, Next and Release stand
// any garbage there; nothing that a Frame says of such a ring is worth more than its owner.
func OpenFD(fd int, name string, cfg Config) (*Ring, error) {
	c, err := adopt(fd)
	if err != nil {
		return nil, opError(name, err)
	}
	r, err := newRing(c, Interface{Name: name}) // until it is found
	if err != nil {
		return nil, err
	}
	if err := r.bindNew(name); err != nil {
		return r.opened(err)
	}
	if r, err = r.opened(r.setUp(cfg)); err == nil {
		_ = unix.Close(fd) // the ring has its duplicate
	}
	return r, err
}

// opened is r, or why it was not opened.
func (r *Ring) opened(err error) (*Ring, error) {
	if err == nil {
		return r, nil
	}
	_ = r.Close() // the first error counts
	return nil, opError(r.Interface().Name, err)
}

// adopt duplicates a packet socket, so that fd is untouched when anything fails.
func adopt(fd int) (*socket.Conn, error) {
	if err := checkKind(fd); err != nil {
		return nil, err
	}
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("duplicate the socket: %w", err)
	}
	return socket.New(dup, "packet")
}

// bindNew closes an adopted socket to all packets and binds it.
func (r *Ring) bindNew(name string) error {
	if err := r.SetFilter(RejectAll); err != nil {
		return err
	}
	return r.control(func(fd int) error {
		// A virtio header in front of each frame would be in the way.
		if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 0); err != nil {
			return fmt.Errorf("setsockopt packet_vnet_hdr: %w", err)
		}
		iface, err := bind(fd, name)
		if err != nil {
			return err
		}
		r.iface = iface
		return nil
	})
}

// bind binds a socket to the interface of a name, closed to all packets.
func bind(fd int, name string) (Interface, error) {
	iface, err := lookup(fd, name)
	if err != nil {
		return Interface{}, err
	}
	return iface, bindTo(fd, iface.Index, noProtocol)
}

func bindTo(fd, index int, protocol uint16) error {
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: protocol, Ifindex: index}); err != nil {
		return fmt.Errorf("bind: %w", err)
	}
	return nil
}

// noProtocol binds a socket to an interface and leaves it closed.
const noProtocol = 0

// allProtocols is htons(ETH_P_ALL).
var allProtocols = binary.NativeEndian.Uint16([]byte{unix.ETH_P_ALL >> 8, unix.ETH_P_ALL & 0xff})

// setUp maps the ring while everything is rejected, and lets the packets in last.
func (r *Ring) setUp(cfg Config) error {
	if err := r.shape(cfg); err != nil {
		return err
	}
	if err := r.receive(); err != nil {
		return err
	}
	if !cfg.NoPromisc {
		if err := r.SetPromisc(true); err != nil {
			return err
		}
	}
	if cfg.Fanout != 0 {
		if err := r.join(cfg.Fanout); err != nil {
			return err
		}
	}
	return r.SetFilter(cfg.Filter)
}

// receive binds the socket to all protocols, now that it has its ring. Bound before,
// it would miss an interface that comes up while the ring is made: the kernel takes the
// protocol off the socket meanwhile, so the news that it is up reaches a socket that wants
// nothing, and afterwards puts it back as it was, deaf (net/packet/af_packet.c,
// packet_set_ring and packet_notifier).
func (r *Ring) receive() error {
	return r.control(func(fd int) error { return bindTo(fd, r.Interface().Index, allProtocols) })
}

// shape decides how large the ring is, and maps it.
func (r *Ring) shape(cfg Config) error {
	r.size = DefaultBlockSize
	if cfg.BlockSize != 0 {
		r.size = minBlockSize
		for r.size < cfg.BlockSize {
			r.size *= 2
		}
	}
	r.count = DefaultBlocks
	if cfg.Blocks != 0 {
		r.count = max(cfg.Blocks, 2)
	}
	retire := DefaultRetire
	if cfg.Retire != 0 {
		retire = max(cfg.Retire, time.Millisecond)
	}
	return r.control(func(fd int) error { return r.mapFD(fd, retire) })
}

func (r *Ring) mapFD(fd int, retire time.Duration) error {
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VERSION, unix.TPACKET_V3); err != nil {
		return fmt.Errorf("TPACKET_V3 (Linux 3.2): %w: %w", families.ErrNotSupported, err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_RESERVE, reserve); err != nil {
		return fmt.Errorf("setsockopt packet_reserve: %w", err)
	}
	if err := r.allocate(fd, retire); err != nil {
		return err
	}
	mem, err := unix.Mmap(fd, 0, r.size*r.count, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_NORESERVE)
	if err != nil {
		return fmt.Errorf("mmap ring of %d bytes: %w", r.size*r.count, err)
	}
	r.mem, r.mapped = mem, true
	_, _ = unix.GetsockoptTpacketStatsV3(fd, unix.SOL_PACKET, unix.PACKET_STATISTICS) // an adopted socket may have counted before
	return nil
}

// allocate has the kernel make the ring, with fewer blocks when memory is short.
func (r *Ring) allocate(fd int, retire time.Duration) error {
	for {
		err := r.request(fd, retire)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.ENOMEM) || r.count/2 < minBlocks {
			return fmt.Errorf("ring of %d × %d bytes: %w", r.count, r.size, err)
		}
		r.count /= 2
	}
}

func (r *Ring) request(fd int, retire time.Duration) error {
	const frame = 2048 // a block must be a multiple of it, and nothing else comes of it
	req := unix.TpacketReq3{
		Block_size:     uint32(r.size),
		Block_nr:       uint32(r.count),
		Frame_size:     frame,
		Frame_nr:       uint32(r.size / frame * r.count),
		Retire_blk_tov: uint32(retire / time.Millisecond),
	}
	return unix.SetsockoptTpacketReq3(fd, unix.SOL_PACKET, unix.PACKET_RX_RING, &req)
}

// join makes the ring one of a fanout group (packet(7), PACKET_FANOUT).
//
// The mode is HASH without flags. The kernel's hash of a packet is the same in both
// directions, so a flow is in one ring. FLAG_DEFRAG would put fragments together, and
// what was captured would not be what was on the wire: as it is, fragments go by their addresses
// alone, all of a datagram to the same ring. FLAG_ROLLOVER would give to the next
// ring what a full one cannot take, and tear the flow apart.
func (r *Ring) join(group uint16) error {
	err := r.control(func(fd int) error {
		return unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_FANOUT, unix.PACKET_FANOUT_HASH<<16|int(group))
	})
	if err != nil {
		return fmt.Errorf("join fanout group %d: %w", group, err)
	}
	return nil
}

func opError(name string, err error) error {
	return &families.OpError{Op: "capture", Family: "packet", Addr: name, Err: err}
}

// explain says what a refused socket(2) needs.
func explain(err error) error {
	var errno syscall.Errno
	if errors.As(err, &errno) && errno == syscall.EPERM {
		return fmt.Errorf("needs CAP_NET_RAW: %w", errno)
	}
	return err
}
