package relay

import (
	"fmt"
	"net/netip"
	"os/user"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/ksock"
	"github.com/sockd/sockd/families/model"
)

// allowList is who may come in through a relay's FROM: whoever one of the rules
// matches, and everybody when there are none. It never changes.
//
// A rule asks the connection itself. What a PROXY header says of the client behind
// it is not asked: whoever may connect could write anything there.
type allowList []model.Allow

// cheap tells whether an address is all that the rules ask for, so that admitsAddr
// is the whole answer, without a system call.
func (l allowList) cheap() bool {
	return !slices.ContainsFunc(l, func(a model.Allow) bool { return a.Kind != model.AllowPrefix })
}

// asksGroups tells whether a rule wants to know the peer's groups.
func (l allowList) asksGroups() bool {
	return slices.ContainsFunc(l, func(a model.Allow) bool { return a.Kind == model.AllowGroup })
}

// admitsAddr tells whether a peer at this address may come in whoever it is. It
// allocates nothing. An IPv4 address may be mapped into IPv6; the zero Addr, which
// a unix peer has, is in no network.
func (l allowList) admitsAddr(a netip.Addr) bool { return l.admits(peerID{addr: a}) }

// admits tells whether p may come in. It allocates nothing.
func (l allowList) admits(p peerID) bool {
	p.addr = p.addr.Unmap().WithZone("") // Contains says no to any zone
	for i := range l {
		if p.matches(&l[i]) {
			return true
		}
	}
	return len(l) == 0
}

// peerID is who asks to come in, as far as it is known.
type peerID struct {
	addr   netip.Addr // of an inet peer
	known  bool       // uid and gid are, and groups if somebody asks for them
	uid    uint32
	gid    uint32
	groups []uint32 // the others
}

// noGroup is the gid of whom no group is known: (gid_t)-1, which nobody has and no
// rule can name.
const noGroup = ^uint32(0)

func (p *peerID) matches(a *model.Allow) bool {
	switch a.Kind {
	case model.AllowPrefix:
		return a.Prefix.Contains(p.addr)
	case model.AllowUser:
		return p.known && p.uid == a.ID
	case model.AllowGroup:
		return p.known && (p.gid == a.ID || slices.Contains(p.groups, a.ID))
	}
	return false
}

// doorman finds out who a peer is, for rules that ask more than its address:
//
//	unix connection    SO_PEERCRED and SO_PEERGROUPS: as it was at connect
//	loopback TCP       the user whose process holds the peer's socket (sock_diag),
//	                   and the groups that the user database has for that user:
//	                   the kernel does not tell those of the process
//	unix datagram      SCM_CREDENTIALS, and the user database's groups
//	anything else      nobody
//
// What cannot be found out is a no. The functions ask the system; tests have others.
type doorman struct {
	cred   func(ksock.FD) (families.Creds, error)
	more   func(ksock.FD) ([]uint32, error) // supplementary groups
	owner  func(fd ksock.FD, peer netip.AddrPort) (uint32, error)
	groups func(uid uint32) ([]uint32, error)
	// brokered is the user for whom this daemon itself holds the peer's socket:
	// that one is the daemon's own to the kernel. nil where it brokers none.
	brokered func(peer netip.AddrPort) (uid uint32, ok bool)
}

// newDoorman asks the kernel and the user database.
func newDoorman() *doorman {
	cache := groupCache{look: databaseGroups, now: time.Now}
	return &doorman{cred: ksock.FD.PeerCred, more: ksock.FD.PeerGroups, owner: ksock.FD.PeerOwner, groups: cache.of}
}

// lets tells whether a connection may come in. peer is its peer's name, empty for a
// unix one that has none; fd is asked only where l is not cheap, and stays the
// caller's. It never waits for anybody but the kernel and, for rules with groups,
// the user database.
func (d *doorman) lets(l allowList, fd ksock.FD, peer *families.Name) bool {
	at := ksock.AddrPortOf(peer)
	if l.admitsAddr(at.Addr()) {
		return true
	}
	if l.cheap() {
		return false
	}
	p, err := d.identify(fd, at, l.asksGroups())
	return err == nil && l.admits(p)
}

