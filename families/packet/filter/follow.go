package filter

import "time"

// Verdict is what a Follower says of a packet.
type Verdict uint8

// The verdicts.
const (
	Drop Verdict = iota
	Take
	// Hold is for a fragment that came before the first of its datagram: nobody can tell
	// yet. The caller hands a copy of it to Keep.
	Hold
)

// FollowLimits bounds what a Follower remembers. Zeros stand for the defaults.
type FollowLimits struct {
	// Datagrams is how many it knows at once, 1024: what a host of 1 Gbit/s has in
	// flight that sends nothing but fragments, within 10 ms.
	Datagrams int
	// Bytes is how much of held packets there is at once, 1 MiB.
	Bytes int
	// Age is how long a datagram is waited for, and its verdict remembered, by the time of
	// the packets: 30 s, as Linux waits to reassemble it.
	Age time.Duration
}

func (l FollowLimits) orDefault() FollowLimits {
	if l.Datagrams <= 0 {
		l.Datagrams = 1024
	}
	if l.Bytes <= 0 {
		l.Bytes = 1 << 20
	}
	if l.Age <= 0 {
		l.Age = 30 * time.Second
	}
	return l
}

// FollowStats counts. Held is always Released + Dropped + Lost + Waiting.
type FollowStats struct {
	Held     uint64 // fragments that came before the first of their datagram
	Released uint64 // of these: its first fragment was taken
	Dropped  uint64 // its first fragment was not
	Lost     uint64 // nobody knows: pushed out, too old, or not kept
	Waiting  int    // held now

	WaitingBytes int
	Datagrams    int    // known now
	Forgotten    uint64 // verdicts of datagrams that were pushed out by the bound
}

// Follower gives a datagram's first verdict to the rest of it, for programs with
// the word "fragments": only the first fragment has the ports.
//
//	follower := filter.NewFollower[copied](program, filter.FollowLimits{})
//	...
//	switch follower.Judge(&packet, time) {
//	case filter.Hold:
//		follower.Keep(copyOf(packet))
//	case filter.Take:
//		for _, c := range follower.Released() {
//			deliver(c)
//		}
//		deliver(packet)
//	}
//
// H is what the caller keeps of a packet. It stays with the follower until the verdict is there, so
// the caller has no table of its own.
//
// A packet that the program takes by itself is always taken. A datagram is forgotten when
// all of it was seen, as its ID may then be another's; a copy of a part of it
// that comes later is held in vain.
//
// It is not for several goroutines.
type Follower[H any] struct {
	program *Program
	follows bool
	network network
	limits  FollowLimits
	table   followTable[H]
	stats   FollowStats

	released []H        // by the last Judge
	pending  *follow[H] // that the last Judge said Hold for, until Keep
	size     int        // of that packet
	scratch  []byte
	whole    Packet
}

// NewFollower follows fragments for a program. Without the word in it, or for a nil program,
// Judge is MatchPacket.
func NewFollower[H any](p *Program, limits FollowLimits) *Follower[H] {
	limits = limits.orDefault()
	f := &Follower[H]{program: p, follows: p.Fragments(), limits: limits}
	if f.follows {
		f.network = networkOf(p.link)
		f.table = newFollowTable[H](limits.Datagrams)
	}
	return f
}

// Judge says what becomes of a packet. now is its time in nanoseconds. It keeps nothing of the
// packet, and allocates nothing for what is no fragment.
func (f *Follower[H]) Judge(p *Packet, now int64) Verdict {
	f.settle()
	taken := f.program.MatchPacket(p)
	if !f.follows {
		return verdict(taken)
	}
	part, ok := fragmentOf(f.network, p)
	if !ok {
		return verdict(taken)
	}
	f.Expire(now)
	if part.first() {
		return f.decide(&part, taken || f.takesWhole(&part, p), now)
	}
	return f.later(&part, taken, len(p.Data), now)
}

func verdict(taken bool) Verdict {
	if taken {
		return Take
	}
	return Drop
}

// Keep takes what the caller keeps of the packet that Judge said Hold of last. Who does not call it
// loses the packet.
func (f *Follower[H]) Keep(held H) {
	d := f.pending
	if d == nil {
		return
	}
	f.pending = nil
	d.held = append(d.held, held)
	d.bytes += f.size
	f.stats.Waiting++
	f.stats.WaitingBytes += f.size
}

// Released is what was held and belongs to the packet that Judge took last, in the order it came.
// It is valid until the next call.
func (f *Follower[H]) Released() []H { return f.released }

