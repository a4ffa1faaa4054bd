package varlink

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"unicode/utf8"
)

// A member is one name and value of a JSON object.
type member struct {
	name  string
	value json.RawMessage
}

// checkText tells whether text is exactly one JSON value in sound UTF-8. The
// functions below rely on it.
func checkText(text []byte) error {
	if !utf8.Valid(text) {
		return errors.New("invalid UTF-8")
	}
	if !json.Valid(text) {
		return errors.New("invalid JSON")
	}
	if hasLoneSurrogate(text) {
		return errors.New("an escaped surrogate without its other half")
	}
	return nil
}

// hasLoneSurrogate finds \ud800 and the like. encoding/json would turn it into
// U+FFFD without a word: another path, another name than the one that was sent.
func hasLoneSurrogate(text []byte) bool {
	high := false // the escape just before was a high surrogate
	for i := 0; i < len(text); {
		unit, size := escapedUnit(text[i:])
		low := unit >= 0xdc00 && unit <= 0xdfff
		if low != high {
			return true
		}
		high = unit >= 0xd800 && unit <= 0xdbff
		i += size
	}
	return high
}

// escapedUnit reads one character or escape of JSON text; unit is 0 unless it was
// \uXXXX.
func escapedUnit(text []byte) (unit rune, size int) {
	if text[0] != '\\' {
		return 0, 1
	}
	if text[1] != 'u' {
		return 0, 2
	}
	for _, digit := range text[2:6] {
		unit = unit<<4 | hexValue(digit)
	}
	return unit, 6
}

func hexValue(c byte) rune {
	switch {
	case c >= 'a':
		return rune(c-'a') + 10
	case c >= 'A':
		return rune(c-'A') + 10
	}
	return rune(c - '0')
}

func isNull(raw []byte) bool { return string(raw) == "null" }

func trimSpace(text []byte) []byte { return bytes.Trim(text, " \t\r\n") }

// objectMembers splits an object, in its order. A name that comes twice is an
// error: receivers disagree on which one counts.
func objectMembers(obj []byte) ([]member, error) {
	var members []member
	seen := map[string]bool{}
	for i := next(obj, 1); obj[i] != '}'; {
		end := skipString(obj, i)
		var m member
		if err := json.Unmarshal(obj[i:end], &m.name); err != nil {
			return nil, err
		}
		if seen[m.name] {
			return nil, fmt.Errorf("member %q comes twice", m.name)
		}
		seen[m.name] = true
		begin := next(obj, next(obj, end)+1) // beyond the colon
		end = skipValue(obj, begin)
		m.value = json.RawMessage(obj[begin:end:end])
		members = append(members, m)
		i = nextItem(obj, end)
	}
	return members, nil
}

// arrayElements splits an array.
func arrayElements(arr []byte) []json.RawMessage {
	var elements []json.RawMessage
	for i := next(arr, 1); arr[i] != ']'; {
		end := skipValue(arr, i)
		elements = append(elements, json.RawMessage(arr[i:end:end]))
		i = nextItem(arr, end)
	}
	return elements
}

// nextItem steps over a comma, or stays at the closing bracket.
func nextItem(text []byte, i int) int {
	if i = next(text, i); text[i] == ',' {
		return next(text, i+1)
	}
	return i
}

// next is the first index from i on that is no white space.
func next(text []byte, i int) int {
	for text[i] == ' ' || text[i] == '\t' || text[i] == '\r' || text[i] == '\n' {
		i++
	}
	return i
}

// skipValue is the index behind the value that begins at i.
func skipValue(text []byte, i int) int {
	switch text[i] {
	case '"':
		return skipString(text, i)
	case '{', '[':
		return skipNested(text, i)
	}
	for i < len(text) && !bytes.ContainsRune([]byte(",]} \t\r\n"), rune(text[i])) {
		i++
	}
	return i
}

func skipNested(text []byte, i int) int {
	for depth := 0; ; {
		switch text[i] {
		case '"':
			i = skipString(text, i)
			continue
		case '{', '[':
			depth++
		case '}', ']':
			depth--
		}
		i++
		if depth == 0 {
			return i
		}
	}
}

func skipString(text []byte, i int) int {
	for i++; text[i] != '"'; i++ {
		if text[i] == '\\' {
			i++
		}
	}
	return i + 1
}
