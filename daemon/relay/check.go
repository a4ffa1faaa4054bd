package relay

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/model"
)

// ReasonError is a relay that makes no sense, or not yet: one line for the user.
// It wraps families.ErrNotSupported.
type ReasonError struct {
	Reason string
	Next   string // what to do instead, or empty
}

func (e *ReasonError) Error() string {
	if e.Next == "" {
		return e.Reason
	}
	return e.Reason + "; " + e.Next
}

// Hint is the next step that an error line is followed by.
func (e *ReasonError) Hint() string { return e.Next }

func (e *ReasonError) Unwrap() error { return families.ErrNotSupported }

// side is one end of a pair: the words that the user wrote and what is known.
type side struct {
	word string // "tcp", "id:7"
	kind kind
}

func sideOf(e families.Endpoint, k kind) side {
	if e.Network == families.NetworkID || e.Network == families.NetworkFD {
		return side{word: e.Network + ":" + e.Address, kind: k}
	}
	return side{word: e.Network, kind: k}
}

// checkPair is the table of what can be joined to what. An unknown kind passes:
// it is asked again when the socket is there.
func checkPair(from, to side) error {
	for _, s := range []side{from, to} {
		if err := checkAlone(s); err != nil {
			return err
		}
	}
	if from.kind == kindUnknown || to.kind == kindUnknown {
		return nil
	}
	if (from.kind == kindStream) != (to.kind == kindStream) {
		stream, messages := from, to
		if to.kind == kindStream {
			stream, messages = to, from
		}
		return &ReasonError{
			Reason: fmt.Sprintf("%s to %s: %s is a stream without the message borders that %s has", from.word, to.word, stream.word, messages.word),
			Next:   "framing= would give it some and is not in this version, so join streams to streams and messages to messages",
		}
	}
	return nil
}

// checkAlone refuses what no relay can carry, whatever the other end is.
func checkAlone(s side) error {
	switch s.kind {
	case kindRaw:
		return &ReasonError{
			Reason: fmt.Sprintf("%s: a raw IP socket has no sessions and sees every packet of its protocol", s.word),
			Next:   "relay whole frames with packet:IFNAME",
		}
	case kindCooked:
		return &ReasonError{
			Reason: fmt.Sprintf("%s: a cooked packet socket has no link header to send on", s.word),
			Next:   "leave out cooked",
		}
	}
	return nil
}

// Check says whether FROM and TO make sense together, without opening anything
// and without looking up a name. What id: and fd: are is not known before they
// are taken, so Add may still refuse them with the same reasons. The error wraps
// families.ErrNotSupported for a pair that makes no sense and families.ErrSyntax
// for an endpoint that does not parse.
func (e *Engine) Check(spec model.RelaySpec) error {
	if spec.Name != "" && !model.ValidName(spec.Name) {
		return &families.SyntaxError{What: "name", Text: spec.Name, Why: "want a letter or _, then letters, digits, _ . -, 64 at most"}
	}
	if len(spec.To) == 0 {
		return &families.SyntaxError{What: "relay", Text: spec.From.String(), Why: "it has no TO"}
	}
	if err := checkBalance(spec.Balance); err != nil {
		return err
	}
	fromKind, err := e.checkEndpoint(spec.From, sideFrom)
	if err != nil {
		return err
	}
	for _, to := range spec.To {
		if err := e.checkTarget(spec, to, fromKind); err != nil {
			return err
		}
	}
	return checkCompany(spec.To)
}

func (e *Engine) checkTarget(spec model.RelaySpec, to families.Endpoint, fromKind kind) error {
	toKind, err := e.checkEndpoint(to, sideTo)
	if err != nil {
		return err
	}
	if err := checkPair(sideOf(spec.From, fromKind), sideOf(to, toKind)); err != nil {
		return err
	}
	if fromKind == kindPacket && toKind == kindPacket {
		if err := checkEcho(spec.From, to); err != nil {
			return err
		}
	}
	if e.isControlSocket(to) {
		return controlReason(to.String())
	}
	if e.sameAddress(spec.From, to) {
		return selfReason(spec.From, to)
	}
	return nil
}

// checkEcho refuses a packet relay that would see the frames that it sends.
func checkEcho(ends ...families.Endpoint) error {
	for _, e := range ends {
		if hasOption(e, "outgoing") {
			return &ReasonError{Reason: fmt.Sprintf("%s: the relay would see what it sends itself, for ever", e), Next: "leave out outgoing"}
		}
	}
	return nil
}

func selfReason(from, to families.Endpoint) error {
	return &ReasonError{Reason: fmt.Sprintf("%s to %s: the relay would dial itself", from, to), Next: "give TO another address"}
}

