package families

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Endpoint is NETWORK:ADDRESS[,option[=value]]... as a user writes it. It is only
// split here: what the address means is its family's affair (Set.Resolve).
//
// In the text `\,` `\\` and `\xNN` stand for what cannot be written plainly. Here
// Address and values are in plain form; String escapes them (Escape).
type Endpoint struct {
	Network string
	Address string // in plain form
	Options []Option
}

// The two networks that are no family's: a descriptor that systemd handed over,
// and a socket that is already open.
const (
	NetworkFD = "fd"
	NetworkID = "id"
)

// ParseEndpoint splits an endpoint. Errors are *SyntaxError with the column.
func ParseEndpoint(s string) (Endpoint, error) {
	network, _, ok := strings.Cut(s, ":")
	if !ok || network == "" {
		return Endpoint{}, &SyntaxError{What: "endpoint", Text: s, Column: 1, Why: "want NETWORK:ADDRESS", Hint: "tcp:127.0.0.1:80, unix:/run/x.sock, packet:eth0"}
	}
	for i := range len(network) {
		if c := network[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			return Endpoint{}, &SyntaxError{What: "endpoint", Text: s, Column: i + 1, Why: fmt.Sprintf("%q cannot stand in a network's name", c)}
		}
	}
	fields, err := splitEscaped(s, len(network)+1)
	if err != nil {
		return Endpoint{}, err
	}
	e := Endpoint{Network: network, Address: fields[0].name}
	for _, f := range fields[1:] {
		if f.name == "" {
			return Endpoint{}, &SyntaxError{What: "endpoint", Text: s, Column: f.column, Why: "an option has no name"}
		}
		e.Options = append(e.Options, Option{Name: f.name, Value: f.value})
	}
	return e, nil
}

type field struct {
	name, value string
	column      int
}

// splitEscaped cuts s from start on at commas, options at their first "=", and
// takes the escapes out. The first field is the address, where "=" is a letter.
func splitEscaped(s string, start int) ([]field, error) {
	var fields []field
	cur := field{column: start + 1}
	var word strings.Builder
	inValue := false
	flush := func() {
		if inValue {
			cur.value = word.String()
		} else {
			cur.name = word.String()
		}
		fields = append(fields, cur)
		word.Reset()
		inValue = false
	}
	for i := start; i < len(s); i++ {
		switch c := s[i]; {
		case c == ',':
			flush()
			cur = field{column: i + 2}
		case c == '=' && len(fields) > 0 && !inValue:
			cur.name = word.String()
			word.Reset()
			inValue = true
		case c == '\\':
			b, n, ok := unescape(s[i+1:])
			if !ok {
				return nil, &SyntaxError{What: "endpoint", Text: s, Column: i + 1, Why: badEscape}
			}
			word.WriteByte(b)
			i += n
		default:
			word.WriteByte(c)
		}
	}
	flush()
	return fields, nil
}

// String is what ParseEndpoint reads.
func (e Endpoint) String() string {
	var b strings.Builder
	b.WriteString(e.Network + ":" + Escape(e.Address))
	for _, o := range e.Options {
		b.WriteString("," + strings.ReplaceAll(Escape(o.Name), "=", `\x3d`))
		if o.Value != "" {
			b.WriteString("=" + Escape(o.Value))
		}
	}
	return b.String()
}

// NamesPath tells whether e is a unix socket in the file system: such a path is
// opened with the rights of whoever names it.
func (e Endpoint) NamesPath() bool {
	switch e.Network {
	case "unix", "unixgram", "unixpacket":
		return e.Address != "" && !strings.HasPrefix(e.Address, "@")
	}
	return false
}

// Take removes the named options from e and returns those that were there. What
// an engine understands itself (backlog, mode) it takes before the rest goes to
// the family.
func (e *Endpoint) Take(names ...string) map[string]string {
	taken := map[string]string{}
	var rest []Option
	for _, o := range e.Options {
		if slices.Contains(names, o.Name) {
			taken[o.Name] = o.Value
			continue
		}
		rest = append(rest, o)
	}
	e.Options = rest
	return taken
}

// Target is an endpoint made ready to open: Family.Open(Spec), then Bind or
// Connect with Addr. Addr is nil where the endpoint names none ("ip4:icmp:").
type Target struct {
	Family  Family
	Network string
	Spec    Spec
	Addr    Addr
}

// Resolve turns an endpoint of one of the families' networks into what can be
// opened, to be tried in order. Names are looked up where the family has any.
// It returns *SyntaxError when no family can read the address.
func (s Set) Resolve(ctx context.Context, e Endpoint) ([]Target, error) {
	var first error
	known := false
	for _, f := range s {
		for _, n := range f.Networks() {
			if n.Name != e.Network {
				continue
			}
			known = true
			t, err := target(f, n, e)
			if err == nil {
				return append([]Target{t}, s.alternatives(f, e)...), nil
			}
			first = bothWrong(first, err)
		}
	}
	if !known {
		return nil, s.notOurs(e)
	}
	targets, err := s.resolveNames(ctx, e)
	if err != nil {
		return nil, err
	}
	if len(targets) > 0 {
		return targets, nil
	}
	return nil, first
}

