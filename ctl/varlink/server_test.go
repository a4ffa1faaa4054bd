package varlink

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// The transcripts are UAPI.20 as bytes: what a client writes, then closes its
// sending half; and all that it gets until the service closes.
func TestTranscript(t *testing.T) {
	const test = "org.example.test."
	call := func(method, rest string) string { return `{"method":"` + test + method + `"` + rest + "}\x00" }
	echoX := call("Echo", `,"parameters":{"text":"x"}`)
	const gotX = `{"parameters":{"text":"x"}}` + "\x00"
	invalidParameter := func(name string) string {
		return `{"error":"org.varlink.service.InvalidParameter","parameters":{"parameter":"` + name + `"}}` + "\x00"
	}
	filler := strings.Repeat("x", MaxMessage-len(strings.TrimSuffix(call("Nothing", `,"parameters":{"text":""}`), "\x00")))

	for _, tt := range []struct{ name, in, out string }{
		{"nothing", "", ""},
		{"one call", echoX, gotX},
		{"white space around", " {\n\"method\" :\t\"org.example.test.Echo\" , \"parameters\" : { \"text\" : \"x\" } } \r\n\x00", gotX},
		{"pipelined calls are answered in order", echoX + call("Count", `,"parameters":{"to":3}`) + echoX,
			gotX + `{"parameters":{"n":3}}` + "\x00" + gotX},
		{"parameters absent", call("Echo", ""), "{}\x00"},
		{"parameters null", call("Echo", `,"parameters":null`), "{}\x00"},
		{"parameters {}", call("Echo", `,"parameters":{ }`), "{}\x00"},
		{"an optional field null", call("Echo", `,"parameters":{"text":null}`), "{}\x00"},
		{"text beyond ASCII", call("Echo", `,"parameters":{"text":"<ü\u0000\ud83d\ude00>"}`), `{"parameters":{"text":"<ü\u0000😀>"}}` + "\x00"},

		{"oneway is not answered", call("Echo", `,"oneway":true`) + echoX, gotX},
		{"a failing oneway is not answered", call("Fail", `,"oneway":true,"parameters":{"how":"go"}`) + echoX, gotX},
		{"an unknown method oneway is not answered", call("Missing", `,"oneway":true`) + echoX, gotX},
		{"more", call("Count", `,"more":true,"parameters":{"to":3}`) + echoX,
			`{"parameters":{"n":1},"continues":true}` + "\x00" + `{"parameters":{"n":2},"continues":true}` + "\x00" + `{"parameters":{"n":3}}` + "\x00" + gotX},
		{"more to a method that has one reply", call("Echo", `,"more":true,"parameters":{"text":"x"}`), gotX},
		{"flags false or null are absent", call("Echo", `,"more":false,"oneway":null,"upgrade":false,"parameters":{"text":"x"}`), gotX},
		{"one flag true and one false", call("Echo", `,"more":true,"oneway":false,"parameters":{"text":"x"}`), gotX},
		{"a method that needs more", call("Follow", `,"parameters":{"to":3}`), `{"error":"org.varlink.service.ExpectedMore"}` + "\x00"},
		{"a method that needs an upgrade", call("Raw", "") + echoX, `{"error":"org.varlink.service.ExpectedUpgrade"}` + "\x00" + gotX},
		{"an upgrade", call("Raw", `,"upgrade":true`) + "raw\x00bytes", `{"parameters":{"ready":true}}` + "\x00raw\x00bytes"},
		{"an upgrade that the method does not know", call("Echo", `,"upgrade":true`) + echoX, invalidParameter("upgrade") + gotX},

		{"an unknown interface", `{"method":"org.example.none.Echo"}` + "\x00",
			`{"error":"org.varlink.service.InterfaceNotFound","parameters":{"interface":"org.example.none"}}` + "\x00"},
		{"an unknown method", call("None", ""), `{"error":"org.varlink.service.MethodNotFound","parameters":{"method":"org.example.test.None"}}` + "\x00"},
		{"a method that is only described", call("Nobody", ""),
			`{"error":"org.varlink.service.MethodNotImplemented","parameters":{"method":"org.example.test.Nobody"}}` + "\x00"},
		{"an unknown parameter", call("Echo", `,"parameters":{"Text":"x"}`) + echoX, invalidParameter("Text") + gotX},
		{"a parameter of another type", call("Echo", `,"parameters":{"text":1}`), invalidParameter("text")},
		{"a parameter that is missing", call("Count", ""), invalidParameter("to")},
		{"a parameter that comes twice", call("Echo", `,"parameters":{"text":"a","text":"b"}`), invalidParameter("parameters")},
		{"a Go error", call("Fail", `,"parameters":{"how":"go"}`) + echoX, `{"error":"org.example.test.Broken","parameters":{"message":"it broke"}}` + "\x00" + gotX},
		{"a Varlink error", call("Fail", `,"parameters":{"how":"varlink"}`), `{"error":"org.example.other.Odd"}` + "\x00"},
		{"a method that answers twice", call("Fail", `,"parameters":{"how":"twice"}`) + echoX, "{}\x00" + gotX},
		{"a method that continues without more", call("Fail", `,"parameters":{"how":"continue"}`),
			`{"error":"org.example.test.Broken","parameters":{"message":"answer org.example.test.Fail: call takes one reply only"}}` + "\x00"},
		{"a method that does not answer", call("Fail", `,"parameters":{"how":"not"}`) + echoX, "{}\x00" + gotX},
		{"an answer that is too large", call("Big", `,"parameters":{"size":1048577}`) + echoX,
			`{"error":"org.example.test.Broken","parameters":{"message":"answer org.example.test.Big: message is larger than 1048576 bytes"}}` + "\x00" + gotX},

		{"a vendor's member is ignored", call("Echo", `,"org.example":{"a":1},"parameters":{"text":"x"}`), gotX},
		{"an unknown member closes", echoX + call("Echo", `,"priority":1`) + echoX, gotX},
		{"a member in other case closes", `{"Method":"org.example.test.Echo"}` + "\x00" + echoX, ""},
		{"two flags close", call("Echo", `,"more":true,"oneway":true`) + echoX, ""},
		{"a flag that is no boolean closes", call("Echo", `,"more":1`) + echoX, ""},
		{"a member that comes twice closes", call("Echo", `,"more":true,"more":true`) + echoX, ""},
		{"no method closes", "{}\x00" + echoX, ""},
		{"a method without interface closes", `{"method":"Echo"}` + "\x00" + echoX, ""},
		{"a method that is no string closes", `{"method":null}` + "\x00" + echoX, ""},
		{"parameters that are no object close", call("Echo", `,"parameters":[]`) + echoX, ""},
		{"a list closes", "[]\x00" + echoX, ""},
		{"no JSON closes", "GET / HTTP/1.1\r\n\r\n\x00" + echoX, ""},
		{"bytes behind the object close", `{"method":"org.example.test.Echo"}{}` + "\x00" + echoX, ""},
		{"invalid UTF-8 closes", call("Echo", ",\"parameters\":{\"text\":\"\xff\"}") + echoX, ""},
		{"half a surrogate closes", call("Echo", `,"parameters":{"text":"\ud800"}`) + echoX, ""},
		{"an empty message closes", "\x00" + echoX, ""},
		{"NULs close", strings.Repeat("\x00", 100), ""},
		{"half a message is not answered", echoX + `{"method":"org.ex`, gotX},
		{"1 MiB", call("Nothing", `,"parameters":{"text":"`+filler+`"}`) + echoX,
			`{"error":"org.varlink.service.MethodNotFound","parameters":{"method":"org.example.test.Nothing"}}` + "\x00" + gotX},
		{"1 MiB and a byte is answered and closes", call("Nothing", `,"parameters":{"text":"x`+filler+`"}`) + echoX,
			`{"error":"org.example.test.Broken","parameters":{"message":"message is larger than 1048576 bytes"}}` + "\x00"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			mustBalance(t)
			s := startService(t, nil)
			for _, piece := range []int{len(tt.in), 1, 7, 1000} {
				if piece < len(tt.in)/4000 {
					continue // a million system calls show nothing new
				}
				require.Equal(t, tt.out, s.transcript(t, tt.in, max(piece, 1)), "in pieces of %d", piece)
			}
		})
	}
}

