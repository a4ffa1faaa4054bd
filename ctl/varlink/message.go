package varlink

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"
)

// Call is what a client asks.
type Call struct {
	Method     string          // qualified: io.sockd.Manager.Open
	Parameters json.RawMessage // an object, or nil when there are none
	More       bool            // at most one of the three is set
	Oneway     bool
	Upgrade    bool
	Files      []int // the receiver owns them
}

// Reply is one answer to a call.
type Reply struct {
	Parameters json.RawMessage // an object, or nil when there are none
	Continues  bool            // more replies to the same call follow
	Error      string          // a qualified name when the call failed
	Files      []int           // the receiver owns them
}

const (
	interfacePattern = `[A-Za-z](?:-*[A-Za-z0-9])*(?:\.[A-Za-z0-9](?:-*[A-Za-z0-9])*)+`
	memberPattern    = `[A-Z][A-Za-z0-9]*`
)

var qualifiedRE = regexp.MustCompile(`^` + interfacePattern + `\.` + memberPattern + `$`)

// ValidMethod tells whether s can be a method with its interface: only then a
// service answers a call of it.
func ValidMethod(s string) bool { return qualifiedRE.MatchString(s) }

// MalformedError is a message to which there is no well-defined answer: the
// connection it came on is to be closed (UAPI.20, Connection Lifecycle).
type MalformedError struct {
	Why string
}

func (e *MalformedError) Error() string { return "malformed message: " + e.Why }

func malformed(format string, args ...any) error {
	return &MalformedError{Why: fmt.Sprintf(format, args...)}
}

// ParseCall reads a call from its JSON text. Its Parameters alias text. The error
// is a *MalformedError.
func ParseCall(text []byte) (*Call, error) {
	members, err := topMembers(text)
	if err != nil {
		return nil, err
	}
	c := &Call{}
	for _, m := range members {
		if err := c.set(m); err != nil {
			return nil, err
		}
	}
	if c.Method == "" {
		return nil, malformed("no method")
	}
	if (c.More && c.Oneway) || (c.More && c.Upgrade) || (c.Oneway && c.Upgrade) {
		return nil, malformed("more than one of more, oneway and upgrade")
	}
	return c, nil
}

func (c *Call) set(m member) (err error) {
	switch m.name {
	case "method":
		c.Method, err = qualifiedName(m)
	case "parameters":
		c.Parameters, err = parameters(m)
	case "more":
		c.More, err = flag(m)
	case "oneway":
		c.Oneway, err = flag(m)
	case "upgrade":
		c.Upgrade, err = flag(m)
	default:
		err = extension(m)
	}
	return err
}

// ParseReply reads a reply from its JSON text. Its Parameters alias text. The
// error is a *MalformedError.
func ParseReply(text []byte) (*Reply, error) {
	members, err := topMembers(text)
	if err != nil {
		return nil, err
	}
	r := &Reply{}
	for _, m := range members {
		if err := r.set(m); err != nil {
			return nil, err
		}
	}
	if r.Error != "" && r.Continues {
		return nil, malformed("an error that continues")
	}
	return r, nil
}

func (r *Reply) set(m member) (err error) {
	switch m.name {
	case "parameters":
		r.Parameters, err = parameters(m)
	case "continues":
		r.Continues, err = flag(m)
	case "error":
		if !isNull(m.value) {
			r.Error, err = qualifiedName(m)
		}
	default:
		err = extension(m)
	}
	return err
}

// topMembers checks a message as text and splits it.
func topMembers(text []byte) ([]member, error) {
	if err := checkText(text); err != nil {
		return nil, &MalformedError{Why: err.Error()}
	}
	text = trimSpace(text)
	if text[0] != '{' {
		return nil, malformed("not an object")
	}
	members, err := objectMembers(text)
	if err != nil {
		return nil, &MalformedError{Why: err.Error()}
	}
	return members, nil
}

func qualifiedName(m member) (string, error) {
	var name string
	if isNull(m.value) || json.Unmarshal(m.value, &name) != nil {
		return "", malformed("%s is not a string", m.name)
	}
	if !qualifiedRE.MatchString(name) {
		return "", malformed("%s %q is not a qualified name", m.name, name)
	}
	return name, nil
}

// parameters takes an object. Absent, null and {} mean the same.
func parameters(m member) (json.RawMessage, error) {
	if isNull(m.value) {
		return nil, nil
	}
	if m.value[0] != '{' {
		return nil, malformed("parameters are not an object")
	}
	if len(trimSpace(m.value[1:len(m.value)-1])) == 0 {
		return nil, nil
	}
	return m.value, nil
}

// flag takes a ?bool: null is the same as absent.
func flag(m member) (bool, error) {
	switch string(m.value) {
	case "true":
		return true, nil
	case "false", "null":
		return false, nil
	}
	return false, malformed("%s is not a boolean", m.name)
}

// extension ignores what a vendor put under its own name, and rejects the rest.
func extension(m member) error {
	if strings.Contains(m.name, ".") {
		return nil
	}
	return malformed("unknown member %q", m.name)
}

// The members in the order in which they are sent.
type wireCall struct {
	Method     string          `json:"method"`
	Parameters json.RawMessage `json:"parameters,omitempty"`
	More       bool            `json:"more,omitempty"`
	Oneway     bool            `json:"oneway,omitempty"`
	Upgrade    bool            `json:"upgrade,omitempty"`
}

type wireReply struct {
	Error      string          `json:"error,omitempty"`
	Parameters json.RawMessage `json:"parameters,omitempty"`
	Continues  bool            `json:"continues,omitempty"`
}

// Text is the call as JSON, without the NUL.
func (c *Call) Text() ([]byte, error) {
	return marshal(wireCall{c.Method, c.Parameters, c.More, c.Oneway, c.Upgrade})
}

// Text is the reply as JSON, without the NUL.
func (r *Reply) Text() ([]byte, error) {
	return marshal(wireReply{r.Error, r.Parameters, r.Continues})
}

// marshal writes < and > as they are: there is no HTML here, and a shell user
// reads it.
func marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// encodeParameters turns what a caller gave into an object, or nil when it is
// empty.
func encodeParameters(v any) (json.RawMessage, error) {
	if v == nil {
		return nil, nil
	}
	raw, isRaw := v.(json.RawMessage)
	if !isRaw {
		var err error
		if raw, err = marshal(withoutNulls(v)); err != nil {
			return nil, fmt.Errorf("encode parameters: %w", err)
		}
	}
	if len(raw) == 0 {
		return nil, nil
	}
	if !json.Valid(raw) {
		return nil, errors.New("encode parameters: not JSON")
	}
	return parameters(member{name: "parameters", value: trimSpace(raw)})
}
