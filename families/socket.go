package families

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
)

// Addr is an address of one family. Addrs are immutable and comparable with ==.
type Addr interface {
	net.Addr // Network is one of the family's network words, String what ParseAddr reads, in escaped form
	// Sockaddr is the address as the kernel has it, struct sockaddr and all.
	Sockaddr() Name
	// Scope is what policy needs to see.
	Scope() Scope
}

// Scope is the part of an address that decides who may use it. Fields that the
// family has not are zero.
type Scope struct {
	Prefix    netip.Prefix // the host, /32 or /128
	Port      uint16
	Path      string // in plain form: absolute, or "@name" for an abstract unix name
	Interface string
}

// nameCap is larger than every struct sockaddr that sockd meets (sockaddr_un is
// 110 bytes, and an abstract name is told apart by its length).
const nameCap = 127

// Name is a struct sockaddr of fixed size: it costs no allocation and is
// comparable, so it can be a map key. The zero Name is "unnamed".
type Name struct {
	len uint8
	raw [nameCap]byte
}

// MakeName copies a struct sockaddr. It panics if b is longer than any sockaddr.
func MakeName(b []byte) Name {
	if len(b) > nameCap {
		panic(fmt.Sprintf("families: sockaddr of %d bytes", len(b)))
	}
	var n Name
	n.len = uint8(copy(n.raw[:], b))
	return n
}

// Bytes is the sockaddr in n's own memory; it must not be kept longer than n.
func (n *Name) Bytes() []byte { return n.raw[:n.len] }

// Buffer is n's whole memory, for the kernel to write to; SetLen follows.
func (n *Name) Buffer() []byte { return n.raw[:] }

// SetLen sets how many bytes of Buffer are the sockaddr, and clears the rest, so
// that equal names stay equal.
func (n *Name) SetLen(l int) {
	l = max(0, min(l, nameCap))
	clear(n.raw[l:])
	n.len = uint8(l)
}

// Empty tells whether n is unnamed.
func (n *Name) Empty() bool { return n.len == 0 }

// Ready is what a caller waits for.
type Ready uint8

// The kinds of readiness. Readable holds at the end of a stream and on a pending
// error too, as in poll(2).
const (
	Readable Ready = 1 << iota
	Writable
)

// Flags tell more of a message. The values are ours.
type Flags uint8

// Message flags.
const (
	// FlagOOB marks a TCP urgent byte.
	FlagOOB Flags = 1 << iota
	// FlagPeek, given to Recv, leaves the data in the queue.
	FlagPeek
	// FlagOutgoing marks a packet frame that this host sent (PACKET_OUTGOING).
	FlagOutgoing
)

// Creds is what SCM_CREDENTIALS says of a sender.
type Creds struct {
	PID      int32
	UID, GID uint32
}

// Msg is one message, or one piece of a stream. A Msg is reused: Recv overwrites
// every field.
//
// For Recv, Data's capacity is the room that there is; Recv reslices it. For
// Send, Data is what to send and Peer whom to send it to (unnamed: the connected
// peer). Neither keeps any of it.
type Msg struct {
	Data []byte
	Peer Name
	// Full is the message's length on the wire: more than len(Data) when it was cut.
	Full  int
	Flags Flags
	// Files are descriptors that came with the message (unix). The receiver owns
	// them; a sender keeps owning them.
	Files []int
	Creds *Creds
}

// Socket is what every socket of every family can do. All methods may be called
// from any goroutine at any time.
type Socket interface {
	// Close ends every Wait with net.ErrClosed. Twice is nil.
	io.Closer
	Bind(Addr) error
	// Connect waits until the connection stands, and takes the attempt back when
	// ctx ends, so that the socket can be connected again.
	Connect(ctx context.Context, a Addr) error
	// Recv is one attempt: ErrAgain when nothing is there, io.EOF at the end,
	// ErrCut with Data valid when a message did not fit.
	Recv(*Msg) error
	// Send is one attempt and reports the bytes that were taken: all of a
	// message or nothing, any part of a stream.
	Send(*Msg) (int, error)
	// Wait returns nil when one of the given conditions may hold (callers try
	// again), ctx's error, or net.ErrClosed.
	Wait(ctx context.Context, r Ready) error
	// NameAddr reads a Name that Recv gave. It is nil for an unnamed one.
	NameAddr(Name) Addr
	// Info asks the kernel anew each time.
	Info() Info
}

// State is where a socket stands in its life.
type State string

