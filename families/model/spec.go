package model

import (
	"fmt"
	"strconv"
	"syscall"
	"time"

	"github.com/sockd/sockd/families"
)

// RelaySpec is what `relay add` asks for. It is also what a relays.d file says.
type RelaySpec struct {
	Name           string
	From           families.Endpoint
	To             []families.Endpoint
	MaxConns       int           // 0: 10000
	ConnectTimeout time.Duration // 0: 10 s
	Idle           time.Duration // 0: none, 60 s for datagrams; -1: none
	HalfClose      time.Duration // 0: none
	Balance        string        // "": roundrobin; least, failover, fanout
	Allow          []Allow       // who may come in; nil: everybody
	Rate           int64         // bytes a second, each direction, of all sessions together; 0: no limit
	Pass           string        // "", or PassRights
	Durable        string        // "", DurableYes or DurablePrefer
	Permanent      bool
	Source         string // the configuration file, or ""

	// What the caller opened with its own rights. A relay that is refused leaves
	// them to the caller of the daemon, who closes them.
	FromFD int      // a bound (and listening) socket for From, or -1
	Lent   bool     // a unix path of From is the caller's to bind: without FromFD it is families.ErrBorrow
	ToDirs []DirFD  // for each To that is a unix path, or empty
	Owner  Owner    // whom the relay belongs to
	Groups []uint32 // the owner's supplementary groups, for dialling as that user
}

// DirFD is a unix path that a relay dials for each session: an O_PATH descriptor
// of its directory, opened by the caller, and the name in it.
type DirFD struct {
	FD   int    // -1: none; the path may be named freely (configuration of root)
	Name string // in plain form
}

// PassRights has descriptors that come with unix messages passed on (SCM_RIGHTS).
const PassRights = "rights"

// Whether a relay's sessions outlive the daemon. Where no more can be held for it,
// DurableYes refuses a session, and DurablePrefer lets it go on without.
const (
	DurableYes    = "yes"
	DurablePrefer = "prefer"
)

// Defaults of a RelaySpec.
const (
	DefaultMaxConns       = 10000
	DefaultConnectTimeout = 10 * time.Second
	DefaultDgramIdle      = 60 * time.Second
)

// CaptureSpec is what `capture` asks for.
type CaptureSpec struct {
	Source    string // interface names, globs and "any", with commas between
	Wait      bool   // wait for the interfaces named in Source that are not there yet
	Filter    string // the words, joined by spaces; "" takes all
	Direction string // "", in, out or inout
	Snaplen   int    // 0: 262144
	Count     int64  // 0: no end
	NoPromisc bool   // -p: drop PACKET_OTHERHOST for this subscriber
	Duration  time.Duration
	Comment   string
	Format    string // "": pcapng; FormatPcap
	Queue     int64  // bytes that may wait for the subscriber; 0: the daemon's default
	// Rings asks for a PACKET_FANOUT group of so many rings where no ring is open yet;
	// 0: one.
	Rings int
	// Elsewhere is the network namespace of the interfaces; nil: the daemon's own.
	Elsewhere *Namespace
}

// FormatPcap is the format of classic pcap files, with nanoseconds.
const FormatPcap = "pcap"

// Namespace is another network namespace, by sockets that the caller opened in it.
// Who starts something there owns them on success.
type Namespace struct {
	Name     string
	PacketFD int // AF_PACKET, SOCK_RAW, protocol 0
	RouteFD  int // AF_NETLINK, NETLINK_ROUTE
}

// FileSpec says how a capture is cut into files.
type FileSpec struct {
	Size  int64         // no file is longer, in bytes; 0: no bound
	Every time.Duration // a new file at each multiple of it since midnight by Zones, whole seconds; 0: none
	Zones []Zone        // of who names the files, in order of From; none: UTC
	Files int64         // the capture ends after so many; 0: no end
}

// MinFileSize is the least FileSpec.Size: what a file begins and ends with, and a packet
// of an ordinary network.
const MinFileSize = 4096

// Bounds of a FileSpec. An end of an interval is nanoseconds since 1970, which last until
// 2262. Two changes of the clock a year make maxZones 32 years. Clocks differ from UTC by
// 14 hours, and by 25 where TZ says so (tzset(3)).
const (
	maxEvery  = 36500 * 24 * time.Hour
	maxZones  = 64
	maxFrom   = 1 << 40
	maxOffset = 25 * 60 * 60
)

