package relay

import (
	"context"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/ksock"
)

// udpFront is a FROM of UDP whose TO are UDP, too: one socket for all clients, and a
// connected socket for each session, on one shard. What arrives together leaves
// together, in batches and in runs (ksock.Outbox), and nothing is copied on the way.
//
//	clients ──► FROM ─recvmmsg─► sorted by session ─┬─sendmmsg─► A's TO ──► backend
//	   ▲                                            └─sendmmsg─► B's TO ──► backend
//	   └───sendmmsg─── one Outbox for a turn's answers ◄─recvmmsg──────────────┘
//
// Answers go out from the address that the client spoke to.
type udpFront struct {
	socket
	r      *relay
	sh     *shard
	domain int

	// What follows is the shard's.
	out      post        // to the clients
	bound    ksock.Local // what FROM is bound to; zero: each datagram tells
	port     uint16
	byKey    map[udpKey]*udpSession
	byClient map[proxiedKey]*udpSession // in the place of byKey, with accepts
	accepts  bool                       // a PROXY header comes with each datagram
	last     *udpSession                // whom the last datagram came from
	recent   udpOrder
	flushing bool // the turn's answers will be flushed at its end
	stopped  bool
	paced    bool // waits for the relay's rate
	expiry   *alarm
	shortest time.Duration // of the idle times of sessions; 0: none
	icmp     icmpTeller

	mu       sync.Mutex // guards what follows
	detached bool       // out.fd is FROM, and socket.sock is closed
	gone     bool       // out.fd is closed
	final    uint64     // drops, then
}

// udpKey is what tells sessions apart: who speaks, and to which address of ours.
type udpKey struct {
	peer  ksock.Peer
	local ksock.Local
}

// How much one turn moves before others have theirs, in batches: some hundred
// microseconds.
const udpRounds = 8

// udpQueue is how many bytes may wait to be received. A sender in this machine fills
// the stock 208 KiB within one scheduling delay of the relay.
const (
	udpQueue     = 4 << 20 // of FROM: all clients
	udpOwnQueue  = 1 << 20 // of one session's TO
	udpTryAgain  = 10 * time.Millisecond
	udpHurryIdle = time.Millisecond // no idle time is looked at more often
)

func newUDPFront(s socket, p *plan) (*udpFront, error) {
	f := &udpFront{socket: s, byKey: map[udpKey]*udpSession{}, byClient: map[proxiedKey]*udpSession{}, accepts: p.own.proxy == proxyAccept}
	f.recent.init()
	d, err := families.As[families.Descriptor](s.sock)
	if err != nil {
		return nil, err
	}
	return f, d.Control(func(fd int) error { return f.prepare(ksock.FD(fd)) })
}

// prepare sets what FROM's socket is to tell and hold, before the first client hears
// of it.
func (f *udpFront) prepare(fd ksock.FD) error {
	name, err := fd.LocalPeer()
	if err != nil {
		return err
	}
	f.domain, f.bound, f.port = name.Domain(), ksock.LocalOf(name), name.AddrPort().Port()
	if f.bound == (ksock.Local{}) {
		fd.TellLocal(f.domain)
	}
	if f.name == "" && f.id == 0 && !saysQueue(f.target.Spec.Options) {
		fd.Deepen(udpQueue)
	}
	return nil
}

// saysQueue tells whether a user has said how much may wait to be received. Of a
// socket that was open already, whoever opened it did.
func saysQueue(options []families.Option) bool {
	return says(options, "so_rcvbuf") || says(options, "so_rcvbufforce")
}

// udpOnly tells whether every TO of a plan is UDP, which udpFront is for.
func udpOnly(p *plan) bool {
	if p.balance == balanceFanout {
		return false
	}
	return !slices.ContainsFunc(p.backends, func(b *backend) bool {
		return b.kind != kindDgram || isUnix(b.end.Network) || b.end.Network == families.NetworkID
	})
}

// isUDP tells whether a FROM is one for udpFront.
func (s *socket) isUDP() bool {
	i := s.sock.Info()
	return s.kind == kindDgram && s.state == families.Bound && i.Proto == "udp"
}

