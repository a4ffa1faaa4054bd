package varlink

import (
	"bytes"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// A write is one sendmsg of a peer.
type write struct {
	data  string
	files int
}

// An arrival is what one ReadMessage gives.
type arrival struct {
	data     string
	files    int
	filesErr string
}

func TestReadMessageTakesExactlyOneMessage(t *testing.T) {
	long := strings.Repeat("x", 200<<10)
	for _, tt := range []struct {
		name   string
		writes []write
		want   []arrival
		err    error // after them
	}{
		{"nothing", nil, nil, io.EOF},
		{"one", []write{{"{}\x00", 0}}, []arrival{{data: "{}"}}, io.EOF},
		{"two in one write", []write{{"a\x00b\x00", 0}}, []arrival{{data: "a"}, {data: "b"}}, io.EOF},
		{"one in two writes", []write{{"a", 0}, {"b\x00", 0}}, []arrival{{data: "ab"}}, io.EOF},
		{"empty ones", []write{{"\x00\x00", 0}}, []arrival{{}, {}}, io.EOF},
		{"ended inside", []write{{"a\x00b", 0}}, []arrival{{data: "a"}}, io.ErrUnexpectedEOF},
		{"longer than a peek", []write{{long + "\x00", 0}}, []arrival{{data: long}}, io.EOF},
		{"NUL at the end of a peek", []write{{strings.Repeat("y", firstPeek-1) + "\x00z\x00", 0}},
			[]arrival{{data: strings.Repeat("y", firstPeek-1)}, {data: "z"}}, io.EOF},
		{"NUL behind a peek", []write{{strings.Repeat("y", firstPeek) + "\x00z\x00", 0}},
			[]arrival{{data: strings.Repeat("y", firstPeek)}, {data: "z"}}, io.EOF},
		{"descriptors", []write{{"a\x00", 2}}, []arrival{{data: "a", files: 2}}, io.EOF},
		{"without and with glued together", []write{{"none\x00", 0}, {"two\x00", 2}, {"none\x00", 0}, {"one\x00", 1}},
			[]arrival{{data: "none"}, {data: "two", files: 2}, {data: "none"}, {data: "one", files: 1}}, io.EOF},
		{"descriptors on a first part", []write{{"a", 2}, {"b\x00", 0}}, []arrival{{data: "ab", files: 2}}, io.EOF},
		{"descriptors and two messages in one write", []write{{"a\x00b\x00", 1}}, []arrival{{data: "a", files: 1}, {data: "b"}}, io.EOF},
		{"as many as may be", []write{{"a\x00", MaxFiles}}, []arrival{{data: "a", files: MaxFiles}}, io.EOF},
		{"one more than that", []write{{"a\x00", MaxFiles + 1}, {"b\x00", 1}},
			[]arrival{{data: "a", filesErr: "more than 16"}, {data: "b", files: 1}}, io.EOF},
		{"far more", []write{{"a\x00", 200}}, []arrival{{data: "a", filesErr: "more than 16"}}, io.EOF},
		{"descriptors on a later part", []write{{"a", 1}, {"b", 1}, {"c\x00", 0}, {"d\x00", 0}},
			[]arrival{{data: "abc", filesErr: "first byte"}, {data: "d"}}, io.EOF},
	} {
		t.Run(tt.name, func(t *testing.T) {
			mustBalance(t)
			a, b := mustPair(t)
			files := mustFiles(t, 200)
			require.NoError(t, a.SetWriteBuffer(1<<20)) // all is written before any is read
			for _, w := range tt.writes {
				mustSend(t, a, w.data, files[:w.files]...)
			}
			require.NoError(t, a.Close())
			got, err := readAll(NewConn(b))
			require.ErrorIs(t, err, tt.err)
			require.Len(t, got, len(tt.want))
			for i, want := range tt.want {
				requireArrival(t, want, got[i])
			}
		})
	}
}

func readAll(c *Conn) ([]*Message, error) {
	var got []*Message
	for {
		m, err := c.ReadMessage()
		if err != nil {
			return got, err
		}
		got = append(got, m)
	}
}

func requireArrival(t *testing.T, want arrival, got *Message) {
	t.Helper()
	defer got.CloseFiles()
	require.Equal(t, want.data, string(got.Data))
	require.Len(t, got.Files, want.files)
	for _, fd := range got.Files {
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
		require.NoError(t, err, "descriptor %d is not open", fd)
		require.Equal(t, unix.FD_CLOEXEC, flags&unix.FD_CLOEXEC, "a child would inherit it")
	}
	if want.filesErr == "" {
		require.NoError(t, got.FilesErr)
		return
	}
	require.ErrorContains(t, got.FilesErr, want.filesErr)
}

func TestReadMessageLeavesWhatFollows(t *testing.T) {
	a, b := mustPair(t)
	mustSend(t, a, "{}\x00raw bytes")
	m, err := NewConn(b).ReadMessage()
	require.NoError(t, err)
	require.Equal(t, "{}", string(m.Data))
	rest := make([]byte, 100)
	n, err := b.Read(rest)
	require.NoError(t, err)
	require.Equal(t, "raw bytes", string(rest[:n]))
}

func TestReadMessageBounds(t *testing.T) {
	for _, tt := range []struct {
		name string
		size int
		err  error
	}{
		{"1 MiB", MaxMessage, nil},
		{"1 MiB and a byte", MaxMessage + 1, ErrTooLarge},
		{"without end", 3 * MaxMessage, ErrTooLarge},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a, b := mustPair(t)
			sent := make(chan struct{})
			go func() {
				defer close(sent)
				_, _ = a.Write(append(bytes.Repeat([]byte{'x'}, tt.size), 0)) // cut short when the reader gives up
			}()
			m, err := NewConn(b).ReadMessage()
			require.ErrorIs(t, err, tt.err)
			require.NoError(t, b.Close())
			<-sent
			if tt.err == nil {
				require.Len(t, m.Data, tt.size)
			}
		})
	}
}