// transcript writes in in pieces and reads all until the service closes.
func (s *testService) transcript(t *testing.T, in string, piece int) string {
	t.Helper()
	uc := s.mustDialRaw(t)
	written := make(chan struct{})
	go func() {
		defer close(written)
		for len(in) > 0 {
			n := min(piece, len(in))
			if _, err := uc.Write([]byte(in[:n])); err != nil {
				return // the service has closed
			}
			in = in[n:]
		}
		_ = uc.CloseWrite()
	}()
	var out strings.Builder
	_, err := io.Copy(&out, uc)
	<-written
	if !errors.Is(err, unix.ECONNRESET) { // it closed without reading the rest
		require.NoError(t, err)
	}
	return out.String()
}

func TestServiceDescribesItself(t *testing.T) {
	s := startService(t, nil)
	c := s.mustDial(t)
	var info Info
	require.NoError(t, c.Call(t.Context(), "org.varlink.service.GetInfo", nil, &info))
	require.Equal(t, Info{"Example", "test", "1", "https://example.org", []string{"org.example.test", "org.varlink.service"}}, info)
	for _, name := range info.Interfaces {
		var out struct{ Description string }
		require.NoError(t, c.Call(t.Context(), "org.varlink.service.GetInterfaceDescription", map[string]string{"interface": name},
			&struct {
				Description *string `json:"description"`
			}{&out.Description}))
	}
	err := c.Call(t.Context(), "org.varlink.service.GetInterfaceDescription", map[string]string{"interface": "a.b"}, nil)
	require.EqualError(t, err, `org.varlink.service.InterfaceNotFound {"interface":"a.b"}`)
}

