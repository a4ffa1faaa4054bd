package ctl

import (
	"bytes"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sockd/sockd/ctl/ctltest"
	"github.com/sockd/sockd/families/model"
	"github.com/sockd/sockd/families/packet/files"
	"github.com/sockd/sockd/families/packet/pcapng"
	"github.com/stretchr/testify/require"
)

func TestWhatIsNameSourceAndFilter(t *testing.T) {
	for line, want := range map[string][3]string{
		"eth0":                             {"", "eth0", ""},
		"any":                              {"", "any", ""},
		"black eth0":                       {"black", "eth0", ""},
		"black not-there-yet":              {"black", "not-there-yet", ""},
		"black any tcp port 80":            {"black", "any", "tcp port 80"},
		"black eth0,veth* udp":             {"black", "eth0,veth*", "udp"},
		"black eth[01]":                    {"black", "eth[01]", ""},
		"black *":                          {"black", "*", ""},
		"eth0 tcp port 80":                 {"", "eth0", "tcp port 80"},
		"eth0 tcp[13]&2!=0":                {"", "eth0", "tcp[13]&2!=0"},
		"eth0 (udp or tcp)":                {"", "eth0", "(udp or tcp)"},
		"eth0 !arp":                        {"", "eth0", "!arp"},
		"eth0 10.0.0.1":                    {"", "eth0", "10.0.0.1"},
		"veth* not arp":                    {"", "veth*", "not arp"},
		"tcp eth0":                         {"tcp", "eth0", ""},
		"-i eth0 -i eth1 black tcp":        {"black", "eth0,eth1", "tcp"},
		"-i ip udp port 53":                {"", "ip", "udp port 53"},
		"-i eth0":                          {"", "eth0", ""},
		"black eth0 host 10.0.0.1 or vlan": {"black", "eth0", "host 10.0.0.1 or vlan"},
		"eth0 fragments and udp":           {"", "eth0", "fragments and udp"},
		"eth0 vxlan 7":                     {"", "eth0", "vxlan 7"},
		"eth0 uid 0":                       {"", "eth0", "uid 0"},
		"eth0 comm nginx":                  {"", "eth0", "comm nginx"},
		"eth0 carp":                        {"", "eth0", "carp"},
		"eth0 ip6[0]=1":                    {"", "eth0", "ip6[0]=1"},
		"eth0 len>5":                       {"", "eth0", "len>5"},
		"black vlan*":                      {"black", "vlan*", ""},
		"black ppp[0-9] udp":               {"black", "ppp[0-9]", "udp"},
		"black 6to4":                       {"black", "6to4", ""},
		"-i eth0 unit ssh.service":         {"", "eth0", "unit ssh.service"},
	} {
		fs := flag.NewFlagSet("recorder add", flag.ContinueOnError)
		f := newRecorderFlags(fs)
		require.NoError(t, fs.Parse(append([]string{"--last", "5s"}, strings.Fields(line)...)))
		in, err := f.parameters(fs.Args())
		require.NoError(t, err, line)
		require.Equal(t, want, [3]string{orZero(in.Name), in.Source, orZero(in.Filter)}, line)
	}
}

