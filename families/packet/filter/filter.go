// Package filter compiles packet filters: pcap-filter(7) becomes a Program that judges
// frames in user space and, where it can, in the kernel. It depends on nothing else of
// sockd, and links no C.
//
//	program, err := filter.Compile("tcp port 80", filter.Ethernet)
//	...
//	if program.Match(frame, len(frame)) {
//
// A text goes through four stages: syntax reads it into a tree; this package
// checks the tree against a link type, looks names up, and lowers it to a graph of
// tests; internal/code optimises the graph and writes its instructions.
//
// A Program judges the frame as it was on the wire, its VLAN tag in place, as libpcap
// judges frames of a file. What differs from libpcap on purpose is listed in
// docs/filter.md.
package filter

import (
	"github.com/sockd/sockd/families/packet/filter/internal/code"
	"github.com/sockd/sockd/families/packet/filter/syntax"
)

// LinkType says how frames begin, by its number in pcap and pcapng files
// (LINKTYPE_ of www.tcpdump.org/linktypes.html).
type LinkType uint16

// The link types that filters can be compiled for.
const (
	Null      LinkType = 0   // BSD loopback: the address family in the byte order of the machine
	Ethernet  LinkType = 1   // EN10MB
	Raw       LinkType = 101 // IPv4 or IPv6 by its first half byte
	Loop      LinkType = 108 // as Null, in network byte order
	LinuxSLL  LinkType = 113 // Linux cooked
	IPv4      LinkType = 228
	IPv6      LinkType = 229
	LinuxSLL2 LinkType = 276 // Linux cooked, version 2
)

// Error is a text that is no filter, or none for the link type. Its Column counts
// bytes from 1, and is never 0.
type Error = syntax.Error

// Options is how to compile. The zero value is what Compile uses.
type Options struct {
	// Names looks names up. The zero value reads the files of /etc, and has a table of
	// its own behind them.
	Names Names
	// Netmask is the IPv4 mask of the interface, for "ip broadcast", 0xffffff00 for a
	// /24. 0: not known, and "ip broadcast" is an error.
	Netmask uint32
	// Fragments allows the word "fragments"; see Program.Fragments.
	Fragments bool
	// Owners allows uid, pid, comm and unit; see Packet.Owner.
	Owners bool
	// Stored is for packets that are judged after they were captured, of a file: the index of
	// their interface and their owner are not known any more, and words that ask for it are
	// errors, but for what stands in the frame.
	Stored bool
	// Textual lets vlan, mpls, pppoes, geneve and vxlan shift everything to their right, as
	// libpcap does. Otherwise they shift what is and-ed to them, and nothing behind
	// "or" or outside "not".
	Textual bool
	// Plain leaves the optimiser out, to test it.
	Plain bool
}

// Packet is what a Program judges.
type Packet struct {
	Data      []byte // from its first byte, VLAN tags in place
	Length    int    // on the wire, at least len(Data)
	Interface uint32 // the index, 0: not known, which no ifindex equals
	Direction Direction
	Owner     *Owner // nil: not known
}

// Direction is which way a packet went through the interface.
type Direction uint8

// The directions. Neither inbound nor outbound is true of Unknown.
const (
	Unknown Direction = iota
	In
	Out
)

// Owner is the local process that sent the packet or is to receive it: its UID and PID, which are
// known when KnownUID and KnownPID say so; Comm, its name as in /proc/PID/comm, and Unit, its systemd
// unit, "" not known. A test of what is not known is false.
type Owner = code.Owner

// Program is a compiled filter. It is immutable; its methods may be called from any
// goroutine.
type Program struct {
	text string
	link LinkType
	tree syntax.Expr // nil: takes all
	code *code.Program
}
