package ctl

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"

	"github.com/sockd/sockd/ctl/varlink"
	"github.com/sockd/sockd/families"
)

// The errors of io.sockd.varlink by their names on the wire.
const (
	errInvalidArgument  = "io.sockd.InvalidArgument"
	errNotSupported     = "io.sockd.NotSupported"
	errNotFound         = "io.sockd.NotFound"
	errPermissionDenied = "io.sockd.PermissionDenied"
	errTimedOut         = "io.sockd.TimedOut"
	errAddressInUse     = "io.sockd.AddressInUse"
	errEndOfStream      = "io.sockd.EndOfStream"
	errSystemError      = "io.sockd.SystemError"
	errFailed           = "io.sockd.Failed"
	errBorrowRequired   = "io.sockd.BorrowRequired"

	// errUnreachable is never on the wire: it is what sockd-ctl says when it
	// has nobody to talk to.
	errUnreachable = "io.sockd.Unreachable"
)

// The exit codes of sockd-ctl.
const (
	ExitOK          = 0
	ExitFailed      = 1
	ExitUsage       = 2
	ExitNotFound    = 3
	ExitDenied      = 4
	ExitUnreachable = 5
	ExitTimedOut    = 6
	ExitInUse       = 7
	ExitSystem      = 8
	ExitEOF         = 9
)

// kind is one row of the table between Go errors, wire names and exit codes.
type kind struct {
	name string
	exit int
	// is are the errors of the kind. The first is what a RemoteError of this name
	// unwraps to, beside its errno.
	is []error
}

// kinds are in the order in which they are asked: an error that is of two kinds
// is of the first.
var kinds = []kind{
	{errBorrowRequired, ExitFailed, []error{families.ErrBorrow}},
	{errInvalidArgument, ExitUsage, []error{families.ErrSyntax}},
	{errNotSupported, ExitUsage, []error{families.ErrNotSupported}},
	// A socket that was closed while somebody waited on it is no longer there.
	{errNotFound, ExitNotFound, []error{families.ErrNotFound, net.ErrClosed, syscall.ENODEV, syscall.ENXIO}},
	{errPermissionDenied, ExitDenied, []error{os.ErrPermission, syscall.EACCES, syscall.EPERM}},
	{errTimedOut, ExitTimedOut, []error{context.DeadlineExceeded, os.ErrDeadlineExceeded, syscall.ETIMEDOUT}},
	{errAddressInUse, ExitInUse, []error{families.ErrBusy, syscall.EADDRINUSE, syscall.EEXIST, syscall.EISCONN, syscall.EBUSY}},
	{errEndOfStream, ExitEOF, []error{io.EOF}},
	{errSystemError, ExitSystem, []error{families.ErrCut}},
	{errFailed, ExitFailed, nil},
}

// varlinkExits are the errors of org.varlink.service, which any Varlink service
// may answer with.
var varlinkExits = map[string]struct {
	exit int
	is   error
	why  string
}{
	"org.varlink.service.InterfaceNotFound":    {ExitUsage, families.ErrNotSupported, "no such interface"},
	"org.varlink.service.MethodNotFound":       {ExitUsage, families.ErrNotSupported, "no such method"},
	"org.varlink.service.MethodNotImplemented": {ExitUsage, families.ErrNotSupported, "the method is not implemented"},
	"org.varlink.service.InvalidParameter":     {ExitUsage, families.ErrSyntax, "a parameter is missing, unknown, or of another type"},
	"org.varlink.service.PermissionDenied":     {ExitDenied, os.ErrPermission, "permission denied"},
	"org.varlink.service.ExpectedMore":         {ExitUsage, families.ErrSyntax, "the method must be called with more"},
	"org.varlink.service.ExpectedUpgrade":      {ExitUsage, families.ErrSyntax, "the method must be called with upgrade"},
}

// WireError is the parameters of every error in io.sockd.varlink.
type WireError struct {
	Message string  `json:"message"`
	Exit    int64   `json:"exit"`
	Errno   *string `json:"errno,omitempty"`
	Hint    *string `json:"hint,omitempty"`
	Column  *int64  `json:"column,omitempty"`
}

