package inject

import (
	"bytes"
	"context"
	"encoding/binary"
	"os"
	"testing"
	"time"
	"unsafe"

	"github.com/sockd/sockd/families/familytest"
	"github.com/sockd/sockd/families/model"
	"github.com/sockd/sockd/families/packet/inject/wire"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// cable is v0 in namespace a, where frames go out, and v1 in b, where fd listens.
type cable struct {
	*testing.T
	a, b *familytest.NS
	fd   int
}

func newCable(t *testing.T) *cable {
	t.Helper()
	familytest.Need(t, familytest.Root())
	familytest.NoLeaks(t)
	c := &cable{T: t, a: familytest.NewNS(t), b: familytest.NewNS(t)}
	familytest.Veth(t, c.a, "v0", "", c.b, "v1", "")
	c.b.Do(func() { c.fd = mustListen(t, "v1") })
	t.Cleanup(func() { require.NoError(t, unix.Close(c.fd)) })
	return c
}

// on is the cable in a subtest.
func (c *cable) on(t *testing.T) *cable {
	sub := *c
	sub.T = t
	return &sub
}

// etherType is that of our frames alone: the kernel sends some of its own.
const etherType = 0x88b5

// mustListen is a packet socket that hears our frames, with the kernel's times, and has
// room for all that a test sends.
func mustListen(t *testing.T, iface string) int {
	t.Helper()
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	req, err := unix.NewIfreq(iface)
	require.NoError(t, err)
	require.NoError(t, unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, req))
	require.NoError(t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20))
	require.NoError(t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1))
	patience := unix.NsecToTimeval(int64(20 * time.Second))
	require.NoError(t, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &patience))
	protocol := binary.NativeEndian.Uint16([]byte{etherType >> 8, etherType & 0xff})
	require.NoError(t, unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: int(req.Uint32()), Protocol: protocol}))
	return fd
}

// arrival is a frame, and when the kernel saw it.
type arrival struct {
	frame []byte
	at    time.Duration // since 1970
}

// receive is the next n frames.
func (c *cable) receive(n int) []arrival {
	c.Helper()
	out := make([]arrival, 0, n)
	room, control := make([]byte, 70<<10), make([]byte, 256)
	for range n {
		length, controlLength, _, _, err := unix.Recvmsg(c.fd, room, control, 0)
		for err == unix.EINTR { // the Go runtime's signals
			length, controlLength, _, _, err = unix.Recvmsg(c.fd, room, control, 0)
		}
		require.NoError(c, err, "after %d frames of %d", len(out), n)
		messages, err := unix.ParseSocketControlMessage(control[:controlLength])
		require.NoError(c, err)
		require.Len(c, messages, 1)
		at := *(*unix.Timespec)(unsafe.Pointer(&messages[0].Data[0]))
		out = append(out, arrival{append([]byte{}, room[:length]...), time.Duration(at.Nano())})
	}
	return out
}

// nothingElse fails when another frame has arrived: on a veth it would have by now.
func (c *cable) nothingElse() {
	c.Helper()
	_, _, err := unix.Recvfrom(c.fd, make([]byte, 1), unix.MSG_DONTWAIT)
	require.ErrorIs(c, err, unix.EAGAIN, "no more frames were expected")
}

// frame is one to another host, of so many bytes, with a number.
func frame(number, length int) []byte {
	f := []byte{2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 1, etherType >> 8, etherType & 0xff}
	f = binary.BigEndian.AppendUint32(f, uint32(number))
	for len(f) < length {
		f = append(f, byte(len(f)+number))
	}
	return f[:length]
}

// receiveDuring is the next n frames, which arrive while f runs. The kernel turns its
// time stamps on late: until then a frame's time is when it is read.
func (c *cable) receiveDuring(n int, f func()) []arrival {
	c.Helper()
	all := make(chan []arrival, 1)
	go func() {
		defer close(all)
		all <- c.receive(n)
	}()
	f()
	arrivals := <-all
	require.Len(c, arrivals, n)
	return arrivals
}

// receiveNumbered is n frames from frame, numbered from 0, of a length each.
func (c *cable) receiveNumbered(n int, length func(number int) int) []arrival {
	c.Helper()
	all := c.receive(n)
	for i, got := range all {
		require.True(c, bytes.Equal(frame(i, length(i)), got.frame), "frame %d is %x", i, got.frame)
	}
	return all
}

// open is Open in a.
func (c *cable) open(spec model.InjectSpec) (n *Injection, err error) {
	c.a.Do(func() { n, err = Open(spec, NewMemory()) })
	if err == nil {
		c.Cleanup(func() { require.NoError(c, n.Close()) })
	}
	return n, err
}

func (c *cable) mustOpen(spec model.InjectSpec) *Injection {
	c.Helper()
	if spec.Interface == "" {
		spec.Interface = "v0"
	}
	n, err := c.open(spec)
	require.NoError(c, err)
	return n
}

// start runs n with frames from a pipe.
func (c *cable) start(ctx context.Context, n *Injection) (frames *os.File, ended <-chan error) {
	c.Helper()
	r, w, err := os.Pipe()
	require.NoError(c, err)
	done := make(chan error, 1)
	ctx, cancel := context.WithCancel(ctx)
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		done <- n.Run(ctx, r)
	}()
	c.Cleanup(func() {
		cancel()
		<-finished
		_, _ = r.Close(), w.Close() // the test may have closed the latter
	})
	return w, done
}

// send runs n with these records alone.
func (c *cable) send(n *Injection, records []byte) error {
	c.Helper()
	w, ended := c.start(c.Context(), n)
	go func() {
		_, _ = w.Write(records) // fails when n ends before it has all
		_ = w.Close()
	}()
	return within(c, ended)
}

func within(t testing.TB, ended <-chan error) error {
	t.Helper()
	select {
	case err := <-ended:
		return err
	case <-time.After(30 * time.Second):
		t.Fatal("the injection does not end")
		return nil
	}
}

// records are so many numbered frames, each that much later than the one before.
func records(count, length int, gap time.Duration) []byte {
	var b []byte
	for i := range count {
		b = wire.Append(b, wire.Record{At: time.Duration(i) * gap, Frame: frame(i, length)})
	}
	return b
}
