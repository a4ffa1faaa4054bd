package ksock

import (
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Datagrams in batches, for an event loop: recvmmsg(2) and sendmmsg(2) on bare
// descriptors with all that the kernel reads and writes made once. Runs of datagrams
// travel as one where the kernel has UDP_GRO and UDP_SEGMENT (udp(7)): it then goes
// through the stack once for up to 64 of them.
//
//	Inbox:  slot 0 │ slot 1 │ ...        one datagram each, or a run that was received as one
//	           └──────┴──┐
//	Outbox: parcel ◄─ piece, piece, ...  equal ones to one destination leave as one

// BatchSize is how many datagrams, or runs, one call moves. More gains nothing
// measurable and makes the working set larger than a first-level cache.
const BatchSize = 32

const (
	// slotRoom holds the largest datagram and the largest run, both of which an IP
	// packet's 65535 bytes bound.
	slotRoom = 64 << 10
	// slotStep keeps the beginnings of slots from falling into the same cache lines'
	// sets, as multiples of a page would.
	slotStep = slotRoom + 3*64
)

// What one run may be: UDP_MAX_SEGMENTS of the kernel before 6.9, and the largest
// UDP payload of an IPv4 packet, which is the smaller one.
const (
	maxSegments = 64
	maxPayload  = 65507
)

// AnySegment, as the MaxSegment of a Dest, leaves it to the kernel what a route takes.
const AnySegment = maxPayload

// mmsghdr is struct mmsghdr of recvmmsg(2).
type mmsghdr struct {
	hdr unix.Msghdr
	n   uint32
	_   [4]byte
}

// Inbox receives batches. It belongs to one goroutine.
type Inbox struct {
	msgs  [BatchSize]mmsghdr
	iovs  [BatchSize]unix.Iovec
	peers [BatchSize]Peer
	infos [BatchSize]controlRoom
	room  []byte
}

// Datagram is what lies in one slot of an Inbox, until the slot receives again.
type Datagram struct {
	Data []byte
	// Segment is the length of each datagram of a run, of which the last may be
	// shorter; 0: Data is one datagram.
	Segment int
	// Peer is who sent it, where the receiver asked for names.
	Peer *Peer
	// Local is the address that it was sent to, where the socket tells (TellLocal);
	// zero: unknown.
	Local Local
	// Cut: it was longer than any datagram can be, and Data is its beginning.
	Cut bool
}

// NewInbox makes an Inbox with room for BatchSize of the largest datagrams, about 2
// MiB, of which only those pages are real that were received into.
func NewInbox() *Inbox {
	b := &Inbox{room: make([]byte, BatchSize*slotStep)}
	for i := range b.msgs {
		b.iovs[i].Base = &b.room[i*slotStep]
		b.iovs[i].SetLen(slotRoom)
		b.msgs[i].hdr.Iov = &b.iovs[i]
		b.msgs[i].hdr.SetIovlen(1)
		b.arm(i)
	}
	return b
}

// arm makes a slot ready to receive: the kernel shortens what it has filled.
func (b *Inbox) arm(i int) {
	h := &b.msgs[i].hdr
	h.Name, h.Namelen = (*byte)(unsafe.Pointer(&b.peers[i])), uint32(unsafe.Sizeof(b.peers[i]))
	h.Control = (*byte)(unsafe.Pointer(&b.infos[i]))
	h.SetControllen(len(b.infos[i]) * 8)
	h.Flags = 0
}

// Recv is one attempt to receive into the slots from first on. Fewer than there are
// slots means that the queue is empty now: more will be an edge of a Poller. The
// error is EAGAIN, or what the socket has to tell of earlier datagrams.
func (b *Inbox) Recv(f FD, first int) (n int, err error) {
	for {
		r, _, errno := unix.RawSyscall6(unix.SYS_RECVMMSG, uintptr(f), uintptr(unsafe.Pointer(&b.msgs[first])), uintptr(BatchSize-first), unix.MSG_DONTWAIT, 0, 0)
		if errno != unix.EINTR {
			return count(r, errno)
		}
	}
}

// Take reads slot i, once after each Recv that filled it, and makes it ready for the
// next.
func (b *Inbox) Take(i int) Datagram {
	m := &b.msgs[i]
	at := i * slotStep
	d := Datagram{
		Data: b.room[at : at+int(m.n) : at+slotRoom],
		Peer: &b.peers[i],
		Cut:  m.hdr.Flags&unix.MSG_TRUNC != 0,
	}
	if m.hdr.Controllen > 0 {
		b.infos[i].read(int(m.hdr.Controllen), &d)
	}
	b.peers[i].cut(m.hdr.Namelen)
	b.arm(i)
	return d
}

// controlRoom is room for what the kernel tells beside a datagram: two addresses of
// a dual-stack socket (IP_PKTINFO, IPV6_PKTINFO), and UDP_GRO's int. Words, because
// control data is aligned.
type controlRoom [16]uint64

// read takes what is known out of control data of n bytes.
func (c *controlRoom) read(n int, d *Datagram) {
	rest := unsafe.Slice((*byte)(unsafe.Pointer(c)), len(c)*8)[:min(n, len(c)*8)]
	for len(rest) >= unix.SizeofCmsghdr {
		h := (*unix.Cmsghdr)(unsafe.Pointer(&rest[0]))
		size := int(h.Len)
		if size < unix.SizeofCmsghdr || size > len(rest) {
			return
		}
		readControl(h, rest[unix.SizeofCmsghdr:size], d)
		rest = rest[min(unix.CmsgSpace(size-unix.SizeofCmsghdr), len(rest)):]
	}
}

func readControl(h *unix.Cmsghdr, data []byte, d *Datagram) {
	switch {
	case h.Level == unix.SOL_UDP && h.Type == unix.UDP_GRO && len(data) >= 4:
		// A run of one is no run, and a segment of the whole is none either.
		if s := int(*(*int32)(unsafe.Pointer(&data[0]))); s < len(d.Data) {
			d.Segment = s
		}
	case h.Level == unix.SOL_IP && h.Type == unix.IP_PKTINFO && len(data) >= unix.SizeofInet4Pktinfo:
		d.Local = local4((*unix.Inet4Pktinfo)(unsafe.Pointer(&data[0])))
	case h.Level == unix.SOL_IPV6 && h.Type == unix.IPV6_PKTINFO && len(data) >= unix.SizeofInet6Pktinfo && d.Local == Local{}:
		d.Local = local6((*unix.Inet6Pktinfo)(unsafe.Pointer(&data[0])))
	}
}

// Outbox sends batches. What is added is not copied: it stays the adder's, and as it
// is until it was sent. An Outbox belongs to one goroutine.
type Outbox struct {
	parcels [BatchSize]Parcel
	msgs    [BatchSize]mmsghdr
	infos   [BatchSize]controlRoom
	iovs    [BatchSize]unix.Iovec
	n       int // parcels
	pieces  int // iovs in use
	single  mmsghdr
	piece   unix.Iovec
}

// Parcel is one message to the kernel: a datagram, or a run of them. After Send its
// counters say what became of it; those that are neither sent nor lost are left, as
// when the socket takes no more now.
type Parcel struct {
	// Tag is the adder's.
	Tag any
	// Datagrams and Bytes are what the parcel holds.
	Datagrams, Bytes int
	// Sent and SentBytes are what the kernel took.
	Sent, SentBytes int
	// Lost and LostBytes are what it refused, last with Err.
	Lost, LostBytes int
	Err             syscall.Errno
	// Whole: the kernel was given a run and refused it as one, so that its datagrams
	// went one by one. It would refuse the next one, too.
	Whole bool

	// Segment is the length of a run's datagrams.
	Segment int

	to            *Peer
	from          Local
	first, pieces int
	open          bool // more can travel with it
	apart         bool // a run that the route is known to refuse as one
}

// Dest is where a datagram is to go.
type Dest struct {
	Tag any
	// To is nil on a connected socket.
	To *Peer
	// From is the source address to send from; zero: the socket's, or the route's.
	From Local
	// MaxSegment is the longest datagram of a run that the route takes; 0: no runs.
	MaxSegment int
}

// Len is how many parcels there are.
func (o *Outbox) Len() int { return o.n }

// Parcel is the i-th.
func (o *Outbox) Parcel(i int) *Parcel { return &o.parcels[i] }

// Full tells whether Add may have no room.
func (o *Outbox) Full() bool { return o.pieces == BatchSize }

// Add puts a datagram, or a run of them, at the end, after what it may travel with
// when the same Tag was added last. The Outbox must not be Full.
func (o *Outbox) Add(data []byte, segment int, to Dest) {
	if o.join(data, segment, &to) {
		return
	}
	p := &o.parcels[o.n]
	*p = Parcel{Tag: to.Tag, Datagrams: Segments(len(data), segment), Bytes: len(data), to: to.To, from: to.From, Segment: segment, first: o.pieces, pieces: 1}
	if segment == 0 {
		p.Segment = len(data)
	}
	runs := p.Segment <= to.MaxSegment && hasSegment()
	p.open = runs && len(data) > 0 && len(data)%p.Segment == 0
	p.apart = p.Datagrams > 1 && !runs
	o.n++
	o.append(data)
}

func (o *Outbox) append(data []byte) {
	v := &o.iovs[o.pieces]
	v.Base = unsafe.SliceData(data)
	v.SetLen(len(data))
	o.pieces++
}

// join adds data to the last parcel, if all that is there is as long as it, except
// the very last, which ends the run.
func (o *Outbox) join(data []byte, segment int, to *Dest) bool {
	if o.n == 0 || len(data) == 0 {
		return false
	}
	p := &o.parcels[o.n-1]
	if !p.open || p.Tag != to.Tag {
		return false
	}
	n := Segments(len(data), segment)
	if segment == 0 {
		segment = len(data)
	}
	short := n == 1 && segment < p.Segment
	if segment != p.Segment && !short || p.Bytes+len(data) > maxPayload || p.Datagrams+n > maxSegments {
		return false
	}
	p.open = len(data)%p.Segment == 0
	p.Datagrams += n
	p.Bytes += len(data)
	p.pieces++
	o.append(data)
	return true
}

// Segments is how many datagrams n bytes in a run with a segment length are.
func Segments(n, segment int) int {
	if segment <= 0 || n == 0 {
		return 1
	}
	return (n + segment - 1) / segment
}

// Cut gives each datagram of a run, or the one that data is.
func Cut(data []byte, segment int) func(yield func([]byte) bool) {
	return func(yield func([]byte) bool) {
		for {
			n := len(data)
			if segment > 0 {
				n = min(n, segment)
			}
			if !yield(data[:n]) {
				return
			}
			if data = data[n:]; len(data) == 0 {
				return
			}
		}
	}
}

// Send gives the kernel all parcels, in order. EAGAIN: the socket takes no more now;
// what is left is told by the parcels (Rest). An error that concerns one parcel is in
// it, and those behind it go on.
//
// A socket also tells errors of earlier datagrams in the place of sending one, each
// once: so each error is a parcel's own only when it comes twice.
func (o *Outbox) Send(f FD) error {
	for i := range o.n {
		o.prepare(i)
	}
	retried := false
	for i := 0; i < o.n; {
		n, errno := o.sendFrom(f, i)
		for range n {
			o.parcels[i].all()
			i++
		}
		switch {
		case errno == 0:
			retried = false
		case errno == unix.EAGAIN:
			return errno
		case errno == errApart || retried && o.parcels[i].Datagrams > 1 && refusesRuns(errno):
			if err := o.sendApart(f, i); err != nil {
				return err
			}
			i, retried = i+1, false
		case !retried:
			retried = true
		default:
			o.parcels[i].lose(errno)
			i, retried = i+1, false
		}
	}
	return nil
}

// errApart stands for a run that the route is known to refuse. No kernel says it.
const errApart = syscall.Errno(1 << 20)

// sendFrom sends parcels from the i-th on, up to one that goes apart.
func (o *Outbox) sendFrom(f FD, i int) (int, syscall.Errno) {
	end := i
	for end < o.n && !o.parcels[end].apart {
		end++
	}
	if end == i {
		return 0, errApart
	}
	return o.call(f, i, end)
}

// Left tells whether some of the parcel is neither sent nor lost.
func (p *Parcel) Left() bool { return p.Sent+p.Lost < p.Datagrams }

// Reset empties the Outbox.
func (o *Outbox) Reset() {
	clear(o.parcels[:o.n]) // tags and addresses are the adder's
	for i := range o.iovs[:o.pieces] {
		o.iovs[i].Base = nil
	}
	o.n, o.pieces = 0, 0
}

func (p *Parcel) all() { p.Sent, p.SentBytes = p.Datagrams, p.Bytes }

func (p *Parcel) lose(errno syscall.Errno) {
	p.Lost, p.LostBytes, p.Err = p.Datagrams, p.Bytes, errno
}

// refusesRuns tells whether an error can be that of a run alone: a segment larger
// than the route's MTU (EINVAL, or EMSGSIZE since Linux 6.15), no checksum offload or
// a tunnel (EIO).
func refusesRuns(errno syscall.Errno) bool {
	return errno == unix.EIO || errno == unix.EINVAL || errno == unix.EMSGSIZE
}

// prepare writes the headers of a parcel.
func (o *Outbox) prepare(i int) {
	p, h := &o.parcels[i], &o.msgs[i].hdr
	h.Iov = &o.iovs[p.first]
	h.SetIovlen(p.pieces)
	h.Name, h.Namelen = p.to.sockaddr()
	segment := 0
	if p.Datagrams > 1 {
		segment = p.Segment
	}
	h.Control = (*byte)(unsafe.Pointer(&o.infos[i]))
	h.SetControllen(o.infos[i].write(p.from, p.to, segment))
	h.Flags = 0
}

// call sends the parcels from i to end.
func (o *Outbox) call(f FD, i, end int) (int, syscall.Errno) {
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, uintptr(f), uintptr(unsafe.Pointer(&o.msgs[i])), uintptr(end-i), unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case 0:
			return int(n), 0
		case unix.EINTR:
		default:
			return 0, errno
		}
	}
}

