package capture

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/packet/pcapng"
)

// past is a history that a test fills, with a clock of its own.
type past struct {
	*testing.T
	*history
	now  int64
	sent uint32
}

func newPast(t *testing.T, b bounds, tr *trigger) *past {
	t.Helper()
	before := mapped.Load()
	if b.bytes == 0 {
		b.bytes = minHistory
	}
	p := &past{T: t, history: newHistory(b, tr), now: 1_700_000_000_000_000_000}
	t.Cleanup(func() {
		p.close()
		require.Equal(t, before, mapped.Load(), "all memory came back")
	})
	return p
}

func (p *past) iface(name string) uint32 {
	p.describe(&pcapng.Interface{Link: pcapng.Ethernet, Name: name})
	return p.described - 1
}

// packet adds one of an interface, numbered, and so much later than the one before.
func (p *past) packet(iface uint32, after time.Duration, length int) {
	p.now += int64(after)
	p.lossy(iface, p.now, 0, length)
}

func (p *past) lossy(iface uint32, at int64, dropped uint64, length int) {
	p.Helper()
	data := numbered(p.sent, length)
	require.Equal(p, kept, p.add(&pcapng.Packet{Interface: iface, Time: at, Data: data, Len: length, Direction: pcapng.Inbound, Reception: pcapng.Multicast, Dropped: dropped}))
	p.sent++
}

// numbered is an Ethernet frame with a number in it.
func numbered(n uint32, length int) []byte {
	f := append([]byte{2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 1}, 0x88, 0xb5)
	f = binary.BigEndian.AppendUint32(f, n)
	return append(f, make([]byte, length-len(f))...)
}

// everything is the choice of all packets.
var everything = choice{from: math.MinInt64, to: math.MaxInt64, source: "any"}

func (p *past) dump(c choice) (dumped, dumpReport) {
	p.Helper()
	s, err := p.look(c.from, c.bound)
	require.NoError(p, err)
	defer s.close()
	var file bytes.Buffer
	report, err := newDump(p.Context(), &file, s, c).write()
	require.NoError(p, err)
	require.EqualValues(p, file.Len(), report.bytes)
	return readDump(p.T, file.Bytes()), report
}

// dumped is what is in a file.
type dumped struct {
	ifaces  []pcapng.Interface
	packets []pcapng.Packet
	numbers []uint32 // in the packets
	stats   []pcapng.Stats
}

func readDump(t *testing.T, file []byte) (d dumped) {
	t.Helper()
	r := pcapng.NewReader(bytes.NewReader(file))
	var b pcapng.Block
	for {
		err := r.Next(&b)
		if errors.Is(err, io.EOF) {
			d.ifaces = r.Interfaces()
			return d
		}
		require.NoError(t, err)
		switch b.Type {
		case pcapng.PacketBlock:
			packet := b.Packet
			packet.Data = bytes.Clone(packet.Data)
			d.packets = append(d.packets, packet)
			d.numbers = append(d.numbers, binary.BigEndian.Uint32(packet.Data[14:]))
		case pcapng.StatisticsBlock:
			d.stats = append(d.stats, b.Stats)
		}
	}
}

func TestAHistoryGivesBackWhatItTook(t *testing.T) {
	p := newPast(t, bounds{}, nil)
	eth := p.iface("eth0")
	p.packet(eth, time.Second, 60)
	p.packet(eth, 1, 1514)
	p.flush()
	p.packet(eth, 1, 60) // not shown before the next flush
	file, report := p.dump(everything)
	require.Equal(t, []uint32{0, 1}, file.numbers)
	require.Equal(t, "eth0", file.ifaces[0].Name)
	require.Equal(t, pcapng.Packet{Time: p.now - 1, Data: numbered(1, 1514), Len: 1514, Direction: pcapng.Inbound, Reception: pcapng.Multicast}, file.packets[1], "to the nanosecond")
	require.Equal(t, dumpReport{packets: 2, bytes: report.bytes, first: p.now - 2, last: p.now - 1, oldest: p.now - 2}, report)
	require.EqualValues(t, 2, file.stats[0].Delivered)
	p.flush()
	file, _ = p.dump(everything)
	require.Equal(t, []uint32{0, 1, 2}, file.numbers)
}

