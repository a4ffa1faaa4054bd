package capture

import (
	"errors"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/packet/filter"
	"github.com/sockd/sockd/families/packet/filter/syntax"
	"github.com/sockd/sockd/families/packet/pcapng"
)

// judge is one filter for frames of every link type.
type judge struct {
	text     string
	programs map[pcapng.LinkType]*filter.Program // a link type that cannot have such frames is not there

	fragments bool          // follows them
	owner     *syntax.Owner // the first word that asks whose packets are; nil: none
	labels    *labels       // answers; nil when owner is
}

// newJudge compiles a filter for live packets. It must make sense for frames of one link
// type, the one that most of the source's have; of others, of which some words say
// nothing (an Ethernet address of a tunnel), it takes none where it makes none. mask is
// the interface's, see filter.Options.
func newJudge(text string, link pcapng.LinkType, mask uint32) (*judge, error) {
	o := filter.Options{Fragments: true, Owners: true, Netmask: mask}
	first, err := compile(o, text, link)
	if err != nil {
		return nil, err
	}
	j := &judge{
		text: first.String(), programs: map[pcapng.LinkType]*filter.Program{link: first},
		fragments: first.Fragments(),
	}
	if words := first.Owners(); len(words) > 0 {
		j.owner = words[0]
	}
	for _, other := range []pcapng.LinkType{pcapng.Ethernet, pcapng.Raw, pcapng.LinuxSLL2} {
		if other == link {
			continue
		}
		if p, err := compile(o, text, other); err == nil {
			j.programs[other] = p
		}
	}
	return j, nil
}

// of is the program for a link type, nil when it takes none of its frames.
func (j *judge) of(link pcapng.LinkType) *filter.Program { return j.programs[link] }

// plain tells that a packet is judged by itself, and nothing is asked about it.
func (j *judge) plain() bool { return j.owner == nil && !j.fragments }

// compile compiles a filter. Errors are *families.SyntaxError.
func compile(o filter.Options, text string, link pcapng.LinkType) (*filter.Program, error) {
	p, err := o.Compile(text, filter.LinkType(link))
	var wrong *filter.Error
	if errors.As(err, &wrong) {
		return nil, &families.SyntaxError{What: "filter", Text: wrong.Text, Column: wrong.Column, Why: wrong.Why, Hint: wrong.Hint()}
	}
	return p, err
}
