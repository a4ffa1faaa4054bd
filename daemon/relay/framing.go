package relay

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/ksock"
)

// framing is how messages lie in a stream: the endpoint option framing=.
//
//	u16be  2 bytes of length, the highest first, then the message: up to 65535 bytes
//	u32be  4 bytes of length, the highest first, then the message: up to frameLimit
//	lf     the message, then a line feed: up to frameLimit
//
// A length counts the message alone. Messages of no bytes are messages in all
// three. A line keeps a carriage return that stands before its line feed, since
// it is the sender's; a message with a line feed in it cannot be said as a line.
type framing string

const (
	// frameLimit is the longest message of a framed stream: what a message's
	// buffer holds, so that no frame is received that could not be passed on.
	frameLimit = messageRoom - vlanLen - vnetLen
	// frameExtra is the most that a framing adds to a message.
	frameExtra = 4
	// frameStart is the first room for a frame of which only a part has come. It
	// doubles with what comes, so that a peer that announces much and sends little
	// costs little.
	frameStart = 4 << 10
)

// A message with its frame fits a message's buffer.
const _ = uint(messageRoom - frameLimit - frameExtra)

// limit is the longest message that can be said.
func (k framing) limit() int {
	if k == framingU16BE {
		return 1<<16 - 1
	}
	return frameLimit
}

// check tells whether a message can be said: EMSGSIZE, or EINVAL for a line feed
// within a line.
func (k framing) check(message []byte) error {
	switch {
	case len(message) > k.limit():
		return fmt.Errorf("a message of %d bytes, and %s takes %d: %w", len(message), k, k.limit(), syscall.EMSGSIZE)
	case k == framingLF && bytes.IndexByte(message, '\n') >= 0:
		return fmt.Errorf("a message with a line feed in it cannot be one line: %w", syscall.EINVAL)
	}
	return nil
}

// append adds a message that check has passed to b, as it lies in the stream.
func (k framing) append(b, message []byte) []byte {
	switch k {
	case framingU16BE:
		b = binary.BigEndian.AppendUint16(b, uint16(len(message)))
	case framingU32BE:
		b = binary.BigEndian.AppendUint32(b, uint32(len(message)))
	case framingLF:
		return append(append(b, message...), '\n')
	}
	return append(b, message...)
}

// head is what lies before a message.
func (k framing) head() int {
	switch k {
	case framingU16BE:
		return 2
	case framingU32BE:
		return 4
	}
	return 0
}

// first finds the message that b begins with, and how much of b it takes with its
// frame; 0 is that not all of it has come. Of a line, scanned bytes are known to
// have no line feed.
func (k framing) first(b []byte, scanned int) (message []byte, size int, err error) {
	if k == framingLF {
		return firstLine(b, scanned)
	}
	head := k.head()
	if len(b) < head {
		return nil, 0, nil
	}
	n := int64(binary.BigEndian.Uint16(b))
	if k == framingU32BE {
		n = int64(binary.BigEndian.Uint32(b))
	}
	switch {
	case n > frameLimit:
		return nil, 0, fmt.Errorf("a frame of %d bytes, and %d is the bound: %w", n, frameLimit, syscall.EMSGSIZE)
	case int64(len(b)-head) < n:
		return nil, 0, nil
	}
	size = head + int(n)
	return b[head:size], size, nil
}

func firstLine(b []byte, scanned int) (message []byte, size int, err error) {
	n := bytes.IndexByte(b[scanned:], '\n')
	switch {
	case n < 0 && len(b) <= frameLimit:
		return nil, 0, nil
	case n < 0 || scanned+n > frameLimit:
		return nil, 0, fmt.Errorf("a line of more than %d bytes, which is the bound: %w", frameLimit, syscall.EMSGSIZE)
	}
	return b[:scanned+n], scanned + n + 1, nil
}

// deframer keeps what has come of a stream until whole frames are there.
//
// While bytes arrive they lie in a buffer of the pool; while nothing does, in a
// slice that fits them, or nowhere.
type deframer struct {
	framing framing
	buf     []byte // what has come is buf[start:end]
	start   int
	end     int
	scanned int     // of a line: how much of it has no line feed
	pooled  *buffer // whose room buf is, or nil
}

// first is the first message that has come as a whole, and its size with its
// frame; size 0 is that there is none. It is valid until room is called.
func (d *deframer) first() (message []byte, size int, err error) {
	message, size, err = d.framing.first(d.buf[d.start:d.end], d.scanned)
	if size == 0 {
		d.scanned = d.end - d.start
	}
	return message, size, err
}

