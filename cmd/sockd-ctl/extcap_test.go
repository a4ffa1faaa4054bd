package main

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sockd/sockd/ctl"
	"github.com/sockd/sockd/ctl/ctltest"
	"github.com/sockd/sockd/families/packet/pcapng"
	"github.com/stretchr/testify/require"
)

// mustServe serves a daemon in memory, and gives its control socket.
func mustServe(t *testing.T) (socket string, b *ctltest.Backend) {
	t.Helper()
	b = ctltest.New(t)
	socket = filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	require.NoError(t, err)
	s := ctl.NewServer(b, ctl.ServerOptions{})
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() {
		require.NoError(t, s.Close())
		require.NoError(t, <-served)
	})
	return socket, b
}

func TestTheLinksNameMakesIt(t *testing.T) {
	require.True(t, calledAsExtcap("/usr/lib/wireshark/extcap/sockd-extcap"))
	require.False(t, calledAsExtcap("/usr/bin/sockd-ctl"))
}

func TestWiresharksQuestionsAreAnswered(t *testing.T) {
	socket, _ := mustServe(t)
	for name, tt := range map[string]struct {
		args   []string
		exit   int
		stdout string
	}{
		"what is there":   {[]string{"--extcap-interfaces", "--extcap-version=4.0"}, 0, "extcap {version=1.2.3}{help=https://github.com/sockd/sockd}{display=sockd}\ninterface {value=sockd-any}{display=sockd: any}\ninterface {value=sockd-lo}{display=sockd: lo}\ninterface {value=sockd-eth7}{display=sockd: eth7}\n"},
		"of what kind":    {[]string{"--extcap-interface", "sockd-eth7", "--extcap-dlts"}, 0, "dlt {number=1}{name=EN10MB}{display=Ethernet}\n"},
		"what to set":     {[]string{"--extcap-interface", "sockd-eth7", "--extcap-config"}, 0, extcapOptions},
		"a good filter":   {[]string{"--extcap-interface", "sockd-eth7", "--extcap-capture-filter", "tcp port 80"}, 0, ""},
		"a bad filter":    {[]string{"--extcap-interface=sockd-eth7", "--extcap-capture-filter=port"}, 0, "filter"},
		"our own words":   {[]string{"--extcap-interface=sockd-eth7", "--extcap-capture-filter=udp port 53 and fragments"}, 0, ""},
		"a user":          {[]string{"--extcap-interface=sockd-eth7", "--extcap-capture-filter", "uid 0"}, 0, ""},
		"a broadcast":     {[]string{"--extcap-interface=sockd-eth7", "--extcap-capture-filter", "ip broadcast"}, 0, ""},
		"half a filter":   {[]string{"--extcap-interface=sockd-eth7", "--extcap-capture-filter=tcp port 80 and"}, 0, "filter \"tcp port 80 and\": column 16: the filter ends, and wants a word of a filter, such as host, port or tcp\n"},
		"a contradiction": {[]string{"--extcap-interface=sockd-eth7", "--extcap-capture-filter=ip and arp"}, 0, "filter \"ip and arp\": column 8: this contradicts what is before it: the filter rejects all packets\n"},
		"no filter":       {[]string{"--extcap-interface=sockd-eth7", "--extcap-capture-filter="}, 0, ""},
		"which version":   {[]string{"--version"}, 0, "sockd-extcap 1.2.3\n"},
		"nothing":         {nil, ctl.ExitUsage, ""},
		"something new":   {[]string{"--extcap-surprise"}, ctl.ExitUsage, ""},
		"no fifo":         {[]string{"--extcap-interface", "sockd-eth7", "--capture"}, ctl.ExitUsage, ""},
		"a bad direction": {[]string{"--extcap-interface", "sockd-eth7", "--capture", "--direction", "up", "--fifo", "/dev/null"}, ctl.ExitUsage, ""},
	} {
		t.Run(name, func(t *testing.T) {
			e, stdout, stderr := world(socket)
			require.Equal(t, tt.exit, extcap(t.Context(), e, tt.args), stderr)
			if name == "a bad filter" {
				require.Contains(t, stdout.String(), tt.stdout)
				return
			}
			require.Equal(t, tt.stdout, stdout.String())
		})
	}
}

func TestWithoutADaemonThereIsNoInterfaceAndNoFailure(t *testing.T) {
	e, stdout, stderr := world(filepath.Join(t.TempDir(), "nobody"))
	require.Zero(t, extcap(t.Context(), e, []string{"--extcap-interfaces"}))
	require.NotContains(t, stdout.String(), "interface {")
	require.Contains(t, stderr.String(), "control socket")
}

// mustFifo makes a fifo and opens it for reading.
func mustFifo(t *testing.T) (path string, r *os.File) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "fifo")
	require.NoError(t, syscall.Mkfifo(path, 0o600))
	r, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	require.NoError(t, err)
	t.Cleanup(func() { _ = r.Close() }) // the test may have closed it
	return path, r
}

func TestACaptureIsWrittenIntoTheFifo(t *testing.T) {
	socket, _ := mustServe(t)
	path, r := mustFifo(t)
	e, stdout, stderr := world(socket)
	require.Zero(t, extcap(t.Context(), e, []string{"--extcap-interface", "sockd-eth7", "--capture", "--fifo", path, "--extcap-capture-filter", "udp port 53", "--snaplen", "96", "--promiscuous", "false"}), stderr)
	require.Empty(t, stdout.String()+stderr.String(), "Wireshark would show it as an error")
	var b pcapng.Block
	reader := pcapng.NewReader(r)
	require.NoError(t, reader.Next(&b))
	require.NoError(t, reader.Next(&b))
	require.Equal(t, "eth7", b.Interface.Name)
}

func TestTheFlagsOfTheCapture(t *testing.T) {
	c, err := parseExtcap(&ctl.Env{}, []string{"--extcap-interface", "sockd-eth7", "--capture", "--fifo", "x", "--extcap-capture-filter", "not port 22", "--snaplen", "96", "--promiscuous", "false", "--direction", "in"})
	require.NoError(t, err)
	require.Equal(t, "-i eth7 -w - -Q in -s 96 -p -- not port 22", strings.Join(c.captureFlags(), " "))
	c, err = parseExtcap(&ctl.Env{}, []string{"--extcap-interface", "sockd-any", "--capture", "--fifo", "x"})
	require.NoError(t, err)
	require.Equal(t, "-i any -w - -Q inout", strings.Join(c.captureFlags(), " "))
}

// Nobody has opened the fifo yet: a signal still ends the program.
func TestAnUnopenedFifoIsLeft(t *testing.T) {
	path := filepath.Join(t.TempDir(), "fifo")
	require.NoError(t, syscall.Mkfifo(path, 0o600))
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	_, err := openFifo(ctx, path)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	r, err := os.OpenFile(path, os.O_RDONLY, 0) // what still waits gets its reader
	require.NoError(t, err)
	require.NoError(t, r.Close())
}

// The manual and the program name the same layers.
func TestEveryLayerIsInTheManual(t *testing.T) {
	known := map[string]bool{}
	for _, l := range manualLayers {
		for _, name := range strings.Split(l.name, ", ") {
			known[name] = true
		}
	}
	seen := map[string]bool{}
	for _, s := range append(append(scenes(), newScenes()...), wireScenes()...) {
		for _, f := range s.frames {
			for _, l := range decoded(t, pcapng.Ethernet, f) {
				seen[l["layer"].(string)] = true
				require.True(t, known[l["layer"].(string)], "layer %s", l["layer"])
			}
		}
	}
	require.Greater(t, len(seen), 20)
}
