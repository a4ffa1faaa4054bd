package park

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// maxLots is how many lots there are: eight descriptors in the Store. PID 1
// compares each descriptor it is given with all that it holds, so they are few,
// and they are all there is ever stored.
const maxLots = 4

// settings are what tests make smaller.
type settings struct {
	count  int // of lots
	buffer int // bytes asked for each
}

// Stored reports whether a descriptor of that name, which came back, is Open's.
func Stored(name string) bool {
	return strings.HasPrefix(name, namePrefix)
}

const namePrefix = "lot"

func lotName(i int) string { return fmt.Sprintf("%s%d", namePrefix, i) }

// Open takes over the lots among inherited, makes and stores those that are not
// there yet, and returns what is parked, by ID. It owns the inherited files that
// are Stored, also on an error; all others are the caller's.
//
// Each message that cannot be taken is told, by a call of tell before Open
// returns. Files of a lot that is not a pair of ours are told and closed here; the
// Store keeps them.
func Open(ctx context.Context, store Store, inherited []File, tell func(Event)) (*Parking, []Parked, error) {
	return open(ctx, store, inherited, tell, settings{count: maxLots, buffer: sendBuffer})
}

func open(ctx context.Context, store Store, inherited []File, tell func(Event), s settings) (*Parking, []Parked, error) {
	o := opening{Parking: &Parking{}, settings: s, tell: tell, best: map[uint64]finding{}}
	var err error
	if o.charge, err = chargeOfMessage(); err == nil {
		o.quota.bound, err = descriptorBound()
	}
	if err != nil {
		return nil, nil, errors.Join(err, closeFiles(inherited))
	}
	if err := o.gather(ctx, store, inherited); err != nil {
		return nil, nil, errors.Join(err, o.Close())
	}
	back, err := o.readAll()
	if err != nil {
		for _, b := range back {
			closeAll(b.FDs)
		}
		return nil, nil, errors.Join(err, o.Close())
	}
	return o.Parking, back, nil
}

func closeFiles(files []File) error {
	var errs []error
	for _, f := range files {
		if Stored(f.Name) {
			errs = append(errs, closeFD(f.FD))
		}
	}
	return errors.Join(errs...)
}

// descriptorBound returns how many descriptors may be in flight, 0 where the kernel
// does not ask (too_many_unix_fds in net/core/scm.c).
func descriptorBound() (int, error) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var caps [2]unix.CapUserData
	if err := unix.Capget(&header, &caps[0]); err != nil {
		return 0, fmt.Errorf("ask own capabilities: %w", err)
	}
	if caps[0].Effective&(1<<unix.CAP_SYS_ADMIN|1<<unix.CAP_SYS_RESOURCE) != 0 {
		return 0, nil
	}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return 0, fmt.Errorf("ask RLIMIT_NOFILE: %w", err)
	}
	return int(min(limit.Cur, 1<<30)), nil // "infinity" is no count to calculate with
}

// An opening is a Parking while Open reads it.
type opening struct {
	*Parking
	settings
	charge  int // of one message
	tell    func(Event)
	best    map[uint64]finding // by ID: the message of the highest generation
	refused map[*lot]bool      // those with a message that has to go
}

// A finding is where a message was found.
type finding struct {
	lot        *lot
	place      uint64
	generation uint64
	gone       bool
}

// gather makes the list of lots: those that came back, and new ones under the
// names that did not. A name whose descriptors make no lot is not used.
func (o *opening) gather(ctx context.Context, store Store, inherited []File) error {
	byName := map[string][]int{}
	for _, f := range inherited {
		if Stored(f.Name) {
			byName[f.Name] = append(byName[f.Name], f.FD)
		}
	}
	fresh := false
	for i := range o.count {
		name := lotName(i)
		fds := byName[name]
		delete(byName, name)
		if len(fds) > 0 {
			o.adopt(name, fds)
			continue
		}
		fresh = true
		if err := o.build(store, name); err != nil {
			o.strangers(byName)
			return err
		}
	}
	o.strangers(byName)
	if len(o.lots) == 0 {
		return errors.New("open parking lots: none of those that came back is one of ours")
	}
	o.quota.lots = len(o.lots)
	if !fresh {
		return nil
	}
	// Nothing may be parked in a lot that is not held yet.
	return store.Barrier(ctx)
}

// strangers closes what has a name of ours that we do not know.
func (o *opening) strangers(byName map[string][]int) {
	for name, fds := range byName {
		closeAll(fds)
		o.tell(Event{Lot: name, Err: errors.New("no parking lot has this name")})
	}
}

// adopt takes over a lot that came back.
func (o *opening) adopt(name string, fds []int) {
	pair, err := pair{}, fmt.Errorf("%d descriptors came back, a parking lot has 2", len(fds))
	if len(fds) == 2 {
		pair, err = ends(fds[0], fds[1])
	}
	if err == nil {
		err = o.add(name, pair)
	}
	if err != nil {
		closeAll(fds)
		o.tell(Event{Lot: name, Err: err})
	}
}

// build makes a lot and gives it to the store.
func (o *opening) build(store Store, name string) error {
	pair, err := newPair(o.buffer)
	if err != nil {
		return err
	}
	if err = store.Store(name, pair.write, pair.read); err == nil {
		err = o.add(name, pair)
	}
	if err != nil {
		return errors.Join(err, pair.close())
	}
	return nil
}

