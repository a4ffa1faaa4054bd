package relay

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/familytest"
	"github.com/sockd/sockd/families/model"
	"github.com/stretchr/testify/require"
)

// tellHeader answers with the PROXY header that a connection begins with, as text,
// and echoes what follows.
func tellHeader(c net.Conn) {
	in := bufio.NewReader(c)
	for {
		if _, err := in.Peek(1); err != nil {
			return
		}
		b, _ := in.Peek(in.Buffered())
		h, n, err := parseProxy(b)
		if err != nil {
			_, _ = fmt.Fprintln(c, err)
			return
		}
		if n > 0 {
			_, _ = in.Discard(n)
			_, _ = fmt.Fprintf(c, "v%d %s uid %d\n", h.version, h.text(), h.creds.UID)
			_, _ = io.Copy(struct{ io.Writer }{c}, in)
			return
		}
		if _, err := in.Peek(in.Buffered() + 1); err != nil {
			return
		}
	}
}

func TestABackendIsToldWhoTheClientIs(t *testing.T) {
	for _, tc := range []struct{ from, proxy, header, want string }{
		{from: "tcp:127.0.0.1:0", proxy: "v1", want: "v1 tcp:CLIENT"},
		{from: "tcp:127.0.0.1:0", proxy: "v2", want: "v2 tcp:CLIENT"},
		{from: "tcp:[::1]:0", proxy: "v2", want: "v2 tcp:CLIENT"},
		{from: "unix:front", proxy: "v2", want: "v2 unix: uid 0"},
		{from: "unix:front", proxy: "v1", want: "v1 "},
		{from: "tcp:127.0.0.1:0,proxy=accept", proxy: "v2", header: "PROXY TCP4 203.0.113.9 192.0.2.1 1234 80\r\n", want: "v2 tcp:203.0.113.9:1234"},
		{from: "unix:front,proxy=accept", proxy: "v1", header: "PROXY TCP6 2001:db8::9 2001:db8::1 1234 80\r\n", want: "v1 tcp:[2001:db8::9]:1234"},
	} {
		t.Run(tc.from+" to "+tc.proxy, func(t *testing.T) {
			w := newWorld(t)
			l := serve(t, "tcp", "127.0.0.1:0", tellHeader)
			r := w.mustAdd(spec(t, strings.Replace(tc.from, "front", w.path("front"), 1), "tcp:"+l.Addr().String()+",proxy="+tc.proxy))
			c := mustDial(t, r)
			mustWrite(t, c, []byte(tc.header+"hello\n"))
			in := bufio.NewReader(c)
			told, err := in.ReadString('\n')
			require.NoError(t, err)
			require.Contains(t, told, strings.Replace(tc.want, "CLIENT", c.LocalAddr().String(), 1))
			echoed, err := in.ReadString('\n')
			require.NoError(t, err)
			require.Equal(t, "hello\n", echoed)
			require.Empty(t, w.mustRelay(r.ID).Drops)
		})
	}
}

// What a header says of a client is what lists show.
func TestAnAcceptedHeaderNamesThePeer(t *testing.T) {
	for _, pieces := range [][]string{
		{"PROXY TCP4 203.0.113.9 192.0.2.1 1234 80\r\nhello"},
		{"PROXY TCP4 203.0.113.9 192.", "0.2.1 1234 80\r", "\nhello"},
	} {
		w := newWorld(t)
		l := serve(t, "unix", w.path("b"), echo)
		r := w.mustAdd(spec(t, "tcp:127.0.0.1:0,proxy=accept", "unix:"+l.Addr().String()))
		c := mustDial(t, r)
		for _, p := range pieces {
			mustWrite(t, c, []byte(p))
		}
		got := make([]byte, 5)
		_, err := io.ReadFull(c, got)
		require.NoError(t, err)
		require.Equal(t, "hello", string(got))
		require.Equal(t, "tcp:203.0.113.9:1234", w.eng.Sessions()[0].Peer)
		require.EqualValues(t, 5, w.mustRelay(r.ID).RxBytes, "the header is no data")
	}
}

func TestAClientWithoutAHeaderIsReset(t *testing.T) {
	w := newWorld(t)
	l := serve(t, "tcp", "127.0.0.1:0", echo)
	s := spec(t, "tcp:127.0.0.1:0,proxy=accept", "tcp:"+l.Addr().String())
	s.ConnectTimeout = 100 * time.Millisecond
	r := w.mustAdd(s)
	for _, says := range []string{"GET / HTTP/1.1\r\n\r\n", "PROXY TCP4 1.2.3.4 5.6.7.8 1 99999\r\n", ""} {
		c := mustDial(t, r)
		if says != "" {
			mustWrite(t, c, []byte(says))
		}
		_, err := c.Read(make([]byte, 1))
		require.True(t, isReset(err), "%q: got %v", says, err)
	}
	require.EqualValues(t, 3, w.mustIdle(r.ID).Drops["invalid"])
}

