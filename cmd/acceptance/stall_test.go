package acceptance

import (
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/sockd/sockd/families/familytest"
)

const (
	// A session holds no more than its share of what the engine has at hand.
	stalledGrowth = 16 << 20
	// What a daemon that waits may use of a processor, in a second.
	idleCPU = 100 * time.Millisecond
)

// A side that never reads holds the other one back, and nothing else: the daemon's
// memory stays, it waits without spinning, and it says who is slow. When the side reads
// on, every byte is there.
func TestASideThatNeverReads(t *testing.T) {
	for _, c := range []struct{ network, side, limitedBy string }{
		{"tcp", "backend", "to"},
		{"tcp", "client", "from"},
		{"unix", "backend", "to"},
		{"unix", "client", "from"},
	} {
		t.Run("a "+c.side+" on "+c.network, func(t *testing.T) {
			t.Parallel()
			s := start(t, nil)
			k := s.caller()
			near, far := s.through(t, k, c.network)
			writer, reader := near, far
			if c.side == "client" {
				writer, reader = far, near
			}
			before := s.resident()
			b := blast(writer, 2*time.Second)
			s.eventually("the session says who is slow", func() bool { return k.session().LimitedBy == c.limitedBy })
			require.Less(t, s.spends(time.Second), idleCPU, "the daemon waits")
			require.NoError(t, b.wait())
			require.Less(t, s.resident()-before, int64(stalledGrowth), "%d bytes were sent", b.sent)
			require.Equal(t, c.limitedBy, k.session().LimitedBy)
			var got arrival
			require.NoError(t, got.read(reader))
			b.requireArrival(t, got)
		})
	}
}

// through is both ends of a session: the client's, and the backend's.
func (s *sockd) through(t *testing.T, k *caller, network string) (near, far net.Conn) {
	t.Helper()
	addr, from := "127.0.0.1:0", "127.0.0.1:0"
	if network == "unix" {
		addr, from = filepath.Join(t.TempDir(), "to"), filepath.Join(t.TempDir(), "from")
	}
	l := listen(t, network, addr)
	defer l.Close()
	s.run("relay", "add", network+":"+from, network+":"+l.Addr().String())
	_, address, ok := strings.Cut(k.relay().Local[0], ":")
	require.True(t, ok)
	near, err := net.Dial(network, address)
	require.NoError(t, err)
	t.Cleanup(func() { _ = near.Close() }) // the test may have closed it
	far, err = l.Accept()
	require.NoError(t, err)
	t.Cleanup(func() { _ = far.Close() })
	s.eventually("the session is open", func() bool { return k.session().State == "open" })
	return near, far
}

// A blaster writes as much as it can, until its time is up, and then ends its side.
type blaster struct {
	sum  hash.Hash
	sent int64
	done chan error
}

// blast writes to c for d. See wait.
func blast(c net.Conn, d time.Duration) *blaster {
	b := &blaster{sum: sha256.New(), done: make(chan error, 1)}
	go func() { b.done <- b.run(c, time.Now().Add(d)) }()
	return b
}

func (b *blaster) run(c net.Conn, until time.Time) error {
	piece := make([]byte, 1<<20-7) // borders fall where nobody expects them
	_, _ = rand.Read(piece)        // it never fails
	if err := c.SetWriteDeadline(until); err != nil {
		return err
	}
	for {
		n, err := c.Write(piece)
		b.sum.Write(piece[:n])
		b.sent += int64(n)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return c.(interface{ CloseWrite() error }).CloseWrite()
		}
		if err != nil {
			return err
		}
	}
}

// wait returns when all is written; then sent and sum are final.
func (b *blaster) wait() error { return <-b.done }

// requireArrival tells whether all that was sent arrived.
func (b *blaster) requireArrival(t *testing.T, got arrival) {
	t.Helper()
	require.Equal(t, b.sent, got.bytes)
	require.Equal(t, b.sum.Sum(nil), got.sum.Sum(nil), "%d bytes arrive as they were sent", b.sent)
}

// stopsFor is how long a process is stopped. SOCKD_STOP=10s takes its time.
func stopsFor(t *testing.T) time.Duration {
	t.Helper()
	text := os.Getenv("SOCKD_STOP")
	if text == "" {
		return 3 * time.Second
	}
	d, err := time.ParseDuration(text)
	require.NoError(t, err)
	return d
}

// A backend or a client that is stopped by SIGSTOP for a while, as by a debugger or a
// full machine, costs nothing but the time.
func TestAPeerThatIsStopped(t *testing.T) {
	for _, side := range []string{"backend", "client"} {
		t.Run(side, func(t *testing.T) {
			t.Parallel()
			s := start(t, nil)
			k := s.caller()
			d := s.deliver(t, k, side)
			s.eventually("the session says who is slow", func() bool { return k.session().LimitedBy == d.limitedBy })
			stop := stopsFor(t)
			require.Less(t, s.spends(stop), idleCPU*stop/time.Second, "the daemon waits")
			d.stopped.proceed(t)

			require.NoError(t, d.client.cmd.Wait())
			require.NoError(t, d.backend.cmd.Wait())
			require.Equal(t, sum(t, d.in), sum(t, d.out))
			s.eventually("the session is over", func() bool { return k.relay().Sessions == 0 })
			r := k.relay()
			require.EqualValues(t, deliverySize, r.RxBytes+r.TxBytes)
			require.Empty(t, r.Drops)
		})
	}
}

// deliverySize is more than all buffers on the way.
const deliverySize = 64 << 20

