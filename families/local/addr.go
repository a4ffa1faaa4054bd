package local

import (
	"encoding/binary"
	"fmt"
	"strings"
	"syscall"
	"unicode/utf8"

	"github.com/sockd/sockd/families"
)

// Addr is a path or an abstract name.
//
// String writes a backslash as `\\`, and bytes that do not print or are no UTF-8
// as `\xNN`; ParseAddr reads both, takes a backslash before anything else for
// itself, and every other byte as it is. So a printed address can be read with or
// without the escapes that an endpoint has around it.
type Addr struct {
	typ families.Type
	// name is the path, or "\x00" and the abstract name.
	name string
}

var _ families.Addr = Addr{}

const (
	// maxPath is the room in struct sockaddr_un. A path that fills it needs no
	// NUL (unix(7), BUGS).
	maxPath = 108
	// familyLen is sizeof(sa_family_t), before the path.
	familyLen = 2
)

// ParseAddr reads a path, which stays relative if it is, or "@" and an abstract
// name. "@" alone lets the system pick a name when it is bound.
func (family) ParseAddr(t families.Type, s string) (families.Addr, error) {
	if s == "" {
		return nil, wrong(s, "want a path or @NAME")
	}
	if abstract, ok := strings.CutPrefix(s, "@"); ok {
		return fitting(s, Addr{t, "\x00" + unescape(abstract)})
	}
	path := unescape(s)
	if strings.Contains(path, "\x00") {
		return nil, wrong(s, "a path has no NUL byte")
	}
	return fitting(s, pathAddr(t, path))
}

func fitting(s string, a Addr) (families.Addr, error) {
	if len(a.name) > maxPath {
		return nil, wrong(s, fmt.Sprintf("%d bytes are too long: at most 108 for a path, 107 after the @", len(a.name)))
	}
	return a, nil
}

// pathAddr is the address of a path. One that starts with "@" gets a "./" in
// front: the same file, and no abstract name when it is printed.
func pathAddr(t families.Type, path string) Addr {
	if path[0] == '@' {
		path = "./" + path
	}
	return Addr{t, path}
}

func wrong(s, why string) error {
	return &families.SyntaxError{What: "address", Text: s, Column: 1, Why: why, Hint: "/run/x.sock or @x"}
}

func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '\\' && i+1 < len(s) && s[i+1] == '\\':
			b.WriteByte('\\')
			i++
		case s[i] == '\\' && i+3 < len(s) && s[i+1] == 'x' && isHex(s[i+2]) && isHex(s[i+3]):
			b.WriteByte(fromHex(s[i+2])<<4 | fromHex(s[i+3]))
			i += 3
		default:
			b.WriteByte(s[i])
		}
	}
	return b.String()
}

func isHex(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F'
}

func fromHex(c byte) byte {
	switch {
	case c <= '9':
		return c - '0'
	case c <= 'F':
		return c - 'A' + 10
	}
	return c - 'a' + 10
}

func escape(s string) string {
	var b strings.Builder
	for len(s) > 0 {
		r, size := utf8.DecodeRuneInString(s)
		switch {
		case r == '\\':
			b.WriteString(`\\`)
		case r == utf8.RuneError && size == 1, r < ' ', r == 0x7f:
			fmt.Fprintf(&b, `\x%02x`, s[0])
		default:
			b.WriteString(s[:size])
		}
		s = s[size:]
	}
	return b.String()
}

// Network is unix, unixgram or unixpacket.
func (a Addr) Network() string {
	switch a.typ {
	case families.Dgram:
		return "unixgram"
	case families.Seqpacket:
		return "unixpacket"
	}
	return "unix"
}

// String is what ParseAddr reads.
func (a Addr) String() string {
	if abstract, ok := strings.CutPrefix(a.name, "\x00"); ok {
		return "@" + escape(abstract)
	}
	return escape(a.name)
}

// Scope is the path as it is, or "@" and the abstract name.
func (a Addr) Scope() families.Scope {
	if abstract, ok := strings.CutPrefix(a.name, "\x00"); ok {
		return families.Scope{Path: "@" + abstract}
	}
	return families.Scope{Path: a.name}
}

// path is the path, or "" of an abstract name.
func (a Addr) path() string {
	if strings.HasPrefix(a.name, "\x00") {
		return ""
	}
	return a.name
}

// Sockaddr is a struct sockaddr_un as long as its name. For "@" it is the family
// alone: bind(2) takes that for a name to be picked.
func (a Addr) Sockaddr() families.Name {
	raw := make([]byte, familyLen, familyLen+maxPath)
	binary.NativeEndian.PutUint16(raw, syscall.AF_UNIX)
	if a.name == "\x00" {
		return families.MakeName(raw)
	}
	raw = append(raw, a.name...)
	if a.name[0] != 0 && len(a.name) < maxPath {
		raw = append(raw, 0)
	}
	return families.MakeName(raw)
}

// fromName reads a struct sockaddr_un. One with a family alone is unnamed.
func fromName(t families.Type, n families.Name) families.Addr {
	raw := n.Bytes()
	if len(raw) <= familyLen || binary.NativeEndian.Uint16(raw) != syscall.AF_UNIX {
		return nil
	}
	name := string(raw[familyLen:])
	if name[0] == 0 {
		return Addr{t, name}
	}
	path, _, _ := strings.Cut(name, "\x00")
	return pathAddr(t, path)
}
