// Package syntax reads the pcap-filter(7) language: a text becomes a tree, and a
// tree prints back as a text that means the same. It knows words and their order;
// what they mean, and on which link type, is decided by whoever walks the tree.
//
//	tree, err := syntax.Parse("tcp port 80 or 443", syntax.Options{})
//	// tree.String() is "tcp port 80 or tcp port 443"
//
// The grammar is libpcap's: "and" and "or" bind alike, from left to right; "not"
// binds to what follows it; a value without words before it takes those of the value
// before it.
package syntax

import "net/netip"

// Expr is an expression that is true or false of a packet: *Binary, *Not, or a
// primitive, *Match, *Protocol, *Relation, *Cast, *Length, *Byte, *Direction,
// *Interface, *Encap, *LLC, *Owner or *Fragments. Trees are immutable once parsed.
type Expr interface {
	// Column is where it began in the text, bytes from 1.
	Column() int
	// String prints it. Parse reads that as an equal tree, but for columns.
	String() string
	expr()
}

// At is the column that a part of a tree began at.
type At int

// Column is where the part began, bytes from 1.
func (a At) Column() int { return int(a) }

func (At) expr() {}

type (
	// Binary is X and Y, or X or Y. Y is not looked at when X decides.
	Binary struct {
		At
		Op   BoolOp
		X, Y Expr
	}
	// Not is not X.
	Not struct {
		At
		X Expr
	}
	// Match compares an address, a port or a protocol number of the packet: "tcp src port 80".
	Match struct {
		At
		Proto Proto // Any: none was said
		Dir   Dir
		Kind  Kind
		Value Value
		// ValueAt is the column of the value; of one without words before it that is At, too.
		ValueAt At
	}
	// Protocol is the name of a protocol alone: "tcp".
	Protocol struct {
		At
		Proto Proto
	}
	// Relation compares two numbers: "ip[0] & 0xf != 5".
	Relation struct {
		At
		Op   RelOp
		X, Y Arith
	}
	// Cast is "broadcast" or "multicast".
	Cast struct {
		At
		Proto     Proto // Any: none was said
		Multicast bool  // else broadcast
	}
	// Length is "less N" (at most N) or "greater N" (at least N).
	Length struct {
		At
		Greater bool
		N       uint32
	}
	// Byte is the old "byte OFFSET OP N": the byte at an offset of the frame.
	Byte struct {
		At
		Offset uint32
		Op     ByteOp
		N      uint32
	}
	// Direction is "inbound" or "outbound".
	Direction struct {
		At
		Outbound bool
	}
	// Interface is "ifindex N".
	Interface struct {
		At
		Index uint32
	}
	// Encap is a header that holds others, "vlan 100": what follows it with "and"
	// looks behind it.
	Encap struct {
		At
		Kind  EncapKind
		HasID bool
		ID    uint32
		// ValueAt is the column of the ID, 0 when there is none.
		ValueAt At
	}
	// LLC is "llc" and "llc TYPE", an IEEE 802.2 header.
	LLC struct {
		At
		Type string // "", "i", "s", "u", or the name of a frame of S or U format
	}
	// Owner is one of sockd's own words about the process at this end of a packet:
	// "uid 1000", "pid 7", "comm nginx", "unit ssh.service". There only when
	// Options.Owners is set.
	Owner struct {
		At
		Field OwnerField
		N     uint32 // of UID and PID
		Text  string // of Comm and Unit, and of a UID that is a user's name; N is 0 then
		// ValueAt is the column of the value; of one without a word before it that is At, too.
		ValueAt At
	}
	// Fragments is sockd's own word "fragments". There only when Options.Fragments is set.
	Fragments struct{ At }
)

// BoolOp combines two expressions.
type BoolOp uint8

// The combinations.
const (
	And BoolOp = iota
	Or
)

// Proto is a protocol's name before or instead of an address.
type Proto uint8

// The protocols. Link is written ether, link, fddi, tr, wlan, ppp or slip.
const (
	Any Proto = iota
	Link
	IP
	ARP
	RARP
	SCTP
	TCP
	UDP
	ICMP
	IGMP
	IGRP
	PIM
	VRRP
	CARP
	ATalk
	AARP
	DECnet
	LAT
	SCA
	MOPDL
	MOPRC
	IP6
	ICMP6
	AH
	ESP
	ISO
	ESIS
	ISIS
	CLNP
	ISISL1
	ISISL2
	ISISIIH
	ISISLSP
	ISISSNP
	ISISPSNP
	ISISCSNP
	STP
	IPX
	NetBEUI
	Radio
)

