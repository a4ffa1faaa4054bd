package varlink

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// MaxMessage bounds the JSON text of one message in bytes, NUL not counted. It
	// is far above what a method of control needs, and small enough that a few
	// hundred callers cannot hurt.
	MaxMessage = 1 << 20
	// MaxFiles bounds the descriptors of one message.
	MaxFiles = 16

	// A peek starts small, since most messages are, and grows within a long one,
	// so that neither idle connections nor pipelined messages cost much.
	firstPeek = 1 << 10
	maxPeek   = 64 << 10
)

var (
	// ErrTooLarge: a message is longer than MaxMessage.
	ErrTooLarge = fmt.Errorf("message is larger than %d bytes", MaxMessage)
	// ErrStalled: a peer began a message and did not go on within StallTimeout.
	ErrStalled = errors.New("peer stalled inside a message")
)

// FilesError says why the descriptors of a message were not accepted. They are
// closed; the message itself is whole, so the connection stays usable.
type FilesError struct {
	Reason string
}

func (e *FilesError) Error() string { return "descriptors not accepted: " + e.Reason }

// Message is one message as it came.
type Message struct {
	Data     []byte // the JSON text, NUL taken off; not checked yet
	Files    []int  // close-on-exec; the receiver owns them
	FilesErr error  // a *FilesError when descriptors came but were not accepted
}

// CloseFiles closes the descriptors that are left and forgets them.
func (m *Message) CloseFiles() {
	closeFiles(m.Files)
	m.Files = nil
}

func closeFiles(files []int) {
	for _, fd := range files {
		if fd >= 0 {
			_ = unix.Close(fd) // nobody has used it
		}
	}
}

// Conn reads and writes messages on one AF_UNIX stream connection. One goroutine
// may read while another writes.
type Conn struct {
	// StallTimeout bounds the time from the first byte of a message to its NUL; 0
	// does not. Between messages a connection may idle for ever. With it, Conn
	// manages the read deadline itself.
	StallTimeout time.Duration

	uc      *net.UnixConn
	rc      syscall.RawConn
	stopped atomic.Bool
	oob     [cmsgSpace]byte
}

// cmsgSpace is unix.CmsgSpace(MaxFiles * 4) on 64 bits: a header of 16 bytes. No
// slack, so a 17th descriptor is MSG_CTRUNC and never gets a number here.
const cmsgSpace = 16 + MaxFiles*4

// NewConn takes c over: close the Conn, not c.
func NewConn(c *net.UnixConn) *Conn {
	rc, err := c.SyscallConn()
	if err != nil {
		// Only a nil connection has no descriptor: a mistake of the caller.
		panic("varlink: " + err.Error())
	}
	return &Conn{uc: c, rc: rc}
}

// Close ends the connection and unblocks who reads and writes.
func (c *Conn) Close() error {
	if err := c.uc.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

// SetWriteDeadline bounds WriteMessage; the zero time does not.
func (c *Conn) SetWriteDeadline(t time.Time) error { return c.uc.SetWriteDeadline(t) }

// ReadMessage reads exactly one message. It returns io.EOF when the peer ended
// the stream between messages and io.ErrUnexpectedEOF inside of one, ErrTooLarge
// (the rest is left unread: nothing but closing can follow), ErrStalled, or the
// system's error.
func (c *Conn) ReadMessage() (*Message, error) {
	m := &Message{}
	if err := c.readMessage(m); err != nil {
		m.CloseFiles()
		return nil, err
	}
	return m, nil
}

func (c *Conn) readMessage(m *Message) error {
	size := firstPeek
	for {
		had := len(m.Data)
		ended, err := c.readChunk(m, size)
		if err != nil {
			return insideError(err, had > 0)
		}
		if ended {
			return c.endMessage(m)
		}
		if len(m.Data) > MaxMessage {
			return ErrTooLarge
		}
		if had == 0 {
			c.armStall()
		}
		if len(m.Data)-had == size {
			size = min(size*4, maxPeek)
		}
	}
}

// endMessage takes the NUL off.
func (c *Conn) endMessage(m *Message) error {
	m.Data = m.Data[:len(m.Data)-1]
	c.disarmStall()
	if len(m.Data) > MaxMessage {
		return ErrTooLarge
	}
	return nil
}

// insideError gives err the meaning it has inside a message that has begun.
func insideError(err error, begun bool) error {
	if !begun {
		return err
	}
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return ErrStalled
	}
	return err
}

