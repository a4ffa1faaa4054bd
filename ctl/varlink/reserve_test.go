package varlink

import (
	"context"
	"io"
	"os"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// exhaust takes every descriptor that this process may have. free gives them back.
func exhaust(tb testing.TB) (free func()) {
	tb.Helper()
	var old unix.Rlimit
	require.NoError(tb, unix.Getrlimit(unix.RLIMIT_NOFILE, &old))
	require.NoError(tb, unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 256, Max: old.Max}))
	var files []int
	for {
		fd, err := unix.Open(os.DevNull, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			require.ErrorIs(tb, err, unix.EMFILE)
			break
		}
		files = append(files, fd)
	}
	free = sync.OnceFunc(func() {
		closeFiles(files)
		require.NoError(tb, unix.Setrlimit(unix.RLIMIT_NOFILE, &old))
	})
	tb.Cleanup(free)
	return free
}

// Without descriptors accept(2) fails, and callers waited in the queue without an
// answer, an error or a close, as long as that lasted.
func TestCallersAreToldWhenThereAreNoDescriptors(t *testing.T) {
	mustBalance(t)
	told := make(chan bool, 1000)
	s := startService(t, func(s *Server) { s.Starved = func(_ error, answered bool) { told <- answered } })
	require.NoError(t, s.mustDial(t).Call(testContext(t), "org.example.test.Echo", echo{}, nil), "it accepts")
	const callers = 3
	var socks [callers]int // made before, since they are this process's, too
	for i := range socks {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		require.NoError(t, err)
		defer unix.Close(fd)
		require.NoError(t, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: int64(patience.Seconds())}))
		socks[i] = fd
	}
	free := exhaust(t)
	for _, fd := range socks {
		require.NoError(t, unix.Connect(fd, &unix.SockaddrUnix{Name: s.path}))
		answer := make([]byte, 4096)
		n, err := unix.Read(fd, answer)
		require.NoError(t, err)
		require.Contains(t, string(answer[:n]), `{"error":"org.example.test.Broken","parameters":{"message":"the service cannot take another caller: too many open files"}}`+"\x00")
		n, err = unix.Read(fd, answer)
		require.NoError(t, err)
		require.Zero(t, n, "and then it is closed")
		require.True(t, mustReceive(t, told, "the log line"))
	}
	free()
	require.GreaterOrEqual(t, s.Stats().TurnedAway, int64(callers))
	require.NoError(t, s.mustDial(t).Call(testContext(t), "org.example.test.Echo", echo{}, nil), "and it goes on")
}

// After an upgrade the method learns that its peer has died, and does not mistake
// one for it that has only ended its own direction.
func TestAnUpgradedCallLearnsOfAHangUp(t *testing.T) {
	mustBalance(t)
	upgraded, gone, done := make(chan *ServerCall, 1), make(chan struct{}), make(chan struct{})
	s := startService(t, func(s *Server) {
		require.NoError(t, s.Register("interface org.example.raw\nmethod Watch() -> ()", Method{
			Name: "org.example.raw.Watch", NeedsUpgrade: true,
			Serve: func(_ context.Context, c *ServerCall) error {
				uc, err := c.Upgrade(nil)
				if err != nil {
					return err
				}
				if _, err := io.ReadAll(uc); err != nil {
					return err
				}
				upgraded <- c
				<-c.Gone()
				close(gone)
				<-done
				return nil
			},
		}))
	})
	uc := s.mustDialRaw(t)
	mustSend(t, uc, `{"method":"org.example.raw.Watch","upgrade":true}`+"\x00")
	mustRead(t, uc, "{}\x00")
	require.NoError(t, uc.CloseWrite())
	c := mustReceive(t, upgraded, "the end of what was sent")
	select {
	case <-c.Gone():
		t.Fatal("it is still there")
	default:
	}
	require.NoError(t, uc.Close())
	mustReceive(t, gone, "the hang-up")
	close(done)
}
