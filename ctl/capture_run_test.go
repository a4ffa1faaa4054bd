package ctl

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/model"
	"github.com/sockd/sockd/families/packet/pcapng"
	"github.com/stretchr/testify/require"
)

// recordedPrinter prints a packet as its bytes.
type recordedPrinter struct{ w io.Writer }

func (p recordedPrinter) Print(_ *pcapng.Interface, f *pcapng.Packet) error {
	_, err := p.w.Write(append(bytes.Clone(f.Data), '\n'))
	return err
}

func (recordedPrinter) Decode(i *pcapng.Interface, f *pcapng.Packet) Decoded {
	return Decoded{Src: "from " + string(f.Data), Dst: "to", Layers: []any{map[string]string{"layer": i.Name}}}
}

// mustPair is a connection between sockd-ctl and a daemon.
func mustPair(tb testing.TB) (client, daemon *net.UnixConn) {
	tb.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(tb.TempDir(), "s"), Net: "unix"})
	require.NoError(tb, err)
	defer l.Close()
	client, err = net.DialUnix("unix", nil, l.Addr().(*net.UnixAddr))
	require.NoError(tb, err)
	daemon, err = l.AcceptUnix()
	require.NoError(tb, err)
	tb.Cleanup(func() {
		_ = client.Close() // either end may be closed by the test
		_ = daemon.Close()
	})
	return client, daemon
}

// recording is what a daemon sends of two packets, and the statistics.
func recording(statistics bool) []byte {
	b := pcapng.AppendSection(nil, pcapng.Section{})
	b = pcapng.AppendInterface(b, pcapng.Interface{Link: pcapng.Ethernet, Name: "eth7", Snaplen: 96})
	at := time.Date(2026, 5, 6, 7, 8, 9, 123456789, time.UTC).UnixNano()
	b = pcapng.AppendPacket(b, &pcapng.Packet{Time: at, Data: []byte("one"), Len: 3, Direction: pcapng.Inbound})
	b = pcapng.AppendPacket(b, &pcapng.Packet{Time: at, Data: []byte("two"), Len: 1500, Direction: pcapng.Outbound})
	if statistics {
		b = pcapng.AppendStats(b, pcapng.Stats{Received: 12, IfDrop: 2, Accepted: 10, OSDrop: 7, Delivered: 3, Comment: "dropped_kernel=2 dropped_daemon=3 dropped_subscriber=4"})
	}
	return b
}

// mustReceive runs a capture of what the daemon sends.
func mustReceive(t *testing.T, sent []byte, set func(*captureRun)) (r *captureRun, stdout, stderr *bytes.Buffer, err error) {
	t.Helper()
	client, daemon := mustPair(t)
	stdout, stderr = &bytes.Buffer{}, &bytes.Buffer{}
	r = &captureRun{flags: &captureFlags{}, capture: model.Capture{ID: 5, Source: "eth7"}, e: &Env{
		Stdout: stdout, Stderr: stderr, Getenv: func(string) string { return "" },
		Packets: func(w io.Writer, o *PacketOptions) PacketPrinter { return recordedPrinter{w} },
	}}
	if set != nil {
		set(r)
	}
	go func() {
		_, _ = daemon.Write(sent) // the client's end tells whether it arrived
		_ = daemon.Close()
	}()
	err = r.copy(t.Context(), client)
	r.summary()
	return r, stdout, stderr, err
}

func TestACaptureSaysWhatWasLostAndWhere(t *testing.T) {
	_, stdout, stderr, err := mustReceive(t, recording(true), nil)
	require.NoError(t, err)
	require.Equal(t, "one\ntwo\n", stdout.String())
	require.Equal(t, `capturing on eth7, link-type EN10MB, snapshot length 96 bytes
2 packets captured
10 packets received by filter
2 packets dropped by kernel
3 packets dropped by sockd, whose memory for captures was full
4 packets dropped because this capture was too slow, or its file could not take them
`, stderr.String())
}

