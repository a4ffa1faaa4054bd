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
	Sockets  []Socket  `json:"sockets"`
	Relays   []Relay   `json:"relays"`
	Sessions []Session `json:"sessions"`
	Captures []Capture `json:"captures"`
}

// The kinds of objects.
const (
	KindSocket  = "socket"
	KindRelay   = "relay"
	KindSession = "session"
	KindCapture = "capture"
)

// Object is one object of any kind: Kind says which field is set.
type Object struct {
	Kind    string   `json:"kind"`
	Socket  *Socket  `json:"socket,omitempty"`
	Relay   *Relay   `json:"relay,omitempty"`
	Session *Session `json:"session,omitempty"`
	Capture *Capture `json:"capture,omitempty"`
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
type Capturing interface {
	View() Capture
	Run(ctx context.Context, w io.Writer) error
	Close() error
}
