package inject

import (
	"context"
	"io"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/familytest"
	"github.com/sockd/sockd/families/model"
	"github.com/sockd/sockd/families/packet/inject/wire"
	"github.com/sockd/sockd/families/packet/pcapng"
	"github.com/stretchr/testify/require"
)

func TestInjectSendsEveryFrameAsItIsAndInOrder(t *testing.T) {
	c := newCable(t)
	n := c.mustOpen(model.InjectSpec{Loop: 1, Link: int(pcapng.Ethernet)})
	const count = 3000 // many batches and pieces
	var all []byte
	var bytes int64
	for i := range count {
		f := frame(i, 14+i%1501)
		all = wire.Append(all, wire.Record{Frame: f})
		bytes += int64(len(f))
	}
	require.NoError(t, c.send(n, all))
	c.receiveNumbered(count, func(i int) int { return 14 + i%1501 })
	c.nothingElse()
	v := n.View()
	require.Equal(t, model.Injected{Interface: "v0", Sent: count, Bytes: bytes, Failed: model.Drops{}, Passes: 1, Duration: v.Duration}, v)
	require.Positive(t, v.Duration)
}

func TestInjectGoesThroughTheFramesAsOftenAsItIsTold(t *testing.T) {
	cable := newCable(t)
	for name, tt := range map[string]struct {
		spec         model.InjectSpec
		sent, passes int
	}{
		"once":                      {model.InjectSpec{Loop: 1}, 5, 1},
		"three times":               {model.InjectSpec{Loop: 3}, 15, 3},
		"for ever, but so many":     {model.InjectSpec{Count: 1017}, 1017, 203},
		"once, but fewer":           {model.InjectSpec{Loop: 1, Count: 2}, 2, 0},
		"once, as many":             {model.InjectSpec{Loop: 1, Count: 5}, 5, 1},
		"at a rate":                 {model.InjectSpec{Loop: 2, PPS: 5000}, 10, 2},
		"with the timing they have": {model.InjectSpec{Loop: 2, PPS: model.OriginalTiming}, 10, 2},
	} {
		t.Run(name, func(t *testing.T) {
			c := cable.on(t)
			n := c.mustOpen(tt.spec)
			require.NoError(t, c.send(n, records(5, 60, time.Millisecond)))
			for i, got := range c.receive(tt.sent) {
				require.Equal(t, frame(i%5, 60), got.frame, "frame %d", i)
			}
			c.nothingElse()
			require.EqualValues(t, tt.sent, n.View().Sent)
			require.EqualValues(t, tt.passes, n.View().Passes)
		})
	}
}

// early is how much before its time a frame may be at the receiver, whose clock is the
// host's and may be adjusted; late is what a busy machine may take.
const early, late = 2 * time.Millisecond, 500 * time.Millisecond

func TestInjectKeepsTheTimingOfTheFrames(t *testing.T) {
	c := newCable(t)
	n := c.mustOpen(model.InjectSpec{Loop: 2, PPS: model.OriginalTiming})
	var all []byte
	offsets := []time.Duration{0, 0, 30 * time.Millisecond, 20 * time.Millisecond, 90 * time.Millisecond, 100 * time.Millisecond}
	for i, at := range offsets {
		all = wire.Append(all, wire.Record{At: at, Frame: frame(i, 60)})
	}
	arrivals := c.receiveDuring(2*len(offsets), func() { require.NoError(t, c.send(n, all)) })
	pass := 100*time.Millisecond + 100*time.Millisecond/5 // and the average pause
	latest := time.Duration(0)
	for i, got := range arrivals {
		require.Equal(t, frame(i%len(offsets), 60), got.frame, "in the file's order")
		latest = max(latest, time.Duration(i/len(offsets))*pass+offsets[i%len(offsets)])
		at := got.at - arrivals[0].at
		require.Greater(t, at, latest-early, "frame %d", i)
		require.Less(t, at, latest+late, "frame %d", i)
	}
}

func TestInjectKeepsARate(t *testing.T) {
	c := newCable(t)
	n := c.mustOpen(model.InjectSpec{Loop: 0, Count: 1000, PPS: 1000})
	arrivals := c.receiveDuring(1000, func() { require.NoError(t, c.send(n, records(7, 60, 0))) })
	took := arrivals[999].at - arrivals[0].at
	require.Greater(t, took, 999*time.Millisecond-catchUp-early)
	require.Less(t, took, 999*time.Millisecond+10*late)
	for i, got := range arrivals {
		require.Greater(t, got.at-arrivals[0].at, time.Duration(i)*time.Millisecond-catchUp-early, "frame %d is not before its time", i)
	}
}

