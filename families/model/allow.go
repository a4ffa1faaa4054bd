package model

import (
	"fmt"
	"net/netip"
	"os/user"
	"strconv"
	"strings"

	"github.com/sockd/sockd/families"
)

// Allow is one rule of who may come in through a relay's FROM. Rules only let in:
// who matches none is refused, and a relay without rules takes everybody.
type Allow struct {
	Prefix netip.Prefix // AllowPrefix: masked, and IPv4 where it maps one
	Kind   AllowKind
	ID     uint32 // AllowUser: a uid; AllowGroup: a gid
}

// AllowKind says what an Allow is about.
type AllowKind uint8

// The kinds of rules.
const (
	AllowPrefix AllowKind = iota // peers whose address is in Prefix
	AllowUser                    // local peers of the user ID
	AllowGroup                   // local peers that are in the group ID
)

// MaxAllow bounds the rules of one relay: each connection is held against all of
// them. Whoever needs more wants a firewall.
const MaxAllow = 1024

// noID is what chown(2) and setreuid(2) take for "leave it": nobody has it.
const noID = 1<<32 - 1

// ParseAllow reads a rule as users write it: a network ("10.0.0.0/8", "2001:db8::/32"),
// one address ("::1"), or uid:U and gid:G with a number or a name. A name is looked
// up in the user database of the machine and the program that reads it; the rule
// keeps its number. The error is a *families.SyntaxError.
func ParseAllow(s string) (Allow, error) {
	what, name, ok := strings.Cut(s, ":")
	switch {
	case ok && what == "uid":
		return parseID(s, name, AllowUser, userID)
	case ok && what == "gid":
		return parseID(s, name, AllowGroup, groupID)
	}
	p, why := parsePrefix(s)
	if why != "" {
		return Allow{}, allowError(s, why)
	}
	return Allow{Prefix: p}, nil
}

func allowError(s, why string) error {
	return &families.SyntaxError{What: "allow", Text: s, Why: why, Hint: "10.0.0.0/8, ::1, uid:1000 or gid:www-data"}
}

// parsePrefix reads a network or a single address. One with bits below its length
// is refused: whether all of the network was meant or the one host is not for us
// to guess, where a guess lets somebody in.
func parsePrefix(s string) (p netip.Prefix, why string) {
	if a, err := netip.ParseAddr(s); err == nil {
		if a.Zone() != "" {
			return netip.Prefix{}, "a rule has no zone: the interface that a peer came by is not asked"
		}
		a = a.Unmap()
		return netip.PrefixFrom(a, a.BitLen()), ""
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return netip.Prefix{}, "want a network such as 10.0.0.0/8, an address, uid:U or gid:G"
	}
	if p != p.Masked() {
		return netip.Prefix{}, fmt.Sprintf("%s has bits below its length: want %s for the network, or %s alone", p, p.Masked(), p.Addr())
	}
	if p.Addr().Is4In6() { // masked, so the length is 96 or more
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p, ""
}

func parseID(s, name string, kind AllowKind, look func(string) (id, why string)) (Allow, error) {
	if n, err := strconv.ParseUint(name, 10, 32); err == nil {
		if n == noID {
			return Allow{}, allowError(s, "nobody has the number 4294967295")
		}
		return Allow{Kind: kind, ID: uint32(n)}, nil
	}
	text, why := look(name)
	if why != "" {
		return Allow{}, allowError(s, why)
	}
	n, err := strconv.ParseUint(text, 10, 32)
	if err != nil || n == noID {
		return Allow{}, allowError(s, "the user database has no number for it")
	}
	return Allow{Kind: kind, ID: uint32(n)}, nil
}

func userID(name string) (id, why string) {
	u, err := user.Lookup(name)
	if err != nil {
		return "", fmt.Sprintf("there is no user %s", families.Quote(name))
	}
	return u.Uid, ""
}

func groupID(name string) (id, why string) {
	g, err := user.LookupGroup(name)
	if err != nil {
		return "", fmt.Sprintf("there is no group %s", families.Quote(name))
	}
	return g.Gid, ""
}

// String prints a rule so that ParseAllow reads the same: a network of one address
// as that address, users and groups by number.
func (a Allow) String() string {
	switch {
	case a.Kind == AllowUser:
		return "uid:" + strconv.FormatUint(uint64(a.ID), 10)
	case a.Kind == AllowGroup:
		return "gid:" + strconv.FormatUint(uint64(a.ID), 10)
	case a.Prefix.IsSingleIP():
		return a.Prefix.Addr().String()
	}
	return a.Prefix.String()
}

// FormatAllow prints rules with spaces between them.
func FormatAllow(rules []Allow) string {
	words := make([]string, len(rules))
	for i, a := range rules {
		words[i] = a.String()
	}
	return strings.Join(words, " ")
}
