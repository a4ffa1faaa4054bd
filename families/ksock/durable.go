package ksock

import (
	"encoding/binary"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What a stream needs that is to outlive this process: pipes that are taken up again,
// sockets that end although somebody holds a duplicate, and memory that stays.

// PipeOf takes a pipe up by the descriptors of its two ends, which the Pipe owns on
// success. What is in it is Held.
func PipeOf(r, w int) (*Pipe, error) {
	held, err := FD(r).Unread()
	if err != nil {
		return nil, fmt.Errorf("ask what is in pipe %d: %w", r, err)
	}
	size, err := unix.FcntlInt(uintptr(w), unix.F_GETPIPE_SZ, 0)
	if err != nil {
		return nil, fmt.Errorf("ask for the size of pipe %d: %w", w, err)
	}
	return &Pipe{r: int32(r), w: int32(w), Size: size, Held: held}, nil
}

// NewPlainPipe makes a pipe of the size that the kernel gives: 64 KiB, and less to a
// user that has many (pipe(7), fs.pipe-user-pages-soft).
func NewPlainPipe() (*Pipe, error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_NONBLOCK|unix.O_CLOEXEC); err != nil {
		return nil, fmt.Errorf("make a pipe: %w", err)
	}
	return &Pipe{r: int32(fds[0]), w: int32(fds[1]), Size: PlainPipe}, nil
}

// PlainPipe is the size of a pipe that nobody has resized (pipe(7)).
const PlainPipe = 64 << 10

// Ends are the descriptors of both ends; they stay the pipe's.
func (p *Pipe) Ends() (r, w int) { return int(p.r), int(p.w) }

// Resize changes the size, also of a pipe with bytes in it (fcntl(2), F_SETPIPE_SZ).
// The error is EPERM where the user has as many pages as it may, and EBUSY where what
// is in it does not fit.
func (p *Pipe) Resize(size int) error {
	n, _, errno := unix.RawSyscall(unix.SYS_FCNTL, uintptr(p.w), unix.F_SETPIPE_SZ, uintptr(size))
	if errno != 0 {
		return errno
	}
	p.Size = int(n)
	return nil
}

// Peek is Recv that leaves the bytes where they are.
func (f FD) Peek(b []byte) (int, error) {
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(f), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), unix.MSG_DONTWAIT|unix.MSG_PEEK, 0, 0)
		if errno != unix.EINTR {
			return count(n, errno)
		}
	}
}

// Received is how many bytes a TCP connection has got from its peer in order, read or
// not, and one more when the peer's end has come (tcp_info.tcpi_bytes_received;
// net/ipv4/tcp_input.c, tcp_rcv_nxt_update). A reset adds nothing, so that whoever has
// counted what was read can tell, at any time later, how the connection ended. It is 0
// again after Reset.
func (f FD) Received() (int64, error) {
	const offset, size = 128, 136 // of tcpi_bytes_received (linux/tcp.h), and what is enough
	var info [size]byte
	n := uint32(size)
	_, _, errno := unix.RawSyscall6(unix.SYS_GETSOCKOPT, uintptr(f), unix.IPPROTO_TCP, unix.TCP_INFO, uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&n)), 0)
	switch {
	case errno != 0:
		return 0, errno
	case n < size:
		return 0, unix.ENOPROTOOPT // before Linux 4.1
	}
	return int64(binary.NativeEndian.Uint64(info[offset:])), nil
}

// End ends a connection in order and closes the descriptor, also where a duplicate
// lives on, which keeps Close from ending anything.
func (f FD) End() {
	_ = f.HangUp() // ENOTCONN: it has ended
	f.Close()
}

// HangUp ends both directions, and leaves the descriptor open: shutdown(2).
func (f FD) HangUp() error { return f.shutdown(unix.SHUT_RDWR) }

// ResetAll is Reset where a duplicate lives on, which keeps a unix socket's close from
// ending anything.
func (f FD) ResetAll(tcp bool) {
	if !tcp {
		_ = f.HangUp() // ENOTCONN: it has ended
	}
	f.Reset(tcp)
}

// Memory is memory that lives as long as anybody has its descriptor: a memfd_create(2)
// file, mapped. Whoever stores into it and is killed has stored.
type Memory struct {
	fd    int
	bytes []byte
}

