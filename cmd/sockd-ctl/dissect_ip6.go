package main

const ipv6Header = 40

func (p *printer) ipv6(data []byte, full int) {
	p.proto = "ip6"
	if !has(data, ipv6Header) {
		p.truncated()
		return
	}
	if full < ipv6Header {
		p.printf("truncated-ip6 %d", full)
		return
	}
	if !p.opts.Ethernet {
		p.say("IP6 ")
	}
	if version := data[0] >> 4; version != 6 {
		p.printf("version error: %d != 6", version)
		return
	}
	w := walk6{payload: int(u16(data, 4)), full: full, next: int(data[6])}
	w.length = w.payload
	if w.payload == 0 {
		w.length = full // until a jumbo option tells
	} else if full < w.payload+ipv6Header {
		p.printf("truncated-ip6 - %d bytes missing!", w.payload+ipv6Header-full)
	}
	if p.verbose(1) {
		p.ipv6Header(data)
	}
	w.whole = first(data, ipv6Header+w.length)
	w.segment = segment{src: data[8:24], dst: data[24:40], final: data[24:40], outer: w.next, length: w.length, data: w.whole[ipv6Header:]}
	if !hasPorts(w.next) {
		p.between(&w.segment)
	}
	p.ipv6Next(&w)
}

func (p *printer) ipv6Header(data []byte) {
	p.line.WriteByte('(')
	if class := data[0]<<4 | data[1]>>4; class != 0 {
		p.printf("class 0x%02x, ", class)
	}
	if label := u32(data, 0) & 0xfffff; label != 0 {
		p.printf("flowlabel 0x%05x, ", label)
	}
	p.printf("hlim %d, next-header %s (%d) payload length: %d) ", data[7], protocolNames.or(int(data[6]), "unknown"), data[6], u16(data, 4))
}

// walk6 goes through the headers of an IPv6 packet.
type walk6 struct {
	segment
	whole   []byte // from the fixed header on
	full    int    // of whole, on the wire
	payload int    // what the fixed header says, or a jumbo option
	next    int    // the protocol of the header in hand
	steps   int    // the extension headers so far
	jumbo   bool   // an option told the length (RFC 2675)
	hbh     bool   // a hop-by-hop header was there
	routed  bool   // a routing header was there
}

// advance goes on behind a header of so many bytes, whose first says what follows.
func (w *walk6) advance(size int) {
	w.next = int(u8(w.data, 0))
	w.data, w.length = skip(w.data, size), w.length-size
	w.steps++
}

// ipv6Next walks through the extension headers, and writes what follows.
func (p *printer) ipv6Next(w *walk6) {
	for {
		if w.length < 0 {
			p.truncated()
			return
		}
		ok := true
		switch w.next {
		case protoHopByHop:
			ok = p.hopByHop(w)
		case protoDestOpts:
			ok = p.destinationOptions(w)
		case protoRouting:
			ok = p.routing6(w)
		case protoFragment:
			ok = p.fragment6(w)
		case protoMobility, 62:
			p.mobility(w)
			return
		default:
			p.ipv6Payload(w)
			return
		}
		if !ok {
			return
		}
		p.proto = "ip6"
	}
}

// ipv6Payload writes what is behind all extension headers.
func (p *printer) ipv6Payload(w *walk6) {
	header := len(w.whole) - len(w.data) // all of them
	switch {
	case w.jumbo:
		total := w.payload + ipv6Header
		if total < header {
			p.truncated()
			return
		}
		if w.full < total {
			p.printf("truncated-ip6 - %d bytes missing!", total-w.full)
		}
		w.length, w.data = total-header, first(w.whole, total)[header:]
	case w.payload != 0:
	case w.steps > 0:
		p.truncated() // there is no payload, so it cannot have held a header
		return
	default:
		w.length, w.data = 0, nil
	}
	p.transport(w.next, &w.segment)
}

