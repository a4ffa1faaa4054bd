package ctl

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/model"
	"github.com/sockd/sockd/families/packet/pcapng"
	"github.com/stretchr/testify/require"
)

// namedPrinter prints packets as their bytes, and before them the interface if lines
// are to begin with it.
type namedPrinter struct {
	recordedPrinter
	o *PacketOptions
}

func (p namedPrinter) Print(i *pcapng.Interface, f *pcapng.Packet) error {
	if p.o.Named {
		if _, err := io.WriteString(p.w, i.Name+" "); err != nil {
			return err
		}
	}
	return p.recordedPrinter.Print(i, f)
}

// reading is a shell without a daemon that can print and filter: a packet passes when
// the filter is part of it.
func reading(t *testing.T) *shell {
	t.Helper()
	sh := newShell(t, filepath.Join(t.TempDir(), "nobody"))
	sh.env.Packets = func(w io.Writer, o *PacketOptions) PacketPrinter { return namedPrinter{recordedPrinter{w}, o} }
	sh.env.Filter = func(text string, link pcapng.LinkType) (PacketFilter, error) {
		if text == "nonsense" {
			return nil, &families.SyntaxError{What: "filter", Text: text, Why: "is none", Column: 1}
		}
		return containing(text), nil
	}
	return sh
}

// containing is a filter that takes packets with a text in them.
type containing string

func (c containing) Judge(p *pcapng.Packet, yield func(*pcapng.Packet) error) error {
	if strings.Contains(string(p.Data), string(c)) {
		return yield(p)
	}
	return nil
}

func (containing) Undecided() uint64 { return 0 }

// twoInterfaces is a file of three packets of two interfaces, the second of which comes
// later.
func twoInterfaces() []byte {
	at := time.Date(2026, 5, 6, 7, 8, 9, 123456789, time.UTC).UnixNano()
	b := pcapng.AppendSection(nil, pcapng.Section{Comment: "what for"})
	b = pcapng.AppendInterface(b, pcapng.Interface{Link: pcapng.Ethernet, Name: "eth7", Snaplen: 96})
	b = pcapng.AppendPacket(b, &pcapng.Packet{Time: at, Data: []byte("one in"), Len: 60, Direction: pcapng.Inbound})
	b = pcapng.AppendPacket(b, &pcapng.Packet{Time: at, Data: []byte("two out"), Len: 60, Direction: pcapng.Outbound})
	b = pcapng.AppendInterface(b, pcapng.Interface{Link: pcapng.Raw, Name: "tun0"})
	return pcapng.AppendPacket(b, &pcapng.Packet{Interface: 1, Time: at, Data: []byte("three in"), Len: 60, Direction: pcapng.Inbound, Reception: pcapng.Promiscuous, Dropped: 4})
}

func mustWrite(t *testing.T, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(path, data, 0o600))
	return path
}

func TestAFileIsReadWithoutADaemon(t *testing.T) {
	pcap := pcapng.AppendPcapHeader(nil, pcapng.Ethernet, 1500)
	pcap = pcapng.AppendPcapPacket(pcap, &pcapng.Packet{Data: []byte("classic"), Len: 60})
	one := recording(true)
	for name, tt := range map[string]struct {
		file           []byte
		flags          []string
		stdout, stderr string
	}{
		"all packets":            {one, nil, "one\ntwo\n", "reading from FILE, link-type EN10MB, snapshot length 96 bytes\n"},
		"the classic format":     {pcap, nil, "classic\n", "reading from FILE, link-type EN10MB, snapshot length 1500 bytes\n"},
		"a filter":               {one, []string{"w"}, "two\n", ""},
		"a filter of both links": {twoInterfaces(), []string{"in"}, "eth7 one in\ntun0 three in\n", ""},
		"a count":                {one, []string{"-c", "1"}, "one\n", ""},
		"those that came in":     {twoInterfaces(), []string{"-Q", "in"}, "eth7 one in\ntun0 three in\n", ""},
		"those that went out":    {twoInterfaces(), []string{"-Q", "out"}, "eth7 two out\n", ""},
		"not for others":         {twoInterfaces(), []string{"-p"}, "eth7 one in\neth7 two out\n", ""},
		"their beginnings":       {one, []string{"-s", "2"}, "on\ntw\n", ""},
		"several interfaces":     {twoInterfaces(), nil, "eth7 one in\neth7 two out\ntun0 three in\n", "reading from FILE, link-type EN10MB, snapshot length 96 bytes\n"},
	} {
		t.Run(name, func(t *testing.T) {
			path := mustWrite(t, tt.file)
			r := reading(t).run("", append([]string{"capture", "-r", path}, tt.flags...)...)
			require.Equal(t, 0, r.exit, r.stderr)
			require.Equal(t, tt.stdout, r.stdout)
			if tt.stderr != "" {
				require.Equal(t, strings.ReplaceAll(tt.stderr, "FILE", path), r.stderr)
			}
		})
	}
}

