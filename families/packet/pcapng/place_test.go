package pcapng

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// place is memory with something in it that must not be seen in a file.
func place(n int) []byte { return bytes.Repeat([]byte{0xee}, n) }

func TestAFillerIsStatisticsOfAnyLength(t *testing.T) {
	want := Stats{Time: 5, Start: 1, End: 5, Received: 12, IfDrop: 7, OSDrop: 2, Delivered: 3}
	for _, n := range []int{MinFiller, MinFiller + 4, MinFiller + 8, 4096 + MinFiller} {
		b := place(n)
		PutFiller(b, &want)
		require.NotContains(t, string(b), "\xee")
		blocks, err := read(t, append(AppendInterface(AppendSection(nil, section), iface), b...))
		require.ErrorContains(t, err, "EOF")
		require.Equal(t, want, blocks[2].Stats, "%d bytes", n)
		require.Len(t, blocks, 3)
	}
}

func TestAPacketThatLiesThereIsFramed(t *testing.T) {
	for _, p := range packets {
		for room := range 4 {
			b := place(PacketHead + pad4(len(p.Data)) + PacketTail(p.Dropped != 0) + 4*room)
			copy(b[PacketHead:], p.Data)
			framed := p
			framed.Data = b[PacketHead : PacketHead+len(p.Data)]
			FramePacket(b, &framed)
			require.NotContains(t, string(b), "\xee")
			blocks, err := read(t, append(AppendInterface(AppendSection(nil, section), iface), b...))
			require.ErrorContains(t, err, "EOF")
			require.Len(t, blocks, 3)
			require.Equal(t, p, blocks[2].Packet)
			if room == 0 {
				require.Equal(t, AppendPacket(nil, &p), b, "without room it is what AppendPacket writes")
			}
		}
	}
}

// Padding is an option that no reader knows, in blocks that all of them do.
func TestOtherProgramsPassPaddingOver(t *testing.T) {
	b := AppendInterface(AppendSection(nil, section), iface)
	filler := place(200)
	PutFiller(filler, &stats)
	b = append(b, filler...)
	for _, p := range packets {
		framed := place(PacketHead + pad4(len(p.Data)) + PacketTail(p.Dropped != 0) + 48)
		copy(framed[PacketHead:], p.Data)
		p.Data = framed[PacketHead:][:len(p.Data)]
		FramePacket(framed, &p)
		b = append(b, framed...)
	}
	path := filepath.Join(t.TempDir(), "x.pcapng")
	require.NoError(t, os.WriteFile(path, b, 0o600))
	for _, command := range [][]string{
		{"capinfos", "-c", path}, {"tcpdump", "-n", "-r", path}, {"tshark", "-n", "-r", path, "-T", "fields", "-e", "frame.packet_flags_direction", "-e", "frame.len"},
	} {
		out, err := exec.Command(command[0], command[1:]...).CombinedOutput()
		require.NoError(t, err, "%s: %s", command, out)
		require.NotContains(t, string(out), "cut short")
		switch command[0] {
		case "capinfos":
			require.Contains(t, string(out), "Number of packets:   3")
		case "tshark":
			require.Contains(t, string(out), "1500")
		}
	}
}

func TestPcapIsWhatTcpdumpWrites(t *testing.T) {
	dir := t.TempDir()
	ours, theirs := filepath.Join(dir, "ours.pcap"), filepath.Join(dir, "theirs.pcap")
	b := AppendPcapHeader(nil, Ethernet, 262144)
	for _, p := range packets {
		before := len(b)
		b = AppendPcapPacket(b, &p)
		require.Len(t, b, before+PcapPacketLen(len(p.Data)))
	}
	require.NoError(t, os.WriteFile(ours, b, 0o600))
	out, err := exec.Command("tcpdump", "--time-stamp-precision=nano", "-r", ours, "-w", theirs).CombinedOutput()
	require.NoError(t, err, "%s", out)
	copied, err := os.ReadFile(theirs)
	require.NoError(t, err)
	require.Equal(t, b, copied)
}
