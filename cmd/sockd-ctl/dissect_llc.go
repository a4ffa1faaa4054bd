package main

import (
	"encoding/binary"
	"fmt"
	"net"

	"github.com/gopacket/gopacket/layers"
)

// Service access points of IEEE 802.2 that have a name.
var llcNames = map[byte]string{
	0x00: "Null", 0x02: "802.1B I", 0x03: "802.1B G", 0x04: "SNA", 0x06: "IP", 0x0e: "ProWay NM", 0x42: "STP", 0x4e: "RS511",
	0x7e: "X25", 0x8e: "ProWay ASLM", 0xaa: "SNAP", 0xe0: "IPX", 0xf0: "NetBeui", 0xfe: "OSI", 0xff: "Global",
}

// The lowest bit of a DSAP says that it is a group's, that of an SSAP that the frame
// is a response.
const llcLowBit = 1

// llcHeader is the header of IEEE 802.2.
type llcHeader struct {
	dsap, ssap byte   // without their lowest bits
	group      bool   // of DSAP
	response   bool   // of SSAP
	control    uint16 // one byte in U frames, else two, little-endian
	unnumbered bool
	size       int
}

// supervisory tells whether a frame carries nothing but its header.
func (h llcHeader) supervisory() bool { return !h.unnumbered && h.control&3 == 1 }

func readLLC(data []byte) (h llcHeader, ok bool) {
	if len(data) < 3 {
		return h, false
	}
	h = llcHeader{dsap: data[0] &^ llcLowBit, ssap: data[1] &^ llcLowBit, group: data[0]&llcLowBit != 0, response: data[1]&llcLowBit != 0}
	h.control, h.unnumbered, h.size = uint16(data[2]), data[2]&3 == 3, 3
	if !h.unnumbered {
		if len(data) < 4 {
			return h, false
		}
		h.control, h.size = binary.LittleEndian.Uint16(data[2:]), 4
	}
	return h, true
}

// llc writes an IEEE 802.3 frame, whose type is its length.
func (p *printer) llc(length uint16, data []byte, src, dst net.HardwareAddr) {
	data = data[:min(len(data), int(length))] // what follows fills the frame up
	if p.opts.Ethernet {
		p.printf("802.3, length %d: ", length)
		p.line.WriteString("LLC, ")
	}
	h, ok := readLLC(data)
	if !ok {
		p.line.WriteString("[|llc]")
		return
	}
	if p.opts.Ethernet {
		p.llcLink(h)
	}
	if h.unnumbered && h.control == 3 && h.dsap == h.ssap {
		switch h.dsap {
		case 0x42:
			p.stp(data[h.size:], int(length)-h.size)
			return
		case 0x06:
			p.ipOverLLC(data[h.size:], int(length)-h.size)
			return
		}
	}
	if !p.opts.Ethernet {
		p.llcEnds(h, src, dst)
	}
	p.llcControl(h, int(length))
	if !h.supervisory() {
		p.unknown(data)
	}
}

// ipOverLLC writes a packet of whichever version it says.
func (p *printer) ipOverLLC(data []byte, full int) {
	if len(data) == 0 {
		p.line.WriteString("[|ip]")
		return
	}
	switch version := data[0] >> 4; version {
	case 4:
		p.network(uint16(layers.EthernetTypeIPv4), data, full, !p.opts.Ethernet, nil, nil)
	case 6:
		p.network(uint16(layers.EthernetTypeIPv6), data, full, !p.opts.Ethernet, nil, nil)
	default:
		p.printf("IP%d (invalid)", version)
	}
}

func llcName(sap byte, unknown string) string {
	if name, ok := llcNames[sap]; ok {
		return name
	}
	return unknown
}

// llcLink writes the whole header, as -e asks.
func (p *printer) llcLink(h llcHeader) {
	whose, what := "Individual", "Command"
	if h.group {
		whose = "Group"
	}
	if h.response {
		what = "Response"
	}
	p.printf("dsap %s (0x%02x) %s, ssap %s (0x%02x) %s, ctrl 0x%0*x: ",
		llcName(h.dsap, "Unknown"), h.dsap, whose, llcName(h.ssap, "Unknown"), h.ssap, what, 2*(h.size-2), h.control)
}

