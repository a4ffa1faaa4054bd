package model

import (
	"context"
	"io"
	"time"
)

// InjectSpec is what `inject` asks for.
type InjectSpec struct {
	Interface string
	Link      int   // the LINKTYPE_ number of the frames; 0: not known, so not looked at
	Count     int64 // frames in all, over every pass; 0: no end
	Loop      int64 // how often the frames are gone through; 0: for ever
	PPS       int64 // frames a second; 0: as fast as can be; or OriginalTiming
}

// OriginalTiming, as the PPS of an InjectSpec, sends each frame as long after the
// first one as it says.
const OriginalTiming = -1

// Injection is frames on their way out of an interface. Run reads them from frames, as
// package wire writes them, and sends them until the end, the count, or ctx, which
// are its normal ends and return nil; an error tells also of frames that could not be
// sent while others were. It is called once. View may be asked at any
// time. Close frees it after that.
type Injection interface {
	View() Injected
	Run(ctx context.Context, frames FrameReader) error
	Close() error
}

// FrameReader is where an Injection's frames come from: a pipe, as a rule. A deadline in
// the past must end a Read.
type FrameReader interface {
	io.Reader
	SetReadDeadline(t time.Time) error
}

// Injected is what has become of an injection's frames.
type Injected struct {
	ID        ID     `json:"id"`
	Interface string `json:"interface"`
	Owner     Owner  `json:"owner"`
	Sent      int64  `json:"sent"`     // frames that the kernel took
	Bytes     int64  `json:"bytes"`    // of these, with their link-level headers
	Failed    Drops  `json:"failed"`   // frames that it did not: too_long too_short no_buffers
	Retries   int64  `json:"retries"`  // how often a full queue was waited for
	Passes    int64  `json:"passes"`   // how often all frames were gone through
	Duration  int64  `json:"duration"` // since the first frame was due, in nanoseconds
}
