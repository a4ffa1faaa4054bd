package links

import (
	"encoding/binary"
	"fmt"
	"net"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mdlayher/netlink"
	"github.com/mdlayher/socket"
	"github.com/sockd/sockd/families/familytest"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// run changes links of a namespace by ip(8).
func run(t *testing.T, ns *familytest.NS, args ...string) {
	t.Helper()
	out, err := exec.Command("ip", append([]string{"-n", ns.Name()}, args...)...).CombinedOutput()
	require.NoError(t, err, "ip %s: %s", strings.Join(args, " "), out)
}

// batch runs many lines of ip(8) in one process, so that they come as a storm.
func batch(t *testing.T, ns *familytest.NS, lines []string) {
	t.Helper()
	cmd := exec.Command("ip", "-n", ns.Name(), "-batch", "-")
	cmd.Stdin = strings.NewReader(strings.Join(lines, "\n") + "\n")
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
}

// pairs are lines that make or delete so many pairs p0-q0, p1-q1 ...
func pairs(count int, line string) []string {
	var lines []string
	for i := range count {
		lines = append(lines, strings.ReplaceAll(line, "#", fmt.Sprint(i)))
	}
	return lines
}

const (
	addPair = "link add p# type veth peer name q#"
	delPair = "link del p#"
)

func mustWatch(t *testing.T, ns *familytest.NS) *Watcher {
	t.Helper()
	var w *Watcher
	var err error
	ns.Do(func() { w, err = Watch() })
	require.NoError(t, err)
	t.Cleanup(func() { _ = w.Close() })
	return w
}

// await follows the list as a user does, until it is as wanted.
func await(t *testing.T, w *Watcher, what string, done func(list []Interface) bool) []Interface {
	t.Helper()
	patience := time.After(20 * time.Second)
	for {
		list, changed := w.Now()
		if done(list) {
			return list
		}
		require.NoError(t, w.Err())
		select {
		case <-changed:
		case <-patience:
			require.FailNow(t, "no change came", "%s; the list is %+v", what, list)
		}
	}
}

func find(list []Interface, name string) (Interface, bool) {
	for _, i := range list {
		if i.Name == name {
			return i, true
		}
	}
	return Interface{}, false
}

// awaitNamed waits for an interface of a name that is as wanted.
func awaitNamed(t *testing.T, w *Watcher, name, what string, is func(i Interface) bool) Interface {
	t.Helper()
	list := await(t, w, name+" "+what, func(list []Interface) bool {
		i, ok := find(list, name)
		return ok && is(i)
	})
	i, _ := find(list, name)
	return i
}

func awaitGone(t *testing.T, w *Watcher, name string) {
	t.Helper()
	await(t, w, name+" is to go", func(list []Interface) bool {
		_, ok := find(list, name)
		return !ok
	})
}

func whatever(Interface) bool { return true }

// truth is what the kernel says through another door.
func truth(t *testing.T, ns *familytest.NS) []Interface {
	t.Helper()
	var all []net.Interface
	var err error
	ns.Do(func() { all, err = net.Interfaces() })
	require.NoError(t, err)
	list := []Interface{}
	for _, i := range all {
		hardware := uint16(unix.ARPHRD_ETHER)
		if i.Flags&net.FlagLoopback != 0 {
			hardware = unix.ARPHRD_LOOPBACK
		}
		list = append(list, Interface{
			Index: i.Index, Name: i.Name, Hardware: hardware, MTU: i.MTU,
			Up: i.Flags&net.FlagUp != 0, Loopback: i.Flags&net.FlagLoopback != 0, Address: i.HardwareAddr,
		})
	}
	return list
}

// plain is a list without generations, and without the loopback's address of zeros,
// which package net hides.
func plain(list []Interface) []Interface {
	out := []Interface{}
	for _, i := range list {
		i.Generation = 0
		if i.Loopback {
			i.Address = nil
		}
		out = append(out, i)
	}
	return out
}

func TestAWatcherKnowsWhatThereIs(t *testing.T) {
	ns := familytest.NewNS(t)
	run(t, ns, "link", "add", "v0", "mtu", "1400", "type", "veth", "peer", "name", "v1")
	run(t, ns, "link", "set", "v1", "up")
	w := mustWatch(t, ns)
	list, _ := w.Now()
	require.Equal(t, truth(t, ns), plain(list))

	var once []Interface
	var err error
	ns.Do(func() { once, err = List() })
	require.NoError(t, err)
	require.Equal(t, truth(t, ns), plain(once))
}

func TestAnInterfaceAppearsChangesAndGoes(t *testing.T) {
	ns := familytest.NewNS(t)
	w := mustWatch(t, ns)
	run(t, ns, "link", "add", "v0", "type", "veth", "peer", "name", "v1")
	first := awaitNamed(t, w, "v0", "appears", whatever)
	require.False(t, first.Up)
	run(t, ns, "link", "set", "v0", "up")
	awaitNamed(t, w, "v0", "comes up", func(i Interface) bool { return i.Up })
	run(t, ns, "link", "set", "v0", "down")
	awaitNamed(t, w, "v0", "goes down", func(i Interface) bool { return !i.Up })
	run(t, ns, "link", "set", "v0", "mtu", "1300")
	awaitNamed(t, w, "v0", "has another MTU", func(i Interface) bool { return i.MTU == 1300 })
	run(t, ns, "link", "set", "v0", "address", "02:00:00:00:00:42")
	awaitNamed(t, w, "v0", "has another address", func(i Interface) bool { return i.Address.String() == "02:00:00:00:00:42" })
	run(t, ns, "link", "set", "v0", "name", "w0")
	renamed := awaitNamed(t, w, "w0", "has its name", whatever)
	require.Equal(t, first.Index, renamed.Index)
	require.Equal(t, first.Generation, renamed.Generation)
	awaitGone(t, w, "v0")
	run(t, ns, "link", "del", "w0")
	awaitGone(t, w, "w0")
	awaitGone(t, w, "v1")
	list, _ := w.Now()
	require.Equal(t, truth(t, ns), plain(list))
}

// One that was deleted and made again is another, also when nobody saw it gone and the
// kernel gave it the same index.
func TestAnInterfaceMadeAgainIsAnother(t *testing.T) {
	ns := familytest.NewNS(t)
	for _, tt := range []struct {
		name, index string
		same        bool
	}{{"with the next index", "", false}, {"with its old index", "index 77", true}} {
		t.Run(tt.name, func(t *testing.T) {
			w := mustWatch(t, ns)
			add := "link add v0 " + tt.index + " type veth peer name v1"
			batch(t, ns, []string{add})
			first := awaitNamed(t, w, "v0", "appears", whatever)
			batch(t, ns, []string{"link del v0", add})
			second := awaitNamed(t, w, "v0", "is another", func(i Interface) bool { return i.Generation != first.Generation })
			require.Equal(t, tt.same, first.Index == second.Index)
			batch(t, ns, []string{"link del v0"})
		})
	}
}

// An interface that leaves a bridge is an RTM_DELLINK, of another family.
func TestLeavingABridgeIsNotTheEnd(t *testing.T) {
	ns := familytest.NewNS(t)
	w := mustWatch(t, ns)
	batch(t, ns, []string{"link add br0 type bridge", "link add v0 type veth peer name v1", "link set v0 master br0"})
	first := awaitNamed(t, w, "v0", "appears", whatever)
	batch(t, ns, []string{"link set v0 nomaster", "link set v1 mtu 1234"}) // the second ends the wait
	awaitNamed(t, w, "v1", "has another MTU", func(i Interface) bool { return i.MTU == 1234 })
	list, _ := w.Now()
	last, ok := find(list, "v0")
	require.True(t, ok, "v0 is still there")
	require.Equal(t, first.Generation, last.Generation)
}

func TestMovingToAnotherNamespaceIsGoingAndComing(t *testing.T) {
	a, b := familytest.NewNS(t), familytest.NewNS(t)
	here, there := mustWatch(t, a), mustWatch(t, b)
	run(t, a, "link", "add", "v0", "type", "veth", "peer", "name", "v1")
	awaitNamed(t, here, "v0", "appears", whatever)
	run(t, a, "link", "set", "v0", "netns", b.Name())
	awaitGone(t, here, "v0")
	awaitNamed(t, there, "v0", "appears", whatever)
}

// Each change of the list closes the channel that came with the list before, and the list
// that somebody holds stays as it was.
func TestAListNeverChanges(t *testing.T) {
	ns := familytest.NewNS(t)
	w := mustWatch(t, ns)
	list, changed := w.Now()
	before := fmt.Sprint(list)
	run(t, ns, "link", "add", "v0", "type", "veth", "peer", "name", "v1")
	<-changed
	require.Equal(t, before, fmt.Sprint(list))
}

// What the kernel says again is no change.
func TestNoNewsIsNoChange(t *testing.T) {
	t1 := newTable()
	i := Interface{Index: 3, Name: "v0", Address: net.HardwareAddr{1, 2}}
	t1.put(i)
	require.True(t, t1.dirty)
	t1.list()
	i.Address = net.HardwareAddr{1, 2}
	t1.put(i)
	require.False(t, t1.dirty)
	i.Address = net.HardwareAddr{1, 3}
	t1.put(i)
	require.True(t, t1.dirty)
}

const many = 200 // interfaces: 100 pairs

func TestTwoHundredInterfacesAtOnce(t *testing.T) {
	familytest.NoLeaks(t)
	ns := familytest.NewNS(t)
	w := mustWatch(t, ns)
	batch(t, ns, pairs(many/2, addPair))
	list := await(t, w, "all appear", func(list []Interface) bool { return len(list) == many+1 })
	require.Equal(t, truth(t, ns), plain(list))

	second := mustWatch(t, ns) // whose dump has several parts
	list, _ = second.Now()
	require.Equal(t, truth(t, ns), plain(list))

	batch(t, ns, pairs(many/2, delPair))
	for _, w := range []*Watcher{w, second} {
		await(t, w, "all go", func(list []Interface) bool { return len(list) == 1 })
	}
}

// stalled is a watcher that reads nothing yet, through a socket with little room.
func stalled(t *testing.T, ns *familytest.NS) *Watcher {
	t.Helper()
	var w *Watcher
	ns.Do(func() {
		c, err := dial()
		require.NoError(t, err)
		require.NoError(t, c.SetsockoptInt(unix.SOL_SOCKET, unix.SO_RCVBUF, 1)) // the kernel makes it its least
		w, err = newWatcher(c)
		require.NoError(t, err)
		require.NoError(t, w.subscribe())
	})
	t.Cleanup(func() { _ = w.Close() })
	return w
}

// What is lost in an overrun is found by asking again: what came, what went, and what
// was queued before the loss and is no longer true.
func TestAnOverrunIsMadeUpFor(t *testing.T) {
	familytest.NoLeaks(t)
	ns := familytest.NewNS(t)
	batch(t, ns, pairs(20, "link add o# type veth peer name r#"))
	w := stalled(t, ns)
	list, _ := w.Now()
	require.Len(t, list, 41)
	batch(t, ns, []string{"link add brief type veth peer name short"}) // queued; that it goes is lost
	batch(t, ns, pairs(many/2, addPair))
	batch(t, ns, append(pairs(20, "link del o#"), "link del brief"))
	require.Zero(t, w.Overruns())
	go w.follow()
	list = await(t, w, "the truth", func(list []Interface) bool { return len(list) == many+1 })
	require.Equal(t, truth(t, ns), plain(list))
	require.NotZero(t, w.Overruns(), "the socket was to overflow")
	batch(t, ns, []string{"link del p0"}) // it goes on
	await(t, w, "p0 goes", func(list []Interface) bool { return len(list) == many-1 })
}

func TestManyWaitAtOnce(t *testing.T) {
	familytest.NoLeaks(t)
	ns := familytest.NewNS(t)
	w := mustWatch(t, ns)
	const waiters = 20
	var all sync.WaitGroup
	found := make(chan int, waiters)
	for range waiters {
		all.Go(func() {
			for w.Err() == nil {
				list, changed := w.Now()
				if i, ok := find(list, "p19"); ok {
					found <- i.Index
					return
				}
				<-changed
			}
		})
	}
	batch(t, ns, pairs(20, addPair))
	all.Wait()
	require.Len(t, found, waiters)
}

func TestCloseWakesWhoWaits(t *testing.T) {
	familytest.NoLeaks(t)
	w := mustWatch(t, familytest.NewNS(t))
	_, changed := w.Now()
	require.NoError(t, w.Err())
	require.NoError(t, w.Close())
	<-changed
	require.ErrorIs(t, w.Err(), net.ErrClosed)
	list, changed := w.Now()
	<-changed
	require.Len(t, list, 1, "the last list stays")
	require.NoError(t, w.Close(), "twice")
}

// mustSocket opens a socket in a namespace.
func mustSocket(t *testing.T, ns *familytest.NS, domain, kind, protocol int) int {
	t.Helper()
	var fd int
	var err error
	ns.Do(func() { fd, err = unix.Socket(domain, kind|unix.SOCK_CLOEXEC, protocol) })
	require.NoError(t, err)
	return fd
}

// A socket tells of the namespace that it was opened in, whoever reads it.
func TestASocketOfAnotherNamespaceIsTakenOver(t *testing.T) {
	for _, tt := range []struct {
		name    string
		prepare func(t *testing.T, fd int)
	}{
		{"unbound", func(*testing.T, int) {}},
		{"bound", func(t *testing.T, fd int) {
			require.NoError(t, unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}))
		}},
		{"deaf to overruns", func(t *testing.T, fd int) {
			require.NoError(t, unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_NO_ENOBUFS, 1))
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			familytest.NoLeaks(t)
			ns := familytest.NewNS(t)
			fd := mustSocket(t, ns, unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE)
			tt.prepare(t, fd)
			w, err := WatchFD(fd)
			require.NoError(t, err)
			defer w.Close()
			run(t, ns, "link", "add", "v0", "type", "veth", "peer", "name", "v1")
			awaitNamed(t, w, "v0", "appears", whatever)
			list, _ := w.Now()
			require.Equal(t, truth(t, ns), plain(list))
			_, err = unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
			require.ErrorIs(t, err, unix.EBADF, "it is the watcher's now")
		})
	}
}

