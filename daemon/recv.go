package daemon

import (
	"context"
	"errors"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/model"
)

// recvRoom is the room for one piece: the largest that a reply of the control
// protocol carries, and more than any datagram has.
const recvRoom = 512 << 10

// rooms lends the memory that an attempt to receive needs, so that a hundred
// callers who wait hold none.
var rooms = sync.Pool{New: func() any { b := make([]byte, recvRoom); return &b }}

// Recv takes one message, or one piece of a stream, of at most most bytes (0: 512
// KiB), and waits for it. The end of a stream is Message.EOF, a message that did
// not fit Message.Cut. undo gives the piece back; it is nil when none was taken.
func (d *Daemon) Recv(ctx context.Context, c model.Caller, id model.ID, most int) (m model.Message, undo func(), err error) {
	call, err := d.call(ctx, c, "recv", id)
	if err != nil {
		return model.Message{}, nil, err
	}
	defer call.end()
	if most <= 0 || most > recvRoom {
		most = recvRoom
	}
	p, err := call.k.recv(call.ctx, most, nil)
	switch {
	case errors.Is(err, io.EOF):
		return model.Message{EOF: true}, nil, nil
	case err != nil:
		return model.Message{}, nil, call.fail("", err)
	}
	k := call.k
	m = model.Message{Data: p.data, Full: p.full, From: addrText(k.s.NameAddr(p.peer))}
	if k.messages && len(m.Data) > most { // it came back from a caller who had more room
		m.Data = m.Data[:most]
		k.drops[dropCut].Add(1)
	}
	m.Cut = len(m.Data) < m.Full
	return m, sync.OnceFunc(func() { d.putBack(k, p) }), nil
}

// recv takes one piece and waits for it. The piece's data is its own.
func (k *sock) recv(ctx context.Context, most int, by *attachment) (piece, error) {
	for {
		changes, err := k.state(by)
		if err != nil {
			return piece{}, err
		}
		p, err := k.takeCopy(most, by)
		if !errors.Is(err, families.ErrAgain) {
			return p, err
		}
		if err := k.await(ctx, changes, forTurn|forData, families.Readable); err != nil {
			return piece{}, err
		}
	}
}

func (k *sock) takeCopy(most int, by *attachment) (piece, error) {
	room := rooms.Get().(*[]byte)
	defer rooms.Put(room)
	p, err := k.take((*room)[:most], by)
	if err == nil {
		p.data = slices.Clone(p.data)
		if p.data == nil {
			p.data = []byte{}
		}
	}
	return p, err
}

// take is one attempt to take the next piece: what came back goes first. The
// piece's data may be in room.
func (k *sock) take(room []byte, by *attachment) (piece, error) {
	k.taking.Lock()
	defer k.taking.Unlock()
	if p, ok, err := k.takeBack(len(room), by); ok || err != nil {
		return p, err
	}
	m := families.Msg{Data: room[:0:len(room)]}
	err := k.s.Recv(&m)
	if errors.Is(err, families.ErrCut) {
		k.drops[dropCut].Add(1)
		err = nil
	}
	k.closeRights(m.Files)
	if err != nil {
		return piece{}, err
	}
	k.taken++
	k.count(&k.rxBytes, &k.rxMessages, len(m.Data))
	return piece{number: k.taken, data: m.Data, full: max(m.Full, len(m.Data)), peer: m.Peer}, nil
}

// takeBack takes a piece that came back.
func (k *sock) takeBack(room int, by *attachment) (piece, bool, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.stateLocked(by); err != nil {
		return piece{}, false, err
	}
	p, ok := k.back.take(room, k.messages)
	return p, ok, nil
}

// count counts what moved in one direction: messages only where there are any.
func (k *sock) count(bytes, messages *atomic.Int64, n int) {
	bytes.Add(int64(n))
	if k.messages {
		messages.Add(1)
	}
}

// closeRights closes descriptors that came with a message: no verb hands them on.
func (k *sock) closeRights(files []int) {
	for _, fd := range files {
		_ = syscall.Close(fd) // nobody wanted it
		k.drops[dropRights].Add(1)
	}
}

// putBack puts a piece to the front of k's queue, where the next recv finds it.
func (d *Daemon) putBack(k *sock, p piece) {
	if why := k.putBack(p); why != "" {
		d.log.Warn("a piece that its caller had no use for was lost", "id", k.id, "bytes", len(p.data), "why", why)
	}
}

// putBack says why p was lost, or nothing.
func (k *sock) putBack(p piece) (why string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.gone != nil {
		return k.gone.Error()
	}
	if !k.back.put(p) {
		k.drops[dropReturned].Add(1)
		return "too many came back"
	}
	k.wakeLocked(forData)
	return ""
}
