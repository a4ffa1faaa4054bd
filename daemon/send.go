package daemon

import (
	"context"
	"errors"
	"syscall"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/model"
)

// Send sends one message, or all of data on a stream, and waits for room. It
// reports the bytes that were taken, on error too. A path in to wraps
// families.ErrBorrow.
func (d *Daemon) Send(ctx context.Context, c model.Caller, id model.ID, data []byte, to string) (int, error) {
	call, err := d.call(ctx, c, "send", id)
	if err != nil {
		return 0, err
	}
	defer call.end()
	m := families.Msg{Data: data}
	if to != "" {
		if err := call.k.mayName(); err != nil {
			return 0, call.fail(to, err)
		}
		err := call.k.until(call.ctx, func(ctx context.Context) error { // a name server may take its time
			addrs, err := call.addrs(ctx, to)
			if err == nil {
				m.Peer = addrs[0].Sockaddr()
			}
			return err
		})
		if err != nil {
			return 0, call.fail(to, err)
		}
	}
	n, err := call.k.send(call.ctx, &m, nil)
	if err != nil {
		return n, call.fail(to, asWritten(err, to))
	}
	return n, nil
}

// mayName refuses a receiver on a connection. The kernel passes over it on TCP and
// seqpacket sockets, and the data would go to the peer without a word.
func (k *sock) mayName() error {
	i := k.s.Info()
	if needsPeer(i.Type) && (i.State == families.Connected || i.State == families.HalfClosed) {
		return syscall.EISCONN
	}
	return nil
}

// asWritten names the receiver as the user did: its sockaddr may not say it (an
// interface that is not there has no number).
func asWritten(err error, to string) error {
	var op *families.OpError
	if to == "" || !errors.As(err, &op) {
		return err
	}
	return &families.OpError{Op: op.Op, Family: op.Family, Addr: to, Err: op.Err}
}

// send sends all of m. What was taken is counted, on error too.
func (k *sock) send(ctx context.Context, m *families.Msg, by *attachment) (int, error) {
	if err := k.takeTurn(ctx, by); err != nil {
		return 0, err
	}
	defer k.passTurn()
	part, sent := *m, 0
	for {
		changes, err := k.state(by)
		if err != nil {
			return sent, err
		}
		n, err := k.s.Send(&part)
		sent += n
		part.Data = part.Data[n:]
		if n > 0 || err == nil {
			k.count(&k.txBytes, &k.txMessages, n)
		}
		switch {
		case err == nil && len(part.Data) == 0:
			return sent, nil
		case err == nil || n > 0 && errors.Is(err, families.ErrAgain):
			continue
		case !errors.Is(err, families.ErrAgain):
			return sent, err
		}
		if err := k.await(ctx, changes, forTurn, families.Writable); err != nil {
			return sent, err
		}
	}
}

// takeTurn makes what several send at once on a stream go one after the other.
// Messages need no turn: each is sent whole or not at all.
func (k *sock) takeTurn(ctx context.Context, by *attachment) error {
	if k.turn == nil {
		return nil
	}
	select {
	case k.turn <- struct{}{}: // also when ctx has ended: there is one attempt
		return nil
	default:
	}
	return k.until(ctx, func(ctx context.Context) error {
		select {
		case k.turn <- struct{}{}:
			return nil
		case <-ctx.Done():
			if _, err := k.state(by); err != nil {
				return err
			}
			return ctx.Err()
		}
	})
}

func (k *sock) passTurn() {
	if k.turn != nil {
		<-k.turn
	}
}
