package ctl

import (
	"fmt"
	"io"
	"strconv"

	"github.com/sockd/sockd/families/model"
)

// parseID reads the ID of a verb that takes no NAME.
func parseID(verb, s string) (model.ID, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 1 {
		return 0, &UsageError{Verb: verb, Why: fmt.Sprintf("%q is not an ID", s), Hint: "sockd-ctl ls"}
	}
	return model.ID(n), nil
}

// printNothing is a text for printObject: what succeeded in silence.
func printNothing(io.Writer) error { return nil }
