package ksock

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// RecvFiles is Recv of a unix stream with the descriptors that came with the bytes
// (unix(7), SCM_RIGHTS), which are the caller's. The kernel ends a read behind the
// piece that brought some. cut tells that there were more than this process may have
// open; then none are given.
func (f FD) RecvFiles(b []byte) (n int, files []int, cut bool, err error) {
	return f.recvFiles(b, unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)
}

// FilesAhead tells how many bytes lie before the first piece with descriptors among
// what is queued, as far as room: 0 where the next piece has some, and where none of
// it has. A read across that place would bring them too early. It finds the place by
// peeking at less and less.
func (f FD) FilesAhead(room []byte) int {
	if _, some := f.bringsFiles(room[:1]); some {
		return 0
	}
	n, some := f.bringsFiles(room)
	if !some {
		return 0
	}
	none := 1 // a peek at so many bytes brings none, at n it does
	for n-none > 1 {
		mid := (none + n) / 2
		if _, some := f.bringsFiles(room[:mid]); some {
			n = mid
		} else {
			none = mid
		}
	}
	return none
}

// bringsFiles peeks at up to len(b) bytes: what it gets are duplicates.
func (f FD) bringsFiles(b []byte) (n int, some bool) {
	n, files, cut, err := f.recvFiles(b, unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC|unix.MSG_PEEK)
	CloseFiles(files)
	return n, err == nil && (cut || len(files) > 0)
}

func (f FD) recvFiles(b []byte, flags uintptr) (n int, files []int, cut bool, err error) {
	c := calls.Get().(*call)
	defer c.done()
	c.data(b)
	c.flags = flags
	c.hdr.Control = &c.room()[0]
	c.hdr.SetControllen(len(c.room()))
	c.syscall(unix.SYS_RECVMSG, uintptr(f))
	if c.errno != 0 {
		return 0, nil, false, c.errno
	}
	files = c.files()
	if c.hdr.Flags&unix.MSG_CTRUNC != 0 {
		CloseFiles(files)
		return c.n, nil, true, nil
	}
	return c.n, files, false, nil
}

// files are the descriptors among the control data.
func (c *call) files() (files []int) {
	rest := c.room()[:c.hdr.Controllen]
	for len(rest) >= unix.SizeofCmsghdr {
		h := (*unix.Cmsghdr)(unsafe.Pointer(&rest[0]))
		size := int(h.Len)
		if size < unix.SizeofCmsghdr || size > len(rest) {
			break
		}
		files = append(files, c.filesIn(h, rest[unix.CmsgLen(0):size])...)
		rest = rest[min(unix.CmsgSpace(size-unix.CmsgLen(0)), len(rest)):]
	}
	return files
}

func (c *call) filesIn(h *unix.Cmsghdr, data []byte) (files []int) {
	if h.Level != unix.SOL_SOCKET || h.Type != unix.SCM_RIGHTS {
		return nil
	}
	for ; len(data) >= 4; data = data[4:] {
		files = append(files, int(*(*int32)(unsafe.Pointer(&data[0]))))
	}
	return files
}

// SendFiles is Send of a unix stream with descriptors, which go with the first byte.
// They stay the caller's, who closes them.
func (f FD) SendFiles(b []byte, files []int) (int, error) {
	if len(files) > maxFiles {
		return 0, unix.EINVAL
	}
	c := calls.Get().(*call)
	defer c.done()
	c.data(b)
	c.flags = unix.MSG_DONTWAIT | unix.MSG_NOSIGNAL
	c.rights(files)
	c.syscall(unix.SYS_SENDMSG, uintptr(f))
	if c.errno != 0 {
		return 0, c.errno
	}
	return c.n, nil
}