func TestRecorderAddAsksForWhatItsFlagsSay(t *testing.T) {
	sh, b := mustShell(t)
	dir := t.TempDir()
	require.Equal(t, "black", sh.must("recorder add", "--last", "1m30s", "--bytes", "64M", "-s", "96", "-Q", "in", "-p", "--trigger", "icmp", "--on-drop", "5", "--after", "2", "--dump-to", dir+"/hit-%H.pcapng", "--permanent", "black", "eth0", "udp", "port", "53"))
	spec := b.Recorded("black")
	require.GreaterOrEqual(t, spec.Trigger.To.Dir, 0)
	spec.Trigger.To.Dir = 0
	require.Equal(t, model.RecorderSpec{
		Name: "black", Source: "eth0", Filter: "udp port 53", Direction: "in", Snaplen: 96, NoPromisc: true, Permanent: true,
		Last: 90 * time.Second, Bytes: 64 << 20,
		Trigger: model.TriggerSpec{Filter: "icmp", OnDrop: 5, After: 2 * time.Second, To: model.Place{Path: dir + "/hit-%H.pcapng"}},
		Owner:   spec.Owner,
	}, spec)

	t.Chdir(dir)
	name := sh.must("recorder add", "-w", "here.pcapng", "-C", "2", "-G", "60", "-W", "10", "--max-bytes", "1G", "any")
	disk := b.Recorded(name).Disk
	require.Equal(t, dir+"/here.pcapng", disk.To.Path)
	require.Equal(t, "here.pcapng", disk.To.Name())
	require.Equal(t, []any{int64(2_000_000), time.Minute, 10, int64(1 << 30)}, []any{disk.Size, disk.Every, disk.Count, disk.MaxBytes})
	require.Equal(t, model.NoFD, b.Recorded(name).Trigger.To.Dir)
}

func TestRecorderAddRefusesWhatMakesNoSense(t *testing.T) {
	sh, _ := mustShell(t)
	sh.must("recorder add", "--last", "5s", "black", "eth0")
	for line, exit := range map[string]int{
		"":                                  ExitUsage,
		"eth0":                              ExitUsage,
		"--last 5s -w x.pcapng eth0":        ExitUsage,
		"--last 5s -C 5 eth0":               ExitUsage,
		"--last 5s --trigger udp eth0":      ExitUsage,
		"--last 5s --dump-to x.pcapng eth0": ExitUsage,
		"--last 5s --after 5s eth0":         ExitUsage,
		"-w x.pcapng --on-drop 5 --dump-to y.pcapng eth0":     ExitUsage,
		"--last 5s veth* eth0":                                ExitUsage,
		"--last 5s black eth1":                                ExitInUse,
		"--last 5s --on-drop 5 --dump-to /nonexistent/x eth0": ExitSystem,
	} {
		r := sh.run("", append([]string{"recorder add"}, strings.Fields(line)...)...)
		require.Equal(t, exit, r.exit, "%s: %s", line, r.stderr)
		require.Empty(t, r.stdout)
	}
	for _, line := range []string{"--last 0", "--last none", "--last soon", "--bytes 0", "--bytes x", "-w -", "-C 0", "-G 0", "-W 0", "-s 262145", "-Q up", "--on-drop 0", "--permanent=x"} {
		fs := flag.NewFlagSet("recorder add", flag.ContinueOnError)
		fs.SetOutput(io.Discard)
		newRecorderFlags(fs)
		require.Error(t, fs.Parse(strings.Fields(line)), line)
	}
}

func TestARecorderIsSeenChangedAndRemoved(t *testing.T) {
	sh, _ := mustShell(t)
	sh.must("recorder add", "--last", "5s", "black", "eth0", "udp")
	require.Contains(t, sh.must("ls", "recorders"), "black")
	require.Contains(t, sh.must("recorder ls", "source=eth0"), "black")
	require.Equal(t, "[]\n", sh.run("", "--json", "recorder ls", "source=eth1").stdout)
	require.Contains(t, sh.must("recorder show", "black"), "recording")
	require.Contains(t, sh.must("show", "1"), "held_packets")
	require.Contains(t, sh.must("ls", "all"), "recorder")
	require.Equal(t, ExitNotFound, sh.run("", "recorder show", "nobody").exit)

	sh.must("recorder set", "--last", "1m", "--bytes", "2G", "black", "tcp", "port", "80")
	require.Contains(t, sh.run("", "--json", "show", "black").stdout, `"filter":"tcp port 80"`)
	require.Contains(t, sh.run("", "--json", "show", "black").stdout, `"limit_bytes":2147483648,"last":60000000000`)
	sh.must("set", "--last", "none", "--bytes", "default", "black", "")
	require.Contains(t, sh.run("", "--json", "show", "black").stdout, `"filter":""`)
	require.Contains(t, sh.run("", "--json", "show", "black").stdout, `"limit_bytes":0,"last":0`)
	require.Equal(t, ExitUsage, sh.run("", "recorder set", "black").exit)
	require.Equal(t, ExitNotFound, sh.run("", "recorder set", "--last", "5", "nobody").exit)
	id := sh.must("open", "inet", "stream")
	require.Equal(t, ExitUsage, sh.run("", "set", "--last", "5", id).exit, "a socket is no recorder")

	refs, err := sh.env.Refs(t.Context(), "recorder")
	require.NoError(t, err)
	require.Equal(t, []Ref{{"black", "black recording eth0 -"}}, refs)
	r := sh.run("", "recorder rm", "nobody", "black")
	require.Equal(t, ExitNotFound, r.exit)
	require.Equal(t, "[]\n", sh.run("", "--json", "recorder ls").stdout, "the other one was removed")
}

