package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/sockd/sockd/families/model"
)

// full is a recorder with everything that one in memory can have.
func full() model.RecorderSpec {
	return model.RecorderSpec{
		Name: "black", Source: "eth0,veth*", Filter: `ether proto \ip and udp`, Direction: "in", Snaplen: 96, NoPromisc: true,
		Last: 90 * time.Second, Bytes: 64 << 20,
		Trigger: model.TriggerSpec{Filter: "icmp", OnDrop: 1000, After: 500 * time.Millisecond, To: model.Place{Path: `/var/tmp/a b\c-%H.pcapng `, Dir: model.NoFD}},
	}
}

func TestARecorderReadsBackAsItWasWritten(t *testing.T) {
	disk := model.RecorderSpec{Name: "disk", Source: "any", Disk: &model.DiskSpec{
		To: model.Place{Path: "/var/tmp/%Y.pcapng", Dir: model.NoFD}, Size: 100 << 20, Every: time.Hour, Count: 24, MaxBytes: 10 << 30,
	}, Trigger: model.TriggerSpec{To: model.Place{Dir: model.NoFD}}}
	plain := model.RecorderSpec{Name: "plain", Source: "lo", Last: time.Second, Trigger: model.TriggerSpec{To: model.Place{Dir: model.NoFD}}}
	for _, spec := range []model.RecorderSpec{full(), disk, plain} {
		t.Run(spec.Name, func(t *testing.T) {
			dir := t.TempDir()
			file, err := SaveRecorder(dir, spec)
			require.NoError(t, err)
			require.Equal(t, filepath.Join(dir, "recorders.d", spec.Name+".conf"), file)
			c := LoadState(dir)
			require.Empty(t, c.Problems)
			require.Len(t, c.Recorders, 1)
			spec.SourceFile = file
			require.Equal(t, spec, c.Recorders[0].Spec)
			require.NoError(t, RemoveRecorder(dir, spec.Name))
			require.NoError(t, RemoveRecorder(dir, spec.Name), "twice is nil")
			require.Empty(t, LoadState(dir).Recorders)
		})
	}
}

// A name in quotes may have spaces, which are a part of it.
func TestQuotesInAFilterStayAsTheyAre(t *testing.T) {
	for given, want := range map[string]string{
		`comm "a  b" or comm "#\";\\"`:      `comm "a  b" or comm "#\";\\"`,
		" tcp\n  and\nunit \"x@1\tb.c\" \n": "tcp   and unit \"x@1\tb.c\"",
	} {
		spec := full()
		spec.Filter = given
		dir := t.TempDir()
		_, err := SaveRecorder(dir, spec)
		require.NoError(t, err)
		c := LoadState(dir)
		require.Empty(t, c.Problems)
		require.Equal(t, want, c.Recorders[0].Spec.Filter)
	}
}

func TestMistakesInRecordersNameTheirLine(t *testing.T) {
	for line, want := range map[string]string{
		"Source=":               "there is no Source=",
		"Size=1M":               "there is no File= to cut",
		"Last=soon":             ":3: duration",
		"Last=none":             ":3: duration",
		"Bytes=0":               ":3: size",
		"SnapLen=x":             ":3: number",
		"Promisc=maybe":         ":3: value",
		"Count=0":               ":3: number",
		"Every=-1":              ":3: duration",
		"OnDrop=some":           ":3: size",
		"DumpTo=here.pcapng":    ":3: path",
		`File=/tmp/\xZZ.pcapng`: ":3: ",
		"Colour=red":            "want Source=, Filter=,",
	} {
		t.Run(line, func(t *testing.T) {
			dir := t.TempDir()
			require.NoError(t, os.Mkdir(filepath.Join(dir, "recorders.d"), 0o755))
			file := filepath.Join(dir, "recorders.d", "black.conf")
			require.NoError(t, os.WriteFile(file, []byte("[Recorder]\nSource=eth0\n"+line+"\n"), 0o600))
			c := Load([]string{dir})
			require.Len(t, c.Problems, 1)
			require.Contains(t, c.Problems[0].Error(), want)
			require.True(t, strings.HasPrefix(c.Problems[0].Error(), file))
			require.Equal(t, []string{"black"}, c.BrokenRecorders)
			require.Empty(t, c.Recorders)
		})
	}
}

func TestAnEmptyValueTakesBackWhatWasSaidOfARecorder(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "recorders.d", "black.conf.d"), 0o755))
	text := FormatRecorder(full())
	require.NoError(t, os.WriteFile(filepath.Join(dir, "recorders.d", "black.conf"), []byte(text), 0o600))
	taken := "[Recorder]\nFilter=\nDirection=\nSnapLen=\nPromisc=\nBytes=\nTrigger=\nOnDrop=\nAfter=\nDumpTo=\nFile=/x\nFile=\n"
	require.NoError(t, os.WriteFile(filepath.Join(dir, "recorders.d", "black.conf.d", "less.conf"), []byte(taken), 0o600))
	c := Load([]string{dir})
	require.Empty(t, c.Problems)
	got := c.Recorders[0].Spec
	require.Equal(t, model.RecorderSpec{
		Name: "black", Source: "eth0,veth*", Last: 90 * time.Second, SourceFile: got.SourceFile,
		Trigger: model.TriggerSpec{To: model.Place{Dir: model.NoFD}},
	}, got)
}

func TestOnlyItsOwnersFilesNameWhereRecordersWrite(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(dir, "recorders.d"), 0o755))
	file := filepath.Join(dir, "recorders.d", "black.conf")
	require.NoError(t, os.WriteFile(file, []byte("[Recorder]\nSource=eth0\nFile=/var/tmp/x.pcapng\n"), 0o600))
	require.NoError(t, os.Chmod(file, 0o666))
	c := Load([]string{dir})
	require.Len(t, c.Problems, 1)
	require.Contains(t, c.Problems[0].Error(), "alone can write")
}
