package relay

import (
	"cmp"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/ksock"
	"github.com/sockd/sockd/families/model"
)

// The balances: how a session's backend is chosen.
const (
	balanceRoundrobin = "roundrobin"
	balanceLeast      = "least"    // the one with the fewest sessions
	balanceFailover   = "failover" // the first that can be dialled
	balanceFanout     = "fanout"   // all of them: each gets every message
)

// plan is how a relay dials its sessions, and their bounds. It never changes: a
// change of the relay makes a new one, and sessions keep the one that they were
// dialled by. Its directories stay open as long as a dial may use them.
type plan struct {
	backends       []*backend
	balance        string
	connectTimeout time.Duration
	idle           time.Duration // 0: the kind's default; below: none
	halfClose      time.Duration // 0: none

	own   ownOptions // FROM's, as sessions that begin by this plan have them
	allow allowList  // who may begin one
	pass  bool       // descriptors that come with messages go on with them
	// durable sessions outlive this process: "", or as in model.RelaySpec.
	durable string

	turn atomic.Uint64 // roundrobin's next

	mu    sync.Mutex // guards users
	users int        // the relay, and dials under way
}

// backend is one TO.
type backend struct {
	text string // as the user wrote it
	end  families.Endpoint
	kind kind
	own  ownOptions
	busy *gauge // its sessions

	dir  *os.File // O_PATH directory of a unix path; nil: the path is named freely
	name string   // in dir

	fast *fastTarget // how a shard dials it, or nil: a goroutine does
	udp  *udpTarget  // the same of UDP
	// After a failed dial it is tried after the others, until then and for that long
	// at a time: since epoch, and nanoseconds.
	awayUntil, awayFor atomic.Int64

	mu    sync.Mutex // guards what follows
	first *firstSeen // through dir, or nil before
	given families.Socket
}

// gauge counts what is under way.
type gauge struct{ n atomic.Int64 }

func (g *gauge) enter() {
	if g != nil {
		g.n.Add(1)
	}
}

func (g *gauge) leave() {
	if g != nil {
		g.n.Add(-1)
	}
}

// newPlan reads what spec says of TO. It takes no descriptor: see own.
func newPlan(set families.Set, spec model.RelaySpec) (*plan, error) {
	p := &plan{
		balance: spec.Balance, connectTimeout: spec.ConnectTimeout, idle: spec.Idle, halfClose: spec.HalfClose,
		allow: slices.Clone(spec.Allow), pass: spec.Pass == model.PassRights, durable: spec.Durable,
		users: 1,
	}
	var err error
	if p.own, err = readOptions(spec.From); err != nil {
		return nil, err
	}
	if p.balance == "" {
		p.balance = balanceRoundrobin
	}
	if p.connectTimeout == 0 {
		p.connectTimeout = model.DefaultConnectTimeout
	}
	for _, to := range spec.To {
		own, err := readOptions(to)
		if err != nil {
			return nil, err
		}
		k, _ := networkKind(set, to)
		p.backends = append(p.backends, &backend{text: to.String(), end: familyPart(to), kind: k, own: own, busy: new(gauge)})
	}
	return p, nil
}

// keep takes duplicates of the directories.
func (p *plan) keep(dirs []model.DirFD) error {
	for i, d := range dirs {
		if d.FD < 0 {
			continue
		}
		if err := p.backends[i].keep(d.FD, d.Name); err != nil {
			return err
		}
	}
	return nil
}

func (b *backend) keep(dirfd int, name string) error {
	fd, err := ksock.Dup(dirfd)
	if err != nil {
		return err
	}
	b.dir, b.name = os.NewFile(uintptr(fd), name), name
	return nil
}

// side is the backend as one end of a pair, with the engine's own options, which
// end has not.
func (b *backend) side() side {
	s := sideOf(b.end, b.kind)
	s.framed, s.proxy = b.own.framing != "", b.own.proxy
	return s
}

// seen is the socket that was dialled first, or nil.
func (b *backend) seen() *firstSeen {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.first
}

// hold keeps the plan's directories open until release.
func (p *plan) hold() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.users++
}

// release ends a hold; the last one closes the directories and what was given
// and never used.
func (p *plan) release() {
	p.mu.Lock()
	p.users--
	last := p.users == 0
	p.mu.Unlock()
	if !last {
		return
	}
	for _, b := range p.backends {
		b.close()
	}
}

func (b *backend) close() {
	if b.dir != nil {
		_ = b.dir.Close() // O_PATH, nothing to lose
	}
	if s := b.take(); s != nil {
		_ = s.Close() // nobody used it
	}
}

// take is the open socket that the backend is, once.
func (b *backend) take() families.Socket {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.given
	b.given = nil
	return s
}

func (b *backend) give(s families.Socket, k kind) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.given, b.kind = s, k
}

// idleFor is the idle time of sessions whose FROM is of kind k: datagram
// sessions have no end of their own, so they have a default. 0 is none.
func (p *plan) idleFor(k kind) time.Duration {
	switch {
	case p.idle < 0:
		return 0
	case p.idle == 0 && k == kindDgram:
		return model.DefaultDgramIdle
	}
	return p.idle
}

// order is in which order the backends are tried for one session.
func (p *plan) order() []*backend {
	if len(p.backends) == 1 {
		return p.backends
	}
	var first, backup []*backend
	for _, b := range p.backends {
		if b.own.backup {
			backup = append(backup, b)
		} else {
			first = append(first, b)
		}
	}
	switch {
	case len(first) < 2:
	case p.balance == balanceRoundrobin:
		n := int(p.turn.Add(1)-1) % len(first)
		first = append(append([]*backend(nil), first[n:]...), first[:n]...)
	case p.balance == balanceLeast:
		first = leastFirst(first)
	}
	return awayLast(append(first, backup...))
}

// awayLast puts backends that could not be reached lately behind the others.
func awayLast(bs []*backend) []*backend {
	slices.SortStableFunc(bs, func(a, b *backend) int {
		return cmp.Compare(btoi(a.isAway()), btoi(b.isAway()))
	})
	return bs
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// leastFirst sorts by sessions; equals stay in the user's order.
func leastFirst(bs []*backend) []*backend {
	type loaded struct {
		b *backend
		n int64
	}
	load := make([]loaded, len(bs))
	for i, b := range bs {
		load[i] = loaded{b, b.busy.n.Load()}
	}
	slices.SortStableFunc(load, func(a, b loaded) int { return cmp.Compare(a.n, b.n) })
	for i := range load {
		bs[i] = load[i].b
	}
	return bs
}

// single tells whether the plan is for one session only, since its TO is an open
// connection.
func (p *plan) single() bool {
	return len(p.backends) == 1 && p.backends[0].end.Network == families.NetworkID
}
