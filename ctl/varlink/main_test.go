package varlink

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// patience bounds each wait of these tests: far more than any of them needs, also
// under the race detector on a busy machine.
const patience = 20 * time.Second

// mustBalance fails the test when it ends with more descriptors or goroutines than
// it began with. Call it first, so that it looks last.
func mustBalance(tb testing.TB) {
	tb.Helper()
	files, goroutines := openFiles(tb), runtime.NumGoroutine()
	tb.Cleanup(func() {
		mustBecome(tb, "no descriptor and no goroutine is left", func() bool {
			return openFiles(tb) <= files && runtime.NumGoroutine() <= goroutines
		})
	})
}

// mustBecome waits for a condition that nothing tells of. It starts no goroutine,
// which mustBalance would count.
func mustBecome(tb testing.TB, what string, is func() bool) {
	tb.Helper()
	for deadline := time.Now().Add(patience); !is(); time.Sleep(time.Millisecond) {
		require.True(tb, time.Now().Before(deadline), "timed out: waiting until %s", what)
	}
}

func openFiles(tb testing.TB) int {
	tb.Helper()
	dir, err := os.ReadDir("/proc/self/fd")
	require.NoError(tb, err)
	return len(dir)
}

// mustPair makes two connected AF_UNIX streams.
func mustPair(tb testing.TB) (a, b *net.UnixConn) {
	tb.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	require.NoError(tb, err)
	return mustConn(tb, fds[0]), mustConn(tb, fds[1])
}

func mustConn(tb testing.TB, fd int) *net.UnixConn {
	tb.Helper()
	f := os.NewFile(uintptr(fd), "socketpair")
	defer f.Close()
	nc, err := net.FileConn(f)
	require.NoError(tb, err)
	uc := nc.(*net.UnixConn)
	require.NoError(tb, uc.SetDeadline(time.Now().Add(patience)))
	tb.Cleanup(func() { _ = uc.Close() })
	return uc
}

// mustFiles opens n descriptors that are closed when the test ends.
func mustFiles(tb testing.TB, n int) []int {
	tb.Helper()
	files := make([]int, n)
	for i := range files {
		fd, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		require.NoError(tb, err)
		tb.Cleanup(func() { _ = unix.Close(fd) })
		files[i] = fd
	}
	return files
}

// mustSend writes data in one sendmsg, with descriptors.
func mustSend(tb testing.TB, uc *net.UnixConn, data string, files ...int) {
	tb.Helper()
	var rights []byte
	if len(files) > 0 {
		rights = unix.UnixRights(files...)
	}
	n, _, err := uc.WriteMsgUnix([]byte(data), rights, nil)
	require.NoError(tb, err)
	require.Equal(tb, len(data), n)
}

const testDescription = `
# What these tests call.
interface org.example.test
method Echo(text: ?string) -> (text: ?string)
method Wait() -> ()
method Count(to: int) -> (n: int)
method Follow() -> (n: int)
method Raw() -> (ready: bool)
method Files(answer: int) -> (got: int)
method Fail(how: string) -> ()
method Take() -> (item: int)
method Big(size: int) -> (text: string)
method Nobody() -> ()
error Broken (message: string)
`

// testService is a server with the methods above.
type testService struct {
	*Server
	path    string
	waiting chan struct{} // one for each Wait that began
	ended   chan error    // how each Wait ended
	items   chan int      // what Take takes
	back    chan int      // what came back
	served  chan error    // Serve's result
}

// startService serves until the test ends; set changes the server before.
func startService(tb testing.TB, set func(*Server)) *testService {
	tb.Helper()
	s := &testService{
		Server:  NewServer(Info{Vendor: "Example", Product: "test", Version: "1", URL: "https://example.org"}),
		path:    filepath.Join(tb.TempDir(), "s"),
		waiting: make(chan struct{}, 1000),
		ended:   make(chan error, 1000),
		items:   make(chan int, 1000),
		back:    make(chan int, 1000),
		served:  make(chan error, 1),
	}
	s.MapError = func(err error) *Error {
		return &Error{Name: "org.example.test.Broken", Parameters: map[string]string{"message": err.Error()}}
	}
	require.NoError(tb, s.Register(testDescription, s.methods()...))
	if set != nil {
		set(s.Server)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: s.path, Net: "unix"})
	require.NoError(tb, err)
	go func() { s.served <- s.Serve(l) }()
	tb.Cleanup(func() {
		require.NoError(tb, s.Close())
		require.NoError(tb, <-s.served)
	})
	return s
}

