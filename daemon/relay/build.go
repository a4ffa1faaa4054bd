package relay

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/model"
)

// build opens FROM and makes a relay that can be started. On error nothing is
// left open, and what was taken has gone back.
func (e *Engine) build(ctx context.Context, id model.ID, name string, spec model.RelaySpec) (*relay, error) {
	if err := e.openShards(); err != nil {
		return nil, err
	}
	p, err := e.newPlan(ctx, spec, spec.ToDirs)
	if err != nil {
		return nil, err
	}
	s, err := e.openFrom(ctx, spec)
	if err != nil {
		p.release()
		return nil, err
	}
	r, err := e.assembleKept(ctx, name, spec, p, s)
	if err != nil {
		s.undo()
		e.undoGiven(spec, p)
		p.release()
		return nil, err
	}
	r.id, r.name = id, name
	return r, nil
}

// assembleKept is assemble of a relay that outlives this process, where it can. FROM is
// duplicated first: its front may take it apart.
func (e *Engine) assembleKept(ctx context.Context, name string, spec model.RelaySpec, p *plan, s socket) (*relay, error) {
	k, err := e.keep(name, spec, s)
	if err != nil {
		return nil, err
	}
	r, err := e.assemble(ctx, spec, p, s)
	if err != nil {
		k.drop()
		return nil, err
	}
	if k != nil {
		r.kept, r.lost.kept = k, k.ledg
	}
	return r, nil
}

// newPlan reads TO, with duplicates of the directories, and asks the families
// whether its options are any.
func (e *Engine) newPlan(ctx context.Context, spec model.RelaySpec, dirs []model.DirFD) (*plan, error) {
	if len(dirs) != 0 && len(dirs) != len(spec.To) {
		return nil, errors.New("relay: there must be one directory for each TO, or none")
	}
	p, err := newPlan(e.opts.Families, spec)
	if err != nil {
		return nil, err
	}
	if err := p.keep(dirs); err != nil {
		p.release()
		return nil, err
	}
	for _, b := range p.backends {
		if err := e.tryOptions(ctx, b); err != nil {
			p.release()
			return nil, err
		}
		b.fast, b.udp = e.fastTargetOf(b), e.udpTargetOf(b)
	}
	return p, nil
}

// tryOptions opens a TO's socket for nothing but its options: a word that the
// family has not is the user's mistake now, not that of every session later. A
// name that cannot be looked up now may be there at the dial.
func (e *Engine) tryOptions(ctx context.Context, b *backend) error {
	if len(b.end.Options) == 0 || b.end.Network == families.NetworkID {
		return nil
	}
	targets, err := e.resolveLiteral(b.end)
	if err != nil || len(targets) == 0 {
		return err
	}
	s, err := targets[0].Family.Open(ctx, targets[0].Spec)
	if err != nil {
		return pointAt(b.end, err)
	}
	return s.Close()
}

// assemble checks what is known only now, takes an id: that is TO, and dials
// where a failure is better told at once.
func (e *Engine) assemble(ctx context.Context, spec model.RelaySpec, p *plan, s socket) (*relay, error) {
	from := sideOfSocket(spec.From, s.sock.Info())
	if err := checkFrom(from, spec); err != nil {
		return nil, err
	}
	if err := checkArrival(from, s.state, spec.Allow); err != nil {
		return nil, err
	}
	if err := e.takeTo(spec, p); err != nil {
		return nil, err
	}
	r := e.newRelay(spec, p, from)
	if err := r.checkPairs(p); err != nil {
		return nil, err
	}
	if err := e.checkBound(spec, s); err != nil {
		return nil, err
	}
	f, err := e.newFront(s, spec.From, p)
	if err != nil {
		return nil, err
	}
	if o, lasting := onlyEnd(f); o != nil {
		r.single, r.lasting = true, lasting
		if err := r.dialNow(ctx, o, p); err != nil {
			return nil, err
		}
	}
	r.single = r.single || p.single()
	r.front = f
	return r, nil
}

// newRelay is a relay without a front.
func (e *Engine) newRelay(spec model.RelaySpec, p *plan, from side) *relay {
	r := &relay{
		eng: e, spec: bare(spec), current: p, state: stateListening,
		room: make(chan struct{}, 1), trouble: make(chan struct{}, 1), served: make(chan struct{}), sessions: map[model.ID]conversation{},
		from: from, pace: [2]*bucket{newBucket(spec.Rate), newBucket(spec.Rate)},
	}
	r.telling.r, r.lost.told = r, &r.telling
	r.ctx, r.stop = context.WithCancel(context.Background())
	return r
}

