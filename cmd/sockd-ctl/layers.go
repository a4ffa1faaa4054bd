package main

import (
	"net"
	"strconv"

	"github.com/sockd/sockd/ctl"
	"github.com/sockd/sockd/families/packet/pcapng"
)

// The layers of --jsonl. Their names and those of their members are a contract with
// whoever reads them, and stand in the manual of capture: they are only added to.
// Addresses are texts, numbers are numbers, bytes that nobody reads are hexadecimal.

// layering decodes one packet.
type layering struct {
	out      []any
	name     string // of the layer in hand
	rest     []byte // from its first byte on
	src, dst string // of the first layer that has ends
	ported   bool   // the ports are in them, or are none
}

// Decode reads the headers of a packet.
func (p *printer) Decode(i *pcapng.Interface, f *pcapng.Packet) ctl.Decoded {
	var l layering
	l.decode(i.Link, f.Data, max(f.Len, len(f.Data)))
	return ctl.Decoded{Src: l.src, Dst: l.dst, Layers: l.out}
}

func (l *layering) decode(link pcapng.LinkType, data []byte, full int) {
	defer untilCut(func() { l.out = append(l.out, malformedLayer{"malformed", l.name, len(l.rest)}) })
	switch link {
	case pcapng.Ethernet:
		l.ethernet(data, full)
	case pcapng.LinuxSLL2:
		l.sll2(data, full)
	case linkSLL:
		l.sll(data, full)
	case pcapng.Raw, linkIPv4, linkIPv6:
		l.raw(data, full)
	default:
		l.payload(full)
	}
}

// begin notes which layer is read, and where it begins: should it be cut, malformed
// says so.
func (l *layering) begin(name string, data []byte) { l.name, l.rest = name, data }

func (l *layering) add(layer any) { l.out = append(l.out, layer) }

// payload is what nobody reads, of so many bytes on the wire.
func (l *layering) payload(length int) {
	if length > 0 {
		l.add(payloadLayer{"payload", length})
	}
}

// ends notes the first layer's addresses.
func (l *layering) ends(src, dst string) {
	if l.src == "" && l.dst == "" {
		l.src, l.dst = src, dst
	}
}

// ports puts the ports behind the addresses, those of the first layer that has any.
func (l *layering) ports(src, dst uint16) {
	if l.ported {
		return
	}
	l.ported = true
	l.src, l.dst = net.JoinHostPort(l.src, strconv.Itoa(int(src))), net.JoinHostPort(l.dst, strconv.Itoa(int(dst)))
}

// payloadLayer is what does not decode any further; Length is that on the wire.
type payloadLayer struct {
	Layer  string `json:"layer"`
	Length int    `json:"length"`
}

// malformedLayer stands for a layer that ends before its header does, or contradicts
// itself: Of is the layer's name, Length how many bytes are there of it.
type malformedLayer struct {
	Layer  string `json:"layer"`
	Of     string `json:"of"`
	Length int    `json:"length"`
}
