package varlink

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"

	"golang.org/x/sys/unix"
)

// Client calls the methods of one service on one connection, one call at a time:
// a second caller waits for the first. The end of a call's context closes the
// connection, which is how a Varlink call is cancelled; so does an answer that
// makes no sense. A Client that is closed answers every call with net.ErrClosed.
type Client struct {
	conn *Conn
	turn chan struct{} // holds one token while nobody calls; the token guards whole
	// whole: the stream is between two calls, so that the next may follow.
	whole bool
}

// Dial connects to the service at an AF_UNIX path, or abstract name after @.
func Dial(ctx context.Context, path string) (*Client, error) {
	var d net.Dialer
	nc, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	return NewClient(nc.(*net.UnixConn)), nil
}

// NewClient takes over a connection to a service.
func NewClient(uc *net.UnixConn) *Client {
	c := &Client{conn: NewConn(uc), turn: make(chan struct{}, 1)}
	c.turn <- struct{}{}
	return c
}

// Close ends the connection, and a call that waits with net.ErrClosed. Twice is
// nil.
func (c *Client) Close() error { return c.conn.Close() }

// An Option adds to one call.
type Option func(*callOptions)

type callOptions struct {
	send []int
	take *[]int
}

// SendFiles passes descriptors along; they stay the caller's.
func SendFiles(files ...int) Option {
	return func(o *callOptions) { o.send = append(o.send, files...) }
}

// TakeFiles puts the descriptors of the (last) reply into files; the caller owns
// them. Without it they are closed.
func TakeFiles(files *[]int) Option {
	return func(o *callOptions) { o.take = files }
}

func optionsOf(opts []Option) callOptions {
	var o callOptions
	for _, opt := range opts {
		opt(&o)
	}
	return o
}

// Call asks and waits for the one reply. params is a struct, a map, raw JSON or
// nil; reply points to where the answer goes, or is nil. The service's own errors
// are an *Error.
func (c *Client) Call(ctx context.Context, method string, params, reply any, opts ...Option) error {
	o := optionsOf(opts)
	return c.exchange(ctx, &Call{Method: method, Files: o.send}, params, func() error {
		return c.lastReply(reply, o.take)
	})
}

// Oneway asks and waits for nothing: whether it failed is never known.
func (c *Client) Oneway(ctx context.Context, method string, params any, opts ...Option) error {
	o := optionsOf(opts)
	return c.exchange(ctx, &Call{Method: method, Files: o.send, Oneway: true}, params, nil)
}

// CallMore asks and gives each reply to each, until the last, whose continues is
// false. The files are each's; raw is nil when the reply had no parameters. An
// error of each ends the call, and the connection with it, since there is no
// other way to stop the replies.
func (c *Client) CallMore(ctx context.Context, method string, params any,
	each func(raw json.RawMessage, files []int, continues bool) error, opts ...Option) error {
	o := optionsOf(opts)
	return c.exchange(ctx, &Call{Method: method, Files: o.send, More: true}, params, func() error {
		return c.eachReply(each)
	})
}

// Upgrade asks for the raw connection and hands it out after the service has
// confirmed; nothing beyond the confirmation has been read. The connection is the
// caller's then, and the Client done. reply as for Call.
func (c *Client) Upgrade(ctx context.Context, method string, params, reply any, opts ...Option) (*net.UnixConn, error) {
	o := optionsOf(opts)
	err := c.exchange(ctx, &Call{Method: method, Files: o.send, Upgrade: true}, params, func() error {
		return c.lastReply(reply, o.take)
	})
	if err != nil {
		return nil, err
	}
	return c.conn.uc, nil
}

// exchange sends a call and has its answers read, all by ctx.
func (c *Client) exchange(ctx context.Context, call *Call, params any, answers func() error) error {
	raw, err := encodeParameters(params)
	if err != nil {
		return fmt.Errorf("call %s: %w", call.Method, err)
	}
	call.Parameters = raw
	if err := c.begin(ctx); err != nil {
		return fmt.Errorf("call %s: %w", call.Method, err)
	}
	defer func() { c.turn <- struct{}{} }()
	hangUp := context.AfterFunc(ctx, func() { _ = c.conn.Close() })
	err = c.sendAndRead(call, answers)
	if !hangUp() && err == nil && call.Upgrade {
		// Any other answer is good, though the connection is closed behind it.
		err = context.Cause(ctx)
	}
	return c.explain(ctx, call.Method, err)
}

func (c *Client) begin(ctx context.Context) error {
	select {
	case <-c.turn:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (c *Client) sendAndRead(call *Call, answers func() error) error {
	text, err := call.Text()
	if err != nil {
		return err
	}
	err = c.conn.WriteMessage(text, call.Files...)
	c.whole = isUnsent(err) || err == nil && answers == nil
	if err != nil {
		return c.beyondWriteError(err)
	}
	if answers == nil {
		return nil
	}
	return answers()
}

// beyondWriteError looks for the answer of a service that closed before it had
// read the call: it says more than EPIPE.
func (c *Client) beyondWriteError(err error) error {
	if !errors.Is(err, unix.EPIPE) && !errors.Is(err, unix.ECONNRESET) {
		return err
	}
	r, readErr := c.read()
	if r != nil {
		closeFiles(r.Files)
	}
	c.whole = false
	var e *Error
	if errors.As(readErr, &e) {
		return readErr
	}
	return err
}

// explain closes a connection that is in the middle of a call, and says what
// failed. The service's own errors pass as they are.
func (c *Client) explain(ctx context.Context, method string, err error) error {
	if !c.whole {
		_ = c.conn.Close() // err is the first cause
	}
	var e *Error
	if err == nil || errors.As(err, &e) {
		return err
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return fmt.Errorf("call %s: %w", method, err)
}

// read gives the next reply; the caller owns its files.
func (c *Client) read() (*Reply, error) {
	m, err := c.conn.ReadMessage()
	if errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("service closed the connection: %w", io.ErrUnexpectedEOF)
	}
	if err != nil {
		return nil, err
	}
	r, err := ParseReply(m.Data)
	if err != nil {
		m.CloseFiles()
		return nil, err
	}
	c.whole = !r.Continues
	if m.FilesErr != nil {
		return nil, m.FilesErr
	}
	r.Files = m.Files
	if r.Error != "" {
		m.CloseFiles()
		return nil, &Error{Name: r.Error, Parameters: rawOf(r.Parameters)}
	}
	return r, nil
}

func (c *Client) lastReply(reply any, take *[]int) error {
	r, err := c.read()
	if err != nil {
		return err
	}
	if r.Continues {
		closeFiles(r.Files)
		return malformed("a reply that continues, to a call without more")
	}
	if err := decodeLenient(r.Parameters, reply); err != nil {
		closeFiles(r.Files)
		return err
	}
	if take == nil {
		closeFiles(r.Files)
		return nil
	}
	*take = r.Files
	return nil
}

func (c *Client) eachReply(each func(json.RawMessage, []int, bool) error) error {
	for {
		r, err := c.read()
		if err != nil {
			return err
		}
		if err := each(r.Parameters, r.Files, r.Continues); err != nil {
			return err
		}
		if !r.Continues {
			return nil
		}
	}
}