func TestACaptureFileIsWhatTheDaemonSent(t *testing.T) {
	var file bytes.Buffer
	r, stdout, _, err := mustReceive(t, recording(true), func(r *captureRun) { r.file = &file })
	require.NoError(t, err)
	require.Empty(t, stdout.String())
	require.Equal(t, recording(true), file.Bytes())
	require.Equal(t, model.Capture{ID: 5, Source: "eth7", Received: 10, Delivered: 3, DroppedKernel: 2, DroppedDaemon: 3, DroppedSubscriber: 4}, r.capture)
}

func TestACaptureThatIsCutOffSaysSo(t *testing.T) {
	whole := recording(false)
	for name, sent := range map[string][]byte{"before the statistics": whole, "within a packet": whole[:len(whole)-5], "at once": nil} {
		t.Run(name, func(t *testing.T) {
			_, _, stderr, err := mustReceive(t, sent, nil)
			require.Equal(t, ExitUnreachable, ExitCode(err))
			require.NotContains(t, stderr.String(), "received by filter", "nobody knows")
		})
	}
}

func TestACaptureOfNoPcapngFails(t *testing.T) {
	_, _, _, err := mustReceive(t, []byte(strings.Repeat("nonsense", 10)), nil)
	require.ErrorIs(t, err, pcapng.ErrFormat)
}

func TestAFileThatCannotBeWrittenEndsTheCapture(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	require.NoError(t, err)
	defer full.Close()
	_, _, _, err = mustReceive(t, recording(true), func(r *captureRun) { r.file = full })
	require.ErrorContains(t, err, "write packets")
	require.Equal(t, ExitSystem, ExitCode(err))
}

func TestPacketsAreObjectsWithJSONL(t *testing.T) {
	_, stdout, _, err := mustReceive(t, recording(true), func(r *captureRun) { r.e.JSONL = true })
	require.NoError(t, err)
	lines := strings.Split(strings.TrimSpace(stdout.String()), "\n")
	require.Len(t, lines, 2)
	require.JSONEq(t, `{"time":"2026-05-06T07:08:09.123456789Z","interface":"eth7","direction":"in","length":3,"captured":3,"src":"from one","dst":"to","data":"b25l","layers":[{"layer":"eth7"}]}`, lines[0])
	var f frame
	require.NoError(t, json.Unmarshal([]byte(lines[1]), &f))
	require.Equal(t, 1500, f.Length)
	require.Equal(t, "out", f.Direction)
}

func TestTheEndOfTheContextAsksForTheRest(t *testing.T) {
	client, daemon := mustPair(t)
	ctx, cancel := context.WithCancel(t.Context())
	asked := make(chan error, 1)
	go func() { // a daemon that ends the capture when it is asked to
		_, err := io.Copy(io.Discard, daemon)
		if err == nil {
			_, err = daemon.Write(recording(true))
		}
		_ = daemon.Close()
		asked <- err
	}()
	cancel()
	var stdout bytes.Buffer
	r := &captureRun{flags: &captureFlags{}, e: &Env{Stdout: &stdout, Stderr: io.Discard, Packets: func(w io.Writer, o *PacketOptions) PacketPrinter { return recordedPrinter{w} }}}
	require.NoError(t, r.copy(ctx, client))
	require.NoError(t, <-asked)
	require.Equal(t, "one\ntwo\n", stdout.String())
}

// runs is a capture of the daemon that writes until its context ends.
type runs struct {
	Capturing // the rest is not called
	wrote     chan struct{}
}

func (c runs) View() model.Capture { return model.Capture{} }
func (c runs) Close() error        { return nil }
func (c runs) Run(ctx context.Context, w io.Writer) error {
	if _, err := w.Write([]byte("begin ")); err != nil {
		return err
	}
	close(c.wrote)
	<-ctx.Done()
	_, err := w.Write([]byte("end"))
	return err
}

func TestACallerWhoShutsDownGetsTheRest(t *testing.T) {
	client, daemon := mustPair(t)
	done := make(chan error, 1)
	capture := runs{wrote: make(chan struct{})}
	go func() {
		err := runCapture(t.Context(), capture, daemon)
		_ = daemon.Close()
		done <- err
	}()
	<-capture.wrote
	require.NoError(t, client.CloseWrite())
	got, err := io.ReadAll(client)
	require.NoError(t, err)
	require.Equal(t, "begin end", string(got))
	require.NoError(t, <-done)
}