func TestAHistoryStaysWithinItsMemory(t *testing.T) {
	for name, tt := range map[string]struct {
		bytes  int64
		length int
	}{
		"small packets":         {minHistory, 60},
		"large ones":            {minHistory, 1514},
		"GSO frames":            {minHistory, 65550},
		"the longest there are": {minHistory, pcapng.MaxSnaplen},
		"in large segments":     {6 << 20, 1514},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPast(t, bounds{bytes: tt.bytes}, nil)
			eth := p.iface("eth0")
			before := mapped.Load()
			for put := int64(0); put < 10*tt.bytes; put += int64(tt.length) {
				p.packet(eth, 1, tt.length)
				require.LessOrEqual(t, mapped.Load()-before, tt.bytes)
			}
			p.flush()
			file, _ := p.dump(everything)
			held := p.held()
			require.EqualValues(t, len(file.numbers), held.packets)
			require.LessOrEqual(t, held.bytes, tt.bytes)
			for i, n := range file.numbers {
				require.Equal(t, p.sent-uint32(len(file.numbers))+uint32(i), n, "the last ones, none missing")
			}
			segment := max(segmentBytes, pages(pcapng.PacketLen(tt.length, false)))
			require.Greater(t, len(file.numbers)*tt.length, int(tt.bytes)/3, "most of the memory holds packets, of segments of %d", segment)
			require.Zero(t, held.early, "no age was asked for")
		})
	}
}

func TestAHistoryForgetsWhatIsTooOld(t *testing.T) {
	p := newPast(t, bounds{last: 10 * time.Second, bytes: 64 << 20}, nil)
	eth := p.iface("eth0")
	for range 60_000 { // a minute
		p.packet(eth, time.Millisecond, 1000)
	}
	p.flush()
	held := p.held()
	require.LessOrEqual(t, held.oldest, p.now-int64(10*time.Second), "ten seconds are there")
	require.Greater(t, held.oldest, p.now-int64(11*time.Second), "not much more")
	require.Zero(t, held.early)
	file, _ := p.dump(choice{from: p.now - int64(3*time.Second), to: p.now})
	require.Len(t, file.numbers, 3001, "exactly what was asked for")

	p.sweep(p.now + int64(time.Hour))
	held = p.held()
	require.LessOrEqual(t, held.bytes, int64(2*segmentBytes), "an idle recorder holds little")
	p.sweep(p.now + int64(time.Hour))
	require.LessOrEqual(t, p.held().bytes, int64(segmentBytes), "and then less")
}

func TestAHistoryTellsThatItsMemoryIsTooSmallForTheAge(t *testing.T) {
	p := newPast(t, bounds{last: time.Hour, bytes: minHistory}, nil)
	eth := p.iface("eth0")
	for range 2000 {
		p.packet(eth, time.Millisecond, 1000)
	}
	p.flush()
	held := p.held()
	require.EqualValues(t, 2000, held.packets+held.early)
	require.Positive(t, held.early)
}

func TestInterfacesAreForgottenWithTheirLastPacket(t *testing.T) {
	p := newPast(t, bounds{}, nil)
	lasting := p.iface("eth0")
	for range 2500 { // containers come and go
		n := p.iface("veth")
		p.packet(n, 1, 1000)
		p.packet(lasting, 1, 60)
		p.stats(&pcapng.Stats{Interface: n})
	}
	p.flush()
	file, _ := p.dump(everything)
	require.Less(t, len(p.ifaces), 1200)
	require.Len(t, file.ifaces, len(p.ifaces), "those of which there are packets")
	for _, packet := range file.packets {
		want := "veth"
		if packet.Len == 60 {
			want = "eth0"
		}
		require.Equal(t, want, file.ifaces[packet.Interface].Name)
	}
}