func TestDescriptors(t *testing.T) {
	const method = "org.example.test.Files"
	for _, tt := range []struct {
		name         string
		send, answer int
		err          string
	}{
		{"none", 0, 0, ""},
		{"there", 3, 0, ""},
		{"back", 0, 2, ""},
		{"both ways, as many as may be", MaxFiles, MaxFiles, ""},
		{"too many there", MaxFiles + 1, 0, "17 descriptors; at most 16"},
		{"too many back", 0, MaxFiles + 1, "17 descriptors; at most 16"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			mustBalance(t)
			c := startService(t, nil).mustDial(t)
			var got struct {
				Got int `json:"got"`
			}
			var files []int
			err := c.Call(t.Context(), method, map[string]int{"answer": tt.answer}, &got, SendFiles(mustFiles(t, tt.send)...), TakeFiles(&files))
			if tt.err != "" {
				require.ErrorContains(t, err, tt.err)
				require.NoError(t, c.Call(t.Context(), method, map[string]int{"answer": 0}, &got), "the connection must be as it was")
				return
			}
			require.NoError(t, err)
			require.Equal(t, tt.send, got.Got)
			require.Len(t, files, tt.answer)
			closeFiles(files)
			require.NoError(t, c.Call(t.Context(), method, map[string]int{"answer": 2}, nil), "files that nobody takes are closed")
		})
	}
}

// A client that sends more than 16 anyway gets an error, and can go on.
func TestTooManyDescriptorsAreAnswered(t *testing.T) {
	mustBalance(t)
	uc := startService(t, nil).mustDialRaw(t)
	mustSend(t, uc, `{"method":"org.example.test.Echo"}`+"\x00", mustFiles(t, MaxFiles+1)...)
	mustSend(t, uc, `{"method":"org.example.test.Files","parameters":{"answer":0}}`+"\x00", mustFiles(t, 1)...)
	require.NoError(t, uc.CloseWrite())
	out, err := io.ReadAll(uc)
	require.NoError(t, err)
	require.Equal(t, `{"error":"org.example.test.Broken","parameters":{"message":"descriptors not accepted: more than 16 came with one message"}}`+"\x00"+
		`{"parameters":{"got":1}}`+"\x00", string(out))
}

func TestTakeFile(t *testing.T) {
	files := mustFiles(t, 2)
	c := &ServerCall{files: []int{files[0], files[1]}}
	fd, err := c.TakeFile(1)
	require.NoError(t, err)
	require.Equal(t, files[1], fd)
	for index, want := range map[int]string{-1: "is -1, but 2", 1: "named twice", 2: "is 2, but 2"} {
		_, err := c.TakeFile(index)
		require.ErrorContains(t, err, want)
		require.Equal(t, InvalidParameter("descriptor"), (&Server{}).answerError(err))
	}
}

