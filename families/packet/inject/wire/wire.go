// Package wire is how frames travel from sockd-ctl to sockd for inject: through a
// pipe, one record after another until the pipe's end. sockd-ctl writes them, the
// daemon reads them. It imports the standard library only.
//
//	┌────────────────┬─────────────────────┬───────────────────┐
//	│ length, 32 bit │ time, 64 bit signed │ length bytes      │   little-endian
//	└────────────────┴─────────────────────┴───────────────────┘
//
// The time is in nanoseconds after the first frame.
package wire

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/sockd/sockd/families"
)

// HeaderLen is what stands in front of each frame.
const HeaderLen = 12

// MaxFrame is the longest frame that a record carries: the longest that a capture
// keeps, and far more than any interface takes. What is longer can be cut to it: it
// will be too long either way.
const MaxFrame = 256 << 10

// MaxRecord is the longest record.
const MaxRecord = HeaderLen + MaxFrame

// Record is one frame. It lies in the bytes that it was read from.
type Record struct {
	At    time.Duration // after the first frame; never below 0
	Frame []byte
}

// Append appends a record to b. The frame is cut to MaxFrame, and a time below 0 is
// 0: a file whose packets are out of order is sent in the file's order.
func Append(b []byte, r Record) []byte {
	r.Frame = r.Frame[:min(len(r.Frame), MaxFrame)]
	b = binary.LittleEndian.AppendUint32(b, uint32(len(r.Frame)))
	b = binary.LittleEndian.AppendUint64(b, uint64(max(r.At, 0)))
	return append(b, r.Frame...)
}

// Next reads the record at b's beginning, and how many bytes of b it takes: 0 when
// not all of it is there yet. An error wraps families.ErrSyntax.
func Next(b []byte) (r Record, size int, err error) {
	if len(b) < HeaderLen {
		return Record{}, 0, nil
	}
	n := binary.LittleEndian.Uint32(b)
	at := time.Duration(binary.LittleEndian.Uint64(b[4:]))
	if n > MaxFrame || at < 0 {
		return Record{}, 0, fmt.Errorf("record of %d bytes at %d ns: %w", n, at, families.ErrSyntax)
	}
	size = HeaderLen + int(n)
	if len(b) < size {
		return Record{}, 0, nil
	}
	return Record{At: at, Frame: b[HeaderLen:size:size]}, size, nil
}

// Whole is how many bytes of b are whole records, and how many these are. An error
// is that of the first record that is none.
func Whole(b []byte) (bytes, records int, err error) {
	for {
		_, size, err := Next(b[bytes:])
		if size == 0 || err != nil {
			return bytes, records, err
		}
		bytes += size
		records++
	}
}
