// Package tap gives a Go program the packets of a capture of sockd, at the speed of
// memory: they stand in a ring that the daemon writes and the program has mapped. While
// there are packets, Next makes no system call, allocates nothing and copies nothing.
//
//	t, err := tap.Open(ctx, tap.Options{Source: "eth0", Filter: "tcp port 443"})
//	if err != nil {
//		return err
//	}
//	defer t.Close()
//	for {
//		p, err := t.Next(ctx)
//		if err != nil {
//			return err // io.EOF: the capture has ended
//		}
//		count(p.Interface.Name, p.Time, p.Data)
//	}
//
// The program needs no privilege but that of capturing with sockd-ctl, and is one of any
// number that capture. Its capture stands in `sockd-ctl ls captures`, `sockd-ctl set`
// changes its filter, and `sockd-ctl close` ends it. When the program is too slow for its
// packets it loses some, nobody else does, and the packet after a loss says how many.
//
// For files and for pipes to other programs use `sockd-ctl capture -w`.
package tap

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/sockd/sockd/ctl"
	"github.com/sockd/sockd/ctl/borrow"
	"github.com/sockd/sockd/families/packet/pcapng"
	"github.com/sockd/sockd/families/packet/shm"
)

// Options say what to capture, and from whom. Source alone must be set.
type Options struct {
	// Socket is the daemon's control socket; "" finds it as sockd-ctl does.
	Socket string
	// Netns is the network namespace of the interfaces, a name below /run/netns or a path; "":
	// the daemon's. To enter one takes CAP_SYS_ADMIN.
	Netns string

	Source    string        // interface names, patterns like veth* and any, with commas between
	Filter    string        // in the language of pcap-filter(7); "": all
	Direction string        // in, out; "": both
	Snaplen   int           // bytes of each packet that are wanted; 0: 262144
	Count     int64         // the capture ends after so many packets; 0: it does not
	Duration  time.Duration // and after this time; 0: it does not
	NoPromisc bool          // without packets for other hosts
	Wait      bool          // wait for interfaces that are not there yet
	// Bytes is the size of the ring, which is how long the program may stand still; it is
	// rounded up to a power of two from 1 MiB to 64 MiB. 0: 8 MiB, a fifteenth of a second at
	// a gigabit.
	Bytes int
}

// Interface is where a packet was seen.
type Interface struct {
	Name string
	Link pcapng.LinkType // what the packet's Data begins with
}

// Packet is a packet as it was captured.
type Packet struct {
	Time      time.Time
	Data      []byte // memory of the ring: not to be kept, nor written
	Len       int    // the length on the wire, at least len(Data)
	Interface *Interface
	Direction pcapng.Direction
	Reception pcapng.Reception // whom it was meant for
	Dropped   uint64           // the packets lost between the one before and this one
}

// Stats are counts of a Tap so far.
type Stats struct {
	Packets int64 // that Next returned
	Dropped int64 // that were lost, as far as is known: of the end, after io.EOF alone
	// Sleeps is how often Next had nothing to return and slept. Only then does it make system
	// calls.
	Sleeps int64
	// Why packets were lost; known after io.EOF. Kernel: the daemon had no time for its
	// rings. Daemon: it had no memory. Subscriber: this program was too slow.
	DroppedKernel, DroppedDaemon, DroppedSubscriber int64
}

// Tap is a capture under way. One goroutine at a time uses it; Stop and Close may be
// called from any.
type Tap struct {
	source string
	id     int64
	conn   *net.UnixConn
	reader *shm.Reader

	decoder pcapng.Decoder
	block   pcapng.Block
	ifaces  []*Interface
	packet  Packet
	stats   Stats
}

// Open starts a capture. ctx bounds the start alone. The Tap must be closed.
//
// Errors: *ctl.RemoteError, which is the daemon's answer: a filter that does not
// compile, an interface that is not there, no permission; *ctl.UnreachableError where no
// daemon answers; or ctx's.
func Open(ctx context.Context, o Options) (*Tap, error) {
	in, fds, err := o.parameters()
	if err != nil {
		return nil, err
	}
	defer closeAll(fds)
	env := &ctl.Env{Socket: o.Socket, Getenv: os.Getenv, Getuid: os.Getuid}
	c, err := env.Dial(ctx)
	if err != nil {
		return nil, err
	}
	var out ctl.ShareOut
	conn, files, err := c.UpgradeFiles(ctx, ctl.ShareMethod, in, &out, fds...)
	if err != nil {
		_ = c.Close() // it carries nothing
		return nil, err
	}
	r, err := newReader(out, files)
	if err != nil {
		_ = conn.Close() // which ends the capture
		return nil, fmt.Errorf("capture %s: %w", o.Source, err)
	}
	return &Tap{source: o.Source, id: int64(out.Capture.ID), conn: conn, reader: r}, nil
}

