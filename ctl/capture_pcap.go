package ctl

import (
	"bufio"

	"github.com/sockd/sockd/families/packet/pcapng"
)

// pcapStream makes a pcap file of a stream of pcapng as it comes. Files are made by the
// daemon; a pipe is not.
type pcapStream struct {
	out   *bufio.Writer
	began bool
	link  pcapng.LinkType
	alien int64 // packets of another link type, for which the format has no place
	buf   []byte
}

// begin writes what the file begins with, at the first interface. A nil stream has
// nothing to write.
func (p *pcapStream) begin(i pcapng.Interface) error {
	if p == nil || p.began {
		return nil
	}
	p.began, p.link = true, i.Link
	snaplen := i.Snaplen
	if snaplen == 0 {
		snaplen = maxSnaplen
	}
	_, err := p.out.Write(pcapng.AppendPcapHeader(nil, i.Link, snaplen))
	return err
}

func (p *pcapStream) write(link pcapng.LinkType, packet *pcapng.Packet) error {
	if link != p.link {
		p.alien++
		return nil
	}
	p.buf = pcapng.AppendPcapPacket(p.buf[:0], packet)
	_, err := p.out.Write(p.buf)
	return err
}
