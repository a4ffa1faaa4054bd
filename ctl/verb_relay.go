package ctl

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/sockd/sockd/ctl/borrow"
	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/model"
)

// What the verbs of relay have in common: the parameters of io.sockd.Relay, and
// the endpoints that are the caller's to open. One file each: add and replace,
// set, show, ls, rm.

type relayOut struct {
	Relay model.Relay `json:"relay"`
}

// relayDir is a unix path to dial: the descriptor of its directory, and the name in
// it in escaped form.
type relayDir struct {
	To         int    `json:"to"`
	Descriptor int    `json:"descriptor"`
	Name       string `json:"name"`
}

// relaySettings are the settings of a relay on the wire; nil has its default.
type relaySettings struct {
	MaxConns       *int64   `json:"max_conns,omitempty"`
	ConnectTimeout *int64   `json:"connect_timeout,omitempty"`
	Idle           *int64   `json:"idle,omitempty"`
	HalfClose      *int64   `json:"half_close,omitempty"`
	Balance        *string  `json:"balance,omitempty"`
	Permanent      *bool    `json:"permanent,omitempty"`
	Allow          []string `json:"allow,omitempty"`
	Rate           *int64   `json:"rate,omitempty"`
	Pass           *string  `json:"pass,omitempty"`
	Durable        *string  `json:"durable,omitempty"`
}

// The names of settings on the wire, which Set's reset takes.
const (
	settingMaxConns       = "max_conns"
	settingConnectTimeout = "connect_timeout"
	settingIdle           = "idle"
	settingHalfClose      = "half_close"
	settingBalance        = "balance"
	settingPermanent      = "permanent"
	settingAllow          = "allow"
	settingRate           = "rate"
	settingPass           = "pass"
	settingDurable        = "durable"
)

// maxRelayConns bounds max_conns; a relay cannot have more sessions than Linux
// has descriptors for a process (fs.nr_open's largest).
const maxRelayConns = 1 << 30

// apply writes the settings that are given into a specification.
func (s relaySettings) apply(spec *model.RelaySpec) error {
	if s.MaxConns != nil {
		if *s.MaxConns < 1 || *s.MaxConns > maxRelayConns {
			return &families.SyntaxError{What: settingMaxConns, Text: fmt.Sprint(*s.MaxConns), Why: "want a number from 1"}
		}
		spec.MaxConns = int(*s.MaxConns)
	}
	for _, d := range []struct {
		name string
		from *int64
		to   *time.Duration
	}{
		{settingConnectTimeout, s.ConnectTimeout, &spec.ConnectTimeout},
		{settingIdle, s.Idle, &spec.Idle},
		{settingHalfClose, s.HalfClose, &spec.HalfClose},
	} {
		if d.from == nil {
			continue
		}
		if *d.from < int64(model.NoLimit) {
			return &families.SyntaxError{What: d.name, Text: fmt.Sprint(*d.from), Why: "want nanoseconds, or -1 for none"}
		}
		*d.to = time.Duration(*d.from)
	}
	spec.Balance = orZero(s.Balance)
	spec.Permanent = orZero(s.Permanent)
	return s.applyFlow(spec)
}

// applyFlow writes the settings of what flows: from whom, how fast, and what with it.
func (s relaySettings) applyFlow(spec *model.RelaySpec) (err error) {
	if spec.Allow, err = allowRules(s.Allow); err != nil {
		return err
	}
	if s.Rate != nil {
		if *s.Rate < 1 {
			return &families.SyntaxError{What: settingRate, Text: fmt.Sprint(*s.Rate), Why: "want bytes a second, from 1"}
		}
		spec.Rate = *s.Rate
	}
	spec.Pass, spec.Durable = orZero(s.Pass), orZero(s.Durable)
	return nil
}

// allowRules reads rules from the wire. An empty list is refused: it would let
// everybody in, which nobody says by a list that happens to be empty.
func allowRules(texts []string) ([]model.Allow, error) {
	if texts == nil {
		return nil, nil
	}
	if len(texts) == 0 || len(texts) > model.MaxAllow {
		return nil, &families.SyntaxError{What: settingAllow, Text: fmt.Sprintf("%d rules", len(texts)), Why: fmt.Sprintf("want 1 to %d", model.MaxAllow), Hint: "leave it out, or reset it, to let everybody in"}
	}
	rules := make([]model.Allow, 0, len(texts))
	for _, t := range texts {
		a, err := model.ParseAllow(t)
		if err != nil {
			return nil, err
		}
		rules = append(rules, a)
	}
	return rules, nil
}

