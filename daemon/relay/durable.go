package relay

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"syscall"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/ksock"
	"github.com/sockd/sockd/families/model"
)

// Parking keeps descriptors alive beyond this process. Its methods may be called from
// any goroutine, those about one ID one after another, and they never block: what calls
// them serves others.
type Parking interface {
	// Park returns when the kernel has duplicates of fds, which stay the caller's. What
	// was parked under the ID before is replaced by it. The error says what is full;
	// then nothing has changed.
	Park(rec ParkRecord, fds []int) error
	// Leave says that it has ended. Of a ParkedRelay every duplicate is gone when it
	// returns: as long as there is one, nobody else gets the listener's address.
	Leave(id uint64)
}

// ParkRecord says what the descriptors are that are parked with it.
type ParkRecord struct {
	Kind uint8  // ParkedRelay or ParkedSession
	ID   uint64 // the model.ID of the relay or session
	UID  uint32 // whose relay it is
	Data []byte // MaxParkData at most; this package's
}

// What is parked. A relay has up to MaxParkFDs descriptors: its specification, its
// ledger, its listener, and directories of its TOs. A session has its client while it is
// dialled; then client, backend, and the ends of both pipes.
const (
	ParkedRelay uint8 = iota + 1
	ParkedSession
)

const (
	// MaxParkData is the longest Data.
	MaxParkData = 32
	// MaxParkFDs is how many descriptors are parked under one ID at most.
	MaxParkFDs = 8
)

// Parked is what was parked, for Restore.
type Parked struct {
	ParkRecord
	FDs []int
}

// The states of a parked session.
const (
	parkedDialling uint8 = iota + 1
	parkedOpen
)

// sessionRecord is the Data of a session: what the kernel does not tell of it.
//
//	0 version  1 state  2 zero (2)  4 account (4)  8 backend (4)  12 zero (4)  16 relay (8)
type sessionRecord struct {
	state   uint8
	account uint32 // in the relay's ledger
	backend uint32 // hash of its text
	relay   uint64
}

const (
	recordVersion    = 1
	sessionRecordLen = 24
)

func (r sessionRecord) encode() []byte {
	b := make([]byte, sessionRecordLen)
	b[0], b[1] = recordVersion, r.state
	binary.LittleEndian.PutUint32(b[4:], r.account)
	binary.LittleEndian.PutUint32(b[8:], r.backend)
	binary.LittleEndian.PutUint64(b[16:], r.relay)
	return b
}

var errForeignRecord = errors.New("not a record of this version of sockd")

// parseSession reads the Data of a session that was parked with n descriptors. What it
// accepts, encode writes.
func parseSession(b []byte, n int) (sessionRecord, error) {
	if len(b) != sessionRecordLen || b[0] != recordVersion || b[2]|b[3] != 0 || binary.LittleEndian.Uint32(b[12:]) != 0 {
		return sessionRecord{}, errForeignRecord
	}
	r := sessionRecord{
		state: b[1], account: binary.LittleEndian.Uint32(b[4:]),
		backend: binary.LittleEndian.Uint32(b[8:]), relay: binary.LittleEndian.Uint64(b[16:]),
	}
	want, known := map[uint8]int{parkedDialling: 1, parkedOpen: 6}[r.state]
	switch {
	case !known || r.account >= ledgerAccounts:
		return sessionRecord{}, errForeignRecord
	case n != want:
		return sessionRecord{}, fmt.Errorf("a session with %d descriptors, want %d: %w", n, want, errForeignRecord)
	}
	return r, nil
}

// hashOf names a backend in a record.
func hashOf(b *backend) uint32 {
	h := fnv.New32a()
	_, _ = h.Write([]byte(b.text)) // it cannot fail
	return h.Sum32()
}

// backendHash names the backend that was dialled.
func (s *stream) backendHash() uint32 {
	for _, b := range s.plan.backends {
		if b.busy == s.load {
			return hashOf(b)
		}
	}
	return 0
}

// durability is what a stream has that outlives this process. Before its client is
// parked, and where it is not to be, the stream has none.
//
//	accept ─► Park{client} ─► dial ─► Park{client, backend, pipes} ─► first byte
//	   ╰─ a kill resets it ╯       ╰──── from here on nothing is lost ────╯
type durability struct {
	s     *stream
	ledg  *ledger
	index uint32
	acct  *account
	pipes [2]*ksock.Pipe // up, down; nil while it is dialled
	// again: it was taken up after a crash, so that an error of its sockets may have
	// been told to the process before.
	again bool
}

// errNoParking is a durable relay where nothing holds descriptors.
var errNoParking = fmt.Errorf("durable: nothing here holds descriptors when sockd dies: run it by systemd or with --supervise: %w", syscall.EOPNOTSUPP)

// wantsParking tells whether the session is to be durable and is not yet.
func (s *stream) wantsParking() bool { return s.plan.durable != "" && s.dur == nil }

// parkClient makes the session durable before it is dialled: fd is its client. The
// error is for a relay that refuses sessions that cannot be. The session is its
// caller's, on whatever goroutine.
func (s *stream) parkClient(fd int) error {
	if err := s.parkEarly(fd); err != nil {
		return s.unparked(err)
	}
	return nil
}