// sendApart sends the datagrams of a run one by one, in order.
func (o *Outbox) sendApart(f FD, i int) error {
	p := &o.parcels[i]
	p.Whole = true
	for data := range p.rest(o) {
		switch errno := o.sendOne(f, p, data); errno {
		case 0:
			p.Sent++
			p.SentBytes += len(data)
		case unix.EAGAIN:
			return errno
		default:
			p.Lost++
			p.LostBytes += len(data)
			p.Err = errno
		}
	}
	return nil
}

// sendOne sends one datagram of a parcel.
func (o *Outbox) sendOne(f FD, p *Parcel, data []byte) syscall.Errno {
	o.piece.Base = unsafe.SliceData(data)
	o.piece.SetLen(len(data))
	h := &o.single.hdr
	h.Iov = &o.piece
	h.SetIovlen(1)
	h.Name, h.Namelen = p.to.sockaddr()
	var info controlRoom
	h.Control = (*byte)(unsafe.Pointer(&info))
	h.SetControllen(info.write(p.from, p.to, 0))
	for retried := false; ; {
		_, _, errno := unix.RawSyscall(unix.SYS_SENDMSG, uintptr(f), uintptr(unsafe.Pointer(h)), unix.MSG_DONTWAIT)
		switch {
		case errno == unix.EINTR:
		case errno == 0, errno == unix.EAGAIN, retried:
			return errno
		default:
			retried = true // it may be of an earlier datagram
		}
	}
}