func TestReadMessageFromAByteWiseSender(t *testing.T) {
	a, b := mustPair(t)
	want := strings.Repeat("0123456789", 500)
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		for _, c := range []byte(want + "\x00") {
			if _, err := a.Write([]byte{c}); err != nil {
				return
			}
		}
	}()
	m, err := NewConn(b).ReadMessage()
	require.NoError(t, err)
	require.Equal(t, want, string(m.Data))
	require.Less(t, cap(m.Data), 64<<10, "a slow sender must not make us hold a large buffer")
	<-sent
}

func TestReadMessageStalled(t *testing.T) {
	a, b := mustPair(t)
	c := NewConn(b)
	c.StallTimeout = 20 * time.Millisecond
	mustSend(t, a, "{}\x00")
	_, err := c.ReadMessage()
	require.NoError(t, err)
	mustSend(t, a, `{"half`)
	_, err = c.ReadMessage()
	require.ErrorIs(t, err, ErrStalled)
}

// A sender of a byte now and then must not push the deadline along.
func TestReadMessageStalledByDrops(t *testing.T) {
	a, b := mustPair(t)
	c := NewConn(b)
	c.StallTimeout = 50 * time.Millisecond
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		for sender := NewConn(a); ; {
			if _, err := a.Write([]byte{'x'}); err != nil {
				return
			}
			if sender.waitRead(time.Now().Add(patience)) != nil {
				return
			}
		}
	}()
	_, err := c.ReadMessage()
	require.ErrorIs(t, err, ErrStalled)
	require.NoError(t, b.Close())
	<-stopped
}

// When this process may open no more, the kernel drops descriptors and says
// MSG_CTRUNC. The limit is by number, so one below the next free one is enough.
func TestReadMessageWithoutRoomForDescriptors(t *testing.T) {
	mustBalance(t)
	a, b := mustPair(t)
	files := mustFiles(t, 3)
	mustSend(t, a, "a\x00", files...)
	mustSend(t, a, "b\x00", files[0])
	c := NewConn(b)
	m, err := readWithoutDescriptors(t, c)
	require.NoError(t, err)
	requireArrival(t, arrival{data: "a", filesErr: "may open no more"}, m)
	m, err = c.ReadMessage()
	require.NoError(t, err)
	requireArrival(t, arrival{data: "b", files: 1}, m)
}

