package relay

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/ksock"
	"github.com/sockd/sockd/families/model"
)

// Restore takes up what was parked: relays with their listeners and counters, and their
// sessions, which go on where they were. It owns all descriptors. What it cannot take up
// is closed, leaves the parking, and is in the error; all else runs. It is called before
// relays are added: a relay of the same name would be in the way.
//
// A session goes on by the ordinary step of its ways: what is in a pipe goes to its sink,
// then more comes from its source, and an end is asked of the kernel again.
func (e *Engine) Restore(ctx context.Context, parked []Parked) error {
	relays, sessions, errs := e.sort(parked)
	for _, p := range relays {
		id := p.ID
		r, err := e.restoreRelay(ctx, p, sessions[id])
		if err != nil {
			errs = append(errs, e.refuse(p, err))
			continue
		}
		for _, s := range sessions[id] {
			if err := r.restoreSession(s); err != nil {
				errs = append(errs, e.refuse(s.Parked, err))
			}
		}
		delete(sessions, id)
		if err := e.run(r); err != nil { // the engine is closing: it waits for the sessions
			r.resetSessions()
			errs = append(errs, err)
		}
	}
	for id, orphans := range sessions {
		for _, s := range orphans {
			errs = append(errs, e.refuse(s.Parked, fmt.Errorf("relay %d is not parked: %w", id, syscall.ENOENT)))
		}
	}
	return errors.Join(errs...)
}

// parkedSession is a session whose record was read.
type parkedSession struct {
	Parked
	rec sessionRecord
}

// sort tells relays from sessions, which are given by relay. What is neither is refused.
func (e *Engine) sort(parked []Parked) (relays []Parked, sessions map[uint64][]parkedSession, errs []error) {
	sessions = map[uint64][]parkedSession{}
	for _, p := range parked {
		switch p.Kind {
		case ParkedRelay:
			relays = append(relays, p)
		case ParkedSession:
			rec, err := parseSession(p.Data, len(p.FDs))
			if err != nil {
				errs = append(errs, e.refuse(p, err))
				continue
			}
			sessions[rec.relay] = append(sessions[rec.relay], parkedSession{p, rec})
		default:
			errs = append(errs, e.refuse(p, errForeignRecord))
		}
	}
	return relays, sessions, errs
}

// refuse lets go of what cannot be taken up, and tells so.
func (e *Engine) refuse(p Parked, err error) error {
	ksock.CloseFiles(p.FDs)
	e.opts.Parking.Leave(p.ID)
	kind := "session"
	if p.Kind == ParkedRelay {
		kind = "relay"
	}
	err = fmt.Errorf("take up %s %d: %w", kind, p.ID, err)
	e.opts.Log.Error("not taken up", "kind", kind, "id", p.ID, "err", err)
	e.emit("failed", kind, model.ID(p.ID), err.Error(), func() any { return struct{}{} })
	return err
}

// restoreRelay takes up one relay. On error p.FDs stay the caller's.
func (e *Engine) restoreRelay(ctx context.Context, p Parked, sessions []parkedSession) (*relay, error) {
	w, err := readParkedRelay(p)
	if err != nil {
		return nil, err
	}
	if err := e.Check(w.Spec); err != nil {
		return nil, err
	}
	if err := e.openShards(); err != nil {
		return nil, err
	}
	if err := e.claimName(w); err != nil {
		return nil, err
	}
	r, err := e.rebuild(ctx, p, w)
	if err == nil {
		if err = r.recount(sessions); err != nil {
			r.unbuild()
		}
	}
	if err != nil {
		if !w.Draining {
			e.unreserve(w.Name)
		}
		return nil, err
	}
	ksock.CloseFiles(p.FDs) // it has duplicates
	e.keepID(p.ID)
	return r, nil
}

func (e *Engine) keepID(id uint64) {
	if k, ok := e.opts.Host.(IDKeeper); ok {
		k.KeepID(model.ID(id))
	}
}

