package ctl

import (
	"bytes"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sockd/sockd/families/model"
	"github.com/sockd/sockd/families/packet/files"
	"github.com/sockd/sockd/families/packet/pcapng"
	"github.com/stretchr/testify/require"
)

// mustNumber is the number that ctltest's captures write into a file's comment.
func mustNumber(tb testing.TB, path string) string {
	tb.Helper()
	b, err := os.ReadFile(path)
	require.NoError(tb, err)
	var blk pcapng.Block
	require.NoError(tb, pcapng.NewReader(bytes.NewReader(b)).Next(&blk))
	return blk.Section.Comment
}

// mustList are the names in a directory, and the number in each file.
func mustList(tb testing.TB, dir string) (names []string) {
	tb.Helper()
	entries, err := os.ReadDir(dir)
	require.NoError(tb, err)
	for _, e := range entries {
		if e.IsDir() {
			names = append(names, e.Name()+"/")
			continue
		}
		names = append(names, e.Name()+"="+mustNumber(tb, filepath.Join(dir, e.Name())))
	}
	sort.Strings(names)
	return names
}

func TestFilesAreNamedAndDeleted(t *testing.T) {
	for _, tt := range []struct {
		name  string
		args  string
		files int
		want  string
	}{
		{"one file", "-w FILE", 1, "cap.pcapng=0"},
		{"by size", "-w FILE -C 1", 3, "cap_00001.pcapng=0 cap_00002.pcapng=1 cap_00003.pcapng=2"},
		{"a ring", "-w FILE -C 1 -W 2", 5, "cap_1.pcapng=4 cap_2.pcapng=3"},
		{"a ring of time", "-w DIR/%H.pcapng -C 1 -G 3600 -W 2", 5, "03.pcapng=3 04.pcapng=4"},
		{"by time", "-w DIR/%Y%m%d-%H.pcapng -G 3600", 3, "20260101-00.pcapng=0 20260101-01.pcapng=1 20260101-02.pcapng=2"},
		{"names that come again", "-w DIR/%Y.pcapng -G 3600", 3, "2026.pcapng=0 2026_00002.pcapng=1 2026_00003.pcapng=2"},
		{"bytes in all", "-w FILE --max-bytes 32k", 200, "some"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			sh, b := mustShell(t)
			b.CaptureFiles(tt.files)
			dir := t.TempDir()
			args := strings.NewReplacer("FILE", dir+"/cap.pcapng", "DIR", dir).Replace(tt.args)
			r := sh.run("", append(append([]string{"capture"}, strings.Fields(args)...), "eth7")...)
			require.Equal(t, ExitOK, r.exit, r.stderr)
			require.Contains(t, r.stderr, fmt.Sprintf("%s captured\n3 packets received by filter", packets(int64(tt.files))))
			got := mustList(t, dir)
			if tt.want != "some" {
				require.Equal(t, strings.Fields(tt.want), got)
				return
			}
			total := int64(0)
			for _, name := range got {
				st, err := os.Stat(filepath.Join(dir, strings.Split(name, "=")[0]))
				require.NoError(t, err)
				total += st.Size()
			}
			require.LessOrEqual(t, total, int64(32<<10)-2*4096, "there is room for the one that is written and the next")
			require.Greater(t, total, int64(32<<10)-2*4096-300)
			require.Equal(t, "cap_00200.pcapng=199", got[len(got)-1], "the oldest went first")
		})
	}
}

func TestAFileThatCannotBeWrittenIsSaid(t *testing.T) {
	sh, b := mustShell(t)
	b.CaptureFiles(2)
	path := filepath.Join(t.TempDir(), "cap.pcapng")
	r := sh.run("", "capture", "-w", path, "-C", "1", "eth7")
	require.Equal(t, ExitOK, r.exit, r.stderr)
	require.Contains(t, r.stderr, path+": packets are lost until it can be written: no space left on device\n")
}

