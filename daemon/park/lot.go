package park

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// How much of a lot is what. The live are refused at three quarters of its
// messages, so that Replace and Leave, which add one, always find room. Turning
// begins when the dead have half of what the live leave, and turnsPerMessage heads
// are turned over for each message that is added: while the head goes once
// through the whole lot an eighth of it comes to the dead, which is the other half.
const (
	turnsPerMessage = 8
	liveNum         = 3
	liveDen         = 4
	// deadFDsDen: turning begins, too, when the dead hold an eighth of all
	// descriptors that may be in flight.
	deadFDsDen = 8
	// fewDead are not worth a copy. Above it as many dead as live are the most:
	// the dead hold sockets and pipe pages that nobody uses.
	fewDead = 32
)

var (
	errNoRoom = errors.New("lot is full")
	// errStrange is a lot whose head is not what this process put there or
	// found there: somebody else has a hand in it. It is not turned over any more.
	errStrange = errors.New("parking lot changed under our hands")
)

// A slot is what memory knows of one message of the queue.
type slot struct {
	id, generation uint64
	fds            uint8
}

// A lot is one pair and what is known of its queue.
type lot struct {
	name  string
	bound int    // messages that fit
	quota *quota // of descriptors, shared by all lots

	mu      sync.Mutex        // guards what follows; held across calls on the pair, none of which waits
	pair    pair              // open until closed
	closed  bool              // by Close
	strange bool              // see errStrange
	head    uint64            // place of queue[0]; places are never used twice
	queue   []slot            // head first
	live    map[uint64]uint64 // ID → place of the message that counts
	deadFDs int               // descriptors that dead messages hold
	buf     [MessageSize]byte
}

// A quota counts descriptors in flight. The kernel counts them for the user and
// compares with RLIMIT_NOFILE of who sends (unix(7), ETOOMANYREFS).
type quota struct {
	bound    int // 0: none
	lots     int
	inFlight atomic.Int64
	numbers  atomic.Uint64 // the generation given last
	turned   atomic.Uint64 // live messages copied to a tail
	stuck    atomic.Uint64 // heads that could not be turned over
	full     atomic.Uint64 // Parks and Replaces refused
}

// room reports whether n descriptors more may be parked; as with messages, a
// quarter is left for the dead and for copies.
func (q *quota) room(n int) bool {
	return q.bound == 0 || n == 0 || (int(q.inFlight.Load())+n)*liveDen <= q.bound*liveNum
}

func (l *lot) at(place uint64) *slot { return &l.queue[place-l.head] }

// park puts the first message of an ID.
func (l *lot) park(r *Record, fds []int) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.closed:
		return os.ErrClosed
	case l.strange || (len(l.live)+1)*liveDen > l.bound*liveNum:
		return errNoRoom
	}
	if err := l.addLocked(r, fds); err != nil {
		return err
	}
	l.live[r.ID] = l.tailLocked()
	l.tidyLocked()
	return nil
}

func (l *lot) has(id uint64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, here := l.live[id]
	return here
}

// replace puts a later message of an ID, and reports whether the ID is here.
func (l *lot) replace(r *Record, fds []int) (bool, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	place, here := l.live[r.ID]
	if !here {
		return false, nil
	}
	old := int(l.at(place).fds)
	if err := l.addLocked(r, fds); err != nil {
		return true, err
	}
	l.deadFDs += old
	l.live[r.ID] = l.tailLocked()
	l.tidyLocked()
	return true, nil
}

// leave ends an ID, and reports whether it was here.
func (l *lot) leave(id uint64) (bool, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	place, here := l.live[id]
	if !here {
		return false, nil
	}
	fds := int(l.at(place).fds)
	delete(l.live, id)
	l.deadFDs += fds
	l.tidyLocked()
	if place < l.head {
		return true, nil // it was at the head, and all earlier ones before it
	}
	if err := l.addLocked(&Record{Kind: gone, ID: id}, nil); err != nil {
		l.live[id] = place
		l.deadFDs -= fds
		return true, err
	}
	l.tidyLocked()
	return true, nil
}

