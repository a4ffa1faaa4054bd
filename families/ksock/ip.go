package ksock

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/sockd/sockd/families"
)

// The internet families share how ports, protocols and host names are written;
// since no family imports another, that is here.

// protocols are the names of the IANA protocol numbers that sockets are opened
// with. The first name of a number is the one that is printed.
var protocols = []struct {
	name   string
	number int
}{
	{"ip", 0}, {"icmp", 1}, {"igmp", 2}, {"ipip", 4}, {"tcp", 6}, {"egp", 8}, {"udp", 17}, {"dccp", 33},
	{"ipv6", 41}, {"rsvp", 46}, {"gre", 47}, {"esp", 50}, {"ah", 51}, {"ipv6-icmp", 58}, {"icmp6", 58}, {"icmpv6", 58},
	{"eigrp", 88}, {"ospf", 89}, {"pim", 103}, {"vrrp", 112}, {"l2tp", 115}, {"sctp", 132}, {"udplite", 136},
	{"mpls-in-ip", 137}, {"raw", 255}, {"mptcp", 262},
}

// maxProtocol is the largest protocol of socket(2): IPPROTO_MPTCP and the numbers
// beside it do not fit into an IP header.
const maxProtocol = 511

// ParseIPProtocol reads a protocol's name or number; "" is 0, the system picks.
func ParseIPProtocol(s string) (int, error) {
	if s == "" {
		return 0, nil
	}
	for _, p := range protocols {
		if strings.EqualFold(p.name, s) {
			return p.number, nil
		}
	}
	n, err := strconv.ParseUint(s, 0, 16)
	if err != nil || n > maxProtocol {
		return 0, &families.SyntaxError{What: "protocol", Text: s, Column: 1, Why: "want a name or a number", Hint: "icmp, ipv6-icmp, udp, gre, 47"}
	}
	return int(n), nil
}

// CheckIPProtocol refuses a protocol that an IP header has no room for, but for those
// beyond it that stand for a kind of stream (mptcp). The error wraps ErrSyntax.
func CheckIPProtocol(spec families.Spec) error {
	most := 255
	if spec.Type == families.Stream {
		most = maxProtocol
	}
	if spec.Protocol >= 0 && spec.Protocol <= most {
		return nil
	}
	return &families.SyntaxError{What: "protocol", Text: strconv.Itoa(spec.Protocol), Column: 1, Why: fmt.Sprintf("want a number from 0 to %d", most)}
}

// IPProtocolName is the word for a protocol number, or "".
func IPProtocolName(n int) string {
	for _, p := range protocols {
		if p.number == n {
			return p.name
		}
	}
	return ""
}

// SplitPort cuts HOST:PORT at the last colon and reads the port, which is a
// number. The host is as it was written, in brackets or not.
func SplitPort(s string) (host string, port uint16, err error) {
	host, service, err := splitService(s)
	if err != nil {
		return "", 0, err
	}
	n, err := strconv.ParseUint(service, 10, 16)
	if err != nil {
		return "", 0, &families.SyntaxError{What: "address", Text: s, Column: len(host) + 2, Why: "want a port from 0 to 65535"}
	}
	return host, uint16(n), nil
}

func splitService(s string) (host, service string, err error) {
	i := strings.LastIndexByte(s, ':')
	if i < 0 || strings.HasSuffix(s, "]") {
		return "", "", &families.SyntaxError{What: "address", Text: s, Column: 1, Why: "want HOST:PORT", Hint: portHint(s)}
	}
	return s[:i], s[i+1:], nil
}

// portHint guesses what was left out: the host before a port, or the port.
func portHint(s string) string {
	if _, err := strconv.ParseUint(s, 10, 16); err == nil {
		return fmt.Sprintf(":%s (all addresses) or 127.0.0.1:%s", s, s)
	}
	return s + ":80"
}

// lookups never leaves Go: the C library's would hold a thread for each.
var lookups = net.Resolver{PreferGo: true}

