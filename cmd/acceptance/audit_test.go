package acceptance

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/sockd/sockd/families/model"
)

// A traffic is what both ends of one relay have counted themselves.
type traffic struct {
	name, network, addr string
	sent, arrived       atomic.Int64 // by clients; at backends
	answered, heard     atomic.Int64 // by backends; at clients
	sentMessages        atomic.Int64
}

// audit is the books by name, direction and branch, which must hold. Sessions are
// summed with those that have ended.
func (s *sockd) audit(args ...string) map[string]model.Audit {
	s.t.Helper()
	var lines []model.Audit
	require.NoError(s.t, json.Unmarshal([]byte(s.run(append([]string{"audit", "--json"}, args...)...)), &lines))
	sums := map[string]model.Audit{}
	for _, l := range lines {
		require.True(s.t, l.Holds, "%+v", l)
		key := strings.TrimSpace(l.Name + " " + l.Direction + " " + l.Branch)
		a := sums[key]
		a.InBytes, a.OutBytes = a.InBytes+l.InBytes, a.OutBytes+l.OutBytes
		a.InFlightBytes, a.LostBytes = a.InFlightBytes+l.InFlightBytes, a.LostBytes+l.LostBytes
		a.InMessages, a.OutMessages = a.InMessages+l.InMessages, a.OutMessages+l.OutMessages
		a.InFlightMessages, a.LostMessages = a.InFlightMessages+l.InFlightMessages, a.LostMessages+l.LostMessages
		sums[key] = a
	}
	return sums
}

// Everything moves at once, and is audited meanwhile; when all have had their answers,
// the books are to the byte what both ends have counted.
func TestAnAuditIsWhatBothEndsCounted(t *testing.T) {
	s := start(t, nil)
	dir := t.TempDir()
	all := []*traffic{
		s.traffic("bulk", "tcp", "tcp:127.0.0.1:0", "tcp", "127.0.0.1:0", ""),
		s.traffic("local", "unix", "unix:"+filepath.Join(dir, "local"), "unix", filepath.Join(dir, "b1"), ""),
		s.traffic("mixed", "tcp", "tcp:127.0.0.1:0", "unix", filepath.Join(dir, "b2"), ""),
		s.traffic("packets", "unixpacket", "unixpacket:"+filepath.Join(dir, "packets"), "unixpacket", filepath.Join(dir, "b3"), ""),
		s.traffic("framed", "udp", "udp:127.0.0.1:0", "tcp", "127.0.0.1:0", ",framing=u16be"),
		s.traffic("datagrams", "udp", "udp:127.0.0.1:0", "udp", "127.0.0.1:0", ""),
	}
	var work sync.WaitGroup
	var failed failures
	for _, f := range all {
		for range 3 {
			work.Add(1)
			go func() {
				defer work.Done()
				for range 4 {
					failed.add(f.talk())
				}
			}()
		}
	}
	done := make(chan struct{})
	go func() { work.Wait(); close(done) }()
	for audits := 0; ; audits++ {
		s.audit()
		select {
		case <-done:
		default:
			continue
		}
		require.Greater(t, audits, 3)
		break
	}
	failed.none(t, "what the clients did")
	for _, f := range all {
		s.eventually("the books of "+f.name+" are what both ends counted", func() bool {
			a := s.audit(f.name)
			rx, tx := a[f.name+" rx"], a[f.name+" tx"]
			require.Zero(t, rx.LostBytes+tx.LostBytes, "nobody lost anything")
			return rx.InBytes == f.sent.Load() && rx.OutBytes == f.arrived.Load() && tx.InBytes == f.answered.Load() && tx.OutBytes == f.heard.Load() &&
				rx.InMessages == f.sentMessages.Load() && tx.OutMessages == f.sentMessages.Load() && f.sent.Load() == f.heard.Load()
		})
	}
}

// traffic adds a relay to a backend that sends everything back.
func (s *sockd) traffic(name, network, from, toNetwork, to, option string) *traffic {
	s.t.Helper()
	f := &traffic{name: name, network: network}
	if toNetwork == "udp" {
		to = f.echoDatagrams(s.t, to)
	} else {
		to = serveOn(s.t, listen(s.t, toNetwork, to), func(c net.Conn) { f.echo(c, option != "") }).l.Addr().String()
	}
	f.addr = relayAddress(s.t, s.run("relay", "add", name, from, toNetwork+":"+to+option))
	return f
}

// echo counts payload alone: what frames a message is not counted.
func (f *traffic) echo(c net.Conn, framed bool) {
	if framed {
		f.echoFrames(c)
		return
	}
	buf := make([]byte, 1<<17)
	for {
		n, err := c.Read(buf)
		if n == 0 || err != nil { // seqpacket: a read of nothing is the end
			break
		}
		f.arrived.Add(int64(n))
		f.answered.Add(int64(n))
		if _, err := c.Write(buf[:n]); err != nil {
			break // the client misses it
		}
	}
	if h, ok := c.(interface{ CloseWrite() error }); ok {
		_ = h.CloseWrite() // the client waits for it
	}
}

