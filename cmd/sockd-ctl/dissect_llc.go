package main

import (
	"encoding/binary"
	"fmt"
	"net"
)

// Service access points of IEEE 802.2 that have a name.
var llcNames = names{
	0x00: "Null", 0x02: "802.1B I", 0x03: "802.1B G", 0x04: "SNA", 0x06: "IP", 0x0e: "ProWay NM", 0x42: "STP", 0x4e: "RS511",
	0x7e: "ISO8208", 0x8e: "ProWay", 0xaa: "SNAP", 0xe0: "IPX", 0xf0: "NetBeui", 0xfe: "OSI", 0xff: "Global",
}

// The access points that are decoded.
const (
	sapIP     = 0x06
	sapSTP    = 0x42
	sapSNAP   = 0xaa
	sapIPX    = 0xe0
	sapGlobal = 0xff
)

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

// carries tells whether a frame has a packet for one access point on both sides.
func (h llcHeader) carries(sap byte) bool {
	return h.unnumbered && h.control == 3 && h.dsap == sap && h.ssap == sap
}

// rawIPX tells whether there is no such header: Novell's first framing of IPX begins
// with its checksum, which is never used.
func rawIPX(data []byte) bool {
	return len(data) > 2 && data[0] == sapGlobal && data[1] == sapGlobal
}

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

// llc writes what follows an IEEE 802.3 length. header is the size of what is
// link level, known whether what it carries was written.
func (p *printer) llc(data []byte, length int, e *ends) (header int, known bool) {
	p.proto = "llc"
	h, ok := readLLC(data)
	if !ok {
		p.truncated()
		p.hexLines("\n\t", data, true)
		return len(data), true
	}
	if rawIPX(data) {
		if p.opts.Ethernet {
			p.say("IPX 802.3: ")
		}
		p.ipx(data)
		return 0, true
	}
	if p.opts.Ethernet {
		p.llcLink(h)
	}
	body, rest := data[h.size:], length-h.size
	switch {
	case h.carries(sapSNAP):
		return h.size + snapHeader, p.snap(body, rest, e)
	case h.carries(sapSTP):
		p.stp(body, rest)
	case h.carries(sapIP):
		p.ipv4(body, rest)
	case h.carries(sapIPX):
		if p.opts.Ethernet {
			p.say("IPX 802.2: ")
		}
		p.ipx(body)
	default:
		return h.size, p.llcOther(h, body, length, e)
	}
	return h.size, true
}

// llcOther writes a frame of the link itself, or of a protocol that nobody reads.
func (p *printer) llcOther(h llcHeader, body []byte, length int, e *ends) (known bool) {
	if !p.opts.Ethernet {
		p.llcEnds(h, e)
	}
	p.llcControl(h, length)
	if !h.unnumbered || h.control&^llcPollU != llcXID {
		return h.supervisory()
	}
	if len(body) == 0 {
		return true
	}
	if body[0] != llcXIDFormat {
		return false
	}
	if has(body, 3) {
		p.printf(": %02x %02x", body[1], body[2])
	} else {
		p.truncated()
		p.hexLines("\n\t", body, true)
	}
	return true
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
	p.printf("LLC, dsap %s (0x%02x) %s, ssap %s (0x%02x) %s, ctrl 0x%0*x: ",
		llcNames.or(int(h.dsap), "Unknown"), h.dsap, whose, llcNames.or(int(h.ssap), "Unknown"), h.ssap, what, 2*(h.size-2), h.control)
}

// llcEnds writes who speaks to whom.
func (p *printer) llcEnds(h llcHeader, e *ends) {
	from, to := llcNames.or(int(h.ssap), "Unknown SSAP 0x%02x"), llcNames.or(int(h.dsap), "Unknown DSAP 0x%02x")
	switch {
	case h.ssap == h.dsap && e == nil:
		p.printf("%s ", to)
	case h.ssap == h.dsap:
		p.printf("%s %s ", e, to)
	case e == nil:
		p.printf("%s > %s ", from, to)
	default:
		p.printf("%s %s > %s %s ", net.HardwareAddr(e.src), from, net.HardwareAddr(e.dst), to)
	}
}

// Commands of unnumbered and supervisory frames.
var (
	llcUnnumbered  = names{0x03: "ui", 0xe3: "test", llcXID: "xid", 0x0f: "dm", 0x43: "disc", 0x63: "ua", 0x6f: "sabme", 0x87: "frmr"}
	llcSupervisory = [...]string{"Receiver Ready", "Receiver not Ready", "Reject", "?"}
)

const (
	llcXID       = 0xaf
	llcXIDFormat = 0x81
	llcPollU     = 0x10   // of an unnumbered frame
	llcPollS     = 0x0100 // of the others
)

