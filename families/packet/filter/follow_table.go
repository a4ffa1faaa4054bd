package filter

// follow is a datagram that a Follower knows.
type follow[H any] struct {
	name    datagram
	since   int64 // when it was begun, or decided
	decided bool
	taken   bool
	seen    coverage
	held    []H
	bytes   int

	older, newer *follow[H]
}

// dropHeld lets go of what is held, and keeps the room for others.
func (d *follow[H]) dropHeld() { d.held, d.bytes = emptied(d.held), 0 }

// mostRoom is how many held packets a datagram keeps room for when it is forgotten: those of
// 64 KiB in frames of 1500 bytes. Without that bound each entry might grow to what all may hold.
const mostRoom = 64

func emptied[H any](held []H) []H {
	clear(held)
	if cap(held) > mostRoom {
		return nil
	}
	return held[:0]
}

// followQueue is datagrams by their age.
type followQueue[H any] struct{ oldest, newest *follow[H] }

func (q *followQueue[H]) push(d *follow[H]) {
	d.older, d.newer = q.newest, nil
	if q.newest == nil {
		q.oldest = d
	} else {
		q.newest.newer = d
	}
	q.newest = d
}

func (q *followQueue[H]) remove(d *follow[H]) {
	if d.older == nil {
		q.oldest = d.newer
	} else {
		d.older.newer = d.newer
	}
	if d.newer == nil {
		q.newest = d.older
	} else {
		d.newer.older = d.older
	}
}

// followTable finds datagrams by their names, and the oldest of those with a verdict and of
// those without. The number of its entries is bounded by who adds them; it allocates until that
// many were made, and then uses them again.
type followTable[H any] struct {
	names              map[datagram]*follow[H]
	decided, undecided followQueue[H]
	free               *follow[H] // by newer
}

func newFollowTable[H any](size int) followTable[H] {
	return followTable[H]{names: make(map[datagram]*follow[H], min(size, 1024))}
}

func (t *followTable[H]) len() int                      { return len(t.names) }
func (t *followTable[H]) find(name datagram) *follow[H] { return t.names[name] }
func (t *followTable[H]) queues() [2]*followQueue[H] {
	return [2]*followQueue[H]{&t.decided, &t.undecided}
}

func (t *followTable[H]) of(d *follow[H]) *followQueue[H] {
	if d.decided {
		return &t.decided
	}
	return &t.undecided
}

// add begins a datagram without a verdict.
func (t *followTable[H]) add(name datagram, now int64) *follow[H] {
	d := t.free
	if d == nil {
		d = &follow[H]{}
	} else {
		t.free = d.newer
	}
	*d = follow[H]{name: name, since: now, held: d.held}
	t.names[name] = d
	t.undecided.push(d)
	return d
}

// decide gives a datagram its verdict.
func (t *followTable[H]) decide(d *follow[H], taken bool, now int64) {
	t.of(d).remove(d)
	d.decided, d.taken, d.since = true, taken, now
	t.decided.push(d)
}

func (t *followTable[H]) remove(d *follow[H]) {
	t.of(d).remove(d)
	delete(t.names, d.name)
	d.newer, d.older, t.free = t.free, nil, d
}

// oldest is the one to push out: of those with a verdict and of those without the older one.
func (t *followTable[H]) oldest() *follow[H] {
	a, b := t.decided.oldest, t.undecided.oldest
	if a == nil || b != nil && b.since < a.since {
		return b
	}
	return a
}
