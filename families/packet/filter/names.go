package filter

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// Names looks names up. A function that is nil is the default: it reads a file of /etc, once
// for each filter that has such a name. No default asks the network: a filter must
// not wait for it, nor mean something else tomorrow.
type Names struct {
	// Host gives the addresses of a host; by default from /etc/hosts.
	Host func(name string) ([]netip.Addr, error)
	// Net gives the address of a network, 127.0.0.0 as 0x7f000000; by default from
	// /etc/networks.
	Net func(name string) (addr uint32, ok bool)
	// Port gives the port of a service, and the protocol it is for, "tcp" or "udp", or "" when
	// it is for both; by default from /etc/services or else of a table of our own.
	Port func(name string) (port uint16, proto string, err error)
	// Protocol gives the number that IP has for a protocol; by default from
	// /etc/protocols or else of a table of our own.
	Protocol func(name string) (uint8, bool)
	// Ether gives the hardware address of a host; by default from /etc/ethers.
	Ether func(name string) ([6]byte, bool)
	// User gives a user's number; by default from /etc/passwd.
	User func(name string) (uint32, bool)
}

// orDefault fills what is nil with the defaults, which remember what they read.
func (n Names) orDefault() Names { return n.or(etc("/etc")) }

func (n Names) or(d Names) Names {
	if n.Host == nil {
		n.Host = d.Host
	}
	if n.Net == nil {
		n.Net = d.Net
	}
	if n.Port == nil {
		n.Port = d.Port
	}
	if n.Protocol == nil {
		n.Protocol = d.Protocol
	}
	if n.Ether == nil {
		n.Ether = d.Ether
	}
	if n.User == nil {
		n.User = d.User
	}
	return n
}

var (
	errNoHost    = errors.New("not in /etc/hosts, and the network is not asked")
	errNoService = errors.New("no service of this name")
)

// etc looks names up in the files of a folder.
func etc(dir string) Names {
	hosts := database(dir, "hosts", parseHosts)
	networks := database(dir, "networks", parseNetworks)
	services := database(dir, "services", parseServices)
	protocols := database(dir, "protocols", parseProtocols)
	ethers := database(dir, "ethers", parseEthers)
	users := database(dir, "passwd", parsePasswd)
	return Names{
		Host: func(name string) ([]netip.Addr, error) { return lookUpHost(hosts(), name) },
		Net:  func(name string) (uint32, bool) { return lookUp(networks(), strings.ToLower(name)) },
		Port: func(name string) (uint16, string, error) {
			if s, ok := lookUp(services(), name); ok {
				return s.port()
			}
			if s, ok := lookUp(wellKnownServices(), name); ok {
				return s.port()
			}
			return 0, "", errNoService
		},
		Protocol: func(name string) (uint8, bool) {
			if n, ok := lookUp(protocols(), name); ok {
				return n, true
			}
			return lookUp(wellKnownProtocols(), name)
		},
		Ether: func(name string) ([6]byte, bool) { return lookUp(ethers(), strings.ToLower(name)) },
		User:  func(name string) (uint32, bool) { return lookUp(users(), name) },
	}
}

// maxDatabase is how much of a file is read: /etc/hosts with a long list of advertisers to
// block has 6 MiB. What is behind that is not found.
const maxDatabase = 8 << 20

// database is a file that is read when it is asked for. One that is not there, or not for
// us to read, is empty.
func database[V any](dir, name string, parse func(io.Reader) map[string]V) func() map[string]V {
	return sync.OnceValue(func() map[string]V {
		f, err := os.Open(filepath.Join(dir, name))
		if err != nil {
			return nil
		}
		defer func() { _ = f.Close() }() // read-only
		return parse(io.LimitReader(f, maxDatabase))
	})
}

func lookUp[V any](in map[string]V, name string) (V, bool) {
	v, ok := in[name]
	return v, ok
}

// lookUpHost finds a host, or reads a name that is an address itself.
func lookUpHost(hosts map[string][]netip.Addr, name string) ([]netip.Addr, error) {
	if addrs := hosts[strings.ToLower(name)]; len(addrs) > 0 {
		return addrs, nil
	}
	if addr, err := netip.ParseAddr(name); err == nil && addr.Zone() == "" {
		return []netip.Addr{addr}, nil
	}
	return nil, errNoHost
}

// service has the ports of one name, -1: none.
type service struct{ tcp, udp int }

// port chooses as libpcap does: of two different ports it takes TCP's.
func (s service) port() (uint16, string, error) {
	switch {
	case s.tcp == s.udp:
		return uint16(s.tcp), "", nil
	case s.tcp >= 0:
		return uint16(s.tcp), "tcp", nil
	}
	return uint16(s.udp), "udp", nil
}

// maxLine bounds one line of a file.
const maxLine = 64 << 10

// eachLine gives the words of each line that has at least two, without the comment. A line
// that is too long ends the file.
func eachLine(r io.Reader, use func(words []string)) {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxLine)
	for lines.Scan() {
		line, _, _ := bytes.Cut(lines.Bytes(), []byte("#"))
		if words := strings.Fields(string(line)); len(words) > 1 {
			use(words)
		}
	}
}

