// Package packet is the family of AF_PACKET sockets, packet(7): whole frames of an
// interface (raw), or packets without their link header (dgram, cooked). The daemon
// uses it through package families; captures of much traffic go through
// packet/ring instead.
//
// # What differs from other families
//
// A socket is opened with protocol 0, and receives nothing until Bind names an
// interface and an EtherType. There is no connect(2): Connect sets whom Send without a
// Peer sends to, after Bind if the socket is not bound. The endpoint words are
//
//	promisc nopromisc   frames for other hosts, too; takes effect with Bind
//	outgoing            frames that this host sends, too
//	cooked              type dgram (only when the socket is opened)
//
// An endpoint (packet:eth0) is promiscuous and without outgoing frames unless it
// says otherwise, since relays and captures want that. A socket that is opened by
// family and type is as the kernel makes it: not promiscuous, with outgoing frames.
//
// The kernel drops a cooked packet without any payload (packet_rcv, where 0 is what a
// filter returns to drop), and Ethernet pads short frames to 60 bytes.
//
// With the option packet_vnet_hdr a message begins, both ways, with the 10 bytes of
// struct virtio_net_hdr (linux/virtio_net.h), which tell of unfinished checksums and of
// segments that are still one frame. It is for raw sockets.
package packet

import (
	"context"
	"fmt"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/ksock"
	"golang.org/x/sys/unix"
)

// Family is the packet family.
var Family families.Family = family{}

// What the family promises.
var (
	_ families.Adopter    = family{}
	_ families.Socket     = (*Socket)(nil)
	_ families.Dropper    = (*Socket)(nil)
	_ families.Optioner   = (*Socket)(nil)
	_ families.Descriptor = (*Socket)(nil)
)

const name = "packet"

var types = []families.Type{families.Raw, families.Dgram}

type family struct{}

func (family) Name() string { return name }

func (family) Networks() []families.Network {
	options := []families.Option{{Name: "promisc"}, {Name: "packet_ignore_outgoing"}}
	// An endpoint is raw, and dgram by the option cooked: the first one counts.
	return []families.Network{{Name: name, Type: families.Raw, Options: options}, {Name: name, Type: families.Dgram, Options: options}}
}

func (family) Types() []families.Type { return types }

func (family) Domain() int { return unix.AF_PACKET }

// ParseAddr reads IFNAME[/ETHERTYPE[/MAC]].
func (family) ParseAddr(_ families.Type, s string) (families.Addr, error) {
	a, err := parseAddr(s)
	if err != nil {
		return nil, err
	}
	return a, nil
}

// ParseProtocol reads an EtherType. Bind uses it for an address without one.
func (family) ParseProtocol(_ families.Type, s string) (int, error) {
	if s == "" {
		return 0, nil
	}
	t, ok := parseEtherType(s)
	if !ok {
		return 0, &families.SyntaxError{What: "protocol", Text: s, Column: 1, Why: fmt.Sprintf("%q is no EtherType", s), Hint: etherTypeHint}
	}
	return int(t), nil
}

// kernel is what ksock must know.
var kernel = ksock.Family{
	Name:     name,
	Domain:   unix.AF_PACKET,
	Types:    types,
	Addr:     kernelAddr,
	Options:  options,
	Drops:    true,
	Received: received,
}

// Open opens a socket that receives nothing before Bind. The option cooked makes
// it one of type dgram.
func (family) Open(ctx context.Context, spec families.Spec) (families.Socket, error) {
	if spec.Protocol < 0 || spec.Protocol > 0xffff {
		return nil, &families.SyntaxError{What: "protocol", Text: fmt.Sprintf("%#x", spec.Protocol), Why: fmt.Sprintf("%#x is no EtherType, which is at most 0xffff", spec.Protocol), Hint: etherTypeHint}
	}
	var later []families.Option
	for _, o := range spec.Options {
		if o.Name == "cooked" && o.Value == "" && spec.Type == families.Raw {
			spec.Type = families.Dgram
			continue
		}
		later = append(later, o)
	}
	base, err := kernel.Open(ctx, families.Spec{Type: spec.Type})
	if err != nil {
		return nil, err
	}
	s := wrap(base)
	s.protocol = uint16(spec.Protocol)
	for _, o := range later {
		if err := s.SetOption(o.Name, o.Value); err != nil {
			_ = s.Close() // the first error is the one to tell
			return nil, err
		}
	}
	return s, nil
}

// Adopt takes in a packet socket that was opened elsewhere.
func (family) Adopt(fd int) (families.Socket, error) {
	base, err := kernel.Adopt(fd)
	if err != nil {
		return nil, err
	}
	return wrap(base), nil
}

// wrap relies on kernel.Drops, which makes every socket a *ksock.Lossy.
func wrap(base families.Socket) *Socket { return &Socket{Lossy: base.(*ksock.Lossy)} }

// received marks what this host sent, as the sender's address tells.
func received(m *families.Msg) {
	if raw := m.Peer.Bytes(); len(raw) > offPacketType && raw[offPacketType] == unix.PACKET_OUTGOING {
		m.Flags |= families.FlagOutgoing
	}
}

// options are those of packet(7) that need no state of ours, and those of socket(7).
func options(t families.Type) []ksock.Option {
	const level = unix.SOL_PACKET
	ignoreOutgoing := ksock.Switch("packet_ignore_outgoing", level, unix.PACKET_IGNORE_OUTGOING)
	all := append(ksock.SocketOptions(),
		ksock.Switch("packet_auxdata", level, unix.PACKET_AUXDATA),
		ksock.Number("packet_fanout", level, unix.PACKET_FANOUT),
		ignoreOutgoing,
		ksock.Switch("packet_loss", level, unix.PACKET_LOSS),
		ksock.Switch("packet_qdisc_bypass", level, unix.PACKET_QDISC_BYPASS),
		ksock.Number("packet_reserve", level, unix.PACKET_RESERVE),
		ksock.Number("packet_timestamp", level, unix.PACKET_TIMESTAMP),
		ksock.Number("packet_version", level, unix.PACKET_VERSION),
		ksock.Option{Name: "outgoing", Set: func(fd int, value string) error { return ignoreOutgoing.Set(fd, opposite(value)) }},
	)
	if t == families.Raw {
		all = append(all, ksock.Switch("packet_vnet_hdr", level, unix.PACKET_VNET_HDR))
	}
	return all
}

// opposite of a switch's value; what is none stays for the switch to refuse.
func opposite(value string) string {
	switch value {
	case "", "1", "on", "true", "yes":
		return "off"
	case "0", "off", "false", "no":
		return "on"
	}
	return value
}