func allowTexts(rules []model.Allow) []string {
	var texts []string
	for _, a := range rules {
		texts = append(texts, a.String())
	}
	return texts
}

// settingsOf are a specification's settings that are not the default.
func settingsOf(spec model.RelaySpec) relaySettings {
	var s relaySettings
	if spec.MaxConns != 0 && spec.MaxConns != model.DefaultMaxConns {
		n := int64(spec.MaxConns)
		s.MaxConns = &n
	}
	s.ConnectTimeout = givenDuration(spec.ConnectTimeout, model.DefaultConnectTimeout)
	s.Idle = givenDuration(spec.Idle, 0)
	s.HalfClose = givenDuration(spec.HalfClose, 0)
	if spec.Balance != "" {
		s.Balance = &spec.Balance
	}
	if spec.Permanent {
		s.Permanent = &spec.Permanent
	}
	s.Allow = allowTexts(spec.Allow)
	if spec.Rate > 0 {
		s.Rate = &spec.Rate
	}
	if spec.Pass != "" {
		s.Pass = &spec.Pass
	}
	if spec.Durable != "" {
		s.Durable = &spec.Durable
	}
	return s
}

func givenDuration(d, usual time.Duration) *int64 {
	if d == 0 || d == usual {
		return nil
	}
	ns := int64(d)
	return &ns
}

// endpoints reads endpoints from the wire.
func endpoints(texts []string) ([]families.Endpoint, error) {
	out := make([]families.Endpoint, 0, len(texts))
	for _, t := range texts {
		e, err := families.ParseEndpoint(t)
		if err != nil {
			return nil, err
		}
		out = append(out, e)
	}
	return out, nil
}

// takeDirs takes the descriptors of dirs, one for each TO. On error none is taken
// from the call for good: those are closed here.
func (r request) takeDirs(dirs []relayDir, targets int) ([]model.DirFD, error) {
	if len(dirs) == 0 {
		return nil, nil
	}
	out := make([]model.DirFD, targets)
	for i := range out {
		out[i].FD = model.NoFD
	}
	for i, d := range dirs {
		dir, err := r.takeDir(fmt.Sprintf("dirs[%d]", i), d, out)
		if err != nil {
			closeDirs(out)
			return nil, err
		}
		out[d.To] = dir
	}
	return out, nil
}

// takeDir takes the descriptor of d, which parameter names.
func (r request) takeDir(parameter string, d relayDir, taken []model.DirFD) (model.DirFD, error) {
	name, err := checkDir(parameter, d, taken)
	if err != nil {
		return model.DirFD{}, err
	}
	fd, err := r.takeFileOf(parameter+".descriptor", &d.Descriptor)
	if err != nil {
		return model.DirFD{}, err
	}
	if !mayBeDirectory(fd) {
		closeFile(fd)
		return model.DirFD{}, fmt.Errorf("%s.descriptor is no directory: %w", parameter, families.ErrSyntax)
	}
	return model.DirFD{FD: fd, Name: name}, nil
}

// checkDir checks what can be told without the descriptor, and returns the name in
// plain form.
func checkDir(parameter string, d relayDir, taken []model.DirFD) (name string, err error) {
	switch {
	case d.To < 0 || d.To >= len(taken):
		return "", fmt.Errorf("%s.to is %d: want the index of a TO, from 0 to %d: %w", parameter, d.To, len(taken)-1, families.ErrSyntax)
	case taken[d.To].FD != model.NoFD:
		return "", fmt.Errorf("%s.to is %d, which has a directory already: %w", parameter, d.To, families.ErrSyntax)
	}
	if name, err = families.Unescape(d.Name); err != nil {
		return "", fmt.Errorf("%s.name: %w", parameter, err)
	}
	if name == "" || strings.ContainsAny(name, "/\x00") || name == "." || name == ".." {
		return "", fmt.Errorf("%s.name is %s: want a file's name: %w", parameter, families.Quote(d.Name), families.ErrSyntax)
	}
	return name, nil
}

// mayBeDirectory is false for what is known to be something else. A file system of
// the caller's own may say nothing to the daemon (EACCES); then the dial tells.
func mayBeDirectory(fd int) bool {
	var st syscall.Stat_t
	err := syscall.Fstat(fd, &st)
	return err != nil || st.Mode&syscall.S_IFMT == syscall.S_IFDIR
}

func closeDirs(dirs []model.DirFD) {
	for _, d := range dirs {
		closeFile(d.FD)
	}
}

