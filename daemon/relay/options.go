package relay

import (
	"fmt"
	"os/user"
	"strconv"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/model"
)

// whichSide tells FROM and TO apart where an option belongs to one of them.
type whichSide bool

const (
	sideFrom whichSide = false
	sideTo   whichSide = true
)

// ownOptions are the endpoint options that the relay engine understands itself;
// all others are the family's.
type ownOptions struct {
	backlog int        // 0: the system's largest
	mode    *uint32    // permission bits of a unix path
	owner   [2]*uint32 // uid, gid of a unix path
	backup  bool       // TO: only when all others fail
}

// Where each option that the engine knows may stand, and the networks that have
// it. What is not listed is left to the family.
var engineOptions = map[string]struct {
	side  whichSide
	where string // "" anywhere, "listen": stream and seqpacket, "path": a unix path
}{
	"backlog": {sideFrom, "listen"},
	"mode":    {sideFrom, "path"},
	"user":    {sideFrom, "path"},
	"group":   {sideFrom, "path"},
	"backup":  {sideTo, ""},
}

// familySides are the families' options that make sense on one side only.
var familySides = map[string]whichSide{
	"reuseport": sideFrom,
	"join":      sideFrom,
	"src":       sideTo,
}

// laterOptions are reserved words of versions to come.
var laterOptions = map[string]string{
	"framing": "framing= is not in this version",
	"proxy":   "proxy= is not in this version",
	"netns":   "netns= is not in this version for relays: open the socket there and give it as id:",
}

// checkOptions looks at everything about an endpoint's options that can be known
// without a socket.
func checkOptions(set families.Set, ep families.Endpoint, s whichSide) error {
	for i, o := range ep.Options {
		if why, ok := laterOptions[o.Name]; ok {
			return &ReasonError{Reason: fmt.Sprintf("%s: %s", ep, why)}
		}
		if own, ok := familySides[o.Name]; ok && own != s {
			return optionError(ep, i, otherSide(o.Name, own))
		}
		known, ok := engineOptions[o.Name]
		if !ok {
			if ep.Network == families.NetworkID || ep.Network == families.NetworkFD {
				return optionError(ep, i, fmt.Sprintf("%q is set when a socket is opened; this one is open already", o.Name))
			}
			continue
		}
		if known.side != s {
			return optionError(ep, i, otherSide(o.Name, known.side))
		}
		if why := misplaced(set, ep, o.Name, known.where); why != "" {
			return optionError(ep, i, why)
		}
	}
	_, err := readOptions(ep)
	return err
}

func otherSide(name string, own whichSide) string {
	if own == sideFrom {
		return fmt.Sprintf("%q belongs to FROM", name)
	}
	return fmt.Sprintf("%q belongs to TO", name)
}

func misplaced(set families.Set, ep families.Endpoint, name, where string) string {
	k, _ := networkKind(set, ep)
	switch {
	case where == "listen" && k != kindUnknown && !k.accepts():
		return fmt.Sprintf("%q is for what listens: tcp, unix, unixpacket", name)
	case where == "path" && !isUnixPath(ep):
		return fmt.Sprintf("%q is for a unix path", name)
	}
	return ""
}

// isUnixPath tells whether an endpoint is a unix socket in the file system.
func isUnixPath(ep families.Endpoint) bool {
	return isUnix(ep.Network) && ep.Address != "" && ep.Address[0] != '@'
}

func isUnix(network string) bool {
	return network == "unix" || network == "unixgram" || network == "unixpacket"
}

// familyPart is an endpoint without the options that the engine understands.
func familyPart(ep families.Endpoint) families.Endpoint {
	for name := range engineOptions {
		ep.Take(name)
	}
	return ep
}

// readOptions reads the engine's own options of an endpoint.
func readOptions(ep families.Endpoint) (ownOptions, error) {
	var o ownOptions
	for i, opt := range ep.Options {
		if why := o.read(opt); why != "" {
			return ownOptions{}, optionError(ep, i, why)
		}
	}
	return o, nil
}

// read takes one option in and says what is wrong with its value.
func (o *ownOptions) read(opt families.Option) (why string) {
	switch opt.Name {
	case "backlog":
		n, err := strconv.Atoi(opt.Value)
		if err != nil || n < 1 {
			return "backlog wants a number from 1"
		}
		o.backlog = n
	case "mode":
		n, err := strconv.ParseUint(opt.Value, 8, 32)
		if err != nil || n > 0o777 {
			return "mode wants octal permissions such as 0660"
		}
		m := uint32(n)
		o.mode = &m
	case "user":
		id, ok := lookUpID(opt.Value, func(s string) (string, error) {
			u, err := user.Lookup(s)
			if err != nil {
				return "", err
			}
			return u.Uid, nil
		})
		if !ok {
			return fmt.Sprintf("there is no user %q", opt.Value)
		}
		o.owner[0] = &id
	case "group":
		id, ok := lookUpID(opt.Value, func(s string) (string, error) {
			g, err := user.LookupGroup(s)
			if err != nil {
				return "", err
			}
			return g.Gid, nil
		})
		if !ok {
			return fmt.Sprintf("there is no group %q", opt.Value)
		}
		o.owner[1] = &id
	case "backup":
		if opt.Value != "" {
			return "backup takes no value"
		}
		o.backup = true
	}
	return ""
}

// lookUpID reads a number, or asks the user database for a name's.
func lookUpID(s string, ask func(string) (string, error)) (uint32, bool) {
	if n, err := strconv.ParseUint(s, 10, 32); err == nil {
		return uint32(n), true
	}
	text, err := ask(s)
	if err != nil {
		return 0, false
	}
	n, err := strconv.ParseUint(text, 10, 32)
	return uint32(n), err == nil
}

// optionError points at the i-th option of an endpoint.
func optionError(ep families.Endpoint, i int, why string) error {
	before := ep
	before.Options = ep.Options[:i]
	return &families.SyntaxError{What: "endpoint", Text: ep.String(), Column: len(before.String()) + 2, Why: why}
}

// pointAt gives a family's complaint about an option the endpoint and the column
// that the user wrote it at. Other errors are left as they are.
func pointAt(ep families.Endpoint, err error) error {
	syntax, ok := asSyntax(err)
	if !ok {
		return err
	}
	for i, o := range ep.Options {
		if syntax.Text == o.Name || syntax.Text == o.Name+"="+o.Value {
			return optionError(ep, i, syntax.Why)
		}
	}
	return err
}

// parseID reads the number of id:N.
func parseID(ep families.Endpoint) (model.ID, error) {
	id, ok := model.ParseID(ep.Address)
	if !ok {
		return 0, &families.SyntaxError{What: "endpoint", Text: ep.String(), Column: 4, Why: "want the number of an open socket", Hint: "sockd-ctl ls"}
	}
	return id, nil
}
