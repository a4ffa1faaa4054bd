package relay

import (
	"io"
	"log/slog"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sockd/sockd/families/all"
	"github.com/sockd/sockd/families/familytest"
	"github.com/sockd/sockd/families/model"
	"github.com/stretchr/testify/require"
)

// turning is a Parking that costs what a parking lot costs: a message into a
// SOCK_SEQPACKET pair for each call, and one off its head once there are some.
type turning struct {
	in, out lotWire

	mu sync.Mutex // guards n
	n  int
}

func newTurning(tb testing.TB) *turning {
	tb.Helper()
	p := &turning{}
	p.in, p.out = mustPair(tb)
	tb.Cleanup(func() { closeAll([]int{p.in.fd, p.out.fd}) })
	return p
}

func (p *turning) Park(rec ParkRecord, fds []int) error {
	m := make([]byte, 192)
	copy(m, rec.Data)
	return p.send(m, fds)
}

func (p *turning) Leave(uint64) { _ = p.send(make([]byte, 192), nil) }

func (p *turning) send(m []byte, fds []int) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := sendFDs(p.in.fd, m, fds); err != nil {
		return err
	}
	if p.n++; p.n < 64 {
		return nil
	}
	p.n--
	_, _, _, _, err := syscall.Recvmsg(p.out.fd, m, nil, 0) // without room for descriptors: they are closed
	return err
}

// benchRelay is a relay of TCP to a server, durable or not.
func benchRelay(b *testing.B, durable string, handle func(net.Conn)) (network, address string) {
	b.Helper()
	familytest.NoLeaks(b)
	l := serve(b, "tcp", "127.0.0.1:0", handle)
	e := New(Options{Families: all.Set(), Host: newHost(), Log: slog.New(slog.DiscardHandler), Parking: newTurning(b)})
	b.Cleanup(func() { require.NoError(b, e.Close()) })
	s := spec(b, "tcp:127.0.0.1:0", "tcp:"+l.Addr().String())
	s.Durable = durable
	w := &world{tb: b, eng: e}
	return endpoint(b, w.mustAdd(s))
}

// Connect, a question, an answer, and the ends: what a session costs.
func BenchmarkConnectRequestClose(b *testing.B) {
	for _, kind := range []struct{ name, durable string }{{"plain", ""}, {"durable", model.DurableYes}} {
		b.Run(kind.name, func(b *testing.B) {
			network, address := benchRelay(b, kind.durable, func(c net.Conn) {
				m := make([]byte, 64)
				if _, err := io.ReadFull(c, m); err == nil {
					_, _ = c.Write(m)
				}
			})
			b.ReportAllocs()
			for b.Loop() {
				require.NoError(b, askAndClose(network, address))
			}
		})
	}
}

func askAndClose(network, address string) error {
	c, err := net.Dial(network, address)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := c.Write(make([]byte, 64)); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, struct{ io.Reader }{c})
	return err
}

// Bulk in one direction.
func BenchmarkBulk(b *testing.B) {
	for _, kind := range []struct{ name, durable string }{{"plain", ""}, {"durable", model.DurableYes}} {
		b.Run(kind.name, func(b *testing.B) {
			network, address := benchRelay(b, kind.durable, func(c net.Conn) {
				_ = c.SetDeadline(time.Time{})
				m := make([]byte, 256<<10)
				for {
					if _, err := c.Read(m); err != nil {
						return
					}
				}
			})
			c, err := net.Dial(network, address)
			require.NoError(b, err)
			defer c.Close()
			piece := make([]byte, 256<<10)
			b.SetBytes(int64(len(piece)))
			for b.Loop() {
				_, err := c.Write(piece)
				require.NoError(b, err)
			}
		})
	}
}