func TestAuthorizeComesFirst(t *testing.T) {
	mustBalance(t)
	var asked []string
	s := startService(t, func(s *Server) {
		s.Authorize = func(caller Creds, method string) error {
			asked = append(asked, fmt.Sprintf("%d %s", caller.UID, method))
			return PermissionDenied()
		}
	})
	const denied = `{"error":"org.varlink.service.PermissionDenied"}` + "\x00"
	out := s.transcript(t, `{"method":"org.varlink.service.GetInfo","parameters":{"x":1}}`+"\x00"+
		`{"method":"org.example.test.Echo","oneway":true}`+"\x00"+`{"method":"a.b.C"}`+"\x00", 1<<20)
	require.Equal(t, denied+denied, out)
	uid := unix.Getuid()
	require.Equal(t, []string{
		fmt.Sprintf("%d org.varlink.service.GetInfo", uid),
		fmt.Sprintf("%d org.example.test.Echo", uid),
		fmt.Sprintf("%d a.b.C", uid),
	}, asked)
}

const waitCall = `{"method":"org.example.test.Wait"}` + "\x00"

func TestHangUpEndsTheCall(t *testing.T) {
	for _, tt := range []struct {
		name string
		in   string
	}{
		{"alone", waitCall},
		{"with calls queued behind it", waitCall + waitCall + strings.Repeat(`{"method":"org.example.test.Echo"}`+"\x00", 50)},
		{"with half a message behind it", waitCall + `{"meth`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			mustBalance(t)
			s := startService(t, nil)
			uc := s.mustDialRaw(t)
			mustSend(t, uc, tt.in)
			mustReceive(t, s.waiting, "the call")
			require.NoError(t, uc.Close())
			require.ErrorIs(t, mustReceive(t, s.ended, "the call's end"), context.Canceled)
			mustBecome(t, "connections have ended", func() bool { return s.Conns() == 0 })
		})
	}
}

// printf | socat closes its sending half before the answer is there.
func TestHalfCloseDoesNotEndTheCall(t *testing.T) {
	mustBalance(t)
	s := startService(t, nil)
	uc := s.mustDialRaw(t)
	mustSend(t, uc, `{"method":"org.example.test.Take"}`+"\x00")
	require.NoError(t, uc.CloseWrite())
	mustReceive(t, s.waiting, "the call")
	// Another peer's hang-up goes through the same watcher: after it, ours would have come.
	other := s.mustDialRaw(t)
	mustSend(t, other, waitCall)
	mustReceive(t, s.waiting, "the other call")
	require.NoError(t, other.Close())
	mustReceive(t, s.ended, "the other call's end")
	s.items <- 7
	out, err := io.ReadAll(uc)
	require.NoError(t, err)
	require.Equal(t, `{"parameters":{"item":7}}`+"\x00", string(out))
	require.NoError(t, s.Close())
	require.Empty(t, s.back, "it was read")
}

func TestOnewayIsCarriedOutThoughTheCallerLeft(t *testing.T) {
	mustBalance(t)
	s := startService(t, func(s *Server) { s.StallTimeout = 30 * time.Millisecond })
	uc := s.mustDialRaw(t)
	mustSend(t, uc, `{"method":"org.example.test.Wait","oneway":true}`+"\x00")
	require.NoError(t, uc.Close())
	mustReceive(t, s.waiting, "the call")
	begin := time.Now()
	require.ErrorIs(t, mustReceive(t, s.ended, "the end of its grace"), context.Canceled)
	require.Less(t, time.Since(begin), patience)
}

