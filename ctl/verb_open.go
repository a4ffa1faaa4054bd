package ctl

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"strconv"

	"github.com/sockd/sockd/ctl/borrow"
	"github.com/sockd/sockd/families/model"
)

type openIn struct {
	Family       string  `json:"family"`
	Type         string  `json:"type"`
	Protocol     *int    `json:"protocol,omitempty"`
	ProtocolName *string `json:"protocol_name,omitempty"`
	Descriptor   *int    `json:"descriptor,omitempty"`
	Durable      *bool   `json:"durable,omitempty"`
}

type openOut struct {
	ID     model.ID     `json:"id"`
	Socket model.Socket `json:"socket"`
}

var _ = addMethod(unary("io.sockd.Manager.Open", func(ctx context.Context, r request, in openIn) (openOut, error) {
	fd, err := r.takeFile(in.Descriptor)
	if err != nil {
		return openOut{}, err
	}
	s, err := r.Open(ctx, r.caller, in.Family, in.Type, orZero(in.Protocol), orZero(in.ProtocolName), fd)
	if err != nil {
		closeFile(fd)
		return openOut{}, err
	}
	if orZero(in.Durable) {
		id := s.ID
		if s, err = r.Keep(ctx, r.caller, id); err != nil {
			_, closing := r.Close(ctx, r.caller, strconv.FormatInt(int64(id), 10), false)
			return openOut{}, errors.Join(err, closing)
		}
	}
	return openOut{ID: s.ID, Socket: s}, nil
}))

var _ = register(Verb{
	Name:  "open",
	Args:  "FAMILY TYPE [PROTO]",
	Short: "open a socket and print its ID",
	Long: `Opens a socket of a family (inet, inet6, local, packet) and a type (stream, dgram, seqpacket, raw), as socket(2) does, and prints its ID alone.
Without PROTO, a name or a number, the system picks. For the packet family the type raw takes whole frames, dgram ("cooked") takes them without their link-level header, and PROTO is an ethertype.

The socket belongs to the user who opened it, and stays open until it is closed.

With --durable the socket outlives the daemon's process, and so does what it accepts: by systemd or sockd --supervise, which hold it meanwhile.

With --netns the socket lives in another network namespace: a name below /run/netns, or the path of a namespace. sockd-ctl enters it with its own rights, opens the socket there, and hands it over.`,
	Examples: []string{
		"sockd-ctl open inet stream            # a TCP socket",
		"sockd-ctl open local seqpacket        # a unix socket that keeps message borders",
		"sockd-ctl open inet raw icmp          # all ICMP of this host",
		"sockd-ctl open inet dgram --netns blue  # a UDP socket in the namespace blue",
	},
	Complete: []string{"family", "type", ""},
	Setup: func(fs *flag.FlagSet) Run {
		durable := fs.Bool("durable", false, "the socket outlives the daemon's process")
		netns := fs.String("netns", "", "open the socket in the network namespace `N`")
		return func(ctx context.Context, e *Env, args []string) error {
			if err := wantArgs("open", args, 2, 3); err != nil {
				return err
			}
			in := openIn{Family: args[0], Type: args[1]}
			if len(args) == 3 {
				in.setProtocol(args[2])
			}
			if *durable {
				in.Durable = durable
			}
			if *netns != "" {
				return openElsewhere(ctx, e, in, *netns)
			}
			return openSocket(ctx, e, in)
		}
	},
})

// setProtocol takes a number as a number. Words are the family's to read.
func (in *openIn) setProtocol(s string) {
	if n, err := strconv.ParseInt(s, 0, 32); err == nil {
		number := int(n)
		in.Protocol = &number
		return
	}
	in.ProtocolName = &s
}

// openElsewhere opens the socket in another network namespace, which takes the
// caller's rights and not the daemon's.
func openElsewhere(ctx context.Context, e *Env, in openIn, netns string) error {
	fd, err := borrow.OpenIn(netns, in.Family, in.Type, orZero(in.Protocol), orZero(in.ProtocolName))
	if err != nil {
		return fmt.Errorf("open %s in network namespace %q: %w", in.Family, netns, err)
	}
	defer closeFile(fd)
	in.Descriptor = new(int) // the message's first
	return openSocket(ctx, e, in, fd)
}

func openSocket(ctx context.Context, e *Env, in openIn, fds ...int) error {
	var out openOut
	if err := e.call(ctx, "io.sockd.Manager.Open", in, &out, fds...); err != nil {
		return err
	}
	return printObject(e, out.Socket, printLine(out.ID))
}
