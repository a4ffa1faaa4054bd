package ctl

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/sockd/sockd/families/model"
	"github.com/sockd/sockd/families/packet/pcapng"
)

// captureRun is one capture as sockd-ctl receives it.
type captureRun struct {
	e       *Env
	flags   *captureFlags
	capture model.Capture
	file    io.Writer // what -w names; nil: packets are printed

	out      *bufio.Writer
	reader   *pcapng.Reader
	printers map[pcapng.LinkType]PacketPrinter
	packets  int64
	ended    bool // the statistics have come, so nothing is missing
}

// copy receives until the daemon ends the stream; ctx's end asks it to.
func (r *captureRun) copy(ctx context.Context, conn *net.UnixConn) error {
	stop := context.AfterFunc(ctx, func() { _ = conn.CloseWrite() })
	defer stop()
	r.printers = map[pcapng.LinkType]PacketPrinter{}
	r.out = bufio.NewWriter(r.e.Stdout)
	r.reader = pcapng.NewReader(r.source(conn))
	err := r.blocks()
	if flushErr := r.out.Flush(); err == nil {
		err = flushErr
	}
	if err != nil {
		return fmt.Errorf("capture %s: %w", r.capture.Source, err)
	}
	if !r.ended {
		return &UnreachableError{Path: r.path(), Err: errors.New("the daemon ended the capture before its time")}
	}
	return nil
}

// path is where the daemon was reached.
func (r *captureRun) path() string {
	path, _ := r.e.SocketPath() // it was found once
	return path
}

// source is the stream, which is written to the file as it is read. Without a
// file lines are flushed when no more packets are there.
func (r *captureRun) source(conn io.Reader) io.Reader {
	if r.file != nil {
		return io.TeeReader(conn, fileWriter{r.file})
	}
	return &flushingReader{conn, r.out}
}

// fileWriter tells an error of the file from one of the connection.
type fileWriter struct{ io.Writer }

func (w fileWriter) Write(p []byte) (int, error) {
	n, err := w.Writer.Write(p)
	if err != nil {
		return n, fmt.Errorf("write packets: %w", err)
	}
	return n, nil
}

// flushingReader flushes out before it may have to wait.
type flushingReader struct {
	io.Reader
	out *bufio.Writer
}

func (r *flushingReader) Read(p []byte) (int, error) {
	if err := r.out.Flush(); err != nil {
		return 0, err
	}
	return r.Reader.Read(p)
}

func (r *captureRun) blocks() error {
	var b pcapng.Block
	for {
		switch err := r.reader.Next(&b); {
		case errors.Is(err, io.EOF):
			return nil
		case errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed):
			return nil // cut off: r.ended tells
		case err != nil:
			return err
		}
		if err := r.block(&b); err != nil {
			return err
		}
	}
}

func (r *captureRun) block(b *pcapng.Block) error {
	switch b.Type {
	case pcapng.InterfaceBlock:
		r.announce(b.Interface)
	case pcapng.PacketBlock:
		r.packets++
		if r.file == nil {
			return r.print(&b.Packet)
		}
	case pcapng.StatisticsBlock:
		r.ended = true
		r.count(b.Stats)
	}
	return nil
}

// announce says that the capture has begun.
func (r *captureRun) announce(i pcapng.Interface) {
	snaplen := i.Snaplen
	if snaplen == 0 {
		snaplen = maxSnaplen
	}
	r.e.say("capturing on %s, link-type %s, snapshot length %d bytes", cell(i.Name), i.Link, snaplen)
}

// count takes over what the statistics say. The kernel's, the daemon's and this
// capture's own losses stand in the comment, which other readers pass over.
func (r *captureRun) count(s pcapng.Stats) {
	r.capture.Received, r.capture.Delivered = int64(s.Accepted), int64(s.Delivered)
	r.capture.DroppedKernel, r.capture.DroppedSubscriber = int64(s.IfDrop), int64(s.OSDrop)
	var kernel, daemon, subscriber int64
	if n, _ := fmt.Sscanf(s.Comment, "dropped_kernel=%d dropped_daemon=%d dropped_subscriber=%d", &kernel, &daemon, &subscriber); n == 3 {
		r.capture.DroppedKernel, r.capture.DroppedDaemon, r.capture.DroppedSubscriber = kernel, daemon, subscriber
	}
}

// frame is a packet in --jsonl.
type frame struct {
	Time      time.Time `json:"time"`
	Interface string    `json:"interface"`
	Direction string    `json:"direction,omitempty"` // in or out
	Length    int       `json:"length"`              // on the wire
	Captured  int       `json:"captured"`
	Src       string    `json:"src,omitempty"`
	Dst       string    `json:"dst,omitempty"`
	Data      []byte    `json:"data"`
}

func (r *captureRun) print(p *pcapng.Packet) error {
	if r.e.JSON && !r.e.JSONL {
		return nil
	}
	i := r.reader.Interfaces()[p.Interface]
	printer, err := r.printer(i)
	if err != nil {
		return err
	}
	at := time.Unix(0, p.Time)
	if !r.e.JSONL {
		return printer.Print(at, p.Direction == pcapng.Outbound, p.Data, p.Len)
	}
	f := frame{Time: at.UTC(), Interface: i.Name, Length: p.Len, Captured: len(p.Data), Data: p.Data}
	f.Direction = map[pcapng.Direction]string{pcapng.Inbound: "in", pcapng.Outbound: "out"}[p.Direction]
	f.Src, f.Dst = printer.Addresses(p.Data)
	line := *r.e
	line.Stdout = r.out
	return line.printJSON(f)
}

// printer is the printer of an interface's link type.
func (r *captureRun) printer(i pcapng.Interface) (PacketPrinter, error) {
	if p, ok := r.printers[i.Link]; ok {
		return p, nil
	}
	if r.e.Packets == nil {
		return nil, errors.New("this program cannot print packets: use -w FILE")
	}
	o := r.flags.packets
	o.LinkType, o.Interface = int(i.Link), i.Name
	p := r.e.Packets(r.out, o)
	r.printers[i.Link] = p
	return p, nil
}

// summary says what was captured and what was lost, as tcpdump does.
func (r *captureRun) summary() {
	r.e.say("%s captured", packets(r.packets))
	if !r.ended {
		return
	}
	r.e.say("%s received by filter", packets(r.capture.Received))
	r.e.say("%s dropped by kernel", packets(r.capture.DroppedKernel))
	var more []string
	if n := r.capture.DroppedDaemon; n > 0 {
		more = append(more, fmt.Sprintf("%s dropped by sockd, whose memory for captures was full", packets(n)))
	}
	if n := r.capture.DroppedSubscriber; n > 0 {
		more = append(more, fmt.Sprintf("%s dropped because this capture was too slow", packets(n)))
	}
	if len(more) > 0 {
		r.e.say("%s", strings.Join(more, "\n"))
	}
}

func packets(n int64) string {
	if n == 1 {
		return "1 packet"
	}
	return fmt.Sprintf("%d packets", n)
}