// A delivery brings the file in to the file out, towards a side that is stopped before
// the first byte has moved.
type delivery struct {
	in, out                  string
	client, backend, stopped *process
	limitedBy                string
}

// deliver begins a delivery through a relay, towards the backend or the client.
func (s *sockd) deliver(t *testing.T, k *caller, side string) *delivery {
	t.Helper()
	dir := t.TempDir()
	d := &delivery{in: filepath.Join(dir, "in"), out: filepath.Join(dir, "out")}
	blob := make([]byte, deliverySize)
	_, _ = rand.Read(blob) // it never fails
	require.NoError(t, os.WriteFile(d.in, blob, 0o600))
	to := filepath.Join(dir, "to")
	dial := "TCP:" + relayAddress(t, s.run("relay", "add", "tcp:127.0.0.1:0", "unix:"+to))
	if side == "client" {
		d.toClient(s, k, dial, to)
	} else {
		d.toBackend(s, dial, to)
	}
	return d
}

// toBackend: it listens, but it never accepts until it may proceed.
func (d *delivery) toBackend(s *sockd, dial, to string) {
	s.t.Helper()
	d.backend = s.listening(to, "UNIX-LISTEN:"+to, "CREATE:"+d.out)
	d.client = socat(s.t, "FILE:"+d.in, dial)
	d.stopped, d.limitedBy = d.backend, "to"
}

// toClient: the backend begins when the client, in its place, stands still.
func (d *delivery) toClient(s *sockd, k *caller, dial, to string) {
	s.t.Helper()
	d.backend = s.listening(to, "FILE:"+d.in, "UNIX-LISTEN:"+to)
	d.client = socat(s.t, dial, "CREATE:"+d.out)
	s.eventually("the session is open", func() bool { return k.session().State == "open" })
	d.client.halt(s)
	d.backend.proceed(s.t)
	d.stopped, d.limitedBy = d.client, "from"
}

// listening is a socat that listens on path and stands still.
func (s *sockd) listening(path, from, to string) *process {
	s.t.Helper()
	p := socat(s.t, from, to)
	s.eventually("the backend listens", func() bool { return isListening(path) })
	p.halt(s)
	return p
}

// isListening tells by /proc/net/unix, as proc_net(5) has it, whether somebody listens
// on a path: it is there before that.
func isListening(path string) bool {
	b, _ := os.ReadFile("/proc/net/unix") // without it nobody listens
	const acceptsConnections = "00010000" // __SO_ACCEPTCON
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) == 8 && f[3] == acceptsConnections && f[7] == path {
			return true
		}
	}
	return false
}

// A process is a peer of its own that can be stopped.
type process struct{ cmd *exec.Cmd }

// socat runs a one-way socat from one address to the other.
func socat(t *testing.T, from, to string) *process {
	t.Helper()
	cmd := exec.Command("socat", "-u", from, to)
	background(t, cmd)
	return &process{cmd}
}

// halt stops it, and waits until it stands still.
func (p *process) halt(s *sockd) {
	s.t.Helper()
	require.NoError(s.t, p.cmd.Process.Signal(syscall.SIGSTOP))
	s.eventually("the process stands still", func() bool {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
		return err == nil && strings.Contains(string(b), ") T ")
	})
}

func (p *process) proceed(t *testing.T) {
	t.Helper()
	require.NoError(t, p.cmd.Process.Signal(syscall.SIGCONT))
}

// An interface that goes down under a session and comes back is what TCP was made
// for: the session waits and goes on.
func TestAnInterfaceThatGoesDownAndComesBack(t *testing.T) {
	here, there := familytest.NewNS(t), familytest.NewNS(t)
	familytest.Veth(t, here, "va", "10.77.0.1/24", there, "vb", "10.77.0.2/24")
	s := start(t, here)
	k := s.caller()
	var l net.Listener
	there.Do(func() { l = listen(t, "tcp", "10.77.0.2:0") })
	defer l.Close()
	addr := relayAddress(t, s.run("relay", "add", "tcp:127.0.0.1:0", "tcp:"+l.Addr().String()))
	var near net.Conn
	var err error
	here.Do(func() { near, err = net.Dial("tcp", addr) })
	require.NoError(t, err)
	defer near.Close()
	far, err := l.Accept()
	require.NoError(t, err)
	defer far.Close()

	b := blast(near, 3*time.Second)
	arrived := make(chan error, 1)
	var got arrival
	go func() { arrived <- got.read(far) }()
	s.eventually("bytes flow", func() bool { return k.relay().RxBytes > 1<<20 })
	must(t, exec.Command("ip", "-n", here.Name(), "link", "set", "va", "down"))
	s.eventually("the session waits", func() bool { return k.session().LimitedBy == "to" })
	require.Less(t, s.spends(time.Second), idleCPU, "the daemon waits")
	must(t, exec.Command("ip", "-n", here.Name(), "link", "set", "va", "up"))

	require.NoError(t, b.wait())
	require.NoError(t, <-arrived)
	b.requireArrival(t, got)
	require.NoError(t, far.Close())
	s.eventually("the session is over", func() bool { return k.relay().Sessions == 0 })
	require.Equal(t, b.sent, k.relay().RxBytes)
	require.Empty(t, k.relay().Drops)
}

// An arrival is what came out of a connection.
type arrival struct {
	sum   hash.Hash
	bytes int64
}

// read reads to the end.
func (a *arrival) read(c net.Conn) (err error) {
	a.sum = sha256.New()
	if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	a.bytes, err = io.Copy(a.sum, c)
	return err
}
