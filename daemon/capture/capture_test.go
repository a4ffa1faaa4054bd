package capture

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/familytest"
	"github.com/sockd/sockd/families/model"
	"github.com/sockd/sockd/families/packet"
	"github.com/sockd/sockd/families/packet/pcapng"
	"github.com/stretchr/testify/require"
)

// net2 is two namespaces joined by v0 (10.9.0.1) in a and v1 (10.9.0.2) in b, and
// a hub that captures in b.
type net2 struct {
	*testing.T
	a, b *familytest.NS
	hub  *Hub
	send families.Socket // sends frames out of v0
}

func newNet(t *testing.T) *net2 {
	t.Helper()
	familytest.NoLeaks(t)
	n := &net2{T: t, a: familytest.NewNS(t), b: familytest.NewNS(t)}
	n.hub = newHub(n.b)
	familytest.Veth(t, n.a, "v0", "10.9.0.1/24", n.b, "v1", "10.9.0.2/24")
	n.send = n.sender(n.a, "v0")
	t.Cleanup(func() { require.NoError(t, n.hub.Close()) })
	return n
}

// newHub makes one with small rings, in a namespace.
func newHub(ns *familytest.NS) *Hub {
	h := New(slog.New(slog.DiscardHandler))
	h.limits.blockSize, h.limits.blocks = 256<<10, leastBlocks
	h.inside = ns.Do
	return h
}

func (n *net2) sender(ns *familytest.NS, iface string) families.Socket {
	n.Helper()
	var s families.Socket
	ns.Do(func() {
		var err error
		s, err = packet.Family.Open(n.Context(), families.Spec{Type: families.Raw})
		require.NoError(n, err)
		a, err := packet.Family.ParseAddr(families.Raw, iface+"/0x88b5")
		require.NoError(n, err)
		require.NoError(n, s.Bind(a))
	})
	n.Cleanup(func() { require.NoError(n, s.Close()) })
	return s
}

// frame is one to another host, of so many bytes, with a number.
func frame(seq uint32, length int) []byte {
	f := append([]byte{2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 1}, 0x88, 0xb5)
	f = binary.BigEndian.AppendUint32(f, seq)
	return append(f, make([]byte, length-len(f))...)
}

func (n *net2) sendFrame(f []byte) {
	n.Helper()
	_, err := families.SendAll(n.Context(), n.send, &families.Msg{Data: f})
	require.NoError(n, err)
}

func (n *net2) sendFrames(count, length int) {
	n.Helper()
	for i := range count {
		n.sendFrame(frame(uint32(i), length))
	}
}

// ours is a filter for frame's frames alone.
const ours = "ether proto 0x88b5"

func (n *net2) subscribe(spec model.CaptureSpec) *Subscription {
	n.Helper()
	var s *Subscription
	var err error
	s, err = n.hub.Subscribe(spec)
	require.NoError(n, err)
	n.Cleanup(func() { require.NoError(n, s.Close()) })
	return s
}

// run is a Run under way.
type run struct {
	*net2
	sub  *Subscription
	file *safeBuffer
	end  func() // ends the context
	done chan error
}

func (n *net2) start(spec model.CaptureSpec) *run {
	n.Helper()
	if spec.Source == "" {
		spec.Source = "v1"
	}
	return n.startTo(n.subscribe(spec), new(safeBuffer))
}

func (n *net2) startTo(s *Subscription, file *safeBuffer) *run {
	ctx, cancel := context.WithCancel(context.Background())
	r := &run{net2: n, sub: s, file: file, end: cancel, done: make(chan error, 1)}
	go func() { r.done <- s.Run(ctx, file) }()
	n.Cleanup(func() { // before the subscription is closed and leaks are looked for
		cancel()
		file.free()
	})
	return r
}

// safeBuffer is a writer that can be read meanwhile, and can be made to stand still.
type safeBuffer struct {
	mu    sync.Mutex
	b     bytes.Buffer
	gate  chan struct{} // not nil: Write waits until it is closed
	freed bool
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	gate := s.gate
	s.mu.Unlock()
	if gate != nil {
		<-gate
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) free() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gate != nil && !s.freed {
		close(s.gate)
		s.freed = true
	}
}

