package ctl

import (
	"context"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/model"
)

// MaxInline is the most data that a message of the control socket carries: base64
// makes 700 KB of it, and a message holds 1 MiB.
const MaxInline = 512 << 10

type recvIn struct {
	ID      model.ID `json:"id"`
	Max     *int     `json:"max,omitempty"`
	Timeout *int64   `json:"timeout,omitempty"`
}

type recvOut struct {
	Data      []byte `json:"data"`
	Bytes     int    `json:"bytes"`
	FullBytes int    `json:"full_bytes"`
	From      string `json:"from"`
	EOF       bool   `json:"eof"`
}

var _ = addMethod(unary("io.sockd.Manager.Recv", serveRecv))

func serveRecv(ctx context.Context, r request, in recvIn) (recvOut, error) {
	room := MaxInline
	if in.Max != nil {
		room = *in.Max
	}
	if room < 1 || room > MaxInline {
		return recvOut{}, fmt.Errorf("recv at most %d bytes: want 1 to %d: %w", room, MaxInline, families.ErrSyntax)
	}
	ctx, cancel := withTimeout(ctx, in.Timeout)
	defer cancel()
	m, undo, err := r.Recv(ctx, r.caller, in.ID, room)
	if undo != nil {
		r.call.OnUndelivered(undo)
	}
	// The end of the stream and a cut message are answers: a caller may want
	// what came with them.
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, families.ErrCut) {
		return recvOut{}, err
	}
	return recvOut{
		Data: append([]byte{}, m.Data...), Bytes: len(m.Data), FullBytes: max(m.Full, len(m.Data)),
		From: m.From, EOF: m.EOF || errors.Is(err, io.EOF),
	}, nil
}

var _ = register(Verb{
	Name:  "recv",
	Args:  "ID",
	Short: "receive one message, or a piece of a stream",
	Long: `Waits until there is something to receive, and writes one message, or one read of a stream, to stdout byte for byte. At the end of a stream the exit code is 9. A message that did not fit --max is written as far as it did, and the exit code is 8.
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
	size := fs.String("max", "", "take at most `SIZE` bytes (at most and without it 512k)")
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
		var out recvOut
		if err := e.call(ctx, "io.sockd.Manager.Recv", in, &out); err != nil {
			return err
		}
		if err := printReceived(e, out, recvFlags{*from, *asHex}); err != nil {
			return err
		}
		return out.err(in.ID)
	}
}

func parseMax(size string) (*int, error) {
	if size == "" {
		return nil, nil
	}
	n, err := ParseSize(size)
	if err != nil {
		return nil, err
	}
	if n < 1 || n > MaxInline {
		return nil, &UsageError{Verb: "recv", Why: fmt.Sprintf("--max %s: want 1 to 512k", size)}
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
