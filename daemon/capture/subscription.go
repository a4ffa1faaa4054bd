package capture

import (
	"errors"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/model"
	"github.com/sockd/sockd/families/packet/filter"
	"github.com/sockd/sockd/families/packet/pcapng"
	"github.com/sockd/sockd/families/packet/ring"
)

const maxSnaplen = pcapng.MaxSnaplen

// What a Subscription is to the daemon.
var _ model.Capturing = (*Subscription)(nil)

// Subscription is one capture. Its methods may be called from any goroutine.
type Subscription struct {
	hub     *Hub
	space   *space
	spec    model.CaptureSpec
	source  source
	snaplen int
	store   store
	queue   *queue // the store of a capture that is run; nil: another one

	takesBlocks atomic.Bool   // blocks is set
	closed      chan struct{} // closed by Close
	entered     chan struct{} // closed when somebody runs it
	ended       chan struct{} // closed when it has left its taps

	// tie is held while attachments are made and ended.
	tie  sync.Mutex
	atts []*attachment     // set with tie and mu held, read with either
	gone bool              // it has left its taps for good
	here map[string]*iface // of the names of the source, those that are there

	mu      sync.Mutex // guards everything below, and the store's writing half
	state   state
	tell    func(cause string) // told of what happens to the capture; may be nil
	note    func(note string)  // told of its interfaces; may be nil
	judge   *judge
	before  *judge // for packets until since
	since   int64
	next    *judge // on its way to be judge
	streams map[*iface]*stream
	ids     []*stream // those that are described, by id
	start   int64     // when it began, nanoseconds since 1970
	until   int64     // packets after it are not wanted; 0: not yet ended
	kernel  uint64    // drops of the rings since the beginning, as known last
	told    uint64    // drops that an epb_dropcount has told of
	taken   int64     // frames that were ever stored
	full    bool      // spec.Count of them
	packet  pcapng.Packet
	asked   filter.Packet // the packet that is judged
	cooked  []byte        // a packet with a header of SLL2, for Format pcap
	// undecided are fragments whose datagrams nobody could judge.
	undecided uint64
	unasked   int64 // packets whose owners there was no time to ask for
	blocks    blockTaker
	counts
}

type counts struct {
	received, delivered int64
	daemon, subscriber  int64 // drops
}

// state is where a subscription stands in its life.
type state uint8

const (
	waiting state = iota // nobody runs it
	running
	left // it is off its taps
)

func newSubscription(sp *space, spec model.CaptureSpec, src source, j *judge) *Subscription {
	s := &Subscription{
		hub: sp.hub, space: sp, spec: spec, source: src, judge: j, snaplen: spec.Snaplen, start: time.Now().UnixNano(),
		closed: make(chan struct{}), entered: make(chan struct{}), ended: make(chan struct{}), streams: map[*iface]*stream{}, here: map[string]*iface{},
	}
	if s.snaplen == 0 {
		s.snaplen = maxSnaplen
	}
	return s
}

// attach puts the subscription on the taps of what there is. An interface that is not
// there is an error unless it is waited for.
func (s *Subscription) attach() error {
	s.tie.Lock()
	defer s.tie.Unlock()
	if s.source.wide {
		return s.attachTo(0, ring.Any)
	}
	v := s.space.now.Load()
	for _, name := range s.source.items {
		i := v.named(name)
		if i == nil && s.spec.Wait {
			continue
		}
		if i == nil {
			return noInterface(name)
		}
		if err := s.attachToNamed(i); err != nil {
			return err
		}
		s.here[name] = i
	}
	if s.space.foreign {
		return s.attachTo(0, ring.Any)
	}
	return nil
}

// attachToNamed enters the tap of an interface that the source names. In another namespace
// there is one tap for all.
func (s *Subscription) attachToNamed(i *iface) error {
	if s.space.foreign || s.attachedTo(i.index) {
		return nil
	}
	return s.attachTo(i.index, i.name)
}

func noInterface(name string) error {
	return &families.OpError{Op: "capture", Family: "packet", Addr: name, Err: syscall.ENODEV}
}

// attachTo enters one tap; tie is held.
func (s *Subscription) attachTo(index int, name string) error {
	t, err := s.space.enter(index, name, s.spec.Rings)
	if err != nil {
		return err
	}
	a := &attachment{sub: s, tap: t}
	if err := t.add(a); err != nil {
		s.space.leave(t)
		return err
	}
	i := s.space.lookup(index)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.atts = append(s.atts, a)
	if index != 0 {
		s.describe(s.newStream(i, t.link()))
	}
	return nil
}

