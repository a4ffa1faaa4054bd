package capture

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/familytest"
	"github.com/sockd/sockd/families/model"
	"github.com/sockd/sockd/families/packet/pcapng"
	"github.com/stretchr/testify/require"
)

// seqs are the numbers of frame's frames.
func seqs(packets []pcapng.Packet) []uint32 {
	out := []uint32{}
	for _, p := range packets {
		out = append(out, binary.BigEndian.Uint32(p.Data[14:]))
	}
	return out
}

// ip runs ip(8) in a namespace.
func (n *net2) ip(ns *familytest.NS, args string) {
	n.Helper()
	out, err := ns.Command("ip", strings.Fields(args)...).CombinedOutput()
	require.NoError(n, err, "ip %s: %s", args, out)
}

// pair makes v0 and v1 again.
func (n *net2) pair() {
	n.Helper()
	familytest.Veth(n.T, n.a, "v0", "10.9.0.1/24", n.b, "v1", "10.9.0.2/24")
	n.send = n.sender(n.a, "v0")
}

// on waits until the subscription is attached to an interface of this name.
func (r *run) on(name string) {
	r.Helper()
	familytest.Eventually(r, "the capture is not on "+name, func() bool {
		i := r.sub.space.now.Load().named(name)
		return i != nil && r.sub.attachedToNow(i.index)
	})
}

func (s *Subscription) attachedToNow(index int) bool {
	s.tie.Lock()
	defer s.tie.Unlock()
	return s.attachedTo(index)
}

// tcpdump ends with an error there, and the packets after it are lost.
func TestAnInterfaceThatIsDeletedAndMadeAgainIsCapturedOn(t *testing.T) {
	n := newNet(t)
	r := n.start(model.CaptureSpec{Filter: ours})
	var mu sync.Mutex
	var told []string
	r.sub.Tell(func(cause string) {
		mu.Lock()
		defer mu.Unlock()
		_ = r.sub.View() // as the daemon does
		told = append(told, cause)
	})
	n.sendFrame(frame(1, 60))
	r.received(1)
	n.ip(n.a, "link del v0")
	familytest.Eventually(t, "the tap is left", func() bool { return len(r.sub.attached()) == 0 })
	n.pair()
	r.on("v1")
	n.sendFrame(frame(2, 60))
	r.received(2)
	got := r.finish()
	require.Equal(t, []uint32{1, 2}, seqs(got.packets))
	require.Equal(t, []uint32{0, 1}, []uint32{got.packets[0].Interface, got.packets[1].Interface})
	require.Equal(t, []string{"v1", "v1"}, names(got.ifaces), "two descriptions")
	mu.Lock()
	defer mu.Unlock()
	require.Equal(t, []string{"v1 is gone", "v1 is there"}, told)
}

// Nothing told of an interface that had got another name, nor of the one that had its name then.
func TestAnInterfaceThatIsRenamedIsGone(t *testing.T) {
	for _, where := range []string{"here", "elsewhere"} {
		t.Run(where, func(t *testing.T) {
			n := newNet(t)
			spec := model.CaptureSpec{Source: "v1", Filter: ours}
			if where == "elsewhere" {
				spec.Elsewhere = n.namespace(n.b)
			}
			r := n.start(spec)
			told := notesOf(r.sub)
			want := []string{}
			tells := func(note string) {
				t.Helper()
				want = append(want, note)
				familytest.Eventually(t, "it does not tell: "+note, func() bool { return len(told.all()) >= len(want) })
				require.Equal(t, want, told.all())
			}
			n.ip(n.b, "link set v1 down")
			n.ip(n.b, "link set v1 name lan1")
			tells("v1 is gone: it is lan1 now")
			n.ip(n.b, "link set lan1 name v1")
			tells("v1 is there")
			n.ip(n.b, "link set v1 name lan1")
			tells("v1 is gone: it is lan1 now")
			familytest.Veth(t, n.a, "w0", "10.8.0.1/24", n.b, "v1", "10.8.0.2/24")
			tells("v1 is there")
			n.ip(n.b, "link del lan1")
			_, err := families.SendAll(t.Context(), n.sender(n.a, "w0"), &families.Msg{Data: frame(7, 60)})
			require.NoError(t, err)
			r.received(1)
			n.ip(n.a, "link del w0")
			tells("v1 is gone")
			require.Equal(t, []uint32{7}, seqs(r.finish().packets))
		})
	}
}

