package families

import (
	"fmt"
	"strings"
)

// What fits into struct sockaddr_un. The kernel takes a path that fills sun_path
// and has no room for its NUL (unix(7), BUGS); an abstract name begins with one.
const (
	MaxUnixPath     = 108
	MaxAbstractName = MaxUnixPath - 1
)

// CheckUnixAddress tells whether addr, a path or "@" and an abstract name in plain
// form, can be the address of a unix socket. The error is a *SyntaxError.
func CheckUnixAddress(addr string) error {
	name, abstract := strings.CutPrefix(addr, "@")
	switch {
	case addr == "":
		return wrongUnix(addr, "want a path or @NAME")
	case abstract && len(name) > MaxAbstractName:
		return wrongUnix(addr, fmt.Sprintf("an abstract name has at most %d bytes after the @, this one has %d", MaxAbstractName, len(name)))
	case abstract:
		return nil
	case strings.Contains(addr, "\x00"):
		return wrongUnix(addr, "a path has no NUL byte")
	case len(addr) > MaxUnixPath:
		return wrongUnix(addr, fmt.Sprintf("a socket's path has at most %d bytes, this one has %d", MaxUnixPath, len(addr)))
	}
	return nil
}

func wrongUnix(addr, why string) error {
	return &SyntaxError{What: "address", Text: Escape(addr), Column: 1, Why: why, Hint: "/run/x.sock or @x"}
}
