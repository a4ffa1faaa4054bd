package main

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"strings"
)

// A packet may end anywhere: it was cut at the snapshot length, or its sender lies.
// What reads one asks for the fields that it wants with u8, u16 and so on, and does not
// ask before whether they are there: a field beyond the end panics with cutShort, and
// the one who began, at the packet's first byte, recovers with untilCut. encoding/json
// ends a bad document in the same way.

// cutShort is the panic of a field that lies beyond the bytes at hand.
type cutShort struct{}

// untilCut is deferred by who begins to read a packet: when it ends within a field,
// cut is called.
func untilCut(cut func()) {
	switch r := recover().(type) {
	case nil:
	case cutShort:
		cut()
	default:
		panic(r)
	}
}

func need(b []byte, n int) {
	if len(b) < n {
		panic(cutShort{})
	}
}

func u8(b []byte, at int) byte {
	need(b, at+1)
	return b[at]
}

func u16(b []byte, at int) uint16 {
	need(b, at+2)
	return binary.BigEndian.Uint16(b[at:])
}

func u24(b []byte, at int) uint32 { return uint32(u8(b, at))<<16 | uint32(u16(b, at+1)) }

func u32(b []byte, at int) uint32 {
	need(b, at+4)
	return binary.BigEndian.Uint32(b[at:])
}

func u64(b []byte, at int) uint64 {
	need(b, at+8)
	return binary.BigEndian.Uint64(b[at:])
}

// part is the n bytes from at.
func part(b []byte, at, n int) []byte {
	need(b, at+n)
	return b[at : at+n]
}

// has tells whether b has n bytes.
func has(b []byte, n int) bool { return len(b) >= n }

// skip is b without its first n bytes, or nothing.
func skip(b []byte, n int) []byte { return b[min(max(n, 0), len(b)):] }

// first is at most the first n bytes of b.
func first(b []byte, n int) []byte { return b[:min(max(n, 0), len(b))] }

// ip4 and ip6 are the address at at.
func ip4(b []byte, at int) string { return netip.AddrFrom4([4]byte(part(b, at, 4))).String() }
func ip6(b []byte, at int) string { return addr(part(b, at, 16)) }

// addr prints an IP address of 4 or 16 bytes.
func addr(b []byte) string {
	a, ok := netip.AddrFromSlice(b)
	switch {
	case !ok:
		return "?"
	case a.Is4In6(): // ::ffff:1.2.3.4, as inet_ntop(3) writes it
		return "::ffff:" + a.Unmap().String()
	case compatible(b): // ::1.2.3.4, too
		return "::" + netip.AddrFrom4([4]byte(b[12:])).String()
	}
	return a.String()
}

// compatible tells whether an address is one of the old IPv4-compatible ones. :: and
// ::1 are not.
func compatible(b []byte) bool {
	return len(b) == 16 && [12]byte(b) == [12]byte{} && u32(b, 12) > 1
}

// mac is the hardware address at at.
func mac(b []byte, at int) string { return net.HardwareAddr(part(b, at, 6)).String() }

// hardware prints a hardware address of any length.
func hardware(b []byte) string {
	if len(b) == 0 {
		return "<empty>"
	}
	return net.HardwareAddr(b).String()
}

func hexOf(b []byte) string { return hex.EncodeToString(b) }

// A names is a table of numbers that have names.
type names map[int]string

// or is the name of n, or what format makes of it.
func (t names) or(n int, format string) string {
	if name, ok := t[n]; ok {
		return name
	}
	if strings.Contains(format, "%") {
		return fmt.Sprintf(format, n)
	}
	return format
}

// A bitName is a bit, or several, that have a name.
type bitName struct {
	bits uint32
	name string
}

// bitNames are the names of the bits of v, joined, or "none".
func bitNames(table []bitName, v uint32, between string) string {
	var words []string
	for _, b := range table {
		if v&b.bits == b.bits {
			words = append(words, b.name)
		}
	}
	if len(words) == 0 {
		return "none"
	}
	return strings.Join(words, between)
}

// plainText is foreign text without what could steer a terminal: ^X, M-X.
func plainText(data []byte) string {
	var b strings.Builder
	for _, c := range data {
		if c >= 0x80 {
			b.WriteString("M-")
			c &= 0x7f
		}
		if c < 0x20 || c == 0x7f {
			b.WriteByte('^')
			c ^= 0x40
		}
		b.WriteByte(c)
	}
	return b.String()
}

// addWords adds up 16-bit words in network byte order; an odd last byte is a
// word's first.
func addWords(b []byte) (total uint32) {
	for ; len(b) >= 2; b = b[2:] {
		total += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		total += uint32(b[0]) << 8
	}
	return total
}

// fold makes a checksum of a sum (RFC 1071).
func fold(total uint32) uint16 {
	for total > 0xffff {
		total = total>>16 + total&0xffff
	}
	return ^uint16(total)
}

// should is the checksum that would be right, where has stands and sum is what
// the segment adds up to.
func should(has, sum uint16) uint16 { return fold(uint32(^has) + uint32(^sum)) }