func (f *udpFront) endless() bool { return true }

// serve lets the shard work until the relay stops.
func (f *udpFront) serve(r *relay) error {
	f.r, f.sh = r, r.eng.pick()
	if err := f.detach(); err != nil {
		return err
	}
	f.icmp.open(f.domain, f.out.fd)
	defer f.icmp.close()
	if err := f.onShard(f.start); err != nil {
		return err
	}
	<-r.ctx.Done()
	return f.onShard(f.stop)
}

// onShard calls a function on the shard and waits for it.
func (f *udpFront) onShard(call func() error) error {
	done := make(chan error, 1)
	if !f.sh.do(func() { done <- call() }) {
		return errEngineClosed
	}
	return <-done
}

// detach takes FROM's descriptor out of the runtime's poller, which would be woken by
// every datagram.
func (f *udpFront) detach() error {
	fd, err := ksock.Detach(f.sock)
	if err != nil {
		return err
	}
	f.mu.Lock()
	f.out.fd, f.detached = fd, true
	f.mu.Unlock()
	fd.ReceiveRuns(!f.accepts) // each datagram of a run would have its own header
	return nil
}

func (f *udpFront) start() (err error) {
	f.out.front = f
	f.out.tok, err = f.sh.watchInput(int(f.out.fd), f)
	return err
}

// stop ends all sessions and the watch of FROM.
func (f *udpFront) stop() error {
	f.stopped = true
	for s := range f.recent.all() {
		s.because(errRemoved)
		s.close()
	}
	f.out.abandon(causeEnded)
	f.expiry.stop()
	f.sh.unwatch(f.out.tok, int(f.out.fd))
	return nil
}

// close lets go of FROM. A descriptor of systemd's goes back as it was.
func (f *udpFront) close() {
	f.mu.Lock()
	detached := f.detached
	f.mu.Unlock()
	if !detached {
		f.socket.close()
		return
	}
	if f.released.Swap(true) {
		return
	}
	final := f.drops()
	f.mu.Lock()
	f.gone, f.final = true, final
	f.mu.Unlock()
	if f.name == "" || !f.giveBack() {
		f.out.fd.Close()
	}
}

func (f *udpFront) giveBack() bool {
	a, err := f.r.eng.opts.Families.Domain(f.domain)
	if err != nil {
		return false
	}
	f.out.fd.ReceiveRuns(false) // whoever has it next may not know
	s, err := a.Adopt(int(f.out.fd))
	if err != nil {
		return false
	}
	f.host.GiveBack(f.name, s)
	return true
}

// drops is what the kernel dropped from FROM's queue. The lock is held across the
// call, which only reads counters, so that the descriptor is still FROM's.
func (f *udpFront) drops() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.gone:
		return f.final
	case f.detached:
		return f.out.fd.Drops()
	}
	return f.socket.drops()
}

// ready: clients have sent something, or take answers again.
func (f *udpFront) ready(ev ksock.Events) {
	if ev.Writable() {
		f.out.resume()
	}
	if ev.Readable() {
		f.run()
	}
}

// run receives from the clients.
func (f *udpFront) run() {
	if f.stopped || f.paced {
		return
	}
	m := f.sh.mailOf(nil)
	for range udpRounds {
		n, err := m.in.Recv(f.out.fd, 0)
		switch {
		case err == syscall.EAGAIN:
			return
		case err != nil:
			f.r.lost.add(noted(err), 1)
			f.sh.after(udpTryAgain, f.run) // whether there is another edge, nobody knows
			return
		}
		bytes := 0
		for i := range n {
			m.got[i] = m.in.Take(i)
			bytes += len(m.got[i].Data)
			f.sort(m, int8(i))
		}
		m.dispatch()
		if f.pause(bytes) || n < ksock.BatchSize {
			return
		}
	}
	f.sh.later(f)
}

// pause keeps what is over the rate in the kernel: nothing is received until these
// bytes are paid for.
func (f *udpFront) pause(bytes int) bool {
	wait := f.r.pace[0].spend(bytes)
	if wait <= 0 {
		return false
	}
	f.paced = true
	f.r.held.Store(true)
	f.sh.after(wait, func() {
		f.paced = false
		f.r.held.Store(false)
		f.run()
	})
	return true
}

