// Package shm carries pcapng blocks from the daemon to one program through shared
// memory, without a system call a packet. daemon/capture writes, ctl/tap reads;
// nobody else needs it: what is not worth a mapping goes through a socket.
//
// There are two pieces of memory and a pipe:
//
//	data     memfd, a page of header and the ring of blocks. The daemon maps it; the
//	         reader gets it opened for reading, and may not open it in another way.
//	control  memfd of one page that the reader writes: how far it has read, and
//	         whether it sleeps.
//	wake     the reading end of a pipe, for a reader that has nothing to read.
//
//	  0      done       read         written      size
//	  |───────|██████████|████████████|────────────|      data, positions modulo size
//	   free    in the     to be read   free
//	           reader's
//	           hands
//
// Positions count bytes from the beginning and never turn back. A block begins at a
// multiple of 8 and does not wrap: a pad fills the end of the ring where one does not fit.
//
// The two do not trust each other. Nothing that the reader writes into control leads
// anywhere before it is checked, and a lie ends its subscription, nothing else; the
// daemon never reads data. The reader checks each length before it follows it. Both files
// are sealed: one that could be truncated below a mapping would be a SIGBUS.
//
// There is no F_SEAL_FUTURE_WRITE, which would make data read-only for the same user and
// for root as well: it also forbids to give the memory back, so that who leaves and keeps
// the descriptor would keep the daemon's memory, and could come again for more. Whoever
// may write to data deceives itself alone.
//
// A pipe and no eventfd: O_NONBLOCK belongs to an open file, which both sides of an
// eventfd share. The reader could take it off, fill the counter, and have the daemon wait
// for ever. Of a pipe the daemon alone has the writing end.
package shm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The bounds of a ring. Twice the longest block of a capture fits into the least one,
// with the reserve: so any fits into an empty ring, wherever it begins.
const (
	MinBytes     = 1 << 20
	DefaultBytes = 8 << 20 // 67 ms of a full gigabit link
	MaxBytes     = 64 << 20
)

// reserve is what packets leave free, for descriptions of interfaces and statistics: of some
// three hundred of each.
const reserve = 64 << 10

const (
	align     = 8
	packetLen = 28 // least total length of a block of type packetBlock
	blockLen  = 12 // of any block

	packetBlock = 6          // pcapng's Enhanced Packet Block
	padBlock    = 0x80000bad // nothing, to the end of the ring: type and length are all of it
)

// The header of data, and where its words stand: each that changes in a cache line of its own.
const (
	headerBytes = 4096
	magic       = 0x31676e6972646b73 // "skdring1"

	atMagic   = 0
	atSize    = 8
	atWritten = 64  // u64, up to where there are whole blocks
	atLost    = 128 // u64, packets that found no room
	atEnded   = 192 // u32, 1: nothing more is written
)

// Control.
const (
	controlBytes = 4096

	atRead     = 0  // u64, up to where the reader needs nothing any more
	atPackets  = 8  // u64, how many packets those were
	atSleeping = 64 // u32, 1: the reader waits at the pipe
)

// fixed are the seals of both files: no size but this, for good.
const fixed = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_SEAL

var le = binary.LittleEndian

// ErrFull is what a Writer says that has no room: the reader is too slow.
var ErrFull = errors.New("shared memory is full")

// ReaderError is a reader's lie: something stands in its page that no reader that keeps the
// rules writes. The subscription must end.
type ReaderError struct {
	What       string // "position", "packets", "sleeping"
	Got        uint64
	Least, Top uint64 // what it had to lie between
}

func (e *ReaderError) Error() string {
	return fmt.Sprintf("shared memory: reader's %s is %d, not from %d to %d", e.What, e.Got, e.Least, e.Top)
}

// Files are the descriptors that a reader needs.
type Files struct {
	Data, Control, Wake int
}

// Close closes them.
func (f Files) Close() {
	for _, fd := range []int{f.Data, f.Control, f.Wake} {
		_ = unix.Close(fd) // nothing of them is flushed
	}
}

// header and control are the shared words.
type header struct{ mem []byte }

func (h header) written() *atomic.Uint64 { return word64(h.mem, atWritten) }
func (h header) lost() *atomic.Uint64    { return word64(h.mem, atLost) }
func (h header) ended() *atomic.Uint32   { return word32(h.mem, atEnded) }

type control struct{ mem []byte }

func (c control) read() *atomic.Uint64     { return word64(c.mem, atRead) }
func (c control) packets() *atomic.Uint64  { return word64(c.mem, atPackets) }
func (c control) sleeping() *atomic.Uint32 { return word32(c.mem, atSleeping) }

// word64 is the word at a multiple of 8 of a mapping, which begins at a page.
func word64(mem []byte, at int) *atomic.Uint64 { return (*atomic.Uint64)(unsafe.Pointer(&mem[at])) }
func word32(mem []byte, at int) *atomic.Uint32 { return (*atomic.Uint32)(unsafe.Pointer(&mem[at])) }

func aligned(n int) int { return (n + align - 1) &^ (align - 1) }
