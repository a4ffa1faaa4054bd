// Package ring receives packets through a TPACKET_V3 ring: memory that the kernel
// fills and sockd reads without a system call or an allocation a packet. One Ring
// is one AF_PACKET socket. daemon/capture uses it, one an interface; who wants
// single messages uses the packet family instead.
//
// The kernel fills one block after another and hands it over when it is full or
// when Retire has passed since its first packet:
//
//	kernel:  fills block 3 → 4 → 5 ...        (all full: packets are dropped and counted)
//	user:    Next → block 0, Frames, Release  (a held block is not filled again)
//
// # Life
//
// Next is called by one goroutine at a time, and everything else by any. A Block
// may be walked by several readers at once, and must be released once. Close
// unblocks Next; the memory goes with the last block that is held, never under a
// reader's hands.
package ring

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"github.com/mdlayher/packet"
	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/packet/pcapng"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Any is the name of the pseudo interface that stands for all of them.
const Any = "any"

// The default shape of a ring: 64 MiB, which at a low rate survives a stall of
// 256 × 4 ms, because an expired retire time hands over a whole block.
const (
	DefaultBlockSize = 256 << 10
	DefaultBlocks    = 256
	DefaultRetire    = 4 * time.Millisecond
)

// minBlockSize is more than a GSO frame of 64 KiB and its headers: a frame that
// does not fit a block is cut.
const minBlockSize = 128 << 10

// minBlocks is the least ring worth having when memory is short.
const minBlocks = 8

// Config says how to open a Ring. The zero Config is promiscuous, takes every
// packet and has the default shape.
type Config struct {
	// BlockSize is the bytes of a block, rounded up to a power of two of at least
	// 128 KiB; 0 is DefaultBlockSize.
	BlockSize int
	// Blocks is how many there are; 0 is DefaultBlocks. When the kernel has no
	// memory for them, half as many are tried, down to 8.
	Blocks int
	// Retire is how long a block that is not full waits for more packets, in whole
	// milliseconds; 0 is DefaultRetire.
	Retire time.Duration
	// NoPromisc leaves the interface as it is (see Ring.SetPromisc).
	NoPromisc bool
	// Filter runs in the kernel on the frame without its VLAN tag; nil takes all.
	Filter []bpf.RawInstruction
}

// RejectAll and AcceptAll are the shortest filters.
var (
	RejectAll = []bpf.RawInstruction{{Op: opReturn, K: 0}}
	AcceptAll = []bpf.RawInstruction{{Op: opReturn, K: 0xffffffff}}
)

const opReturn = 0x06 // BPF_RET|BPF_K

// Stats are the kernel's counts since the ring was opened.
type Stats struct {
	Packets uint64 // that passed the kernel's filter, dropped ones included
	Drops   uint64 // that found no room in the ring
	Freezes uint64 // how often the ring was full
}

// Ring is one open ring.
type Ring struct {
	iface Interface
	conn  *packet.Conn
	raw   syscall.RawConn
	mem   []byte
	size  int // of a block
	count int // of blocks

	wait    func(fd uintptr) bool // made once, so that Next does not allocate
	waitErr error                 // what wait found; this and down belong to the goroutine in Next
	down    bool                  // the interface was down when it was looked at last
	next    atomic.Uint32         // the block that Next hands out
	held    atomic.Int32          // blocks handed out and not released

	statsMu sync.Mutex // guards stats; held across getsockopt, because reading resets the kernel's counts
	stats   Stats

	mu     sync.Mutex // guards users, closed, mapped
	users  int        // who needs the memory: Next, and each block that is held
	closed bool
	mapped bool
}

// Open opens a ring on an interface by name, or on Any. The caller must be in the
// interface's network namespace. No packet from before Open, and none that Filter
// rejects, is ever handed out. Errors are *families.OpError, wrapping ENODEV where there is
// no such interface and EPERM where CAP_NET_RAW is missing.
func Open(name string, cfg Config) (*Ring, error) {
	iface, err := Lookup(name)
	if err != nil {
		return nil, err
	}
	kind := packet.Raw
	if iface.Link == pcapng.LinuxSLL2 {
		kind = packet.Datagram
	}
	conn, err := packet.Listen(&net.Interface{Index: iface.Index, Name: name}, kind, unix.ETH_P_ALL, &packet.Config{Filter: RejectAll})
	if err != nil {
		return nil, opError(name, explain(err))
	}
	r := &Ring{iface: iface, conn: conn}
	if err := r.setUp(cfg); err != nil {
		_ = r.Close() // the first error counts
		return nil, opError(name, err)
	}
	return r, nil
}

