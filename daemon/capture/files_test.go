package capture

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sockd/sockd/families/familytest"
	"github.com/sockd/sockd/families/model"
	"github.com/sockd/sockd/families/packet/pcapng"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// filesRun is a RunFiles under way, and who opens its files.
type filesRun struct {
	*net2
	sub  *Subscription
	dir  string
	end  func()
	done chan error

	mu      sync.Mutex
	opened  []string
	reports []model.FileReport
	hold    chan struct{} // not nil: next waits until it is closed
	refuse  error         // not nil: next gives it
}

// startFiles begins a capture into files of dir.
func (n *net2) startFiles(dir string, spec model.CaptureSpec, cut model.FileSpec, set func(*filesRun)) *filesRun {
	n.Helper()
	spec.Source = "v1"
	ctx, cancel := context.WithCancel(context.Background())
	r := &filesRun{net2: n, sub: n.subscribe(spec), dir: dir, end: cancel, done: make(chan error, 1)}
	if set != nil {
		set(r)
	}
	go func() { r.done <- r.sub.RunFiles(ctx, cut, r.next, r.report) }()
	n.Cleanup(func() {
		cancel()
		require.NoError(n, r.sub.Close())
		<-r.sub.Done()
	})
	return r
}

func (r *filesRun) next(ctx context.Context) (int, error) {
	r.mu.Lock()
	hold, refuse, n := r.hold, r.refuse, len(r.opened)
	r.mu.Unlock()
	if refuse != nil {
		return -1, refuse
	}
	if hold != nil && n > 0 {
		select {
		case <-hold:
		case <-ctx.Done():
			return -1, ctx.Err()
		}
	}
	path := filepath.Join(r.dir, "f"+string(rune('a'+n/26))+string(rune('a'+n%26)))
	fd, err := unix.Open(path, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return -1, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.opened = append(r.opened, path)
	return fd, nil
}

func (r *filesRun) report(f model.FileReport) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.reports = append(r.reports, f)
	return nil
}

// finish ends the capture and gives what its files have.
func (r *filesRun) finish() (all []fileContent) {
	r.Helper()
	r.end()
	require.NoError(r, r.wait())
	return r.contents()
}

func (r *filesRun) wait() error {
	r.Helper()
	select {
	case err := <-r.done:
		return err
	case <-time.After(30 * time.Second):
		r.Fatal("RunFiles does not end")
		return nil
	}
}

func (r *filesRun) contents() (all []fileContent) {
	r.Helper()
	for _, path := range r.opened {
		b, err := os.ReadFile(path)
		require.NoError(r, err)
		all = append(all, mustContent(r, b))
	}
	return all
}

// received waits until so many packets were received.
func (r *filesRun) received(count int64) {
	r.Helper()
	familytest.Eventually(r, "not all packets were received", func() bool { return r.sub.View().Received >= count })
}

// numbers are those of the frames of our type, in order.
func numbers(all []fileContent) (seqs []uint32) {
	for _, c := range all {
		for _, p := range c.packets {
			if at := strings.Index(string(p.Data[:min(len(p.Data), 24)]), "\x88\xb5"); at >= 12 {
				seqs = append(seqs, binary.BigEndian.Uint32(p.Data[at+2:]))
			}
		}
	}
	return seqs
}

// upTo are the numbers from 0.
func upTo(n int) (seqs []uint32) {
	for i := range n {
		seqs = append(seqs, uint32(i))
	}
	return seqs
}

// mustRead has other programs read every file.
func (r *filesRun) mustRead() {
	r.Helper()
	commands := [][]string{append([]string{"capinfos"}, r.opened...)}
	for i, path := range r.opened {
		commands = append(commands, []string{"tcpdump", "-n", "-r", path, "-w", "/dev/null"})
		if i < 2 { // it takes its time to start
			commands = append(commands, []string{"tshark", "-n", "-r", path})
		}
	}
	for _, command := range commands {
		out, err := exec.Command(command[0], command[1:]...).CombinedOutput()
		require.NoError(r, err, "%.300s: %.300s", command, out)
		require.NotContains(r, strings.ToLower(string(out)), "malformed")
		require.NotContains(r, string(out), "cut short")
	}
}

