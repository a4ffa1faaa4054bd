package relay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/model"
)

// ReasonError is a relay that makes no sense, or not yet: one line for the user.
// It wraps families.ErrNotSupported.
type ReasonError struct {
	Reason string
	Next   string // what to do instead, in words, or empty
}

func (e *ReasonError) Error() string {
	if e.Next == "" {
		return e.Reason
	}
	return e.Reason + "; " + e.Next
}

func (e *ReasonError) Unwrap() error { return families.ErrNotSupported }

// side is one end of a pair: the words that the user wrote and what is known.
type side struct {
	word   string // "tcp", "id:7"
	kind   kind
	unix   bool   // its peers are of this host, and may send descriptors
	framed bool   // it has framing=
	proxy  string // what its proxy= says
}

func sideOf(e families.Endpoint, k kind) side {
	s := side{word: e.Network, kind: k, unix: isUnix(e.Network), framed: hasOption(e, "framing")}
	if e.Network == families.NetworkID || e.Network == families.NetworkFD {
		s.word = e.Network + ":" + families.Escape(e.Address)
	}
	for _, o := range e.Options {
		if o.Name == "proxy" {
			s.proxy = o.Value
		}
	}
	return s
}

// sideOfSocket is sideOf with what the socket itself tells.
func sideOfSocket(e families.Endpoint, i families.Info) side {
	s := sideOf(e, kindOf(i.Family, i.Type))
	s.unix = i.Family == localFamily
	return s
}

// messages tells whether what passes this end has borders.
func (s side) messages() bool { return s.kind != kindStream || s.framed }

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
	if err := checkHeaders(from, to); err != nil {
		return err
	}
	if from.messages() == to.messages() {
		return nil
	}
	stream, messages := from, to
	if from.messages() {
		stream, messages = to, from
	}
	if messages.kind == kindStream {
		return &ReasonError{
			Reason: fmt.Sprintf("%s to %s: %s has framing= and %s is a stream without message borders", from.word, to.word, messages.word, stream.word),
			Next:   "give framing= to both or to neither",
		}
	}
	return &ReasonError{
		Reason: fmt.Sprintf("%s to %s: %s is a stream without the message borders that %s has", from.word, to.word, stream.word, messages.word),
		Next:   "give it some with framing=u16be, a length in front of each message",
	}
}

// checkHeaders: a datagram has its PROXY header in front only from udp to udp.
func checkHeaders(from, to side) error {
	udp := func(s side) bool { return s.kind == kindDgram && !s.unix }
	for _, s := range []struct{ side, other side }{{from, to}, {to, from}} {
		if s.side.proxy != "" && udp(s.side) && !udp(s.other) {
			return &ReasonError{Reason: fmt.Sprintf("%s to %s: proxy= on datagrams goes from udp to udp", from.word, to.word), Next: "leave it out"}
		}
	}
	return nil
}

// checkAlone refuses what no relay can carry, whatever the other end is, and options
// that an open socket turns out not to have.
func checkAlone(s side) error {
	switch {
	case s.kind == kindUnknown:
		return nil
	case s.framed && s.kind != kindStream:
		return &ReasonError{Reason: fmt.Sprintf("%s: framing= is for streams, and this has messages", s.word), Next: "leave it out"}
	case s.proxy != "" && !s.takesProxy():
		return &ReasonError{Reason: fmt.Sprintf("%s: proxy=%s is for streams%s", s.word, s.proxy, map[bool]string{true: " and udp"}[s.proxy != proxyV1]), Next: "leave it out"}
	}
	return checkKind(s)
}

func (s side) takesProxy() bool {
	return s.kind == kindStream || s.kind == kindDgram && !s.unix && s.proxy != proxyV1
}

// checkKind refuses the kinds that can be neither FROM nor TO.
func checkKind(s side) error {
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
	if _, err := e.checkEndpoint(spec.From, sideFrom); err != nil {
		return err
	}
	for _, m := range e.Mistakes(spec) {
		return m.Err
	}
	return nil
}

