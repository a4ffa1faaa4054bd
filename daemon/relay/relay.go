package relay

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sockd/sockd/families/model"
)

// The states of a relay.
const (
	stateListening = "listening"
	stateDraining  = "draining" // removed; its sessions run to their end
	stateWaiting   = "waiting"  // takes no session for now: Cause says why
	stateFailed    = "failed"   // takes none any more
)

// relay is one FROM with its sessions.
//
//	listening ◄──► waiting        no descriptor, no room, a backend that is not there
//	    │   │
//	    │   └────► failed ─────┐  FROM broke; sessions run on
//	    ▼ Remove               ▼ Remove
//	draining ──last session──► gone
//
// A relay of a socket that is there once (id:) has one session, drains from its
// beginning, since nobody else can be served, and goes when it ends. One whose FROM
// is an interface has one session at a time, and waits between two of them.
type relay struct {
	eng   *Engine
	id    model.ID
	front front
	from  side

	// single: there is one session at a time.
	single bool
	// lasting: another session follows the one that has ended. Without it a single
	// relay ends with its session.
	lasting bool

	ctx     context.Context // ends when no session may begin any more
	stop    context.CancelFunc
	pace    [2]*bucket  // from FROM towards TO, and back: --rate
	held    atomic.Bool // FROM is not read, for the rate of all
	telling telling
	lost    losses        // of messages that belong to no session, and events
	kept    *keeping      // what of it outlives this process; nil: nothing
	away    flow          // messages that belong to no session, from FROM: received and lost at once
	room    chan struct{} // has a token when room may have come free
	// trouble has a token when a session has found an interface down.
	trouble  chan struct{}
	failures throttle // of log lines
	// served closes when FROM's goroutine is done and FROM is closed.
	served chan struct{}

	mu       sync.Mutex // guards what follows
	name     string
	spec     model.RelaySpec // without descriptors
	current  *plan
	state    string
	cause    string
	failure  string // why the last session found no backend; "" when it found one
	why      error  // the end of the one session of a single relay
	draining bool
	stopped  bool // FROM is closed
	retired  bool
	busy     int // sessions that count against the bound
	sessions map[model.ID]conversation
	total    int64
	past     tally // of sessions that have ended
	reset    *time.Timer
}

// serve runs FROM until the relay stops or FROM fails, and lets go of FROM.
func (r *relay) serve() {
	defer r.eng.work.Done()
	err := r.front.serve(r)
	if r.ctx.Err() == nil {
		r.brokenFront(err)
	}
	r.keepFile()
	r.front.close()
	r.mu.Lock()
	r.stopped = true
	r.mu.Unlock()
	close(r.served)
	r.checkRetired()
}

// brokenFront is what becomes of a relay whose FROM failed: one with a single
// session has nothing left to do, others still have the sessions that they have.
func (r *relay) brokenFront(err error) {
	if r.single {
		r.mu.Lock()
		r.why = err
		r.mu.Unlock()
		r.drain(0)
		return
	}
	if r.setState(stateFailed, errText(err)) {
		r.eng.opts.Log.Error("relay failed", "relay", r.name, "id", r.id, "err", errText(err))
	}
}

func errText(err error) string {
	if err == nil {
		return "it has ended"
	}
	return err.Error()
}

// holdPlan is how sessions are dialled now, held for the caller, who hands the
// hold to a session or releases it.
func (r *relay) holdPlan() *plan {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.current.hold()
	return r.current
}

// allowed is who may come in now. It never changes, so no hold is needed.
func (r *relay) allowed() allowList {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.current.allow
}

// dial opens TO for a session, by the plan that it was given.
func (r *relay) dial(ctx context.Context, p *plan) (*leg, error) {
	return r.dialer().dial(ctx, p)
}

func (r *relay) dialer() *dialer {
	r.mu.Lock()
	defer r.mu.Unlock()
	return &dialer{set: r.eng.opts.Families, owner: r.spec.Owner, groups: r.spec.Groups, control: r.eng.opts.ControlSocket}
}

// paceOf is the rate of one direction of a session.
func (r *relay) paceOf(s *session, f *flow) *bucket {
	if f == &s.rx {
		return r.pace[0]
	}
	return r.pace[1]
}

// claim takes room for one more session; false means there is none now.
func (r *relay) claim() bool { return r.tryClaim() == claimed }

// claim's outcomes.
type claim uint8

const (
	claimed claim = iota
	full          // as many sessions as --max-conns allows
	short         // no share of the descriptors
)

func (r *relay) tryClaim() claim {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.busy >= maxConns(r.spec) || r.single && r.busy > 0:
		return full
	case !r.eng.budget.take():
		return short
	}
	r.busy++
	return claimed
}

// claimAnyway takes room for the one session of a relay, whose sockets are there.
func (r *relay) claimAnyway() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.busy++
	r.eng.budget.used.Add(sessionCost)
}