// A source that stalls must not be made up for by a burst above the rate.
func TestInjectGivesUpWhatAStallMadeLate(t *testing.T) {
	var p pace
	p.pps = 1000
	require.True(t, p.due(0), "the first is due at once")
	p.begun = p.begun.Add(-10 * time.Second) // so long the second was waited for
	require.False(t, p.due(0))
	p.wait(t.Context())
	due := 0
	for p.due(0) {
		due++
	}
	require.Less(t, due, 2*int(catchUp/time.Millisecond), "not ten thousand")
}

func TestInjectLeavesOutWhatTheInterfaceDoesNotTake(t *testing.T) {
	c := newCable(t)
	n := c.mustOpen(model.InjectSpec{Loop: 1})
	tagged := append(append(frame(5, 12), 0x81, 0, 0, 1), frame(5, 1514)[12:]...)
	var all []byte
	for _, f := range [][]byte{frame(0, 60), frame(1, 1515), {}, frame(3, 13), frame(4, 1514), tagged, frame(6, 70000), frame(7, 14)} {
		all = wire.Append(all, wire.Record{Frame: f})
	}
	err := c.send(n, all)
	require.ErrorIs(t, err, syscall.EMSGSIZE)
	require.ErrorIs(t, err, syscall.EINVAL)
	require.ErrorContains(t, err, "2 frames not sent, the first is frame 2 of 1515 bytes: longer than 1514 bytes (1518 with a VLAN tag)")
	require.ErrorContains(t, err, "2 frames not sent, the first is frame 3 of 0 bytes: shorter than a link-level header, 14 bytes")
	got := c.receive(4)
	require.Equal(t, frame(0, 60), got[0].frame)
	require.Equal(t, frame(4, 1514), got[1].frame)
	require.Len(t, got[2].frame, 1514, "the receiver's kernel took the VLAN tag off")
	require.Equal(t, frame(7, 14), got[3].frame)
	v := n.View()
	require.EqualValues(t, 4, v.Sent)
	require.Equal(t, model.Drops{"too_long": 2, "too_short": 2}, v.Failed)
}

func TestInjectEndsWhenNoFrameCanBeSent(t *testing.T) {
	c := newCable(t)
	n := c.mustOpen(model.InjectSpec{Loop: 0})
	require.ErrorIs(t, c.send(n, records(3, 2000, 0)), syscall.EMSGSIZE)
	require.EqualValues(t, 1, n.View().Passes, "for ever would be in vain")
}

func TestInjectOfNoFrames(t *testing.T) {
	c := newCable(t)
	for _, loop := range []int64{0, 1, 2} {
		n := c.mustOpen(model.InjectSpec{Loop: loop})
		require.NoError(t, c.send(n, nil))
		require.Zero(t, n.View().Sent)
	}
}

func TestInjectIsRefused(t *testing.T) {
	c := newCable(t)
	require.NoError(t, c.a.Command("ip", "link", "set", "lo", "down").Run())
	for name, tt := range map[string]struct {
		spec model.InjectSpec
		want error
	}{
		"on no interface":            {model.InjectSpec{Interface: "nonexistent0"}, syscall.ENODEV},
		"on a name that cannot be":   {model.InjectSpec{Interface: "a/b"}, syscall.ENODEV},
		"on one that is down":        {model.InjectSpec{Interface: "lo"}, syscall.ENETDOWN},
		"on all of them":             {model.InjectSpec{Interface: "any"}, families.ErrSyntax},
		"of cooked packets":          {model.InjectSpec{Interface: "v0", Link: int(pcapng.LinuxSLL2)}, families.ErrSyntax},
		"of packets without headers": {model.InjectSpec{Interface: "v0", Link: 101}, families.ErrSyntax},
		"of no link type there is":   {model.InjectSpec{Interface: "v0", Link: 1<<16 + 1}, families.ErrSyntax},
		"of fewer than none":         {model.InjectSpec{Interface: "v0", Count: -1}, families.ErrSyntax},
		"fewer times than never":     {model.InjectSpec{Interface: "v0", Loop: -1}, families.ErrSyntax},
		"faster than the clock":      {model.InjectSpec{Interface: "v0", PPS: MaxPPS + 1}, families.ErrSyntax},
	} {
		t.Run(name, func(t *testing.T) {
			n, err := c.open(tt.spec)
			require.ErrorIs(t, err, tt.want)
			require.Nil(t, n)
		})
	}
}

