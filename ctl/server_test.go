package ctl

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sockd/sockd/ctl/ctltest"
	"github.com/sockd/sockd/families/familytest"
	"github.com/sockd/sockd/families/model"
	"github.com/stretchr/testify/require"
)

// raw is a caller who writes the protocol by hand.
type raw struct {
	tb testing.TB
	*net.UnixConn
	r *bufio.Reader
}

func mustDial(tb testing.TB, path string) *raw {
	tb.Helper()
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	require.NoError(tb, err)
	tb.Cleanup(func() { _ = c.Close() })
	require.NoError(tb, c.SetDeadline(time.Now().Add(patience)))
	return &raw{tb, c, bufio.NewReader(c)}
}

func (c *raw) send(text string) {
	c.tb.Helper()
	_, err := c.Write([]byte(text + "\x00"))
	require.NoError(c.tb, err)
}

// reply reads one message, without its NUL.
func (c *raw) reply() string {
	c.tb.Helper()
	text, err := c.r.ReadString(0)
	require.NoError(c.tb, err)
	return strings.TrimSuffix(text, "\x00")
}

func (c *raw) ask(method, parameters string) string {
	c.tb.Helper()
	c.send(fmt.Sprintf(`{"method":%q,"parameters":%s}`, method, parameters))
	return c.reply()
}

func TestARawCallerOpensASocket(t *testing.T) {
	path, _ := mustServe(t, ctltest.New(t))
	c := mustDial(t, path)
	var info struct {
		Parameters struct {
			Product, Version string
			Interfaces       []string
		}
	}
	require.NoError(t, json.Unmarshal([]byte(c.ask("org.varlink.service.GetInfo", "{}")), &info))
	require.Equal(t, "sockd", info.Parameters.Product)
	require.Equal(t, []string{"io.sockd", "io.sockd.Capture", "io.sockd.Manager", "io.sockd.Packet", "io.sockd.Recorder", "io.sockd.Relay", "org.varlink.service"}, info.Parameters.Interfaces)
	require.Contains(t, c.ask("org.varlink.service.GetInterfaceDescription", `{"interface":"io.sockd.Manager"}`), "method Open(")
	require.Contains(t, c.ask("io.sockd.Manager.Open", `{"family":"inet","type":"stream"}`), `{"parameters":{"id":1,"socket":{"id":1,`)
	require.Contains(t, c.ask("io.sockd.Manager.Bind", `{"id":7,"address":"127.0.0.1:1"}`), `{"error":"io.sockd.NotFound","parameters":{"message":"socket 7: not found","exit":3}}`)
}

func TestParametersAreReadStrictly(t *testing.T) {
	b := ctltest.New(t)
	path, _ := mustServe(t, b)
	c := mustDial(t, path)
	for parameters, wrong := range map[string]string{
		`{}`:                              "family",
		`{"family":"inet"}`:               "type",
		`{"family":"inet","type":7}`:      "type",
		`{"family":null,"type":"stream"}`: "family",
		`{"family":"inet","type":"stream","protocol":"tcp"}`: "protocol",
		`{"family":"inet","type":"stream","Protocol":6}`:     "Protocol",
		`{"family":"inet","type":"stream","descriptor":0}`:   "descriptor",
		`{"family":"inet","type":"stream","descriptor":-1}`:  "descriptor",
	} {
		want := fmt.Sprintf(`{"error":"org.varlink.service.InvalidParameter","parameters":{"parameter":%q}}`, wrong)
		require.Equal(t, want, c.ask("io.sockd.Manager.Open", parameters), parameters)
	}
	require.Zero(t, b.Sockets())
}

func TestAuthorizeIsAskedForEveryMethod(t *testing.T) {
	b := ctltest.New(t)
	b.Deny(func(c model.Caller, method string) error {
		require.Equal(t, uint32(os.Getuid()), c.UID)
		require.Equal(t, int32(os.Getpid()), c.PID)
		return fmt.Errorf("%s: %w", method, syscall.EPERM)
	})
	path, _ := mustServe(t, b)
	c := mustDial(t, path)
	want := []string{"org.varlink.service.GetInfo", "org.varlink.service.GetInterfaceDescription", "io.sockd.Manager.Nonsense"}
	for name := range methods {
		want = append(want, name)
	}
	for _, method := range want {
		require.Equal(t, fmt.Sprintf(`{"error":"io.sockd.PermissionDenied","parameters":{"message":"%s: operation not permitted","exit":4,"errno":"EPERM"}}`, method), c.ask(method, `{"nonsense":true}`))
	}
	require.Equal(t, want, b.Asked())
}

