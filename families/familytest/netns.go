package familytest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sockd/sockd/families"
	"golang.org/x/sys/unix"
)

// patience bounds every wait for something that is about to happen. It is
// generous, so that a slow machine is not a broken one.
const patience = 20 * time.Second

var nsCount atomic.Int64

// NS is a network namespace of a test: empty but for a loopback that is up.
type NS struct {
	name string
}

// NewNS makes a network namespace that ip-netns(8) knows by name. It is deleted
// when the test ends. Making one takes root.
func NewNS(tb testing.TB) *NS {
	tb.Helper()
	Need(tb, Root())
	sweepOnce.Do(sweep)
	ns := &NS{name: fmt.Sprintf("sockd-%d-%d", os.Getpid(), nsCount.Add(1))}
	mustRun(tb, "ip", "netns", "add", ns.name)
	tb.Cleanup(func() { mustRun(tb, "ip", "netns", "del", ns.name) })
	ns.Do(func() {
		// Duplicate address detection would leave IPv6 addresses unusable for a second or two.
		for _, conf := range []string{"all", "default"} {
			_ = os.WriteFile("/proc/sys/net/ipv6/conf/"+conf+"/accept_dad", []byte("0"), 0o644) // a kernel without IPv6 has no such file
		}
	})
	mustRun(tb, "ip", "-n", ns.name, "link", "set", "lo", "up")
	return ns
}

var sweepOnce sync.Once

// sweep deletes the namespaces of tests that were killed, which had no time to.
func sweep() {
	entries, _ := os.ReadDir("/run/netns") // before the first namespace there is none
	for _, e := range entries {
		var pid, n int
		if _, err := fmt.Sscanf(e.Name(), "sockd-%d-%d", &pid, &n); err != nil {
			continue
		}
		if _, err := os.Stat(fmt.Sprintf("/proc/%d", pid)); errors.Is(err, os.ErrNotExist) {
			_ = exec.Command("ip", "netns", "del", e.Name()).Run() // another test may have been faster
		}
	}
}

// Name is the namespace's name, as ip -n and ip netns exec want it.
func (n *NS) Name() string { return n.name }

// Do calls f inside the namespace, on the calling goroutine, which is locked to
// its thread meanwhile. What f opens stays in the namespace for good; goroutines
// that f starts are not in it. It panics when the namespace cannot be entered.
func (n *NS) Do(f func()) {
	runtime.LockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		panic(fmt.Sprintf("familytest: %v", err))
	}
	defer home.Close()
	inside, err := os.Open("/run/netns/" + n.name)
	if err != nil {
		panic(fmt.Sprintf("familytest: %v", err))
	}
	defer inside.Close()
	if err := enterNet(inside); err != nil {
		panic(fmt.Sprintf("familytest: enter namespace %s: %v", n.name, err))
	}
	defer func() {
		// A thread that cannot go home stays locked, and dies with its goroutine.
		if err := enterNet(home); err != nil {
			panic(fmt.Sprintf("familytest: leave namespace %s: %v", n.name, err))
		}
		runtime.UnlockOSThread()
	}()
	f()
}

// Command is exec.Command run inside the namespace by ip-netns(8).
func (n *NS) Command(name string, args ...string) *exec.Cmd {
	return exec.Command("ip", append([]string{"netns", "exec", n.name, name}, args...)...)
}

// Veth joins two namespaces by a pair of virtual Ethernet interfaces, up and
// with a carrier. An address is written 10.9.0.1/24 or fd00::1/64; "" is none.
func Veth(tb testing.TB, a *NS, aName, aCIDR string, b *NS, bName, bCIDR string) {
	tb.Helper()
	mustRun(tb, "ip", "link", "add", aName, "netns", a.name, "type", "veth", "peer", "name", bName, "netns", b.name)
	for _, end := range []struct {
		ns           *NS
		iface, cidrs string
	}{{a, aName, aCIDR}, {b, bName, bCIDR}} {
		if end.cidrs != "" {
			args := []string{"-n", end.ns.name, "addr", "add", end.cidrs, "dev", end.iface}
			if strings.Contains(end.cidrs, ":") {
				args = append(args, "nodad")
			}
			mustRun(tb, "ip", args...)
		}
		mustRun(tb, "ip", "-n", end.ns.name, "link", "set", end.iface, "up")
	}
	a.awaitCarrier(tb, aName)
	b.awaitCarrier(tb, bName)
}

func (n *NS) awaitCarrier(tb testing.TB, iface string) {
	tb.Helper()
	Eventually(tb, fmt.Sprintf("%s in %s has no carrier", iface, n.name), func() bool {
		up := false
		n.Do(func() {
			i, err := net.InterfaceByName(iface)
			up = err == nil && i.Flags&net.FlagRunning != 0
		})
		return up
	})
}

func enterNet(f *os.File) error {
	rc, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var nsErr error
	if err := rc.Control(func(fd uintptr) { nsErr = unix.Setns(int(fd), unix.CLONE_NEWNET) }); err != nil {
		return err
	}
	return nsErr
}

func mustRun(tb testing.TB, name string, args ...string) {
	tb.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		tb.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}

// Family is f with every socket opened inside the namespace.
func (n *NS) Family(f families.Family) families.Family {
	inside := nsFamily{f, n}
	if a, ok := f.(families.Adopter); ok {
		return adoptingNS{inside, a}
	}
	return inside
}

type nsFamily struct {
	families.Family
	ns *NS
}

// adoptingNS is an nsFamily that is an Adopter. A descriptor stays where it was made.
type adoptingNS struct {
	nsFamily
	families.Adopter
}

func (f nsFamily) Open(ctx context.Context, spec families.Spec) (s families.Socket, err error) {
	f.ns.Do(func() { s, err = f.Family.Open(ctx, spec) })
	return s, err
}