// In another namespace it was waited for in silence.
func TestAnInterfaceThatIsNotInAnotherNamespaceIsAnError(t *testing.T) {
	n := newNet(t)
	for _, source := range []string{"nosuch", "v0,nosuch"} {
		_, err := n.hub.Subscribe(model.CaptureSpec{Source: source, Elsewhere: n.namespace(n.a)})
		require.ErrorIs(t, err, syscall.ENODEV)
		require.ErrorContains(t, err, "nosuch")
	}
	require.Empty(t, n.hub.spaces, "and nothing is left open")
	r := n.start(model.CaptureSpec{Source: "w0", Filter: ours, Wait: true, Elsewhere: n.namespace(n.a)})
	told := notesOf(r.sub)
	familytest.Veth(t, n.a, "w0", "10.8.0.1/24", n.b, "w1", "10.8.0.2/24")
	familytest.Eventually(t, "it has not come", func() bool { return len(told.all()) > 0 })
	require.Equal(t, []string{"w0 is there"}, told.all())
	_, err := families.SendAll(t.Context(), n.sender(n.a, "w0"), &families.Msg{Data: frame(7, 60)})
	require.NoError(t, err)
	r.received(1)
	require.Equal(t, []uint32{7}, seqs(r.finish().packets))
}

func names(ifaces []pcapng.Interface) (out []string) {
	for _, i := range ifaces {
		out = append(out, i.Name)
	}
	return out
}

func TestAnInterfaceIsWaitedFor(t *testing.T) {
	n := newNet(t)
	r := n.start(model.CaptureSpec{Source: "w1", Filter: ours, Wait: true})
	require.Zero(t, n.sockets(n.b))
	familytest.Veth(t, n.a, "w0", "10.8.0.1/24", n.b, "w1", "10.8.0.2/24")
	r.on("w1")
	_, err := families.SendAll(t.Context(), n.sender(n.a, "w0"), &families.Msg{Data: frame(7, 60)})
	require.NoError(t, err)
	r.received(1)
	require.Equal(t, []uint32{7}, seqs(r.finish().packets))
}

func TestDownAndRenameAreSurvived(t *testing.T) {
	n := newNet(t)
	r := n.start(model.CaptureSpec{Filter: ours})
	n.sendFrame(frame(1, 60))
	r.received(1)
	n.ip(n.b, "link set v1 down")
	n.ip(n.b, "link set v1 name lan1")
	n.ip(n.b, "link set lan1 up")
	familytest.Eventually(t, "the new name is known", func() bool { return r.sub.space.now.Load().named("lan1") != nil })
	n.sendFrame(frame(2, 60))
	r.received(2)
	got := r.finish()
	require.Equal(t, []uint32{1, 2}, seqs(got.packets))
	require.Equal(t, []string{"v1", "lan1"}, names(got.ifaces))
	require.Zero(t, got.packets[1].Dropped)
}

