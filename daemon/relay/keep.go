package relay

import (
	"encoding/json"
	"fmt"
	"os"
	"sync"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/ksock"
	"github.com/sockd/sockd/families/model"
)

// keeping is what of a relay outlives this process: its listener, its ledger, and its
// specification. Nil is for a relay of which nothing does.
type keeping struct {
	ledg *ledger
	uid  uint32
	path string // of the file that FROM's bind made, or ""
	lent bool   // the caller bound FROM
	from families.Socket

	mu       sync.Mutex // one Park at a time; guards what follows
	listener int        // a duplicate of FROM's own, or NoFD
	listed   bool       // FROM is open
	left     bool
}

// parkedRelay is what is written of a relay: a sealed file of JSON, which is parked with
// it. Descriptors are parked in the order file, ledger, listener, directories.
type parkedRelay struct {
	Version  int             `json:"version"`
	Name     string          `json:"name"`
	Spec     model.RelaySpec `json:"spec"`
	Listener bool            `json:"listener"`
	Draining bool            `json:"draining,omitempty"`
	Path     string          `json:"path,omitempty"`
	Lent     bool            `json:"lent,omitempty"`
	Dirs     []parkedDir     `json:"dirs,omitempty"`
}

// parkedDir is the directory of a TO.
type parkedDir struct {
	To   int    `json:"to"`
	Name string `json:"name"`
}

const (
	relayRecordLen = 1 // the version
	// maxParkedRelay is the longest file: thousands of rules and TOs.
	maxParkedRelay = 1 << 20
	// maxParkedDirs is how many directories go with a relay's own three descriptors.
	maxParkedDirs = MaxParkFDs - 3
)

// keepable tells whether FROM can outlive this process: a socket that was bound here or
// by the caller. What systemd holds comes from there, and what a verb opened is lent.
func keepable(s socket) bool {
	return s.name == "" && s.id == 0 && (s.state == families.Listening || s.kind == kindDgram && s.state == families.Bound)
}

// keep begins what is to outlive this process, of a relay that is built on s: nil where
// nothing does. It fails for a durable relay alone.
func (e *Engine) keep(name string, spec model.RelaySpec, s socket) (*keeping, error) {
	if e.opts.Parking == nil || !keepable(s) {
		if spec.Durable != "" {
			return nil, errNoParking
		}
		return nil, nil
	}
	k, err := newKeeping(s)
	if err != nil {
		return nil, e.unkept(name, spec, err)
	}
	k.uid = spec.Owner.UID
	return k, nil
}

// unkept is what becomes of a relay that cannot be kept.
func (e *Engine) unkept(name string, spec model.RelaySpec, err error) error {
	if spec.Durable != "" {
		return fmt.Errorf("durable: %w", err)
	}
	e.opts.Log.Warn("relay will end with sockd", "relay", name, "err", err)
	return nil
}

// drop undoes keep.
func (k *keeping) drop() {
	if k != nil {
		ksock.CloseFiles([]int{k.listener})
		k.ledg.mem.Close()
	}
}

func newKeeping(s socket) (*keeping, error) {
	fd, err := duplicate(s.sock)
	if err != nil {
		return nil, err
	}
	l, err := newLedger()
	if err != nil {
		ksock.CloseFiles([]int{fd})
		return nil, err
	}
	k := &keeping{ledg: l, from: s.sock, listener: fd, listed: true, lent: s.adopted}
	if s.path != "" {
		k.path = absolute(s.path)
	}
	return k, nil
}

// IDKeeper is a Host that takes note of IDs that are in use from before, so that NewID
// gives none of them again.
type IDKeeper interface {
	KeepID(model.ID)
}

// duplicate is a duplicate of a socket's descriptor.
func duplicate(s families.Socket) (fd int, err error) {
	d, err := families.As[families.Descriptor](s)
	if err != nil {
		return model.NoFD, err
	}
	err = d.Control(func(n int) (err error) {
		fd, err = ksock.Dup(n)
		return err
	})
	return fd, err
}

// parkFirst parks the relay before its first client comes. It fails for a durable one
// alone; any other goes on without.
func (r *relay) parkFirst() error {
	err := r.park()
	if err == nil {
		return nil
	}
	if err = r.eng.unkept(r.name, r.spec, err); err == nil {
		r.unpark()
		r.kept = nil
	}
	return err
}

// park parks the relay, as it is now.
func (r *relay) park() error {
	if r.kept == nil {
		return nil
	}
	r.kept.mu.Lock()
	defer r.kept.mu.Unlock()
	return r.parkKept()
}

// parkKept is park for who has kept.mu.
func (r *relay) parkKept() error {
	if r.kept.left {
		return nil
	}
	p := r.holdPlan()
	defer p.release()
	written, dirs := r.written(p)
	defer ksock.CloseFiles(dirs)
	if len(dirs) != len(written.Dirs) || len(dirs) > maxParkedDirs {
		return fmt.Errorf("park relay %s: %d directories of unix TOs, %d at most", r.name, len(written.Dirs), maxParkedDirs)
	}
	text, err := json.Marshal(written)
	if err != nil {
		return fmt.Errorf("park relay %s: %w", r.name, err)
	}
	file, err := ksock.SealedFile("sockd-relay", text)
	if err != nil {
		return fmt.Errorf("park relay %s: %w", r.name, err)
	}
	defer ksock.CloseFiles([]int{file})
	fds := []int{file, r.kept.ledg.mem.Descriptor()}
	if written.Listener {
		fds = append(fds, r.kept.listener)
	}
	rec := ParkRecord{Kind: ParkedRelay, ID: uint64(r.id), UID: r.kept.uid, Data: []byte{recordVersion}}
	return r.eng.opts.Parking.Park(rec, append(fds, dirs...))
}