// setUp maps the ring while everything is rejected, and lets the packets in last.
func (r *Ring) setUp(cfg Config) error {
	var err error
	if r.raw, err = r.conn.SyscallConn(); err != nil {
		return err
	}
	r.wait = r.ready
	if err := r.mapBlocks(cfg); err != nil {
		return err
	}
	if err := r.SetPromisc(!cfg.NoPromisc); err != nil {
		return err
	}
	return r.SetFilter(cfg.Filter)
}

func (r *Ring) mapBlocks(cfg Config) error {
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
	var err error
	if ctlErr := r.raw.Control(func(fd uintptr) { err = r.mapFD(int(fd), retire) }); ctlErr != nil {
		return ctlErr
	}
	return err
}

func (r *Ring) mapFD(fd int, retire time.Duration) error {
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VERSION, unix.TPACKET_V3); err != nil {
		return fmt.Errorf("TPACKET_V3 (Linux 3.2): %w: %w", families.ErrNotSupported, err)
	}
	// Room to put a VLAN tag, and in cooked mode a header, in front of the packet. The
	// kernel leaves 14 bytes (28 in cooked mode) as it is; this makes it a promise.
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_RESERVE, vlanTagLen); err != nil {
		return fmt.Errorf("setsockopt packet_reserve: %w", err)
	}
	for {
		err := r.allocate(fd, retire)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.ENOMEM) || r.count/2 < minBlocks {
			return fmt.Errorf("ring of %d × %d bytes: %w", r.count, r.size, err)
		}
		r.count /= 2
	}
	mem, err := unix.Mmap(fd, 0, r.size*r.count, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_NORESERVE)
	if err != nil {
		return fmt.Errorf("mmap ring of %d bytes: %w", r.size*r.count, err)
	}
	r.mem, r.mapped = mem, true
	return nil
}

func (r *Ring) allocate(fd int, retire time.Duration) error {
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

// Interface is what the ring was opened on.
func (r *Ring) Interface() Interface { return r.iface }

// Bytes is how much memory the ring takes.
func (r *Ring) Bytes() int { return r.size * r.count }

// SetFilter replaces the kernel's filter; nil takes all. No packet is lost meanwhile.
func (r *Ring) SetFilter(filter []bpf.RawInstruction) error {
	if filter == nil {
		filter = AcceptAll
	}
	if err := r.conn.SetBPF(filter); err != nil {
		return fmt.Errorf("attach filter: %w", err)
	}
	return nil
}

// SetPromisc asks for packets that are meant for other hosts, or takes that back.
// Calls with the same value count, as memberships do in packet(7). Any has no
// such mode, so nothing is done there.
func (r *Ring) SetPromisc(on bool) error {
	if r.iface.Index == 0 {
		return nil
	}
	err := r.conn.SetPromiscuous(on)
	if !on && errors.Is(err, unix.EADDRNOTAVAIL) {
		return nil // was not on
	}
	if err != nil {
		return fmt.Errorf("promiscuous mode: %w", err)
	}
	return nil
}

// Stats are the counts until now; after Close, those until then.
func (r *Ring) Stats() Stats {
	r.statsMu.Lock()
	defer r.statsMu.Unlock()
	if s, err := r.conn.Stats(); err == nil { // it fails once the socket is closed
		r.stats.Packets += uint64(s.Packets)
		r.stats.Drops += uint64(s.Drops)
		r.stats.Freezes += uint64(s.FreezeQueueCount)
	}
	return r.stats
}

// Dropped is Stats.Drops as it was read last, without asking the kernel.
func (r *Ring) Dropped() uint64 {
	r.statsMu.Lock()
	defer r.statsMu.Unlock()
	return r.stats.Drops
}

// Next waits for the next block. The error is net.ErrClosed after Close, and an
// *families.OpError wrapping ENODEV when the interface was deleted. An interface that is down
// is waited for.
func (r *Ring) Next() (Block, error) {
	if !r.use() {
		return Block{}, net.ErrClosed
	}
	if err := r.await(); err != nil {
		r.release()
		return Block{}, r.nextError(err)
	}
	i := r.next.Load()
	b := Block{ring: r, mem: r.mem[int(i)*r.size:][:r.size:r.size]}
	b.rebuild()
	r.held.Add(1) // before next moves on: Idle must never see neither
	r.next.Store((i + 1) % uint32(r.count))
	return b, nil
}

// recheck is how often an interface that is down is looked for. The kernel wakes
// us when one goes down, but not when it is deleted after that, nor when it comes
// up (net/packet/af_packet.c, packet_notifier).
const recheck = 100 * time.Millisecond

// await returns when the kernel has handed the next block over. While the interface
// is down it wakes now and then to see what became of it, also when blocks from
// before still come.
func (r *Ring) await() error {
	r.waitErr = nil
	for {
		err := r.raw.Read(r.wait)
		switch {
		case err != nil && !errors.Is(err, os.ErrDeadlineExceeded):
			return err
		case r.waitErr != nil:
			return r.waitErr
		case r.pending():
			return nil
		}
		var again time.Time
		if r.down {
			again = time.Now().Add(recheck)
		}
		if err := r.conn.SetReadDeadline(again); err != nil {
			return err
		}
	}
}

// ready is asked by the poller: is there a block, or something else to do? It runs
// before each wait, too, because a wake-up from before the wait is forgotten.
func (r *Ring) ready(fd uintptr) bool {
	if r.pending() {
		return true
	}
	if r.iface.Index == 0 {
		return false
	}
	wasDown := r.down
	r.down = r.isDown(int(fd))
	if r.down && gone(int(fd)) {
		r.waitErr = errGone
		return true
	}
	return r.down != wasDown
}

// isDown tells whether the interface went down and has not come up since. The
// kernel says the first once, as the socket's error, and the second not at all.
func (r *Ring) isDown(fd int) bool {
	if errno, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR); err != nil || errno != 0 {
		return true
	}
	return r.down && !up(fd, r.iface.Index)
}

