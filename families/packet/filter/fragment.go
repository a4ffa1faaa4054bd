package filter

import "encoding/binary"

// fragment is what the headers of an IP fragment say.
type fragment struct {
	datagram datagram
	span
	last bool // to is the length of the whole
	more int  // of IPv6: where the fragment header stands in the frame
	from int  // and the byte that says it is there
}

// first tells whether it is the fragment that has the headers behind IP.
func (f *fragment) first() bool { return f.begin == 0 }

// span is a part of a datagram: bytes behind the IP header.
type span struct{ begin, end int }

// datagram tells apart whose fragments are whose: what IP says, and where the packet was seen, for
// a host that forwards sees each twice.
type datagram struct {
	src, dst  [16]byte
	id        uint32
	iface     uint32
	tags      [mostTags]uint16
	direction Direction
	v6        bool
	protocol  byte // of IPv4
}

// network is how to find the IP header of a frame.
type network struct {
	kind, body int  // where the protocol's number stands, and where the header does without VLAN tags
	typed      bool // there is such a number, an EtherType
}

func networkOf(link LinkType) network {
	start := starts[link]
	return network{
		kind:  int(start.kind.k),
		body:  int(start.body.k),
		typed: link == Ethernet || link == LinuxSLL || link == LinuxSLL2,
	}
}

// fragmentOf reads the headers of a frame, false when it is no fragment: a datagram without
// such headers, no IP, or too short to tell.
func fragmentOf(n network, p *Packet) (f fragment, ok bool) {
	at, v6, ok := n.find(p.Data, &f.datagram.tags)
	if !ok {
		return f, false
	}
	if v6 {
		ok = f.read6(p.Data, at)
	} else {
		ok = f.read4(p.Data[at:])
	}
	f.datagram.iface, f.datagram.direction, f.datagram.v6 = p.Interface, p.Direction, v6
	return f, ok
}

// find is where an IP header begins, and of which version. There are 20 bytes from there on.
func (n network) find(data []byte, tags *[mostTags]uint16) (at int, v6, ok bool) {
	at = n.body
	if len(data) < at+20 {
		return 0, false, false
	}
	if !n.typed {
		return at, data[at]>>4 == 6, data[at]>>4 == 4 || data[at]>>4 == 6
	}
	at, kind, ok := behindTags(data, at, binary.BigEndian.Uint16(data[n.kind:]), tags)
	return at, kind == etherIP6, ok && (kind == etherIP || kind == etherIP6)
}

// behindTags is where the header behind VLAN tags begins, and its EtherType. There are
// 20 bytes from there on.
func behindTags(data []byte, at int, kind uint16, tags *[mostTags]uint16) (int, uint16, bool) {
	for i := range tags {
		if kind != etherVLAN && kind != etherService && kind != etherQinQ {
			break
		}
		tags[i] = binary.BigEndian.Uint16(data[at:])&0xfff + 1
		kind = binary.BigEndian.Uint16(data[at+2:])
		if at += 4; len(data) < at+20 {
			return 0, 0, false
		}
	}
	return at, kind, true
}

// read4 reads an IPv4 header; there are 20 bytes.
func (f *fragment) read4(h []byte) bool {
	const moreFragments, offset = 0x2000, 0x1fff
	flags := binary.BigEndian.Uint16(h[6:])
	if flags&(moreFragments|offset) == 0 {
		return false
	}
	length := int(binary.BigEndian.Uint16(h[2:])) - int(h[0]&0xf)*4
	f.place(int(flags&offset)*8, length, flags&moreFragments == 0)
	d := &f.datagram
	d.id, d.protocol = uint32(binary.BigEndian.Uint16(h[4:])), h[9]
	copy(d.src[:], h[12:16])
	copy(d.dst[:], h[16:20])
	return length > 0
}

// read6 looks for the fragment header among those that IPv6 can have before it.
func (f *fragment) read6(data []byte, ip int) bool {
	const header = 40
	at := ip + header
	if len(data) < at {
		return false
	}
	f.from = ip + 6
	for len(data) >= at+8 {
		switch data[f.from] {
		case ipFragment:
			return f.readExtension(data, ip, at)
		case ipHopByHop, ipRouting, ipDestination:
			f.from, at = at, at+8*(1+int(data[at+1]))
		default:
			return false
		}
	}
	return false
}

// readExtension reads the fragment header at an offset. Of an atomic fragment (RFC 6946) it is the first and
// the last.
func (f *fragment) readExtension(data []byte, ip, at int) bool {
	offset := binary.BigEndian.Uint16(data[at+2:])
	length := ip + 40 + int(binary.BigEndian.Uint16(data[ip+4:])) - (at + 8)
	f.place(int(offset&^7), length, offset&1 == 0)
	f.more = at
	d := &f.datagram
	d.id = binary.BigEndian.Uint32(data[at+4:])
	copy(d.src[:], data[ip+8:])
	copy(d.dst[:], data[ip+24:])
	return length > 0
}

func (f *fragment) place(begin, length int, last bool) {
	f.span, f.last = span{begin, begin + length}, last
}

// whole writes an IPv6 packet as it is without its fragment header to buf, and returns that. Ports
// and protocols of a filter are those right behind the IP header, so without this no filter could
// tell what a first fragment is of.
func (f *fragment) whole(buf, data []byte) []byte {
	next := data[f.more]
	buf = append(buf[:0], data[:f.more]...)
	buf[f.from] = next
	return append(buf, data[f.more+8:]...)
}

// mostSpans is how many separate parts of a datagram are told apart. In order, in reverse
// order, and for two paths there are three at most.
const mostSpans = 8

// coverage tells when all of a datagram was seen.
type coverage struct {
	spans [mostSpans]span // apart from each other, in no order
	n     int
	total int // 0: not known
}

// add notes a fragment. When there are too many parts it forgets this one; then
// the datagram never becomes complete.
func (c *coverage) add(f *fragment) {
	if f.last {
		c.total = f.end
	}
	s := f.span
	for i := 0; i < c.n; {
		o := c.spans[i]
		if o.end < s.begin || s.end < o.begin {
			i++
			continue
		}
		s = span{min(s.begin, o.begin), max(s.end, o.end)}
		c.n--
		c.spans[i] = c.spans[c.n]
		i = 0 // what it touches now may be behind us
	}
	if c.n < mostSpans {
		c.spans[c.n] = s
		c.n++
	}
}

// complete tells whether the parts are the whole.
func (c *coverage) complete() bool {
	return c.total > 0 && c.n == 1 && c.spans[0].begin == 0 && c.spans[0].end >= c.total
}