// drop takes off what first has found.
func (d *deframer) drop(size int) {
	d.start += size
	d.scanned = 0
}

// rest is how many message bytes have come of a frame that is not whole.
func (d *deframer) rest() int { return max(0, d.end-d.start-d.framing.head()) }

// torn tells whether a part of a frame is there.
func (d *deframer) torn() bool { return d.end > d.start }

// room is where the next bytes of the stream go; grew follows. It is never empty
// while first finds neither a frame nor an error.
func (d *deframer) room() []byte {
	switch {
	case d.start == d.end:
		if d.pooled == nil {
			d.pooled = messageBuffers.Get().(*buffer)
			d.buf = d.pooled.room
		}
		d.start, d.end = 0, 0
	case d.end == len(d.buf):
		d.compact()
	}
	return d.buf[d.end:]
}

func (d *deframer) grew(n int) { d.end += n }

// compact makes room behind what is there: by moving it to the front, or into a
// larger slice when it is at the front already.
func (d *deframer) compact() {
	to := d.buf
	if d.start == 0 {
		to = make([]byte, min(2*len(d.buf), messageRoom))
	}
	d.move(to)
}

// park gives the pool's buffer back, before a wait for more.
func (d *deframer) park() {
	switch n := d.end - d.start; {
	case n == 0:
		d.release()
	case d.pooled != nil:
		d.move(make([]byte, min(max(2*n, frameStart), messageRoom)))
	}
}

// move takes what is there to the front of another slice, or of the same.
func (d *deframer) move(to []byte) {
	n := copy(to, d.buf[d.start:d.end])
	if d.pooled != nil && &to[0] != &d.buf[0] {
		messageBuffers.Put(d.pooled)
		d.pooled = nil
	}
	d.buf, d.start, d.end = to, 0, n
}

// release lets go of all that is there.
func (d *deframer) release() {
	if d.pooled != nil {
		messageBuffers.Put(d.pooled)
	}
	*d = deframer{framing: d.framing}
}

// tornError is a frame that will never be whole: its stream ended or broke inside
// of it, or it is longer than the bound.
type tornError struct {
	got int // bytes of the message that have come, and are lost
	err error
}

func (e *tornError) Error() string {
	if e.err == io.EOF {
		return fmt.Sprintf("the stream ended inside a frame, after %d bytes of its message", e.got)
	}
	return fmt.Sprintf("%v (%d bytes of a message are lost)", e.err, e.got)
}

// Unwrap is what broke the stream. An end is io.ErrUnexpectedEOF: to those who
// ask, io.EOF would be an end in order.
func (e *tornError) Unwrap() error {
	if e.err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return e.err
}

// framedSocket makes messages of a stream: each Recv gives one message, each Send
// takes one as a whole. So it stands wherever a seqpacket socket could.
//
//	stream ──Recv──► deframer ──► Recv
//	stream ◄──Send── rest of a frame ◄── Send
//
// It is no Descriptor and has no Unwrap, so that nobody moves bytes around it. Its
// two locks are held across attempts, which do not block: the pieces of a frame
// must be put together, and written, by one caller at a time.
type framedSocket struct {
	families.Socket // the stream, which it owns
	framing         framing
	lost            losses // descriptors that came with bytes, and bytes of frames that could not be finished

	reading sync.Mutex // guards in, piece and readErr
	in      deframer
	piece   families.Msg
	readErr error // what ended reading inside a frame

	writing  sync.Mutex // guards what follows
	flushed  chan struct{}
	unsent   int // bytes of the frame that is being finished
	writeErr error
}

// framedTCP is a framedSocket on a stream that can be reset.
type framedTCP struct {
	*framedSocket
	stream families.Resetter
}

var (
	_ families.HalfCloser = (*framedSocket)(nil)
	_ families.Resetter   = (*framedTCP)(nil)
	_ queuer              = (*framedSocket)(nil)
)

// newFramed makes messages of a connected stream, which it owns from now on.
func newFramed(stream families.Socket, k framing) families.Socket {
	f := &framedSocket{Socket: stream, framing: k, in: deframer{framing: k}}
	if r, err := families.As[families.Resetter](stream); err == nil {
		return &framedTCP{f, r}
	}
	return f
}

