package model

import (
	"context"
	"io"
	"net"
)

// Option is a socket option by its name; a nil Value asks for it.
type Option struct {
	Name  string  `json:"name"`
	Value *string `json:"value,omitempty"`
}

// Listing is every object of the kinds that were asked for, each sorted by ID.
// The lists are never nil.
type Listing struct {
	Sockets   []Socket   `json:"sockets"`
	Relays    []Relay    `json:"relays"`
	Sessions  []Session  `json:"sessions"`
	Captures  []Capture  `json:"captures"`
	Recorders []Recorder `json:"recorders"`
}

// The kinds of objects.
const (
	KindSocket   = "socket"
	KindRelay    = "relay"
	KindSession  = "session"
	KindCapture  = "capture"
	KindRecorder = "recorder"
	// KindInjection is of events alone: an injection is not listed.
	KindInjection = "injection"
)

// Object is one object of any kind: Kind says which field is set.
type Object struct {
	Kind     string    `json:"kind"`
	Socket   *Socket   `json:"socket,omitempty"`
	Relay    *Relay    `json:"relay,omitempty"`
	Session  *Session  `json:"session,omitempty"`
	Capture  *Capture  `json:"capture,omitempty"`
	Recorder *Recorder `json:"recorder,omitempty"`
}

// Attachment is a socket joined to a caller. Run moves bytes between it and conn
// until the peer ends, the caller is gone, ctx ends (with the daemon) or Close; then
// the socket is free again (or closed, when it was dialled for the purpose). gone is
// closed when both directions of conn have ended, and may be nil. The caller of Run
// owns conn. nil is that the peer ended, or the caller left; any other end is an
// error.
type Attachment interface {
	Socket() Socket
	Run(ctx context.Context, conn *net.UnixConn, gone <-chan struct{}) error
	Close() error
}

// Capturing is a capture that has started. Run writes pcapng to w until the
// count, the duration or ctx ends it; all three complete the file. Close frees it.
//
// RunFiles is Run into files. next is asked for each when it is to begin, and gives a
// descriptor that is Capturing's on success; it may wait, in which packets queue, until
// its context ends. done is told of each file that is complete.
type Capturing interface {
	View() Capture
	Run(ctx context.Context, w io.Writer) error
	RunFiles(ctx context.Context, spec FileSpec, next func(context.Context) (fd int, err error), done func(FileReport) error) error
	// Notes has f called, from other goroutines, with what becomes of the interfaces
	// that Source names: "eth0 is gone", "eth0 is there". f must not wait, nor call the
	// capture's methods. nil: nobody wants to know any more.
	Notes(f func(note string))
	Close() error
}

// Sharing is a capture whose packets one program reads from shared memory. Files are
// what it needs for that, to be passed on before Run, which closes them. Run lets
// packets come until the count, the duration, the closing of done, or ctx ends it, tells
// the reader of the end, and waits until left is closed. Close frees it.
type Sharing interface {
	View() Capture
	Files() (data, control, wake int)
	Run(ctx context.Context, done, left <-chan struct{}) error
	Close() error
}

// Audit is one line of an audit: one direction of a session, and of a session of
// balance fanout also one branch. The law is in = out + in flight + lost, for bytes and
// for messages, at the moment that the line is of. Streams count bytes alone.
type Audit struct {
	Relay ID     `json:"relay"`
	Name  string `json:"name"`
	// Session is 0 for all sessions of the relay that have ended, together with what
	// belonged to no session.
	Session ID `json:"session"`
	// Branch is, of a fanout, the TO whose queue the line is of; "*" stands for the
	// answers of all. Else it is empty.
	Branch    string `json:"branch,omitempty"`
	Direction string `json:"direction"` // rx: from FROM towards TO; tx: back

	InBytes          int64 `json:"in_bytes"`        // received; of a branch: given to it
	OutBytes         int64 `json:"out_bytes"`       // taken by the far socket
	InFlightBytes    int64 `json:"in_flight_bytes"` // found in sockd, and not derived from the others
	LostBytes        int64 `json:"lost_bytes"`
	InMessages       int64 `json:"in_messages"`
	OutMessages      int64 `json:"out_messages"`
	InFlightMessages int64 `json:"in_flight_messages"`
	LostMessages     int64 `json:"lost_messages"`

	// Holds: the law does, and the line agrees with what show and ls say.
	Holds bool `json:"holds"`
}
