package relay

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/sockd/sockd/families/familytest"
	"github.com/sockd/sockd/families/model"
	"github.com/stretchr/testify/require"
)

// TestAStreamIsAsTheWireWas is the fidelity table of streams: what two parties see of
// each other with a relay between them is what they see without one.
func TestAStreamIsAsTheWireWas(t *testing.T) {
	for _, pair := range [][2]string{
		{"tcp:127.0.0.1:0", "tcp:127.0.0.1:0"}, {"tcp:[::1]:0", "tcp:127.0.0.1:0"}, {"tcp:127.0.0.1:0", "tcp:[::1]:0"},
		{"tcp:127.0.0.1:0", "unix:back"}, {"unix:front", "tcp:127.0.0.1:0"}, {"unix:front", "unix:back"},
		{"unix:@fidelity-front", "unix:@fidelity-back"},
	} {
		for _, row := range wireRows {
			t.Run(fmt.Sprintf("%s to %s/%s", pair[0], pair[1], row.name), func(t *testing.T) {
				row.compare(t, pair[0], pair[1])
			})
		}
	}
}

// wireRow is one thing that two parties do.
type wireRow struct {
	name string
	// talk plays both parties and says what they saw.
	talk func(t *testing.T, client, server net.Conn) string
	// resets: it ends with a reset, which only TCP has: where a side is unix, what
	// matters is that it is over there.
	resets bool
}

var wireRows = []wireRow{
	{name: "a client ends and is answered later", talk: answeredLater},
	{name: "a server ends and goes on listening", talk: func(t *testing.T, c, s net.Conn) string { return answeredLater(t, s, c) }},
	{name: "both end at once", talk: bothEnd},
	{name: "a server resets after 1000 bytes", talk: func(t *testing.T, c, s net.Conn) string { return resetAfter(t, s, c) }, resets: true},
	{name: "a client resets after 1000 bytes", talk: func(t *testing.T, c, s net.Conn) string { return resetAfter(t, c, s) }, resets: true},
	{name: "a server resets after a mebibyte", talk: func(t *testing.T, c, s net.Conn) string { return resetAfterMuch(t, s, c) }, resets: true},
	{name: "a client closes without reading its answer", talk: closedUnread, resets: true},
	{name: "nothing is said before both close", talk: silence},
	{name: "an urgent byte alone", talk: func(t *testing.T, c, s net.Conn) string { return urgent(t, c, s, "", "") }},
	{name: "an urgent byte between others", talk: func(t *testing.T, c, s net.Conn) string { return urgent(t, c, s, "before", "after") }},
	{name: "an urgent byte and the end", talk: urgentEnd},
	{name: "an urgent byte of the server's", talk: func(t *testing.T, c, s net.Conn) string { return urgent(t, s, c, "x", "y") }},
	{name: "urgent bytes one after another", talk: urgentTwice},
	{name: "bulk both ways at once", talk: bulkBothWays},
	{name: "pieces of every size", talk: manySizes},
}

func (row wireRow) compare(t *testing.T, from, to string) {
	fromUnix, toUnix := from[:4] == "unix", to[:4] == "unix"
	w := newWorld(t)
	want := row.direct(t, w, from)
	got := row.relayed(t, w, from, to)
	if row.resets && (fromUnix || toUnix) {
		want, got = overIsOver(want), overIsOver(got)
	}
	require.Equal(t, want, got)
}

// overIsOver forgets how a conversation ended.
func overIsOver(saw string) string {
	for _, end := range []string{"reset", "broken pipe"} {
		saw = string(bytes.ReplaceAll([]byte(saw), []byte(end), []byte("end")))
	}
	return saw
}

func (row wireRow) direct(t *testing.T, w *world, network string) string {
	e := mustEndpoint(t, network)
	if e.Network == "unix" && e.Address[0] != '@' {
		e.Address = w.path("direct")
	}
	l, err := net.Listen(e.Network, e.Address)
	require.NoError(t, err)
	defer l.Close()
	c, err := net.Dial(l.Addr().Network(), l.Addr().String())
	require.NoError(t, err)
	return row.play(t, c, l)
}