// jumbo lets frames of 9000 bytes through.
func (n *net2) jumbo() {
	n.Helper()
	require.NoError(n, n.a.Command("ip", "link", "set", "v0", "mtu", "9000").Run())
	require.NoError(n, n.b.Command("ip", "link", "set", "v1", "mtu", "9000").Run())
}

// mixed sends count frames, numbered from first: short, long, with tags.
func (n *net2) mixed(first, count int) {
	n.Helper()
	for i := first; i < first+count; i++ {
		f := frame(uint32(i), 1000+i%500)
		switch i % 6 {
		case 1:
			f = append(append(append([]byte(nil), f[:12]...), 0x81, 0, 0, 0x64), f[12:]...)
		case 2:
			f = frame(uint32(i), 9000)
		case 3:
			f = frame(uint32(i), 60)
		}
		n.sendFrame(f)
	}
}

func TestFilesOfLargeFramesAreWrittenWhereTheyLie(t *testing.T) {
	for _, tt := range []struct {
		name string
		dir  func(t *testing.T) string
	}{{"on a disk", func(t *testing.T) string { return t.TempDir() }}, {"in memory, without O_DIRECT", func(t *testing.T) string { return mustTmpfs(t, "64m") }}} {
		t.Run(tt.name, func(t *testing.T) {
			n := newNet(t)
			n.hub.limits.blocks = 64
			n.jumbo()
			r := n.startFiles(tt.dir(t), model.CaptureSpec{}, model.FileSpec{}, nil)
			n.mixed(0, 1000)
			r.received(1000)
			n.sendFrames(3, 60) // a block of a few short frames is copied
			r.received(1003)
			n.mixed(1000, 1000)
			r.received(2003)
			all := r.finish()
			seqs := numbers(all)
			require.Equal(t, append(append(upTo(1000), 0, 1, 2), upTo(2000)[1000:]...), seqs)
			require.Greater(t, len(all[0].stats), len(all[0].names)+4, "blocks were written as they are, with statistics around them")
			require.Equal(t, all[0].stats[len(all[0].stats)-1].Delivered, uint64(len(all[0].packets)))
			r.mustRead()
			for _, p := range all[0].packets {
				require.Equal(t, len(p.Data), p.Len)
				if p.Data[0] == 2 && p.Data[5] == 9 { // ours, to another host
					require.Equal(t, []any{pcapng.Inbound, pcapng.Promiscuous}, []any{p.Direction, p.Reception})
				}
			}
			require.EqualValues(t, len(all[0].packets), r.sub.View().Delivered)
			require.Zero(t, r.sub.View().DroppedSubscriber)
		})
	}
}

// A private tcpdump beside it has the same packets.
func TestFilesHaveWhatTcpdumpHas(t *testing.T) {
	n := newNet(t)
	n.hub.limits.blocks = 256 // all of it fits, however slow the disk is
	dir := t.TempDir()
	theirs := filepath.Join(dir, "theirs")
	tcpdump := n.b.Command("tcpdump", "-i", "v1", "-B", "65536", "-U", "-n", "-w", theirs, "tcp")
	stderr, err := tcpdump.StderrPipe()
	require.NoError(t, err)
	require.NoError(t, tcpdump.Start())
	said := make([]byte, 4096)
	_, err = stderr.Read(said) // "listening on": from now on it misses nothing
	require.NoError(t, err)
	r := n.startFiles(t.TempDir(), model.CaptureSpec{Filter: "tcp"}, model.FileSpec{Size: 3 << 20}, nil)
	n.bulk(16 << 20)
	all := r.finish()
	length := int64(24)
	for _, c := range all {
		for _, p := range c.packets {
			length += 16 + int64(len(p.Data))
		}
	}
	familytest.Eventually(t, "tcpdump has not written as much", func() bool {
		st, err := os.Stat(theirs)
		return err == nil && st.Size() >= length
	})
	require.NoError(t, tcpdump.Process.Signal(os.Interrupt))
	require.NoError(t, tcpdump.Wait())
	require.Greater(t, len(all), 4)
	var ours []string
	direct := 0
	for i, path := range r.opened {
		ours = append(ours, mustLines(t, path)...)
		direct += len(all[i].stats) - len(all[i].names)
	}
	require.Positive(t, direct, "blocks were written as they are")
	want := mustLines(t, theirs)
	// Packets that two processors handle at once reach two sockets in any order.
	require.Empty(t, missing(want, ours), "what only tcpdump has")
	require.Empty(t, missing(ours, want), "what only the files have")
	r.mustRead()
}