// llcEnds writes who speaks to whom.
func (p *printer) llcEnds(h llcHeader, src, dst net.HardwareAddr) {
	from, to := llcName(h.ssap, fmt.Sprintf("Unknown SSAP 0x%02x", h.ssap)), llcName(h.dsap, fmt.Sprintf("Unknown DSAP 0x%02x", h.dsap))
	switch {
	case h.ssap == h.dsap && src == nil:
		p.printf("%s ", to)
	case h.ssap == h.dsap:
		p.printf("%s > %s %s ", src, dst, to)
	case src == nil:
		p.printf("%s > %s ", from, to)
	default:
		p.printf("%s %s > %s %s ", src, from, dst, to)
	}
}

// Commands of unnumbered and supervisory frames.
var (
	llcUnnumbered  = map[uint16]string{0x03: "ui", 0xe3: "test", 0xaf: "xid", 0x0f: "dm", 0x43: "disc", 0x63: "ua", 0x6f: "sabme", 0x87: "frmr"}
	llcSupervisory = [...]string{"Receiver Ready", "Receiver not Ready", "Reject", "?"}
)

const (
	llcPollU = 0x10   // of an unnumbered frame
	llcPollS = 0x0100 // of the others
)

func (p *printer) llcControl(h llcHeader, length int) {
	if h.unnumbered {
		word, ok := llcUnnumbered[h.control&^llcPollU]
		if !ok {
			word = fmt.Sprintf("%02x", h.control&^llcPollU)
		}
		p.printf("Unnumbered, %s, Flags [%s], length %d", word, llcFlags(h, llcPollU), length)
		return
	}
	if h.supervisory() {
		p.printf("Supervisory, %s, rcv seq %d, Flags [%s], length %d", llcSupervisory[h.control>>2&3], h.control>>9, llcFlags(h, llcPollS), length)
		return
	}
	p.printf("Information, send seq %d, rcv seq %d, Flags [%s], length %d", h.control>>1&0x7f, h.control>>9, llcFlags(h, llcPollS), length)
}

// llcFlags says what a frame is; the same bit polls in a command and is final in a
// response.
func llcFlags(h llcHeader, poll uint16) string {
	switch polls := h.control&poll != 0; {
	case polls && h.response:
		return "Final"
	case polls:
		return "Poll"
	case h.response:
		return "Response"
	}
	return "Command"
}

const (
	stpConfig     = 0x00
	stpTopology   = 0x80
	stpConfigSize = 35
)

// stp writes a bridge's message of IEEE 802.1D; of its successors it says no more
// than that.
func (p *printer) stp(data []byte, full int) {
	if len(data) < 4 {
		p.line.WriteString("STP [|stp]")
		return
	}
	switch version, kind := data[2], data[3]; {
	case binary.BigEndian.Uint16(data) != 0:
		p.printf("STP unknown protocol 0x%04x, length %d", binary.BigEndian.Uint16(data), full)
	case version != 0:
		p.printf("STP version %d, length %d", version, full)
	case kind == stpTopology:
		p.line.WriteString("STP 802.1d, Topology Change")
	case kind != stpConfig:
		p.printf("STP 802.1d, unknown type 0x%02x, length %d", kind, full)
	case len(data) < stpConfigSize:
		p.line.WriteString("STP 802.1d, Config (invalid)")
	default:
		p.stpConfig(data, full)
	}
}

func (p *printer) stpConfig(d []byte, full int) {
	flags := map[byte]string{0: "none", 1: "Topology change", 0x80: "Topology change ACK", 0x81: "Topology change, Topology change ACK"}[d[4]&0x81]
	p.printf("STP 802.1d, Config, Flags [%s], bridge-id %s.%04x, length %d", flags, bridgeID(d[17:25]), binary.BigEndian.Uint16(d[25:]), full)
	if p.opts.Verbose == 0 {
		return
	}
	p.printf("\n\tmessage-age %s, max-age %s, hello-time %s, forwarding-delay %s", stpTime(d[27:]), stpTime(d[29:]), stpTime(d[31:]), stpTime(d[33:]))
	p.printf("\n\troot-id %s, root-pathcost %d", bridgeID(d[5:13]), binary.BigEndian.Uint32(d[13:]))
}

// bridgeID is a bridge's priority and address.
func bridgeID(d []byte) string {
	return fmt.Sprintf("%04x.%s", binary.BigEndian.Uint16(d), net.HardwareAddr(d[2:8]))
}

// stpTime is a time in units of 1/256 s.
func stpTime(d []byte) string {
	return fmt.Sprintf("%.2fs", float64(binary.BigEndian.Uint16(d))/256)
}
