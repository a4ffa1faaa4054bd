package relay

import (
	"sync/atomic"
	"syscall"
	"time"
)

// budget bounds the descriptors that all sessions together may have, so that some are
// left for callers of the daemon: who could not connect could not end a relay that has
// taken them all.
type budget struct {
	most int64 // 0: no bound
	used atomic.Int64
}

const (
	// sessionCost is what a session has: two sides. That of a UDP client has one, and a
	// stream that splices four; the reserve is for those, too.
	sessionCost = 2
	// ownDescriptors are about what the daemon has without sessions, and leastReserve
	// what is kept at least.
	ownDescriptors = 32
	leastReserve   = 32
)

// newBudget leaves a sixteenth of what this process may open.
func newBudget() budget {
	var l syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l) != nil {
		return budget{}
	}
	n := int64(min(l.Cur, 1<<30))
	return budget{most: max(sessionCost, n-max(n/16, leastReserve)-ownDescriptors)}
}

// take takes a session's share; false means that there is none.
func (b *budget) take() bool { return b.takeMore(sessionCost) }

// give returns it.
func (b *budget) give() { b.giveMore(sessionCost) }

// takeMore takes a share of n descriptors; false means that there is none.
func (b *budget) takeMore(n int64) bool {
	if b.most > 0 && b.used.Add(n) > b.most {
		b.used.Add(-n)
		return false
	}
	return true
}

// giveMore returns it.
func (b *budget) giveMore(n int64) {
	if b.most > 0 {
		b.used.Add(-n)
	}
}

// askAgain is how often a relay that waits for the share of others looks for it.
const askAgain = 100 * time.Millisecond

// errNoShare says why a relay waits that has room, and no descriptors for it.
var errNoShare = &noShare{}

type noShare struct{}

func (*noShare) Error() string { return "all relays together have as many descriptors as they may" }
func (*noShare) Unwrap() error { return syscall.EMFILE }
