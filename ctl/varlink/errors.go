package varlink

import (
	"encoding/json"
	"fmt"
)

// Error is a Varlink error, as a method returns it or as it came in a reply.
type Error struct {
	Name string // qualified: io.sockd.NotFound
	// Parameters is what describes the error: nil, a struct, or the
	// json.RawMessage that came.
	Parameters any
}

// Error is the name and the parameters as JSON.
func (e *Error) Error() string {
	raw, err := encodeParameters(e.Parameters)
	if err != nil || raw == nil {
		return e.Name
	}
	return e.Name + " " + string(raw)
}

// Decode reads the parameters of an error that came in a reply. Fields that into
// does not know are ignored, and missing ones left alone.
func (e *Error) Decode(into any) error {
	raw, err := encodeParameters(e.Parameters)
	if err != nil {
		return err
	}
	return decodeLenient(raw, into)
}

// The errors of org.varlink.service, which every method may answer with.
const (
	NameInterfaceNotFound    = "org.varlink.service.InterfaceNotFound"
	NameMethodNotFound       = "org.varlink.service.MethodNotFound"
	NameMethodNotImplemented = "org.varlink.service.MethodNotImplemented"
	NameInvalidParameter     = "org.varlink.service.InvalidParameter"
	NamePermissionDenied     = "org.varlink.service.PermissionDenied"
	NameExpectedMore         = "org.varlink.service.ExpectedMore"
	NameExpectedUpgrade      = "org.varlink.service.ExpectedUpgrade"
)

// InterfaceNotFound: the service does not serve this interface.
func InterfaceNotFound(name string) *Error {
	return serviceError(NameInterfaceNotFound, "interface", name)
}

// MethodNotFound: the interface has no such method; name is qualified.
func MethodNotFound(name string) *Error { return serviceError(NameMethodNotFound, "method", name) }

// MethodNotImplemented: the interface has the method, this service has not.
func MethodNotImplemented(name string) *Error {
	return serviceError(NameMethodNotImplemented, "method", name)
}

// InvalidParameter: this parameter is missing, unknown, of another type or out of
// range.
func InvalidParameter(name string) *Error {
	return serviceError(NameInvalidParameter, "parameter", name)
}

// PermissionDenied: the caller may not do this.
func PermissionDenied() *Error { return &Error{Name: NamePermissionDenied} }

// ExpectedMore: the method wants the more flag.
func ExpectedMore() *Error { return &Error{Name: NameExpectedMore} }

// ExpectedUpgrade: the method wants the upgrade flag.
func ExpectedUpgrade() *Error { return &Error{Name: NameExpectedUpgrade} }

func serviceError(name, parameter, value string) *Error {
	return &Error{Name: name, Parameters: map[string]string{parameter: value}}
}

// InvalidParameterError is a parameter that Decode did not take. A server answers
// it with org.varlink.service.InvalidParameter.
type InvalidParameterError struct {
	Parameter string // its path: "to", "settings.idle", "dirs[2].name"
	Why       string // "is missing"; the wire has no room for it
}

func (e *InvalidParameterError) Error() string {
	return fmt.Sprintf("parameter %q %s", e.Parameter, e.Why)
}

// rawOf gives a reply's parameters the form in which an Error carries them.
func rawOf(raw json.RawMessage) any {
	if raw == nil {
		return nil
	}
	return raw
}