func (s *safeBuffer) bytes() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return bytes.Clone(s.b.Bytes())
}

// wait waits for Run's end.
func (r *run) wait() error {
	r.Helper()
	select {
	case err := <-r.done:
		return err
	case <-time.After(20 * time.Second):
		r.Fatal("Run does not end")
		return nil
	}
}

// content is a complete file.
type content struct {
	iface   pcapng.Interface // the last one
	ifaces  []pcapng.Interface
	packets []pcapng.Packet
	stats   *pcapng.Stats
	sums    int // of all statistics, what was accepted
}

func (r *run) finish() content {
	r.Helper()
	r.end()
	require.NoError(r, r.wait())
	return r.content()
}

func (r *run) content() (c content) {
	r.Helper()
	rd := pcapng.NewReader(bytes.NewReader(r.file.bytes()))
	var b pcapng.Block
	for {
		err := rd.Next(&b)
		if err == io.EOF {
			return c
		}
		require.NoError(r, err)
		switch b.Type {
		case pcapng.InterfaceBlock:
			c.iface = b.Interface
			c.ifaces = append(c.ifaces, b.Interface)
		case pcapng.PacketBlock:
			p := b.Packet
			p.Data = bytes.Clone(p.Data)
			c.packets = append(c.packets, p)
		case pcapng.StatisticsBlock:
			s := b.Stats
			c.stats = &s
			c.sums += int(s.Accepted)
		}
	}
}

// tap is the one that the subscription is on.
func (r *run) tap() *tap {
	r.Helper()
	atts := r.sub.attached()
	require.Len(r, atts, 1)
	return atts[0].tap
}

// received waits until so many packets were received.
func (r *run) received(count int64) {
	r.Helper()
	familytest.Eventually(r, "not all packets were received", func() bool { return r.sub.View().Received >= count })
}

// sockets is how many packet sockets there are in a namespace.
func (n *net2) sockets(ns *familytest.NS) int {
	n.Helper()
	out, err := ns.Command("cat", "/proc/net/packet").Output()
	require.NoError(n, err)
	return strings.Count(string(out), "\n") - 1
}

func TestThreeCapturesShareOneSocketAndEachGetsItsOwn(t *testing.T) {
	n := newNet(t)
	all, some, cut := n.start(model.CaptureSpec{Filter: ours}), n.start(model.CaptureSpec{Filter: ours + " and less 100"}), n.start(model.CaptureSpec{Filter: ours, Snaplen: 20})
	require.Equal(t, 1, n.sockets(n.b))
	n.sendFrames(50, 60)
	n.sendFrames(50, 200)

	got := all.finish()
	require.Len(t, got.packets, 100)
	for i, p := range got.packets {
		require.Equal(t, frame(uint32(i%50), len(p.Data)), p.Data)
		require.Equal(t, len(p.Data), p.Len)
		require.Equal(t, pcapng.Inbound, p.Direction)
		require.Equal(t, pcapng.Promiscuous, p.Reception)
	}
	require.Equal(t, pcapng.Interface{Link: pcapng.Ethernet, Snaplen: 262144, Name: "v1", Filter: ours, Resolution: 9}, got.iface)
	require.Equal(t, 1, n.sockets(n.b), "two are left")

	require.Len(t, some.finish().packets, 50)
	short := cut.finish().packets
	require.Len(t, short, 100)
	require.Len(t, short[0].Data, 20)
	require.Equal(t, 60, short[0].Len)
	require.Zero(t, n.sockets(n.b), "the last one has left")
}

