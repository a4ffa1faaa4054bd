package syntax

import (
	"fmt"
	"strings"
)

// Error is a text that is no filter.
type Error struct {
	Text     string // all of what was given
	Column   int    // where it went wrong: bytes from 1; one behind the last when something is missing there
	Why      string
	Expected string // what would be right there, or empty; alternatives have " or " between them
}

func (e *Error) Error() string { return fmt.Sprintf("column %d: %s", e.Column, e.Why) }

// Hint is Expected, but where Why says the same.
func (e *Error) Hint() string {
	if strings.Contains(e.Why, e.Expected) {
		return ""
	}
	return e.Expected
}
