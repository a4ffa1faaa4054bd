package relay

import (
	"container/heap"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sockd/sockd/families/ksock"
)

// shard is one event loop: a goroutine locked to its thread, with an epoll set of its
// own. What it runs never blocks, so one thread carries thousands of sessions, and a
// request costs neither a wake-up of a goroutine nor a lock.
//
//	       ┌────────────────────────── turn ──────────────────────────┐
//	epoll ─┴► events ─► tasks (do) ─► what has more to do (later) ─► alarms
//
// All but do belongs to the shard's own goroutine.
type shard struct {
	poller *ksock.Poller
	slots  []slot
	free   []uint32 // slots that can be used again

	clock  time.Duration // of this turn, since epoch
	alarms alarms
	armed  time.Duration // when the poller's timer fires, since epoch; 0: it is not set
	queue  []runner      // what has more to do, in the next turn
	spare  []runner      // last turn's queue, to be filled again
	pipes  pipePool
	// plainPipes are those of durable streams.
	plainPipes pipePool
	room       *room // where a piece of a stream passes through

	live atomic.Int64 // streams that are here, or about to be
	mail *mail        // where datagrams pass through; nil before the first

	mu    sync.Mutex // guards what follows
	tasks []func()
	ended bool
	done  chan struct{} // closes when the goroutine has returned
}

// handler hears of what happens to a descriptor, on the shard's goroutine. Events
// are edges (ksock.Poller): it goes on until ErrAgain, or asks for another turn with
// later.
type handler interface{ ready(ksock.Events) }

// runner has something left to do.
type runner interface{ run() }

// token names a watch. One that has ended is not another's.
type token uint64

// slot is what a token stands for: the number of the slot, and of its use.
type slot struct {
	h   handler
	use uint32
}

// newShard starts an event loop, which may keep a processor (ksock.Poller). The caller
// stops it.
func newShard(greedy bool) (*shard, error) {
	p, err := ksock.NewPoller()
	if err != nil {
		return nil, err
	}
	p.Greedy = greedy
	s := &shard{poller: p, done: make(chan struct{}), room: rooms.Get().(*room), plainPipes: pipePool{plain: true}}
	go s.loop()
	return s, nil
}

// stop ends the loop and waits for it. Whoever watches descriptors has let go of
// them before. Twice is as once.
func (s *shard) stop() {
	s.mu.Lock()
	first := !s.ended
	s.ended = true
	if first {
		s.poller.Wake()
	}
	s.mu.Unlock()
	<-s.done
}

func (s *shard) loop() {
	runtime.LockOSThread() // and never unlocked: the thread ends with the loop
	defer close(s.done)
	defer s.poller.Close() // nobody wakes it any more: ended is set
	defer s.plainPipes.close()
	defer s.pipes.close()
	for s.turn() {
	}
}

// turn is one round; false means the loop is to end.
func (s *shard) turn() bool {
	s.arm()
	events, lapsed := s.poller.Wait(len(s.queue) == 0)
	if lapsed {
		s.armed = 0
	}
	s.clock = time.Since(epoch)
	for _, e := range events {
		if sl := &s.slots[uint32(e.Token)]; sl.use == uint32(e.Token>>32) && sl.h != nil {
			sl.h.ready(e.Events)
		}
	}
	goOn := s.runTasks()
	s.runQueue()
	s.ring()
	return goOn
}

// arm sets the timer for the first alarm, unless it fires earlier anyway.
func (s *shard) arm() {
	if len(s.alarms) == 0 || s.armed != 0 && s.armed <= s.alarms[0].at {
		return
	}
	s.armed = s.alarms[0].at
	s.poller.WakeIn(s.armed - time.Since(epoch))
}

// now is the time of this turn, since epoch.
func (s *shard) now() time.Duration { return s.clock }

// watch hears of fd's events until unwatch or forget.
func (s *shard) watch(fd int, h handler) (token, error) { return s.enter(fd, h, s.poller.Add) }

