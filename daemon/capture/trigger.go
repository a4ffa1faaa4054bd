package capture

import (
	"fmt"
	"sync/atomic"
	"time"

	"github.com/sockd/sockd/families/packet/filter"
	"github.com/sockd/sockd/families/packet/pcapng"
)

// trigger decides when a history dumps by itself: at a packet that a filter takes, or
// when many were lost within a second. All but fired and suppressed is the
// writer's, which runs under the subscription's lock.
type trigger struct {
	filter string        // "": none
	drops  uint64        // so many lost packets are a burst; 0: none
	window time.Duration // at least so long between two, by the packets' times

	// fired is what somebody is to act on. It holds one: who is still busy with that has
	// the next one counted as suppressed.
	fired      chan firing
	suppressed atomic.Int64

	due   *firing // found in this block
	quiet int64   // until this time another one is suppressed
	burst int64   // when the burst of losses began
	lost  uint64  // in it
}

// firing is one trigger that fired.
type firing struct {
	time  int64 // of the packet
	cause string
}

// burstTime is how long a burst of losses is.
const burstTime = int64(time.Second)

func newTrigger(text string, drops uint64, window time.Duration) *trigger {
	return &trigger{filter: text, drops: drops, window: window, fired: make(chan firing, 1)}
}

// program is the filter for packets of a link type: nil when no packet of it can match,
// or there is no trigger.
func (t *trigger) program(link pcapng.LinkType) *filter.Program {
	if t == nil || t.filter == "" {
		return nil
	}
	p, err := keptProgram(t.filter, link)
	if err != nil {
		return nil // words that this link type has not: they match nothing of it
	}
	return p
}

// look judges one packet; match is the filter for its link type.
func (t *trigger) look(p *pcapng.Packet, match *filter.Program) {
	if match != nil && match.MatchPacket(&filter.Packet{Data: p.Data, Length: p.Len, Direction: filter.Direction(p.Direction)}) {
		t.fire(p.Time, "a packet matches "+t.filter)
	}
	if p.Dropped != 0 && t.drops != 0 {
		t.loss(p)
	}
}

// loss adds a gap to the burst that it belongs to.
func (t *trigger) loss(p *pcapng.Packet) {
	if p.Time-t.burst > burstTime || p.Time < t.burst {
		t.burst, t.lost = p.Time, 0
	}
	if t.lost += p.Dropped; t.lost >= t.drops {
		t.fire(p.Time, fmt.Sprintf("%d packets were lost", t.lost))
		t.lost = 0
	}
}

// fire notes that the trigger fired, unless it has just now. A clock that was set back
// by more than the window makes an end of the quiet.
func (t *trigger) fire(at int64, cause string) {
	if at < t.quiet && at >= t.quiet-2*int64(t.window) {
		t.suppressed.Add(1)
		return
	}
	t.quiet = at + int64(t.window)
	t.due = &firing{at, cause}
}

// flush tells of what fired, whose packet readers can see by now.
func (t *trigger) flush() {
	if t.due == nil {
		return
	}
	select {
	case t.fired <- *t.due:
	default:
		t.suppressed.Add(1)
	}
	t.due = nil
}