func TestAFramedStreamHasItsHeaderFirst(t *testing.T) {
	w := newWorld(t)
	l := serve(t, "tcp", "127.0.0.1:0", tellHeader)
	r := w.mustAdd(spec(t, "udp:127.0.0.1:0", "tcp:"+l.Addr().String()+",proxy=v2,framing=lf"))
	c := mustDial(t, r)
	mustWrite(t, c, []byte("hello"))
	got := make([]byte, 200)
	n, err := c.Read(got)
	require.NoError(t, err)
	require.Contains(t, string(got[:n]), "v2 tcp:"+c.LocalAddr().String())
	n, err = c.Read(got)
	require.NoError(t, err)
	require.Equal(t, "hello", string(got[:n]))
	require.NoError(t, w.eng.Remove(r.ID, 0))
}

func TestOnlyThoseWhoAreAllowedComeIn(t *testing.T) {
	me, other := fmt.Sprintf("uid:%d", os.Getuid()), "uid:4242"
	for _, tc := range []struct {
		from  string
		allow []string
		lets  bool
	}{
		{"tcp:127.0.0.1:0", []string{"127.0.0.0/8"}, true},
		{"tcp:127.0.0.1:0", []string{"10.0.0.0/8", "::1"}, false},
		{"tcp::0", []string{"10.0.0.0/8", "::1"}, true},
		{"tcp:127.0.0.1:0", []string{me}, true},
		{"tcp:127.0.0.1:0", []string{other}, false},
		{"tcp:[::1]:0", []string{"10.0.0.0/8", me}, true},
		{"unix:front", []string{me}, true},
		{"unix:front", []string{other, "gid:4242"}, false},
		{"unix:front", []string{other, fmt.Sprintf("gid:%d", os.Getgid())}, true},
		{"unixpacket:front", []string{me}, true},
		{"unixpacket:front", []string{other}, false},
		{"tcp:127.0.0.1:0,framing=lf", []string{other}, false},
	} {
		t.Run(fmt.Sprint(tc.from, tc.allow), func(t *testing.T) {
			w := newWorld(t)
			to := "unixpacket:" + w.path("b")
			if strings.HasPrefix(tc.from, "tcp") && !strings.Contains(tc.from, "framing") || strings.HasPrefix(tc.from, "unix:") {
				to = "tcp:" + serve(t, "tcp", "127.0.0.1:0", echo).Addr().String()
			} else {
				serve(t, "unixpacket", w.path("b"), echo)
			}
			s := spec(t, strings.Replace(tc.from, "front", w.path("front"), 1), to)
			s.Allow = mustAllow(t, strings.Join(tc.allow, " "))
			r := w.mustAdd(s)
			network, address := endpoint(t, r)
			c, err := net.Dial(network, address)
			n := 0
			if err == nil { // connect itself may see the reset
				defer c.Close()
				_, _ = c.Write([]byte("hello\n"))
				require.NoError(t, c.SetDeadline(time.Now().Add(deadline)))
				n, err = c.Read(make([]byte, 10))
			}
			if tc.lets {
				require.NoError(t, err)
				require.Positive(t, n)
				require.Zero(t, w.mustRelay(r.ID).Drops["denied"])
				return
			}
			require.Error(t, err)
			familytest.Eventually(t, "nobody was counted", func() bool { return w.mustRelay(r.ID).Drops["denied"] == 1 })
			require.Zero(t, w.mustIdle(r.ID).RxBytes)
		})
	}
}

func TestTheRateIsOfAllSessionsTogether(t *testing.T) {
	w := newWorld(t)
	var got atomic.Int64
	l := serve(t, "tcp", "127.0.0.1:0", func(c net.Conn) {
		for buf := make([]byte, 64<<10); ; {
			n, err := c.Read(buf)
			got.Add(int64(n))
			if err != nil {
				return
			}
		}
	})
	s := spec(t, "tcp:127.0.0.1:0", "tcp:"+l.Addr().String())
	const rate, clients = 8 << 20, 4
	s.Rate = rate
	r := w.mustAdd(s)
	start := time.Now()
	for range clients {
		c := mustDial(t, r)
		go func() { // ends with the connection
			for {
				if _, err := c.Write(make([]byte, 64<<10)); err != nil {
					return
				}
			}
		}()
	}
	familytest.Eventually(t, "too little passed", func() bool { return got.Load() > rate/2 })
	took := time.Since(start).Seconds()
	require.LessOrEqual(t, float64(got.Load()), rate*took+rate/4+clients*64<<10, "half a second's worth in %.3f s", took)
	limited := false
	familytest.Eventually(t, "nothing says what limits it", func() bool {
		for _, s := range w.eng.Sessions() {
			limited = limited || s.LimitedBy == "rate"
		}
		return limited
	})
	none := int64(0)
	_, err := w.eng.Set(t.Context(), r.ID, model.RelayChange{Rate: &none})
	require.NoError(t, err)
	before := got.Load()
	familytest.Eventually(t, "it still is limited", func() bool { return got.Load() > before+4*rate })
}

