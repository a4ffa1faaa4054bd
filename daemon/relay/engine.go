package relay

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/ksock"
	"github.com/sockd/sockd/families/model"
)

// Host is what the engine asks of the daemon that owns it.
type Host interface {
	// NewID gives the next ID of the daemon's one ID space.
	NewID() model.ID
	// Take hands an open socket (id:7) over for good: it leaves the daemon's
	// table and the relay closes it. Only owner's sockets can be taken (uid 0
	// and the daemon's own uid may take any). See Untaker.
	Take(owner model.Owner, id model.ID) (families.Socket, error)
	// Named hands over a descriptor of systemd's by its name (fd:web). It can be
	// taken once; GiveBack returns a listener when its relay ends, so that a
	// later relay can have it.
	Named(name string) (families.Socket, error)
	GiveBack(name string, s families.Socket)
	// Emit tells the watchers of a change. It never blocks.
	Emit(model.Event)
	// Watched tells whether anybody would hear it.
	Watched() bool
}

// Options of an Engine.
type Options struct {
	Families families.Set
	Host     Host
	Log      *slog.Logger // nil: slog.Default
	// ControlSocket is the path of sockd's own control socket, which is never a target.
	ControlSocket string
	// Parking holds what outlives this process: every relay's listener and counters, and
	// sessions of durable relays. Nil: nothing does.
	Parking Parking
	// Loops is how many event loops there are, and that each may keep a processor of the
	// Go scheduler while it waits for a moment; 0: GOMAXPROCS loops, which do not.
	Loops int
}

// Engine runs every relay of a daemon. Its methods may be called from any goroutine.
type Engine struct {
	opts Options
	work sync.WaitGroup // every goroutine of every relay and session
	// abandoned: what is parked is let go of as it is.
	abandoned atomic.Bool

	stopping sync.Once

	// replacing lets one Replace look, build and swap at a time: two at once would
	// leave both new relays running under one name. Nothing else waits for it.
	replacing sync.Mutex

	mu     sync.Mutex // guards what follows
	relays map[model.ID]*relay
	// names are those in use; 0 is one that is being added.
	names  map[string]model.ID
	closed bool
	// shards are the event loops, begun with the first relay.
	shards []*shard
	turn   atomic.Uint32 // of pick

	doorman *doorman
	budget  budget

	// notices are losses to be told of, by a goroutine that lives as long as the shards;
	// told closes when it has ended.
	notices chan notice
	told    chan struct{}
}

// New makes an engine without relays.
func New(o Options) *Engine {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	return &Engine{opts: o, relays: map[model.ID]*relay{}, names: map[string]model.ID{}, doorman: newDoorman(), budget: newBudget(), told: make(chan struct{})}
}

// openShards starts the event loops, one a processor.
func (e *Engine) openShards() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return errEngineClosed
	}
	for len(e.shards) < cmp.Or(e.opts.Loops, runtime.GOMAXPROCS(0)) {
		s, err := newShard(e.opts.Loops > 0)
		if err != nil {
			return fmt.Errorf("start the relays: %w", err)
		}
		e.shards = append(e.shards, s)
	}
	if e.notices == nil {
		e.notices = make(chan notice, maxNotices)
		go e.tellLosses()
	}
	return nil
}

// allShards are the event loops. There are some when there is a relay.
func (e *Engine) allShards() []*shard {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.shards
}

// maxNotices is room for every cause of a relay at once.
const maxNotices = 2 * int(numCauses)

// stop ends what no relay needs any more.
func (e *Engine) stop() {
	for _, s := range e.allShards() {
		s.stop()
	}
	e.mu.Lock()
	notices := e.notices
	e.mu.Unlock()
	if notices != nil {
		close(notices)
		<-e.told
	}
}

// fewSessions is how many live sessions a shard keeps before it gives new ones away. A
// second thread gains nothing while one has time, and makes each event wake another
// processor; with many it gains a tenth.
const fewSessions = 4

// roomiest is the shard for a session that sh has accepted: itself while it has few,
// else the one with the fewest.
func (e *Engine) roomiest(sh *shard) *shard {
	if sh.live.Load() < fewSessions {
		return sh
	}
	for _, other := range e.allShards() {
		if other.live.Load() < sh.live.Load() {
			sh = other
		}
	}
	return sh
}