func (p *printer) llcControl(h llcHeader, length int) {
	switch {
	case h.unnumbered:
		p.printf("Unnumbered, %s, Flags [%s], length %d", llcUnnumbered.or(int(h.control&^llcPollU), "%02x"), llcFlags(h, llcPollU), length)
	case h.supervisory():
		p.printf("Supervisory, %s, rcv seq %d, Flags [%s], length %d", llcSupervisory[h.control>>2&3], h.control>>9, llcFlags(h, llcPollS), length)
	default:
		p.printf("Information, send seq %d, rcv seq %d, Flags [%s], length %d", h.control>>1&0x7f, h.control>>9, llcFlags(h, llcPollS), length)
	}
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

const snapHeader = 5

// Organisations whose protocol numbers are ethertypes, and one that has numbers of its
// own; two of those are a spanning tree for each VLAN.
const (
	ouiEthernet = 0x000000
	ouiCisco90  = 0x0000f8
	ouiCisco    = 0x00000c

	ciscoPVST   = 0x010b
	ciscoBridge = 0x010c
)

var ouiNames = names{
	ouiEthernet: "Ethernet", ouiCisco: "Cisco", 0x00005e: "IANA", 0x000081: "Nortel Networks SONMP", ouiCisco90: "Cisco bridged", 0x0080c2: "Ethernet bridged",
	0x00a03e: "ATM Forum", 0x00e02f: "DOCSIS Spanning Tree", 0x080007: "Appletalk", 0x009069: "Juniper", 0x080009: "Hewlett-Packard", 0x00120f: "IEEE 802.3 Private",
	0x0012bb: "ANSI/TIA", 0x001b21: "DCBX",
}

var ciscoNames = names{0x2000: "CDP", 0x2003: "VTP", 0x2004: "DTP", 0x0111: "UDLD", ciscoPVST: "PVST", ciscoBridge: "VLAN Bridge"}

// snap writes what follows the header of the Subnetwork Access Protocol (RFC 1042);
// false when nobody can read it.
func (p *printer) snap(data []byte, length int, e *ends) bool {
	p.proto = "snap"
	if !has(data, snapHeader) {
		p.truncated()
		return true
	}
	oui, kind := u24(data, 0), u16(data, 3)
	what, name := "pid", "Unknown"
	if oui == ouiEthernet {
		what = "ethertype"
	}
	if oui == ouiEthernet || oui == ouiCisco90 || oui == 0x080007 {
		name = etherTypes.or(int(kind), "Unknown")
	}
	if oui == ouiCisco {
		name = ciscoNames.or(int(kind), "Unknown")
	}
	if p.opts.Ethernet {
		p.printf("oui %s (0x%06x), %s %s (0x%04x), length %d: ", ouiNames.or(int(oui), "Unknown"), oui, what, name, kind, length-snapHeader)
	}
	switch {
	case (oui == ouiEthernet || oui == ouiCisco90) && p.payload(kind, data[snapHeader:], length-snapHeader):
		return true
	case oui == ouiCisco && (kind == ciscoPVST || kind == ciscoBridge):
		p.stp(data[snapHeader:], length-snapHeader)
		return true
	}
	if p.opts.Ethernet {
		return false
	}
	if e != nil {
		p.printf("%s ", e)
	}
	if oui == ouiEthernet {
		p.printf("SNAP, ethertype %s (0x%04x), length %d: ", name, kind, length-snapHeader)
	} else {
		p.printf("SNAP, oui %s (0x%06x), pid %s (0x%04x), length %d: ", ouiNames.or(int(oui), "Unknown"), oui, name, kind, length-snapHeader)
	}
	return false
}

// Versions and kinds of the spanning tree's messages, and how long one with a
// configuration is.
const (
	stpRapid       = 2
	stpConfig      = 0x00
	stpRapidConfig = 0x02
	stpConfigSize  = 35
)

var (
	stpVersions = names{0: "802.1d", stpRapid: "802.1w", 3: "802.1s", 4: "802.1aq"}
	stpKinds    = names{stpConfig: "Config", stpRapidConfig: "Rapid STP", 0x80: "Topology Change"}
	stpFlags    = []bitName{{0x01, "Topology change"}, {0x02, "Proposal"}, {0x10, "Learn"}, {0x20, "Forward"}, {0x40, "Agreement"}, {0x80, "Topology change ACK"}}
	stpRoles    = [...]string{"Unknown", "Alternate", "Root", "Designated"}
)

// stp writes a bridge's message of IEEE 802.1D or 802.1w; of their successors it says
// no more than that.
func (p *printer) stp(data []byte, length int) {
	p.proto = "stp"
	if length < 4 {
		p.invalid()
		return
	}
	if u16(data, 0) != 0 {
		p.printf("unknown STP version, length %d", length)
		return
	}
	version := int(u8(data, 2))
	p.printf("STP %s", stpVersions.or(version, "Unknown STP protocol (0x%02x)"))
	if version == 1 || version > 4 {
		return
	}
	kind := int(u8(data, 3))
	p.printf(", %s", stpKinds.or(kind, "Unknown BPDU Type (0x%02x)"))
	switch {
	case kind != stpConfig && (kind != stpRapidConfig || version != stpRapid):
	case length < stpConfigSize+kind/2: // a rapid one has one byte more
		p.invalid()
	default:
		p.stpConfig(data, length)
	}
}

func (p *printer) stpConfig(d []byte, length int) {
	flags := u8(d, 4)
	p.printf(", Flags [%s]", bitNames(stpFlags, uint32(flags), ", "))
	p.printf(", bridge-id %s.%04x, length %d", bridgeID(d, 17), u16(d, 25), length)
	if !p.verbose(1) {
		return
	}
	p.printf("\n\tmessage-age %s, max-age %s, hello-time %s, forwarding-delay %s", stpTime(d, 27), stpTime(d, 29), stpTime(d, 31), stpTime(d, 33))
	p.printf("\n\troot-id %s, root-pathcost %d", bridgeID(d, 5), u32(d, 13))
	if u8(d, 2) == stpRapid {
		p.printf(", port-role %s", stpRoles[flags>>2&3])
	}
}

// bridgeID is a bridge's priority and address.
func bridgeID(d []byte, at int) string { return fmt.Sprintf("%04x.%s", u16(d, at), mac(d, at+2)) }

// stpTime is a time in units of 1/256 s.
func stpTime(d []byte, at int) string { return fmt.Sprintf("%.2fs", float64(u16(d, at))/256) }