// follow attaches the subscription to interfaces that have come, and lets go of those
// that have gone.
func (s *Subscription) follow() {
	s.tie.Lock()
	defer s.tie.Unlock()
	if s.gone {
		return
	}
	s.letGo()
	s.retire()
	if s.source.wide || s.space.foreign {
		s.atts[0].tap.adjust()
	}
	if s.source.wide {
		return
	}
	v := s.space.now.Load()
	s.miss(v)
	for _, name := range s.source.items {
		if i := v.named(name); i != nil {
			s.catchUp(i)
		}
	}
}

// letGo leaves the taps that have ended.
func (s *Subscription) letGo() {
	for _, a := range slices.Clone(s.atts) {
		if a.tap.index == 0 || !a.tap.ended() {
			continue
		}
		s.detach(a)
		for _, name := range s.source.items {
			if i := s.here[name]; i != nil && i.index == a.tap.index {
				s.lose(name, "")
			}
		}
	}
}

// miss notes names that have become none, or another interface's. One that was renamed is
// captured on all the same, but in another namespace.
func (s *Subscription) miss(v *view) {
	for _, name := range s.source.items {
		old, i := s.here[name], v.named(name)
		switch {
		case old == nil:
			continue
		case i != nil && i.isStill(old): // perhaps of another kind
			s.here[name] = i
			continue
		}
		now := ""
		if i = v.byIndex[old.index]; i != nil && !i.gone.Load() && i.isStill(old) {
			now = ": it is " + i.name + " now"
		}
		s.lose(name, now)
	}
}

// lose notes that an interface has not its name any more.
func (s *Subscription) lose(name, now string) {
	delete(s.here, name)
	s.sayNote(name + " is gone" + now)
}

func (s *Subscription) attachedTo(index int) bool {
	return slices.ContainsFunc(s.atts, func(a *attachment) bool { return a.tap.index == index })
}

func (s *Subscription) catchUp(i *iface) {
	switch err := s.attachToNamed(i); {
	case errors.Is(err, syscall.ENODEV): // gone again, as rtnetlink will tell
	case err != nil:
		s.say(err.Error())
	case s.here[i.name] != i:
		s.here[i.name] = i
		s.sayNote(i.name + " is there")
	}
}

// say tells whoever wants to know what happens to the capture.
func (s *Subscription) say(cause string) {
	s.mu.Lock()
	tell := s.tell
	s.mu.Unlock()
	if tell != nil {
		tell(cause)
	}
}

// sayNote is say, of an interface.
func (s *Subscription) sayNote(note string) {
	s.say(note)
	s.mu.Lock()
	f := s.note
	s.mu.Unlock()
	if f != nil {
		f(note)
	}
}

// Notes has f called with what becomes of the interfaces: see model.Capturing.
func (s *Subscription) Notes(f func(note string)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.note = f
}

// Tell has f called, from another goroutine, with what happens to the capture's
// interfaces and files. f must not call the subscription's methods but View.
func (s *Subscription) Tell(f func(cause string)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tell = f
}

// newStream makes the stream of an interface; mu is held.
func (s *Subscription) newStream(i *iface, link pcapng.LinkType) *stream {
	if st := s.streams[i]; st != nil {
		return st
	}
	st := &stream{iface: i, native: link, link: link, start: time.Now().UnixNano()}
	st.wanted = s.source.matches(i.name) || !s.source.wide && !s.space.foreign // one that was renamed stays
	if s.cooks() {
		st.link = pcapng.LinuxSLL2
	}
	s.streams[i] = st
	return st
}

// cooks tells whether packets get a header of SLL2: a pcap file has one link type.
func (s *Subscription) cooks() bool { return s.spec.Format == model.FormatPcap && s.source.wide }

// describe has the store know of an interface; mu is held.
func (s *Subscription) describe(st *stream) {
	if st.described {
		return
	}
	st.described, st.id, st.filter = true, uint32(len(s.ids)), s.judge.text
	s.ids = append(s.ids, st)
	s.store.describe(&pcapng.Interface{Link: st.link, Snaplen: uint32(s.snaplen), Name: st.iface.name, Filter: s.judge.text})
}

