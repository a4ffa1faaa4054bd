package main

import "bytes"

const arpHeader = 8

var hardwareNames = names{1: "Ethernet", 6: "TokenRing", 7: "ArcNet", 15: "FrameRelay", 19: "ATM", 23: "Strip", 24: "IEEE 1394", 32: "InfiniBand"}

var arpOperations = names{1: "Request", 2: "Reply", 3: "Reverse Request", 4: "Reverse Reply", 8: "Inverse Request", 9: "Inverse Reply", 10: "NACK Reply"}

// arpPacket is an ARP packet (RFC 826): its numbers and its four addresses.
type arpPacket struct {
	hardware, protocol   uint16
	operation            int
	sender, senderProto  []byte
	target, targetProto  []byte
	hardLen, protocolLen int
}

// readARP reads an ARP packet, which must be whole.
func readARP(data []byte) arpPacket {
	hl, pl := int(u8(data, 4)), int(u8(data, 5))
	at := arpHeader
	next := func(n int) []byte {
		at += n
		return part(data, at-n, n)
	}
	a := arpPacket{hardware: u16(data, 0), protocol: u16(data, 2), operation: int(u16(data, 6)), hardLen: hl, protocolLen: pl}
	a.sender, a.senderProto, a.target, a.targetProto = next(hl), next(pl), next(hl), next(pl)
	return a
}

// ofIPv4 tells whether the protocol's addresses are those of IPv4; trailers have the
// same.
func (a *arpPacket) ofIPv4() bool {
	return (a.protocol == typeIPv4 || a.protocol == 0x1000)
}

// address is a protocol address, or why it is none.
func (a *arpPacket) address(b []byte) string {
	switch {
	case !a.ofIPv4():
		return "<wrong proto type>"
	case a.protocolLen != 4:
		return "<wrong len>"
	}
	return addr(b)
}

// arp writes an ARP packet. Addresses are of IPv4, or it says why not.
func (p *printer) arp(data []byte, full int) {
	p.proto = "arp"
	a := readARP(data)
	if !p.opts.Ethernet {
		p.say("ARP, ")
	}
	plain := a.ofIPv4() && a.protocolLen == 4 && a.hardLen != 0
	if p.verbose(1) || !plain {
		p.printf("%s (len %d), %s (len %d)", hardwareNames.or(int(a.hardware), "Unknown Hardware (%d)"), a.hardLen, etherTypes.or(int(a.protocol), "Unknown Protocol (0x%04x)"), a.protocolLen)
	}
	if p.verbose(1) {
		p.say(", ")
	}
	if p.verbose(1) || plain {
		p.say(arpOperations.or(a.operation, "Unknown (%d)") + " ")
		if !p.arpOperation(&a) {
			p.hexLines("\n\t", data, true)
			return
		}
	}
	p.printf(", length %d", full)
}

// arpOperation writes who asks or answers what; false when nobody knows.
func (p *printer) arpOperation(a *arpPacket) bool {
	switch a.operation {
	case 1:
		p.printf("who-has %s", a.address(a.targetProto))
		if bytes.Count(a.target, []byte{0}) != len(a.target) {
			p.printf(" (%s)", hardware(a.target))
		}
		p.printf(" tell %s", a.address(a.senderProto))
	case 2:
		p.printf("%s is-at %s", a.address(a.senderProto), hardware(a.sender))
	case 3, 8:
		p.printf("who-is %s tell %s", hardware(a.target), hardware(a.sender))
	case 4:
		p.printf("%s at %s", hardware(a.target), a.address(a.targetProto))
	case 9:
		p.printf("%s at %s", hardware(a.sender), a.address(a.senderProto))
	default:
		return false
	}
	return true
}
