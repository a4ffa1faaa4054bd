package relay

import (
	"encoding/binary"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/ksock"
)

// becomePacket makes a packet socket carry whole frames with their offloads. t is
// what it was opened by, or zero for a socket that somebody else opened.
func (l *leg) becomePacket(t families.Target) error {
	o, err := families.As[families.Optioner](l.sock)
	if err != nil {
		return err
	}
	if err := o.SetOption("packet_vnet_hdr", "1"); err != nil {
		return err
	}
	if l.frames, err = ksock.NewFrameReader(l.sock); err != nil {
		return err
	}
	l.vnet = true
	if t.Addr != nil {
		l.text = textOf(t.Network, t.Addr, "")
	}
	return nil
}

// receiveFrame is receive of a packet socket: a virtio_net_hdr and the frame, with
// its VLAN tag put back where it was.
func (l *leg) receiveFrame(b *buffer) (frame, int, error) {
	room := b.room[vlanLen:]
	f, err := l.frames.Recv(room)
	fr := frame(room[:min(f.Len, len(room))])
	n := max(0, f.Len-vnetLen)
	if err == nil && f.Tagged && n >= etherLen {
		fr = putTag(b.room[:vlanLen+f.Len], f.TPID, f.TCI)
		n += vlanLen
	}
	return fr, n, err
}

// addresses is how much of a frame stands before a VLAN tag.
const addresses = 12

// putTag moves the header and the addresses into the spare room before them, so
// that a tag fits behind. What the header says of places in the frame moves along.
func putTag(room []byte, tpid, tci uint16) frame {
	copy(room, room[vlanLen:vlanLen+vnetLen+addresses])
	binary.BigEndian.PutUint16(room[vnetLen+addresses:], tpid)
	binary.BigEndian.PutUint16(room[vnetLen+addresses+2:], tci)
	shift := func(at int) {
		if v := binary.NativeEndian.Uint16(room[at:]); v != 0 {
			binary.NativeEndian.PutUint16(room[at:], v+vlanLen)
		}
	}
	shift(2) // hdr_len
	if room[0]&vnetNeedsChecksum != 0 {
		shift(6) // csum_start
	}
	return frame(room)
}
