package shm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// ErrFormat is wrapped when what stands in the ring is no sequence of blocks.
var ErrFormat = errors.New("not valid shared memory")

// maxBlock bounds a block's length, in any ring.
const maxBlock = MaxBytes

// Reader is the program's side. One goroutine calls Next; Close and Stats may be called
// from any.
type Reader struct {
	wake   *os.File
	closed atomic.Bool

	mu      sync.Mutex // guards what follows; Next holds it, asleep too
	data    []byte
	header  header
	control control
	ring    []byte

	pos     uint64 // behind the block that is in the caller's hands
	limit   uint64 // up to where blocks are known to be
	told    uint64 // what the writer knows of done
	packets uint64 // before pos
	err     error  // of the ring, for good

	stats readerStats
}

// readerStats are read while Next sleeps.
type readerStats struct {
	sleeps, lost atomic.Int64
}

// NewReader maps what a Writer's Files are. It owns the descriptors, whatever it
// returns. It refuses memory that could be taken away while it is mapped.
func NewReader(f Files) (*Reader, error) {
	r := &Reader{}
	if err := r.open(f); err != nil {
		_ = r.Close()
		return nil, fmt.Errorf("shared memory: %w", err)
	}
	return r, nil
}

func (r *Reader) open(f Files) (err error) {
	defer func() { _, _ = unix.Close(f.Data), unix.Close(f.Control) }() // the mappings are enough
	if err := unix.SetNonblock(f.Wake, true); err != nil {
		_ = unix.Close(f.Wake)
		return fmt.Errorf("wake: %w", err)
	}
	r.wake = os.NewFile(uintptr(f.Wake), "wake")
	if r.data, err = mapSealed("data", f.Data, headerBytes+MinBytes, headerBytes+MaxBytes, unix.PROT_READ); err != nil {
		return err
	}
	page, err := mapSealed("control", f.Control, controlBytes, controlBytes, unix.PROT_READ|unix.PROT_WRITE)
	if err != nil {
		return err
	}
	r.header, r.ring, r.control = header{r.data[:headerBytes]}, r.data[headerBytes:], control{page}
	// A writer that has ended already gave its memory back, which reads as zeros: Next
	// finds that out.
	given, size := le.Uint64(r.data[atMagic:]), le.Uint64(r.data[atSize:])
	if given|size != 0 && (given != magic || size != uint64(len(r.ring))) {
		return fmt.Errorf("header of data: %w", ErrFormat)
	}
	return nil
}

// mapSealed maps a file that cannot be resized any more, of a size within bounds.
func mapSealed(what string, fd, least, most, prot int) ([]byte, error) {
	const needed = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW
	seals, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0)
	if err != nil {
		return nil, fmt.Errorf("seals of %s: %w", what, err)
	}
	if seals&needed != needed {
		return nil, fmt.Errorf("%s is not sealed (%#x): %w", what, seals, ErrFormat)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("size of %s: %w", what, err)
	}
	if st.Size < int64(least) || st.Size > int64(most) || st.Size%align != 0 {
		return nil, fmt.Errorf("%s of %d bytes: %w", what, st.Size, ErrFormat)
	}
	mem, err := unix.Mmap(fd, 0, int(st.Size), prot, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map %s: %w", what, err)
	}
	return mem, nil
}

// Next is the next block, whole as it stands in a pcapng file. It is memory of the ring,
// valid until the next Next or Close. While there are blocks Next makes no system call
// and allocates nothing; else it sleeps until there are some, or ctx ends.
//
// Errors: io.EOF after the last block; ctx's; net.ErrClosed after Close;
// io.ErrUnexpectedEOF when the daemon is gone; or one that wraps ErrFormat.
func (r *Reader) Next(ctx context.Context) ([]byte, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed.Load() {
		return nil, net.ErrClosed
	}
	done, packets := r.pos, r.packets // what the caller had is free now
	for {
		block, err := r.step()
		if block != nil || err != nil {
			r.tellSome(done, packets)
			return block, err
		}
		if err := r.refill(ctx); err != nil {
			return nil, err
		}
		done, packets = r.pos, r.packets
	}
}

// tellSome lets the writer have what is free when that is a good part of the ring.
// More often would be a cache line that goes to and fro for each packet.
func (r *Reader) tellSome(done, packets uint64) {
	if done-r.told >= uint64(len(r.ring)/8) {
		r.tell(done, packets)
	}
}

func (r *Reader) tell(done, packets uint64) {
	if done != r.told {
		r.told = done
		r.control.packets().Store(packets)
		r.control.read().Store(done)
	}
}