func TestTakenItemsComeBackUnlessTheyAreRead(t *testing.T) {
	const take = `{"method":"org.example.test.Take"}` + "\x00"
	const item = `{"parameters":{"item":7}}` + "\x00"
	for _, tt := range []struct {
		name string
		// use is what the client does; the item is there when it begins
		use  func(t *testing.T, s *testService, uc *net.UnixConn)
		back bool
	}{
		{"read, then closed", func(t *testing.T, _ *testService, uc *net.UnixConn) {
			mustSend(t, uc, take)
			mustRead(t, uc, item)
		}, false},
		{"read, then another call", func(t *testing.T, _ *testService, uc *net.UnixConn) {
			mustSend(t, uc, take)
			mustRead(t, uc, item)
			mustSend(t, uc, `{"method":"org.example.test.Echo"}`+"\x00")
			mustRead(t, uc, "{}\x00")
		}, false},
		{"read, then another call that is not read", func(t *testing.T, _ *testService, uc *net.UnixConn) {
			mustSend(t, uc, take)
			mustRead(t, uc, item)
			mustSend(t, uc, `{"method":"org.example.test.Echo"}`+"\x00")
			mustHaveUnread(t, uc, len("{}\x00"))
		}, false},
		{"half-closed, then read", func(t *testing.T, _ *testService, uc *net.UnixConn) {
			mustSend(t, uc, take)
			require.NoError(t, uc.CloseWrite())
			mustRead(t, uc, item)
		}, false},
		{"died before it read", func(t *testing.T, _ *testService, uc *net.UnixConn) {
			mustSend(t, uc, take)
			mustHaveUnread(t, uc, len(item))
		}, true},
		{"read only half", func(t *testing.T, _ *testService, uc *net.UnixConn) {
			mustSend(t, uc, take)
			mustHaveUnread(t, uc, len(item))
			_, err := uc.Read(make([]byte, 5))
			require.NoError(t, err)
		}, true},
		{"half-closed, then died before it read", func(t *testing.T, _ *testService, uc *net.UnixConn) {
			mustSend(t, uc, take)
			require.NoError(t, uc.CloseWrite())
			mustHaveUnread(t, uc, len(item))
		}, true},
		{"pipelined, then died before it read", func(t *testing.T, _ *testService, uc *net.UnixConn) {
			mustSend(t, uc, take+`{"method":"org.example.test.Echo"}`+"\x00")
			mustHaveUnread(t, uc, len(item)+len("{}\x00"))
		}, true},
		{"sent nonsense behind, and died before it read", func(t *testing.T, _ *testService, uc *net.UnixConn) {
			mustSend(t, uc, take+"nonsense\x00")
			mustHaveUnread(t, uc, len(item))
		}, true},
		{"oneway", func(t *testing.T, s *testService, uc *net.UnixConn) {
			mustSend(t, uc, `{"method":"org.example.test.Take","oneway":true}`+"\x00")
			mustReceive(t, s.waiting, "the call")
		}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			mustBalance(t)
			s := startService(t, nil)
			s.items <- 7
			uc := s.mustDialRaw(t)
			tt.use(t, s, uc)
			require.NoError(t, uc.Close())
			if tt.back {
				require.Equal(t, 7, mustReceive(t, s.back, "the item"))
			}
			mustBecome(t, "connections have ended", func() bool { return s.Conns() == 0 })
			require.Empty(t, s.back, "it came back a second time, or though it was read")
		})
	}
}

// A caller that always leaves one answer unread must not make us remember all.
func TestPendingAnswersAreBounded(t *testing.T) {
	const take, answer = `{"method":"org.example.test.Take"}` + "\x00", `{"parameters":{"item":7}}` + "\x00"
	mustBalance(t)
	s := startService(t, nil)
	uc := s.mustDialRaw(t)
	s.items <- 7
	mustSend(t, uc, take)
	for range 300 {
		s.items <- 7
		mustSend(t, uc, take)
		mustHaveUnread(t, uc, 2*len(answer))
		mustRead(t, uc, answer)
	}
	pending := s.pendingAnswers()
	require.Positive(t, pending)
	require.Less(t, pending, 100)
	require.NoError(t, uc.Close())
	mustReceive(t, s.back, "the answer that was never read")
}

func (s *testService) pendingAnswers() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for sc := range s.conns {
		sc.mu.Lock()
		n += len(sc.pending)
		sc.mu.Unlock()
	}
	return n
}