func TestStdinIsReadAsItComes(t *testing.T) {
	r := reading(t).run(string(twoInterfaces()), "capture", "-r", "-")
	require.Equal(t, 0, r.exit, r.stderr)
	require.Equal(t, "one in\ntwo out\ntun0 three in\n", r.stdout, "that there are several is known from the second on")
}

func TestAFileIsCopied(t *testing.T) {
	path, to := mustWrite(t, twoInterfaces()), filepath.Join(t.TempDir(), "copy")
	r := reading(t).run("", "capture", "-r", path, "-w", to, "-Q", "in")
	require.Equal(t, 0, r.exit, r.stderr)
	require.Empty(t, r.stdout)
	file, err := os.ReadFile(to)
	require.NoError(t, err)
	var names, packets []string
	reader := pcapng.NewReader(bytes.NewReader(file))
	for b := (pcapng.Block{}); err == nil; err = reader.Next(&b) {
		switch b.Type {
		case pcapng.SectionBlock:
			require.Equal(t, "what for", b.Section.Comment)
		case pcapng.InterfaceBlock:
			names = append(names, b.Interface.Name)
		case pcapng.PacketBlock:
			packets = append(packets, string(b.Packet.Data))
			require.Equal(t, 60, b.Packet.Len)
			require.Equal(t, int64(123456789), b.Packet.Time%1e9, "to the nanosecond")
			require.Equal(t, pcapng.Inbound, b.Packet.Direction)
		}
	}
	require.Equal(t, io.EOF, err)
	require.Equal(t, []string{"eth7", "tun0"}, names)
	require.Equal(t, []string{"one in", "three in"}, packets)

	r = reading(t).run("", "capture", "-r", to, "-w", "-", "-c", "1")
	require.Equal(t, 0, r.exit, r.stderr)
	require.Contains(t, r.stdout, "one in")
	require.NotContains(t, r.stdout, "three in")
}

// What a packet's owner and its comment are is in the copy, and in objects.
func TestOwnersOfAFilesPacketsStay(t *testing.T) {
	b := pcapng.AppendSection(nil, pcapng.Section{})
	b = pcapng.AppendInterface(b, pcapng.Interface{Link: pcapng.Ethernet, Name: "eth7"})
	p := pcapng.Packet{Data: []byte("mine"), Len: 60, PID: 77, Comment: "uid 1000 pid 77 comm nc"}
	p.Options = p.AppendOptions(nil)
	b = pcapng.AppendPacket(b, &p)
	b = pcapng.AppendPacket(b, &pcapng.Packet{Data: []byte("nobody's"), Len: 60})
	path, to := mustWrite(t, b), filepath.Join(t.TempDir(), "copy")
	r := reading(t).run("", "capture", "-r", path, "-w", to)
	require.Equal(t, 0, r.exit, r.stderr)
	objects := reading(t)
	objects.env.JSON, objects.env.JSONL = true, true
	r = objects.run("", "capture", "-r", to)
	require.Equal(t, 0, r.exit, r.stderr)
	lines := strings.Split(r.stdout, "\n")
	require.Contains(t, lines[0], `"pid":77,"comment":"uid 1000 pid 77 comm nc"`)
	require.NotContains(t, lines[1], `"pid"`)
	require.NotContains(t, lines[1], `"comment"`)
	r = reading(t).run("", "capture", "-r", to)
	require.Equal(t, "mine\nnobody's\n", r.stdout, "lines are tcpdump's")
}

// A second section has interfaces of its own, whose numbers begin again.
func TestASectionOfAFileHasItsOwnInterfaces(t *testing.T) {
	r := reading(t).run("", "capture", "-r", mustWrite(t, append(recording(true), twoInterfaces()...)), "o")
	require.Equal(t, 0, r.exit, r.stderr)
	require.Contains(t, r.stdout, "two out\n")
}

