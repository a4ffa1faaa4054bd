package varlink

import (
	"cmp"
	"context"
	"errors"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// serverConn is one connection that a Server serves.
type serverConn struct {
	srv    *Server
	conn   *Conn
	caller Creds

	mu      sync.Mutex // guards what follows
	pending []delivery // answers whose reading is not sure yet; see delivery.go
	written int64      // bytes, since the connection began
	reset   bool       // the socket said ECONNRESET
}

// run serves calls until the connection ends.
func (sc *serverConn) run() {
	defer sc.srv.leave(sc)
	defer sc.conn.Close()
	gone, cancel := context.WithCancel(sc.srv.ctx)
	defer cancel()
	id, err := sc.srv.hangups.watch(sc.conn, cancel)
	if err != nil {
		sc.srv.stats.refused.Add(1)
		return
	}
	defer sc.srv.hangups.unwatch(id, sc.conn)
	for sc.serveNext(gone, id) {
	}
}

// serveNext reads and answers one call, and tells whether another may follow.
func (sc *serverConn) serveNext(gone context.Context, watch uint64) bool {
	m, err := sc.conn.ReadMessage()
	if err != nil {
		sc.end(err)
		return false
	}
	call, err := ParseCall(m.Data)
	if err != nil {
		m.CloseFiles()
		sc.srv.stats.malformed.Add(1)
		sc.settle()
		return false
	}
	call.Files = m.Files
	return sc.serve(gone, watch, call, m.FilesErr)
}

// end deals with a read that failed. Too large a message has an answer, after
// which nothing can follow.
func (sc *serverConn) end(err error) {
	switch {
	case errors.Is(err, ErrStalled):
		sc.srv.stats.stalled.Add(1)
	case errors.Is(err, ErrTooLarge):
		sc.srv.stats.malformed.Add(1)
		_ = sc.write(&Reply{}, sc.srv.answerError(err)) // the connection closes either way
	}
	sc.noteReset(err)
	if endsCleanly(err) {
		sc.awaitReading()
	}
	sc.settle()
}

// serve runs one call and answers it.
func (sc *serverConn) serve(gone context.Context, watch uint64, call *Call, filesErr error) bool {
	sc.srv.stats.calls.Add(1)
	ctx, cancel := sc.callContext(gone, call.Oneway)
	defer cancel()
	c := &ServerCall{
		Method: call.Method, Parameters: call.Parameters, Caller: sc.caller,
		More: call.More, Oneway: call.Oneway, WantsUpgrade: call.Upgrade,
		sc: sc, files: call.Files, watch: watch,
	}
	err := sc.dispatch(ctx, c, filesErr)
	c.finish(err)
	if sc.srv.Served != nil {
		sc.srv.Served(sc.caller, call.Method, cmp.Or(err, c.broken))
	}
	if c.broken != nil || c.upgraded {
		sc.settle()
		return false
	}
	return true
}

// callContext ends when the peer is gone. Nobody waits for the answer to a oneway
// call, so its caller may leave at once; it gets the time of a stalled message to
// do its work.
func (sc *serverConn) callContext(gone context.Context, oneway bool) (context.Context, context.CancelFunc) {
	if !oneway {
		return context.WithCancel(gone)
	}
	ctx, cancel := context.WithCancel(sc.srv.ctx)
	grace := orDefault(sc.srv.StallTimeout, DefaultStallTimeout)
	stop := context.AfterFunc(gone, func() {
		timer := time.AfterFunc(grace, cancel)
		context.AfterFunc(ctx, func() { timer.Stop() })
	})
	return ctx, func() { stop(); cancel() }
}

// dispatch decides, finds the method and runs it.
func (sc *serverConn) dispatch(ctx context.Context, c *ServerCall, filesErr error) error {
	if sc.srv.Authorize != nil {
		if err := sc.srv.Authorize(c.Caller, c.Method); err != nil {
			return err
		}
	}
	m, err := sc.srv.registry.find(c.Method)
	if err != nil {
		return err
	}
	if err := m.checkFlags(c); err != nil {
		return err
	}
	if filesErr != nil {
		return filesErr
	}
	return m.Serve(ctx, c)
}

func (m Method) checkFlags(c *ServerCall) error {
	switch {
	case m.NeedsMore && !c.More:
		return ExpectedMore()
	case m.NeedsUpgrade && !c.WantsUpgrade:
		return ExpectedUpgrade()
	case c.WantsUpgrade && !m.NeedsUpgrade && !m.MayUpgrade:
		return InvalidParameter("upgrade")
	}
	return nil
}

// write sends one reply, or the error e instead of it.
func (sc *serverConn) write(r *Reply, e *Error) error {
	if e != nil {
		raw, err := encodeParameters(e.Parameters)
		if err != nil {
			return err
		}
		r = &Reply{Error: e.Name, Parameters: raw}
	}
	text, err := r.Text()
	if err != nil {
		return err
	}
	timeout := orDefault(sc.srv.WriteTimeout, DefaultWriteTimeout)
	_ = sc.conn.SetWriteDeadline(time.Now().Add(timeout)) // fails on a closed connection: so does the write
	if err := sc.conn.WriteMessage(text, r.Files...); err != nil {
		sc.noteReset(err)
		return err
	}
	sc.mu.Lock()
	sc.written += int64(len(text)) + 1
	sc.mu.Unlock()
	return nil
}

func (sc *serverConn) noteReset(err error) {
	if errors.Is(err, unix.ECONNRESET) {
		sc.mu.Lock()
		sc.reset = true
		sc.mu.Unlock()
	}
}