func TestInjectEndsWithItsInterface(t *testing.T) {
	for name, tt := range map[string]struct {
		change []string
		want   error
	}{
		"goes down":       {[]string{"link", "set", "v0", "down"}, syscall.ENETDOWN},
		"is deleted":      {[]string{"link", "del", "v0"}, syscall.ENODEV},
		"loses its other": {[]string{"-n", "", "link", "del", "v1"}, syscall.ENODEV},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCable(t)
			n := c.mustOpen(model.InjectSpec{Loop: 0, PPS: 2000})
			w, ended := c.start(t.Context(), n)
			_, err := w.Write(records(3, 60, 0))
			require.NoError(t, err)
			require.NoError(t, w.Close())
			c.receive(10)
			if tt.change[0] == "-n" {
				tt.change[1] = c.b.Name()
				require.NoError(t, exec.Command("ip", tt.change...).Run())
			} else {
				require.NoError(t, c.a.Command("ip", tt.change...).Run())
			}
			err = within(t, ended)
			require.ErrorIs(t, err, tt.want)
			require.ErrorContains(t, err, `inject packet "v0": `)
			require.GreaterOrEqual(t, n.View().Sent, int64(10), "what was sent before is counted")
			sent := n.View().Sent
			if tt.want == syscall.ENETDOWN {
				c.receive(int(sent) - 10)
				c.nothingElse()
			}
		})
	}
}

func TestInjectEndsAtOnceWhenItsCallerHasEnough(t *testing.T) {
	cable := newCable(t)
	for name, tt := range map[string]struct {
		spec model.InjectSpec
		sent []byte
		busy func(*Injection) bool
	}{
		"while it waits for frames": {model.InjectSpec{Loop: 1}, records(1, 60, 0)[:20], func(*Injection) bool { return true }},
		"while it waits to keep":    {model.InjectSpec{Loop: 2}, records(1, 60, 0), func(*Injection) bool { return true }},
		"between two frames":        {model.InjectSpec{Loop: 1, PPS: model.OriginalTiming}, records(2, 60, time.Hour), func(n *Injection) bool { return n.View().Sent == 1 }},
		"at full speed":             {model.InjectSpec{Loop: 0}, records(300, 60, 0), func(n *Injection) bool { return n.View().Sent > 1000 }},
		"with much read ahead":      {model.InjectSpec{Loop: 1, PPS: 1}, records(40000, 60, 0), func(n *Injection) bool { return n.View().Sent == 1 }},
	} {
		t.Run(name, func(t *testing.T) {
			c := cable.on(t)
			n := c.mustOpen(tt.spec)
			ctx, cancel := context.WithCancel(t.Context())
			w, ended := c.start(ctx, n)
			writing := make(chan struct{})
			go func() {
				defer close(writing)
				_, _ = w.Write(tt.sent) // nobody reads all of it
				if tt.spec.Loop == 0 {
					_ = w.Close()
				}
			}()
			familytest.Eventually(t, "it is busy", func() bool { return tt.busy(n) })
			cancel()
			require.NoError(t, within(t, ended), "a normal end")
			_ = w.Close() // ends the write
			<-writing
		})
	}
}

func TestInjectOfWhatIsNoRecord(t *testing.T) {
	cable := newCable(t)
	for name, tt := range map[string]struct {
		bytes []byte
		want  error
	}{
		"half a record": {records(4, 60, 0)[:3*72+40], io.ErrUnexpectedEOF},
		"half a header": {records(4, 60, 0)[:3*72+5], io.ErrUnexpectedEOF},
		"nonsense":      {append(records(3, 60, 0), 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0), families.ErrSyntax},
	} {
		t.Run(name, func(t *testing.T) {
			c := cable.on(t)
			n := c.mustOpen(model.InjectSpec{Loop: 1})
			require.ErrorIs(t, c.send(n, tt.bytes), tt.want)
			require.EqualValues(t, 3, n.View().Sent, "the whole ones before it")
			c.receive(3)
			c.nothingElse()

			n = c.mustOpen(model.InjectSpec{Loop: 2})
			require.ErrorIs(t, c.send(n, tt.bytes), tt.want)
			require.Zero(t, n.View().Sent, "half a file is not repeated")
		})
	}
}

