package varlink

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"time"
)

// ServerCall is one call while its method runs. Its functions are for one
// goroutine at a time and not for after the method has returned.
type ServerCall struct {
	Method       string          // qualified
	Parameters   json.RawMessage // an object, or nil
	Caller       Creds
	More         bool // the caller takes several replies
	Oneway       bool // the caller wants no reply: Reply and Continue send none
	WantsUpgrade bool // the caller wants the raw connection: see Upgrade

	sc    *serverConn
	files []int // -1: taken
	watch uint64

	answered bool // the final answer was given
	upgraded bool // the raw connection was handed out
	gone     chan struct{}
	written  bool     // the latest reply was written
	broken   error    // writing failed: the connection is to be closed
	early    []func() // take-backs whose reply is not written yet
}

// Decode reads the parameters strictly: see the function Decode.
func (c *ServerCall) Decode(into any) error {
	return decodeInto(decoder{}, c.Parameters, into)
}

// NumFiles counts the descriptors that came with the call, taken ones included.
func (c *ServerCall) NumFiles() int { return len(c.files) }

// TakeFile hands out the descriptor of that index, once; it is the caller's to
// close. Those that nobody takes are closed when the method returns. The error is
// an *InvalidParameterError that the method may wrap or return.
func (c *ServerCall) TakeFile(index int) (int, error) {
	if index < 0 || index >= len(c.files) {
		return -1, &InvalidParameterError{
			Parameter: "descriptor",
			Why:       fmt.Sprintf("is %d, but %d descriptors came with the call", index, len(c.files)),
		}
	}
	fd := c.files[index]
	if fd < 0 {
		return -1, &InvalidParameterError{Parameter: "descriptor", Why: fmt.Sprintf("%d is named twice", index)}
	}
	c.files[index] = -1
	return fd, nil
}

var (
	errAnswered     = errors.New("call is answered already")
	errNotMore      = errors.New("call takes one reply only")
	errPlainUpgrade = errors.New("call asked for an upgrade: its reply is Upgrade or an error")
	errNoUpgrade    = errors.New("call did not ask for an upgrade")
)

// Reply gives the final answer: params is a struct, a map, raw JSON or nil. The
// files stay the caller's. An error of the connection ends it after the method;
// there is nothing to do about it but to take back what was taken.
func (c *ServerCall) Reply(params any, files ...int) error {
	if c.WantsUpgrade {
		return c.refuse(errPlainUpgrade)
	}
	return c.reply(params, files, false)
}

// Continue gives one of several replies; only with More. Reply gives the last.
func (c *ServerCall) Continue(params any, files ...int) error {
	if !c.More {
		return c.refuse(errNotMore)
	}
	return c.reply(params, files, true)
}

// Upgrade confirms an upgrade and hands out the raw connection; nothing beyond
// the call has been read from it, no deadline is set, and the call's context no
// longer tells of a hang-up, since bytes of a peer that left may still be
// unread: Gone does. The connection is closed when the method returns, which must
// not have handed it on.
func (c *ServerCall) Upgrade(params any, files ...int) (*net.UnixConn, error) {
	if !c.WantsUpgrade {
		return nil, c.refuse(errNoUpgrade)
	}
	c.sc.srv.hangups.unwatch(c.watch, c.sc.conn)
	if err := c.reply(params, files, false); err != nil {
		return nil, err
	}
	c.upgraded = true
	uc := c.sc.conn.uc
	if err := uc.SetDeadline(time.Time{}); err != nil {
		return nil, c.refuse(err)
	}
	if err := c.watchRaw(); err != nil {
		return nil, c.refuse(err)
	}
	return uc, nil
}

// watchRaw watches the raw connection anew: a hang-up during the reply was missed.
func (c *ServerCall) watchRaw() (err error) {
	c.gone = make(chan struct{})
	c.watch, err = c.sc.srv.hangups.watch(c.sc.conn, func() { close(c.gone) })
	return err
}

// Gone is closed when, after an Upgrade, the peer is gone: both directions of the
// connection have ended, as those of a process do that is killed. A peer that has
// only ended its own direction is still there.
func (c *ServerCall) Gone() <-chan struct{} { return c.gone }

// OnUndelivered has takeBack called when the latest reply, or the next if none was
// written, turns out to have never been read: it could not be written, the method
// ended with an error instead, the call is oneway, or the peer closed without
// having read it. It is for what was taken irrevocably. It is called at most once,
// the latest first, from the connection's goroutine, after the method returned and
// before Shutdown returns; it is not called for a reply that was read. After an
// upgrade it tells nothing.
func (c *ServerCall) OnUndelivered(takeBack func()) {
	if c.written {
		c.sc.addPending(takeBack)
		return
	}
	c.early = append(c.early, takeBack)
}

func (c *ServerCall) refuse(err error) error { return fmt.Errorf("answer %s: %w", c.Method, err) }

func (c *ServerCall) reply(params any, files []int, continues bool) error {
	if c.answered {
		return c.refuse(errAnswered)
	}
	c.written = false
	raw, err := encodeParameters(params)
	if err != nil {
		return c.refuse(err)
	}
	if err := c.write(&Reply{Parameters: raw, Continues: continues, Files: files}, nil); err != nil {
		return c.refuse(err)
	}
	c.answered = !continues
	if !c.Oneway {
		c.written = true
		c.sc.addPending(c.early...)
		c.early = nil
	}
	return nil
}

// write sends a reply or an error, nothing for a oneway call. When nothing of it
// was sent, another can be given in its place.
func (c *ServerCall) write(r *Reply, e *Error) error {
	if c.broken != nil {
		return c.broken
	}
	if c.Oneway {
		return nil
	}
	c.sc.confirm()
	err := c.sc.write(r, e)
	if err != nil && !isUnsent(err) {
		c.broken = err
	}
	return err
}

// finish gives the answer that the method left to the server, and closes the
// descriptors that it left.
func (c *ServerCall) finish(err error) {
	closeFiles(c.files)
	if c.upgraded {
		c.sc.srv.hangups.unwatch(c.watch, c.sc.conn)
	}
	if err == nil && !c.answered {
		err = c.Reply(nil)
	}
	if err != nil && !c.answered {
		c.answerError(err)
	}
	c.sc.takeBack(c.early...)
}

func (c *ServerCall) answerError(err error) {
	if err := c.write(nil, c.sc.srv.answerError(err)); err != nil {
		c.broken = err // even an unsent one: the caller must not wait for ever
		return
	}
	c.answered = true
}
