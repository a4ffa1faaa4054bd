package ctl

import (
	"fmt"
	"io"

	"github.com/sockd/sockd/families/model"
)

// parseID reads the ID of a verb that takes no NAME.
func parseID(verb, s string) (model.ID, error) {
	id, ok := model.ParseID(s)
	if !ok {
		return 0, &UsageError{Verb: verb, Why: fmt.Sprintf("%q is not an ID", s), Hint: "sockd-ctl ls"}
	}
	return id, nil
}

// printNothing is a text for printObject: what succeeded in silence.
func printNothing(io.Writer) error { return nil }