func TestInjectKeepsNoMoreThanItsBound(t *testing.T) {
	c := newCable(t)
	all := records(2000, 1500, 0) // 3 MB
	n := c.mustOpen(model.InjectSpec{Loop: 2})
	n.keep = 2 * keepChunk
	require.ErrorIs(t, c.send(n, all), syscall.EFBIG)
	require.Zero(t, n.memory.used.Load(), "given back")

	n = c.mustOpen(model.InjectSpec{Loop: 2})
	n.memory.most = 2 * keepChunk
	require.ErrorIs(t, c.send(n, all), syscall.ENOMEM)
	require.Zero(t, n.memory.used.Load(), "given back")

	n = c.mustOpen(model.InjectSpec{Loop: 1})
	n.keep, n.memory.most = 0, 0
	require.NoError(t, c.send(n, all), "a single pass keeps nothing")
	require.EqualValues(t, 2000, n.View().Sent)
}

// shape gives v0 a queueing discipline.
func (c *cable) shape(discipline ...string) {
	c.Helper()
	args := append([]string{"qdisc", "add", "dev", "v0", "root"}, discipline...)
	out, err := c.a.Command("tc", args...).CombinedOutput()
	require.NoError(c, err, "%s", out)
}

func TestInjectWaitsForRoomInTheQueue(t *testing.T) {
	c := newCable(t)
	c.shape("tbf", "rate", "2mbit", "burst", "2kb", "limit", "4000")
	n := c.mustOpen(model.InjectSpec{Loop: 1})
	require.NoError(t, c.send(n, records(50, 1000, 0)))
	c.receiveNumbered(50, func(int) int { return 1000 })
	require.Positive(t, n.View().Retries, "the queue holds four")
}

func TestInjectWaitsForRoomInTheSocket(t *testing.T) {
	c := newCable(t)
	c.shape("tbf", "rate", "20mbit", "burst", "10kb", "limit", "100mb")
	n := c.mustOpen(model.InjectSpec{Loop: 1})
	require.NoError(t, c.send(n, records(600, 1400, 0)), "more than its buffer holds")
	c.receiveNumbered(600, func(int) int { return 1400 })
	require.Zero(t, n.View().Retries, "the kernel says when there is room")
}

func TestInjectGivesAFrameUpForWhichThereIsNoRoom(t *testing.T) {
	c := newCable(t)
	c.shape("pfifo", "limit", "0")
	n := c.mustOpen(model.InjectSpec{Loop: 1})
	err := c.send(n, records(2, 60, 0))
	require.ErrorIs(t, err, syscall.ENOBUFS)
	require.ErrorContains(t, err, "2 frames not sent, the first is frame 1 of 60 bytes: no room in the queue for 1s")
	require.Equal(t, model.Drops{"no_buffers": 2}, n.View().Failed)
}

func TestInjectRunsOnce(t *testing.T) {
	c := newCable(t)
	n := c.mustOpen(model.InjectSpec{Loop: 1})
	require.NoError(t, c.send(n, nil))
	require.Error(t, c.send(n, nil))
	require.NoError(t, n.Close())
	require.NoError(t, n.Close(), "twice is nil")
}

func TestInjectAllocatesNothingForAFrame(t *testing.T) {
	c := newCable(t)
	n := c.mustOpen(model.InjectSpec{Loop: 1})
	piece := records(1000, 60, 0)
	require.Zero(t, testing.AllocsPerRun(10, func() {
		require.NoError(t, n.piece(t.Context(), piece))
		require.NoError(t, n.flush(t.Context()))
	}))
}

func BenchmarkInject(b *testing.B) {
	ns, other := familytest.NewNS(b), familytest.NewNS(b)
	familytest.Veth(b, ns, "v0", "", other, "v1", "")
	var n *Injection
	var err error
	ns.Do(func() { n, err = Open(model.InjectSpec{Interface: "v0", Loop: 1}, NewMemory()) })
	require.NoError(b, err)
	defer n.Close()
	piece := records(1000, 64, 0)
	b.ReportAllocs()
	for b.Loop() {
		require.NoError(b, n.piece(b.Context(), piece))
	}
	b.ReportMetric(float64(n.View().Sent)/b.Elapsed().Seconds(), "frames/s")
}
