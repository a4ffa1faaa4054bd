package park

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// A Store holds descriptors for a process that may die, and hands them to the
// next one by the names that it got them with. systemd.Notifier is one, and
// sockd --supervise understands the same words.
type Store interface {
	// Store sends duplicates of fds, all under name.
	Store(name string, fds ...int) error
	// Remove lets go of all that is held under name.
	Remove(name string) error
	// Barrier returns when all that was sent before has been taken.
	Barrier(ctx context.Context) error
}

// A File is a descriptor that came back, under the name that it was stored with.
type File struct {
	Name string
	FD   int
}

// A Parked is what came back from a lot: the record as it was parked last, and
// duplicates of its descriptors in their order, close-on-exec. They are the
// receiver's. It is still parked, until Leave.
type Parked struct {
	Record
	FDs []int
}

// An Event is something in a lot that Open did not take.
type Event struct {
	Lot string // its name
	ID  uint64 // of the record, where it is known
	// Err wraps ErrForeign, ErrTruncated, ErrVersion or ErrCorrupt: the message was
	// refused and its descriptors are closed. ErrUnread: it stays parked as it
	// is. Anything else is about the lot itself, which is left alone.
	Err error
}

var (
	// ErrFull is a bound that is reached. Its text names the bound and what raises
	// it.
	ErrFull = errors.New("parking lot is full")
	// ErrNotParked is an ID that no lot has.
	ErrNotParked = errors.New("not parked")
	// ErrUnread is a record whose descriptors did not fit into this process, by
	// RLIMIT_NOFILE. It stays parked, and comes back in a process with more room.
	ErrUnread = errors.New("descriptors could not be taken out")

	errParked = errors.New("already parked")
)

// What raises the bounds.
const (
	messageSysctl   = "net.core.wmem_max"
	descriptorLimit = "RLIMIT_NOFILE (LimitNOFILE=)"
)

// A Parking is all lots of a process. See the package comment for who may call.
type Parking struct {
	lots  []*lot
	quota quota
}

// Park parks r with duplicates of fds, MaxFDs at most, which stay the caller's.
// When it returns nil they outlive this process. It does not wait.
//
// The error wraps ErrFull where a bound is reached: nothing is parked then.
func (p *Parking) Park(r Record, fds ...int) error {
	if err := r.check(len(fds)); err != nil {
		return err
	}
	err := errNoRoom
	if p.Has(r.ID) {
		err = errParked
	}
	for i := 0; i < len(p.lots) && err == errNoRoom; i++ {
		err = p.lot(r.ID, i).park(&r, fds)
	}
	return p.explain("park", r.ID, err)
}

// Has reports whether something is parked under id.
func (p *Parking) Has(id uint64) bool {
	for _, l := range p.lots {
		if l.has(id) {
			return true
		}
	}
	return false
}

// Replace parks r and fds in place of what its ID was parked with. A process that
// is killed meanwhile leaves the old or the new behind, never both and never
// neither. On an error the old stays.
//
// It finds room for its message also where Park does not. Its descriptors may be
// too many for the bound on those: ErrFull.
func (p *Parking) Replace(r Record, fds ...int) error {
	if err := r.check(len(fds)); err != nil {
		return err
	}
	return p.explain("replace", r.ID, p.find(r.ID, func(l *lot) (bool, error) { return l.replace(&r, fds) }))
}

// Leave ends what is parked under id: it does not come back. Its descriptors are let
// go now or a while later, so that close(2) elsewhere does not take effect at
// once: shut sockets down first.
func (p *Parking) Leave(id uint64) error {
	return p.explain("leave", id, p.find(id, func(l *lot) (bool, error) { return l.leave(id) }))
}

// LeaveNow is Leave that lets go of the descriptors before it returns: a listener's
// address is free then. It turns over all that is before them in the lot, at three
// system calls for what is live, and does not wait.
func (p *Parking) LeaveNow(id uint64) error {
	return p.explain("leave", id, p.find(id, func(l *lot) (bool, error) { return l.leaveNow(id) }))
}

// lot returns the i-th lot to look at for id.
func (p *Parking) lot(id uint64, i int) *lot {
	return p.lots[(id+uint64(i))%uint64(len(p.lots))]
}

// find tries the lots until one has the ID.
func (p *Parking) find(id uint64, do func(*lot) (bool, error)) error {
	for i := range p.lots {
		if here, err := do(p.lot(id, i)); here {
			return err
		}
	}
	return ErrNotParked
}

// explain says what was tried, and names the bound where there is one.
func (p *Parking) explain(what string, id uint64, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, errNoRoom):
		u := p.Use()
		err = fmt.Errorf("%w: %d of %d records; %s raises it", ErrFull, u.Parked, u.Bound, messageSysctl)
	case errors.Is(err, unix.ETOOMANYREFS):
		u := p.Use()
		err = fmt.Errorf("%w: %d of %d descriptors in flight; %s raises it: %w", ErrFull, u.Descriptors, u.DescriptorBound, descriptorLimit, unix.ETOOMANYREFS)
	}
	if errors.Is(err, ErrFull) {
		p.quota.full.Add(1)
	}
	return fmt.Errorf("%s %d: %w", what, id, err)
}

// A Use says how full the lots are.
type Use struct {
	Lots int
	// Parked records, and how many fit; more are ErrFull.
	Parked, Bound int
	// Messages in the lots, the dead among them, and how many fit.
	Messages, MessageBound int
	// Descriptors in flight, and how many may be; 0 is no bound, as for a process
	// with CAP_SYS_RESOURCE or CAP_SYS_ADMIN.
	Descriptors, DescriptorBound int
	// Sysctl raises Bound at the next Open; Limit raises DescriptorBound.
	Sysctl, Limit string
	Full          uint64 // Parks and Replaces that a bound refused
	Turned        uint64 // live records copied to a tail
	Stuck         uint64 // heads that could not be taken off when it was their turn
}

// Use returns how full the lots are at the moment.
func (p *Parking) Use() Use {
	q := &p.quota
	u := Use{
		Lots: len(p.lots), Sysctl: messageSysctl, Limit: descriptorLimit,
		Descriptors: int(q.inFlight.Load()), DescriptorBound: q.bound * liveNum / liveDen,
		Full: q.full.Load(), Turned: q.turned.Load(), Stuck: q.stuck.Load(),
	}
	for _, l := range p.lots {
		l.mu.Lock()
		u.Parked += len(l.live)
		u.Messages += len(l.queue)
		l.mu.Unlock()
		u.Bound += l.bound * liveNum / liveDen
		u.MessageBound += l.bound
	}
	return u
}

// Close closes this process's ends. What is parked stays with the Store. All
// other methods return an error that wraps os.ErrClosed from then on.
func (p *Parking) Close() error {
	var errs []error
	for _, l := range p.lots {
		errs = append(errs, l.close())
	}
	return errors.Join(errs...)
}
