package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/sockd/sockd/families/familytest"
	"github.com/sockd/sockd/families/packet/pcapng"
)

func TestCaptureFlags(t *testing.T) {
	o, err := parseCaptureFlags([]string{"-quick", "-row", "^sets", "-peer", "tcpdump", "-rounds", "5"})
	require.NoError(t, err)
	require.True(t, o.quick)
	require.Equal(t, 5, o.rounds)
	require.Len(t, chooseCaptureRows(o.row), 1)

	for name, args := range map[string][]string{
		"no round":            {"-rounds", "0"},
		"too many rounds":     {"-rounds", "101"},
		"a row that is no RE": {"-row", "("},
		"an argument":         {"all"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := parseCaptureFlags(args)
			require.Error(t, err)
		})
	}
}

///// the whole of it

// mustBuild makes sockd and sockd-ctl of this tree.
func mustBuild(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	build := exec.Command("go", "build", "-o", dir+"/", "../cmd/sockd", "../cmd/sockd-ctl")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := build.CombinedOutput()
	require.NoError(t, err, "%s", out)
	return dir
}

// The smallest rows run from end to end: real programs on a real veth pair. One
// compares every packet, which must hold on any machine; the other only measures.
func TestBenchCapture(t *testing.T) {
	familytest.Need(t, familytest.Root())
	json := filepath.Join(t.TempDir(), "out.json")
	o, err := parseCaptureFlags([]string{"-quick", "-bin", mustBuild(t), "-row", "^(full|sets)$", "-peer", "^tcpdump$", "-json", json})
	require.NoError(t, err)
	t.Setenv("TMPDIR", t.TempDir())
	var out strings.Builder
	require.NoError(t, runCapture(t.Context(), o, &out))
	require.Regexp(t, `full: (?s).*\n  sockd +\d+ .*\n  tcpdump +\d+ `, out.String())
	require.Contains(t, out.String(), "left out by -peer")
	require.Contains(t, out.String(), "bar: packets other than tcpdump's: (no filter) <= 0: 0, held")
	require.NotContains(t, out.String(), ", "+missed)
	require.FileExists(t, json)

	left, err := os.ReadDir(os.Getenv("TMPDIR"))
	require.NoError(t, err)
	require.Empty(t, left, "no folder is left behind")
}

func mustCaptureBench(t *testing.T) *captureBench {
	t.Helper()
	familytest.Need(t, familytest.Root())
	t.Setenv("TMPDIR", t.TempDir())
	o, err := parseCaptureFlags([]string{"-rounds", "1", "-quick"})
	require.NoError(t, err)
	b, err := newCaptureBench(t.Context(), o)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, b.close()) })
	return b
}

