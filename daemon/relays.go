package daemon

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/sockd/sockd/daemon/config"
	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/model"
)

const (
	// forever lets a relay's sessions run to their end.
	forever time.Duration = -1

	stateDraining = "draining"
	stateFailed   = "failed"
)

// relay finds one relay that c may use, also one that could not be started.
func (d *Daemon) relay(c model.Caller, id model.ID) (model.Relay, error) {
	for _, r := range append(d.relays.Relays(), d.config.failed()...) {
		if r.ID == id {
			return r, d.policy.Object(c, r.Owner, "relay "+r.Name)
		}
	}
	return model.Relay{}, families.ErrNotFound
}

// relayRef is relay by ID or NAME.
func (d *Daemon) relayRef(c model.Caller, op, ref string) (model.Relay, error) {
	id, err := d.find(ref)
	if err == nil {
		var r model.Relay
		if r, err = d.relay(c, id); err == nil {
			return r, nil
		}
	}
	return model.Relay{}, fmt.Errorf("%s %q: %w", op, ref, err)
}

// RelayAdd starts a relay, or with replace makes the relay of that name exactly
// this. On success the daemon owns spec's descriptors. A unix path without one
// wraps families.ErrBorrow.
func (d *Daemon) RelayAdd(ctx context.Context, c model.Caller, spec model.RelaySpec, replace bool) (model.Relay, error) {
	ctx, end, err := d.begin(ctx)
	if err != nil {
		return model.Relay{}, err
	}
	defer end()
	spec.Owner, spec.Groups, spec.Source, spec.Lent = c.Owner(), c.Groups, "", true
	release, err := d.naming.claim(model.KindRelay, spec.Name)
	if err != nil {
		return model.Relay{}, fmt.Errorf("relay add %q: %w", spec.Name, err)
	}
	defer release()
	if err := d.mayRelay(c, spec, replace); err != nil {
		return model.Relay{}, err
	}
	start := d.relays.Add
	if replace {
		start = d.relays.Replace
	}
	return d.startRelay(ctx, spec, replace, start)
}

// startRelay starts a relay and keeps it when it is permanent. The engine gets
// duplicates of what the caller passed: keeping can fail when the engine has taken
// its descriptors already, and then the caller's must still be the caller's.
func (d *Daemon) startRelay(ctx context.Context, spec model.RelaySpec, replace bool, start func(context.Context, model.RelaySpec) (model.Relay, error)) (model.Relay, error) {
	own, err := duplicateSpec(spec)
	if err != nil {
		return model.Relay{}, fmt.Errorf("relay from %s: %w", spec.From, err)
	}
	r, err := start(ctx, own)
	d.lent.settle(append([]families.Endpoint{spec.From}, spec.To...)...)
	if err != nil {
		closeDescriptors(own)
		return model.Relay{}, err
	}
	if err := d.keep(spec.Permanent, r); err != nil {
		if !replace {
			err = errors.Join(err, d.relays.Remove(r.ID, 0))
		}
		return model.Relay{}, err
	}
	closeDescriptors(spec)
	return r, nil
}

// mayRelay checks what only the daemon knows of a relay that a caller asks for.
func (d *Daemon) mayRelay(c model.Caller, spec model.RelaySpec, replace bool) error {
	if err := d.relays.Check(spec); err != nil {
		return err
	}
	if _, taken := d.recorders.lookup(spec.Name); taken && spec.Name != "" {
		return fmt.Errorf("relay add %q: a recorder has this name: %w", spec.Name, syscall.EEXIST)
	}
	id, taken := d.relays.Lookup(spec.Name)
	if failed, ok := d.config.lookup(spec.Name); ok && !taken {
		// A relay of the configuration that could not be started has its name.
		if id, taken = failed, true; !replace {
			return fmt.Errorf("relay add %q: a relay of the configuration has this name: %w", spec.Name, syscall.EEXIST)
		}
	}
	if replace && taken {
		if _, err := d.relay(c, id); err != nil {
			return err
		}
	}
	if err := pathsAreOpen(spec.To, spec.ToDirs); err != nil {
		return err
	}
	if spec.Permanent {
		return d.mayKeep(c, spec)
	}
	return nil
}

// mayKeep: a kept relay is started anew by the daemon, which then opens its paths
// itself.
func (d *Daemon) mayKeep(c model.Caller, spec model.RelaySpec) error {
	if d.opts.StateDir == "" {
		return fmt.Errorf("keep a relay: there is no state directory (sockd --state DIR): %w", families.ErrNotSupported)
	}
	for _, e := range append([]families.Endpoint{spec.From}, spec.To...) {
		switch {
		case e.Network == families.NetworkID:
			return fmt.Errorf("keep a relay of %s: the socket ends with the daemon: %w", e, families.ErrNotSupported)
		case e.NamesPath() && !d.policy.Trusted(c.UID):
			return d.policy.Object(c, self(), "the daemon's right to open "+families.Escape(e.Address))
		}
	}
	return nil
}

