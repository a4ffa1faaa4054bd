package capture

import (
	"bytes"
	"encoding/binary"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/familytest"
	"github.com/sockd/sockd/families/model"
	"github.com/sockd/sockd/families/packet/pcapng"
	"github.com/stretchr/testify/require"
)

// fragmentsTo are the three fragments of a UDP datagram to a port: of IPv4, 24, 24 and 10
// bytes.
func fragmentsTo(port, id uint16) [3][]byte {
	const more = 0x2000
	data := append(toPort(port), make([]byte, 38)...)
	binary.BigEndian.PutUint16(data[4:], uint16(len(data)))
	return [3][]byte{
		ethernet(0x0800, ipv4(protoUDP, id, more, data[:24])),
		ethernet(0x0800, ipv4(protoUDP, id, more|3, data[24:48])),
		ethernet(0x0800, ipv4(protoUDP, id, 6, data[48:])),
	}
}

// fragments6To are the same of IPv6.
func fragments6To(port, id uint16) [3][]byte {
	var out [3][]byte
	data := append(toPort(port), make([]byte, 38)...)
	for i, part := range [][]byte{data[:24], data[24:48], data[48:]} {
		p := append([]byte{0x60, 0, 0, 0, 0, byte(8 + len(part)), 44, 64}, make([]byte, 32)...)
		p[8], p[23], p[24], p[39] = 0xfd, 1, 0xfd, 2
		offset := uint16(i * 24)
		if i < 2 {
			offset |= 1
		}
		p = binary.BigEndian.AppendUint16(append(p, protoUDP, 0), offset)
		p = binary.BigEndian.AppendUint32(p, uint32(id))
		out[i] = ethernet(0x86dd, append(p, part...))
	}
	return out
}

const wantFragments = "udp port 40000 and fragments"

// orders are all in which three can come.
var orders = [][3]int{{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}}

// sendFragments sends datagrams in every order, of which wantFragments wants want, in the order
// in which it is to give them: what waits for the first comes right before it.
func (n *net2) sendFragments() (want [][]byte) {
	n.Helper()
	for i, order := range orders {
		for kind, of := range []func(port, id uint16) [3][]byte{fragmentsTo, fragments6To} {
			id := uint16(100*kind + i + 1)
			wanted, other := of(40000, id), of(40001, 1000+id)
			for _, k := range order {
				n.sendFrame(other[k])
				n.sendFrame(wanted[k])
				want = append(want, wanted[k])
			}
		}
	}
	return want
}

func dataOf(packets []pcapng.Packet) (out [][]byte) {
	for _, p := range packets {
		out = append(out, p.Data)
	}
	return out
}

func TestFragmentsComeInAnyOrder(t *testing.T) {
	n := newNet(t)
	for _, source := range []string{"v1", "any"} {
		r := n.start(model.CaptureSpec{Source: source, Filter: wantFragments})
		plain := n.start(model.CaptureSpec{Source: source, Filter: "udp port 40000"})
		want := n.sendFragments()
		r.received(int64(len(want)))
		got := r.finish()
		require.Equal(t, want, dataOf(got.packets), "every fragment of the datagrams that are wanted, and no other one")
		require.EqualValues(t, len(want), got.stats.Delivered)
		require.Len(t, plain.finish().packets, len(orders), "without the word: the first fragments of IPv4")
	}
}

// A datagram that the kernel itself takes apart.
func TestALargeDatagramIsFollowed(t *testing.T) {
	n := newNet(t)
	r := n.start(model.CaptureSpec{Filter: wantFragments})
	n.echoUDP("10.9.0.2:40001", 8192)
	n.echoUDP("10.9.0.2:40000", 8192)
	const parts = (8 + 8192 + 1479) / 1480
	r.received(2 * parts)
	in, out := 0, 0
	for _, p := range r.finish().packets {
		part := len(p.Data) - 14 - 20
		if p.Direction == pcapng.Inbound {
			in += part
		} else {
			out += part
		}
	}
	require.Equal(t, []int{8 + 8192, 8 + 8192}, []int{in, out}, "bytes in and out")
}

func TestACountOfFragmentsIsExact(t *testing.T) {
	n := newNet(t)
	r := n.start(model.CaptureSpec{Filter: wantFragments, Count: 2})
	f := fragmentsTo(40000, 1)
	for _, i := range []int{2, 1, 0} {
		n.sendFrame(f[i])
	}
	require.NoError(t, r.wait())
	require.Equal(t, [][]byte{f[2], f[1]}, dataOf(r.content().packets))
	require.EqualValues(t, 2, r.sub.View().Delivered)
}

// notesOf are what a subscription says.
func notesOf(s *Subscription) *notes {
	told := &notes{}
	s.Notes(func(note string) { told.add("", note) })
	return told
}