// newReader owns the descriptors of a reply.
func newReader(out ctl.ShareOut, files []int) (*shm.Reader, error) {
	const wanted = 3
	named := map[int]bool{out.Data: true, out.Control: true, out.Wake: true}
	if len(files) != wanted || len(named) != wanted || !named[0] || !named[1] || !named[2] {
		closeAll(files)
		return nil, fmt.Errorf("the answer has %d descriptors, not data, control and wake", len(files))
	}
	return shm.NewReader(shm.Files{Data: files[out.Data], Control: files[out.Control], Wake: files[out.Wake]})
}

func closeAll(fds []int) {
	for _, fd := range fds {
		_ = syscall.Close(fd) // nobody has written to it
	}
}

// parameters are o as the daemon takes it, and descriptors that go along and are to be
// closed after the call.
func (o Options) parameters() (in ctl.ShareIn, fds []int, err error) {
	in = ctl.ShareIn{
		Source: o.Source, Filter: optional(o.Filter), Direction: optional(o.Direction), Snaplen: optional(int64(o.Snaplen)), Count: optional(o.Count),
		NoPromisc: optional(o.NoPromisc), Duration: optional(int64(o.Duration)), Wait: optional(o.Wait), Queue: optional(int64(o.Bytes)),
	}
	if o.Netns == "" {
		return in, nil, nil
	}
	packet, err := borrow.OpenIn(o.Netns, "packet", "raw", 0, "")
	if err != nil {
		return in, nil, fmt.Errorf("capture in network namespace %q: %w", o.Netns, err)
	}
	route, err := borrow.OpenRouteIn(o.Netns)
	if err != nil {
		closeAll([]int{packet})
		return in, nil, fmt.Errorf("capture in network namespace %q: %w", o.Netns, err)
	}
	in.Netns, in.PacketSocket, in.RouteSocket = &o.Netns, new(int), optional(1)
	return in, []int{packet, route}, nil
}

// optional is nil for what was not set.
func optional[T comparable](v T) *T {
	if v == *new(T) {
		return nil
	}
	return &v
}

// ID is the capture's among the objects of the daemon, as sockd-ctl names it.
func (t *Tap) ID() int64 { return t.id }

// Next is the next packet, which is valid until the next Next or Close. It waits for
// one until ctx ends; then Next can be called again.
//
// Errors: io.EOF when the capture has ended, by Stop, its count, its time or sockd-ctl;
// ctx's; net.ErrClosed after Close; io.ErrUnexpectedEOF when the daemon has gone.
func (t *Tap) Next(ctx context.Context) (*Packet, error) {
	for {
		block, err := t.reader.Next(ctx)
		if err != nil {
			return nil, t.explain(err)
		}
		if err := t.decoder.Decode(block, &t.block); err != nil {
			return nil, fmt.Errorf("capture %s: %w", t.source, err)
		}
		switch t.block.Type {
		case pcapng.PacketBlock:
			t.take(&t.block.Packet)
			return &t.packet, nil
		case pcapng.InterfaceBlock:
			t.ifaces = append(t.ifaces, &Interface{Name: t.block.Interface.Name, Link: t.block.Interface.Link})
		case pcapng.StatisticsBlock:
			t.sumUp(&t.block.Stats)
		}
	}
}

// explain leaves alone what callers compare.
func (t *Tap) explain(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("capture %s: the daemon ended it before its time: %w", t.source, err)
	}
	return fmt.Errorf("capture %s: %w", t.source, err)
}

// take makes a block's packet the one that Next returns. The decoder has seen that its
// interface was described.
func (t *Tap) take(p *pcapng.Packet) {
	t.packet = Packet{
		Time: time.Unix(0, p.Time), Data: p.Data, Len: p.Len, Interface: t.ifaces[p.Interface],
		Direction: p.Direction, Reception: p.Reception, Dropped: p.Dropped,
	}
	t.stats.Packets++
	t.stats.Dropped += int64(p.Dropped)
}

// sumUp takes over what the statistics of the first interface say of the whole capture.
func (t *Tap) sumUp(s *pcapng.Stats) {
	var kernel, daemon, subscriber int64
	n, _ := fmt.Sscanf(s.Comment, "dropped_kernel=%d dropped_daemon=%d dropped_subscriber=%d", &kernel, &daemon, &subscriber)
	if s.Interface != 0 || n != 3 {
		return
	}
	t.stats.DroppedKernel, t.stats.DroppedDaemon, t.stats.DroppedSubscriber = kernel, daemon, subscriber
	t.stats.Dropped = kernel + daemon + subscriber
}

// Stats are the counts so far.
func (t *Tap) Stats() Stats {
	s := t.stats
	s.Sleeps = t.reader.Stats().Sleeps
	return s
}

// Stop asks the daemon for the end of the capture. What it has seen until now still
// comes, and then io.EOF.
func (t *Tap) Stop() error {
	if err := t.conn.CloseWrite(); err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("stop capture %s: %w", t.source, err)
	}
	return nil
}

// Close ends the capture, and a Next under way with net.ErrClosed, and frees the memory:
// the Data of a packet is not to be touched any more. Twice is nil.
func (t *Tap) Close() error {
	err := t.reader.Close() // first: it says what was read
	if closeErr := t.conn.Close(); closeErr != nil && !errors.Is(closeErr, net.ErrClosed) {
		err = errors.Join(err, closeErr)
	}
	return err
}
