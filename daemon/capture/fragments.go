package capture

import (
	"fmt"
	"slices"

	"github.com/sockd/sockd/families/packet/filter"
	"github.com/sockd/sockd/families/packet/ring"
)

// heldFrame is a fragment that came before the first of its datagram.
type heldFrame struct {
	frame ring.Frame
	owner *filter.Owner
}

// followFragments judges a frame by a filter with the word "fragments": it stores those that were
// held for this one, or holds it. mu is held. A held frame is in no count of the
// capture until somebody knows that it passes the filter.
func (s *Subscription) followFragments(st *stream, f *ring.Frame) bool {
	switch st.follower.Judge(&s.asked, f.Time) {
	case filter.Take:
		held := st.follower.Released()
		if len(held) > 0 {
			s.keepHeld(st, held)
		}
		return !s.full
	case filter.Hold:
		h := heldFrame{frame: *f, owner: s.asked.Owner}
		h.frame.Data = slices.Clone(f.Data)
		st.follower.Keep(h)
	}
	return false
}

func (s *Subscription) keepHeld(st *stream, held []heldFrame) {
	for i := range held {
		if s.full {
			return
		}
		st.judge.labels.now(held[i].owner)
		s.keep(st, &held[i].frame)
	}
	st.judge.labels.now(s.asked.Owner)
}

// endFollowingLocked gives up what streams hold that are judged by another judge than but. A
// capture whose filter is changed again and again would else hold the fragments of each.
func (s *Subscription) endFollowingLocked(but *judge) {
	for _, st := range s.ids {
		if st.judge != but || but == nil {
			s.endFollowing(st)
		}
	}
	for _, st := range s.streams { // also those that are not described yet
		if st.judge != but || but == nil {
			s.endFollowing(st)
		}
	}
}

// endFollowing gives up what a stream holds, and counts it; mu is held.
func (s *Subscription) endFollowing(st *stream) {
	if st.follower != nil {
		st.follower.Flush()
		s.undecided += st.follower.Stats().Lost
		st.follower, st.judge = nil, nil
	}
}

// undecidedText tells of fragments of which nobody ever knew, "" when there were none.
func undecidedText(n uint64) string {
	if n == 0 {
		return ""
	}
	if n == 1 {
		return "1 fragment is left out: the first of its datagram did not come, or too late"
	}
	return fmt.Sprintf("%d fragments are left out: the first of their datagrams did not come, or too late", n)
}
