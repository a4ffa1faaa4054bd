package local

import (
	"encoding/binary"
	"strings"
	"syscall"

	"github.com/sockd/sockd/families"
)

// Addr is a path or an abstract name. String and ParseAddr have it in escaped form.
type Addr struct {
	typ families.Type
	// name is the path, or "\x00" and the abstract name.
	name string
}

var _ families.Addr = Addr{}

// familyLen is sizeof(sa_family_t), before the path.
const familyLen = 2

// ParseAddr reads a path, which stays relative if it is, or "@" and an abstract
// name. "@" alone lets the system pick a name when it is bound.
func (family) ParseAddr(t families.Type, s string) (families.Addr, error) {
	plain, err := families.Unescape(s)
	if err != nil {
		return nil, err
	}
	if err := families.CheckUnixAddress(plain); err != nil {
		return nil, err
	}
	if abstract, ok := strings.CutPrefix(plain, "@"); ok {
		return Addr{t, "\x00" + abstract}, nil
	}
	return Addr{t, plain}, nil
}

// pathAddr is the address of a path that the kernel gave. One that starts with "@"
// gets a "./" in front: the same file, and no abstract name when it is printed.
func pathAddr(t families.Type, path string) Addr {
	if path[0] == '@' {
		path = "./" + path
	}
	return Addr{t, path}
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
		return "@" + families.Escape(abstract)
	}
	return families.Escape(a.name)
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
	raw := make([]byte, familyLen, familyLen+families.MaxUnixPath)
	binary.NativeEndian.PutUint16(raw, syscall.AF_UNIX)
	if a.name == "\x00" {
		return families.MakeName(raw)
	}
	raw = append(raw, a.name...)
	if a.name[0] != 0 && len(a.name) < families.MaxUnixPath {
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
