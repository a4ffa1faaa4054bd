package ctl

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"syscall"

	"github.com/sockd/sockd/ctl/borrow"
	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/model"
)

// maxMessage is the longest message that send and recv take.
const maxMessage = model.MaxMessage

type sendIn struct {
	ID         model.ID `json:"id"`
	Data       *[]byte  `json:"data,omitempty"`
	Descriptor *int     `json:"descriptor,omitempty"`
	To         *string  `json:"to,omitempty"`
	Timeout    *int64   `json:"timeout,omitempty"`
}

type sendOut struct {
	Bytes int64 `json:"bytes"`
}

var _ = addMethod(unary("io.sockd.Manager.Send", serveSend))

func serveSend(ctx context.Context, r request, in sendIn) (sendOut, error) {
	data, err := r.dataToSend(in)
	if err != nil {
		return sendOut{}, err
	}
	ctx, cancel := withTimeout(ctx, in.Timeout)
	defer cancel()
	n, err := r.Send(ctx, r.caller, in.ID, data, orZero(in.To))
	if err != nil && n > 0 {
		return sendOut{}, fmt.Errorf("%w (%d of %d bytes were sent)", err, n, len(data))
	}
	return sendOut{int64(n)}, err
}

// dataToSend is what the parameters carry, in one of two ways.
func (r request) dataToSend(in sendIn) ([]byte, error) {
	switch {
	case in.Data != nil && in.Descriptor != nil:
		return nil, fmt.Errorf("send %d: data and a descriptor are one too many: %w", in.ID, families.ErrSyntax)
	case in.Data != nil:
		return *in.Data, nil
	case in.Descriptor == nil:
		return nil, fmt.Errorf("send %d: neither data nor a descriptor: %w", in.ID, families.ErrSyntax)
	}
	fd, err := r.takeFile(in.Descriptor)
	if err != nil {
		return nil, err
	}
	defer closeFile(fd)
	return readMemfd(fd)
}

// fcntlGetSeals is F_GET_SEALS of fcntl(2).
const fcntlGetSeals = 1034

// checkMemfd refuses all but a memfd, or a file in a tmpfs. Anything else could
// make the daemon wait: a pipe that stays empty, a file system that its caller
// serves himself. Even fstat(2) asks that one, but F_GET_SEALS does not: it fails
// at once with EINVAL on all that is not shared memory.
func checkMemfd(op string, fd int) error {
	if _, _, errno := syscall.Syscall(syscall.SYS_FCNTL, uintptr(fd), fcntlGetSeals, 0); errno != 0 {
		return fmt.Errorf("%s: the descriptor is no memfd: %w", op, families.ErrSyntax)
	}
	return nil
}

// readMemfd reads a memfd from its start.
func readMemfd(fd int) ([]byte, error) {
	if err := checkMemfd("send", fd); err != nil {
		return nil, err
	}
	var st syscall.Stat_t
	if err := syscall.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("send: stat the memfd: %w", err)
	}
	if st.Size > maxMessage {
		return nil, fmt.Errorf("send: %d bytes: %w", st.Size, syscall.EMSGSIZE)
	}
	return pread(fd, make([]byte, st.Size))
}

// pread fills data from the file's start, with less when it shrank meanwhile.
func pread(fd int, data []byte) ([]byte, error) {
	for n := 0; n < len(data); {
		got, err := syscall.Pread(fd, data[n:], int64(n))
		switch {
		case errors.Is(err, syscall.EINTR):
			continue
		case err != nil:
			return nil, fmt.Errorf("read the memfd: %w", err)
		case got == 0:
			return data[:n], nil
		}
		n += got
	}
	return data, nil
}

var _ = register(Verb{
	Name:  "send",
	Args:  "ID [DATA]",
	Short: "send a message, or bytes into a stream",
	Long: `Sends DATA, or without it what stdin has, and writes how many bytes went to stderr. No newline is added. On a message socket all of stdin is one message; on a stream it is sent in pieces as it comes, until its end.
DATA that begins with "-" comes after "--". --hex reads DATA or stdin as hex digits; white space between them is left out.
--to names the receiver on a socket that is not connected; on a connection it is EISCONN (exit 7). A path or @name is reached by sockd-ctl itself, with its user's rights.`,
	Examples: []string{
		"sockd-ctl send 2 hello                # prints on stderr: 5 bytes",
		"sockd-ctl send 2 < request.txt        # all of the file",
		"sockd-ctl send --to 127.0.0.1:53 --hex 3 0a0b0c",
		"sockd-ctl send 2 -- --looks-like-a-flag",
	},
	Complete: []string{"socket", ""},
	Setup:    setupSend,
})

// sending is one run of send.
type sending struct {
	e   *Env
	c   *Client
	id  model.ID
	to  address // its text is empty when the socket is connected
	hex bool
}

