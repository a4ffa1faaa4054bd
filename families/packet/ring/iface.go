package ring

import (
	"errors"
	"fmt"
	"syscall"

	"github.com/sockd/sockd/families/packet/pcapng"
	"golang.org/x/sys/unix"
)

// Interface is what a ring can be opened on.
type Interface struct {
	Name  string
	Index int // 0: Any
	// Hardware is its ARPHRD_ type, 0 for Any.
	Hardware uint16
	// Link is what its frames begin with, LinkOf(Hardware). It is 0 for Any, where
	// each Frame tells its own.
	Link pcapng.LinkType
}

// LinkOf is what the frames of a hardware type, ARPHRD_ of linux/if_arp.h, begin with
// in a ring. Tunnels have nothing in front of the IP packet, or nothing that is worth
// more than it; other hardware has a header that is not known here, and LinuxSLL2
// takes its place, as libpcap does it.
func LinkOf(hardware uint16) pcapng.LinkType {
	switch hardware {
	case unix.ARPHRD_ETHER, unix.ARPHRD_LOOPBACK:
		return pcapng.Ethernet
	case unix.ARPHRD_NONE, unix.ARPHRD_TUNNEL, unix.ARPHRD_TUNNEL6, unix.ARPHRD_SIT, unix.ARPHRD_RAWIP, unix.ARPHRD_IPGRE:
		return pcapng.Raw
	}
	return pcapng.LinuxSLL2
}

// Lookup finds an interface of the calling thread's network namespace by name. The
// error is an *families.OpError, wrapping ENODEV when there is none.
func Lookup(name string) (Interface, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return Interface{}, opError(name, fmt.Errorf("socket: %w", err))
	}
	defer unix.Close(fd)
	return LookupFD(fd, name)
}

// LookupFD finds an interface by name in the network namespace of fd, a socket of any
// family, which stays the caller's. The error is as Lookup's.
func LookupFD(fd int, name string) (Interface, error) {
	i, err := lookup(fd, name)
	if err != nil {
		return Interface{}, opError(name, err)
	}
	return i, nil
}

// lookup asks through a socket, because a socket stays in its namespace and a thread
// may be in another (netdevice(7)).
func lookup(fd int, name string) (Interface, error) {
	if name == Any {
		return Interface{Name: name}, nil
	}
	req, err := unix.NewIfreq(name)
	if err != nil {
		return Interface{}, syscall.ENODEV // a name that cannot be an interface's
	}
	if err := ask(fd, unix.SIOCGIFINDEX, req); err != nil {
		return Interface{}, fmt.Errorf("interface index: %w", err)
	}
	index := int(req.Uint32())
	// The kernel also finds "lo:1" and names of the second kind (ip link property).
	if truth, err := nameOf(fd, index); err != nil || truth != name {
		return Interface{}, syscall.ENODEV
	}
	if err := ask(fd, unix.SIOCGIFHWADDR, req); err != nil {
		return Interface{}, fmt.Errorf("hardware address: %w", err)
	}
	hardware := req.Uint16() // sa_family of ifr_hwaddr
	return Interface{Name: name, Index: index, Hardware: hardware, Link: LinkOf(hardware)}, nil
}

func ask(fd int, request uint, req *unix.Ifreq) error {
	if err := unix.IoctlIfreq(fd, request, req); !errors.Is(err, unix.ENXIO) {
		return err
	}
	return syscall.ENODEV // SIOCGIFNAME says it so
}

// nameOf is the name of the interface of an index by now.
func nameOf(fd, index int) (string, error) {
	req := new(unix.Ifreq)
	req.SetUint32(uint32(index))
	if err := ask(fd, unix.SIOCGIFNAME, req); err != nil {
		return "", err
	}
	return req.Name(), nil
}

// up tells whether the interface of an index is up, whatever its name is by now.
func up(fd, index int) bool {
	name, err := nameOf(fd, index)
	if err != nil {
		return false
	}
	req, err := unix.NewIfreq(name)
	if err != nil {
		return false
	}
	return unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, req) == nil && req.Uint16()&unix.IFF_UP != 0
}