// sort puts datagram i of a batch to its session's others.
func (f *udpFront) sort(m *mail, i int8) {
	d := &m.got[i]
	key := udpKey{*d.Peer, f.bound}
	if f.bound == (ksock.Local{}) {
		key.local = d.Local
	}
	h, ok := f.unwrap(d)
	if !ok {
		return
	}
	s := f.find(key, h)
	if s == nil {
		if s = f.open(m, key, h, d); s == nil {
			return
		}
	}
	m.chain(s, i)
}

func (f *udpFront) find(key udpKey, h proxyHeader) *udpSession {
	if f.accepts {
		return f.proxied(key, h)
	}
	if f.last != nil && f.last.key == key {
		return f.last
	}
	s := f.byKey[key]
	if s != nil {
		f.last = s
	}
	return s
}

// open begins a session for a datagram, or counts it as lost.
func (f *udpFront) open(m *mail, key udpKey, h proxyHeader, d *ksock.Datagram) *udpSession {
	n := ksock.Segments(len(d.Data), d.Segment)
	p := f.r.holdPlan()
	if !p.allow.admitsAddr(key.peer.AddrPort().Addr()) {
		p.release()
		f.r.turnAway(n, len(d.Data), causeDenied)
		return nil
	}
	if !f.makeRoom(m) {
		p.release()
		f.r.turnAway(n, len(d.Data), causeBusy)
		return nil
	}
	s := newUDPSession(f, key, h, p)
	f.add(s)
	f.r.enter(s)
	if err := s.dial(); err != nil {
		s.rx.receivedMany(n, len(d.Data))
		s.loseMany(&s.rx, n, len(d.Data), causeDial)
		s.noBackend(err)
		return nil
	}
	f.watchIdle(p.idleFor(kindDgram))
	return s
}

func (f *udpFront) add(s *udpSession) {
	if f.accepts {
		client, _ := s.client.source()
		f.byClient[proxiedKey{s.key, client}] = s
	} else {
		f.byKey[s.key], f.last = s, s
	}
	f.recent.push(s)
}

func (f *udpFront) remove(s *udpSession) {
	if f.accepts {
		client, _ := s.client.source()
		delete(f.byClient, proxiedKey{s.key, client})
	} else {
		delete(f.byKey, s.key)
	}
	if f.last == s {
		f.last = nil
	}
	f.recent.remove(s)
}

// makeRoom claims room for one more session, at the cost of the one that was used
// least recently. Those that are still dialled have messages waiting and are left
// alone.
func (f *udpFront) makeRoom(m *mail) bool {
	for !f.r.claim() {
		s := f.recent.oldest(func(s *udpSession) bool { return s.dialled() })
		if s == nil {
			return false
		}
		if s.first >= 0 {
			m.dispatch() // what it has sent in this batch comes first
		}
		f.r.lost.add(causeEvicted, 1)
		s.because(errEvicted)
		s.close()
	}
	return true
}

// watchIdle makes sure that sessions which may be idle for d end by then.
func (f *udpFront) watchIdle(d time.Duration) {
	if d <= 0 {
		return
	}
	if f.shortest == 0 || d < f.shortest {
		f.shortest = d
		f.expiry.stop()
		f.expiry = f.sh.after(d, f.expire)
	}
}

// expire ends what has been idle for its time. Sessions lie in the order of their
// last use, so only those are looked at that the shortest idle time concerns.
func (f *udpFront) expire() {
	f.expiry = nil
	next := f.shortest
	for s := range f.recent.all() {
		quiet, most := f.sh.now()-time.Duration(s.active.Load()), s.plan.idleFor(kindDgram)
		switch {
		case !s.dialled(): // --connect-timeout bounds that
		case most > 0 && quiet >= most:
			s.because(idleError(most))
			s.close()
			continue
		case most > 0:
			next = min(next, most-quiet)
		}
		if quiet < f.shortest {
			break
		}
	}
	if len(f.byKey)+len(f.byClient) == 0 {
		f.shortest = 0
		return
	}
	f.expiry = f.sh.after(max(next, udpHurryIdle), f.expire)
}

