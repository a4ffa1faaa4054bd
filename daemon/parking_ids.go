package daemon

import (
	"encoding/binary"
	"fmt"
	"math"
	"sync"
	"sync/atomic"

	"github.com/sockd/sockd/daemon/park"
	"github.com/sockd/sockd/families/model"
)

// IDs are not given twice, also by the next process: who knows a socket by its number
// must never meet another one there. So a bound is parked that none of the IDs that were
// given is above, a block at a time, and the next process goes on from it.

const (
	// parkedNumbers is the kind of the one record of the bound, whose ID no object has.
	parkedNumbers   park.Kind = 4
	parkedNumbersID           = math.MaxUint64
	// idBlock is how many IDs are given between two Replaces.
	idBlock = 4096
)

// numbers is the bound.
type numbers struct {
	bound atomic.Int64

	mu sync.Mutex // held while the bound is raised
}

// NewID gives the next ID of the one ID space.
func (d *Daemon) NewID() model.ID {
	id := d.nextID.Add(1)
	if d.opts.Parking != nil && id > d.numbers.bound.Load() {
		d.raiseNumbers(id)
	}
	return model.ID(id)
}

// raiseNumbers parks a bound that id is not above.
func (d *Daemon) raiseNumbers(id int64) {
	n := &d.numbers
	n.mu.Lock()
	defer n.mu.Unlock()
	if id <= n.bound.Load() {
		return
	}
	bound := id + idBlock
	r := park.Record{Kind: parkedNumbers, ID: parkedNumbersID, Data: binary.LittleEndian.AppendUint64(nil, uint64(bound))}
	put := d.opts.Parking.Lots.Park
	if d.opts.Parking.Lots.Has(r.ID) {
		put = d.opts.Parking.Lots.Replace
	}
	if err := put(r); err != nil {
		d.log.Warn("the next sockd may give IDs again that this one has given", "from", id, "err", err)
	}
	n.bound.Store(bound)
}

// restoreNumbers goes on from the bound of the process before.
func (d *Daemon) restoreNumbers(p park.Parked) error {
	if p.ID != parkedNumbersID || len(p.Data) != 8 || len(p.FDs) != 0 {
		return fmt.Errorf("a bound of IDs: %w", park.ErrForeign)
	}
	bound := int64(binary.LittleEndian.Uint64(p.Data))
	if bound < 0 {
		return fmt.Errorf("a bound of IDs: %d: %w", bound, park.ErrForeign)
	}
	d.KeepID(model.ID(bound))
	d.numbers.bound.Store(bound)
	return nil
}
