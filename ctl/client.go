package ctl

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/sockd/sockd/ctl/varlink"
)

// SystemSocket is the control socket of the daemon that serves the whole host.
const SystemSocket = "/run/sockd/io.sockd"

// grace is what a daemon gets beyond --timeout to answer that the time is up.
const grace = 5 * time.Second

// Client is a connection to the daemon. Calls on it are made one after another.
type Client struct {
	conn *varlink.Client
	path string
	env  *Env
}

// SocketPath is where the daemon is expected: --socket, else $SOCKD_SOCKET,
// else the user's own with --user, else the system's if it exists, else the
// user's own.
func (e *Env) SocketPath() (string, error) { return socketPath(e, exists) }

func socketPath(e *Env, exists func(string) bool) (string, error) {
	own := ""
	if dir := e.Getenv("XDG_RUNTIME_DIR"); dir != "" {
		own = filepath.Join(dir, "sockd", "io.sockd")
	}
	env := e.Getenv("SOCKD_SOCKET")
	switch {
	case e.Socket != "":
		return e.Socket, nil
	case e.User && own == "" && env == "":
		return "", &UsageError{Why: "--user: $XDG_RUNTIME_DIR is not set", Hint: "sockd-ctl --socket PATH"}
	case env != "":
		return env, nil
	case !e.User && (own == "" || exists(SystemSocket)):
		return SystemSocket, nil
	}
	return own, nil
}

// exists is true also for what may not be looked at: connecting says why.
func exists(path string) bool {
	_, err := os.Stat(path)
	return !errors.Is(err, os.ErrNotExist)
}

// Dial connects to the daemon. Nobody listening is an *UnreachableError, not
// being allowed to wraps os.ErrPermission. The Client must be closed.
func (e *Env) Dial(ctx context.Context) (*Client, error) {
	path, err := e.SocketPath()
	if err != nil {
		return nil, err
	}
	dialCtx, cancel := e.bound(ctx, "")
	defer cancel()
	conn, err := dialUnix(dialCtx, path)
	if err != nil {
		return nil, e.dialError(path, err)
	}
	return &Client{conn: varlink.NewClient(conn), path: path, env: e}, nil
}

// dialUnix connects to a listening socket. A full backlog is EAGAIN, and unix(7)
// has nothing to poll for it: ask again until ctx ends.
func dialUnix(ctx context.Context, path string) (*net.UnixConn, error) {
	for pause := time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
		if err == nil {
			return conn.(*net.UnixConn), nil
		}
		switch {
		case ctx.Err() != nil:
			return nil, context.Cause(ctx) // the dialer does not tell the cause
		case !errors.Is(err, syscall.EAGAIN):
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(pause):
		}
	}
}

func (e *Env) dialError(path string, err error) error {
	var op *net.OpError
	if errors.As(err, &op) {
		err = op.Err // the path is said once
	}
	var sys *os.SyscallError
	if errors.As(err, &sys) {
		err = sys.Err
	}
	if errors.Is(err, os.ErrPermission) {
		return withHint(fmt.Errorf("control socket %s: %w", visible(path), err), "usermod -aG sockd "+e.userName()+", then log in again")
	}
	if errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ENOTDIR) {
		return &UnreachableError{Path: path, Err: err, hint: startHint(path)}
	}
	return fmt.Errorf("control socket %s: %w", visible(path), err)
}