func TestAnotherSocketStaysItsCallers(t *testing.T) {
	familytest.NoLeaks(t)
	ns := familytest.NewNS(t)
	for name, fd := range map[string]int{
		"datagram": mustSocket(t, ns, unix.AF_INET, unix.SOCK_DGRAM, 0),
		"netlink":  mustSocket(t, ns, unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_SOCK_DIAG),
	} {
		require.ErrorIs(t, Check(fd), unix.EINVAL, name)
		_, err := WatchFD(fd)
		require.ErrorIs(t, err, unix.EINVAL, name)
		require.NoError(t, unix.Close(fd), name)
	}
	_, err := WatchFD(-1)
	require.ErrorIs(t, err, unix.EBADF)
}

// What others than the kernel write to the socket is not believed.
func TestOnlyTheKernelIsBelieved(t *testing.T) {
	w, err := newWatcher(mustDial(t))
	require.NoError(t, err)
	lie := message(unix.RTM_NEWLINK, 0, 0, link(unix.AF_UNSPEC, Interface{Index: 9, Name: "lie"}))
	n := copy(w.buf, lie)
	require.NoError(t, w.take(n, &unix.SockaddrNetlink{Pid: 1234}))
	require.Empty(t, w.table.known)
	require.NoError(t, w.take(n, &unix.SockaddrNetlink{}))
	require.Len(t, w.table.known, 1)
}

