package links

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// same tells whether two descriptions of one interface say the same.
func same(a, b Interface) bool {
	address := bytes.Equal(a.Address, b.Address)
	a.Address, b.Address = nil, nil
	return address && a.Index == b.Index && a.Name == b.Name && a.Hardware == b.Hardware &&
		a.MTU == b.MTU && a.Up == b.Up && a.Loopback == b.Loopback && a.Generation == b.Generation
}

// parseLink reads a struct ifinfomsg and its attributes, the body of RTM_NEWLINK and
// RTM_DELLINK (rtnetlink(7)). family is AF_UNSPEC where the message is about the
// interface itself: a bridge sends others about its ports. The result keeps no part of b.
func parseLink(b []byte) (family uint8, i Interface, err error) {
	if len(b) < unix.SizeofIfInfomsg {
		return 0, Interface{}, fmt.Errorf("a link of %d bytes: %w", len(b), unix.EPROTO)
	}
	flags := binary.NativeEndian.Uint32(b[8:])
	i = Interface{
		Index:    int(int32(binary.NativeEndian.Uint32(b[4:]))),
		Hardware: binary.NativeEndian.Uint16(b[2:]),
		Up:       flags&unix.IFF_UP != 0,
		Loopback: flags&unix.IFF_LOOPBACK != 0,
	}
	if i.Index <= 0 {
		return 0, Interface{}, fmt.Errorf("a link with index %d: %w", i.Index, unix.EPROTO)
	}
	if err := i.read(b[unix.SizeofIfInfomsg:]); err != nil {
		return 0, Interface{}, err
	}
	return b[0], i, nil
}

func (i *Interface) read(attributes []byte) error {
	d, err := netlink.NewAttributeDecoder(attributes)
	if err != nil {
		return fmt.Errorf("link %d: %v: %w", i.Index, err, unix.EPROTO)
	}
	for d.Next() {
		switch d.Type() {
		case unix.IFLA_IFNAME:
			i.Name = d.String()
		case unix.IFLA_MTU:
			i.MTU = int(d.Uint32())
		case unix.IFLA_ADDRESS:
			i.Address = slices.Clip(d.Bytes()) // a copy already
		}
	}
	if err := d.Err(); err != nil {
		return fmt.Errorf("link %d: %v: %w", i.Index, err, unix.EPROTO)
	}
	return nil
}

// dumpRequest asks for all links, without their statistics, which nobody here reads.
func dumpRequest(sequence uint32) ([]byte, error) {
	const skipStats = 1 << 3 // RTEXT_FILTER_SKIP_STATS of linux/rtnetlink.h
	e := netlink.NewAttributeEncoder()
	e.Uint32(unix.IFLA_EXT_MASK, skipStats)
	attributes, err := e.Encode()
	if err != nil {
		return nil, err
	}
	data := append(make([]byte, unix.SizeofIfInfomsg), attributes...)
	return netlink.Message{
		Header: netlink.Header{
			Length:   uint32(unix.SizeofNlMsghdr + len(data)),
			Type:     unix.RTM_GETLINK,
			Flags:    netlink.Request | netlink.Dump,
			Sequence: sequence,
		},
		Data: data,
	}.MarshalBinary()
}