// retry= waits for a backend that is not there yet.
func TestABackendThatStartsLateIsWaitedFor(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			w := newWorld(t)
			l, err := net.Listen("tcp", "127.0.0.1:0")
			require.NoError(t, err)
			address := map[string]string{"tcp": l.Addr().String(), "unix": w.path("late")}[network]
			require.NoError(t, l.Close())
			r := w.mustAdd(spec(t, "tcp:127.0.0.1:0", network+":"+address+",retry=20s"))
			c := mustDial(t, r)
			mustWrite(t, c, []byte("hello"))
			familytest.Eventually(t, "nobody dials", func() bool {
				all := w.eng.Sessions()
				return len(all) == 1 && all[0].State == "connecting"
			})
			serve(t, network, address, echo)
			got := make([]byte, 5)
			_, err = io.ReadFull(c, got)
			require.NoError(t, err)
			require.Equal(t, "hello", string(got))
			require.Empty(t, w.mustRelay(r.ID).Drops)
			require.NoError(t, c.Close())
		})
	}
}

// A backend that refused is asked after the others for a while.
func TestABackendThatIsAwayIsLast(t *testing.T) {
	w := newWorld(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	gone := l.Addr().String()
	require.NoError(t, l.Close())
	b := serve(t, "tcp", "127.0.0.1:0", tellName("B"))
	s := spec(t, "tcp:127.0.0.1:0", "tcp:"+gone, "tcp:"+b.Addr().String())
	s.Balance = balanceFailover
	r := w.mustAdd(s)
	name, _ := mustName(t, r, 1)
	require.Equal(t, "B", name)
	rel, err := w.eng.relay(r.ID)
	require.NoError(t, err)
	p := rel.holdPlan()
	defer p.release()
	require.True(t, p.backends[0].isAway())
	require.Equal(t, p.backends[1], p.order()[0])
	p.backends[0].back()
	require.Equal(t, p.backends[0], p.order()[0])
}

func TestDescriptorsGoThroughAUnixStream(t *testing.T) {
	w := newWorld(t)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: w.path("b"), Net: "unix"})
	require.NoError(t, err)
	defer l.Close()
	s := spec(t, "unix:"+w.path("f"), "unix:"+w.path("b"))
	s.Pass = model.PassRights
	r := w.mustAdd(s)
	c := mustDial(t, r).(*net.UnixConn)
	server, err := l.AcceptUnix()
	require.NoError(t, err)
	defer server.Close()
	require.NoError(t, server.SetDeadline(time.Now().Add(deadline)))
	file, err := os.CreateTemp(w.dir, "passed")
	require.NoError(t, err)
	defer file.Close()
	_, err = file.WriteString("what is in it")
	require.NoError(t, err)
	rc, err := file.SyscallConn()
	require.NoError(t, err)
	// Bytes before, bytes with, bytes after: each read has what belongs to it.
	mustWrite(t, c, []byte("before"))
	require.NoError(t, rc.Control(func(fd uintptr) {
		_, _, err = c.WriteMsgUnix([]byte("with"), syscall.UnixRights(int(fd), int(fd)), nil)
	}))
	require.NoError(t, err)
	mustWrite(t, c, []byte("after"))
	require.NoError(t, c.CloseWrite())
	var stream strings.Builder
	for {
		buf, oob := make([]byte, 100), make([]byte, 100)
		n, oobn, _, _, err := server.ReadMsgUnix(buf, oob)
		if n == 0 || err != nil {
			break
		}
		fmt.Fprintf(&stream, "%s%d;", buf[:n], mustContents(t, oob[:oobn], "what is in it"))
	}
	require.Contains(t, []string{"before0;with2;after0;", "beforewith2;after0;"}, stream.String())
	require.Empty(t, w.mustRelay(r.ID).Drops)
}

