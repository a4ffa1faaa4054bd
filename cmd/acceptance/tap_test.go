package acceptance

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/sockd/sockd/ctl/tap"
	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/familytest"
	"github.com/sockd/sockd/families/packet"
)

// numbered sends frames of 60 bytes that carry the numbers from first on, out of an
// interface.
func numbered(t *testing.T, ns *familytest.NS, iface string, first, count uint32) {
	t.Helper()
	var out families.Socket
	var err error
	ns.Do(func() { out, err = packet.Family.Open(t.Context(), families.Spec{Type: families.Raw}) })
	require.NoError(t, err)
	defer out.Close()
	a, err := packet.Family.ParseAddr(families.Raw, iface+"/0x88b5")
	require.NoError(t, err)
	ns.Do(func() { err = out.Bind(a) })
	require.NoError(t, err)
	f := append([]byte{2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 1, 0x88, 0xb5}, make([]byte, 46)...)
	for i := range count {
		binary.BigEndian.PutUint32(f[14:], first+i)
		_, err := families.SendAll(t.Context(), out, &families.Msg{Data: f})
		require.NoError(t, err)
	}
}

func openTap(t *testing.T, o tap.Options) *tap.Tap {
	t.Helper()
	p, err := tap.Open(t.Context(), o)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, p.Close()) })
	return p
}

// rest counts the packets until the end, which must be of rising numbers.
func rest(t *testing.T, p *tap.Tap) (count int64) {
	t.Helper()
	next := uint32(0)
	for {
		got, err := p.Next(t.Context())
		if err == io.EOF {
			return count
		}
		require.NoError(t, err)
		if seq := binary.BigEndian.Uint32(got.Data[14:]); seq < next {
			t.Fatalf("packet %d came after %d", seq, next-1)
		} else {
			next = seq + 1
		}
		count++
	}
}

func TestATapSeesEveryPacketAndMakesNoSystemCallForEach(t *testing.T) {
	a, b := hosts(t)
	s := start(t, a)
	const sent = 200_000
	p := openTap(t, tap.Options{Socket: s.socket, Source: "va", Filter: "ether proto 0x88b5", Count: sent, Bytes: 64 << 20})
	var sending sync.WaitGroup
	defer sending.Wait()
	sending.Go(func() { numbered(t, b, "vb", 0, sent) })
	require.EqualValues(t, sent, rest(t, p))
	stats := p.Stats()
	require.Zero(t, stats.Dropped)
	require.Less(t, stats.Sleeps, int64(sent/20), "Next makes system calls only to sleep")
	t.Logf("%d packets, %d sleeps", stats.Packets, stats.Sleeps)
}

// A program that does not read for a while loses what found no room, and all is
// accounted for: by the packets, by the statistics, and by what ls shows.
func TestATapThatIsSlowIsToldWhatItLost(t *testing.T) {
	a, b := hosts(t)
	s := start(t, a)
	p := openTap(t, tap.Options{Socket: s.socket, Source: "va", Filter: "ether proto 0x88b5", Bytes: 1 << 20})
	const sent = 30_000
	numbered(t, b, "vb", 0, sent)
	s.eventually("the daemon has all", func() bool {
		return strings.Contains(s.run("ls", "captures", "--json"), fmt.Sprintf(`"received":%d`, sent))
	})
	require.NoError(t, p.Stop())
	read := rest(t, p)
	stats := p.Stats()
	require.Less(t, read, int64(sent))
	require.EqualValues(t, sent, read+stats.Dropped)
	require.Equal(t, stats.Dropped, stats.DroppedSubscriber)
	out := s.run("ls", "captures", "--json")
	require.Contains(t, out, fmt.Sprintf(`"dropped_subscriber":%d`, stats.Dropped))
	require.Contains(t, out, fmt.Sprintf(`"delivered":%d`, read))
}

func TestATapIsACaptureLikeOthers(t *testing.T) {
	a, b := hosts(t)
	s := start(t, a)
	p := openTap(t, tap.Options{Socket: s.socket, Source: "va", Filter: "ether proto 0x88b5 and less 10"})
	id := strconv.FormatInt(p.ID(), 10)
	require.Contains(t, s.run("ls", "captures"), "ether proto 0x88b5 and less 10")
	numbered(t, b, "vb", 0, 5)
	s.run("set", id, "ether proto 0x88b5")
	numbered(t, b, "vb", 5, 5)
	got, err := p.Next(t.Context())
	require.NoError(t, err)
	require.EqualValues(t, 5, binary.BigEndian.Uint32(got.Data[14:]), "the first after the change")
	require.Equal(t, "va", got.Interface.Name)
	s.eventually("the daemon has all", func() bool { return strings.Contains(s.run("ls", "captures", "--json"), `"received":5`) })
	s.run("close", id)
	require.EqualValues(t, 4, rest(t, p), "what was there comes before the end")
	require.NoError(t, p.Close())
	s.eventually("it is gone", func() bool { return !strings.Contains(s.run("ls", "captures"), "0x88b5") })
}

// TestTapProcess is the program that the next test kills, and nothing by itself.
func TestTapProcess(t *testing.T) {
	socket := os.Getenv("SOCKD_TEST_TAP")
	if socket == "" {
		return
	}
	p := openTap(t, tap.Options{Socket: socket, Source: "va", Filter: "ether proto 0x88b5"})
	for {
		got, err := p.Next(t.Context())
		require.NoError(t, err)
		fmt.Println("packet", binary.BigEndian.Uint32(got.Data[14:]))
	}
}

func TestAProgramThatIsKilledLeavesNothingBehind(t *testing.T) {
	a, b := hosts(t)
	s := start(t, a)
	shared := func() int {
		maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", s.cmd.Process.Pid))
		require.NoError(t, err)
		return strings.Count(string(maps), "memfd:sockd-capture")
	}
	s.run("ls", "captures")
	before := s.descriptors()
	for range 3 {
		program := exec.Command(os.Args[0], "-test.run=^TestTapProcess$")
		program.Env = append(os.Environ(), "SOCKD_TEST_TAP="+s.socket)
		out := &lockedBuffer{}
		program.Stdout = out
		require.NoError(t, program.Start())
		s.eventually("it captures", func() bool { return strings.Contains(s.run("ls", "captures"), "0x88b5") })
		numbered(t, b, "vb", 0, 10)
		eventually(t, out.String, func() bool { return strings.Contains(out.String(), "packet 9") })
		require.Equal(t, 2, shared())
		require.NoError(t, program.Process.Kill())
		require.Error(t, program.Wait())
		s.eventually("the memory and the descriptors are given back", func() bool { return shared() == 0 && s.descriptors() <= before })
		require.NotContains(t, s.run("ls", "captures"), "0x88b5")
	}
}
