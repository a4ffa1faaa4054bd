package capture

import (
	"bytes"
	"testing"
	"time"

	"github.com/sockd/sockd/families/familytest"
	"github.com/sockd/sockd/families/model"
	"github.com/sockd/sockd/families/packet/pcapng"
	"github.com/sockd/sockd/families/packet/ring"
	"github.com/stretchr/testify/require"
)

// stretches writes a chunk in runs of a few packets, each with its sum, as a block of a
// ring is.
func (d *desk) stretches(chunk []byte) {
	var run []byte
	var sum extent
	put := func() {
		d.writeAll(run, &sum)
		run, sum = nil, extent{}
	}
	for len(chunk) > 0 {
		b, rest, _ := pcapng.NextEncoded(chunk)
		chunk = rest
		if b.Type() != pcapng.PacketBlock {
			put()
			d.write(b)
			continue
		}
		p := b.Packet()
		run = append(run, b...)
		if sum.add(&p); sum.packets == 7 {
			put()
		}
	}
	put()
}

// What is summed up is not looked at packet by packet where nothing can come of it. The
// files are the same, byte by byte, whatever bounds them.
func TestFilesOfWhatIsSummedUpAreTheSame(t *testing.T) {
	for name, set := range map[string]func(*desk){
		"no bound":         func(*desk) {},
		"a small size":     func(d *desk) { d.size = 4096 },
		"a size":           func(d *desk) { d.size = 65537 },
		"an interval":      func(d *desk) { d.clock.Every = time.Second },
		"size and time":    func(d *desk) { d.size, d.clock.Every = 100_000, time.Second },
		"a number":         func(d *desk) { d.size, d.most = 50_000, 3 },
		"pcap":             func(d *desk) { d.classic = true },
		"losses to tell":   func(d *desk) { d.untold = 7 },
		"pcap, and a size": func(d *desk) { d.classic, d.size = true, 5000 },
	} {
		t.Run(name, func(t *testing.T) {
			for _, ifaces := range []int{1, 3} {
				chunk, want := material(11, 2500, ifaces)
				plain, summed := newDesk(set), newDesk(set)
				plain.write(bytes.Clone(chunk))
				plain.end()
				summed.stretches(chunk)
				summed.end()
				require.Equal(t, plain.reports, summed.reports)
				require.Equal(t, plain.kept, summed.kept)
				require.LessOrEqual(t, summed.kept, int64(len(want)))
				require.Len(t, summed.files, len(plain.files))
				for i := range plain.files {
					require.True(t, bytes.Equal(plain.files[i].b, summed.files[i].b), "file %d", i)
				}
			}
		})
	}
}

// A disk that is full somewhere in what was summed up: the whole packets before are in
// the file, and all others are counted.
func TestADiskThatIsFullAmidWhatIsSummedUp(t *testing.T) {
	chunk, want := material(4, 30, 1)
	for room := range len(chunk) {
		d := newDesk(nil)
		d.next = func() (sink, error) {
			d.files = append(d.files, &memFile{room: room})
			return d.files[0], nil
		}
		d.stretches(bytes.Clone(chunk))
		d.files[0].room = plenty
		d.at = d.at.Add(2 * retryAfter)
		d.end()
		c := mustContent(t, d.files[0].b)
		require.Len(t, c.packets, int(d.kept), "room for %d bytes", room)
		for i, p := range c.packets {
			require.Equal(t, want[i].Data, p.Data)
		}
		if len(d.ifaces) > 0 {
			require.Equal(t, int64(len(want)), d.ifaces[0].delivered+d.ifaces[0].lost)
		}
	}
}

func TestWritingWhatIsSummedUpDoesNotAllocate(t *testing.T) {
	chunk, want := material(7, 1000, 1)
	d := newDesk(nil)
	d.write(bytes.Clone(chunk))
	_, packets, _ := pcapng.NextEncoded(chunk)
	sum := extent{packets: int64(len(want)), first: want[0].Time, last: want[len(want)-1].Time}
	d.files[0].b = make([]byte, 0, 64<<20)
	require.Zero(t, testing.AllocsPerRun(50, func() { require.True(t, d.straight(packets, &sum)) }))
}

// countedBlocks counts the blocks that a store takes.
type countedBlocks struct {
	blockTaker
	taken int // guarded by the subscription's mutex
}

func (c *countedBlocks) takeBlock(b *ring.Block, iface uint32, dropped uint64) bool {
	ok := c.blockTaker.takeBlock(b, iface, dropped)
	if ok {
		c.taken++
	}
	return ok
}

// A capture of everything hands its blocks to the writer as they are, and one with a
// filter or another wish does not; every packet is in the file once, in order.
func TestBlocksOfSmallFramesGoToTheWriter(t *testing.T) {
	for _, tt := range []struct {
		name string
		spec model.CaptureSpec
		cut  model.FileSpec
		live string // a filter that is set on the way
		want bool
	}{
		{"everything", model.CaptureSpec{}, model.FileSpec{}, "", true},
		{"everything, into files of a size", model.CaptureSpec{}, model.FileSpec{Size: leastCut}, "", true},
		{"with a filter", model.CaptureSpec{Filter: ours}, model.FileSpec{}, "", false},
		{"cut", model.CaptureSpec{Snaplen: 64}, model.FileSpec{}, "", false},
		{"one direction", model.CaptureSpec{Direction: "in"}, model.FileSpec{}, "", false},
		{"a live filter", model.CaptureSpec{}, model.FileSpec{}, ours, false},
		{"so many", model.CaptureSpec{Count: 1 << 40}, model.FileSpec{}, "", false},
		{"pcap", model.CaptureSpec{Format: model.FormatPcap}, model.FileSpec{}, "", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			const frames = 20_000 // several blocks, however slowly they are sent
			n := newNet(t)
			n.hub.limits.blocks = 64
			r := n.startFiles(t.TempDir(), tt.spec, tt.cut, nil)
			count := r.countBlocks()
			if tt.live != "" {
				require.NoError(t, r.sub.SetFilter(tt.live))
			}
			n.sendFrames(frames, 60)
			r.received(frames)
			r.end()
			require.NoError(t, r.wait())
			if tt.spec.Format == "" {
				require.Equal(t, upTo(frames), numbers(r.contents()))
			}
			require.Equal(t, tt.want, count.taken > 0)
			v := r.sub.View()
			require.Equal(t, v.Received, v.Delivered)
			require.Zero(t, v.DroppedKernel+v.DroppedDaemon+v.DroppedSubscriber)
			require.Zero(t, n.hub.queued.Load())
		})
	}
}

// countBlocks waits until the subscription takes blocks if it ever will, and counts them.
func (r *filesRun) countBlocks() *countedBlocks {
	r.Helper()
	count := &countedBlocks{}
	if r.sub.spec.Format == model.FormatPcap {
		return count
	}
	familytest.Eventually(r, "the capture does not take blocks", func() bool {
		r.sub.mu.Lock()
		defer r.sub.mu.Unlock()
		if r.sub.blocks == nil {
			return false
		}
		count.blockTaker, r.sub.blocks = r.sub.blocks, count
		return true
	})
	return count
}