// Stats counts since the beginning.
func (f *Follower[H]) Stats() FollowStats {
	s := f.stats
	if f.pending != nil { // counted as held, and not yet kept
		s.Lost++
	}
	s.Datagrams = f.table.len()
	return s
}

// Expire gives up what is too old at a time. Judge does so at each fragment; who wants it
// sooner calls it now and then.
func (f *Follower[H]) Expire(now int64) {
	for _, q := range f.table.queues() {
		for q.oldest != nil && now-q.oldest.since > int64(f.limits.Age) {
			f.forget(q.oldest)
		}
	}
}

// Flush gives up all that is held: no more packets come.
func (f *Follower[H]) Flush() {
	f.settle()
	for f.table.undecided.oldest != nil {
		f.forget(f.table.undecided.oldest)
	}
}

// settle ends the packet before: what it released is the caller's, and what was
// not kept is lost.
func (f *Follower[H]) settle() {
	if f.pending != nil {
		f.pending = nil
		f.stats.Lost++
	}
	if len(f.released) > 0 {
		f.released = emptied(f.released)
	}
}

// takesWhole judges an IPv6 fragment as if it were none.
func (f *Follower[H]) takesWhole(part *fragment, p *Packet) bool {
	if !part.datagram.v6 {
		return false
	}
	f.scratch = part.whole(f.scratch, p.Data)
	f.whole = *p
	f.whole.Data = f.scratch
	taken := f.program.MatchPacket(&f.whole)
	f.whole = Packet{}
	return taken
}

// decide gives a datagram the verdict of its first fragment. One that was decided
// before has its ID by chance: it is another.
func (f *Follower[H]) decide(part *fragment, taken bool, now int64) Verdict {
	d := f.table.find(part.datagram)
	switch {
	case d == nil:
		d = f.add(part.datagram, now)
	case d.decided:
		d.seen = coverage{}
	}
	f.table.decide(d, taken, now)
	f.hand(d)
	f.note(d, part)
	return verdict(taken)
}

// hand does with what is held of a datagram what its verdict says.
func (f *Follower[H]) hand(d *follow[H]) {
	n := len(d.held)
	if n == 0 {
		return
	}
	f.stats.Waiting -= n
	f.stats.WaitingBytes -= d.bytes
	if d.taken {
		f.stats.Released += uint64(n)
		f.released, d.held = d.held, f.released
	} else {
		f.stats.Dropped += uint64(n)
	}
	d.dropHeld()
}

// later judges a fragment that is not the first.
func (f *Follower[H]) later(part *fragment, taken bool, size int, now int64) Verdict {
	d := f.table.find(part.datagram)
	if d != nil && d.decided {
		taken = taken || d.taken
		f.note(d, part)
		return verdict(taken)
	}
	if taken {
		return Take
	}
	return f.hold(part, size, now)
}

// note marks a fragment as seen. When that was all of the datagram, it is forgotten.
func (f *Follower[H]) note(d *follow[H], part *fragment) {
	d.seen.add(part)
	if d.seen.complete() {
		f.table.remove(d)
	}
}

// hold makes room for a packet, and is Hold when there is.
func (f *Follower[H]) hold(part *fragment, size int, now int64) Verdict {
	f.stats.Held++
	if size > f.limits.Bytes {
		f.stats.Lost++
		return Drop
	}
	for f.stats.WaitingBytes+size > f.limits.Bytes {
		f.forget(f.table.undecided.oldest)
	}
	d := f.table.find(part.datagram)
	if d == nil {
		d = f.add(part.datagram, now)
	}
	d.seen.add(part)
	f.pending, f.size = d, size
	return Hold
}

// add begins a datagram, in the place of the oldest when there are too many.
func (f *Follower[H]) add(name datagram, now int64) *follow[H] {
	if f.table.len() >= f.limits.Datagrams {
		oldest := f.table.oldest()
		if oldest.decided {
			f.stats.Forgotten++
		}
		f.forget(oldest)
	}
	return f.table.add(name, now)
}

// forget gives a datagram up. What is held of it is lost.
func (f *Follower[H]) forget(d *follow[H]) {
	if d == f.pending {
		f.pending = nil
		f.stats.Lost++
	}
	f.stats.Lost += uint64(len(d.held))
	f.stats.Waiting -= len(d.held)
	f.stats.WaitingBytes -= d.bytes
	d.dropHeld()
	f.table.remove(d)
}
