package ctl

import (
	"context"
	"io"
	"os"
	"time"

	"github.com/sockd/sockd/families/packet/pcapng"
)

// Env is the outside world of a verb. Every field can be replaced in a test.
type Env struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	StdoutTerminal bool // stdout is a terminal: widths, live counters
	StderrTerminal bool // stderr is one: progress
	// ReaderGone waits until nobody reads stdout any more, and tells so; false when
	// ctx ends before. nil: nobody can tell.
	ReaderGone func(ctx context.Context) bool
	// PipeGone is ReaderGone of a file that is open to write.
	PipeGone func(ctx context.Context, f *os.File) bool
	Getenv   func(string) string
	Getuid   func() int

	// The global flags.
	Socket   string // --socket
	User     bool   // --user
	JSON     bool
	JSONL    bool
	Columns  []string // -o
	NoHeader bool
	Timeout  *time.Duration // --timeout; nil: none, 0: do not wait

	// Packets prints frames as text lines; cmd/sockd-ctl, which may decode
	// packets, puts it in. The options are looked at for each packet.
	Packets func(w io.Writer, o *PacketOptions) PacketPrinter
	// Filter compiles a filter in the language of pcap-filter(7) for frames of a link
	// type, for files; the daemon filters what is captured. cmd/sockd-ctl puts it in.
	Filter func(text string, link pcapng.LinkType) (PacketFilter, error)
	// Compile prints the program of a filter; cmd/sockd-ctl puts it in.
	Compile func(w io.Writer, o CompileOptions) error
	Version string
}

// PacketFilter judges packets in their order.
type PacketFilter interface {
	// Judge calls yield with the packets that pass: p itself and before it those that had to
	// wait for it, fragments of the same datagram, which are copies of its own. Errors are yield's.
	Judge(p *pcapng.Packet, yield func(*pcapng.Packet) error) error
	// Undecided counts the fragments that waited in vain, those that still wait among them.
	Undecided() uint64
}

// CompileOptions is what capture --compile is to print.
type CompileOptions struct {
	Filter string
	Link   string // by its name in pcap, "EN10MB"; empty: that
	Style  int    // 1 for people, 2 as C, 3 numbers alone
	Plain  bool   // not optimised
}

// PacketOptions are the flags of capture that shape its text, as in tcpdump(8).
type PacketOptions struct {
	Ethernet bool // -e: the link-level header
	NoNames  bool // -n: it never looks names up; taken for tcpdump's sake
	Quiet    bool // -q
	Hex      bool // -x
	HexASCII bool // -X
	ASCII    bool // -A
	HexLink  bool // -xx, -XX: with the link-level header
	Times    int  // how many -t: 1 none, 2 seconds, 3 since the one before, 4 with the date, 5 since the first
	Verbose  int  // how many -v
	// Named: each line begins with the interface and the way, because packets of
	// several interfaces may come.
	Named bool
}

// PacketPrinter prints packets of any interface. They are only valid during a call,
// and may be whatever a stranger sent. A printer is used by one goroutine.
type PacketPrinter interface {
	Print(i *pcapng.Interface, p *pcapng.Packet) error
	// Decode reads the headers of a packet, for --jsonl.
	Decode(i *pcapng.Interface, p *pcapng.Packet) Decoded
}

// Decoded is what the headers of a packet say.
type Decoded struct {
	// Src and Dst are its ends, with their ports where there are any; "" where there
	// are none.
	Src, Dst string
	// Layers are the headers, outermost first, each a value that JSON writes as an
	// object with the member "layer", its name. The last is what does not decode any
	// further, if there is such a rest.
	Layers []any
}