func (s *testService) methods() []Method {
	return []Method{
		{Name: "org.example.test.Echo", Serve: serveEcho},
		{Name: "org.example.test.Wait", Serve: s.serveWait},
		{Name: "org.example.test.Count", Serve: serveCount},
		{Name: "org.example.test.Follow", Serve: serveCount, NeedsMore: true},
		{Name: "org.example.test.Raw", Serve: serveRaw, NeedsUpgrade: true},
		{Name: "org.example.test.Files", Serve: serveFiles},
		{Name: "org.example.test.Fail", Serve: serveFail},
		{Name: "org.example.test.Take", Serve: s.serveTake},
		{Name: "org.example.test.Big", Serve: serveBig},
	}
}

type echo struct {
	Text *string `json:"text,omitempty"`
}

func serveEcho(_ context.Context, c *ServerCall) error {
	var e echo
	if err := c.Decode(&e); err != nil {
		return err
	}
	return c.Reply(e)
}

func (s *testService) serveWait(ctx context.Context, _ *ServerCall) error {
	s.waiting <- struct{}{}
	<-ctx.Done()
	s.ended <- context.Cause(ctx)
	return context.Cause(ctx)
}

type number struct {
	N int `json:"n"`
}

func serveCount(_ context.Context, c *ServerCall) error {
	in := struct {
		To int `json:"to"`
	}{}
	if err := c.Decode(&in); err != nil {
		return err
	}
	for n := 1; c.More && n < in.To; n++ {
		if err := c.Continue(number{n}); err != nil {
			return err
		}
	}
	return c.Reply(number{in.To})
}

// serveRaw upgrades and sends back what comes.
func serveRaw(_ context.Context, c *ServerCall) error {
	uc, err := c.Upgrade(map[string]bool{"ready": true})
	if err != nil {
		return err
	}
	_, err = io.Copy(uc, uc)
	return err
}

// serveFiles takes every second descriptor, and answers with as many as asked for.
func serveFiles(_ context.Context, c *ServerCall) error {
	in := struct {
		Answer int `json:"answer"`
	}{}
	if err := c.Decode(&in); err != nil {
		return err
	}
	for i := 0; i < c.NumFiles(); i += 2 {
		fd, err := c.TakeFile(i)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
	}
	null, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(null)
	files := make([]int, in.Answer)
	for i := range files {
		files[i] = null
	}
	return c.Reply(map[string]int{"got": c.NumFiles()}, files...)
}

func serveFail(_ context.Context, c *ServerCall) error {
	in := struct {
		How string `json:"how"`
	}{}
	if err := c.Decode(&in); err != nil {
		return err
	}
	switch in.How {
	case "go":
		return errors.New("it broke")
	case "varlink":
		return &Error{Name: "org.example.other.Odd"}
	case "twice":
		return errors.Join(c.Reply(nil), c.Reply(nil))
	case "continue":
		return c.Continue(nil)
	}
	return nil
}

// serveTake takes an item for good, and has it back when nobody reads it.
func (s *testService) serveTake(ctx context.Context, c *ServerCall) error {
	s.waiting <- struct{}{}
	select {
	case item := <-s.items:
		c.OnUndelivered(func() { s.back <- item })
		return c.Reply(map[string]int{"item": item})
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func serveBig(_ context.Context, c *ServerCall) error {
	in := struct {
		Size int `json:"size"`
	}{}
	if err := c.Decode(&in); err != nil {
		return err
	}
	text := make([]byte, in.Size)
	for i := range text {
		text[i] = 'x'
	}
	return c.Reply(map[string]string{"text": string(text)})
}

// mustDialRaw connects without a codec.
func (s *testService) mustDialRaw(tb testing.TB) *net.UnixConn {
	tb.Helper()
	uc, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: s.path, Net: "unix"})
	require.NoError(tb, err)
	require.NoError(tb, uc.SetDeadline(time.Now().Add(patience)))
	tb.Cleanup(func() { _ = uc.Close() })
	return uc
}

func (s *testService) mustDial(tb testing.TB) *Client {
	tb.Helper()
	c, err := Dial(testContext(tb), s.path)
	require.NoError(tb, err)
	tb.Cleanup(func() { _ = c.Close() })
	return c
}

func testContext(tb testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	tb.Cleanup(cancel)
	return ctx
}

// mustReceive waits for a value.
func mustReceive[T any](tb testing.TB, ch <-chan T, what string) T {
	tb.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(patience):
		require.FailNow(tb, "timed out", "waiting for %s", what)
		panic("unreachable")
	}
}

func rawJSON(s string) json.RawMessage { return json.RawMessage(s) }
