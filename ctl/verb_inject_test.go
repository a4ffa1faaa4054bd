package ctl

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/sockd/sockd/families/familytest"
	"github.com/sockd/sockd/families/model"
	"github.com/sockd/sockd/families/packet/inject/wire"
	"github.com/sockd/sockd/families/packet/pcapng"
	"github.com/stretchr/testify/require"
)

// mustRecords are the frames in package wire's records.
func mustRecords(t *testing.T, b []byte) (out []wire.Record) {
	t.Helper()
	for len(b) > 0 {
		r, size, err := wire.Next(b)
		require.NoError(t, err)
		require.Positive(t, size)
		out, b = append(out, r), b[size:]
	}
	return out
}

// trace is a file of frames of an Ethernet interface, a second apart, but for strange,
// which came through another.
func trace(strange ...string) []byte {
	b := pcapng.AppendSection(nil, pcapng.Section{})
	b = pcapng.AppendInterface(b, pcapng.Interface{Link: pcapng.Ethernet, Name: "eth7"})
	b = pcapng.AppendInterface(b, pcapng.Interface{Link: pcapng.LinuxSLL2, Name: "tun7"})
	at := time.Date(2026, 5, 6, 7, 8, 9, 123456789, time.UTC).UnixNano()
	for i, data := range []string{"one", "two", "three"} {
		b = pcapng.AppendPacket(b, &pcapng.Packet{Time: at + int64(i)*1e9, Data: []byte(data), Len: len(data)})
	}
	for _, data := range strange {
		b = pcapng.AppendPacket(b, &pcapng.Packet{Interface: 1, Time: at, Data: []byte(data), Len: len(data)})
	}
	return b
}

// oldTrace is the same as a pcap file of microseconds, in the byte order that this host
// has not.
func oldTrace() []byte {
	b := []byte{0xa1, 0xb2, 0xc3, 0xd4, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 1}
	for i, data := range []string{"one", "two", "three"} {
		n := byte(len(data))
		b = append(b, 0x66, 0, 0, byte(i), 0, 0, 0, 7, 0, 0, 0, n, 0, 0, 0, n)
		b = append(b, data...)
	}
	return b
}

func traceFile(t *testing.T, content []byte) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "trace.pcapng")
	require.NoError(t, os.WriteFile(name, content, 0o600))
	return name
}

func TestInjectSendsWhatItIsGiven(t *testing.T) {
	file := traceFile(t, trace())
	three := []wire.Record{{Frame: []byte("one")}, {At: time.Second, Frame: []byte("two")}, {At: 2 * time.Second, Frame: []byte("three")}}
	once := model.InjectSpec{Interface: "eth0", Loop: 1, PPS: model.OriginalTiming}
	ofFile := once
	ofFile.Link = int(pcapng.Ethernet)
	for name, tt := range map[string]struct {
		stdin string
		line  []string
		spec  model.InjectSpec
		want  []wire.Record
	}{
		"DATA":                {"", []string{"inject", "eth0", "frame"}, once, []wire.Record{{Frame: []byte("frame")}}},
		"DATA like a flag":    {"", []string{"inject", "--", "eth0", "-r"}, once, []wire.Record{{Frame: []byte("-r")}}},
		"hex digits":          {"", []string{"inject", "--hex", "eth0", "68 65\n6C6c 6f"}, once, []wire.Record{{Frame: []byte("hello")}}},
		"stdin":               {"one\nframe\x00", []string{"inject", "eth0"}, once, []wire.Record{{Frame: []byte("one\nframe\x00")}}},
		"hex digits in stdin": {"68\n65 6c 6c 6f\n", []string{"inject", "--hex", "eth0"}, once, []wire.Record{{Frame: []byte("hello")}}},
		"a file":              {"", []string{"inject", "-r", file, "eth0"}, ofFile, three},
		"a file in stdin":     {string(trace()), []string{"inject", "-r", "-", "eth0"}, ofFile, three},
		"an old file":         {"", []string{"inject", "-r", traceFile(t, oldTrace()), "eth0"}, ofFile, three},
		"an empty file":       {string(pcapng.AppendSection(nil, pcapng.Section{})), []string{"inject", "-r", "-", "eth0"}, once, nil},
		"with all flags": {"", []string{"inject", "-r", file, "-c", "7", "--loop", "0", "--pps", "20", "eth0"},
			model.InjectSpec{Interface: "eth0", Link: 1, Count: 7, PPS: 20}, three},
		"as fast as can be": {"", []string{"inject", "-r", file, "--loop", "2", "--pps", "max", "eth0"}, model.InjectSpec{Interface: "eth0", Link: 1, Loop: 2}, three},
	} {
		t.Run(name, func(t *testing.T) {
			sh, b := mustShell(t)
			r := sh.run(tt.stdin, tt.line...)
			require.Zero(t, r.exit, r.stderr)
			require.Empty(t, r.stdout)
			require.Contains(t, r.stderr, " sent on eth0 in 2s")
			spec, records := b.Injected()
			require.Equal(t, tt.spec, spec)
			require.Equal(t, tt.want, mustRecords(t, records))
		})
	}
}

