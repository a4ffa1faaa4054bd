package files

import (
	"errors"
	"fmt"
	"io"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// DirectAlign is what the address, the length and the offset of a WriteDirect must be
// multiples of: no disk has larger blocks, and no file system asks for more.
const DirectAlign = 4096

// File is a regular file that somebody else has opened and handed over. It is written
// from its beginning, at an offset of its own: the one that the descriptor shares with
// its opener means nothing. It must be used by one goroutine at a time.
type File struct {
	fd     int
	size   int64
	direct directState
	flags  int      // of fcntl(2), without O_DIRECT
	pieces [][]byte // of WriteDirect

	reserved  int64 // up to there the disk's room is this file's, once it is written without a gap
	noReserve bool  // the file system cannot
}

type directState uint8

const (
	untried directState = iota
	buffered
	direct
	refused // the file system has no O_DIRECT
)

// Check tells whether Adopt would take a descriptor, and leaves the file alone. Errors
// wrap an errno: EINVAL for what is no regular file, EBADF for one that is not open for
// writing, EPERM for memory that is sealed (memfd_create(2)).
func Check(fd int) error {
	_, err := check(fd)
	return err
}

// check is Check, and has the flags of fcntl(2).
func check(fd int) (flags int, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0, fmt.Errorf("fstat: %w", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return 0, fmt.Errorf("not a regular file: %w", syscall.EINVAL)
	}
	if flags, err = unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0); err != nil {
		return 0, fmt.Errorf("fcntl: %w", err)
	}
	if flags&unix.O_ACCMODE == unix.O_RDONLY { // O_PATH says so, too
		return 0, fmt.Errorf("not open for writing: %w", syscall.EBADF)
	}
	// Files of other kinds have no seals: EINVAL.
	if seals, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0); err == nil && seals&unwritable != 0 {
		return 0, fmt.Errorf("sealed against writing: %w", syscall.EPERM)
	}
	return flags, nil
}

// unwritable are the seals of memory that can no longer be written, emptied or grow. The
// files of tmpfs(5) have F_SEAL_SEAL alone.
const unwritable = unix.F_SEAL_WRITE | unix.F_SEAL_FUTURE_WRITE | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW

// Adopt takes over a descriptor, which it owns on success, and empties the file.
// Errors are those of Check, and of the file system.
func Adopt(fd int) (*File, error) {
	flags, err := check(fd)
	if err != nil {
		return nil, err
	}
	// With O_APPEND the kernel ignores the offset of pwrite(2).
	flags &^= unix.O_DIRECT | unix.O_APPEND
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFL, flags); err != nil {
		return nil, fmt.Errorf("fcntl: %w", err)
	}
	if err := retry(func() error { return unix.Ftruncate(fd, 0) }); err != nil {
		return nil, fmt.Errorf("ftruncate: %w", err)
	}
	return &File{fd: fd, flags: flags, direct: untried}, nil
}

// Size is how long the file is: where the next Write goes.
func (f *File) Size() int64 { return f.size }

// Write appends b. On an error n bytes of b are in the file.
func (f *File) Write(b []byte) (n int, err error) {
	if err := f.setDirect(false); err != nil {
		return 0, err
	}
	return f.write(b)
}

// WriteDirect appends two pieces by one system call, past the page cache where the file
// system can. Their addresses and lengths, and Size, must be multiples of DirectAlign. On
// an error, which may be a short write's io.ErrShortWrite, n bytes of both are in the file.
func (f *File) WriteDirect(a, b []byte) (n int, err error) {
	if err := f.setDirect(true); err != nil {
		return 0, err
	}
	n, err = f.writev(a, b)
	if !errors.Is(err, syscall.EINVAL) || f.direct != direct {
		return n, err
	}
	// Some file systems take the flag and refuse the write.
	if err := f.setDirect(false); err != nil {
		return 0, err
	}
	f.direct = refused
	return f.writev(a, b)
}

func (f *File) writev(a, b []byte) (n int, err error) {
	f.pieces = append(f.pieces[:0], a, b)
	err = retry(func() error {
		n, err = unix.Pwritev(f.fd, f.pieces, f.size)
		return err
	})
	n = max(n, 0)
	f.size += int64(n)
	switch {
	case err != nil:
		return n, fmt.Errorf("write: %w", err)
	case n < len(a)+len(b):
		return n, fmt.Errorf("write: %w", io.ErrShortWrite)
	}
	return n, nil
}