func TestAFileIsCopiedAsPcap(t *testing.T) {
	path, to := mustWrite(t, recording(true)), filepath.Join(t.TempDir(), "copy")
	r := reading(t).run("", "capture", "-r", path, "-w", to, "-pcap")
	require.Equal(t, 0, r.exit, r.stderr)
	r = reading(t).run("", "capture", "-r", to)
	require.Equal(t, "one\ntwo\n", r.stdout)
	r = reading(t).run("", "capture", "-r", mustWrite(t, twoInterfaces()), "-w", to, "-pcap")
	require.Equal(t, ExitFailed, r.exit)
	require.Contains(t, r.stderr, "RAW after EN10MB: such a file has one link type")
}

func TestAFileIsNotCopiedOntoItself(t *testing.T) {
	path := mustWrite(t, recording(true))
	require.Equal(t, ExitUsage, reading(t).run("", "capture", "-r", path, "-w", path).exit)
	file, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, recording(true), file)
}

func TestPacketsOfAFileAreObjects(t *testing.T) {
	path := mustWrite(t, twoInterfaces())
	r := reading(t).run("", "--json", "capture", "-r", path)
	require.Equal(t, 0, r.exit, r.stderr)
	var c model.Capture
	require.NoError(t, json.Unmarshal([]byte(r.stdout), &c))
	require.Equal(t, model.Capture{Source: path, Received: 3, Delivered: 3}, c)
}

// tcpdump prints the packets that are whole, says what is wrong, and ends with 1.
func TestFilesThatCannotBeRead(t *testing.T) {
	whole := recording(false)
	for name, tt := range map[string]struct {
		file   []byte
		flags  []string
		exit   int
		stdout string
		stderr string
	}{
		"ends within a packet": {whole[:len(whole)-5], nil, ExitFailed, "one\n", "FILE ends within a block\n"},
		"no capture":           {[]byte("something else entirely"), nil, ExitFailed, "", "not valid pcapng"},
		"empty":                {nil, nil, ExitFailed, "", "it is empty"},
		"no filter":            {whole, []string{"nonsense"}, ExitUsage, "", `filter "nonsense"`},
		"an interface, too":    {whole, []string{"-i", "eth0"}, ExitUsage, "", "-r and -i"},
		"several files":        {whole, []string{"-w", "x", "-C", "1"}, ExitUsage, "", "for interfaces"},
		"a duration":           {whole, []string{"-duration", "1s"}, ExitUsage, "", "for interfaces"},
	} {
		t.Run(name, func(t *testing.T) {
			path := mustWrite(t, tt.file)
			r := reading(t).run("", append([]string{"capture", "-r", path}, tt.flags...)...)
			require.Equal(t, tt.exit, r.exit, r.stderr)
			require.Equal(t, tt.stdout, r.stdout)
			require.Contains(t, r.stderr, strings.ReplaceAll(tt.stderr, "FILE", path))
		})
	}
	r := reading(t).run("", "capture", "-r", "/nowhere/file")
	require.Equal(t, ExitSystem, r.exit)
	require.Contains(t, r.stderr, "ENOENT")
}

func TestReadingEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	sh := reading(t)
	r, w, err := os.Pipe()
	require.NoError(t, err)
	defer r.Close()
	defer w.Close()
	e := sh.env
	var stdout, stderr bytes.Buffer
	e.Stdin, e.Stdout, e.Stderr = r, &stdout, &stderr
	_, err = w.Write(recording(false))
	require.NoError(t, err)
	cancel(errors.New("enough"))
	require.NoError(t, (&captureFlags{read: "-"}).readFile(ctx, &e, ""))
}

func TestInterfacesAreListed(t *testing.T) {
	sh, _ := mustShell(t)
	r := sh.run("", "capture", "-D")
	require.Equal(t, 0, r.exit, r.stderr)
	require.Equal(t, "1.any (all interfaces together) [Up, Running]\n2.lo [Up, Running, Loopback]\n3.eth7\n", r.stdout)

	r = sh.run("", "--json", "capture", "-D")
	require.Equal(t, 0, r.exit, r.stderr)
	var list []model.Interface
	require.NoError(t, json.Unmarshal([]byte(r.stdout), &list))
	require.Equal(t, model.Interface{Index: 7, Name: "eth7", LinkType: "EN10MB", MTU: 1500, MAC: "02:00:00:00:00:07"}, list[2])

	require.Equal(t, ExitUsage, sh.run("", "capture", "-D", "eth0").exit)
}

func TestLinesBeginWithTheInterfaceWhereThereMayBeSeveral(t *testing.T) {
	for source, several := range map[string]bool{"eth0": false, "any": true, "veth*": true, "eth?": true, "eth[01]": true, "eth0,lo": true, "any0": false} {
		require.Equal(t, several, severalInterfaces(source), source)
	}
}
