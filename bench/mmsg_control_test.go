package main

import (
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
)

func TestControlMessagesAreReadAsTheyWereWritten(t *testing.T) {
	var c control
	next := c.putSource(0, [4]byte{127, 1, 2, 3})
	end := c.putSegment(next, 1400)
	require.LessOrEqual(t, end, controlRoom)

	to, segment := c.read(end)
	require.Zero(t, to, "a source is not a destination")
	require.Zero(t, segment, "what is sent is UDP_SEGMENT, what comes is UDP_GRO")

	data, end := c.put(0, 17, udpGRO, 4)
	*(*int32)(data) = 1400
	_, segment = c.read(end)
	require.Equal(t, 1400, segment)
	_, segment = c.read(end - 8)
	require.Zero(t, segment, "a control message that was cut says nothing")
}

// Whatever is in the room, reading ends and stays inside of it.
func FuzzControl(f *testing.F) {
	var c control
	f.Add([]byte{}, 0)
	end := c.putSegment(c.putSource(0, [4]byte{127, 0, 0, 1}), 64)
	f.Add(c.bytes(), end)
	f.Fuzz(func(t *testing.T, raw []byte, n int) {
		var room struct {
			c     control
			after [4]uint64 // would be read if a length were believed
		}
		for i := range room.after {
			room.after[i] = 0xdeadbeefdeadbeef
		}
		copy(room.c.bytes(), raw)
		to, segment := room.c.read(max(n, 0))
		require.NotEqual(t, [4]byte{0xef, 0xbe, 0xad, 0xde}, to)
		require.NotEqual(t, uint32(0xdeadbeef), uint32(segment))
	})
}

func (c *control) bytes() []byte { return unsafe.Slice((*byte)(unsafe.Pointer(c)), controlRoom) }