// readChunk appends to m up to size bytes of one message, NUL included, and tells
// whether that ended it.
func (c *Conn) readChunk(m *Message, size int) (ended bool, err error) {
	begin := len(m.Data)
	m.Data = slices.Grow(m.Data, size)
	room := m.Data[begin : begin+size]
	var n, oobn, flags int
	var opErr error
	err = c.rc.Read(func(fd uintptr) bool {
		n, oobn, flags, opErr = take(int(fd), room, c.oob[:])
		return opErr != unix.EAGAIN
	})
	if err == nil {
		err = opErr
	}
	if err != nil {
		return false, fmt.Errorf("receive message: %w", err)
	}
	if n == 0 {
		return false, io.EOF
	}
	m.Data = m.Data[:begin+n]
	m.addFiles(c.oob[:oobn], flags, begin == 0)
	return room[n-1] == 0, nil
}

// take receives from fd up to and including the first NUL, or all that there is
// room for.
func take(fd int, room, oob []byte) (n, oobn, flags int, err error) {
	// Without room for control messages a peek installs no descriptor.
	seen, err := retryEINTR(func() (int, error) {
		n, _, err := unix.Recvfrom(fd, room, unix.MSG_PEEK)
		return n, err
	})
	if err != nil || seen == 0 {
		return 0, 0, 0, err
	}
	room = room[:seen]
	if nul := bytes.IndexByte(room, 0); nul >= 0 {
		room = room[:nul+1]
	}
	n, err = retryEINTR(func() (n int, err error) {
		n, oobn, flags, _, err = unix.Recvmsg(fd, room, oob, unix.MSG_CMSG_CLOEXEC)
		return n, err
	})
	if err != nil {
		return 0, 0, 0, err
	}
	return n, oobn, flags, nil
}

func retryEINTR(f func() (int, error)) (int, error) {
	for {
		n, err := f()
		if err != unix.EINTR {
			return n, err
		}
	}
}

// addFiles takes the descriptors of one chunk. Only those on a message's first
// chunk are its own (UAPI.20, Passing File Descriptors).
func (m *Message) addFiles(oob []byte, flags int, first bool) {
	files := parseRights(oob)
	reason := ""
	switch {
	case flags&unix.MSG_CTRUNC != 0 && len(files) == MaxFiles:
		reason = fmt.Sprintf("more than %d came with one message", MaxFiles)
	case flags&unix.MSG_CTRUNC != 0:
		reason = "this process may open no more, or is not let have them"
	case len(files) > 0 && !first:
		reason = "they did not come with the first byte of the message"
	default:
		m.Files = append(m.Files, files...)
		return
	}
	closeFiles(files)
	m.CloseFiles()
	m.FilesErr = &FilesError{Reason: reason}
}

// parseRights picks the descriptors out of control messages.
func parseRights(oob []byte) []int {
	if len(oob) == 0 {
		return nil
	}
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil // the kernel writes whole headers, even when it cuts
	}
	var files []int
	for _, msg := range msgs {
		if fds, err := unix.ParseUnixRights(&msg); err == nil {
			files = append(files, fds...)
		}
	}
	return files
}

// armStall starts the clock of a message that has begun.
func (c *Conn) armStall() {
	if c.StallTimeout <= 0 {
		return
	}
	c.setReadDeadline(time.Now().Add(c.StallTimeout))
}

func (c *Conn) disarmStall() {
	if c.StallTimeout > 0 {
		c.setReadDeadline(time.Time{})
	}
}

// past is a deadline that ends a read at once.
var past = time.Unix(1, 0)

// setReadDeadline does not undo stopReading, whichever comes first.
func (c *Conn) setReadDeadline(t time.Time) {
	_ = c.uc.SetReadDeadline(t) // fails on a closed connection: the read says so
	if c.stopped.Load() {
		_ = c.uc.SetReadDeadline(past)
	}
}