// passes asks the filter, that of the packet's time.
func (s *Subscription) passes(st *stream, f *ring.Frame) bool {
	j := s.judge
	if f.Time <= s.since {
		j = s.before
	}
	if st.judge != j {
		s.rejudge(st, j)
	}
	if st.program == nil {
		return false
	}
	s.asked.Data, s.asked.Length = f.Data, f.Len
	s.asked.Interface, s.asked.Direction, s.asked.Owner = uint32(f.Ifindex), filterDirection(f.Type), nil
	if j.labels != nil {
		s.asked.Owner = j.labels.find(f, st.native)
	}
	if st.follower != nil {
		return s.followFragments(st, f)
	}
	return st.program.MatchPacket(&s.asked)
}

// rejudge has a stream's packets judged by another filter; mu is held.
func (s *Subscription) rejudge(st *stream, j *judge) {
	s.endFollowing(st)
	st.judge, st.program = j, j.of(st.native)
	if st.program != nil && j.fragments {
		st.follower = filter.NewFollower[heldFrame](st.program, filter.FollowLimits{})
	}
}

// plain tells that packets are judged each by itself and have no labels; mu is held.
func (s *Subscription) plain() bool {
	return s.judge.plain() && (s.before == nil || s.before.plain())
}

// kernelPrograms are the filters that a tap must let through, for frames of a link
// type; a filter that takes none of them has none.
func (s *Subscription) kernelPrograms(link pcapng.LinkType) []*filter.Program {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []*filter.Program
	for _, j := range []*judge{s.judge, s.next} {
		if j == nil {
			continue
		}
		if p := j.of(link); p != nil {
			out = append(out, p)
		}
	}
	return out
}

// SetFilter replaces the filter: packets from now on are judged by the new one, those
// from before by the old one, and none is lost to anybody. Errors are
// *families.SyntaxError, and net.ErrClosed when the capture has ended.
func (s *Subscription) SetFilter(text string) error {
	s.tie.Lock()
	defer s.tie.Unlock()
	if s.gone {
		return net.ErrClosed
	}
	j, err := newJudge(text, s.mainLink(), s.space.maskOf(s.source))
	if err != nil {
		return err
	}
	if err := j.openLabels(s.space); err != nil {
		return err
	}
	s.turn(func() { s.next = j })
	s.turn(func() {
		s.unasked += s.before.close()
		s.before, s.judge, s.next, s.since = s.judge, j, nil, time.Now().UnixNano()
		s.endFollowingLocked(s.before)
		s.renewLocked()
	})
	return nil
}

// renewLocked has packets of the new filter come under a description that tells of it. One
// that is written cannot be changed, and a filter that is in none would leave a file
// without any for the sake of captures that are changed: readers (Wireshark, capinfos,
// libpcap) take two descriptions of an interface, as they do those of dumpcap's several.
func (s *Subscription) renewLocked() {
	for i, st := range s.streams {
		if st.described && st.filter != s.judge.text {
			s.streams[i] = s.successorLocked(st)
		}
	}
	for _, a := range s.atts {
		a.last = nil
	}
}

// successorLocked is the stream of an interface under the filter of now: one that there was
// under the same filter, or a new one.
func (s *Subscription) successorLocked(st *stream) *stream {
	for _, old := range s.ids {
		if old.iface == st.iface && old.filter == s.judge.text && !old.done {
			old.before = st
			return old
		}
	}
	return &stream{iface: st.iface, native: st.native, link: st.link, wanted: st.wanted, start: s.since, before: st}
}

// turn changes the filters, and has the kernel know.
func (s *Subscription) turn(change func()) {
	s.mu.Lock()
	change()
	s.mu.Unlock()
	for _, a := range s.atts {
		a.tap.adjust()
	}
}

// mainLink is the link type for which a filter must make sense; tie is held.
func (s *Subscription) mainLink() pcapng.LinkType {
	if len(s.atts) == 0 {
		return pcapng.Ethernet
	}
	return s.atts[0].tap.link()
}

// lost is all that was, mu is held.
func (s *Subscription) lost() uint64 { return s.kernel + uint64(s.daemon+s.subscriber) }

