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
)

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
	// with a LinuxSLL2 header. It is valid until the block is released.
	Data []byte
	// Len is the frame's length on the wire: more than len(Data) when it was cut.
	Len int
	// Time is when the kernel saw it, in nanoseconds since 1970.
	Time int64
	// Ifindex is the interface that it went through.
	Ifindex int
	Type    PacketType
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
func (b *Block) Len() int { return int(b.desc().Num_pkts) }

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
func (b *Block) Frames() Frames {
	d := b.desc()
	return Frames{mem: b.mem, left: d.Num_pkts, at: d.Offset_to_first_pkt}
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
	start := uint32(h.Mac)
	frame := f.mem[f.at:]
	f.Frame = Frame{
		Data:     frame[start : start+h.Snaplen : start+h.Snaplen],
		Len:      int(h.Len),
		Time:     int64(h.Sec)*1e9 + int64(h.Nsec),
		Ifindex:  int(ll.Ifindex),
		Type:     PacketType(ll.Pkttype),
		Loopback: ll.Hatype == unix.ARPHRD_LOOPBACK,
	}
	f.at += h.Next_offset
	return true
}

// advance reads the headers at the walk's place, which it leaves there.
func (f *Frames) advance() (*unix.Tpacket3Hdr, *unix.RawSockaddrLinklayer) {
	if f.left == 0 {
		return nil, nil
	}
	f.left--
	h := f.mem[f.at : f.at+sockaddrEnd]
	return (*unix.Tpacket3Hdr)(unsafe.Pointer(&h[0])), (*unix.RawSockaddrLinklayer)(unsafe.Pointer(&h[headerLen]))
}

// rebuild makes every frame of a block what it was on the wire, in place, before
// anybody reads it. It moves tp_mac back and clears TP_STATUS_VLAN_VALID, so the
// headers go on telling the truth.
func (b *Block) rebuild() {
	cooked := b.ring.iface.Link == pcapng.LinuxSLL2
	for f := b.Frames(); ; {
		h, ll := f.advance()
		if h == nil {
			return
		}
		frame := f.mem[f.at:]
		tag, tagged := vlanTag(h)
		switch {
		case cooked:
			cook(frame, h, ll, tag, tagged)
		case tagged && h.Snaplen >= macPairLen:
			start := uint32(h.Mac)
			copy(frame[start-vlanTagLen:], frame[start:start+macPairLen])
			copy(frame[start-vlanTagLen+macPairLen:], tag[:])
			grow(h, vlanTagLen)
		}
		h.Status &^= unix.TP_STATUS_VLAN_VALID
		f.at += h.Next_offset
	}
}

// vlanTag is the tag that the kernel or the card took out of the frame.
func vlanTag(h *unix.Tpacket3Hdr) (tag [vlanTagLen]byte, ok bool) {
	if h.Status&unix.TP_STATUS_VLAN_VALID == 0 {
		return tag, false
	}
	tpid := uint16(unix.ETH_P_8021Q)
	if h.Status&unix.TP_STATUS_VLAN_TPID_VALID != 0 {
		tpid = h.Hv1.Vlan_tpid
	}
	binary.BigEndian.PutUint16(tag[:], tpid)
	binary.BigEndian.PutUint16(tag[2:], uint16(h.Hv1.Vlan_tci))
	return tag, true
}

// cook puts a LinuxSLL2 header in front of the packet. A VLAN tag becomes what it
// is on Ethernet: the TPID as the protocol, the tag control and the packet's own
// protocol before the payload.
func cook(frame []byte, h *unix.Tpacket3Hdr, ll *unix.RawSockaddrLinklayer, tag [vlanTagLen]byte, tagged bool) {
	// sll_protocol is in network order already: its bytes are copied as they lie.
	protocol := *(*[2]byte)(unsafe.Pointer(&ll.Protocol))
	if tagged {
		at := frame[uint32(h.Mac)-vlanTagLen:]
		copy(at, tag[2:])
		copy(at[2:], protocol[:])
		protocol = [2]byte(tag[:2])
		grow(h, vlanTagLen)
	}
	head := frame[uint32(h.Mac)-pcapng.SLL2HeaderLen:][:pcapng.SLL2HeaderLen]
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
