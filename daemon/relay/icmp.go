package relay

import (
	"syscall"
	"time"

	"github.com/sockd/sockd/families/ksock"
)

// icmpTeller passes the errors that the network sends back for a session's datagrams
// on to its client, as the client would have got them directly: a port that nobody
// has, a host or a network that is not there, a datagram too large for the path.
//
//	backend's kernel ──ICMP──► TO's error queue ──► icmpTeller ──raw ICMP──► client's kernel ──► ECONNREFUSED
//
// It takes CAP_NET_RAW. Without it, errors are counted and not told.
type icmpTeller struct {
	four, six ksock.FD

	tokens float64
	filled time.Duration // when, since epoch
}

// As many as a kernel sends by its defaults of net.ipv4.icmp_msgs_per_sec and _burst.
const (
	icmpRate  = 1000
	icmpBurst = 50
)

// open opens the sockets for the clients of a FROM of this domain, in its network
// namespace.
func (t *icmpTeller) open(domain int, from ksock.FD) {
	t.four, t.six = ksock.NoDescriptor, ksock.NoDescriptor
	if domain == syscall.AF_INET6 {
		t.six = openICMP(domain, from)
	}
	t.four = openICMP(syscall.AF_INET, from) // of a dual-stack FROM, too
	t.tokens = icmpBurst
}

// openICMP is NoDescriptor where it may not be: errors are counted then.
func openICMP(domain int, from ksock.FD) ksock.FD {
	fd, err := ksock.OpenICMP(domain, from)
	if err != nil {
		return ksock.NoDescriptor
	}
	return fd
}

// close lets go of the sockets. No session is left that could tell anything.
func (t *icmpTeller) close() {
	for _, fd := range []ksock.FD{t.four, t.six} {
		if fd != ksock.NoDescriptor {
			fd.Close()
		}
	}
}

// tell sends an error to a session's client. It is false when it may not, or when
// there were too many.
func (t *icmpTeller) tell(s *udpSession, e ksock.SocketError) bool {
	u := ksock.Unreachable{To: s.key.peer, From: s.key.local, Port: s.f.port, Why: e.Errno, MTU: e.MTU}
	fd := t.six
	if s.key.peer.AddrPort().Addr().Is4() {
		fd = t.four
	}
	if fd == ksock.NoDescriptor || u.From == (ksock.Local{}) || !t.allowed(s.f.sh.now()) {
		return false
	}
	return fd.SendUnreachable(&u) == nil
}

// allowed takes a token out of the bucket.
func (t *icmpTeller) allowed(now time.Duration) bool {
	t.tokens = min(t.tokens+icmpRate*(now-t.filled).Seconds(), icmpBurst)
	t.filled = now
	if t.tokens < 1 {
		return false
	}
	t.tokens--
	return true
}
