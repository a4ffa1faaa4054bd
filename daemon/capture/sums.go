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
		s.store.stats(s.statsOf(st))
	}
	s.store.flush()
}

// statsOf are the statistics of one interface until now. What the rings dropped is
// isb_ifdrop, as in dumpcap's files, and what the store did isb_osdrop. A ring does not
// know whose packets it dropped: they count for the first interface, whose comment has
// the losses of the whole capture.
func (s *Subscription) statsOf(st *stream) *pcapng.Stats {
	out := &pcapng.Stats{
		Interface: st.id, Time: s.until, Start: st.start, End: s.until,
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