func readWithoutDescriptors(t *testing.T, c *Conn) (*Message, error) {
	t.Helper()
	free, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	require.NoError(t, unix.Close(free))
	var old unix.Rlimit
	require.NoError(t, unix.Prlimit(0, unix.RLIMIT_NOFILE, nil, &old))
	tight := unix.Rlimit{Cur: uint64(free), Max: old.Max}
	require.NoError(t, unix.Prlimit(0, unix.RLIMIT_NOFILE, &tight, nil))
	defer func() { require.NoError(t, unix.Prlimit(0, unix.RLIMIT_NOFILE, &old, nil)) }()
	return c.ReadMessage()
}

func TestWriteMessageThatDoesNotFitAtOnce(t *testing.T) {
	mustBalance(t)
	a, b := mustPair(t)
	require.NoError(t, a.SetWriteBuffer(8<<10))
	text := bytes.Repeat([]byte("abcdefgh"), MaxMessage/8)
	files := mustFiles(t, MaxFiles)
	sent := make(chan error, 1)
	go func() { sent <- NewConn(a).WriteMessage(text, files...) }()
	m, err := NewConn(b).ReadMessage()
	require.NoError(t, err)
	require.NoError(t, <-sent)
	require.Equal(t, text, m.Data)
	require.Len(t, m.Files, MaxFiles)
	m.CloseFiles()
	m.CloseFiles() // twice is nothing
}

func TestWriteMessageRefuses(t *testing.T) {
	for _, tt := range []struct {
		name  string
		size  int
		files []int
		want  string
	}{
		{"too large", MaxMessage + 1, nil, "larger than"},
		{"too many descriptors", 1, make([]int, MaxFiles+1), "17 descriptors; at most 16"},
		{"a descriptor that is not open", 1, []int{1 << 20}, "bad file descriptor"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a, b := mustPair(t)
			c := NewConn(a)
			err := c.WriteMessage(make([]byte, tt.size), tt.files...)
			require.ErrorContains(t, err, tt.want)
			require.NoError(t, c.WriteMessage([]byte("{}")), "the stream must be as it was")
			m, err := NewConn(b).ReadMessage()
			require.NoError(t, err)
			require.Equal(t, "{}", string(m.Data))
		})
	}
}

func TestWriteMessageEndsByDeadline(t *testing.T) {
	a, _ := mustPair(t)
	c := NewConn(a)
	require.NoError(t, c.SetWriteDeadline(time.Now().Add(10*time.Millisecond)))
	err := c.WriteMessage(make([]byte, MaxMessage))
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
}

func TestPeer(t *testing.T) {
	a, _ := mustPair(t)
	creds, err := NewConn(a).Peer()
	require.NoError(t, err)
	require.EqualValues(t, os.Getuid(), creds.UID)
	require.EqualValues(t, os.Getgid(), creds.GID)
	require.EqualValues(t, os.Getpid(), creds.PID)
	groups, err := os.Getgroups()
	require.NoError(t, err)
	require.Len(t, creds.Groups, len(groups))
	for i, g := range groups {
		require.EqualValues(t, g, creds.Groups[i])
	}
}

// What is written in any pieces is read as what stands between the NULs.
func FuzzFrames(f *testing.F) {
	f.Add([]byte("{}\x00{}\x00"), uint8(1))
	f.Add([]byte("\x00\x00half"), uint8(3))
	f.Add(bytes.Repeat([]byte("x"), 3*firstPeek), uint8(200))
	f.Fuzz(func(t *testing.T, stream []byte, piece uint8) {
		stream = stream[:min(len(stream), 4096)] // fits the socket: nobody reads yet
		a, b := mustPair(t)
		for rest := stream; len(rest) > 0; {
			n := min(len(rest), int(piece)*16+16)
			mustSend(t, a, string(rest[:n]))
			rest = rest[n:]
		}
		require.NoError(t, a.Close())
		got, err := readAll(NewConn(b))
		want := bytes.Split(stream, []byte{0})
		last := want[len(want)-1]
		want = want[:len(want)-1]
		if len(last) > 0 {
			require.ErrorIs(t, err, io.ErrUnexpectedEOF)
		} else {
			require.ErrorIs(t, err, io.EOF)
		}
		require.Len(t, got, len(want))
		for i := range want {
			require.Equal(t, string(want[i]), string(got[i].Data))
		}
	})
}