// written is what is written of the relay, and duplicates of the directories that go
// with it, which are the caller's.
func (r *relay) written(p *plan) (w parkedRelay, dirs []int) {
	k := r.kept
	w = parkedRelay{Version: recordVersion, Name: r.name, Spec: r.copySpec(), Listener: k.listed, Draining: r.isDraining(), Path: k.path, Lent: k.lent}
	w.Spec.Permanent = r.spec.Permanent
	for i, b := range p.backends {
		if b.dir == nil {
			continue
		}
		w.Dirs = append(w.Dirs, parkedDir{To: i, Name: b.name})
		var fd int
		if err := withFD(b.dir, func(n int) (err error) { fd, err = ksock.Dup(n); return err }); err == nil {
			dirs = append(dirs, fd)
		}
	}
	return w, dirs
}

// repark parks the relay anew after a change. When that fails, who takes it up finds it
// as it was before.
func (r *relay) repark() {
	if err := r.park(); err != nil {
		r.eng.opts.Log.Warn("relay would come back as it was before its change", "relay", r.name, "id", r.id, "err", err)
	}
}

// unlist is when FROM is closed, and the relay lives on for its sessions.
func (r *relay) unlist() {
	if r.kept == nil || r.eng.abandoned.Load() {
		return
	}
	r.kept.mu.Lock()
	defer r.kept.mu.Unlock()
	if !r.kept.listed {
		return
	}
	r.kept.closeListener()
	if err := r.parkKept(); err != nil {
		r.eng.opts.Log.Warn("relay would come back as if it had not been removed", "relay", r.name, "id", r.id, "err", err)
	}
}

// closeListener ends FROM also where a duplicate lives on: clients that came to it would
// wait for ever.
func (k *keeping) closeListener() {
	if k.listed {
		k.listed = false
		ksock.FD(k.listener).End()
		k.listener = model.NoFD
	}
}

// keepFile has the file of FROM stay, for who goes on.
func (r *relay) keepFile() {
	if r.kept == nil || !r.eng.abandoned.Load() {
		return
	}
	if f, err := families.As[families.FileKeeper](r.kept.from); err == nil {
		f.KeepFile()
	}
}

// unpark is when nothing of the relay is left.
func (r *relay) unpark() {
	k := r.kept
	if k == nil {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.left {
		return
	}
	k.left = true
	if r.eng.abandoned.Load() {
		ksock.CloseFiles([]int{k.listener})
	} else {
		k.closeListener()
		r.eng.opts.Parking.Leave(uint64(r.id))
	}
	r.lost.kept = nil
	k.ledg.mem.Close()
}

// count notes how many sessions there were.
func (k *keeping) count(total int64) {
	if k != nil {
		k.ledg.head.total.Store(total)
	}
}

// add makes past, which a session's books were added to, the relay's. relay.mu is held.
func (k *keeping) add(past *tally, c conversation) {
	if k == nil {
		return
	}
	k.ledg.save(past, c.common().id)
	if s, ok := c.(*stream); ok && s.dur != nil {
		k.ledg.free(s.dur.index)
	}
}

// Abandon lets go of everything that is parked as it is: sessions, listeners and their
// addresses go on in the process that takes them up, by Restore. All else ends as by
// Close. When it returns, this process moves no byte of theirs any more.
func (e *Engine) Abandon() error {
	e.abandoned.Store(true)
	return e.Close()
}

// isLeftBehind tells whether the session lives on without this process.
func (c *record) isLeftBehind() bool {
	return c.r.eng.abandoned.Load()
}

// letGo closes what the session has here and ends nothing: another process goes on.
func (s *stream) letGo(ended bool) {
	if ended {
		s.dur.mark(fateEnded)
	}
	s.up.pipe, s.down.pipe = nil, nil // what is in them is not lost
	s.stop(nil)
	for _, e := range []*end{&s.from, &s.to} {
		if e.fd != ksock.NoDescriptor {
			s.sh.unwatch(e.token, int(e.fd))
			e.fd.Close()
			e.fd = ksock.NoDescriptor
		}
	}
	for _, p := range s.dur.pipes {
		if p != nil {
			p.Close()
		}
	}
	if s.dur.pipes[0] != nil {
		s.r.eng.budget.giveMore(pipeEnds)
	}
	s.r.forsake(s)
}

// forsake is exit for a session that lives on without this process, and whose
// descriptors are closed here.
func (r *relay) forsake(s *stream) {
	defer r.eng.work.Done()
	s.plan.release()
	r.mu.Lock()
	delete(r.sessions, s.id)
	r.mu.Unlock()
	r.leave(s)
	r.checkRetired()
}

// absolute is a path that means the same in another process.
func absolute(path string) string {
	dir, err := os.Getwd()
	if path == "" || path[0] == '/' || path[0] == '@' || err != nil {
		return path
	}
	return dir + "/" + path
}
