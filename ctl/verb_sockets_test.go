package ctl

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/sockd/sockd/ctl/varlink"
	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/familytest"
	"github.com/sockd/sockd/families/model"
	"github.com/stretchr/testify/require"
)

func TestTheClassicProcedure(t *testing.T) {
	sh, b := mustShell(t)
	require.Equal(t, "1", sh.must("open", "inet", "stream"))
	require.Equal(t, "127.0.0.1:7000", sh.must("bind", "1", "127.0.0.1:7000"))
	require.Empty(t, sh.must("listen", "1"))
	b.Dial(1, "127.0.0.1:51234")
	require.Equal(t, "2 127.0.0.1:51234", sh.must("accept", "1"))
	require.Equal(t, result{"", "5 bytes\n", 0}, sh.run("", "send", "2", "hello"))
	require.Equal(t, result{"hello", "", 0}, sh.run("", "recv", "2"))
	require.Empty(t, sh.must("shutdown", "2", "wr"))
	require.Empty(t, sh.must("close", "--accepted", "1"))
	require.Zero(t, b.Sockets())
}

func TestAVerbThatChangesASocketPrintsItWithJSON(t *testing.T) {
	sh, b := mustShell(t)
	socket := func(line ...string) (s model.Socket) {
		t.Helper()
		require.NoError(t, json.Unmarshal([]byte(sh.must(append([]string{"--json"}, line...)...)), &s))
		return s
	}
	require.Equal(t, "new", socket("open", "inet", "stream").State)
	require.Equal(t, "127.0.0.1:1", socket("bind", "1", "127.0.0.1:1").Local)
	require.Equal(t, "listening", socket("listen", "1", "5").State)
	b.Dial(1, "")
	require.Equal(t, model.ID(1), socket("accept", "1").Parent)
	require.Equal(t, "connected", socket("connect", "2", "127.0.0.1:1").State)
	require.Equal(t, "half-closed", socket("shutdown", "2", "rd").State)
	require.JSONEq(t, `{"bytes":3}`, sh.must("--json", "send", "2", "abc"))
	require.JSONEq(t, `{"data":"YWJj","bytes":3,"full_bytes":3,"from":"","eof":false}`, sh.must("--json", "recv", "2"))
	require.JSONEq(t, `[{"name":"so_keepalive","value":"1"}]`, sh.must("--json", "opt", "2", "so_keepalive=1"))
	require.JSONEq(t, `{"closed":[1,2],"failed":[]}`, sh.must("--json", "close", "--all"))
}

func TestUsageIsExit2(t *testing.T) {
	sh, b := mustShell(t)
	for _, line := range []string{
		"open", "open inet", "open inet stream tcp x", "open inet datagram", "bind 1", "bind x 127.0.0.1:1", "bind 0 127.0.0.1:1", "bind -- -1 127.0.0.1:1",
		"listen", "listen 1 0", "listen 1 many", "accept", "accept web", "connect 1", "send", "send x y", "send --hex 1 abc", "send --hex 1 xy",
		"recv", "recv --max 0 1", "recv --max 17M 1", "recv --max x 1", "shutdown 1", "shutdown 1 half", "close", "close --all 1",
		"opt", "opt x", "opt 1 =1", "attach", "attach nonsense", "attach id:x", "attach unix:",
	} {
		t.Run(line, func(t *testing.T) {
			r := sh.run("", strings.Fields(line)...)
			require.Equal(t, ExitUsage, r.exit, r.stderr)
			require.Empty(t, r.stdout)
			require.True(t, strings.HasPrefix(r.stderr, "sockd-ctl: "), r.stderr)
		})
	}
	require.Zero(t, b.Sockets())
}

func TestNoSuchSocketIsExit3(t *testing.T) {
	sh, _ := mustShell(t)
	for _, line := range []string{"bind 7 127.0.0.1:1", "listen 7", "accept 7", "connect 7 127.0.0.1:1", "send 7 x", "recv 7", "shutdown 7 wr", "close 7", "close web", "opt 7", "attach 7"} {
		t.Run(line, func(t *testing.T) {
			r := sh.run("", strings.Fields(line)...)
			require.Equal(t, ExitNotFound, r.exit, r.stderr)
			r = sh.run("", append([]string{"--json"}, strings.Fields(line)...)...)
			require.Contains(t, r.stderr, `{"error":"io.sockd.NotFound","message":`)
			require.Contains(t, r.stderr, `"exit":3`)
		})
	}
}

