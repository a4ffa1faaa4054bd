package packet

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net"
	"strconv"
	"strings"

	"github.com/sockd/sockd/families"
	"golang.org/x/sys/unix"
)

// Any is the pseudo interface that stands for all of them, index 0.
const Any = "any"

// maxMAC is the longest hardware address, InfiniBand's; sockaddr_ll grows for it.
const maxMAC = 20

// Addr is an interface, and as far as they are named the EtherType of its packets
// and a hardware address.
type Addr struct {
	// Interface is a name, Any, or #INDEX for one that has no name any more.
	Interface string
	EtherType uint16 // 0: not named
	MACLen    uint8
	MAC       [maxMAC]byte
}

// Words for EtherTypes and the kernel's pseudo types of linux/if_ether.h. The first
// of those with one number is printed.
var etherTypes = []struct {
	word   string
	number uint16
}{
	{"ip", unix.ETH_P_IP}, {"ip6", unix.ETH_P_IPV6}, {"arp", unix.ETH_P_ARP}, {"rarp", unix.ETH_P_RARP},
	{"all", unix.ETH_P_ALL}, {"802.3", unix.ETH_P_802_3}, {"802.2", unix.ETH_P_802_2},
	{"ipx", unix.ETH_P_IPX}, {"vlan", unix.ETH_P_8021Q}, {"qinq", unix.ETH_P_8021AD}, {"loop", unix.ETH_P_LOOP},
	{"mpls", unix.ETH_P_MPLS_UC}, {"pppoe", unix.ETH_P_PPP_SES}, {"lldp", unix.ETH_P_LLDP}, {"ptp", unix.ETH_P_1588}, {"eapol", unix.ETH_P_PAE},
	{"ipv4", unix.ETH_P_IP}, {"ipv6", unix.ETH_P_IPV6},
}

const etherTypeHint = "ip, ip6, arp, all, ipx, vlan, 0x88b5"

// parseAddr reads IFNAME[/ETHERTYPE[/MAC]].
func parseAddr(s string) (Addr, error) {
	fail := func(column int, why, hint string) (Addr, error) {
		return Addr{}, &families.SyntaxError{What: "address", Text: s, Column: column, Why: why, Hint: hint}
	}
	if _, err := families.Unescape(s); err != nil {
		return Addr{}, err
	}
	// A name may have a comma in it, a backslash, or bytes that are no UTF-8, but no
	// slash: so the parts are told apart before the escapes are taken out.
	iface, rest, hasType := strings.Cut(s, "/")
	a := Addr{Interface: plain(iface)}
	if !validInterface(a.Interface) {
		return fail(1, families.Quote(iface)+" cannot be an interface's name", "eth0, eth0/ip, eth0/0x88b5/02:00:00:00:00:01, any")
	}
	if !hasType {
		return a, nil
	}
	word, mac, hasMAC := strings.Cut(rest, "/")
	var ok bool
	if a.EtherType, ok = parseEtherType(plain(word)); !ok {
		return fail(len(iface)+2, families.Quote(word)+" is no EtherType", etherTypeHint)
	}
	if !hasMAC {
		return a, nil
	}
	n, ok := parseMAC(plain(mac), a.MAC[:])
	if !ok {
		return fail(len(iface)+len(word)+3, families.Quote(mac)+" is no hardware address", "02:00:00:00:00:01")
	}
	a.MACLen = uint8(n)
	return a, nil
}

// plain takes the escapes out of a part of an address whose escapes are good.
func plain(part string) string {
	p, _ := families.Unescape(part)
	return p
}

// validInterface is dev_valid_name of the kernel (net/core/dev.c), and #INDEX.
func validInterface(s string) bool {
	if digits, ok := strings.CutPrefix(s, "#"); ok {
		i, err := strconv.ParseInt(digits, 10, 32)
		return err == nil && i > 0 && digits == strconv.FormatInt(i, 10)
	}
	if s == "" || len(s) >= unix.IFNAMSIZ || s == "." || s == ".." {
		return false
	}
	return !strings.ContainsFunc(s, func(r rune) bool {
		return r <= ' ' || r == 0x7f || r == 0x85 || r == 0xa0 || r == ':' || r == '/'
	})
}

// parseEtherType reads a word or a number from 1 to 0xffff.
func parseEtherType(s string) (uint16, bool) {
	for _, t := range etherTypes {
		if t.word == s {
			return t.number, true
		}
	}
	n, err := strconv.ParseUint(s, 0, 16)
	return uint16(n), err == nil && n > 0
}

