package daemon

import (
	"context"
	"fmt"
	"slices"

	"github.com/sockd/sockd/families/model"
)

// RelayAudit checks the books of one relay by its ID or NAME, or for "" of every relay
// that c may see: see relay.Engine.Audit. The lines are by relay and session.
func (d *Daemon) RelayAudit(ctx context.Context, c model.Caller, ref string) ([]model.Audit, error) {
	_, end, err := d.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	seen := map[model.ID]bool{}
	for _, r := range d.visibleRelays(c) {
		seen[r.ID] = true
	}
	if ref == "" {
		return slices.DeleteFunc(d.relays.Audit(0), func(l model.Audit) bool { return !seen[l.Relay] }), nil
	}
	id, err := d.find(ref)
	switch {
	case err != nil:
		return nil, fmt.Errorf("audit: %w", err)
	case !seen[id]:
		return nil, fmt.Errorf("audit: no relay: %w", notFound(ref))
	}
	return d.relays.Audit(id), nil
}
