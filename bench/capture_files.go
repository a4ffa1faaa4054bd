package main

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/sockd/sockd/families/packet/pcapng"
)

// A captureFile is what the bench wants of a file that a program wrote.
type captureFile struct {
	numbers []int64 // of its frames, in the file's order
	times   []int64 // when they came, nanoseconds since 1970

	// From here on pcapng only, and 0 elsewhere.
	dropped    int64 // the sum of all epb_dropcount
	misplaced  int   // frames whose epb_dropcount is not how many numbers are missing before them
	losses     losses
	interfaces int // how many are described
}

// losses are where a capture of sockd lost packets.
type losses struct{ kernel, daemon, subscriber int64 }

func (l losses) sum() int64 { return l.kernel + l.daemon + l.subscriber }

func (l losses) plus(m losses) losses {
	return losses{l.kernel + m.kernel, l.daemon + m.daemon, l.subscriber + m.subscriber}
}

// readCapture reads a file of either format.
func readCapture(file string) (*captureFile, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	c, err := parseCapture(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return c, nil
}

// parseCapture tells the formats apart by their first four bytes.
func parseCapture(r io.Reader) (*captureFile, error) {
	in := bufio.NewReaderSize(r, 1<<20)
	magic, err := in.Peek(4)
	if err != nil {
		return nil, unexpectedEOF(err)
	}
	if binary.LittleEndian.Uint32(magic) == pcapng.SectionBlock {
		return parsePcapng(in)
	}
	return parsePcap(in)
}

func unexpectedEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// add takes a frame over. One that is not ours is an error: nothing else is in the
// namespaces, so a program made it up.
func (c *captureFile) add(at int64, frame []byte) error {
	n, ok := frameNumber(frame)
	if !ok {
		return fmt.Errorf("packet %d is none that was sent: % x", len(c.numbers)+1, frame[:min(len(frame), 64)])
	}
	c.numbers, c.times = append(c.numbers, n), append(c.times, at)
	return nil
}

///// pcapng

func parsePcapng(r io.Reader) (*captureFile, error) {
	c, in := &captureFile{}, pcapng.NewReader(r)
	var b pcapng.Block
	for {
		err := in.Next(&b)
		if err == io.EOF {
			return c, nil
		}
		if err == nil {
			err = c.block(&b)
		}
		if err != nil {
			return nil, err
		}
	}
}

func (c *captureFile) block(b *pcapng.Block) error {
	switch b.Type {
	case pcapng.InterfaceBlock:
		c.interfaces++
	case pcapng.PacketBlock:
		return c.packet(&b.Packet)
	case pcapng.StatisticsBlock:
		c.statistics(b.Stats)
	}
	return nil
}

func (c *captureFile) packet(p *pcapng.Packet) error {
	if err := c.add(p.Time, p.Data); err != nil {
		return err
	}
	c.dropped += int64(p.Dropped)
	missing := c.numbers[len(c.numbers)-1]
	if len(c.numbers) > 1 {
		missing -= c.numbers[len(c.numbers)-2] + 1
	}
	if missing != int64(p.Dropped) {
		c.misplaced++
	}
	return nil
}

// statistics takes over the losses of the whole capture, which stand in the comment of
// interface 0; the last one counts.
func (c *captureFile) statistics(s pcapng.Stats) {
	var l losses
	if n, _ := fmt.Sscanf(s.Comment, "dropped_kernel=%d dropped_daemon=%d dropped_subscriber=%d", &l.kernel, &l.daemon, &l.subscriber); n == 3 {
		c.losses = l
	}
}

///// pcap

// The magic numbers of pcap files (pcap-savefile(5)), with how many nanoseconds a unit
// of their times is.
var pcapMagics = map[uint32]int64{0xa1b2c3d4: 1000, 0xa1b23c4d: 1}

const (
	pcapHead   = 24
	pcapRecord = 16
	pcapLimit  = 262144 // bytes of a packet
)

func parsePcap(r io.Reader) (*captureFile, error) {
	var head [pcapHead]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, unexpectedEOF(err)
	}
	order, unit, err := pcapOrder(head[:4])
	if err != nil {
		return nil, err
	}
	c, buf := &captureFile{}, make([]byte, pcapLimit)
	for {
		at, frame, err := pcapPacket(r, order, unit, buf)
		if err == io.EOF {
			return c, nil
		}
		if err == nil {
			err = c.add(at, frame)
		}
		if err != nil {
			return nil, err
		}
	}
}

func pcapOrder(magic []byte) (binary.ByteOrder, int64, error) {
	for _, order := range []binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
		if unit, ok := pcapMagics[order.Uint32(magic)]; ok {
			return order, unit, nil
		}
	}
	return nil, 0, fmt.Errorf("begins with % x: neither pcap nor pcapng", magic)
}

// pcapPacket reads one record into buf; io.EOF at the end of the file.
func pcapPacket(r io.Reader, order binary.ByteOrder, unit int64, buf []byte) (at int64, frame []byte, err error) {
	var h [pcapRecord]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return 0, nil, err
	}
	n := order.Uint32(h[8:])
	if n > pcapLimit {
		return 0, nil, fmt.Errorf("a packet of %d bytes", n)
	}
	if _, err := io.ReadFull(r, buf[:n]); err != nil {
		return 0, nil, unexpectedEOF(err)
	}
	return int64(order.Uint32(h[:]))*1e9 + int64(order.Uint32(h[4:]))*unit, buf[:n], nil
}

// appendPcapHead begins a pcap file of Ethernet frames with times in microseconds.
func appendPcapHead(b []byte) []byte {
	le := binary.LittleEndian
	b = le.AppendUint32(b, 0xa1b2c3d4)
	b = le.AppendUint16(b, 2) // version 2.4
	b = le.AppendUint16(b, 4)
	b = append(b, make([]byte, 8)...)
	b = le.AppendUint32(b, pcapLimit)
	return le.AppendUint32(b, uint32(pcapng.Ethernet))
}

func appendPcapRecord(b []byte, at time.Time, frame []byte) []byte {
	le := binary.LittleEndian
	b = le.AppendUint32(b, uint32(at.Unix()))
	b = le.AppendUint32(b, uint32(at.Nanosecond()/1000))
	b = le.AppendUint32(b, uint32(len(frame)))
	b = le.AppendUint32(b, uint32(len(frame)))
	return append(b, frame...)
}

///// sets

// A difference is how two files' sets of numbers differ.
type difference struct {
	missing int // in the second, not in the first
	extra   int // in the first, not in the second
	twice   int // more than once in the first
}

func differ(got, want []int64) (d difference) {
	in := map[int64]int{}
	for _, n := range want {
		in[n] |= 1
	}
	for _, n := range got {
		if in[n]&2 != 0 {
			d.twice++
		}
		in[n] |= 2
	}
	for _, where := range in {
		switch where {
		case 1:
			d.missing++
		case 2:
			d.extra++
		}
	}
	return d
}

// gaps counts where a number does not follow the one before.
func gaps(numbers []int64) (n int) {
	for i := 1; i < len(numbers); i++ {
		if numbers[i] != numbers[i-1]+1 {
			n++
		}
	}
	return n
}

var errNoPackets = errors.New("there is not one packet in the file")
