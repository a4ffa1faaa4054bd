package families

import (
	"errors"
	"fmt"
	"unicode/utf8"
)

var (
	// ErrAgain: nothing can be done now; Wait tells when.
	ErrAgain = errors.New("try again")
	// ErrCut: the message was longer than the room for it.
	ErrCut = errors.New("message was cut")
	// ErrNotSupported: this socket, family or kernel has not what was asked.
	ErrNotSupported = errors.New("not supported")
	// ErrSyntax: what the user wrote does not parse.
	ErrSyntax = errors.New("does not parse")
	// ErrNotFound: no such ID, NAME or interface.
	ErrNotFound = errors.New("not found")
	// ErrBusy: the socket or name is taken by somebody else.
	ErrBusy = errors.New("in use")
	// ErrBorrow: the path or abstract name is the caller's to open, who takes the
	// socket's descriptor and makes the call with its own rights.
	ErrBorrow = errors.New("a unix path is its caller's to open")
)

// OpError says what was tried, on what, and why it failed.
type OpError struct {
	Op     string // "bind"
	Family string // "inet"
	Addr   string // as the user wrote it, in escaped form; may be empty
	Err    error  // wraps a syscall.Errno or one of the errors above
}

func (e *OpError) Error() string {
	if e.Addr == "" {
		return fmt.Sprintf("%s %s: %v", e.Op, e.Family, e.Err)
	}
	return fmt.Sprintf("%s %s %s: %v", e.Op, e.Family, Quote(e.Addr), e.Err)
}

func (e *OpError) Unwrap() error { return e.Err }

// SyntaxError is an address, option or filter that does not parse. It wraps
// ErrSyntax.
type SyntaxError struct {
	What   string // "endpoint", "filter", "option"
	Text   string // all of what was given
	Column int    // where it went wrong: bytes from 1, or 0 when the whole is wrong
	Why    string
	Hint   string // what would be right, or empty; alternatives have " or " between them
}

func (e *SyntaxError) Error() string {
	text := Quote(excerpt(e.Text, e.Column))
	if e.Column > 0 {
		return fmt.Sprintf("%s %s: column %d: %s", e.What, text, e.Column, e.Why)
	}
	return fmt.Sprintf("%s %s: %s", e.What, text, e.Why)
}

// maxShown is how many bytes of a text stand in a line about it: a filter may have 64 KiB, and
// nobody would find the column in them.
const maxShown = 200

// excerpt is a text that is not too long, or what is around the column, with … for what is missing.
func excerpt(text string, column int) string {
	if len(text) <= maxShown {
		return text
	}
	from := min(max(column-1-maxShown/2, 0), len(text)-maxShown)
	to := from + maxShown
	for n := 1; n < utf8.UTFMax && from > 0 && !utf8.RuneStart(text[from]); n++ {
		from++
	}
	for n := 1; n < utf8.UTFMax && to < len(text) && !utf8.RuneStart(text[to]); n++ {
		to--
	}
	shown := text[from:to]
	if from > 0 {
		shown = "…" + shown
	}
	if to < len(text) {
		shown += "…"
	}
	return shown
}

func (e *SyntaxError) Unwrap() error { return ErrSyntax }