func TestCancelEndsACapture(t *testing.T) {
	b := mustCaptureBench(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() {
		_, err := b.measureLoad(ctx, load{tcpdump(theirs), 2, b.ram, frameLoad{size: 64, rate: 1000, dur: time.Hour}})
		done <- err
	}()
	familytest.Eventually(t, "frames arrive", func() bool { n, err := b.net.arrived(); return err == nil && n > 100 })
	cancel()
	require.ErrorIs(t, <-done, context.Canceled)
	sockets, err := b.net.packetSockets()
	require.NoError(t, err)
	require.Zero(t, sockets, "both have ended")
	left, err := os.ReadDir(b.ram)
	require.NoError(t, err)
	require.Empty(t, left)
}

func TestACaptureThatFailsSaysWhy(t *testing.T) {
	b := mustCaptureBench(t)
	p := captureProgram{name: "shell", linger: time.Millisecond, tally: tallyTcpdump,
		find: func() (string, error) { return "shell 1", nil },
		command: func(string, string) []string {
			return []string{"sh", "-c", `echo 'sockd-ctl: no route to the moon' >&2; echo 'try: walking' >&2; exit 3`}
		}}
	contests := []contest{b.contest("shell", load{p, 1, b.ram, frameLoad{size: 64, count: 10}}), b.contest("nobody", load{in: b.ram, job: frameLoad{size: 64, count: 10}})}
	table := compete(t.Context(), plan{rounds: 2}, contests)
	require.Equal(t, "failed: shell: no route to the moon", table.line("shell").WhyNot)
	require.Len(t, table.line("nobody").samples, 2, "others go on")
}

// The sender keeps its rate and its count, and numbers its frames on.
func TestSenderKeepsToItsJob(t *testing.T) {
	b := mustCaptureBench(t)
	before, err := b.net.arrived()
	require.NoError(t, err)
	o, err := b.send(t.Context(), frameLoad{size: 1400, count: 1001, rate: 10_000}.job(77))
	require.NoError(t, err)
	require.EqualValues(t, 1001, o.Ops)
	require.EqualValues(t, 1001*1400, o.Bytes)
	require.GreaterOrEqual(t, o.End-o.Start, int64(99*time.Millisecond), "no faster than asked")
	after, err := b.net.arrived()
	require.NoError(t, err)
	require.EqualValues(t, 1001, after-before)

	_, err = b.send(t.Context(), frameLoad{size: 20, count: 1}.job(0))
	require.ErrorContains(t, err, "at least 50 bytes")
}

func TestDue(t *testing.T) {
	for name, c := range map[string]struct {
		count, rate   int64
		sent, elapsed int64
		want          int
	}{
		"as fast as it goes, a whole batch":    {0, 0, 1000, 0, frameBatch},
		"the rest of a count":                  {100, 0, 90, 0, 10},
		"all are sent":                         {100, 1000, 100, 0, 0},
		"too early":                            {0, 100_000, 1000, 10_000_000, -1},
		"a burst is due":                       {0, 100_000, 980, 10_000_000, 21},
		"late, no more than a batch":           {0, 100_000, 0, 10_000_000, frameBatch},
		"slow, one by one":                     {0, 10, 3, 300_000_000, 1},
		"the last ones are not waited for":     {1000, 100_000, 999, 9_990_000, 1},
		"the last ones come no earlier either": {1000, 100_000, 999, 9_900_000, -1},
	} {
		t.Run(name, func(t *testing.T) {
			s := frameSender{job: job{Count: c.count, Frames: &frameJob{Rate: c.rate}}}
			require.Equal(t, c.want, s.due(c.sent, c.elapsed))
		})
	}
}

func TestFrames(t *testing.T) {
	f := newFrame(64, 1<<40+7)
	n, ok := frameNumber(f)
	require.True(t, ok)
	require.Equal(t, int64(1<<40+7), n)
	require.Zero(t, headerChecksum(f[14:34]), "a header with its checksum sums up to 0")
	require.EqualValues(t, 40007, binary.BigEndian.Uint16(f[34:]))

	for name, frame := range map[string][]byte{
		"empty":         {},
		"too short":     f[:frameLeast-1],
		"not IPv4":      append(append(bytes.Clone(f[:12]), 8, 6), f[14:]...),
		"another's":     append(append(bytes.Clone(f[:26]), 10, 9, 9), f[29:]...),
		"only its head": f[:14],
	} {
		_, ok := frameNumber(frame)
		require.False(t, ok, name)
	}
}

///// what programs and the kernel say

func TestTallies(t *testing.T) {
	for name, c := range map[string]struct {
		tally func(string) (account, error)
		said  string
		want  account
	}{
		"tcpdump": {tallyTcpdump, "tcpdump: listening on vrx, link-type EN10MB (Ethernet), snapshot length 262144 bytes\n" +
			"1 packet captured\n8 packets received by filter\n3 packets dropped by kernel\n", account{1, 3}},
		"sockd": {tallyTcpdump, "sockd-ctl: capturing on vrx\n20 packets captured\n25 packets received by filter\n1 packet dropped by kernel\n" +
			"4 packets dropped because this capture was too slow, or its file could not take them\n", account{20, 1}},
		"dumpcap": {tallyDumpcap, "Capturing on 'vrx'\nFile: b.pcapng\n\rPackets captured: 5\n" +
			"Packets received/dropped on interface 'vrx': 5/7 (pcap:4/dumpcap:3/flushed:0/ps_ifdrop:0) (41.7%)\n", account{5, 4}},
		"netsniff-ng": {tallyNetsniff, "Running! Hang up with ^C!\n\n\r          12  packets incoming (0 unread on exit)\n" +
			"\r           9  packets passed filter\n\r           3  packets failed filter (out of space)\n", account{9, 3}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := c.tally(c.said)
			require.NoError(t, err)
			require.Equal(t, c.want, got)
			got, err = c.tally("segmentation fault")
			require.Error(t, err)
			require.Zero(t, got)
		})
	}
}

