// Package owner tells which local process a captured packet is of: who sent it, or is to
// receive it. daemon/capture asks it for filters with the words uid, pid, comm and unit,
// and writes what it says beside the packets.
//
// It asks the kernel for the socket (sock_diag(7)), and /proc for the processes that
// hold the socket's inode. What cannot be told for sure stays unknown: a socket that is
// closed already, a process that may not be looked at, several that hold one socket
// and differ.
package owner

import (
	"time"

	"github.com/sockd/sockd/families/ksock"
	"github.com/sockd/sockd/families/packet/filter"
)

// Options is what a Finder is for.
type Options struct {
	// Processes: the processes are looked for, for PID, Comm and Unit. That takes the right to read
	// their /proc/PID/fd, which only root and the process's own user have; without it Unit
	// comes from the socket's cgroup alone.
	Processes bool
	// Brokered tells whom a socket of this very process, by its inode, is held for; nil: for
	// nobody.
	Brokered func(inode uint32) (filter.Owner, bool)
	// Proc and Cgroups are the folders of procfs and of version 2 cgroups; empty: as usual.
	Proc, Cgroups string
}

// Finder finds owners, and remembers them for a moment. It is not for concurrent use.
//
// It never holds its caller up for more than a share of the time: beyond a tenth of it spent
// on questions, packets of flows that it does not know stay without an owner, and are
// counted.
type Finder struct {
	o       Options
	diag    *ksock.Diag
	flows   map[Flow]entry
	procs   processes
	groups  cgroups
	spare   allowance
	skipped int64
}

type entry struct {
	owner *filter.Owner // nil: not known
	until int64         // nanoseconds since 1970
}

// maxFlows bounds the memory of a Finder: of many more flows a packet each, nothing is
// worth remembering.
const maxFlows = 4096

// How long an answer holds. The end of a TCP connection is seen by its flags; another user
// can take over a port of UDP at any time.
const (
	tcpHolds = int64(time.Second)
	udpHolds = int64(100 * time.Millisecond)
)

// New is a Finder for the network namespace of the calling thread.
func New(o Options) (*Finder, error) {
	d, err := ksock.DialDiag()
	if err != nil {
		return nil, err
	}
	if o.Proc == "" {
		o.Proc = "/proc"
	}
	f := &Finder{o: o, diag: d, flows: map[Flow]entry{}, procs: processes{root: o.Proc}, groups: cgroups{root: o.Cgroups}, spare: newAllowance(mostSaved)}
	return f, nil
}

// Close gives back what a Finder holds. Twice is nil.
func (f *Finder) Close() error {
	if f.diag == nil {
		return nil
	}
	d := f.diag
	f.diag = nil
	return d.Close()
}

// Cookie is SO_NETNS_COOKIE of the namespace whose packets it knows.
func (f *Finder) Cookie() (uint64, error) { return f.diag.Cookie() }

// Skipped counts the packets whose owner was not asked for, for want of time.
func (f *Finder) Skipped() int64 { return f.skipped }

// Find is the owner of a frame that went out, or came in, at a time in nanoseconds
// since 1970. nil is not known. On loopback, where both ends are here, it is the sender if
// that is known, else the receiver. The Owner must not be changed.
func (f *Finder) Find(frame []byte, link filter.LinkType, out, loopback bool, at int64) *filter.Owner {
	flow, flags, ok := flowOf(frame, link)
	if !ok {
		return nil
	}
	if out || loopback {
		if o := f.of(flow, flags, at); o != nil || !loopback {
			return o
		}
	}
	return f.of(flow.reversed(), flags, at)
}

// of looks a flow up whose Own is here.
func (f *Finder) of(flow Flow, flags uint8, at int64) *filter.Owner {
	e, ok := f.flows[flow]
	if ok && at <= e.until && flags&tcpSYN == 0 {
		return e.owner
	}
	if !f.spare.begin() {
		f.skipped++
		return nil
	}
	defer f.spare.end()
	if len(f.flows) >= maxFlows {
		clear(f.flows)
	}
	e = entry{owner: f.ask(flow), until: at + tcpHolds}
	if flow.Protocol != protoTCP {
		e.until = at + udpHolds
	}
	f.flows[flow] = e
	return e.owner
}

// ask finds out, whatever it takes.
func (f *Finder) ask(flow Flow) *filter.Owner {
	held, err := f.diag.Holders(flow.Protocol, flow.Own, flow.Peer)
	if err != nil || len(held) == 0 {
		return nil
	}
	o := f.holder(held[0])
	for _, h := range held[1:] {
		o = common(o, f.holder(h))
	}
	return &o
}

// holder is what is known of who holds a socket.
func (f *Finder) holder(h ksock.Holder) filter.Owner {
	if f.o.Brokered != nil {
		if o, ok := f.o.Brokered(h.Inode); ok {
			return o
		}
	}
	o := filter.Owner{UID: h.UID, KnownUID: true}
	if f.o.Processes {
		p := f.procs.holding(h.Inode)
		o.PID, o.KnownPID, o.Comm, o.Unit = p.PID, p.KnownPID, p.Comm, p.Unit
		if o.Unit == "" {
			o.Unit = f.groups.unit(h.Cgroup)
		}
	}
	return o
}

// common is what is true of both.
func common(a, b filter.Owner) filter.Owner {
	a.KnownUID = a.KnownUID && b.KnownUID && a.UID == b.UID
	a.KnownPID = a.KnownPID && b.KnownPID && a.PID == b.PID
	if !a.KnownUID {
		a.UID = 0
	}
	if !a.KnownPID {
		a.PID = 0
	}
	if a.Comm != b.Comm {
		a.Comm = ""
	}
	if a.Unit != b.Unit {
		a.Unit = ""
	}
	return a
}

// allowance is the time that may be spent on questions: a tenth of what passes, saved up
// to some most.
type allowance struct {
	left, most time.Duration
	last       time.Time // when left was right
	begun      time.Time
}

// mostSaved is what a second saves.
const mostSaved = 100 * time.Millisecond

func newAllowance(most time.Duration) allowance {
	return allowance{left: most, most: most, last: time.Now()}
}

func (a *allowance) begin() bool {
	now := time.Now()
	a.left = min(a.left+now.Sub(a.last)/10, a.most)
	a.last, a.begun = now, now
	return a.left > 0
}

func (a *allowance) end() { a.left -= time.Since(a.begun) }