func (row wireRow) relayed(t *testing.T, w *world, from, to string) string {
	if from == "unix:front" {
		from = "unix:" + w.path("front")
	}
	e := mustEndpoint(t, to)
	if e.Address == "back" {
		e.Address = w.path("back")
	}
	l, err := net.Listen(e.Network, e.Address)
	require.NoError(t, err)
	defer l.Close()
	r := w.mustAdd(spec(t, from, e.Network+":"+l.Addr().String()))
	saw := row.play(t, mustDial(t, r), l)
	requireNoOtherLoss(t, w.mustIdle(r.ID))
	return saw
}

// requireNoOtherLoss: nothing is lost but what a reset cut off.
func requireNoOtherLoss(t *testing.T, r model.Relay) {
	t.Helper()
	for cause := range r.Drops {
		require.Equal(t, "unsent_bytes", cause)
	}
}

func (row wireRow) play(t *testing.T, client net.Conn, l net.Listener) string {
	defer client.Close()
	server, err := l.Accept()
	require.NoError(t, err)
	defer server.Close()
	for _, c := range []net.Conn{client, server} {
		require.NoError(t, c.SetDeadline(time.Now().Add(deadline)))
	}
	return row.talk(t, client, server)
}

// ended says how a read ended that should have found nothing.
func ended(err error) string {
	switch {
	case err == nil:
		return "data"
	case errors.Is(err, io.EOF):
		return "end"
	case errors.Is(err, syscall.ECONNRESET):
		return "reset"
	case errors.Is(err, syscall.EPIPE):
		return "broken pipe"
	case errors.Is(err, os.ErrDeadlineExceeded):
		return "nothing, for too long"
	}
	return err.Error()
}

// hearAll is how much there is and how it ends.
func hearAll(c net.Conn) string {
	n, err := io.Copy(io.Discard, struct{ io.Reader }{c})
	if err == nil {
		err = io.EOF
	}
	return fmt.Sprintf("%d bytes and %s", n, ended(err))
}

func mustWrite(t *testing.T, c net.Conn, b []byte) {
	t.Helper()
	_, err := c.Write(b)
	require.NoError(t, err)
}

func answeredLater(t *testing.T, c, s net.Conn) string {
	mustWrite(t, c, []byte("question"))
	require.NoError(t, c.(halfCloser).CloseWrite())
	question, err := io.ReadAll(s)
	require.NoError(t, err)
	answered := make(chan error, 1)
	go func() {
		_, err := s.Write(make([]byte, 1<<20))
		answered <- errors.Join(err, s.Close())
	}()
	saw := fmt.Sprintf("%s; %s", question, hearAll(c))
	require.NoError(t, <-answered)
	return saw
}

func bothEnd(t *testing.T, c, s net.Conn) string {
	mustWrite(t, c, make([]byte, 10))
	mustWrite(t, s, make([]byte, 20))
	require.NoError(t, c.(halfCloser).CloseWrite())
	require.NoError(t, s.(halfCloser).CloseWrite())
	return hearAll(s) + "; " + hearAll(c)
}

// hangUp resets where there are resets.
func hangUp(c net.Conn) {
	if tcp, ok := c.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = c.Close()
}

func resetAfter(t *testing.T, c, s net.Conn) string {
	mustWrite(t, c, make([]byte, 1000))
	_, err := io.ReadFull(s, make([]byte, 1000))
	require.NoError(t, err)
	hangUp(c)
	return hearAll(s)
}

// The bytes before a reset arrive before it, as far as they were under way.
func resetAfterMuch(t *testing.T, c, s net.Conn) string {
	sent := make(chan error, 1)
	go func() {
		_, err := c.Write(make([]byte, 1<<20))
		sent <- err
	}()
	_, err := io.ReadFull(s, make([]byte, 1<<20))
	require.NoError(t, err)
	require.NoError(t, <-sent)
	hangUp(c)
	return hearAll(s)
}

// TCP resets a connection that is closed with something unread.
func closedUnread(t *testing.T, c, s net.Conn) string {
	mustWrite(t, s, make([]byte, 1000))
	_, err := c.Read(make([]byte, 1)) // the rest has come, too
	require.NoError(t, err)
	require.NoError(t, c.Close())
	return hearAll(s)
}

func silence(t *testing.T, c, s net.Conn) string {
	require.NoError(t, c.Close())
	return hearAll(s)
}

