package pcapng

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

var (
	section = Section{Comment: "what for", OS: "Linux", UserAppl: "sockd"}
	iface   = Interface{Link: Ethernet, Snaplen: 96, Name: "eth0", Filter: "tcp port 80", Resolution: 9}
	packets = []Packet{
		{Time: 1_700_000_000_123_456_789, Data: []byte{}, Len: 60, Direction: Inbound, Reception: Unicast},
		{Time: 1_700_000_001_000_000_001, Data: []byte("a"), Len: 1, Direction: Outbound},
		{Time: 1_700_000_002_000_000_000, Data: bytes.Repeat([]byte("abcd"), 24), Len: 1500, Direction: Inbound, Reception: Promiscuous, Dropped: 7},
	}
	stats = Stats{Time: 1_700_000_003_000_000_000, Start: 1_700_000_000_000_000_000, End: 1_700_000_003_000_000_000, Received: 12, IfDrop: 7, Accepted: 5, OSDrop: 2, Delivered: 3, Comment: "two were slow"}
)

// file is one of all blocks.
func file() []byte {
	b := AppendSection(nil, section)
	b = AppendInterface(b, iface)
	for i := range packets {
		b = AppendPacket(b, &packets[i])
	}
	return AppendStats(b, stats)
}

// read returns all blocks; data is copied.
func read(tb testing.TB, b []byte) (blocks []Block, err error) {
	tb.Helper()
	r := NewReader(bytes.NewReader(b))
	for {
		var blk Block
		if err := r.Next(&blk); err != nil {
			return blocks, err
		}
		blk.Packet.Data = bytes.Clone(blk.Packet.Data)
		blocks = append(blocks, blk)
	}
}

func TestWhatIsWrittenReadsBack(t *testing.T) {
	blocks, err := read(t, file())
	require.Equal(t, io.EOF, err)
	require.Len(t, blocks, 6)
	require.Equal(t, Block{Type: SectionBlock, Section: section}, blocks[0])
	require.Equal(t, Block{Type: InterfaceBlock, Interface: iface}, blocks[1])
	for i, p := range packets {
		require.Equal(t, Block{Type: PacketBlock, Packet: p}, blocks[2+i])
	}
	require.Equal(t, Block{Type: StatisticsBlock, Stats: stats}, blocks[5])
}

func TestPacketLenIsWhatIsAppended(t *testing.T) {
	for n := range 10 {
		for _, dropped := range []uint64{0, 3} {
			b := AppendPacket(nil, &Packet{Data: make([]byte, n), Len: n, Dropped: dropped})
			require.Len(t, b, PacketLen(n, dropped != 0))
		}
	}
}

func TestAppendPacketDoesNotAllocate(t *testing.T) {
	b := make([]byte, 0, 4096)
	p := packets[2]
	require.Zero(t, testing.AllocsPerRun(100, func() { b = AppendPacket(b[:0], &p) }))
}

// Wireshark's tools are the judges of the format.
func TestOtherProgramsReadTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.pcapng")
	require.NoError(t, os.WriteFile(path, file(), 0o600))
	for _, tt := range []struct{ command, want string }{
		{"capinfos -c " + path, "Number of packets:   3"},
		{"capinfos -I " + path, "Filter string = tcp port 80"},
		{"capinfos -I " + path, "Time precision = nanoseconds (9)"},
		{"capinfos -k " + path, "what for"},
		{"tshark -n -r " + path + " -T fields -e frame.time_epoch -e frame.len -e frame.cap_len", "1700000002.000000000\t1500\t96"},
	} {
		args := strings.Fields(tt.command)
		out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
		require.NoError(t, err, "%s: %s", tt.command, out)
		require.Contains(t, string(out), tt.want, tt.command)
	}
}