// claimName takes the name that the relay had. A draining one has none.
func (e *Engine) claimName(w parkedRelay) error {
	if w.Draining {
		return nil
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if _, taken := e.names[w.Name]; taken {
		return fmt.Errorf("a relay is called %q: %w", w.Name, syscall.EEXIST)
	}
	e.names[w.Name] = 0
	return nil
}

// readParkedRelay reads what was written of a relay, and checks that its descriptors are
// there. It does not look at what they are.
func readParkedRelay(p Parked) (parkedRelay, error) {
	if len(p.Data) != relayRecordLen || p.Data[0] != recordVersion || len(p.FDs) < 2 {
		return parkedRelay{}, errForeignRecord
	}
	text, err := ksock.ReadSealed(p.FDs[0], maxParkedRelay)
	if err != nil {
		return parkedRelay{}, err
	}
	return parseRelay(text, len(p.FDs))
}

// parseRelay reads the file of a relay that was parked with n descriptors.
func parseRelay(text []byte, n int) (parkedRelay, error) {
	var w parkedRelay
	if err := json.Unmarshal(text, &w); err != nil {
		return parkedRelay{}, fmt.Errorf("%w: %w", errForeignRecord, err)
	}
	want := 2 + len(w.Dirs)
	if w.Listener {
		want++
	}
	if w.Version != recordVersion || n != want || w.Listener == w.Draining || !model.ValidName(w.Name) {
		return parkedRelay{}, errForeignRecord
	}
	for _, d := range w.Dirs {
		if d.To < 0 || d.To >= len(w.Spec.To) {
			return parkedRelay{}, errForeignRecord
		}
	}
	return w, nil
}

// dirsOf are the directories for newPlan, as borrowed descriptors.
func (w *parkedRelay) dirsOf(fds []int) []model.DirFD {
	if len(w.Dirs) == 0 {
		return nil
	}
	dirs := make([]model.DirFD, len(w.Spec.To))
	for i := range dirs {
		dirs[i].FD = model.NoFD
	}
	for i, d := range w.Dirs {
		dirs[d.To] = model.DirFD{FD: fds[len(fds)-len(w.Dirs)+i], Name: d.Name}
	}
	return dirs
}

// rebuild makes the relay that was parked, of duplicates of its descriptors.
func (e *Engine) rebuild(ctx context.Context, p Parked, w parkedRelay) (*relay, error) {
	w.Spec.FromFD, w.Spec.ToDirs = model.NoFD, nil
	pl, err := e.newPlan(ctx, w.Spec, w.dirsOf(p.FDs))
	if err != nil {
		return nil, err
	}
	l, err := openLedger(p.FDs[1])
	if err != nil {
		pl.release()
		return nil, err
	}
	k := &keeping{uid: p.UID, path: w.Path, lent: w.Lent, listener: model.NoFD, ledg: l}
	r, err := e.reassemble(ctx, p, w, pl, k)
	if err != nil {
		l.mem.Close()
		pl.release()
		return nil, err
	}
	r.id, r.name, r.kept, r.lost.kept = model.ID(p.ID), w.Name, k, k.ledg
	return r, nil
}

// reassemble gives the relay its FROM, or none where it is draining.
func (e *Engine) reassemble(ctx context.Context, p Parked, w parkedRelay, pl *plan, k *keeping) (*relay, error) {
	if w.Draining {
		r := e.newRelay(w.Spec, pl, side{})
		r.front, r.draining, r.state = removed{}, true, stateDraining
		r.stop()
		return r, nil
	}
	s, err := e.adoptParked(p.FDs[2], w)
	if err != nil {
		return nil, err
	}
	if k.listener, err = ksock.Dup(p.FDs[2]); err != nil {
		s.letGo()
		return nil, err
	}
	k.from, k.listed = s.sock, true
	r, err := e.assemble(ctx, w.Spec, pl, s)
	if err != nil {
		ksock.CloseFiles([]int{k.listener})
		s.letGo()
	}
	return r, err
}

// adoptParked makes FROM's socket of a duplicate of what was parked.
func (e *Engine) adoptParked(fd int, w parkedRelay) (socket, error) {
	sock, err := e.adopt(fd)
	if err != nil {
		return socket{}, err
	}
	s := socket{sock: sock, host: e.opts.Host, released: new(atomic.Bool), path: w.Path, adopted: w.Lent}
	s.describe(w.Spec.From.Network)
	if f, err := families.As[families.FileKeeper](sock); err == nil && w.Path != "" && !w.Lent {
		f.OwnFile(w.Path)
	}
	return s, nil
}

// adopt is a socket of its own on a duplicate of fd.
func (e *Engine) adopt(fd int) (families.Socket, error) {
	domain, err := syscall.GetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_DOMAIN)
	if err != nil {
		return nil, fmt.Errorf("ask what descriptor %d is: %w", fd, err)
	}
	a, err := e.opts.Families.Domain(domain)
	if err != nil {
		return nil, err
	}
	n, err := ksock.Dup(fd)
	if err != nil {
		return nil, err
	}
	s, err := a.Adopt(n)
	if err != nil {
		ksock.CloseFiles([]int{n})
	}
	return s, err
}

