package ksock

import (
	"fmt"
	"net"
	"slices"
	"syscall"
	"unsafe"

	"github.com/sockd/sockd/families"
	"golang.org/x/sys/unix"
)

// CloseFiles closes descriptors that came with a message and that nobody wants.
func CloseFiles(files []int) {
	for _, fd := range files {
		_ = unix.Close(fd) // nobody ever used it
	}
}

// Dup is a duplicate of a descriptor that closes on exec.
func Dup(fd int) (int, error) {
	n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("duplicate descriptor %d: %w", fd, err)
	}
	return n, nil
}

// OnlyWritableBy is nil when nobody but the given users may change what names in
// a directory lead to. The error wraps EPERM and says who else may.
func OnlyWritableBy(dirfd int, users ...uint32) error {
	var st unix.Stat_t
	if err := unix.Fstat(dirfd, &st); err != nil {
		return fmt.Errorf("look at the socket's directory: %w", err)
	}
	if !slices.Contains(users, st.Uid) {
		return fmt.Errorf("the socket is a new one and its directory belongs to user %d: %w", st.Uid, unix.EPERM)
	}
	// An ACL that lets others write shows in the group's bits (acl(5), mask).
	if st.Mode&0o022 != 0 {
		return fmt.Errorf("the socket is a new one and its directory (mode %#o) is open to others: %w", st.Mode&0o7777, unix.EPERM)
	}
	return nil
}

// FrameReader receives whole frames from a packet socket with their VLAN tags,
// which the kernel takes out of each frame and tells beside it (PACKET_AUXDATA,
// packet(7)). It is for one goroutine and allocates nothing for a frame.
type FrameReader struct {
	d       families.Descriptor
	hdr     unix.Msghdr
	iov     unix.Iovec
	control [8]uint64 // one tpacket_auxdata; words, because control data is aligned
	n       int
	errno   syscall.Errno
	attempt func(fd int) error
}

// Frame tells of a frame that was received.
type Frame struct {
	Len  int // on the wire, with a virtio_net_hdr where the socket has them; more than the room: it was cut
	TPID uint16
	TCI  uint16
	// Tagged: the frame has a VLAN tag, TPID and TCI, that is not among its bytes.
	Tagged bool
}

// NewFrameReader makes a reader of s, a packet socket, and asks the kernel for the
// tags.
func NewFrameReader(s families.Socket) (*FrameReader, error) {
	d, err := families.As[families.Descriptor](s)
	if err != nil {
		return nil, err
	}
	r := &FrameReader{d: d}
	r.attempt = func(fd int) error {
		for {
			n, _, errno := unix.Syscall(unix.SYS_RECVMSG, uintptr(fd), uintptr(unsafe.Pointer(&r.hdr)), unix.MSG_DONTWAIT|unix.MSG_TRUNC)
			if errno != unix.EINTR {
				r.n, r.errno = int(n), errno
				return nil
			}
		}
	}
	err = d.Control(func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_AUXDATA, 1) })
	if err != nil {
		return nil, fmt.Errorf("ask for VLAN tags: %w", err)
	}
	return r, nil
}

// Recv is one attempt to receive a frame into room, with errors as in
// families.Socket; ErrCut comes with the frame's full length.
func (r *FrameReader) Recv(room []byte) (Frame, error) {
	r.iov.Base = &room[0]
	r.iov.SetLen(len(room))
	r.hdr = unix.Msghdr{Iov: &r.iov, Control: (*byte)(unsafe.Pointer(&r.control))}
	r.hdr.SetIovlen(1)
	r.hdr.SetControllen(len(r.control) * 8)
	if err := r.d.Control(r.attempt); err != nil {
		return Frame{}, net.ErrClosed
	}
	r.iov.Base = nil // the room is the caller's
	switch {
	case r.errno == unix.EAGAIN:
		return Frame{}, families.ErrAgain
	case r.errno != 0:
		return Frame{}, &families.OpError{Op: "recv", Family: "packet", Err: r.errno}
	}
	f := Frame{Len: r.n}
	r.tag(&f)
	if f.Len > len(room) {
		return f, families.ErrCut
	}
	return f, nil
}

// tag reads the VLAN tag out of the control message.
func (r *FrameReader) tag(f *Frame) {
	const size = unix.SizeofCmsghdr + int(unsafe.Sizeof(unix.TpacketAuxdata{}))
	h := (*unix.Cmsghdr)(unsafe.Pointer(&r.control))
	if int(r.hdr.Controllen) < size || h.Level != unix.SOL_PACKET || h.Type != unix.PACKET_AUXDATA {
		return
	}
	aux := (*unix.TpacketAuxdata)(unsafe.Add(unsafe.Pointer(&r.control), unix.CmsgLen(0)))
	if aux.Status&unix.TP_STATUS_VLAN_VALID == 0 {
		return
	}
	f.Tagged, f.TCI, f.TPID = true, aux.Vlan_tci, unix.ETH_P_8021Q
	if aux.Status&unix.TP_STATUS_VLAN_TPID_VALID != 0 {
		f.TPID = aux.Vlan_tpid
	}
}

// Interface is the name of the interface that a packet socket is bound to, in the
// socket's own network namespace, and whether it is up. One that was deleted is
// ENODEV.
func Interface(s families.Socket) (name string, up bool, err error) {
	d, err := families.As[families.Descriptor](s)
	if err != nil {
		return "", false, err
	}
	err = d.Control(func(fd int) error {
		name, up, err = interfaceOf(fd)
		return err
	})
	return name, up, err
}

func interfaceOf(fd int) (name string, up bool, err error) {
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return "", false, fmt.Errorf("ask for the interface: %w", err)
	}
	link, ok := sa.(*unix.SockaddrLinklayer)
	if !ok {
		return "", false, fmt.Errorf("ask for the interface of a %T: %w", sa, families.ErrNotSupported)
	}
	req, err := unix.NewIfreq("")
	if err != nil {
		return "", false, err
	}
	req.SetUint32(uint32(link.Ifindex))
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFNAME, req); err != nil {
		return "", false, fmt.Errorf("ask for interface %d: %w", link.Ifindex, err)
	}
	name = req.Name()
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, req); err != nil {
		return "", false, fmt.Errorf("ask for the state of %s: %w", name, err)
	}
	return name, req.Uint16()&unix.IFF_UP != 0, nil
}