func TestWhatIsWanted(t *testing.T) {
	n := newNet(t)
	back := n.sender(n.b, "v1")
	for _, tt := range []struct {
		name    string
		spec    model.CaptureSpec
		in, out int
	}{
		{"all by default", model.CaptureSpec{}, 3, 2},
		{"in and out", model.CaptureSpec{Direction: "inout"}, 3, 2},
		{"in", model.CaptureSpec{Direction: "in"}, 3, 0},
		{"out", model.CaptureSpec{Direction: "out"}, 0, 2},
		{"not what is for others", model.CaptureSpec{NoPromisc: true}, 1, 2},
		{"by any", model.CaptureSpec{Source: "any"}, 3, 2},
		{"by any, in", model.CaptureSpec{Source: "any", Direction: "in"}, 3, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			sub := *n
			sub.T = t
			tt.spec.Filter = ours
			r := sub.start(tt.spec)
			broadcast := frame(0, 60)
			copy(broadcast, "\xff\xff\xff\xff\xff\xff")
			sub.sendFrame(broadcast)
			sub.sendFrames(2, 60)
			for range 2 {
				_, err := families.SendAll(t.Context(), back, &families.Msg{Data: frame(9, 60)})
				require.NoError(t, err)
			}
			in, out := 0, 0
			for _, p := range r.finish().packets {
				if p.Direction == pcapng.Outbound {
					out++
				} else {
					in++
				}
			}
			require.Equal(t, []int{tt.in, tt.out}, []int{in, out}, "in, out")
		})
	}
}

func TestACountIsExact(t *testing.T) {
	n := newNet(t)
	r := n.start(model.CaptureSpec{Filter: ours, Count: 7})
	n.sendFrames(100, 60)
	require.NoError(t, r.wait())
	got := r.content()
	require.Len(t, got.packets, 7)
	require.Equal(t, frame(6, 60), got.packets[6].Data)
	require.EqualValues(t, 7, got.stats.Delivered)
	require.EqualValues(t, 7, r.sub.View().Delivered)
}

func TestEveryEndCompletesTheFile(t *testing.T) {
	n := newNet(t)
	for _, tt := range []struct {
		name string
		spec model.CaptureSpec
		end  func(n *net2, r *run)
		want error
	}{
		{"context", model.CaptureSpec{}, func(_ *net2, r *run) { r.end() }, nil},
		{"duration", model.CaptureSpec{Duration: 300 * time.Millisecond}, func(*net2, *run) {}, nil},
		{"close", model.CaptureSpec{}, func(_ *net2, r *run) { require.NoError(r, r.sub.Close()) }, net.ErrClosed},
		{"close of the hub", model.CaptureSpec{}, func(n *net2, _ *run) { require.NoError(n, n.hub.Close()) }, net.ErrClosed},
	} {
		t.Run(tt.name, func(t *testing.T) {
			sub := *n
			sub.T = t
			sub.hub = newHub(n.b)
			tt.spec.Filter = ours
			r := sub.start(tt.spec)
			familytest.Eventually(t, "Run has not begun", func() bool { return len(r.file.bytes()) > 0 })
			sub.sendFrames(5, 60)
			// A frame that was sent waits in the kernel's backlog, on a busy machine for
			// long: only what was seen before the end is in the file.
			familytest.Eventually(t, "the kernel has not seen all", func() bool { return r.tap().rings[0].Stats().Packets >= 5 })
			if tt.name == "close of the hub" {
				r.received(5) // it does not wait for what is still in the ring
			}
			tt.end(&sub, r)
			require.ErrorIs(t, r.wait(), tt.want)
			got := r.content()
			require.Len(t, got.packets, 5)
			require.NotNil(t, got.stats)
			require.EqualValues(t, 5, got.stats.Received)
			require.EqualValues(t, 5, got.stats.Delivered)
			require.Zero(t, got.stats.IfDrop+got.stats.OSDrop)
			require.NoError(t, r.sub.Close(), "after the end")
			require.NoError(t, sub.hub.Close())
			require.ErrorIs(t, r.sub.Run(t.Context(), io.Discard), map[bool]error{true: net.ErrClosed, false: errAgain}[r.sub.isClosed()])
		})
	}
}