func etherTypeWord(n uint16) string {
	for _, t := range etherTypes {
		if t.number == n {
			return t.word
		}
	}
	return fmt.Sprintf("%#04x", n)
}

// parseMAC reads pairs of hex digits with colons between into b.
func parseMAC(s string, b []byte) (n int, ok bool) {
	for part := range strings.SplitSeq(s, ":") {
		if n == len(b) || len(part) != 2 {
			return 0, false
		}
		if _, err := hex.Decode(b[n:n+1], []byte(part)); err != nil {
			return 0, false
		}
		n++
	}
	return n, true
}

// Network is "packet".
func (Addr) Network() string { return name }

// String is what ParseAddr reads.
func (a Addr) String() string {
	iface := families.Escape(a.Interface)
	switch {
	case a.EtherType == 0:
		return iface
	case a.MACLen == 0:
		return iface + "/" + etherTypeWord(a.EtherType)
	}
	return iface + "/" + etherTypeWord(a.EtherType) + "/" + net.HardwareAddr(a.MAC[:a.MACLen]).String()
}

// Scope names the interface.
func (a Addr) Scope() families.Scope { return families.Scope{Interface: a.Interface} }

// Offsets in struct sockaddr_ll, packet(7).
const (
	offProtocol   = 2 // in network order
	offIfindex    = 4
	offPacketType = 10
	offMACLen     = 11
	offMAC        = 12
)

// Sockaddr is a struct sockaddr_ll. The interface is looked up in the network
// namespace of the caller; one that is not there has the index -1, which the
// kernel refuses with ENODEV or ENXIO.
func (a Addr) Sockaddr() families.Name {
	return a.sockaddr(func(iface string) (int, error) {
		i, err := net.InterfaceByName(iface)
		if err != nil {
			return 0, err
		}
		return i.Index, nil
	})
}

func (a Addr) sockaddr(find func(iface string) (int, error)) families.Name {
	index, err := a.index(find)
	if err != nil {
		index = -1
	}
	raw := make([]byte, max(unix.SizeofSockaddrLinklayer, offMAC+int(a.MACLen)))
	binary.NativeEndian.PutUint16(raw, unix.AF_PACKET)
	binary.BigEndian.PutUint16(raw[offProtocol:], a.EtherType)
	binary.NativeEndian.PutUint32(raw[offIfindex:], uint32(int32(index)))
	raw[offMACLen] = a.MACLen
	copy(raw[offMAC:], a.MAC[:a.MACLen])
	return families.MakeName(raw)
}

func (a Addr) index(find func(iface string) (int, error)) (int, error) {
	if a.Interface == Any {
		return 0, nil
	}
	if digits, ok := strings.CutPrefix(a.Interface, "#"); ok {
		return strconv.Atoi(digits)
	}
	return find(a.Interface)
}

// kernelAddr reads a struct sockaddr_ll, with #INDEX for the interface. It is nil
// for the one of a socket that was not bound.
func kernelAddr(_ families.Type, n families.Name) families.Addr {
	a, index, ok := readSockaddr(n)
	if !ok {
		return nil
	}
	if index != 0 {
		a.Interface = fmt.Sprintf("#%d", index)
	}
	return a
}

// indexIn is the interface's number in a struct sockaddr_ll.
func indexIn(n families.Name) (index int, ok bool) {
	raw := n.Bytes()
	if len(raw) < offMAC {
		return 0, false
	}
	return int(int32(binary.NativeEndian.Uint32(raw[offIfindex:]))), true
}

func readSockaddr(n families.Name) (a Addr, index int, ok bool) {
	raw := n.Bytes()
	if len(raw) < offMAC {
		return Addr{}, 0, false
	}
	a = Addr{Interface: Any, EtherType: binary.BigEndian.Uint16(raw[offProtocol:])}
	index = int(int32(binary.NativeEndian.Uint32(raw[offIfindex:])))
	if index == 0 && a.EtherType == 0 {
		return Addr{}, 0, false
	}
	a.MACLen = uint8(copy(a.MAC[:min(int(raw[offMACLen]), maxMAC)], raw[offMAC:]))
	if a.EtherType == 0 {
		a.MACLen, a.MAC = 0, [maxMAC]byte{} // cannot be written without a type
	}
	return a, index, true
}
