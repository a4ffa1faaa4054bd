package ksock

import (
	"io"
	"net"
	"sync"
	"syscall"
	"unsafe"

	"github.com/sockd/sockd/families"
	"golang.org/x/sys/unix"
)

// maxFiles is how many descriptors one message can carry: SCM_MAX_FD of
// include/net/scm.h. With room for all of them, control data is cut only when
// this process may open no more.
const maxFiles = 253

// controlWords is room for SCM_RIGHTS and SCM_CREDENTIALS, and some for what an
// option asked for, such as timestamps. Words, because control data is aligned.
const controlWords = 192

// call is one recvmsg(2) or sendmsg(2) with all that the kernel reads and writes.
// Calls are reused, so that an attempt allocates nothing.
type call struct {
	hdr     unix.Msghdr
	iov     unix.Iovec
	name    families.Name
	control [controlWords]uint64
	flags   uintptr
	n       int
	errno   syscall.Errno
	// recv and send are the methods below as values, made once.
	recv, send func(fd uintptr)
}

var calls = sync.Pool{New: func() any {
	c := new(call)
	c.recv = func(fd uintptr) { c.syscall(unix.SYS_RECVMSG, fd) }
	c.send = func(fd uintptr) { c.syscall(unix.SYS_SENDMSG, fd) }
	return c
}}

// done gives c back without a pointer to anybody's data.
func (c *call) done() {
	c.hdr, c.iov = unix.Msghdr{}, unix.Iovec{}
	calls.Put(c)
}

func (c *call) syscall(trap, fd uintptr) {
	for {
		n, _, errno := unix.Syscall(trap, fd, uintptr(unsafe.Pointer(&c.hdr)), c.flags)
		if errno != unix.EINTR {
			c.n, c.errno = int(n), errno
			return
		}
	}
}

// data points c at the bytes to send or to fill.
func (c *call) data(b []byte) {
	if len(b) > 0 {
		c.iov.Base = &b[0]
	}
	c.iov.SetLen(len(b))
	c.hdr.Iov = &c.iov
	c.hdr.SetIovlen(1)
}

func (c *call) room() []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(&c.control)), len(c.control)*8)
}

// Recv is one attempt to receive. Of a message that brought descriptors they are
// in m.Files and belong to the caller, also when the message was cut.
//
// FlagPeek leaves the data in the queue, FlagOOB receives the urgent byte alone.
func (b *Base) Recv(m *families.Msg) error {
	if b.typ == families.Seqpacket && !b.marked.Load() {
		if err := b.markEnds(); err != nil {
			return b.fam.fail("recv", "", err)
		}
	}
	room := m.Data[:cap(m.Data)]
	if len(room) == 0 && b.typ == families.Stream {
		return b.fam.fail("recv", "", io.ErrShortBuffer)
	}
	c := calls.Get().(*call)
	defer c.done()
	c.data(room)
	c.flags = b.recvFlags(m.Flags)
	if b.typ != families.Stream {
		c.hdr.Name, c.hdr.Namelen = &c.name.Buffer()[0], uint32(len(c.name.Buffer()))
	}
	if b.fam.Control {
		c.hdr.Control = &c.room()[0]
		c.hdr.SetControllen(len(c.room()))
	}
	*m = families.Msg{Data: m.Data[:0]}
	if err := b.rc.Control(c.recv); err != nil {
		return b.fam.fail("recv", "", net.ErrClosed)
	}
	return b.received(c, m, room)
}

func (b *Base) recvFlags(f families.Flags) uintptr {
	flags := uintptr(unix.MSG_DONTWAIT)
	if b.typ.Messages() {
		flags |= unix.MSG_TRUNC // the real length of a message that was cut; of a TCP stream it would throw data away
	}
	if b.fam.Control {
		flags |= unix.MSG_CMSG_CLOEXEC
	}
	if f&families.FlagPeek != 0 {
		flags |= unix.MSG_PEEK
	}
	if f&families.FlagOOB != 0 {
		flags |= unix.MSG_OOB
	}
	return flags
}

// received puts what the kernel said into m.
func (b *Base) received(c *call, m *families.Msg, room []byte) error {
	switch {
	case c.errno == unix.EAGAIN && b.ended.Load():
		return io.EOF
	case c.errno == unix.EAGAIN:
		return families.ErrAgain
	case c.errno != 0:
		return b.fam.fail("recv", "", c.errno)
	}
	m.Full = c.n
	m.Data = room[:min(c.n, len(room))]
	if c.hdr.Namelen > 0 && b.typ != families.Stream {
		c.name.SetLen(int(c.hdr.Namelen))
		m.Peer = b.named(c.name)
	}
	if c.hdr.Flags&unix.MSG_OOB != 0 {
		m.Flags |= families.FlagOOB
	}
	if err := b.controls(c, m); err != nil {
		return err
	}
	if c.n == 0 && b.isEnd(c) {
		return io.EOF
	}
	if b.fam.Received != nil {
		b.fam.Received(m)
	}
	if c.n > len(room) {
		return families.ErrCut
	}
	return nil
}