// A subscription that stands still loses its own packets, to the packet, and
// nobody else's.
func TestASlowSubscriberLosesOnlyItsOwn(t *testing.T) {
	n := newNet(t)
	n.hub.limits.queue = 64 << 10
	n.hub.limits.blocks = 64
	fast := n.start(model.CaptureSpec{Filter: ours})
	slow := n.startTo(n.subscribe(model.CaptureSpec{Source: "v1", Filter: ours}), &safeBuffer{gate: make(chan struct{})})
	const sent = 3000
	for i := range sent {
		n.sendFrame(frame(uint32(i), 300))
		if i%50 == 49 {
			fast.received(int64(i + 1)) // in step, so that its small queue suffices
			familytest.Eventually(t, "the fast one is not delivered", func() bool { return fast.sub.View().Delivered == int64(i+1) })
		}
	}
	slow.received(sent)
	slow.file.free()
	got := fast.finish()
	require.Len(t, got.packets, sent)
	require.Zero(t, got.stats.IfDrop+got.stats.OSDrop)

	got = slow.finish()
	v := slow.sub.View()
	require.EqualValues(t, sent, v.Received)
	require.NotZero(t, v.DroppedSubscriber)
	require.Zero(t, v.DroppedDaemon+v.DroppedKernel)
	require.EqualValues(t, sent, v.Delivered+v.DroppedSubscriber)
	require.EqualValues(t, v.Delivered, len(got.packets))
	require.EqualValues(t, v.DroppedSubscriber, got.stats.OSDrop)
	require.Zero(t, n.hub.queued.Load())
}

// Where packets were lost, the next one says how many.
func TestLossIsToldWhereItHappened(t *testing.T) {
	n := newNet(t)
	n.hub.limits.queue = 16 << 10
	slow := n.startTo(n.subscribe(model.CaptureSpec{Source: "v1", Filter: ours}), &safeBuffer{gate: make(chan struct{})})
	const sent = 200
	for i := range sent {
		n.sendFrame(frame(uint32(i), 500))
	}
	slow.received(sent)
	slow.file.free()
	familytest.Eventually(t, "the queue is not written", func() bool { v := slow.sub.View(); return v.Delivered+v.DroppedSubscriber == sent })
	n.sendFrame(frame(sent, 500))
	at := uint64(0)
	for _, p := range slow.finish().packets {
		seq := uint64(binary.BigEndian.Uint32(p.Data[14:]))
		require.Equal(t, seq-at, p.Dropped, "before packet %d", seq)
		at = seq + 1
	}
	require.EqualValues(t, sent+1, at)
}

// When all queues together are full, that is the daemon's loss.
func TestTheSharedMemoryIsBounded(t *testing.T) {
	n := newNet(t)
	n.hub.limits.queues = 16 << 10
	slow := n.startTo(n.subscribe(model.CaptureSpec{Source: "v1", Filter: ours}), &safeBuffer{gate: make(chan struct{})})
	const sent = 200
	n.sendFrames(sent, 500)
	slow.received(sent)
	slow.file.free()
	slow.finish()
	v := slow.sub.View()
	require.NotZero(t, v.DroppedDaemon)
	require.Zero(t, v.DroppedSubscriber)
	require.EqualValues(t, sent, v.Delivered+v.DroppedDaemon)
}

// A ring whose reader stands still overflows: sent = delivered + dropped, and who
// comes later has lost nothing.
func TestAStallIsCountedToThePacket(t *testing.T) {
	n := newNet(t)
	r := n.start(model.CaptureSpec{Filter: ours})
	n.sendFrame(frame(0, 60))
	r.received(1)

	r.sub.mu.Lock() // the reader waits here
	const sent = 4000
	n.sendFrames(sent, 1514) // three times the ring
	r.sub.mu.Unlock()
	familytest.Eventually(t, "the ring is not read", func() bool { return r.tap().idle() })

	later := n.start(model.CaptureSpec{Filter: ours})
	n.sendFrame(frame(1, 60))
	got := r.finish()
	v := r.sub.View()
	require.NotZero(t, v.DroppedKernel)
	require.EqualValues(t, sent+2, v.Delivered+v.DroppedKernel)
	require.Zero(t, v.DroppedDaemon+v.DroppedSubscriber)
	require.EqualValues(t, v.DroppedKernel, got.stats.IfDrop)
	require.EqualValues(t, sent+2, got.stats.Received)
	told := uint64(0)
	for _, p := range got.packets {
		told += p.Dropped
	}
	require.EqualValues(t, v.DroppedKernel, told)

	require.Len(t, later.finish().packets, 1)
	require.Zero(t, later.sub.View().DroppedKernel, "what was lost before it began")
}