func (f *traffic) echoFrames(c net.Conn) {
	for {
		frame := make([]byte, 2)
		if _, err := io.ReadFull(c, frame); err != nil {
			return
		}
		frame = append(frame, make([]byte, binary.BigEndian.Uint16(frame))...)
		if _, err := io.ReadFull(c, frame[2:]); err != nil {
			return
		}
		f.arrived.Add(int64(len(frame) - 2))
		f.answered.Add(int64(len(frame) - 2))
		if _, err := c.Write(frame); err != nil {
			return // the client misses it
		}
	}
}

func (f *traffic) echoDatagrams(t *testing.T, at string) (addr string) {
	t.Helper()
	c, err := net.ListenPacket("udp", at)
	require.NoError(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 1<<16)
		for {
			n, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			f.arrived.Add(int64(n))
			f.answered.Add(int64(n))
			_, _ = c.WriteTo(buf[:n], from) // the client misses it
		}
	}()
	t.Cleanup(func() { _ = c.Close(); <-done })
	return c.LocalAddr().String()
}

// talk is one client: of streams, what is sent at once; of messages, one by one.
func (f *traffic) talk() error {
	c, err := net.Dial(f.network, f.addr)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if f.network == "tcp" || f.network == "unix" {
		return f.talkStream(c)
	}
	for range 200 {
		msg, got := make([]byte, 1+rand.IntN(1400)), make([]byte, 2000)
		f.sent.Add(int64(len(msg)))
		f.sentMessages.Add(1)
		if _, err := c.Write(msg); err != nil {
			return err
		}
		n, err := c.Read(got)
		if err != nil {
			return fmt.Errorf("%s: %w", f.name, err)
		}
		f.heard.Add(int64(n))
	}
	return nil
}

func (f *traffic) talkStream(c net.Conn) error {
	n := 1 + rand.Int64N(4<<20)
	f.sent.Add(n)
	sent := make(chan error, 1)
	go func() {
		_, err := c.Write(make([]byte, n))
		if err == nil {
			err = c.(interface{ CloseWrite() error }).CloseWrite()
		}
		sent <- err
	}()
	// Plain copying: package net would splice.
	heard, err := io.Copy(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{c})
	f.heard.Add(heard)
	if err := <-sent; err != nil {
		return err
	}
	return err
}

// A branch that is not read loses messages, and the audit says how many: what its
// backend finds when it reads at last, and what was dropped, is all that was sent.
func TestAnAuditOfAFanoutIsWhatItsBackendsCounted(t *testing.T) {
	const n, size = 3000, 100
	s := start(t, nil)
	dir := t.TempDir()
	backends := []*net.UnixConn{}
	args := []string{"relay", "add", "fan", "unixpacket:" + filepath.Join(dir, "from")}
	for i := range 2 {
		at := filepath.Join(dir, fmt.Sprint("to", i))
		c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: at, Net: "unixgram"})
		require.NoError(t, err)
		t.Cleanup(func() { _ = c.Close() }) // twice is an error that nobody needs
		backends = append(backends, c)
		args = append(args, "unixgram:"+at)
	}
	args[4] += ",loss=block" // who may not lose anything sets the pace
	addr := relayAddress(t, s.run(append(args, "--balance", "fanout")...))
	quick := reading(t, backends[0])
	c, err := net.Dial("unixpacket", addr)
	require.NoError(t, err)
	defer c.Close()
	for i := range n {
		_, err := c.Write(make([]byte, size))
		require.NoError(t, err)
		if i%1000 == 0 {
			s.audit()
		}
	}
	branch := func(i int) model.Audit { return s.audit("fan")["fan rx "+args[4+i]] }
	s.eventually("the branch that reads has everything", func() bool {
		b := branch(0)
		return quick.Load() == n && b.OutMessages == n && b.OutBytes == n*size
	})
	stalled := branch(1)
	require.EqualValues(t, n, stalled.InMessages)
	require.Positive(t, stalled.InFlightMessages)
	require.Positive(t, stalled.LostMessages)

	slow := reading(t, backends[1])
	s.eventually("the branch that did not read has what was left for it", func() bool {
		b := branch(1)
		return b.InFlightMessages == 0 && b.OutMessages == slow.Load() && b.OutBytes == slow.Load()*size
	})
	require.Equal(t, n-slow.Load(), branch(1).LostMessages)
	require.Equal(t, model.Drops{"branch_full": n - slow.Load()}, s.caller().relay().Drops)
	in := s.audit("fan")["fan rx"]
	require.Equal(t, []int64{n, n * size, n}, []int64{in.InMessages, in.InBytes, in.OutMessages})
}

// reading counts what a socket receives, until the test ends.
func reading(t *testing.T, c *net.UnixConn) *atomic.Int64 {
	var n atomic.Int64
	done := make(chan struct{})
	t.Cleanup(func() { _ = c.Close(); <-done })
	go func() {
		defer close(done)
		buf := make([]byte, 1<<16)
		for {
			if _, err := c.Read(buf); err != nil {
				return
			}
			n.Add(1)
		}
	}()
	return &n
}
