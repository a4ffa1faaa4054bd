package capture

import (
	"github.com/sockd/sockd/families/packet/filter"
	"github.com/sockd/sockd/families/packet/pcapng"
)

// judge is one filter for frames of every link type.
type judge struct {
	text     string
	programs map[pcapng.LinkType]*filter.Program // a link type that cannot have such frames is not there
}

// newJudge compiles a filter. It must make sense for frames of one link type, the
// one that most of the source's have; of others, of which some words say nothing (an
// Ethernet address of a tunnel), it takes none where it makes none.
func newJudge(text string, link pcapng.LinkType) (*judge, error) {
	first, err := filter.Compile(text, link)
	if err != nil {
		return nil, err
	}
	j := &judge{text: first.String(), programs: map[pcapng.LinkType]*filter.Program{link: first}}
	for _, other := range []pcapng.LinkType{pcapng.Ethernet, pcapng.Raw, pcapng.LinuxSLL2} {
		if p, err := filter.Compile(text, other); err == nil {
			j.programs[other] = p
		}
	}
	return j, nil
}

// of is the program for a link type, nil when it takes none of its frames.
func (j *judge) of(link pcapng.LinkType) *filter.Program { return j.programs[link] }
