package families

import (
	"context"
	"fmt"
	"io"
)

// Type is a socket type, as in socket(2). The numbers are ours and start at 1,
// so that a forgotten Type is never a valid one.
type Type uint8

// The socket types that sockd knows.
const (
	Stream Type = iota + 1
	Dgram
	Seqpacket
	Raw
)

var typeNames = [...]string{Stream: "stream", Dgram: "dgram", Seqpacket: "seqpacket", Raw: "raw"}

// String is the word that ParseType reads.
func (t Type) String() string {
	if t < Stream || t > Raw {
		return fmt.Sprintf("type(%d)", uint8(t))
	}
	return typeNames[t]
}

// Messages tells whether the type keeps message borders.
func (t Type) Messages() bool { return t != Stream }

// ParseType reads "stream", "dgram", "seqpacket" or "raw".
func ParseType(s string) (Type, error) {
	for t := Stream; t <= Raw; t++ {
		if typeNames[t] == s {
			return t, nil
		}
	}
	return 0, fmt.Errorf("type %q: want stream, dgram, seqpacket or raw: %w", s, ErrSyntax)
}

// Family opens the sockets of one protocol family and reads its addresses.
// Its methods may be called from any goroutine.
type Family interface {
	// Name is the family's word, as in the domains of socket(2): inet, inet6,
	// local, packet, ipx.
	Name() string
	// Networks are the endpoint words that the family answers to. Several
	// families may answer to one word ("tcp"): then the first in the Set whose
	// ParseAddr accepts the address is asked first.
	Networks() []Network
	// Types are the socket types that Open accepts.
	Types() []Type
	// ParseAddr reads an address as a user writes it, in escaped form (Unescape),
	// for a socket of type t. A family whose addresses have nothing to escape may
	// read it as it is. It looks nothing up: a host name is an error wrapping
	// ErrSyntax (see Resolver).
	ParseAddr(t Type, s string) (Addr, error)
	// ParseProtocol reads a protocol for type t, a name or a number ("icmp",
	// "0x88b5"). "" is 0: the system picks.
	ParseProtocol(t Type, s string) (int, error)
	// Open opens a socket. Unknown options in spec wrap ErrSyntax; a type that the
	// family has not wraps ErrNotSupported.
	Open(ctx context.Context, spec Spec) (Socket, error)
}

// Network is one endpoint word, such as "tcp4" or "unixgram".
type Network struct {
	Name string
	Type Type
	// Protocol tells that the address begins with "PROTO:", as in ip4:icmp:10.0.0.1.
	Protocol bool
	// Options are set on every socket of the network, before those that the
	// endpoint names ("tcp6" is v6only).
	Options []Option
}

// Spec says what socket to open.
type Spec struct {
	Type     Type
	Protocol int      // 0: the system picks
	Options  []Option // set in order, before bind
}

// Option is a socket option or an endpoint option: name, and value as text.
// Names are those of socket(7), tcp(7), ip(7), packet(7) and so on in lower case
// (so_rcvbuf, tcp_nodelay), and the endpoint's short words (iface, v6only,
// reuseport, join, cooked, nopromisc, outgoing).
type Option struct {
	Name  string
	Value string // "" means a bare word: a switch that is turned on
}

// Adopter is a Family whose sockets are descriptors, so that one opened
// elsewhere can be taken in.
type Adopter interface {
	// Domain is the AF_ number that SO_DOMAIN reports for its sockets.
	Domain() int
	// Adopt wraps a socket descriptor, which is made non-blocking. On success
	// the Socket owns fd; on error the caller still does.
	Adopt(fd int) (Socket, error)
}

// Plain is a Family whose Open without options is socket(2) of its Domain and nothing
// more, so that an engine may make the call itself, for a bare descriptor. What wraps
// a Family to open sockets in another way has no such method.
type Plain interface {
	Adopter
	// Plain does nothing: having it is the promise.
	Plain()
}

// Resolver is a Family with host names.
type Resolver interface {
	// Resolve is ParseAddr with names looked up. The addresses are to be tried
	// in order; there is at least one when err is nil.
	Resolve(ctx context.Context, t Type, s string) ([]Addr, error)
}

// Runner is a Family with shared state and timers of its own.
type Runner interface {
	Start(context.Context) error
	io.Closer
}

// Set is an ordered list of families. The order is the order of preference
// where several answer to one network.
type Set []Family

// Family finds a family by its name; "unix" is a second word for local.
func (s Set) Family(name string) (Family, error) {
	if name == "unix" {
		name = "local"
	}
	for _, f := range s {
		if f.Name() == name {
			return f, nil
		}
	}
	return nil, fmt.Errorf("family %q: want %s: %w", name, s.names(), ErrSyntax)
}

// Domain finds the family whose descriptors have the given AF_ number.
func (s Set) Domain(domain int) (Adopter, error) {
	for _, f := range s {
		if a, ok := f.(Adopter); ok && a.Domain() == domain {
			return a, nil
		}
	}
	return nil, fmt.Errorf("address family %d: %w", domain, ErrNotSupported)
}

func (s Set) names() string {
	out := ""
	for i, f := range s {
		switch {
		case i > 0 && i == len(s)-1:
			out += " or "
		case i > 0:
			out += ", "
		}
		out += f.Name()
	}
	return out
}
