package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/model"
)

// recvRoom is the room for one piece of a stream, and for nearly all messages: the
// largest that a reply of the control protocol carries. Longer messages, of unix
// sockets, get memory of their own.
const recvRoom = 512 << 10

// rooms lends the memory that an attempt to receive needs, so that a hundred
// callers who wait hold none.
var rooms = sync.Pool{New: func() any { b := make([]byte, recvRoom); return &b }}

// Recv takes one message, or one piece of a stream, and waits for it. The end of a
// stream is Message.EOF, a message that spec cut Message.Cut. undo gives the piece
// back; it is nil when none was taken.
func (d *Daemon) Recv(ctx context.Context, c model.Caller, id model.ID, spec model.RecvSpec) (m model.Message, undo func(), err error) {
	call, err := d.call(ctx, c, "recv", id)
	if err != nil {
		return model.Message{}, nil, err
	}
	defer call.end()
	b := boundOf(spec)
	p, err := call.k.recv(call.ctx, b, nil)
	switch {
	case errors.Is(err, io.EOF):
		return model.Message{EOF: true}, nil, nil
	case err != nil:
		return model.Message{}, nil, call.fail("", err)
	}
	k := call.k
	m = model.Message{Data: p.data, Full: p.full, From: addrText(k.s.NameAddr(p.peer))}
	if k.messages && len(m.Data) > b.most { // it came back from a caller who had more room
		m.Data = m.Data[:b.most]
		k.drops[dropCut].Add(1)
	}
	m.Cut = len(m.Data) < m.Full
	return m, sync.OnceFunc(func() { d.putBack(k, p) }), nil
}

// recv takes one piece and waits for it. The piece's data is its own.
func (k *sock) recv(ctx context.Context, b bound, by *attachment) (piece, error) {
	for {
		changes, err := k.state(by)
		if err != nil {
			return piece{}, err
		}
		p, err := k.takeCopy(b, by)
		if !errors.Is(err, families.ErrAgain) {
			return p, err
		}
		if err := k.await(ctx, changes, forTurn|forData, families.Readable); err != nil {
			return piece{}, err
		}
	}
}

func (k *sock) takeCopy(b bound, by *attachment) (piece, error) {
	room := rooms.Get().(*[]byte)
	defer rooms.Put(room)
	p, err := k.take(*room, b, by)
	if err == nil {
		p.data = slices.Clone(p.data)
		if p.data == nil {
			p.data = []byte{}
		}
	}
	return p, err
}

// take is one attempt to take the next piece: what came back goes first. The
// piece's data may be in room, or in memory of its own where room does not suffice.
func (k *sock) take(room []byte, b bound, by *attachment) (piece, error) {
	k.taking.Lock()
	defer k.taking.Unlock()
	if p, ok, err := k.takeBack(min(len(room), b.most), b, by); ok || err != nil {
		return p, err
	}
	room, err := k.roomFor(room, b)
	if err != nil {
		return piece{}, err
	}
	m := families.Msg{Data: room[:0:len(room)]}
	err = k.s.Recv(&m)
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

// bound is how much may be taken at once.
type bound struct {
	most int
	// cuts: what a message has beyond most is cut off. Else such a message is not
	// taken at all.
	cuts bool
}

// wholeMessages takes every message as it is.
var wholeMessages = bound{most: model.MaxMessage}

func boundOf(spec model.RecvSpec) bound {
	b := wholeMessages
	if spec.Room > 0 {
		b.most = min(spec.Room, b.most)
	}
	if spec.Max > 0 {
		b.most, b.cuts = min(spec.Max, b.most), true
	}
	return b
}

// admits is an error for a message that is not to be taken.
func (b bound) admits(full int) error {
	if b.cuts || full <= b.most {
		return nil
	}
	return fmt.Errorf("the next message has %d bytes, %d can be given here; it stays in the queue: %w", full, b.most, syscall.EMSGSIZE)
}

// roomFor is memory for the next piece: a part of room where that suffices. A
// message that may not fit is asked for its length first, since what does not fit
// is lost; a stream has its rest next time.
func (k *sock) roomFor(room []byte, b bound) ([]byte, error) {
	if !k.messages || b.cuts && b.most <= len(room) {
		return room[:min(b.most, len(room))], nil
	}
	full, err := k.nextLen()
	if err == nil {
		err = b.admits(full)
	}
	if err != nil {
		return nil, err
	}
	if n := min(full, b.most); n > len(room) {
		return make([]byte, n), nil
	}
	return room, nil
}

// nextLen is the length of the message that comes next. k.taking is held, so that
// it stays the next, unless others share the descriptor.
func (k *sock) nextLen() (int, error) {
	var head [64]byte // a virtio_net_hdr wants its 10 bytes even then
	m := families.Msg{Data: head[:0], Flags: families.FlagPeek}
	err := k.s.Recv(&m)
	for _, fd := range m.Files {
		_ = syscall.Close(fd) // duplicates: the message keeps its own
	}
	if errors.Is(err, families.ErrCut) {
		err = nil
	}
	return max(m.Full, len(m.Data)), err
}

// takeBack takes a piece that came back.
func (k *sock) takeBack(room int, b bound, by *attachment) (piece, bool, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.stateLocked(by); err != nil {
		return piece{}, false, err
	}
	if len(k.back.pieces) > 0 && k.messages {
		if err := b.admits(k.back.pieces[0].full); err != nil {
			return piece{}, false, err
		}
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
