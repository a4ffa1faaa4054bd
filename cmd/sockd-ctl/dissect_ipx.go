package main

import "fmt"

const ipxHeader = 30

// The sockets of IPX that are decoded, and the words for the others.
const (
	ipxSAP = 0x0452
	ipxRIP = 0x0453
)

var ipxSockets = names{0x0451: "ipx-ncp", 0x0455: "ipx-netbios", 0x0456: "ipx-diags", 0x0553: "ipx-nwlink-dgm"}

// ipxAddress is a network, a node and a socket.
func ipxAddress(d []byte, at int) string {
	return fmt.Sprintf("%s.%04x", ipxNode(d, at), u16(d, at+10))
}

func ipxNode(d []byte, at int) string { return fmt.Sprintf("%08x.%s", u32(d, at), mac(d, at+4)) }

// ipx writes an IPX packet, of whichever framing.
func (p *printer) ipx(d []byte) {
	p.proto = "ipx"
	if !p.opts.Ethernet {
		p.say("IPX ")
	}
	p.printf("%s > ", ipxAddress(d, 18))
	p.printf("%s: ", ipxAddress(d, 6))
	length := int(u16(d, 2)) // frames are padded: the header tells
	if length < ipxHeader {
		p.printf("[length %d < %d]", length, ipxHeader)
		p.invalid()
		return
	}
	body := d[ipxHeader:]
	length -= ipxHeader
	switch socket := int(u16(d, 16)); socket {
	case ipxSAP:
		p.ipxServices(body, length)
	case ipxRIP:
		p.ipxRoutes(body, length)
	default:
		p.printf("%s %d", ipxSockets.or(socket, "ipx-#%x"), length)
	}
}

const (
	ipxNameSize    = 48
	ipxMaxServices = 8  // as many as tcpdump shows
	ipxMaxRoutes   = 50 // likewise
	ipxRouteSize   = 8
)

// ipxServices writes a message of the Service Advertising Protocol.
func (p *printer) ipxServices(d []byte, length int) {
	operation := u16(d, 0)
	if length < 2 {
		p.printf(" [length %d < 2]", length)
		p.invalid()
		return
	}
	d, length = d[2:], length-2
	switch operation {
	case 1:
		p.printf("ipx-sap-req %04x", u16(d, 0))
	case 3:
		p.printf("ipx-sap-nearest-req %04x", u16(d, 0))
	case 2, 4:
		p.say(names{2: "ipx-sap-resp", 4: "ipx-sap-nearest-resp"}[int(operation)])
		for i := 0; i < ipxMaxServices && length != 0; i++ {
			size, ok := p.ipxService(d, length)
			if !ok {
				p.invalid()
				return
			}
			d, length = skip(d, size), length-size
		}
	default:
		p.printf("ipx-sap-?%x", operation)
	}
}

// ipxService writes one service: its type, its name and where it is.
func (p *printer) ipxService(d []byte, length int) (size int, ok bool) {
	const where = 2 + ipxNameSize
	need(d, 2)
	if length < 2 {
		return 0, false
	}
	p.printf(" %04x '", u16(d, 0))
	if length < where {
		p.say("'")
		return 0, false
	}
	for i := 2; i < where; i++ {
		c := u8(d, i)
		if c == 0 {
			break
		}
		p.text([]byte{c})
	}
	p.say("'")
	need(d, where+10)
	if length < where+10 {
		return 0, false
	}
	p.printf(" addr %s", ipxNode(d, where))
	need(d, where+14)
	return where + 14, length >= where+14
}

// ipxRoutes writes a message of the Routing Information Protocol: networks, each with
// its hops and ticks.
func (p *printer) ipxRoutes(d []byte, length int) {
	operation, most := u16(d, 0), 0
	if length < 2 {
		p.printf(" [length %d < 2]", length)
		p.invalid()
		return
	}
	switch operation {
	case 1:
		p.say("ipx-rip-req")
		most = 1
	case 2:
		p.say("ipx-rip-resp")
		most = ipxMaxRoutes
	default:
		p.printf("ipx-rip-?%x", operation)
	}
	d, length = d[2:], length-2
	for i := 0; i < most && length != 0; i++ {
		if length < ipxRouteSize {
			p.invalid()
			return
		}
		p.printf(" %08x/%d.%d", u32(d, 0), u16(d, 4), u16(d, 6))
		d, length = d[ipxRouteSize:], length-ipxRouteSize
	}
}
