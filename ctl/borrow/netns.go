package borrow

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"strings"

	"github.com/sockd/sockd/families"
	"golang.org/x/sys/unix"
)

// runNetns is where ip-netns(8) keeps namespaces by name.
const runNetns = "/run/netns/"

var (
	domains = map[string]int{"inet": unix.AF_INET, "inet6": unix.AF_INET6, "local": unix.AF_UNIX, "unix": unix.AF_UNIX, "packet": unix.AF_PACKET}
	types   = map[string]int{"stream": unix.SOCK_STREAM, "dgram": unix.SOCK_DGRAM, "seqpacket": unix.SOCK_SEQPACKET, "raw": unix.SOCK_RAW}
	// protocols are the words that the inet families know, by /etc/protocols, and
	// ethertypes those of packet.
	protocols  = map[string]int{"ip": unix.IPPROTO_IP, "icmp": unix.IPPROTO_ICMP, "igmp": unix.IPPROTO_IGMP, "tcp": unix.IPPROTO_TCP, "udp": unix.IPPROTO_UDP, "gre": unix.IPPROTO_GRE, "esp": unix.IPPROTO_ESP, "ah": unix.IPPROTO_AH, "icmpv6": unix.IPPROTO_ICMPV6, "ipv6-icmp": unix.IPPROTO_ICMPV6, "sctp": unix.IPPROTO_SCTP, "udplite": unix.IPPROTO_UDPLITE, "raw": unix.IPPROTO_RAW}
	ethertypes = map[string]int{"all": unix.ETH_P_ALL, "ip": unix.ETH_P_IP, "ipv6": unix.ETH_P_IPV6, "ip6": unix.ETH_P_IPV6, "arp": unix.ETH_P_ARP, "rarp": unix.ETH_P_RARP, "vlan": unix.ETH_P_8021Q, "lldp": unix.ETH_P_LLDP}
)

// OpenIn opens a socket in another network namespace: a name below /run/netns, or
// the path of a namespace file. Entering it takes CAP_SYS_ADMIN. protocolName
// counts when it is not empty. The caller owns the descriptor, which is
// non-blocking.
func OpenIn(netns, family, typ string, protocol int, protocolName string) (fd int, err error) {
	spec, err := parseSpec(family, typ, protocol, protocolName)
	if err != nil {
		return -1, err
	}
	return spec.openInNamed(netns)
}

// OpenRouteIn opens a socket of rtnetlink(7) in another network namespace, as OpenIn
// does.
func OpenRouteIn(netns string) (fd int, err error) {
	return spec{unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE}.openInNamed(netns)
}

// openInNamed opens a socket in a namespace by its name or path.
func (s spec) openInNamed(netns string) (int, error) {
	path := netns
	if !strings.Contains(netns, "/") {
		path = runNetns + netns
	}
	ns, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return -1, fmt.Errorf("%s: %w", path, families.ErrNotFound)
	}
	if err != nil {
		return -1, fmt.Errorf("%s: %w", path, err)
	}
	defer unix.Close(ns)
	return s.openIn(ns)
}

// spec is the three arguments of socket(2).
type spec struct{ domain, typ, protocol int }

func parseSpec(family, typ string, protocol int, protocolName string) (s spec, err error) {
	var ok bool
	if s.domain, ok = domains[family]; !ok {
		return s, &families.SyntaxError{What: "family", Text: family, Why: "want inet, inet6, local or packet"}
	}
	if s.typ, ok = types[typ]; !ok {
		return s, &families.SyntaxError{What: "type", Text: typ, Why: "want stream, dgram, seqpacket or raw"}
	}
	s.protocol = protocol
	words := protocols
	if s.domain == unix.AF_PACKET {
		words = ethertypes
	}
	if protocolName != "" {
		if s.protocol, ok = words[protocolName]; !ok {
			return s, &families.SyntaxError{What: "protocol", Text: protocolName, Why: "is unknown here", Hint: "write it as a number"}
		}
	}
	if s.domain == unix.AF_PACKET {
		s.protocol = int(htons(uint16(s.protocol)))
	}
	return s, nil
}

// htons: socket(2) wants an ethertype in the network's order (packet(7)).
func htons(n uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, n))
}

// openIn enters the namespace on a thread of its own. The goroutine ends without
// unlocking, which ends the thread: no other one ever runs in the namespace.
func (s spec) openIn(ns int) (int, error) {
	type result struct {
		fd  int
		err error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread()
		if err := unix.Setns(ns, unix.CLONE_NEWNET); err != nil {
			done <- result{-1, fmt.Errorf("enter the namespace: %w", err)}
			return
		}
		fd, err := unix.Socket(s.domain, s.typ|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, s.protocol)
		done <- result{fd, err}
	}()
	r := <-done
	return r.fd, r.err
}
