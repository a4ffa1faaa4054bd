package relay

import (
	"syscall"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/ksock"
)

// door is how a shard accepts from a listening socket, and the listener itself. One
// shard does it, and keeps the sessions as long as they are few: a session that stays
// with the thread that accepted it costs no wake-up. Beyond that they are spread.
//
// When there is no room, or no descriptor, the door shuts, for the queue would wake it
// again and again; serve opens it when it may be better.
type door struct {
	eng   *Engine
	fd    ksock.FD        // the listener's only descriptor
	namer families.Socket // the listener as it was: closed, but it reads names
	fam   families.Adopter
	sh    *shard

	// trouble has a token when the door has shut itself: what is the matter, or nil
	// for no room.
	trouble chan error

	// Of the shard.
	r     *relay
	token token
	open  bool
	peer  families.Name
	// spare is a descriptor for the next session's TO. It is opened before the client
	// is accepted: one that could not be passed on would have to be reset.
	spare spare
}

// newDoor takes the descriptor out of a listening socket.
func newDoor(e *Engine, s families.Socket) (*door, error) {
	i := s.Info()
	f, err := e.opts.Families.Family(i.Family)
	if err != nil {
		return nil, err
	}
	a, ok := f.(families.Adopter)
	if !ok {
		return nil, families.ErrNotSupported
	}
	d := &door{eng: e, namer: s, fam: a, sh: e.pick(), trouble: make(chan error, 1), spare: noSpare}
	if d.fd, err = ksock.Detach(s); err != nil {
		return nil, err
	}
	return d, nil
}

// refit is the listener as a socket again; the door is of no more use.
func (d *door) refit() (families.Socket, error) { return d.fam.Adopt(int(d.fd)) }

// serve keeps the door open while there is room, until the relay stops. It waits
// for no session.
func (d *door) serve(r *relay) error {
	pause := soonestRetry
	for {
		r.setState(stateListening, "")
		trouble, err := d.accept(r)
		switch {
		case err != nil:
			return err
		case r.ctx.Err() != nil:
			return r.ctx.Err()
		case trouble == nil:
			if err = r.awaitClaim(); err == nil {
				r.unclaim()
			}
			pause = soonestRetry
		case outOfDescriptors(trouble):
			err = r.backOff(trouble, &pause)
		default:
			return trouble
		}
		if err != nil {
			return err
		}
	}
}

// fullText says why a relay waits that has no room.
const fullText = "it has as many sessions as --max-conns allows"

// accept lets the shard accept until it finds trouble or the relay stops, and returns
// when it does no more.
func (d *door) accept(r *relay) (trouble, err error) {
	d.onShard(func() {
		d.r = r
		if d.token, err = d.sh.watchLevel(int(d.fd), d); err == nil {
			d.open = true
		}
	})
	if err != nil {
		return nil, err
	}
	select {
	case trouble = <-d.trouble:
	case <-r.ctx.Done():
		d.onShard(d.shut)
		select {
		case <-d.trouble: // it came at the same time
		default:
		}
	}
	return trouble, nil
}

// onShard runs f on the shard, and waits.
func (d *door) onShard(f func()) {
	done := make(chan struct{})
	if d.sh.do(func() { f(); close(done) }) {
		<-done
	}
}

// shut stops accepting: on the shard.
func (d *door) shut() {
	if d.open {
		d.open = false
		d.sh.unwatch(d.token, int(d.fd))
	}
	d.spare.drop()
}

// ready accepts one connection: handler. If there are more, the next turn brings the
// event again; meanwhile sessions have theirs.
func (d *door) ready(ksock.Events) {
	if !d.r.claim() {
		d.say(nil)
		return
	}
	if err := d.reserve(); err != nil {
		d.r.unclaim()
		d.say(err)
		return
	}
	fd, err := ksock.AcceptFD(int(d.fd), &d.peer)
	if err == nil {
		d.admit(fd)
		return
	}
	d.r.unclaim()
	if !ksock.IsEAGAIN(err) && !passing(err) {
		d.say(err)
	}
}

// reserve has a spare ready.
func (d *door) reserve() (err error) {
	if d.spare.fd != ksock.NoDescriptor {
		return nil
	}
	p := d.r.holdPlan()
	defer p.release()
	if p.fast() {
		d.spare, err = newSpare(p.backends[0].fast.domain)
		return err
	}
	d.spare, err = newSpare(0)
	return err
}

// say shuts the door and tells serve why.
func (d *door) say(err error) {
	d.shut()
	d.trouble <- err // there is room: serve has taken the one before
}

// admit makes a session of a connection that room was claimed for.
func (d *door) admit(fd ksock.FD) {
	p := d.r.holdPlan()
	if len(p.allow) > 0 && p.allow.cheap() && !d.eng.doorman.lets(p.allow, fd, &d.peer) {
		p.release()
		d.r.lost.add(causeDenied, 1)
		fd.Reset(true)
		d.r.unclaim()
		return
	}
	sh := d.eng.roomiest(d.sh)
	s := newStream(d.r, p, sh)
	s.peer, s.namer, s.spare, d.spare = d.peer, d.namer, d.spare, noSpare
	if p.allow.cheap() {
		_ = s.parkEarly(int(fd)) // it is tried again where there is something to do about it
	}
	switch {
	case !p.fast() || p.own.proxy != "" || !p.allow.cheap():
		d.beginSlow(s, fd)
	case sh == d.sh:
		d.r.enter(s)
		s.beginFast(fd, false)
	default:
		d.r.enter(s)
		sh.do(func() { s.beginFast(fd, false) })
	}
}

// beginSlow leaves what goes before the first byte to a goroutine.
func (d *door) beginSlow(s *stream, fd ksock.FD) {
	c, err := d.fam.Adopt(int(fd))
	if err != nil { // no memory: the connection cannot be had
		fd.Reset(true)
		s.r.enter(s)
		s.abort(err)
		return
	}
	(&prologue{s: s, from: c, own: true, known: s.plan.allow.cheap()}).begin()
}

// errDenied is the end of a client that --allow does not name.
var errDenied = &denied{}

type denied struct{}

func (*denied) Error() string { return "--allow does not name this client" }
func (*denied) Unwrap() error { return syscall.EACCES }
