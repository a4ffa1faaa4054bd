package capture

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"syscall"
	"testing"
	"time"

	"github.com/sockd/sockd/families/model"
	"github.com/sockd/sockd/families/packet/files"
	"github.com/sockd/sockd/families/packet/pcapng"
	"github.com/sockd/sockd/families/packet/ring"
	"github.com/stretchr/testify/require"
)

// memFile is a file in memory on a disk of so many bytes.
type memFile struct {
	b      []byte
	room   int
	closed int
	end    int // of what is reserved
}

var errNoSpace = fmt.Errorf("write: %w", syscall.ENOSPC)

func (m *memFile) Write(p []byte) (int, error) {
	n := min(len(p), max(0, max(m.room, m.end)-len(m.b)))
	m.b = append(m.b, p[:n]...)
	if n < len(p) {
		return n, errNoSpace
	}
	return n, nil
}

func (m *memFile) WriteDirect(a, b []byte) (int, error) {
	if len(m.b)%files.DirectAlign != 0 || len(a)%files.DirectAlign != 0 || len(b)%files.DirectAlign != 0 {
		return 0, errors.New("not aligned")
	}
	return m.Write(append(bytes.Clone(a), b...))
}

func (m *memFile) Reserve(at, n int64) error {
	switch {
	case n == 0:
		return nil
	case at+n > int64(max(m.room, m.end)):
		return errNoSpace
	}
	m.end = max(m.end, int(at+n))
	return nil
}

func (m *memFile) Truncate(size int64) error {
	m.b, m.end = m.b[:size], min(m.end, int(size))
	return nil
}

func (m *memFile) Size() int64  { return int64(len(m.b)) }
func (m *memFile) Close() error { m.closed++; return nil }

// desk is a cutter with its files and what it reported.
type desk struct {
	cutter
	files   []*memFile
	reports []model.FileReport
	at      time.Time
}

const plenty = 1 << 30

func newDesk(set func(*desk)) *desk {
	d := &desk{at: time.Unix(1_790_000_000, 0)}
	room := plenty
	d.cutter = cutter{
		section: pcapng.AppendSection(nil, pcapng.Section{Comment: "a test"}), snaplen: maxSnaplen, until: -1, page: files.Aligned(ring.Page),
		next: func() (sink, error) {
			d.files = append(d.files, &memFile{room: room})
			return d.files[len(d.files)-1], nil
		},
		done:  func(r model.FileReport) { d.reports = append(d.reports, r) },
		stats: func(id uint32, first bool) pcapng.Stats { return pcapng.Stats{Start: 1, Comment: lossComment(7, 0, 0)} },
		now:   func() time.Time { return d.at },
	}
	if set != nil {
		set(d)
	}
	return d
}

// material is a capture of packets of several interfaces, as a queue has it: an
// interface is described before its first packet.
func material(seed uint64, count, ifaces int) (chunk []byte, packets []pcapng.Packet) {
	rnd := rand.New(rand.NewPCG(seed, 1))
	described := 0
	for i := range count {
		id := rnd.IntN(ifaces)
		for ; described <= id; described++ {
			chunk = pcapng.AppendInterface(chunk, pcapng.Interface{Link: pcapng.Ethernet, Snaplen: maxSnaplen, Name: fmt.Sprintf("eth%d", described)})
		}
		p := pcapng.Packet{
			Interface: uint32(id), Time: 1_790_000_000e9 + int64(i)*1e6, Direction: pcapng.Inbound,
			Data: frame(uint32(i), 60+rnd.IntN(200)),
		}
		if rnd.IntN(9) == 0 {
			p.Dropped = uint64(rnd.IntN(5) + 1)
		}
		p.Len = len(p.Data)
		chunk = pcapng.AppendPacket(chunk, &p)
		packets = append(packets, p)
	}
	return chunk, packets
}

// content is what a file has, with interfaces by their names.
type fileContent struct {
	packets []pcapng.Packet
	names   []string // by interface
	stats   []pcapng.Stats
	lost    uint64 // the sum of what packets tell of
}

