package capture

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/sockd/sockd/families/familytest"
	"github.com/sockd/sockd/families/model"
	"github.com/sockd/sockd/families/packet/files"
	"github.com/sockd/sockd/families/packet/pcapng"
)

// toDisk is a recorder to files, of which it keeps some.
func toDisk(dir string, count int) model.RecorderSpec {
	return model.RecorderSpec{Name: "disk", Permanent: true, Filter: ours, Disk: &model.DiskSpec{To: model.Place{Path: dir + "/cap.pcapng", Dir: model.NoFD}, Size: 100_000, Count: count}}
}

func (n *net2) names(dir string) []string {
	n.Helper()
	entries, err := os.ReadDir(dir)
	require.NoError(n, err)
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

// sendNumbered sends frames from one number to another.
func (n *net2) sendNumbered(from, to uint32, length int) {
	n.Helper()
	for i := from; i < to; i++ {
		n.sendFrame(frame(i, length))
	}
}

func TestARecorderToDiskIsDumpedLikeOneInMemory(t *testing.T) {
	n := newNet(t)
	dir := t.TempDir()
	r, _ := n.record(toDisk(dir, 0))
	n.sendNumbered(0, 500, 1000)
	file, report := n.dumpOf(r, model.DumpSpec{})
	require.Len(t, file.numbers, 500, "of the one that is being written, too")
	for i, number := range file.numbers {
		require.EqualValues(t, i, number)
	}
	require.Len(t, file.ifaces, 1, "the same one in all files")
	require.EqualValues(t, 500, report.Packets)
	require.Equal(t, file.packets[0].Time, report.Oldest.UnixNano())
	v := r.View()
	require.Positive(t, v.Files)
	require.EqualValues(t, 500, v.Received)

	n.sendFrame(frame(77_777, 333))
	file, _ = n.dumpOf(r, model.DumpSpec{Last: time.Minute, Filter: "less 333"})
	require.Equal(t, []uint32{77_777}, file.numbers)
	require.NoError(t, r.Close())
	for _, name := range n.names(dir) {
		require.Regexp(t, `^cap_0000[1-9]\.pcapng$`, name, "all are complete")
	}
}

// Without a packet yet its file bears no signature, and a capture took it for anybody's.
func TestTheFileThatARecorderWritesIsKnownToBeItsOwn(t *testing.T) {
	n := newNet(t)
	dir := t.TempDir()
	rec, _ := n.record(toDisk(dir, 0))
	list := n.names(dir)
	require.Len(t, list, 1)
	part := filepath.Join(dir, list[0])
	info, err := os.Stat(part)
	require.NoError(t, err)
	require.Zero(t, info.Size())
	require.True(t, files.OfRecorder(part))
	n.sendFrames(1, 60)
	familytest.Eventually(t, "the packet is written", func() bool {
		info, err := os.Stat(part)
		return err == nil && info.Size() > 0
	})
	require.True(t, files.OfRecorder(part))
	require.NoError(t, rec.Close())
}

func TestARecorderToDiskKeepsWithinItsBounds(t *testing.T) {
	n := newNet(t)
	dir := t.TempDir()
	r, _ := n.record(toDisk(dir, 3))
	n.sendNumbered(0, 1000, 1000)
	familytest.Eventually(t, "the oldest are gone", func() bool { return r.View().Files == 3 })
	file, _ := n.dumpOf(r, model.DumpSpec{})
	require.EqualValues(t, 999, file.numbers[len(file.numbers)-1])
	require.Less(t, len(file.numbers), 500)
	for i, number := range file.numbers {
		require.Equal(t, file.numbers[0]+uint32(i), number)
	}
	require.NoError(t, r.Close())
	require.Equal(t, []string{"cap_1.pcapng", "cap_2.pcapng", "cap_3.pcapng"}, n.names(dir))

	dir = t.TempDir()
	spec := toDisk(dir, 0)
	spec.Disk.Size, spec.Disk.MaxBytes = 0, 400_000
	r, _ = n.record(spec)
	n.sendNumbered(0, 1000, 1000)
	require.NoError(t, r.Close())
	sum := int64(0)
	for _, name := range n.names(dir) {
		info, err := os.Stat(filepath.Join(dir, name))
		require.NoError(t, err)
		sum += info.Size()
	}
	require.LessOrEqual(t, sum, int64(400_000))
	require.Greater(t, sum, int64(200_000))
}

func TestARecorderToDiskGoesOnAfterARestart(t *testing.T) {
	n := newNet(t)
	dir := t.TempDir()
	r, _ := n.record(toDisk(dir, 3))
	n.sendNumbered(0, 150, 1000)
	require.NoError(t, r.Close())
	before := n.names(dir)
	require.Equal(t, []string{"cap_1.pcapng", "cap_2.pcapng"}, before)
	// A daemon that was killed leaves the file that it was writing.
	text, err := os.ReadFile(filepath.Join(dir, "cap_2.pcapng"))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, ".cap.pcapng.1.part"), text[:len(text)-50], 0o600))

	r, _ = n.record(toDisk(dir, 3))
	require.EqualValues(t, 3, r.View().Files)
	file, _ := n.dumpOf(r, model.DumpSpec{})
	require.Greater(t, len(file.numbers), 150, "what was there is read, too")
	n.sendNumbered(150, 300, 1000)
	file, _ = n.dumpOf(r, model.DumpSpec{})
	require.EqualValues(t, 299, file.numbers[len(file.numbers)-1])
	require.NoError(t, r.Close())
	require.Equal(t, []string{"cap_1.pcapng", "cap_2.pcapng", "cap_3.pcapng"}, n.names(dir), "the ring goes on")

	plain := t.TempDir()
	for i := range 3 {
		r, _ = n.record(toDisk(plain, 0))
		n.sendNumbered(0, 10, 1000)
		require.NoError(t, r.Close())
		require.FileExists(t, filepath.Join(plain, fmt.Sprintf("cap_%05d.pcapng", i+1)), "nothing is overwritten: %v %v", n.names(plain), r.View())
	}
}