func TestPacketsOfSeveralRingsComeInTheOrderOfTheirTimes(t *testing.T) {
	p := newPast(t, bounds{bytes: 4 << 20}, nil)
	rings := []uint32{p.iface("a"), p.iface("b"), p.iface("c")}
	r := rand.New(rand.NewPCG(1, 2))
	for p.held().packets < 3000 { // blocks of some milliseconds, one ring after the other
		begin := p.now
		for _, ring := range rings {
			at := begin
			for range 1 + r.IntN(40) {
				at += r.Int64N(100_000)
				p.lossy(ring, at, 0, 60+r.IntN(1400))
				p.now = max(p.now, at)
			}
			p.flush()
		}
	}
	file, _ := p.dump(everything)
	require.EqualValues(t, p.held().packets, len(file.packets))
	for i := range file.packets[1:] {
		require.LessOrEqual(t, file.packets[i].Time, file.packets[i+1].Time)
	}
}

func TestAClockThatWasSetBackCostsOrderAlone(t *testing.T) {
	p := newPast(t, bounds{bytes: 64 << 20}, nil)
	eth := p.iface("eth0")
	for i := range 100_000 {
		if i == 80_000 {
			p.now -= int64(time.Hour)
		}
		p.packet(eth, 1000, 60)
	}
	p.flush()
	file, _ := p.dump(everything)
	require.Len(t, file.numbers, 100_000)
	seen := map[uint32]bool{}
	for _, n := range file.numbers {
		seen[n] = true
	}
	require.Len(t, seen, 100_000)
}

func TestLossIsTheSumOfWhatIsLeftOut(t *testing.T) {
	p := newPast(t, bounds{}, nil)
	a, b := p.iface("a"), p.iface("b")
	for i := range 10 {
		p.now++
		p.lossy(a, p.now, uint64(i), 60+i%2*40) // 0 1 2 … 9: the long ones are 1 3 5 7 9
	}
	p.lossy(b, p.now, 100, 60)
	p.flush()
	c := everything
	c.filter, c.comment = "greater 100", "dropped_kernel=145"
	file, report := p.dump(c)
	require.Equal(t, []uint32{1, 3, 5, 7, 9}, file.numbers)
	for i, want := range []uint64{0 + 1, 2 + 3, 4 + 5, 6 + 7, 8 + 9} {
		require.Equal(t, want, file.packets[i].Dropped)
	}
	require.EqualValues(t, 45, file.stats[0].IfDrop)
	require.Equal(t, "dropped_kernel=145", file.stats[0].Comment)
	require.Equal(t, "b", file.ifaces[1].Name, "it lost some, though none of its packets is there")
	require.EqualValues(t, 100, file.stats[1].IfDrop)
	require.EqualValues(t, 145, report.dropped)
}

func TestADumpOfNothingIsAFile(t *testing.T) {
	for name, tt := range map[string]struct {
		fill func(p *past)
		want string
	}{
		"no interface yet":     {func(*past) {}, "any"},
		"no packet yet":        {func(p *past) { p.iface("eth0") }, "eth0"},
		"none that is wanted":  {func(p *past) { p.packet(p.iface("eth1"), 1, 60) }, "eth1"},
		"none of the link":     {func(p *past) { p.describe(&pcapng.Interface{Link: pcapng.LinuxSLL2, Name: "any"}) }, "any"},
		"none is young enough": {func(p *past) { p.packet(p.iface("eth2"), -time.Hour, 60) }, "eth2"},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPast(t, bounds{}, nil)
			from := p.now
			tt.fill(p)
			p.flush()
			file, report := p.dump(choice{from: from, to: math.MaxInt64, filter: "vlan 7", source: "any"})
			require.Empty(t, file.packets)
			require.Len(t, file.ifaces, 1)
			require.Equal(t, tt.want, file.ifaces[0].Name)
			require.Zero(t, report.packets)
			require.Len(t, file.stats, 1)
		})
	}
}

