package ksock

import (
	"errors"
	"fmt"
	"net/netip"
	"sort"
	"strconv"
	"strings"
	"syscall"

	"github.com/sockd/sockd/families"
	"golang.org/x/sys/unix"
)

// Option is one socket option by its man page's name, in lower case, or one of
// the endpoint's short words.
type Option struct {
	Name string
	// Get reads it; nil for what cannot be read.
	Get func(fd int) (string, error)
	// Set sets it; nil for what is read only. A value that does not parse is a
	// BadValue; "" is the bare word.
	Set func(fd int, value string) error
	// Consumes tells that reading it changes the socket: it is read by its name
	// alone, and not among Options.
	Consumes bool
}

// BadValue is why a value does not parse.
type BadValue string

func (b BadValue) Error() string { return string(b) }

// Options are the names that Option reads without changing anything, sorted.
func (b *Base) Options() []string {
	var names []string
	for _, o := range b.fam.options(b.typ) {
		if o.Get != nil && !o.Consumes {
			names = append(names, o.Name)
		}
	}
	sort.Strings(names)
	return names
}

// Option reads an option.
func (b *Base) Option(name string) (string, error) {
	o, err := b.option(name, name)
	if err != nil {
		return "", err
	}
	if o.Get == nil {
		return "", &families.SyntaxError{What: "option", Text: name, Column: 1, Why: "cannot be read, only set"}
	}
	var value string
	err = b.try("get option", name, func(fd int) (err error) {
		value, err = o.Get(fd)
		return err
	})
	return value, err
}

// SetOption sets an option; "" switches it on.
func (b *Base) SetOption(name, value string) error {
	text := name
	if value != "" {
		text += "=" + value
	}
	o, err := b.option(name, text)
	if err != nil {
		return err
	}
	if o.Set == nil {
		return &families.SyntaxError{What: "option", Text: text, Column: 1, Why: "cannot be set, only read"}
	}
	err = b.control(func(fd int) error { return o.Set(fd, value) })
	var bad BadValue
	switch {
	case errors.As(err, &bad):
		return &families.SyntaxError{What: "option", Text: text, Column: min(len(name)+2, len(text)), Why: string(bad)}
	case err != nil:
		return b.fam.fail("set option", text, err)
	}
	b.noteOption(name, value)
	return nil
}

func (b *Base) option(name, text string) (Option, error) {
	for _, o := range b.fam.options(b.typ) {
		if o.Name == name {
			return o, nil
		}
	}
	return Option{}, &families.SyntaxError{What: "option", Text: text, Column: 1, Why: fmt.Sprintf("%s %s has no such option", b.fam.Name, b.typ)}
}

// noteOption keeps apart that the user wants credentials, and that Recv needs
// them to see the end.
func (b *Base) noteOption(name, value string) {
	if name != "so_passcred" {
		return
	}
	on, _ := parseSwitch(value) // was set, so it parses
	b.creds.Store(on)
	b.marked.Store(false)
}

// As is the same option under another name, for the endpoint's short words. It
// is set only, so that Options lists each option once.
func (o Option) As(name string) Option { return Option{Name: name, Set: o.Set} }

// ReadOnly is the option without Set.
func (o Option) ReadOnly() Option { return Option{Name: o.Name, Get: o.Get} }

// Switch is an option that is on or off.
func Switch(name string, level, opt int) Option {
	return Option{Name: name, Get: getInt(level, opt), Set: func(fd int, value string) error {
		on, err := parseSwitch(value)
		if err != nil {
			return err
		}
		n := 0
		if on {
			n = 1
		}
		return unix.SetsockoptInt(fd, level, opt, n)
	}}
}

func parseSwitch(value string) (bool, error) {
	switch value {
	case "", "1", "on", "true", "yes":
		return true, nil
	case "0", "off", "false", "no":
		return false, nil
	}
	return false, BadValue("want on or off")
}

// Number is an option with a number: decimal, or with 0x.
func Number(name string, level, opt int) Option {
	return Option{Name: name, Get: getInt(level, opt), Set: func(fd int, value string) error {
		n, err := strconv.ParseInt(value, 0, 64)
		if err != nil || n != int64(int32(n)) && n != int64(uint32(n)) {
			return BadValue("want a number of 32 bits")
		}
		return unix.SetsockoptInt(fd, level, opt, int(int32(uint32(n))))
	}}
}

