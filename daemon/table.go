package daemon

import (
	"fmt"
	"slices"
	"sync"
	"syscall"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/model"
)

// table has every socket that verbs opened, accepted or adopted.
type table struct {
	mu     sync.Mutex // guards what follows
	socks  map[model.ID]*sock
	inodes map[uint32]*sock // the same
	max    int              // 0: no bound of ours
	closed bool
}

func (t *table) init() { t.clearLocked() }

func (t *table) clearLocked() { t.socks, t.inodes = map[model.ID]*sock{}, map[uint32]*sock{} }

// setMax bounds the table; sockets that are in it stay.
func (t *table) setMax(n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.max = n
}

// put puts k in; false when the daemon stops. It does not ask for room, which
// was there a moment ago: of several who come at once for the last place all get
// one.
func (t *table) put(k *sock) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.closed {
		t.socks[k.id], t.inodes[k.inode] = k, k
	}
	return !t.closed
}

// holding finds the socket whose file has an inode.
func (t *table) holding(inode uint32) (*sock, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	k, ok := t.inodes[inode]
	return k, ok && inode != 0
}

// room tells whether one more socket may be opened.
func (t *table) room() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.closed:
		return errStopping
	case t.max > 0 && len(t.socks) >= t.max:
		return fmt.Errorf("%d sockets are open, as many as MaxSockets= allows: %w", len(t.socks), syscall.EMFILE)
	}
	return nil
}

// get finds a socket. The error wraps families.ErrNotFound.
func (t *table) get(id model.ID) (*sock, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if k, ok := t.socks[id]; ok {
		return k, nil
	}
	return nil, fmt.Errorf("socket %d: %w", id, families.ErrNotFound)
}

// remove takes k out; false when it was out already.
func (t *table) remove(k *sock) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.socks[k.id] != k {
		return false
	}
	delete(t.socks, k.id)
	if t.inodes[k.inode] == k {
		delete(t.inodes, k.inode)
	}
	if len(t.socks) == 0 {
		t.clearLocked() // a map never gives its memory back
	}
	return true
}

// all are the sockets that keep says yes to, by ID.
func (t *table) all(keep func(*sock) bool) []*sock {
	t.mu.Lock()
	out := make([]*sock, 0, len(t.socks))
	for _, k := range t.socks {
		if keep(k) {
			out = append(out, k)
		}
	}
	t.mu.Unlock()
	slices.SortFunc(out, func(a, b *sock) int { return int(a.id - b.id) })
	return out
}

// empty takes everything out and lets nothing in any more.
func (t *table) empty() []*sock {
	t.mu.Lock()
	t.closed = true
	socks := t.socks
	t.clearLocked()
	t.mu.Unlock()
	out := make([]*sock, 0, len(socks))
	for _, k := range socks {
		out = append(out, k)
	}
	return out
}

func (t *table) len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.socks)
}