// setDirect turns O_DIRECT on or off. One that is not to be had is remembered, and no
// error.
func (f *File) setDirect(on bool) error {
	want, flags := buffered, f.flags
	if on {
		want, flags = direct, f.flags|unix.O_DIRECT
	}
	if f.direct == want || f.direct == refused || f.direct == untried && !on {
		return nil
	}
	_, err := unix.FcntlInt(uintptr(f.fd), unix.F_SETFL, flags)
	switch {
	case err == nil:
		f.direct = want
	case on && errors.Is(err, syscall.EINVAL): // open(2): the file system does not support it
		f.direct = refused
	default:
		return fmt.Errorf("fcntl O_DIRECT: %w", err)
	}
	return nil
}

func (f *File) write(b []byte) (n int, err error) {
	for n < len(b) {
		wrote, err := unix.Pwrite(f.fd, b[n:], f.size)
		switch {
		case wrote > 0:
			n += wrote
			f.size += int64(wrote)
		case err == nil: // pwrite(2) of a regular file takes nothing only with an error
			return n, fmt.Errorf("write: %w", syscall.EIO)
		case errors.Is(err, syscall.EINTR):
		default:
			return n, fmt.Errorf("write: %w", err)
		}
	}
	return n, nil
}

// Truncate cuts the file. What is cut off was not written: the next Write goes there.
// What was reserved behind is given back.
func (f *File) Truncate(size int64) error {
	if err := retry(func() error { return unix.Ftruncate(f.fd, size) }); err != nil {
		return fmt.Errorf("ftruncate: %w", err)
	}
	f.size, f.reserved = size, min(f.reserved, size)
	return nil
}

// reserveStep is how much is reserved at once, where there is so much: a slow capture
// asks once for many packets. A fast one, whose writes are larger, asks for each, and for
// no more than it needs: what was reserved and is written then costs both.
const reserveStep = 64 << 10

// Reserve keeps room on the disk for n bytes from at on, which is where the next Write
// will end: what is written there later finds room on a disk that is full by then. The size of
// the file stays, and Close gives back what was not written. A file system that cannot do
// it promises nothing, without an error.
func (f *File) Reserve(at, n int64) error {
	if n == 0 || at+n <= f.reserved || f.noReserve {
		return nil
	}
	step := int64(reserveStep)
	if at-f.size >= reserveStep {
		step = DirectAlign
	}
	end := (at + n + step - 1) &^ (step - 1)
	err := f.allocate(at, end)
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		end = at + n // there may be as little as that
		err = f.allocate(at, end)
	}
	if err == nil && !f.noReserve {
		f.reserved = end
	}
	return err
}

// allocate asks for room that nothing is written to so far.
func (f *File) allocate(from, to int64) error {
	err := retry(func() error { return unix.Fallocate(f.fd, unix.FALLOC_FL_KEEP_SIZE, from, to-from) })
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT), errors.Is(err, syscall.EFBIG), errors.Is(err, syscall.EIO):
		return fmt.Errorf("fallocate: %w", err)
	}
	f.noReserve = true // EOPNOTSUPP, and what a network's file system may say in its place
	return nil
}

// Close gives the descriptor back. It does not wait for the disk: who opened the file
// can, while this process goes on with the next one.
func (f *File) Close() error {
	if f.reserved > f.size {
		_ = f.Truncate(f.size) // the room is given back at the latest when the file is deleted
	}
	err := unix.Close(f.fd)
	f.fd = -1
	if err != nil && !errors.Is(err, syscall.EINTR) { // Linux closes it all the same
		return fmt.Errorf("close: %w", err)
	}
	return nil
}

// Discard gives the descriptor back, of a file that nobody wants.
func Discard(fd int) { _ = unix.Close(fd) } // nothing was written through it

func retry(f func() error) error {
	for {
		if err := f(); !errors.Is(err, syscall.EINTR) {
			return err
		}
	}
}

// Aligned is memory of n bytes for WriteDirect. The runtime does not move it.
func Aligned(n int) []byte {
	b := make([]byte, n+DirectAlign)
	at := -int(uintptr(unsafe.Pointer(&b[0]))) & (DirectAlign - 1)
	return b[at : at+n : at+n]
}
