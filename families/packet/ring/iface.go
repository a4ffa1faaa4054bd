package ring

import (
	"errors"
	"fmt"
	"net"
	"syscall"

	"github.com/sockd/sockd/families/packet/pcapng"
	"golang.org/x/sys/unix"
)

// Interface is what a ring can be opened on.
type Interface struct {
	Name  string
	Index int // 0: Any
	Link  pcapng.LinkType
}

// Lookup finds an interface of the current network namespace by name. The error
// is an *families.OpError, wrapping ENODEV when there is none.
func Lookup(name string) (Interface, error) {
	if name == Any {
		return Interface{Name: name, Link: pcapng.LinuxSLL2}, nil
	}
	link, err := linkType(name)
	if err != nil {
		return Interface{}, opError(name, err)
	}
	i, err := net.InterfaceByName(name)
	if err != nil { // gone since a moment ago
		return Interface{}, opError(name, fmt.Errorf("%v: %w", err, syscall.ENODEV))
	}
	return Interface{Name: name, Index: i.Index, Link: link}, nil
}

// linkType asks what the interface's frames begin with. Anything but Ethernet and
// its like is captured cooked, as libpcap does, because its header is unknown.
func linkType(name string) (pcapng.LinkType, error) {
	req, err := unix.NewIfreq(name)
	if err != nil {
		return 0, syscall.ENODEV // a name that cannot be an interface's
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("socket: %w", err)
	}
	defer unix.Close(fd)
	err = unix.IoctlIfreq(fd, unix.SIOCGIFHWADDR, req)
	if errors.Is(err, unix.ENODEV) {
		return 0, syscall.ENODEV
	}
	if err != nil {
		return 0, fmt.Errorf("hardware address: %w", err)
	}
	switch req.Uint16() { // sa_family of ifr_hwaddr
	case unix.ARPHRD_ETHER, unix.ARPHRD_LOOPBACK:
		return pcapng.Ethernet, nil
	}
	return pcapng.LinuxSLL2, nil
}