func TestOpenSaysTheProtocolAsItWasWritten(t *testing.T) {
	sh, _ := mustShell(t)
	for written, want := range map[string]string{"icmp": "icmp", "1": "1", "0x88b5": "34997"} {
		var s model.Socket
		require.NoError(t, json.Unmarshal([]byte(sh.must("--json", "open", "inet", "raw", written)), &s))
		require.Equal(t, want, s.Protocol)
	}
}

func TestOpenInAnotherNetworkNamespaceHandsTheSocketOver(t *testing.T) {
	familytest.Need(t, familytest.Root())
	sh, b := mustShell(t)
	ns := familytest.NewNS(t)
	require.Equal(t, "1", sh.must("open", "--netns", ns.Name(), "inet", "dgram"))
	require.Len(t, b.Handed(), 1)
	sa, err := syscall.Getsockname(b.Handed()[0])
	require.NoError(t, err)
	require.IsType(t, &syscall.SockaddrInet4{}, sa)
	r := sh.run("", "open", "--netns", "no-such-namespace", "inet", "dgram")
	require.Equal(t, ExitNotFound, r.exit)
	require.Equal(t, "sockd-ctl: open inet in network namespace \"no-such-namespace\": /run/netns/no-such-namespace: not found\n", r.stderr)
	r = sh.run("", "open", "--netns", ns.Name(), "inet", "raw", "no-such-protocol")
	require.Equal(t, ExitUsage, r.exit)
}

func TestAMessageThatIsTooLongIsNotCut(t *testing.T) {
	sh, b := mustShell(t)
	sh.must("open", "local", "dgram")
	r := sh.run(strings.Repeat("x", 3*maxMessage+1), "send", "1")
	require.Equal(t, ExitSystem, r.exit)
	require.Contains(t, r.stderr, "(EMSGSIZE)")
	require.Zero(t, b.Messages(1))
}

func TestAnUnnamedPeerIsADash(t *testing.T) {
	sh, b := mustShell(t)
	sh.must("open", "inet", "stream")
	b.Dial(1, "")
	require.Equal(t, "2 -", sh.must("accept", "1"))
}

func TestTimeoutOfAWait(t *testing.T) {
	sh, b := mustShell(t)
	sh.must("open", "inet", "stream")
	for _, verb := range []string{"recv", "accept"} {
		for _, timeout := range []string{"0", "20ms"} {
			r := sh.run("", "--timeout", timeout, verb, "1")
			require.Equal(t, ExitTimedOut, r.exit, r.stderr)
			require.Equal(t, "sockd-ctl: wait for socket 1: timed out\n", r.stderr)
		}
	}
	b.Push(1, model.Message{Data: []byte("there already")})
	require.Equal(t, result{"there already", "", 0}, sh.run("", "--timeout", "0", "recv", "1"))
}

