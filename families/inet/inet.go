// Package inet is the IPv4 family: TCP, UDP and raw IP sockets, ip(7). It answers
// to the networks tcp, tcp4, udp, udp4 and ip4.
package inet

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
	Name:    "inet",
	Domain:  syscall.AF_INET,
	Types:   family{}.Types(),
	Addr:    fromName,
	Proto:   ksock.IPProtocolName,
	Options: options,
	Drops:   true,
}

func (family) Name() string { return "inet" }

func (family) Types() []families.Type {
	return []families.Type{families.Stream, families.Dgram, families.Raw}
}

func (family) Networks() []families.Network {
	return []families.Network{
		{Name: "tcp", Type: families.Stream},
		{Name: "tcp4", Type: families.Stream},
		{Name: "udp", Type: families.Dgram},
		{Name: "udp4", Type: families.Dgram},
		{Name: "ip4", Type: families.Raw, Protocol: true},
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
		return nil, &families.SyntaxError{What: "protocol", Text: "", Why: "a raw socket needs a protocol", Hint: "sockd-ctl open inet raw icmp"}
	}
	return kernel.Open(ctx, spec)
}

func (family) Domain() int { return kernel.Domain }

// Plain promises that Open adds nothing to a datagram socket.
func (family) Plain() {}

func (family) Adopt(fd int) (families.Socket, error) { return kernel.Adopt(fd) }

func options(t families.Type) []ksock.Option {
	out := append(ksock.SocketOptions(), ksock.IPOptions()...)
	switch t {
	case families.Stream:
		out = append(out, ksock.TCPOptions()...)
	case families.Dgram:
		out = append(out, ksock.UDPOptions()...)
	}
	return append(out, ksock.IPWords(syscall.AF_INET)...)
}