// letGo closes the socket, which goes on elsewhere.
func (s *socket) letGo() {
	if f, err := families.As[families.FileKeeper](s.sock); err == nil {
		f.KeepFile()
	}
	_ = s.sock.Close() // its duplicate lives on
}

// unbuild undoes rebuild: what is parked stays as it is.
func (r *relay) unbuild() {
	r.stop()
	if r.kept != nil {
		r.kept.drop()
	}
	if a, ok := r.front.(*acceptor); ok {
		a.socket.keepFile()
	}
	r.front.close()
	r.current.release()
}

// keepFile has the file stay when the socket is closed.
func (s *socket) keepFile() {
	if f, err := families.As[families.FileKeeper](s.sock); err == nil {
		f.KeepFile()
	}
}

// recount takes the counters up, and adds the books of sessions that had ended when the
// process before was killed.
func (r *relay) recount(sessions []parkedSession) error {
	l := r.kept.ledg
	r.past = l.load()
	r.total = l.head.total.Load()
	for c, at := range l.at {
		if at >= 0 {
			r.lost.n[c].Store(l.head.lost[at].Load())
		}
	}
	at := map[uint32]model.ID{}
	for _, s := range sessions {
		at[s.rec.account] = model.ID(s.ID)
	}
	err := l.sweep(func(i uint32, id model.ID) bool {
		r.total = max(r.total, l.account(i).nth.Load()) // the last may have been counted here alone
		return at[i] == id
	}, func(a *account, id model.ID) {
		a.addTo(&r.past)
		l.save(&r.past, id)
	})
	r.kept.count(r.total)
	return err
}

// removed is the FROM of a relay that was removed, and has sessions.
type removed struct{}

var _ front = removed{}

func (removed) serve(r *relay) error { return r.ctx.Err() }
func (removed) close()               {}
func (removed) local() []string      { return nil }
func (removed) endless() bool        { return false }
func (removed) drops() uint64        { return 0 }

// restoreSession takes up one session. On error p.FDs stay the caller's.
func (r *relay) restoreSession(p parkedSession) error {
	d := &durability{ledg: r.kept.ledg, index: p.rec.account, acct: r.kept.ledg.account(p.rec.account), again: true}
	if d.acct.id.Load() != int64(p.ID) {
		return fmt.Errorf("its account is another's: %w", errForeignRecord)
	}
	r.eng.keepID(p.ID)
	s := newStream(r, r.holdPlan(), r.eng.pick())
	s.id, s.since, s.dur, d.s = model.ID(p.ID), time.Unix(0, d.acct.since.Load()), d, s
	s.nth, s.from.parked = d.acct.nth.Load(), true
	s.peerText = r.eng.textOfPeer(p.FDs[0])
	resume := s.resumeDial
	if p.rec.state == parkedOpen {
		if err := d.takePipes(p.FDs); err != nil {
			s.plan.release()
			s.sh.live.Add(-1)
			return err
		}
		resume = s.resume
	}
	r.claimAnyway()
	resume(p)
	return nil
}

// takePipes makes the pipes of their ends.
func (d *durability) takePipes(fds []int) (err error) {
	for i := range d.pipes {
		if d.pipes[i], err = ksock.PipeOf(fds[2+2*i], fds[3+2*i]); err != nil {
			return err
		}
	}
	d.s.r.eng.budget.used.Add(pipeEnds)
	return nil
}