func mustContent(tb testing.TB, b []byte) (c fileContent) {
	tb.Helper()
	r := pcapng.NewReader(bytes.NewReader(b))
	var blk pcapng.Block
	for {
		err := r.Next(&blk)
		if err == io.EOF {
			return c
		}
		require.NoError(tb, err)
		switch blk.Type {
		case pcapng.InterfaceBlock:
			c.names = append(c.names, blk.Interface.Name)
		case pcapng.PacketBlock:
			p := blk.Packet
			p.Data = bytes.Clone(p.Data)
			c.packets = append(c.packets, p)
			c.lost += p.Dropped
		case pcapng.StatisticsBlock:
			c.stats = append(c.stats, blk.Stats)
		}
	}
}

// Whatever the bound: no file is longer, none of the packets is missing or there twice,
// they are in order, and each file has the interfaces of its packets and no others.
func TestFilesAreCutAtTheirSize(t *testing.T) {
	for _, size := range []int64{4096, 4097, 5000, 65536} {
		for _, ifaces := range []int{1, 3} {
			chunk, want := material(uint64(size), 700, ifaces)
			d := newDesk(func(d *desk) { d.size = size })
			for rest := pcapng.Encoded(chunk); len(rest) > 0; { // in pieces, as a queue gives them
				n := 0
				for range 13 {
					if b, _, ok := pcapng.NextEncoded(rest[n:]); ok {
						n += len(b)
					}
				}
				d.write(rest[:n])
				rest = rest[n:]
			}
			d.end()
			require.EqualValues(t, len(want), d.kept)
			require.Len(t, d.reports, len(d.files))
			var got []pcapng.Packet
			for i, f := range d.files {
				require.Equal(t, 1, f.closed)
				require.LessOrEqual(t, f.Size(), size)
				c := mustContent(t, f.b)
				require.Equal(t, model.FileReport{
					Bytes: f.Size(), Packets: int64(len(c.packets)), Begun: time.Unix(0, c.packets[0].Time).UTC(),
					First: time.Unix(0, c.packets[0].Time).UTC(), Last: time.Unix(0, c.packets[len(c.packets)-1].Time).UTC(),
					Reason: map[bool]string{true: "end", false: "size"}[i == len(d.files)-1],
				}, d.reports[i])
				require.Len(t, c.stats, len(c.names), "statistics of each interface")
				used := map[uint32]bool{}
				for _, p := range c.packets {
					used[p.Interface] = true
					id := p.Interface
					_, err := fmt.Sscanf(c.names[id], "eth%d", &p.Interface)
					require.NoError(t, err)
					got = append(got, p)
				}
				require.Len(t, used, len(c.names), "only interfaces that occur")
				if i < len(d.files)-1 {
					require.Greater(t, f.Size()+400+int64(len(c.names)+1)*maxStats, size, "no file is cut early")
				}
			}
			require.True(t, reflect.DeepEqual(want, got))
		}
	}
}

func TestFilesAreCutByTheClock(t *testing.T) {
	chunk, want := material(1, 500, 2) // one each millisecond
	d := newDesk(func(d *desk) {
		d.clock = files.Clock{Every: time.Second}
		for i := range want { // nothing comes for three seconds
			if i >= 250 {
				want[i].Time += 3e9
			}
		}
		var at int
		for b, rest, ok := pcapng.NextEncoded(chunk); ok; b, rest, ok = pcapng.NextEncoded(rest) {
			if b.Type() == pcapng.PacketBlock {
				t := uint64(want[at].Time)
				le := [8]byte{byte(t >> 32), byte(t >> 40), byte(t >> 48), byte(t >> 56), byte(t), byte(t >> 8), byte(t >> 16), byte(t >> 24)}
				copy(b[12:], le[:])
				at++
			}
		}
	})
	d.write(chunk)
	d.elapsed(d.file.ends - 1)
	require.Len(t, d.reports, 1)
	d.elapsed(d.file.ends)
	d.end()
	require.Len(t, d.files, 2, "an empty interval makes no file")
	for i, begun := range []int64{1_790_000_000, 1_790_000_003} {
		require.Equal(t, time.Unix(begun, 0).UTC(), d.reports[i].Begun)
		require.Equal(t, "time", d.reports[i].Reason)
		require.Len(t, mustContent(t, d.files[i].b).packets, 250)
	}
}