func TestFilesOfTheOtherByteOrderReadTheSame(t *testing.T) {
	be := binary.BigEndian
	block := func(kind uint32, body []byte) []byte {
		b := be.AppendUint32(nil, kind)
		b = be.AppendUint32(b, uint32(len(body)+12))
		return be.AppendUint32(append(b, body...), uint32(len(body)+12))
	}
	var b []byte
	b = append(b, block(SectionBlock, []byte("\x1a\x2b\x3c\x4d\x00\x01\x00\x00\xff\xff\xff\xff\xff\xff\xff\xff"))...)
	b = append(b, block(InterfaceBlock, []byte("\x00\x01\x00\x00\x00\x00\x00\x60"))...) // microseconds
	b = append(b, block(PacketBlock, []byte("\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x05\x00\x00\x00\x02\x00\x00\x00\x09ab\x00\x00"))...)
	blocks, err := read(t, b)
	require.Equal(t, io.EOF, err)
	require.Len(t, blocks, 3)
	require.Equal(t, Interface{Link: Ethernet, Snaplen: 96, Resolution: 6}, blocks[1].Interface)
	require.Equal(t, Packet{Time: 5000, Data: []byte("ab"), Len: 9}, blocks[2].Packet)
}

func TestTimesInAnyResolution(t *testing.T) {
	for _, tt := range []struct {
		units uint64
		res   uint8
		want  int64
	}{
		{5, 9, 5},
		{5, 6, 5000},
		{5, 0, 5e9},
		{5000, 12, 5},
		{3, 0x81, 1.5e9}, // halves of a second
		{1 << 63, 0, 1<<63 - 1},
		{1, 0x80 | 64, 0},
		{1, 40, 0},
	} {
		require.Equal(t, tt.want, toNanoseconds(tt.units, tt.res), "%d of resolution %#x", tt.units, tt.res)
	}
}

func TestMalformedFilesAreRefused(t *testing.T) {
	whole := file()
	head := len(AppendSection(nil, section))
	change := func(at int, v uint32) []byte {
		b := bytes.Clone(whole)
		le.PutUint32(b[at:], v)
		return b
	}
	for name, tt := range map[string]struct {
		data []byte
		want error
	}{
		"nothing":                    {nil, io.EOF},
		"half a head":                {whole[:5], io.ErrUnexpectedEOF},
		"half a section":             {whole[:20], io.ErrUnexpectedEOF},
		"half a packet":              {whole[:len(whole)-200], io.ErrUnexpectedEOF},
		"no section first":           {whole[head:], ErrFormat},
		"something else":             {[]byte("GET / HTTP/1.1\r\n\r\n"), ErrFormat},
		"a wrong byte-order magic":   {change(8, 7), ErrFormat},
		"a length that is odd":       {change(head+4, 33), ErrFormat},
		"a length that is huge":      {change(head+4, 1<<30), ErrFormat},
		"a length of nothing":        {change(head+4, 0), ErrFormat},
		"lengths that differ":        {change(head-4, 12), ErrFormat},
		"a packet of no interface":   {append(AppendSection(nil, section), AppendPacket(nil, &packets[1])...), ErrFormat},
		"statistics of no interface": {append(AppendSection(nil, section), AppendStats(nil, stats)...), ErrFormat},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := read(t, tt.data)
			require.ErrorIs(t, err, tt.want)
		})
	}
}

// Whatever comes in, the reader ends, with an error that says how, and what it
// gives lies within what came in.
func FuzzReader(f *testing.F) {
	f.Add(file())
	f.Add(file()[:100])
	f.Add([]byte{})
	f.Add(append(file(), file()...))
	f.Fuzz(func(t *testing.T, b []byte) {
		blocks, err := read(t, b)
		if err != io.EOF && err != io.ErrUnexpectedEOF && !errors.Is(err, ErrFormat) {
			t.Fatalf("unknown error %v", err)
		}
		total := 0
		for _, blk := range blocks {
			total += 12 + len(blk.Packet.Data)
		}
		require.LessOrEqual(t, total, len(b))
	})
}

func TestLinkTypesHaveTheNamesOfTcpdump(t *testing.T) {
	for link, want := range map[LinkType]string{
		0: "NULL", 1: "EN10MB", 101: "RAW", 108: "LOOP", 113: "LINUX_SLL", 228: "IPV4", 229: "IPV6", 276: "LINUX_SLL2", 147: "linktype(147)",
	} {
		require.Equal(t, want, link.String())
	}
}