func TestRecvShowsWhatItGot(t *testing.T) {
	all := make([]byte, 256)
	for i := range all {
		all[i] = byte(i)
	}
	tests := []struct {
		name string
		m    model.Message
		line string
		want result
	}{
		{"every byte as it is", model.Message{Data: all}, "recv 1", result{string(all), "", 0}},
		{"an empty message", model.Message{}, "recv 1", result{"", "", 0}},
		{"as hex digits", model.Message{Data: []byte("hi\n")}, "recv --hex 1", result{"68690a\n", "", 0}},
		{"the sender on stderr", model.Message{Data: []byte("hi"), From: "10.0.0.1:53"}, "recv --from 1", result{"hi", "10.0.0.1:53\n", 0}},
		{"a sender without a name", model.Message{Data: []byte("hi")}, "recv --from 1", result{"hi", "-\n", 0}},
		{"the end of a stream", model.Message{EOF: true}, "recv --hex --from 1", result{"", "sockd-ctl: recv 1: end of stream\n", 9}},
		{"the end of a stream as JSON", model.Message{EOF: true}, "--json recv 1", result{
			`{"data":"","bytes":0,"full_bytes":0,"from":"","eof":true}` + "\n",
			`{"error":"io.sockd.EndOfStream","message":"recv 1: end of stream","exit":9}` + "\n", 9}},
		{"a message that was cut", model.Message{Data: []byte("hello")}, "recv --max 2 1", result{"he", "sockd-ctl: recv 1: message was cut: 2 of 5 bytes (EMSGSIZE)\n", 8}},
		{"a message that was cut as JSON", model.Message{Data: []byte("hello")}, "--json recv --max 2 1", result{
			`{"data":"aGU=","bytes":2,"full_bytes":5,"from":"","eof":false}` + "\n",
			`{"error":"io.sockd.SystemError","message":"recv 1: message was cut: 2 of 5 bytes","exit":8,"errno":"EMSGSIZE"}` + "\n", 8}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			sh, b := mustShell(t)
			sh.must("open", "inet", "dgram")
			b.Push(1, tt.m)
			require.Equal(t, tt.want, sh.run("", strings.Fields(tt.line)...))
		})
	}
}

func TestSendTakesItsData(t *testing.T) {
	big := bytes.Repeat([]byte("0123456789abcdef"), MaxInline/16+1)
	tests := []struct {
		name  string
		typ   string
		stdin string
		line  []string
		want  []string // the messages that arrive
	}{
		{"an argument", "stream", "not this", []string{"send", "1", "hello"}, []string{"hello"}},
		{"an empty argument", "dgram", "not this", []string{"send", "1", ""}, []string{""}},
		{"what looks like a flag after --", "dgram", "", []string{"send", "--", "1", "--hex"}, []string{"--hex"}},
		{"hex digits", "dgram", "", []string{"send", "--hex", "1", "68 65\n6C6c 6f"}, []string{"hello"}},
		{"stdin as one message", "dgram", "one\ntwo\n", []string{"send", "1"}, []string{"one\ntwo\n"}},
		{"an empty stdin as an empty message", "dgram", "", []string{"send", "1"}, []string{""}},
		{"stdin as hex digits", "stream", "6869\n", []string{"send", "--hex", "1"}, []string{"hi"}},
		{"stdin into a stream", "stream", "hello", []string{"send", "1"}, []string{"hello"}},
		{"an empty stdin into a stream", "stream", "", []string{"send", "1"}, nil},
		{"a large stdin into a stream, in pieces", "stream", string(big), []string{"send", "1"}, []string{string(big[:MaxInline]), string(big[MaxInline:])}},
		{"a large message, in a memfd", "dgram", string(big), []string{"send", "1"}, []string{string(big)}},
		{"a receiver", "dgram", "", []string{"send", "--to", "10.0.0.1:53", "1", "hi"}, []string{"hi"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			sh, b := mustShell(t)
			sh.must("open", "inet", tt.typ)
			r := sh.run(tt.stdin, tt.line...)
			require.Zero(t, r.exit, r.stderr)
			total := 0
			for _, want := range tt.want {
				total += len(want)
				require.NotZero(t, b.Messages(1), "too few messages")
				m, _, err := b.Recv(context.Background(), model.Caller{}, 1, model.RecvSpec{Room: 1 << 30})
				require.NoError(t, err)
				require.True(t, want == string(m.Data), "got %d bytes; want %d", len(m.Data), len(want))
			}
			require.Zero(t, b.Messages(1), "too many messages")
			require.Equal(t, fmt.Sprintf("%d bytes\n", total), r.stderr)
		})
	}
}

func TestOneByteIsNoPlural(t *testing.T) {
	sh, _ := mustShell(t)
	sh.must("open", "inet", "stream")
	require.Equal(t, result{"", "1 byte\n", 0}, sh.run("", "send", "1", "a"))
}