// letsSender tells whether a unix datagram with these credentials may come in; nil
// is one that came without any.
func (d *doorman) letsSender(l allowList, c *families.Creds) bool {
	if c == nil || len(l) == 0 {
		return len(l) == 0
	}
	p := peerID{known: true, uid: c.UID, gid: c.GID}
	if !l.asksGroups() {
		return l.admits(p)
	}
	if more, err := d.groups(c.UID); err == nil { // else the one that the kernel told is all
		p.groups = more
	}
	return l.admits(p)
}

// identify finds out who is at the other end of a connection.
func (d *doorman) identify(fd ksock.FD, peer netip.AddrPort, groups bool) (peerID, error) {
	switch {
	case !peer.IsValid():
		return d.identifyUnix(fd, groups)
	case peer.Addr().IsLoopback():
		return d.identifyLoopback(fd, peer, groups)
	}
	return peerID{addr: peer.Addr()}, nil
}

func (d *doorman) identifyUnix(fd ksock.FD, groups bool) (peerID, error) {
	c, err := d.cred(fd)
	if err != nil {
		return peerID{}, err
	}
	p := peerID{known: true, uid: c.UID, gid: c.GID}
	if groups {
		p.groups, err = d.more(fd)
	}
	if err != nil {
		return peerID{}, err
	}
	return p, nil
}

func (d *doorman) identifyLoopback(fd ksock.FD, peer netip.AddrPort, groups bool) (p peerID, err error) {
	p = peerID{addr: peer.Addr(), known: true, gid: noGroup}
	if p.uid, err = d.owner(fd, peer); err != nil {
		return peerID{}, err
	}
	if d.brokered != nil {
		if uid, ok := d.brokered(peer); ok {
			p.uid = uid
		}
	}
	if groups {
		// A user that the database does not know, as of a container, has none there;
		// the uid is known all the same.
		if p.groups, err = d.groups(p.uid); err != nil {
			p.groups = nil
		}
	}
	return p, nil
}

// databaseGroups are the groups that the user database has for a user.
func databaseGroups(uid uint32) ([]uint32, error) {
	u, err := user.LookupId(strconv.FormatUint(uint64(uid), 10))
	if err != nil {
		return nil, err
	}
	names, err := u.GroupIds()
	if err != nil {
		return nil, fmt.Errorf("groups of uid %d: %w", uid, err)
	}
	var gids []uint32
	for _, name := range names {
		if n, err := strconv.ParseUint(name, 10, 32); err == nil {
			gids = append(gids, uint32(n))
		}
	}
	return gids, nil
}

const (
	// groupsKept is how long the database's answer holds: reading it for each of
	// thousands of connections a second would cost more than the connections.
	groupsKept = 10 * time.Second
	// groupsUsers bounds the answers that are kept; beyond it all are asked anew.
	groupsUsers = 1024
)

// groupCache remembers the groups of users for a while, also that somebody has none
// that can be told.
type groupCache struct {
	look func(uid uint32) ([]uint32, error)
	now  func() time.Time

	mu    sync.Mutex // guards known
	known map[uint32]groupAnswer
}

type groupAnswer struct {
	gids []uint32
	err  error
	till time.Time
}

// of asks the database, or remembers. The list is not the caller's to change.
func (c *groupCache) of(uid uint32) ([]uint32, error) {
	now := c.now()
	c.mu.Lock()
	a, ok := c.known[uid]
	c.mu.Unlock()
	if ok && now.Before(a.till) {
		return a.gids, a.err
	}
	a = groupAnswer{till: now.Add(groupsKept)}
	a.gids, a.err = c.look(uid)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.known == nil || len(c.known) >= groupsUsers {
		c.known = map[uint32]groupAnswer{}
	}
	c.known[uid] = a
	return a.gids, a.err
}
