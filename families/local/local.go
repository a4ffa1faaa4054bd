// Package local is the unix family: stream, datagram and seqpacket sockets within
// one machine, unix(7). It answers to the networks unix, unixgram and unixpacket.
//
// Addresses are paths, or abstract names after an "@" (see Addr). A path that
// starts with "@" is written ./@x.
package local

import (
	"context"
	"syscall"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/ksock"
)

// Family is the one line for families/all.
var Family families.Family = family{}

type family struct{}

var _ families.Adopter = family{}

var kernel = &ksock.Family{
	Name:    "local",
	Domain:  syscall.AF_UNIX,
	Types:   family{}.Types(),
	Addr:    fromName,
	Proto:   func(int) string { return "unix" },
	Options: func(families.Type) []ksock.Option { return append(ksock.SocketOptions(), ksock.UnixOptions()...) },
	Control: true,
}

func (family) Name() string { return "local" }

func (family) Types() []families.Type {
	return []families.Type{families.Stream, families.Dgram, families.Seqpacket}
}

func (family) Networks() []families.Network {
	return []families.Network{
		{Name: "unix", Type: families.Stream},
		{Name: "unixgram", Type: families.Dgram},
		{Name: "unixpacket", Type: families.Seqpacket},
	}
}

// ParseProtocol knows no protocol but the one that there is.
func (family) ParseProtocol(t families.Type, s string) (int, error) {
	switch s {
	case "", "0", "unix":
		return 0, nil
	}
	return 0, &families.SyntaxError{What: "protocol", Text: s, Column: 1, Why: "unix sockets have no protocols"}
}

func (family) Open(ctx context.Context, spec families.Spec) (families.Socket, error) {
	s, err := kernel.Open(ctx, spec)
	if err != nil {
		return nil, err
	}
	return withFile(s), nil
}

// withFile has a socket keep the file that it makes.
func withFile(s families.Socket) families.Socket {
	switch s := s.(type) {
	case *ksock.Conn:
		return &conn{Conn: s}
	case *ksock.Base:
		return &dgram{Base: s}
	}
	return s
}

func (family) Domain() int { return kernel.Domain }

// Adopt wraps a descriptor. The path of a socket that somebody else bound is
// theirs: Close leaves it, but for OwnFile.
func (family) Adopt(fd int) (families.Socket, error) {
	s, err := kernel.Adopt(fd)
	if err != nil {
		return nil, err
	}
	return withFile(s), nil
}
