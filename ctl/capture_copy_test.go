package ctl

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/sockd/sockd/families/packet/pcapng"
	"github.com/stretchr/testify/require"
)

// smallDisk writes to a file until so many bytes are there.
type smallDisk struct {
	*os.File
	room int
}

func (d *smallDisk) Write(b []byte) (int, error) {
	n, err := d.File.Write(b[:min(len(b), d.room)])
	if d.room -= n; err == nil && n < len(b) {
		err = &os.PathError{Op: "write", Path: d.Name(), Err: syscall.ENOSPC}
	}
	return n, err
}

// mustCopy copies frames to a file that has room for so many bytes.
func mustCopy(t *testing.T, pcap bool, room, frames int) (path string, c *packetCopy, err error) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "copy")
	f, err := os.Create(path)
	require.NoError(t, err)
	c = &packetCopy{flags: &fileFlags{pcap: pcap}, name: path, out: &smallDisk{f, room}, file: f}
	err = c.iface(&pcapng.Interface{Link: pcapng.Ethernet, Name: "eth7"})
	for i := 0; i < frames && err == nil; i++ {
		data := bytes.Repeat([]byte{byte(i)}, 100)
		err = c.packet(&pcapng.Packet{Time: int64(i), Data: data, Len: len(data)})
	}
	if closeErr := c.Close(); err == nil {
		err = closeErr
	}
	return path, c, err
}

// wholeFile counts the packets of a file, which must be whole.
func wholeFile(t *testing.T, data []byte) (n int64) {
	t.Helper()
	r, err := pcapng.Open(bytes.NewReader(data))
	require.NoError(t, err)
	var b pcapng.Block
	for err = r.Next(&b); err == nil; err = r.Next(&b) {
		if b.Type == pcapng.PacketBlock {
			n++
		}
	}
	require.Equal(t, io.EOF, err)
	return n
}

// The copy of a full disk ended within a block.
func TestACopyEndsWithItsLastWholePacket(t *testing.T) {
	const frames = 900 // more than a buffer
	for _, pcap := range []bool{false, true} {
		path, _, err := mustCopy(t, pcap, 1<<30, frames)
		require.NoError(t, err)
		whole, err := os.ReadFile(path)
		require.NoError(t, err)
		require.EqualValues(t, frames, wholeFile(t, whole))
		for room := 0; room < len(whole); room += 1 + min(room, 397) {
			path, c, err := mustCopy(t, pcap, room, frames)
			require.ErrorIs(t, err, syscall.ENOSPC)
			require.EqualError(t, err, fmt.Sprintf("capture: write %s: no space left on device", path))
			require.Equal(t, ExitSystem, ExitCode(err))
			got, err := os.ReadFile(path)
			if c.size == 0 {
				require.ErrorIs(t, err, os.ErrNotExist, "an empty one is none that a reader takes")
				continue
			}
			require.NoError(t, err)
			require.LessOrEqual(t, len(got), room)
			require.Greater(t, len(got), room-200, "what fits is there")
			require.Equal(t, whole[:len(got)], got)
			kept := wholeFile(t, got)
			require.LessOrEqual(t, kept+c.unwritten(), int64(frames))
		}
	}
}

// The file that is written is the one that cannot be.
func TestACopyToAFullDeviceNamesIt(t *testing.T) {
	r := reading(t).run("", "--json", "capture", "-r", mustWrite(t, twoInterfaces()), "-w", "/dev/full")
	require.Equal(t, ExitSystem, r.exit)
	require.Contains(t, r.stderr, "capture: write /dev/full: no space left on device")
	require.Contains(t, r.stdout, `"delivered":0`, "none is in the file")
}

// The command was its FIFO's reader itself, and waited for ever once the other had left.
func TestACopyEndsWhenTheReaderOfItsFIFOGoes(t *testing.T) {
	fifo := filepath.Join(t.TempDir(), "fifo")
	require.NoError(t, syscall.Mkfifo(fifo, 0o600))
	big := twoInterfaces()
	for len(big) < 1<<20 { // more than any pipe holds
		big = pcapng.AppendPacket(big, &pcapng.Packet{Data: make([]byte, 9000), Len: 9000})
	}
	ended := make(chan result, 1)
	sh, in := reading(t), mustWrite(t, big)
	go func() { ended <- sh.run("", "capture", "-r", in, "-w", fifo) }()
	f, err := os.Open(fifo)
	require.NoError(t, err)
	_, err = io.ReadFull(f, make([]byte, 100))
	require.NoError(t, err)
	require.NoError(t, f.Close())
	r := <-ended
	require.Equal(t, 128+int(syscall.SIGPIPE), r.exit)
	require.NotContains(t, r.stderr, "broken pipe", "as of standard output")
}

// Nobody waits for a FIFO's reader longer than for the capture.
func TestTheReaderOfAFIFOIsWaitedFor(t *testing.T) {
	fifo := filepath.Join(t.TempDir(), "fifo")
	require.NoError(t, syscall.Mkfifo(fifo, 0o600))
	ctx, cancel := context.WithCancelCause(t.Context())
	opened := make(chan error, 1)
	go func() {
		_, err := openOther(ctx, fifo)
		opened <- err
	}()
	cancel(errors.New("enough"))
	require.EqualError(t, <-opened, "enough")
	_, err := openOther(ctx, t.TempDir())
	require.ErrorIs(t, err, syscall.EISDIR)
}