// RemoteError is an error that the daemon answered with. errors.Is sees through
// it: to families' sentinels, io.EOF, os.ErrPermission, context.DeadlineExceeded,
// and to the syscall.Errno where there was one.
type RemoteError struct {
	Name    string // "io.sockd.AddressInUse"
	Message string // all of it but the errno's name
	Exit    int    // what sockd-ctl ends with
	Errno   string // "EADDRINUSE", or empty
	Hint    string // the command that would help, or empty
	Column  int    // where in the given text it went wrong, bytes from 1, or 0
}

func (e *RemoteError) Error() string { return e.Message }

// Unwrap is what the daemon's error was, as far as the wire tells.
func (e *RemoteError) Unwrap() []error {
	var is []error
	if errno, ok := errnoNamed(e.Errno); ok {
		is = append(is, errno)
	}
	if v, ok := varlinkExits[e.Name]; ok {
		return append(is, v.is)
	}
	for _, k := range kinds {
		// ErrBusy and ErrCut have no errno that says the same, so without one
		// the sentinel is meant.
		if k.name == e.Name && len(k.is) > 0 && (len(is) == 0 || k.name != errAddressInUse && k.name != errSystemError) {
			is = append(is, k.is[0])
		}
	}
	return is
}

// UnreachableError says that nobody answers at the control socket: exit 5.
type UnreachableError struct {
	Path string // of the control socket
	Err  error
	hint string
}

func (e *UnreachableError) Error() string {
	return fmt.Sprintf("control socket %s: %v", visible(e.Path), e.Err)
}

func (e *UnreachableError) Unwrap() error { return e.Err }

// Hint is how the daemon is started.
func (e *UnreachableError) Hint() string { return e.hint }

// EndedError says that the daemon ended the connection within a call, and goes on:
// whether the call was done is not known.
type EndedError struct {
	Method string
	hint   string
}

func (e *EndedError) Error() string {
	return e.Method + ": sockd ended the connection before it answered"
}

// Hint is where the daemon may have said why.
func (e *EndedError) Hint() string { return e.hint }

// SignalError is the cause with which sockd-ctl cancels a verb's context when a
// signal comes: exit 130 for SIGINT, 143 for SIGTERM.
type SignalError struct{ Signal syscall.Signal }

func (e *SignalError) Error() string { return e.Signal.String() }

// printedError is an error that a verb has printed itself: only its exit code is
// still wanted.
type printedError struct{ error }

func (e *printedError) Unwrap() error { return e.error }

// hintError gives an error a hint.
type hintError struct {
	error
	hint string
}

func (e *hintError) Unwrap() error { return e.error }
func (e *hintError) Hint() string  { return e.hint }

// withHint adds the command that would help to an error.
func withHint(err error, hint string) error { return &hintError{err, hint} }

// describe turns any error into what is said of it, on the wire and to the user.
func describe(err error) *RemoteError {
	var remote *RemoteError
	if errors.As(err, &remote) {
		r := *remote
		r.Message = err.Error() // with what was wrapped around it
		if h := hintOf(err); h != "" {
			r.Hint = h
		}
		return &r
	}
	r := &RemoteError{Message: plainWords(joined(err)), Hint: hintOf(err)}
	r.Name, r.Exit = classify(err)
	var errno syscall.Errno
	switch {
	case errors.As(err, &errno):
		r.Errno = errnoName(errno)
	case errors.Is(err, families.ErrCut):
		r.Errno = errnoName(syscall.EMSGSIZE)
	}
	var syntax *families.SyntaxError
	if errors.As(err, &syntax) {
		r.Column = syntax.Column
	}
	return r
}

// plainWords says an error in words that are not Go's.
func plainWords(s string) string {
	return strings.NewReplacer(
		context.DeadlineExceeded.Error(), "timed out",
		context.Canceled.Error(), "the call was ended",
		net.ErrClosed.Error(), "the socket was closed",
	).Replace(s)
}

// joined is an error's text. Those that errors.Join put together, each on a line
// of its own, have a semicolon between: a line feed in a message is part of a name.
func joined(err error) string {
	several, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return err.Error()
	}
	var texts, lines []string
	for _, e := range several.Unwrap() {
		texts, lines = append(texts, joined(e)), append(lines, e.Error())
	}
	if strings.Join(lines, "\n") != err.Error() {
		return err.Error() // fmt.Errorf with several %w
	}
	return strings.Join(texts, "; ")
}