func TestSendSaysWhatWentBeforeItFailed(t *testing.T) {
	sh, b := mustShell(t)
	sh.must("open", "inet", "stream")
	e := sh.env
	var stdout, stderr bytes.Buffer
	e.Stdout, e.Stderr = &stdout, &stderr
	e.Stdin = &failingReader{pieces: []string{"one", "two"}, then: func() { b.Fail(syscall.EPIPE) }, last: "three"}
	err := runVerb(context.Background(), t, &e, []string{"send", "1"})
	require.ErrorIs(t, err, syscall.EPIPE)
	require.Equal(t, ExitSystem, ExitCode(err))
	require.Equal(t, "6 bytes\n", stderr.String())
}

func TestASignalEndsSendThatReadsATerminal(t *testing.T) {
	for _, typ := range []string{"stream", "dgram"} {
		t.Run(typ, func(t *testing.T) {
			sh, _ := mustShell(t)
			sh.must("open", "inet", typ)
			e := sh.env
			var stderr bytes.Buffer
			e.Stdout, e.Stderr = &stderr, &stderr
			terminal, keys := io.Pipe()
			defer keys.Close() // ends the read that was left
			reading := make(chan struct{})
			e.Stdin = readerFunc(func(p []byte) (int, error) {
				close(reading)
				return terminal.Read(p)
			})
			ctx, cancel := context.WithCancelCause(context.Background())
			done := make(chan error, 1)
			go func() { done <- runVerb(ctx, t, &e, []string{"send", "1"}) }()
			<-reading
			cancel(&SignalError{syscall.SIGINT})
			require.Equal(t, 130, ExitCode(<-done))
		})
	}
}

type readerFunc func(p []byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// failingReader gives pieces, then calls then, and gives the last one.
type failingReader struct {
	pieces []string
	then   func()
	last   string
}

func (r *failingReader) Read(p []byte) (int, error) {
	if len(r.pieces) == 0 {
		r.then()
		return copy(p, r.last), nil
	}
	n := copy(p, r.pieces[0])
	r.pieces = r.pieces[1:]
	return n, nil
}

func TestCloseTriesAllAndCountsTheFirstFailure(t *testing.T) {
	sh, b := mustShell(t)
	sh.must("open", "inet", "stream")
	sh.must("open", "inet", "stream")
	r := sh.run("", "close", "7", "1", "web", "2")
	require.Equal(t, ExitNotFound, r.exit)
	require.Empty(t, r.stdout)
	require.Equal(t, "sockd-ctl: close \"7\": socket 7: not found\nsockd-ctl: close \"web\": socket 0: not found\n", r.stderr, "in their order")
	require.Zero(t, b.Sockets())
}

func TestCloseAllIsWhatTheCallerOwns(t *testing.T) {
	sh, b := mustShell(t)
	sh.must("open", "inet", "stream")
	sh.must("open", "inet", "stream")
	_, err := b.Open(context.Background(), model.Caller{UID: 4711}, "inet", "stream", 0, "", model.NoFD)
	require.NoError(t, err)
	require.JSONEq(t, `{"closed":[1,2],"failed":[]}`, sh.must("--json", "close", "--all"))
	require.Equal(t, 1, b.Sockets())
}

func TestOptReadsAndSetsInOrder(t *testing.T) {
	sh, _ := mustShell(t)
	sh.must("open", "inet", "stream")
	require.Equal(t, "so_keepalive=0\nso_rcvbuf=212992", sh.must("opt", "1"))
	require.Equal(t, "so_keepalive=1\nso_rcvbuf=212992\nso_keepalive=2", sh.must("opt", "1", "so_keepalive=1", "so_rcvbuf", "so_keepalive=2"))
	r := sh.run("", "opt", "1", "so_nonsense")
	require.Equal(t, ExitUsage, r.exit)
}

func TestAttachJoinsStdinAndStdout(t *testing.T) {
	sh, _ := mustShell(t)
	sh.must("open", "inet", "stream")
	big := strings.Repeat("0123456789abcdef", 64<<10)
	for _, target := range []string{"1", "id:1", "tcp:127.0.0.1:80"} {
		r := sh.run(big, "attach", target)
		require.Zero(t, r.exit, r.stderr)
		require.True(t, big == r.stdout, "%s: got %d bytes; want %d", target, len(r.stdout), len(big))
	}
}

// Whatever had ended an attachment, the exit code was 0: half a download looked like
// a whole one.
func TestAttachSaysHowItEnded(t *testing.T) {
	sh, b := mustShell(t)
	sh.must("open", "inet", "stream")
	for _, tt := range []struct {
		err    error
		exit   int
		stderr string
	}{
		{nil, 0, ""},
		{&families.OpError{Op: "attach", Family: "inet", Err: syscall.ECONNRESET}, ExitSystem, "sockd-ctl: attach inet: connection reset by peer (ECONNRESET)\n"},
		{fmt.Errorf("attach inet: socket 1 was closed: %w", families.ErrNotFound), ExitNotFound, "sockd-ctl: attach inet: socket 1 was closed: not found\n"},
	} {
		b.EndBadly(tt.err)
		require.Equal(t, result{"what came before", tt.stderr, tt.exit}, sh.run("what came before", "attach", "1"))
	}
}

// A daemon that is killed ends the connection, too, and is no good end.
func TestAttachSaysThatTheDaemonIsGone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "io.sockd")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	require.NoError(t, err)
	defer l.Close()
	done := make(chan error, 1)
	go func() {
		uc, err := l.AcceptUnix()
		if err != nil {
			done <- err
			return
		}
		defer l.Close()
		c := varlink.NewConn(uc)
		defer c.Close()
		o, err := newOutcome()
		if err == nil {
			defer o.close()
			_, err = c.ReadMessage()
		}
		if err == nil {
			err = c.WriteMessage([]byte(`{"parameters":{"socket":{},"outcome":0}}`), o.reader)
		}
		done <- err
	}()
	r := newShell(t, path).run("", "attach", "1")
	require.NoError(t, <-done)
	require.Equal(t, ExitUnreachable, r.exit, r.stderr)
}

