package relay

import (
	"encoding/binary"
	"errors"
	"io"
)

// A packet socket with PACKET_VNET_HDR gives each frame with a struct
// virtio_net_hdr in front (linux/virtio_net.h), in the host's byte order:
//
//	0 flags  1 gso_type  2 hdr_len  4 gso_size  6 csum_start  8 csum_offset
//
// It says what hardware would still do: a checksum to complete, one large frame
// to cut into segments. Between two packet sockets it goes along with the frame.
// Whoever gets the frame as a message sees it as a wire would: segmenter does the
// hardware's work.
const vnetLen = 10

const (
	vnetNeedsChecksum = 1 // flags

	gsoNone  = 0 // gso_type
	gsoTCP4  = 1
	gsoTCP6  = 4
	gsoUDP   = 5    // UDP_L4: each segment is a datagram with a header of its own
	gsoECN   = 0x80 // with TCP: the CWR flag belongs to the first segment
	etherLen = 14
	vlanLen  = 4
)

const (
	tcpFIN = 0x01
	tcpPSH = 0x08
	tcpCWR = 0x80
)

var errFrame = errors.New("a frame that does not fit its virtio_net_hdr")

// segmenter turns one frame with its virtio_net_hdr into the frames that would
// have been on the wire. reset gives it a frame, then next gives the frames until
// io.EOF; each is valid until the following next.
type segmenter struct {
	whole []byte // a frame that need not be cut; nil when it was given
	err   error

	// Of a frame that is cut:
	headers, payload []byte
	l3, l4           int // where the IP and the TCP or UDP header begin
	size             int // payload bytes a segment
	done             int // payload bytes that were given
	index            int // segments that were given
	tcp, v6          bool
	out              []byte
}

// reset takes a frame. It completes checksums in place.
func (g *segmenter) reset(fr []byte) {
	*g = segmenter{out: g.out}
	h, f := fr[:vnetLen], fr[vnetLen:]
	kind := h[1] &^ gsoECN
	start := int(binary.NativeEndian.Uint16(h[6:]))
	offset := int(binary.NativeEndian.Uint16(h[8:]))
	needs := h[0]&vnetNeedsChecksum != 0
	switch {
	case kind == gsoNone && needs:
		g.whole, g.err = f, complete(f, start, offset)
	case kind == gsoNone:
		g.whole = f
	case !needs:
		g.err = errFrame // the kernel always says where the checksum of a GSO frame is
	default:
		g.err = g.split(f, kind, start, int(binary.NativeEndian.Uint16(h[4:])))
	}
}

// next is the next frame, io.EOF after the last, or why there is none.
func (g *segmenter) next() ([]byte, error) {
	switch {
	case g.err != nil:
		return nil, g.err
	case g.whole != nil:
		f := g.whole
		g.whole, g.err = nil, io.EOF
		return f, nil
	case g.headers == nil || g.done >= len(g.payload):
		return nil, io.EOF
	}
	return g.segment(), nil
}

// complete finishes a checksum whose pseudo-header part stands in its place. A
// UDP checksum that comes out as 0 is sent as all ones, which means the same
// (RFC 768); TCP's cannot come out otherwise than it is.
func complete(f []byte, start, offset int) error {
	at := start + offset
	if start >= len(f) || at+2 > len(f) {
		return errFrame
	}
	c := ^fold(sum(0, f[start:]))
	if c == 0 && offset == 6 {
		c = 0xffff
	}
	binary.BigEndian.PutUint16(f[at:], c)
	return nil
}

// split looks through the headers of a GSO frame, whose TCP or UDP header begins
// at l4.
func (g *segmenter) split(f []byte, kind byte, l4, size int) error {
	l3, v6, ok := networkHeader(f)
	least := 20
	if v6 {
		least = 40
	}
	if !ok || size == 0 || l4 < l3+least || l4+8 > len(f) {
		return errFrame
	}
	end := l4 + 8
	switch kind {
	case gsoTCP4, gsoTCP6:
		if l4+20 > len(f) {
			return errFrame
		}
		g.tcp = true
		end = l4 + int(f[l4+12]>>4)*4
	case gsoUDP:
	default:
		return errFrame // UFO and what is not known yet
	}
	if end < l4+8 || end > len(f) || g.tcp && end < l4+20 || kind == gsoTCP4 && v6 || kind == gsoTCP6 && !v6 {
		return errFrame
	}
	g.headers, g.payload = f[:end], f[end:]
	g.l3, g.l4, g.size, g.v6 = l3, l4, size, v6
	if len(g.payload) == 0 {
		return errFrame
	}
	return nil
}