// A message that does not fit is lost, and the next one has room.
func TestALongMessageIsMadeRoomFor(t *testing.T) {
	w, err := newWatcher(mustDial(t))
	require.NoError(t, err)
	require.NoError(t, w.take(bufferSize+100, &unix.SockaddrNetlink{}))
	require.True(t, w.table.lost)
	require.Len(t, w.buf, bufferSize+100)
}

func mustDial(t *testing.T) *socket.Conn {
	t.Helper()
	c, err := dial()
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close()) })
	return c
}

// message is one as the kernel sends it.
func message(kind netlink.HeaderType, flags netlink.HeaderFlags, sequence uint32, data []byte) []byte {
	b, err := netlink.Message{
		Header: netlink.Header{Length: uint32(unix.SizeofNlMsghdr + len(data)), Type: kind, Flags: flags, Sequence: sequence},
		Data:   data,
	}.MarshalBinary()
	if err != nil {
		panic(err)
	}
	return b
}

// A dump that was disturbed does not decide what is gone; the next one does.
func TestADumpThatWasDisturbedIsRepeated(t *testing.T) {
	v0, v1 := Interface{Index: 2, Name: "v0"}, Interface{Index: 3, Name: "v1"}
	newlink := func(flags netlink.HeaderFlags, sequence uint32, i Interface) []byte {
		return message(unix.RTM_NEWLINK, flags, sequence, link(unix.AF_UNSPEC, i))
	}
	done := func(sequence uint32) []byte {
		return message(unix.NLMSG_DONE, netlink.Multi, sequence, make([]byte, 4))
	}
	tb := newTable()
	tb.put(v0)
	tb.begin()
	require.NoError(t, tb.apply(newlink(netlink.Multi|netlink.DumpInterrupted, tb.sequence, v1)))
	require.NoError(t, tb.apply(done(tb.sequence-1)), "of another dump")
	require.True(t, tb.dumping())
	require.NoError(t, tb.apply(done(tb.sequence)))
	require.True(t, tb.lost)
	require.Len(t, tb.known, 2)

	tb.begin()
	require.NoError(t, tb.apply(newlink(0, 0, v0)), "a note from before the answer")
	require.NoError(t, tb.apply(newlink(netlink.Multi, tb.sequence, v1)))
	require.NoError(t, tb.apply(done(tb.sequence)))
	require.True(t, tb.whole())
	require.Len(t, tb.known, 1)
	require.Equal(t, "v1", tb.list()[0].Name)
}

