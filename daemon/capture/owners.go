package capture

import (
	"fmt"
	"strings"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/packet/filter"
	"github.com/sockd/sockd/families/packet/filter/syntax"
	"github.com/sockd/sockd/families/packet/owner"
	"github.com/sockd/sockd/families/packet/pcapng"
	"github.com/sockd/sockd/families/packet/ring"
)

// labels is what a judge knows of whose packets are: it has one when its filter has a word
// about that. It is used under the subscription's lock.
type labels struct {
	finder  *owner.Finder
	owner   *filter.Owner // of the packet in hand; nil: not known
	told    *filter.Owner // that options are of
	options []byte
}

// openLabels opens what the filter asks with, if it asks. In another network namespace than
// the daemon's there is nobody to ask.
func (j *judge) openLabels(sp *space) (err error) {
	switch {
	case j.owner == nil:
		return nil
	case sp.foreign:
		return &families.SyntaxError{What: "filter", Text: j.text, Column: j.owner.Column(), Why: "whose packets are is not known in another network namespace"}
	}
	l := &labels{}
	sp.hub.inside(func() {
		l.finder, err = owner.New(owner.Options{Processes: j.asksProcesses(), Brokered: sp.hub.brokered})
	})
	if err != nil {
		return &families.OpError{Op: "capture", Family: "packet", Addr: "the owners of packets", Err: err}
	}
	j.labels = l
	return nil
}

// close ends what a judge asks with, and tells of how many packets it did not ask. nil is
// no judge.
func (j *judge) close() (unasked int64) {
	if j == nil || j.labels == nil {
		return 0
	}
	_ = j.labels.finder.Close() // nothing is under way
	return j.labels.finder.Skipped()
}

// unaskedText tells of packets that were judged without their owner, "" when there were none.
func unaskedText(n int64) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprintf("packets of new flows came too fast to ask whose each is: %d were judged as nobody's", n)
}

// find looks for the owner of a frame.
func (l *labels) find(f *ring.Frame, link pcapng.LinkType) *filter.Owner {
	l.owner = l.finder.Find(f.Data, filter.LinkType(link), f.Type == ring.Outgoing, f.Loopback, f.Time)
	return l.owner
}

// now makes a packet whose owner was found before the one in hand. nil is no labels.
func (l *labels) now(o *filter.Owner) {
	if l != nil {
		l.owner = o
	}
}

// write gives a packet the options that tell of the owner: the process in the
// option that was made for it, the rest in words.
func (l *labels) write(p *pcapng.Packet) {
	p.Options = nil
	if l.owner == nil {
		return
	}
	if l.owner != l.told { // the finder has one for all packets of a flow
		l.told = l.owner
		of := pcapng.Packet{Comment: inWords(l.owner)}
		if l.owner.KnownPID {
			of.PID = l.owner.PID
		}
		l.options = of.AppendOptions(l.options[:0])
	}
	p.Options = l.options
}

// inWords is what is known of an owner, in the words of the filter.
func inWords(o *filter.Owner) string {
	var b strings.Builder
	if o.KnownUID {
		fmt.Fprintf(&b, "uid %d ", o.UID)
	}
	if o.KnownPID {
		fmt.Fprintf(&b, "pid %d ", o.PID)
	}
	if o.Comm != "" {
		fmt.Fprintf(&b, "comm %s ", o.Comm)
	}
	if o.Unit != "" {
		fmt.Fprintf(&b, "unit %s ", o.Unit)
	}
	return strings.TrimSuffix(b.String(), " ")
}

// asksProcesses tells whether a judge asks for more than users.
func (j *judge) asksProcesses() bool {
	for _, p := range j.programs {
		for _, w := range p.Owners() {
			if w.Field != syntax.UID {
				return true
			}
		}
	}
	return false
}

// keptProgram compiles a filter for packets that are kept. Errors are *families.SyntaxError.
func keptProgram(text string, link pcapng.LinkType) (*filter.Program, error) {
	return compile(filter.Options{Fragments: true, Owners: true, Stored: true}, text, link)
}