// add lists a lot. On success it owns the pair.
func (o *opening) add(name string, p pair) error {
	if err := p.widen(o.buffer); err != nil { // the sysctl may have been raised since
		return err
	}
	bound, err := p.messages(o.charge)
	if err != nil {
		return err
	}
	o.lots = append(o.lots, &lot{name: name, pair: p, bound: bound, quota: &o.quota, live: map[uint64]uint64{}})
	return nil
}

// readAll reads the records of all lots, and then the descriptors of those that
// count, so that no more descriptors are taken than are wanted.
func (o *opening) readAll() ([]Parked, error) {
	o.refused = map[*lot]bool{}
	offsets := make([][]int, len(o.lots))
	for i, l := range o.lots {
		var err error
		if offsets[i], err = o.read(l); err != nil {
			return nil, fmt.Errorf("read parking lot %s: %w", l.name, err)
		}
	}
	o.judge()
	var back []Parked
	for i, l := range o.lots {
		var err error
		back, err = o.fetch(l, offsets[i], back)
		if err != nil {
			return back, fmt.Errorf("read parking lot %s: %w", l.name, err)
		}
	}
	o.clean()
	slices.SortFunc(back, func(a, b Parked) int { return cmp.Compare(a.ID, b.ID) })
	return back, nil
}

// read glances at every message of a lot, and returns at how many bytes from the head
// each begins.
func (o *opening) read(l *lot) (offsets []int, err error) {
	if err := l.pair.seek(0); err != nil {
		return nil, err
	}
	buf := make([]byte, MessageSize)
	for offset := 0; ; {
		n, err := l.pair.glance(buf)
		if err == unix.EAGAIN {
			break
		}
		if err != nil {
			return nil, err
		}
		offsets = append(offsets, offset)
		offset += n
		if n > len(buf) { // the kernel moved on by what it copied
			if err := l.pair.seek(offset); err != nil {
				return nil, err
			}
		}
		o.found(l, buf[:min(n, len(buf))], n)
	}
	return offsets, l.pair.seek(-1)
}

// found enters one message, of n bytes in truth.
func (o *opening) found(l *lot, m []byte, n int) {
	r, fds, err := decode(m)
	if err == nil && n > len(m) {
		err = fmt.Errorf("%w: %d bytes, want %d", ErrCorrupt, n, MessageSize)
	}
	place := uint64(len(l.queue))
	if err != nil {
		l.queue = append(l.queue, slot{})
		o.refuse(l, 0, err)
		return
	}
	l.queue = append(l.queue, slot{id: r.ID, generation: r.Generation, fds: uint8(fds)})
	l.deadFDs += fds // until it is judged
	o.quota.inFlight.Add(int64(fds))
	o.quota.numbers.Store(max(o.quota.numbers.Load(), r.Generation))
	// Of two equal messages the later: the earlier was about to be taken off.
	if best, there := o.best[r.ID]; !there || r.Generation >= best.generation {
		o.best[r.ID] = finding{l, place, r.Generation, r.Kind == gone}
	}
}

// refuse tells of a message that has to go. No slot of its is live, so it is dead.
func (o *opening) refuse(l *lot, id uint64, err error) {
	o.refused[l] = true
	o.tell(Event{Lot: l.name, ID: id, Err: err})
}

// judge enters which messages count.
func (o *opening) judge() {
	for id, f := range o.best {
		if f.gone {
			continue
		}
		f.lot.live[id] = f.place
		f.lot.deadFDs -= int(f.lot.at(f.place).fds)
	}
}

// fetch appends what is live in a lot to back.
func (o *opening) fetch(l *lot, offsets []int, back []Parked) ([]Parked, error) {
	for place, s := range l.queue {
		if at, live := l.live[s.id]; !live || at != uint64(place) {
			continue
		}
		if err := l.pair.seek(offsets[place]); err != nil {
			return back, err
		}
		p, err := o.take(l, s)
		switch {
		case errors.Is(err, ErrUnread):
			o.tell(Event{Lot: l.name, ID: s.id, Err: err})
		case err != nil:
			delete(l.live, s.id)
			l.deadFDs += int(s.fds)
			o.refuse(l, s.id, err)
		default:
			back = append(back, p)
		}
	}
	return back, l.pair.seek(-1)
}

// take reads the message at the peek offset with its descriptors.
func (o *opening) take(l *lot, s slot) (Parked, error) {
	n, fds, err := l.pair.peek(l.buf[:])
	if err != nil {
		return Parked{}, fmt.Errorf("%w: %w", ErrUnread, err)
	}
	r, want, err := decode(l.buf[:n])
	if err == nil && (len(fds) != want || r.ID != s.id || r.Generation != s.generation) {
		err = fmt.Errorf("%w: %d descriptors came with it, it says %d", ErrCorrupt, len(fds), want)
	}
	if err != nil {
		closeAll(fds)
		return Parked{}, err
	}
	return Parked{Record: r, FDs: fds}, nil
}

// clean turns the lots with refused messages over, so that their descriptors are
// closed. Where that does not succeed, what is refused is refused again next time.
func (o *opening) clean() {
	for l := range o.refused {
		l.mu.Lock()
		err := l.turnLocked()
		l.mu.Unlock()
		if err != nil {
			o.tell(Event{Lot: l.name, Err: fmt.Errorf("turn parking lot over: %w", err)})
		}
	}
}