// keep stores a frame, or counts its loss; mu is held.
func (s *Subscription) keep(st *stream, f *ring.Frame) {
	s.describe(st)
	s.received++
	st.received++
	lost := s.lost()
	data, length := f.Data, f.Len
	if st.link != st.native {
		s.cooked = cook(s.cooked[:0], f, st.native)
		length += len(s.cooked) - len(data)
		data = s.cooked
	}
	p := &s.packet // field by field: a whole one is made elsewhere and copied
	p.Interface, p.Time, p.Data, p.Len = st.id, f.Time, data[:min(len(data), s.snaplen)], length
	p.Direction, p.Reception, p.Dropped = direction(f.Type), receptions[f.Type&7], lost-s.told
	if p.Options = nil; st.judge.labels != nil {
		st.judge.labels.write(p)
	}
	switch s.store.add(p) {
	case noRoom:
		s.subscriber++
		st.lost++
		return
	case noMemory:
		s.daemon++
		st.lost++
		return
	}
	s.told = lost
	s.taken++
	if s.full = s.taken == s.spec.Count; s.full && s.queue != nil { // never when there is no Count
		s.queue.hurry = true
	}
}

// filterDirection is the same for filters.
func filterDirection(t ring.PacketType) filter.Direction {
	if t == ring.Outgoing {
		return filter.Out
	}
	return filter.In
}

// direction and receptions say what epb_flags does of sll_pkttype.
func direction(t ring.PacketType) pcapng.Direction {
	if t == ring.Outgoing {
		return pcapng.Outbound
	}
	return pcapng.Inbound
}

var receptions = [8]pcapng.Reception{
	ring.Host: pcapng.Unicast, ring.Broadcast: pcapng.Broadcast, ring.Multicast: pcapng.Multicast, ring.OtherHost: pcapng.Promiscuous,
}

// View is the capture as it stands; the daemon adds ID and Owner.
func (s *Subscription) View() model.Capture {
	s.countKernel()
	s.mu.Lock()
	defer s.mu.Unlock()
	return model.Capture{
		Source:            s.spec.Source,
		Filter:            s.judge.text,
		Received:          s.received,
		Delivered:         s.delivered,
		DroppedKernel:     int64(s.kernel),
		DroppedDaemon:     s.daemon,
		DroppedSubscriber: s.subscriber,
	}
}

// countKernel asks the kernel for its drops, with no lock of the readers' held.
func (s *Subscription) countKernel() {
	for _, a := range s.attached() {
		s.countDrops(a)
	}
}

// attached are the attachments of now.
func (s *Subscription) attached() []*attachment {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.atts)
}

func (s *Subscription) countDrops(a *attachment) {
	drops := a.tap.drops()
	s.mu.Lock()
	defer s.mu.Unlock()
	a.note(drops)
}

// Close ends the capture: Run, if somebody runs it, completes the file and
// returns net.ErrClosed, and its caller waits for that. Twice is nil.
func (s *Subscription) Close() error {
	s.mu.Lock()
	idle := s.state == waiting
	if idle {
		s.state = running // so that neither Run nor another Close does the same
	}
	select {
	case <-s.closed:
	default:
		close(s.closed)
	}
	s.mu.Unlock()
	if idle {
		s.finish()
		s.discard()
		s.hub.giveBack()
	}
	return nil
}

// Done is closed once the capture has ended: nothing more is taken in.
func (s *Subscription) Done() <-chan struct{} { return s.ended }

// discard counts what is queued as lost to a writer that failed or never was.
func (s *Subscription) discard() {
	if s.queue == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.subscriber += s.queue.discard()
}

// finish takes the subscription off its taps: its counts are final then. What is
// still stored can be read, with the statistics at its end.
func (s *Subscription) finish() {
	s.space.remove(s)
	s.leaveTaps()
	s.mu.Lock()
	s.state = left
	s.endFollowingLocked(nil)
	s.unasked += s.before.close() + s.judge.close()
	undecided, unasked := undecidedText(s.undecided), unaskedText(s.unasked)
	s.sumUp()
	s.mu.Unlock()
	for _, note := range []string{undecided, unasked} {
		if note != "" {
			s.sayNote(note)
		}
	}
	close(s.ended)
	s.hub.leave(s.space)
}

// detach leaves one tap; tie is held.
func (s *Subscription) detach(a *attachment) {
	a.tap.remove(a)
	s.countDrops(a)
	s.mu.Lock()
	s.atts = slices.DeleteFunc(s.atts, func(o *attachment) bool { return o == a })
	s.mu.Unlock()
	s.space.leave(a.tap)
}

// leaveTaps leaves all taps, and enters none any more.
func (s *Subscription) leaveTaps() {
	s.tie.Lock()
	defer s.tie.Unlock()
	s.gone = true
	for _, a := range slices.Clone(s.atts) {
		s.detach(a)
	}
}
