package ctl

import (
	"errors"
	"io"
	"strings"
	"time"

	"github.com/sockd/sockd/families/packet/pcapng"
)

// packetLines prints packets: a line of text each, or with --jsonl an object. With
// --json alone they are only counted. It is used by one goroutine.
type packetLines struct {
	e       *Env
	out     io.Writer
	options PacketOptions
	printer PacketPrinter // made for the first packet
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
	PID       uint32    `json:"pid,omitempty"`     // of the process whose it is
	Comment   string    `json:"comment,omitempty"` // opt_comment: "uid 1000 pid 77"
	Data      []byte    `json:"data"`
	Layers    []any     `json:"layers"` // outermost first; each has "layer", its name
}

// directionNames are the words of direction; one that a file does not tell has none.
var directionNames = map[pcapng.Direction]string{pcapng.Inbound: "in", pcapng.Outbound: "out"}

// print prints a packet of an interface.
func (l *packetLines) print(i *pcapng.Interface, p *pcapng.Packet) error {
	if l.e.JSON && !l.e.JSONL {
		return nil
	}
	if l.printer == nil {
		if l.e.Packets == nil {
			return errors.New("this program cannot print packets: use -w FILE")
		}
		l.printer = l.e.Packets(l.out, &l.options)
	}
	if !l.e.JSONL {
		return l.printer.Print(i, p)
	}
	d := l.printer.Decode(i, p)
	line := *l.e
	line.Stdout = l.out
	return line.printJSON(frame{
		Time: time.Unix(0, p.Time).UTC(), Interface: i.Name, Direction: directionNames[p.Direction],
		Length: p.Len, Captured: len(p.Data), Src: d.Src, Dst: d.Dst, PID: p.PID, Comment: p.Comment, Data: p.Data, Layers: notNil(d.Layers),
	})
}

// named makes lines begin with the interface from now on, when there is more than one.
func (l *packetLines) named(several bool) {
	l.options.Named = l.options.Named || several
}

// severalInterfaces tells whether a SOURCE may bring packets of more than one
// interface: any, a pattern, or a list. Lines then say which one it was.
func severalInterfaces(source string) bool {
	return source == "any" || strings.ContainsAny(source, ",*?[")
}
