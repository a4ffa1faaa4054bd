package park

import (
	"encoding/binary"
	"hash/crc32"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func encoded(r Record, fds int) []byte {
	var m [MessageSize]byte
	r.encode(&m, fds)
	return m[:]
}

// changed is a message with one byte changed and its sum put right.
func changed(m []byte, at int, b byte) []byte {
	m = append([]byte(nil), m...)
	m[at] = b
	binary.LittleEndian.PutUint32(m[offCRC:], crc32.Checksum(m[:offCRC], castagnoli))
	return m
}

var some = Record{Kind: 3, ID: 77, Generation: 1 << 40, UID: 1001, Data: []byte("tcp and unix")}

func TestARecordComesBackAsItWas(t *testing.T) {
	for name, r := range map[string]Record{
		"with data":    some,
		"without data": {Kind: 1, ID: 1, Data: []byte{}},
		"full":         {Kind: 255, ID: 1<<64 - 1, Generation: 1<<64 - 1, UID: 1<<32 - 1, Data: []byte(strings.Repeat("\xff", MaxData))},
		"an end":       {Kind: gone, ID: 5, Generation: 6, Data: []byte{}},
	} {
		t.Run(name, func(t *testing.T) {
			got, fds, err := decode(encoded(r, 6))
			require.NoError(t, err)
			require.Equal(t, r, got)
			require.Equal(t, 6, fds)
		})
	}
}

func TestWhatIsNoRecordIsRefusedByItsName(t *testing.T) {
	good := encoded(some, 6)
	flipped := append([]byte(nil), good...)
	flipped[offData] ^= 1
	for _, tt := range []struct {
		name string
		m    []byte
		want error
		says string
	}{
		{"nothing", nil, ErrForeign, "0 bytes"},
		{"somebody's text", []byte("GET / HTTP/1.1\r\n"), ErrForeign, "16 bytes"},
		{"the beginning of ours", good[:3], ErrTruncated, "3 bytes"},
		{"the half of ours", good[:100], ErrTruncated, "100 bytes of 192"},
		{"all but a byte", good[:MessageSize-1], ErrTruncated, "191 bytes of 192"},
		{"a byte too many", append(append([]byte(nil), good...), 0), ErrCorrupt, "193 bytes"},
		{"an older version", changed(good, offVersion, 0), ErrVersion, "0, this is 1"},
		{"a newer version", changed(good, offVersion, 2), ErrVersion, "2, this is 1"},
		{"a newer version that is shorter", changed(good, offVersion, 9)[:64], ErrVersion, "9, this is 1"},
		{"a flipped bit", flipped, ErrCorrupt, "sum"},
		{"too many descriptors", changed(good, offFDs, MaxFDs+1), ErrCorrupt, "9 descriptors"},
		{"data without end", changed(good, offLength, 255), ErrCorrupt, "255 bytes"},
		{"something after the data", changed(good, offCRC-1, 1), ErrCorrupt, ""},
		{"something between", changed(good, offZero, 1), ErrCorrupt, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r, fds, err := decode(tt.m)
			require.ErrorIs(t, err, tt.want)
			require.ErrorContains(t, err, tt.says)
			require.Zero(t, r)
			require.Zero(t, fds)
		})
	}
}

// FuzzRecord: what is read is written back the same, byte for byte; what is not
// read leaves nothing.
func FuzzRecord(f *testing.F) {
	f.Add(encoded(some, 6))
	f.Add(encoded(Record{Kind: gone, ID: 1}, 0))
	f.Add(encoded(some, 6)[:50])
	f.Add(changed(encoded(some, 6), offVersion, 0))
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	f.Fuzz(func(t *testing.T, m []byte) {
		if len(m) == MessageSize { // else no input would ever pass the sum
			m = changed(m, offKind, m[offKind])
		}
		r, fds, err := decode(m)
		if err != nil {
			require.Zero(t, r)
			require.Zero(t, fds)
			return
		}
		require.LessOrEqual(t, len(r.Data), MaxData)
		require.LessOrEqual(t, fds, MaxFDs)
		require.Equal(t, m, encoded(r, fds))
	})
}
