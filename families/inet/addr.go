package inet

import (
	"context"
	"encoding/binary"
	"net/netip"
	"syscall"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/ksock"
)

// Addr is an IPv4 address, with a port unless it is of a raw socket.
type Addr struct {
	typ  families.Type
	addr netip.AddrPort
}

var _ families.Addr = Addr{}

// sockaddrLen is sizeof(struct sockaddr_in): family, port, address, 8 of padding.
const sockaddrLen = 16

// ParseAddr reads HOST:PORT, :PORT for all addresses, or HOST for a raw socket.
func (family) ParseAddr(t families.Type, s string) (families.Addr, error) {
	host, port := s, uint16(0)
	if t != families.Raw {
		var err error
		if host, port, err = ksock.SplitPort(s); err != nil {
			return nil, err
		}
		if host == "" {
			return Addr{t, netip.AddrPortFrom(netip.IPv4Unspecified(), port)}, nil
		}
	}
	ip, err := netip.ParseAddr(host)
	if err != nil || !ip.Is4() {
		return nil, &families.SyntaxError{What: "address", Text: s, Column: 1, Why: families.Quote(host) + " is no IPv4 address", Hint: hint(t)}
	}
	return Addr{t, netip.AddrPortFrom(ip, port)}, nil
}

func hint(t families.Type) string {
	if t == families.Raw {
		return "127.0.0.1"
	}
	return "127.0.0.1:80"
}

// Resolve is ParseAddr with host and service names.
func (f family) Resolve(ctx context.Context, t families.Type, s string) ([]families.Addr, error) {
	if a, err := f.ParseAddr(t, s); err == nil {
		return []families.Addr{a}, nil
	}
	found, err := ksock.Lookup(ctx, "ip4", t, s)
	if err != nil {
		return nil, &families.OpError{Op: "resolve", Family: "inet", Addr: s, Err: err}
	}
	out := make([]families.Addr, len(found))
	for i, a := range found {
		out[i] = Addr{t, a}
	}
	return out, nil
}

// Network is tcp, udp or ip4.
func (a Addr) Network() string { return ksock.Network("ip4", a.typ) }

// String is 10.0.0.1:80, or 10.0.0.1 of a raw socket.
func (a Addr) String() string {
	if a.typ == families.Raw {
		return a.addr.Addr().String()
	}
	return a.addr.String()
}

// Scope is the host and the port.
func (a Addr) Scope() families.Scope {
	return families.Scope{Prefix: netip.PrefixFrom(a.addr.Addr(), 32), Port: a.addr.Port()}
}

// Sockaddr is a struct sockaddr_in.
func (a Addr) Sockaddr() families.Name {
	var raw [sockaddrLen]byte
	binary.NativeEndian.PutUint16(raw[0:], syscall.AF_INET)
	binary.BigEndian.PutUint16(raw[2:], a.addr.Port())
	ip := a.addr.Addr().As4()
	copy(raw[4:8], ip[:])
	return families.MakeName(raw[:])
}

// fromName reads a struct sockaddr_in. 0.0.0.0:0 is unnamed, and so is what is
// of another family.
func fromName(t families.Type, n families.Name) families.Addr {
	raw := n.Bytes()
	if len(raw) < 8 || binary.NativeEndian.Uint16(raw) != syscall.AF_INET {
		return nil
	}
	ip := netip.AddrFrom4([4]byte(raw[4:8]))
	port := binary.BigEndian.Uint16(raw[2:])
	if t == families.Raw {
		port = 0 // the kernel keeps the protocol there
	}
	if port == 0 && ip.IsUnspecified() {
		return nil
	}
	return Addr{t, netip.AddrPortFrom(ip, port)}
}
