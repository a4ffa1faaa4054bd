package capture

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/familytest"
	"github.com/sockd/sockd/families/model"
)

// record starts a recorder in n.b, and notes what it tells.
func (n *net2) record(spec model.RecorderSpec) (*Recorder, *notes) {
	n.Helper()
	if spec.Source == "" {
		spec.Source = "v1"
	}
	if spec.Trigger.To.Path == "" {
		spec.Trigger.To.Dir = model.NoFD
	}
	told := &notes{}
	var r *Recorder
	var err error
	n.b.Do(func() { r, err = NewRecorders(n.hub).Add(spec, told.add) })
	require.NoError(n, err)
	n.Cleanup(func() { require.NoError(n, r.Close()) })
	return r, told
}

// notes are what a recorder told.
type notes struct {
	mu   sync.Mutex
	list []string
}

func (n *notes) add(_, cause string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.list = append(n.list, cause)
}

func (n *notes) all() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return append([]string(nil), n.list...)
}

func (n *net2) dumpOf(r *Recorder, spec model.DumpSpec) (dumped, model.DumpReport) {
	n.Helper()
	var file bytes.Buffer
	report, err := r.Dump(n.Context(), spec, &file)
	require.NoError(n, err)
	return readDump(n.T, file.Bytes()), report
}

func TestWhatWasRecordedIsAskedForLater(t *testing.T) {
	n := newNet(t)
	r, _ := n.record(model.RecorderSpec{Last: time.Hour})
	beside := filepath.Join(t.TempDir(), "beside.pcap")
	tcpdump := n.b.Command("tcpdump", "-i", "v1", "-U", "--immediate-mode", "-s", "512", "-B", "16384", "--time-stamp-precision=nano", "-w", beside, ours)
	words, err := tcpdump.StderrPipe()
	require.NoError(t, err)
	require.NoError(t, tcpdump.Start())
	line := make([]byte, 256)
	for said := ""; !strings.Contains(said, "listening on"); {
		k, err := words.Read(line)
		require.NoError(t, err)
		said += string(line[:k])
	}
	n.sendFrames(500, 60)
	n.sendFrame(frame(77_777, 333)) // the marker
	n.sendFrames(500, 60)

	file, report := n.dumpOf(r, model.DumpSpec{Filter: "greater 333 and less 333 and " + ours})
	require.Equal(t, []uint32{77_777}, file.numbers)
	require.EqualValues(t, 1, report.Packets)
	require.Equal(t, file.packets[0].Time, report.First.UnixNano())

	var stamp string
	familytest.Eventually(t, "tcpdump has it, too", func() bool {
		theirs, _ := exec.Command("tcpdump", "-r", beside, "--time-stamp-precision=nano", "-tt", "-n", "greater 333").Output() // it is being written
		stamp, _, _ = strings.Cut(string(theirs), " ")
		return stamp != ""
	})
	require.NoError(t, tcpdump.Process.Signal(os.Interrupt))
	require.NoError(t, tcpdump.Wait())
	at := time.Unix(0, file.packets[0].Time)
	require.Equal(t, stamp, fmt.Sprintf("%d.%09d", at.Unix(), at.Nanosecond()), "the kernel's own time, to the nanosecond")
	require.Equal(t, frame(77_777, 333), file.packets[0].Data)
}

// A quiet recorder gave packets from before its bound: memory comes and goes in pieces of
// a quarter of a megabyte.
func TestADumpHasNothingFromBeforeTheBound(t *testing.T) {
	n := newNet(t)
	const last = 400 * time.Millisecond
	r, _ := n.record(model.RecorderSpec{Filter: ours, Last: last})
	n.sendNumbered(0, 5, 60)
	file, _ := n.dumpOf(r, model.DumpSpec{})
	require.Len(t, file.numbers, 5)
	begun := time.Now()
	familytest.Eventually(t, "they are too old", func() bool { return time.Since(begun) > last })
	n.sendNumbered(5, 7, 60)
	file, report := n.dumpOf(r, model.DumpSpec{Last: time.Hour})
	require.Equal(t, []uint32{5, 6}, file.numbers)
	require.Equal(t, file.packets[0].Time, report.Oldest.UnixNano())
	require.EqualValues(t, 7, r.View().HeldPackets, "memory has more")
	last2 := time.Minute
	require.NoError(t, r.Set(model.RecorderChange{Last: &last2}))
	file, _ = n.dumpOf(r, model.DumpSpec{})
	require.Len(t, file.numbers, 7, "growing loses nothing")
}