// step is the next block before limit; nil where there is none.
func (r *Reader) step() ([]byte, error) {
	for r.err == nil && r.pos < r.limit {
		block, n := r.at(r.pos)
		if n == 0 {
			r.err = r.malformed("block at %d", r.pos)
			break
		}
		r.pos += uint64(n)
		if block != nil {
			return block, nil
		}
	}
	return nil, r.err
}

// at is the block at a position, and how far the next one is from there. block is nil for a
// pad; n is 0 where there can be no block.
func (r *Reader) at(pos uint64) (block []byte, n int) {
	at := int(pos % uint64(len(r.ring)))
	room := int(min(r.limit-pos, uint64(len(r.ring)-at)))
	kind, total := le.Uint32(r.ring[at:]), le.Uint32(r.ring[at+4:])
	switch {
	case kind == padBlock:
		if at+int(total) != len(r.ring) || int(total) > room {
			return nil, 0
		}
		return nil, int(total)
	case total < blockLen || total%4 != 0 || total > maxBlock || aligned(int(total)) > room:
		return nil, 0
	case kind == packetBlock && total < packetLen:
		return nil, 0
	}
	if kind == packetBlock {
		r.packets++
	}
	return r.ring[at : at+int(total) : at+int(total)], aligned(int(total))
}

// malformed says what is wrong with the ring; a daemon that has taken the memory back
// is just gone.
func (r *Reader) malformed(format string, args ...any) error {
	if le.Uint64(r.header.mem[atMagic:]) != magic {
		return io.ErrUnexpectedEOF
	}
	return fmt.Errorf(format+": %w", append(args, ErrFormat)...)
}

// refill finds what the writer has added, and sleeps when that is nothing. All that
// was read is told first.
func (r *Reader) refill(ctx context.Context) error {
	r.tell(r.pos, r.packets)
	for {
		if r.closed.Load() {
			return net.ErrClosed
		}
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		ended := r.header.ended().Load() != 0 // before written: what comes before the end is seen
		if grown, err := r.grow(); grown || err != nil {
			return err
		}
		if ended {
			return io.EOF
		}
		r.control.sleeping().Store(1)
		if grown, err := r.grow(); grown || err != nil {
			r.control.sleeping().Store(0)
			return err
		}
		if err := r.sleep(ctx); err != nil {
			return err
		}
	}
}

// grow takes over how far the writer has written, and tells whether that is further.
func (r *Reader) grow() (bool, error) {
	written := r.header.written().Load()
	r.stats.lost.Store(int64(r.header.lost().Load()))
	if written == r.limit {
		return false, nil
	}
	if written < r.limit || written-r.pos > uint64(len(r.ring)) || written%align != 0 {
		r.err = r.malformed("written up to %d, after %d", written, r.limit)
		return false, r.err
	}
	r.limit = written
	return true, nil
}

// past is a deadline that ends a read at once.
var past = time.Unix(1, 0)

// sleep waits for a byte in the pipe. Its end is no error as long as the writer has
// said that it is the end.
func (r *Reader) sleep(ctx context.Context) error {
	r.stats.sleeps.Add(1)
	woken := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		_ = r.wake.SetReadDeadline(past) // fails on a file that is closed, which ends the read
		close(woken)
	})
	var some [64]byte
	_, err := r.wake.Read(some[:])
	if !stop() {
		<-woken
		_ = r.wake.SetReadDeadline(time.Time{})
	}
	switch {
	case err == nil, errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, os.ErrClosed):
		return nil // refill looks what it was
	case errors.Is(err, io.EOF) && r.header.ended().Load() != 0:
		return nil
	case errors.Is(err, io.EOF):
		return io.ErrUnexpectedEOF
	}
	return fmt.Errorf("wait for packets: %w", err)
}

// ReaderStats are counts of a Reader.
type ReaderStats struct {
	// Sleeps is how often Next had nothing to read: the only times that it makes system calls.
	Sleeps int64
	// Lost is how many packets found no room so far, as known when Next last looked for more.
	Lost int64
}

// Stats are the counts so far.
func (r *Reader) Stats() ReaderStats {
	return ReaderStats{Sleeps: r.stats.sleeps.Load(), Lost: r.stats.lost.Load()}
}

// Close ends a Next under way, and frees the memory: blocks that Next returned are not
// to be touched any more. What was read is told to the writer. Twice is nil.
func (r *Reader) Close() error {
	if r.closed.Swap(true) {
		return nil
	}
	if r.wake != nil {
		_ = r.wake.Close()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.control.mem != nil {
		r.tell(r.pos, r.packets)
	}
	unmap(&r.data)
	unmap(&r.control.mem)
	r.header, r.ring = header{}, nil
	return nil
}