// The states of a socket, as `ls` prints them.
const (
	New        State = "new"
	Bound      State = "bound"
	Listening  State = "listening"
	Connecting State = "connecting"
	Connected  State = "connected"
	HalfClosed State = "half-closed"
	Closed     State = "closed"
)

// Info is what a socket is now.
type Info struct {
	Family   string
	Type     Type
	Protocol int    // what SO_PROTOCOL says
	Proto    string // the same as a word: "tcp", "udp", "icmp", "ip", a number where it has no word
	State    State
	Local    Addr // nil when unnamed
	Peer     Addr // nil when unnamed or not connected
}

// The capabilities. A socket implements those that it really has; find them with As.

// Listener is a socket that other sockets connect to.
type Listener interface {
	// Listen opens the queue of pending connections. A backlog of 0 or less is
	// the system's largest (net.core.somaxconn).
	Listen(backlog int) error
	// Accept is one attempt: a new connected socket, or ErrAgain.
	Accept() (Socket, error)
}

// HalfCloser is a socket whose directions end one by one, as in shutdown(2).
type HalfCloser interface {
	CloseRead() error
	CloseWrite() error
	// CloseBoth ends both in one step, which the one after the other may not
	// manage: after the first the connection can be gone.
	CloseBoth() error
}

// Resetter is a socket that can end with a reset: the peer sees an error, not
// an end. It drops what is queued, and closes the socket.
type Resetter interface{ Reset() error }

// Descriptor is a socket that is one kernel descriptor.
type Descriptor interface {
	// Control calls f with the descriptor, which stays open until f returns. f
	// must not close or keep it.
	Control(f func(fd int) error) error
}

// Optioner is a socket with options.
type Optioner interface {
	// Options are the names that Option reads, sorted, but for those whose reading
	// changes the socket (so_error).
	Options() []string
	Option(name string) (string, error)
	// SetOption sets one; an unknown name or a value that does not parse wraps
	// ErrSyntax.
	SetOption(name, value string) error
}

// FileKeeper is a socket that is named by a file. KeepFile makes Close leave it, and
// gives its path, or "" where Bind made none; OwnFile makes Close of a socket that was
// adopted remove it.
type FileKeeper interface {
	KeepFile() (path string)
	OwnFile(path string)
}

// Dropper is a socket that counts what the kernel dropped before it could be
// received (SO_RXQ_OVFL, PACKET_STATISTICS), since it was opened.
type Dropper interface{ Drops() uint64 }

// As finds a capability of s, looking through wrappers that have an Unwrap
// method. The error wraps ErrNotSupported.
//
// A wrapper that sees data must implement every data capability itself, or the
// data goes around it.
func As[T any](s Socket) (T, error) {
	for cur := s; cur != nil; {
		if t, ok := cur.(T); ok {
			return t, nil
		}
		u, ok := cur.(interface{ Unwrap() Socket })
		if !ok {
			break
		}
		cur = u.Unwrap()
	}
	var zero T
	i := s.Info()
	return zero, fmt.Errorf("%s %s: %w", i.Family, i.Type, ErrNotSupported)
}

// RecvWait is Recv that waits for something to receive.
func RecvWait(ctx context.Context, s Socket, m *Msg) error {
	room, flags := m.Data, m.Flags
	for {
		m.Data, m.Flags = room, flags
		err := s.Recv(m)
		if !errors.Is(err, ErrAgain) {
			return err
		}
		if err := s.Wait(ctx, Readable); err != nil {
			return err
		}
	}
}

// SendAll sends all of m, waiting for room as often as it takes. It reports the
// bytes that were taken, also on error.
func SendAll(ctx context.Context, s Socket, m *Msg) (int, error) {
	part, sent := *m, 0
	for {
		n, err := s.Send(&part)
		sent += n
		part.Data = part.Data[n:]
		switch {
		case err == nil && len(part.Data) == 0:
			return sent, nil
		case err != nil && !errors.Is(err, ErrAgain):
			return sent, err
		}
		if n > 0 {
			part.Files = nil // they went with the first byte
			continue
		}
		if err := s.Wait(ctx, Writable); err != nil {
			return sent, err
		}
	}
}

// AcceptWait is Accept that waits for a connection.
func AcceptWait(ctx context.Context, s Socket) (Socket, error) {
	l, err := As[Listener](s)
	if err != nil {
		return nil, err
	}
	for {
		c, err := l.Accept()
		if !errors.Is(err, ErrAgain) {
			return c, err
		}
		if err := s.Wait(ctx, Readable); err != nil {
			return nil, err
		}
	}
}