// stopReading ends the read under way and all later ones with
// os.ErrDeadlineExceeded. Answers can still be written.
func (c *Conn) stopReading() {
	c.stopped.Store(true)
	_ = c.uc.SetReadDeadline(past)
}

// WriteMessage sends one JSON text and its NUL, with the descriptors on the first
// byte. The caller keeps the descriptors. Text longer than MaxMessage and more
// than MaxFiles descriptors are refused before anything is sent, as are descriptors
// that are not open. After any other error the stream may end inside a message:
// close the connection.
func (c *Conn) WriteMessage(text []byte, files ...int) error {
	if len(text) > MaxMessage {
		return &unsentError{ErrTooLarge}
	}
	if len(files) > MaxFiles {
		return &unsentError{fmt.Errorf("send message: %d descriptors; at most %d go with one", len(files), MaxFiles)}
	}
	rest := append(slices.Clip(text), 0)
	if len(files) > 0 {
		n, err := c.sendFiles(rest, files)
		if err != nil {
			return filesSendError(err, len(files))
		}
		rest = rest[n:]
	}
	if len(rest) == 0 {
		return nil
	}
	if _, err := c.uc.Write(rest); err != nil {
		return fmt.Errorf("send message: %w", err)
	}
	return nil
}

// unsentError: nothing of the message was sent, so the stream is still between two
// messages.
type unsentError struct {
	err error
}

func (e *unsentError) Error() string { return e.err.Error() }
func (e *unsentError) Unwrap() error { return e.err }

func isUnsent(err error) bool {
	var e *unsentError
	return errors.As(err, &e)
}

// filesSendError knows the errors that concern the descriptors and not the
// connection: one that is not open, or too many in flight for this user (unix(7)).
func filesSendError(err error, n int) error {
	wrapped := fmt.Errorf("send message with %d descriptors: %w", n, err)
	if errors.Is(err, unix.EBADF) || errors.Is(err, unix.ETOOMANYREFS) {
		return &unsentError{wrapped}
	}
	return wrapped
}

// sendFiles sends what fits of data in one sendmsg, the descriptors with it.
func (c *Conn) sendFiles(data []byte, files []int) (n int, err error) {
	rights := unix.UnixRights(files...)
	var opErr error
	err = c.rc.Write(func(fd uintptr) bool {
		n, opErr = retryEINTR(func() (int, error) {
			return unix.SendmsgN(int(fd), data, rights, nil, unix.MSG_NOSIGNAL)
		})
		return opErr != unix.EAGAIN
	})
	if err == nil {
		err = opErr
	}
	if err != nil {
		return 0, err
	}
	return n, nil
}

// unread is what the peer has not taken yet of what was sent to it, in bytes of
// the kernel's memory. The kernel wakes writers one byte before it gives back the
// last of a buffer, and no buffer is smaller than its header of some hundred
// bytes: so a rest below that is nothing.
func (c *Conn) unread() (int, error) {
	var n int
	var opErr error
	err := c.rc.Control(func(fd uintptr) { n, opErr = outq(int(fd)) })
	if err == nil {
		err = opErr
	}
	return n, err
}

func outq(fd int) (int, error) {
	n, err := unix.IoctlGetInt(fd, unix.SIOCOUTQ)
	if err != nil || n < 128 {
		return 0, err
	}
	return n, nil
}

// waitRead waits until the peer has taken all that was sent, or is gone. The
// kernel wakes a writer at every buffer that the peer takes.
func (c *Conn) waitRead(deadline time.Time) error {
	if err := c.uc.SetWriteDeadline(deadline); err != nil {
		return err
	}
	var opErr error
	err := c.rc.Write(func(fd uintptr) bool {
		n, err := outq(int(fd))
		opErr = err
		return err != nil || n == 0
	})
	if err == nil {
		err = opErr
	}
	return err
}

// pendingError takes the error that waits on the socket. ECONNRESET tells that
// the peer closed with data of ours unread (unix_release_sock in the kernel).
func (c *Conn) pendingError() error {
	var errno int
	var opErr error
	err := c.rc.Control(func(fd uintptr) {
		errno, opErr = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
	})
	if err == nil {
		err = opErr
	}
	if err == nil && errno != 0 {
		err = syscall.Errno(errno)
	}
	return err
}