// mustLines are the packets of a file with their contents. Each packet socket takes its
// own times.
func mustLines(tb testing.TB, path string) []string {
	tb.Helper()
	out, err := exec.Command("tcpdump", "-n", "-t", "-e", "-xx", "-S", "-r", path).Output()
	require.NoError(tb, err)
	return strings.Split(strings.TrimSpace(string(out)), "\n")
}

// bulk moves so many bytes of TCP from a to b, as large segments.
func (n *net2) bulk(bytes int) {
	n.Helper()
	var l net.Listener
	var err error
	n.b.Do(func() { l, err = net.Listen("tcp", "10.9.0.2:0") })
	require.NoError(n, err)
	defer l.Close()
	var c net.Conn
	n.a.Do(func() { c, err = net.Dial("tcp", l.Addr().String()) })
	require.NoError(n, err)
	go func() {
		defer c.Close()
		_, _ = c.Write(make([]byte, bytes)) // the other end counts
	}()
	in, err := l.Accept()
	require.NoError(n, err)
	defer in.Close()
	got, err := discard(in)
	require.NoError(n, err)
	require.Equal(n, bytes, got)
}

func discard(c net.Conn) (n int, err error) {
	buf := make([]byte, 256<<10)
	for {
		got, err := c.Read(buf)
		if n += got; err != nil {
			return n, nil // its end
		}
	}
}

// Size, time and number at once, under traffic: no file is too long, and no packet is
// missing or there twice between two of them.
func TestFilesAreCutUnderTraffic(t *testing.T) {
	n := newNet(t)
	n.hub.limits.blocks = 64
	n.jumbo()
	const size = 900_000
	r := n.startFiles(t.TempDir(), model.CaptureSpec{}, model.FileSpec{Size: size, Every: time.Second}, nil)
	sent := 0
	for began := time.Now(); time.Since(began) < 2500*time.Millisecond; sent += 100 {
		n.mixed(sent, 100)
		r.received(int64(sent + 100))
	}
	all := r.finish()
	require.Equal(t, upTo(sent), numbers(all))
	reasons := map[string]int{}
	require.Len(t, r.reports, len(r.opened))
	for i, report := range r.reports {
		reasons[report.Reason]++
		require.LessOrEqual(t, report.Bytes, int64(size))
		st, err := os.Stat(r.opened[i])
		require.NoError(t, err)
		require.Equal(t, report.Bytes, st.Size())
		require.EqualValues(t, report.Packets, len(all[i].packets))
		require.Zero(t, report.Begun.Nanosecond(), "intervals begin on the second")
		require.Less(t, report.Last.Sub(report.Begun), time.Second)
	}
	require.Positive(t, reasons["size"])
	require.GreaterOrEqual(t, reasons["time"], 2)
	require.Equal(t, 1, reasons["end"])
	r.mustRead()
}

