package relay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/familytest"
	"github.com/sockd/sockd/families/ksock"
	"github.com/sockd/sockd/families/model"
	"github.com/stretchr/testify/require"
)

func TestWhoMayComeIn(t *testing.T) {
	at := func(s string) peerID { return peerID{addr: netip.MustParseAddr(s)} }
	unix := peerID{known: true, uid: 1000, gid: 100, groups: []uint32{4, 24}}
	local := peerID{addr: netip.MustParseAddr("127.0.0.1"), known: true, uid: 7, gid: noGroup}
	for _, row := range []struct {
		rules string
		peer  peerID
		want  bool
	}{
		{"", at("203.0.113.9"), true},
		{"", unix, true},
		{"10.0.0.0/8", at("10.255.0.1"), true},
		{"10.0.0.0/8", at("11.0.0.1"), false},
		{"10.0.0.0/8", at("::ffff:10.0.0.1"), true},
		{"10.0.0.0/8", at("::ffff:11.0.0.1"), false},
		{"::ffff:10.0.0.0/104", at("10.0.0.1"), true},
		{"::/0", at("10.0.0.1"), false},
		{"0.0.0.0/0", at("::1"), false},
		{"fe80::/10", at("fe80::1%lo"), true},
		{"192.0.2.1 192.0.2.3", at("192.0.2.3"), true},
		{"192.0.2.1 192.0.2.3", at("192.0.2.2"), false},
		{"0.0.0.0/0 ::/0", unix, false},
		{"uid:1000", unix, true},
		{"uid:100", unix, false},
		{"gid:100", unix, true},
		{"gid:24", unix, true},
		{"gid:1000", unix, false},
		{"uid:0 gid:0", at("127.0.0.1"), false},
		{"uid:1 gid:2 ::1 uid:1000", unix, true},
		{"uid:7", local, true},
		{"uid:8 127.0.0.0/8", local, true},
		{"uid:8", local, false},
		{"gid:0", local, false},
	} {
		require.Equal(t, row.want, allowList(mustAllow(t, row.rules)).admits(row.peer), "%q of %+v", row.rules, row.peer)
	}
}

func TestRulesKnowWhatTheyAskFor(t *testing.T) {
	for rules, want := range map[string][2]bool{
		"": {true, false}, "10.0.0.0/8 ::1": {true, false}, "10.0.0.0/8 uid:0": {false, false}, "gid:0": {false, true}, "uid:1 gid:2 ::1": {false, true},
	} {
		l := allowList(mustAllow(t, rules))
		require.Equal(t, want, [2]bool{l.cheap(), l.asksGroups()}, rules)
	}
}

func TestAskingForAnAddressAllocatesNothing(t *testing.T) {
	l := allowList(mustAllow(t, "10.0.0.0/8 2001:db8::/32 uid:5 127.0.0.0/8"))
	a := netip.MustParseAddr("::ffff:127.0.0.1")
	require.Zero(t, testing.AllocsPerRun(100, func() {
		if !l.admitsAddr(a) {
			t.Fail()
		}
	}))
}

// nameOf is what accept tells of a peer; "" is an unnamed unix one.
func nameOf(tb testing.TB, address string) *families.Name {
	tb.Helper()
	n := new(families.Name)
	if address == "" {
		return n
	}
	a, err := netip.ParseAddrPort(address)
	require.NoError(tb, err)
	raw := n.Buffer()
	if a.Addr().Is4() {
		ip := a.Addr().As4()
		copy(raw, append([]byte{2, 0, byte(a.Port() >> 8), byte(a.Port())}, ip[:]...))
		n.SetLen(16)
		return n
	}
	ip := a.Addr().As16()
	copy(raw, append([]byte{10, 0, byte(a.Port() >> 8), byte(a.Port()), 0, 0, 0, 0}, ip[:]...))
	n.SetLen(28)
	return n
}

// tellTale is a doorman whose system says what the test wants, and that notes what it
// was asked.
type tellTale struct {
	doorman
	asked []string
	fails string
}