// parkEarly is parkClient right after accept, before the client waits for another
// goroutine or shard: until it is parked, a kill resets it. Where it fails, parkClient
// tries again, and says what becomes of the session.
func (s *stream) parkEarly(fd int) error {
	if !s.wantsParking() {
		return nil
	}
	d, err := s.r.newDurability(s)
	if err != nil {
		return err
	}
	if err := d.park(parkedDialling, 0, fd); err != nil {
		d.ledg.free(d.index)
		return err
	}
	s.dur = d
	return nil
}

// unparked is what becomes of a session that cannot be durable: it is refused, or goes
// on without, as its relay says.
func (s *stream) unparked(err error) error {
	if s.plan.durable == model.DurablePrefer {
		s.r.lost.add(causeNotDurable, 1)
		return nil
	}
	s.r.lost.add(causeUnparked, 1)
	return fmt.Errorf("park the session: %w", err)
}

// newDurability takes an account for the session.
func (r *relay) newDurability(s *stream) (*durability, error) {
	if r.kept == nil {
		return nil, errNoParking
	}
	i, err := r.kept.ledg.take(s.id, s.since)
	if err != nil {
		return nil, err
	}
	d := &durability{s: s, ledg: r.kept.ledg, index: i, acct: r.kept.ledg.account(i)}
	d.acct.nth.Store(s.nth)
	return d, nil
}

// park parks the session in a state, in place of what was parked of it before.
func (d *durability) park(state uint8, backend uint32, fds ...int) error {
	r := d.s.r
	rec := sessionRecord{state: state, account: d.index, backend: backend, relay: uint64(r.id)}
	return r.eng.opts.Parking.Park(ParkRecord{Kind: ParkedSession, ID: uint64(d.s.id), UID: r.kept.uid, Data: rec.encode()}, fds)
}

// parkWhole parks both sides and the pipes, on the shard, before the first byte moves.
// The error is for a relay that refuses sessions that cannot be parked.
func (s *stream) parkWhole() error {
	d := s.dur
	if d == nil {
		return nil
	}
	if err := d.openPipes(s.sh); err != nil {
		return s.goWithout(err)
	}
	ur, uw := d.pipes[0].Ends()
	dr, dw := d.pipes[1].Ends()
	if err := d.park(parkedOpen, s.backendHash(), int(s.from.fd), int(s.to.fd), ur, uw, dr, dw); err != nil {
		return s.goWithout(err)
	}
	d.attach()
	return nil
}

// attach has both ways go through the pipes.
func (d *durability) attach() {
	s := d.s
	for i, w := range []*way{&s.up, &s.down} {
		w.pipe, w.lane = d.pipes[i], &d.acct.lanes[i]
		w.splicing.Store(true)
	}
	s.from.parked, s.to.parked = true, true
}

// openPipes has a pipe ready for each direction.
func (d *durability) openPipes(sh *shard) (err error) {
	if !d.s.r.eng.budget.takeMore(pipeEnds) {
		return errNoShare
	}
	if d.pipes[0], err = sh.plainPipes.take(); err == nil {
		d.pipes[1], err = sh.plainPipes.take()
	}
	if err != nil {
		d.closePipes(sh)
	}
	return err
}

// pipeEnds is what a durable session has beyond sessionCost.
const pipeEnds = 4

// closePipes gives the pipes back: empty ones are another session's.
func (d *durability) closePipes(sh *shard) {
	d.s.r.eng.budget.giveMore(pipeEnds)
	for i, p := range d.pipes {
		if p != nil {
			sh.plainPipes.give(p)
		}
		d.pipes[i] = nil
	}
}

// goWithout has a session go on that was parked while it was dialled and cannot be now,
// or refuses it. A duplicate of its client may be parked for a while yet.
func (s *stream) goWithout(err error) error {
	if err = s.unparked(err); err != nil {
		return err
	}
	s.from.parked = true
	s.dur.leave()
	s.dur.ledg.free(s.dur.index)
	s.dur = nil
	return nil
}

// leave is when nothing of the session needs to be held any more. Its account stays until
// its books are the relay's (see relay.exit).
func (d *durability) leave() {
	d.s.r.eng.opts.Parking.Leave(uint64(d.s.id))
	if d.pipes[0] != nil {
		d.closePipes(d.s.sh) // after that: another session may have them now
	}
}

// giveUp resets a client that could not be joined to anybody.
func (d *durability) giveUp(from families.Socket) {
	d.mark(fateReset)
	if b, err := families.As[families.HalfCloser](from); err == nil && from.Info().Family == "local" {
		_ = b.CloseBoth() // its close alone would end nothing
	}
	newLeg(from, kindStream).abort()
	d.leave()
}

// counts notes that the session is in its relay's total.
func (s *stream) counts(total int64) {
	s.nth = total
	if s.dur != nil {
		s.dur.acct.nth.Store(total)
	}
}

// isTakenUp tells whether the session was begun by a process before.
func (s *stream) isTakenUp() bool { return s.dur != nil && s.dur.again }

// mark notes what is to become of the session, for a process that takes it up.
func (d *durability) mark(fate int64) {
	if d != nil && d.acct.fate.Load() < fate {
		d.acct.fate.Store(fate)
	}
}