// A full disk: the file stays readable, an event tells, all that is missing is counted,
// and when there is room again the capture goes on in the same file.
func TestAFullDiskLosesWhatItCannotHold(t *testing.T) {
	n := newNet(t)
	n.hub.limits.blocks = 64
	dir := mustTmpfs(t, "1m")
	ballast := filepath.Join(dir, "ballast")
	require.NoError(t, os.WriteFile(ballast, make([]byte, 512<<10), 0o600))
	var mu sync.Mutex
	var causes []string
	r := n.startFiles(dir, model.CaptureSpec{Filter: ours}, model.FileSpec{}, func(r *filesRun) {
		r.sub.Tell(func(cause string) {
			mu.Lock()
			defer mu.Unlock()
			causes = append(causes, cause)
		})
	})
	n.sendFrames(1000, 1400)
	r.received(1000)
	familytest.Eventually(t, "no loss is counted", func() bool { return r.sub.View().DroppedSubscriber > 0 })
	b, err := os.ReadFile(r.opened[0])
	require.NoError(t, err)
	mustTcpdump(t, b) // meanwhile, too
	require.NoError(t, os.Remove(ballast))
	sent := 1000
	before := r.sub.View().Delivered
	familytest.Eventually(t, "it is not written again", func() bool {
		n.sendFrames(1, 1400)
		sent++
		return r.sub.View().Delivered > before
	})
	all := r.finish()
	v := r.sub.View()
	require.EqualValues(t, sent, v.Received)
	require.EqualValues(t, sent, v.Delivered+v.DroppedSubscriber)
	require.EqualValues(t, v.Delivered, len(all[0].packets))
	require.EqualValues(t, sent, uint64(len(all[0].packets))+all[0].lost, "each loss is told of where it was")
	require.Len(t, r.reports, 2)
	require.Equal(t, "error", r.reports[0].Reason)
	require.Contains(t, r.reports[1].Error, "no space left on device")
	mu.Lock()
	defer mu.Unlock()
	require.Len(t, causes, 1)
	require.Contains(t, causes[0], "no space left on device")
	r.mustRead()
}

// A disk that stays full: the file says itself what was lost, also where others take all
// that is free.
func TestAFileOnADiskThatStaysFullSaysWhatWasLost(t *testing.T) {
	n := newNet(t)
	n.hub.limits.blocks = 64
	for _, length := range []int{60, 1400} {
		dir := mustTmpfs(t, "1m")
		sub := *n
		r := sub.startFiles(dir, model.CaptureSpec{Filter: ours}, model.FileSpec{}, nil)
		for sent := int64(1); ; sent++ { // as a slow capture writes it
			n.sendFrames(1, length)
			r.received(sent)
			if sent == 20 {
				fill(t, dir)
			}
			if sent > 20 && r.sub.View().DroppedSubscriber > 0 {
				break
			}
		}
		n.sendFrames(100, length)
		familytest.Eventually(t, "more is lost", func() bool { return r.sub.View().DroppedSubscriber > 100 })
		fill(t, dir)
		all := r.finish()
		v := r.sub.View()
		require.Equal(t, v.Received, v.Delivered+v.DroppedSubscriber)
		require.Len(t, all[0].stats, 1)
		require.Equal(t, []uint64{uint64(v.DroppedSubscriber), uint64(v.Delivered)}, []uint64{all[0].stats[0].OSDrop, all[0].stats[0].Delivered})
		require.Equal(t, fmt.Sprintf("dropped_kernel=0 dropped_daemon=0 dropped_subscriber=%d", v.DroppedSubscriber), all[0].stats[0].Comment)
		last := r.reports[len(r.reports)-1]
		require.Equal(t, []any{v.DroppedSubscriber, syscall.ENOSPC}, []any{last.Lost, last.Errno})
		r.mustRead()
	}
}

// Of several files the statistics of one that was full lagged what it had lost, and its gap
// was told of in the next but one.
func TestSeveralFilesOnAFullDiskTellOfEachGapOnce(t *testing.T) {
	n := newNet(t)
	n.hub.limits.blocks = 64
	dir := mustTmpfs(t, "300k")
	r := n.startFiles(dir, model.CaptureSpec{Filter: ours}, model.FileSpec{Size: 64 << 10}, nil)
	const burst = 3000
	sent := uint32(0)
	send := func(count int) {
		n.sendNumbered(sent, sent+uint32(count), 64)
		sent += uint32(count)
		r.received(int64(sent))
	}
	send(burst)
	familytest.Eventually(t, "the disk is full", func() bool { return r.sub.View().DroppedSubscriber > 0 })
	delivered := r.sub.View().Delivered
	for _, path := range r.opened[:2] {
		require.NoError(t, os.Truncate(path, 0)) // their packets have been there
	}
	send(1000) // more than a file, before the one that is full is tried again
	familytest.Eventually(t, "it is not written again", func() bool { send(10); return r.sub.View().Delivered > delivered })
	r.end()
	require.NoError(t, r.wait())
	var told, lost int64
	next := int64(-1)
	for _, path := range r.opened[2:] {
		b, err := os.ReadFile(path)
		require.NoError(t, err)
		if len(b) == 0 {
			continue // there was no room for its beginning
		}
		c := mustContent(t, b)
		for i, seq := range seqs(c.packets) {
			if next >= 0 {
				require.EqualValues(t, int64(seq)-next, c.packets[i].Dropped, "before packet %d of %s", seq, path)
				told += int64(c.packets[i].Dropped)
			}
			next = int64(seq) + 1
		}
		require.Len(t, c.stats, 1)
		require.Equal(t, lossComment(0, 0, int64(c.stats[0].OSDrop)), c.stats[0].Comment, path)
		lost = int64(c.stats[0].OSDrop)
	}
	require.Positive(t, told)
	require.Equal(t, r.sub.View().DroppedSubscriber, lost, "the last file has them all")
	require.EqualValues(t, sent, next+lost-told)
}