func TestInjectMovesALargeFile(t *testing.T) {
	file := pcapng.AppendInterface(pcapng.AppendSection(nil, pcapng.Section{}), pcapng.Interface{Link: pcapng.Ethernet})
	for i := range 20000 {
		data := bytes.Repeat([]byte{byte(i)}, 14+i%400)
		file = pcapng.AppendPacket(file, &pcapng.Packet{Data: data, Len: len(data), Time: int64(i)})
	}
	sh, b := mustShell(t)
	r := sh.run("", "inject", "-r", traceFile(t, file), "eth0")
	require.Zero(t, r.exit, r.stderr)
	_, records := b.Injected()
	got := mustRecords(t, records)
	require.Len(t, got, 20000)
	for i, g := range got {
		require.EqualValues(t, i, g.At)
		require.True(t, bytes.Equal(bytes.Repeat([]byte{byte(i)}, 14+i%400), g.Frame), "frame %d", i)
	}
}

func TestInjectSaysWhatWasSent(t *testing.T) {
	sh, _ := mustShell(t)
	r := sh.run("", "inject", "-r", traceFile(t, trace()), "eth0")
	require.Equal(t, "3 frames (11 bytes) sent on eth0 in 2s, 2 a second\n", r.stderr)
	r = sh.run("", "inject", "eth0", "frame")
	require.Equal(t, "1 frame (5 bytes) sent on eth0 in 2s\n", r.stderr)
	sh.env.StderrTerminal = true
	r = sh.run("", "inject", "eth0", "frame")
	require.Equal(t, "\r1 frame (5 bytes) sent on eth0 in 2s\x1b[K\r\x1b[K1 frame (5 bytes) sent on eth0 in 2s\n", r.stderr)
	r = sh.run("", "--json", "inject", "eth0", "frame")
	require.JSONEq(t, `{"id":4,"interface":"eth0","owner":{"uid":`+uidText()+`},"sent":1,"bytes":5,"failed":{},"retries":0,"passes":1,"duration":2000000000}`, r.stdout)
}

func uidText() string {
	return fmt.Sprintf(`%d,"gid":%d`, os.Getuid(), os.Getgid())
}

func TestInjectTellsOfPacketsThatAreNotWhatTheyWere(t *testing.T) {
	sh, b := mustShell(t)
	r := sh.run("", "inject", "-r", traceFile(t, trace("cooked", "again")), "eth0")
	require.Equal(t, ExitUsage, r.exit)
	require.Equal(t, "3 frames (11 bytes) sent on eth0 in 2s, 2 a second, 2 not sent\nsockd-ctl: inject eth0: 2 packets were of another link-type than EN10MB and not sent: does not parse\n", r.stderr)
	_, records := b.Injected()
	require.Len(t, mustRecords(t, records), 3)

	cut := pcapng.AppendPacket(trace(), &pcapng.Packet{Data: []byte("four"), Len: 1500})
	r = sh.run("", "inject", "-r", traceFile(t, cut), "eth0")
	require.Zero(t, r.exit)
	require.Equal(t, "1 packet was cut when they were captured, and sent as short as they are\n4 frames (15 bytes) sent on eth0 in 2s, 2 a second\n", r.stderr)
}