// textOfPeer is whom a socket is connected to, for lists.
func (e *Engine) textOfPeer(fd int) string {
	s, err := e.adopt(fd)
	if err != nil {
		return ""
	}
	defer s.Close() // its duplicate lives on
	return newLeg(s, kindStream).text
}

// isLocal tells whether a descriptor is a unix socket.
func isLocal(fd int) bool {
	n, err := syscall.GetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_DOMAIN)
	return err == nil && n == syscall.AF_UNIX
}

// resumeDial dials for a client that was parked while it waited for that.
func (s *stream) resumeDial(p parkedSession) {
	fd, local := ksock.FD(p.FDs[0]), isLocal(p.FDs[0])
	if s.dur.acct.fate.Load() != fateLive {
		s.r.enter(s)
		fd.ResetAll(!local)
		s.sh.do(func() { s.abort(errTakenUp) })
		return
	}
	if s.plan.fast() {
		s.r.enter(s)
		s.sh.do(func() { s.beginFast(fd, local) })
		return
	}
	c, err := s.r.eng.adopt(p.FDs[0])
	if err != nil {
		s.r.enter(s)
		fd.ResetAll(!local)
		s.sh.do(func() { s.abort(err) })
		return
	}
	fd.Close() // c is a duplicate
	(&prologue{s: s, from: c, own: true, known: true}).begin()
}

// resume goes on with a session of two sides.
func (s *stream) resume(p parkedSession) {
	s.reckon()
	s.dur.attach()
	s.open, s.toText = true, s.findBackend(p.rec.backend) // nobody else knows of it yet
	s.r.enter(s)
	from := joining{ksock.FD(p.FDs[0]), isLocal(p.FDs[0]), true}
	to := joining{ksock.FD(p.FDs[1]), isLocal(p.FDs[1]), true}
	s.sh.do(func() { s.rejoin(from, to) })
}

// findBackend finds the backend that a session has: what it is called, and its gauge,
// which counts the session from now on. Both are unknown when the relay has others now.
func (s *stream) findBackend(hash uint32) string {
	for _, b := range s.plan.backends {
		if hashOf(b) == hash {
			s.load = b.busy
			s.load.enter()
			return families.Endpoint{Network: b.end.Network, Address: b.end.Address}.String()
		}
	}
	return ""
}

var errTakenUp = errors.New("it was being reset when sockd was restarted")

// rejoin has the shard go on with what the process before left.
func (s *stream) rejoin(from, to joining) {
	if s.over { // ended meanwhile
		s.dropClient(from)
		s.dropClient(to)
		return
	}
	err := s.from.join(from.fd, from.local, from.own)
	if err != nil {
		from.fd.ResetAll(!from.local)
	}
	if errTo := s.to.join(to.fd, to.local, to.own); errTo != nil {
		to.fd.ResetAll(!to.local)
		err = errTo
	}
	fate := s.dur.acct.fate.Load()
	switch {
	case err != nil:
		s.abort(err)
	case fate == fateReset:
		s.abort(errTakenUp)
	case fate == fateEnded:
		s.finish(ksock.FD.Close)
	default:
		s.goOn(fate)
	}
}

// reckon takes the counters up, with what was not written down.
func (s *stream) reckon() {
	for i, f := range []*flow{&s.rx, &s.tx} {
		l := &s.dur.acct.lanes[i]
		l.settle(s.dur.pipes[i].Held)
		f.inBytes.Store(l.in.Load())
		f.outBytes.Store(l.out.Load())
	}
}

// goOn begins to move bytes.
func (s *stream) goOn(fate int64) {
	for _, w := range []*way{&s.up, &s.down} {
		w.settleUrgent()
		if !w.src.local {
			w.src.fd.Tune(ksock.KeptAlive)
		}
	}
	if fate == fateBroke {
		s.limit(lingerTime, errTakenUp)
	}
	s.watchIdle()
	s.run()
}

// settleUrgent makes up for an urgent byte that was sent, and taken, and not counted.
// One that was sent and not taken is still what comes next.
func (w *way) settleUrgent() {
	if w.lane.urgent.Load() != w.flow.inBytes.Load()+1 || w.src.hasInput() && w.src.fd.AtMark() {
		return
	}
	w.flow.inBytes.Add(1)
	w.flow.outBytes.Add(1)
	w.note()
}