// A filter that is replaced takes what waited for its verdict with it, and says so.
func TestFragmentsAreJudgedByTheFilterOfTheirTime(t *testing.T) {
	n := newNet(t)
	r := n.start(model.CaptureSpec{Filter: wantFragments})
	told := notesOf(r.sub)
	a, b, c := fragmentsTo(40000, 1), fragmentsTo(40001, 2), fragmentsTo(40000, 3)
	n.sendFrame(a[1])
	n.sendFrame(c[2])
	n.sendFrame(c[0])
	r.received(2)
	require.NoError(t, r.sub.SetFilter("udp port 40001 and fragments"))
	n.sendFrame(a[0]) // is nobody's any more
	n.sendFrame(c[1])
	for _, i := range []int{1, 0, 2} {
		n.sendFrame(b[i])
	}
	r.received(5)
	require.NoError(t, r.sub.SetFilter(ours))
	n.sendFrame(frame(0, 60))
	r.received(6)
	got := r.finish()
	require.Equal(t, [][]byte{c[2], c[0], b[1], b[0], b[2], frame(0, 60)}, dataOf(got.packets))
	require.Equal(t, []string{"2 fragments are left out: the first of their datagrams did not come, or too late"}, told.all(), "a[1], and c[1] under the second filter")
}

// Changing the filter does not gather what each of them waited for.
func TestFiltersThatFollowFragmentsLeaveNothingBehind(t *testing.T) {
	n := newNet(t)
	r := n.start(model.CaptureSpec{Filter: wantFragments})
	told := notesOf(r.sub)
	const changes = 20
	for i := range changes {
		n.sendFrame(fragmentsTo(40000, uint16(i))[1])
		familytest.Eventually(t, "it is held", func() bool { return following(r.sub).held == 1 })
		require.NoError(t, r.sub.SetFilter(wantFragments+" and less "+strings.Repeat("9", 2+i%3)))
		require.NoError(t, r.sub.SetFilter(wantFragments))
		require.LessOrEqual(t, following(r.sub).followers, 2)
	}
	r.finish()
	require.Equal(t, []string{"20 fragments are left out: the first of their datagrams did not come, or too late"}, told.all())
}

// followed is what a subscription waits for.
type followed struct{ followers, held, bytes, datagrams int }

func following(s *Subscription) (f followed) {
	s.mu.Lock()
	defer s.mu.Unlock()
	seen := map[*stream]bool{}
	for _, st := range s.ids {
		seen[st] = true
	}
	for _, st := range s.streams {
		seen[st] = true
	}
	for st := range seen {
		if st.follower == nil {
			continue
		}
		stats := st.follower.Stats()
		f.followers++
		f.held += stats.Waiting
		f.bytes += stats.WaitingBytes
		f.datagrams += stats.Datagrams
	}
	return f
}

// A hundred thousand fragments of as many datagrams, whose first never come.
func TestAFloodOfFragmentsIsBounded(t *testing.T) {
	n := newNet(t)
	n.hub.limits.blocks = 64
	r := n.start(model.CaptureSpec{Filter: wantFragments})
	other := n.start(model.CaptureSpec{Filter: ours})
	told := notesOf(r.sub)
	const flood, step = 100_000, 1000
	before := heapUsed()
	for i := range uint32(flood) {
		f := fragmentsTo(40000, uint16(i))[1]
		binary.BigEndian.PutUint32(f[26:], i) // the sender
		n.sendFrame(f)
		if i%step == step-1 {
			n.sendFrame(frame(i/step, 60))
			other.received(int64(i/step) + 1) // in step, so that the ring suffices
		}
	}
	f := following(r.sub)
	require.LessOrEqual(t, f.datagrams, 1024)
	require.LessOrEqual(t, f.bytes, 1<<20)
	require.NotZero(t, f.held)
	require.Less(t, heapUsed(), before+8<<20)

	last := fragmentsTo(40000, 7)
	n.sendFrame(last[1])
	n.sendFrame(last[0])
	r.received(2)
	require.Equal(t, [][]byte{last[1], last[0]}, dataOf(r.finish().packets), "it still follows")
	require.Equal(t, []string{"100000 fragments are left out: the first of their datagrams did not come, or too late"}, told.all())
	v := other.sub.View()
	require.Len(t, other.finish().packets, flood/step)
	require.Zero(t, v.DroppedKernel+v.DroppedDaemon+v.DroppedSubscriber)
}

// The kernel lets the first fragments pass, too, by which it is known that the others are
// not wanted: they are no loss.
func TestDatagramsThatAreNotWantedAreNoLoss(t *testing.T) {
	n := newNet(t)
	r := n.start(model.CaptureSpec{Filter: wantFragments})
	told := notesOf(r.sub)
	for id := range uint16(25) {
		for i, f := range fragmentsTo(40001, id) {
			if id%2 == 0 {
				f = fragmentsTo(40001, id)[2-i] // the last first
			}
			n.sendFrame(f)
		}
	}
	wanted := fragmentsTo(40000, 99)
	for _, f := range wanted {
		n.sendFrame(f)
	}
	r.received(3)
	require.Equal(t, wanted[:], dataOf(r.finish().packets))
	require.Empty(t, told.all())
}