// NewMemory makes size bytes of zeros, which take room when they are reserved. The name
// is for /proc alone. The caller closes it.
func NewMemory(name string, size int) (*Memory, error) {
	fd, err := memfd(name)
	if err != nil {
		return nil, err
	}
	if err := unix.Ftruncate(fd, int64(size)); err != nil {
		_ = unix.Close(fd) // nothing is in it
		return nil, fmt.Errorf("make %d bytes of memory: %w", size, err)
	}
	// Nobody can make it smaller then, which would be a SIGBUS here.
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL); err != nil {
		_ = unix.Close(fd) // nothing is in it
		return nil, fmt.Errorf("seal memory: %w", err)
	}
	m, err := MapMemory(fd, size)
	if err != nil {
		_ = unix.Close(fd) // nothing is in it
	}
	return m, err
}

// MapMemory maps what NewMemory made, of which the caller has a descriptor; the Memory
// owns it on success. A file of another size, or that could shrink, is EINVAL.
func MapMemory(fd, size int) (*Memory, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("look at memory %d: %w", fd, err)
	}
	seals, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0)
	if err != nil || seals&unix.F_SEAL_SHRINK == 0 || st.Size != int64(size) {
		return nil, fmt.Errorf("descriptor %d is no memory of %d bytes: %w", fd, size, unix.EINVAL)
	}
	b, err := unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map memory: %w", err)
	}
	return &Memory{fd: fd, bytes: b}, nil
}

func memfd(name string) (int, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|unix.MFD_NOEXEC_SEAL)
	if err == unix.EINVAL { // MFD_NOEXEC_SEAL came with Linux 6.3
		fd, err = unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if err != nil {
		return -1, fmt.Errorf("make memory: %w", err)
	}
	return fd, nil
}

// Bytes is the memory. It is invalid after Close.
func (m *Memory) Bytes() []byte { return m.bytes }

// Descriptor stays the Memory's.
func (m *Memory) Descriptor() int { return m.fd }

// Reserve gives bytes their room now: without it, a store when memory is short would be
// a SIGBUS.
func (m *Memory) Reserve(offset, n int) error {
	if err := unix.Fallocate(m.fd, 0, int64(offset), int64(n)); err != nil {
		return fmt.Errorf("reserve memory: %w", err)
	}
	return nil
}

// Close lets go of the memory, once. It lives on where somebody else has the
// descriptor.
func (m *Memory) Close() {
	_ = unix.Munmap(m.bytes) // it was mapped
	_ = unix.Close(m.fd)     // nothing is buffered
	m.bytes = nil
}

// SealedFile is a file in memory that holds data and that nobody can change. The
// caller closes the descriptor.
func SealedFile(name string, data []byte) (int, error) {
	fd, err := memfd(name)
	if err != nil {
		return -1, err
	}
	for off := 0; off < len(data); {
		n, err := unix.Pwrite(fd, data[off:], int64(off))
		if err != nil {
			_ = unix.Close(fd) // it is of no use
			return -1, fmt.Errorf("write a file in memory: %w", err)
		}
		off += n
	}
	const all = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE | unix.F_SEAL_SEAL
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, all); err != nil {
		_ = unix.Close(fd) // it is of no use
		return -1, fmt.Errorf("seal a file in memory: %w", err)
	}
	return fd, nil
}

// ReadSealed reads what SealedFile made, up to limit bytes; more is EFBIG.
func ReadSealed(fd, limit int) ([]byte, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("look at descriptor %d: %w", fd, err)
	}
	seals, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0)
	switch {
	case err != nil || seals&unix.F_SEAL_WRITE == 0:
		return nil, fmt.Errorf("descriptor %d is no sealed file: %w", fd, unix.EINVAL)
	case st.Size > int64(limit):
		return nil, fmt.Errorf("a sealed file of %d bytes, %d is the most: %w", st.Size, limit, unix.EFBIG)
	}
	data := make([]byte, st.Size)
	for off := 0; off < len(data); {
		n, err := unix.Pread(fd, data[off:], int64(off))
		if err != nil || n == 0 {
			return nil, fmt.Errorf("read a sealed file at %d: %w", off, err)
		}
		off += n
	}
	return data, nil
}

// At is what lies at an offset of the memory, as a T: of fixed size, without pointers,
// and aligned there. It is invalid after Close.
func At[T any](m *Memory, offset int) *T {
	var t T
	_ = m.bytes[offset : offset+int(unsafe.Sizeof(t))] // or it panics, rather than to point outside
	return (*T)(unsafe.Pointer(&m.bytes[offset]))
}