// A card takes the tag out of a frame, so that to the kernel's filter a tagged
// frame looks like any other. The file must have what the words say of the whole frame.
func TestFiltersJudgeTheFrameWithItsTag(t *testing.T) {
	n := newNet(t)
	plain := frame(1, 60)
	tagged := append(append(append([]byte(nil), plain[:12]...), "\x81\x00\x00\x64"...), plain[12:]...)
	for _, tt := range []struct {
		filter string
		want   [][]byte
	}{
		{ours, [][]byte{plain}},
		{"not ether proto 0x88b5 and not ip and not ip6 and not arp", [][]byte{tagged}},
		{"vlan 100", [][]byte{tagged}},
		{"vlan 100 and ether proto 0x88b5", [][]byte{tagged}},
		{"ether proto 0x88b5 or vlan", [][]byte{plain, tagged}},
	} {
		t.Run(tt.filter, func(t *testing.T) {
			sub := *n
			sub.T = t
			r := sub.start(model.CaptureSpec{Filter: tt.filter})
			sub.sendFrame(plain)
			sub.sendFrame(tagged)
			var got [][]byte
			for _, p := range r.finish().packets {
				got = append(got, p.Data)
			}
			require.Equal(t, tt.want, got)
		})
	}
}

// The kernel's filter follows those who are there: a second one that wants other
// packets gets them, and the first gets no more than before.
func TestTheKernelsFilterFollowsItsUsers(t *testing.T) {
	n := newNet(t)
	one := n.start(model.CaptureSpec{Filter: ours})
	two := n.start(model.CaptureSpec{Filter: "ether proto 0x88b6"})
	other := frame(1, 60)
	other[13] = 0xb6
	n.sendFrame(frame(0, 60))
	n.sendFrame(other)
	require.Len(t, two.finish().packets, 1)
	n.sendFrame(other)
	n.sendFrame(frame(2, 60))
	require.Len(t, one.finish().packets, 2)
}

func TestAWriterThatFailsEndsTheCapture(t *testing.T) {
	n := newNet(t)
	s := n.subscribe(model.CaptureSpec{Source: "v1", Filter: ours})
	rd, wr := io.Pipe()
	done := make(chan error, 1)
	go func() { done <- s.Run(context.Background(), wr) }()
	_, err := rd.Read(make([]byte, 10))
	require.NoError(t, err)
	require.NoError(t, rd.CloseWithError(syscall.EPIPE))
	n.sendFrames(1, 60)
	select {
	case err := <-done:
		require.ErrorIs(t, err, syscall.EPIPE)
		require.EqualError(t, err, "write capture of v1: broken pipe")
	case <-time.After(20 * time.Second):
		t.Fatal("Run does not end")
	}
	require.Zero(t, n.sockets(n.b))
}

func TestRunAfterCloseWritesNothing(t *testing.T) {
	n := newNet(t)
	s := n.subscribe(model.CaptureSpec{Source: "v1", Filter: ours})
	n.sendFrames(3, 60)
	familytest.Eventually(t, "not all packets were received", func() bool { return s.View().Received == 3 })
	require.NoError(t, s.Close())
	var file bytes.Buffer
	require.ErrorIs(t, s.Run(t.Context(), &file), net.ErrClosed)
	require.Zero(t, file.Len())
	v := s.View()
	require.EqualValues(t, 3, v.DroppedSubscriber, "what was queued is accounted for")
	require.Zero(t, n.hub.queued.Load())
}

