package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

// The ends of the veth pair: what enters near in one namespace comes out at far in
// the other.
const (
	nearIface = "vtx"
	farIface  = "vrx"
)

// A world is two network namespaces with a veth pair between them. Each lives as long
// as a process in it that waits for the end of its input, so that the kernel takes
// all away when this process ends, killed or not.
type world struct{ near, far *child }

// newWorld makes the namespaces. IPv6 is off in them, or the kernel would send
// neighbour discovery of its own among the frames that are counted.
func newWorld(ctx context.Context) (w *world, err error) {
	w = &world{}
	defer func() {
		if err != nil {
			err = fmt.Errorf("make two network namespaces and a veth pair: %w", errors.Join(err, w.close()))
			w = nil
		}
	}()
	for _, end := range []**child{&w.near, &w.far} {
		if *end, err = newNamespace(ctx); err != nil {
			return w, err
		}
	}
	near, far := strconv.Itoa(w.near.pid()), strconv.Itoa(w.far.pid())
	if err := ip(nil, "link", "add", nearIface, "netns", near, "type", "veth", "peer", "name", farIface, "netns", far); err != nil {
		return w, err
	}
	if err := errors.Join(ip(w.near, "link", "set", nearIface, "up"), ip(w.far, "link", "set", farIface, "up")); err != nil {
		return w, err
	}
	return w, errors.Join(awaitUp(ctx, w.near, nearIface), awaitUp(ctx, w.far, farIface))
}

func newNamespace(ctx context.Context) (*child, error) {
	const script = `ip link set lo up &&
		{ test ! -e /proc/sys/net/ipv6 || echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6; } &&
		echo '"up"' && exec cat`
	c, err := startChild("unshare", "--net", "sh", "-c", script)
	if err != nil {
		return nil, err
	}
	var up string
	if err := c.hear(ctx, &up); err != nil {
		return nil, errors.Join(err, c.end())
	}
	return c, nil
}

// close ends both namespaces.
func (w *world) close() error {
	var errs []error
	for _, c := range []*child{w.near, w.far} {
		if c != nil {
			errs = append(errs, c.end())
		}
	}
	return errors.Join(errs...)
}

// inside is the command line that runs a program in a namespace; nsenter becomes the
// program, so the process is the program's own.
func inside(ns *child, name string, args ...string) []string {
	return append([]string{"nsenter", fmt.Sprintf("--net=/proc/%d/ns/net", ns.pid()), name}, args...)
}

// ip is ip(8) in a namespace, or in this process's own.
func ip(ns *child, args ...string) error {
	_, err := ipOutput(ns, args...)
	return err
}

func ipOutput(ns *child, args ...string) (string, error) {
	line := append([]string{"ip"}, args...)
	if ns != nil {
		line = inside(ns, "ip", args...)
	}
	out, err := exec.Command(line[0], line[1:]...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return string(out), nil
}

// awaitUp waits until an interface can carry frames: it has a carrier, and the kernel
// has given it its queue, which happens a moment later.
func awaitUp(ctx context.Context, ns *child, iface string) error {
	return poll(ctx, patience, 10*time.Millisecond, iface+" does not come up", func() (bool, error) {
		out, err := ipOutput(ns, "-o", "link", "show", iface)
		return strings.Contains(out, " state UP "), err
	})
}

// arrived is how many frames came out of the far end so far.
func (w *world) arrived() (int64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/dev", w.far.pid()))
	if err != nil {
		return 0, err
	}
	return parseNetDev(string(b), farIface)
}

// passed is how many frames came out of the far end while f ran.
func (w *world) passed(f func() error) (int64, error) {
	before, err := w.arrived()
	if err != nil {
		return 0, err
	}
	if err := f(); err != nil {
		return 0, err
	}
	after, err := w.arrived()
	return after - before, err
}

// parseNetDev finds an interface's received packets in /proc/net/dev (proc(5)): after
// its name bytes, packets, and more.
func parseNetDev(text, iface string) (int64, error) {
	for line := range strings.Lines(text) {
		name, counts, ok := strings.Cut(line, ":")
		if !ok || strings.TrimSpace(name) != iface {
			continue
		}
		f := strings.Fields(counts)
		if len(f) < 2 {
			return 0, fmt.Errorf("/proc/net/dev: %q", line)
		}
		return strconv.ParseInt(f[1], 10, 64)
	}
	return 0, fmt.Errorf("/proc/net/dev has no %s", iface)
}

// packetSockets is how many bound AF_PACKET sockets there are at the far end.
func (w *world) packetSockets() (int, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/packet", w.far.pid()))
	if err != nil {
		return 0, err
	}
	return parsePacketSockets(string(b)), nil
}

// parsePacketSockets counts the running sockets of /proc/net/packet, which are bound:
// sk RefCnt Type Proto Iface R Rmem User Inode.
func parsePacketSockets(text string) (n int) {
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) >= 9 && f[5] == "1" {
			n++
		}
	}
	return n
}

// poll asks until ok, or fails with what is wrong.
func poll(ctx context.Context, d, every time.Duration, wrong string, ok func() (bool, error)) error {
	for end := time.Now().Add(d); ; {
		done, err := ok()
		if done || err != nil {
			return err
		}
		if time.Now().After(end) {
			return fmt.Errorf("%s within %v", wrong, d)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(every):
		}
	}
}