// mustContents reads every file that came, and tells how many there were.
func mustContents(t *testing.T, oob []byte, want string) (n int) {
	t.Helper()
	messages, err := syscall.ParseSocketControlMessage(oob)
	require.NoError(t, err)
	for i := range messages {
		fds, err := syscall.ParseUnixRights(&messages[i])
		if err != nil {
			continue // credentials
		}
		for _, fd := range fds {
			got := make([]byte, 100)
			m, err := syscall.Pread(fd, got, 0)
			require.NoError(t, err)
			require.Equal(t, want, string(got[:m]))
			require.NoError(t, syscall.Close(fd))
			n++
		}
	}
	return n
}

// The shards carry everything to unix by splicing, in bulk.
func TestBulkToUnixIsSpliced(t *testing.T) {
	w := newWorld(t)
	l := serve(t, "unix", w.path("b"), echo)
	r := w.mustAdd(spec(t, "tcp:127.0.0.1:0", "unix:"+l.Addr().String()))
	c := mustDial(t, r)
	st := w.mustStream(r.ID)
	done := make(chan struct{})
	go func() {
		defer close(done)
		mustEcho(t, c, 64<<20)
	}()
	familytest.Eventually(t, "it is copied", func() bool { return st.path() == "splice" })
	<-done
	require.Empty(t, w.mustIdle(r.ID).Drops)
}

// A client that speaks first finds out with its bytes that a backend refuses: the
// attempt's alarm must not outlive it.
func TestAClientThatSpeaksFirstFindsTheNextBackend(t *testing.T) {
	for _, tc := range []struct{ name, second string }{{"another TO", "live"}, {"a backup", "live,backup"}, {"another that refuses", "gone"}, {"the same again", ",retry=200ms"}} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t)
			l, err := net.Listen("tcp", "127.0.0.1:0")
			require.NoError(t, err)
			gone := "tcp:" + l.Addr().String()
			require.NoError(t, l.Close())
			live := "tcp:" + serve(t, "tcp", "127.0.0.1:0", echo).Addr().String()
			tos := []string{gone, strings.NewReplacer("live", live, "gone", gone).Replace(tc.second)}
			if tc.second[0] == ',' {
				tos = []string{gone + tc.second}
			}
			s := spec(t, "tcp:127.0.0.1:0", tos...)
			s.Balance, s.ConnectTimeout = balanceFailover, 50*time.Millisecond
			r := w.mustAdd(s)
			network, address := endpoint(t, r)
			for range 20 {
				c, err := net.Dial(network, address)
				if err != nil {
					continue // reset at once
				}
				_ = c.SetDeadline(time.Now().Add(deadline))
				_, _ = c.Write([]byte("early"))
				got := make([]byte, 5)
				if _, err = io.ReadFull(c, got); strings.Contains(tc.second, "live") {
					require.NoError(t, err)
					require.Equal(t, "early", string(got))
				}
				require.NoError(t, c.Close())
			}
			// Every alarm that is left must find its session as it was, or gone.
			sh := w.eng.allShards()
			familytest.Eventually(t, "alarms are left", func() bool {
				left := 0
				for _, s := range sh {
					done := make(chan int)
					s.do(func() { done <- len(s.alarms) })
					left += <-done
				}
				return left == 0
			})
		})
	}
}

func TestADropIsAnEvent(t *testing.T) {
	m := parties(t, "unixgram", "udp")
	_, err := families.SendAll(t.Context(), m.near, &families.Msg{Data: make([]byte, 66000)})
	require.NoError(t, err)
	e := m.host.mustEvent(t, "relay", "dropped", m.relay.ID)
	require.Equal(t, "too_big", e.Cause)
}

func TestTheSourceAddressCanBeChosen(t *testing.T) {
	w := newWorld(t)
	l := serve(t, "tcp", "127.0.0.1:0", func(c net.Conn) { _, _ = fmt.Fprint(c, c.RemoteAddr()) })
	c := mustDial(t, w.mustAdd(spec(t, "tcp:127.0.0.1:0", "tcp:"+l.Addr().String()+",src=127.0.0.3")))
	got, err := io.ReadAll(c)
	require.NoError(t, err)
	require.Contains(t, string(got), "127.0.0.3:")
	for text, why := range map[string]string{
		"tcp:127.0.0.1:9,src=x":                 "src wants an address",
		"unix:/x,src=127.0.0.1":                 `"src" is for tcp and udp`,
		"tcp:127.0.0.1:9,retry=1s,retry=2s":     `"retry" stands there twice`,
		"tcp:127.0.0.1:9,framing=lf,framing=lf": `"framing" stands there twice`,
	} {
		_, err := w.eng.Add(t.Context(), spec(t, "tcp:127.0.0.1:0", text))
		require.ErrorContains(t, err, why)
	}
}