// framedLeg is a leg of messages on a connected stream, which it owns. local: it
// is a unix socket.
func framedLeg(s families.Socket, k string, local bool) *leg {
	l := newLeg(newFramed(s, framing(k)), kindSeqpacket)
	l.local = local
	return l
}

// legOn is newLeg by an endpoint's own options: a stream with framing= is a leg of
// messages.
func (o ownOptions) legOn(s families.Socket, k kind) *leg {
	if o.framing == "" || k != kindStream {
		return newLeg(s, k)
	}
	return framedLeg(s, o.framing, s.Info().Family == "local")
}

// Info is the stream's, as the seqpacket socket that it looks like.
func (f *framedSocket) Info() families.Info {
	i := f.Socket.Info()
	i.Type = families.Seqpacket
	return i
}

// Recv gives one message. A *tornError ends reading: all messages before it were
// given.
func (f *framedSocket) Recv(m *families.Msg) error {
	room, peek := m.Data[:cap(m.Data)], m.Flags&families.FlagPeek != 0
	*m = families.Msg{Data: room[:0]}
	f.reading.Lock()
	defer f.reading.Unlock()
	for {
		message, size, err := f.in.first()
		switch {
		case err != nil:
			return f.tear(err)
		case size == 0:
			if err := f.fill(); err != nil {
				return err
			}
			continue
		}
		m.Full, m.Data = len(message), room[:copy(room, message)]
		if !peek {
			f.in.drop(size)
		}
		if m.Full > len(m.Data) {
			return families.ErrCut
		}
		return nil
	}
}

// fill is one attempt to receive more of the stream. Descriptors cannot go on with
// a message, for which of the messages in a piece they came with is not known.
func (f *framedSocket) fill() error {
	if f.readErr != nil {
		return f.readErr
	}
	f.piece.Data, f.piece.Flags = f.in.room(), 0
	err := f.Socket.Recv(&f.piece)
	f.lost.add(causeFiles, discardFiles(&f.piece))
	switch {
	case err == nil || errors.Is(err, families.ErrCut): // only its descriptors were cut
		f.in.grew(len(f.piece.Data))
		return nil
	case isAgain(err):
		f.in.park()
		return families.ErrAgain
	case f.in.torn():
		return f.tear(err)
	}
	f.in.release()
	return err
}

// tear ends reading inside a frame, of which what has come is lost.
func (f *framedSocket) tear(err error) error {
	torn := &tornError{got: f.in.rest(), err: err}
	f.in.release()
	f.readErr = &tornError{err: err} // nothing is lost twice
	return torn
}

// Send takes one message, all of it or none. What the stream does not take at once
// is brought after it by a goroutine that Close waits for; until then there is no
// room for the next.
func (f *framedSocket) Send(m *families.Msg) (int, error) {
	if err := f.framing.check(m.Data); err != nil {
		return 0, err
	}
	f.writing.Lock()
	defer f.writing.Unlock()
	switch {
	case f.flushed != nil:
		return 0, families.ErrAgain
	case f.writeErr != nil:
		return 0, f.writeErr
	}
	b := messageBuffers.Get().(*buffer)
	defer messageBuffers.Put(b)
	b.out = families.Msg{Data: f.framing.append(b.room[:0], m.Data)}
	n, err := f.Socket.Send(&b.out)
	if n == 0 && err != nil {
		return 0, err
	}
	if rest := b.out.Data[n:]; len(rest) > 0 {
		f.flushed, f.unsent = make(chan struct{}), len(rest)
		go f.flush(bytes.Clone(rest))
	}
	return len(m.Data), nil
}

// flush brings the rest of a frame, as long as that takes: a message that was
// begun is not torn. Close ends it.
func (f *framedSocket) flush(rest []byte) {
	n, err := families.SendAll(context.Background(), f.Socket, &families.Msg{Data: rest})
	f.writing.Lock()
	defer f.writing.Unlock()
	if err != nil {
		f.lost.add(causeUnsent, int64(len(rest)-n))
		f.writeErr = err
	}
	close(f.flushed)
	f.flushed, f.unsent = nil, 0
}

// flushing is closed when the frame that is being finished is; nil is that none is.
func (f *framedSocket) flushing() <-chan struct{} {
	f.writing.Lock()
	defer f.writing.Unlock()
	return f.flushed
}