// pick is the event loop for a session that none has accepted: each in turn.
func (e *Engine) pick() *shard {
	all := e.allShards()
	return all[int(e.turn.Add(1))%len(all)]
}

// Add starts a relay. On success the engine owns spec's descriptors; on error
// the caller still does. A taken name or address is syscall.EEXIST or EADDRINUSE.
// Its other errors are those of Check, of opening FROM, and *DialError where TO
// is dialled at once.
func (e *Engine) Add(ctx context.Context, spec model.RelaySpec) (model.Relay, error) {
	if err := e.Check(spec); err != nil {
		return model.Relay{}, err
	}
	id, name, err := e.reserve(spec.Name)
	if err != nil {
		return model.Relay{}, err
	}
	r, err := e.build(ctx, id, name, spec)
	if err == nil {
		err = e.start(r)
	}
	if err != nil {
		e.unreserve(name)
		return model.Relay{}, err
	}
	closeDescriptors(spec)
	return r.model(), nil
}

// reserve takes a name, or makes one of the new relay's ID.
func (e *Engine) reserve(name string) (model.ID, string, error) {
	id := e.opts.Host.NewID()
	e.mu.Lock()
	defer e.mu.Unlock()
	if name == "" {
		name = fmt.Sprintf("r%d", id)
	}
	if _, taken := e.names[name]; taken {
		return 0, "", fmt.Errorf("relay add %q: a relay has this name: %w", name, syscall.EEXIST)
	}
	e.names[name] = 0
	return id, name, nil
}

func (e *Engine) unreserve(name string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.names, name)
}

// start puts a relay that was built into the table and runs it. On error it is undone.
func (e *Engine) start(r *relay) error {
	if err := r.parkFirst(); err != nil {
		r.undo()
		return err
	}
	return e.run(r)
}

// run is start for a relay that is parked, if it is to be.
func (e *Engine) run(r *relay) error {
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		r.undo()
		return errEngineClosed
	}
	e.relays[r.id] = r
	if !r.draining {
		e.names[r.name] = r.id
	}
	e.work.Add(1)
	e.mu.Unlock()
	r.emit("added", "")
	go r.serve()
	return nil
}

var errEngineClosed = fmt.Errorf("the relays are closing down: %w", syscall.ESHUTDOWN)

// closeDescriptors closes what the caller passed, of which a relay has
// duplicates by now.
func closeDescriptors(spec model.RelaySpec) {
	var fds []int
	if spec.FromFD >= 0 {
		fds = append(fds, spec.FromFD)
	}
	for _, d := range spec.ToDirs {
		if d.FD >= 0 {
			fds = append(fds, d.FD)
		}
	}
	ksock.CloseFiles(fds)
}

// Replace adds, or makes the relay of that name exactly this. With the same FROM
// the listener never closes and sessions go on. With another one, the new relay
// listens before the old one drains, as by Remove with a negative time.
// Descriptors as in Add; FromFD is closed unused when the listener stays.
func (e *Engine) Replace(ctx context.Context, spec model.RelaySpec) (model.Relay, error) {
	if err := e.Check(spec); err != nil {
		return model.Relay{}, err
	}
	e.replacing.Lock()
	defer e.replacing.Unlock()
	old := e.named(spec.Name)
	if old == nil {
		return e.Add(ctx, spec)
	}
	if old.keepsFrom(spec) {
		if err := old.retarget(spec, spec.ToDirs, false); err != nil {
			return model.Relay{}, err
		}
		closeDescriptors(spec)
		return old.model(), nil
	}
	r, err := e.build(ctx, e.opts.Host.NewID(), spec.Name, spec)
	if err != nil {
		return model.Relay{}, err
	}
	if err := e.start(r); err != nil {
		return model.Relay{}, err
	}
	closeDescriptors(spec)
	old.drain(-1)
	<-old.served
	return r.model(), nil
}

func (e *Engine) named(name string) *relay {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.relays[e.names[name]]
}