func TestASnapshotLosesNothingWhileTheRecordingGoesOn(t *testing.T) {
	p := newPast(t, bounds{bytes: 2 << 20}, nil)
	before := mapped.Load()
	eth := p.iface("eth0")
	for range 3000 {
		p.packet(eth, 1, 1000)
	}
	p.flush()
	s, err := p.look(math.MinInt64, 0)
	require.NoError(t, err)
	held := p.held().packets
	for range 30_000 { // the history turns over and over
		p.packet(eth, 1, 1000)
		require.Less(t, mapped.Load()-before, int64(2<<20)*9/4)
	}
	p.flush()
	_, err = p.look(math.MinInt64, 0)
	require.ErrorIs(t, err, families.ErrBusy, "or memory would have no bound")
	var file bytes.Buffer
	_, err = newDump(t.Context(), &file, s, everything).write()
	require.NoError(t, err)
	s.close()
	numbers := readDump(t, file.Bytes()).numbers
	require.EqualValues(t, held, len(numbers))
	require.EqualValues(t, 2999, numbers[len(numbers)-1])
	require.Zero(t, p.pinned)
	s, err = p.look(math.MinInt64, 0)
	require.NoError(t, err, "there is room again")
	s.close()
	p.close()
	_, err = p.look(math.MinInt64, 0)
	require.ErrorIs(t, err, families.ErrNotFound)
}

func TestBoundsChangeWhileItRecords(t *testing.T) {
	p := newPast(t, bounds{bytes: 2 << 20}, nil)
	eth := p.iface("eth0")
	for range 5000 {
		p.packet(eth, time.Millisecond, 1000)
	}
	p.flush()
	held := p.held().packets
	p.setBounds(bounds{bytes: 64 << 20})
	require.Equal(t, held, p.held().packets, "growing loses nothing")
	for range 1000 {
		p.packet(eth, time.Millisecond, 1000)
	}
	p.flush()
	require.Equal(t, held+1000, p.held().packets)
	p.setBounds(bounds{bytes: minHistory})
	require.LessOrEqual(t, p.held().bytes, int64(minHistory))
	require.Equal(t, p.now, p.held().newest, "shrinking loses the oldest")
	p.setBounds(bounds{bytes: minHistory, last: 100 * time.Millisecond})
	require.Less(t, p.held().packets, int64(600))
}

// Everything at once, for the race detector.
func TestDumpsWhileItRecords(t *testing.T) {
	p := newPast(t, bounds{bytes: 4 << 20}, nil)
	eth := p.iface("eth0")
	for range 1000 {
		p.packet(eth, 1, 200)
	}
	p.flush()
	var dumps sync.WaitGroup
	for range 8 {
		dumps.Go(func() {
			for range 5 {
				s, err := p.look(math.MinInt64, 0)
				if errors.Is(err, families.ErrBusy) {
					continue
				}
				var file bytes.Buffer
				_, err = newDump(context.Background(), &file, s, everything).write()
				s.close()
				if err != nil {
					t.Error(err)
					return
				}
				numbers := readDump(t, file.Bytes()).numbers
				for i := range numbers[1:] {
					if numbers[i+1] != numbers[i]+1 {
						t.Errorf("%d follows %d", numbers[i+1], numbers[i])
						return
					}
				}
				p.held()
				p.sweep(0)
			}
		})
	}
	for i := range 100_000 {
		p.packet(eth, 1, 200)
		if i%50 == 0 {
			p.flush()
		}
	}
	dumps.Wait()
}

func TestADumpEndsWithItsContextOrItsWriter(t *testing.T) {
	p := newPast(t, bounds{}, nil)
	p.packet(p.iface("eth0"), 1, 60)
	p.flush()
	ctx, cancel := context.WithCancelCause(t.Context())
	left := errors.New("the caller left")
	cancel(left)
	for name, tt := range map[string]struct {
		ctx  context.Context
		w    io.Writer
		want error
	}{
		"its caller left":  {ctx, io.Discard, left},
		"the disk is full": {t.Context(), brokenWriter{}, errBroken},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := p.look(math.MinInt64, 0)
			require.NoError(t, err)
			defer s.close()
			report, err := newDump(tt.ctx, tt.w, s, everything).write()
			require.ErrorIs(t, err, tt.want)
			require.Zero(t, report)
		})
	}
}

