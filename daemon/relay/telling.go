package relay

import (
	"sync/atomic"
	"time"
)

// telling makes events of losses, one a cause and second: a flood of them is one
// event and a count. Whoever counts may hold locks, so another goroutine tells.
type telling struct {
	r    *relay
	last [numCauses]atomic.Int64 // when it was told, since epoch
}

const tellEvery = time.Second

// tell asks for an event, if anybody would hear it and none was told just now.
func (t *telling) tell(c cause) {
	e := t.r.eng
	if !e.opts.Host.Watched() {
		return
	}
	now, last := int64(time.Since(epoch)), t.last[c].Load()
	if last != 0 && now-last < int64(tellEvery) || !t.last[c].CompareAndSwap(last, now) {
		return
	}
	select {
	case e.notices <- notice{t.r, c}:
	default: // so many causes at once that one is not told; all are counted
	}
}

// notice is an event that is to be told.
type notice struct {
	r   *relay
	why cause
}

// tellLosses is the goroutine that tells, until notices is closed.
func (e *Engine) tellLosses() {
	defer close(e.told)
	for n := range e.notices {
		n.r.emit("dropped", causeNames[n.why])
	}
}
