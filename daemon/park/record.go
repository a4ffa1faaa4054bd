package park

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

const (
	// MessageSize is the length of every message in a lot, in bytes. It is the
	// longest that the kernel keeps in 512 bytes with its own 320 of
	// skb_shared_info: two thirds more of them fit than of 193 bytes.
	MessageSize = 192
	// MaxData is how much a Record has room for, in bytes.
	MaxData = offCRC - offData
	// MaxFDs is how many descriptors a message carries. The kernel allows 253
	// (SCM_MAX_FD); a session has two sockets, two pipes of two ends, and two to
	// spare.
	MaxFDs = 8
)

// The message, little endian. Version is at the same place in all versions.
const (
	offMagic      = 0  // 4 bytes
	offVersion    = 4  // uint16
	offKind       = 6  // uint8
	offFDs        = 7  // uint8, how many descriptors it came with
	offID         = 8  // uint64
	offGeneration = 16 // uint64
	offUID        = 24 // uint32
	offLength     = 28 // uint16, how much of the data is meant; the rest is zero
	offZero       = 30 // uint16, zero
	offData       = 32
	offCRC        = 188 // uint32, CRC-32C of all before it
)

const (
	magic   = "\x93lot" // begins with no letter: no text, and no UTF-8 either
	version = 1
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Why a message of a lot is no record. Each is refused with an Event.
var (
	ErrForeign   = errors.New("not a record of sockd's")
	ErrTruncated = errors.New("truncated record")
	ErrVersion   = errors.New("record of another version")
	ErrCorrupt   = errors.New("corrupt record")
)

// A Kind says what is parked, in its owner's words. 0 is none.
type Kind uint8

// gone is the kind of the message that ends an ID.
const gone Kind = 0

// A Record says what the descriptors parked with it are.
type Record struct {
	// Kind is its owner's, from 1 on.
	Kind Kind
	// ID names the thing as long as it is parked.
	ID uint64
	// Generation is given by the lot, and what callers put there is not looked
	// at: it is higher than that of any message before it, of whatever ID.
	Generation uint64
	// UID is whose it is.
	UID uint32
	// Data is its owner's, MaxData bytes at most.
	Data []byte
}

// check says why r cannot be parked with n descriptors.
func (r *Record) check(n int) error {
	switch {
	case r.Kind == gone:
		return fmt.Errorf("park %d: kind 0 is no kind", r.ID)
	case len(r.Data) > MaxData:
		return fmt.Errorf("park %d: %d bytes of data, %d is the most", r.ID, len(r.Data), MaxData)
	case n > MaxFDs:
		return fmt.Errorf("park %d: %d descriptors, %d is the most", r.ID, n, MaxFDs)
	}
	return nil
}

// encode writes r, which check has passed, as the message with n descriptors.
func (r *Record) encode(m *[MessageSize]byte, n int) {
	clear(m[:])
	le := binary.LittleEndian
	copy(m[offMagic:], magic)
	le.PutUint16(m[offVersion:], version)
	m[offKind], m[offFDs] = byte(r.Kind), byte(n)
	le.PutUint64(m[offID:], r.ID)
	le.PutUint64(m[offGeneration:], r.Generation)
	le.PutUint32(m[offUID:], r.UID)
	le.PutUint16(m[offLength:], uint16(len(r.Data)))
	copy(m[offData:offCRC], r.Data)
	le.PutUint32(m[offCRC:], crc32.Checksum(m[:offCRC], castagnoli))
}

// decode reads a message, and the number of descriptors that it was sent with.
// The record's Data is a copy. On an error both are zero.
func decode(m []byte) (Record, int, error) {
	if err := recognize(m); err != nil {
		return Record{}, 0, err
	}
	le := binary.LittleEndian
	if got, want := crc32.Checksum(m[:offCRC], castagnoli), le.Uint32(m[offCRC:]); got != want {
		return Record{}, 0, fmt.Errorf("%w: sum %#08x, want %#08x", ErrCorrupt, got, want)
	}
	n, length := int(m[offFDs]), int(le.Uint16(m[offLength:]))
	if n > MaxFDs || length > MaxData || !zero(m[offZero:offData]) || !zero(m[offData+length:offCRC]) {
		return Record{}, 0, fmt.Errorf("%w: %d descriptors, %d bytes of data", ErrCorrupt, n, length)
	}
	return Record{
		Kind:       Kind(m[offKind]),
		ID:         le.Uint64(m[offID:]),
		Generation: le.Uint64(m[offGeneration:]),
		UID:        le.Uint32(m[offUID:]),
		Data:       bytes.Clone(m[offData : offData+length]),
	}, n, nil
}

// recognize tells a message of this version from all others. A shorter one of
// ours is told from a stranger's by how it begins.
func recognize(m []byte) error {
	le := binary.LittleEndian
	switch {
	case len(m) < offKind && len(m) > 0 && bytes.HasPrefix([]byte(magic), m[:min(len(m), len(magic))]):
		return fmt.Errorf("%w: %d bytes", ErrTruncated, len(m))
	case len(m) < offKind || string(m[:offVersion]) != magic:
		return fmt.Errorf("%w: %d bytes", ErrForeign, len(m))
	case le.Uint16(m[offVersion:]) != version:
		return fmt.Errorf("%w: %d, this is %d", ErrVersion, le.Uint16(m[offVersion:]), version)
	case len(m) < MessageSize:
		return fmt.Errorf("%w: %d bytes of %d", ErrTruncated, len(m), MessageSize)
	case len(m) > MessageSize:
		return fmt.Errorf("%w: %d bytes, want %d", ErrCorrupt, len(m), MessageSize)
	}
	return nil
}

func zero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
