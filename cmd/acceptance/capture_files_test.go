package acceptance

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/sockd/sockd/families/familytest"
)

// hurry sends count UDP datagrams from b to a with numbers in front, over a second or so
// for 1000, so that clocks have a part in it.
func hurry(t *testing.T, b *familytest.NS, count int) {
	t.Helper()
	var c net.PacketConn
	var err error
	b.Do(func() { c, err = net.ListenPacket("udp4", "10.9.0.2:0") })
	require.NoError(t, err)
	defer c.Close()
	for i := range count {
		_, err := c.WriteTo([]byte(pad8(i)+strings.Repeat("0", 1000)), &net.UDPAddr{IP: net.IPv4(10, 9, 0, 1), Port: 9})
		require.NoError(t, err)
		time.Sleep(time.Millisecond)
	}
}

// payloads are the numbers in a file, in order.
func payloads(t *testing.T, file string) (numbers []string) {
	t.Helper()
	out, err := exec.Command("tshark", "-n", "-r", file, "-Y", "udp.port == 9 && !icmp", "-T", "fields", "-e", "udp.payload").Output()
	require.NoError(t, err, "%s", file)
	for line := range strings.Lines(string(out)) {
		digits := ""
		for i := 0; i < 16; i += 2 { // in hexadecimal
			digits += line[i+1 : i+2]
		}
		numbers = append(numbers, digits)
	}
	return numbers
}

// running waits until a capture is there.
func running(s *sockd) {
	s.eventually("the capture is listed", func() bool { return strings.Contains(s.run("ls", "captures", "--json"), `"va"`) })
}

// received waits until the one capture has seen so many packets.
func received(s *sockd, count int) {
	s.eventually("all packets are received", func() bool {
		return strings.Contains(s.run("ls", "captures", "--json"), `"received":`+strconv.Itoa(count)+",")
	})
}

// Size, time, number and bytes in all, under traffic: what is there at the end is the
// latest, without a gap, and within every bound.
func TestFilesKeepAllFourBoundsAtOnce(t *testing.T) {
	a, b := hosts(t)
	s := start(t, a)
	dir := t.TempDir()
	capture := s.ctl("capture", "va", "udp", "port", "9", "-w", filepath.Join(dir, "cap.pcapng"), "-C", "50k", "-G", "1", "-W", "12", "--max-bytes", "500k")
	summary := &lockedBuffer{}
	capture.Stderr = summary
	require.NoError(t, capture.Start())
	running(s)
	const count = 2000
	stop := make(chan struct{})
	worst := make(chan int64, 1)
	go func() { worst <- largest(dir, stop) }()
	hurry(t, b, count)
	received(s, count)
	require.NoError(t, capture.Process.Signal(os.Interrupt))
	require.NoError(t, capture.Wait(), summary.String())
	close(stop)
	require.LessOrEqual(t, <-worst, int64(500<<10), "all files together, at any moment")
	require.Contains(t, summary.String(), "2000 packets captured\n2000 packets received by filter\n0 packets dropped by kernel\n")

	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.LessOrEqual(t, len(entries), 12)
	require.Greater(t, len(entries), 5)
	byFirst := map[string][]string{}
	for _, e := range entries {
		info, err := e.Info()
		require.NoError(t, err)
		require.LessOrEqual(t, info.Size(), int64(50<<10))
		require.Regexp(t, `^cap_\d\d\.pcapng$`, e.Name())
		numbers := payloads(t, filepath.Join(dir, e.Name()))
		byFirst[numbers[0]] = numbers
	}
	seen := 0 // from the last one backwards
	for i := count - 1; len(byFirst) > 0; i-- {
		require.GreaterOrEqual(t, i, 0, "the files are the latest, and no packet is missing between them")
		first := pad8(i)
		if numbers, ok := byFirst[first]; ok {
			for j, n := range numbers {
				require.Equal(t, pad8(i+j), n)
			}
			seen += len(numbers)
			require.Equal(t, count-i, seen, "a gap after file of %s", first)
			delete(byFirst, first)
		}
	}
}

func pad8(n int) string { return fmt.Sprintf("%08d", n) }

// largest watches what the files of a directory are together.
func largest(dir string, stop <-chan struct{}) (most int64) {
	for {
		total := int64(0)
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			if info, err := e.Info(); err == nil { // else it was renamed meanwhile
				total += info.Size()
			}
		}
		most = max(most, total)
		select {
		case <-stop:
			return most
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// A client that is killed: the daemon completes the file that it is writing.
func TestAKilledClientLeavesAWholeFile(t *testing.T) {
	a, b := hosts(t)
	s := start(t, a)
	for name, tt := range map[string]struct {
		args []string
		file string
	}{
		"one file": {nil, "cap.pcapng"},
		"several":  {[]string{"-C", "1"}, ".cap.pcapng.1.part"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			capture := s.ctl(append([]string{"capture", "va", "udp", "port", "9", "-w", filepath.Join(dir, "cap.pcapng")}, tt.args...)...)
			require.NoError(t, capture.Start())
			running(s)
			hurry(t, b, 300)
			received(s, 300)
			require.NoError(t, capture.Process.Kill())
			require.Error(t, capture.Wait())
			s.eventually("the capture has ended", func() bool { return strings.TrimSpace(s.run("ls", "captures", "--json")) == "[]" })
			file := filepath.Join(dir, tt.file)
			require.Len(t, payloads(t, file), 300)
			out := must(t, exec.Command("capinfos", "-I", file))
			require.Contains(t, out, "Number of stat entries = 1", "it has its end")
		})
	}
}

// A client that stands still when files are due: what it loses by that is counted, and
// it goes on where it stood.
func TestAClientThatStandsStillLosesWhatIsCounted(t *testing.T) {
	a, b := hosts(t)
	s := start(t, a)
	dir := t.TempDir()
	capture := s.ctl("capture", "va", "udp", "port", "9", "-w", filepath.Join(dir, "cap.pcapng"), "-C", "20k", "--queue", "64k")
	summary := &lockedBuffer{}
	capture.Stderr = summary
	require.NoError(t, capture.Start())
	running(s)
	hurry(t, b, 10)
	received(s, 10)
	require.NoError(t, capture.Process.Signal(syscall.SIGSTOP))
	hurry(t, b, 1000)
	received(s, 1010)
	s.eventually("the loss is counted", func() bool {
		return !strings.Contains(s.run("ls", "captures", "--json"), `"dropped_subscriber":0`)
	})
	require.NoError(t, capture.Process.Signal(syscall.SIGCONT))
	s.eventually("it goes on", func() bool { files, _ := filepath.Glob(filepath.Join(dir, "cap_*")); return len(files) > 2 })
	hurry(t, b, 10)
	received(s, 1020)
	require.NoError(t, capture.Process.Signal(os.Interrupt))
	require.NoError(t, capture.Wait(), summary.String())
	files, err := filepath.Glob(filepath.Join(dir, "cap_*"))
	require.NoError(t, err)
	there := 0
	for _, f := range files {
		there += len(payloads(t, f))
	}
	require.Contains(t, summary.String(), strconv.Itoa(there)+" packets captured\n1020 packets received by filter\n0 packets dropped by kernel\n"+strconv.Itoa(1020-there)+" packets dropped because")
	parts, err := filepath.Glob(filepath.Join(dir, ".*"))
	require.NoError(t, err)
	require.Empty(t, parts, "nothing is left")
}