// networkHeader finds the IP header behind the Ethernet header and VLAN tags.
func networkHeader(f []byte) (at int, v6, ok bool) {
	if len(f) < etherLen {
		return 0, false, false
	}
	at = etherLen
	kind := binary.BigEndian.Uint16(f[12:])
	for (kind == 0x8100 || kind == 0x88a8) && len(f) >= at+vlanLen {
		kind = binary.BigEndian.Uint16(f[at+2:])
		at += vlanLen
	}
	return at, kind == 0x86dd, kind == 0x0800 || kind == 0x86dd
}

// segment makes the next frame: the headers again, with what differs.
func (g *segmenter) segment() []byte {
	piece := g.payload[g.done:min(g.done+g.size, len(g.payload))]
	g.out = append(append(g.out[:0], g.headers...), piece...)
	last := g.done+len(piece) == len(g.payload)
	g.fixNetwork()
	if g.tcp {
		g.fixTCP(last)
	} else {
		g.fixUDP()
	}
	g.done += len(piece)
	g.index++
	return g.out
}

// fixNetwork sets the lengths, IPv4's identification and its header checksum.
func (g *segmenter) fixNetwork() {
	ip := g.out[g.l3:]
	if g.v6 {
		binary.BigEndian.PutUint16(ip[4:], uint16(len(ip)-40))
		return
	}
	binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)))
	binary.BigEndian.PutUint16(ip[4:], binary.BigEndian.Uint16(ip[4:])+uint16(g.index))
	binary.BigEndian.PutUint16(ip[10:], 0)
	binary.BigEndian.PutUint16(ip[10:], ^fold(sum(0, ip[:g.l4-g.l3])))
}

func (g *segmenter) fixTCP(last bool) {
	t := g.out[g.l4:]
	binary.BigEndian.PutUint32(t[4:], binary.BigEndian.Uint32(t[4:])+uint32(g.done))
	if !last {
		t[13] &^= tcpFIN | tcpPSH
	}
	if g.index > 0 {
		t[13] &^= tcpCWR
	}
	binary.BigEndian.PutUint16(t[16:], 0)
	binary.BigEndian.PutUint16(t[16:], ^fold(sum(g.pseudo(6, len(t)), t)))
}

func (g *segmenter) fixUDP() {
	u := g.out[g.l4:]
	binary.BigEndian.PutUint16(u[4:], uint16(len(u)))
	binary.BigEndian.PutUint16(u[6:], 0)
	c := ^fold(sum(g.pseudo(17, len(u)), u))
	if c == 0 {
		c = 0xffff
	}
	binary.BigEndian.PutUint16(u[6:], c)
}

// pseudo is the sum of the pseudo-header: addresses, protocol, length.
func (g *segmenter) pseudo(protocol, length int) uint32 {
	ip := g.out[g.l3:]
	addresses := ip[12:20]
	if g.v6 {
		addresses = ip[8:40]
	}
	return sum(uint32(protocol)+uint32(length), addresses)
}

// sum adds b in 16-bit words to a checksum under way (RFC 1071). b is at most a
// frame, so that the carries fit.
func sum(acc uint32, b []byte) uint32 {
	for ; len(b) >= 2; b = b[2:] {
		acc += uint32(binary.BigEndian.Uint16(b))
		if acc >= 1<<31 {
			acc = acc&0xffff + acc>>16
		}
	}
	if len(b) == 1 {
		acc += uint32(b[0]) << 8
	}
	return acc
}

func fold(acc uint32) uint16 {
	for acc > 0xffff {
		acc = acc&0xffff + acc>>16
	}
	return uint16(acc)
}