// urgent sends a byte with MSG_OOB, and says what arrives in its place and beside it.
func urgent(t *testing.T, c, s net.Conn, before, after string) string {
	if before != "" {
		mustWrite(t, c, []byte(before))
	}
	mustSendUrgent(t, c, '!')
	saw := mustRecvUrgent(t, s)
	if after != "" {
		mustWrite(t, c, []byte(after))
	}
	require.NoError(t, c.(halfCloser).CloseWrite())
	stream, err := io.ReadAll(s)
	require.NoError(t, err)
	return fmt.Sprintf("urgent %q, in line %q", saw, stream)
}

func urgentEnd(t *testing.T, c, s net.Conn) string {
	mustSendUrgent(t, c, '!')
	require.NoError(t, c.(halfCloser).CloseWrite())
	return fmt.Sprintf("urgent %q and %s", mustRecvUrgent(t, s), hearAll(s))
}

func urgentTwice(t *testing.T, c, s net.Conn) string {
	mustSendUrgent(t, c, '1')
	first := mustRecvUrgent(t, s)
	mustWrite(t, c, []byte("between"))
	got := make([]byte, 7)
	_, err := io.ReadFull(s, got)
	require.NoError(t, err)
	mustSendUrgent(t, c, '2')
	return fmt.Sprintf("urgent %q, %q, urgent %q", first, got, mustRecvUrgent(t, s))
}

func control(t *testing.T, c net.Conn, f func(fd int)) {
	t.Helper()
	rc, err := c.(syscall.Conn).SyscallConn()
	require.NoError(t, err)
	require.NoError(t, rc.Control(func(fd uintptr) { f(int(fd)) }))
}

func mustSendUrgent(t *testing.T, c net.Conn, b byte) {
	t.Helper()
	control(t, c, func(fd int) { require.NoError(t, syscall.Sendto(fd, []byte{b}, syscall.MSG_OOB, nil)) })
}

// mustRecvUrgent waits for the byte that arrives as urgent: not among the others.
func mustRecvUrgent(t *testing.T, c net.Conn) string {
	t.Helper()
	got := make([]byte, 1)
	familytest.Eventually(t, "no urgent byte came", func() (came bool) {
		control(t, c, func(fd int) {
			n, _, err := syscall.Recvfrom(fd, got, syscall.MSG_OOB|syscall.MSG_DONTWAIT)
			came = err == nil && n == 1
		})
		return came
	})
	return string(got)
}

func bulkBothWays(t *testing.T, c, s net.Conn) string {
	const n = 8 << 20
	digest := make(chan string, 4)
	for _, end := range []net.Conn{c, s} {
		go func() { // both halves end with the conversation
			h := sha256.New()
			_, err := io.CopyN(io.MultiWriter(end, h), rand.Reader, n)
			if err == nil {
				err = end.(halfCloser).CloseWrite()
			}
			digest <- fmt.Sprintf("%x %v", h.Sum(nil), err)
		}()
		go func() {
			h := sha256.New()
			m, err := io.Copy(h, struct{ io.Reader }{end})
			if m != n {
				err = fmt.Errorf("%d bytes", m)
			}
			digest <- fmt.Sprintf("%x %v", h.Sum(nil), err)
		}()
	}
	seen := map[string]int{}
	for range 4 {
		seen[<-digest]++
	}
	require.Len(t, seen, 2, "what was sent is what came")
	return "the same both ways"
}

func manySizes(t *testing.T, c, s net.Conn) string {
	var sent bytes.Buffer
	for _, n := range []int{1, 2, 63, 64, 1448, 65535, 65536, 65537, 300_000, 1, 1 << 20} {
		b := make([]byte, n)
		_, _ = rand.Read(b)
		sent.Write(b)
		done := make(chan error, 1)
		go func() { _, err := c.Write(b); done <- err }()
		got := make([]byte, n)
		_, err := io.ReadFull(s, got)
		require.NoError(t, err)
		require.NoError(t, <-done)
		require.True(t, bytes.Equal(b, got))
	}
	require.NoError(t, c.Close())
	return fmt.Sprintf("%d bytes; %s", sent.Len(), hearAll(s))
}