// fill takes all that is free of a small disk.
func fill(t *testing.T, dir string) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(dir, "ballast"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	require.NoError(t, err)
	defer f.Close()
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
	require.ErrorIs(t, err, syscall.ENOSPC)
}

// A disk that is full from the first byte on had a file of no bytes, which no reader takes.
func TestAFullDiskFromTheFirstByte(t *testing.T) {
	n := newNet(t)
	dir := mustTmpfs(t, "1m")
	fill(t, dir)
	r := n.startFiles(dir, model.CaptureSpec{Filter: ours}, model.FileSpec{}, nil)
	n.sendFrames(3, 60)
	r.received(3)
	r.end()
	require.NoError(t, r.wait())
	last := r.reports[len(r.reports)-1]
	require.Equal(t, []any{"end", int64(0), int64(3), syscall.ENOSPC}, []any{last.Reason, last.Bytes, last.Lost, last.Errno})
	require.EqualValues(t, 3, r.sub.View().DroppedSubscriber)

	spec := toDisk(dir, 0)
	rec, told := n.record(spec)
	n.sendFrames(3, 60)
	familytest.Eventually(t, "the packets are counted as lost", func() bool { return rec.View().DroppedSubscriber == 3 })
	require.NoError(t, rec.Close())
	require.Equal(t, []string{"ballast", "faa"}, n.names(dir), "the caller's is the caller's to delete, the recorder's is gone")
	require.Contains(t, strings.Join(told.all(), " "), "no space left on device")
}

// The packet that ended it counted as lost.
func TestWhatIsReceivedOfTheLastIntervalIsInItsFile(t *testing.T) {
	n := newNet(t)
	r := n.startFiles(t.TempDir(), model.CaptureSpec{Filter: ours}, model.FileSpec{Every: time.Second, Files: 2}, nil)
	for ended := false; !ended; {
		n.sendFrames(1, 60)
		select {
		case err := <-r.done:
			require.NoError(t, err)
			ended = true
		case <-time.After(10 * time.Millisecond):
		}
	}
	v, packets := r.sub.View(), 0
	for _, c := range r.contents() {
		packets += len(c.packets)
	}
	require.Equal(t, []int64{int64(packets), int64(packets), 0}, []int64{v.Received, v.Delivered, v.DroppedSubscriber})
}

// A caller who stands still when the next file is due: packets queue, then they are
// lost and counted, and when it goes on nothing else is missing.
func TestACallerWhoStandsStillWhenAFileIsDue(t *testing.T) {
	n := newNet(t)
	n.hub.limits.blocks = 64
	n.hub.limits.queue = 256 << 10
	hold := make(chan struct{})
	r := n.startFiles(t.TempDir(), model.CaptureSpec{Filter: ours}, model.FileSpec{Size: 64 << 10}, func(r *filesRun) { r.hold = hold })
	sent := int64(0)
	familytest.Eventually(t, "no loss is counted", func() bool {
		n.sendFrames(100, 1000)
		sent += 100
		r.received(sent)
		return r.sub.View().DroppedSubscriber > 0
	})
	close(hold)
	n.sendFrames(1, 1000)
	sent++
	r.received(sent)
	all := r.finish()
	v := r.sub.View()
	lost, packets := uint64(0), 0
	for _, c := range all {
		lost += c.lost
		packets += len(c.packets)
	}
	require.Equal(t, sent, v.Received)
	require.EqualValues(t, packets, v.Delivered)
	require.EqualValues(t, sent, uint64(packets)+lost)
	require.EqualValues(t, lost, v.DroppedSubscriber)
	require.Len(t, r.reports, len(r.opened))
	r.mustRead()
}

