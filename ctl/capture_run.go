package ctl

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"

	"github.com/sockd/sockd/families/model"
	"github.com/sockd/sockd/families/packet/pcapng"
)

// captureRun is one capture as sockd-ctl receives it.
type captureRun struct {
	e       *Env
	flags   *captureFlags
	capture model.Capture
	file    io.Writer // what -w names; nil: packets are printed

	out     *bufio.Writer
	reader  *pcapng.Reader
	lines   packetLines
	packets int64

	announced string      // the last line of announce
	ended     bool        // the statistics have come, so nothing is missing
	classic   *pcapStream // the file is of that format; nil: it is the stream as it comes
}

// copy receives until the daemon ends the stream; ctx's end asks it to.
func (r *captureRun) copy(ctx context.Context, conn *net.UnixConn) error {
	stop := context.AfterFunc(ctx, func() { _ = conn.CloseWrite() })
	defer stop()
	r.out = bufio.NewWriter(r.e.Stdout)
	if r.file != nil && r.flags.file.pcap {
		r.out = bufio.NewWriterSize(fileWriter{r.file}, 64<<10)
		r.classic = &pcapStream{out: r.out}
	}
	r.lines = packetLines{e: r.e, out: r.out, options: r.flags.packets}
	if r.lines.options.Named = severalInterfaces(r.capture.Source); r.lines.options.Named {
		r.e.say("capturing on %s", cell(r.capture.Source))
	}
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
	if r.file != nil && r.classic == nil {
		return io.TeeReader(conn, fileWriter{r.file})
	}
	return &flushingReader{conn, r.out}
}

// fileWriter tells an error of the file from one of the connection.
type fileWriter struct{ io.Writer }

func (w fileWriter) Write(p []byte) (int, error) {
	n, err := w.Writer.Write(p)
	if errors.Is(err, syscall.EPIPE) {
		return n, &SignalError{syscall.SIGPIPE} // as a write to stdout ends this program
	}
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
		return r.classic.begin(b.Interface)
	case pcapng.PacketBlock:
		r.packets++
		if r.classic != nil {
			return r.classic.write(r.reader.Interfaces()[b.Packet.Interface].Link, &b.Packet)
		}
		if r.file == nil {
			return r.lines.print(&r.reader.Interfaces()[b.Packet.Interface], &b.Packet)
		}
	case pcapng.StatisticsBlock:
		r.count(b.Stats)
	}
	return nil
}

// announce says that the capture has begun; what may have several interfaces has
// said so before the first of them.
func (r *captureRun) announce(i pcapng.Interface) {
	if severalInterfaces(r.capture.Source) {
		return
	}
	snaplen := i.Snaplen
	if snaplen == 0 {
		snaplen = maxSnaplen
	}
	line := fmt.Sprintf("capturing on %s, link-type %s, snapshot length %d bytes", cell(i.Name), i.Link, snaplen)
	if line != r.announced { // it is described anew when its filter is changed
		r.e.say("%s", line)
		r.announced = line
	}
}

// count takes over what the statistics of an interface say: they come once for
// each, at the end. The kernel's, the daemon's and this capture's own losses stand in
// the comment of the first one's, which other readers pass over.
func (r *captureRun) count(s pcapng.Stats) {
	if !r.ended {
		r.capture = model.Capture{ID: r.capture.ID, Source: r.capture.Source, Filter: r.capture.Filter, Owner: r.capture.Owner}
	}
	r.ended = true
	c := &r.capture
	c.Received += int64(s.Accepted)
	c.Delivered += int64(s.Delivered)
	if s.Interface == 0 {
		// What does not parse leaves zeros: then there is nothing that could be said.
		_, _ = fmt.Sscanf(s.Comment, "dropped_kernel=%d dropped_daemon=%d dropped_subscriber=%d", &c.DroppedKernel, &c.DroppedDaemon, &c.DroppedSubscriber)
	}
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
		more = append(more, fmt.Sprintf("%s dropped because this capture was too slow, or its file could not take them", packets(n)))
	}
	if r.classic != nil && r.classic.alien > 0 {
		more = append(more, fmt.Sprintf("%s of another link type left out: a pcap file has one", packets(r.classic.alien)))
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
