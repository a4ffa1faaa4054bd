package capture

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/familytest"
	"github.com/sockd/sockd/families/model"
	"github.com/sockd/sockd/families/packet/filter"
	"github.com/sockd/sockd/families/packet/pcapng"
	"github.com/stretchr/testify/require"
)

// user is a process of a user in n.b with a UDP socket of its own, that sends when it is told to.
type user struct {
	*net2
	uid  int
	pid  int
	tell io.Writer
	said *bufio.Reader
}

// newUser starts one. Its socket stays open until the test ends.
func (n *net2) newUser(uid int, comm, to string) *user {
	n.Helper()
	host, port, err := net.SplitHostPort(to)
	require.NoError(n, err)
	script := fmt.Sprintf(`printf %s >/proc/self/task/$$/comm; exec 3<>/dev/udp/%s/%s; echo $$; while read -r word; do printf %%s "$word" >&3; echo sent; done`, comm, host, port)
	cmd := n.b.Command("setpriv", fmt.Sprintf("--reuid=%d", uid), fmt.Sprintf("--regid=%d", uid), "--clear-groups", "bash", "-c", script)
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	require.NoError(n, err)
	stdout, err := cmd.StdoutPipe()
	require.NoError(n, err)
	require.NoError(n, cmd.Start())
	n.Cleanup(func() {
		_ = stdin.Close() // it ends by that
		require.NoError(n, cmd.Wait())
	})
	u := &user{net2: n, uid: uid, tell: stdin, said: bufio.NewReader(stdout)}
	_, err = fmt.Fscan(u.said, &u.pid)
	require.NoError(n, err)
	_, err = u.said.ReadString('\n')
	require.NoError(n, err)
	return u
}

func (u *user) send(words ...string) {
	u.Helper()
	for _, w := range words {
		_, err := fmt.Fprintln(u.tell, w)
		require.NoError(u, err)
		line, err := u.said.ReadString('\n')
		require.NoError(u, err)
		require.Equal(u, "sent\n", line)
	}
}

// wordsOf are the payloads of UDP.
func wordsOf(packets []pcapng.Packet) string {
	var out []string
	for _, p := range packets {
		out = append(out, string(p.Data[42:]))
	}
	return strings.Join(out, " ")
}

// listen has somebody in a take datagrams to a port, so that nobody refuses them.
func (n *net2) listen(port string) string {
	n.Helper()
	var l net.PacketConn
	var err error
	n.a.Do(func() { l, err = net.ListenPacket("udp4", "10.9.0.1:"+port) })
	require.NoError(n, err)
	n.Cleanup(func() { require.NoError(n, l.Close()) })
	return l.LocalAddr().String()
}

const (
	alice = 2001
	bob   = 2002
)

// Two users send to the same port: each capture has exactly one's packets.
func TestPacketsAreChosenByWhoSentThem(t *testing.T) {
	n := newNet(t)
	to := n.listen("7777")
	a, b := n.newUser(alice, "alpha", to), n.newUser(bob, "beta", to)
	const udp = " and udp port 7777"
	justA, justB, both := "a1 a2 a3", "b1 b2", "a1 b1 a2 b2 a3"
	for _, tt := range []struct{ filter, want, comment string }{
		{"uid 2001" + udp, justA, "uid 2001"},
		{"uid 2002" + udp, justB, "uid 2002"},
		{fmt.Sprintf("pid %d%s", a.pid, udp), justA, fmt.Sprintf("uid 2001 pid %d comm alpha", a.pid)},
		{"comm beta" + udp, justB, fmt.Sprintf("uid 2002 pid %d comm beta", b.pid)},
		{"not uid 2001" + udp, justB, "uid 2002"},
		{"(uid 2001 or comm beta)" + udp, both, ""},
		{"uid 0" + udp, "", ""},
		{"comm bash" + udp, "", ""},
		{"unit nothing.service" + udp, "", ""},
	} {
		t.Run(tt.filter, func(t *testing.T) {
			sub := *n
			sub.T = t
			r := sub.start(model.CaptureSpec{Filter: tt.filter})
			all := sub.start(model.CaptureSpec{Filter: "udp port 7777"})
			a.send("a1")
			b.send("b1")
			a.send("a2")
			b.send("b2")
			a.send("a3")
			all.received(5)
			got := r.finish()
			require.Equal(t, tt.want, wordsOf(got.packets))
			for _, p := range got.packets {
				require.Equal(t, strings.Contains(p.Comment, "pid"), p.PID != 0)
				if tt.comment != "" {
					require.Equal(t, tt.comment, withoutUnit(p.Comment))
				}
			}
			for _, p := range all.finish().packets {
				require.Empty(t, p.Comment, "nobody asked")
				require.Zero(t, p.PID)
			}
		})
	}
}