// Set changes a running relay; its sessions go on as they are. With c.To the
// engine owns c.ToDirs on success, else the caller still does.
func (e *Engine) Set(ctx context.Context, id model.ID, c model.RelayChange) (model.Relay, error) {
	r, err := e.relay(id)
	if err != nil {
		return model.Relay{}, err
	}
	spec := changed(r.copySpec(), c)
	if err := e.Check(spec); err != nil {
		return model.Relay{}, err
	}
	if err := ctx.Err(); err != nil {
		return model.Relay{}, err
	}
	if err := r.retarget(spec, c.ToDirs, c.To == nil); err != nil {
		return model.Relay{}, err
	}
	if c.To != nil {
		closeDescriptors(model.RelaySpec{FromFD: model.NoFD, ToDirs: c.ToDirs})
	}
	return r.model(), nil
}

// changed is spec with what c names.
func changed(spec model.RelaySpec, c model.RelayChange) model.RelaySpec {
	set(&spec.To, c.To)
	set(&spec.MaxConns, c.MaxConns)
	set(&spec.ConnectTimeout, c.ConnectTimeout)
	set(&spec.Idle, c.Idle)
	set(&spec.HalfClose, c.HalfClose)
	set(&spec.Balance, c.Balance)
	set(&spec.Allow, c.Allow)
	set(&spec.Rate, c.Rate)
	set(&spec.Pass, c.Pass)
	return spec
}

func set[T any](to, from *T) {
	if from != nil {
		*to = *from
	}
}

// Remove closes the listener at once and frees the name; sessions run to their
// end as draining. What is left after drain is reset: drain 0 resets at once, a
// negative one never. Sessions that have no end of their own, because they live
// on a datagram FROM or carry frames, end at once too. When Remove returns,
// FROM's address is free.
func (e *Engine) Remove(id model.ID, drain time.Duration) error {
	r, err := e.relay(id)
	if err != nil {
		return err
	}
	e.mu.Lock()
	if e.names[r.name] == id {
		delete(e.names, r.name)
	}
	e.mu.Unlock()
	r.drain(drain)
	<-r.served
	return nil
}

// forget takes a relay that is over out of the tables.
func (e *Engine) forget(r *relay) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.relays, r.id)
	if e.names[r.name] == r.id {
		delete(e.names, r.name)
	}
}

func (e *Engine) relay(id model.ID) (*relay, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	r := e.relays[id]
	if r == nil {
		return nil, fmt.Errorf("relay %d: %w", id, syscall.ENOENT)
	}
	return r, nil
}

// Lookup finds a relay by name. Draining ones have none any more.
func (e *Engine) Lookup(name string) (model.ID, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	id := e.names[name]
	return id, id != 0
}

// Relays lists every relay, draining ones too, by ID.
func (e *Engine) Relays() []model.Relay {
	out := []model.Relay{}
	for _, r := range e.all() {
		out = append(out, r.model())
	}
	return out
}

// Sessions lists every session of every relay, by ID.
func (e *Engine) Sessions() []model.Session {
	out := []model.Session{}
	for _, r := range e.all() {
		for _, s := range r.list() {
			out = append(out, view(s))
		}
	}
	slices.SortFunc(out, func(a, b model.Session) int { return cmp.Compare(a.ID, b.ID) })
	return out
}

func (e *Engine) all() []*relay {
	e.mu.Lock()
	defer e.mu.Unlock()
	rs := slices.Collect(maps.Values(e.relays))
	slices.SortFunc(rs, func(a, b *relay) int { return cmp.Compare(a.id, b.id) })
	return rs
}

// CloseSession resets one session. One that is not there is syscall.ENOENT.
func (e *Engine) CloseSession(id model.ID) error {
	for _, r := range e.all() {
		if s := r.session(id); s != nil {
			s.end(errClosed)
			return nil
		}
	}
	return fmt.Errorf("session %d: %w", id, syscall.ENOENT)
}

// Spec is the specification that a relay runs by, for `relay show --command`.
// Its descriptors are NoFD.
func (e *Engine) Spec(id model.ID) (model.RelaySpec, bool) {
	r, err := e.relay(id)
	if err != nil {
		return model.RelaySpec{}, false
	}
	return r.copySpec(), true
}

// Close ends every relay and session and waits for them. Twice is nil.
func (e *Engine) Close() error {
	e.mu.Lock()
	e.closed = true
	e.mu.Unlock()
	for _, r := range e.all() {
		r.drain(0)
	}
	e.work.Wait()
	e.stopping.Do(e.stop)
	return nil
}
