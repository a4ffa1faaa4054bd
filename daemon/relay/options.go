package relay

import (
	"fmt"
	"net/netip"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"time"

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

	framing string        // streams: how messages lie in them; "" is bytes without borders
	proxy   string        // FROM: "" or proxyAccept; TO: "", proxyV1 or proxyV2
	loss    string        // TO of a fanout: what becomes of messages beyond queue; "" is lossDropOldest
	queue   int           // TO of a fanout: how many messages may wait; 0 is defaultQueue
	src     netip.Addr    // TO: the address that is dialled from; the zero Addr is the route's
	retry   time.Duration // TO: how long to try again when nobody is there; 0 not at all, NoLimit for ever
}

// The framings: what stands around a message in a stream.
const (
	framingU16BE = "u16be" // its length in two bytes, the high one first, in front
	framingU32BE = "u32be" // its length in four
	framingLF    = "lf"    // a line feed behind it
)

// The PROXY protocol: what FROM accepts and which version TO is told.
const (
	proxyAccept = "accept"
	proxyV1     = "v1"
	proxyV2     = "v2"
)

// What a branch of a fanout does when its queue is full.
const (
	lossBlock      = "block"       // FROM waits, and so do the other branches
	lossDropOldest = "drop-oldest" // the message that has waited longest goes
	lossDisconnect = "disconnect"  // the branch's session is reset
)

const (
	// defaultQueue is how many messages may wait for a branch of a fanout: a burst
	// of 256 is what a backend that is scheduled away for some ms makes wait.
	defaultQueue = 256
	// maxQueue bounds queue=: 65,536 messages of the longest kind would be 4 GiB.
	maxQueue = 1 << 16
)

// place is where an option that the engine knows may stand.
type place struct {
	from, to bool
	where    string // which networks have it: a key of wheres
}

// engineOptions are the options that the engine knows. What is not listed is left
// to the family.
var engineOptions = map[string]place{
	"backlog": {from: true, where: whereListen},
	"mode":    {from: true, where: wherePath},
	"user":    {from: true, where: wherePath},
	"group":   {from: true, where: wherePath},
	"backup":  {to: true},
	"framing": {from: true, to: true, where: whereStream},
	"proxy":   {from: true, to: true, where: whereProxy},
	"loss":    {to: true},
	"queue":   {to: true},
	"retry":   {to: true, where: whereDial},
	"src":     {to: true, where: whereAddress},
}

// The networks that have an option; "" is all.
const (
	whereListen  = "what listens: tcp, unix, unixpacket"
	wherePath    = "a unix path"
	whereStream  = "streams: tcp, unix"
	whereProxy   = "streams and udp"
	whereAddress = "tcp and udp"
	whereDial    = "what is dialled; an open socket is there already"
)

// familySides are the families' options that make sense on one side only.
var familySides = map[string]whichSide{
	"reuseport": sideFrom,
	"join":      sideFrom,
	"src":       sideTo,
}

// laterOptions are reserved words of versions to come.
var laterOptions = map[string]string{
	"netns": "netns= is not in this version for relays: open the socket there and give it as id:",
}

// checkOptions looks at everything about an endpoint's options that can be known
// without a socket.
func checkOptions(set families.Set, ep families.Endpoint, s whichSide) error {
	for i, o := range ep.Options {
		if why, ok := laterOptions[o.Name]; ok {
			return &ReasonError{Reason: fmt.Sprintf("%s: %s", ep, why)}
		}
		if own, ok := familySides[o.Name]; ok && own != s {
			return optionError(ep, i, belongs(o.Name, own))
		}
		known, ok := engineOptions[o.Name]
		if !ok {
			if ep.Network == families.NetworkID || ep.Network == families.NetworkFD {
				return optionError(ep, i, fmt.Sprintf("%q is set when a socket is opened; this one is open already", o.Name))
			}
			continue
		}
		if why := known.misplaced(set, ep, o, s); why != "" {
			return optionError(ep, i, why)
		}
	}
	_, err := readOptions(ep)
	return err
}