// isEnd tells the end from an empty message. A seqpacket socket gives 0 bytes for
// both, but only a message has credentials with it (unix(7), SO_PASSCRED).
func (b *Base) isEnd(c *call) bool {
	switch b.typ {
	case families.Stream:
		return true
	case families.Seqpacket:
		return c.hdr.Controllen == 0
	}
	return false
}

// markEnds sets SO_PASSCRED before the first message is received, not earlier: on
// a socket without a name it would make connect(2) bind it to one.
func (b *Base) markEnds() error {
	return b.control(func(fd int) error {
		if _, err := sockaddrOf(fd, unix.SYS_GETPEERNAME); err != nil {
			return err
		}
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PASSCRED, 1); err != nil {
			return err
		}
		b.marked.Store(true)
		return nil
	})
}

// named is n, or the unnamed Name where the kernel gives the family alone.
func (b *Base) named(n families.Name) families.Name {
	if len(n.Bytes()) <= 2 {
		return families.Name{}
	}
	return n
}

// controls reads descriptors and credentials. When there were more descriptors
// than this process may open, those that came are closed: half of them are of no
// use to anybody.
func (b *Base) controls(c *call, m *families.Msg) error {
	if !b.fam.Control {
		return nil
	}
	rest := c.room()[:c.hdr.Controllen]
	for len(rest) >= unix.SizeofCmsghdr {
		h := (*unix.Cmsghdr)(unsafe.Pointer(&rest[0]))
		size := int(h.Len)
		if size < unix.SizeofCmsghdr || size > len(rest) {
			break
		}
		b.control1(h, rest[unix.CmsgLen(0):size], m)
		rest = rest[min(unix.CmsgSpace(size-unix.CmsgLen(0)), len(rest)):]
	}
	if c.hdr.Flags&unix.MSG_CTRUNC != 0 {
		for _, fd := range m.Files {
			_ = unix.Close(fd) // nobody ever used it
		}
		m.Files = nil
		return b.fam.fail("recv", "", errFilesCut)
	}
	return nil
}

func (b *Base) control1(h *unix.Cmsghdr, data []byte, m *families.Msg) {
	if h.Level != unix.SOL_SOCKET {
		return
	}
	switch {
	case h.Type == unix.SCM_RIGHTS:
		for ; len(data) >= 4; data = data[4:] {
			m.Files = append(m.Files, int(*(*int32)(unsafe.Pointer(&data[0]))))
		}
	case h.Type == unix.SCM_PIDFD && len(data) >= 4:
		// Whoever had the socket before it was adopted asked for it; nobody here does.
		_ = unix.Close(int(*(*int32)(unsafe.Pointer(&data[0]))))
	case h.Type == unix.SCM_CREDENTIALS && b.creds.Load() && len(data) >= unix.SizeofUcred:
		u := (*unix.Ucred)(unsafe.Pointer(&data[0]))
		m.Creds = &families.Creds{PID: u.Pid, UID: u.Uid, GID: u.Gid}
	}
}

// Send is one attempt to send, all of a message or a part of a stream.
func (b *Base) Send(m *families.Msg) (int, error) {
	if len(m.Files) > maxFiles {
		return 0, b.fam.fail("send", "", unix.EINVAL)
	}
	c := calls.Get().(*call)
	defer c.done()
	c.data(m.Data)
	c.flags = unix.MSG_DONTWAIT | unix.MSG_NOSIGNAL
	if m.Flags&families.FlagOOB != 0 {
		c.flags |= unix.MSG_OOB
	}
	if !m.Peer.Empty() {
		c.name = m.Peer
		c.hdr.Name, c.hdr.Namelen = &c.name.Buffer()[0], uint32(len(c.name.Bytes()))
	}
	if len(m.Files) > 0 {
		c.rights(m.Files)
	}
	if err := b.rc.Control(c.send); err != nil {
		return 0, b.fam.fail("send", "", net.ErrClosed)
	}
	switch c.errno {
	case 0:
		return c.n, nil
	case unix.EAGAIN:
		b.crowded.Store(b.fam.Domain == unix.AF_UNIX && !m.Peer.Empty())
		return 0, families.ErrAgain
	}
	return 0, b.fam.fail("send", b.text(m.Peer), c.errno)
}

// rights makes the control message that carries descriptors.
func (c *call) rights(files []int) {
	room := c.room()
	h := (*unix.Cmsghdr)(unsafe.Pointer(&room[0]))
	h.Level, h.Type = unix.SOL_SOCKET, unix.SCM_RIGHTS
	h.SetLen(unix.CmsgLen(4 * len(files)))
	for i, fd := range files {
		*(*int32)(unsafe.Pointer(&room[unix.CmsgLen(4*i)])) = int32(fd)
	}
	c.hdr.Control = &room[0]
	c.hdr.SetControllen(unix.CmsgSpace(4 * len(files)))
}

func (b *Base) text(n families.Name) string {
	if a := b.NameAddr(n); a != nil {
		return a.String()
	}
	return ""
}
