package relay

import (
	"context"
	"errors"
	"io"
	"sync"
	"syscall"
	"time"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/ksock"
)

// leg is one side of a session: a socket and how to speak to it.
type leg struct {
	sock families.Socket
	kind kind
	text string // its address, for lists
	// vnet: each frame has a virtio_net_hdr in front, both ways.
	vnet bool
	// frames receives from a packet socket; nil for all others.
	frames *ksock.FrameReader
	// shared: the socket is the relay's FROM and stays open when the session ends.
	shared bool
	// peer is whom messages go to where the socket is not connected.
	peer families.Name
	// local: a peer that refuses is gone for good (unix), where an inet one may
	// be back on the same address.
	local bool
	// limit bounds the wait for room; 0 waits as long as it takes. stalled and
	// giveUp are its state, of the one goroutine that sends here.
	limit   time.Duration
	stalled bool
	giveUp  time.Time
	// mute: there is no way to send to this peer, because it has no address.
	mute bool
	// pin keeps the inode open that peer names.
	pin io.Closer
	// proxy is the version of the PROXY header that this TO is sent, or "".
	proxy string
	// own: nobody else has a duplicate of the socket's description.
	own bool
	// active counts the sessions of this leg's backend, or is nil.
	active *gauge

	closing sync.Once
}

// close ends the leg in order: what was sent arrives, then the end.
func (l *leg) close() { l.end(families.Socket.Close) }

// abort ends the leg with a reset where the socket has one, else closes it. A leg that
// is none needs no end.
func (l *leg) abort() {
	if l == nil {
		return
	}
	l.end(func(s families.Socket) error {
		if r, err := families.As[families.Resetter](s); err == nil {
			return r.Reset()
		}
		return s.Close()
	})
}

func (l *leg) end(how func(families.Socket) error) {
	l.closing.Do(func() {
		if !l.shared {
			_ = how(l.sock) // it is gone either way
		}
		if l.pin != nil {
			_ = l.pin.Close() // only ever read by name
		}
		l.active.leave()
	})
}

// closeWrite passes an end on. A socket without directions keeps quiet: it has
// no way to say it.
func (l *leg) closeWrite() {
	if h, err := families.As[families.HalfCloser](l.sock); err == nil {
		_ = h.CloseWrite() // the peer is gone: the other direction sees that too
	}
}

// closeRead makes a reader of this leg see what is queued and then the end.
func (l *leg) closeRead() {
	if h, err := families.As[families.HalfCloser](l.sock); err == nil {
		_ = h.CloseRead() // ENOTCONN: then the reader sees the end anyway
	}
}

// settle waits until the peer has taken what was sent, because a reset throws
// away what is queued. It gives up after settleTime: a peer that reads nothing
// shall not hold a session that is over.
func (l *leg) settle(ctx context.Context) {
	if _, err := families.As[families.Resetter](l.sock); err != nil {
		return // its close lets the peer read on
	}
	ctx, cancel := context.WithTimeout(ctx, settleTime)
	defer cancel()
	const soonest, latest = time.Millisecond, 20 * time.Millisecond
	for pause := soonest; ; pause = min(2*pause, latest) {
		n, err := outq(l.sock)
		if err != nil || n == 0 || l.sock.Info().State == families.Closed || !rest(ctx, pause) {
			return
		}
	}
}

// settleTime bounds how long a broken session waits for what it has sent.
const settleTime = 5 * time.Second

// rest pauses and tells whether ctx still stands.
func rest(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// fate is what became of an attempt to send.
type fate uint8

const (
	sent fate = iota
	dropped
	broken // the leg will take nothing any more
)

// failedSend tells what an error of a message socket means: the message alone is
// lost, or the leg is gone.
func (l *leg) failedSend(err error) outcome {
	is := func(errnos ...syscall.Errno) bool {
		for _, e := range errnos {
			if errors.Is(err, e) {
				return true
			}
		}
		return false
	}
	lost := func(c cause) outcome { return outcome{fate: dropped, cause: c} }
	switch {
	case is(syscall.EMSGSIZE):
		return lost(causeTooBig)
	case errors.Is(err, errNoBranch):
		return lost(causeDial)
	case is(syscall.ENOBUFS, syscall.ENOMEM, syscall.ETOOMANYREFS): // the last: of descriptors in flight
		return lost(causeFull)
	case is(syscall.EINVAL, syscall.EDESTADDRREQ):
		return lost(causeInvalid)
	case is(syscall.ENETDOWN) && l.kind == kindPacket && l.hasInterface():
		return lost(causeUnreachable)
	case !l.local && l.kind != kindPacket && is(syscall.ECONNREFUSED):
		return lost(causeRefused)
	case !l.local && l.kind != kindPacket && is(syscall.ENETUNREACH, syscall.EHOSTUNREACH, syscall.EHOSTDOWN, syscall.ENETDOWN,
		syscall.EPERM, syscall.EACCES, syscall.EADDRNOTAVAIL, syscall.EPROTO, syscall.ENOPROTOOPT):
		return lost(causeUnreachable)
	}
	return outcome{fate: broken, err: l.explain(err)}
}

func isAgain(err error) bool { return errors.Is(err, families.ErrAgain) }

func asSyntax(err error) (*families.SyntaxError, bool) {
	var s *families.SyntaxError
	ok := errors.As(err, &s)
	return s, ok
}
