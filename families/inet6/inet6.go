// Package inet6 is the IPv6 family: TCP, UDP and raw IP sockets, ipv6(7). It
// answers to the networks tcp and udp, where a socket bound to [::] is for IPv4,
// too, and to tcp6, udp6 and ip6, which are IPv6 alone.
package inet6

import (
	"context"
	"syscall"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/ksock"
)

// Family is the one line for families/all.
var Family families.Family = family{}

type family struct{}

var (
	_ families.Plain    = family{}
	_ families.Resolver = family{}
)

var kernel = &ksock.Family{
	Name:    "inet6",
	Domain:  syscall.AF_INET6,
	Types:   family{}.Types(),
	Addr:    fromName,
	Proto:   ksock.IPProtocolName,
	Options: options,
	Drops:   true,
}

func (family) Name() string { return "inet6" }

func (family) Types() []families.Type {
	return []families.Type{families.Stream, families.Dgram, families.Raw}
}

// Networks says for each word whether it is IPv6 alone, so that net.ipv6.bindv6only
// does not decide it.
func (family) Networks() []families.Network {
	dual := []families.Option{{Name: "ipv6_v6only", Value: "0"}}
	alone := []families.Option{{Name: "ipv6_v6only", Value: "1"}}
	return []families.Network{
		{Name: "tcp", Type: families.Stream, Options: dual},
		{Name: "tcp6", Type: families.Stream, Options: alone},
		{Name: "udp", Type: families.Dgram, Options: dual},
		{Name: "udp6", Type: families.Dgram, Options: alone},
		{Name: "ip6", Type: families.Raw, Protocol: true},
	}
}

func (family) ParseProtocol(t families.Type, s string) (int, error) {
	return ksock.ParseIPProtocol(s)
}

// Open opens a socket. A raw one needs a protocol.
//
// A stream socket may be bound while connections of its predecessor linger
// (SO_REUSEADDR), as the net package has it; so_reuseaddr=0 takes that back.
func (family) Open(ctx context.Context, spec families.Spec) (families.Socket, error) {
	if err := ksock.CheckIPProtocol(spec); err != nil {
		return nil, err
	}
	switch {
	case spec.Type == families.Stream:
		spec.Options = append([]families.Option{{Name: "so_reuseaddr"}}, spec.Options...)
	case spec.Type == families.Raw && spec.Protocol == 0:
		return nil, &families.SyntaxError{What: "protocol", Text: "", Why: "a raw socket needs a protocol", Hint: "sockd-ctl open inet6 raw ipv6-icmp"}
	}
	return kernel.Open(ctx, spec)
}

func (family) Domain() int { return kernel.Domain }

// Plain promises that Open adds nothing to a datagram socket.
func (family) Plain() {}

func (family) Adopt(fd int) (families.Socket, error) { return kernel.Adopt(fd) }

// options has those of ip(7), too: the kernel takes them for the IPv4 side of a
// dual-stack socket.
func options(t families.Type) []ksock.Option {
	out := append(ksock.SocketOptions(), ksock.IPv6Options()...)
	switch t {
	case families.Stream:
		out = append(append(out, ksock.IPOptions()...), ksock.TCPOptions()...)
	case families.Dgram:
		out = append(append(out, ksock.IPOptions()...), ksock.UDPOptions()...)
	}
	return append(out, ksock.IPWords(syscall.AF_INET6)...)
}
