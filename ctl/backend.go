package ctl

import (
	"context"
	"io"
	"time"

	"github.com/sockd/sockd/families/model"
)

// Backend is what ctl asks of the daemon. Every method may be called from any
// goroutine. Those that wait end with ctx, after one attempt when it has ended
// before (a timeout of 0). Errors wrap families' sentinels or a syscall.Errno; a
// unix path or abstract name that is the caller's to open is families.ErrBorrow.
type Backend interface {
	// Authorize is asked before every method, by its full name, before its
	// parameters are read. The error wraps syscall.EPERM.
	Authorize(c model.Caller, method string) error

	// Open opens a socket. With fd (else model.NoFD) the caller opened it; on
	// success the daemon owns fd.
	Open(ctx context.Context, c model.Caller, family, typ string, protocol int, protocolName string, fd int) (model.Socket, error)
	// Keep makes a socket outlive the daemon's process, with what it accepts from then
	// on. Where nothing holds it then, the error wraps families.ErrNotSupported.
	Keep(ctx context.Context, c model.Caller, id model.ID) (model.Socket, error)
	Bind(ctx context.Context, c model.Caller, id model.ID, addr string) (model.Socket, error)
	Listen(ctx context.Context, c model.Caller, id model.ID, backlog int) (model.Socket, error)
	Accept(ctx context.Context, c model.Caller, id model.ID) (model.Socket, error)
	Connect(ctx context.Context, c model.Caller, id model.ID, addr string) (model.Socket, error)
	// Send reports the bytes that were taken, on error too.
	Send(ctx context.Context, c model.Caller, id model.ID, data []byte, to string) (int, error)
	// Recv takes one message, or one piece of a stream, of what spec allows. undo gives it back to the
	// front of the socket's queue, for a caller who left before it arrived; it is
	// nil when nothing was taken.
	Recv(ctx context.Context, c model.Caller, id model.ID, spec model.RecvSpec) (m model.Message, undo func(), err error)
	Shutdown(ctx context.Context, c model.Caller, id model.ID, how string) (model.Socket, error)
	// Options reads (nil value) and sets options in order; none reads all.
	Options(ctx context.Context, c model.Caller, id model.ID, opts []Option) ([]Option, error)
	// Borrow calls f with a duplicate of a local socket's descriptor, which f
	// does not close.
	Borrow(ctx context.Context, c model.Caller, id model.ID, f func(fd int, typ string) error) error
	// Return says what a borrower did (bind connect listen send).
	Return(ctx context.Context, c model.Caller, id model.ID, done string, bytes, messages int64) (model.Socket, error)

	// Close closes an object of any kind. accepted takes with a listening
	// socket what it accepted. It returns the IDs that were closed.
	Close(ctx context.Context, c model.Caller, ref string, accepted bool) ([]model.ID, error)
	// CloseAll closes what the caller owns.
	CloseAll(ctx context.Context, c model.Caller) ([]model.ID, error)

	// List returns every object of the given kinds that the caller may see, by ID.
	List(ctx context.Context, c model.Caller, kinds []string) (Listing, error)
	// Show finds one object of any kind.
	Show(ctx context.Context, c model.Caller, ref string) (Object, error)
	// Watch calls f for each event, first the snapshot, until ctx ends or f fails.
	Watch(ctx context.Context, c model.Caller, f func(model.Event) error) error
	Status(ctx context.Context, c model.Caller) (model.Status, error)

	// Attach takes a socket for one caller. Nothing moves before Run. On success
	// it owns spec.FD.
	Attach(ctx context.Context, c model.Caller, spec model.AttachSpec) (Attachment, error)

	RelayAdd(ctx context.Context, c model.Caller, spec model.RelaySpec, replace bool) (model.Relay, error)
	RelaySet(ctx context.Context, c model.Caller, ref string, change model.RelayChange) (model.Relay, error)
	// RelayRemove: drain < 0 waits for sessions without a limit, 0 resets them.
	RelayRemove(ctx context.Context, c model.Caller, ref string, drain time.Duration) (model.Relay, error)
	RelaySpec(ctx context.Context, c model.Caller, ref string) (model.RelaySpec, error)
	// RelayAudit checks the books of one relay, or for "" of all that the caller may
	// see.
	RelayAudit(ctx context.Context, c model.Caller, ref string) ([]model.Audit, error)

	// Capture starts a capture. Nothing is delivered before Run, but frames are
	// kept from now on.
	Capture(ctx context.Context, c model.Caller, spec model.CaptureSpec) (Capturing, error)
	// Interfaces lists what can be captured on, any first, then by index.
	Interfaces(ctx context.Context, c model.Caller) ([]model.Interface, error)
	// CaptureShare starts a capture into memory that the caller reads.
	CaptureShare(ctx context.Context, c model.Caller, spec model.CaptureSpec) (Sharing, error)

	// Inject opens an interface to send frames. Nothing is sent before Run.
	Inject(ctx context.Context, c model.Caller, spec model.InjectSpec) (Injection, error)
	// CaptureSet replaces the filter of a capture that runs: no packet is lost meanwhile.
	CaptureSet(ctx context.Context, c model.Caller, ref, filter string) (model.Capture, error)

	// RecorderAdd starts a recorder. On success it owns spec's descriptors.
	RecorderAdd(ctx context.Context, c model.Caller, spec model.RecorderSpec) (model.Recorder, error)
	RecorderSet(ctx context.Context, c model.Caller, ref string, change model.RecorderChange) (model.Recorder, error)
	RecorderRemove(ctx context.Context, c model.Caller, ref string) (model.Recorder, error)
	// RecorderDump writes what a recorder has to w, in whole blocks of pcapng, or nothing
	// when it is refused.
	RecorderDump(ctx context.Context, c model.Caller, ref string, spec model.DumpSpec, w io.Writer) (model.DumpReport, error)
}

// The shared words that stand in Backend, under the names that ctl uses.
type (
	Option     = model.Option
	Listing    = model.Listing
	Object     = model.Object
	Attachment = model.Attachment
	Capturing  = model.Capturing
	Injection  = model.Injection
	Sharing    = model.Sharing
)