func TestNetDev(t *testing.T) {
	const text = `Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets
    lo:       0       0    0    0    0     0          0         0        0       0
   vrx: 9000000  150000    0    0    0     0          0         0      500       5
`
	n, err := parseNetDev(text, farIface)
	require.NoError(t, err)
	require.EqualValues(t, 150_000, n)
	_, err = parseNetDev(text, nearIface)
	require.Error(t, err)
	_, err = parseNetDev("vrx: 1", farIface)
	require.Error(t, err)
}

func TestPacketSockets(t *testing.T) {
	require.Equal(t, 2, parsePacketSockets(`sk               RefCnt Type Proto  Iface R Rmem   User   Inode
ffff8a0201234000 3      3    0003   4     1 0      0      40213
ffff8a0201235000 3      3    0000   0     0 0      0      40214
ffff8a0201236000 3      3    0003   4     1 0      0      40215
`))
}

func TestListedLossesAreAdded(t *testing.T) {
	l, err := parseListed([]byte(`[{"id":1,"dropped_kernel":3,"dropped_daemon":0,"dropped_subscriber":2},{"id":2,"dropped_kernel":3,"dropped_daemon":5}]`))
	require.NoError(t, err)
	require.Equal(t, losses{6, 5, 2}, l)
	require.EqualValues(t, 13, l.sum())
	_, err = parseListed([]byte("{"))
	require.Error(t, err)
}

///// files

// pcapngOf is a file of frames with numbers; dropped says how many are lost before one.
func pcapngOf(dropped map[int64]uint64, comment string, numbers ...int64) []byte {
	b := pcapng.AppendSection(nil, pcapng.Section{})
	b = pcapng.AppendInterface(b, pcapng.Interface{Link: pcapng.Ethernet, Name: farIface})
	for _, n := range numbers {
		f := newFrame(64, n)
		b = pcapng.AppendPacket(b, &pcapng.Packet{Time: n * 1e6, Data: f, Len: len(f), Dropped: dropped[n]})
	}
	b = pcapng.AppendStats(b, pcapng.Stats{Comment: "dropped_kernel=9 dropped_daemon=9 dropped_subscriber=9"})
	return pcapng.AppendStats(b, pcapng.Stats{Comment: comment})
}

func TestLossesOfAFile(t *testing.T) {
	for name, c := range map[string]struct {
		dropped   map[int64]uint64
		numbers   []int64
		misplaced int
	}{
		"none":                      {nil, []int64{0, 1, 2}, 0},
		"where it happened":         {map[int64]uint64{5: 3}, []int64{0, 1, 5, 6}, 0},
		"before the first":          {map[int64]uint64{4: 4}, []int64{4, 5}, 0},
		"told too late":             {map[int64]uint64{6: 3}, []int64{0, 1, 5, 6}, 2},
		"not told":                  {nil, []int64{0, 4}, 1},
		"out of order, none's loss": {nil, []int64{0, 2, 1, 3}, 3},
	} {
		t.Run(name, func(t *testing.T) {
			f, err := parseCapture(bytes.NewReader(pcapngOf(c.dropped, "dropped_kernel=1 dropped_daemon=2 dropped_subscriber=3", c.numbers...)))
			require.NoError(t, err)
			require.Equal(t, c.numbers, f.numbers)
			require.Equal(t, c.misplaced, f.misplaced)
			require.Equal(t, losses{1, 2, 3}, f.losses, "the last statistics count")
			require.Equal(t, 1, f.interfaces)
			var sum int64
			for _, n := range c.dropped {
				sum += int64(n)
			}
			require.Equal(t, sum, f.dropped)
		})
	}
}

// pcapOf is a pcap file in any order and unit.
func pcapOf(order binary.AppendByteOrder, magic uint32, fraction uint32, numbers ...int64) []byte {
	b := order.AppendUint32(nil, magic)
	b = append(b, make([]byte, pcapHead-4)...)
	for _, n := range numbers {
		f := newFrame(64, n)
		for _, v := range []uint32{7, fraction, uint32(len(f)), uint32(len(f))} {
			b = order.AppendUint32(b, v)
		}
		b = append(b, f...)
	}
	return b
}