// extension gives an extension header whose length is in units of 8 bytes; false when
// it is cut.
func (w *walk6) extension() ([]byte, bool) {
	size := int(u8(w.data, 1))*8 + 8
	if !has(w.data, size) {
		return nil, false
	}
	return w.data[:size], true
}

func (p *printer) hopByHop(w *walk6) bool {
	switch {
	case w.hbh:
		p.say("[The Hop-by-Hop Options header was already found]")
		p.invalid()
		return false
	case w.steps > 0:
		p.say("[The Hop-by-Hop Options header don't follow the IPv6 header]")
		p.invalid()
		return false
	}
	w.hbh = true
	p.proto = "hbhopt"
	header, ok := w.extension()
	if ok {
		p.say("HBH ")
		ok = p.options6(header[2:], w)
	}
	if w.payload == 0 && !w.jumbo {
		if !ok {
			p.truncated()
		}
		p.say("[No valid Jumbo Payload Hop-by-Hop option found]")
		p.invalid()
		return false
	}
	if !ok {
		p.truncated()
		return false
	}
	w.advance(len(header))
	return true
}

func (p *printer) destinationOptions(w *walk6) bool {
	p.proto = "dstopt"
	header, ok := w.extension()
	if ok {
		p.say("DSTOPT ")
		ok = !p.verbose(1) || p.options6(header[2:], nil)
	}
	if !ok {
		p.truncated()
		return false
	}
	w.advance(len(header))
	return true
}

// The options of hop-by-hop and destination headers, and the sizes that they must have.
const (
	opt6Pad1  = 0
	opt6PadN  = 1
	opt6Alert = 5
	opt6Jumbo = 0xc2
	opt6Home  = 0xc9

	opt6AlertSize = 2
	opt6JumboSize = 4
	opt6HomeSize  = 16
)

// options6 writes options (RFC 8200 4.2); false when they do not add up. Of a
// hop-by-hop header, w learns the length of a jumbogram.
func (p *printer) options6(o []byte, w *walk6) bool {
	for len(o) > 0 {
		if o[0] == opt6Pad1 {
			p.sayIf(p.verbose(1), "(pad1)")
			o = o[1:]
			continue
		}
		if len(o) < 2 || len(o) < 2+int(o[1]) {
			return false
		}
		if !p.option6(o, w) {
			return false
		}
		o = o[2+int(o[1]):]
	}
	p.sayIf(p.verbose(1), " ")
	return true
}

func (p *printer) sayIf(wanted bool, s string) {
	if wanted {
		p.say(s)
	}
}

// option6 writes the first of the options in o.
func (p *printer) option6(o []byte, w *walk6) bool {
	body := o[2 : 2+int(o[1])]
	switch o[0] {
	case opt6PadN:
		p.sayIf(p.verbose(1), "(padn)")
	case opt6Alert:
		if len(body) != opt6AlertSize {
			return p.badOption6("rtalert", opt6AlertSize, o)
		}
		if p.verbose(1) {
			p.printf("(rtalert: 0x%04x) ", u16(body, 0))
		}
	case opt6Jumbo:
		if len(body) != opt6JumboSize {
			return p.badOption6("jumbo", opt6JumboSize, o)
		}
		if why := w.takeJumbo(int(u32(body, 0))); p.verbose(1) {
			p.printf("(jumbo: %d%s) ", u32(body, 0), why)
		}
	case opt6Home:
		if len(body) < opt6HomeSize {
			return p.badOption6("homeaddr", opt6HomeSize, o)
		}
		return !p.verbose(1) || p.homeAddress(body)
	default:
		if p.verbose(1) {
			p.printf("(opt_type 0x%02x: len=%d)", o[0], len(body))
		}
	}
	return true
}

// badOption6 says that an option has not the size that it must have, or that the
// header has no room for that.
func (p *printer) badOption6(name string, want int, o []byte) bool {
	if len(o) < 2+want {
		p.printf("(%s: trunc)", name)
	} else {
		p.printf("(%s: invalid len %d)", name, o[1])
	}
	return false
}

