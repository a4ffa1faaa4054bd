// Package ring receives packets through a TPACKET_V3 ring: memory that the kernel
// fills and sockd reads without a system call or an allocation a packet. One Ring
// is one AF_PACKET socket, on one interface or on all. daemon/capture uses it; who wants
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
// may be walked several times, by one reader at a time, and must be released once. Close
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

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Any is the name of the pseudo interface that stands for all of them.
const Any = "any"

// The default shape of a ring: 64 MiB, which at a low rate survives a stall of
// 64 × 8 ms, because an expired retire time hands over a whole block. Blocks of 256 KiB
// and 4 ms were tried: four times as many wake-ups cost a quarter of the reader's time at
// 280 MB/s to the disk (950 ns a packet of 1400 bytes instead of 690).
const (
	DefaultBlockSize = 1 << 20
	DefaultBlocks    = 64
	DefaultRetire    = 8 * time.Millisecond
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
	// Filter runs in the kernel on the frame without its VLAN tag; nil takes all. It
	// sees the link header of the interface, and none where that has none (Raw).
	Filter []bpf.RawInstruction
	// Fanout is the number of a group of rings, 0: none. All that are opened with the
	// same number on the same interface and in the same namespace share its packets: each packet
	// goes to one of them, all packets of a flow, in both directions, to the same one, and
	// in order. The kernel chooses the ring before its filter runs: open all of a group
	// with RejectAll and give them the same filter then. The interface must be up.
	Fanout uint16
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
	conn  conn
	raw   syscall.RawConn
	iface Interface
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

// Interface is what the ring was opened on.
func (r *Ring) Interface() Interface { return r.iface }

// control calls f with the socket's descriptor. It fails once the ring is closed.
func (r *Ring) control(f func(fd int) error) error {
	var err error
	if ctlErr := r.raw.Control(func(fd uintptr) { err = f(int(fd)) }); ctlErr != nil {
		return ctlErr
	}
	return err
}

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
// such mode, so nothing is done there: see SetPromiscOn.
func (r *Ring) SetPromisc(on bool) error {
	if r.iface.Index == 0 {
		return nil
	}
	return r.SetPromiscOn(r.iface.Index, on)
}

// SetPromiscOn is SetPromisc for one interface of those that a ring on Any sees. Calls
// count for each interface. The kernel takes it back when the interface is deleted or the
// ring is closed, so nothing is done when it is not on; a new interface needs a new call.
// Asking for it wraps ENODEV where there is no such interface.
func (r *Ring) SetPromiscOn(index int, on bool) error {
	return r.control(func(fd int) error { return membership(fd, index, on) })
}

// membership takes or gives back one count of an interface's promiscuous mode.
func membership(fd, index int, on bool) error {
	option := unix.PACKET_DROP_MEMBERSHIP
	if on {
		option = unix.PACKET_ADD_MEMBERSHIP
	}
	err := unix.SetsockoptPacketMreq(fd, unix.SOL_PACKET, option, &unix.PacketMreq{Ifindex: int32(index), Type: unix.PACKET_MR_PROMISC})
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
	_ = r.control(func(fd int) error { // it fails once the socket is closed
		s, err := unix.GetsockoptTpacketStatsV3(fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
		if err != nil {
			return err
		}
		r.stats.Packets += uint64(s.Packets)
		r.stats.Drops += uint64(s.Drops)
		r.stats.Freezes += uint64(s.Freeze_q_cnt)
		return nil
	})
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
	if r.down && gone(int(fd)) && !r.filling() { // what lies in the block that fills comes first
		r.waitErr = errGone
		return true
	}
	return r.down != wasDown
}

// isDown tells whether the interface went down and has not come up since. The
// kernel says the first once, as the socket's error, and the second not at all.
func (r *Ring) isDown(fd int) bool {
	if socketError(fd) != 0 {
		return true
	}
	return r.down && !up(fd, r.iface.Index)
}

// socketError is SO_ERROR. It is asked without a word to the scheduler, which would wake
// a thread of its own for each call before a wait, to see whether it blocks: of a capture of
// 500,000 packets a second that took a tenth of the CPU time.
func socketError(fd int) syscall.Errno {
	var value int32
	size := uint32(unsafe.Sizeof(value))
	_, _, errno := unix.RawSyscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_ERROR,
		uintptr(unsafe.Pointer(&value)), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return errno
	}
	return syscall.Errno(value)
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
	return opError(r.Interface().Name, err)
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