// A capture replaces what is in its way, as tcpdump does, but no recorder's file.
func TestARecordersFileIsNotReplaced(t *testing.T) {
	recorders := pcapng.AppendSection(nil, pcapng.Section{Comment: "recorder black"})
	for args, want := range map[string]string{
		"-w FILE":                        "cap.pcapng=recorder black",
		"-w FILE --comment x -Q in -c 1": "cap.pcapng=recorder black",
		"-w FILE -C 1":                   "cap.pcapng=recorder black cap_00001.pcapng=recorder black cap_00002.pcapng=0 cap_00003.pcapng=1",
		"-w FILE -C 1 -W 2":              "cap.pcapng=recorder black cap_00001.pcapng=recorder black cap_1.pcapng=recorder black cap_2.pcapng=1",
	} {
		sh, b := mustShell(t)
		b.CaptureFiles(2)
		dir := t.TempDir()
		for _, name := range []string{"cap.pcapng", "cap_00001.pcapng"} {
			require.NoError(t, os.WriteFile(filepath.Join(dir, name), recorders, 0o600))
		}
		if strings.Contains(args, "-W") {
			require.NoError(t, os.WriteFile(filepath.Join(dir, "cap_1.pcapng"), recorders, 0o600))
			require.NoError(t, os.WriteFile(filepath.Join(dir, "cap_2.pcapng"), []byte("somebody's"), 0o600))
		}
		fields := strings.Fields(strings.Replace(args, "FILE", dir+"/cap.pcapng", 1))
		r := sh.run("", append(append([]string{"capture"}, fields...), "eth7")...)
		require.Equal(t, strings.Contains(args, "-C"), r.exit == ExitOK, r.stderr)
		if r.exit != ExitOK {
			require.Equal(t, ExitInUse, r.exit)
			require.Contains(t, r.stderr, "cap.pcapng is a file of a recorder's: file exists (EEXIST)")
		}
		got := mustList(t, dir)
		if !strings.Contains(args, "-C") {
			got = got[:1]
		}
		require.Equal(t, want, strings.Join(got, " "))
	}
}

// A recorder's file was emptied through a link, and one without a packet yet by its own name.
func TestARecordersFileIsNotWrittenByAnotherName(t *testing.T) {
	dir := t.TempDir()
	in := mustWrite(t, twoInterfaces())
	signed, empty := filepath.Join(dir, "signed"), filepath.Join(dir, ".rec.pcapng.1.part")
	recorders := pcapng.AppendSection(nil, pcapng.Section{Comment: "recorder black"})
	require.NoError(t, os.WriteFile(signed, recorders, 0o600))
	fd, err := syscall.Open(empty, syscall.O_WRONLY|syscall.O_CREAT|syscall.O_CLOEXEC, 0o600)
	require.NoError(t, err)
	defer closeFile(fd)
	files.Claim(fd)
	for link, to := range map[string]string{"link": "signed", "links": "link", "part": ".rec.pcapng.1.part"} {
		require.NoError(t, os.Symlink(to, filepath.Join(dir, link)))
	}
	for _, verb := range []string{"capture|-w|PATH|eth7", "capture|-r|" + in + "|-w|PATH", "recorder dump|-w|PATH|black"} {
		for _, name := range []string{"signed", "link", "links", "part", ".rec.pcapng.1.part"} {
			sh, b := mustShell(t)
			b.CaptureFiles(1)
			path := filepath.Join(dir, name)
			line := strings.Split(strings.Replace(verb, "PATH", path, 1), "|")
			r := sh.run("", line...)
			require.Equal(t, ExitInUse, r.exit, "%s %s: %s", verb, name, r.stderr)
			require.Contains(t, r.stderr, "is a file of a recorder's: file exists (EEXIST)\n")
			got, err := os.ReadFile(signed)
			require.NoError(t, err)
			require.Equal(t, recorders, got)
			st, err := os.Stat(empty)
			require.NoError(t, err)
			require.Zero(t, st.Size())
		}
	}
	own := filepath.Join(dir, "own")
	require.NoError(t, os.WriteFile(own, bytes.Repeat([]byte("older"), 1000), 0o640))
	require.NoError(t, os.Symlink("own", filepath.Join(dir, "to own")))
	r := reading(t).run("", "capture", "-r", in, "-w", filepath.Join(dir, "to own"))
	require.Equal(t, ExitOK, r.exit, r.stderr)
	got, err := os.ReadFile(own)
	require.NoError(t, err)
	require.Less(t, len(got), 1000, "anybody else's file is emptied, by a link as well")
}