// Of a message above 512 KiB the rest was lost.
func TestALongMessageComesByAMemfd(t *testing.T) {
	long := strings.Repeat("0123456789", 70000)
	sh, b := mustShell(t)
	sh.must("open", "inet", "dgram")
	for _, tt := range []struct {
		line string
		want result
	}{
		{"recv 1", result{long, "", 0}},
		{"recv --max 1M 1", result{long, "", 0}},
		{"recv --max 600k 1", result{long[:600<<10], "sockd-ctl: recv 1: message was cut: 614400 of 700000 bytes (EMSGSIZE)\n", ExitSystem}},
	} {
		b.Push(1, model.Message{Data: []byte(long)})
		got := sh.run("", strings.Fields(tt.line)...)
		require.True(t, tt.want == got, "%s: exit %d, %d bytes, %s", tt.line, got.exit, len(got.stdout), got.stderr)
	}
	b.Push(1, model.Message{Data: []byte(long)})
	var out recvOut
	require.NoError(t, json.Unmarshal([]byte(sh.must("--json", "recv", "1")), &out))
	require.True(t, long == string(out.Data))
	require.Nil(t, out.InDescriptor, "how it came is nobody's affair")
}

// A caller without a memfd, or with one that takes nothing, leaves the message
// where it was.
func TestALongMessageStaysForWhoCanTakeIt(t *testing.T) {
	long := strings.Repeat("0123456789", 70000)
	sh, b := mustShell(t)
	sh.must("open", "inet", "dgram")
	b.Push(1, model.Message{Data: []byte(long)})
	err := sh.env.call(context.Background(), "io.sockd.Manager.Recv", recvIn{ID: 1}, nil)
	require.Equal(t, ExitSystem, ExitCode(err))
	require.ErrorIs(t, err, syscall.EMSGSIZE)
	many := 600 << 10
	err = sh.env.call(context.Background(), "io.sockd.Manager.Recv", recvIn{ID: 1, Max: &many}, nil)
	require.Equal(t, ExitUsage, ExitCode(err))

	file, err := os.CreateTemp("/dev/shm", "sockd-test-")
	require.NoError(t, err)
	defer os.Remove(file.Name())
	require.NoError(t, file.Close())
	readOnly, err := syscall.Open(file.Name(), syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	require.NoError(t, err)
	defer closeFile(readOnly)
	err = sh.env.call(context.Background(), "io.sockd.Manager.Recv", recvIn{ID: 1, Descriptor: new(int)}, nil, readOnly)
	require.ErrorIs(t, err, syscall.EBADF)
	eventually(t, "the message is back", func() bool { return b.Messages(1) == 1 })

	var p [2]int
	require.NoError(t, syscall.Pipe2(p[:], syscall.O_CLOEXEC))
	defer closeAll(p[:])
	err = sh.env.call(context.Background(), "io.sockd.Manager.Recv", recvIn{ID: 1, Descriptor: new(int)}, nil, p[1])
	require.Equal(t, ExitUsage, ExitCode(err), "a pipe would block")
	require.True(t, long == sh.must("recv", "1"))
}

func TestAttachDialsAUnixPathWithTheCallersRights(t *testing.T) {
	sh, _ := mustShell(t)
	path := filepath.Join(t.TempDir(), "app.sock")
	r := sh.run("", "attach", "unix:"+path)
	require.Equal(t, ExitSystem, r.exit)
	require.Equal(t, fmt.Sprintf("sockd-ctl: connect local %q: no such file or directory (ENOENT)\n", path), r.stderr)

	l, err := net.Listen("unix", path)
	require.NoError(t, err)
	defer l.Close()
	r = sh.run("hello", "attach", "unix:"+path)
	require.Equal(t, result{"hello", "", 0}, r)
	c, err := l.Accept()
	require.NoError(t, err, "sockd-ctl itself connected")
	require.NoError(t, c.Close())
}

func TestALocalSocketsPathIsTheCallers(t *testing.T) {
	sh, b := mustShell(t)
	path := filepath.Join(t.TempDir(), "app.sock")
	for _, typ := range []string{"stream", "stream", "dgram", "dgram"} {
		sh.must("open", "local", typ)
	}
	require.Equal(t, path, sh.must("bind", "1", path))
	require.Empty(t, sh.must("listen", "1", "3"))
	require.Empty(t, sh.must("connect", "2", path))
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.NotZero(t, info.Mode()&os.ModeSocket)

	r := sh.run("", "bind", "3", path)
	require.Equal(t, ExitInUse, r.exit, "somebody listens there")
	require.Equal(t, fmt.Sprintf("sockd-ctl: bind local %q: address already in use (EADDRINUSE)\n", path), r.stderr)

	gram := path + ".gram"
	require.Equal(t, gram, sh.must("bind", "3", gram))
	require.Equal(t, result{"", "2 bytes\n", 0}, sh.run("", "send", "--to", gram, "4", "hi"))
	object, err := b.Show(context.Background(), model.Caller{}, "4")
	require.NoError(t, err)
	require.Equal(t, int64(2), object.Socket.TxBytes)
	require.Equal(t, int64(1), object.Socket.TxMessages)

	r = sh.run("", "--timeout", "0", "connect", "2", path)
	require.Equal(t, ExitInUse, r.exit, "it is connected")
}

func TestAFullBacklogIsWaitedForAsLongAsTheTimeout(t *testing.T) {
	sh, _ := mustShell(t)
	path := filepath.Join(t.TempDir(), "app.sock")
	sh.must("open", "local", "stream")
	sh.must("bind", "1", path)
	sh.must("listen", "1", "1")
	id := 1
	for connected := true; connected; { // the kernel takes one or two more than the backlog
		id++
		require.Less(t, id, 10)
		sh.must("open", "local", "stream")
		r := sh.run("", "--timeout", "50ms", "connect", fmt.Sprint(id), path)
		connected = r.exit == 0
		if !connected {
			require.Equal(t, ExitTimedOut, r.exit, r.stderr)
		}
	}
}

func TestEveryVerbHasItsHelp(t *testing.T) {
	for _, v := range Verbs() {
		t.Run(v.Name, func(t *testing.T) {
			require.NotEmpty(t, v.Short)
			require.NotEmpty(t, v.Long)
			require.NotEmpty(t, v.Examples)
			for _, example := range v.Examples {
				require.Contains(t, example, "sockd-ctl ", "an example is a command")
			}
		})
	}
}