// classify finds an error's wire name and exit code.
func classify(err error) (name string, exit int) {
	var (
		unreachable *UnreachableError
		usage       *UsageError
		signal      *SignalError
		files       *varlink.FilesError
		errno       syscall.Errno
	)
	switch {
	case errors.As(err, &unreachable):
		return errUnreachable, ExitUnreachable
	case errors.As(err, &usage), errors.As(err, &files), errors.Is(err, varlink.ErrTooLarge):
		return errInvalidArgument, ExitUsage
	case errors.As(err, &signal):
		return errFailed, 128 + int(signal.Signal)
	}
	for _, k := range kinds {
		for _, is := range k.is {
			if errors.Is(err, is) {
				return k.name, k.exit
			}
		}
	}
	if errors.As(err, &errno) {
		return errSystemError, ExitSystem
	}
	return errFailed, ExitFailed
}

// hintOf is the outermost hint that an error carries.
func hintOf(err error) string {
	var hinter interface{ Hint() string }
	if errors.As(err, &hinter) && hinter.Hint() != "" {
		return hinter.Hint()
	}
	var usage *UsageError
	if errors.As(err, &usage) && usage.Hint != "" {
		return usage.Hint
	}
	var syntax *families.SyntaxError
	if errors.As(err, &syntax) {
		return syntax.Hint
	}
	return ""
}

// wire is what the daemon answers for an error.
func (e *RemoteError) wire() WireError {
	w := WireError{Message: e.Message, Exit: int64(e.Exit)}
	if e.Errno != "" {
		w.Errno = &e.Errno
	}
	if e.Hint != "" {
		w.Hint = &e.Hint
	}
	if e.Column > 0 {
		column := int64(e.Column)
		w.Column = &column
	}
	return w
}

// remoteError reads the error that a service answered method with.
func remoteError(method, name string, parameters json.RawMessage) *RemoteError {
	if v, ok := varlinkExits[name]; ok {
		var p struct {
			Parameter, Method, Interface string
		}
		_ = json.Unmarshal(parameters, &p) // what is missing is left out of the message
		r := &RemoteError{Name: name, Exit: v.exit, Message: method + ": " + v.why}
		if what := p.Parameter + p.Interface; what != "" {
			r.Message += fmt.Sprintf(": %q", what)
		}
		return r
	}
	var w WireError
	if err := json.Unmarshal(parameters, &w); err != nil || w.Message == "" {
		return &RemoteError{Name: name, Exit: ExitFailed, Message: fmt.Sprintf("%s: %s %s", method, name, parameters)}
	}
	r := &RemoteError{Name: name, Message: w.Message, Exit: int(w.Exit)}
	if w.Errno != nil {
		r.Errno = *w.Errno
	}
	if w.Hint != nil {
		r.Hint = *w.Hint
	}
	if w.Column != nil {
		r.Column = int(*w.Column)
	}
	// 0 and what a shell cannot see would read as success.
	if r.Exit < 1 || r.Exit > 255 {
		r.Exit = ExitFailed
	}
	return r
}

// ExitCode is what sockd-ctl ends with after err; nil is 0.
func ExitCode(err error) int {
	if err == nil {
		return ExitOK
	}
	return describe(err).Exit
}

// PrintError writes err as one line, "sockd-ctl: " in front and the errno's name
// behind, and below it the command that would help; or as one JSON object. A
// signal is its own word: nothing is written for it, nor for what a verb has
// printed already.
func PrintError(w io.Writer, err error, asJSON bool) {
	var signal *SignalError
	var printed *printedError
	if err == nil || errors.As(err, &signal) || errors.As(err, &printed) {
		return
	}
	r := describe(err)
	if asJSON {
		printErrorJSON(w, r)
		return
	}
	line := "sockd-ctl: " + visible(r.Message)
	if r.Errno != "" {
		line += " (" + r.Errno + ")"
	}
	if r.Hint != "" {
		line += "\n  " + visible(r.Hint)
	}
	fmt.Fprintln(w, line)
}

func printErrorJSON(w io.Writer, r *RemoteError) {
	var line bytes.Buffer
	enc := json.NewEncoder(&line)
	enc.SetEscapeHTML(false)
	// Strings and numbers always encode.
	_ = enc.Encode(struct {
		Error string `json:"error"`
		WireError
	}{r.Name, r.wire()})
	_, _ = w.Write(line.Bytes()) // stderr: there is nobody left to tell
}