// Packets that a full disk has cost are an error of the capture's, and a file that has not
// even its beginning is none.
func TestAFullDiskEndsACaptureWithAnError(t *testing.T) {
	for _, tt := range []struct {
		name, args string
		files      int
		want       []string
	}{
		{"one file", "", 1, nil},
		{"several", "-C 1", 3, []string{"cap_00001.pcapng=0", "cap_00002.pcapng=2"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			sh, b := mustShell(t)
			b.CaptureFiles(tt.files)
			b.FillDisk()
			path := filepath.Join(t.TempDir(), "cap.pcapng")
			r := sh.run("", append([]string{"capture", "-w", path}, append(strings.Fields(tt.args), "eth7")...)...)
			require.Equal(t, ExitSystem, r.exit, r.stderr)
			require.Contains(t, r.stderr, "3 packets received by filter\n", "it is summed up all the same")
			require.True(t, strings.HasSuffix(r.stderr, "\nsockd-ctl: capture to "+path+": 2 packets lost: no space left on device (ENOSPC)\n"), r.stderr)
			require.Equal(t, tt.want, mustList(t, filepath.Dir(path)))
		})
	}
}

// An interface that goes and comes was known to the daemon's log alone.
func TestACaptureSaysWhatBecomesOfItsInterface(t *testing.T) {
	const want = "eth7 is gone\neth7 is there\n"
	for _, to := range []string{"-", "FILE"} {
		for _, quiet := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, quiet %t", to, quiet), func(t *testing.T) {
				sh, b := mustShell(t)
				b.Flicker()
				args := []string{"capture", "-w", strings.Replace(to, "FILE", filepath.Join(t.TempDir(), "x"), 1)}
				if quiet {
					args = append(args, "-q")
				}
				r := sh.run("", append(args, "eth7")...)
				require.Equal(t, ExitOK, r.exit, r.stderr)
				require.Equal(t, !quiet, strings.Contains(r.stderr, want), r.stderr)
			})
		}
	}
}

// --duration 0 ran for ever, and --timeout 0 left no file: 0 is not to wait.
func TestACaptureThatDoesNotWait(t *testing.T) {
	zero, one, none := int64(0), int64(5), (*int64)(nil)
	for in, want := range map[*int64]time.Duration{&zero: 1, &one: 5, none: 0} {
		spec, err := captureIn{ShareIn: ShareIn{Source: "eth7", Duration: in}}.spec()
		require.NoError(t, err)
		require.Equal(t, want, spec.Duration)
	}
	for text, want := range map[string]*int64{"0": &zero, "none": nil} {
		f := newCaptureFlags(flag.NewFlagSet("capture", flag.ContinueOnError))
		d, err := model.ParseDuration(text)
		require.NoError(t, err)
		f.duration = &d
		in, err := f.parameters([]string{"eth7"})
		require.NoError(t, err)
		require.Equal(t, want, in.Duration)
	}
	sh, _ := mustShell(t)
	sh.env.Timeout = new(time.Duration)
	for _, to := range []string{"-", filepath.Join(t.TempDir(), "x")} {
		r := sh.run("", "capture", "-w", to, "eth7")
		require.Equal(t, ExitTimedOut, r.exit, r.stderr)
		require.Contains(t, r.stderr, "3 packets received by filter", "it has begun, and was completed")
	}
}

