package ctl

import (
	"context"
	"io"
	"time"
)

// Env is the outside world of a verb. Every field can be replaced in a test.
type Env struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	StdoutTerminal bool // stdout is a terminal: widths, live counters
	// ReaderGone waits until nobody reads stdout any more, and tells so; false when
	// ctx ends before. nil: nobody can tell.
	ReaderGone func(ctx context.Context) bool
	Getenv     func(string) string
	Getuid     func() int

	// The global flags.
	Socket   string // --socket
	User     bool   // --user
	JSON     bool
	JSONL    bool
	Columns  []string // -o
	NoHeader bool
	Timeout  *time.Duration // --timeout; nil: none, 0: do not wait

	// Packets prints frames as text lines; cmd/sockd-ctl, which may decode
	// packets, puts it in.
	Packets func(w io.Writer, o PacketOptions) PacketPrinter
	Version string
}

// PacketOptions are the flags of capture that shape its text, as in tcpdump(8).
type PacketOptions struct {
	Ethernet  bool // -e: the link-level header
	NoNames   bool // -n: it never looks names up; taken for tcpdump's sake
	Quiet     bool // -q
	Hex       bool // -x
	HexASCII  bool // -X
	ASCII     bool // -A
	HexLink   bool // -xx, -XX: with the link-level header
	Times     int  // how many -t: 1 none, 2 seconds, 3 since the one before, 4 with the date, 5 since the first
	Verbose   int  // how many -v
	LinkType  int  // the pcapng link type of the frames
	Interface string
}

// PacketPrinter prints one frame. data is only valid during the call.
type PacketPrinter interface {
	Print(at time.Time, outgoing bool, data []byte, fullLen int) error
	// Addresses are the sender and receiver of a frame, with their ports where
	// there are any; "" where there are none.
	Addresses(data []byte) (src, dst string)
}
