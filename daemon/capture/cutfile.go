package capture

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/sockd/sockd/families/model"
	"github.com/sockd/sockd/families/packet/pcapng"
	"github.com/sockd/sockd/families/packet/ring"
)

// cutFile is a file that a cutter writes.
type cutFile struct {
	sink    sink
	begun   int64 // nanoseconds since 1970, as the following
	ends    int64
	oldest  int64 // of its packets; 0: none so far
	newest  int64
	packets int64
	lost    int64 // packets that were for it and are not in it

	local []uint32 // interface of the capture → of the file, plus 1; 0: it is not in the file
	order []uint32 // the other way round
	head  []byte   // what must be written before the next packet
	tail  int64    // bytes of statistics at the end, at most
	shown int      // of order: those whose descriptions are written

	last  error     // what was in the way of writing it last; nil: nothing
	stuck bool      // it still is
	again time.Time // when to try again, then
}

// retryAfter is how long a file that cannot be written is left alone: a full disk is
// asked once a second whether it still is.
const retryAfter = time.Second

func (f *cutFile) knows(id uint32) bool {
	return int(id) < len(f.local) && f.local[id] > 0
}

// number is the file's of an interface that it knows.
func (f *cutFile) number(id uint32) uint32 { return f.local[id] - 1 }

func (f *cutFile) learn(id uint32) {
	for len(f.local) <= int(id) {
		f.local = append(f.local, 0)
	}
	f.order = append(f.order, id)
	f.local[id] = uint32(len(f.order))
}

// note takes a packet's time down.
func (f *cutFile) note(t int64) {
	if f.oldest == 0 {
		f.oldest, f.newest = t, t
	}
	f.oldest, f.newest = min(f.oldest, t), max(f.newest, t)
}

// append writes the cutter's run, after what must come before it. The first whole bytes
// are in the file then: it ends with a whole packet whatever happens. Behind it there is
// always room for the statistics, also where the disk is full: they say what was lost.
//
//	file:  description │ packet │ packet │ packet
//	disk:  ───────────────────────────────────────────────│ statistics │
//	                                      Size ───────────^  reserved
func (f *cutFile) append(c *cutter) (whole int, err error) {
	if f.stuck && c.now().Before(f.again) {
		return 0, errStuck
	}
	if err := f.putHead(); err != nil {
		return 0, err
	}
	before := f.sink.Size()
	full := f.sink.Reserve(before+int64(len(c.run)), f.tail)
	n, err := f.sink.Write(c.run)
	if err == nil {
		err = full
	}
	if err == nil {
		f.stuck = false
		return len(c.run), nil
	}
	whole = c.prefix(c.run, n-int(f.tail))
	f.cut(before + int64(whole))
	return whole, err
}

// prefix is how long the whole packets are that a run has in its first bytes.
func (c *cutter) prefix(run []byte, most int) (whole int) {
	for whole < len(run) {
		size := c.recordLen(run[whole:])
		if whole+size > most {
			break
		}
		whole += size
	}
	return whole
}

// start writes what the file begins with.
func (f *cutFile) start(c *cutter) {
	if err := f.putHead(); err != nil {
		f.trouble(c, err)
	}
}

// putHead writes what must come before the next packet.
func (f *cutFile) putHead() error {
	if err := f.put(f.head, f.tail); err != nil {
		return err
	}
	f.head, f.shown = f.head[:0], len(f.order)
	return nil
}

// put writes all of b or nothing, where there is room for tail bytes more.
func (f *cutFile) put(b []byte, tail int64) error {
	if len(b) == 0 {
		return nil
	}
	before := f.sink.Size()
	if err := f.sink.Reserve(before+int64(len(b)), tail); err != nil {
		return err
	}
	if _, err := f.sink.Write(b); err != nil {
		f.cut(before)
		return err
	}
	return nil
}

// cut ends the file after so many bytes. Where that fails it is tried again by the next
// write, which goes to the same place. The room for the statistics is reserved anew at once: what
// was cut off is as much.
func (f *cutFile) cut(size int64) {
	if err := f.sink.Truncate(size); err != nil {
		f.last = err
		return
	}
	if f.tail > 0 {
		_ = f.sink.Reserve(size, int64(f.shown)*maxStats) // without it they may be missing
	}
}

// align fills the file up to a page, so that a block can follow as it is.
func (f *cutFile) align(c *cutter, s *pcapng.Stats) bool {
	at := len(f.head)
	if over := (f.sink.Size() + int64(at)) % ring.Page; over != 0 {
		n := ring.Page - int(over)
		if n < pcapng.MinFiller {
			n += ring.Page
		}
		f.head = append(f.head, make([]byte, n)...)
		pcapng.PutFiller(f.head[at:], s)
	}
	if err := f.putHead(); err != nil {
		f.head = f.head[:at]
		f.trouble(c, err)
		return false
	}
	return true
}

// complete writes the statistics, of the interfaces whose descriptions found room. A
// file without any description would be one that no reader takes: it is left empty.
func (f *cutFile) complete(c *cutter) {
	if err := f.putHead(); err != nil {
		f.trouble(c, err)
	}
	f.head = f.head[:0]
	if f.shown == 0 && f.last != nil {
		f.cut(0)
		return
	}
	if c.classic {
		return
	}
	for local, id := range f.order[:f.shown] {
		f.head = pcapng.AppendStats(f.head, c.statsOf(f, uint32(local), id))
	}
	if err := f.put(f.head, 0); err != nil {
		f.trouble(c, err)
	}
}

// statsOf are the statistics that a file ends with. They speak of the capture until
// now, as far as it is in files: what still waits is in those of the next.
func (c *cutter) statsOf(f *cutFile, local, id uint32) pcapng.Stats {
	s, i := c.stats(id, local == 0), c.ifaces[id]
	s.Interface = local
	s.Delivered = uint64(i.delivered)
	s.OSDrop += uint64(i.lost)
	s.Accepted = s.Delivered + s.OSDrop
	s.Received = s.Accepted + s.IfDrop
	if s.Time == 0 {
		s.Time = max(f.newest, s.Start)
	}
	s.End = s.Time
	return s
}

// trouble takes down what is in the way of writing the file, which is left alone for a
// while.
func (f *cutFile) trouble(c *cutter, err error) {
	f.stuck, f.again = true, c.now().Add(retryAfter)
	f.tell(c, err)
}

// tell tells of the first thing that goes wrong with the file. The last one is in its
// report.
func (f *cutFile) tell(c *cutter, err error) {
	first := f.last == nil
	f.last = err
	if first {
		c.done(f.report("error"))
	}
}

func (f *cutFile) report(reason string) model.FileReport {
	r := model.FileReport{Bytes: f.sink.Size(), Packets: f.packets, Lost: f.lost, Begun: time.Unix(0, f.begun).UTC(), Reason: reason}
	if f.packets > 0 {
		r.First, r.Last = time.Unix(0, f.oldest).UTC(), time.Unix(0, f.newest).UTC()
	}
	if f.last != nil {
		r.Error = f.last.Error()
		_ = errors.As(f.last, &r.Errno) // one of our own has none
	}
	return r
}

// lossComment is what the statistics of the first interface say of the whole capture.
func lossComment(kernel uint64, daemon, subscriber int64) string {
	return fmt.Sprintf("dropped_kernel=%d dropped_daemon=%d dropped_subscriber=%d", kernel, daemon, subscriber)
}

// pcapKept is how many bytes are kept of the packet that a run of a pcap file begins
// with.
func pcapKept(run []byte) uint32 { return binary.LittleEndian.Uint32(run[8:]) }