func TestADumpInFullRecordingLosesNothing(t *testing.T) {
	n := newNet(t)
	r, _ := n.record(model.RecorderSpec{Bytes: 64 << 20, Filter: ours})
	stop := make(chan struct{})
	var sent uint32
	var sending sync.WaitGroup
	sending.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				n.sendFrame(frame(sent, 200))
				sent++
			}
		}
	})
	familytest.Eventually(t, "it records", func() bool { return r.View().HeldPackets > 1000 })
	var dumps sync.WaitGroup
	for range 8 { // all at once
		dumps.Go(func() {
			var file bytes.Buffer
			if _, err := r.Dump(context.Background(), model.DumpSpec{}, &file); err != nil {
				t.Error(err)
				return
			}
			numbers := readDump(t, file.Bytes()).numbers
			for i, number := range numbers {
				if number != numbers[0]+uint32(i) {
					t.Errorf("%d follows %d", number, numbers[i-1])
					return
				}
			}
			if len(numbers) < 1000 {
				t.Errorf("%d packets", len(numbers))
			}
		})
	}
	dumps.Wait()
	close(stop)
	sending.Wait()
	file, _ := n.dumpOf(r, model.DumpSpec{})
	v := r.View()
	require.EqualValues(t, 9, v.Dumps)
	require.EqualValues(t, sent, v.Received+v.DroppedKernel)
	require.Zero(t, v.DroppedDaemon+v.DroppedSubscriber, "the recorder lost nothing by the dumps")
	require.EqualValues(t, v.HeldPackets, len(file.numbers))
}

func TestARecorderHoldsWhatItsBoundsSay(t *testing.T) {
	n := newNet(t)
	r, _ := n.record(model.RecorderSpec{Bytes: model.MinRecorderBytes, Filter: ours})
	before := mapped.Load()
	n.sendFrames(10_000, 1000) // ten times as much
	familytest.Eventually(t, "all have come", func() bool {
		v := r.View()
		return v.Received+v.DroppedKernel == 10_000
	})
	require.LessOrEqual(t, mapped.Load()-before, int64(model.MinRecorderBytes))
	v := r.View()
	require.LessOrEqual(t, v.HeldBytes, v.LimitBytes)
	require.EqualValues(t, model.MinRecorderBytes, v.LimitBytes)
	file, _ := n.dumpOf(r, model.DumpSpec{})
	require.EqualValues(t, 9999, file.numbers[len(file.numbers)-1])

	require.NoError(t, r.Set(model.RecorderChange{Bytes: new(int64(8 << 20)), Last: new(time.Hour), Filter: new("less 60 and " + ours)}))
	require.Equal(t, v.HeldPackets, r.View().HeldPackets, "growing loses nothing")
	n.sendFrame(frame(1, 1000))
	n.sendFrame(frame(2, 60))
	file, _ = n.dumpOf(r, model.DumpSpec{})
	require.Equal(t, []uint32{9999, 2}, file.numbers[len(file.numbers)-2:], "by the new filter")
	v = r.View()
	require.Equal(t, time.Hour, v.Last)
	require.Equal(t, "less 60 and "+ours, v.Filter)
	require.ErrorIs(t, r.Set(model.RecorderChange{Filter: new("nonsense")}), families.ErrSyntax)
	require.ErrorIs(t, r.Set(model.RecorderChange{Bytes: new(int64(5))}), families.ErrSyntax)
	require.Equal(t, v, r.View(), "nothing has changed")
}