func TestTwoHundredCallersAtOnce(t *testing.T) {
	familytest.NoLeaks(t)
	t.Run("callers", func(t *testing.T) {
		b := ctltest.New(t)
		path, s := mustServe(t, b)
		sh := newShell(t, path)
		sh.must("open", "inet", "stream")
		const callers = 200
		var wg sync.WaitGroup
		results := make(chan result, callers)
		for i := range callers {
			wg.Go(func() {
				timeout := "20s"
				if i%2 == 0 {
					timeout = "30ms" // these leave while the others wait on
				}
				results <- sh.run("", "--timeout", timeout, "recv", "1")
			})
		}
		for range callers / 2 {
			require.Equal(t, ExitTimedOut, (<-results).exit)
		}
		eventually(t, "half of them wait", func() bool { return b.Waiting(1) == callers/2 })
		for i := range callers / 2 {
			b.Push(1, model.Message{Data: fmt.Appendf(nil, "message %d", i)})
		}
		wg.Wait()
		close(results)
		got := map[string]bool{}
		for r := range results {
			require.Zero(t, r.exit, r.stderr)
			got[r.stdout] = true
		}
		require.Len(t, got, callers/2, "each message once")
		eventually(t, "all connections are gone", func() bool { return s.Stats().Conns == 0 })
	})
}

func TestACallerThatLeavesEndsItsCall(t *testing.T) {
	b := ctltest.New(t)
	path, _ := mustServe(t, b)
	newShell(t, path).must("open", "inet", "stream")
	c := mustDial(t, path)
	c.send(`{"method":"io.sockd.Manager.Recv","parameters":{"id":1}}`)
	eventually(t, "the call waits", func() bool { return b.Waiting(1) == 1 })
	require.NoError(t, c.Close())
	eventually(t, "the call ends", func() bool { return b.Waiting(1) == 0 })
	b.Push(1, model.Message{Data: []byte("kept")})
	require.Equal(t, "kept", newShell(t, path).must("recv", "1"))
}

func TestAMessageForACallerWhoLeftIsGivenBack(t *testing.T) {
	b := ctltest.New(t)
	path, s := mustServe(t, b)
	sh := newShell(t, path)
	sh.must("open", "inet", "dgram")
	b.Push(1, model.Message{Data: []byte("first")})
	b.Push(1, model.Message{Data: []byte("second")})
	c := mustDial(t, path)
	c.send(`{"method":"io.sockd.Manager.Recv","parameters":{"id":1}}`)
	eventually(t, "the answer waits for its reader", func() bool { return b.Messages(1) == 1 })
	require.NoError(t, c.Close())
	eventually(t, "the message is back", func() bool { return b.Undone() == 1 })
	require.Equal(t, "first", sh.must("recv", "1"))
	require.Equal(t, "second", sh.must("recv", "1"))
	eventually(t, "what was read stays taken", func() bool { return s.Stats().Conns == 0 })
	require.Equal(t, int64(1), b.Undone())
}

func TestACallerThatOnlyHalfClosesGetsItsAnswer(t *testing.T) {
	socat, err := exec.LookPath("socat")
	require.NoError(t, err, "socat is one of the tools that tests need")
	b := ctltest.New(t)
	path, _ := mustServe(t, b)
	newShell(t, path).must("open", "inet", "stream")
	// -t: how long socat waits after its stdin ended.
	cmd := exec.Command(socat, "-t", fmt.Sprint(patience.Seconds()), "-", "UNIX-CONNECT:"+path)
	cmd.Stdin = strings.NewReader(`{"method":"io.sockd.Manager.Recv","parameters":{"id":1}}` + "\x00")
	var out bytes.Buffer
	cmd.Stdout = &out
	require.NoError(t, cmd.Start())
	eventually(t, "the call waits", func() bool { return b.Waiting(1) == 1 })
	b.Push(1, model.Message{Data: []byte("late")})
	require.NoError(t, cmd.Wait())
	require.Equal(t, `{"parameters":{"data":"bGF0ZQ==","bytes":4,"full_bytes":4,"from":"","eof":false}}`+"\x00", out.String())
}

