package filter

import (
	"strings"

	"github.com/sockd/sockd/families"
)

// token is a word, a parenthesis or an operator, and where it stands.
type token struct {
	text    string
	column  int  // bytes from 1
	escaped bool // written with a backslash: a value, never a keyword
}

// is tells whether the token is one of the given keywords.
func (t token) is(words ...string) bool {
	if t.escaped {
		return false
	}
	for _, w := range words {
		if t.text == w {
			return true
		}
	}
	return false
}

// split cuts a filter into tokens. The last one is empty, and stands at the end.
func split(text string) []token {
	var out []token
	for i := 0; i < len(text); {
		switch c := text[i]; {
		case isSpace(c):
			i++
		case strings.HasPrefix(text[i:], "&&"), strings.HasPrefix(text[i:], "||"):
			out = append(out, token{text: text[i : i+2], column: i + 1})
			i += 2
		case strings.IndexByte("()!", c) >= 0:
			out = append(out, token{text: text[i : i+1], column: i + 1})
			i++
		default:
			n := wordLen(text[i:])
			t := token{text: text[i : i+n], column: i + 1}
			if c == '\\' && n > 1 {
				t.text, t.escaped = t.text[1:], true
			}
			out = append(out, t)
			i += n
		}
	}
	return append(out, token{column: len(text) + 1})
}

func isSpace(c byte) bool { return c == ' ' || c == '\t' || c == '\n' || c == '\r' }

// wordLen is how far a word reaches; it is at least 1.
func wordLen(s string) int {
	for i := 1; i < len(s); i++ {
		if isSpace(s[i]) || strings.IndexByte("()!&|", s[i]) >= 0 {
			return i
		}
	}
	return len(s)
}

// fail is an error at a token.
func (p *parser) fail(t token, why, hint string) error {
	return &families.SyntaxError{What: "filter", Text: p.text, Column: t.column, Why: why, Hint: hint}
}