func newTellTale() *tellTale {
	d := &tellTale{}
	note := func(what string) error {
		d.asked = append(d.asked, what)
		if d.fails == what {
			return errors.New("no answer")
		}
		return nil
	}
	d.cred = func(ksock.FD) (families.Creds, error) { return families.Creds{UID: 1000, GID: 100}, note("cred") }
	d.more = func(ksock.FD) ([]uint32, error) { return []uint32{4}, note("more") }
	d.owner = func(ksock.FD, netip.AddrPort) (uint32, error) { return 1000, note("owner") }
	d.groups = func(uid uint32) ([]uint32, error) { return []uint32{uid + 1}, note(fmt.Sprintf("groups of %d", uid)) }
	return d
}

func TestTheDoormanAsksForNoMoreThanTheRulesNeed(t *testing.T) {
	for _, row := range []struct {
		name, rules, peer string
		fails             string
		want              bool
		asked             []string
	}{
		{name: "no rules", peer: "192.0.2.1:5", want: true},
		{name: "an address that is in", rules: "192.0.2.0/24 uid:5", peer: "192.0.2.1:5", want: true},
		{name: "an address that is not", rules: "192.0.2.0/24", peer: "127.0.0.1:5"},
		{name: "a mapped address", rules: "192.0.2.0/24", peer: "[::ffff:192.0.2.1]:5", want: true},
		{name: "a user from far away", rules: "uid:1000", peer: "192.0.2.1:5"},
		{name: "a user on loopback", rules: "uid:1000", peer: "127.0.0.1:5", want: true, asked: []string{"owner"}},
		{name: "a user on loopback of IPv6", rules: "uid:1000", peer: "[::1]:5", want: true, asked: []string{"owner"}},
		{name: "another user on loopback", rules: "uid:1001", peer: "127.0.0.5:5", asked: []string{"owner"}},
		{name: "a group on loopback", rules: "gid:1001", peer: "127.0.0.1:5", want: true, asked: []string{"owner", "groups of 1000"}},
		{name: "the owner cannot be told", rules: "uid:1000", peer: "127.0.0.1:5", fails: "owner", asked: []string{"owner"}},
		{name: "the groups cannot be told", rules: "gid:1001", peer: "127.0.0.1:5", fails: "groups of 1000", asked: []string{"owner", "groups of 1000"}},
		{name: "the groups cannot be told, and the user may", rules: "gid:1001 uid:1000", peer: "127.0.0.1:5", fails: "groups of 1000", want: true, asked: []string{"owner", "groups of 1000"}},
		{name: "a user of unix", rules: "uid:1000", want: true, asked: []string{"cred"}},
		{name: "another user of unix", rules: "uid:0", asked: []string{"cred"}},
		{name: "the group of unix", rules: "gid:100", want: true, asked: []string{"cred", "more"}},
		{name: "a further group of unix", rules: "gid:4", want: true, asked: []string{"cred", "more"}},
		{name: "no credentials", rules: "uid:1000", fails: "cred", asked: []string{"cred"}},
		{name: "no groups", rules: "uid:1000 gid:100", fails: "more", asked: []string{"cred", "more"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			d := newTellTale()
			d.fails = row.fails
			require.Equal(t, row.want, d.lets(mustAllow(t, row.rules), ksock.NoDescriptor, nameOf(t, row.peer)))
			require.Equal(t, row.asked, d.asked)
		})
	}
}

func TestAConnectionThatTheDaemonBrokersIsItsOwnersOwn(t *testing.T) {
	d := newTellTale()
	d.brokered = func(peer netip.AddrPort) (uint32, bool) { return 5, peer.Port() == 9 }
	l := allowList(mustAllow(t, "uid:1000"))
	require.True(t, d.lets(l, ksock.NoDescriptor, nameOf(t, "127.0.0.1:8")))
	require.False(t, d.lets(l, ksock.NoDescriptor, nameOf(t, "127.0.0.1:9")))
	require.True(t, d.lets(mustAllow(t, "uid:5"), ksock.NoDescriptor, nameOf(t, "127.0.0.1:9")))
}

