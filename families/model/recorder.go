package model

import (
	"strings"
	"time"
)

// Recorder is one recorder: a capture that keeps the last packets until somebody asks
// for them.
type Recorder struct {
	ID     ID     `json:"id"`
	Name   string `json:"name"`
	Source string `json:"source"`
	Filter string `json:"filter"`
	Owner  Owner  `json:"owner"`
	State  string `json:"state"` // recording waiting (for its first interface) failed
	// Cause says in words why the recorder failed, or what happened last to its files.
	Cause string `json:"cause,omitempty"`

	HeldPackets int64         `json:"held_packets"`
	HeldBytes   int64         `json:"held_bytes"`  // of memory, or of files
	LimitBytes  int64         `json:"limit_bytes"` // of the same; 0: none
	Last        time.Duration `json:"last"`        // nanoseconds that are kept; 0: as much as fits
	Oldest      time.Time     `json:"oldest,omitzero"`
	Newest      time.Time     `json:"newest,omitzero"`
	// EvictedEarly are packets that had to go for want of memory though they were
	// younger than Last.
	EvictedEarly int64 `json:"evicted_early"`

	Received          int64 `json:"received"` // packets that passed the filter
	DroppedKernel     int64 `json:"dropped_kernel"`
	DroppedDaemon     int64 `json:"dropped_daemon"`
	DroppedSubscriber int64 `json:"dropped_subscriber"`

	Dumps      int64  `json:"dumps"`           // files that were asked for, or that a trigger made
	Suppressed int64  `json:"suppressed"`      // triggers that fired too soon after another one
	File       string `json:"file,omitempty"`  // what -w named, of a recorder to disk, in escaped form
	Files      int64  `json:"files,omitempty"` // those that are there
	// SourceFile is where the recorder comes from: "runtime", or the configuration file.
	SourceFile string `json:"source_file,omitempty"`
	// Settings are the flags that differ from their defaults, as typed.
	Settings map[string]string `json:"settings,omitempty"`
}

// The states of a recorder.
const (
	RecorderRecording = "recording"
	RecorderWaiting   = "waiting"
	RecorderFailed    = "failed"
)

// RecorderSpec is what `recorder add` asks for. It is also what a recorders.d file says.
type RecorderSpec struct {
	Name       string // "": it is called rID
	Source     string // interface names, globs and "any", with commas between; they may come later
	Filter     string // "" takes all
	Direction  string // "", in, out or inout
	Snaplen    int    // 0: 262144
	NoPromisc  bool
	Last       time.Duration // 0: no packet is too old
	Bytes      int64         // of memory; 0: DefaultRecorderBytes
	Disk       *DiskSpec     // nil: in memory
	Trigger    TriggerSpec
	Permanent  bool
	SourceFile string // the configuration file, or ""
	Owner      Owner
}

// DiskSpec has a recorder write to files instead of to memory.
type DiskSpec struct {
	To       Place
	Size     int64         // bytes of one file; 0: no bound
	Every    time.Duration // a new file at each multiple of it; 0: none
	Count    int           // files that are kept; 0: all
	MaxBytes int64         // of all files together; 0: no bound
}

// TriggerSpec has a recorder dump by itself.
type TriggerSpec struct {
	Filter string        // at a packet that it takes; "": none
	OnDrop int64         // when so many packets are lost within a second; 0: never
	After  time.Duration // what follows is in the dump, too
	To     Place
}

// Set tells whether there is any trigger.
func (t TriggerSpec) Set() bool { return t.Filter != "" || t.OnDrop > 0 }

// Place is where the daemon makes files: a directory and the name in it, which is a
// pattern of strftime(3).
type Place struct {
	Path string // as it is shown: absolute, in plain form; "": nowhere
	// Dir is an O_PATH descriptor of the directory that the caller opened; NoFD: the
	// daemon opens Path's itself, which is for configuration of root.
	Dir int
}

// Name is the last part of Path.
func (p Place) Name() string { return p.Path[strings.LastIndexByte(p.Path, '/')+1:] }

// Folder is Path without Name.
func (p Place) Folder() string { return strings.TrimSuffix(p.Path, p.Name()) }

// The bounds of a recorder in memory.
const (
	// DefaultRecorderBytes is what a recorder has for which only --last was said.
	DefaultRecorderBytes = 256 << 20
	// MinRecorderBytes is the least that can be asked for: some of the longest packets.
	MinRecorderBytes = 1 << 20
)

// RecorderChange is what `recorder set` asks for. A nil field stays as it is.
type RecorderChange struct {
	Filter *string
	Last   *time.Duration // 0: no packet is too old
	Bytes  *int64         // 0: DefaultRecorderBytes
}

// DumpSpec is what `recorder dump` asks for.
type DumpSpec struct {
	Last   time.Duration // 0: all that is held
	Filter string        // beside the recorder's own; "" takes all
}

// DumpReport says what a dump has.
type DumpReport struct {
	Packets int64     `json:"packets"`
	Bytes   int64     `json:"bytes"`   // of the file
	Dropped int64     `json:"dropped"` // packets that were lost in its time
	First   time.Time `json:"first,omitzero"`
	Last    time.Time `json:"last,omitzero"`
	// Oldest is the oldest packet that the recorder had: nothing is known from before.
	Oldest time.Time `json:"oldest,omitzero"`
}