// leaveNow is leave that also takes off every message of the ID.
func (l *lot) leaveNow(id uint64) (bool, error) {
	here, err := l.leave(id)
	if !here || err != nil {
		return here, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	last := len(l.queue) - 1
	for last >= 0 && (l.queue[last].id != id || l.queue[last].fds == 0) {
		last--
	}
	for range last + 1 { // what is live goes to the tail
		if err := l.stepLocked(); err != nil {
			return true, err
		}
	}
	return true, nil
}

// tailLocked is the place of the message that was added last.
func (l *lot) tailLocked() uint64 { return l.head + uint64(len(l.queue)) - 1 }

// addLocked sends one message with the next generation.
func (l *lot) addLocked(r *Record, fds []int) error {
	if l.closed {
		return os.ErrClosed
	}
	if !l.quota.room(len(fds)) {
		return unix.ETOOMANYREFS
	}
	r.Generation = l.quota.numbers.Add(1)
	r.encode(&l.buf, len(fds))
	return l.sendLocked(slot{id: r.ID, generation: r.Generation, fds: uint8(len(fds))}, fds)
}

// sendLocked sends buf and remembers it as s.
func (l *lot) sendLocked(s slot, fds []int) error {
	err := l.pair.send(l.buf[:], fds)
	if err == unix.EAGAIN {
		return errNoRoom
	}
	if err != nil {
		return err
	}
	l.quota.inFlight.Add(int64(len(fds)))
	l.queue = append(l.queue, s)
	return nil
}

// tidyLocked takes dead heads off, and turns live ones over where the dead are
// too many. What it cannot do now the next call will try again.
func (l *lot) tidyLocked() {
	for range turnsPerMessage {
		if len(l.queue) == 0 || !l.headDeadLocked() && !l.crowdedLocked() {
			return
		}
		if err := l.stepLocked(); err != nil {
			l.quota.stuck.Add(1)
			return
		}
	}
}

func (l *lot) headDeadLocked() bool {
	place, live := l.live[l.queue[0].id]
	return !live || place != l.head
}

// crowdedLocked reports whether the dead are so many that copies of the live are
// the smaller evil.
func (l *lot) crowdedLocked() bool {
	live := len(l.live)
	dead := len(l.queue) - live
	return dead > min(fewDead+live, (l.bound-live)/2) ||
		l.quota.bound > 0 && l.deadFDs*deadFDsDen*l.quota.lots > l.quota.bound
}

// stepLocked takes the head off, after its copy where it is live.
func (l *lot) stepLocked() error {
	if l.strange || l.closed {
		return errStrange
	}
	if l.headDeadLocked() {
		return l.dropLocked()
	}
	if err := l.copyLocked(); err != nil {
		return err
	}
	l.quota.turned.Add(1)
	return l.dropLocked()
}

// copyLocked puts a copy of the live head at the tail, as it is: it is the same
// message, and of two the last counts.
func (l *lot) copyLocked() error {
	s := l.queue[0]
	n, fds, err := l.pair.peek(l.buf[:])
	if err != nil {
		return err
	}
	defer closeAll(fds)
	if got, _, err := decode(l.buf[:n]); err != nil || got.ID != s.id || got.Generation != s.generation || len(fds) != int(s.fds) {
		l.strange = true
		return errStrange
	}
	if err := l.sendLocked(s, fds); err != nil {
		return err
	}
	l.live[s.id] = l.tailLocked()
	l.deadFDs += int(s.fds)
	return nil
}

// dropLocked takes the dead head off.
func (l *lot) dropLocked() error {
	if _, err := l.pair.drop(l.buf[:]); err != nil {
		l.strange = true
		return fmt.Errorf("%w: %w", errStrange, err)
	}
	fds := int(l.queue[0].fds)
	l.quota.inFlight.Add(int64(-fds))
	l.deadFDs -= fds
	l.popLocked()
	return nil
}

// popLocked forgets the head. append moves the rest to a new array once as many
// have been added as it has room for.
func (l *lot) popLocked() {
	l.queue = l.queue[1:]
	l.head++
}

// turnLocked turns the whole lot over once: no message that is dead now is left.
func (l *lot) turnLocked() error {
	for range len(l.queue) {
		if err := l.stepLocked(); err != nil {
			return err
		}
	}
	return nil
}

// close closes the pair. What is parked stays with whoever else holds it.
func (l *lot) close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil
	}
	l.closed = true
	return l.pair.close()
}