// notOurs says that e's network is no family's: fd and id are networks too, but not
// everywhere.
func (s Set) notOurs(e Endpoint) error {
	all := append(s.Networks(), NetworkFD, NetworkID)
	err := &SyntaxError{What: "endpoint", Text: e.String(), Column: 1, Why: fmt.Sprintf("no network is called %q", e.Network), Hint: "the networks are " + strings.Join(all, " ")}
	switch e.Network {
	case NetworkFD:
		err.Why, err.Hint = "what systemd handed over can only be the FROM of a relay", ""
	case NetworkID:
		err.Why, err.Hint = "an open socket cannot stand here", ""
	}
	return err
}

// alternatives are the families after f that read e too: ":80" is inet6's first,
// and inet's on a host without IPv6.
func (s Set) alternatives(f Family, e Endpoint) []Target {
	var out []Target
	after := false
	for _, g := range s {
		if g == f {
			after = true
			continue
		}
		if !after {
			continue
		}
		for _, n := range g.Networks() {
			if n.Name != e.Network {
				continue
			}
			if t, err := target(g, n, e); err == nil {
				out = append(out, t)
			}
		}
	}
	return out
}

func target(f Family, n Network, e Endpoint) (Target, error) {
	proto, address := "", e.Address
	if n.Protocol {
		var ok bool
		if proto, address, ok = strings.Cut(e.Address, ":"); !ok {
			return Target{}, &SyntaxError{What: "endpoint", Text: e.String(), Column: len(e.Network) + 2, Why: "want PROTO:ADDRESS", Hint: e.Network + ":icmp:10.0.0.1"}
		}
	}
	p, err := f.ParseProtocol(n.Type, proto)
	if err != nil {
		return Target{}, err
	}
	t := Target{Family: f, Network: e.Network, Spec: Spec{Type: n.Type, Protocol: p, Options: append(append([]Option(nil), n.Options...), e.Options...)}}
	if n.Protocol && address == "" {
		return t, nil
	}
	if t.Addr, err = f.ParseAddr(n.Type, Escape(address)); err != nil {
		return Target{}, inEndpoint(err, e, address)
	}
	return t, nil
}

// inEndpoint makes a SyntaxError of an address, which is the end of e's, one of
// the endpoint: the column counts from the endpoint's start, and each address of
// the hint gets the network in front. Other errors stay.
func inEndpoint(err error, e Endpoint, address string) error {
	var s *SyntaxError
	if !errors.As(err, &s) || s.What != "address" {
		return err
	}
	prefix := e.Network + ":" + Escape(strings.TrimSuffix(e.Address, address))
	out := &SyntaxError{What: "endpoint", Text: e.String(), Why: s.Why}
	if s.Column > 0 {
		out.Column = len(prefix) + s.Column
	}
	if s.Hint != "" {
		out.Hint = prefix + strings.ReplaceAll(s.Hint, " or ", " or "+prefix)
	}
	return out
}

// bothWrong is the error of two families that answer to one network and could
// both not read an address. a may be nil.
func bothWrong(a, b error) error {
	var x, y *SyntaxError
	if a == nil || !errors.As(a, &x) || !errors.As(b, &y) {
		if a == nil {
			return b
		}
		return a
	}
	both := *x
	if x.Why != y.Why {
		both.Why += ", and " + y.Why
	}
	if x.Hint != y.Hint && y.Hint != "" {
		both.Hint += " or " + y.Hint
	}
	return &both
}

func (s Set) resolveNames(ctx context.Context, e Endpoint) ([]Target, error) {
	var out []Target
	var firstErr error
	for _, f := range s {
		r, ok := f.(Resolver)
		if !ok {
			continue
		}
		for _, n := range f.Networks() {
			if n.Name != e.Network || n.Protocol {
				continue
			}
			addrs, err := r.Resolve(ctx, n.Type, Escape(e.Address))
			if err != nil && !errors.Is(err, ErrSyntax) && firstErr == nil {
				firstErr = err
			}
			for _, a := range addrs {
				out = append(out, Target{Family: f, Network: e.Network, Addr: a, Spec: Spec{Type: n.Type, Options: append(append([]Option(nil), n.Options...), e.Options...)}})
			}
		}
	}
	if len(out) > 0 {
		return out, nil
	}
	return nil, firstErr
}

// Networks are the endpoint words of all families, each once, in order.
func (s Set) Networks() []string {
	var out []string
	for _, f := range s {
		for _, n := range f.Networks() {
			if !slices.Contains(out, n.Name) {
				out = append(out, n.Name)
			}
		}
	}
	return out
}