// Somebody has put a directory where a file is to be: it is said, the exit code tells,
// and the capture goes on.
func TestAFileThatCannotBeNamedIsSaidAndTheRestGoesOn(t *testing.T) {
	sh, b := mustShell(t)
	b.CaptureFiles(3)
	dir := t.TempDir()
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "cap_00002.pcapng", "x"), 0o700))
	r := sh.run("", "capture", "-w", filepath.Join(dir, "cap.pcapng"), "-C", "1", "eth7")
	require.Equal(t, ExitFailed, r.exit)
	require.Contains(t, r.stderr, "cap_00002.pcapng: file exists")
	require.Contains(t, r.stderr, "not all files could be completed, named or deleted")
	require.Equal(t, []string{".cap.pcapng.2.part=1", "cap_00001.pcapng=0", "cap_00002.pcapng/", "cap_00003.pcapng=2"}, mustList(t, dir))
}

// What an earlier capture has left is neither overwritten nor in the way.
func TestFilesThatAreLeftAreLeftAlone(t *testing.T) {
	sh, b := mustShell(t)
	b.CaptureFiles(2)
	dir := t.TempDir()
	left := filepath.Join(dir, ".cap.1.part")
	require.NoError(t, os.WriteFile(left, pcapng.AppendSection(nil, pcapng.Section{Comment: "left"}), 0o600))
	require.Equal(t, ExitOK, sh.run("", "capture", "-w", filepath.Join(dir, "cap"), "-C", "1", "eth7").exit)
	require.Equal(t, []string{".cap.1.part=left", "cap_00001=0", "cap_00002=1"}, mustList(t, dir))
}

func TestAFileThatCannotBeOpened(t *testing.T) {
	sh, _ := mustShell(t)
	r := sh.run("", "capture", "-w", filepath.Join(t.TempDir(), "no", "cap.pcapng"), "eth7")
	require.Equal(t, ExitSystem, r.exit)
	require.Contains(t, r.stderr, "no such file or directory")
}

func TestARefusedCaptureLeavesAnOlderFileAlone(t *testing.T) {
	sh, b := mustShell(t)
	b.Fail(syscall.EPERM)
	dir := t.TempDir()
	path := filepath.Join(dir, "cap.pcapng")
	require.NoError(t, os.WriteFile(path, []byte("old"), 0o600))
	require.NotEqual(t, ExitOK, sh.run("", "capture", "-w", path, "eth7").exit)
	got, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, "old", string(got))
	require.NotEqual(t, ExitOK, sh.run("", "capture", "-w", path, "-C", "1", "eth7").exit)
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, entries, 1)
}

func TestFileFlagsThatDoNotGoTogether(t *testing.T) {
	fifo := filepath.Join(t.TempDir(), "fifo")
	require.NoError(t, syscall.Mkfifo(fifo, 0o600))
	for args, good := range map[string]bool{
		"-C 1":                                   false,
		"--pcap":                                 false,
		"--comment x":                            false,
		"-C 1 -w -":                              false,
		"-C 1 -w " + fifo:                        false,
		"-w " + fifo:                             true,
		"--pcap -w -":                            true,
		"-W 3 -w x":                              false,
		"-W 3 -G 60 -w x":                        true,
		"-w x --pcap --comment y":                false,
		"-w x --comment y":                       true,
		"-w x -C 1 --max-bytes 2M":               false,
		"-w x -C 1 --max-bytes 3M":               true,
		"-w x --max-bytes 8k":                    false,
		"-w x --max-bytes 1M":                    true,
		"-w %D.pcapng -G 60":                     false,
		"-w %D.pcapng":                           true,
		"-w x -C 100":                            true,
		"-w x -C 1k":                             false,
		"-w x -C 4k":                             true,
		"-w x -C 0":                              false,
		"-w x -G 0.5":                            false,
		"-w x -G 1m":                             true,
		"-w x -G 0":                              false,
		"-w x -C 1 -G 60 -W 10 --max-bytes 100M": true,
		"-w x -C 99999999999999999999999999999 y": false,
	} {
		fs := flag.NewFlagSet("capture", flag.ContinueOnError)
		fs.SetOutput(io.Discard)
		f := newCaptureFlags(fs)
		err := fs.Parse(strings.Fields(args))
		if err == nil {
			err = f.check(&Env{})
			require.True(t, err == nil || ExitCode(err) == ExitUsage, args)
		}
		require.Equal(t, good, err == nil, "%s: %v", args, err)
	}
}