// Wait waits for a message, which may be there already, or for room for one.
func (f *framedSocket) Wait(ctx context.Context, r families.Ready) error {
	if r&families.Readable != 0 && f.hasMessage() {
		return ctx.Err()
	}
	flushed := f.flushing()
	switch {
	case r&families.Writable == 0 || flushed == nil:
		return f.Socket.Wait(ctx, r)
	case r == families.Writable:
		return awaitFlush(ctx, flushed)
	}
	return f.waitEither(ctx, flushed)
}

// hasMessage tells whether Recv would give something that the stream has given
// before.
func (f *framedSocket) hasMessage() bool {
	f.reading.Lock()
	defer f.reading.Unlock()
	_, size, err := f.in.first()
	return size > 0 || err != nil || f.readErr != nil
}

// awaitFlush waits until the frame in hand is finished, or given up by Close: the
// next attempt tells which.
func awaitFlush(ctx context.Context, flushed <-chan struct{}) error {
	select {
	case <-flushed:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// waitEither waits for bytes of the stream or for the frame in hand, which a
// goroutine watches that has ended before waitEither returns.
func (f *framedSocket) waitEither(ctx context.Context, flushed <-chan struct{}) error {
	both, cancel := context.WithCancel(ctx)
	writable := make(chan error, 1)
	go func() {
		defer cancel()
		writable <- awaitFlush(both, flushed)
	}()
	readErr := f.Socket.Wait(both, families.Readable)
	cancel()
	if writeErr := <-writable; readErr == nil || writeErr == nil {
		return nil
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return readErr
}

// CloseRead ends the stream's reading direction.
func (f *framedSocket) CloseRead() error {
	return f.half(families.HalfCloser.CloseRead)
}

// CloseWrite ends the writing direction behind the frame in hand, for which it
// waits: Close and Reset end the wait.
func (f *framedSocket) CloseWrite() error {
	f.finishFrame()
	return f.half(families.HalfCloser.CloseWrite)
}

// CloseBoth is CloseWrite for both directions.
func (f *framedSocket) CloseBoth() error {
	f.finishFrame()
	return f.half(families.HalfCloser.CloseBoth)
}

func (f *framedSocket) finishFrame() {
	if flushed := f.flushing(); flushed != nil {
		<-flushed
	}
}

func (f *framedSocket) half(end func(families.HalfCloser) error) error {
	h, err := families.As[families.HalfCloser](f.Socket)
	if err != nil {
		return err
	}
	return end(h)
}

// Close closes the stream. What is left of a frame in hand is lost and counted, in
// bytes: CloseWrite before it loses none.
func (f *framedSocket) Close() error { return f.end(f.Socket.Close) }

// Reset resets the stream, as Close.
func (f *framedTCP) Reset() error { return f.end(f.stream.Reset) }

func (f *framedSocket) end(how func() error) error {
	err := how()
	f.finishFrame()
	f.writing.Lock()
	f.writeErr = net.ErrClosed
	f.writing.Unlock()
	f.reading.Lock()
	defer f.reading.Unlock()
	f.in.release()
	return err
}

// queued is what the peer has not taken yet.
func (f *framedSocket) queued() (int, error) {
	n, err := outq(f.Socket)
	f.writing.Lock()
	defer f.writing.Unlock()
	return n + f.unsent, err
}

// losses are what was lost inside the socket.
func (f *framedSocket) losses() *losses { return &f.lost }

// queuer is a socket that keeps some of what was sent to itself.
type queuer interface {
	// queued is how many bytes were sent and have not arrived, with what the
	// kernel keeps.
	queued() (int, error)
}

// outq is how many bytes were sent and have not been taken by the peer.
func outq(s families.Socket) (int, error) {
	if q, err := families.As[queuer](s); err == nil {
		return q.queued()
	}
	return ksock.Outq(s)
}

// lossy is a socket that loses some of what went through it, and counts it.
type lossy interface{ losses() *losses }

// inside is what was lost inside a leg's socket, or nil.
func (l *leg) inside() *losses {
	if l == nil {
		return nil
	}
	in, err := families.As[lossy](l.sock)
	if err != nil {
		return nil
	}
	return in.losses()
}

// takeInside adds what was lost inside a leg's socket.
func (t *tally) takeInside(l *leg) {
	if in := l.inside(); in != nil {
		t.takeLosses(in)
	}
}

// addInside keeps what was lost inside the socket of a leg that is closed.
func (l *losses) addInside(old *leg) {
	if in := old.inside(); in != nil {
		for c := range in.n {
			l.add(cause(c), in.n[c].Load())
		}
	}
}