// Files that are named by the time were not known again: they stayed for ever.
func TestFilesThatAreNamedByTheTimeAreKnownAfterARestart(t *testing.T) {
	n := newNet(t)
	dir := t.TempDir()
	spec := toDisk(dir, 3)
	spec.Disk.To.Path = dir + "/%Y-cap.%H.pcapng"
	foreign := filepath.Join(dir, "2001-cap.01.pcapng")
	require.NoError(t, os.WriteFile(foreign, []byte("keep"), 0o600))
	r, _ := n.record(spec)
	n.sendNumbered(0, 150, 1000)
	require.NoError(t, r.Close())
	require.Len(t, n.names(dir), 2+1)
	text, err := os.ReadFile(filepath.Join(dir, n.names(dir)[1]))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, ".Y-cap.H.pcapng.1.part"), text[:len(text)-50], 0o600))

	r, _ = n.record(spec)
	require.EqualValues(t, 3, r.View().Files, "the one that was left, too")
	n.sendNumbered(150, 300, 1000)
	file, _ := n.dumpOf(r, model.DumpSpec{})
	require.Greater(t, len(file.numbers), 150)
	require.EqualValues(t, 299, file.numbers[len(file.numbers)-1])
	require.NoError(t, r.Close())
	require.Len(t, n.names(dir), 3+1, "they count for the bounds: %v", n.names(dir))
	require.FileExists(t, foreign)
}

// Files of others, whatever their names, were taken for the recorder's own: those beyond
// its count were deleted, those of a ring replaced, and parts taken from who wrote them.
func TestARecorderTouchesOnlyItsOwnFiles(t *testing.T) {
	n := newNet(t)
	for _, count := range []int{0, 2} {
		dir := t.TempDir()
		foreign := []string{"cap_1.pcapng", "cap_3.pcapng", "cap_00001.pcapng", "cap_99999.pcapng", ".cap.pcapng.1.part", ".cap.pcapng.7.part"}
		for _, name := range foreign {
			require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte("keep"), 0o600))
		}
		r, _ := n.record(toDisk(dir, count))
		n.sendNumbered(0, 500, 1000)
		require.NoError(t, r.Close())
		for _, name := range foreign {
			text, err := os.ReadFile(filepath.Join(dir, name))
			require.NoError(t, err)
			require.Equal(t, "keep", string(text), name)
		}
		require.Greater(t, len(n.names(dir)), len(foreign))
	}

	// Two recorders of one FILE stand beside each other.
	dir := t.TempDir()
	one, two := toDisk(dir, 0), toDisk(dir, 0)
	two.Name = "other"
	a, _ := n.record(one)
	b, _ := n.record(two)
	n.sendNumbered(0, 300, 1000)
	for _, r := range []*Recorder{a, b} {
		file, _ := n.dumpOf(r, model.DumpSpec{})
		require.Len(t, file.numbers, 300)
		require.Equal(t, model.RecorderRecording, r.View().State)
	}
}

func TestARecorderToDiskSaysWhyItCannot(t *testing.T) {
	n := newNet(t)
	spec := toDisk("/nonexistent", 0)
	spec.Source, spec.Trigger.To.Dir = "v1", model.NoFD
	_, err := NewRecorders(n.hub).Add(spec, func(string, string) {})
	require.ErrorIs(t, err, syscall.ENOENT)

	dir := t.TempDir()
	r, told := n.record(toDisk(dir, 0))
	n.sendNumbered(0, 50, 1000)
	require.NoError(t, os.RemoveAll(dir))
	n.sendNumbered(50, 1000, 1000)
	familytest.Eventually(t, "it fails", func() bool { return r.View().State == model.RecorderFailed })
	require.NotEmpty(t, told.all())
	require.Contains(t, r.View().Cause, "no such file or directory")
}

// Whatever is in a file that is read back, what is dumped is a whole file.
func FuzzReadingBack(f *testing.F) {
	file := pcapng.AppendSection(nil, pcapng.Section{})
	file = pcapng.AppendInterface(file, pcapng.Interface{Link: pcapng.Ethernet, Name: "eth0"})
	file = pcapng.AppendPacket(file, &pcapng.Packet{Time: 5, Data: frame(1, 60), Len: 60, Dropped: 3})
	f.Add(file)
	f.Add(append(file, file...))
	f.Add(file[:len(file)-7])
	f.Add(pcapng.AppendStats(file, pcapng.Stats{Received: 3}))
	f.Add([]byte("not a capture at all"))
	f.Fuzz(func(t *testing.T, file []byte) {
		before := mapped.Load()
		var out bytes.Buffer
		r := newRefill(t.Context(), &out, everything)
		_ = r.file(bytes.NewReader(file)) // an error leaves what came before it
		report, err := r.finish()
		r.close()
		require.NoError(t, err)
		require.Equal(t, before, mapped.Load())
		reader, packets := pcapng.NewReader(&out), int64(0)
		var b pcapng.Block
		for {
			err := reader.Next(&b)
			if errors.Is(err, io.EOF) {
				break
			}
			require.NoError(t, err)
			if b.Type == pcapng.PacketBlock {
				packets++
			}
		}
		require.Equal(t, report.packets, packets)
	})
}
