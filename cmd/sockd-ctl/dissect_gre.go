package main

import (
	"encoding/binary"
	"strings"

	"github.com/gopacket/gopacket/layers"
)

// The bits of a GRE header that say which fields follow (RFC 2784, RFC 2890).
const (
	greChecksum = 0x8000
	greRouting  = 0x4000
	greKey      = 0x2000
	greSequence = 0x1000
	greStrict   = 0x0800
	greVersion  = 0x0007
)

var greFlagNames = []struct {
	bit  uint16
	name string
}{{greChecksum, "checksum present"}, {greRouting, "routing present"}, {greKey, "key present"}, {greSequence, "sequence# present"}, {greStrict, "source routing present"}}

// gre writes a GRE header of version 0 and the packet behind it.
func (p *printer) gre(s segment) {
	const truncated = " [|gre]"
	d := s.data[:min(len(s.data), max(s.length, 0))] // what follows fills the frame up
	if len(d) < 2 {
		p.line.WriteString(truncated)
		return
	}
	flags := binary.BigEndian.Uint16(d)
	p.printf("GREv%d", flags&greVersion)
	if flags&greVersion > 1 {
		p.line.WriteString(" ERROR: unknown-version")
		return
	}
	if p.opts.Verbose > 0 {
		p.printf(", Flags [%s]", greFlags(flags))
	}
	if flags&greVersion == 1 || flags&greRouting != 0 {
		p.printf(", length %d", s.length) // tunnels of PPP, and routes that nobody uses
		return
	}
	size, ok := p.greFields(flags, d)
	if !ok {
		p.line.WriteString(truncated)
		return
	}
	kind := binary.BigEndian.Uint16(d[2:])
	if p.opts.Ethernet {
		p.printf(", proto %s (0x%04x)", greProtocol(kind), kind)
	}
	p.printf(", length %d", s.length)
	if p.opts.Verbose > 0 {
		p.line.WriteString("\n\t")
	} else {
		p.line.WriteString(": ")
	}
	switch layers.EthernetType(kind) {
	case layers.EthernetTypeIPv4, layers.EthernetTypeIPv6:
		p.network(kind, d[size:], s.length-size, !p.opts.Ethernet, nil, nil)
	default:
		p.printf("gre-proto-0x%x", kind)
	}
}

// greFields writes the fields that flags tell of, and gives the header's size.
func (p *printer) greFields(flags uint16, d []byte) (size int, ok bool) {
	if len(d) < 4 {
		return 0, false
	}
	size = 4
	for _, f := range []struct {
		bit    uint16
		format string
	}{{greChecksum, ", sum 0x%x"}, {greKey, ", key=0x%x"}, {greSequence, ", seq %d"}} {
		if flags&f.bit == 0 {
			continue
		}
		if len(d) < size+4 {
			return 0, false
		}
		value := binary.BigEndian.Uint32(d[size:])
		if f.bit == greChecksum {
			value >>= 16 // the rest is reserved
		}
		p.printf(f.format, value)
		size += 4
	}
	return size, true
}

func greFlags(flags uint16) string {
	var words []string
	for _, f := range greFlagNames {
		if flags&f.bit != 0 {
			words = append(words, f.name)
		}
	}
	if len(words) == 0 {
		return "none"
	}
	return strings.Join(words, ", ")
}

func greProtocol(kind uint16) string {
	if name, ok := etherTypes[layers.EthernetType(kind)]; ok {
		return name
	}
	return "unknown"
}