func TestSubscribeSaysWhyNot(t *testing.T) {
	n := newNet(t)
	for _, tt := range []struct {
		spec model.CaptureSpec
		want error
		text string
	}{
		{model.CaptureSpec{Source: "nosuch0"}, syscall.ENODEV, `capture packet "nosuch0": no such device`},
		{model.CaptureSpec{Source: "v1", Filter: "tpc"}, families.ErrSyntax, `filter "tpc": column 1: "tpc" wants a word before it, such as host, net or port`},
		{model.CaptureSpec{Source: "v1,,lo"}, families.ErrSyntax, `source "v1,,lo": want interface names, patterns like veth* or any, with commas between`},
		{model.CaptureSpec{Source: "v[1"}, families.ErrSyntax, `source "v[1": want interface names, patterns like veth* or any, with commas between`},
		{model.CaptureSpec{Source: "any", Format: "zip"}, families.ErrSyntax, `format "zip": want pcap, or nothing for pcapng`},
		{model.CaptureSpec{Source: "v1", Direction: "up"}, families.ErrSyntax, `direction "up": want in, out or inout`},
		{model.CaptureSpec{Source: "v1", Snaplen: -1}, families.ErrSyntax, `snaplen "-1": want 0 to 262144`},
		{model.CaptureSpec{Source: "v1", Count: -1}, families.ErrSyntax, `count "-1": want 0 to 9223372036854775807`},
	} {
		s, err := n.hub.Subscribe(tt.spec)
		require.ErrorIs(t, err, tt.want)
		require.EqualError(t, err, tt.text)
		require.Nil(t, s)
	}
	require.Zero(t, n.sockets(n.b), "nothing was left open")
	require.NoError(t, n.hub.Close())
	_, err := n.hub.Subscribe(model.CaptureSpec{Source: "any"})
	require.ErrorIs(t, err, net.ErrClosed)
}

func TestRingsShareABoundedMemory(t *testing.T) {
	n := newNet(t)
	n.hub.limits.rings = (leastBlocks + 1) * n.hub.limits.blockSize
	s := n.subscribe(model.CaptureSpec{Source: "v1"})
	_, err := n.hub.Subscribe(model.CaptureSpec{Source: "lo"})
	require.ErrorIs(t, err, syscall.ENOBUFS)
	require.NoError(t, s.Close())
	require.NoError(t, n.subscribe(model.CaptureSpec{Source: "lo"}).Close(), "the memory is free again")
}

func TestManySubscribersComeAndGo(t *testing.T) {
	n := newNet(t)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 10 {
				s, err := n.hub.Subscribe(model.CaptureSpec{Source: "v1", Duration: time.Millisecond})
				if err != nil || s.Run(context.Background(), io.Discard) != nil || s.Close() != nil {
					t.Errorf("subscribe and run: %v", err)
					return
				}
			}
		})
	}
	n.sendFrames(200, 100)
	wg.Wait()
	require.Zero(t, n.sockets(n.b))
	require.Zero(t, n.hub.memory)
	require.Zero(t, n.hub.queued.Load())
}

func TestNothingIsHeldBack(t *testing.T) {
	n := newNet(t)
	r := n.start(model.CaptureSpec{Filter: ours})
	for i := range 5 {
		n.sendFrame(frame(uint32(i), 60))
		familytest.Eventually(t, "a packet is held back", func() bool { return len(r.content().packets) == i+1 })
	}
}

