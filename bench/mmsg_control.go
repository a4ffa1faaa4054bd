package main

import (
	"os"
	"syscall"
	"unsafe"
)

// From linux/udp.h; the standard library has neither.
const (
	udpSegment = 103 // sent: how long each datagram of a burst is
	udpGRO     = 104 // received: the same
)

// joinDatagrams lets a UDP socket take bursts in one piece (UDP_GRO, from Linux 5.0).
func joinDatagrams(fd int) error {
	return os.NewSyscallError("setsockopt UDP_GRO", syscall.SetsockoptInt(fd, syscall.IPPROTO_UDP, udpGRO, 1))
}

// control is room for the control messages of one message: IP_PKTINFO of ip(7), and
// UDP_SEGMENT or UDP_GRO. It is aligned as struct cmsghdr is.
type control [controlRoom / 8]uint64

// controlRoom is more than both take: CMSG_SPACE(12) and CMSG_SPACE(4).
const controlRoom = 64

// put writes the header of a control message at an offset. It returns where its n
// bytes of data are, and the offset of the next one.
func (c *control) put(at int, level, kind int32, n int) (data unsafe.Pointer, next int) {
	h := (*syscall.Cmsghdr)(unsafe.Add(unsafe.Pointer(c), at))
	h.Level, h.Type = level, kind
	h.SetLen(syscall.CmsgLen(n))
	return unsafe.Add(unsafe.Pointer(c), at+syscall.CmsgLen(0)), at + syscall.CmsgSpace(n)
}

// putSource sets the source address of what is sent.
func (c *control) putSource(at int, from [4]byte) (next int) {
	data, next := c.put(at, syscall.IPPROTO_IP, syscall.IP_PKTINFO, syscall.SizeofInet4Pktinfo)
	*(*syscall.Inet4Pktinfo)(data) = syscall.Inet4Pktinfo{Spec_dst: from}
	return next
}

// putSegment makes a burst of what is sent, in datagrams of so many bytes.
func (c *control) putSegment(at, size int) (next int) {
	data, next := c.put(at, syscall.IPPROTO_UDP, udpSegment, 2)
	*(*uint16)(data) = uint16(size)
	return next
}

// read finds in n bytes of received control messages where the message was sent to,
// and how long its datagrams are; zero where the kernel did not say.
func (c *control) read(n int) (to [4]byte, segment int) {
	n = min(n, controlRoom)
	for at := 0; at+syscall.SizeofCmsghdr <= n; {
		h := (*syscall.Cmsghdr)(unsafe.Add(unsafe.Pointer(c), at))
		length := int(h.Len) - syscall.CmsgLen(0)
		data := unsafe.Add(unsafe.Pointer(c), at+syscall.CmsgLen(0))
		switch {
		case length < 0 || length > n-at-syscall.CmsgLen(0):
			return to, segment // none that a kernel writes
		case h.Level == syscall.IPPROTO_IP && h.Type == syscall.IP_PKTINFO && length >= syscall.SizeofInet4Pktinfo:
			to = (*syscall.Inet4Pktinfo)(data).Addr
		case h.Level == syscall.IPPROTO_UDP && h.Type == udpGRO && length >= 4:
			segment = int(*(*int32)(data))
		}
		at += syscall.CmsgSpace(length)
	}
	return to, segment
}