// Check refuses what no capture can be cut by, as a *families.SyntaxError.
func (s FileSpec) Check() error {
	bad := func(what, text, why string) error {
		return &families.SyntaxError{What: what, Text: text, Why: why}
	}
	switch {
	case s.Size != 0 && s.Size < MinFileSize:
		return bad("size of files", strconv.FormatInt(s.Size, 10), "want at least "+strconv.Itoa(MinFileSize)+" bytes")
	case s.Every < 0 || s.Every > maxEvery || s.Every%time.Second != 0:
		return bad("interval of files", s.Every.String(), "want whole seconds, 36500 days at most")
	case s.Files < 0:
		return bad("number of files", strconv.FormatInt(s.Files, 10), "want 0 or more")
	case s.Files > 0 && s.Size == 0 && s.Every == 0:
		return bad("number of files", strconv.FormatInt(s.Files, 10), "want a size or an interval, too, where a file ends")
	case len(s.Zones) > maxZones:
		return bad("zones", strconv.Itoa(len(s.Zones)), "want at most "+strconv.Itoa(maxZones))
	}
	for i, z := range s.Zones {
		if z.From < -maxFrom || z.From > maxFrom || z.Offset < -maxOffset || z.Offset > maxOffset || i > 0 && z.From <= s.Zones[i-1].From {
			return bad("zone", fmt.Sprintf("%d from %d on", z.Offset, z.From), "want 25 hours at most, and each from later on than the one before")
		}
	}
	return nil
}

// Zone is an offset from UTC and the moment from which it holds.
type Zone struct {
	From   int64 `json:"from"`   // seconds since 1970
	Offset int   `json:"offset"` // seconds east of UTC
}

// FileReport tells of a file that is complete; with Reason error, once for each file, of
// one that can no longer be written: its end is missing so far, and packets are lost and
// counted until there is room again.
type FileReport struct {
	Bytes   int64     `json:"bytes"`
	Packets int64     `json:"packets"`
	Begun   time.Time `json:"begun"` // where its interval begins, or its first packet
	First   time.Time `json:"first,omitzero"`
	Last    time.Time `json:"last,omitzero"`
	Reason  string    `json:"reason"`          // size time end error
	Error   string    `json:"error,omitempty"` // what was last in the way of writing it
	Lost    int64     `json:"lost"`            // packets that were for it and are not in it
	// Errno is Error's, 0 where it has none. On the wire it goes by its name.
	Errno syscall.Errno `json:"-"`
}

// AttachSpec is what `attach` asks for: ID, or Endpoint that is dialled and
// closed afterwards.
type AttachSpec struct {
	ID        ID
	Endpoint  *families.Endpoint
	FD        int // a connected socket for a unix Endpoint that the caller dialled, or -1
	KeepOpen  bool
	HalfClose time.Duration
}

// MaxMessage is the longest message that can be sent and received. No family has a
// longer one: the largest is a unix datagram, bounded by net.core.wmem_max, which
// hardly anybody raises this far, and by what the kernel allocates in one piece (4
// MiB).
const MaxMessage = 16 << 20

// RecvSpec says how much Recv may take.
type RecvSpec struct {
	// Max is where a message is cut, and the most of a stream; 0 cuts nothing.
	Max int
	// Room is what the caller can be given. A message that is longer, when Max does
	// not cut it, stays where it is, and the error wraps syscall.EMSGSIZE. 0 is
	// MaxMessage.
	Room int
}

// Message is what Recv gives and Send takes.
type Message struct {
	Data []byte
	Full int    // the length on the wire
	From string // the sender, "" when unnamed
	EOF  bool
	Cut  bool
}

// RelayChange is what `relay set` asks for. A nil field stays as it is; a
// non-nil one holding a RelaySpec's zero value means the default.
type RelayChange struct {
	To             *[]families.Endpoint
	ToDirs         []DirFD // with To
	MaxConns       *int
	ConnectTimeout *time.Duration
	Idle           *time.Duration
	HalfClose      *time.Duration
	Balance        *string
	Allow          *[]Allow // all of them: it replaces the list
	Rate           *int64
	Pass           *string
}

// NoFD stands where no descriptor was passed.
const NoFD = -1
