package relay

import (
	"bytes"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/sockd/sockd/families/ksock"
	"github.com/sockd/sockd/families/model"
)

// ledger is where a relay's counters live beyond this process: memory that is parked
// with it. Each durable session has an account.
//
//	┌ head ──────────────────────────┬ account 0 ──┬ account 1 ──┬ ...
//	│ names of causes, losses, total │ id  fate    │             │
//	│ which ─► sums 0 │ sums 1       │ up and down │             │
//	└────────────────────────────────┴─────────────┴─────────────┴ ...
//
// A process is killed between any two stores. So what must change together changes by
// one: a session's books become the relay's when which is stored, and sums name the
// session that was added last, whose account is of no more use. And of each direction of
// a session at most one move of bytes is not in its account, which what is in its pipe
// tells (see lane.settle).
type ledger struct {
	mem  *ksock.Memory
	head *ledgerHead
	at   [numCauses]int8 // where a cause stands in the head's table; below 0: nowhere

	mu       sync.Mutex // guards what follows
	unused   []uint32   // accounts that were used, and can be again
	next     uint32     // the first that was never used
	reserved uint32     // how many have their room
}

const (
	ledgerMagic   = 0x6c656467736f636b // of a ledger of sockd's
	ledgerVersion = 1
	ledgerHeadLen = 4096
	accountLen    = 128
	// ledgerAccounts bounds the durable sessions of one relay: each has six descriptors in
	// flight and four more here, and this many need limits of a third of a million. It
	// takes addresses; a account takes memory when it is used.
	ledgerAccounts = 1 << 16
	ledgerLen      = ledgerHeadLen + ledgerAccounts*accountLen
	// ledgerCauses is room for causes of versions to come.
	ledgerCauses = 32
	causeNameLen = 16
	// accountsAtOnce is how many accounts get room at a time: a page's.
	accountsAtOnce = 4096 / accountLen
)

type ledgerHead struct {
	magic, version atomic.Uint64
	names          [ledgerCauses][causeNameLen]byte
	lost           [ledgerCauses]atomic.Int64 // the relay's own
	total          atomic.Int64
	used           atomic.Int64 // accounts that were ever used: those below it
	which          atomic.Int64 // of sums
	sums           [2]ledgerSums
}

// ledgerSums are the books of sessions that have ended.
type ledgerSums struct {
	last   int64 // the session that was added last
	rx, tx [3]amount
	lost   [ledgerCauses]int64
}

// account is one durable session's.
type account struct {
	id    atomic.Int64 // 0: nobody's
	since atomic.Int64 // nanoseconds since 1970
	fate  atomic.Int64
	nth   atomic.Int64 // the relay's total with it; 0: it is not in the total yet
	lanes [2]lane      // up, down
}

// What is to become of a session.
const (
	fateLive  int64 = iota
	fateBroke       // one side broke: what is left to do ends with resets
	fateReset       // both are being reset
	fateEnded       // both have ended in order and are being closed
)

// lane is one direction's.
type lane struct {
	in, out atomic.Int64 // bytes taken from the source, and given to the sink
	// urgent is one more than the place of the last urgent byte that the sink was sent.
	// It is taken from the source after that.
	urgent atomic.Int64
}

// settle makes up for the one move that was made and not written down when the process
// before was killed: held, which is in the pipe, is more than in and out tell after a
// move into it, and less after one out of it.
func (l *lane) settle(held int) {
	in, out := l.in.Load(), l.out.Load()
	if unwritten := int64(held) - (in - out); unwritten > 0 {
		l.in.Store(in + unwritten)
	} else {
		l.out.Store(out - unwritten)
	}
}

// newLedger makes an empty one.
func newLedger() (*ledger, error) {
	mem, err := ksock.NewMemory("sockd-ledger", ledgerLen)
	if err != nil {
		return nil, err
	}
	l := &ledger{mem: mem, head: ksock.At[ledgerHead](mem, 0)}
	if err := mem.Reserve(0, ledgerHeadLen); err != nil {
		mem.Close()
		return nil, err
	}
	l.head.version.Store(ledgerVersion)
	l.head.magic.Store(ledgerMagic)
	l.findCauses()
	return l, nil
}

// openLedger takes one up, by a duplicate of fd.
func openLedger(fd int) (*ledger, error) {
	own, err := ksock.Dup(fd)
	if err != nil {
		return nil, err
	}
	mem, err := ksock.MapMemory(own, ledgerLen)
	if err != nil {
		ksock.CloseFiles([]int{own})
		return nil, err
	}
	l := &ledger{mem: mem, head: ksock.At[ledgerHead](mem, 0)}
	if err := l.recognize(); err != nil {
		mem.Close()
		return nil, err
	}
	l.findCauses()
	return l, nil
}

// recognize looks at the head, of which there is a page if it is one.
func (l *ledger) recognize() error {
	if err := l.mem.Reserve(0, ledgerHeadLen); err != nil {
		return err
	}
	if l.head.magic.Load() != ledgerMagic || l.head.version.Load() != ledgerVersion ||
		l.head.which.Load()>>1 != 0 || l.head.used.Load() < 0 || l.head.used.Load() > ledgerAccounts {
		return fmt.Errorf("the relay's ledger is of another version: %w", errForeignRecord)
	}
	return nil
}

