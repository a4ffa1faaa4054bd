package relay

import (
	"net/netip"
	"slices"

	"github.com/sockd/sockd/families/ksock"
)

// Datagrams with PROXY headers: each carries one (version 2), since each may be the
// first to arrive. FROM with proxy=accept takes it off, and who it names is the
// client: a proxy may speak for many from one socket. TO with proxy=v2 gets one in
// front of each datagram; answers have none.

// proxiedKey is what tells sessions apart that come through a proxy.
type proxiedKey struct {
	udpKey
	client netip.AddrPort
}

// unwrap takes the header off a datagram's front. It is false, and the datagram is
// counted as lost, where there is none.
func (f *udpFront) unwrap(d *ksock.Datagram) (h proxyHeader, ok bool) {
	if !f.accepts {
		return proxyHeader{}, true
	}
	h, payload, err := proxyDatagram(d.Data)
	if err != nil {
		f.r.turnAway(1, len(d.Data), causeNoHeader)
		return proxyHeader{}, false
	}
	d.Data = payload
	return h, true
}

// proxied is the session of a client behind a proxy, or nil.
func (f *udpFront) proxied(key udpKey, h proxyHeader) *udpSession {
	client, _ := h.source()
	return f.byClient[proxiedKey{key, client}]
}

// wrap makes the header that goes in front of each datagram to a backend which is
// told who the client is.
func (s *udpSession) wrap() {
	h := s.client
	if h.family == proxyNone {
		h = proxyHeader{transport: proxyDgram}
		h.between(s.key.peer.AddrPort(), netip.AddrPortFrom(s.key.local.IP(), s.f.port))
	}
	s.header = appendProxyDatagram(nil, h, nil)
	for i := range s.out.waiting { // for the dial, which tells only now
		l := &s.out.waiting[i]
		l.data = slices.Concat(s.header, l.data)
		s.out.held += len(s.header)
	}
}

// forwardWrapped is the way of datagrams that get a header, from the i-th of a batch
// on. They are copied behind it, in one piece of memory a batch.
func (s *udpSession) forwardWrapped(m *mail, i int8) {
	m.wrapped = m.wrapped[:0]
	for ; i >= 0; i = m.next[i] {
		d := &m.got[i]
		if !s.take(&s.rx, d) {
			continue
		}
		for data := range ksock.Cut(d.Data, d.Segment) {
			s.addWrapped(m, data)
		}
	}
	s.out.send(&m.out)
}

// addWrapped appends to m.wrapped. When that moves, what was added before lies in the
// memory that it had.
func (s *udpSession) addWrapped(m *mail, data []byte) {
	if m.out.Full() {
		s.out.send(&m.out)
		m.wrapped = m.wrapped[:0]
	}
	at := len(m.wrapped)
	m.wrapped = append(append(m.wrapped, s.header...), data...)
	m.out.Add(m.wrapped[at:], 0, s.dest(false))
}

// extra is how many bytes a datagram has in front that are the relay's own, and are
// not counted.
func (p *post) extra(s *udpSession) int {
	if p.back() {
		return 0
	}
	return len(s.header)
}