func TestPcapIsReadInEveryForm(t *testing.T) {
	for name, file := range map[string][]byte{
		"microseconds":             pcapOf(binary.LittleEndian, 0xa1b2c3d4, 5, 3, 4),
		"nanoseconds":              pcapOf(binary.LittleEndian, 0xa1b23c4d, 5000, 3, 4),
		"the other order":          pcapOf(binary.BigEndian, 0xa1b2c3d4, 5, 3, 4),
		"the other order, ns":      pcapOf(binary.BigEndian, 0xa1b23c4d, 5000, 3, 4),
		"as the bench writes them": appendPcapRecord(appendPcapRecord(appendPcapHead(nil), time.Unix(7, 5000), newFrame(64, 3)), time.Unix(7, 5000), newFrame(64, 4)),
	} {
		t.Run(name, func(t *testing.T) {
			f, err := parseCapture(bytes.NewReader(file))
			require.NoError(t, err)
			require.Equal(t, []int64{3, 4}, f.numbers)
			require.Equal(t, []int64{7_000_005_000, 7_000_005_000}, f.times)
		})
	}
}

func TestBadFilesAreRefused(t *testing.T) {
	whole := pcapOf(binary.LittleEndian, 0xa1b2c3d4, 5, 3, 4)
	strange := appendPcapRecord(appendPcapHead(nil), time.Unix(1, 0), make([]byte, 60))
	huge := binary.LittleEndian.AppendUint32(append(bytes.Clone(whole[:pcapHead]), make([]byte, 8)...), 1<<30)
	for name, c := range map[string]struct {
		file []byte
		want string
	}{
		"empty":                   {nil, "unexpected EOF"},
		"text":                    {[]byte("hello, file that is long enough"), "neither pcap nor pcapng"},
		"a head that is cut":      {whole[:10], "unexpected EOF"},
		"a packet that is cut":    {whole[:len(whole)-1], "unexpected EOF"},
		"a packet of a gibibyte":  {append(huge, make([]byte, 4)...), "a packet of 1073741824 bytes"},
		"a packet of nobody":      {strange, "packet 1 is none that was sent"},
		"pcapng that is cut":      {pcapngOf(nil, "", 1)[:90], "EOF"},
		"pcapng without sections": {[]byte("\x0a\x0d\x0d\x0a"), "EOF"},
	} {
		t.Run(name, func(t *testing.T) {
			f, err := parseCapture(bytes.NewReader(c.file))
			require.ErrorContains(t, err, c.want)
			require.Nil(t, f)
		})
	}
}

// Whatever the file holds, reading ends, with a result or an error.
func FuzzCaptureFile(f *testing.F) {
	f.Add(pcapOf(binary.LittleEndian, 0xa1b2c3d4, 5, 3, 4))
	f.Add(pcapOf(binary.BigEndian, 0xa1b23c4d, 5, 3))
	f.Add(pcapngOf(map[int64]uint64{5: 3}, "dropped_kernel=1 dropped_daemon=2 dropped_subscriber=3", 1, 5))
	f.Fuzz(func(t *testing.T, file []byte) {
		c, err := parseCapture(bytes.NewReader(file))
		require.Equal(t, err != nil, c == nil, "on error there is no result")
		if c != nil {
			require.Len(t, c.times, len(c.numbers))
			require.LessOrEqual(t, len(c.numbers)*frameLeast, len(file))
		}
	})
}

func TestDifferences(t *testing.T) {
	require.Equal(t, difference{}, differ([]int64{3, 1, 2}, []int64{1, 2, 3}), "order is no difference")
	require.Equal(t, difference{missing: 2, extra: 1, twice: 1}, differ([]int64{1, 1, 9}, []int64{1, 2, 3}))
	require.Equal(t, difference{missing: 1}, differ(nil, []int64{1}))
	require.Zero(t, gaps([]int64{4, 5, 6}))
	require.Equal(t, 2, gaps([]int64{4, 6, 5}))
	require.Zero(t, gaps(nil))
}

func mustWrite(t *testing.T, file string, b []byte) string {
	t.Helper()
	require.NoError(t, os.WriteFile(file, b, 0o600))
	return file
}

