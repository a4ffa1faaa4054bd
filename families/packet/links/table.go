package links

import (
	"cmp"
	"encoding/binary"
	"maps"
	"math/rand/v2"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

// table is what the messages have told so far. The kernel queues answers to a dump and
// notes of changes in one order, that of the truth, so each message is simply applied:
//
//	dump 1 ─▶ lo, v0, ── note: v0 renamed ── v1, done    what no message named is gone
//	overrun ─▶ notes are lost: dump 2 ─▶ ...
type table struct {
	known      map[int]Interface
	generation uint64 // of the newest interface
	dirty      bool   // known has changed since it was listed

	sequence uint32       // of the dump that was asked for last
	seen     map[int]bool // what messages have named since its answer began; nil: it is done
	began    bool         // a part of the answer has come
	again    bool         // the dump under way may have missed something
	lost     bool         // something was missed: another dump must be asked for
	refused  error        // the answer to the dump was this
}

// newTable counts dumps from anywhere: an adopted socket may have another's answer queued.
func newTable() *table { return &table{known: map[int]Interface{}, sequence: rand.Uint32()} }

// dumping tells whether the answer to a dump is not complete.
func (t *table) dumping() bool { return t.seen != nil }

// begin is told that another dump is asked for.
func (t *table) begin() {
	t.sequence++
	t.seen, t.began, t.again, t.lost, t.refused = map[int]bool{}, false, false, false, nil
}

// overrun is told that messages were lost.
func (t *table) overrun() {
	if t.dumping() {
		t.again = true // the kernel answers one dump after the other
		return
	}
	t.lost = true
}

// whole tells whether the table says all that there is.
func (t *table) whole() bool { return !t.dumping() && !t.lost }

// apply takes in what one datagram says. What does not parse is reported, after the
// messages before it were applied.
func (t *table) apply(datagram []byte) error {
	messages, err := syscall.ParseNetlinkMessage(datagram)
	if err != nil {
		return err
	}
	for i := range messages {
		if err := t.applyOne(&messages[i]); err != nil {
			return err
		}
	}
	return nil
}

func (t *table) applyOne(m *syscall.NetlinkMessage) error {
	ours := t.dumping() && m.Header.Seq == t.sequence && m.Header.Flags&unix.NLM_F_MULTI != 0
	t.began = t.began || ours
	if ours && m.Header.Flags&unix.NLM_F_DUMP_INTR != 0 {
		t.again = true // links came or went between two parts of the answer
	}
	switch m.Header.Type {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		return t.link(m.Header.Type, m.Data)
	case unix.NLMSG_DONE:
		if ours {
			t.done(status(m.Data))
		}
	case unix.NLMSG_ERROR:
		if t.dumping() && m.Header.Seq == t.sequence {
			t.refused = status(m.Data)
		}
	}
	return nil
}

// status is the error number in front of NLMSG_DONE and NLMSG_ERROR, nil for 0.
func status(data []byte) error {
	if len(data) < 4 {
		return nil
	}
	if n := int32(binary.NativeEndian.Uint32(data)); n < 0 {
		return syscall.Errno(-n)
	}
	return nil
}

func (t *table) link(kind uint16, data []byte) error {
	family, i, err := parseLink(data)
	switch {
	case err != nil:
		return err
	case family != unix.AF_UNSPEC:
		// An interface that leaves a bridge is an RTM_DELLINK of AF_BRIDGE.
	case kind == unix.RTM_NEWLINK:
		t.put(i)
	default:
		t.remove(i.Index)
	}
	return nil
}

func (t *table) put(i Interface) {
	old, known := t.known[i.Index]
	i.Generation = old.Generation
	if !known {
		t.generation++
		i.Generation = t.generation
	}
	// What was queued before the answer may be a note whose successor was lost.
	if t.dumping() && t.began {
		t.seen[i.Index] = true
	}
	t.known[i.Index] = i
	t.dirty = t.dirty || !known || !same(old, i)
}

func (t *table) remove(index int) {
	delete(t.seen, index)
	if _, known := t.known[index]; known {
		delete(t.known, index)
		t.dirty = true
	}
}

// done ends a dump: what it did not name is gone, unless it may have missed something.
// One that failed stays open, and is asked for again in time.
func (t *table) done(err error) {
	if err != nil {
		t.refused = err
		return
	}
	t.lost = t.again
	for index := range t.known {
		if !t.lost && !t.seen[index] {
			t.remove(index)
		}
	}
	t.seen = nil
}

// list is all interfaces, sorted by index.
func (t *table) list() []Interface {
	t.dirty = false
	return slices.SortedFunc(maps.Values(t.known), func(a, b Interface) int { return cmp.Compare(a.Index, b.Index) })
}
