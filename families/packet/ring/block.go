package ring

import (
	"encoding/binary"
	"sync/atomic"
	"unsafe"

	"github.com/sockd/sockd/families/packet/pcapng"
	"golang.org/x/sys/unix"
)

// Where things lie in a block (linux/if_packet.h): struct tpacket_block_desc at its
// start, each packet as struct tpacket3_hdr, struct sockaddr_ll, gap, frame.
const (
	descOffset   = 8 // version and offset_to_priv stand before struct tpacket_hdr_v1
	statusOffset = descOffset
	// packetsOffset is num_pkts, after block_status.
	packetsOffset = descOffset + 4
	headerLen     = 48 // sizeof(struct tpacket3_hdr), aligned to 16
	sockaddrEnd   = headerLen + unix.SizeofSockaddrLinklayer
	vlanTagLen    = 4
	macPairLen    = 12 // destination and source, before the tag
	frameAlign    = 8  // V3_ALIGNMENT: every header lies so
)

// reserve is what the kernel leaves in front of a packet beyond its own 16 bytes
// (tpacket_rcv): the network header comes at 96 + reserve = 102 from the packet's
// struct tpacket3_hdr, or 16 more where the link header is longer than 28 bytes. So
// the room between struct sockaddr_ll and the network header always holds a LinuxSLL2
// header and a VLAN tag (34 of 24 bytes), and that before a link header a tag. And an Ethernet frame
// begins at 88, or at 84 with its tag put back, which is a place that 32-bit words may have.
const reserve = 6

// PacketType is sll_pkttype of packet(7): whom a packet was for.
type PacketType uint8

// The packet types.
const (
	Host      PacketType = unix.PACKET_HOST
	Broadcast PacketType = unix.PACKET_BROADCAST
	Multicast PacketType = unix.PACKET_MULTICAST
	OtherHost PacketType = unix.PACKET_OTHERHOST
	Outgoing  PacketType = unix.PACKET_OUTGOING
)

// Frame is one packet. Its memory is the ring's.
type Frame struct {
	// Data is the frame as it was on the wire, its VLAN tag put back, or cooked
	// with a LinuxSLL2 header: see Link. It is valid until the block is released.
	Data []byte
	// Len is the frame's length on the wire: more than len(Data) when it was cut.
	Len int
	// Time is when the kernel saw it, in nanoseconds since 1970.
	Time int64
	// Ifindex is the interface that it went through.
	Ifindex int
	Type    PacketType
	// Hardware is the ARPHRD_ type of the interface, and Link what Data begins with:
	// LinkOf(Hardware).
	Hardware uint16
	Link     pcapng.LinkType
	// Loopback tells that the interface is a loopback, where every packet is seen
	// twice: going out and coming in.
	Loopback bool
}

// Block is a part of the ring that the kernel handed over, until Release.
type Block struct {
	ring *Ring
	mem  []byte
}

func (b *Block) desc() *unix.TpacketHdrV1 {
	return (*unix.TpacketHdrV1)(unsafe.Pointer(&b.mem[descOffset]))
}

// Len is the number of frames.
func (b *Block) Len() int { return int(min(b.desc().Num_pkts, uint32(len(b.mem)/sockaddrEnd))) }

// Seq is the kernel's number of the block, from 1, without gaps.
func (b *Block) Seq() uint64 { return b.desc().Seq_num }

// Losing tells that the kernel has dropped packets since Ring.Stats was called last:
// the gap lies before this block, unless the block before says so, too.
func (b *Block) Losing() bool { return b.desc().Block_status&unix.TP_STATUS_LOSING != 0 }

// Release gives the block back to the kernel. It must be called once, when nobody
// reads its frames any more.
func (b *Block) Release() {
	// The kernel counts from 0 again when it opens the block, which may be much
	// later; until then Ring.filling must not take the old count for packets.
	atomic.StoreUint32((*uint32)(unsafe.Pointer(&b.mem[packetsOffset])), 0)
	atomic.StoreUint32((*uint32)(unsafe.Pointer(&b.mem[statusOffset])), unix.TP_STATUS_KERNEL)
	b.ring.held.Add(-1)
	b.ring.release()
}

// Frames walks over the block's frames:
//
//	for it := b.Frames(); it.Next(); {
//		use(&it.Frame)
//	}
//
// One goroutine at a time may do so: the first walk puts VLAN tags back and headers right.
//
// The memory of an adopted socket may be written by others at any time (OpenFD). So each
// number is read once, checked, and then used, and a walk ends where one makes no sense.
func (b *Block) Frames() Frames {
	return Frames{mem: b.mem, left: uint32(b.Len()), at: b.desc().Offset_to_first_pkt}
}

// Frames is a walk over a block.
type Frames struct {
	// Frame is the one that the last Next found.
	Frame Frame

	mem      []byte
	at, left uint32
}

// Next goes to the next frame. It is false after the last one.
func (f *Frames) Next() bool {
	h, ll := f.advance()
	if h == nil {
		return false
	}
	hardware := ll.Hatype
	link := LinkOf(hardware)
	if link != pcapng.Ethernet || h.Status&unix.TP_STATUS_VLAN_VALID != 0 {
		rebuild(f.mem[f.at:], h, ll, link)
	}
	start := uint64(f.at) + uint64(h.Mac)
	end := start + uint64(h.Snaplen)
	if end > uint64(len(f.mem)) || end < start {
		f.left = 0
		return false
	}
	// Field by field: a whole one is made elsewhere and copied.
	to := &f.Frame
	to.Data = f.mem[start:end:end]
	to.Len = int(h.Len)
	to.Time = int64(h.Sec)*1e9 + int64(h.Nsec)
	to.Ifindex = int(ll.Ifindex)
	to.Type = PacketType(ll.Pkttype)
	to.Hardware = hardware
	to.Link = link
	to.Loopback = hardware == unix.ARPHRD_LOOPBACK
	f.step(h)
	return true
}