// pathsAreOpen checks that each unix path comes with its directory.
func pathsAreOpen(tos []families.Endpoint, dirs []model.DirFD) error {
	for i, to := range tos {
		if to.NamesPath() && (i >= len(dirs) || dirs[i].FD < 0) {
			return fmt.Errorf("relay to %s: %w", to, families.ErrBorrow)
		}
	}
	return nil
}

// keep writes a permanent relay to the state directory, and forgets one that is
// permanent no more.
func (d *Daemon) keep(permanent bool, r model.Relay) error {
	d.config.turn.Lock()
	defer d.config.turn.Unlock()
	if e, ok := d.config.get(r.Name); ok && e.cause != "" {
		d.emit("removed", model.KindRelay, e.id, "a caller has replaced it", e.view())
	}
	kept := d.config.isKept(r.Name)
	switch {
	case !permanent && !kept:
		d.config.moved(r.Name, r.ID)
		return nil
	case !permanent:
		d.config.drop(r.Name)
		return config.Remove(d.opts.StateDir, r.Name)
	}
	spec, ok := d.relays.Spec(r.ID)
	if !ok {
		return nil // it has ended already
	}
	spec.Name = r.Name
	file, err := config.Save(d.opts.StateDir, spec)
	if err != nil {
		return err
	}
	d.config.set(r.Name, entry{relay: config.Relay{Spec: spec, Origin: config.Origin{File: file}}, id: r.ID, kept: true})
	return nil
}

// RelaySet changes a running relay, and its file when it is permanent.
func (d *Daemon) RelaySet(ctx context.Context, c model.Caller, ref string, change model.RelayChange) (model.Relay, error) {
	ctx, end, err := d.begin(ctx)
	if err != nil {
		return model.Relay{}, err
	}
	defer end()
	r, err := d.relayRef(c, "relay set", ref)
	if err != nil {
		return model.Relay{}, err
	}
	if r.State == stateFailed && d.config.isFailed(r.ID) {
		return model.Relay{}, fmt.Errorf("relay set %q: it does not run: mend %s and reload: %w", ref, r.Source, families.ErrNotSupported)
	}
	if change.To != nil {
		if err := pathsAreOpen(*change.To, change.ToDirs); err != nil {
			return model.Relay{}, err
		}
	}
	own := change
	if own.ToDirs, err = duplicateDirs(change.ToDirs); err != nil {
		return model.Relay{}, fmt.Errorf("relay set %q: %w", ref, err)
	}
	r, err = d.relays.Set(ctx, r.ID, own)
	if change.To != nil {
		d.lent.settle(*change.To...)
	}
	if err != nil {
		closeDirs(own.ToDirs)
		return model.Relay{}, err
	}
	if err := d.keep(d.config.isKept(r.Name), r); err != nil {
		return model.Relay{}, err // the change stands until the daemon ends
	}
	closeDirs(change.ToDirs)
	return r, nil
}

// RelayRemove closes a relay's listener at once. Its sessions run on; what is left
// after drain is reset: at once when it is 0, never when it is negative.
func (d *Daemon) RelayRemove(ctx context.Context, c model.Caller, ref string, drain time.Duration) (model.Relay, error) {
	_, end, err := d.begin(ctx)
	if err != nil {
		return model.Relay{}, err
	}
	defer end()
	r, err := d.relayRef(c, "relay rm", ref)
	if err != nil {
		return model.Relay{}, err
	}
	if err := d.removeRelay(r, drain); err != nil {
		return model.Relay{}, err
	}
	if now, err := d.relay(c, r.ID); err == nil {
		return now, nil // it drains
	}
	r.State = stateDraining
	return r, nil
}

// removeRelay removes a relay, its file when it is permanent, and what is listed
// of one that could not be started.
func (d *Daemon) removeRelay(r model.Relay, drain time.Duration) error {
	d.config.turn.Lock()
	defer d.config.turn.Unlock()
	failed := d.config.isFailed(r.ID)
	if !failed {
		if err := d.relays.Remove(r.ID, drain); err != nil {
			return err
		}
	}
	if !d.config.has(r.Name, r.ID) {
		return nil
	}
	kept := d.config.isKept(r.Name)
	d.config.drop(r.Name)
	if failed {
		d.emit("removed", model.KindRelay, r.ID, "", r)
	}
	if kept {
		return config.Remove(d.opts.StateDir, r.Name)
	}
	return nil
}

// RelaySpec is the specification that a relay runs by.
func (d *Daemon) RelaySpec(ctx context.Context, c model.Caller, ref string) (model.RelaySpec, error) {
	_, end, err := d.begin(ctx)
	if err != nil {
		return model.RelaySpec{}, err
	}
	defer end()
	r, err := d.relayRef(c, "relay show", ref)
	if err != nil {
		return model.RelaySpec{}, err
	}
	if spec, ok := d.relays.Spec(r.ID); ok {
		return spec, nil
	}
	if spec, ok := d.config.spec(r.Name); ok {
		return spec, nil
	}
	return model.RelaySpec{}, fmt.Errorf("relay show %q: %w", ref, families.ErrNotFound)
}
