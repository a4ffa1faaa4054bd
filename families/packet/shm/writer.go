package shm

import (
	"errors"
	"fmt"
	"math/bits"

	"golang.org/x/sys/unix"
)

// Writer is the daemon's side. Its methods are called by one goroutine at a time.
type Writer struct {
	files   Files
	handed  bool // files are closed
	wake    int  // the writing end of the pipe
	data    []byte
	header  header
	control control
	ring    []byte

	pos       uint64 // where the next block begins
	published uint64 // what the reader knows of pos
	read      uint64 // up to where the reader has read, as known last
	packets   uint64 // appended
	told      uint64 // of them, those before published
	taken     uint64 // of them, those before read
	lost      uint64
	wakes     int64
	broken    error // a *ReaderError, for good
}

// NewWriter makes a ring of so many bytes, rounded up to a power of two within the
// bounds; 0 is DefaultBytes. All of it is allocated: no packet waits for memory, and
// none is a signal where there is none. The error wraps the errno.
func NewWriter(bytes int) (*Writer, error) {
	size := RingBytes(bytes)
	w := &Writer{files: Files{-1, -1, -1}, wake: -1}
	if err := w.make(size); err != nil {
		w.Close()
		return nil, fmt.Errorf("shared memory of %d bytes: %w", size, err)
	}
	le.PutUint64(w.data[atMagic:], magic)
	le.PutUint64(w.data[atSize:], uint64(size))
	return w, nil
}

// RingBytes is how large a ring NewWriter makes of so many bytes.
func RingBytes(bytes int) int {
	if bytes <= 0 {
		bytes = DefaultBytes
	}
	bytes = min(max(bytes, MinBytes), MaxBytes)
	return 1 << bits.Len(uint(bytes-1))
}

func (w *Writer) make(size int) (err error) {
	if w.data, w.files.Data, err = newMemory("sockd-capture", headerBytes+size, unix.O_RDONLY); err != nil {
		return err
	}
	if w.control.mem, w.files.Control, err = newMemory("sockd-capture-control", controlBytes, unix.O_RDWR); err != nil {
		return err
	}
	w.header, w.ring = header{w.data[:headerBytes]}, w.data[headerBytes:]
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return fmt.Errorf("pipe: %w", err)
	}
	w.files.Wake, w.wake = p[0], p[1]
	return nil
}

// newMemory maps a memfd of so many bytes that is sealed, and opens it in a mode for
// somebody else, who can open it in no other, unless it is us or root.
func newMemory(name string, size, mode int) (mem []byte, fd int, err error) {
	own, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|unix.MFD_NOEXEC_SEAL)
	if errors.Is(err, unix.EINVAL) { // MFD_NOEXEC_SEAL is of Linux 6.3
		own, err = unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if err != nil {
		return nil, -1, fmt.Errorf("memfd_create: %w", err)
	}
	defer unix.Close(own) // the mapping is enough
	if err := prepare(own, size); err != nil {
		return nil, -1, err
	}
	if mem, err = unix.Mmap(own, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE); err != nil {
		return nil, -1, fmt.Errorf("mmap: %w", err)
	}
	fd, err = unix.Open(fmt.Sprintf("/proc/self/fd/%d", own), mode|unix.O_CLOEXEC, 0)
	if err != nil {
		unmap(&mem)
		return nil, -1, fmt.Errorf("open memory for its reader: %w", err)
	}
	return mem, fd, nil
}

// prepare allocates a memfd, seals it, and takes it away from everybody else.
func prepare(fd, size int) error {
	if err := unix.Fallocate(fd, 0, 0, int64(size)); err != nil {
		return fmt.Errorf("fallocate: %w", err)
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, fixed); err != nil {
		return fmt.Errorf("seal: %w", err)
	}
	if err := unix.Fchmod(fd, 0o600); err != nil {
		return fmt.Errorf("fchmod: %w", err)
	}
	return nil
}

// Bytes is the size of the ring.
func (w *Writer) Bytes() int { return len(w.ring) }

// Files are the descriptors to pass to the reader. They stay w's.
func (w *Writer) Files() Files { return w.files }

// CloseFiles closes Files: once they have been passed on, the mappings are enough.
func (w *Writer) CloseFiles() {
	if !w.handed {
		w.handed = true
		w.files.Close()
	}
}

// Room is where the next block is to be written, with room for n bytes; it is
// empty, for append. Packets leave a reserve to what is urgent. Commit makes it part of
// the ring, and without it nothing has happened.
//
// Errors: ErrFull, or *ReaderError, this time and ever after.
func (w *Writer) Room(n int, urgent bool) ([]byte, error) {
	at := int(w.pos % uint64(len(w.ring)))
	need, pad := aligned(n), 0
	if tail := len(w.ring) - at; need > tail {
		pad = tail
	}
	most := len(w.ring)
	if !urgent {
		most -= reserve
	}
	if err := w.makeRoom(pad+need, most); err != nil {
		return nil, err
	}
	if pad > 0 {
		le.PutUint32(w.ring[at:], padBlock)
		le.PutUint32(w.ring[at+4:], uint32(pad))
		w.pos += uint64(pad)
		at = 0
	}
	return w.ring[at : at : at+need], nil
}

