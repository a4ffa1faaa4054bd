package capture

import (
	"encoding/binary"
	"syscall"

	"github.com/sockd/sockd/families/packet/pcapng"
	"github.com/sockd/sockd/families/packet/ring"
)

const (
	etherLen  = 14
	etherType = 12
	etherFrom = 6
)

// cook appends a frame with a header of SLL2 in the place of its own, for files that
// can have one link type only. native is the frame's link type.
func cook(b []byte, f *ring.Frame, native pcapng.LinkType) []byte {
	if native == pcapng.LinuxSLL2 {
		return append(b, f.Data...)
	}
	kind, from, payload := innards(f.Data, native)
	b = binary.BigEndian.AppendUint16(b, kind)
	b = append(b, 0, 0)
	b = binary.BigEndian.AppendUint32(b, uint32(f.Ifindex))
	b = binary.BigEndian.AppendUint16(b, f.Hardware)
	b = append(b, byte(f.Type), byte(len(from)))
	b = append(b, from...)
	b = append(b, "\x00\x00\x00\x00\x00\x00\x00\x00"[len(from):]...)
	return append(b, payload...)
}

// innards takes a frame apart: its protocol, as sll_protocol says it, its sender, and
// what follows the link-level header.
func innards(data []byte, native pcapng.LinkType) (kind uint16, from, payload []byte) {
	switch {
	case native == pcapng.Ethernet && len(data) >= etherLen:
		return binary.BigEndian.Uint16(data[etherType:]), data[etherFrom:etherType], data[etherLen:]
	case native == pcapng.Raw && len(data) > 0 && data[0]>>4 == 4:
		return syscall.ETH_P_IP, nil, data
	case native == pcapng.Raw && len(data) > 0 && data[0]>>4 == 6:
		return syscall.ETH_P_IPV6, nil, data
	}
	return 0, nil, data
}