// watchLevel is watch for input alone, of which events tell as long as there is any.
func (s *shard) watchLevel(fd int, h handler) (token, error) {
	return s.enter(fd, h, s.poller.AddLevel)
}

// watchUnix is watch without word of room to send.
func (s *shard) watchUnix(fd int, h handler) (token, error) {
	return s.enter(fd, h, s.poller.AddUnix)
}

func (s *shard) enter(fd int, h handler, add func(int, uint64) error) (token, error) {
	i := uint32(len(s.slots))
	if n := len(s.free); n > 0 {
		i, s.free = s.free[n-1], s.free[:n-1]
	} else {
		s.slots = append(s.slots, slot{})
	}
	t := token(uint64(s.slots[i].use)<<32 | uint64(i))
	if err := add(fd, uint64(t)); err != nil {
		s.free = append(s.free, i)
		return 0, err
	}
	s.slots[i].h = h
	return t, nil
}

// forget ends a watch whose descriptor, the only one of its description, is closed
// now: that takes it out of the epoll set.
func (s *shard) forget(t token) {
	sl := &s.slots[uint32(t)]
	if sl.use != uint32(t>>32) || sl.h == nil {
		return
	}
	sl.h = nil
	sl.use++
	s.free = append(s.free, uint32(t))
}

// unwatch ends a watch whose descriptor, or a duplicate of it, lives on.
func (s *shard) unwatch(t token, fd int) {
	_ = s.poller.Remove(fd) // ENOENT: it was closed elsewhere
	s.forget(t)
}

// do runs f on the shard soon. It is false when the shard has ended; then f never
// runs.
func (s *shard) do(f func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return false
	}
	s.tasks = append(s.tasks, f)
	s.poller.Wake()
	return true
}

func (s *shard) runTasks() (goOn bool) {
	s.mu.Lock()
	tasks := s.tasks
	s.tasks = nil
	goOn = !s.ended
	s.mu.Unlock()
	for _, f := range tasks {
		f()
	}
	return goOn
}

// later runs h again in the next turn, after others have had theirs.
func (s *shard) later(h runner) { s.queue = append(s.queue, h) }

func (s *shard) runQueue() {
	now := s.queue
	s.queue = s.spare[:0]
	for i, r := range now {
		r.run()
		now[i] = nil
	}
	s.spare = now
}

// alarm is a function that is called once, later.
type alarm struct {
	s  *shard
	at time.Duration // since epoch
	f  func()
	i  int // in the heap; -1 when it is not there
}

// after calls f on the shard when d has passed.
func (s *shard) after(d time.Duration, f func()) *alarm {
	a := &alarm{s: s, f: f, i: -1}
	a.reset(d)
	return a
}

// reset lets d pass anew.
func (a *alarm) reset(d time.Duration) {
	a.at = time.Since(epoch) + d
	if a.i < 0 {
		heap.Push(&a.s.alarms, a)
		return
	}
	heap.Fix(&a.s.alarms, a.i)
}

// stop makes a no-op of an alarm, nil ones too.
func (a *alarm) stop() {
	if a != nil && a.i >= 0 {
		heap.Remove(&a.s.alarms, a.i)
	}
}

// ring calls what is due.
func (s *shard) ring() {
	for len(s.alarms) > 0 && s.alarms[0].at <= s.clock {
		heap.Pop(&s.alarms).(*alarm).f()
	}
}

// alarms is a heap by time.
type alarms []*alarm

func (h alarms) Len() int           { return len(h) }
func (h alarms) Less(i, j int) bool { return h[i].at < h[j].at }
func (h alarms) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].i, h[j].i = i, j
}

// Push appends an alarm: heap.Interface.
func (h *alarms) Push(x any) {
	a := x.(*alarm)
	a.i = len(*h)
	*h = append(*h, a)
}

// Pop takes the last one: heap.Interface.
func (h *alarms) Pop() any {
	old := *h
	n := len(old) - 1
	a := old[n]
	old[n] = nil
	*h = old[:n]
	a.i = -1
	return a
}