// advance reads the headers at the walk's place, which it leaves there. They are nil
// at the end.
func (f *Frames) advance() (*unix.Tpacket3Hdr, *unix.RawSockaddrLinklayer) {
	if f.left == 0 || f.at%frameAlign != 0 || uint64(f.at)+sockaddrEnd > uint64(len(f.mem)) {
		f.left = 0
		return nil, nil
	}
	f.left--
	h := f.mem[f.at : f.at+sockaddrEnd]
	return (*unix.Tpacket3Hdr)(unsafe.Pointer(&h[0])), (*unix.RawSockaddrLinklayer)(unsafe.Pointer(&h[headerLen]))
}

// step moves the walk's place to the next headers. The last packet of a block has 0
// for the way there.
func (f *Frames) step(h *unix.Tpacket3Hdr) {
	way := h.Next_offset
	if way < sockaddrEnd || way > uint32(len(f.mem)) {
		f.left = 0 // never back: what was rebuilt stays as it is
	}
	f.at += way
}

// isRebuilt is a bit of tp_status that the kernel has no use for.
const isRebuilt = 1 << 27

// rebuild makes a frame what it was on the wire, in place, when it is come to for the
// first time. It moves tp_mac and clears TP_STATUS_VLAN_VALID, so the headers go on telling
// the truth. A walk over the block for this alone would read it from memory once more.
func rebuild(frame []byte, h *unix.Tpacket3Hdr, ll *unix.RawSockaddrLinklayer, link pcapng.LinkType) {
	if h.Status&isRebuilt != 0 {
		return
	}
	h.Status |= isRebuilt
	switch link {
	case pcapng.Ethernet:
		tagEthernet(frame, h)
	case pcapng.Raw:
		toNetwork(h)
	default:
		cook(frame, h, ll)
	}
}

// tagEthernet puts the VLAN tag back between the addresses and the type.
func tagEthernet(frame []byte, h *unix.Tpacket3Hdr) {
	tag, tagged := takeTag(h)
	start := int(h.Mac)
	if !tagged || h.Snaplen < macPairLen || start < sockaddrEnd+vlanTagLen || start+macPairLen > len(frame) {
		return
	}
	copy(frame[start-vlanTagLen:], frame[start:start+macPairLen])
	copy(frame[start-vlanTagLen+macPairLen:], tag[:])
	grow(h, vlanTagLen)
}

// takeTag is the tag that the kernel or the card took out of the frame. The header
// does not say so any more.
func takeTag(h *unix.Tpacket3Hdr) (tag [vlanTagLen]byte, ok bool) {
	status := h.Status
	if status&unix.TP_STATUS_VLAN_VALID == 0 {
		return tag, false
	}
	h.Status = status &^ unix.TP_STATUS_VLAN_VALID
	tpid := uint16(unix.ETH_P_8021Q)
	if status&unix.TP_STATUS_VLAN_TPID_VALID != 0 {
		tpid = h.Hv1.Vlan_tpid
	}
	binary.BigEndian.PutUint16(tag[:], tpid)
	binary.BigEndian.PutUint16(tag[2:], uint16(h.Hv1.Vlan_tci))
	return tag, true
}

// toNetwork makes the frame begin at its network header. A frame that was cut within
// its link header has nothing left.
func toNetwork(h *unix.Tpacket3Hdr) {
	header := uint32(h.Net) - uint32(h.Mac)
	if h.Net < h.Mac {
		return
	}
	h.Mac = h.Net
	h.Snaplen -= min(header, h.Snaplen)
	h.Len -= min(header, h.Len)
}

// cook puts a LinuxSLL2 header in the place of the link header. A VLAN tag becomes
// what it is on Ethernet: the TPID as the protocol, the tag control and the packet's
// own protocol before the payload.
func cook(frame []byte, h *unix.Tpacket3Hdr, ll *unix.RawSockaddrLinklayer) {
	toNetwork(h)
	tag, tagged := takeTag(h)
	start := int(h.Mac)
	if start < sockaddrEnd+vlanTagLen+pcapng.SLL2HeaderLen || start > len(frame) {
		return
	}
	// sll_protocol is in network order already: its bytes are copied as they lie.
	protocol := *(*[2]byte)(unsafe.Pointer(&ll.Protocol))
	if tagged {
		start -= vlanTagLen
		copy(frame[start:], tag[2:])
		copy(frame[start+2:], protocol[:])
		protocol = [2]byte(tag[:2])
		grow(h, vlanTagLen)
	}
	head := frame[start-pcapng.SLL2HeaderLen : start]
	copy(head, protocol[:])
	binary.BigEndian.PutUint16(head[2:], 0)
	binary.BigEndian.PutUint32(head[4:], uint32(ll.Ifindex))
	binary.BigEndian.PutUint16(head[8:], ll.Hatype)
	head[10], head[11] = ll.Pkttype, ll.Halen
	copy(head[12:], ll.Addr[:])
	grow(h, pcapng.SLL2HeaderLen)
}

// grow moves the start of a frame back by n bytes.
func grow(h *unix.Tpacket3Hdr, n uint32) {
	h.Mac -= uint16(n)
	h.Snaplen += n
	h.Len += n
}

// Bytes is how much of the block the kernel has filled, headers included.
func (b *Block) Bytes() int { return int(b.desc().Blk_len) }