// A Mistake is one thing that is wrong with a relay.
type Mistake struct {
	Key string // whose value it is, as in relays.d: Balance, From or To
	To  int    // which TO, from 0
	Err error  // as Check returns it
}

// Mistakes are all that Check would find, one after another, in the endpoints and
// the balance. A FROM without a network is not looked at, nor is what it would
// have to fit: for a relay that was read in parts.
func (e *Engine) Mistakes(spec model.RelaySpec) []Mistake {
	var out []Mistake
	add := func(key string, to int, err error) {
		if err != nil {
			out = append(out, Mistake{key, to, err})
		}
	}
	add("Balance", 0, checkBalance(spec.Balance))
	add("Allow", 0, checkAllowCount(spec.Allow))
	add("Rate", 0, checkRate(spec.Rate))
	add("Pass", 0, checkPassWord(spec.Pass))
	add("Durable", 0, checkDurable(e.opts.Families, spec))
	fromKind, whole := kindUnknown, spec.From.Network != ""
	if whole {
		var err error
		if fromKind, err = e.checkEndpoint(spec.From, sideFrom); err == nil {
			err = checkAlone(sideOf(spec.From, fromKind))
		}
		add("From", 0, err)
		whole = err == nil
	}
	if whole {
		add("Allow", 0, checkAllow(sideOf(spec.From, fromKind), spec.Allow))
		add("Pass", 0, checkPass(spec))
	}
	for i, to := range spec.To {
		toKind, err := e.checkEndpoint(to, sideTo)
		if err == nil {
			err = checkAlone(sideOf(to, toKind))
		}
		if err == nil && whole {
			err = e.checkTarget(spec, to, fromKind, toKind)
		}
		if err == nil {
			err = checkBranch(spec.Balance, to, toKind)
		}
		add("To", i, err)
	}
	i, err := checkCompany(spec.To)
	add("To", i, err)
	return out
}

// checkTarget looks at whether one TO goes with FROM. Each alone is right.
func (e *Engine) checkTarget(spec model.RelaySpec, to families.Endpoint, fromKind, toKind kind) error {
	if err := checkPair(sideOf(spec.From, fromKind), sideOf(to, toKind)); err != nil {
		return err
	}
	if err := checkFanoutFrom(spec.Balance, sideOf(spec.From, fromKind)); err != nil {
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

// checkCompany refuses several TO where one of them, the i-th, is a single
// connection.
func checkCompany(tos []families.Endpoint) (i int, err error) {
	if len(tos) < 2 {
		return 0, nil
	}
	for i, to := range tos {
		if to.Network == families.NetworkID {
			return i, &ReasonError{Reason: fmt.Sprintf("%s is one connection and cannot stand among several TO", to), Next: "make it the only one"}
		}
	}
	return 0, nil
}

func checkBalance(balance string) error {
	switch balance {
	case "", balanceRoundrobin, balanceLeast, balanceFailover, balanceFanout:
		return nil
	}
	return &families.SyntaxError{What: "balance", Text: balance, Why: "want roundrobin, least, failover or fanout"}
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
	if s == sideTo {
		return k, checkPort(ep, k)
	}
	return k, nil
}

// checkPort refuses port 0 of a TO: it lets the system choose where to listen, and
// nobody listens on it.
func checkPort(ep families.Endpoint, k kind) error {
	if isUnix(ep.Network) || k != kindStream && k != kindDgram {
		return nil
	}
	host, port, err := net.SplitHostPort(ep.Address)
	if n, numErr := strconv.Atoi(port); err != nil || numErr != nil || n != 0 {
		return nil // the family has its say
	}
	return &families.SyntaxError{
		What: "endpoint", Text: ep.String(), Column: len(ep.Network) + 2 + strings.LastIndexByte(ep.Address, ':') + 1,
		Why: "nobody can be dialled at port 0", Hint: fmt.Sprintf("%s:%s", ep.Network, net.JoinHostPort(host, "80")),
	}
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
