package capture

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/familytest"
	"github.com/sockd/sockd/families/model"
	"github.com/sockd/sockd/families/packet/pcapng"
	"github.com/sockd/sockd/families/packet/shm"
	"github.com/stretchr/testify/require"
)

// sharing is a Shared that runs, with the reader that another program would be.
type sharing struct {
	*net2
	s          *Shared
	r          *shm.Reader
	d          pcapng.Decoder
	done, left chan struct{} // for the reader to close
	ended      chan error    // what Run returns
}

func (n *net2) share(spec model.CaptureSpec) *sharing {
	n.Helper()
	if spec.Source == "" {
		spec.Source = "v1"
	}
	s, err := n.hub.Share(spec, int(max(spec.Queue, shm.MinBytes)))
	require.NoError(n, err)
	x := &sharing{net2: n, s: s, done: make(chan struct{}), left: make(chan struct{}), ended: make(chan error, 1)}
	var f shm.Files
	f.Data, f.Control, f.Wake = s.Files()
	x.r, err = shm.NewReader(duplicates(n, f))
	require.NoError(n, err)
	go func() { x.ended <- s.Run(context.Background(), x.done, x.left) }()
	n.Cleanup(func() {
		require.NoError(n, s.Close())
		if !isClosed(x.left) {
			close(x.left)
		}
		<-x.ended
		require.NoError(n, x.r.Close())
	})
	return x
}

// duplicates are what SCM_RIGHTS makes of descriptors.
func duplicates(n *net2, f shm.Files) (out shm.Files) {
	n.Helper()
	for _, d := range []struct {
		from int
		to   *int
	}{{f.Data, &out.Data}, {f.Control, &out.Control}, {f.Wake, &out.Wake}} {
		var err error
		*d.to, err = syscall.Dup(d.from)
		require.NoError(n, err)
	}
	return out
}

// next is the next block; its data is the ring's.
func (x *sharing) next() (b pcapng.Block, err error) {
	x.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	block, err := x.r.Next(ctx)
	if err != nil {
		return b, err
	}
	require.NoError(x, x.d.Decode(block, &b))
	return b, nil
}

// packets calls f for each packet until the end, and returns the last statistics of
// the first interface.
func (x *sharing) packets(f func(p *pcapng.Packet)) (stats pcapng.Stats) {
	x.Helper()
	for {
		b, err := x.next()
		if errors.Is(err, io.EOF) {
			return stats
		}
		require.NoError(x, err)
		switch {
		case b.Type == pcapng.PacketBlock:
			f(&b.Packet)
		case b.Type == pcapng.StatisticsBlock && b.Stats.Interface == 0:
			stats = b.Stats
		}
	}
}

// result waits for Run.
func (x *sharing) result() error {
	x.Helper()
	select {
	case err := <-x.ended:
		x.ended <- err // for the cleanup
		return err
	case <-time.After(20 * time.Second):
		x.Fatal("Run does not end")
		return nil
	}
}

func seqOf(p *pcapng.Packet) uint32 { return binary.BigEndian.Uint32(p.Data[14:]) }

func TestASharedCaptureHasEveryPacketInOrder(t *testing.T) {
	n := newNet(t)
	n.hub.limits.blocks = 256                                                          // all of them fit into the ring,
	x := n.share(model.CaptureSpec{Filter: ours, Count: 200_000, Queue: shm.MaxBytes}) // and into this
	var sending sync.WaitGroup
	defer sending.Wait()
	sending.Go(func() { n.sendFrames(200_000, 60) })
	seen := uint32(0)
	stats := x.packets(func(p *pcapng.Packet) {
		if seqOf(p) != seen || len(p.Data) != 60 || p.Dropped != 0 {
			t.Fatalf("packet %d is number %d, after a loss of %d", seen, seqOf(p), p.Dropped)
		}
		seen++
	})
	require.EqualValues(t, 200_000, seen)
	require.EqualValues(t, 200_000, stats.Delivered)
	close(x.left)
	require.NoError(t, x.result())
	require.EqualValues(t, 200_000, x.s.View().Delivered)

	w, err := x.s.mem.w.Stats()
	require.NoError(t, err)
	require.Less(t, x.r.Stats().Sleeps, int64(20_000), "the reader's system calls")
	require.LessOrEqual(t, w.Wakes, x.r.Stats().Sleeps+1, "the daemon's")
	t.Logf("200000 packets: %d sleeps, %d wakes", x.r.Stats().Sleeps, w.Wakes)
}

