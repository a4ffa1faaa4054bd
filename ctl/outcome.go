package ctl

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"

	"github.com/sockd/sockd/ctl/varlink"
)

// How an attachment or a capture ended cannot be said on its connection, which carries
// the socket's bytes or the file and nothing else: a stream that was reset would look
// like one that is complete. So the reply passes the reading end of a pipe, and when the
// connection has ended one more Varlink reply, with its NUL, is in it:
//
//	{}             it ended well: the peer did, or the caller
//	{"error":...}  it did not
//	nothing        the daemon is gone
//
// A caller who does not care closes the descriptor.

// outcome is the daemon's end.
type outcome struct{ reader, writer int }

func newOutcome() (*outcome, error) {
	var p [2]int
	if err := syscall.Pipe2(p[:], syscall.O_CLOEXEC); err != nil {
		return nil, fmt.Errorf("pipe: %w", err)
	}
	o := &outcome{reader: p[0], writer: p[1]}
	// The pipe is empty, and a reply shorter than it, but nothing here may wait.
	if err := syscall.SetNonblock(o.writer, true); err != nil {
		o.close()
		return nil, fmt.Errorf("pipe: %w", err)
	}
	return o, nil
}

func (o *outcome) close() {
	closeFile(o.reader)
	closeFile(o.writer)
}

// tell writes the reply. A caller who left has no use for it.
func (o *outcome) tell(err error) {
	r := &varlink.Reply{}
	if err != nil {
		e := mapError(err)
		r.Error = e.Name
		r.Parameters, _ = json.Marshal(e.Parameters) // strings and numbers always encode
	}
	text, err := r.Text()
	if err != nil {
		return // then nothing is told, which is no good end either
	}
	_, _ = syscall.Write(o.writer, append(text, 0))
}

// serveToOutcome upgrades c, lets run have the connection, and tells how it ended.
// reply is the answer, with the index that the descriptor of the outcome has. Further
// descriptors come after it, and stay their owner's.
func serveToOutcome(c *varlink.ServerCall, verb string, reply func(index *int) any, run func(*net.UnixConn) error, files ...int) error {
	o, err := newOutcome()
	if err != nil {
		return fmt.Errorf("%s: %w", verb, err)
	}
	defer o.close()
	conn, err := c.Upgrade(reply(new(int)), append([]int{o.reader}, files...)...) // the message's first
	if err != nil {
		return err
	}
	err = run(conn)
	o.tell(err)
	return err
}

// takeOutcome takes the reading end out of a reply's descriptors, all of which it
// owns. os.NewFile wants it non-blocking to be able to close it under a read.
func takeOutcome(verb string, index *int, files []int) (*os.File, error) {
	if index == nil || *index < 0 || *index >= len(files) {
		closeAll(files)
		return nil, fmt.Errorf("%s: the answer has no descriptor for the outcome", verb)
	}
	fd := files[*index]
	for i, other := range files {
		if i != *index {
			closeFile(other)
		}
	}
	if err := syscall.SetNonblock(fd, true); err != nil {
		closeFile(fd)
		return nil, fmt.Errorf("%s: %w", verb, err)
	}
	return os.NewFile(uintptr(fd), "outcome"), nil
}

// readOutcome waits for the reply to a call of method, and returns its error.
func (c *Client) readOutcome(method string, f io.Reader) error {
	text, err := io.ReadAll(io.LimitReader(f, varlink.MaxMessage+1))
	if err != nil {
		return fmt.Errorf("%s: how it ended: %w", method, err)
	}
	text, whole := bytes.CutSuffix(text, []byte{0})
	if !whole {
		return c.callError(method, io.ErrUnexpectedEOF)
	}
	r, err := varlink.ParseReply(text)
	if err != nil {
		return fmt.Errorf("%s: how it ended: %w", method, err)
	}
	if r.Error != "" {
		return remoteError(method, r.Error, r.Parameters)
	}
	return nil
}