func TestARecorderWaitsForItsInterface(t *testing.T) {
	n := newNet(t)
	r, _ := n.record(model.RecorderSpec{Source: "late*", Last: time.Minute})
	require.Equal(t, model.RecorderWaiting, r.View().State)
	file, report := n.dumpOf(r, model.DumpSpec{})
	require.Empty(t, file.packets)
	require.Zero(t, report.Packets)
	familytest.Veth(t, n.a, "early0", "10.9.1.1/24", n.b, "late0", "10.9.1.2/24")
	familytest.Eventually(t, "it is there", func() bool { return r.View().State == model.RecorderRecording })
	send := n.sender(n.a, "early0")
	_, err := families.SendAll(t.Context(), send, &families.Msg{Data: frame(5, 60)})
	require.NoError(t, err)
	file, _ = n.dumpOf(r, model.DumpSpec{Filter: ours})
	require.Equal(t, []uint32{5}, file.numbers)
	require.Equal(t, "late0", file.ifaces[0].Name)
}

func TestATriggerDumpsByItself(t *testing.T) {
	n := newNet(t)
	dir := t.TempDir()
	r, told := n.record(model.RecorderSpec{
		Last: time.Minute, Filter: ours,
		Trigger: model.TriggerSpec{Filter: "greater 500", After: 100 * time.Millisecond, To: model.Place{Path: dir + "/hit.pcapng", Dir: model.NoFD}},
	})
	n.sendFrames(10, 60)
	n.sendFrame(frame(10, 600))
	n.sendFrame(frame(11, 60))
	n.sendFrame(frame(12, 600)) // too soon for another one
	familytest.Eventually(t, "it has dumped", func() bool { return len(told.all()) == 1 })
	require.Contains(t, told.all()[0], "a packet matches greater 500: dumped 13 packets to "+dir+"/hit")
	names, err := filepath.Glob(dir + "/*")
	require.NoError(t, err)
	require.Len(t, names, 1, "and nothing half done beside it")
	text, err := os.ReadFile(names[0])
	require.NoError(t, err)
	require.Len(t, readDump(t, text).numbers, 13, "what was before, and what came after")
	v := r.View()
	require.EqualValues(t, 1, v.Dumps)
	require.EqualValues(t, 1, v.Suppressed)
	require.Equal(t, told.all()[0], v.Cause)
}

func TestATriggerThatCannotWriteSaysSo(t *testing.T) {
	n := newNet(t)
	_, told := n.record(model.RecorderSpec{
		Last: time.Minute, Trigger: model.TriggerSpec{Filter: ours, To: model.Place{Path: "/nonexistent/x.pcapng", Dir: model.NoFD}},
	})
	n.sendFrame(frame(1, 60))
	familytest.Eventually(t, "it tells", func() bool { return len(told.all()) == 1 })
	require.Contains(t, told.all()[0], "no such file or directory")
}

func TestRecordersThatMakeNoSense(t *testing.T) {
	to := model.Place{Path: "/tmp/x.pcapng", Dir: model.NoFD}
	for name, spec := range map[string]model.RecorderSpec{
		"no bound":                   {},
		"a filter":                   {Last: 1, Filter: "nonsense"},
		"a source":                   {Source: "a,,b", Last: 1},
		"a snaplen":                  {Last: 1, Snaplen: -1},
		"too little memory":          {Bytes: 100},
		"too long":                   {Last: 1000 * 24 * time.Hour},
		"memory and files":           {Last: 1, Disk: &model.DiskSpec{To: to}},
		"a trigger without a file":   {Last: 1, Trigger: model.TriggerSpec{Filter: "udp"}},
		"a file without a trigger":   {Last: 1, Trigger: model.TriggerSpec{To: to}},
		"after nothing":              {Last: 1, Trigger: model.TriggerSpec{After: 1}},
		"a trigger's filter":         {Last: 1, Trigger: model.TriggerSpec{Filter: "nonsense", To: to}},
		"a negative number of drops": {Last: 1, Trigger: model.TriggerSpec{OnDrop: -1, To: to}},
	} {
		t.Run(name, func(t *testing.T) {
			if spec.Source == "" {
				spec.Source = "v1"
			}
			require.ErrorIs(t, CheckRecorder(spec), families.ErrSyntax)
		})
	}
}