func TestSendersAreKnownByTheirCredentials(t *testing.T) {
	sender := &families.Creds{UID: 1000, GID: 100}
	for _, row := range []struct {
		rules string
		creds *families.Creds
		fails string
		want  bool
	}{
		{"", nil, "", true}, {"uid:1000", nil, "", false}, {"uid:1000", sender, "", true}, {"uid:1", sender, "", false},
		{"gid:100", sender, "", true}, {"gid:1001", sender, "", true}, {"gid:4", sender, "", false},
		{"gid:100", sender, "groups of 1000", true}, {"gid:1001", sender, "groups of 1000", false},
	} {
		d := newTellTale()
		d.fails = row.fails
		require.Equal(t, row.want, d.letsSender(mustAllow(t, row.rules), row.creds), "%+v", row)
	}
}

func TestGroupsAreRememberedForAWhile(t *testing.T) {
	now, asked := time.Unix(0, 0), 0
	var fails error
	c := groupCache{now: func() time.Time { return now }, look: func(uid uint32) ([]uint32, error) {
		asked++
		return []uint32{uid, uint32(asked)}, fails
	}}
	for range 3 {
		gids, err := c.of(7)
		require.NoError(t, err)
		require.Equal(t, []uint32{7, 1}, gids)
	}
	now, fails = now.Add(groupsKept), errors.New("no such user")
	for range 3 {
		_, err := c.of(7)
		require.ErrorIs(t, err, fails, "a no is remembered as well")
	}
	require.Equal(t, 2, asked)
	for uid := range uint32(3 * groupsUsers) {
		_, _ = c.of(uid)
		require.LessOrEqual(t, len(c.known), groupsUsers)
	}
}

func TestTheUserDatabaseKnowsRoot(t *testing.T) {
	gids, err := databaseGroups(0)
	require.NoError(t, err)
	require.Contains(t, gids, uint32(0))
	_, err = databaseGroups(4294967294)
	require.Error(t, err)
}

// The real doorman at a real door, of each kind: this process is let in by its own
// numbers and by nobody else's; who is refused is counted, and told by a reset or,
// where there is none, an end.
func TestRelaysLetInWhomTheyAllow(t *testing.T) {
	familytest.Need(t, familytest.Root())
	w := newWorld(t)
	tcp := serve(t, "tcp", "127.0.0.1:0", tellName("A"))
	stream := "tcp:" + tcp.Addr().String()
	for _, row := range []struct {
		from, allow string
		want        bool
	}{
		{"tcp:127.0.0.1:0", "127.0.0.0/8", true},
		{"tcp:127.0.0.1:0", "10.0.0.0/8 ::1", false},
		{"tcp:127.0.0.1:0", "10.0.0.0/8 uid:0", true},
		{"tcp:127.0.0.1:0", "uid:1", false},
		{"tcp:127.0.0.1:0", "gid:0", true},
		{"tcp:127.0.0.1:0", "gid:54321", false},
		{"tcp:[::]:0", "::1", true},
		{"tcp:[::]:0", "uid:0", true},
		{"unix:" + w.path("a"), "uid:0", true},
		{"unix:" + w.path("b"), "gid:0", true},
		{"unix:" + w.path("c"), "uid:1 gid:54321", false},
	} {
		t.Run(row.from[:4]+" "+row.allow, func(t *testing.T) {
			s := spec(t, row.from, stream)
			s.Allow = mustAllow(t, row.allow)
			r := w.mustAdd(s)
			err := greeted(t, r)
			require.Equal(t, row.want, err == nil, "%v", err)
			if !row.want {
				require.True(t, isReset(err) || row.from[:4] == "unix", "got %v", err)
				familytest.Eventually(t, "not counted", func() bool { return w.mustRelay(r.ID).Drops["denied"] == 1 })
			}
			require.NoError(t, w.eng.Remove(r.ID, 0))
		})
	}
}

// greeted is nil when a backend's first byte reaches a client of the relay. A reset
// may come as early as dialling.
func greeted(tb testing.TB, r model.Relay) error {
	tb.Helper()
	network, address := endpoint(tb, r)
	c, err := net.DialTimeout(network, address, deadline)
	if err != nil {
		return err
	}
	defer c.Close()
	require.NoError(tb, c.SetDeadline(time.Now().Add(deadline)))
	_, err = c.Read(make([]byte, 1))
	return err
}