func heapUsed() int {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc)
}

// The filter is chosen when the packets are asked for.
func TestARecordersDumpFollowsFragments(t *testing.T) {
	n := newNet(t)
	r, _ := n.record(model.RecorderSpec{Bytes: 8 << 20})
	want := n.sendFragments()
	familytest.Eventually(t, "they are recorded", func() bool { return r.View().HeldPackets >= int64(2*len(want)) })
	file, report := n.dumpOf(r, model.DumpSpec{Filter: wantFragments})
	require.Equal(t, want, dataOf(file.packets))
	require.EqualValues(t, len(want), report.Packets)
	spec := toDisk(t.TempDir(), 0)
	spec.Filter = wantFragments
	disk, _ := n.record(spec)
	want = n.sendFragments()
	familytest.Eventually(t, "they are recorded", func() bool { return disk.View().Received >= int64(len(want)) })
	file, _ = n.dumpOf(disk, model.DumpSpec{Filter: "fragments and udp port 40000 and (ip or ip6)"})
	require.Equal(t, want, dataOf(file.packets))
}

// A fragment may wait for the first of its datagram beyond the segment that it lies in.
func TestADumpFollowsFragmentsThroughSegments(t *testing.T) {
	p := newPast(t, bounds{bytes: 16 << 20}, nil)
	eth := p.iface("eth0")
	f := fragmentsTo(40000, 1)
	add := func(data []byte, dropped uint64) {
		p.now++
		require.Equal(t, kept, p.add(&pcapng.Packet{Interface: eth, Time: p.now, Data: data, Len: len(data), Direction: pcapng.Inbound, Dropped: dropped}))
	}
	noise := func() {
		for range 2000 {
			p.packet(eth, 1, 1000)
		}
	}
	add(f[2], 5)
	noise()
	add(f[1], 0)
	noise()
	add(f[0], 2)
	noise()
	p.flush()
	c := everything
	c.filter = wantFragments
	file, report := p.dump(c)
	require.Equal(t, [][]byte{f[2], f[1], f[0]}, dataOf(file.packets))
	require.EqualValues(t, 3, report.packets)
	require.EqualValues(t, 7, report.dropped, "losses are told once")
	require.True(t, slices.IsSortedFunc(file.packets, func(a, b pcapng.Packet) int { return int(a.Time - b.Time) }))
}

// tshark puts the datagrams of a file together: it has all that they are made of.
func TestAFileOfFragmentsIsWhole(t *testing.T) {
	n := newNet(t)
	r := n.startFiles(t.TempDir(), model.CaptureSpec{Filter: wantFragments}, model.FileSpec{}, nil)
	n.echoUDP("10.9.0.2:40000", 8192)
	r.received(12)
	r.end()
	require.NoError(t, r.wait())
	b, err := os.ReadFile(r.opened[0])
	require.NoError(t, err)
	require.Equal(t, 12, len(readDump(t, b).packets))
	lengths := output(t, "tshark", "-n", "-r", r.opened[0], "-o", "ip.defragment:TRUE", "-Y", "udp", "-T", "fields", "-e", "udp.length")
	require.Equal(t, "8200\n8200\n", lengths)
	require.False(t, bytes.Contains([]byte(output(t, "capinfos", r.opened[0])), []byte("corrupt")))
}

// "ip broadcast" takes the interface's mask, which a recorder's need not have yet.
func TestABroadcastIsThatOfTheInterface(t *testing.T) {
	n := newNet(t)
	to := func(last byte) []byte {
		f := ethernet(0x0800, ipv4(protoTCP, 1, 0, toPort(80)))
		copy(f[30:], []byte{10, 9, 0, last})
		return f
	}
	r := n.start(model.CaptureSpec{Filter: "ip broadcast and tcp"})
	kept, _ := n.record(model.RecorderSpec{Bytes: 8 << 20, Filter: "ip broadcast and tcp"})
	n.sendFrame(to(254))
	n.sendFrame(to(255))
	r.received(1)
	require.Equal(t, [][]byte{to(255)}, dataOf(r.finish().packets))
	familytest.Eventually(t, "it is recorded", func() bool { return kept.View().HeldPackets == 1 })
	_, err := n.hub.Subscribe(model.CaptureSpec{Source: "any", Filter: "ip broadcast"})
	require.ErrorIs(t, err, families.ErrSyntax, "of several interfaces there is no mask")
}

func TestATriggerKnowsWhichWayAPacketWent(t *testing.T) {
	for filter, fires := range map[string]bool{"inbound": true, "outbound": false, "not outbound and ether proto 0x88b5": true} {
		trigger := newTrigger(filter, 0, 0)
		p := newPast(t, bounds{}, trigger)
		p.packet(p.iface("eth0"), 1, 60) // inbound
		p.flush()
		require.Equal(t, fires, len(trigger.fired) == 1, filter)
	}
}