func TestADumpGoesToAFileOrToStdout(t *testing.T) {
	sh, _ := mustShell(t)
	sh.must("recorder add", "--last", "5s", "black", "eth0")
	dir := t.TempDir()
	file := filepath.Join(dir, "x.pcapng")

	r := sh.run("", "recorder dump", "-w", file, "black")
	require.Zero(t, r.exit, r.stderr)
	require.Contains(t, r.stderr, "1 packet dumped")
	require.Equal(t, 1, mustCount(t, mustRead(t, file)))

	r = sh.run("", "recorder dump", "-w", file, "--last", "1000d", "black", "udp")
	require.Zero(t, r.exit, r.stderr)
	require.Contains(t, r.stderr, "0 packets dumped")
	require.Contains(t, r.stderr, "oldest packet is")
	require.Zero(t, mustCount(t, mustRead(t, file)), "a file all the same, and shorter than the one before")

	r = sh.run("", "--json", "recorder dump", "-w", file, "black")
	require.Contains(t, r.stdout, `"packets":1,`)

	r = sh.run("", "recorder dump", "-w", "-", "black")
	require.Zero(t, r.exit, r.stderr)
	require.Equal(t, 1, mustCount(t, []byte(r.stdout)))
	require.Contains(t, r.stderr, "1 packet dumped")

	require.Zero(t, sh.run("", "recorder dump", "-w", "/dev/null", "black").exit, "what is no file is written by this program")
}

// A dump that failed half way left half a file where another one was.
func TestADumpTakesThePlaceOfAFileWhenItIsComplete(t *testing.T) {
	sh, b := mustShell(t)
	sh.must("recorder add", "--last", "5s", "black", "eth0")
	dir := t.TempDir()
	old, link, fresh := filepath.Join(dir, "old"), filepath.Join(dir, "link"), filepath.Join(dir, "fresh")
	require.NoError(t, os.WriteFile(old, []byte("precious"), 0o600))
	require.NoError(t, os.Chmod(old, 0o604))
	require.NoError(t, os.Chown(old, 1234, 5678))
	require.NoError(t, os.Symlink("old", link))
	names := func(want ...string) {
		t.Helper()
		entries, err := os.ReadDir(dir)
		require.NoError(t, err)
		got := []string{}
		for _, e := range entries {
			got = append(got, e.Name())
		}
		require.Equal(t, want, got, "nothing else is left")
	}
	b.EndDumps(syscall.EIO)
	for _, file := range []string{old, link, fresh} {
		require.Equal(t, ExitSystem, sh.run("", "recorder dump", "-w", file, "black").exit)
		require.Equal(t, "precious", string(mustRead(t, old)))
	}
	names("link", "old")
	b.EndDumps(nil)
	for _, file := range []string{link, fresh} {
		r := sh.run("", "recorder dump", "-w", file, "black")
		require.Zero(t, r.exit, r.stderr)
		require.Equal(t, 1, mustCount(t, mustRead(t, file)))
	}
	names("fresh", "link", "old")
	require.Equal(t, 1, mustCount(t, mustRead(t, old)))
	var st syscall.Stat_t
	require.NoError(t, syscall.Stat(old, &st))
	require.Equal(t, []uint32{0o604, 1234, 5678}, []uint32{st.Mode & 0o777, st.Uid, st.Gid})
	require.NoError(t, os.WriteFile(old, pcapng.AppendSection(nil, pcapng.Section{Comment: files.Signature("disk")}), 0o600))
	require.Equal(t, ExitInUse, sh.run("", "recorder dump", "-w", link, "black").exit, "a recorder's file")
}

