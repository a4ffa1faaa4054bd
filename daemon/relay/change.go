package relay

import (
	"context"
	"fmt"
	"syscall"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/model"
)

// keepsFrom tells whether the relay as it runs has the FROM that spec asks for.
// What can be changed on a listening socket may differ: backlog, mode, user, group.
func (r *relay) keepsFrom(spec model.RelaySpec) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	old, wanted := familyPart(r.spec.From), familyPart(spec.From)
	return !r.single && !r.draining && r.state != stateFailed && (old.String() == wanted.String() || r.isBoundTo(old, wanted))
}

// isBoundTo tells whether wanted names the address that FROM's was bound to, where the
// system chose a part of it, as a port.
func (r *relay) isBoundTo(old, wanted families.Endpoint) bool {
	for _, at := range r.front.local() {
		bound, err := families.ParseEndpoint(at)
		if err != nil {
			continue
		}
		old.Address = bound.Address
		if old.String() == wanted.String() {
			return true
		}
	}
	return false
}

// retarget gives the relay another plan and bounds. Sessions keep theirs. With
// keep the directories of the plan before are TO's still; else dirs are, which
// are duplicated.
func (r *relay) retarget(spec model.RelaySpec, dirs []model.DirFD, keep bool) error {
	if r.single {
		return &ReasonError{Reason: fmt.Sprintf("%s: its one session is joined already", r.name), Next: "remove it and add another"}
	}
	p, err := r.eng.newPlan(context.Background(), spec, dirs)
	if err != nil {
		return err
	}
	if err := r.prepare(spec, p, keep); err != nil {
		p.release()
		return err
	}
	old, err := r.swap(spec, p)
	if err != nil {
		p.release()
		return err
	}
	old.release()
	for _, b := range r.pace {
		b.setRate(spec.Rate)
	}
	r.repark()
	r.signal()
	r.emit("changed", "")
	return nil
}

// prepare does all of a change that can fail.
func (r *relay) prepare(spec model.RelaySpec, p *plan, keep bool) error {
	if err := r.checkNewPlan(spec, p); err != nil {
		return err
	}
	if spec.Durable != "" && r.kept == nil {
		return errNoParking
	}
	if err := r.checkSelf(spec); err != nil {
		return err
	}
	old := r.holdPlan()
	defer old.release()
	if err := p.inherit(old, keep); err != nil {
		return err
	}
	return r.relisten(spec.From)
}

// checkSelf refuses a TO that is FROM, by the address that it was bound to.
func (r *relay) checkSelf(spec model.RelaySpec) error {
	for _, at := range r.front.local() {
		from, err := families.ParseEndpoint(at)
		if err != nil {
			continue
		}
		for _, to := range spec.To {
			if r.eng.sameAddress(from, to) {
				return selfReason(spec.From, to)
			}
		}
	}
	return nil
}

// swap puts a plan in the place of the one before, which the caller releases.
func (r *relay) swap(spec model.RelaySpec, p *plan) (*plan, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.draining {
		return nil, fmt.Errorf("relay %s is draining: %w", r.name, syscall.ESHUTDOWN)
	}
	old := r.current
	r.current, r.spec, r.failure = p, bare(spec), ""
	for _, b := range r.pace {
		b.setRate(spec.Rate)
	}
	return old, nil
}

func (r *relay) checkNewPlan(spec model.RelaySpec, p *plan) error {
	if p.single() {
		return &ReasonError{Reason: fmt.Sprintf("%s is one connection and the relay has sessions", spec.To[0]), Next: "remove it and add another"}
	}
	if err := checkFrom(r.fromBy(p), spec); err != nil {
		return err
	}
	if _, udp := r.front.(*udpFront); udp && !udpOnly(p) {
		return &ReasonError{Reason: fmt.Sprintf("%s relays udp to udp, and %s is something else", r.name, spec.To[0]), Next: "remove it and add another"}
	}
	return r.checkPairs(p)
}

// inherit takes over what an older plan knows of the same backends, and with keep
// its directories.
func (p *plan) inherit(old *plan, keep bool) error {
	for _, b := range p.backends {
		for _, o := range old.backends {
			if b.text != o.text {
				continue
			}
			b.busy, b.first = o.busy, o.seen()
			if keep && b.dir == nil && o.dir != nil {
				if err := withFD(o.dir, func(fd int) error { return b.keep(fd, o.name) }); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// relisten applies those of FROM's options that a listening socket can change.
func (r *relay) relisten(from families.Endpoint) error {
	a, ok := r.front.(*acceptor)
	if !ok || r.copySpec().From.String() == from.String() {
		return nil
	}
	own, err := readOptions(from)
	if err != nil {
		return err
	}
	if a.path != "" {
		if err := own.apply(a.path); err != nil {
			return err
		}
	}
	return a.relisten(own.backlog)
}

// copySpec is what the relay runs by, the caller's to change.
func (r *relay) copySpec() model.RelaySpec {
	r.mu.Lock()
	defer r.mu.Unlock()
	spec := bare(r.spec)
	spec.Name = r.name
	return spec
}

func (r *relay) session(id model.ID) conversation {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.sessions[id]
}