// Dir is which end of the packet.
type Dir uint8

// The directions. Of AnyDir each end will do, as with SrcOrDst.
const (
	AnyDir Dir = iota
	Src
	Dst
	SrcOrDst
	SrcAndDst
)

// Kind is what a value is.
type Kind uint8

// The kinds. Of AnyKind the value itself tells: as with Host for a name.
const (
	AnyKind Kind = iota
	Host
	Net
	Port
	PortRange
	ProtoNumber // proto
	ProtoChain  // protochain
	Gateway
)

// Value is what a Match compares with: Name, Number, IPv4, IPv6, MAC or ARCnet.
type Value interface {
	String() string
	value()
}

type (
	// Name is a word that is to be looked up: of a host, net, port ("http",
	// "6000-6008") or protocol. It has lost the backslash that kept it from being a
	// keyword.
	Name string
	// Number is one alone: a port, a protocol, or all of an address, also of DECnet, of
	// which 1.5 is 1<<10 | 5. String is decimal.
	Number uint32
	// IPv4 is an address of two to four parts. Of less than four, the last parts are
	// missing, and may be any: 10.1 has the Addr 10.1.0.0, and Parts 2. Only a net has Bits
	// or a Mask, and no bit set outside of them.
	IPv4 struct {
		Addr  [4]byte
		Parts int
		// Bits is what stands behind a slash, or -1.
		Bits int
		// Mask is what stands behind "mask", nil: nothing does.
		Mask *IPv4
	}
	// IPv6 is an address.
	IPv6 struct {
		Addr netip.Addr
		Bits int // behind a slash, or -1
	}
	// MAC is a hardware address.
	MAC [6]byte
	// ARCnet is an ARCnet address, $ and two hexadecimal digits.
	ARCnet uint8
)

func (Name) value()   {}
func (Number) value() {}
func (IPv4) value()   {}
func (IPv6) value()   {}
func (MAC) value()    {}
func (ARCnet) value() {}

// Arith is a number that is computed of a packet, in 32 bits: *Constant, *FrameLen,
// *Load, *Operation or *Negate.
type Arith interface {
	Column() int
	String() string
	arith()
}

// ArithAt is the column that a part of arithmetic began at.
type ArithAt int

// Column is where the part began, bytes from 1.
func (a ArithAt) Column() int { return int(a) }

func (ArithAt) arith() {}

type (
	// Constant is a number, or a name of one such as tcp-syn.
	Constant struct {
		ArithAt
		N uint32
	}
	// FrameLen is "len".
	FrameLen struct{ ArithAt }
	// Load is "PROTO[INDEX:SIZE]".
	Load struct {
		ArithAt
		Proto Proto
		Index Arith
		Size  int // 1, 2 or 4
	}
	// Operation is X op Y.
	Operation struct {
		ArithAt
		Op   ArithOp
		X, Y Arith
	}
	// Negate is -X.
	Negate struct {
		ArithAt
		X Arith
	}
)

// ArithOp is an operation on two numbers.
type ArithOp uint8

// The operations, on unsigned numbers of 32 bits.
const (
	Add ArithOp = iota
	Sub
	Mul
	Div
	Mod
	BitAnd
	BitOr
	BitXor
	ShiftLeft
	ShiftRight
)

// RelOp compares two numbers.
type RelOp uint8

// The comparisons.
const (
	Equal RelOp = iota
	NotEqual
	Greater
	GreaterEqual
	Less
	LessEqual
)

// ByteOp is what "byte" does with its number.
type ByteOp uint8

// The operations of Byte: =, <, >, & and |.
const (
	ByteEqual ByteOp = iota
	ByteLess
	ByteGreater
	ByteAnd
	ByteOr
)

// EncapKind is a header that holds others.
type EncapKind uint8

// The headers. PPPoED, discovery, holds nothing.
const (
	VLAN EncapKind = iota
	MPLS
	PPPoED
	PPPoES
	Geneve
	VXLAN
)

// OwnerField is what is asked of the process at this end.
type OwnerField uint8

// The fields.
const (
	UID OwnerField = iota
	PID
	Comm
	Unit
)

// Options says which of sockd's own words there are. Without them they are names,
// as they are for libpcap.
type Options struct {
	Fragments bool // the word fragments
	Owners    bool // uid, pid, comm, unit
}
