package daemon

import (
	"errors"
	"fmt"
	"sync"
	"syscall"

	"github.com/sockd/sockd/daemon/relay"
	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/model"
)

var (
	_ relay.Host     = (*Daemon)(nil)
	_ relay.Untaker  = (*Daemon)(nil)
	_ relay.IDKeeper = (*Daemon)(nil)
)

// Take hands a socket over to a relay for good. Who waits on it gets
// families.ErrNotFound: it has left the table. Pieces that came back go first.
func (d *Daemon) Take(owner model.Owner, id model.ID) (families.Socket, error) {
	k, err := d.sock(model.Caller{UID: owner.UID, GID: owner.GID}, id)
	if err != nil {
		return nil, err
	}
	if _, err := k.state(nil); err != nil {
		return nil, err
	}
	if !d.table.remove(k) || !k.evict(fmt.Errorf("socket %d is a relay's now: %w", id, families.ErrNotFound)) {
		return nil, fmt.Errorf("socket %d: %w", id, families.ErrNotFound)
	}
	k.calls.Wait()
	d.unpark(k)
	d.emit("removed", model.KindSocket, id, "a relay took it", k.view())
	d.lent.add(k)
	k.mu.Lock()
	defer k.mu.Unlock()
	return withPushback(k.s, k.back, k.messages), nil
}

// Untake takes a socket back whose relay did not come to be. It has its old ID.
func (d *Daemon) Untake(id model.ID, s families.Socket) {
	k := d.lent.remove(id)
	if k == nil {
		d.log.Error("a socket came back that nobody took", "id", id)
		_ = s.Close() // without an owner nobody could use it
		return
	}
	k.mu.Lock()
	k.gone, k.back = nil, pushbackOf(s)
	k.mu.Unlock()
	if k.durable.Load() {
		if err := d.parkSock(k); err != nil {
			k.durable.Store(false)
			d.log.Warn("a socket will end with sockd", "id", id, "err", err)
		}
	}
	v := d.enterTable(k, "opened")
	d.log.Debug("a socket came back", "id", v.ID)
}

// KeepID takes note of an ID that is in use from before a restart.
func (d *Daemon) KeepID(id model.ID) {
	for {
		last := d.nextID.Load()
		if int64(id) <= int64(last) || d.nextID.CompareAndSwap(last, int64(id)) {
			return
		}
	}
}

// lent are the sockets that a call under way gave to a relay, which may give them
// back until that call ends.
type lent struct {
	mu    sync.Mutex // guards socks
	socks map[model.ID]*sock
}

func (l *lent) add(k *sock) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.socks == nil {
		l.socks = map[model.ID]*sock{}
	}
	l.socks[k.id] = k
}

func (l *lent) remove(id model.ID) *sock {
	l.mu.Lock()
	defer l.mu.Unlock()
	k := l.socks[id]
	delete(l.socks, id)
	return k
}

// settle forgets the sockets of a relay that stands, or never will.
func (l *lent) settle(endpoints ...families.Endpoint) {
	for _, e := range endpoints {
		if id, ok := model.ParseID(e.Address); ok && e.Network == families.NetworkID {
			l.remove(id)
		}
	}
}

// handed are the descriptors that systemd handed over, by name.
type handed struct {
	set families.Set

	mu    sync.Mutex // guards what follows
	fds   map[string][]int
	socks map[string][]families.Socket // given back
	ended bool
}

func (h *handed) init(set families.Set, files []File) {
	h.set, h.fds, h.socks = set, map[string][]int{}, map[string][]families.Socket{}
	for _, f := range files {
		h.fds[f.Name] = append(h.fds[f.Name], f.FD)
	}
}

// Named hands over a descriptor of systemd's. One name may stand for several,
// which are handed over one by one.
func (d *Daemon) Named(name string) (families.Socket, error) {
	s, fd, err := d.handed.take(name)
	if err != nil || s != nil {
		return s, err
	}
	s, err = adoptAny(d.opts.Families, fd)
	if err != nil {
		d.handed.giveFD(name, fd)
		return nil, fmt.Errorf("take fd:%s: %w", name, err)
	}
	return s, nil
}

// take removes one socket or descriptor of the name.
func (h *handed) take(name string) (families.Socket, int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if l := h.socks[name]; len(l) > 0 {
		h.socks[name] = l[:len(l)-1]
		return l[len(l)-1], -1, nil
	}
	if l := h.fds[name]; len(l) > 0 {
		h.fds[name] = l[1:]
		return nil, l[0], nil
	}
	_, known := h.fds[name]
	if known {
		return nil, -1, fmt.Errorf("fd:%s has been taken: %w", name, families.ErrBusy)
	}
	return nil, -1, fmt.Errorf("systemd handed over nothing called %q: %w", name, families.ErrNotFound)
}

func (h *handed) giveFD(name string, fd int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.fds[name] = append([]int{fd}, h.fds[name]...)
}

// adoptAny takes a descriptor in as whatever it is.
func adoptAny(set families.Set, fd int) (families.Socket, error) {
	domain, _, err := kindOfFD(fd)
	if err != nil {
		return nil, err
	}
	a, err := set.Domain(domain)
	if err != nil {
		return nil, err
	}
	return a.Adopt(fd)
}

// GiveBack returns what Named gave, for a later relay.
func (d *Daemon) GiveBack(name string, s families.Socket) {
	h := &d.handed
	h.mu.Lock()
	ended := h.ended
	if !ended {
		h.socks[name] = append(h.socks[name], s)
	}
	h.mu.Unlock()
	if ended {
		_ = s.Close() // nobody will ask for it any more
	}
}

func (h *handed) close() error {
	h.mu.Lock()
	h.ended = true
	fds, socks := h.fds, h.socks
	h.fds, h.socks = nil, nil
	h.mu.Unlock()
	var errs []error
	for _, l := range socks {
		for _, s := range l {
			errs = append(errs, s.Close())
		}
	}
	for _, l := range fds {
		for _, fd := range l {
			errs = append(errs, syscall.Close(fd))
		}
	}
	return errors.Join(errs...)
}
