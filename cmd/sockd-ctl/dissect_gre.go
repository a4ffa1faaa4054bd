package main

// The bits of a GRE header that say which fields follow (RFC 2784, RFC 2890, RFC 2637).
const (
	greChecksum = 0x8000
	greRouting  = 0x4000
	greKey      = 0x2000
	greSequence = 0x1000
	greAck      = 0x0080
	greVersion  = 0x0007
)

var greFlags = []bitName{
	{greChecksum, "checksum present"}, {greRouting, "routing present"}, {greKey, "key present"}, {greSequence, "sequence# present"},
	{0x0800, "source routing present"}, {greAck, "ack present"},
}

// gre writes a GRE header, and the packet behind one of version 0.
func (p *printer) gre(s *segment) {
	p.proto = "gre"
	d := first(s.data, s.length) // what follows fills the frame up
	if !has(d, 2) {
		p.truncated()
		return
	}
	flags := u16(d, 0)
	version := flags & greVersion
	p.printf("GREv%d", version)
	if version > 1 {
		p.say(" ERROR: unknown-version")
		return
	}
	if p.verbose(1) {
		p.printf(", Flags [%s]", bitNames(greFlags, uint32(flags), ", "))
	}
	size, ok := p.greFields(flags, d)
	if !ok {
		p.truncated()
		return
	}
	kind := u16(d, 2)
	empty := version == 1 && flags&greSequence == 0
	p.sayIf(empty, ", no-payload")
	if p.opts.Ethernet {
		p.printf(", proto %s (0x%04x)", etherTypes.or(int(kind), "unknown"), kind)
	}
	p.printf(", length %d", s.length)
	if empty || flags&greRouting != 0 { // routes that nobody uses stand before the packet
		return
	}
	if p.verbose(1) {
		p.say("\n\t")
	} else {
		p.say(": ")
	}
	p.grePayload(version, kind, d[size:], s.length-size)
}

// greFields writes the fields that flags tell of, and gives the header's size.
func (p *printer) greFields(flags uint16, d []byte) (size int, ok bool) {
	if !has(d, 4) {
		return 0, false
	}
	size = 4
	for _, f := range []struct {
		bits  uint16
		write func(v uint32)
	}{{greChecksum | greRouting, p.greSum}, {greKey, func(v uint32) { p.greKey(flags, v) }}, {greSequence, p.greSequence}, {greAck, p.greAck}} {
		switch {
		case flags&f.bits == 0:
		case flags&greVersion == 0 && f.bits == greAck, flags&greVersion == 1 && f.bits&greChecksum != 0: // not in this version
		case !has(d, size+4):
			return 0, false
		default:
			f.write(u32(d, size))
			size += 4
		}
	}
	return size, true
}

func (p *printer) greSum(v uint32) {
	if p.verbose(1) {
		p.printf(", sum 0x%x", v>>16)
	}
	p.printf(", off 0x%x", v&0xffff)
}

// greKey writes a key; that of PPTP is a length and a call.
func (p *printer) greKey(flags uint16, v uint32) {
	if flags&greVersion == 1 {
		p.printf(", call %d", v&0xffff)
	} else {
		p.printf(", key=0x%x", v)
	}
}

func (p *printer) greSequence(v uint32) { p.printf(", seq %d", v) }
func (p *printer) greAck(v uint32)      { p.printf(", ack %d", v) }

func (p *printer) grePayload(version, kind uint16, body []byte, length int) {
	switch {
	case version == 1:
		p.printf("gre-proto-0x%x", kind)
	case kind == typeIPv4:
		p.ipv4(body, length)
	case kind == typeIPv6:
		p.ipv6(body, length)
	case kind == typeIPX:
		p.ipx(body)
	case kind == typeTEB:
		p.innerEthernet(body, length)
	default:
		p.printf("gre-proto-0x%x", kind)
	}
}