var errBroken = errors.New("no space left")

type brokenWriter struct{}

func (brokenWriter) Write([]byte) (int, error) { return 0, errBroken }

func TestTriggers(t *testing.T) {
	type event struct {
		after   time.Duration
		length  int
		dropped uint64
	}
	for name, tt := range map[string]struct {
		trigger    *trigger
		events     []event
		fired      int
		suppressed int64
	}{
		"a match":                      {newTrigger("greater 100", 0, time.Minute), []event{{0, 60, 0}, {1, 200, 0}}, 1, 0},
		"no match":                     {newTrigger("greater 100", 0, time.Minute), []event{{0, 60, 5}, {1, 60, 5}}, 0, 0},
		"a second one is too early":    {newTrigger("greater 100", 0, time.Minute), []event{{0, 200, 0}, {59 * time.Second, 200, 0}}, 1, 1},
		"a second one is late enough":  {newTrigger("greater 100", 0, time.Minute), []event{{0, 200, 0}, {time.Minute, 200, 0}}, 2, 0},
		"a clock that was set back":    {newTrigger("greater 100", 0, time.Minute), []event{{0, 200, 0}, {-time.Hour, 200, 0}}, 2, 0},
		"a burst of losses":            {newTrigger("", 10, time.Minute), []event{{0, 60, 4}, {time.Millisecond, 60, 3}, {time.Millisecond, 60, 3}}, 1, 0},
		"losses far from each other":   {newTrigger("", 10, time.Minute), []event{{0, 60, 6}, {2 * time.Second, 60, 6}}, 0, 0},
		"a filter of other link types": {newTrigger("wlan type mgt", 0, time.Minute), []event{{0, 60, 0}}, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPast(t, bounds{}, tt.trigger)
			eth := p.iface("eth0")
			fired := 0
			for _, e := range tt.events {
				p.now += int64(e.after)
				p.lossy(eth, p.now, e.dropped, e.length)
				p.flush()
				select {
				case f := <-tt.trigger.fired:
					fired++
					require.Equal(t, p.now, f.time)
					require.EqualValues(t, p.sent, p.held().packets, "the packet can be seen")
				default:
				}
			}
			require.Equal(t, tt.fired, fired)
			require.Equal(t, tt.suppressed, tt.trigger.suppressed.Load())
		})
	}
}

func TestATriggerWhoseDumpIsStillBeingWrittenIsCounted(t *testing.T) {
	tr := newTrigger("greater 100", 0, 1)
	p := newPast(t, bounds{}, tr)
	eth := p.iface("eth0")
	for range 3 {
		p.packet(eth, time.Second, 200)
		p.flush()
	}
	require.EqualValues(t, 2, tr.suppressed.Load())
	require.Len(t, tr.fired, 1)
}

func TestTakingAPacketInAllocatesNothing(t *testing.T) {
	for name, b := range map[string]bounds{
		"bound by memory": {bytes: minHistory},
		"bound by age":    {bytes: 64 << 20, last: time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPast(t, b, newTrigger("vlan 7", 3, time.Minute))
			eth := p.iface("eth0")
			packet := pcapng.Packet{Interface: eth, Data: make([]byte, 1000), Len: 1000}
			more := func() {
				for range 100 {
					p.now += int64(100 * time.Microsecond)
					packet.Time = p.now
					p.add(&packet)
				}
				p.flush()
			}
			for range 500 {
				more()
			}
			require.Zero(t, testing.AllocsPerRun(500, more))
		})
	}
}

// BenchmarkHistory is a packet from the subscription's hand into memory.
func BenchmarkHistory(b *testing.B) {
	h := newHistory(bounds{bytes: 64 << 20}, nil)
	defer h.close()
	h.describe(&pcapng.Interface{Link: pcapng.Ethernet, Name: "eth0"})
	p := pcapng.Packet{Data: make([]byte, 64), Len: 64}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		p.Time = int64(i)
		h.add(&p)
		if i%1000 == 0 {
			h.flush()
		}
	}
}