func TestADumpThatIsRefusedSaysWhy(t *testing.T) {
	busy := int32(unix.EBUSY)
	answer := make([]byte, 20)
	binary.NativeEndian.PutUint32(answer, uint32(-busy))
	for _, kind := range []netlink.HeaderType{unix.NLMSG_ERROR, unix.NLMSG_DONE} {
		tb := newTable()
		tb.begin()
		require.NoError(t, tb.apply(message(kind, netlink.Multi, tb.sequence, answer)))
		require.ErrorIs(t, tb.refused, unix.EBUSY)
		require.True(t, tb.dumping(), "it is asked for again")
	}
}

// The bytes of a message are outside bytes. What parses is the same when it is written
// and parsed again; on an error there is nothing.
func FuzzParseLink(f *testing.F) {
	f.Add(link(unix.AF_UNSPEC, Interface{Index: 1, Name: "lo", Hardware: unix.ARPHRD_LOOPBACK, MTU: 65536, Up: true, Loopback: true, Address: make([]byte, 6)}))
	f.Add(link(unix.AF_BRIDGE, Interface{Index: 7, Name: "veth0", Hardware: unix.ARPHRD_ETHER, MTU: 1500}))
	f.Add(link(unix.AF_UNSPEC, Interface{Index: 7})[:20])
	f.Fuzz(func(t *testing.T, b []byte) {
		family, i, err := parseLink(b)
		if err != nil {
			require.Zero(t, family)
			require.Zero(t, i)
			return
		}
		require.Positive(t, i.Index)
		before := fmt.Sprint(i)
		clear(b)
		require.Equal(t, before, fmt.Sprint(i), "it keeps nothing of the message")
		again, j, err := parseLink(link(family, i))
		require.NoError(t, err)
		require.Equal(t, family, again)
		require.True(t, same(i, j), "got %+v; want %+v", j, i)
	})
}

