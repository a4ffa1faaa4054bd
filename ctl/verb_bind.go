package ctl

import (
	"context"
	"flag"

	"github.com/sockd/sockd/ctl/borrow"
	"github.com/sockd/sockd/families/model"
)

type bindIn struct {
	ID      model.ID `json:"id"`
	Address string   `json:"address"`
}

// socketOut is the reply of the methods that change one socket.
type socketOut struct {
	Socket model.Socket `json:"socket"`
}

var _ = addMethod(unary("io.sockd.Manager.Bind", func(ctx context.Context, r request, in bindIn) (socketOut, error) {
	s, err := r.Bind(ctx, r.caller, in.ID, in.Address)
	return socketOut{s}, err
}))

var _ = register(Verb{
	Name:  "bind",
	Args:  "ID ADDRESS",
	Short: "bind a socket and print the bound address",
	Long: `Binds a socket to ADDRESS, written without its network: 127.0.0.1:80, [::1]:80 or :80 for inet and inet6, a path or @name for local, IFNAME[/ETHERTYPE] for packet. Port 0 lets the system choose; what it chose is printed.

A path or @name is bound by sockd-ctl itself, with its user's rights: the file belongs to that user. A path that is left from a socket that nobody has any more is replaced; one that somebody has bound, listening or not yet, is "address already in use". A path has at most 108 bytes, an abstract name 107 after the @.

In ADDRESS, wherever one is read or printed, \, is a comma, \\ a backslash, and \xNN any byte.`,
	Examples: []string{
		"sockd-ctl bind 1 127.0.0.1:7000       # then: sockd-ctl listen 1",
		"sockd-ctl bind 1 127.0.0.1:0          # the system chooses the port",
		"sockd-ctl bind 2 ./app.sock           # a unix path, relative to here",
		"sockd-ctl bind 3 eth0/arp             # only ARP frames of eth0",
	},
	Complete: []string{"socket", ""},
	Setup: func(*flag.FlagSet) Run {
		return func(ctx context.Context, e *Env, args []string) error {
			if err := wantArgs("bind", args, 2, 2); err != nil {
				return err
			}
			id, err := parseID("bind", args[0])
			if err != nil {
				return err
			}
			addr, err := parseAddress(args[1])
			if err != nil {
				return err
			}
			c, err := e.Dial(ctx)
			if err != nil {
				return err
			}
			defer c.Close()
			var out socketOut
			err = c.Call(ctx, "io.sockd.Manager.Bind", bindIn{id, addr.text}, &out)
			if mustBorrow(err) {
				out.Socket, err = c.borrowSocket(ctx, id, "bind", nothingSent(func(fd int) error {
					return borrow.Bind(fd, addr.plain)
				}))
			}
			if err != nil {
				return err
			}
			return printObject(e, out.Socket, printLine(cell(out.Socket.Local)))
		}
	},
})
