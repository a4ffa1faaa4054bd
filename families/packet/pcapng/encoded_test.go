package pcapng

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestBlocksAreHandedOnAsTheyAre(t *testing.T) {
	var kinds []uint32
	rest, n := file(), 0
	for {
		block, after, ok := NextEncoded(rest)
		if !ok {
			break
		}
		kinds, rest = append(kinds, block.Type()), after
		switch block.Type() {
		case InterfaceBlock:
			require.Equal(t, iface.Link, block.Link())
		case PacketBlock:
			want := packets[n]
			got := block.Packet()
			require.Equal(t, want.Dropped, block.Dropped())
			require.Equal(t, want.Time, block.Time())
			require.Equal(t, want.Len, got.Len)
			require.Equal(t, want.Data, got.Data)
			n++
		}
	}
	require.Equal(t, []uint32{SectionBlock, InterfaceBlock, PacketBlock, PacketBlock, PacketBlock, StatisticsBlock}, kinds)
	require.Empty(t, rest)
}

func TestALossIsAddedToAPacket(t *testing.T) {
	for i, p := range packets {
		for _, room := range []int{0, 40} { // as AppendPacket and as FramePacket write it
			b := place(PacketHead + pad4(len(p.Data)) + PacketTail(p.Dropped != 0) + room)
			copy(b[PacketHead:], p.Data)
			p.Data = b[PacketHead:][:len(p.Data)]
			FramePacket(b, &p)
			Encoded(b).SetInterface(0)
			blocks, err := read(t, Encoded(b).AppendDropped(AppendInterface(AppendSection(nil, section), iface), 5))
			require.ErrorContains(t, err, "EOF")
			want := packets[i]
			want.Dropped += 5
			require.Equal(t, want, blocks[2].Packet)
		}
	}
}

func TestHalfABlockIsNone(t *testing.T) {
	whole := AppendPacket(nil, &packets[2])
	for n := range whole {
		_, rest, ok := NextEncoded(whole[:n])
		require.False(t, ok)
		require.Len(t, rest, n)
	}
	_, _, ok := NextEncoded(append([]byte{6, 0, 0, 0, 3, 0, 0, 0}, make([]byte, 8)...))
	require.False(t, ok, "a length of 3")
}