// withoutUnit leaves out what depends on where the tests run.
func withoutUnit(comment string) string {
	before, _, _ := strings.Cut(comment, " unit ")
	return before
}

// Answers are whose they are for.
func TestPacketsAreChosenByWhoReceivesThem(t *testing.T) {
	n := newNet(t)
	var l net.PacketConn
	var err error
	n.a.Do(func() { l, err = net.ListenPacket("udp4", "10.9.0.1:7778") })
	require.NoError(t, err)
	defer l.Close()
	a, b := n.newUser(alice, "alpha", "10.9.0.1:7778"), n.newUser(bob, "beta", "10.9.0.1:7778")
	r := n.start(model.CaptureSpec{Filter: "uid 2002 and udp port 7778", Direction: "in"})
	buf := make([]byte, 100)
	for _, u := range []*user{a, b} {
		u.send("question")
		_, from, err := l.ReadFrom(buf)
		require.NoError(t, err)
		_, err = l.WriteTo(fmt.Appendf(nil, "to-%d", u.uid), from)
		require.NoError(t, err)
	}
	r.received(1)
	require.Equal(t, "to-2002", wordsOf(r.finish().packets))
}

// The option made for it and the comment are what other programs read, also in files whose
// packets are cut, follow a loss, or come on any.
func TestOwnersAreInTheFile(t *testing.T) {
	n := newNet(t)
	to := n.listen("7777")
	a := n.newUser(alice, "alpha", to)
	r := n.startFiles(t.TempDir(), model.CaptureSpec{Filter: "comm alpha", Snaplen: 60}, model.FileSpec{}, nil)
	wide := n.start(model.CaptureSpec{Source: "any", Filter: "comm alpha"})
	old := n.start(model.CaptureSpec{Source: "any", Filter: "comm alpha", Format: model.FormatPcap})
	a.send("one", "a-longer-word-that-is-cut-by-the-snaplen", "three")
	r.received(3)
	r.end()
	require.NoError(t, r.wait())
	require.Len(t, old.finishBytes(), len(old.file.bytes()))
	path := filepath.Join(t.TempDir(), "any.pcapng")
	require.Len(t, wide.finish().packets, 3)
	require.NoError(t, os.WriteFile(path, wide.file.bytes(), 0o600))
	for _, file := range []string{r.opened[0], path} {
		lines := strings.Fields(strings.ReplaceAll(output(t, "tshark", "-n", "-r", file, "-T", "fields", "-e", "frame.comment"), " ", "_"))
		require.Len(t, lines, 3)
		for _, l := range lines {
			require.Contains(t, l, fmt.Sprintf("uid_2001_pid_%d_comm_alpha", a.pid))
		}
		require.Equal(t, 3, strings.Count(output(t, "tcpdump", "-nn", "-r", file), "\n"))
		require.Contains(t, output(t, "capinfos", "-c", file), "3")
		b, err := os.ReadFile(file)
		require.NoError(t, err)
		for _, p := range readDump(t, b).packets {
			require.EqualValues(t, a.pid, p.PID)
		}
	}
}

// finishBytes ends a run whose file is no pcapng.
func (r *run) finishBytes() []byte {
	r.Helper()
	r.end()
	require.NoError(r, r.wait())
	return r.file.bytes()
}

// A socket that is closed when somebody asks is nobody's: it is not guessed.
func TestAnOwnerThatIsNotKnownIsNobody(t *testing.T) {
	n := newNet(t)
	r := n.start(model.CaptureSpec{Filter: "uid 0"})
	not := n.start(model.CaptureSpec{Filter: "not uid 0 and ether proto 0x88b5"})
	n.sendFrame(frame(1, 60)) // of no socket of this namespace
	not.received(1)
	require.Empty(t, r.finish().packets)
	got := not.finish()
	require.Len(t, got.packets, 1)
	require.Empty(t, got.packets[0].Comment)
}

