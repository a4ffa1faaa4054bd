// Package model has the words that daemon and ctl share: the objects that sockd
// owns, what a caller asks for, and the events that tell of changes. Addresses and
// endpoints in it are text in escaped form (families.Escape). Its field
// names are those of the Varlink interface description and are stable: fields
// are only added. It imports the standard library and families.
package model

import (
	"encoding/json"
	"regexp"
	"strconv"
	"time"
)

// ID names a socket, relay, session, capture or recorder: an integer from 1, in
// one space, not used again while the daemon's state lives.
type ID int64

// ParseID reads an ID as it is printed: digits alone, and no zero in front.
func ParseID(s string) (id ID, ok bool) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 1 || strconv.FormatInt(n, 10) != s {
		return 0, false
	}
	return ID(n), true
}

var nameRE = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.-]{0,63}$`)

// ValidName tells whether s can name a relay or recorder. A name is never an ID
// nor an endpoint.
func ValidName(s string) bool { return nameRE.MatchString(s) }

// Caller is who asks, as SO_PEERCRED and SO_PEERGROUPS tell. PID is for the
// journal only: it is never used to decide.
type Caller struct {
	UID    uint32
	GID    uint32
	Groups []uint32
	PID    int32
}

// Owner is whom an object belongs to.
type Owner struct {
	UID uint32 `json:"uid"`
	GID uint32 `json:"gid"`
}

// Owner is the caller as the owner of what it makes.
func (c Caller) Owner() Owner { return Owner{UID: c.UID, GID: c.GID} }

// Drops counts what was lost, by cause.
type Drops map[string]int64

// Add counts n more for a cause; the map must not be nil.
func (d Drops) Add(cause string, n int64) {
	if n != 0 {
		d[cause] += n
	}
}

// Socket is a socket that a verb opened, accepted or adopted.
type Socket struct {
	ID         ID     `json:"id"`
	Family     string `json:"family"`
	Type       string `json:"type"`
	Protocol   string `json:"protocol"`
	State      string `json:"state"`
	Local      string `json:"local"` // "" when unnamed
	Peer       string `json:"peer"`  // "" when unnamed
	Owner      Owner  `json:"owner"`
	Parent     ID     `json:"parent,omitempty"` // the listening socket that accepted it
	RxBytes    int64  `json:"rx_bytes"`
	TxBytes    int64  `json:"tx_bytes"`
	RxMessages int64  `json:"rx_messages"`
	TxMessages int64  `json:"tx_messages"`
	Drops      Drops  `json:"drops"`
	Durable    bool   `json:"durable,omitempty"` // it outlives the daemon's process
}

// Relay is one relay: rx counts from FROM towards TO.
type Relay struct {
	ID       ID       `json:"id"`
	Name     string   `json:"name"`
	From     string   `json:"from"`
	To       []string `json:"to"`
	Local    []string `json:"local"` // the bound addresses as NETWORK:ADDRESS
	State    string   `json:"state"` // listening draining waiting failed
	Sessions int64    `json:"sessions"`
	Total    int64    `json:"total"`
	RxBytes  int64    `json:"rx_bytes"`
	TxBytes  int64    `json:"tx_bytes"`
	Drops    Drops    `json:"drops"`
	Owner    Owner    `json:"owner"`
	// Cause says in words why the relay waits or failed; of a listening one, why its
	// last session found no backend, or which interface is down.
	Cause string `json:"cause,omitempty"`
	// Source is where the relay comes from: "runtime", or the configuration file.
	Source string `json:"source,omitempty"`
	// Settings are the flags that differ from their defaults, as typed.
	Settings map[string]string `json:"settings,omitempty"`
}

// Session is one conversation through a relay.
type Session struct {
	ID        ID        `json:"id"`
	Relay     ID        `json:"relay"`
	Peer      string    `json:"peer"`
	Backend   string    `json:"backend"`
	State     string    `json:"state"` // connecting open half-closed-from half-closed-to draining
	Since     time.Time `json:"since"`
	RxBytes   int64     `json:"rx_bytes"`
	TxBytes   int64     `json:"tx_bytes"`
	Path      string    `json:"path"`       // splice copy batch direct
	LimitedBy string    `json:"limited_by"` // what holds it back now: from, to, rate, or ""
}

// Capture is one running capture.
type Capture struct {
	ID                ID     `json:"id"`
	Source            string `json:"source"`
	Filter            string `json:"filter"`
	Owner             Owner  `json:"owner"`
	Received          int64  `json:"received"`  // frames that passed the filter
	Delivered         int64  `json:"delivered"` // frames written to the caller
	DroppedKernel     int64  `json:"dropped_kernel"`
	DroppedDaemon     int64  `json:"dropped_daemon"`
	DroppedSubscriber int64  `json:"dropped_subscriber"`
}

// Interface is a network interface of the daemon's host that can be captured on.
type Interface struct {
	Index    int64  `json:"index"` // 0: any, which is all of them
	Name     string `json:"name"`
	LinkType string `json:"link_type"` // what its frames begin with, as tcpdump -L has it
	MTU      int64  `json:"mtu"`
	Up       bool   `json:"up"`      // the administrator wants it to work
	Running  bool   `json:"running"` // and it does
	Loopback bool   `json:"loopback"`
	MAC      string `json:"mac,omitempty"`
}

// Event is a change, as watch prints it. In the snapshot that comes first every
// event is "present"; {"event":"ready"} ends it.
type Event struct {
	Time  time.Time `json:"time,omitzero"`
	Event string    `json:"event"` // present ready opened bound listening connected accepted closed added changed removed dropped (a relay lost something: Cause says by which name it is counted; once a second each) dumped (a recorder wrote what it has: Cause says why and where) lost ...
	ID    ID        `json:"id,omitempty"`
	Cause string    `json:"cause,omitempty"`
	// Object is the Socket, Relay, Session, Capture or Recorder after the change.
	Object json.RawMessage `json:"object,omitempty"`
	// Kind says what Object is: socket relay session capture recorder.
	Kind string `json:"kind,omitempty"`
}

// Status is how the daemon is.
type Status struct {
	Version   string        `json:"version"`
	PID       int64         `json:"pid"`
	Started   time.Time     `json:"started"`
	Uptime    time.Duration `json:"uptime"` // nanoseconds
	Systemd   bool          `json:"systemd"`
	User      Owner         `json:"user"`
	Sockets   int64         `json:"sockets"`
	Relays    int64         `json:"relays"`
	Sessions  int64         `json:"sessions"`
	Captures  int64         `json:"captures"`
	Recorders int64         `json:"recorders"`
	Callers   int64         `json:"callers"` // connections to the control socket
	Families  []string      `json:"families"`
	Missing   []Missing     `json:"missing"`   // what the daemon cannot do, and what would allow it
	Config    string        `json:"config"`    // in escaped form: the directories that were read, ":" between
	StateDir  string        `json:"state_dir"` // "" when there is none
	Kernel    string        `json:"kernel"`
	Control   string        `json:"control"` // path of the control socket, in escaped form
	Problems  []string      `json:"problems"`
	Generated time.Time     `json:"time"`
	// Parking is what outlives the process; nil: nothing does.
	Parking *Parking `json:"parking,omitempty"`
}

// Parking is how full the place is where relays and durable sessions outlive the
// daemon's process.
type Parking struct {
	Parked          int64  `json:"parked"` // records: one a relay, one a session
	Bound           int64  `json:"bound"`  // of them
	Descriptors     int64  `json:"descriptors"`
	DescriptorBound int64  `json:"descriptor_bound"` // 0: none
	Full            int64  `json:"full"`             // records that were refused for want of room
	Sysctl          string `json:"sysctl"`           // raises Bound
	Limit           string `json:"limit"`            // raises DescriptorBound
}

// Missing is a capability that the daemon lacks.
type Missing struct {
	Capability string `json:"capability"` // CAP_NET_RAW
	Allows     string `json:"allows"`     // what it would allow, in words
}