// makeRoom sees to n bytes being free when most may be in use.
func (w *Writer) makeRoom(n, most int) error {
	if w.broken != nil {
		return w.broken
	}
	if w.used()+n <= most {
		return nil
	}
	if err := w.look(); err != nil {
		return err
	}
	if w.used()+n > most {
		return ErrFull
	}
	return nil
}

// used is how much of the ring holds what the reader still needs.
func (w *Writer) used() int { return int(w.pos - w.read) }

// Commit appends the block of n bytes that was written to Room. packet is for what counts as
// one.
func (w *Writer) Commit(n int, packet bool) {
	w.pos += uint64(aligned(n))
	if packet {
		w.packets++
	}
}

// Lose counts a packet that found no room.
func (w *Writer) Lose() { w.lost++ }

// look takes over from control what the reader says, if it can be true.
func (w *Writer) look() error {
	if w.broken != nil {
		return w.broken
	}
	read, taken := w.control.read().Load(), w.control.packets().Load()
	switch {
	case read < w.read || read > w.published || read%align != 0:
		w.broken = &ReaderError{"position", read, w.read, w.published}
	case taken < w.taken || taken > w.told:
		w.broken = &ReaderError{"packets", taken, w.taken, w.told}
	default:
		w.read, w.taken = read, taken
	}
	return w.broken
}

// Flush shows the reader all that was appended, and wakes it if it sleeps. The
// error is a *ReaderError.
func (w *Writer) Flush() error {
	if w.broken != nil {
		return w.broken
	}
	w.published, w.told = w.pos, w.packets
	w.header.lost().Store(w.lost)
	w.header.written().Store(w.pos)
	// The reader sets the word before it looks at written for the last time, and
	// both are atomic: either it sees what was written now, or this sees the word.
	switch sleeping := w.control.sleeping().Swap(0); sleeping {
	case 0:
	case 1:
		w.knock()
	default:
		w.broken = &ReaderError{"sleeping", uint64(sleeping), 0, 1}
	}
	return w.broken
}

var oneByte = []byte{0}

// knock wakes the reader. A pipe that is full wakes it as well, and one that nobody
// reads tells of a reader that has gone, which the daemon learns from its connection.
func (w *Writer) knock() {
	w.wakes++
	_, _ = unix.Write(w.wake, oneByte)
}

// Stats are counts so far.
type Stats struct {
	Packets int64 // appended
	Taken   int64 // of them, those that the reader has done with
	Lost    int64 // those that found no room
	Wakes   int64 // writes to the pipe
}

// Stats asks what the reader has taken. The error is a *ReaderError; the counts are
// those from before the lie then.
func (w *Writer) Stats() (Stats, error) {
	var err error
	if w.control.mem != nil {
		err = w.look()
	}
	return Stats{Packets: int64(w.packets), Taken: int64(w.taken), Lost: int64(w.lost), Wakes: w.wakes}, err
}

// End tells the reader that nothing more comes: it reads what is there, and then the
// end.
func (w *Writer) End() {
	_ = w.Flush() // it does not matter any more what the reader says
	w.header.ended().Store(1)
	w.closeWake()
}

// closeWake wakes a reader for good.
func (w *Writer) closeWake() {
	if w.wake >= 0 {
		_ = unix.Close(w.wake)
		w.wake = -1
	}
}

// Close gives the memory back, also when the reader still has it mapped, to which it is
// zeros then; only Stats may be called after it. A reader that has not seen the end
// takes it for the daemon's death.
func (w *Writer) Close() {
	if w.control.mem != nil {
		_ = w.look() // for Stats: there are no true words there any more after this
	}
	w.closeWake()
	for _, mem := range [][]byte{w.data, w.control.mem} {
		if mem != nil {
			_ = unix.Madvise(mem, unix.MADV_REMOVE) // else it goes with the last mapping
		}
	}
	w.release()
}

// Leave is Close, but leaves the reader the memory: it can read on to the end.
func (w *Writer) Leave() {
	if w.control.mem != nil {
		_ = w.look() // for Stats
	}
	w.closeWake()
	w.release()
}

func (w *Writer) release() {
	w.CloseFiles()
	unmap(&w.data)
	unmap(&w.control.mem)
	w.header, w.ring = header{}, nil
}

func unmap(mem *[]byte) {
	if *mem != nil {
		_ = unix.Munmap(*mem) // fails only for what was not mapped
		*mem = nil
	}
}
