package daemon

import (
	"context"
	"errors"
	"fmt"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/model"
)

// Close closes an object of any kind and returns the IDs that were closed. Who
// waits on a socket gets net.ErrClosed. accepted takes with a listening socket
// what it accepted, and with a relay its sessions, which otherwise live on.
func (d *Daemon) Close(ctx context.Context, c model.Caller, ref string, accepted bool) ([]model.ID, error) {
	_, end, err := d.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	id, err := d.find(ref)
	if err != nil {
		return nil, fmt.Errorf("close: %w", err)
	}
	ids, err := d.closeID(c, id, accepted)
	if errors.Is(err, families.ErrNotFound) {
		return nil, fmt.Errorf("close: %w", notFound(ref))
	}
	return ids, err
}

// closeID tries each kind in turn.
func (d *Daemon) closeID(c model.Caller, id model.ID, accepted bool) ([]model.ID, error) {
	for _, try := range []func() ([]model.ID, error){
		func() ([]model.ID, error) { return d.closeSocket(c, id, accepted) },
		func() ([]model.ID, error) { return d.closeCapture(c, id) },
		func() ([]model.ID, error) { return d.closeRecorderID(c, id) },
		func() ([]model.ID, error) { return d.closeRelay(c, id, accepted) },
		func() ([]model.ID, error) { return d.closeSession(c, id) },
	} {
		if ids, err := try(); !errors.Is(err, families.ErrNotFound) {
			return ids, err
		}
	}
	return nil, families.ErrNotFound
}

func (d *Daemon) closeSocket(c model.Caller, id model.ID, accepted bool) ([]model.ID, error) {
	k, err := d.sock(c, id)
	if err != nil {
		return nil, err
	}
	if !d.closeSock(k) {
		return nil, families.ErrNotFound // somebody else was first
	}
	ids := []model.ID{id}
	if !accepted {
		return ids, nil
	}
	// Nobody is inside Accept any more: these are all.
	for _, child := range d.table.all(func(k *sock) bool { return k.parent == id }) {
		if d.closeSock(child) {
			ids = append(ids, child.id)
		}
	}
	return ids, nil
}

// closeSock closes k and tells of it; false when it was closed already.
func (d *Daemon) closeSock(k *sock) bool {
	if !d.table.remove(k) {
		k.calls.Wait()
		return false
	}
	v := k.view()
	d.unpark(k)
	if err := k.close(errClosed(k.id)); err != nil {
		d.log.Warn("closing a socket", "id", k.id, "err", err) // it is closed all the same: close(2)
	}
	v.State = string(families.Closed)
	d.emitSocket("closed", v)
	return true
}

func (d *Daemon) closeRelay(c model.Caller, id model.ID, sessions bool) ([]model.ID, error) {
	drain := forever
	if sessions {
		drain = 0
	}
	r, err := d.relay(c, id)
	if err != nil {
		return nil, err
	}
	return []model.ID{id}, d.removeRelay(r, drain)
}

func (d *Daemon) closeSession(c model.Caller, id model.ID) ([]model.ID, error) {
	for _, s := range d.visibleSessions(c) {
		if s.ID == id {
			return []model.ID{id}, d.relays.CloseSession(id)
		}
	}
	return nil, families.ErrNotFound
}

// CloseAll closes what c owns, but for the relays and recorders of the configuration,
// which are the configuration's. All are tried.
func (d *Daemon) CloseAll(ctx context.Context, c model.Caller) ([]model.ID, error) {
	_, end, err := d.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	mine := func(o model.Owner) bool { return o.UID == c.UID }
	var ids []model.ID
	for _, r := range d.relays.Relays() {
		if mine(r.Owner) && !d.config.has(r.Name, r.ID) && r.State != stateDraining {
			ids = append(ids, r.ID)
		}
	}
	for _, v := range d.visibleCaptures(c) {
		if mine(v.Owner) {
			ids = append(ids, v.ID)
		}
	}
	ids = append(ids, d.recordersOf(mine)...)
	for _, k := range d.table.all(func(k *sock) bool { return mine(k.owner) }) {
		ids = append(ids, k.id)
	}
	closed := []model.ID{}
	var errs []error
	for _, id := range ids {
		done, err := d.closeID(c, id, true)
		if err != nil && !errors.Is(err, families.ErrNotFound) {
			errs = append(errs, err)
		}
		closed = append(closed, done...)
	}
	return closed, errors.Join(errs...)
}