func TestPipelinedCallsAreAnsweredInOrder(t *testing.T) {
	path, _ := mustServe(t, ctltest.New(t))
	c := mustDial(t, path)
	open := `{"method":"io.sockd.Manager.Open","parameters":{"family":"inet","type":"stream"}}` + "\x00"
	_, err := c.Write([]byte(strings.Repeat(open, 100)))
	require.NoError(t, err)
	for id := range 100 {
		require.Contains(t, c.reply(), fmt.Sprintf(`{"parameters":{"id":%d,`, id+1))
	}
}

func TestHalfAMessageHoldsUpNobody(t *testing.T) {
	b := ctltest.New(t)
	path, s := mustServe(t, b)
	stalled := mustDial(t, path)
	_, err := stalled.Write([]byte(`{"method":"io.sockd.Manager.Open","para`))
	require.NoError(t, err)
	eventually(t, "it is connected", func() bool { return s.Stats().Conns == 1 })
	require.Equal(t, "1", newShell(t, path).must("open", "inet", "stream"))
	_, err = stalled.Write([]byte(`meters":{"family":"inet","type":"stream"}}` + "\x00"))
	require.NoError(t, err)
	require.Contains(t, stalled.reply(), `{"parameters":{"id":2,`, "it went on in time")
}

func TestAttachTurnsTheConnectionIntoRawBytes(t *testing.T) {
	path, _ := mustServe(t, ctltest.New(t))
	newShell(t, path).must("open", "inet", "stream")
	require.Equal(t, `{"error":"org.varlink.service.ExpectedUpgrade"}`, mustDial(t, path).ask("io.sockd.Manager.Attach", `{"id":1}`))
	for name, parameters := range map[string]string{"neither": `{}`, "both": `{"id":1,"endpoint":"tcp:127.0.0.1:1"}`, "no endpoint": `{"endpoint":"x"}`} {
		c := mustDial(t, path)
		c.send(`{"method":"io.sockd.Manager.Attach","upgrade":true,"parameters":` + parameters + `}`)
		require.Contains(t, c.reply(), `{"error":"io.sockd.InvalidArgument"`, name)
	}
	c := mustDial(t, path)
	// What follows the NUL belongs to the socket, NULs and all.
	_, err := c.Write([]byte(`{"method":"io.sockd.Manager.Attach","upgrade":true,"parameters":{"id":1}}` + "\x00early\x00"))
	require.NoError(t, err)
	require.Contains(t, c.reply(), `{"parameters":{"socket":{"id":1,`)
	_, err = c.Write([]byte("late"))
	require.NoError(t, err)
	require.NoError(t, c.CloseWrite())
	all, err := io.ReadAll(c.r)
	require.NoError(t, err)
	require.Equal(t, "early\x00late", string(all))
}

func TestADescriptorThatCannotBeSentFromIsRefused(t *testing.T) {
	sh, b := mustShell(t)
	sh.must("open", "inet", "dgram")
	r, w, err := os.Pipe()
	require.NoError(t, err)
	defer r.Close()
	defer w.Close()
	self, err := os.Open("/proc/self/status")
	require.NoError(t, err)
	defer self.Close()
	large, err := os.CreateTemp("/dev/shm", "sockd-test-")
	require.NoError(t, err)
	defer large.Close()
	require.NoError(t, os.Remove(large.Name()))
	require.NoError(t, large.Truncate(maxMessage+1))
	tests := []struct {
		name string
		f    *os.File
		exit int
	}{
		{"a pipe, which would block", r, ExitUsage},
		{"a file of a file system that may block", self, ExitUsage},
		{"more than a message", large, ExitSystem},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			rc, err := tt.f.SyscallConn()
			require.NoError(t, err)
			var sendErr error
			require.NoError(t, rc.Control(func(fd uintptr) {
				sendErr = sh.env.call(context.Background(), "io.sockd.Manager.Send", sendIn{ID: 1, Descriptor: new(int)}, nil, int(fd))
			}))
			require.Equal(t, tt.exit, ExitCode(sendErr), "%v", sendErr)
		})
	}
	require.Zero(t, b.Messages(1))
}