func TestSumUp(t *testing.T) {
	dir := t.TempDir()
	whole := mustWrite(t, dir+"/whole", pcapngOf(nil, "dropped_kernel=0 dropped_daemon=0 dropped_subscriber=0", 0, 1, 2, 3))
	holed := mustWrite(t, dir+"/holed", pcapngOf(map[int64]uint64{3: 2}, "dropped_kernel=1 dropped_daemon=0 dropped_subscriber=1", 0, 3))
	short := mustWrite(t, dir+"/short", pcapngOf(nil, "dropped_kernel=0 dropped_daemon=0 dropped_subscriber=0", 0, 1, 2))
	over := mustWrite(t, dir+"/over", pcapngOf(nil, "dropped_kernel=0 dropped_daemon=1 dropped_subscriber=0", 0, 1, 2, 3))

	s, err := sumUp(4, []string{whole, holed}, losses{1, 0, 1})
	require.NoError(t, err)
	require.Equal(t, sample{
		stallSent.key: 8, stallWritten.key: 6, stallKernel.key: 1, stallDaemon.key: 0, stallSubscriber.key: 1,
		stallDifference.key: 0, stallUnwritten.key: 0, stallMisplaced.key: 0, stallListed.key: 0,
	}, s)

	s, err = sumUp(4, []string{short, over}, losses{})
	require.NoError(t, err)
	require.EqualValues(t, 2, s[stallDifference.key], "one too few and one too many are two mistakes")
	require.EqualValues(t, 1, s[stallUnwritten.key])
	require.EqualValues(t, 1, s[stallListed.key])

	_, err = sumUp(4, []string{dir + "/none"}, losses{})
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestSumRotation(t *testing.T) {
	dir := t.TempDir()
	// Numbers are milliseconds: 998 and 1001 are of two seconds. Names say nothing.
	mustWrite(t, dir+"/b", pcapngOf(nil, "", 995, 996, 997))
	mustWrite(t, dir+"/a", pcapngOf(nil, "", 998, 999, 1000, 1001))
	mustWrite(t, dir+"/empty", pcapngOf(nil, ""))
	s, err := sumRotation(dir, 1004)
	require.NoError(t, err)
	require.EqualValues(t, 3, s[rotFiles.key])
	require.EqualValues(t, 7, s[rotPackets.key])
	require.Zero(t, s[rotGaps.key], "in the order of their packets")
	require.EqualValues(t, 2, s[rotTail.key], "1002 and 1003 were sent")
	require.EqualValues(t, 1, s[rotSeconds.key])
	require.EqualValues(t, 2, s[rotTimed.key])

	_, err = sumRotation(t.TempDir(), 1)
	require.ErrorIs(t, err, errNoPackets)
}

func TestFolderWatchKeepsTheMost(t *testing.T) {
	dir := t.TempDir()
	mustWrite(t, dir+"/a", make([]byte, rotateSize))
	mustWrite(t, dir+"/b", make([]byte, 50))
	w := &folderWatch{dir: dir, quit: make(chan struct{}), sizes: map[uint64]int64{}}
	w.look()
	require.NoError(t, os.Rename(dir+"/a", dir+"/d"))
	require.NoError(t, os.Remove(dir+"/b"))
	mustWrite(t, dir+"/c", make([]byte, 10))
	w.look()
	most, err := w.stop()
	require.NoError(t, err)
	require.Equal(t, folderSize{files: 2, bytes: rotateSize + 50, largest: rotateSize, full: 1}, most)

	_, err = watchFolder(dir + "/none").stop()
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestPipesWaitToBeRead(t *testing.T) {
	all, err := newPipes(t.TempDir(), 2)
	require.NoError(t, err)
	for _, p := range all {
		out, err := os.OpenFile(p.path, os.O_WRONLY, 0)
		require.NoError(t, err)
		defer out.Close()
		_, err = out.WriteString("after a while")
		require.NoError(t, err)
		require.NoFileExists(t, p.file, "nobody reads yet")
		if p == all[0] {
			require.NoError(t, out.Close())
		}
	}
	all.read()
	require.NoError(t, all[:1].wait())
	got, err := os.ReadFile(all[0].file)
	require.NoError(t, err)
	require.Equal(t, "after a while", string(got))
	require.NoError(t, all.close(), "also while a writer is left")
}

///// tables

func TestCaptureTable(t *testing.T) {
	boom := errors.New("no room")
	var turns []string
	take := func(who string, values ...float64) contest {
		i := 0
		return contest{who: who, sample: func(context.Context) (sample, error) {
			turns = append(turns, who)
			i++
			return sample{sentKpps.key: values[i-1]}, nil
		}}
	}
	table := compete(t.Context(), plan{rounds: 3}, []contest{
		take("sockd", 100, 200, 300),
		take("tcpdump", 50, 200, 100),
		{who: "dumpcap", whyNot: "dumpcap is not installed"},
		{who: "netsniff-ng", sample: func(context.Context) (sample, error) { return nil, boom }},
	})
	require.Equal(t, []string{"sockd", "tcpdump", "tcpdump", "sockd", "sockd", "tcpdump"}, turns, "each round begins with the next one")
	for _, l := range table.Lines {
		l.compare(table.line("tcpdump"), sentKpps.key, toTcpdump.key)
	}
	table.atLeast(table.line("sockd"), toTcpdump.key, 1.6, "sockd to tcpdump")
	table.atMost(table.line("sockd"), sentKpps.key, 100, "sockd")
	table.atMost(table.line("tcpdump"), sentKpps.key, 100, "tcpdump")
	table.atLeast(table.line("netsniff-ng"), toTcpdump.key, 1, "netsniff-ng")
	table.finish(sentKpps, toTcpdump)
	table.Name, table.Title, table.Notes = "taps", "a title", []string{"a note"}

	var out strings.Builder
	table.print(&out)
	require.Equal(t, `
taps: a title
                 sent kpps  min  max  ×tcpdump
  sockd                200  100  300      2.00
  tcpdump              100   50  200      1.00
  dumpcap       dumpcap is not installed
  netsniff-ng   failed: no room
  a note
  bar: sockd to tcpdump >= 1.6: 2, held
  bar: sockd <= 100: 200, missed
  bar: tcpdump <= 100: 100, held
  bars: 1 not judged: netsniff-ng has no numbers
`, out.String())

	rep := &captureReport{Rows: []*captureTable{table}}
	out.Reset()
	rep.finish(&out)
	require.Contains(t, out.String(), "bars: 2 held, 1 missed, 1 not judged")

	table.withdraw()
	require.Equal(t, tooQuick, table.Bars[0].Verdict, "one short round ranks nobody")
}

// Ratios are within a round: a machine that is half as fast in one of them changes both.
func TestRatiosAreWithinARound(t *testing.T) {
	a := &captureLine{samples: []sample{{"v": 10}, {"v": 100}, {"v": 1000}}}
	b := &captureLine{samples: []sample{{"v": 5}, {"v": 50}, {"v": 500}}}
	a.compare(b, "v", "ratio")
	for _, s := range a.samples {
		require.EqualValues(t, 2, s["ratio"])
	}
	c := &captureLine{samples: []sample{{"v": 1}}}
	c.compare(b, "v", "ratio")
	require.NotContains(t, c.samples[0], "ratio", "one of them failed")
}

func TestPrices64(t *testing.T) {
	s := sample{}
	s.price(1_000_000, []account{{1_000_000, 0}, {500_000, 400_000}}, cost{1.5, 0.5})
	require.InDelta(t, 25, s[lostPercent.key], 1e-9)
	require.InDelta(t, 400_000, s[kernelDrops.key], 1e-9)
	require.InDelta(t, 1.5, s[cpuEach.key], 1e-9)
	require.InDelta(t, 1000, s[cpuWritten.key], 1e-9)
	require.InDelta(t, 0.5, s[cpuDaemon.key], 1e-9)

	s.price(1_000_000, []account{{}}, cost{})
	require.InDelta(t, 100, s[lostPercent.key], 1e-9)
}

func TestAFileMustHoldWhatItsProgramSays(t *testing.T) {
	file := mustWrite(t, t.TempDir()+"/f", make([]byte, 640))
	require.NoError(t, weigh([]string{file}, []account{{captured: 10}}, 64))
	require.ErrorContains(t, weigh([]string{file}, []account{{captured: 11}}, 64), "640 bytes for 11 packets")
}

func TestCaptureRowsAreNamedOnce(t *testing.T) {
	seen := map[string]bool{}
	for _, r := range captureRows() {
		require.False(t, seen[r.name], r.name)
		seen[r.name] = true
	}
	for _, s := range stalls(false) {
		require.False(t, seen[s.who], s.who)
		seen[s.who] = true
	}
}

func TestPerformancePageHasEveryCaptureRow(t *testing.T) {
	page, err := os.ReadFile("../docs/performance.md")
	require.NoError(t, err)
	for _, r := range captureRows() {
		require.Contains(t, string(page), "| `"+r.name+"` |")
	}
}

func TestShortNumbers(t *testing.T) {
	for v, want := range map[float64]string{0: "0", 2: "2", 1.0 / 3: "0.333", 31.74: "31.7", 2047.6: "2048", 0.0004: "0.0004"} {
		require.Equal(t, want, short(v))
	}
}

func TestTrafgenHasTheSameFrames(t *testing.T) {
	config := trafgenConfig()
	require.Equal(t, injectFrames, strings.Count(config, "{"))
	require.Equal(t, injectFrames*64, strings.Count(config, "0x"))
	f, err := parseCapture(bytes.NewReader(injectPcap()))
	require.NoError(t, err)
	require.Len(t, f.numbers, injectFrames)
}
