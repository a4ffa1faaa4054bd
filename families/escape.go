package families

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// An address has two forms. Its plain form is the bytes that the system sees: what
// Endpoint.Address holds, and a path as open(2) takes it. Its escaped form is text,
// and stands wherever an address is text: on the command line, in lists and error
// lines, in JSON (which has no bytes that are not UTF-8), in ParseAddr and in
// Addr.String. Escape and Unescape go from one to the other; there is no third.

// Escape is s in escaped form, which Unescape and ParseEndpoint read back as an
// address or a value. It is one line of UTF-8 that shows all there is: a comma and
// a backslash have a backslash before them, and what is not UTF-8 or does not print
// (control characters, those that turn the writing direction, U+FFFD, which stands
// for bytes that were lost) is written as \xNN, byte by byte.
func Escape(s string) string {
	return escape(s, func(r rune) bool { return r == ',' || r == '\\' })
}

// Printable is s for somebody's eyes: what does not print is written as in Escape,
// and all else stays. What is in escaped form already stays as it is.
func Printable(s string) string {
	return escape(s, func(rune) bool { return false })
}

// Quote is Printable in quotation marks. Unlike %q it leaves a backslash alone, so
// that an address in an error line can be typed again.
func Quote(s string) string { return `"` + Printable(s) + `"` }

// escape writes a backslash before the runes that special names, and what does not
// print as \xNN.
func escape(s string, special func(rune) bool) string {
	plain := func(r rune) bool { return unicode.IsPrint(r) && r != utf8.RuneError && !special(r) }
	if strings.IndexFunc(s, func(r rune) bool { return !plain(r) }) < 0 {
		return s
	}
	var b strings.Builder
	for len(s) > 0 {
		r, size := utf8.DecodeRuneInString(s)
		switch {
		case plain(r):
			b.WriteString(s[:size])
		case special(r):
			b.WriteByte('\\')
			b.WriteString(s[:size])
		default:
			for _, c := range []byte(s[:size]) {
				fmt.Fprintf(&b, `\x%02x`, c)
			}
		}
		s = s[size:]
	}
	return b.String()
}

// Unescape is the plain form of an address in escaped form. A comma and bytes that
// do not print may also stand for themselves. What it cannot read is a *SyntaxError
// of an address, with the column.
func Unescape(s string) (string, error) {
	if !strings.Contains(s, `\`) {
		return s, nil
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' {
			b.WriteByte(s[i])
			continue
		}
		c, n, ok := unescape(s[i+1:])
		if !ok {
			return "", &SyntaxError{What: "address", Text: s, Column: i + 1, Why: badEscape}
		}
		b.WriteByte(c)
		i += n
	}
	return b.String(), nil
}

const badEscape = `after a backslash comes "," or "\" or "xNN"`

// unescape reads what follows a backslash: the byte meant, and how much was read.
func unescape(s string) (b byte, n int, ok bool) {
	switch {
	case s == "":
		return 0, 0, false
	case s[0] == ',' || s[0] == '\\':
		return s[0], 1, true
	case s[0] == 'x' && len(s) >= 3:
		hi, lo := unhex(s[1]), unhex(s[2])
		return hi<<4 | lo, 3, hi < 16 && lo < 16
	}
	return 0, 0, false
}

func unhex(c byte) byte {
	switch {
	case c >= '0' && c <= '9':
		return c - '0'
	case c >= 'a' && c <= 'f':
		return c - 'a' + 10
	case c >= 'A' && c <= 'F':
		return c - 'A' + 10
	}
	return 0xff
}