func TestACaptureOfNothingIsAFileAllTheSame(t *testing.T) {
	for _, classic := range []bool{false, true} {
		d := newDesk(func(d *desk) { d.classic = classic })
		d.write(pcapng.AppendInterface(nil, pcapng.Interface{Link: pcapng.Ethernet, Name: "eth0"}))
		d.end()
		d.end()
		require.Len(t, d.files, 1)
		require.Len(t, d.reports, 1)
		if !classic {
			c := mustContent(t, d.files[0].b)
			require.Equal(t, []string{"eth0"}, c.names)
			require.Len(t, c.stats, 1)
		}
		mustTcpdump(t, d.files[0].b)
	}
}

// mustTcpdump has tcpdump read a file, and gives its lines.
func mustTcpdump(tb testing.TB, b []byte) []string {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), "x")
	require.NoError(tb, os.WriteFile(path, b, 0o600))
	out, err := exec.Command("tcpdump", "-n", "-t", "-r", path).CombinedOutput()
	require.NoError(tb, err, "%s", out)
	require.NotContains(tb, string(out), "truncated")
	lines := bytes.Split(bytes.TrimSpace(out), []byte("\n"))
	var text []string
	for _, l := range lines[1:] { // the first says what it reads
		if !bytes.HasPrefix(l, []byte("\t")) { // the packet's bytes
			text = append(text, string(l))
		}
	}
	return text
}

// A disk that is full at any byte: what is in the file is whole and in order, what is not
// is counted, and once there is room again the next packet tells of what was lost.
func TestADiskThatIsFullAtAnyByte(t *testing.T) {
	chunk, want := material(3, 20, 2)
	var total uint64
	for _, p := range want {
		total += p.Dropped
	}
	whole := newDesk(nil)
	whole.write(bytes.Clone(chunk))
	whole.end()
	length := len(whole.files[0].b)
	for room := range length {
		d := newDesk(nil)
		d.next = func() (sink, error) {
			d.files = append(d.files, &memFile{room: room})
			return d.files[0], nil
		}
		d.write(bytes.Clone(chunk))
		kept := d.kept
		c := mustContent(t, d.files[0].b)
		require.Len(t, c.packets, int(kept), "room for %d bytes", room)
		for i, p := range c.packets {
			require.Equal(t, want[i].Data, p.Data)
		}
		if room%97 == 0 && len(c.names) > 0 {
			mustTcpdump(t, d.files[0].b)
		}

		if kept < int64(len(want)) {
			p := pcapng.Packet{Time: 5, Data: frame(98, 60), Len: 60}
			d.files[0].room += 200
			d.write(pcapng.AppendPacket(nil, &p))
			require.Equal(t, kept, d.kept, "it is not tried again at once")
		}
		d.files[0].room, d.at = plenty, d.at.Add(2*retryAfter)
		p := pcapng.Packet{Time: 5, Data: frame(99, 60), Len: 60}
		d.write(pcapng.AppendPacket(nil, &p))
		require.Equal(t, kept+1, d.kept)
		d.end()
		c = mustContent(t, d.files[0].b)
		require.Len(t, c.packets, int(kept)+1)
		if kept < int64(len(want)) {
			require.Len(t, d.reports, 2)
			require.Equal(t, "error", d.reports[0].Reason)
			require.Contains(t, d.reports[1].Error, "no space left")
			require.Equal(t, "end", d.reports[1].Reason)
		}
		require.Equal(t, kept+1, d.reports[len(d.reports)-1].Packets)
		lost := uint64(len(want)) - uint64(kept)
		if lost > 0 {
			lost++ // that which was not tried
		}
		require.Equal(t, total+lost, c.lost, "the next packet tells of those that were lost, and of what was lost before them")
	}
}