// onlyEnd is the FROM of a relay with one session, and whether others follow it.
func onlyEnd(f front) (o *once, lasting bool) {
	switch f := f.(type) {
	case *once:
		return f, false
	case *cable:
		return f.current(), true
	}
	return nil, false
}

// takeTo takes the open socket that TO is.
func (e *Engine) takeTo(spec model.RelaySpec, p *plan) error {
	if !p.single() {
		return nil
	}
	b := p.backends[0]
	id, err := parseID(b.end)
	if err != nil {
		return err
	}
	s, err := e.opts.Host.Take(spec.Owner, id)
	if err != nil {
		return err
	}
	i := s.Info()
	b.give(s, kindOf(i.Family, i.Type))
	to := sideOfSocket(spec.To[0], i)
	if spec.Pass != "" && !to.unix {
		return passReason(to.word)
	}
	return checkGiven(to, i)
}

// checkGiven refuses an open socket as TO that has nobody at its other end.
func checkGiven(to side, i families.Info) error {
	if err := checkAlone(to); err != nil {
		return err
	}
	if to.kind == kindPacket && i.Local != nil || i.State == families.Connected || i.State == families.HalfClosed {
		return nil
	}
	return &ReasonError{
		Reason: fmt.Sprintf("%s is a %s socket that is %s", to.word, i.Type, i.State),
		Next:   "a TO that is open already is a connected socket",
	}
}

// undoGiven gives an id: that was taken as TO back.
func (e *Engine) undoGiven(spec model.RelaySpec, p *plan) {
	u, ok := e.opts.Host.(Untaker)
	if !ok || !p.single() {
		return
	}
	if s := p.backends[0].take(); s != nil {
		id, _ := parseID(spec.To[0]) // it was taken by it
		u.Untake(id, s)
	}
}

// fromBy is FROM with the options that a plan gives it.
func (r *relay) fromBy(p *plan) side {
	s := r.from
	s.framed, s.proxy = p.own.framing != "", p.own.proxy
	return s
}

func (r *relay) checkPairs(p *plan) error {
	for _, b := range p.backends {
		to := b.side()
		if err := checkPair(r.fromBy(p), to); err != nil {
			return err
		}
		if err := checkFanout(p.balance, to); err != nil {
			return err
		}
		if err := checkFanoutFrom(p.balance, r.fromBy(p)); err != nil {
			return err
		}
	}
	return nil
}

// checkBound looks again whether the relay would dial itself, now that FROM's
// port is known.
func (e *Engine) checkBound(spec model.RelaySpec, s socket) error {
	local := s.sock.Info().Local
	if local == nil {
		return nil
	}
	from := families.Target{Spec: families.Spec{Type: s.sock.Info().Type}, Addr: local}
	for _, to := range spec.To {
		targets, _ := e.resolveLiteral(familyPart(to)) // id: and names have none
		for _, t := range targets {
			if targetsSelf(from, t) {
				return selfReason(spec.From, to)
			}
		}
	}
	return nil
}

// dialNow dials a single relay's TO while the caller waits: an open socket has
// nobody to serve later, and an interface that is not there is a mistake. A
// backend that may start later is dialled by the relay, again and again.
func (r *relay) dialNow(ctx context.Context, o *once, p *plan) error {
	given := slices.ContainsFunc(p.backends, func(b *backend) bool { return b.kind == kindPacket || b.end.Network == families.NetworkID })
	if o.socket.id == 0 && !given {
		return nil
	}
	to, err := r.dial(ctx, p)
	if err != nil {
		return err
	}
	o.to = to
	return nil
}

// undo closes what was built and never started.
func (r *relay) undo() {
	r.stop()
	r.unpark()
	r.front.close()
	r.current.release()
}

// bare is a spec without descriptors.
func bare(spec model.RelaySpec) model.RelaySpec {
	spec.FromFD, spec.ToDirs = model.NoFD, nil
	spec.To = slices.Clone(spec.To)
	spec.Groups = slices.Clone(spec.Groups)
	spec.Allow = slices.Clone(spec.Allow)
	return spec
}
