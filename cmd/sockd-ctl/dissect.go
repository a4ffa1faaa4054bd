package main

import (
	"bytes"
	"fmt"
	"io"
	"time"

	"github.com/sockd/sockd/ctl"
	"github.com/sockd/sockd/families/packet/pcapng"
)

// printer writes packets as tcpdump -n does: one line each, and with -v, -x, -X and
// -A more below it. It is not safe for use by several goroutines.
type printer struct {
	w    io.Writer
	opts *ctl.PacketOptions

	first, last time.Time // of the packets so far, for -ttt and -ttttt
	tcp         tcpTracker
	line        bytes.Buffer // the packet's text, reused
	header      int          // bytes of the link-level header; 0 when the packet was cut within one
	proto       string       // whose fields are being read: a cut names it
}

// newPacketPrinter is ctl.Env.Packets.
func newPacketPrinter(w io.Writer, o *ctl.PacketOptions) ctl.PacketPrinter {
	return &printer{w: w, opts: o}
}

// Print writes one packet. What does not decode is shown as far as it does.
func (p *printer) Print(i *pcapng.Interface, f *pcapng.Packet) error {
	p.line.Reset()
	p.time(time.Unix(0, f.Time))
	if p.opts.Named { // then a cooked header does not say it again
		p.printf("%-5s %-3s ", ctl.Visible(i.Name), packetWay(f))
	}
	p.packet(i.Link, f.Data, max(f.Len, len(f.Data)))
	p.dump(f.Data)
	p.line.WriteByte('\n')
	_, err := p.w.Write(p.line.Bytes())
	return err
}

// packet writes a packet without its time. One that ends within a header ends the line.
func (p *printer) packet(link pcapng.LinkType, data []byte, full int) {
	p.header = 0
	defer untilCut(func() {
		p.truncated()
		p.header = 0
	})
	p.link(link, data, full)
}

// packetWay is how a packet went by, in the words that tcpdump has for it.
func packetWay(f *pcapng.Packet) string {
	switch {
	case f.Direction == pcapng.Outbound:
		return "Out"
	case f.Reception == pcapng.Broadcast:
		return "B"
	case f.Reception == pcapng.Multicast:
		return "M"
	case f.Reception == pcapng.Promiscuous:
		return "P"
	case f.Direction == pcapng.Inbound:
		return "In"
	}
	return "?"
}

func (p *printer) printf(format string, args ...any) { fmt.Fprintf(&p.line, format, args...) }

func (p *printer) say(s string) { p.line.WriteString(s) }

// verbose tells whether -v was given at least n times.
func (p *printer) verbose(n int) bool { return p.opts.Verbose >= n }

// truncated says that the packet ends before the header in hand does.
func (p *printer) truncated() { p.printf(" [|%s]", p.proto) }

// invalid says that the header in hand contradicts itself.
func (p *printer) invalid() { p.say(" (invalid)") }

// time writes the time as the number of -t says.
func (p *printer) time(at time.Time) {
	switch p.opts.Times {
	case 0:
		p.say(at.Format("15:04:05.000000 "))
	case 1:
	case 2:
		p.printf("%d.%06d ", at.Unix(), at.Nanosecond()/1000)
	case 3:
		p.delta(at, p.last)
	case 4:
		p.say(at.Format("2006-01-02 15:04:05.000000 "))
	default:
		p.delta(at, p.first)
	}
	if p.first.IsZero() {
		p.first = at
	}
	p.last = at
}

func (p *printer) delta(at, since time.Time) {
	d := time.Duration(0)
	if !since.IsZero() {
		d = at.Truncate(time.Microsecond).Sub(since.Truncate(time.Microsecond))
	}
	sign := " "
	if d < 0 {
		sign, d = "-", -d
	}
	p.printf("%s%02d:%02d:%02d.%06d ", sign, d/time.Hour, d/time.Minute%60, d/time.Second%60, d%time.Second/time.Microsecond)
}

// dump writes the packet's bytes as -x, -X or -A ask: without the link-level
// header, unless it was asked for.
func (p *printer) dump(data []byte) {
	if !p.opts.HexLink {
		data = skip(data, p.header)
	}
	switch {
	case p.opts.HexASCII:
		p.hexLines("\n\t", data, true)
	case p.opts.Hex:
		p.hexLines("\n\t", data, false)
	case p.opts.ASCII:
		p.line.WriteByte('\n')
		p.ascii(data)
	}
}

// unknown writes what nobody can read, unless the bytes are shown in hexadecimal
// anyway or short lines are wanted.
func (p *printer) unknown(data []byte) {
	if !p.opts.Quiet && !p.opts.Hex && !p.opts.HexASCII {
		p.hexLines("\n\t", data, true)
	}
}

const dumpWidth = 16 // bytes a line

// hexLines writes bytes in pairs, 16 a line, each line after indent, with their text
// beside them if wanted.
func (p *printer) hexLines(indent string, data []byte, text bool) {
	for at := 0; at < len(data); at += dumpWidth {
		row := data[at:min(at+dumpWidth, len(data))]
		p.printf("%s0x%04x: ", indent, at)
		for i, c := range row {
			if i%2 == 0 {
				p.line.WriteByte(' ')
			}
			p.printf("%02x", c)
		}
		if text {
			p.rowText(row)
		}
	}
}

// rowText writes a line's bytes as text, in the column after a full line's digits.
func (p *printer) rowText(row []byte) {
	digits := len(row)*2 + (len(row)+1)/2
	p.printf("%*s", dumpWidth*5/2-digits+2, "")
	for _, c := range row {
		p.line.WriteByte(printable(c))
	}
}

func printable(c byte) byte {
	if c > 0x20 && c < 0x7f {
		return c
	}
	return '.'
}

// ascii writes bytes as text: a carriage return before a newline is left out,
// what does not print is a dot.
func (p *printer) ascii(data []byte) {
	for i, c := range data {
		switch {
		case c == '\r' && i+1 < len(data) && data[i+1] == '\n':
		case c == '\t' || c == '\n' || c == ' ':
			p.line.WriteByte(c)
		default:
			p.line.WriteByte(printable(c))
		}
	}
}

// text writes foreign text: what does not print is ^X, the upper half of the bytes
// M-X, as cat -v has it.
func (p *printer) text(data []byte) { p.say(plainText(data)) }