// Size is an option with a number of bytes; k, M and G are powers of 1024.
func Size(name string, level, opt int) Option {
	return Option{Name: name, Get: getInt(level, opt), Set: func(fd int, value string) error {
		n, err := parseSize(value)
		if err != nil {
			return err
		}
		return unix.SetsockoptInt(fd, level, opt, n)
	}}
}

func parseSize(value string) (int, error) {
	digits, shift := value, 0
	if i := strings.IndexAny(value, "kMG"); i >= 0 && i == len(value)-1 {
		digits, shift = value[:i], map[byte]int{'k': 10, 'M': 20, 'G': 30}[value[i]]
	}
	n, err := strconv.ParseUint(digits, 10, 31)
	if err != nil || n<<shift > 1<<31-1 {
		return 0, BadValue("want a size below 2G, such as 65536 or 64k")
	}
	return int(n) << shift, nil
}

// Text is an option with a string, such as tcp_congestion.
func Text(name string, level, opt int) Option {
	return Option{
		Name: name,
		Get:  func(fd int) (string, error) { return unix.GetsockoptString(fd, level, opt) },
		Set: func(fd int, value string) error {
			if value == "" {
				return BadValue("want a value")
			}
			return unix.SetsockoptString(fd, level, opt, value)
		},
	}
}

func getInt(level, opt int) func(fd int) (string, error) {
	return func(fd int) (string, error) {
		n, err := unix.GetsockoptInt(fd, level, opt)
		if err != nil {
			return "", err
		}
		return strconv.Itoa(n), nil
	}
}

// SocketOptions are those of socket(7).
func SocketOptions() []Option {
	const level = unix.SOL_SOCKET
	return []Option{
		Switch("so_acceptconn", level, unix.SO_ACCEPTCONN).ReadOnly(),
		Text("so_bindtodevice", level, unix.SO_BINDTODEVICE),
		Switch("so_broadcast", level, unix.SO_BROADCAST),
		Number("so_busy_poll", level, unix.SO_BUSY_POLL),
		Switch("so_debug", level, unix.SO_DEBUG),
		Number("so_domain", level, unix.SO_DOMAIN).ReadOnly(),
		Switch("so_dontroute", level, unix.SO_DONTROUTE),
		{Name: "so_error", Get: getError, Consumes: true},
		Number("so_incoming_cpu", level, unix.SO_INCOMING_CPU),
		Switch("so_keepalive", level, unix.SO_KEEPALIVE),
		{Name: "so_linger", Get: getLinger, Set: setLinger},
		Number("so_mark", level, unix.SO_MARK),
		Switch("so_oobinline", level, unix.SO_OOBINLINE),
		Number("so_priority", level, unix.SO_PRIORITY),
		Number("so_protocol", level, unix.SO_PROTOCOL).ReadOnly(),
		Size("so_rcvbuf", level, unix.SO_RCVBUF),
		Size("so_rcvbufforce", level, unix.SO_RCVBUFFORCE).setOnly(),
		Size("so_rcvlowat", level, unix.SO_RCVLOWAT),
		Switch("so_reuseaddr", level, unix.SO_REUSEADDR),
		Switch("so_reuseport", level, unix.SO_REUSEPORT),
		Switch("so_rxq_ovfl", level, unix.SO_RXQ_OVFL),
		Size("so_sndbuf", level, unix.SO_SNDBUF),
		Size("so_sndbufforce", level, unix.SO_SNDBUFFORCE).setOnly(),
		Switch("so_timestamp", level, unix.SO_TIMESTAMP),
		Switch("so_timestampns", level, unix.SO_TIMESTAMPNS),
		{Name: "so_type", Get: getType},
	}
}

// UnixOptions are those of unix(7).
func UnixOptions() []Option {
	return []Option{
		Switch("so_passcred", unix.SOL_SOCKET, unix.SO_PASSCRED),
		{Name: "so_peercred", Get: getPeerCred},
	}
}

