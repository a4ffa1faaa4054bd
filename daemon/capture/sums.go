package capture

import (
	"fmt"
	"time"

	"github.com/sockd/sockd/families/packet/pcapng"
)

// sumUp gives the store the statistics of every interface, and of a capture that has
// seen none, one that stands for all that it waited for: a file without a description
// has readers refuse it. mu is held.
func (s *Subscription) sumUp() {
	if s.until == 0 {
		s.until = time.Now().UnixNano()
	}
	if len(s.ids) == 0 {
		s.describe(&stream{iface: &iface{name: s.spec.Source}, link: pcapng.Ethernet, start: s.start})
	}
	for _, st := range s.ids {
		if !st.done {
			s.store.stats(s.statsOf(st, s.until))
		}
	}
	s.store.flush()
}

// retire gives the store the statistics of interfaces that went a while ago, and
// forgets them: on a host whose interfaces come and go there would be ever more. The
// first one's are the last of all, because they speak of the whole capture.
func (s *Subscription) retire() {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	for i, st := range s.streams {
		switch {
		case !i.gone.Load():
		case st.left.IsZero():
			st.left = now
		case now.Sub(st.left) > s.hub.limits.linger:
			delete(s.streams, i)
			s.endFollowing(st)
			if st.described && st.id != 0 {
				s.store.stats(s.statsOf(st, now.UnixNano()))
				st.done = true
			}
		}
	}
}

// statsOf are the statistics of one interface until then. What the rings dropped is
// isb_ifdrop, as in dumpcap's files, and what the store did isb_osdrop. A ring does not
// know whose packets it dropped: they count for the first interface, whose comment has
// the losses of the whole capture.
func (s *Subscription) statsOf(st *stream, until int64) *pcapng.Stats {
	out := &pcapng.Stats{
		Interface: st.id, Time: until, Start: st.start, End: until,
		Received: uint64(st.received), Accepted: uint64(st.received),
		OSDrop: uint64(st.lost), Delivered: uint64(st.received - st.lost),
	}
	if st.id == 0 {
		out.IfDrop = s.kernel
		out.Received += s.kernel
		out.Comment = fmt.Sprintf("dropped_kernel=%d dropped_daemon=%d dropped_subscriber=%d", s.kernel, s.daemon, s.subscriber)
	}
	return out
}