// Rest gives the datagrams of parcel i that are neither sent nor lost, in order.
func (o *Outbox) Rest(i int) func(yield func([]byte) bool) { return o.parcels[i].rest(o) }

func (p *Parcel) rest(o *Outbox) func(yield func([]byte) bool) {
	done := p.Sent + p.Lost
	return func(yield func([]byte) bool) {
		at := 0
		for _, v := range o.iovs[p.first : p.first+p.pieces] {
			for data := range Cut(unsafe.Slice(v.Base, int(v.Len)), p.Segment) {
				if at >= done && !yield(data) {
					return
				}
				at++
			}
		}
	}
}

// write fills control data: the source address and the length of a run's datagrams.
// It returns how many bytes it took, 0 for nothing to say.
func (c *controlRoom) write(from Local, to *Peer, segment int) int {
	n := 0
	switch {
	case from == Local{} || to == nil:
	case from.is4():
		h := c.header(0, unix.SOL_IP, unix.IP_PKTINFO, unix.SizeofInet4Pktinfo)
		*(*unix.Inet4Pktinfo)(h) = from.pktinfo4()
		n = unix.CmsgSpace(unix.SizeofInet4Pktinfo)
	default:
		h := c.header(0, unix.SOL_IPV6, unix.IPV6_PKTINFO, unix.SizeofInet6Pktinfo)
		*(*unix.Inet6Pktinfo)(h) = unix.Inet6Pktinfo{Addr: from.Addr, Ifindex: from.Interface}
		n = unix.CmsgSpace(unix.SizeofInet6Pktinfo)
	}
	if segment > 0 {
		*(*uint16)(c.header(n, unix.SOL_UDP, unix.UDP_SEGMENT, 2)) = uint16(segment)
		n += unix.CmsgSpace(2)
	}
	return n
}

// header writes a cmsghdr at offset at and returns where its data goes.
func (c *controlRoom) header(at int, level, typ int32, size int) unsafe.Pointer {
	h := (*unix.Cmsghdr)(unsafe.Add(unsafe.Pointer(c), at))
	h.Level, h.Type = level, typ
	h.SetLen(unix.CmsgLen(size))
	return unsafe.Add(unsafe.Pointer(h), unix.CmsgLen(0))
}

// offloads is what the kernel has, asked once: 0 unknown, 1 yes, 2 no.
var offloads struct{ segment atomic.Int32 }

// hasSegment tells whether the kernel knows UDP_SEGMENT (since Linux 4.18).
func hasSegment() bool {
	switch offloads.segment.Load() {
	case 1:
		return true
	case 2:
		return false
	}
	has := int32(2)
	if fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err == nil {
		if _, err := unix.GetsockoptInt(fd, unix.SOL_UDP, unix.UDP_SEGMENT); err == nil {
			has = 1
		}
		_ = unix.Close(fd) // nothing was sent
	}
	offloads.segment.Store(has)
	return has == 1
}