// A caller that left before there was anything to answer: writing fails.
func TestTakenItemComesBackWhenTheCallerLeftBefore(t *testing.T) {
	mustBalance(t)
	left := make(chan struct{})
	back := make(chan int, 2)
	s := startService(t, func(s *Server) {
		require.NoError(t, s.Register("interface org.example.late\nmethod Take() -> ()\n", Method{
			Name: "org.example.late.Take",
			Serve: func(ctx context.Context, c *ServerCall) error {
				<-ctx.Done()
				err := c.Reply(nil)
				c.OnUndelivered(func() { back <- 1 })
				c.OnUndelivered(func() { back <- 2 })
				close(left)
				return err
			},
		}))
	})
	uc := s.mustDialRaw(t)
	mustSend(t, uc, `{"method":"org.example.late.Take"}`+"\x00")
	require.NoError(t, uc.Close())
	mustReceive(t, left, "the method")
	require.Equal(t, 2, mustReceive(t, back, "the later item"), "the latest comes back first")
	require.Equal(t, 1, mustReceive(t, back, "the item"))
	require.EqualValues(t, 2, s.Stats().Undelivered)
}

func mustRead(t *testing.T, uc *net.UnixConn, want string) {
	t.Helper()
	got := make([]byte, len(want))
	_, err := io.ReadFull(uc, got)
	require.NoError(t, err)
	require.Equal(t, want, string(got))
}

// mustHaveUnread waits until n bytes are there to read, and leaves them.
func mustHaveUnread(t *testing.T, uc *net.UnixConn, n int) {
	t.Helper()
	rc, err := uc.SyscallConn()
	require.NoError(t, err)
	room := make([]byte, n)
	err = rc.Read(func(fd uintptr) bool {
		got, _, err := unix.Recvfrom(int(fd), room, unix.MSG_PEEK)
		return got == n || err != nil && err != unix.EAGAIN
	})
	require.NoError(t, err)
}

func TestStalledHalfMessageIsClosed(t *testing.T) {
	mustBalance(t)
	s := startService(t, func(s *Server) { s.StallTimeout = 20 * time.Millisecond })
	idle := s.mustDial(t)
	uc := s.mustDialRaw(t)
	mustSend(t, uc, `{"method":"org.example`)
	_, err := uc.Read(make([]byte, 1))
	require.ErrorIs(t, err, io.EOF)
	require.EqualValues(t, 1, s.Stats().Stalled)
	require.NoError(t, idle.Call(t.Context(), "org.example.test.Echo", nil, nil), "a connection may idle between messages")
}

func TestPeerThatDoesNotReadIsClosed(t *testing.T) {
	mustBalance(t)
	s := startService(t, func(s *Server) { s.WriteTimeout = 20 * time.Millisecond })
	uc := s.mustDialRaw(t)
	mustSend(t, uc, `{"method":"org.example.test.Big","parameters":{"size":1000000}}`+"\x00")
	mustBecome(t, "connections have ended", func() bool { return s.Stats().Accepted == 1 && s.Conns() == 0 })
}

func TestLimits(t *testing.T) {
	mustBalance(t)
	s := startService(t, func(s *Server) { s.MaxConnsPerUser = 2 })
	a, b := s.mustDial(t), s.mustDial(t)
	require.NoError(t, a.Call(t.Context(), "org.example.test.Echo", nil, nil))
	require.NoError(t, b.Call(t.Context(), "org.example.test.Echo", nil, nil))
	require.Error(t, s.mustDial(t).Call(t.Context(), "org.example.test.Echo", nil, nil))
	require.EqualValues(t, 1, s.Stats().Refused)
	require.NoError(t, b.Close())
	mustBecome(t, "connections have ended", func() bool { return s.Conns() == 1 })
	require.NoError(t, s.mustDial(t).Call(t.Context(), "org.example.test.Echo", nil, nil))
}

func TestLimitOfAllUsersLeavesRoomForRoot(t *testing.T) {
	s := NewServer(Info{})
	s.MaxConns = 2
	for _, uid := range []uint32{1, 2} {
		require.True(t, s.enter(&serverConn{caller: Creds{UID: uid}}))
	}
	require.False(t, s.enter(&serverConn{caller: Creds{UID: 3}}))
	require.True(t, s.enter(&serverConn{caller: Creds{UID: 0}}))
}

func TestManyCallersAtOnce(t *testing.T) {
	const callers, calls = 200, 20
	mustBalance(t)
	s := startService(t, nil)
	failed := make(chan error, callers)
	var all sync.WaitGroup
	for i := range callers {
		all.Go(func() { failed <- callMany(t.Context(), s.path, i, calls) })
	}
	all.Wait()
	for range callers {
		require.NoError(t, <-failed)
	}
	require.EqualValues(t, callers*calls, s.Stats().Calls)
}

