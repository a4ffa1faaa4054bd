package inet6

import (
	"context"
	"encoding/binary"
	"math"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"syscall"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/ksock"
)

// Addr is an IPv6 address with its zone, and with a port unless it is of a raw
// socket.
type Addr struct {
	typ  families.Type
	addr netip.AddrPort
}

var _ families.Addr = Addr{}

// sockaddrLen is sizeof(struct sockaddr_in6): family, port, flow information,
// address, scope.
const sockaddrLen = 28

// maxZone is the longest name of an interface (IFNAMSIZ and its NUL).
const maxZone = 15

// ParseAddr reads [HOST%zone]:PORT, :PORT for all addresses, or HOST%zone for a
// raw socket. The zone is an interface's name or number; whether there is one is
// asked when the address is used.
func (family) ParseAddr(t families.Type, s string) (families.Addr, error) {
	host, port := s, uint16(0)
	if t != families.Raw {
		var err error
		if host, port, err = ksock.SplitPort(s); err != nil {
			return nil, err
		}
		if host == "" {
			return Addr{t, netip.AddrPortFrom(netip.IPv6Unspecified(), port)}, nil
		}
		inner, ok := strings.CutPrefix(host, "[")
		if inner, ok = cutSuffix(inner, "]", ok); !ok {
			return nil, wrong(t, s, host)
		}
		host = inner
	}
	ip, err := netip.ParseAddr(host)
	if err != nil || !ip.Is6() || !goodZone(ip.Zone()) {
		return nil, wrong(t, s, host)
	}
	return Addr{t, netip.AddrPortFrom(ip, port)}, nil
}

func cutSuffix(s, suffix string, ok bool) (string, bool) {
	if !ok {
		return s, false
	}
	return strings.CutSuffix(s, suffix)
}

func wrong(t families.Type, s, host string) error {
	hint := "[::1]:80"
	if t == families.Raw {
		hint = "::1"
	}
	return &families.SyntaxError{What: "address", Text: s, Column: 1, Why: families.Quote(host) + " is no IPv6 address", Hint: hint}
}

// goodZone tells whether z can be the name of an interface, or is none.
func goodZone(z string) bool {
	for i := range len(z) {
		if c := z[i]; c <= ' ' || c >= 0x7f || strings.IndexByte("/%[]:,\\", c) >= 0 {
			return false
		}
	}
	return len(z) <= maxZone
}

// Resolve is ParseAddr with host and service names.
func (f family) Resolve(ctx context.Context, t families.Type, s string) ([]families.Addr, error) {
	if a, err := f.ParseAddr(t, s); err == nil {
		return []families.Addr{a}, nil
	}
	found, err := ksock.Lookup(ctx, "ip6", t, s)
	if err != nil {
		return nil, &families.OpError{Op: "resolve", Family: "inet6", Addr: s, Err: err}
	}
	out := make([]families.Addr, len(found))
	for i, a := range found {
		out[i] = Addr{t, a}
	}
	return out, nil
}

// Network is tcp, udp or ip6.
func (a Addr) Network() string { return ksock.Network("ip6", a.typ) }

// String is [fe80::1%eth0]:80, or fe80::1%eth0 of a raw socket.
func (a Addr) String() string {
	if a.typ == families.Raw {
		return a.addr.Addr().String()
	}
	return a.addr.String()
}

// Scope is the host, the port and the zone. An IPv4 peer of a dual-stack socket
// has its IPv4 prefix: that is the host that rules mean.
func (a Addr) Scope() families.Scope {
	ip := a.addr.Addr().WithZone("").Unmap()
	return families.Scope{Prefix: netip.PrefixFrom(ip, ip.BitLen()), Port: a.addr.Port(), Interface: a.addr.Addr().Zone()}
}

// Sockaddr is a struct sockaddr_in6.
func (a Addr) Sockaddr() families.Name {
	var raw [sockaddrLen]byte
	binary.NativeEndian.PutUint16(raw[0:], syscall.AF_INET6)
	binary.BigEndian.PutUint16(raw[2:], a.addr.Port())
	ip := a.addr.Addr().As16()
	copy(raw[8:24], ip[:])
	binary.NativeEndian.PutUint32(raw[24:], zoneID(a.addr.Addr().Zone()))
	return families.MakeName(raw[:])
}

// zoneID is the number of a zone. One that does not exist gets a number that no
// interface has, so that the kernel refuses it (ENODEV); 0 would mean any.
func zoneID(zone string) uint32 {
	if zone == "" {
		return 0
	}
	if n, err := strconv.ParseUint(zone, 10, 31); err == nil {
		return uint32(n)
	}
	i, err := net.InterfaceByName(zone)
	if err != nil {
		return math.MaxInt32
	}
	return uint32(i.Index)
}

func zoneName(id uint32) string {
	if id == 0 {
		return ""
	}
	i, err := net.InterfaceByIndex(int(id))
	if err != nil || !goodZone(i.Name) {
		return strconv.FormatUint(uint64(id), 10)
	}
	return i.Name
}

// fromName reads a struct sockaddr_in6. [::]:0 is unnamed, and so is what is of
// another family.
func fromName(t families.Type, n families.Name) families.Addr {
	raw := n.Bytes()
	if len(raw) < sockaddrLen || binary.NativeEndian.Uint16(raw) != syscall.AF_INET6 {
		return nil
	}
	ip := netip.AddrFrom16([16]byte(raw[8:24]))
	port := binary.BigEndian.Uint16(raw[2:])
	if t == families.Raw {
		port = 0 // the kernel keeps the protocol there
	}
	if port == 0 && ip.IsUnspecified() {
		return nil
	}
	return Addr{t, netip.AddrPortFrom(ip.WithZone(zoneName(binary.NativeEndian.Uint32(raw[24:]))), port)}
}