// LookupHostPort is HOST:PORT with both looked up: network is "ip4" or "ip6", and
// transport, which decides what a service's name means, "tcp" or "udp".
func LookupHostPort(ctx context.Context, network, transport, s string) ([]netip.AddrPort, error) {
	host, service, err := splitService(s)
	if err != nil {
		return nil, err
	}
	literal, isLiteral := literalHost(network, host)
	if !isLiteral && !hostName(host) {
		return nil, noHost(network, s, host)
	}
	port, err := lookups.LookupPort(ctx, transport, service)
	if err != nil {
		return nil, &families.SyntaxError{What: "address", Text: s, Column: len(host) + 2, Why: families.Quote(service) + " is no port and no service"}
	}
	addrs := []netip.Addr{literal}
	if !isLiteral {
		if addrs, err = LookupHost(ctx, network, host); err != nil {
			return nil, err
		}
	}
	out := make([]netip.AddrPort, len(addrs))
	for i, a := range addrs {
		out[i] = netip.AddrPortFrom(a, uint16(port))
	}
	return out, nil
}

// noHost says why host, at the start of the address s, is none of network's. A
// literal of the other network is the usual slip.
func noHost(network, s, host string) error {
	why := families.Quote(host) + " is no address and no host name"
	ip, err := netip.ParseAddr(strings.Trim(host, "[]"))
	withPort, portErr := netip.ParseAddrPort(host)
	switch {
	case err == nil && ip.Is4() && network == "ip6":
		why = fmt.Sprintf("%q is an IPv4 address, and inet is its family", host)
	case err == nil && ip.Is6() && network == "ip4":
		why = fmt.Sprintf("%q is an IPv6 address, and inet6 is its family", host)
	case err == nil && ip.Is6() && !strings.HasPrefix(host, "["):
		why = fmt.Sprintf("%q wants brackets: [%s]", host, host)
	case portErr == nil && withPort.IsValid():
		why = fmt.Sprintf("%q has a port, and a raw socket has none", host)
	}
	return &families.SyntaxError{What: "address", Text: s, Column: 1, Why: why}
}

// LookupHost finds a host's addresses: at least one when err is nil.
func LookupHost(ctx context.Context, network, host string) ([]netip.Addr, error) {
	if !hostName(host) {
		return nil, noHost(network, host, host)
	}
	addrs, err := lookups.LookupNetIP(ctx, network, host)
	if err != nil {
		return nil, err
	}
	for i := range addrs {
		if network == "ip4" {
			addrs[i] = addrs[i].Unmap()
		}
	}
	return addrs, nil
}

// literalHost reads what needs no look-up before a service's name: an address of
// the network, in brackets if it is IPv6, or nothing for all addresses.
func literalHost(network, host string) (netip.Addr, bool) {
	switch {
	case host == "" && network == "ip4":
		return netip.IPv4Unspecified(), true
	case host == "":
		return netip.IPv6Unspecified(), true
	case network == "ip6":
		inner, ok := strings.CutPrefix(host, "[")
		if !ok || !strings.HasSuffix(inner, "]") {
			return netip.Addr{}, false
		}
		host = strings.TrimSuffix(inner, "]")
	}
	ip, err := netip.ParseAddr(host)
	if err != nil || ip.Is4() != (network == "ip4") || ip.Zone() != "" {
		return netip.Addr{}, false
	}
	return ip, true
}

// hostName tells whether s can be a host's name: letters, digits, hyphens, dots
// and underscores, and not all digits and dots, which is an address gone wrong.
func hostName(s string) bool {
	letter := false
	for i := range len(s) {
		switch c := s[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c == '_':
			letter = true
		case c >= '0' && c <= '9', c == '.', c == '-' && i > 0:
		default:
			return false
		}
	}
	return letter && len(s) <= 253
}

// Network is what package net calls a type of socket of an IP version, "ip4" or "ip6":
// tcp, udp, or the version itself for raw sockets.
func Network(ip string, t families.Type) string {
	switch t {
	case families.Stream:
		return "tcp"
	case families.Dgram:
		return "udp"
	}
	return ip
}

// Lookup finds the addresses of an IP version that a HOST:PORT with names means, or for
// raw sockets a HOST, whose port is 0.
func Lookup(ctx context.Context, ip string, t families.Type, s string) ([]netip.AddrPort, error) {
	if network := Network(ip, t); network != ip {
		return LookupHostPort(ctx, ip, network, s)
	}
	ips, err := LookupHost(ctx, ip, s)
	out := make([]netip.AddrPort, len(ips))
	for i, a := range ips {
		out[i] = netip.AddrPortFrom(a, 0)
	}
	return out, err
}