// A pattern is served by one socket, has a description for each interface that
// delivers, and takes those that come later from their first packet on.
func TestAPatternTakesWhatMatchesAndWhatComesLater(t *testing.T) {
	n := newNet(t)
	familytest.Veth(t, n.a, "w0", "10.8.0.1/24", n.b, "w1", "10.8.0.2/24")
	r := n.start(model.CaptureSpec{Source: "v*,x?", Filter: ours})
	require.Equal(t, 1, n.sockets(n.b))
	send := func(iface string, seq uint32) {
		_, err := families.SendAll(t.Context(), n.sender(n.a, iface), &families.Msg{Data: frame(seq, 60)})
		require.NoError(t, err)
	}
	send("v0", 1)
	send("w0", 99)
	familytest.Veth(t, n.a, "x0", "10.7.0.1/24", n.b, "x1", "10.7.0.2/24")
	send("x0", 2)
	send("v0", 3)
	r.received(3)
	got := r.finish()
	require.Equal(t, []uint32{1, 2, 3}, seqs(got.packets))
	require.Equal(t, []string{"v1", "x1"}, names(got.ifaces))
	require.Equal(t, pcapng.Ethernet, got.ifaces[0].Link)
	require.EqualValues(t, 3, r.sub.View().Received)
}

// Who reads a capture is told of the interface at once, and not with its first packet.
func TestTheInterfaceIsDescribedBeforeItHasPackets(t *testing.T) {
	n := newNet(t)
	r := n.start(model.CaptureSpec{Filter: ours})
	familytest.Eventually(t, "the description waits for a packet", func() bool { return len(r.content().ifaces) == 1 })
	r.finish()
}

// An interface is promiscuous while a capture wants it, also when it is one of many.
func TestEachInterfaceOfAPatternIsPromiscuous(t *testing.T) {
	n := newNet(t)
	promiscuous := func() bool {
		out, err := n.b.Command("ip", "-d", "link", "show", "v1").Output()
		require.NoError(t, err)
		return !strings.Contains(string(out), "promiscuity 0")
	}
	require.False(t, promiscuous())
	s := n.subscribe(model.CaptureSpec{Source: "any"})
	require.True(t, promiscuous())
	quiet := n.subscribe(model.CaptureSpec{Source: "any", NoPromisc: true})
	require.NoError(t, s.Close())
	require.False(t, promiscuous(), "the other one does not want it")
	require.NoError(t, quiet.Close())
}

// A filter changes between two packets: those from before are judged by the old one,
// those from then on by the new one, and another capture never notices.
func TestAFilterChangesWithoutLosingAPacket(t *testing.T) {
	n := newNet(t)
	all, r := n.start(model.CaptureSpec{Filter: ours}), n.start(model.CaptureSpec{Filter: ours + " and less 100"})
	n.sendFrames(20, 60)
	n.sendFrames(20, 200)
	familytest.Eventually(t, "the kernel has not seen all", func() bool { return r.tap().rings[0].Stats().Packets >= 40 })
	require.NoError(t, r.sub.SetFilter(ours+" and greater 150"))
	n.sendFrames(20, 60)
	n.sendFrames(20, 200)
	all.received(80)
	r.received(40)
	require.Equal(t, ours+" and greater 150", r.sub.View().Filter)
	require.ErrorIs(t, r.sub.SetFilter("tpc"), families.ErrSyntax)
	require.Equal(t, ours+" and greater 150", r.sub.View().Filter, "it stays as it was")
	lengths := []int{}
	for _, p := range r.finish().packets {
		lengths = append(lengths, p.Len)
	}
	require.Len(t, lengths, 40)
	require.Equal(t, []int{60, 60, 200, 200}, []int{lengths[0], lengths[19], lengths[20], lengths[39]})
	require.Len(t, all.finish().packets, 80)
	require.ErrorIs(t, r.sub.SetFilter(""), net.ErrClosed)
}