// opened are endpoints made ready to be sent, with the descriptors that the
// caller opened for them.
type opened struct {
	from     string
	fromFile *int
	to       []string
	dirs     []relayDir
	files    []int  // to send; close closes them
	bound    string // the path of the file that binding FROM made, or ""
}

func (o *opened) close() { closeAll(o.files) }

// refused removes the file that was made for a relay that the daemon answered no
// to. After any other error the relay may well live.
func (o *opened) refused(err error) {
	var answer *RemoteError
	if o.bound != "" && errors.As(err, &answer) {
		_ = os.Remove(o.bound) // the refusal is what there is to tell
	}
}

// add appends a descriptor and gives its index in the message.
func (o *opened) add(fd int) int {
	o.files = append(o.files, fd)
	return len(o.files) - 1
}

// openFrom binds a unix FROM with the caller's own rights, and has it listen.
// Where it listens already the daemon keeps the socket that it has (keep is that
// FROM, or "").
func (o *opened) openFrom(text, keep string) error {
	e, err := localEndpoint(text)
	if err != nil {
		return err
	}
	o.from = e.String()
	if !borrow.IsLocal(e.Network) || o.from == keep {
		return nil
	}
	taken := takeAccess(e)
	access := borrow.Access{Mode: taken["mode"], User: taken["user"], Group: taken["group"]}
	if samePath(e, keep) {
		return borrow.SetAccess(e.Address, access) // the listener stays
	}
	backlog, err := parseBacklog(o.from, taken)
	if err != nil {
		return err
	}
	fd, err := borrow.ListenAt(e.Network, e.Address, backlog, access)
	if err != nil {
		return err
	}
	index := o.add(fd)
	o.fromFile = &index
	if !strings.HasPrefix(e.Address, "@") {
		o.bound = e.Address
	}
	return nil
}

// takeAccess is what e says of the file that it names, and of its queue.
func takeAccess(e families.Endpoint) map[string]string {
	e.Options = append([]families.Option(nil), e.Options...)
	return e.Take("mode", "user", "group", "backlog")
}

// samePath tells whether an endpoint, as text, is e but for what takeAccess takes.
func samePath(e families.Endpoint, text string) bool {
	other, err := families.ParseEndpoint(text)
	if err != nil {
		return false
	}
	for _, o := range []*families.Endpoint{&e, &other} {
		o.Options = append([]families.Option(nil), o.Options...)
		o.Take("mode", "user", "group", "backlog")
	}
	return e.String() == other.String()
}

func parseBacklog(endpoint string, options map[string]string) (int, error) {
	text, ok := options["backlog"]
	if !ok {
		return 0, nil
	}
	var n int
	if _, err := fmt.Sscanf(text, "%d", &n); err != nil || n < 1 || fmt.Sprint(n) != text {
		return 0, &families.SyntaxError{What: "endpoint", Text: endpoint, Column: strings.Index(endpoint, ",backlog") + 2, Why: "backlog wants a number from 1"}
	}
	return n, nil
}

// openTo opens the directory of each unix path, for the daemon to find the name
// in as the caller can now.
func (o *opened) openTo(texts []string) error {
	for _, t := range texts {
		e, err := localEndpoint(t)
		if err != nil {
			return err
		}
		if borrow.IsLocal(e.Network) && !strings.HasPrefix(e.Address, "@") {
			fd, name, err := borrow.Dir(e.Address)
			if err != nil {
				return err
			}
			o.dirs = append(o.dirs, relayDir{To: len(o.to), Descriptor: o.add(fd), Name: families.Escape(name)})
		}
		o.to = append(o.to, e.String())
	}
	return nil
}

// localEndpoint reads an endpoint, and makes a unix path absolute: the daemon has
// another working directory.
func localEndpoint(text string) (families.Endpoint, error) {
	e, err := families.ParseEndpoint(text)
	if err != nil || !borrow.IsLocal(e.Network) {
		return e, err
	}
	if e.Address == "" {
		return e, &families.SyntaxError{What: "endpoint", Text: text, Column: len(e.Network) + 2, Why: "a path is missing", Hint: e.Network + ":/run/x.sock or " + e.Network + ":@name"}
	}
	e.Address, err = borrow.Absolute(e.Address)
	return e, err
}

// relayColumns are what ls shows of relays.
var relayColumns = []string{"id", "name", "state", "local", "to", "sessions", "total", "rx_bytes", "tx_bytes"}

// specOf asks for the specification that a relay runs by.
func (e *Env) specOf(ctx context.Context, ref string) (relaySpecOut, error) {
	var out relaySpecOut
	err := e.call(ctx, "io.sockd.Relay.Spec", refIn{ref}, &out)
	return out, err
}