// No datagram breaks a table.
func FuzzApply(f *testing.F) {
	f.Add(message(unix.RTM_NEWLINK, netlink.Multi, 1, link(unix.AF_UNSPEC, Interface{Index: 1, Name: "lo"})))
	f.Add(message(unix.RTM_DELLINK, 0, 0, link(unix.AF_UNSPEC, Interface{Index: 1})))
	f.Add(message(unix.NLMSG_DONE, netlink.Multi, 1, make([]byte, 4)))
	f.Add(message(unix.NLMSG_ERROR, 0, 1, []byte{0xf0, 0xff, 0xff, 0xff}))
	f.Fuzz(func(t *testing.T, b []byte) {
		tb := newTable()
		tb.put(Interface{Index: 1, Name: "lo"})
		tb.sequence = 0
		tb.begin()
		_ = tb.apply(b) // any answer is fine
		for n, i := range tb.list() {
			require.Positive(t, i.Index)
			require.Positive(t, i.Generation)
			require.True(t, n == 0 || tb.list()[n-1].Index < i.Index)
		}
	})
}

// link is the body of RTM_NEWLINK.
func link(family uint8, i Interface) []byte {
	b := make([]byte, unix.SizeofIfInfomsg)
	b[0] = family
	binary.NativeEndian.PutUint16(b[2:], i.Hardware)
	binary.NativeEndian.PutUint32(b[4:], uint32(i.Index))
	var flags uint32
	if i.Up {
		flags |= unix.IFF_UP
	}
	if i.Loopback {
		flags |= unix.IFF_LOOPBACK
	}
	binary.NativeEndian.PutUint32(b[8:], flags)
	e := netlink.NewAttributeEncoder()
	e.String(unix.IFLA_IFNAME, i.Name)
	e.Uint32(unix.IFLA_MTU, uint32(i.MTU))
	e.Bytes(unix.IFLA_ADDRESS, i.Address)
	attributes, err := e.Encode()
	if err != nil {
		panic(err)
	}
	return append(b, attributes...)
}
