package daemon

import (
	"context"
	"sync"

	"github.com/sockd/sockd/families"
)

// withPushback is s, which gives the pieces that came back before anything else.
// Without any it is s itself, with all its capabilities.
func withPushback(s families.Socket, back pushback, messages bool) families.Socket {
	if len(back.pieces) == 0 {
		return s
	}
	t := taken{Socket: s, back: back, messages: messages}
	if h, err := families.As[families.HalfCloser](s); err == nil {
		return &takenConn{taken: &t, HalfCloser: h}
	}
	return &t
}

// taken has no Unwrap: who found the socket's descriptor through it would read
// past what came back. That costs a relay of such a socket its fast paths, for the
// rest of its life; it is rare, and the bytes are right.
type taken struct {
	families.Socket
	messages bool

	mu   sync.Mutex // guards back
	back pushback
}

// takenConn is a taken socket whose directions end one by one.
type takenConn struct {
	*taken
	families.HalfCloser
}

// pushbackOf is what s still has of the pieces that came back.
func pushbackOf(s families.Socket) pushback {
	t, ok := s.(interface{ pending() pushback })
	if !ok {
		return pushback{}
	}
	return t.pending()
}

func (t *taken) pending() pushback {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.back
}

// Leftover gives the socket itself and what came back, as one piece, to somebody who
// puts it in front: for streams, whose pieces have no borders.
func (t *taken) Leftover() (families.Socket, []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var rest []byte
	for _, p := range t.back.pieces {
		rest = append(rest, p.data...)
	}
	t.back = pushback{}
	return t.Socket, rest
}

// Recv gives what came back, then what the socket has.
func (t *taken) Recv(m *families.Msg) error {
	t.mu.Lock()
	p, ok := t.back.take(cap(m.Data), t.messages)
	t.mu.Unlock()
	if !ok {
		return t.Socket.Recv(m)
	}
	room := m.Data[:cap(m.Data)]
	*m = families.Msg{Data: room[:copy(room, p.data)], Peer: p.peer, Full: p.full}
	if len(m.Data) < p.full {
		return families.ErrCut
	}
	return nil
}

// Wait does not wait to read what came back.
func (t *taken) Wait(ctx context.Context, r families.Ready) error {
	t.mu.Lock()
	ready := r&families.Readable != 0 && len(t.back.pieces) > 0
	t.mu.Unlock()
	if ready {
		return ctx.Err()
	}
	return t.Socket.Wait(ctx, r)
}
