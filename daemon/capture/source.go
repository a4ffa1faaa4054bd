package capture

import (
	"path"
	"slices"
	"strings"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/packet/ring"
)

// source is what a capture is of: interface names, globs and "any".
type source struct {
	text  string
	items []string
	wide  bool // some item stands for more than one interface
}

// globs are the letters that make an item a pattern (path.Match).
const globs = `*?[`

// parseSource reads a list with commas between. Errors are *families.SyntaxError.
func parseSource(text string) (source, error) {
	s := source{text: text}
	for item := range strings.SplitSeq(text, ",") {
		if _, err := path.Match(item, ""); item == "" || err != nil {
			return source{}, &families.SyntaxError{What: "source", Text: text, Why: "want interface names, patterns like veth* or any, with commas between"}
		}
		if !slices.Contains(s.items, item) {
			s.items = append(s.items, item)
		}
		s.wide = s.wide || item == ring.Any || strings.ContainsAny(item, globs)
	}
	return s, nil
}

// matches tells whether an interface of this name belongs to the source.
func (s *source) matches(name string) bool {
	return slices.ContainsFunc(s.items, func(item string) bool {
		if item == ring.Any {
			return true
		}
		ok, _ := path.Match(item, name) // parseSource has seen that it is a pattern
		return ok
	})
}

// all tells whether every interface belongs to the source.
func (s *source) all() bool { return slices.Contains(s.items, ring.Any) }