// flush sends the answers that have gathered.
func (f *udpFront) flush() {
	m := f.sh.mail
	if m == nil || m.owner != f {
		return
	}
	f.out.send(&m.replies)
	m.used, m.owner = 0, nil
}

// udpFlush flushes a front's answers at the end of a turn.
type udpFlush udpFront

func (u *udpFlush) run() {
	f := (*udpFront)(u)
	f.flushing = false
	f.flush()
}

// mail is a shard's room for datagrams on their way. They lie in the Inbox until they
// are sent: what clients sent, within one call; answers, until the end of the turn or
// until somebody else wants the Inbox.
type mail struct {
	in  *ksock.Inbox
	out ksock.Outbox // to one session's TO

	got    [ksock.BatchSize]ksock.Datagram
	next   [ksock.BatchSize]int8 // of the same session; -1: none
	active []*udpSession         // that have datagrams in got

	wrapped []byte // datagrams of a batch with their PROXY headers

	owner   *udpFront    // whose answers lie in the Inbox
	used    int          // slots that they take
	replies ksock.Outbox // they
}

// mailOf is the shard's mail with room for f's answers behind those that are there,
// or, for nil, with all of its room.
func (s *shard) mailOf(f *udpFront) *mail {
	if s.mail == nil {
		s.mail = &mail{in: ksock.NewInbox()}
	}
	m := s.mail
	if m.owner != nil && m.owner != f {
		m.owner.flush()
	}
	return m
}

// chain puts datagram i at the end of its session's.
func (m *mail) chain(s *udpSession, i int8) {
	m.next[i] = -1
	if s.first < 0 {
		s.first = i
		m.active = append(m.active, s)
	} else {
		m.next[s.final] = i
	}
	s.final = i
}

// dispatch sends what the sessions have got, each in its order.
func (m *mail) dispatch() {
	for i, s := range m.active {
		m.active[i] = nil
		s.forward(m)
	}
	m.active = m.active[:0]
}

// watchInput is watch for edges of input and errors alone.
func (s *shard) watchInput(fd int, h handler) (token, error) {
	return s.enter(fd, h, s.poller.AddInput)
}

// udpTarget is a UDP address that a session's socket can be connected to at once.
type udpTarget struct {
	peer ksock.Peer
	word string // the family's, for errors
	addr families.Addr
	text string // for lists
}

// udpTargetOf is how a shard dials a backend, or nil where that takes more than a
// literal address without options.
func (e *Engine) udpTargetOf(b *backend) *udpTarget {
	if b.kind != kindDgram || isUnix(b.end.Network) || len(b.end.Options) > 0 || b.own.src.IsValid() {
		return nil
	}
	targets, err := e.resolveLiteral(b.end)
	if err != nil || len(targets) != 1 || targets[0].Addr == nil {
		return nil
	}
	t := targets[0]
	if _, plain := t.Family.(families.Plain); !plain {
		return nil
	}
	peer := ksock.PeerOf(t.Addr.Sockaddr())
	if peer.Domain() == 0 {
		return nil
	}
	return &udpTarget{peer: peer, word: t.Family.Name(), addr: t.Addr, text: textOf(b.end.Network, t.Addr, b.text)}
}

// connect opens a session's TO.
func (t *udpTarget) connect() (ksock.FD, error) {
	fd, err := ksock.NewDatagramFD(t.peer.Domain())
	if err == nil {
		if err = fd.ConnectPeer(&t.peer); err == nil {
			return fd, nil
		}
		fd.Close()
	}
	return ksock.NoDescriptor, &families.OpError{Op: "connect", Family: t.word, Addr: t.addr.String(), Err: err}
}

// dialElsewhere dials in a goroutine, for a host name or options.
func (s *udpSession) dialElsewhere() {
	ctx, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	go func() {
		defer cancel()
		to, err := s.r.dial(ctx, s.plan)
		if !s.f.sh.do(func() { s.dialOver(to, err) }) && err == nil {
			to.abort() // nobody is left; unreachable while the engine waits for sessions
		}
	}()
}