// awaitClaim claims room for a session, however long that takes, and says meanwhile
// what there is too little of.
func (r *relay) awaitClaim() error {
	for {
		got := r.tryClaim()
		if got == claimed {
			return nil
		}
		var again <-chan time.Time
		if got == short {
			if r.setState(stateWaiting, errNoShare.Error()) {
				r.lost.add(causeDescriptors, 1)
			}
			again = time.After(askAgain) // another relay's session gives it back
		} else {
			r.setState(stateWaiting, fullText)
		}
		select {
		case <-r.room:
		case <-again:
		case <-r.ctx.Done():
			return r.ctx.Err()
		}
	}
}

func maxConns(spec model.RelaySpec) int {
	if spec.MaxConns > 0 {
		return spec.MaxConns
	}
	return model.DefaultMaxConns
}

// unclaim gives room back that no session was begun with.
func (r *relay) unclaim() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.busy--
	r.eng.budget.give()
}

// signal wakes whoever waits for room.
func (r *relay) signal() {
	select {
	case r.room <- struct{}{}:
	default: // one token is enough: who takes it looks again
	}
}

// leave gives a session's room back, once, and wakes whoever waits for it.
func (r *relay) leave(c conversation) {
	if c.common().vacant.Swap(true) {
		return
	}
	r.unclaim()
	r.signal()
}

// turnAway counts messages that were received and belong to no session, as lost.
func (r *relay) turnAway(messages, bytes int, why cause) {
	r.away.turnAway(messages, bytes)
	r.lost.add(why, int64(messages))
}

// begin registers a session that has room claimed, and runs it in a goroutine
// that the engine waits for. A relay that was stopped meanwhile resets it.
func (r *relay) begin(c conversation, run func()) {
	r.enter(c)
	go func() {
		run()
		r.exit(c)
	}()
}

// enter registers a session that has room claimed. The engine waits until exit.
func (r *relay) enter(c conversation) {
	r.eng.work.Add(1)
	r.mu.Lock()
	stopped := r.ctx.Err() != nil
	r.sessions[c.common().id] = c
	s, ok := c.(*stream)
	if ok && s.isTakenUp() {
		stopped = false // it was there before
	}
	if !ok || s.nth == 0 {
		r.total++
		if ok {
			s.counts(r.total) // first: see recount
		}
		r.kept.count(r.total)
	}
	r.mu.Unlock()
	r.emitSession("opened", c)
	if stopped {
		c.end(errRemoved)
	}
}

// exit is the end of a session whose sockets are closed and whose counters are
// final.
func (r *relay) exit(c conversation) {
	defer r.eng.work.Done()
	s := c.common()
	s.plan.release()
	why := s.reason()
	var t tally
	t.take(c)
	r.mu.Lock()
	delete(r.sessions, s.id)
	r.past.add(&t)
	r.kept.add(&r.past, c)
	last := r.single && !r.lasting
	if last && r.why == nil {
		r.why = why
	}
	r.mu.Unlock()
	r.logEnd(c, why)
	r.emitSession("closed", c)
	r.leave(c)
	if last {
		r.drain(0)
	}
	r.checkRetired()
}

var (
	errRemoved = errors.New("the relay was removed")
	errClosed  = errors.New("closed by a caller")
)

// drain stops FROM. Sessions run on until they end, or until after, when it is
// not negative, they are reset.
func (r *relay) drain(after time.Duration) {
	r.mu.Lock()
	if r.reset != nil {
		r.reset.Stop()
		r.reset = nil
	}
	if after > 0 {
		r.reset = time.AfterFunc(after, r.resetSessions)
	}
	r.mu.Unlock()
	r.stopFront()
	if after == 0 || r.front.endless() {
		r.resetSessions()
	}
	r.checkRetired()
}

// stopFront lets no session begin any more.
func (r *relay) stopFront() {
	r.mu.Lock()
	told := r.draining || r.state == stateDraining
	r.draining, r.state, r.cause = true, stateDraining, ""
	r.mu.Unlock()
	r.stop()
	r.unlist()
	if !told {
		r.emit("changed", "")
	}
}

func (r *relay) resetSessions() {
	for _, s := range r.list() {
		s.end(errRemoved)
	}
}

func (r *relay) list() []conversation {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Collect(maps.Values(r.sessions))
}

// checkRetired lets go of a draining relay when its last session is over.
func (r *relay) checkRetired() {
	r.mu.Lock()
	done := r.draining && len(r.sessions) == 0 && r.stopped && !r.retired
	if done {
		r.retired = true
		if r.reset != nil {
			r.reset.Stop()
		}
	}
	cause := ""
	if r.why != nil {
		cause = r.why.Error()
	}
	p := r.current
	r.mu.Unlock()
	if !done {
		return
	}
	p.release()
	r.unpark()
	r.eng.forget(r)
	r.emit("removed", cause)
	r.eng.opts.Log.Info("relay ended", "relay", r.name, "id", r.id, "cause", cause)
}

func (r *relay) isDraining() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.draining
}