// What stood in a damaged file before the damage is sent once, and not again and again.
func TestInjectOfADamagedFile(t *testing.T) {
	file := traceFile(t, trace()[:len(trace())-5])
	sh, b := mustShell(t)
	r := sh.run("", "inject", "-r", file, "eth0")
	require.Equal(t, ExitFailed, r.exit)
	require.Contains(t, r.stderr, "2 frames ")
	require.Contains(t, r.stderr, "sockd-ctl: inject: "+file+" ends within a block")
	_, records := b.Injected()
	require.Len(t, mustRecords(t, records), 2)

	sh, b = mustShell(t)
	r = sh.run("", "inject", "-r", file, "--loop", "0", "eth0")
	require.Equal(t, ExitFailed, r.exit)
	_, records = b.Injected()
	require.Empty(t, records)
	require.Equal(t, ExitFailed, sh.run("", "inject", "-r", traceFile(t, []byte("no packets")), "eth0").exit)
	require.Equal(t, ExitFailed, sh.run("", "inject", "-r", traceFile(t, nil), "eth0").exit)
}

func TestInjectIsRefusedBeforeAnythingIsOpened(t *testing.T) {
	file := traceFile(t, trace())
	sh, b := mustShell(t)
	for name, line := range map[string][]string{
		"no interface":           {"inject"},
		"too much":               {"inject", "eth0", "x", "y"},
		"a file and DATA":        {"inject", "-r", file, "eth0", "x"},
		"a file in hex":          {"inject", "-r", file, "--hex", "eth0"},
		"half a byte":            {"inject", "--hex", "eth0", "123"},
		"a frame with no timing": {"inject", "--loop", "0", "eth0", "x"},
	} {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, ExitUsage, sh.run("", line...).exit)
		})
	}
	require.Equal(t, ExitSystem, sh.run("", "inject", "-r", file+"x", "eth0").exit, "ENOENT")
	require.NotContains(t, b.Asked(), injectMethod)
}

func TestInjectTakesNumbersThatCanBeMeant(t *testing.T) {
	for _, line := range [][]string{{"-c", "0"}, {"-c", "x"}, {"--pps", "0"}, {"--pps", "fast"}, {"--pps", "1000000001"}, {"--loop", "-1"}, {"--loop", "max"}} {
		fs := flag.NewFlagSet("inject", flag.ContinueOnError)
		fs.SetOutput(io.Discard)
		newInjectFlags(fs)
		require.Error(t, fs.Parse(line), "%v", line)
	}
}

func TestInjectEndsAsTheDaemonSays(t *testing.T) {
	sh, b := mustShell(t)
	b.EndCaptures(syscall.ENETDOWN)
	r := sh.run("", "inject", "eth0", "frame")
	require.Equal(t, ExitSystem, r.exit)
	require.Contains(t, r.stderr, "1 frame (5 bytes) sent on eth0 in 2s\n")
	require.Contains(t, r.stderr, "(ENETDOWN)")
	b.Fail(errors.New("no"))
	require.Equal(t, ExitFailed, sh.run("", "inject", "eth0", "frame").exit)
}

// The frames come from a pipe that stays open: only Ctrl-C or the time ends it.
func TestInjectIsEndedWhileItsFramesAreStillToCome(t *testing.T) {
	for name, tt := range map[string]struct {
		cause error
		limit []string
		exit  int
	}{
		"by Ctrl-C":    {&SignalError{syscall.SIGINT}, nil, ExitOK},
		"by --timeout": {nil, []string{"--timeout", "50ms"}, ExitTimedOut},
	} {
		t.Run(name, func(t *testing.T) {
			familytest.NoLeaks(t)
			sh, b := mustShell(t)
			r, w, err := os.Pipe()
			require.NoError(t, err)
			defer r.Close()
			defer w.Close() // ends the read that was left
			_, err = w.Write(trace())
			require.NoError(t, err)
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			ended := make(chan result, 1)
			go func() {
				ended <- sh.runFrom(ctx, r, append(tt.limit, "inject", "-r", "-", "eth0")...)
			}()
			if tt.cause != nil {
				familytest.Eventually(t, "frames come", func() bool { _, records := b.Injected(); return len(records) > 0 })
				cancel(tt.cause)
			}
			got := <-ended
			require.Equal(t, tt.exit, got.exit, got.stderr)
			require.Contains(t, got.stderr, " sent on eth0 in ")
			require.NoError(t, w.Close())
		})
	}
}