// Packets from before a change are judged by the filter of then, which knew whose they are.
func TestAFilterThatAsksForOwnersIsReplaced(t *testing.T) {
	n := newNet(t)
	to := n.listen("7777")
	a, b := n.newUser(alice, "alpha", to), n.newUser(bob, "beta", to)
	r := n.start(model.CaptureSpec{Filter: "udp port 7777 and uid 2001"})
	a.send("a1")
	r.sub.mu.Lock() // what is sent now waits in the ring until the filter is another one
	a.send("a2")
	b.send("b2")
	changed := make(chan error, 1)
	go func() { changed <- r.sub.SetFilter("udp port 7777 and comm beta") }()
	r.sub.mu.Unlock()
	require.NoError(t, <-changed)
	a.send("a3")
	b.send("b3")
	r.received(3)
	require.NoError(t, r.sub.SetFilter("udp port 7777"))
	a.send("a4")
	r.received(4)
	got := r.finish()
	require.Equal(t, "a1 a2 b3 a4", wordsOf(got.packets))
	for i, want := range []string{"uid 2001", "uid 2001", fmt.Sprintf("uid 2002 pid %d comm beta", b.pid), ""} {
		require.Equal(t, want, withoutUnit(got.packets[i].Comment))
	}
	require.Zero(t, got.packets[3].PID)
}

// Whom this process holds a socket for is whose its packets are.
func TestASocketThatIsHeldForACaller(t *testing.T) {
	n := newNet(t)
	to := n.listen("7777")
	var c net.Conn
	var err error
	n.b.Do(func() { c, err = net.Dial("udp4", to) })
	require.NoError(t, err)
	defer c.Close()
	rc, err := c.(*net.UDPConn).SyscallConn()
	require.NoError(t, err)
	var st syscall.Stat_t
	require.NoError(t, rc.Control(func(fd uintptr) { err = syscall.Fstat(int(fd), &st) }))
	require.NoError(t, err)
	n.hub.Broker(func(inode uint32) (filter.Owner, bool) {
		return filter.Owner{UID: alice, KnownUID: true}, uint64(inode) == st.Ino
	})
	r := n.start(model.CaptureSpec{Filter: "uid 2001"})
	own := n.start(model.CaptureSpec{Filter: "uid 0 and udp"})
	_, err = c.Write([]byte("for-alice"))
	require.NoError(t, err)
	r.received(1)
	got := r.finish()
	require.Equal(t, "for-alice", wordsOf(got.packets))
	require.Equal(t, "uid 2001", got.packets[0].Comment)
	require.Empty(t, own.finish().packets)
}

// Where packets are kept nobody knows any more whose they were; a recorder's filter judges
// them as they come.
func TestOwnersAreKnownWhileTheyAreCapturedAlone(t *testing.T) {
	n := newNet(t)
	to := n.listen("7777")
	a, b := n.newUser(alice, "alpha", to), n.newUser(bob, "beta", to)
	r, _ := n.record(model.RecorderSpec{Bytes: 8 << 20, Filter: "uid 2001 and udp port 7777"})
	a.send("a1")
	b.send("b1")
	familytest.Eventually(t, "a1 is recorded", func() bool { return r.View().HeldPackets == 1 })
	changed := "uid 2002 and udp port 7777"
	require.NoError(t, r.Set(model.RecorderChange{Filter: &changed}))
	require.Equal(t, changed, r.View().Filter)
	a.send("a2")
	b.send("b2")
	familytest.Eventually(t, "b2 is recorded", func() bool { return r.View().HeldPackets == 2 })
	file, _ := n.dumpOf(r, model.DumpSpec{Filter: "udp"})
	require.Equal(t, "a1 b2", wordsOf(file.packets))
	require.Equal(t, "uid 2001", file.packets[0].Comment)
	require.Equal(t, "uid 2002", file.packets[1].Comment)

	const why = "whose packets are is known while they are captured alone"
	_, err := r.Dump(t.Context(), model.DumpSpec{Filter: "udp and uid 2001"}, io.Discard)
	require.ErrorIs(t, err, families.ErrSyntax)
	require.EqualError(t, err, `filter "udp and uid 2001": column 9: `+why)
	err = CheckRecorder(model.RecorderSpec{Source: "v1", Bytes: 8 << 20, Trigger: model.TriggerSpec{Filter: "comm alpha", To: model.Place{Path: "/tmp/x", Dir: model.NoFD}}})
	require.EqualError(t, err, `filter "comm alpha": column 1: `+why)
	broken := "uid alice or"
	require.ErrorIs(t, r.Set(model.RecorderChange{Filter: &broken}), families.ErrSyntax)
	require.Equal(t, changed, r.View().Filter, "an error changes nothing")
}