// setState notes a state, and tells the watchers and the caller if it is another
// one.
func (r *relay) setState(state, cause string) bool {
	r.mu.Lock()
	if r.draining || r.state == state && r.cause == cause {
		r.mu.Unlock()
		return false
	}
	r.state, r.cause = state, cause
	r.mu.Unlock()
	event := "changed"
	if state == stateFailed {
		event = "failed"
	}
	r.emit(event, cause)
	return true
}

// causeLocked is what there is to say of the relay's state. A listening relay whose
// last session found no backend says why.
func (r *relay) causeLocked() string {
	if r.state == stateListening {
		return cmp.Or(r.cause, r.failure)
	}
	return r.cause
}

// model is the relay as lists show it.
func (r *relay) model() model.Relay {
	t := r.sum()
	r.mu.Lock()
	defer r.mu.Unlock()
	m := model.Relay{
		ID: r.id, Name: r.name, From: r.spec.From.String(), Local: r.front.local(), State: r.state, Cause: r.causeLocked(),
		Sessions: int64(len(r.sessions)), Total: r.total, RxBytes: t.rx.out.bytes, TxBytes: t.tx.out.bytes, Drops: t.drops(),
		Owner: r.spec.Owner, Source: r.spec.Source, Settings: settings(r.spec),
	}
	for _, to := range r.spec.To {
		m.To = append(m.To, to.String())
	}
	if m.Source == "" {
		m.Source = "runtime"
	}
	return m
}

// sum is all that was ever counted. A session that ends meanwhile is counted
// once: it is taken as it was when the past was.
func (r *relay) sum() tally {
	t, running := r.pastAndRunning()
	for _, s := range running {
		t.take(s)
	}
	t.takeLosses(&r.lost)
	t.lost[causeKernel] += int64(r.front.drops())
	return t
}

// settings are the flags that are not at their defaults, as they are typed.
func settings(spec model.RelaySpec) map[string]string {
	out := map[string]string{}
	if spec.MaxConns > 0 && spec.MaxConns != model.DefaultMaxConns {
		out["max-conns"] = strconv.Itoa(spec.MaxConns)
	}
	for name, d := range map[string]time.Duration{"connect-timeout": spec.ConnectTimeout, "idle": spec.Idle, "half-close": spec.HalfClose} {
		switch {
		case d < 0:
			out[name] = "none"
		case d > 0:
			out[name] = durationText(d)
		}
	}
	if spec.Balance != "" && spec.Balance != balanceRoundrobin {
		out["balance"] = spec.Balance
	}
	if len(spec.Allow) > 0 {
		out["allow"] = model.FormatAllow(spec.Allow)
	}
	if spec.Rate > 0 {
		out["rate"] = model.FormatSize(spec.Rate)
	}
	if spec.Pass != "" {
		out["pass"] = spec.Pass
	}
	if spec.Durable != "" {
		out["durable"] = spec.Durable
	}
	if spec.Permanent {
		out["permanent"] = ""
	}
	if len(out) == 0 {
		return nil
	}
	return out
}

// durationText writes a duration with one unit, as the commands read it: ms, s, m
// or h.
func durationText(d time.Duration) string {
	for _, u := range []struct {
		unit time.Duration
		name string
	}{{time.Hour, "h"}, {time.Minute, "m"}, {time.Second, "s"}} {
		if d%u.unit == 0 {
			return fmt.Sprintf("%d%s", d/u.unit, u.name)
		}
	}
	return fmt.Sprintf("%dms", d/time.Millisecond)
}

// emit tells the watchers of the relay.
func (r *relay) emit(event, cause string) {
	r.eng.emit(event, "relay", r.id, cause, func() any { return r.model() })
}

func (r *relay) emitSession(event string, c conversation) {
	cause := ""
	if err := c.common().reason(); err != nil {
		cause = err.Error()
	}
	r.eng.emit(event, "session", c.common().id, cause, func() any { return view(c) })
}

// emit tells the watchers, if there are any: then the object is made and written.
func (e *Engine) emit(event, kind string, id model.ID, cause string, object func() any) {
	if !e.opts.Host.Watched() {
		return
	}
	text, err := json.Marshal(object())
	if err != nil {
		e.opts.Log.Error("an event has no JSON", "kind", kind, "id", id, "error", err)
		return
	}
	e.opts.Host.Emit(model.Event{Time: time.Now(), Event: event, ID: id, Cause: cause, Object: text, Kind: kind})
}

// front is a relay's FROM.
type front interface {
	// serve takes clients until the relay's ctx ends or FROM fails. It waits for
	// no session.
	serve(*relay) error
	// close lets go of FROM's socket, after serve.
	close()
	// local is what FROM is bound to, as NETWORK:ADDRESS.
	local() []string
	// endless: sessions live on FROM's socket or have no end of their own, so that
	// they end with it.
	endless() bool
	// drops is what the kernel dropped from FROM's queue.
	drops() uint64
}
