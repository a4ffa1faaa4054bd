package main

const udpHeader = 8

func (p *printer) udpDatagram(s *segment) {
	p.proto = "udp"
	d := s.data
	if !has(d, 4) {
		if s.outer == protoUDP {
			p.between(s)
		}
		p.truncated()
		return
	}
	sport, dport := u16(d, 0), u16(d, 2)
	p.betweenPorts(s, protoUDP, sport, dport)
	says, ok := p.udpSays(s)
	if !ok {
		return
	}
	length := min(says, s.length-udpHeader)
	if p.opts.Quiet {
		p.udpLength(s, says, length)
		return
	}
	if s.version() == 6 || p.verbose(2) {
		p.udpSum(s, length+udpHeader)
	}
	if !p.udpPayload(sport, dport, d[udpHeader:], length) {
		p.udpLength(s, says, length)
	}
}

// udpSays gives how much a datagram says that it carries; false when that is too
// little, or its header is not all there, which is written.
func (p *printer) udpSays(s *segment) (says int, ok bool) {
	if s.length < udpHeader {
		p.printf("truncated-udp %d", s.length)
		return 0, false
	}
	if !has(s.data, 6) {
		p.truncated()
		return 0, false
	}
	says = int(u16(s.data, 4))
	if says == 0 && s.length > 65535 {
		says = s.length // a jumbogram (RFC 2675)
	}
	if says < udpHeader {
		p.printf("truncated-udplength %d", says)
		return 0, false
	}
	if !has(s.data, udpHeader) {
		p.truncated()
		return 0, false
	}
	return says - udpHeader, true
}

// udpLength writes a datagram that says no more than its length.
func (p *printer) udpLength(s *segment, says, length int) {
	if says > length && !s.fragmented {
		p.printf("UDP, bad length %d > %d", says, length)
		return
	}
	p.printf("UDP, length %d", says)
}

// udpSum writes with -v whether the checksum is right.
func (p *printer) udpSum(s *segment, length int) {
	if !p.verbose(1) || s.fragmented {
		return
	}
	sent := u16(s.data, 6)
	if sent == 0 && s.version() == 4 { // over IPv6 it must be there (RFC 8200 8.1)
		p.say("[no cksum] ")
		return
	}
	if !has(s.data, length) {
		return
	}
	if sum := s.sum(protoUDP, length); sum != 0 {
		p.printf("[bad udp cksum 0x%04x -> 0x%04x!] ", sent, should(sent, sum))
		return
	}
	p.say("[udp sum ok] ")
}

// udpPayload writes what is known of a few ports' payload; false, and nothing is
// written, for the others.
func (p *printer) udpPayload(sport, dport uint16, data []byte, length int) bool {
	port := func(n uint16) bool { return sport == n || dport == n }
	switch {
	case port(53):
		p.dns(data, length, false)
	case port(5353):
		p.dns(data, length, true)
	case port(67) || port(68):
		p.bootp(data, length)
	case port(123):
		p.ntp(data, length)
	case port(4789):
		p.vxlan(data, length)
	default:
		return false
	}
	return true
}

const bootpHardware = 28 // where the client's address is

// bootp writes the line of a DHCP message. Its options, which tcpdump -v shows, are
// left out.
func (p *printer) bootp(data []byte, length int) {
	p.proto = "bootp"
	p.printf("BOOTP/DHCP, %s", names{1: "Request", 2: "Reply"}.or(int(u8(data, 0)), "unknown (0x%02x)"))
	if u8(data, 1) == 1 && u8(data, 2) == 6 && data[0] == 1 {
		p.printf(" from %s", mac(data, bootpHardware))
	}
	p.printf(", length %d", length)
}

var ntpModes = names{0: "unspecified", 1: "symmetric active", 2: "symmetric passive", 3: "Client", 4: "Server", 5: "Broadcast", 6: "Control Message", 7: "Reserved"}

// ntp writes the line of a time server's message. Its times, which tcpdump -v shows,
// are left out.
func (p *printer) ntp(data []byte, length int) {
	p.proto = "ntp"
	first := u8(data, 0)
	p.printf("NTPv%d, %s, length %d", first>>3&7, ntpModes[int(first&7)], length)
}

const vxlanHeader = 8

// vxlan writes a frame within a VXLAN (RFC 7348), on a line of its own.
func (p *printer) vxlan(data []byte, length int) {
	p.proto = "vxlan"
	p.say("VXLAN")
	if length < vxlanHeader {
		p.invalid()
		return
	}
	flags := u8(data, 0)
	letter := "invalid"
	if flags&8 != 0 {
		letter = "I"
	}
	p.printf(", flags [%s] (0x%02x), ", letter, flags)
	p.printf("vni %d\n", u24(data, 4))
	need(data, vxlanHeader)
	p.innerEthernet(data[vxlanHeader:], length-vxlanHeader)
}
