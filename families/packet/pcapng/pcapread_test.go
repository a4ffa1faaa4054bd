package pcapng

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// pcapOf is a classic file of two packets, of any order and magic.
func pcapOf(order binary.AppendByteOrder, magic, snaplen uint32) []byte {
	b := order.AppendUint32(nil, magic)
	b = order.AppendUint16(b, 2)
	b = order.AppendUint16(b, 4)
	b = order.AppendUint64(b, 0)
	b = order.AppendUint32(b, snaplen)
	b = order.AppendUint32(b, uint32(Ethernet)|0x14000000) // with what it says of check sums
	for _, data := range []string{"first", "second one"} {
		b = order.AppendUint32(b, 1_700_000_000)
		b = order.AppendUint32(b, 123)
		b = order.AppendUint32(b, uint32(len(data)))
		b = order.AppendUint32(b, 60)
		b = append(b, data...)
	}
	return b
}

// readAll reads all blocks of either format; data is copied.
func readAll(tb testing.TB, b []byte) (blocks []Block, err error) {
	tb.Helper()
	r, err := Open(bytes.NewReader(b))
	for err == nil {
		var block Block
		if err = r.Next(&block); err == nil {
			block.Packet.Data = bytes.Clone(block.Packet.Data)
			blocks = append(blocks, block)
		}
	}
	return blocks, err
}

func TestClassicFilesOfAnyKindReadTheSame(t *testing.T) {
	const second = int64(1_700_000_000_000_000_000)
	for name, tt := range map[string]struct {
		file []byte
		at   int64
		unit uint8
	}{
		"little-endian, microseconds": {pcapOf(binary.LittleEndian, pcapMagicMicro, 96), second + 123_000, 6},
		"little-endian, nanoseconds":  {pcapOf(binary.LittleEndian, pcapMagic, 96), second + 123, 9},
		"big-endian, microseconds":    {pcapOf(binary.BigEndian, pcapMagicMicro, 96), second + 123_000, 6},
		"big-endian, nanoseconds":     {pcapOf(binary.BigEndian, pcapMagic, 96), second + 123, 9},
	} {
		t.Run(name, func(t *testing.T) {
			blocks, err := readAll(t, tt.file)
			require.Equal(t, io.EOF, err)
			require.Equal(t, []Block{
				{Type: InterfaceBlock, Interface: Interface{Link: Ethernet, Snaplen: 96, Resolution: tt.unit}},
				{Type: PacketBlock, Packet: Packet{Time: tt.at, Data: []byte("first"), Len: 60}},
				{Type: PacketBlock, Packet: Packet{Time: tt.at, Data: []byte("second one"), Len: 60}},
			}, blocks)
		})
	}
}

func TestAClassicFileThatWasWrittenReadsBack(t *testing.T) {
	b := AppendPcapHeader(nil, Raw, 96)
	for i := range packets {
		b = AppendPcapPacket(b, &packets[i])
	}
	blocks, err := readAll(t, b)
	require.Equal(t, io.EOF, err)
	require.Equal(t, Interface{Link: Raw, Snaplen: 96, Resolution: 9}, blocks[0].Interface)
	for i, p := range packets {
		require.Equal(t, Packet{Time: p.Time, Data: p.Data, Len: p.Len}, blocks[1+i].Packet)
	}
}

func TestEitherFormatIsFoundOut(t *testing.T) {
	blocks, err := readAll(t, file())
	require.Equal(t, io.EOF, err)
	want, _ := read(t, file())
	require.Equal(t, want, blocks)
}

func TestOfALongPacketTheSnapshotLengthIsKept(t *testing.T) {
	blocks, err := readAll(t, pcapOf(binary.LittleEndian, pcapMagicMicro, 6))
	require.Equal(t, io.EOF, err)
	require.Equal(t, "first", string(blocks[1].Packet.Data))
	require.Equal(t, "second", string(blocks[2].Packet.Data))
}

func TestClassicFilesThatAreCutOrNoneSaySo(t *testing.T) {
	whole := pcapOf(binary.LittleEndian, pcapMagicMicro, 0)
	change := func(at int, v byte) []byte {
		b := bytes.Clone(whole)
		b[at] = v
		return b
	}
	for name, tt := range map[string]struct {
		data   []byte
		want   error
		blocks int
	}{
		"nothing":            {nil, io.EOF, 0},
		"three bytes":        {whole[:3], io.ErrUnexpectedEOF, 0},
		"half a header":      {whole[:20], io.ErrUnexpectedEOF, 0},
		"no packet":          {whole[:pcapHeaderLen], io.EOF, 1},
		"half a record head": {whole[:pcapHeaderLen+7], io.ErrUnexpectedEOF, 1},
		"half a packet":      {whole[:len(whole)-1], io.ErrUnexpectedEOF, 2},
		"another version":    {change(4, 3), ErrFormat, 0},
		"a huge packet":      {change(pcapHeaderLen+11, 1), ErrFormat, 1},
		"another magic":      {change(0, 7), ErrFormat, 0},
	} {
		t.Run(name, func(t *testing.T) {
			blocks, err := readAll(t, tt.data)
			require.ErrorIs(t, err, tt.want)
			require.Len(t, blocks, tt.blocks)
		})
	}
}

// editcap and tcpdump write what others have.
func TestFilesOfOtherProgramsAreRead(t *testing.T) {
	dir := t.TempDir()
	ours := filepath.Join(dir, "ours.pcapng")
	require.NoError(t, os.WriteFile(ours, file(), 0o600))
	for _, format := range []string{"pcap", "nsecpcap", "pcapng"} {
		theirs := filepath.Join(dir, format)
		out, err := exec.Command("editcap", "-F", format, ours, theirs).CombinedOutput()
		require.NoError(t, err, "%s", out)
		b, err := os.ReadFile(theirs)
		require.NoError(t, err)
		blocks, err := readAll(t, b)
		require.Equal(t, io.EOF, err, format)
		var sizes []int
		for _, b := range blocks {
			if b.Type == PacketBlock {
				sizes = append(sizes, b.Packet.Len)
			}
		}
		require.Equal(t, []int{60, 1, 1500}, sizes, format)
	}
}

// Whatever comes in, a reader of either format ends, with an error that says how, and
// what it gives lies within what came in.
func FuzzOpen(f *testing.F) {
	for _, order := range []binary.AppendByteOrder{binary.LittleEndian, binary.BigEndian} {
		f.Add(pcapOf(order, pcapMagic, 96))
		f.Add(pcapOf(order, pcapMagicMicro, 3))
	}
	f.Add(file())
	f.Add([]byte{0x0a})
	f.Fuzz(func(t *testing.T, b []byte) {
		blocks, err := readAll(t, b)
		if err != io.EOF && err != io.ErrUnexpectedEOF && !errors.Is(err, ErrFormat) {
			t.Fatalf("unknown error %v", err)
		}
		total := 0
		for _, block := range blocks {
			total += 12 + len(block.Packet.Data)
		}
		require.LessOrEqual(t, total, len(b))
	})
}
