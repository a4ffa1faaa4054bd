package acceptance

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/sockd/sockd/ctl"
	"github.com/sockd/sockd/ctl/tap"
	"github.com/sockd/sockd/families/packet/pcapng"
)

// client is a connection for calls, until the test ends.
func (s *sockd) client() *ctl.Client {
	s.t.Helper()
	c, err := (&ctl.Env{Socket: s.socket, Getenv: os.Getenv, Getuid: os.Getuid}).Dial(s.t.Context())
	require.NoError(s.t, err)
	s.t.Cleanup(func() { _ = c.Close() }) // everything is answered
	return c
}

// again calls again and again until stop, and tells how often and how long the slowest
// call took.
func again(stop <-chan struct{}, call func(n int) error) (calls int, slowest time.Duration, err error) {
	for {
		select {
		case <-stop:
			return calls, slowest, nil
		default:
		}
		begun := time.Now()
		if err := call(calls); err != nil {
			return calls, slowest, fmt.Errorf("call %d: %w", calls, err)
		}
		slowest = max(slowest, time.Since(begun))
		calls++
	}
}

// Whoever changes a filter as fast as can be, with the packets that it lets through
// unchanged, costs nobody a packet, nor the answers of a second.
func TestFiltersThatChangeInATightLoop(t *testing.T) {
	a, b := hosts(t)
	s := start(t, a)
	const sent, filter = 100_000, "ether proto 0x88b5"
	var taps []*tap.Tap
	for _, source := range []string{"va", "va", "v*", "any"} {
		taps = append(taps, openTap(t, tap.Options{Socket: s.socket, Source: source, Filter: filter, Bytes: 16 << 20}))
	}
	ids := []int64{taps[0].ID(), taps[2].ID()} // of a ring of its own, and of that of all

	stop := make(chan struct{})
	var callers sync.WaitGroup
	report := func(name string, atLeast int, call func(c *ctl.Client, n int) error) {
		c := s.client()
		callers.Go(func() {
			calls, slowest, err := again(stop, func(n int) error { return call(c, n) })
			t.Logf("%s: %d calls, the slowest took %v", name, calls, slowest)
			if err != nil || calls < atLeast || slowest > time.Second {
				t.Errorf("%s: %d calls, the slowest took %v: %v", name, calls, slowest, err)
			}
		})
	}
	filters := []string{filter, filter + " or arp", filter + " or udp port 53", "(" + filter + ")"}
	set := func(c *ctl.Client, id int64, n int) error {
		return c.Call(t.Context(), "io.sockd.Capture.Set", map[string]string{"ref": fmt.Sprint(id), "filter": filters[n%len(filters)]}, nil)
	}
	for _, id := range ids {
		report("set", 100, func(c *ctl.Client, n int) error { return set(c, id, n) })
	}
	report("set by another", 5, func(c *ctl.Client, n int) error { return set(c, taps[1].ID(), n) })
	report("list", 20, func(c *ctl.Client, _ int) error {
		return c.Call(t.Context(), "io.sockd.Manager.List", map[string][]string{"kinds": {"captures"}}, nil)
	})
	report("interfaces", 20, func(c *ctl.Client, _ int) error {
		return c.Call(t.Context(), "io.sockd.Capture.Interfaces", nil, nil)
	})
	report("capture", 1, func(*ctl.Client, int) error { return come(t.Context(), s.socket) })

	numbered(t, b, "vb", 0, sent)
	close(stop)
	callers.Wait()
	for i, p := range taps {
		require.NoError(t, p.Stop())
		require.EqualValues(t, sent, rest(t, p), "tap %d", i)
		require.Zero(t, p.Stats().Dropped, "tap %d", i)
	}
}

// come is a capture that comes and goes.
func come(ctx context.Context, socket string) error {
	p, err := tap.Open(ctx, tap.Options{Socket: socket, Source: "va", Filter: "arp", Bytes: 1 << 20})
	if err != nil {
		return err
	}
	return p.Close()
}

// What a caller says on the connection of its capture means nothing, and half a message
// on another holds nobody up.
func TestHalfMessagesDuringACapture(t *testing.T) {
	a, b := hosts(t)
	s := start(t, a)
	half, rest := `{"method":"io.sockd.Manager.Sta`, `tus"}`+"\x00"
	beside := s.dial()
	_, err := beside.Write([]byte(half))
	require.NoError(t, err)

	c := s.dial().(*net.UnixConn)
	_, err = c.Write([]byte(`{"method":"io.sockd.Capture.Start","parameters":{"source":"va","filter":"ether proto 0x88b5"},"upgrade":true}` + "\x00" + half))
	require.NoError(t, err)
	stream := bufio.NewReader(c)
	reply, err := stream.ReadBytes(0)
	require.NoError(t, err)
	require.Contains(t, string(reply), `"capture":{"id":`)

	packets := make(chan int, 1)
	go func() { packets <- count(stream) }()
	const sent = 2000
	for i := range uint32(10) {
		numbered(t, b, "vb", i*sent/10, sent/10)
		_, err = c.Write([]byte(half[:i] + "\x00\xff"))
		require.NoError(t, err)
		s.run("status")
	}
	received(s, sent)
	require.NoError(t, c.CloseWrite())
	require.Equal(t, sent, <-packets)

	_, err = beside.Write([]byte(rest))
	require.NoError(t, err)
	reply, err = bufio.NewReader(beside).ReadBytes(0)
	require.NoError(t, err)
	require.True(t, json.Valid(reply[:len(reply)-1]))
	require.True(t, strings.HasPrefix(string(reply), `{"parameters":{"status":`), "%s", reply)
}

// count reads a stream of pcapng to its end, and counts the packets; -1: the end is
// missing.
func count(r io.Reader) (n int) {
	reader, complete := pcapng.NewReader(r), false
	var b pcapng.Block
	for reader.Next(&b) == nil {
		switch b.Type {
		case pcapng.PacketBlock:
			n++
		case pcapng.StatisticsBlock:
			complete = true
		}
	}
	if !complete {
		return -1
	}
	return n
}