func TestFileParameters(t *testing.T) {
	now := time.Unix(1_790_000_000, 0)
	f := fileFlags{size: 5000, every: time.Hour, count: 3}
	in := f.parameters(captureIn{ShareIn: ShareIn{Source: "eth7"}}, now)
	cut, err := in.files()
	require.NoError(t, err)
	require.Equal(t, int64(5000), cut.Size)
	require.Equal(t, time.Hour, cut.Every)
	require.Equal(t, now.Unix(), cut.Zones[0].From)
	require.Zero(t, cut.Files, "it is a ring")

	f = fileFlags{every: time.Hour, count: 3}
	cut, _ = f.parameters(captureIn{}, now).files()
	require.EqualValues(t, 3, cut.Files)

	f = fileFlags{maxBytes: 8 << 20}
	cut, _ = f.parameters(captureIn{}, now).files()
	require.EqualValues(t, 1<<20, cut.Size)

	_, err = writeIn{Zones: make([]model.Zone, 65)}.files()
	require.Equal(t, ExitUsage, ExitCode(err))
}

// Who may hand a file over, and how many may wait.
func TestSupply(t *testing.T) {
	var s supplies
	fd := func() int {
		fd, err := syscall.Open("/dev/null", syscall.O_WRONLY|syscall.O_CLOEXEC, 0)
		require.NoError(t, err)
		return fd
	}
	w := s.add(7, 1000)
	other := fd()
	require.Equal(t, ExitNotFound, ExitCode(s.give(8, 1000, other)))
	require.ErrorIs(t, s.give(7, 1001, other), syscall.EPERM)
	first, second := fd(), fd()
	require.NoError(t, s.give(7, 1000, first))
	require.NoError(t, s.give(7, 1000, second))
	require.ErrorIs(t, s.give(7, 1000, other), syscall.EBUSY)
	got, err := w.next(t.Context())
	require.NoError(t, err)
	require.Equal(t, first, got)
	require.NoError(t, syscall.Close(got))
	s.remove(7)
	require.ErrorIs(t, syscall.Close(second), syscall.EBADF, "nobody had use for it")
	require.Equal(t, ExitNotFound, ExitCode(s.give(7, 1000, other)))
	require.NoError(t, syscall.Close(other))
}

// A pipe gets pcap from sockd-ctl itself, and the summary is the same.
func TestAPcapStreamIsMadeOfWhatTheDaemonSent(t *testing.T) {
	var file bytes.Buffer
	sent := recording(false)
	sent = pcapng.AppendInterface(sent, pcapng.Interface{Link: pcapng.Raw, Name: "tun0"})
	sent = pcapng.AppendPacket(sent, &pcapng.Packet{Interface: 1, Data: []byte("three"), Len: 5})
	sent = pcapng.AppendStats(sent, pcapng.Stats{Accepted: 3, Delivered: 3})
	_, stdout, stderr, err := mustReceive(t, sent, func(r *captureRun) { r.file, r.flags.file.pcap = &file, true })
	require.NoError(t, err)
	require.Empty(t, stdout.String())
	require.Contains(t, stderr.String(), "3 packets captured\n3 packets received by filter\n")
	require.Contains(t, stderr.String(), "1 packet of another link type left out")
	at := time.Date(2026, 5, 6, 7, 8, 9, 123456789, time.UTC).UnixNano()
	want := pcapng.AppendPcapHeader(nil, pcapng.Ethernet, 96)
	want = pcapng.AppendPcapPacket(want, &pcapng.Packet{Time: at, Data: []byte("one"), Len: 3})
	want = pcapng.AppendPcapPacket(want, &pcapng.Packet{Time: at, Data: []byte("two"), Len: 1500})
	require.Equal(t, want, file.Bytes())
}