// findCauses finds where each cause stands, and gives new ones a place: another version
// may have others.
func (l *ledger) findCauses() {
	for c, name := range causeNames {
		l.at[c] = -1
		for i := range l.head.names {
			there := string(bytes.TrimRight(l.head.names[i][:], "\x00"))
			if there == "" {
				copy(l.head.names[i][:], name)
			}
			if there == "" || there == name {
				l.at[c] = int8(i)
				break
			}
		}
	}
}

// account is the i-th.
func (l *ledger) account(i uint32) *account {
	return ksock.At[account](l.mem, ledgerHeadLen+int(i)*accountLen)
}

var errLedgerFull = fmt.Errorf("a relay has %d durable sessions at most: %w", ledgerAccounts, syscall.ENOSPC)

// take takes a account for a session.
func (l *ledger) take(id model.ID, since time.Time) (uint32, error) {
	i, err := l.takeIndex()
	if err != nil {
		return 0, err
	}
	s := l.account(i)
	s.fate.Store(fateLive)
	s.nth.Store(0)
	for d := range s.lanes {
		s.lanes[d].in.Store(0)
		s.lanes[d].out.Store(0)
		s.lanes[d].urgent.Store(0)
	}
	s.since.Store(since.UnixNano())
	s.id.Store(int64(id))
	return i, nil
}

func (l *ledger) takeIndex() (uint32, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if n := len(l.unused); n > 0 {
		i := l.unused[n-1]
		l.unused = l.unused[:n-1]
		return i, nil
	}
	if l.next == ledgerAccounts {
		return 0, errLedgerFull
	}
	if err := l.reserveLocked(l.next); err != nil {
		return 0, err
	}
	l.next++
	l.head.used.Store(int64(l.next))
	return l.next - 1, nil
}

// reserveLocked gives accounts up to the i-th their room.
func (l *ledger) reserveLocked(i uint32) error {
	for ; l.reserved <= i; l.reserved += accountsAtOnce {
		if err := l.mem.Reserve(ledgerHeadLen+int(l.reserved)*accountLen, accountsAtOnce*accountLen); err != nil {
			return err
		}
	}
	return nil
}

// free gives a account back whose books are the relay's, or never began.
func (l *ledger) free(i uint32) {
	l.account(i).id.Store(0)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.unused = append(l.unused, i)
}

// sweep frees the accounts of a ledger that was taken up, before any session is taken up
// or begins: those of sessions that come back stay. The others had ended, and left who
// held their descriptors, when their process was killed: over gets the books of each
// that are not in the sums yet.
func (l *ledger) sweep(stays func(i uint32, id model.ID) bool, over func(*account, model.ID)) error {
	used := uint32(l.head.used.Load())
	l.mu.Lock()
	err := l.reserveLocked(max(used, 1) - 1)
	l.next = used
	l.mu.Unlock()
	if err != nil {
		return err
	}
	for i := range used {
		s := l.account(i)
		id := model.ID(s.id.Load())
		if id != 0 && stays(i, id) {
			continue
		}
		if id != 0 && int64(id) != l.current().last {
			over(s, id)
		}
		l.free(i)
	}
	return nil
}

// current are the sums that hold.
func (l *ledger) current() *ledgerSums { return &l.head.sums[l.head.which.Load()] }

// save makes t, to which the session id was added, the relay's sums. Calls come one
// after another.
func (l *ledger) save(t *tally, id model.ID) {
	other := 1 - l.head.which.Load()
	s := &l.head.sums[other]
	s.last = int64(id)
	s.rx, s.tx = [3]amount{t.rx.in, t.rx.out, t.rx.lost}, [3]amount{t.tx.in, t.tx.out, t.tx.lost}
	for c, n := range t.lost {
		if at := l.at[c]; at >= 0 {
			s.lost[at] = n
		}
	}
	l.head.which.Store(other)
}

// load are the sums.
func (l *ledger) load() (t tally) {
	s := l.current()
	t.rx.in, t.rx.out, t.rx.lost = s.rx[0], s.rx[1], s.rx[2]
	t.tx.in, t.tx.out, t.tx.lost = s.tx[0], s.tx[1], s.tx[2]
	for c, at := range l.at {
		if at >= 0 {
			t.lost[c] = s.lost[at]
		}
	}
	return t
}

// addLost counts a loss of the relay's own.
func (l *ledger) addLost(c cause, n int64) {
	if at := l.at[c]; at >= 0 {
		l.head.lost[at].Add(n)
	}
}

// addTo adds the books of a session that is over: what is not out is lost.
func (s *account) addTo(t *tally) {
	for i, b := range []*books{&t.rx, &t.tx} {
		in, out := s.lanes[i].in.Load(), s.lanes[i].out.Load()
		lost := max(0, in-out)
		b.add(books{in: amount{bytes: out + lost}, out: amount{bytes: out}, lost: amount{bytes: lost}})
		t.lost[causeUnsent] += lost
	}
}