func TestShutdownEndsCallsThatWait(t *testing.T) {
	familytest.NoLeaks(t)
	b := ctltest.New(t)
	path, s := mustServe(t, b)
	newShell(t, path).must("open", "inet", "stream")
	c := mustDial(t, path)
	c.send(`{"method":"io.sockd.Manager.Accept","parameters":{"id":1}}`)
	eventually(t, "the call waits", func() bool { return b.Waiting(1) == 1 })
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	require.NoError(t, s.Shutdown(ctx))
	require.Contains(t, c.reply(), `{"error":"io.sockd.`)
	_, err := c.r.ReadByte()
	require.ErrorIs(t, err, io.EOF)
	require.NoError(t, s.Shutdown(ctx), "a second time")
}

func TestServedIsToldOfEachCall(t *testing.T) {
	type told struct {
		uid    uint32
		method string
		failed bool
	}
	calls := make(chan told, 2)
	b := ctltest.New(t)
	path := t.TempDir() + "/io.sockd"
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	require.NoError(t, err)
	s := NewServer(b, ServerOptions{Served: func(c model.Caller, method string, err error) {
		calls <- told{c.UID, method, err != nil}
	}})
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	c := mustDial(t, path)
	c.ask("io.sockd.Manager.Open", `{"family":"inet","type":"stream"}`)
	c.ask("io.sockd.Manager.Listen", `{"id":9}`)
	uid := uint32(os.Getuid())
	require.Equal(t, told{uid, "io.sockd.Manager.Open", false}, <-calls)
	require.Equal(t, told{uid, "io.sockd.Manager.Listen", true}, <-calls)
	require.NoError(t, s.Close())
	require.NoError(t, <-served)
}

func TestAListingIsCutIntoParts(t *testing.T) {
	l := Listing{
		Sockets: []model.Socket{{ID: 1}, {ID: 2, Local: strings.Repeat("x", 2000)}, {ID: 3}}, Relays: []model.Relay{{ID: 4}},
		Sessions: []model.Session{{ID: 5}}, Captures: []model.Capture{{ID: 6}, {ID: 7}},
	}
	for _, room := range []int{1, 500, 1000, 1 << 20} {
		var got Listing
		for _, p := range splitListing(l, room) {
			got.Sockets = append(got.Sockets, p.Sockets...)
			got.Relays = append(got.Relays, p.Relays...)
			got.Sessions = append(got.Sessions, p.Sessions...)
			got.Captures = append(got.Captures, p.Captures...)
		}
		require.Equal(t, l, got, "room %d", room)
	}
	require.Len(t, splitListing(l, 1), 7)
	require.Len(t, splitListing(l, 1<<20), 1)
	require.Len(t, splitListing(Listing{}, 1), 1, "an empty one, too")
}

func TestTenThousandSocketsThroughOneConnection(t *testing.T) {
	b := ctltest.New(t)
	path, _ := mustServe(t, b)
	e := newShell(t, path).env
	c, err := e.Dial(context.Background())
	require.NoError(t, err)
	defer c.Close()
	const many = 10000
	for i := range many {
		var out openOut
		require.NoError(t, c.Call(context.Background(), "io.sockd.Manager.Open", openIn{Family: "inet", Type: "stream"}, &out))
		require.Equal(t, model.ID(i+1), out.ID)
	}
	l, err := e.list(context.Background(), "sockets")
	require.NoError(t, err)
	require.Len(t, l.Sockets, many)
	for i, s := range l.Sockets {
		require.Equal(t, model.ID(i+1), s.ID)
	}
	err = c.Call(context.Background(), "io.sockd.Manager.List", listIn{[]string{"sockets"}}, nil)
	require.Equal(t, ExitUsage, ExitCode(err), "one message is too small")
	require.ErrorContains(t, err, "call it with more")
	all := true
	var out closeOut
	require.NoError(t, c.Call(context.Background(), "io.sockd.Manager.Close", closeIn{Refs: []string{}, All: &all}, &out))
	require.Len(t, out.Closed, many)
	require.Zero(t, b.Sockets())
}