// parseHosts reads hosts(5): an address and its names, in any case. A name may have several
// lines.
func parseHosts(r io.Reader) map[string][]netip.Addr {
	out := map[string][]netip.Addr{}
	eachLine(r, func(words []string) {
		addr, err := netip.ParseAddr(words[0])
		if err != nil {
			return
		}
		addr = addr.WithZone("")
		for _, name := range words[1:] {
			name = strings.ToLower(name)
			if !slices.Contains(out[name], addr) {
				out[name] = append(out[name], addr)
			}
		}
	})
	return out
}

// parseNetworks reads networks(5): a name, an address, more names, in any case. Parts that an
// address lacks are 0.
func parseNetworks(r io.Reader) map[string]uint32 {
	out := map[string]uint32{}
	eachLine(r, func(words []string) {
		addr, err := parseNetwork(words[1])
		if err != nil {
			return
		}
		words[1] = words[0]
		for _, name := range words[1:] {
			keepFirst(out, strings.ToLower(name), addr)
		}
	})
	return out
}

func parseNetwork(text string) (uint32, error) {
	parts := strings.Split(text, ".")
	if len(parts) > 4 {
		return 0, fmt.Errorf("network %q: more than four parts", text)
	}
	var addr uint32
	for i, part := range parts {
		n, err := strconv.ParseUint(part, 0, 8)
		if err != nil {
			return 0, fmt.Errorf("network %q: %w", text, err)
		}
		addr |= uint32(n) << (24 - 8*i)
	}
	return addr, nil
}

// parseServices reads services(5): a name, a port and a protocol, more names. Of several
// lines for a name and a protocol the first counts. Only TCP and UDP do.
func parseServices(r io.Reader) map[string]service {
	out := map[string]service{}
	eachLine(r, func(words []string) {
		number, proto, _ := strings.Cut(words[1], "/")
		n, err := strconv.ParseUint(number, 10, 16)
		if err != nil || proto != "tcp" && proto != "udp" {
			return
		}
		words[1] = words[0]
		for _, name := range words[1:] {
			s, ok := out[name]
			if !ok {
				s = service{-1, -1}
			}
			out[name] = s.with(proto, int(n))
		}
	})
	return out
}

func (s service) with(proto string, port int) service {
	switch {
	case proto == "tcp" && s.tcp < 0:
		s.tcp = port
	case proto == "udp" && s.udp < 0:
		s.udp = port
	}
	return s
}

// parseProtocols reads protocols(5): a name, a number, more names. Numbers that no IP header
// can have are left out.
func parseProtocols(r io.Reader) map[string]uint8 {
	out := map[string]uint8{}
	eachLine(r, func(words []string) {
		n, err := strconv.ParseUint(words[1], 10, 8)
		if err != nil {
			return
		}
		words[1] = words[0]
		for _, name := range words[1:] {
			keepFirst(out, name, uint8(n))
		}
	})
	return out
}

// parseEthers reads ethers(5): a hardware address and a name, in any case.
func parseEthers(r io.Reader) map[string][6]byte {
	out := map[string][6]byte{}
	eachLine(r, func(words []string) {
		if mac, ok := parseEther(words[0]); ok {
			keepFirst(out, strings.ToLower(words[1]), mac)
		}
	})
	return out
}

// parseEther reads six hexadecimal numbers with colons between them; net.ParseMAC wants two
// digits of each.
func parseEther(text string) (mac [6]byte, ok bool) {
	parts := strings.Split(text, ":")
	for i, part := range parts {
		if len(part) == 1 {
			parts[i] = "0" + part
		}
	}
	addr, err := net.ParseMAC(strings.Join(parts, ":"))
	if err != nil || len(parts) != 6 || len(addr) != 6 {
		return mac, false
	}
	return [6]byte(addr), true
}

// parsePasswd reads passwd(5): seven fields with colons between them, the name first and the
// number third.
func parsePasswd(r io.Reader) map[string]uint32 {
	out := map[string]uint32{}
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxLine)
	for lines.Scan() {
		fields := strings.Split(lines.Text(), ":")
		if len(fields) < 4 || fields[0] == "" || fields[0][0] == '#' {
			continue
		}
		if uid, err := strconv.ParseUint(fields[2], 10, 32); err == nil {
			keepFirst(out, fields[0], uint32(uid))
		}
	}
	return out
}

// keepFirst puts a value where there is none yet.
func keepFirst[V any](m map[string]V, name string, v V) {
	if _, ok := m[name]; !ok {
		m[name] = v
	}
}

// etherTypeNames are the names that "ether proto" knows, llcNames those of the service
// access points of IEEE 802.2. They are libpcap's, whatever /etc/ethertypes says.
var (
	etherTypeNames = map[string]uint32{
		"aarp": etherAARP, "arp": etherARP, "atalk": etherATalk, "decnet": etherDECnet, "ip": etherIP,
		"ip6": etherIP6, "lat": etherLAT, "loopback": 0x9000, "mopdl": etherMOPDL, "moprc": etherMOPRC,
		"rarp": etherRARP, "sca": etherSCA,
	}
	llcNames = map[string]uint32{"iso": sapISO, "stp": sapSTP, "ipx": sapIPX, "netbeui": sapNetBEUI}
)