func callMany(ctx context.Context, path string, caller, calls int) error {
	c, err := Dial(ctx, path)
	if err != nil {
		return err
	}
	defer c.Close()
	for n := range calls {
		want := fmt.Sprintf("%d/%d", caller, n)
		var got echo
		if err := c.Call(ctx, "org.example.test.Echo", echo{&want}, &got); err != nil {
			return err
		}
		if *got.Text != want {
			return fmt.Errorf("got %q; want %q", *got.Text, want)
		}
	}
	return nil
}

func TestShutdownLetsCallsAnswer(t *testing.T) {
	mustBalance(t)
	s := startService(t, nil)
	idle, half, waiting := s.mustDialRaw(t), s.mustDialRaw(t), s.mustDialRaw(t)
	mustSend(t, half, "{")
	mustSend(t, waiting, waitCall)
	mustReceive(t, s.waiting, "the call")
	require.NoError(t, s.Shutdown(testContext(t)))
	out, err := io.ReadAll(waiting)
	require.NoError(t, err)
	require.Equal(t, `{"error":"org.example.test.Broken","parameters":{"message":"context canceled"}}`+"\x00", string(out))
	_, err = idle.Read(make([]byte, 1))
	require.ErrorIs(t, err, io.EOF)
	_, err = half.Read(make([]byte, 1))
	require.Error(t, err)
	require.False(t, errors.Is(err, os.ErrDeadlineExceeded), "it must be closed; ECONNRESET when the half was not read yet")
	require.NoError(t, s.Shutdown(testContext(t)))
	_, err = Dial(testContext(t), s.path)
	require.Error(t, err)
}

func TestShutdownGivesUpOnStubbornMethods(t *testing.T) {
	mustBalance(t)
	release, running := make(chan struct{}), make(chan struct{})
	s := startService(t, func(s *Server) {
		require.NoError(t, s.Register("interface org.example.stubborn\nmethod Stay() -> ()\n", Method{
			Name:  "org.example.stubborn.Stay",
			Serve: func(context.Context, *ServerCall) error { close(running); <-release; return nil },
		}))
	})
	mustSend(t, s.mustDialRaw(t), `{"method":"org.example.stubborn.Stay"}`+"\x00")
	mustReceive(t, running, "the call")
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	err := s.Shutdown(ctx)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorContains(t, err, "1 connections still open")
	close(release)
}

func TestCloseEndsAnUpgradedConnection(t *testing.T) {
	mustBalance(t)
	s := startService(t, nil)
	uc, err := s.mustDial(t).Upgrade(t.Context(), "org.example.test.Raw", nil, nil)
	require.NoError(t, err)
	defer uc.Close()
	mustSend(t, uc, "ping")
	mustRead(t, uc, "ping")
	require.NoError(t, s.Close())
	_, err = uc.Read(make([]byte, 1))
	require.Error(t, err)
}

func TestServeNeedsMapError(t *testing.T) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: t.TempDir() + "/s", Net: "unix"})
	require.NoError(t, err)
	require.ErrorContains(t, NewServer(Info{}).Serve(l), "MapError")
}

func TestRegisterRefuses(t *testing.T) {
	serve := func(context.Context, *ServerCall) error { return nil }
	const text = "interface a.b\nmethod C() -> ()\n"
	for _, tt := range []struct {
		name    string
		text    string
		methods []Method
		want    string
	}{
		{"a description that does not parse", "interface a\n", nil, "line 1"},
		{"a method that is not described", text, []Method{{Name: "a.b.D", Serve: serve}}, "no such method"},
		{"a method of another interface", text, []Method{{Name: "a.c.C", Serve: serve}}, "no such method"},
		{"a method twice", text, []Method{{Name: "a.b.C", Serve: serve}, {Name: "a.b.C", Serve: serve}}, "already"},
		{"a method without a function", text, []Method{{Name: "a.b.C"}}, "nothing serves it"},
		{"an interface twice", serviceDescription, nil, "already"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			require.ErrorContains(t, NewServer(Info{}).Register(tt.text, tt.methods...), tt.want)
		})
	}
}