// tcpdump captures the same interface beside us, and both see the same packets of
// real traffic. Other programs read our file without a complaint.
func TestTheFileHasWhatTcpdumpHas(t *testing.T) {
	n := newNet(t)
	dir := t.TempDir()
	const filter = "ip or arp"
	theirs := filepath.Join(dir, "theirs.pcap")
	tcpdump := n.b.Command("tcpdump", "-i", "v1", "-U", "-B", "16384", "--immediate-mode", "-Z", "root", "-w", theirs, filter)
	stderr, err := tcpdump.StderrPipe()
	require.NoError(t, err)
	require.NoError(t, tcpdump.Start())
	_, err = io.ReadFull(stderr, make([]byte, len("tcpdump: listening on v1"))) // it has the socket by then
	require.NoError(t, err)

	r := n.start(model.CaptureSpec{Filter: filter, Comment: "beside tcpdump"})
	out, err := n.a.Command("ping", "-q", "-c", "20", "-i", "0.005", "-s", "1200", "10.9.0.2").CombinedOutput()
	require.NoError(t, err, "%s", out)
	n.tcpTransfer(300_000)

	familytest.Eventually(t, "tcpdump has not written all", func() bool {
		return r.sub.View().Received > 60 && count(t, theirs) >= int(r.sub.View().Received)
	})
	got := r.finish()
	require.NoError(t, tcpdump.Process.Signal(os.Interrupt))
	_, err = io.Copy(io.Discard, stderr)
	require.NoError(t, err)
	require.NoError(t, tcpdump.Wait())

	mine := filepath.Join(dir, "ours.pcapng")
	require.NoError(t, os.WriteFile(mine, r.file.bytes(), 0o600))
	require.Zero(t, got.stats.IfDrop+got.stats.OSDrop)
	require.Equal(t, output(t, "tcpdump", "-nn", "-t", "-xx", "-r", theirs), output(t, "tcpdump", "-nn", "-t", "-xx", "-r", mine))
	require.Contains(t, output(t, "capinfos", mine), "beside tcpdump")
	require.Equal(t, output(t, "tshark", "-n", "-r", theirs, "-T", "fields", "-e", "frame.len"), output(t, "tshark", "-n", "-r", mine, "-T", "fields", "-e", "frame.len"))
}

func count(t *testing.T, file string) int {
	t.Helper()
	out, err := exec.Command("tcpdump", "-nn", "-r", file).Output()
	if err != nil {
		return 0 // the last packet is half written
	}
	return bytes.Count(out, []byte("\n"))
}

// output is stdout of a program that must not complain.
func output(t *testing.T, name string, args ...string) string {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	require.NoError(t, cmd.Run(), "%s: %s", name, &stderr)
	for line := range strings.Lines(stderr.String()) {
		if !strings.HasPrefix(line, "reading from file") && !strings.HasPrefix(line, "Running as user") {
			t.Errorf("%s complains: %s", name, line)
		}
	}
	return stdout.String()
}

// tcpTransfer sends bytes from a to b over TCP, in frames larger than the MTU.
func (n *net2) tcpTransfer(size int) {
	n.Helper()
	var l net.Listener
	var c net.Conn
	var err error
	n.b.Do(func() { l, err = net.Listen("tcp4", "10.9.0.2:0") })
	require.NoError(n, err)
	defer l.Close()
	n.a.Do(func() { c, err = net.Dial("tcp4", l.Addr().String()) })
	require.NoError(n, err)
	s, err := l.Accept()
	require.NoError(n, err)
	defer s.Close()
	wrote := make(chan error, 1)
	go func() {
		_, err := c.Write(make([]byte, size))
		wrote <- errors.Join(err, c.Close())
	}()
	read, err := io.Copy(io.Discard, s)
	require.NoError(n, err)
	require.EqualValues(n, size, read)
	require.NoError(n, <-wrote)
}

// heapHeld is what this process has of the system's memory for its heap.
func heapHeld() int {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.HeapSys - m.HeapReleased)
}

// What captures had queued that nobody read stayed with the daemon, some 190 MB
// after eight of them.
func TestTheMemoryOfABurstIsGivenBack(t *testing.T) {
	n := newNet(t)
	n.hub.limits.blocks = 64 // so that the ring takes the burst
	before := heapHeld()
	var subs []*Subscription
	for range 4 {
		subs = append(subs, n.subscribe(model.CaptureSpec{Source: "v1", Filter: ours}))
	}
	n.sendFrames(6000, 1400)
	for _, s := range subs {
		familytest.Eventually(t, "the burst is queued", func() bool { v := s.View(); return v.Received+v.DroppedKernel >= 6000 && v.Received > 3000 })
	}
	require.Greater(t, heapHeld(), before+12<<20, "it takes memory")
	for _, s := range subs {
		require.NoError(t, s.Close())
	}
	require.Less(t, heapHeld(), before+6<<20, "and gives it back")
}