// The description from before a change told of the old filter alone.
func TestPacketsAreDescribedWithTheFilterThatTookThem(t *testing.T) {
	n := newNet(t)
	r := n.startFiles(t.TempDir(), model.CaptureSpec{Filter: ours}, model.FileSpec{}, nil)
	want := map[string]int{}
	for i, text := range []string{ours, ours + " and less 100", ours, ours + " and less 90"} {
		if i > 0 {
			require.NoError(t, r.sub.SetFilter(text))
		}
		n.sendFrames(5, 60)
		r.received(int64(5 * (i + 1)))
		want[text] += 5
	}
	r.end()
	require.NoError(t, r.wait())
	b, err := os.ReadFile(r.opened[0])
	require.NoError(t, err)
	reader, got := pcapng.NewReader(bytes.NewReader(b)), map[string]int{}
	for blk := (pcapng.Block{}); reader.Next(&blk) == nil; {
		if blk.Type == pcapng.PacketBlock {
			got[reader.Interfaces()[blk.Packet.Interface].Filter]++
		}
	}
	require.Equal(t, want, got)
	require.Len(t, reader.Interfaces(), 3, "a filter that comes again has its description")
	r.mustRead()
}

// Filters of others change a thousand times while packets come.
func TestFilterChangesCostNobodyAPacket(t *testing.T) {
	n := newNet(t)
	n.hub.limits.blocks = 64
	all, other := n.start(model.CaptureSpec{Filter: ours}), n.start(model.CaptureSpec{Filter: "udp port 53"})
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			if err := other.sub.SetFilter([]string{"udp port 53", ours, "", "tcp"}[i%4]); err != nil {
				t.Error(err)
				return
			}
		}
	})
	const sent = 20000
	n.sendFrames(sent, 60)
	close(stop)
	wg.Wait()
	all.received(sent)
	got := seqs(all.finish().packets)
	require.Len(t, got, sent)
	for i, seq := range got {
		require.EqualValues(t, i, seq)
	}
}

// A fanout's rings have each a part of the flows; together they have every packet once.
func TestAFanoutLosesNothing(t *testing.T) {
	n := newNet(t)
	r := n.start(model.CaptureSpec{Filter: "udp", Rings: 3})
	require.Equal(t, 3, n.sockets(n.b))
	second := n.start(model.CaptureSpec{Filter: "udp"})
	require.Equal(t, 3, n.sockets(n.b), "it shares them")
	const flows, each = 40, 25
	n.b.Do(func() {
		for port := range flows {
			l, err := net.ListenPacket("udp4", net.JoinHostPort("10.9.0.2", strconv.Itoa(20000+port)))
			require.NoError(t, err)
			t.Cleanup(func() { require.NoError(t, l.Close()) })
		}
	})
	n.a.Do(func() {
		for port := range flows {
			c, err := net.Dial("udp4", net.JoinHostPort("10.9.0.2", strconv.Itoa(20000+port)))
			require.NoError(t, err)
			for range each {
				_, err := c.Write([]byte("to a ring"))
				require.NoError(t, err)
			}
			require.NoError(t, c.Close())
		}
	})
	r.received(flows * each)
	second.received(flows * each)
	require.Len(t, r.finish().packets, flows*each)
	require.Len(t, second.finish().packets, flows*each)
}

// namespace has the sockets that a caller opens in one.
func (n *net2) namespace(in *familytest.NS) *model.Namespace {
	n.Helper()
	ns := &model.Namespace{Name: "another"}
	in.Do(func() {
		var err error
		ns.PacketFD, err = syscall.Socket(syscall.AF_PACKET, syscall.SOCK_RAW|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, 0)
		require.NoError(n, err)
		ns.RouteFD, err = syscall.Socket(syscall.AF_NETLINK, syscall.SOCK_RAW|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, syscall.NETLINK_ROUTE)
		require.NoError(n, err)
	})
	return ns
}

