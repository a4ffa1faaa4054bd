package ctl

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"github.com/sockd/sockd/families/packet/pcapng"
)

// packetCopy writes the packets that are wanted to a file of their own: pcapng, with
// the interfaces as they were and times in nanoseconds, or with --pcap the older format.
// Whatever happens the file ends with a whole packet. A nil one does nothing.
type packetCopy struct {
	flags *fileFlags
	name  string
	out   io.Writer
	file  *os.File // out, unless that is stdout
	begun bool     // the file's head is written
	link  pcapng.LinkType

	buf    []byte     // whole blocks that wait to be written
	ends   []blockEnd // of each of them
	size   int64      // what is written
	lost   int64      // packets that could not be
	failed error      // why

	options []byte // of a packet
}

// blockEnd is where a block ends in a buffer.
type blockEnd struct {
	at     int
	packet bool
}

// copyBuffer is from how many bytes on they are written.
const copyBuffer = 1 << 16

// openCopy opens the file of -w, if there is one. It must not be the one that is read.
func (r *fileRun) openCopy(ctx context.Context, in io.Reader) error {
	if sameFile(in, r.flags.write) {
		return &UsageError{Verb: "capture", Why: "-r and -w name the same file"}
	}
	out, err := r.flags.open(ctx, r.e)
	if err != nil || out == nil {
		return err
	}
	r.copy = &packetCopy{flags: &r.flags.file, name: r.flags.write, out: out}
	if out != r.e.Stdout {
		r.copy.file, _ = out.(*os.File)
	}
	return nil
}

// whileRead is Env's of the file: a FIFO may lose its reader.
func (c *packetCopy) whileRead(ctx context.Context, e *Env) (_ context.Context, stop func()) {
	if c == nil || c.file == nil {
		return ctx, func() {}
	}
	return e.whilePipeRead(ctx, c.file)
}

// add takes in what buf has become by one more block.
func (c *packetCopy) add(buf []byte, packet bool) error {
	c.buf, c.ends = buf, append(c.ends, blockEnd{len(buf), packet})
	if len(buf) < copyBuffer {
		return nil
	}
	return c.flush()
}

// flush writes what waits. After an error nothing more is.
func (c *packetCopy) flush() error {
	if c.failed == nil && len(c.buf) > 0 {
		n, err := c.out.Write(c.buf)
		if err == nil {
			c.size += int64(n)
		} else {
			c.fail(n, err)
		}
	}
	c.buf, c.ends = c.buf[:0], c.ends[:0]
	return c.failed
}

// fail ends a file that took n bytes of the buffer with the last whole block of them.
func (c *packetCopy) fail(n int, err error) {
	if c.failed = fmt.Errorf("capture: write %s: %w", visible(c.name), causeOf(err)); errors.Is(err, syscall.EPIPE) {
		c.failed = &SignalError{syscall.SIGPIPE} // as a write to stdout ends this program
	}
	whole := 0
	for _, end := range c.ends {
		if end.at <= n {
			whole = end.at
		} else if end.packet {
			c.lost++
		}
	}
	c.size += int64(whole)
	if c.regular() {
		if err := c.file.Truncate(c.size); err != nil {
			c.failed = errors.Join(c.failed, err)
		}
	}
}

// regular tells whether the file is one that can be cut.
func (c *packetCopy) regular() bool {
	if c.file == nil {
		return false
	}
	info, err := c.file.Stat()
	return err == nil && info.Mode().IsRegular()
}

// failure is what has ended the copy; nil: nothing has.
func (c *packetCopy) failure() error {
	if c == nil {
		return nil
	}
	return c.failed
}

// unwritten are the packets that were taken and are not in the file.
func (c *packetCopy) unwritten() int64 {
	if c == nil {
		return 0
	}
	return c.lost
}

func (c *packetCopy) section(s *pcapng.Section) error {
	if c == nil || c.flags.pcap {
		return nil
	}
	c.begun = true
	s.Comment = cmp.Or(c.flags.comment, s.Comment)
	return c.add(pcapng.AppendSection(c.buf, *s), false)
}

func (c *packetCopy) iface(i *pcapng.Interface) error {
	switch {
	case c == nil:
		return nil
	case c.flags.pcap:
		return c.pcapHead(i)
	case !c.begun: // a classic file has no section
		if err := c.section(&pcapng.Section{UserAppl: "sockd-ctl"}); err != nil {
			return err
		}
	}
	return c.add(pcapng.AppendInterface(c.buf, *i), false)
}

// pcapHead writes the head of a pcap file, which is of one kind of frames.
func (c *packetCopy) pcapHead(i *pcapng.Interface) error {
	if c.begun && i.Link != c.link {
		return fmt.Errorf("--pcap: %s after %s: such a file has one link type", i.Link, c.link)
	}
	if c.begun {
		return nil
	}
	c.begun, c.link = true, i.Link
	return c.add(pcapng.AppendPcapHeader(c.buf, i.Link, cmp.Or(i.Snaplen, maxSnaplen)), false)
}

func (c *packetCopy) packet(p *pcapng.Packet) error {
	switch {
	case c == nil:
		return nil
	case c.flags.pcap:
		return c.add(pcapng.AppendPcapPacket(c.buf, p), true)
	}
	c.options = p.AppendOptions(c.options[:0])
	p.Options = c.options
	return c.add(pcapng.AppendPacket(c.buf, p), true)
}

// Close writes what is left. The file is complete then; one that has not even a beginning is
// deleted, as no reader takes it.
func (c *packetCopy) Close() error {
	if c == nil {
		return nil
	}
	err := c.flush()
	switch {
	case c.file == nil:
		return err
	case err != nil && c.size == 0 && c.regular():
		return errors.Join(err, discardFile(c.file))
	}
	return cmp.Or(err, c.file.Close())
}
