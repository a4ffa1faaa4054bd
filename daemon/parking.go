package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"

	"github.com/sockd/sockd/daemon/config"
	"github.com/sockd/sockd/daemon/park"
	"github.com/sockd/sockd/daemon/relay"
	"github.com/sockd/sockd/families/model"
)

// Parking is what of a daemon outlives its process.
type Parking struct {
	// Lots holds it. The daemon closes it when it stops, which ends nothing that is
	// parked.
	Lots *park.Parking
	// Back is what the process before had parked. New owns the descriptors.
	Back []park.Parked
	// Refused is what came back and is no record of this version's.
	Refused []park.Event
}

// parkingLot is a Parking as the relays see it.
type parkingLot struct {
	lots *park.Parking
	log  *slog.Logger

	mu     sync.Mutex          // guards relays
	relays map[uint64]struct{} // IDs of those that are parked
}

var _ relay.Parking = (*parkingLot)(nil)

// lotFor is nil where there is no parking: an interface without a value.
func lotFor(p *Parking, log *slog.Logger) relay.Parking {
	if p == nil {
		return nil
	}
	l := &parkingLot{lots: p.Lots, log: log, relays: map[uint64]struct{}{}}
	for _, b := range p.Back {
		l.note(uint8(b.Kind), b.ID)
	}
	return l
}

func (l *parkingLot) note(kind uint8, id uint64) {
	if kind != relay.ParkedRelay {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.relays[id] = struct{}{}
}

// forget tells whether the ID was a relay's.
func (l *parkingLot) forget(id uint64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, ok := l.relays[id]
	delete(l.relays, id)
	return ok
}

func (l *parkingLot) Park(rec relay.ParkRecord, fds []int) error {
	l.note(rec.Kind, rec.ID)
	r := park.Record{Kind: park.Kind(rec.Kind), ID: rec.ID, UID: rec.UID, Data: rec.Data}
	if l.lots.Has(rec.ID) {
		return l.lots.Replace(r, fds...)
	}
	return l.lots.Park(r, fds...)
}

// Leave lets a relay's descriptors go at once: nobody else gets its address as long as
// one is parked. A session's take their time: its sockets are shut down.
func (l *parkingLot) Leave(id uint64) {
	leave := l.lots.Leave
	if l.forget(id) {
		leave = l.lots.LeaveNow
	}
	if err := leave(id); err != nil && !errors.Is(err, park.ErrNotParked) {
		l.log.Warn("what has ended stays parked", "id", id, "err", err)
	}
}

// restore takes up what the process before had parked. What cannot be taken up is told
// and let go; the rest runs.
func (d *Daemon) restore(ctx context.Context) {
	p := d.opts.Parking
	if p == nil {
		return
	}
	for _, e := range p.Refused {
		d.refuse(e.Lot, e.ID, e.Err)
	}
	var relays []relay.Parked
	for _, b := range p.Back {
		switch kind := uint8(b.Kind); kind {
		case relay.ParkedRelay, relay.ParkedSession:
			relays = append(relays, relay.Parked{
				ParkRecord: relay.ParkRecord{Kind: kind, ID: b.ID, UID: b.UID, Data: b.Data}, FDs: b.FDs,
			})
		case uint8(parkedSocket):
			if err := d.restoreSock(b); err != nil {
				d.refuseParked(b, err)
			}
		case uint8(parkedNumbers):
			if err := d.restoreNumbers(b); err != nil {
				d.refuseParked(b, err)
			}
		default:
			d.refuseParked(b, fmt.Errorf("kind %d: %w", kind, park.ErrForeign))
		}
	}
	if err := d.relays.Restore(ctx, relays); err != nil {
		d.refused = append(d.refused, strings.Split(err.Error(), "\n")...) // each has its own record in the log
		d.refused = d.refused[:min(len(d.refused), maxRefused)]
	}
	d.config.restored(d.relays)
	d.log.Info("what was parked goes on", "relays", len(d.relays.Relays()), "sessions", len(d.relays.Sessions()), "sockets", d.table.len())
}

// refuseParked lets go of what this version does not know.
func (d *Daemon) refuseParked(p park.Parked, err error) {
	closeFDs(p.FDs)
	d.refuse("", p.ID, errors.Join(err, d.opts.Parking.Lots.Leave(p.ID)))
}

// refuse tells of a record that was not taken up: as long as this process lives it is
// a problem that Status shows.
func (d *Daemon) refuse(lot string, id uint64, err error) {
	d.log.Error("a parked record was refused", "lot", lot, "id", id, "err", err)
	text := fmt.Sprintf("parked record %d of %s was refused: %v", id, cmp.Or(lot, "the lots"), err)
	if len(d.refused) < maxRefused {
		d.refused = append(d.refused, text)
	}
	d.emit("failed", "parked", model.ID(id), text, struct{}{})
}

// maxRefused is how many refused records Status shows: they have one reason, mostly.
const maxRefused = 16

// parkingUse is how full the parking lots are.
func (d *Daemon) parkingUse() *model.Parking {
	if d.opts.Parking == nil {
		return nil
	}
	u := d.opts.Parking.Lots.Use()
	return &model.Parking{
		Parked: int64(u.Parked), Bound: int64(u.Bound), Descriptors: int64(u.Descriptors), DescriptorBound: int64(u.DescriptorBound),
		Full: int64(u.Full), Sysctl: u.Sysctl, Limit: u.Limit,
	}
}

// restored notes which relays that were taken up are those of files, so that the next
// Reload finds them where it left them. Whose file is gone, it retires.
func (c *configured) restored(e *relay.Engine) {
	for _, r := range e.Relays() {
		spec, ok := e.Spec(r.ID)
		if !ok || r.State == stateDraining || spec.Source == "" && !spec.Permanent {
			continue
		}
		c.set(r.Name, entry{relay: config.Relay{Spec: spec, Origin: config.Origin{File: spec.Source}}, id: r.ID, kept: spec.Permanent})
	}
}

// endRelays ends all relays, but for what goes on in the next process.
func (d *Daemon) endRelays() error {
	if d.opts.Parking == nil {
		return d.relays.Close()
	}
	return errors.Join(d.relays.Abandon(), d.opts.Parking.Lots.Close())
}
