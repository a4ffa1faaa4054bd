package ctl

import (
	"context"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"syscall"

	"github.com/sockd/sockd/ctl/borrow"
	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/model"
)

// MaxInline is the most data that a message of the control socket carries: base64
// makes 700 KB of it, and a message holds 1 MiB.
const MaxInline = 512 << 10

type recvIn struct {
	ID         model.ID `json:"id"`
	Max        *int     `json:"max,omitempty"`
	Timeout    *int64   `json:"timeout,omitempty"`
	Descriptor *int     `json:"descriptor,omitempty"`
}

type recvOut struct {
	Data         []byte `json:"data"`
	Bytes        int    `json:"bytes"`
	FullBytes    int    `json:"full_bytes"`
	From         string `json:"from"`
	EOF          bool   `json:"eof"`
	InDescriptor *bool  `json:"in_descriptor,omitempty"`
}

var _ = addMethod(unary("io.sockd.Manager.Recv", serveRecv))

func serveRecv(ctx context.Context, r request, in recvIn) (recvOut, error) {
	memfd, err := r.takeFile(in.Descriptor)
	if err != nil {
		return recvOut{}, err
	}
	defer closeFile(memfd)
	spec, err := in.spec(memfd)
	if err != nil {
		return recvOut{}, err
	}
	ctx, cancel := withTimeout(ctx, in.Timeout)
	defer cancel()
	m, undo, err := r.Recv(ctx, r.caller, in.ID, spec)
	if undo != nil {
		r.call.OnUndelivered(undo)
	}
	// The end of the stream and a cut message are answers: a caller may want
	// what came with them.
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, families.ErrCut) {
		return recvOut{}, err
	}
	out := recvOut{
		Data: append([]byte{}, m.Data...), Bytes: len(m.Data), FullBytes: max(m.Full, len(m.Data)),
		From: m.From, EOF: m.EOF || errors.Is(err, io.EOF),
	}
	if len(m.Data) > MaxInline {
		return out.passed(memfd)
	}
	return out, nil
}

// spec is how much may be received, with what it comes by.
func (in recvIn) spec(memfd int) (model.RecvSpec, error) {
	spec := model.RecvSpec{Max: orZero(in.Max), Room: MaxInline}
	if memfd >= 0 {
		spec.Room = maxMessage
		if err := checkMemfd("recv", memfd); err != nil {
			return spec, err
		}
	}
	if in.Max != nil && (spec.Max < 1 || spec.Max > spec.Room) {
		return spec, fmt.Errorf("recv at most %d bytes: want 1 to %d: %w", spec.Max, spec.Room, families.ErrSyntax)
	}
	return spec, nil
}

// passed writes the data into the caller's memfd. On error the message goes back
// to where it came from, since it is not answered.
func (out recvOut) passed(memfd int) (recvOut, error) {
	for n := 0; n < len(out.Data); {
		did, err := syscall.Pwrite(memfd, out.Data[n:], int64(n))
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil {
			return recvOut{}, fmt.Errorf("recv: write %d bytes into the memfd: %w", out.Bytes, err)
		}
		n += did
	}
	yes := true
	out.Data, out.InDescriptor = []byte{}, &yes
	return out, nil
}

// fetch has the data in place, wherever it came.
func (out *recvOut) fetch(memfd int) error {
	if !orZero(out.InDescriptor) {
		return nil
	}
	if out.Bytes < 0 || out.Bytes > maxMessage {
		return fmt.Errorf("recv: the answer tells of %d bytes", out.Bytes)
	}
	data, err := pread(memfd, make([]byte, out.Bytes))
	if err != nil {
		return err
	}
	if len(data) < out.Bytes {
		return fmt.Errorf("recv: %d of %d bytes are in the memfd: %w", len(data), out.Bytes, io.ErrUnexpectedEOF)
	}
	out.Data, out.InDescriptor = data, nil
	return nil
}