// belongs says on which side an option that is on the other one should be.
func belongs(option string, own whichSide) string {
	if own == sideFrom {
		return fmt.Sprintf("%q belongs to FROM", option)
	}
	return fmt.Sprintf("%q belongs to TO", option)
}

// misplaced says why an option cannot stand on side s of an endpoint, or "".
func (p place) misplaced(set families.Set, ep families.Endpoint, o families.Option, s whichSide) string {
	switch {
	case s == sideFrom && !p.from:
		return belongs(o.Name, sideTo)
	case s == sideTo && !p.to:
		return belongs(o.Name, sideFrom)
	case !hasPlace(set, ep, p.where):
		return fmt.Sprintf("%q is for %s", o.Name, p.where)
	case o.Name != "proxy":
		return ""
	}
	k, _ := networkKind(set, ep)
	return misplacedProxy(o.Value, k, s)
}

// hasPlace tells whether an endpoint is one that an option of this where is for.
// Of an open socket it is asked again when its kind is known: see checkAlone.
func hasPlace(set families.Set, ep families.Endpoint, where string) bool {
	k, _ := networkKind(set, ep)
	switch where {
	case whereListen:
		return k == kindUnknown || k.accepts()
	case wherePath:
		return isUnixPath(ep)
	case whereStream:
		return k == kindUnknown || k == kindStream
	case whereProxy:
		return k == kindUnknown || k == kindStream || k == kindDgram && !isUnix(ep.Network)
	case whereAddress:
		return !isUnix(ep.Network) && (k == kindStream || k == kindDgram)
	case whereDial:
		return ep.Network != families.NetworkID
	}
	return true
}

// misplacedProxy: FROM accepts a header, TO is sent one, and the text of version 1
// has no word for datagrams.
func misplacedProxy(value string, k kind, s whichSide) string {
	switch {
	case s == sideTo && value == proxyAccept:
		return belongs("proxy=accept", sideFrom)
	case s == sideFrom && (value == proxyV1 || value == proxyV2):
		return belongs("proxy="+value, sideTo)
	case value == proxyV1 && k == kindDgram:
		return "version 1 of the PROXY protocol is for streams: want proxy=v2"
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
	seen := map[string]bool{}
	for i, opt := range ep.Options {
		if _, own := engineOptions[opt.Name]; own && seen[opt.Name] {
			return ownOptions{}, optionError(ep, i, fmt.Sprintf("%q stands there twice", opt.Name))
		}
		seen[opt.Name] = true
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
	default:
		return o.readFlow(opt)
	}
	return ""
}

// readFlow reads the options of what flows, rather than of the socket.
func (o *ownOptions) readFlow(opt families.Option) (why string) {
	switch opt.Name {
	case "framing":
		return readWord(&o.framing, opt, framingU16BE, framingU32BE, framingLF)
	case "proxy":
		return readWord(&o.proxy, opt, proxyAccept, proxyV1, proxyV2)
	case "loss":
		return readWord(&o.loss, opt, lossBlock, lossDropOldest, lossDisconnect)
	case "queue":
		n, err := strconv.Atoi(opt.Value)
		if err != nil || n < 1 || n > maxQueue {
			return fmt.Sprintf("queue wants a number of messages from 1 to %d", maxQueue)
		}
		o.queue = n
	case "retry":
		d, err := model.ParseDuration(opt.Value)
		if err != nil {
			return "retry wants a duration such as 30s, or none"
		}
		o.retry = d
	case "src":
		a, err := netip.ParseAddr(opt.Value)
		if err != nil {
			return "src wants an address of this host, such as 192.0.2.7"
		}
		o.src = a
	}
	return ""
}

// readWord takes one of several words.
func readWord(to *string, opt families.Option, words ...string) (why string) {
	if !slices.Contains(words, opt.Value) {
		last := len(words) - 1
		return fmt.Sprintf("%s wants %s or %s", opt.Name, strings.Join(words[:last], ", "), words[last])
	}
	*to = opt.Value
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