func setupSend(fs *flag.FlagSet) Run {
	to := fs.String("to", "", "send to `ADDRESS`, on a socket that is not connected")
	asHex := fs.Bool("hex", false, "the data is hex digits")
	return func(ctx context.Context, e *Env, args []string) error {
		if err := wantArgs("send", args, 1, 2); err != nil {
			return err
		}
		id, err := parseID("send", args[0])
		if err != nil {
			return err
		}
		s := &sending{e: e, id: id, hex: *asHex}
		if s.to, err = parseAddress(*to); err != nil {
			return err
		}
		var data []byte
		if len(args) == 2 {
			if data, err = s.decode([]byte(args[1])); err != nil {
				return err
			}
		}
		if s.c, err = e.Dial(ctx); err != nil {
			return err
		}
		defer s.c.Close()
		var sent int64
		if len(args) == 2 {
			sent, err = s.send(ctx, data)
		} else {
			sent, err = s.sendStdin(ctx)
		}
		return s.report(sent, err)
	}
}

// report says what went, also when the rest did not.
func (s *sending) report(sent int64, err error) error {
	if err != nil && sent == 0 {
		return err
	}
	if s.e.wantsJSON() {
		return errors.Join(s.e.printJSON(sendOut{sent}), err)
	}
	if sent == 1 {
		s.e.say("1 byte")
	} else {
		s.e.say("%d bytes", sent)
	}
	return err
}

// sendStdin sends what stdin has: its pieces into a stream, else all as one
// message.
func (s *sending) sendStdin(ctx context.Context) (int64, error) {
	// Not to wait (0) is about the socket: what is in a pipe comes as fast as it can.
	if limit := s.e.timeoutParameter(); orZero(limit) > 0 {
		limited, cancel := withTimeout(ctx, limit)
		defer cancel()
		ctx = limited
	}
	var shown Object
	if err := s.c.Call(ctx, "io.sockd.Manager.Show", map[string]string{"ref": fmt.Sprint(s.id)}, &shown); err != nil {
		return 0, err
	}
	if shown.Socket != nil && shown.Socket.Type == families.Stream.String() && !s.hex {
		return s.sendPieces(ctx)
	}
	// Two hex digits a byte, and white space between.
	data, err := io.ReadAll(io.LimitReader(interruptible{ctx, s.e.Stdin}, 3*maxMessage+1))
	if err != nil {
		return 0, fmt.Errorf("send: read stdin: %w", err)
	}
	if len(data) > 3*maxMessage {
		return 0, s.tooLong()
	}
	if data, err = s.decode(data); err != nil {
		return 0, err
	}
	return s.send(ctx, data)
}

func (s *sending) sendPieces(ctx context.Context) (int64, error) {
	var total int64
	stdin := interruptible{ctx, s.e.Stdin}
	piece := make([]byte, MaxInline)
	for {
		n, err := stdin.Read(piece)
		if n > 0 {
			sent, err := s.send(ctx, piece[:n])
			total += sent
			if err != nil {
				return total, err
			}
		}
		if errors.Is(err, io.EOF) {
			return total, nil
		}
		if err != nil {
			return total, fmt.Errorf("send: read stdin: %w", err)
		}
	}
}

// send sends one message, or one piece of a stream.
func (s *sending) send(ctx context.Context, data []byte) (int64, error) {
	if len(data) > maxMessage {
		return 0, s.tooLong()
	}
	var out sendOut
	err := s.call(ctx, data, &out)
	if s.to.text != "" && mustBorrow(err) {
		return s.sendBorrowed(ctx, data)
	}
	return out.Bytes, err
}

func (s *sending) tooLong() error {
	return fmt.Errorf("send %d: more than %d bytes: %w", s.id, maxMessage, syscall.EMSGSIZE)
}

// call passes what is too large for a message of the control socket in a memfd.
func (s *sending) call(ctx context.Context, data []byte, out *sendOut) error {
	in := sendIn{ID: s.id, Timeout: s.e.timeoutParameter()}
	if s.to.text != "" {
		in.To = &s.to.text
	}
	if len(data) <= MaxInline {
		in.Data = &data
		return s.c.Call(ctx, "io.sockd.Manager.Send", in, out)
	}
	fd, err := borrow.Memfd(data)
	if err != nil {
		return fmt.Errorf("send %d: %w", s.id, err)
	}
	defer closeFile(fd)
	in.Descriptor = new(int) // the message's first
	return s.c.Call(ctx, "io.sockd.Manager.Send", in, out, fd)
}

func (s *sending) sendBorrowed(ctx context.Context, data []byte) (int64, error) {
	var total int64
	_, err := s.c.borrowSocket(ctx, s.id, "send", func(fd int) (*int64, error) {
		ctx, cancel := withTimeout(ctx, s.e.timeoutParameter())
		defer cancel()
		if err := borrow.SendTo(ctx, fd, data, s.to.plain); err != nil {
			return nil, err
		}
		total = int64(len(data))
		return &total, nil
	})
	return total, err
}

// decode reads hex digits, if that is what the data is.
func (s *sending) decode(data []byte) ([]byte, error) {
	if !s.hex {
		return data, nil
	}
	return hexDigits("send", data)
}