func startHint(path string) string {
	if path == SystemSocket {
		return "systemctl start sockd.socket"
	}
	if visible(path) == path {
		return "sockd --socket " + shellWord(path)
	}
	// What does not print stands as an escape, which takes the $'...' of bash and zsh.
	return "sockd --socket $'" + visible(strings.NewReplacer(`\`, `\\`, "'", `\'`).Replace(path)) + "'"
}

// userName is the caller's name, or "NAME" where it has none.
func (e *Env) userName() string {
	u, err := user.LookupId(strconv.Itoa(e.Getuid()))
	if err != nil {
		return "NAME"
	}
	return u.Username
}

// Close ends the connection, and with it every call.
func (c *Client) Close() error { return c.conn.Close() }

// Call makes one call: in is its parameters (nil: none), out where the reply is
// read into (nil: it is not wanted). The caller keeps fds, which in names by
// their index.
func (c *Client) Call(ctx context.Context, method string, in, out any, fds ...int) error {
	files, err := c.CallFiles(ctx, method, in, out, fds...)
	closeAll(files)
	return err
}

// call is Call on a connection of its own.
func (e *Env) call(ctx context.Context, method string, in, out any, fds ...int) error {
	c, err := e.Dial(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	return c.Call(ctx, method, in, out, fds...)
}

// timeoutParameter is --timeout as the methods that wait take it.
func (e *Env) timeoutParameter() *int64 {
	if e.Timeout == nil || *e.Timeout < 0 {
		return nil
	}
	ns := int64(*e.Timeout)
	return &ns
}

// bounded are the methods that are told --timeout: the daemon says itself that the
// time is up.
var bounded = map[string]bool{
	"io.sockd.Manager.Accept": true, "io.sockd.Manager.Connect": true, "io.sockd.Manager.Recv": true, "io.sockd.Manager.Send": true,
}

// bound ends ctx after --timeout, and for a method that is told it some time
// later: it is answered with the end of the time, unless the daemon has stopped
// answering. So is a call that is not to wait: its answer must come at once, which
// is not in no time.
func (e *Env) bound(ctx context.Context, method string) (context.Context, context.CancelFunc) {
	switch {
	case e.timeoutParameter() == nil:
		return context.WithCancel(ctx)
	case bounded[method] || *e.Timeout == 0:
		return context.WithTimeout(ctx, *e.Timeout+grace)
	}
	return context.WithTimeout(ctx, *e.Timeout)
}

// running is for what the daemon begins, and what then runs until --timeout. begin is
// for asking it to: with 0, which is not to wait, it has to have begun all the same, and run
// has ended by then.
func (e *Env) running(ctx context.Context) (begin, run context.Context, cancel func()) {
	run, stop := withTimeout(ctx, e.timeoutParameter())
	if e.Timeout == nil || *e.Timeout != 0 {
		return run, run, stop
	}
	begin, stopBegin := context.WithTimeout(ctx, grace)
	return begin, run, func() {
		stopBegin()
		stop()
	}
}

// CallFiles is Call for a reply with descriptors, which are then the caller's.
func (c *Client) CallFiles(ctx context.Context, method string, in, out any, fds ...int) ([]int, error) {
	ctx, cancel := c.env.bound(ctx, method)
	defer cancel()
	var files []int
	err := c.conn.Call(ctx, method, in, out, varlink.SendFiles(fds...), varlink.TakeFiles(&files))
	if err != nil {
		return nil, c.callError(method, err)
	}
	return files, nil
}

// More makes a call that is answered many times; each gets every reply, until
// the last, ctx's end, or an error of its own, after either of which c is closed.
func (c *Client) More(ctx context.Context, method string, in any, each func(json.RawMessage) error, fds ...int) error {
	var own error
	err := c.conn.CallMore(ctx, method, in, func(raw json.RawMessage, files []int, _ bool) error {
		closeAll(files)
		own = each(raw)
		return own
	}, varlink.SendFiles(fds...))
	if own != nil {
		return own
	}
	return c.callError(method, err)
}

// Upgrade makes a call after whose reply the connection carries raw bytes. The
// returned connection is the caller's, and c is of no more use.
func (c *Client) Upgrade(ctx context.Context, method string, in, out any, fds ...int) (*net.UnixConn, error) {
	conn, files, err := c.UpgradeFiles(ctx, method, in, out, fds...)
	closeAll(files)
	return conn, err
}

// UpgradeFiles is Upgrade for a reply with descriptors, which are then the caller's.
func (c *Client) UpgradeFiles(ctx context.Context, method string, in, out any, fds ...int) (*net.UnixConn, []int, error) {
	ctx, cancel := c.env.bound(ctx, method)
	defer cancel()
	var files []int
	conn, err := c.conn.Upgrade(ctx, method, in, out, varlink.SendFiles(fds...), varlink.TakeFiles(&files))
	if err != nil {
		closeAll(files)
		return nil, nil, c.callError(method, err)
	}
	return conn, files, nil
}

// callError turns what a call failed with into a *RemoteError, when the daemon
// answered it, or an *UnreachableError when it went away. A daemon that ended the
// connection and goes on is neither.
func (c *Client) callError(method string, err error) error {
	var answered *varlink.Error
	if errors.As(err, &answered) {
		raw, _ := answered.Parameters.(json.RawMessage)
		return remoteError(method, answered.Name, raw)
	}
	for _, gone := range []error{io.ErrUnexpectedEOF, io.EOF, syscall.EPIPE, syscall.ECONNRESET, net.ErrClosed} {
		if !errors.Is(err, gone) {
			continue
		}
		if c.daemonLives() {
			return &EndedError{Method: method, hint: logHint(c.path)}
		}
		return &UnreachableError{Path: c.path, Err: errors.New("sockd ended the connection and is gone"), hint: startHint(c.path)}
	}
	return err
}

// reachPatience bounds how long a daemon is asked whether it is still there.
const reachPatience = 2 * time.Second

// daemonLives asks on another connection. It is not bounded by the call, whose
// time may be up.
func (c *Client) daemonLives() bool {
	ctx, cancel := context.WithTimeout(context.Background(), reachPatience)
	defer cancel()
	conn, err := dialUnix(ctx, c.path)
	if err != nil {
		return false
	}
	other := varlink.NewClient(conn)
	defer other.Close()
	return other.Call(ctx, "org.varlink.service.GetInfo", nil, nil) == nil
}

// logHint shows what the daemon of the host had to say.
func logHint(path string) string {
	if path == SystemSocket {
		return "journalctl -u sockd.service"
	}
	return ""
}

func closeAll(fds []int) {
	for _, fd := range fds {
		closeFile(fd)
	}
}