func TestAReaderThatStandsStillIsAccountedFor(t *testing.T) {
	n := newNet(t)
	n.hub.limits.blocks = 64
	x := n.share(model.CaptureSpec{Filter: ours})
	other := n.start(model.CaptureSpec{Filter: ours})
	const sent = 20_000
	n.sendFrames(sent, 60)
	familytest.Eventually(t, "not all packets were received", func() bool { return x.s.View().Received == sent })
	v := x.s.View()
	require.Zero(t, v.Delivered, "nothing is read yet")
	require.Zero(t, v.DroppedKernel)
	lost := v.DroppedSubscriber
	require.Greater(t, lost, int64(1000))

	read, told := int64(0), uint64(0)
	for read < sent-lost {
		b, err := x.next()
		require.NoError(t, err)
		if b.Type == pcapng.PacketBlock {
			require.EqualValues(t, read, seqOf(&b.Packet), "all before the loss are there")
			read++
		}
	}
	n.sendFrame(frame(sent, 60))
	close(x.done)
	stats := x.packets(func(p *pcapng.Packet) {
		read++
		told += p.Dropped
		require.EqualValues(t, sent, seqOf(p))
	})
	require.EqualValues(t, sent+1, read+lost, "sent = read + counted")
	require.EqualValues(t, lost, told, "the packet after the loss tells of it")
	require.EqualValues(t, lost, stats.OSDrop)
	require.EqualValues(t, lost, x.r.Stats().Lost)
	close(x.left)
	require.NoError(t, x.result())
	v = x.s.View()
	require.Equal(t, []int64{sent + 1, read, lost}, []int64{v.Received, v.Delivered, v.DroppedSubscriber})
	require.Len(t, other.finish().packets, sent+1, "nobody else lost any")
}

func TestWhatAReaderLeavesBehindCountsAsDropped(t *testing.T) {
	n := newNet(t)
	x := n.share(model.CaptureSpec{Filter: ours})
	n.sendFrames(100, 60)
	familytest.Eventually(t, "not all packets were received", func() bool { return x.s.View().Received == 100 })
	for read := 0; read < 40; {
		b, err := x.next()
		require.NoError(t, err)
		if b.Type == pcapng.PacketBlock {
			read++
		}
	}
	require.NoError(t, x.r.Close())
	close(x.left)
	require.NoError(t, x.result())
	v := x.s.View()
	require.Equal(t, []int64{100, 40, 60}, []int64{v.Received, v.Delivered, v.DroppedSubscriber})
}

func TestASharedCaptureEndsWith(t *testing.T) {
	for _, tt := range []struct {
		name string
		spec model.CaptureSpec
		end  func(x *sharing)
		want error
	}{
		{"what its reader asks for", model.CaptureSpec{}, func(x *sharing) { close(x.done) }, nil},
		{"its count", model.CaptureSpec{Count: 5}, func(*sharing) {}, nil},
		{"its time", model.CaptureSpec{Duration: 2 * time.Second}, func(*sharing) {}, nil},
		{"Close", model.CaptureSpec{}, func(x *sharing) { require.NoError(x, x.s.Close()) }, net.ErrClosed},
		{"the hub's", model.CaptureSpec{}, func(x *sharing) { require.NoError(x, x.hub.Close()) }, net.ErrClosed},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := newNet(t)
			tt.spec.Filter = ours
			x := n.share(tt.spec)
			n.sendFrames(5, 60)
			familytest.Eventually(t, "not all packets were received", func() bool { return x.s.View().Received == 5 })
			tt.end(x)
			seen := uint32(0)
			stats := x.packets(func(p *pcapng.Packet) {
				require.Equal(t, seen, seqOf(p))
				seen++
			})
			require.EqualValues(t, 5, seen)
			require.EqualValues(t, 5, stats.Accepted)
			require.Equal(t, "dropped_kernel=0 dropped_daemon=0 dropped_subscriber=0", stats.Comment)
			require.Equal(t, []pcapng.Interface{{Link: pcapng.Ethernet, Snaplen: 262144, Name: "v1", Filter: ours, Resolution: 9}}, x.d.Interfaces())
			close(x.left)
			require.ErrorIs(t, x.result(), tt.want)
		})
	}
}