// Another network namespace is the caller's to enter: two sockets are passed.
func TestAnotherNetworkNamespace(t *testing.T) {
	n := newNet(t)
	elsewhere := func() *model.Namespace { return n.namespace(n.a) }
	one := n.start(model.CaptureSpec{Source: "v0", Filter: ours, Elsewhere: elsewhere()})
	two := n.start(model.CaptureSpec{Source: "any", Filter: ours, Elsewhere: elsewhere()})
	require.Zero(t, n.sockets(n.b))
	n.sendFrame(frame(5, 60))
	one.received(1)
	two.received(1)
	got := one.finish()
	require.Equal(t, []uint32{5}, seqs(got.packets))
	require.Equal(t, pcapng.Outbound, got.packets[0].Direction)
	require.Equal(t, []string{"v0"}, names(got.ifaces))
	n.sendFrame(frame(6, 60))
	two.received(2)
	require.Equal(t, []uint32{5, 6}, seqs(two.finish().packets))
	require.Empty(t, n.hub.spaces)

	_, err := n.hub.Subscribe(model.CaptureSpec{Source: "v[", Elsewhere: elsewhere()})
	require.ErrorIs(t, err, families.ErrSyntax, "and nothing is left open")
}

// On a host whose interfaces come and go a capture does not remember them all.
func TestInterfacesThatAreGoneAreForgotten(t *testing.T) {
	n := newNet(t)
	n.hub.limits.linger = 0
	r := n.start(model.CaptureSpec{Source: "any", Filter: ours})
	n.sendFrame(frame(0, 60))
	const lives = 6
	for i := range lives {
		familytest.Veth(t, n.a, "w0", "10.8.0.1/24", n.b, "w1", "10.8.0.2/24")
		_, err := families.SendAll(t.Context(), n.sender(n.a, "w0"), &families.Msg{Data: frame(uint32(i+1), 60)})
		require.NoError(t, err)
		r.received(int64(i + 2))
		n.ip(n.a, "link del w0")
	}
	familytest.Eventually(t, "they are all remembered", func() bool {
		n.ip(n.a, "link set v0 mtu "+strconv.Itoa(1400+int(time.Now().UnixNano()%50)))
		n.ip(n.b, "link set v1 mtu "+strconv.Itoa(1400+int(time.Now().UnixNano()%50)))
		r.sub.mu.Lock()
		defer r.sub.mu.Unlock()
		return len(r.sub.streams) <= 2 // v1 and perhaps the loopback
	})
	got := r.finish()
	require.Len(t, got.packets, lives+1)
	require.Len(t, got.ifaces, lives+1)
	require.Equal(t, lives+1, got.sums, "each interface's packets are in one statistics block")
}

// A capture that has seen nothing is a file all the same.
func TestAnEmptyCaptureIsAFile(t *testing.T) {
	n := newNet(t)
	got := n.start(model.CaptureSpec{Source: "none*"}).finish()
	require.Empty(t, got.packets)
	require.Equal(t, []string{"none*"}, names(got.ifaces))
	require.NotNil(t, got.stats)
}

// From the ring to the writer nothing is allocated for a packet.
func TestNothingIsAllocatedForAPacket(t *testing.T) {
	n := newNet(t)
	n.hub.limits.blocks = 64
	s := n.subscribe(model.CaptureSpec{Source: "v1", Filter: ours})
	done := make(chan error, 1)
	go func() { done <- s.Run(t.Context(), io.Discard) }()
	const batch = 2000
	m := &families.Msg{Data: frame(0, 60)}
	sent := int64(0)
	delivered := func() int64 { // as View, which asks the kernel, too
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.counts.delivered
	}
	perRun := testing.AllocsPerRun(5, func() {
		for range batch {
			for {
				if _, err := n.send.Send(m); err == nil {
					break
				}
			}
		}
		sent += batch
		for deadline := time.Now().Add(20 * time.Second); delivered() < sent && time.Now().Before(deadline); {
			runtime.Gosched()
		}
	})
	require.Equal(t, sent, s.View().Delivered)
	require.NoError(t, s.Close())
	require.ErrorIs(t, <-done, net.ErrClosed)
	// A batch has a few; one a packet would be 2000.
	t.Logf("%.0f allocations for %d packets", perRun, batch)
	if !raced { // the detector allocates for itself
		require.Less(t, perRun, float64(batch)/20)
	}
}