// The packet behind a gap told nothing of it when the gap was at the end of a file that was
// completed meanwhile; a later one did.
func TestTheFirstPacketBehindAGapTellsOfIt(t *testing.T) {
	const size, count = 4096, 200
	all := int64(0)
	for _, pieces := range []int{1, 7, 40, count} {
		for room := 0; room < size; room += 61 {
			d := newDesk(func(d *desk) { d.size = size })
			d.next = func() (sink, error) {
				f := &memFile{room: plenty}
				if len(d.files) == 2 {
					f.room = room // the disk is full for the third file alone
				}
				d.files = append(d.files, f)
				return f, nil
			}
			d.write(pcapng.AppendInterface(nil, pcapng.Interface{Link: pcapng.Ethernet, Name: "eth0"}))
			for at := 0; at < count; {
				var chunk []byte
				for range min(pieces, count-at) {
					p := pcapng.Packet{Time: 1_790_000_000e9 + int64(at), Data: frame(uint32(at), 100), Len: 100}
					chunk = pcapng.AppendPacket(chunk, &p)
					at++
				}
				if d.write(chunk); at > count/2 && len(d.files) > 2 {
					d.files[2].room = plenty
				}
				d.at = d.at.Add(retryAfter / 2)
			}
			d.end()
			next, lost, missing := uint32(0), int64(0), int64(0)
			for i, f := range d.files {
				c := mustContent(t, f.b)
				require.LessOrEqual(t, f.Size(), int64(size))
				for _, seq := range seqs(c.packets) {
					require.EqualValues(t, seq-next, c.packets[0].Dropped, "before packet %d, of file %d with room for %d", seq, i, room)
					missing += int64(seq - next)
					next, c.packets = seq+1, c.packets[1:]
				}
			}
			for _, r := range d.reports {
				if r.Reason != "error" {
					lost += r.Lost
				}
			}
			require.EqualValues(t, count, next)
			require.Equal(t, missing, lost)
			all += missing
		}
	}
	require.Positive(t, all)
}

func TestPcapFiles(t *testing.T) {
	chunk, want := material(4, 300, 2)
	d := newDesk(func(d *desk) { d.classic, d.size = true, 8192 })
	d.write(chunk)
	d.end()
	require.Greater(t, len(d.files), 3)
	n := 0
	for i, f := range d.files {
		require.LessOrEqual(t, f.Size(), int64(8192))
		require.Greater(t, f.Size()+300, int64(8192)*min(1, int64(len(d.files)-1-i)))
		require.Equal(t, "\x4d\x3c\xb2\xa1", string(f.b[:4]))
		n += len(mustTcpdump(t, f.b))
	}
	require.Equal(t, len(want), n)
	require.EqualValues(t, n, d.kept)
}

// A disk that stays full, from any byte on: the file has its statistics all the same, and
// they have what was lost. One that had no room for its beginning is empty, not a part
// of one.
func TestADiskThatStaysFull(t *testing.T) {
	chunk, want := material(3, 20, 2)
	for room := range 4000 {
		d := newDesk(nil)
		d.next = func() (sink, error) {
			d.files = append(d.files, &memFile{room: room})
			return d.files[0], nil
		}
		d.begin()
		for rest := pcapng.Encoded(bytes.Clone(chunk)); len(rest) > 0; {
			b, after, ok := pcapng.NextEncoded(rest)
			require.True(t, ok)
			d.write(b)
			rest, d.at = after, d.at.Add(retryAfter)
		}
		d.files[0].room = 0 // others take what it has not reserved
		d.end()
		r := d.reports[len(d.reports)-1]
		require.Equal(t, []any{"end", int64(len(want))}, []any{r.Reason, r.Packets + r.Lost})
		if r.Bytes == 0 {
			require.Equal(t, []any{syscall.ENOSPC, int64(0)}, []any{r.Errno, d.kept})
			continue
		}
		c := mustContent(t, d.files[0].b)
		require.Len(t, c.stats, len(c.names), "room for %d bytes", room)
		require.Len(t, c.packets, int(r.Packets))
		lost := uint64(0)
		for _, s := range c.stats {
			lost += s.OSDrop
		}
		if len(c.names) == 2 { // else the other one's is in no statistics of its own
			require.EqualValues(t, r.Lost, lost)
		}
		if room%97 == 0 {
			mustTcpdump(t, d.files[0].b)
		}
	}
}