// What takes a value back of one setting was refused of the other.
func TestDefaultTakesARecordersBoundsBack(t *testing.T) {
	sh, _ := mustShell(t)
	sh.must("recorder add", "--last", "5s", "--bytes", "2M", "black", "eth0")
	for _, args := range [][]string{{"--last", "default"}, {"--last", "5s"}, {"--last", "none"}, {"--bytes", "default"}} {
		r := sh.run("", append(append([]string{"recorder set"}, args...), "black")...)
		require.Zero(t, r.exit, r.stderr)
	}
}

func TestADumpThatIsRefusedLeavesFilesAlone(t *testing.T) {
	sh, _ := mustShell(t)
	dir := t.TempDir()
	old, fresh := filepath.Join(dir, "old"), filepath.Join(dir, "fresh")
	require.NoError(t, os.WriteFile(old, []byte("precious"), 0o600))
	for _, file := range []string{old, fresh, "-"} {
		r := sh.run("", "recorder dump", "-w", file, "nobody")
		require.Equal(t, ExitNotFound, r.exit)
		require.Empty(t, r.stdout)
	}
	require.Equal(t, "precious", string(mustRead(t, old)))
	require.NoFileExists(t, fresh)
	require.Equal(t, ExitUsage, sh.run("", "recorder dump", "nobody").exit, "where to?")
	require.Equal(t, ExitUsage, sh.run("", "--json", "recorder dump", "-w", "-", "nobody").exit)
	require.Equal(t, ExitSystem, sh.run("", "recorder dump", "-w", "/nonexistent/x", "nobody").exit)
}

func TestDescriptorsOfARefusedRecorderAreClosed(t *testing.T) {
	sh, b := mustShell(t)
	sh.must("ls") // connections take descriptors of their own at first
	b.Fail(errors.New("no"))
	before := openFiles(t)
	require.Equal(t, ExitFailed, sh.run("", "recorder add", "-w", t.TempDir()+"/x", "eth0").exit)
	eventually(t, "nothing is left open", func() bool { return openFiles(t) <= before })
}

func openFiles(tb testing.TB) int {
	tb.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	require.NoError(tb, err)
	return len(list)
}

func TestWhatADumpIsWrittenToMustBeAFile(t *testing.T) {
	b := ctltest.New(t)
	path, _ := mustServe(t, b)
	sh := newShell(t, path)
	sh.must("recorder add", "--last", "5s", "black", "eth0")
	c, err := sh.env.Dial(t.Context())
	require.NoError(t, err)
	defer c.Close()
	var p [2]int
	require.NoError(t, syscall.Pipe2(p[:], syscall.O_CLOEXEC))
	defer closeAll(p[:])
	err = sh.env.call(t.Context(), recorderDumpMethod, recorderDumpIn{Ref: "black"}, nil, p[1])
	require.ErrorIs(t, err, syscall.EINVAL)
}

func mustRead(tb testing.TB, file string) []byte {
	tb.Helper()
	text, err := os.ReadFile(file)
	require.NoError(tb, err)
	return text
}

// mustCount counts the packets of a file.
func mustCount(tb testing.TB, file []byte) (n int) {
	tb.Helper()
	r := pcapng.NewReader(bytes.NewReader(file))
	var b pcapng.Block
	for {
		err := r.Next(&b)
		if errors.Is(err, io.EOF) {
			return n
		}
		require.NoError(tb, err)
		if b.Type == pcapng.PacketBlock {
			n++
		}
	}
}
