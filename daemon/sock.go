package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/model"
	packetowner "github.com/sockd/sockd/families/packet/owner"
)

// A sock is one socket in the table.
type sock struct {
	id       model.ID
	owner    model.Owner
	parent   model.ID // the listening socket that accepted it, or 0
	family   families.Family
	s        families.Socket
	messages bool        // it keeps message borders
	inode    uint32      // of its file; 0: not known
	durable  atomic.Bool // it is parked

	rxBytes, txBytes, rxMessages, txMessages atomic.Int64
	drops                                    [dropCauses]atomic.Int64

	// turn is taken by the one caller who sends on a stream: what two send at
	// once stays in one piece each.
	turn chan struct{}

	// taking is held during one attempt to receive, which does not block, so that
	// pieces are numbered in the order in which the kernel gave them.
	taking sync.Mutex
	taken  uint64 // guarded by taking

	mu      sync.Mutex // guards what follows
	gone    error      // why it left the table; nil while it is there
	holder  *attachment
	back    pushback
	changes uint64 // moves with every wake
	waiting map[*waiter]struct{}

	// calls are the verbs under way. Add happens under mu and while gone is nil.
	calls sync.WaitGroup
}

// The causes of drops that the daemon itself counts. The kernel's own is "kernel".
const (
	dropRights   = iota // descriptors that came with a message and were closed
	dropCut             // messages that did not fit what the caller wanted
	dropReturned        // pieces that came back when too many had
	dropUnsent          // pieces of an attached caller who left, that the socket had no room for
	dropCauses
)

var dropNames = [dropCauses]string{dropRights: "rights", dropCut: "cut", dropReturned: "returned", dropUnsent: "unsent"}

// errWoken ends a wait that is to begin anew.
var errWoken = errors.New("woken")

func newSock(id model.ID, owner model.Owner, parent model.ID, f families.Family, s families.Socket) *sock {
	k := &sock{id: id, owner: owner, parent: parent, family: f, s: s, messages: s.Info().Type.Messages()}
	k.inode, _ = packetowner.Inode(s) // what has none is nobody's whose packets are asked for
	if !k.messages {
		k.turn = make(chan struct{}, 1)
	}
	return k
}

// What a waiter waits for, which says what wakes it.
type waitFor uint8

const (
	forEnd  waitFor = 1 << iota // that the socket goes
	forTurn                     // that somebody attaches, too
	forData                     // that a piece comes back, too
)

type waiter struct {
	cancel context.CancelCauseFunc
	what   waitFor
}

// enter counts a verb on k. leave must be called. It fails when k has gone.
func (k *sock) enter() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.gone != nil {
		return k.gone
	}
	k.calls.Add(1)
	return nil
}

func (k *sock) leave() { k.calls.Done() }

// stateLocked says whether by (nil: nobody who is attached) may use k.
func (k *sock) stateLocked(by *attachment) error {
	switch {
	case k.gone != nil:
		return k.gone
	case k.holder != by:
		return fmt.Errorf("socket %d is attached to another caller: %w", k.id, families.ErrBusy)
	}
	return nil
}

// state is stateLocked, and how often waiters were woken until now.
func (k *sock) state(by *attachment) (changes uint64, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.changes, k.stateLocked(by)
}

// await waits until k may be ready. nil also means that something else changed
// since changes was read: try again.
func (k *sock) await(ctx context.Context, changes uint64, what waitFor, r families.Ready) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	w := &waiter{cancel: cancel, what: what}
	if !k.enlist(w, changes) {
		return nil
	}
	defer k.delist(w)
	err := k.s.Wait(ctx, r)
	if err != nil && context.Cause(ctx) == errWoken {
		return nil
	}
	return err
}

// until runs f with a context that ends when k goes.
func (k *sock) until(ctx context.Context, f func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	w := &waiter{cancel: cancel, what: forEnd}
	k.mu.Lock()
	if k.gone != nil {
		defer k.mu.Unlock()
		return k.gone
	}
	k.enlistLocked(w)
	k.mu.Unlock()
	defer k.delist(w)
	err := f(ctx)
	if err != nil && context.Cause(ctx) == errWoken {
		_, err = k.state(nil)
	}
	return err
}

// enlist lets w be woken; false when something changed already.
func (k *sock) enlist(w *waiter, changes uint64) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.changes != changes {
		return false
	}
	k.enlistLocked(w)
	return true
}

func (k *sock) enlistLocked(w *waiter) {
	if k.waiting == nil {
		k.waiting = map[*waiter]struct{}{}
	}
	k.waiting[w] = struct{}{}
}

func (k *sock) delist(w *waiter) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.waiting, w)
	if len(k.waiting) == 0 {
		k.waiting = nil // most sockets have no waiters most of the time
	}
}

func (k *sock) wakeLocked(what waitFor) {
	k.changes++
	for w := range k.waiting {
		if w.what&what != 0 {
			w.cancel(errWoken)
		}
	}
}

// evict ends every verb on k with why, and waits for them. The socket stays
// open. Only the first of several gets true.
func (k *sock) evict(why error) bool {
	k.mu.Lock()
	if k.gone != nil {
		k.mu.Unlock()
		return false
	}
	k.gone = why
	k.wakeLocked(forEnd | forTurn | forData)
	k.mu.Unlock()
	return true
}

// close evicts everybody, closes the socket, and returns when nobody is inside.
func (k *sock) close(why error) error {
	if !k.evict(why) {
		k.calls.Wait()
		return nil
	}
	err := k.s.Close()
	k.calls.Wait()
	return err
}

func errClosed(id model.ID) error {
	return fmt.Errorf("socket %d was closed: %w", id, net.ErrClosed)
}

// view is the socket as its users see it.
func (k *sock) view() model.Socket { return k.viewOf(k.s.Info()) }

func (k *sock) viewOf(i families.Info) model.Socket {
	v := model.Socket{
		ID: k.id, Family: i.Family, Type: i.Type.String(), Protocol: i.Proto, State: string(i.State),
		Local: addrText(i.Local), Peer: addrText(i.Peer), Owner: k.owner, Parent: k.parent, Durable: k.durable.Load(),
		RxBytes: k.rxBytes.Load(), TxBytes: k.txBytes.Load(),
		RxMessages: k.rxMessages.Load(), TxMessages: k.txMessages.Load(),
		Drops: model.Drops{},
	}
	for cause := range k.drops {
		v.Drops.Add(dropNames[cause], k.drops[cause].Load())
	}
	if d, err := families.As[families.Dropper](k.s); err == nil {
		v.Drops.Add("kernel", int64(d.Drops()))
	}
	return v
}

func addrText(a families.Addr) string {
	if a == nil {
		return ""
	}
	return a.String()
}