// A pcap file that is cut at any byte has whole packets, too.
func TestAPcapFileOnAFullDisk(t *testing.T) {
	chunk, want := material(5, 5, 1)
	for room := 24; room < 1000; room += 7 {
		d := newDesk(func(d *desk) { d.classic = true })
		d.next = func() (sink, error) { d.files = []*memFile{{room: room}}; return d.files[0], nil }
		d.write(bytes.Clone(chunk))
		d.end()
		n, size := 0, 24
		for n < len(want) && size+16+len(want[n].Data) <= room {
			size += 16 + len(want[n].Data)
			n++
		}
		require.Equal(t, []int{n, size}, []int{int(d.kept), len(d.files[0].b)})
	}
}

func TestAPcapFileHasOneLinkType(t *testing.T) {
	b := pcapng.AppendInterface(nil, pcapng.Interface{Link: pcapng.Ethernet})
	b = pcapng.AppendInterface(b, pcapng.Interface{Link: pcapng.Raw})
	for i := range 4 {
		b = pcapng.AppendPacket(b, &pcapng.Packet{Interface: uint32(i % 2), Data: []byte("data"), Len: 4, Time: 9})
	}
	d := newDesk(func(d *desk) { d.classic = true })
	d.write(b)
	d.end()
	require.EqualValues(t, 2, d.kept)
	require.Len(t, d.reports, 2)
	require.Contains(t, d.reports[0].Error, "a packet of link type RAW in a pcap file of EN10MB")
}

func TestAPacketThatFitsNoFileIsLostAndTheOthersAreNot(t *testing.T) {
	b := pcapng.AppendInterface(nil, pcapng.Interface{Link: pcapng.Ethernet})
	for _, n := range []int{100, 5000, 100} {
		b = pcapng.AppendPacket(b, &pcapng.Packet{Data: make([]byte, n), Len: n, Time: 9})
	}
	d := newDesk(func(d *desk) { d.size = 4096 })
	d.write(b)
	d.end()
	require.EqualValues(t, 2, d.kept)
	require.Contains(t, d.reports[1].Error, "does not fit a file of 4096")
}

func TestTheFilesEndWhenThereAreEnough(t *testing.T) {
	chunk, _ := material(6, 300, 1)
	d := newDesk(func(d *desk) { d.size, d.most = 4096, 3 })
	require.False(t, d.enough())
	d.write(chunk)
	require.True(t, d.enough())
	d.end()
	require.Len(t, d.reports, 3)
	require.Less(t, d.kept, int64(300))
	require.EqualValues(t, 300, d.kept+d.beyond, "the rest is no part of the capture, and not lost")
	require.Zero(t, d.ifaces[0].lost)
}

// What comes after the last interval is from after the end of the capture. A packet of
// the last interval that comes too late for its file is lost.
func TestWhatComesAfterTheLastIntervalIsNotLost(t *testing.T) {
	chunk, want := material(6, 2500, 1) // one each millisecond, three intervals
	d := newDesk(func(d *desk) { d.clock, d.most = files.Clock{Every: time.Second}, 2 })
	d.write(bytes.Clone(chunk))
	late := pcapng.Packet{Time: want[1999].Time, Data: frame(98, 60), Len: 60}
	d.write(pcapng.AppendPacket(nil, &late))
	d.end()
	require.Len(t, d.reports, 2)
	require.Equal(t, []int64{2000, 500, 1}, []int64{d.kept, d.beyond, d.ifaces[0].lost})
}

func TestACallerWhoGivesNoFurtherFileLosesTheRest(t *testing.T) {
	chunk, _ := material(6, 300, 1)
	d := newDesk(func(d *desk) { d.size = 4096 })
	inner := d.next
	d.next = func() (sink, error) {
		if len(d.files) == 2 {
			return nil, errors.New("gone")
		}
		return inner()
	}
	d.write(chunk)
	d.end()
	require.True(t, d.enough())
	require.Len(t, d.reports, 2)
	total := 0
	for _, f := range d.files {
		total += len(mustContent(t, f.b).packets)
	}
	require.EqualValues(t, total, d.kept)
}

func TestCuttingDoesNotAllocate(t *testing.T) {
	chunk, _ := material(7, 1000, 1)
	d := newDesk(nil)
	d.write(bytes.Clone(chunk))
	_, packets, _ := pcapng.NextEncoded(chunk)
	d.files[0].b = make([]byte, 0, 64<<20)
	require.Zero(t, testing.AllocsPerRun(50, func() { d.write(packets) }))
}