// Of unix datagrams each is asked for, by the credentials that came with it; of UDP
// the address.
func TestDatagramsOfThoseWhoMayNotComeInAreDropped(t *testing.T) {
	familytest.Need(t, familytest.Root())
	w := newWorld(t)
	for _, row := range []struct {
		network, allow string
		want           bool
	}{
		{"unixgram", "uid:0", true}, {"unixgram", "uid:1", false}, {"udp", "127.0.0.0/8", true}, {"udp", "10.0.0.0/8", false},
	} {
		t.Run(row.network+" "+row.allow, func(t *testing.T) {
			m := &meeting{world: w}
			suffix := fmt.Sprint(row.want)
			address := map[string]string{"udp": "127.0.0.1:0", "unixgram": w.path("to" + suffix)}[row.network]
			backend := m.backend(mustEndpoint(t, row.network+":"+address))
			from := map[string]string{"udp": "127.0.0.1:0", "unixgram": w.path("from" + suffix)}[row.network]
			s := spec(t, row.network+":"+from, backend.String())
			s.Allow = mustAllow(t, row.allow)
			r := w.mustAdd(s)
			near := m.client(r.Local[0])
			m.say(near, families.Name{}, []byte("hello"))
			if row.want {
				m.hear(m.far, []byte("hello"))
				return
			}
			familytest.Eventually(t, "not counted", func() bool { return w.mustRelay(r.ID).Drops["denied"] == 1 })
			msg := families.Msg{Data: make([]byte, 100)}
			require.ErrorIs(t, m.far.Recv(&msg), families.ErrAgain, "it went on all the same")
			require.Zero(t, w.mustRelay(r.ID).Total, "it has begun a session")
		})
	}
}

// A rule that is set counts for those who come from then on.
func TestSetAllowIsForThoseWhoComeFromThenOn(t *testing.T) {
	w := newWorld(t)
	l := serve(t, "tcp", "127.0.0.1:0", echo)
	r := w.mustAdd(spec(t, "tcp:127.0.0.1:0", "tcp:"+l.Addr().String()))
	before := mustDial(t, r)
	mustHearBack(t, before, "a")
	nobody := mustAllow(t, "192.0.2.1")
	_, err := w.eng.Set(context.Background(), r.ID, model.RelayChange{Allow: &nobody})
	require.NoError(t, err)
	err = greeted(t, r)
	require.True(t, isReset(err), "got %v", err)
	mustHearBack(t, before, "b")
}

func mustHearBack(tb testing.TB, c net.Conn, text string) {
	tb.Helper()
	require.NoError(tb, c.SetDeadline(time.Now().Add(deadline)))
	_, err := c.Write([]byte(text))
	require.NoError(tb, err)
	got := make([]byte, len(text))
	_, err = c.Read(got)
	require.NoError(tb, err)
	require.Equal(tb, text, string(got))
}

// The doorman's own questions, asked of real connections.
func TestTheDoormanKnowsThisProcess(t *testing.T) {
	d := newDoorman()
	dir := t.TempDir()
	for _, at := range [][2]string{{"unix", filepath.Join(dir, "s")}, {"tcp", "127.0.0.1:0"}, {"tcp", "[::1]:0"}} {
		l, err := net.Listen(at[0], at[1])
		require.NoError(t, err)
		client, err := net.Dial(at[0], l.Addr().String())
		require.NoError(t, err)
		server, err := l.Accept()
		require.NoError(t, err)
		raw, err := server.(syscall.Conn).SyscallConn()
		require.NoError(t, err)
		require.NoError(t, raw.Control(func(fd uintptr) {
			f := ksock.FD(fd)
			peer, err := f.Peer()
			require.NoError(t, err)
			p, err := d.identify(f, ksock.AddrPortOf(&peer), true)
			require.NoError(t, err)
			require.Equal(t, uint32(os.Getuid()), p.uid)
			require.True(t, p.gid == uint32(os.Getgid()) || slices.Contains(p.groups, uint32(os.Getgid())))
		}))
		for _, c := range []interface{ Close() error }{client, server, l} {
			require.NoError(t, c.Close())
		}
	}
}