// TCPOptions are those of tcp(7).
func TCPOptions() []Option {
	const level = unix.IPPROTO_TCP
	return []Option{
		Text("tcp_congestion", level, unix.TCP_CONGESTION),
		Switch("tcp_cork", level, unix.TCP_CORK),
		Number("tcp_defer_accept", level, unix.TCP_DEFER_ACCEPT),
		Number("tcp_fastopen", level, unix.TCP_FASTOPEN),
		Switch("tcp_fastopen_connect", level, unix.TCP_FASTOPEN_CONNECT),
		Number("tcp_keepcnt", level, unix.TCP_KEEPCNT),
		Number("tcp_keepidle", level, unix.TCP_KEEPIDLE),
		Number("tcp_keepintvl", level, unix.TCP_KEEPINTVL),
		Number("tcp_linger2", level, unix.TCP_LINGER2),
		Number("tcp_maxseg", level, unix.TCP_MAXSEG),
		Switch("tcp_nodelay", level, unix.TCP_NODELAY),
		Size("tcp_notsent_lowat", level, unix.TCP_NOTSENT_LOWAT),
		Switch("tcp_quickack", level, unix.TCP_QUICKACK),
		Number("tcp_syncnt", level, unix.TCP_SYNCNT),
		Number("tcp_user_timeout", level, unix.TCP_USER_TIMEOUT),
		Size("tcp_window_clamp", level, unix.TCP_WINDOW_CLAMP),
	}
}

// UDPOptions are those of udp(7).
func UDPOptions() []Option {
	return []Option{Switch("udp_cork", unix.IPPROTO_UDP, unix.UDP_CORK)}
}

// IPOptions are those of ip(7).
func IPOptions() []Option {
	const level = unix.IPPROTO_IP
	return []Option{
		{Name: "ip_add_membership", Set: membership(unix.IP_ADD_MEMBERSHIP, 0)},
		Switch("ip_bind_address_no_port", level, unix.IP_BIND_ADDRESS_NO_PORT),
		{Name: "ip_drop_membership", Set: membership(unix.IP_DROP_MEMBERSHIP, 0)},
		Switch("ip_freebind", level, unix.IP_FREEBIND),
		Switch("ip_hdrincl", level, unix.IP_HDRINCL),
		Number("ip_mtu_discover", level, unix.IP_MTU_DISCOVER),
		Number("ip_mtu", level, unix.IP_MTU).ReadOnly(),
		Switch("ip_multicast_all", level, unix.IP_MULTICAST_ALL),
		{Name: "ip_multicast_if", Set: setMulticastIf4},
		Switch("ip_multicast_loop", level, unix.IP_MULTICAST_LOOP),
		Number("ip_multicast_ttl", level, unix.IP_MULTICAST_TTL),
		Switch("ip_pktinfo", level, unix.IP_PKTINFO),
		Switch("ip_recverr", level, unix.IP_RECVERR),
		Switch("ip_recvttl", level, unix.IP_RECVTTL),
		Number("ip_tos", level, unix.IP_TOS),
		Switch("ip_transparent", level, unix.IP_TRANSPARENT),
		Number("ip_ttl", level, unix.IP_TTL),
	}
}

// IPv6Options are those of ipv6(7).
func IPv6Options() []Option {
	const level = unix.IPPROTO_IPV6
	return []Option{
		{Name: "ipv6_add_membership", Set: membership(0, unix.IPV6_ADD_MEMBERSHIP)},
		{Name: "ipv6_drop_membership", Set: membership(0, unix.IPV6_DROP_MEMBERSHIP)},
		Switch("ipv6_freebind", level, unix.IPV6_FREEBIND),
		Number("ipv6_mtu", level, unix.IPV6_MTU),
		Number("ipv6_mtu_discover", level, unix.IPV6_MTU_DISCOVER),
		Number("ipv6_multicast_hops", level, unix.IPV6_MULTICAST_HOPS),
		{Name: "ipv6_multicast_if", Set: setMulticastIf6},
		Switch("ipv6_multicast_loop", level, unix.IPV6_MULTICAST_LOOP),
		Switch("ipv6_recverr", level, unix.IPV6_RECVERR),
		Switch("ipv6_recvpktinfo", level, unix.IPV6_RECVPKTINFO),
		Number("ipv6_tclass", level, unix.IPV6_TCLASS),
		Switch("ipv6_transparent", level, unix.IPV6_TRANSPARENT),
		Number("ipv6_unicast_hops", level, unix.IPV6_UNICAST_HOPS),
		Switch("ipv6_v6only", level, unix.IPV6_V6ONLY),
	}
}

// IPWords are the endpoint's short words for sockets of internet families: iface,
// reuseport, v6only (inet6 only) and join=GROUP[%IFACE].
func IPWords(domain int) []Option {
	words := []Option{
		Text("", unix.SOL_SOCKET, unix.SO_BINDTODEVICE).As("iface"),
		Switch("", unix.SOL_SOCKET, unix.SO_REUSEPORT).As("reuseport"),
	}
	if domain == unix.AF_INET {
		return append(words, Option{Name: "join", Set: membership(unix.IP_ADD_MEMBERSHIP, 0)})
	}
	return append(words,
		Option{Name: "join", Set: membership(unix.IP_ADD_MEMBERSHIP, unix.IPV6_ADD_MEMBERSHIP)},
		Switch("", unix.IPPROTO_IPV6, unix.IPV6_V6ONLY).As("v6only"))
}

