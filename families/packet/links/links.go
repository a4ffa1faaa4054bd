// Package links knows the interfaces of a network namespace, and tells when one
// comes, goes, or becomes another. It asks the kernel by rtnetlink(7), through a
// socket of its own or one that somebody opened in another namespace. The capture
// engine uses it to serve patterns of names, and to wait for an interface.
//
// Who wants an interface only once, to open a socket on it, needs no Watcher: a ring
// or a socket finds it by name itself.
package links

import "net"

// Interface is one interface as the kernel described it last.
type Interface struct {
	// Index is its number, which the kernel gives to another one in time. Name may
	// change while Index does not.
	Index int
	Name  string
	// Hardware is its ARPHRD_ type, as in sockaddr_ll: 1 is Ethernet.
	Hardware uint16
	MTU      int
	Up       bool // IFF_UP: the administrator wants it to work
	Loopback bool
	// Address is its hardware address, nil where it has none.
	Address net.HardwareAddr
	// Generation tells an interface from one that had its index and name before: it
	// is another number each time that an interface appears. It is 0 in List.
	Generation uint64
}
