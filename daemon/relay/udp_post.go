package relay

import (
	"slices"
	"syscall"

	"github.com/sockd/sockd/families/ksock"
)

// post is where datagrams leave: one session's TO, or FROM for the answers of all.
// What the socket does not take now waits here, within the bounds of a dial's.
type post struct {
	front   *udpFront
	session *udpSession // whose TO it is; nil: it is FROM
	fd      ksock.FD
	tok     token
	waiting []letter
	held    int // bytes
}

// letter is a datagram that waits.
type letter struct {
	s    *udpSession
	data []byte
}

// What may wait for room on FROM, for all sessions together: what a full socket
// buffer drains in a few milliseconds, and no more.
const (
	waitingMessages = 1024
	waitingBytes    = 1 << 20
)

func (p *post) back() bool { return p.session == nil }

func (p *post) flowOf(s *udpSession) *flow {
	if p.back() {
		return &s.tx
	}
	return &s.rx
}

// send sends what is in an Outbox, after what waits, counts it, and empties the
// Outbox.
func (p *post) send(o *ksock.Outbox) {
	if len(p.waiting) == 0 && p.fd != ksock.NoDescriptor {
		_ = o.Send(p.fd) // the parcels tell
	}
	for i := range o.Len() {
		parcel := o.Parcel(i)
		s := parcel.Tag.(*udpSession)
		p.settle(s, parcel)
		if parcel.Left() {
			for data := range o.Rest(i) {
				p.keep(s, data)
			}
		}
	}
	o.Reset()
}

// settle counts what became of a parcel.
func (p *post) settle(s *udpSession, parcel *ksock.Parcel) {
	f := p.flowOf(s)
	if parcel.Sent > 0 {
		f.sentMany(parcel.Sent, parcel.SentBytes-parcel.Sent*p.extra(s))
	}
	if parcel.Lost > 0 {
		s.loseMany(f, parcel.Lost, parcel.LostBytes-parcel.Lost*p.extra(s), lossOf(parcel.Err))
		if !p.back() {
			s.tellUnreachable(parcel.Err)
		}
	}
	if parcel.Whole {
		p.noRuns(s, parcel.Segment)
	}
}

// noRuns remembers that a route refused a run of datagrams of this length.
func (p *post) noRuns(s *udpSession, segment int) {
	most := &s.runs
	if p.back() {
		most = &s.backRuns
	}
	*most = min(*most, uint16(segment-1))
}

// lossOf is the cause that a datagram is counted by which the kernel did not take.
func lossOf(errno syscall.Errno) cause {
	switch errno {
	case syscall.EMSGSIZE:
		return causeTooBig
	case syscall.ENOBUFS, syscall.ENOMEM:
		return causeFull
	case syscall.ECONNREFUSED:
		return causeRefused
	case syscall.EINVAL, syscall.EDESTADDRREQ:
		return causeInvalid
	}
	return causeUnreachable
}

// keep makes a datagram wait, if there is room for it.
func (p *post) keep(s *udpSession, data []byte) {
	most, bytes, why := waitingMessages, waitingBytes, causeFull
	if !p.back() {
		most, bytes = pendingMessages, pendingBytes
		if p.fd == ksock.NoDescriptor {
			why = causePending
		}
	}
	f := p.flowOf(s)
	if len(p.waiting) >= most || p.held+len(data) > bytes {
		s.loseMany(f, 1, len(data)-p.extra(s), why)
		return
	}
	if len(p.waiting) == 0 {
		p.await(true)
	}
	p.waiting = append(p.waiting, letter{s, slices.Clone(data)})
	p.held += len(data)
	f.waits.Store(true)
}

// waitsOf is what waits here of one session, without what the relay has put in front.
func (p *post) waitsOf(s *udpSession) (a amount) {
	for _, l := range p.waiting {
		if l.s == s {
			a.add(len(l.data) - p.extra(s))
		}
	}
	return a
}

// await asks to be told of room, or no longer.
func (p *post) await(on bool) {
	if p.fd != ksock.NoDescriptor {
		_ = p.front.sh.poller.AwaitRoom(int(p.fd), uint64(p.tok), on) // it is watched
	}
}

// resume sends what waits.
func (p *post) resume() {
	if len(p.waiting) == 0 {
		return
	}
	// Answers in hand lie in the other Outbox, and come after those that wait.
	o := &p.front.sh.mailOf(p.front).out
	for len(p.waiting) > 0 {
		for i := 0; i < len(p.waiting) && !o.Full(); i++ {
			l := p.waiting[i]
			o.Add(l.data, 0, l.s.dest(p.back()))
		}
		err := o.Send(p.fd)
		p.done(o)
		if err != nil {
			p.await(true)
			return
		}
	}
	p.waiting = nil
	p.await(false)
}

// done counts the letters of an Outbox and takes those that went, or are lost, off
// the front of what waits.
func (p *post) done(o *ksock.Outbox) {
	n := 0
	for i := range o.Len() {
		parcel := o.Parcel(i)
		s := parcel.Tag.(*udpSession)
		p.settle(s, parcel)
		p.flowOf(s).waits.Store(parcel.Left())
		n += parcel.Sent + parcel.Lost
		p.held -= parcel.SentBytes + parcel.LostBytes
	}
	o.Reset()
	clear(p.waiting[:n])
	p.waiting = p.waiting[n:]
}

// abandon counts all that waits as lost.
func (p *post) abandon(why cause) {
	for _, l := range p.waiting {
		l.s.loseMany(p.flowOf(l.s), 1, len(l.data)-p.extra(l.s), why)
	}
	p.waiting, p.held = nil, 0
}

// abandonOf counts what waits of one session as lost.
func (p *post) abandonOf(s *udpSession) {
	p.waiting = slices.DeleteFunc(p.waiting, func(l letter) bool {
		if l.s != s {
			return false
		}
		p.held -= len(l.data)
		s.loseMany(p.flowOf(s), 1, len(l.data)-p.extra(s), causeEnded)
		return true
	})
}