func TestAllRecordersTogetherHaveABound(t *testing.T) {
	n := newNet(t)
	rs := NewRecorders(n.hub)
	require.Positive(t, rs.most)
	rs.most = 10 << 20
	add := func(bytes int64) (r *Recorder, err error) {
		n.b.Do(func() {
			r, err = rs.Add(model.RecorderSpec{Source: "v1", Bytes: bytes, Trigger: model.TriggerSpec{To: model.Place{Dir: model.NoFD}}}, func(string, string) {})
		})
		return r, err
	}
	a, err := add(6 << 20)
	require.NoError(t, err)
	_, err = add(6 << 20)
	require.ErrorIs(t, err, syscall.ENOMEM)
	b, err := add(4 << 20)
	require.NoError(t, err)
	require.ErrorIs(t, b.Set(model.RecorderChange{Bytes: new(int64(5 << 20))}), syscall.ENOMEM)
	require.NoError(t, a.Set(model.RecorderChange{Bytes: new(int64(5 << 20))}))
	require.ErrorIs(t, b.Set(model.RecorderChange{Bytes: new(int64(5 << 20)), Filter: new("nonsense")}), families.ErrSyntax)
	require.NoError(t, b.Set(model.RecorderChange{Bytes: new(int64(5 << 20))}))
	require.NoError(t, a.Close())
	require.NoError(t, a.Close())
	require.NoError(t, b.Close())
	require.Zero(t, rs.promised)
}

func TestADumpsFilterMustParse(t *testing.T) {
	n := newNet(t)
	r, _ := n.record(model.RecorderSpec{Last: time.Minute})
	_, err := r.Dump(t.Context(), model.DumpSpec{Filter: "nonsense"}, new(bytes.Buffer))
	require.ErrorIs(t, err, families.ErrSyntax)
	require.NoError(t, r.Close())
	require.NoError(t, r.Close(), "twice is nil")
	_, err = r.Dump(t.Context(), model.DumpSpec{}, new(bytes.Buffer))
	require.ErrorIs(t, err, families.ErrNotFound)
}

// One ring serves all who listen to an interface.
func TestRecordersShareTheRing(t *testing.T) {
	n := newNet(t)
	n.record(model.RecorderSpec{Last: time.Minute})
	n.record(model.RecorderSpec{Bytes: 2 << 20})
	n.subscribe(model.CaptureSpec{Source: "v1"})
	out, err := n.b.Command("ss", "-0", "-H").Output()
	require.NoError(t, err)
	require.Equal(t, 1, strings.Count(string(out), "v1"), "%s", out)
}

// A stall of the reader, as long as the ring is full: what was lost stands where it
// happened, in the dump that it triggers, too.
func TestABurstOfLossesDumpsByItself(t *testing.T) {
	n := newNet(t)
	dir := t.TempDir()
	r, told := n.record(model.RecorderSpec{
		Last: time.Hour, Filter: ours, Trigger: model.TriggerSpec{OnDrop: 100, To: model.Place{Path: dir + "/loss.pcapng", Dir: model.NoFD}},
	})
	n.sendFrames(100, 1000)
	r.sub.mu.Lock()
	n.sendFrames(10_000, 1000) // five rings full
	r.sub.mu.Unlock()
	familytest.Eventually(t, "there is room again", func() bool {
		n.sendFrame(frame(1, 60))
		return len(told.all()) > 0
	})
	require.Regexp(t, `\d+ packets were lost: dumped \d+ packets to .*/loss_00001.pcapng`, told.all()[0])
	text, err := os.ReadFile(dir + "/loss_00001.pcapng")
	require.NoError(t, err)
	lost := uint64(0)
	for _, p := range readDump(t, text).packets {
		lost += p.Dropped
	}
	require.Positive(t, lost)

	file, report := n.dumpOf(r, model.DumpSpec{Filter: "less 60"})
	v := r.View()
	require.EqualValues(t, v.DroppedKernel, report.Dropped, "also in a dump without the packets around it")
	require.EqualValues(t, v.DroppedKernel, file.packets[0].Dropped)
	require.EqualValues(t, lost, v.DroppedKernel)
}
