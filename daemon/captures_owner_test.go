package daemon

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/sockd/sockd/families/familytest"
	"github.com/sockd/sockd/families/model"
	"github.com/sockd/sockd/families/packet/pcapng"
)

// The packets of a socket that the daemon holds are its caller's; its own user's are others.
func TestPacketsOfASocketAreItsOwners(t *testing.T) {
	familytest.Need(t, familytest.Root())
	d := newDaemon(t)
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	port := uint16(l.Addr().(*net.TCPAddr).Port)
	v, err := d.Open(testContext(t), stranger, "inet", "stream", 0, "", model.NoFD)
	require.NoError(t, err)
	about := " and tcp port " + text(model.ID(port))
	theirs, own := startCapture(t, d, "uid 54321"+about), startCapture(t, d, "not uid 54321"+about)
	other := startCapture(t, d, "uid 4711"+about)

	_, err = d.Connect(testContext(t), stranger, v.ID, l.Addr().String())
	require.NoError(t, err)
	server, err := l.Accept()
	require.NoError(t, err)
	defer server.Close()
	_, err = d.Send(testContext(t), stranger, v.ID, []byte("from its owner"), "")
	require.NoError(t, err)
	_, err = io.ReadFull(server, make([]byte, 14))
	require.NoError(t, err)
	_, err = server.Write([]byte("from this process"))
	require.NoError(t, err)
	theirs.until("from its owner")
	own.until("from this process")

	for _, p := range theirs.finish() {
		require.Equal(t, port, binary.BigEndian.Uint16(p.Data[36:]), "to the server")
		require.Equal(t, "uid 54321", p.Comment)
		require.Zero(t, p.PID)
	}
	for _, p := range own.finish() {
		require.Equal(t, port, binary.BigEndian.Uint16(p.Data[34:]), "from the server")
		require.NotContains(t, p.Comment, "54321")
	}
	require.Empty(t, other.finish())
}

// lockedBuffer is a file that can be read while it is written.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) bytes() []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	return bytes.Clone(l.b.Bytes())
}

// flowCapture is a capture on loopback under way.
type flowCapture struct {
	*testing.T
	capturing model.Capturing
	file      *lockedBuffer
	end       context.CancelFunc
	ended     chan error
}

func startCapture(t *testing.T, d *Daemon, filter string) *flowCapture {
	t.Helper()
	p, err := d.Capture(testContext(t), me, model.CaptureSpec{Source: "lo", Filter: filter})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	c := &flowCapture{T: t, capturing: p, file: &lockedBuffer{}, end: cancel, ended: make(chan error, 1)}
	go func() { c.ended <- p.Run(ctx, c.file) }()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, p.Close())
	})
	return c
}

// until waits for bytes in the file.
func (c *flowCapture) until(word string) {
	c.Helper()
	familytest.Eventually(c, word+" is captured", func() bool { return bytes.Contains(c.file.bytes(), []byte(word)) })
}

// finish ends it, and gives its packets.
func (c *flowCapture) finish() (packets []pcapng.Packet) {
	c.Helper()
	c.end()
	require.NoError(c, within(c.T, "the capture did not end", c.ended))
	r := pcapng.NewReader(bytes.NewReader(c.file.bytes()))
	var b pcapng.Block
	for {
		err := r.Next(&b)
		if err == io.EOF {
			return packets
		}
		require.NoError(c, err)
		if b.Type == pcapng.PacketBlock {
			p := b.Packet
			p.Data = bytes.Clone(p.Data)
			packets = append(packets, p)
		}
	}
}

// The table finds sockets by their inodes as long as it has them.
func TestTheTableKnowsItsSocketsFiles(t *testing.T) {
	d := newDaemon(t)
	id := mustOpen(t, d, "inet", "stream")
	k, err := d.table.get(id)
	require.NoError(t, err)
	require.NotZero(t, k.inode)
	found, ok := d.table.holding(k.inode)
	require.True(t, ok)
	require.Same(t, k, found)
	_, ok = d.broker(k.inode + 1)
	require.False(t, ok)
	_, err = d.Close(testContext(t), me, text(id), false)
	require.NoError(t, err)
	_, ok = d.broker(k.inode)
	require.False(t, ok)
	_, ok = d.broker(0)
	require.False(t, ok)
}
