package ctl

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"

	"github.com/sockd/sockd/ctl/varlink"
	"golang.org/x/sys/unix"
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
// Before it come notes on what happens meanwhile, if there are any, as replies that say
// that they continue. A caller who does not care closes the descriptor.

// outcome is the daemon's end.
type outcome struct {
	reader, writer int

	mu     sync.Mutex // guards closed, and the descriptors against close
	closed bool
}

// outcomeOut are the parameters of what is read from the pipe, a note's.
type outcomeOut struct {
	Note string `json:"note"`
}

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

// maxUnread is how much may be unread for a note to be written: the outcome must find
// room in the pipe, which has 64 KiB.
const maxUnread = 32 << 10

// note writes a note, unless the caller has not read those before. It does not wait, and
// may be called at any time.
func (o *outcome) note(text string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return
	}
	if unread, err := unix.IoctlGetInt(o.writer, unix.TIOCINQ); err != nil || unread > maxUnread {
		return
	}
	r := &varlink.Reply{Continues: true}
	r.Parameters, _ = json.Marshal(outcomeOut{text}) // a string always encodes
	o.write(r)
}

func (o *outcome) write(r *varlink.Reply) {
	text, err := r.Text()
	if err != nil {
		return // then nothing is told, which is no good end either
	}
	_, _ = syscall.Write(o.writer, append(text, 0)) // a caller who left has no use for it
}

func (o *outcome) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = true
	closeFile(o.reader)
	closeFile(o.writer)
}

// tell writes the reply.
func (o *outcome) tell(err error) {
	r := &varlink.Reply{}
	if err != nil {
		e := mapError(err)
		r.Error = e.Name
		r.Parameters, _ = json.Marshal(e.Parameters) // strings and numbers always encode
	}
	o.write(r)
}

// serveToOutcome upgrades c, lets run have the connection, and tells how it ended.
// reply is the answer, with the index that the descriptor of the outcome has. Further
// descriptors come after it, and stay their owner's.
func serveToOutcome(c *varlink.ServerCall, verb string, reply func(index *int) any, run func(*net.UnixConn) error, files ...int) error {
	return serveToNotedOutcome(c, verb, reply, func(conn *net.UnixConn, _ *outcome) error { return run(conn) }, files...)
}

// serveToNotedOutcome is serveToOutcome for who has notes to write meanwhile.
func serveToNotedOutcome(c *varlink.ServerCall, verb string, reply func(index *int) any, run func(*net.UnixConn, *outcome) error, files ...int) error {
	o, err := newOutcome()
	if err != nil {
		return fmt.Errorf("%s: %w", verb, err)
	}
	defer o.close()
	conn, err := c.Upgrade(reply(new(int)), append([]int{o.reader}, files...)...) // the message's first
	if err != nil {
		return err
	}
	err = run(conn, o)
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
	return c.readNotes(method, f, func(string) {})
}

// readNotes is readOutcome, and calls note with each note that comes before.
func (c *Client) readNotes(method string, f io.Reader, note func(string)) error {
	for in := bufio.NewReader(f); ; {
		r, err := readReply(in)
		switch {
		case errors.Is(err, io.EOF):
			return c.callError(method, io.ErrUnexpectedEOF)
		case err != nil:
			return fmt.Errorf("%s: how it ended: %w", method, err)
		case r.Error != "":
			return remoteError(method, r.Error, r.Parameters)
		case !r.Continues:
			return nil
		}
		var out outcomeOut
		if err := json.Unmarshal(r.Parameters, &out); err != nil {
			return fmt.Errorf("%s: a note: %w", method, err)
		}
		note(out.Note)
	}
}

// maxReply is how long what is read from the pipe may be: no error of the daemon's is
// longer than one write into it.
const maxReply = 64 << 10

// readReply reads one reply, up to its NUL.
func readReply(in *bufio.Reader) (*varlink.Reply, error) {
	var text []byte
	for {
		part, err := in.ReadSlice(0)
		text = append(text, part...)
		switch {
		case err == nil:
			return varlink.ParseReply(text[:len(text)-1])
		case !errors.Is(err, bufio.ErrBufferFull):
			return nil, err
		case len(text) > maxReply:
			return nil, varlink.ErrTooLarge
		}
	}
}
