// Package pcapng writes and reads the part of the pcapng file format
// (draft-ietf-opsawg-pcapng) that a capture needs: one section, its interfaces,
// their packets with nanosecond times, and the statistics at the end. The daemon
// writes with the Append functions, into buffers of its own; sockd-ctl reads
// with Reader. It imports the standard library only.
//
// It is no general library for the format: blocks that it does not know are
// handed over by number and otherwise passed by.
package pcapng

import "fmt"

// LinkType is what a packet's bytes begin with, one of the LINKTYPE_ numbers of
// https://www.tcpdump.org/linktypes.html.
type LinkType uint16

// The link types that sockd captures.
const (
	// Ethernet frames, also those of a loopback interface.
	Ethernet LinkType = 1
	// Raw is IPv4 or IPv6 without anything in front: tunnels, tun, WireGuard.
	Raw LinkType = 101
	// LinuxSLL2 is the 20-byte header of packets from several interfaces, or from
	// one without an Ethernet header.
	LinuxSLL2 LinkType = 276
)

// linkNames are also those of files that others wrote, and that filters can be compiled for.
var linkNames = map[LinkType]string{
	0: "NULL", Ethernet: "EN10MB", Raw: "RAW", 108: "LOOP", 113: "LINUX_SLL", 228: "IPV4", 229: "IPV6", LinuxSLL2: "LINUX_SLL2",
}

// String is the name that tcpdump -y reads.
func (l LinkType) String() string {
	if name, ok := linkNames[l]; ok {
		return name
	}
	return fmt.Sprintf("linktype(%d)", uint16(l))
}

// SLL2HeaderLen is the length of the header of LinuxSLL2: protocol u16, zero u16,
// interface index u32, hardware type u16, packet type u8, address length u8 and
// 8 bytes of address, all in network byte order.
const SLL2HeaderLen = 20

// MaxSnaplen is the longest packet that is kept, as in tcpdump: more than any
// frame that Linux hands to a packet socket.
const MaxSnaplen = 262144

// Direction tells which way a packet went, the lowest two bits of epb_flags.
type Direction uint8

// The directions.
const (
	Unknown Direction = iota
	Inbound
	Outbound
)

// Reception tells whom a packet was meant for, the next three bits of epb_flags.
type Reception uint8

// The kinds of reception.
const (
	Unspecified Reception = iota
	Unicast
	Multicast
	Broadcast
	Promiscuous // to another host
)

// The block types that sockd writes.
const (
	SectionBlock    uint32 = 0x0a0d0d0a
	InterfaceBlock  uint32 = 1
	StatisticsBlock uint32 = 5
	PacketBlock     uint32 = 6
)

// Section is a Section Header Block: the beginning of a file.
type Section struct {
	Comment  string // what the user says of the capture
	OS       string // shb_os
	UserAppl string // shb_userappl, the program that wrote it
}

// Interface is an Interface Description Block.
type Interface struct {
	Link    LinkType
	Snaplen uint32 // bytes of each packet that are kept at most; 0: all
	Name    string // if_name
	Filter  string // if_filter, in the language of pcap-filter(7)
	// Resolution is if_tsresol as written: 6 when a file does not say. AppendInterface
	// always writes 9, nanoseconds.
	Resolution uint8
}

// Packet is an Enhanced Packet Block.
type Packet struct {
	Interface uint32 // which Interface of the section, from 0
	Time      int64  // nanoseconds since 1970
	Data      []byte // what was kept
	Len       int    // the length on the wire, at least len(Data)
	Direction Direction
	Reception Reception
	// Dropped is epb_dropcount: the packets lost between this one and the one before.
	Dropped uint64
	// PID is the process that the packet is of, from epb_processid_threadid; 0: not known.
	// Readers set it and Comment.
	PID     uint32
	Comment string // opt_comment
	// Options are what is written of PID and Comment: see AppendOptions.
	Options []byte
}

// Stats is an Interface Statistics Block. In the files that sockd writes, Received -
// IfDrop = Accepted (what passed the filter), and Accepted - OSDrop = Delivered.
type Stats struct {
	Interface  uint32
	Time       int64 // when the counts were taken, nanoseconds since 1970
	Start, End int64 // of the capture, nanoseconds since 1970
	Received   uint64
	IfDrop     uint64
	Accepted   uint64
	OSDrop     uint64
	Delivered  uint64
	Comment    string
}