var _ = register(Verb{
	Name:  "recv",
	Args:  "ID",
	Short: "receive one message, or a piece of a stream",
	Long: `Waits until there is something to receive, and writes one message, or one read of a stream, to stdout byte for byte. At the end of a stream the exit code is 9. A message comes whole, however long it is (up to 16 MiB); one that did not fit --max is written as far as it did, its rest is lost, and the exit code is 8.
--timeout bounds the wait; 0 takes only what is there already, else the exit code is 6. A message that was taken for a caller who left goes to the next recv.`,
	Examples: []string{
		"sockd-ctl recv 2                      # the next message, or what the stream has",
		"sockd-ctl recv --from --hex 3         # as hex digits, the sender on stderr",
		"sockd-ctl --timeout 0 recv 2          # only what is there already",
	},
	Complete: []string{"socket"},
	Setup:    setupRecv,
})

// recvFlags are how recv shows what it got.
type recvFlags struct{ from, hex bool }

func setupRecv(fs *flag.FlagSet) Run {
	size := fs.String("max", "", "take at most `SIZE` bytes of a message or a stream (up to 16M; without it a message as a whole)")
	from := fs.Bool("from", false, "write the sender's address to stderr")
	asHex := fs.Bool("hex", false, "write hex digits")
	return func(ctx context.Context, e *Env, args []string) error {
		if err := wantArgs("recv", args, 1, 1); err != nil {
			return err
		}
		in := recvIn{Timeout: e.timeoutParameter()}
		var err error
		if in.ID, err = parseID("recv", args[0]); err != nil {
			return err
		}
		if in.Max, err = parseMax(*size); err != nil {
			return err
		}
		out, err := receive(ctx, e, in)
		if err != nil {
			return err
		}
		if err := printReceived(e, out, recvFlags{*from, *asHex}); err != nil {
			return err
		}
		return out.err(in.ID)
	}
}

// receive passes a memfd along, for a message that is too large for the answer.
func receive(ctx context.Context, e *Env, in recvIn) (out recvOut, err error) {
	memfd, err := borrow.Memfd(nil)
	if err != nil {
		return out, fmt.Errorf("recv %d: %w", in.ID, err)
	}
	defer closeFile(memfd)
	in.Descriptor = new(int) // the message's first
	if err := e.call(ctx, "io.sockd.Manager.Recv", in, &out, memfd); err != nil {
		return out, err
	}
	return out, out.fetch(memfd)
}

func parseMax(size string) (*int, error) {
	if size == "" {
		return nil, nil
	}
	n, err := model.ParseSize(size)
	if err != nil {
		return nil, err
	}
	if n < 1 || n > maxMessage {
		return nil, &UsageError{Verb: "recv", Why: fmt.Sprintf("--max %s: want 1 to 16M", size)}
	}
	room := int(n)
	return &room, nil
}

func printReceived(e *Env, out recvOut, f recvFlags) error {
	if e.wantsJSON() {
		return e.printJSON(out)
	}
	if f.from && !out.EOF {
		e.say("%s", cell(out.From))
	}
	if f.hex && !out.EOF {
		_, err := fmt.Fprintln(e.Stdout, hex.EncodeToString(out.Data))
		return err
	}
	_, err := e.Stdout.Write(out.Data)
	return err
}

// err is what the exit code tells of a message that came.
func (out recvOut) err(id model.ID) error {
	switch {
	case out.EOF:
		return &plainError{fmt.Sprintf("recv %d: end of stream", id), io.EOF}
	case out.FullBytes > out.Bytes:
		return fmt.Errorf("recv %d: %w: %d of %d bytes", id, families.ErrCut, out.Bytes, out.FullBytes)
	}
	return nil
}

// plainError is an error in other words than its cause's.
type plainError struct {
	text  string
	cause error
}

func (e *plainError) Error() string { return e.text }
func (e *plainError) Unwrap() error { return e.cause }
