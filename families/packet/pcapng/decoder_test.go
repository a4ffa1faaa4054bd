package pcapng

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/stretchr/testify/require"
)

// cut cuts a little-endian file into its blocks.
func cut(b []byte) (blocks [][]byte) {
	for len(b) >= 12 {
		n := int(min(uint64(le.Uint32(b[4:])), uint64(len(b))))
		blocks, b = append(blocks, b[:max(n, 12)]), b[max(n, 12):]
	}
	return blocks
}

func TestDecoderReadsWhatReaderReads(t *testing.T) {
	whole := file()
	want, err := read(t, whole)
	require.ErrorIs(t, err, io.EOF)
	var d Decoder
	for i, block := range cut(whole) {
		var b Block
		require.NoError(t, d.Decode(block, &b))
		require.Equal(t, want[i], b)
	}
	require.Equal(t, []Interface{iface}, d.Interfaces())
}

func TestDecodingAPacketDoesNotAllocate(t *testing.T) {
	var d Decoder
	var b Block
	require.NoError(t, d.Decode(AppendSection(nil, section), &b))
	require.NoError(t, d.Decode(AppendInterface(nil, iface), &b))
	packet := AppendPacket(nil, &Packet{Data: make([]byte, 60), Len: 60, Dropped: 3})
	require.Zero(t, testing.AllocsPerRun(100, func() {
		if d.Decode(packet, &b) != nil || b.Packet.Dropped != 3 {
			t.Error("not what was written")
		}
	}))
}

// A block that decodes is one that Reader reads the same; any other is an ErrFormat.
func FuzzDecoder(f *testing.F) {
	for _, block := range cut(file()) {
		f.Add(block)
	}
	before := append(AppendSection(nil, section), AppendInterface(nil, iface)...)
	f.Fuzz(func(t *testing.T, block []byte) {
		var d Decoder
		var got Block
		for _, b := range cut(before) {
			require.NoError(t, d.Decode(b, &got))
		}
		if err := d.Decode(block, &got); err != nil {
			require.True(t, errors.Is(err, ErrFormat), "%v", err)
			return
		}
		r := NewReader(io.MultiReader(bytes.NewReader(before), bytes.NewReader(block)))
		var want Block
		for range 3 {
			require.NoError(t, r.Next(&want))
		}
		require.Equal(t, want, got)
	})
}