// takeJumbo takes the length of a jumbogram, or says why it is none.
func (w *walk6) takeJumbo(n int) (why string) {
	switch {
	case w == nil:
		return " - not a hop-by-hop option"
	case w.jumbo:
		return " - already seen"
	case w.payload != 0:
		return " - payload len != 0"
	case n < 65536:
		return " - < 65536"
	}
	w.jumbo, w.payload = true, n
	return ""
}

// homeAddress writes the address of a mobile node, and what options that one has.
func (p *printer) homeAddress(body []byte) bool {
	p.printf("(homeaddr: %s", ip6(body, 0))
	for o := body[opt6HomeSize:]; len(o) > 0; {
		if o[0] == opt6Pad1 {
			p.say(", pad1")
			o = o[1:]
			continue
		}
		if len(o) < 2 || len(o) < 2+int(o[1]) {
			return false
		}
		if o[0] == opt6PadN {
			p.say(", padn")
		} else {
			p.printf(", sopt_type 0x%02x: len=%d", o[0], o[1])
		}
		o = o[2+int(o[1]):]
	}
	p.say(")")
	return true
}

// The kinds of routing header: 0 is obsolete, 2 is of Mobile IPv6, 4 a segment routing
// header (RFC 8754).
const (
	routeSource  = 0
	routeHome    = 2
	routeSegment = 4
)

// routing6 writes a routing header; false when its kind is not known.
func (p *printer) routing6(w *walk6) bool {
	p.proto = "rt6"
	d := w.data
	words, kind := int(u8(d, 1)), int(u8(d, 2))
	p.printf("RT6 (len=%d, type=%d", words, kind)
	if kind == routeSource {
		p.say(" [Deprecated]")
	}
	p.printf(", segleft=%d", u8(d, 3))
	switch kind {
	case routeSource, routeHome:
		if reserved := u32(d, 4); reserved != 0 || p.verbose(1) {
			p.printf(", rsv=0x%0x", reserved)
		}
	case routeSegment:
		p.printf(", last-entry=%d", u8(d, 4))
		if flags := u8(d, 5); flags != 0 || p.verbose(1) {
			p.printf(", flags=0x%0x", flags)
		}
		p.printf(", tag=%x", u16(d, 6))
	default:
		p.say(" (unknown type)")
		p.invalid()
		return false
	}
	if words%2 == 1 {
		p.printf(" (invalid length %d)", words)
		p.invalid()
		return false
	}
	for i := range words / 2 {
		p.printf(", [%d]%s", i, ip6(d, 8+16*i))
	}
	p.say(") ")
	w.route(kind, words/2)
	w.advance(words*8 + 8)
	return true
}

// route notes where a routing header leads, which checksums cover.
func (w *walk6) route(kind, hops int) {
	if w.routed || hops == 0 {
		return
	}
	w.routed = true
	last := hops - 1
	if kind == routeSegment { // its list is in reverse
		last = 0
	}
	w.final = part(w.data, 8+16*last, 16)
}

const fragment6Header = 8

// fragment6 writes which part of a packet an IPv6 fragment is, and with -v of which
// packet. Behind all but the first there is no header to write: false.
func (p *printer) fragment6(w *walk6) bool {
	p.proto = "frag6"
	offset := func() uint16 { return u16(w.data, 2) &^ 7 }
	length := int(u16(w.whole, 4)) - (len(w.whole) - ipv6Header - len(w.data)) - fragment6Header
	if p.verbose(1) {
		id := u32(w.data, 4)
		p.printf("frag (0x%08x:%d|%d)", id, offset(), length)
	} else {
		p.printf("frag (%d|%d)", offset(), length)
	}
	if offset() != 0 {
		return false
	}
	p.line.WriteByte(' ')
	if len(w.data) <= fragment6Header {
		return false
	}
	w.fragmented = true
	w.advance(fragment6Header)
	return true
}

// mobility writes as much of a header of Mobile IPv6 as its length.
func (p *printer) mobility(w *walk6) {
	p.printf(" ip-proto-%d %d", w.next, w.length)
}
