package ring

import (
	"bytes"
	"io"
	"testing"
	"unsafe"

	"github.com/sockd/sockd/families/packet/pcapng"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// inFile are the blocks of a file of interfaces 0 to 2, of which run is the rest.
func inFile(tb testing.TB, run []byte) (packets []pcapng.Packet, fillers []pcapng.Stats) {
	tb.Helper()
	b := pcapng.AppendSection(nil, pcapng.Section{})
	for range 3 {
		b = pcapng.AppendInterface(b, pcapng.Interface{Link: pcapng.Ethernet})
	}
	r := pcapng.NewReader(bytes.NewReader(append(b, run...)))
	var blk pcapng.Block
	for {
		err := r.Next(&blk)
		if err == io.EOF {
			return packets, fillers
		}
		require.NoError(tb, err)
		switch blk.Type {
		case pcapng.PacketBlock:
			blk.Packet.Data = bytes.Clone(blk.Packet.Data)
			packets = append(packets, blk.Packet)
		case pcapng.StatisticsBlock:
			fillers = append(fillers, blk.Stats)
		}
	}
}

// asPackets are the frames of a block as the copying path would write them.
func asPackets(b *Block, iface uint32, dropped uint64) (out []pcapng.Packet) {
	for it := b.Frames(); it.Next(); {
		f := &it.Frame
		p := pcapng.Packet{Interface: iface, Time: f.Time, Data: bytes.Clone(f.Data), Len: f.Len, Dropped: dropped}
		p.Direction, p.Reception = flags(f.Type)
		dropped = 0
		out = append(out, p)
	}
	return out
}

// Frames of every length, with tags and without, going in and out: a block that was
// rewritten has what a copy of it has.
func TestARewrittenBlockHasWhatACopyHas(t *testing.T) {
	a, b := pair(t)
	require.NoError(t, a.Command("ip", "link", "set", "v0", "mtu", "9000").Run())
	require.NoError(t, b.Command("ip", "link", "set", "v1", "mtu", "9000").Run())
	r, s := mustOpen(t, b, "v1", Config{BlockSize: 256 << 10, Blocks: 64}), newSender(t, a, "v0")
	back := newSender(t, b, "v1")
	const count = 3000
	for i := range count {
		f := frame(uint32(i), 60+i%1450)
		switch i % 5 {
		case 1:
			f = tagged(f, "\x81\x00\x00\x64")
		case 2:
			f = tagged(f, "\x88\xa8\x00\x05\x81\x00\x00\x07")
		case 3:
			f = frame(uint32(i), 9000)
		}
		s.send(f)
		if i%100 == 0 {
			back.send(frame(uint32(i), 999))
		}
	}
	stats := pcapng.Stats{Interface: 2, Time: 9, Start: 1, End: 9, Received: 5, IfDrop: 1, OSDrop: 2, Delivered: 3}
	seen, rewritten, page := 0, 0, make([]byte, Page)
	for seen < count+count/100 {
		blk, err := r.Next()
		require.NoError(t, err)
		want := asPackets(&blk, 2, 7)
		first, last := blk.Span()
		require.Equal(t, want[0].Time, first)
		require.Equal(t, want[len(want)-1].Time, last)
		for _, p := range want {
			if bytes.Contains(p.Data, []byte("\x88\xb5")) { // not the kernel's own
				seen++
			}
		}
		if blk.Rewritable() {
			desc := bytes.Clone(blk.mem[:firstPacket])
			rest, ok := blk.Rewrite(page, 2, 7, &stats)
			require.True(t, ok)
			require.Zero(t, len(rest)%Page)
			require.Zero(t, uintptr(unsafe.Pointer(unsafe.SliceData(rest)))%Page)
			require.Equal(t, desc, blk.mem[:firstPacket], "the kernel looks at it")
			packets, fillers := inFile(t, append(bytes.Clone(page), rest...))
			require.Equal(t, want, packets)
			require.Equal(t, []pcapng.Stats{stats, stats}, fillers)
			rewritten++
		} else {
			_, ok := blk.Rewrite(page, 2, 7, &stats)
			require.False(t, ok)
		}
		blk.Release()
	}
	require.Greater(t, rewritten, 10, "most blocks can be")
}

// A frame that does not lie so that words may begin there is left to the copy.
func TestBlocksThatCannotBeRewritten(t *testing.T) {
	whole := func(b *Block) *Block {
		mem := aligned(t)
		copy(mem, b.mem)
		return &Block{mem: mem}
	}
	for name, tt := range map[string]struct {
		block *Block
		want  bool
	}{
		"Ethernet":                {whole(block(unix.ARPHRD_ETHER, make([]byte, 14), make([]byte, 1000), -1)), true},
		"with a tag":              {whole(block(unix.ARPHRD_ETHER, make([]byte, 14), make([]byte, 1000), 5)), true},
		"raw, two bytes aside":    {whole(block(unix.ARPHRD_NONE, nil, make([]byte, 1000), -1)), false},
		"no frame":                {&Block{mem: aligned(t)}, false},
		"no room for the options": {block(unix.ARPHRD_ETHER, make([]byte, 14), make([]byte, 1000), -1), false},
	} {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, tt.want, tt.block.Rewritable())
			want := asPackets(tt.block, 0, 0)
			page := make([]byte, Page)
			rest, ok := tt.block.Rewrite(page, 0, 0, &pcapng.Stats{})
			require.Equal(t, tt.want, ok)
			if tt.want {
				packets, _ := inFile(t, append(page, rest...))
				require.Equal(t, want, packets)
			}
		})
	}
}

// aligned is the memory of one small block.
func aligned(tb testing.TB) []byte {
	tb.Helper()
	b, err := unix.Mmap(-1, 0, 2*Page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	require.NoError(tb, err)
	tb.Cleanup(func() { require.NoError(tb, unix.Munmap(b)) })
	return b
}

// Whatever lies in a block: what Rewritable promises Rewrite keeps, and what comes of it
// is pcapng with as many packets as the block has frames.
func FuzzRewrite(f *testing.F) {
	f.Add(block(unix.ARPHRD_ETHER, make([]byte, 14), []byte("payload"), 1).mem, uint64(0))
	f.Add(block(unix.ARPHRD_ETHER, make([]byte, 14), make([]byte, 700), -1).mem, uint64(5))
	f.Fuzz(func(t *testing.T, mem []byte, dropped uint64) {
		if len(mem) < firstPacket {
			return
		}
		b := &Block{mem: make([]byte, 2*Page)}
		copy(b.mem, mem)
		want := asPackets(b, 1, dropped)
		promised := b.Rewritable()
		page := make([]byte, Page)
		rest, ok := b.Rewrite(page, 1, dropped, &pcapng.Stats{Interface: 1})
		require.True(t, ok || !promised)
		if !ok {
			return
		}
		packets, fillers := inFile(t, append(page, rest...))
		require.Len(t, fillers, 2)
		require.Len(t, packets, len(want))
		for i, p := range packets {
			require.Equal(t, want[i].Data, p.Data)
		}
	})
}