// A caller who is gone: what fits the file at hand is in it, the rest is counted.
func TestACallerWhoIsGoneEndsTheCapture(t *testing.T) {
	n := newNet(t)
	r := n.startFiles(t.TempDir(), model.CaptureSpec{Filter: ours}, model.FileSpec{Size: 64 << 10}, nil)
	familytest.Eventually(t, "no file", func() bool { n.sendFrames(1, 1000); r.mu.Lock(); defer r.mu.Unlock(); return len(r.opened) > 0 })
	r.mu.Lock()
	r.refuse = errors.New("gone")
	r.mu.Unlock()
	n.sendFrames(200, 1000)
	require.NoError(t, r.wait())
	v := r.sub.View()
	require.Equal(t, v.Received, v.Delivered+v.DroppedSubscriber)
	require.Positive(t, v.DroppedSubscriber)
	r.mustRead()
}

func TestHowAFileCaptureEnds(t *testing.T) {
	n := newNet(t)
	for name, tt := range map[string]struct {
		spec model.CaptureSpec
		cut  model.FileSpec
		end  func(r *filesRun)
		want error
	}{
		"context":  {model.CaptureSpec{}, model.FileSpec{}, func(r *filesRun) { r.end() }, nil},
		"duration": {model.CaptureSpec{Duration: 300 * time.Millisecond}, model.FileSpec{}, func(*filesRun) {}, nil},
		"count":    {model.CaptureSpec{Count: 5}, model.FileSpec{}, func(*filesRun) {}, nil},
		"close":    {model.CaptureSpec{}, model.FileSpec{}, func(r *filesRun) { require.NoError(r, r.sub.Close()) }, net.ErrClosed},
		"files":    {model.CaptureSpec{}, model.FileSpec{Every: time.Second, Files: 1}, func(*filesRun) {}, nil},
		"pcap":     {model.CaptureSpec{Format: model.FormatPcap}, model.FileSpec{}, func(r *filesRun) { r.end() }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			sub := *n
			sub.T = t
			tt.spec.Filter = ours
			r := sub.startFiles(t.TempDir(), tt.spec, tt.cut, nil)
			sub.sendFrames(5, 60)
			r.received(5)
			tt.end(r)
			require.ErrorIs(t, r.wait(), tt.want)
			require.Len(t, r.opened, 1)
			require.Len(t, mustLines(t, r.opened[0]), 5*5, "a line each, and four of its bytes")
			require.Error(t, r.sub.RunFiles(t.Context(), tt.cut, r.next, r.report), "once is all")
		})
	}
}

func TestFileSettingsThatAreRefused(t *testing.T) {
	n := newNet(t)
	s := n.subscribe(model.CaptureSpec{Source: "v1"})
	for _, cut := range []model.FileSpec{{Size: 4095}, {Size: -1}, {Every: -time.Second}, {Every: time.Millisecond}, {Files: -1}} {
		require.Error(t, s.RunFiles(t.Context(), cut, nil, nil))
	}
	null, err := unix.Open("/dev/null", unix.O_WRONLY|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	err = s.RunFiles(t.Context(), model.FileSpec{}, func(context.Context) (int, error) { return null, nil }, func(model.FileReport) error { return nil })
	require.ErrorIs(t, err, syscall.EINVAL)
	require.ErrorContains(t, err, "not a regular file")
}

// mustTmpfs mounts a file system of so many bytes.
func mustTmpfs(t *testing.T, size string) string {
	t.Helper()
	familytest.Need(t, familytest.Root())
	dir := t.TempDir()
	require.NoError(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+size))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	return dir
}

// missing are the lines of a that b has not, or not as often.
func missing(a, b []string) (out []string) {
	left := map[string]int{}
	for _, line := range b {
		left[line]++
	}
	for _, line := range a {
		if left[line]--; left[line] < 0 {
			out = append(out, line)
		}
	}
	return out[:min(len(out), 50)]
}
