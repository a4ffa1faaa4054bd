// Package policy decides who may do what. The daemon asks it before every method
// and for every object that a method names; nobody else decides anything. Identity
// is what the kernel said of the control connection (SO_PEERCRED), never a pid.
//
// Until grants exist the rule is one line: uid 0 and the daemon's own uid may
// everything, others nothing.
package policy

import (
	"fmt"
	"os"
	"syscall"

	"github.com/sockd/sockd/families/model"
)

// Policy is the rule of one daemon. Its methods may be called from any goroutine.
type Policy struct {
	uid uint32 // the daemon's own
}

// New makes the policy of a daemon that runs as this process's effective user.
func New() Policy { return Policy{uid: uint32(os.Geteuid())} }

// For makes the policy of a daemon that runs as uid.
func For(uid uint32) Policy { return Policy{uid: uid} }

// DeniedError says who may not do what. It wraps syscall.EPERM.
type DeniedError struct {
	UID  uint32
	What string // the method, or the object and whose it is
	hint string
}

func (e *DeniedError) Error() string { return fmt.Sprintf("uid %d may not %s", e.UID, e.What) }

// Hint is what would help.
func (e *DeniedError) Hint() string { return e.hint }

func (e *DeniedError) Unwrap() error { return syscall.EPERM }

// Check tells whether caller may call method, by the method's full name. The
// error is a *DeniedError.
func (p Policy) Check(caller model.Caller, method string) error {
	if p.Trusted(caller.UID) {
		return nil
	}
	return &DeniedError{UID: caller.UID, What: "call " + method, hint: "in this version root and the daemon's own user may call it: use sudo, or run a sockd of your own and say --user"}
}

// Object tells whether caller may touch an object of owner's: what names it, as
// in "socket 7". The error is a *DeniedError.
func (p Policy) Object(caller model.Caller, owner model.Owner, what string) error {
	if p.Sees(caller, owner) {
		return nil
	}
	return &DeniedError{UID: caller.UID, What: fmt.Sprintf("use %s, which is uid %d's", what, owner.UID)}
}

// Sees tells whether caller may know of an object of owner's.
func (p Policy) Sees(caller model.Caller, owner model.Owner) bool {
	return caller.UID == owner.UID || p.Trusted(caller.UID)
}

// Trusted tells whether uid is root's or the daemon's own.
func (p Policy) Trusted(uid uint32) bool { return uid == 0 || uid == p.uid }