func TestACallerWhoLeavesEndsTheCapture(t *testing.T) {
	client, daemon := mustPair(t)
	done := make(chan error, 1)
	capture := runs{wrote: make(chan struct{})}
	go func() { done <- runCapture(t.Context(), capture, daemon) }()
	<-capture.wrote
	require.NoError(t, client.Close())
	require.Error(t, <-done, "the rest could not be written")
}

func TestCaptureFlagsThatDoNotGoTogether(t *testing.T) {
	for name, tt := range map[string]struct {
		flags captureFlags
		env   Env
	}{
		"a file to a terminal": {captureFlags{write: "-"}, Env{StdoutTerminal: true}},
		"two things on stdout": {captureFlags{write: "-"}, Env{JSON: true}},
		"columns":              {captureFlags{}, Env{Columns: []string{"time"}}},
	} {
		require.Equal(t, ExitUsage, ExitCode(tt.flags.check(&tt.env)), name)
	}
}

func TestCaptureParametersAreChecked(t *testing.T) {
	n := func(i int64) *int64 { return &i }
	s := "sideways"
	for name, in := range map[string]ShareIn{
		"direction": {Direction: &s}, "snaplen below 0": {Snaplen: n(-1)}, "snaplen": {Snaplen: n(maxSnaplen + 1)},
		"count": {Count: n(-1)}, "duration": {Duration: n(-1)},
	} {
		_, err := captureIn{ShareIn: in}.spec()
		require.Equal(t, ExitUsage, ExitCode(err), name)
	}
}

// A capture whose interface was deleted looked like one that had ended well: exit 0.
func TestACaptureSaysWhatEndedIt(t *testing.T) {
	const words = "capturing on eth7, snapshot length 262144 bytes\n1 packet captured\n3 packets received by filter\n0 packets dropped by kernel\n"
	for _, tt := range []struct {
		name string
		end  error
		exit int
		line string
	}{
		{"nothing but its own end", nil, ExitOK, ""},
		{"somebody who closed it", net.ErrClosed, ExitOK, ""},
		{
			"the interface's end", &families.OpError{Op: "capture", Family: "packet", Addr: "eth7", Err: fmt.Errorf("the interface is gone: %w", syscall.ENODEV)},
			ExitNotFound, "sockd-ctl: capture packet \"eth7\": the interface is gone: no such device (ENODEV)\n",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			sh, b := mustShell(t)
			b.EndCaptures(tt.end)
			path := filepath.Join(t.TempDir(), "file.pcapng")
			r := sh.run("", "capture", "-w", path, "eth7")
			require.Equal(t, tt.exit, r.exit)
			require.Equal(t, words+tt.line, r.stderr)
			file, err := os.ReadFile(path)
			require.NoError(t, err)
			blocks := pcapng.NewReader(bytes.NewReader(file))
			complete := false
			for b := (pcapng.Block{}); err == nil; err = blocks.Next(&b) {
				complete = complete || b.Type == pcapng.StatisticsBlock
			}
			require.ErrorIs(t, err, io.EOF)
			require.True(t, complete, "the file has its statistics")

			r = sh.run("", "--json", "capture", "-w", path, "eth7")
			require.Equal(t, tt.exit, r.exit)
			require.Contains(t, r.stdout, `"received":3`)
		})
	}
}

// tcpdump refuses -c 0; here it meant "no end".
func TestACountOfNoPacketsIsRefused(t *testing.T) {
	for count, ok := range map[string]bool{"0": false, "-1": false, "x": false, "1": true} {
		fs := flag.NewFlagSet("capture", flag.ContinueOnError)
		fs.SetOutput(io.Discard)
		newCaptureFlags(fs)
		require.Equal(t, ok, fs.Parse([]string{"-c", count}) == nil, count)
	}
}