func (o Option) setOnly() Option { return o.As(o.Name) }

func getType(fd int) (string, error) {
	t, err := socketType(fd)
	if err != nil {
		return "", err
	}
	return t.String(), nil
}

// getError reads and clears the pending error: 0, or its name.
func getError(fd int) (string, error) {
	n, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		return "", err
	}
	if name := unix.ErrnoName(syscall.Errno(n)); name != "" {
		return name, nil
	}
	return strconv.Itoa(n), nil
}

func getLinger(fd int) (string, error) {
	l, err := unix.GetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER)
	if err != nil {
		return "", err
	}
	if l.Onoff == 0 {
		return "off", nil
	}
	return strconv.Itoa(int(l.Linger)), nil
}

// setLinger takes seconds or off. 0 seconds is not off: it makes close reset.
func setLinger(fd int, value string) error {
	l := unix.Linger{}
	if value != "off" && value != "no" && value != "false" {
		n, err := strconv.ParseUint(value, 10, 31)
		if err != nil {
			return BadValue("want seconds or off")
		}
		l = unix.Linger{Onoff: 1, Linger: int32(n)}
	}
	return unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &l)
}

// getPeerCred prints PID,UID,GID.
func getPeerCred(fd int) (string, error) {
	u, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%d,%d,%d", u.Pid, int32(u.Uid), int32(u.Gid)), nil
}

// membership joins or leaves GROUP[%IFACE] by opt4 or opt6; 0 is a family that
// this socket has not.
func membership(opt4, opt6 int) func(fd int, value string) error {
	return func(fd int, value string) error {
		group, err := netip.ParseAddr(value)
		if err != nil || !group.IsMulticast() {
			// netip reads no zone in an IPv4 address.
			host, zone, _ := strings.Cut(value, "%")
			group, err = netip.ParseAddr(host)
			if err != nil || !group.IsMulticast() {
				return BadValue("want a multicast GROUP or GROUP%IFACE")
			}
			return joinBy(fd, opt4, opt6, group, zone)
		}
		return joinBy(fd, opt4, opt6, group.WithZone(""), group.Zone())
	}
}

func joinBy(fd, opt4, opt6 int, group netip.Addr, zone string) error {
	index, err := interfaceIndex(fd, zone)
	if err != nil {
		return err
	}
	switch {
	case group.Is4() && opt4 != 0:
		return unix.SetsockoptIPMreqn(fd, unix.IPPROTO_IP, opt4, &unix.IPMreqn{Multiaddr: group.As4(), Ifindex: int32(index)})
	case group.Is6() && opt6 != 0:
		return unix.SetsockoptIPv6Mreq(fd, unix.IPPROTO_IPV6, opt6, &unix.IPv6Mreq{Multiaddr: group.As16(), Interface: uint32(index)})
	}
	return BadValue("the group is of another address family")
}

func setMulticastIf4(fd int, value string) error {
	if a, err := netip.ParseAddr(value); err == nil && a.Is4() {
		return unix.SetsockoptIPMreqn(fd, unix.IPPROTO_IP, unix.IP_MULTICAST_IF, &unix.IPMreqn{Address: a.As4()})
	}
	index, err := interfaceIndex(fd, value)
	if err != nil {
		return err
	}
	return unix.SetsockoptIPMreqn(fd, unix.IPPROTO_IP, unix.IP_MULTICAST_IF, &unix.IPMreqn{Ifindex: int32(index)})
}

func setMulticastIf6(fd int, value string) error {
	index, err := interfaceIndex(fd, value)
	if err != nil {
		return err
	}
	return unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_IF, index)
}

// interfaceIndex reads an interface's name or number; "" is 0, the system picks.
// The name is looked up in the network namespace of the socket fd.
func interfaceIndex(fd int, name string) (int, error) {
	if name == "" {
		return 0, nil
	}
	if n, err := strconv.ParseUint(name, 10, 31); err == nil {
		return int(n), nil
	}
	req, err := unix.NewIfreq(name)
	if err != nil {
		return 0, BadValue("want an interface's name or number")
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, req); err != nil {
		return 0, fmt.Errorf("interface %s: %w", name, err)
	}
	return int(req.Uint32()), nil
}