// checkCompany refuses several TO where one of them is a single connection.
func checkCompany(tos []families.Endpoint) error {
	if len(tos) < 2 {
		return nil
	}
	for _, to := range tos {
		if to.Network == families.NetworkID {
			return &ReasonError{Reason: fmt.Sprintf("%s is one connection and cannot stand among several TO", to), Next: "make it the only one"}
		}
	}
	return nil
}

func checkBalance(balance string) error {
	switch balance {
	case "", balanceRoundrobin, balanceLeast, balanceFailover:
		return nil
	case "fanout":
		return &ReasonError{Reason: "balance fanout is not in this version", Next: "use roundrobin, least or failover"}
	}
	return &families.SyntaxError{What: "balance", Text: balance, Why: "want roundrobin, least or failover"}
}

// checkEndpoint reads one endpoint without looking anything up.
func (e *Engine) checkEndpoint(ep families.Endpoint, s whichSide) (kind, error) {
	if err := checkOptions(e.opts.Families, ep, s); err != nil {
		return kindUnknown, err
	}
	k, ok := networkKind(e.opts.Families, ep)
	switch {
	case !ok:
		_, err := e.opts.Families.Resolve(context.Background(), ep)
		return kindUnknown, err
	case ep.Network == families.NetworkID:
		_, err := parseID(ep)
		return k, err
	case ep.Network == families.NetworkFD && s == sideTo:
		return k, &ReasonError{Reason: fmt.Sprintf("%s: what systemd holds is a FROM", ep), Next: "dial its address instead"}
	case ep.Network == families.NetworkFD:
		return k, nil
	case k == kindPacket && isAnyInterface(ep.Address):
		return k, &ReasonError{Reason: "packet:any is every interface at once and cannot send", Next: "name one interface"}
	}
	if _, err := e.resolveLiteral(familyPart(ep)); err != nil {
		return k, err
	}
	return k, nil
}

func isAnyInterface(address string) bool {
	name, _, _ := strings.Cut(address, "/")
	return name == "any"
}

// resolveLiteral resolves an endpoint that names no host. A host name gives no
// targets and no error: it is looked up when it is needed.
func (e *Engine) resolveLiteral(ep families.Endpoint) ([]families.Target, error) {
	gone, cancel := context.WithCancel(context.Background())
	cancel() // so that nothing is asked of a name server
	targets, err := e.opts.Families.Resolve(gone, ep)
	if err != nil && !errors.Is(err, families.ErrSyntax) {
		return nil, nil
	}
	return targets, err
}

// sameAddress tells whether TO would be answered by FROM itself, as far as
// literals tell: the same address, or a wildcard and this host's own.
func (e *Engine) sameAddress(from, to families.Endpoint) bool {
	if from.Network == families.NetworkID || from.Network == families.NetworkFD {
		return from.Network == to.Network && from.Address == to.Address
	}
	froms, _ := e.resolveLiteral(familyPart(from)) // what does not parse was reported before
	tos, _ := e.resolveLiteral(familyPart(to))
	for _, a := range froms {
		for _, b := range tos {
			if targetsSelf(a, b) {
				return true
			}
		}
	}
	return false
}

// targetsSelf compares one bound and one dialled address.
func targetsSelf(from, to families.Target) bool {
	if from.Spec.Type != to.Spec.Type || from.Addr == nil || to.Addr == nil {
		return false
	}
	return scopesMeet(from.Addr.Scope(), to.Addr.Scope())
}

func scopesMeet(from, to families.Scope) bool {
	switch {
	case from.Path != "" || to.Path != "":
		return filepath.Clean(from.Path) == filepath.Clean(to.Path) && from.Path != "" && to.Path != ""
	case from.Interface != "" && !from.Prefix.IsValid() && !to.Prefix.IsValid():
		return from.Interface == to.Interface
	case from.Port == 0 || from.Port != to.Port:
		return false
	}
	a, b := from.Prefix.Addr().Unmap().WithZone(""), to.Prefix.Addr().Unmap().WithZone("")
	return a == b || isWildcard(a) && (isWildcard(b) || b.IsLoopback())
}

func isWildcard(a netip.Addr) bool { return !a.IsValid() || a.IsUnspecified() }

// isControlSocket tells whether a TO is sockd's own control socket, by path or
// by inode. Each dial asks again.
func (e *Engine) isControlSocket(to families.Endpoint) bool {
	if e.opts.ControlSocket == "" || !isUnixPath(to) {
		return false
	}
	if filepath.Clean(to.Address) == filepath.Clean(e.opts.ControlSocket) {
		return true
	}
	i := inodeOf(to.Address)
	return i != inode{} && i == inodeOf(e.opts.ControlSocket)
}