// up tells whether the interface of an index is up, whatever its name is by now.
func up(fd, index int) bool {
	req := new(unix.Ifreq)
	req.SetUint32(uint32(index))
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFNAME, req); err != nil {
		return false
	}
	named, err := unix.NewIfreq(req.Name())
	if err != nil {
		return false
	}
	return unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, named) == nil && named.Uint16()&unix.IFF_UP != 0
}

// gone tells whether the interface was deleted, which leaves the socket bound to
// index -1.
func gone(fd int) bool {
	sa, err := unix.Getsockname(fd)
	ll, ok := sa.(*unix.SockaddrLinklayer)
	return err == nil && ok && ll.Ifindex < 0
}

var errGone = fmt.Errorf("the interface is gone: %w", syscall.ENODEV)

func (r *Ring) nextError(err error) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return net.ErrClosed
	}
	return opError(r.iface.Name, err)
}

// pending tells whether the kernel has handed the next block over.
func (r *Ring) pending() bool {
	status := (*uint32)(unsafe.Pointer(&r.mem[int(r.next.Load())*r.size+statusOffset]))
	return atomic.LoadUint32(status)&unix.TP_STATUS_USER != 0
}

// Idle tells whether everything that the kernel has put into the ring was handed over
// and released. What lies in a block that is not full comes when the kernel's timer
// fires, which a busy machine may put off for long.
func (r *Ring) Idle() bool {
	if !r.use() {
		return true
	}
	defer r.release()
	return !r.pending() && r.held.Load() == 0 && !r.filling()
}

// filling tells whether the block that the kernel hands over next has packets: the
// kernel counts them in it as it puts them in (net/packet/af_packet.c,
// prb_fill_curr_block).
func (r *Ring) filling() bool {
	at := int(r.next.Load()) * r.size
	return atomic.LoadUint32((*uint32)(unsafe.Pointer(&r.mem[at+packetsOffset]))) != 0
}

// Close ends Next and closes the socket. Twice is nil.
func (r *Ring) Close() error {
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return nil
	}
	r.closed = true
	r.unmapLocked()
	r.mu.Unlock()
	r.Stats() // the last counts go with the socket
	return r.conn.Close()
}

// use says that the caller touches the memory until release. It is false when
// the ring is closed.
func (r *Ring) use() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return false
	}
	r.users++
	return true
}

func (r *Ring) release() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.users--
	r.unmapLocked()
}

func (r *Ring) unmapLocked() {
	if !r.closed || r.users > 0 || !r.mapped {
		return
	}
	r.mapped = false
	_ = unix.Munmap(r.mem) // fails for a bad range only
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