// The reader is another process, and may be anything.
func TestAReaderThatLiesEndsItsOwnCaptureAlone(t *testing.T) {
	n := newNet(t)
	good := n.start(model.CaptureSpec{Filter: ours})
	s, err := n.hub.Share(model.CaptureSpec{Source: "v1", Filter: ours}, shm.MinBytes)
	require.NoError(t, err)
	_, control, _ := s.Files()
	page, err := syscall.Mmap(control, 0, 4096, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	require.NoError(t, err)
	ended := make(chan error)
	left := make(chan struct{})
	go func() { ended <- s.Run(context.Background(), nil, left) }()

	binary.LittleEndian.PutUint64(page, 1<<60) // "I have read that far"
	n.sendFrames(10, 60)
	good.received(10)
	s.View() // looks at the page
	var lie *shm.ReaderError
	require.True(t, errors.As(<-ended, &lie))
	require.Equal(t, "position", lie.What)
	require.NoError(t, s.Close())
	n.sendFrames(10, 60)
	require.Len(t, good.finish().packets, 20)
	require.NoError(t, syscall.Munmap(page))
	require.Zero(t, n.hub.queued.Load())
}

// mappings is how many pieces of shared memory this process has mapped.
func mappings(t *testing.T) int {
	t.Helper()
	b, err := os.ReadFile("/proc/self/maps")
	require.NoError(t, err)
	return strings.Count(string(b), "/memfd:sockd-capture")
}

func TestAReaderThatLeavesLeavesNothing(t *testing.T) {
	n := newNet(t)
	require.Zero(t, mappings(t))
	for range 3 {
		x := n.share(model.CaptureSpec{Filter: ours})
		require.Equal(t, 4, mappings(t), "two here, two of the reader")
		require.EqualValues(t, shm.MinBytes, n.hub.queued.Load())
		n.sendFrames(10, 60)
		require.NoError(t, x.r.Close())
		close(x.left)
		require.NoError(t, x.result())
		require.Zero(t, mappings(t))
		require.Zero(t, n.hub.queued.Load())
		require.Zero(t, n.sockets(n.b))
	}
}

// When the daemon stops, a program that is reading reads what there is.
func TestADaemonThatStopsLeavesTheReaderWhatThereIs(t *testing.T) {
	n := newNet(t)
	s, err := n.hub.Share(model.CaptureSpec{Source: "v1", Filter: ours}, 0)
	require.NoError(t, err)
	var f shm.Files
	f.Data, f.Control, f.Wake = s.Files()
	r, err := shm.NewReader(duplicates(n, f))
	require.NoError(t, err)
	ctx, stop := context.WithCancel(t.Context())
	x := &sharing{net2: n, s: s, r: r, ended: make(chan error, 1)}
	go func() { x.ended <- s.Run(ctx, nil, nil) }()
	n.sendFrames(50, 60)
	familytest.Eventually(t, "not all packets were received", func() bool { return s.View().Received == 50 })
	stop()
	require.NoError(t, x.result())
	require.Equal(t, 2, mappings(t), "the reader's")
	count := 0
	x.packets(func(*pcapng.Packet) { count++ })
	require.Equal(t, 50, count)
	require.NoError(t, r.Close())
	require.EqualValues(t, 50, s.View().DroppedSubscriber, "the daemon cannot know that they were read")
}

func TestASharedCaptureThatIsNeverRun(t *testing.T) {
	n := newNet(t)
	s, err := n.hub.Share(model.CaptureSpec{Source: "v1"}, 0)
	require.NoError(t, err)
	require.EqualValues(t, shm.DefaultBytes, n.hub.queued.Load())
	require.NoError(t, s.Close())
	require.NoError(t, s.Close())
	require.ErrorIs(t, s.Run(t.Context(), nil, nil), net.ErrClosed)
	require.Zero(t, n.hub.queued.Load())
	require.Zero(t, mappings(t))
	s.View()
}

func TestSharedMemoryIsBounded(t *testing.T) {
	n := newNet(t)
	n.hub.limits.queues = 3 * shm.MinBytes
	x, y, z := n.share(model.CaptureSpec{}), n.share(model.CaptureSpec{}), n.share(model.CaptureSpec{})
	_, err := n.hub.Share(model.CaptureSpec{Source: "v1"}, shm.MinBytes)
	var op *families.OpError
	require.True(t, errors.As(err, &op))
	require.ErrorIs(t, err, syscall.ENOBUFS)
	for _, s := range []*sharing{x, y, z} {
		close(s.left)
		require.NoError(t, s.result())
	}
	for _, spec := range []model.CaptureSpec{{Source: "nope"}, {Source: "v1", Filter: "tpc"}, {Source: "v1", Format: model.FormatPcap}} {
		_, err := n.hub.Share(spec, 0)
		require.Error(t, err)
	}
	require.Zero(t, n.hub.queued.Load())
}

func TestTheFilterOfASharedCaptureCanChange(t *testing.T) {
	n := newNet(t)
	x := n.share(model.CaptureSpec{Filter: ours + " and less 100"})
	n.sendFrames(5, 60)
	n.sendFrames(5, 200)
	familytest.Eventually(t, "not all packets were received", func() bool { return x.s.View().Received == 5 })
	require.NoError(t, x.s.SetFilter(ours+" and greater 100"))
	n.sendFrames(5, 60)
	n.sendFrames(5, 200)
	familytest.Eventually(t, "not all packets were received", func() bool { return x.s.View().Received == 10 })
	close(x.done)
	var lengths []int
	x.packets(func(p *pcapng.Packet) { lengths = append(lengths, p.Len) })
	require.Equal(t, []int{60, 60, 60, 60, 60, 200, 200, 200, 200, 200}, lengths)
}

// Interfaces whose descriptions find no room are described before their first packet.
func TestADescriptionWaitsForRoom(t *testing.T) {
	familytest.NoLeaks(t)
	w, err := shm.NewWriter(shm.MinBytes)
	require.NoError(t, err)
	defer w.Close()
	var f shm.Files
	f.Data, f.Control, f.Wake = w.Files().Data, w.Files().Control, w.Files().Wake
	r, err := shm.NewReader(duplicates(&net2{T: t}, f))
	require.NoError(t, err)
	defer r.Close()
	m := newSharedStore(&Subscription{}, w)
	m.write(pcapng.AppendSection(nil, pcapng.Section{}))
	long := pcapng.Interface{Link: pcapng.Ethernet, Name: "v1", Filter: strings.Repeat("x", 60_000)}
	described := 0
	for len(m.backlog) == 0 {
		m.describe(&long)
		described++
	}
	m.describe(&long)
	described++
	require.Equal(t, noRoom, m.add(&pcapng.Packet{Interface: uint32(described - 1), Data: make([]byte, 60), Len: 60}), "its interface is not described")
	m.flush()

	var d pcapng.Decoder
	var b pcapng.Block
	read := func(most int) {
		for range most {
			block, err := r.Next(t.Context())
			require.NoError(t, err)
			require.NoError(t, d.Decode(block, &b))
		}
	}
	read(1 + described - 2)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = r.Next(ctx)
	require.ErrorIs(t, err, context.Canceled)
	require.Equal(t, kept, m.add(&pcapng.Packet{Interface: uint32(described - 1), Data: make([]byte, 60), Len: 60}))
	m.flush()
	read(3)
	require.Equal(t, pcapng.PacketBlock, b.Type)
	require.Len(t, d.Interfaces(), described)
	require.Zero(t, m.waiting)

	for m.err == nil {
		m.describe(&long)
	}
	require.ErrorIs(t, m.err, syscall.ENOBUFS, "what waits is bounded")
	require.LessOrEqual(t, m.waiting, maxBacklog+61_000)
}

func TestSharingAPacketDoesNotAllocate(t *testing.T) {
	w, err := shm.NewWriter(shm.MaxBytes)
	require.NoError(t, err)
	defer w.Close()
	m := newSharedStore(&Subscription{}, w)
	m.write(pcapng.AppendSection(nil, pcapng.Section{}))
	m.describe(&pcapng.Interface{Link: pcapng.Ethernet, Name: "v1"})
	p := &pcapng.Packet{Data: make([]byte, 200), Len: 200, Dropped: 1}
	require.Zero(t, testing.AllocsPerRun(10_000, func() {
		if m.add(p) != kept {
			t.Error("no room")
		}
		m.flush()
	}))
}
